package tlsrpt

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// record.go reads the TXT record with which a domain asks for reports (RFC 8460, Section 3):
//
//	_smtp._tls.example.com. TXT "v=TLSRPTv1; rua=mailto:reports@example.com"

// Errors of ParseRecord.
var (
	// ErrNoRecord: none of the texts is a record, so the domain wants no reports.
	ErrNoRecord = errors.New("tlsrpt: no record")
	// ErrBadRecord: there are several, or the one is not written as it should be, or it names
	// no place that we can send to.
	ErrBadRecord = errors.New("tlsrpt: bad record")
)

// Destination is a place where a domain wants reports to go: an address or a URL.
type Destination struct {
	// Address is that of a mailto URI; null if it is another.
	Address smtp.Path
	// URL is an https one; empty if it is another.
	URL string
}

// String returns the URI.
func (d Destination) String() string {
	if d.URL != "" {
		return d.URL
	}
	return "mailto:" + d.Address.String()
}

// Limits of a record.
const (
	maxRecord       = 4096
	maxDestinations = 5 // of one record; more are left out
)

const version = "v=TLSRPTv1"

// ParseRecord reads the texts at _smtp._tls of a domain and returns where reports go, at least
// one destination and at most five. URIs of other kinds, and addresses that are none, are left
// out. Its errors are ErrNoRecord and ErrBadRecord.
func ParseRecord(texts []string) ([]Destination, error) {
	var records []string
	for _, t := range texts {
		if rest, ok := strings.CutPrefix(t, version); ok && strings.HasPrefix(strings.TrimLeft(rest, wsp), ";") {
			records = append(records, rest)
		}
	}
	switch {
	case len(records) == 0:
		return nil, ErrNoRecord
	case len(records) > 1: // RFC 8460, Section 3: then there is none
		return nil, fmt.Errorf("%w: there are %d", ErrBadRecord, len(records))
	case len(records[0]) > maxRecord:
		return nil, fmt.Errorf("%w: longer than %d octets", ErrBadRecord, maxRecord)
	}
	var all []Destination
	fields := strings.Split(records[0], ";")
	for i, field := range fields[1:] {
		field = strings.Trim(field, wsp)
		if field == "" && i > 0 && i == len(fields)-2 {
			break // the last delimiter may have nothing behind it
		}
		name, value, ok := strings.Cut(field, "=")
		switch {
		case !ok || !isFieldName(name):
			return nil, fmt.Errorf("%w: a field has no name", ErrBadRecord)
		case name == "rua":
			all = append(all, destinations(value)...)
		case !isFieldValue(value):
			return nil, fmt.Errorf("%w: a field has a bad value", ErrBadRecord)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: it names no place that reports can go to", ErrBadRecord)
	}
	return all[:min(len(all), maxDestinations)], nil
}

const wsp = " \t"

func isFieldName(s string) bool {
	if s == "" || len(s) > 32 || strings.ContainsRune("_-.", rune(s[0])) {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_-.", r)
	}) < 0
}

func isFieldValue(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '=' }) < 0
}

func destinations(value string) []Destination {
	var all []Destination
	for uri := range strings.SplitSeq(value, ",") {
		if d, err := parseDestination(strings.Trim(uri, wsp)); err == nil {
			all = append(all, d)
		}
	}
	return all
}

var errDestination = errors.New("tlsrpt: nothing that reports can go to")

// parseDestination reads a URI.
func parseDestination(uri string) (Destination, error) {
	if len(uri) > 2048 || !isPrintable(uri) {
		return Destination{}, errDestination
	}
	u, err := url.Parse(uri)
	if err != nil {
		return Destination{}, errDestination
	}
	switch u.Scheme {
	case "mailto":
		// RFC 6068: what stands behind a question mark is about a message that a person writes.
		address, err := url.PathUnescape(u.Opaque)
		if err != nil {
			return Destination{}, errDestination
		}
		p, err := smtp.ParseAddress(address)
		// An address literal is nothing that a domain's record should make us connect to.
		if err != nil || p.NeedsUTF8() || strings.HasPrefix(p.Domain.String(), "[") || !isPlain(p) {
			return Destination{}, errDestination
		}
		return Destination{Address: p}, nil
	case "https":
		if u.Hostname() == "" || u.User != nil || u.Opaque != "" {
			return Destination{}, errDestination
		}
		u.Fragment, u.RawFragment = "", ""
		return Destination{URL: u.String()}, nil
	}
	return Destination{}, errDestination
}

// isPlain tells whether the local part is of letters, digits and harmless marks. Others could
// have a backend of ours, which trusts us, send on ("%", "!" and "@"), or be read differently when
// the URI is read again.
func isPlain(p smtp.Path) bool {
	return p.String() == p.Local+"@"+p.Domain.String() && !strings.ContainsAny(p.Local, "%!?#")
}

func isPrintable(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0
}
