package message

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// newfield.go makes fields: encoded words for what is beyond ASCII (RFC 2047), folding
// for what is long (RFC 5322, Section 2.2.3).

// Limits of a new field, in octets without CRLF. RFC 5322, Section 2.1.1 has 998 for a
// line and wishes for 78; RFC 2047, Section 2 has 76 where there are encoded words, and
// 75 for one of them.
const (
	maxName    = 128
	maxValue   = 64 << 10
	maxLine    = 998
	fineLine   = 76
	maxEncoded = 75
)

// NewField makes a field of a name and a text, of which white space at the ends is
// dropped. Words beyond ASCII become encoded words (RFC 2047); long text is folded at
// white space, which stays as it is. A name that is none is ErrFieldName. Control
// characters other than the tab are ErrFieldValue, since whoever writes the text must
// not be able to write a second field; so is text that is too long or that has no white
// space to fold it at.
func NewField(name, text string) (Field, error) {
	if len(name) > maxName || len(name) == 0 || fieldName([]byte(name+":")) != len(name) {
		return Field{}, fmt.Errorf("%w: %.60q", ErrFieldName, name)
	}
	if len(text) > maxValue {
		return Field{}, fmt.Errorf("%w: longer than %d octets", ErrFieldValue, maxValue)
	}
	for i := range len(text) {
		if c := text[i]; c < ' ' && c != '\t' || c == 0x7f {
			return Field{}, fmt.Errorf("%w: control character 0x%02x", ErrFieldValue, c)
		}
	}
	text = strings.Trim(text, " \t")
	if !isASCII(text) {
		text = encodeWords(strings.ToValidUTF8(text, "\uFFFD"), len(name)+len(": "))
	}
	raw := make([]byte, 0, len(name)+len(text)+len(text)/32+16)
	raw = append(append(raw, name...), ':')
	raw, err := appendFolded(raw, text)
	if err != nil {
		return Field{}, err
	}
	return Field{raw: append(raw, '\r', '\n'), name: len(name)}, nil
}

// appendFolded appends text behind a name and its colon, one space before it. A line
// that would exceed fineLine is folded before a word, so that no line consists of white
// space alone (RFC 5322, Section 3.2.2). A word that does not fit maxLine with the white
// space before it is an error.
func appendFolded(b []byte, text string) ([]byte, error) {
	line, first := len(b), true
	space := " "
	for text != "" {
		n := wordEnd(text)
		size := len(space) + n
		if line+size > maxLine || line+size > fineLine && !first {
			b = append(b, '\r', '\n')
			line = 0
		}
		if size > maxLine {
			return nil, fmt.Errorf("%w: %d octets cannot be folded", ErrFieldValue, size)
		}
		b = append(append(b, space...), text[:n]...)
		line, first = line+size, false
		space, text = cutSpace(text[n:])
	}
	return b, nil
}

// wordEnd returns the length of the word at the front of s.
func wordEnd(s string) int {
	if n := strings.IndexAny(s, " \t"); n >= 0 {
		return n
	}
	return len(s)
}

// cutSpace cuts the white space off the front of s.
func cutSpace(s string) (space, rest string) {
	rest = strings.TrimLeft(s, " \t")
	return s[:len(s)-len(rest)], rest
}

// encodeWords makes encoded words of those words of text that are beyond ASCII, and
// touches no other: the address behind a name stays an address. Neighbours are encoded
// in one go with the white space between them, because white space between two encoded
// words is not shown (RFC 2047, Section 6.2). used is how much of the line is taken.
func encodeWords(text string, used int) string {
	b := make([]byte, 0, 2*len(text))
	done, from, to := 0, -1, 0 // text[:done] is in b, text[from:to] waits to be encoded
	flush := func() {
		if from >= 0 {
			b = appendEncoded(append(b, text[done:from]...), text[from:to], used)
			done, from, used = to, -1, 0
		}
	}
	for at := 0; at < len(text); {
		end := at + groupEnd(text[at:])
		switch {
		case isASCII(text[at:end]):
			flush()
		case text[at] == '(' && text[end-1] == ')':
			// A comment stays one, with encoded words in it (RFC 2047, Section 5, rule 2).
			flush()
			from, to = at+1, end-1
			flush()
		default:
			if from < 0 {
				from = at
			}
			to = end
		}
		space, _ := cutSpace(text[end:])
		at = end + len(space)
	}
	flush()
	return string(append(b, text[done:]...))
}

// maxGroup is the longest quoted string or comment that is taken as one.
const maxGroup = 256

// groupEnd is wordEnd for text that may have a structure: what is in quotes or
// parentheses belongs together. If its end alone became an encoded word, its beginning
// would swallow the rest of the field.
func groupEnd(s string) int {
	if s[0] == '(' {
		if n := closing(s); n > 0 {
			return n
		}
	}
	i := 0
	for i < len(s) && !isSpace(s[i]) {
		i += max(closing(s[i:]), 1)
	}
	return i
}

// closing returns the length of the quoted string or comment at the front of s, 0 if
// there is none.
func closing(s string) int {
	if s[0] != '"' && s[0] != '(' {
		return 0
	}
	depth := 0
	for i := 0; i < min(len(s), maxGroup); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
		case s[0] == '"':
			if c == '"' && i > 0 {
				return i + 1
			}
		case c == '(':
			depth++
		case c == ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// appendEncoded appends s as encoded words, of which the first has used octets before
// it on its line. Only characters that are safe everywhere stay as they are (RFC 2047,
// Section 5, rule 3): no comma or bracket of an encoded word is taken for structure.
func appendEncoded(b []byte, s string, used int) []byte {
	const begin, end, hex = "=?utf-8?q?", "?=", "0123456789ABCDEF"
	const around = len(begin) + len(end) + len("()") // it may be in a comment
	const longest = maxEncoded - around
	room := min(longest, max(fineLine-used-around, 3*utf8.UTFMax))
	b = append(b, begin...)
	for _, r := range s {
		var char [utf8.UTFMax]byte
		n := utf8.EncodeRune(char[:], r)
		size := 3 * n
		if isPlain(r) || r == ' ' {
			size = 1
		}
		if size > room {
			b = append(b, end+" "+begin...)
			room = longest
		}
		room -= size
		switch {
		case r == ' ':
			b = append(b, '_')
		case size == 1:
			b = append(b, byte(r))
		default:
			for _, c := range char[:n] {
				b = append(b, '=', hex[c>>4], hex[c&15])
			}
		}
	}
	return append(b, end...)
}

func isPlain(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!*+-/", r)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
