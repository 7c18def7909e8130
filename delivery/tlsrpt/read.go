package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/parts"
)

// read.go reads reports that others send us. Anybody may send one, so each is taken for
// hostile: a small file may decompress to an endless one, and JSON may be anything. What
// comes out is cut to what a report needs, and printable.
//
// Whether a message was signed by who it says it is from is not looked at here. RFC 8460,
// Section 3 has receivers ignore what is not; a report is shown as what somebody claims.

// Limits of what is read.
const (
	// MaxMessage is the largest message with a report, in octets.
	MaxMessage = 4 << 20
	// MaxReport is the largest report, decompressed, in octets.
	MaxReport = 8 << 20

	maxDepth   = 16  // of JSON; a report needs 6
	maxKept    = 500 // failures of a report, of all policies
	maxDetail  = 255 // octets of a text
	maxMembers = 64  // of a gzip file
)

// ErrNotReport is behind each error that says that there is no report that could be read.
var ErrNotReport = errors.New("tlsrpt: no report about TLS")

// ReadMessage returns the report in a message. Its error is ErrNotReport.
func ReadMessage(content []byte) (Report, error) {
	if len(content) > MaxMessage {
		return Report{}, fmt.Errorf("%w: the message has more than %d octets", ErrNotReport, MaxMessage)
	}
	h, body := message.Parse(content)
	in := bytes.NewReader(body)
	list, err := parts.Scan(h, in, int64(len(body)), nil)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	for i := range list {
		if !holdsReport(&list[i]) {
			continue
		}
		pr := parts.NewReader(in, &list[i], nil)
		return Read(io.NewSectionReader(pr, 0, MaxMessage))
	}
	return Report{}, fmt.Errorf("%w: no part has the type of one", ErrNotReport)
}

// holdsReport tells by what a part says of itself whether it is the report. Many senders use
// common types with the name of a report.
func holdsReport(p *parts.Part) bool {
	switch p.Type {
	case "application/tlsrpt+gzip", "application/tlsrpt+json":
		return true
	case "application/gzip", "application/x-gzip", "application/octet-stream", "application/json":
		name := strings.ToLower(p.Name())
		return strings.HasSuffix(name, ".json.gz") || strings.HasSuffix(name, ".json")
	}
	return false
}

// Read reads a report in JSON, compressed with gzip or not. Its error is ErrNotReport, also if r
// fails. Texts are cut to 255 octets, and of failures 500 are kept.
func Read(r io.Reader) (Report, error) {
	data, err := decompress(r)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	if err := checkDepth(data); err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	var rep Report
	if err := json.Unmarshal(data, &rep); err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNotReport, err)
	}
	if rep.ID == "" && rep.Organization == "" || len(rep.Policies) == 0 {
		return Report{}, fmt.Errorf("%w: it does not say whose it is, or of what", ErrNotReport)
	}
	rep.clean()
	if !rep.Range.dated() {
		return Report{}, fmt.Errorf("%w: of a time that there is not", ErrNotReport)
	}
	return rep, nil
}

// dated tells whether the times can be written down again: in UTC, a year may have passed the
// last one that RFC 3339 knows.
func (r Range) dated() bool {
	_, err := json.Marshal(r)
	return err == nil
}

// decompress reads all of r, decompressed if it is a gzip file, up to MaxReport.
func decompress(r io.Reader) ([]byte, error) {
	raw, err := readAll(r, MaxReport)
	if err != nil || !bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		return raw, err
	}
	in := bytes.NewReader(raw)
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	z.Multistream(false) // members are counted, as each may be empty
	var out []byte
	for range maxMembers {
		more, err := readAll(z, MaxReport-len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
		if err := z.Reset(in); err != nil {
			return out, nil // the end, or what stands behind it and is no member
		}
		z.Multistream(false)
	}
	return nil, errors.New("too many gzip members")
}

// readAll is io.ReadAll with a limit, beyond which it fails.
func readAll(r io.Reader, limit int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(data) > limit {
		err = fmt.Errorf("longer than %d octets", limit)
	}
	return data, err
}

// checkDepth refuses JSON that is nested deeper than a report. It looks at brackets outside of
// strings alone; whether it is JSON is for the parser to say.
func checkDepth(data []byte) error {
	depth, text := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return errors.New("nested too deep")
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// clean cuts what a stranger wrote.
func (r *Report) clean() {
	for _, s := range []*string{&r.Organization, &r.Contact, &r.ID} {
		*s = clip(*s, maxDetail)
	}
	r.Range.Start, r.Range.End = r.Range.Start.UTC(), r.Range.End.UTC()
	left := maxKept
	for i := range r.Policies {
		o := &r.Policies[i]
		o.Policy.Type, o.Policy.Domain = clip(o.Policy.Type, 64), clip(o.Policy.Domain, maxDetail)
		for _, list := range []*Texts{&o.Policy.Strings, &o.Policy.MXHosts} {
			*list = (*list)[:min(len(*list), maxStrings)]
			for j := range *list {
				(*list)[j] = clip((*list)[j], maxDetail)
			}
		}
		o.Failures = o.Failures[:min(len(o.Failures), left)]
		left -= len(o.Failures)
		for j := range o.Failures {
			o.Failures[j].clean()
		}
	}
}

func (f *FailureDetail) clean() {
	for _, s := range []*string{&f.Type, &f.SendingIP, &f.ReceivingHost, &f.ReceivingHelo, &f.ReceivingIP, &f.Additional, &f.Reason} {
		*s = clip(*s, maxDetail)
	}
}

// Sessions returns how many sessions a report tells of.
func (r *Report) Sessions() (successful, failed int64) {
	for _, o := range r.Policies {
		successful = sum(successful, int64(o.Summary.Successful))
		failed = sum(failed, int64(o.Summary.Failed))
	}
	return successful, failed
}

// sum adds without running over: the numbers are a stranger's.
func sum(a, b int64) int64 {
	if c := a + b; c >= a {
		return c
	}
	return 1<<63 - 1
}

// Domains returns the policy domains of a report, in its order, without duplicates.
func (r *Report) Domains() []string {
	var all []string
	seen := make(map[string]bool)
	for _, o := range r.Policies {
		if d := o.Policy.Domain; !seen[d] {
			seen[d] = true
			all = append(all, d)
		}
	}
	return all
}
