package smtp

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// path.go: reverse-paths and forward-paths of RFC 5321, Section 4.1.2, with the
// UTF-8 of RFC 6531, Section 3.3.

// Path is an address of the envelope. It is canonical: the local part is held
// without quotes and escapes, a source route is gone, the domain is a [Domain].
// Paths are equal with == exactly if they are the same address. The zero Path is
// the null reverse-path <>. A Path is a value and safe for concurrent use.
type Path struct {
	// Local is the local part as it is meant: `a b` for "a b"@example.com. Its
	// case is kept, since only the final system may fold it (RFC 5321, Section
	// 2.4).
	Local string
	// Domain is zero for <postmaster> alone, and for the null path.
	Domain Domain
}

// maxPath is the longest path with its brackets. RFC 5321, Section 4.5.3.1.3.
// Section 4.5.3.1.1 sets 64 octets for a local part and asks at the same place to
// take more where one can: senders of bounces put whole addresses there.
const maxPath = 256

// postmaster is the one local part that means a mailbox without a domain.
const postmaster = "postmaster"

// errPath is behind every syntax error of an address.
var errPath = errors.New("bad address syntax")

// ParsePath reads a path with its angle brackets: "<a@example.com>", "<>",
// "<postmaster>", and "<@hop.example:a@example.com>", whose route is dropped as
// RFC 5321, Appendix C asks. Nothing may follow the closing bracket.
func ParsePath(s string) (Path, error) {
	p, rest, err := cutPath(s)
	if err == nil && rest != "" {
		err = fmt.Errorf("%w: text after the closing bracket", errPath)
	}
	return p, err
}

// ParseAddress reads an address without brackets: "a@example.com" or
// `"a b"@example.com`. It is not the null path.
func ParseAddress(s string) (Path, error) {
	if s == "" {
		return Path{}, fmt.Errorf("%w: empty", errPath)
	}
	local, rest, err := cutLocal(s)
	if err != nil {
		return Path{}, err
	}
	if rest == "" || rest[0] != '@' {
		return Path{}, fmt.Errorf("%w: no domain", errPath)
	}
	return finishPath(local, rest[1:])
}

// cutPath reads the path that begins s and returns what follows it.
func cutPath(s string) (p Path, rest string, err error) {
	if s == "" || s[0] != '<' {
		return p, s, fmt.Errorf("%w: the address must be in angle brackets", errPath)
	}
	in := s[1:]
	if in != "" && in[0] == '>' {
		return p, in[1:], nil
	}
	if in, err = skipRoute(in); err != nil {
		return p, s, err
	}
	local, in, err := cutLocal(in)
	if err != nil {
		return p, s, err
	}
	if in == "" || in[0] != '@' {
		// RFC 5321, Section 4.5.1: postmaster needs no domain. No other name may go
		// without one, and this one is the same in any case.
		if in != "" && in[0] == '>' && strings.EqualFold(local, postmaster) {
			return Path{Local: postmaster}, in[1:], nil
		}
		return p, s, fmt.Errorf("%w: no domain", errPath)
	}
	end := strings.IndexByte(in, '>')
	if end < 0 {
		return p, s, fmt.Errorf("%w: no closing bracket", errPath)
	}
	p, err = finishPath(local, in[1:end])
	return p, in[end+1:], err
}

// finishPath checks the length in the canonical form, the one that goes on: a name in
// U-labels gets longer in A-labels.
func finishPath(local, domain string) (Path, error) {
	d, err := ParseDomain(domain)
	if err != nil {
		return Path{}, fmt.Errorf("%w: %w", errPath, err)
	}
	p := Path{Local: local, Domain: d}
	if p.length() > maxPath {
		return Path{}, fmt.Errorf("%w: longer than %d octets", errPath, maxPath)
	}
	return p, nil
}

