package parts

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// params.go: the parameters of a field (RFC 2045, Section 5.1, and RFC 2231). The reader takes
// more than the grammar has, since mail readers do: spaces in a value without quotes, a quote
// that does not end, comments anywhere.

// param is a parameter; its name is in lower case, and may have stars in it.
type param struct{ name, value string }

const (
	maxParams = 100 // of a field
	maxPieces = 100 // of a value
)

// parseParams reads a field's text: the value in front, and the parameters behind it.
func parseParams(s string) (value string, params []param) {
	value, s = cutValue(s, true)
	for s != "" && len(params) < maxParams {
		var name, v string
		s = skipComment(s)
		i := strings.IndexAny(s, "=;")
		if i < 0 || s[i] == ';' {
			_, s = cutValue(s, true) // no parameter
			continue
		}
		name, s = s[:i], s[i+1:]
		name = lower(strings.Trim(withoutComments(name), " \t"))
		// "filename=report (1).pdf", without the quotes that it should have, is a name.
		v, s = cutValue(s, !strings.HasPrefix(name, "filename") && !strings.HasPrefix(name, "name"))
		if name != "" {
			params = append(params, param{name, v})
		}
	}
	return value, params
}

// cutValue reads a value up to the next semicolon. One that begins with a quote ends with one;
// what stands behind that is ignored.
func cutValue(s string, comments bool) (value, rest string) {
	if comments {
		s = skipComment(s)
	}
	s = strings.TrimLeft(s, " \t")
	if strings.HasPrefix(s, `"`) {
		value, rest = cutQuoted(s[1:])
		_, rest = cutValueUnquoted(rest)
		return value, rest
	}
	if value, rest = cutValueUnquoted(s); comments {
		value = withoutComments(value)
	}
	return strings.Trim(value, " \t"), rest
}

func cutValueUnquoted(s string) (value, rest string) {
	value, rest, _ = strings.Cut(s, ";")
	return value, rest
}

// cutQuoted reads to the end of a quoted string, whose first quote is cut off.
func cutQuoted(s string) (value, rest string) {
	if i := strings.IndexAny(s, `"\`); i >= 0 && s[i] == '"' {
		return s[:i], s[i+1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			if i++; i == len(s) {
				return b.String(), ""
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// skipComment takes comments from the front.
func skipComment(s string) string {
	for {
		t := strings.TrimLeft(s, " \t")
		if !strings.HasPrefix(t, "(") {
			return s
		}
		_, rest := cutComment(t)
		if rest == t {
			return s
		}
		s = rest
	}
}

// cutComment cuts a comment, which may hold others, from the front of s. One that does not
// end is none.
func cutComment(s string) (comment, rest string) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return s[:i+1], s[i+1:]
			}
		}
	}
	return "", s
}

// withoutComments takes out comments of a text without quoted strings.
func withoutComments(s string) string {
	at := strings.IndexByte(s, '(')
	if at < 0 {
		return s
	}
	var b strings.Builder
	for at >= 0 {
		comment, rest := cutComment(s[at:])
		if comment == "" {
			break
		}
		b.WriteString(s[:at])
		s = rest
		at = strings.IndexByte(s, '(')
	}
	return b.String() + s
}

// decodeExtended reads charset'language'octets. RFC 2231, Section 4.
func decodeExtended(s string) string {
	charset, rest, ok := strings.Cut(s, "'")
	if !ok {
		return unescape(s)
	}
	_, text, ok := strings.Cut(rest, "'")
	if !ok {
		return unescape(s)
	}
	return toUTF8(charset, unescape(text))
}

// unescape undoes %XX; what is not one stays as it is.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if hi, lo := unhex[s[i+1]], unhex[s[i+2]]; hi|lo < 16 {
				b = append(b, hi<<4|lo)
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// joinPieces puts a value together that comes in pieces, each called NUMBER or NUMBER*. RFC
// 2231, Section 3. Pieces behind one that is missing are left out, as readers do.
func (p *Part) joinPieces(pieces []param) (string, bool) {
	type piece struct {
		n       int
		escaped bool
		value   string
	}
	var list []piece
	for _, q := range pieces[:min(len(pieces), maxPieces)] {
		number, rest, escaped := strings.Cut(q.name, "*")
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || rest != "" {
			continue
		}
		list = append(list, piece{n, escaped, q.value})
	}
	slices.SortStableFunc(list, func(a, b piece) int { return cmp.Compare(a.n, b.n) })
	charset, out := "", ""
	for i, c := range list {
		if i > 0 && c.n == list[i-1].n {
			p.Flags |= Ambiguous // the first counts
			continue
		}
		if i == 0 && c.n != 0 || i > 0 && c.n != list[i-1].n+1 {
			break
		}
		if c.escaped {
			if c.n == 0 {
				if name, rest, ok := strings.Cut(c.value, "'"); ok {
					if _, text, ok := strings.Cut(rest, "'"); ok {
						charset, c.value = name, text
					}
				}
			}
			c.value = unescape(c.value)
		}
		out += c.value
	}
	if charset != "" {
		out = toUTF8(charset, out)
	}
	return out, out != ""
}
