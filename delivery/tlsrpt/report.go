package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// report.go: the report itself, as RFC 8460, Section 4.4 has it in JSON.

// Report is what one sender tells one domain of one day.
type Report struct {
	Organization string         `json:"organization-name"`
	Range        Range          `json:"date-range"`
	Contact      string         `json:"contact-info"`
	ID           string         `json:"report-id"`
	Policies     PolicyOutcomes `json:"policies"`
}

// Range is the time that a report is about.
type Range struct {
	Start time.Time `json:"start-datetime"`
	End   time.Time `json:"end-datetime"` // the last second
}

// PolicyOutcome tells how it went under one policy.
type PolicyOutcome struct {
	Policy   PolicyText     `json:"policy"`
	Summary  Summary        `json:"summary"`
	Failures FailureDetails `json:"failure-details,omitempty"`
}

// PolicyText is a policy in a report.
type PolicyText struct {
	Type    string `json:"policy-type"`
	Strings Texts  `json:"policy-string,omitempty"`
	Domain  string `json:"policy-domain"`
	MXHosts Texts  `json:"mx-host,omitempty"`
}

// Summary counts sessions.
type Summary struct {
	Successful Count `json:"total-successful-session-count"`
	Failed     Count `json:"total-failure-session-count"`
}

// FailureDetail tells of sessions that failed for one reason.
type FailureDetail struct {
	Type          string `json:"result-type"`
	SendingIP     string `json:"sending-mta-ip,omitempty"`
	ReceivingHost string `json:"receiving-mx-hostname,omitempty"`
	ReceivingHelo string `json:"receiving-mx-helo,omitempty"`
	ReceivingIP   string `json:"receiving-ip,omitempty"`
	Count         Count  `json:"failed-session-count"`
	Additional    string `json:"additional-information,omitempty"`
	Reason        string `json:"failure-reason-code,omitempty"`
}

// PolicyOutcomes are read up to a limit.
type PolicyOutcomes []PolicyOutcome

// FailureDetails are read up to a limit.
type FailureDetails []FailureDetail

// Texts are read from a list or a single text, which senders write where it is the only one,
// up to a limit.
type Texts []string

// Count is a number of sessions. It is read from a number or its digits as text, and is not
// negative.
type Count int64

// Limits of a report that is read. A report is small: a domain has few policies a day, and
// failures of few kinds.
const (
	maxOutcomes      = 100
	maxFailures      = 1000 // of a policy
	maxReportStrings = 256
)

var errTooMany = errors.New("tlsrpt: a list is too long")

// UnmarshalJSON implements json.Unmarshaler.
func (l *PolicyOutcomes) UnmarshalJSON(data []byte) error {
	return readList((*[]PolicyOutcome)(l), data, maxOutcomes)
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *FailureDetails) UnmarshalJSON(data []byte) error {
	return readList((*[]FailureDetail)(l), data, maxFailures)
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *Texts) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		*l = make(Texts, 1)
		return json.Unmarshal(data, &(*l)[0])
	}
	return readList((*[]string)(l), data, maxReportStrings)
}

// readList reads a list element by element, so that no more than limit are ever made: two
// octets of JSON may be an element of hundreds.
func readList[T any](into *[]T, data []byte, limit int) error {
	*into = nil
	if string(data) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(err, errors.New("tlsrpt: not a list"))
	}
	for dec.More() {
		if len(*into) >= limit {
			return errTooMany
		}
		var v T
		if err := dec.Decode(&v); err != nil {
			return err
		}
		*into = append(*into, v)
	}
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *Count) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	if n := len(data); n >= 2 && data[0] == '"' && data[n-1] == '"' {
		data = data[1 : n-1]
	}
	n, err := strconv.ParseUint(string(data), 10, 63)
	if err != nil {
		return errors.New("tlsrpt: not a number of sessions")
	}
	*c = Count(n)
	return nil
}

// sender is who reports.
type sender struct {
	organization, contact string
	submitter             string // our domain
}

// report makes the report of a day to a domain. It depends on its arguments alone, so that one
// that is made again after a crash is the same, and has the same identifier.
func (s sender) report(d day, domain string, sum *domainSum) Report {
	r := Report{
		Organization: s.organization, Contact: s.contact, ID: s.id(d, domain),
		Range:    Range{Start: d.begin(), End: d.end().Add(-time.Second)},
		Policies: PolicyOutcomes{},
	}
	for _, p := range sum.rows() {
		o := PolicyOutcome{Policy: PolicyText{Type: string(p.Policy.Type), Strings: p.Policy.Strings, Domain: p.Policy.Domain, MXHosts: p.Policy.MXHosts}}
		o.Summary.Successful = Count(p.OK)
		for _, f := range p.Details {
			o.Summary.Failed += Count(f.Count)
			o.Failures = append(o.Failures, detailOf(f.Failure, f.Count))
		}
		r.Policies = append(r.Policies, o)
	}
	return r
}

func detailOf(f Failure, n int64) FailureDetail {
	d := FailureDetail{Type: string(f.Type), ReceivingHost: f.ReceivingHost, ReceivingHelo: f.ReceivingHelo, Count: Count(n), Additional: f.Additional, Reason: f.Reason}
	if f.SendingIP.IsValid() {
		d.SendingIP = f.SendingIP.String()
	}
	if f.ReceivingIP.IsValid() {
		d.ReceivingIP = f.ReceivingIP.String()
	}
	return d
}

// id is the report's identifier, unique among those of all senders: RFC 8460, Section 4.4.
func (s sender) id(d day, domain string) string {
	return fmt.Sprintf("%s-%s@%s", d, s.mark(d, domain), s.submitter)
}

// mark is letters and digits that no other report of ours has.
func (s sender) mark(d day, domain string) string {
	sum := sha256.Sum256([]byte(s.organization + "\x00" + s.submitter + "\x00" + string(d) + "\x00" + domain))
	return hex.EncodeToString(sum[:8])
}

// filename is the name of the file with a report. RFC 8460, Section 5.1.
func (s sender) filename(d day, domain string) string {
	return fmt.Sprintf("%s!%s!%d!%d!%s.json.gz", s.submitter, domain, d.begin().Unix(), d.end().Unix()-1, s.mark(d, domain))
}

// compress returns the report as it is sent, compressed (RFC 8460, Section 5.2).
func (r Report) compress() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("tlsrpt: report: %w", err)
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out) // without a name and a time: the same report is the same file
	_, err = w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("tlsrpt: report: %w", err)
	}
	return out.Bytes(), nil
}