// length is how many octets p has in canonical form with its brackets.
func (p Path) length() int {
	n := len("<>") + len(p.Local)
	if p.Local != "" && !isDotString(p.Local) {
		n += len(`""`) + strings.Count(p.Local, `"`) + strings.Count(p.Local, `\`)
	}
	if !p.Domain.IsZero() {
		n += len("@") + len(p.Domain.name)
	}
	return n
}

// check returns why p cannot be sent as an address. A Path that was parsed always
// can; one that was put together by hand may hold anything.
func (p Path) check() error {
	switch {
	case p.IsNull():
		return nil
	case p.Local == "":
		return fmt.Errorf("%w: empty local part", errPath)
	case p.Domain.IsZero() && p.Local != postmaster:
		return fmt.Errorf("%w: no domain", errPath)
	case p.length() > maxPath:
		return fmt.Errorf("%w: longer than %d octets", errPath, maxPath)
	}
	for i := range len(p.Local) {
		if p.Local[i] < ' ' || p.Local[i] == 0x7f {
			return fmt.Errorf("%w: control character in the local part", errPath)
		}
	}
	return checkUTF8(p.Local)
}

// skipRoute drops "@a,@b:". The hops are checked only for their shape; nobody
// will follow them.
func skipRoute(s string) (string, error) {
	if s == "" || s[0] != '@' {
		return s, nil
	}
	route, rest, ok := strings.Cut(s, ":")
	if len(route) > 5 && strings.HasSuffix(strings.ToLower(route), "[ipv6") {
		return "", fmt.Errorf("%w: address literal in a source route", errPath)
	}
	if !ok {
		return "", fmt.Errorf("%w: source route without a colon", errPath)
	}
	for hop := range strings.SplitSeq(route, ",") {
		if len(hop) < 2 || hop[0] != '@' {
			return "", fmt.Errorf("%w: bad source route", errPath)
		}
		if _, err := ParseDomain(hop[1:]); err != nil {
			return "", fmt.Errorf("%w: bad source route: %w", errPath, err)
		}
	}
	return rest, nil
}

// cutLocal reads a Dot-string or a Quoted-string and returns its meaning.
func cutLocal(s string) (local, rest string, err error) {
	if s != "" && s[0] == '"' {
		return cutQuoted(s)
	}
	n := 0
	for n < len(s) && (isAtext(s[n]) || s[n] == '.') {
		n++
	}
	local = s[:n]
	if !isDotString(local) {
		return "", s, fmt.Errorf("%w: bad local part", errPath)
	}
	if err := checkUTF8(local); err != nil {
		return "", s, err
	}
	return local, s[n:], nil
}

// cutQuoted reads a Quoted-string. RFC 5321, Section 4.1.2: printable ASCII and
// space, with quote and backslash escaped; RFC 6531 adds UTF-8.
func cutQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"':
			if b.Len() == 0 {
				return "", s, fmt.Errorf("%w: empty local part", errPath)
			}
			if err := checkUTF8(b.String()); err != nil {
				return "", s, err
			}
			return b.String(), s[i+1:], nil
		case c == '\\':
			i++
			if i >= len(s) || s[i] < ' ' || s[i] > '~' {
				return "", s, fmt.Errorf("%w: bad escape in a quoted local part", errPath)
			}
			b.WriteByte(s[i])
		case c < ' ' || c == 0x7f:
			return "", s, fmt.Errorf("%w: control character in the local part", errPath)
		default:
			b.WriteByte(c)
		}
	}
	return "", s, fmt.Errorf("%w: quote without end", errPath)
}

// checkUTF8 refuses broken UTF-8, and characters that nobody sees: they make two
// addresses look like one.
func checkUTF8(s string) error {
	if isASCII(s) {
		return nil
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: not valid UTF-8", errPath)
	}
	for _, r := range s {
		if isInvisible(r) {
			return fmt.Errorf("%w: invisible character U+%04X", errPath, r)
		}
	}
	return nil
}

// isInvisible: C1 controls, soft hyphen, zero width space, marks and overrides of the
// direction, separators, fillers. The joiners U+200C and U+200D are not among them:
// some scripts cannot be written without.
func isInvisible(r rune) bool {
	switch {
	case r < 0x80:
		return false
	case r < 0xa0, r == 0xad, r == 0x200b, r == 0x200e, r == 0x200f, r == 0xfeff,
		0x2028 <= r && r <= 0x202e, 0x2060 <= r && r <= 0x206f, 0xfff9 <= r && r <= 0xfffb,
		0xe0000 <= r && r <= 0xe007f:
		return true
	}
	return false
}

// isAtext tells whether c may stand in an atom (RFC 5322, Section 3.2.3), or is
// part of a UTF-8 character (RFC 6531, Section 3.3).
func isAtext(c byte) bool {
	return isLetDig(c) || c >= 0x80 || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

// isDotString tells whether s can be a local part without quotes.
func isDotString(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' {
		return false
	}
	for i := range len(s) {
		if s[i] == '.' {
			if s[i+1] == '.' {
				return false
			}
		} else if !isAtext(s[i]) {
			return false
		}
	}
	return true
}

// IsNull tells whether p is the null reverse-path <>, the sender of bounces.
func (p Path) IsNull() bool { return p == Path{} }

// NeedsUTF8 tells whether p can be sent only with SMTPUTF8 (RFC 6531). The domain
// never needs it: it is held in A-labels.
func (p Path) NeedsUTF8() bool { return !isASCII(p.Local) }

// AppendTo appends what String returns to b.
func (p Path) AppendTo(b []byte) []byte {
	if p.Local == "" || isDotString(p.Local) {
		b = append(b, p.Local...)
	} else {
		b = appendQuoted(b, p.Local)
	}
	if !p.Domain.IsZero() {
		b = append(append(b, '@'), p.Domain.name...)
	}
	return b
}

// String returns the address as it is written between the brackets, with quotes
// only where they are needed. The null path gives the empty string.
func (p Path) String() string {
	local := p.Local
	if local != "" && !isDotString(local) {
		local = string(appendQuoted(nil, local))
	}
	if p.Domain.IsZero() {
		return local
	}
	return local + "@" + p.Domain.name
}

// appendQuoted appends a local part as a quoted string.
func appendQuoted(b []byte, local string) []byte {
	b = append(b, '"')
	for i := range len(local) {
		if local[i] == '"' || local[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, local[i])
	}
	return append(b, '"')
}

// appendPath writes p with its brackets.
func appendPath(b []byte, p Path) []byte {
	return append(p.AppendTo(append(b, '<')), '>')
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
