package mx

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// target.go reads what mail is for. It is liberal in what a person or a program may write,
// and has one form for each place.

// Target is what mail is for: a domain, or the literal of an address. It is a value, and
// two are the same place if they are equal with ==. The zero Target is none.
type Target struct {
	// Domain is a name in A-labels, in lower case, without a dot at the end. Empty for a
	// literal.
	Domain string
	// Addr is the address of a literal (RFC 5321, Section 4.1.3), without a zone. The zero
	// Addr for a domain.
	Addr netip.Addr
}

// Limits of names, in octets (RFC 1035, Section 2.3.4): 255 on the wire are 253 of text.
const (
	maxName  = 253
	maxLabel = 63
	// maxTarget is for an address of which the domain is in Unicode.
	maxTarget = 2048
)

var (
	errEmpty   = errors.New("no domain")
	errName    = errors.New("not a domain name")
	errLiteral = errors.New("not an address literal")
	errNumber  = errors.New("neither a domain name nor an address in its usual form")
	errZone    = errors.New("an address with a zone is of this machine alone")
	errLong    = errors.New("too long")
)

// ParseTarget reads a target: a domain name in A-labels or in Unicode, an e-mail address, of
// which the part behind the last at-sign counts, an IP address, or one in brackets with or
// without the tag IPv6. Spaces around it and one dot at the end of a name are left out.
//
// An IP address must be in its standard form (RFC 5321, Section 4.1.3; RFC 4291, Section
// 2.2). What others would read as one, as 127.1 or 0x7f000001, is no name either: a name
// whose last label is a number cannot be a host's (RFC 1123, Section 2.1).
//
// The error is an *Error, permanent: 5.1.2 for a domain, 5.6.7 for one in Unicode that has no
// A-labels, 5.1.3 for a literal.
func ParseTarget(s string) (Target, error) {
	t, err := parseTarget(s)
	if err != nil {
		return Target{}, err
	}
	return t, nil
}

func parseTarget(s string) (Target, *Error) {
	if len(s) > maxTarget {
		return Target{}, badTarget(smtp.Enhanced{5, 1, 2}, errLong)
	}
	s = strings.TrimSpace(s)
	s = s[strings.LastIndexByte(s, '@')+1:]
	if s == "" {
		return Target{}, badTarget(smtp.Enhanced{5, 1, 2}, errEmpty)
	}
	if s[0] == '[' {
		return literal(s)
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return addrTarget(a)
	}
	name, err := domainName(s)
	switch {
	case err == nil:
		return Target{Domain: name}, nil
	case ascii(s):
		return Target{}, badTarget(smtp.Enhanced{5, 1, 2}, err)
	}
	return Target{}, badTarget(smtp.Enhanced{5, 6, 7}, err)
}

// literal reads an address in brackets.
func literal(s string) (Target, *Error) {
	body, ok := strings.CutSuffix(s[1:], "]")
	const tag = "IPv6:"
	tagged := len(body) > len(tag) && strings.EqualFold(body[:len(tag)], tag)
	if tagged {
		body = body[len(tag):]
	}
	a, err := netip.ParseAddr(body)
	if !ok || err != nil || tagged && a.Is4() {
		return Target{}, badTarget(smtp.Enhanced{5, 1, 3}, errLiteral)
	}
	return addrTarget(a)
}

func addrTarget(a netip.Addr) (Target, *Error) {
	if a.Zone() != "" {
		return Target{}, badTarget(smtp.Enhanced{5, 1, 3}, errZone)
	}
	return Target{Addr: a}, nil
}

func badTarget(enh smtp.Enhanced, cause error) *Error {
	code := 550
	if enh[2] == 3 {
		code = 553
	}
	return &Error{Category: DNS, Reply: smtp.Refuse(code, enh, "the recipient's domain cannot be read"), Err: cause}
}

// domainName returns the canonical form of a domain name.
func domainName(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if plainName(s) {
		s = strings.ToLower(s)
	} else {
		d, err := smtp.ParseDomain(s)
		if err != nil || d.IsLiteral() {
			return "", errName
		}
		s = d.String()
	}
	if endsInNumber(s) {
		return "", errNumber
	}
	return s, nil
}

// plainName tells whether s is a name of ASCII labels that need no mapping, and none of which
// is an A-label, which would need a check.
func plainName(s string) bool {
	lower := strings.ToLower(s)
	return labels(s) && !strings.HasPrefix(lower, "xn--") && !strings.Contains(lower, ".xn--")
}

// hostName tells whether s, in lower case, can be the name of a host that is in the DNS.
// A-labels need not be legal: the name is looked up, not shown.
func hostName(s string) bool { return labels(s) && !endsInNumber(s) }

// labels tells whether s is made of labels of letters, digits, hyphens and underscores. In the
// addresses of people there are none of the last, but there are hosts that have one.
func labels(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !isLetDig(c) && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}

// endsInNumber tells whether the last label is a number, decimal or hexadecimal.
func endsInNumber(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	digits := "0123456789"
	if rest, ok := strings.CutPrefix(last, "0x"); ok {
		last, digits = rest, "0123456789abcdef"
	}
	return strings.Trim(last, digits) == ""
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

func isLetDig(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// TargetOf returns the target of a recipient's domain. That of the zero Domain is zero.
func TargetOf(d smtp.Domain) Target {
	if a, ok := d.Addr(); ok {
		return Target{Addr: a}
	}
	return Target{Domain: d.String()}
}

// IsZero tells whether t is no target.
func (t Target) IsZero() bool { return t == Target{} }

// IsLiteral tells whether t is an address.
func (t Target) IsLiteral() bool { return t.Addr.IsValid() }

// String returns the domain, or the literal as it stands in an address: "example.com",
// "[192.0.2.1]", "[IPv6:2001:db8::1]". ParseTarget reads it. It is empty for the zero Target.
func (t Target) String() string {
	if t.IsLiteral() {
		return smtp.AddrDomain(t.Addr).String()
	}
	return t.Domain
}
