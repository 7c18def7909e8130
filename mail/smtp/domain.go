package smtp

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// domain.go: domain names and address literals, in one canonical form.

// Domain is the part of an address after the at-sign: a domain name or an
// address literal (RFC 5321, Section 4.1.2 and 4.1.3). It is held in canonical
// form, lower-case A-labels or a normalised literal, so that two Domains are the
// same domain exactly if they are equal with ==. The zero Domain is "no domain",
// as in <postmaster>. A Domain is a value and safe for concurrent use.
type Domain struct {
	name string // "example.com", "xn--…", "[192.0.2.1]", "[IPv6:2001:db8::1]"
}

// Limits of names, in octets. RFC 1035, Section 2.3.4: 255 octets on the wire are
// 253 characters of text.
const (
	maxDomain = 253
	maxLabel  = 63
	// maxUnicode is for a name in U-labels, of which no character has more than four
	// octets. The time to map one grows with the square of its length.
	maxUnicode = 4 * maxDomain
)

var errDomain = errors.New("not a domain name")

// idnaProfile is UTS 46 as RFC 5895 and browsers use it for look-ups: mapped,
// non-transitional, bidi and joiner rules checked. Plain punycode would let two
// spellings of one name pass as two domains.
var idnaProfile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.Transitional(false),
	idna.StrictDomainName(true),
	idna.VerifyDNSLength(true),
)

// ParseDomain reads a domain name, in A-labels or U-labels, or an address literal
// in brackets. A trailing dot, an underscore and an empty label are errors: none
// of them is a mail domain (RFC 5321, Section 2.3.5).
func ParseDomain(s string) (Domain, error) {
	if len(s) > 0 && s[0] == '[' {
		return parseLiteral(s)
	}
	if name, ok := plainDomain(s); ok {
		return Domain{name}, nil
	}
	// U-labels are mapped; A-labels are checked, since "xn--" followed by nonsense
	// would be a name that nobody can show or compare.
	// The result goes through once more: what is canonical does not change. It would
	// where s was not UTF-8 and mapped to replacement characters.
	if len(s) > maxUnicode {
		return Domain{}, fmt.Errorf("%w: longer than %d octets", errDomain, maxUnicode)
	}
	name, err := idnaProfile.ToASCII(s)
	if err == nil && validLabels(name) {
		if again, err := idnaProfile.ToASCII(name); err == nil && again == name {
			return Domain{name}, nil
		}
	}
	return Domain{}, fmt.Errorf("%w: %q", errDomain, clip(s, 80))
}

// plainDomain is the common case: ASCII letters, digits, hyphens and dots, no
// A-label. It lower-cases, and allocates only if there was something to lower.
func plainDomain(s string) (string, bool) {
	if !validLabels(s) {
		return "", false
	}
	lower := strings.ToLower(s)
	if strings.HasPrefix(lower, "xn--") || strings.Contains(lower, ".xn--") {
		return "", false
	}
	return lower, true
}

// validLabels tells whether s is letter-digit-hyphen labels of legal length. RFC
// 5321, Section 4.1.2 (sub-domain, Ldh-str).
func validLabels(s string) bool {
	if len(s) == 0 || len(s) > maxDomain {
		return false
	}
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			if !isLetDig(s[i]) && s[i] != '-' {
				return false
			}
			continue
		}
		n := i - start
		if n == 0 || n > maxLabel || s[start] == '-' || s[i-1] == '-' {
			return false
		}
		start = i + 1
	}
	return true
}

// parseLiteral reads "[192.0.2.1]" and "[IPv6:…]". General address literals with
// other tags are not defined for any transport of ours.
func parseLiteral(s string) (Domain, error) {
	body, ok := strings.CutSuffix(s[1:], "]")
	if !ok {
		return Domain{}, fmt.Errorf("%w: address literal %q has no closing bracket", errDomain, clip(s, 80))
	}
	if tag := "IPv6:"; len(body) > len(tag) && strings.EqualFold(body[:len(tag)], tag) {
		addr, err := netip.ParseAddr(body[len(tag):])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return Domain{}, fmt.Errorf("%w: bad IPv6 address literal %q", errDomain, clip(s, 80))
		}
		return AddrDomain(addr), nil
	}
	addr, err := netip.ParseAddr(body)
	if err != nil || !addr.Is4() {
		return Domain{}, fmt.Errorf("%w: bad address literal %q", errDomain, clip(s, 80))
	}
	return AddrDomain(addr), nil
}

// AddrDomain returns the address literal of addr. An IPv4 address mapped into
// IPv6 keeps the form in which it was given. The zero Addr gives the zero Domain.
func AddrDomain(addr netip.Addr) Domain {
	switch {
	case !addr.IsValid():
		return Domain{}
	case addr.Is4():
		return Domain{"[" + addr.String() + "]"}
	default:
		return Domain{"[IPv6:" + addr.WithZone("").String() + "]"}
	}
}

// String returns the canonical form: lower-case A-labels, or the literal with its
// brackets. It is ASCII and may be sent to any server.
func (d Domain) String() string { return d.name }

// IsZero tells whether there is no domain.
func (d Domain) IsZero() bool { return d.name == "" }

// IsLiteral tells whether d is an address literal.
func (d Domain) IsLiteral() bool { return len(d.name) > 0 && d.name[0] == '[' }

// Addr returns the address of a literal; ok is false for a domain name.
func (d Domain) Addr() (addr netip.Addr, ok bool) {
	if !d.IsLiteral() {
		return netip.Addr{}, false
	}
	body := strings.TrimPrefix(d.name[1:len(d.name)-1], "IPv6:")
	addr, err := netip.ParseAddr(body)
	return addr, err == nil
}

// Unicode returns the name in U-labels, for people; where there are none it is
// the same as String.
func (d Domain) Unicode() string {
	if !strings.Contains(d.name, "xn--") {
		return d.name
	}
	u, err := idnaProfile.ToUnicode(d.name)
	if err != nil {
		return d.name
	}
	return u
}

func isLetDig(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// clip shortens what goes into an error text.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
