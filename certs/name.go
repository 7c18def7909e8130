package certs

// name.go brings host names into the one form in which they are compared: A-labels in
// lower case, without a trailing dot.

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // RFC 1035, Section 2.3.4: 255 octets on the wire
	maxLabel = 63

	// maxRaw bounds what is given to the IDNA tables, since the name comes from a
	// peer that may send 64 KiB. A U-label has at most 4 bytes for each of the
	// bytes of its A-label.
	maxRaw = 4 * (maxName + 1)
)

// normalise returns the form of a host name that is compared, and false if it is none.
// SNI is defined for A-labels only (RFC 6066, Section 3), but U-labels are seen and harm
// nobody: they are mapped as RFC 5891, Section 5 has it. A name in the right form
// already is returned without an allocation.
func normalise(name string) (string, bool) {
	if len(name) > maxRaw {
		return "", false
	}
	if !isASCII(name) {
		// The tables let bytes pass that are not UTF-8, as U+FFFD.
		mapped, err := idna.Lookup.ToASCII(name)
		if err != nil || !utf8.ValidString(name) {
			return "", false
		}
		name = mapped
	}
	name = strings.TrimSuffix(name, ".")
	if !isHostname(name) {
		return "", false
	}
	return strings.ToLower(name), true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// isHostname reports whether s follows RFC 1123, Section 2.1: labels of letters, digits
// and inner hyphens, and a last label that is not a number, which tells names from
// addresses. It is one loop because it is most of what a choice costs.
func isHostname(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	start, number := 0, true // of the label that i is in
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9':
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-':
			number = false
		case c == '.':
			if !isLabel(s[start:i]) {
				return false
			}
			start, number = i+1, true
		default:
			return false
		}
	}
	return isLabel(s[start:]) && !number
}

// isLabel checks what isHostname does not see byte by byte.
func isLabel(s string) bool {
	return s != "" && len(s) <= maxLabel && s[0] != '-' && s[len(s)-1] != '-'
}

// splitWildcard returns the name behind "*.", the only form of wildcard we know
// (RFC 9525, Section 6.3).
func splitWildcard(name string) (parent string, ok bool) {
	return strings.CutPrefix(name, "*.")
}

// parentOf returns a name without its first label, or "" if it has one label only.
func parentOf(name string) string {
	_, parent, _ := strings.Cut(name, ".")
	return parent
}
