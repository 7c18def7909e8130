package filter

import "unicode/utf8"

// words.go reads the encoded words of RFC 2047.

// Decode returns the text of a header field with its encoded words read, as a person
// would see it. Words in a charset other than UTF-8, US-ASCII and ISO-8859-1, and words
// that are not well formed, stay as they are.
func Decode(s string) string {
	out := make([]byte, 0, len(s))
	wordEnd := -1 // of out, behind the last encoded word
	for i := 0; i < len(s); {
		text, n := encodedWord(s[i:])
		if n == 0 {
			out = append(out, s[i])
			i++
			continue
		}
		// Section 6.2: space between two encoded words is not part of the text.
		if wordEnd >= 0 && blank(out[wordEnd:]) {
			out = out[:wordEnd]
		}
		out = append(out, text...)
		wordEnd = len(out)
		i += n
	}
	return string(out)
}

func blank(b []byte) bool {
	for _, c := range b {
		if !isSpace(c) {
			return false
		}
	}
	return true
}

// encodedWord reads the encoded word at the front of s and returns its text and its
// length, 0 if there is none.
func encodedWord(s string) (word string, n int) {
	if len(s) < 8 || s[0] != '=' || s[1] != '?' {
		return "", 0
	}
	charset, rest := cut(s[2:], '?')
	charset, _ = cut(charset, '*') // RFC 2231, Section 5: a language may follow
	encoding, rest := cut(rest, '?')
	payload, rest := cut(rest, '?')
	if rest == "" || rest[0] != '=' {
		return "", 0
	}
	var raw []byte
	ok := false
	switch encoding {
	case "q", "Q":
		raw, ok = decodeQ(payload)
	case "b", "B":
		raw, ok = decodeB(payload)
	}
	if ok {
		word, ok = toUTF8(charset, raw)
	}
	if !ok {
		return "", 0
	}
	return word, len(s) - len(rest) + 1
}

// decodeQ reads RFC 2047, Section 4.2.
func decodeQ(s string) (out []byte, ok bool) {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '_':
			out = append(out, ' ')
		case c == '=':
			if i+2 >= len(s) {
				return nil, false
			}
			hi, ok1 := hexDigit(s[i+1])
			lo, ok2 := hexDigit(s[i+2])
			if !ok1 || !ok2 {
				return nil, false
			}
			out = append(out, byte(hi<<4|lo))
			i += 2
		case isSpace(c) || c >= 0x7f:
			return nil, false
		default:
			out = append(out, c)
		}
	}
	return out, true
}

// decodeB reads base64 (RFC 2045, Section 6.8). Padding may be missing.
func decodeB(s string) (out []byte, ok bool) {
	acc, bits := 0, 0
	for i := range len(s) {
		v := base64Digit(s[i])
		if v < 0 {
			return out, s[i] == '=' && len(s)-i <= 2
		}
		acc, bits = acc<<6|v, bits+6
		if bits >= 8 {
			bits -= 8
			out = append(out, byte(acc>>bits))
			acc &= 1<<bits - 1
		}
	}
	return out, true
}

func base64Digit(c byte) int {
	switch {
	case 'A' <= c && c <= 'Z':
		return int(c - 'A')
	case 'a' <= c && c <= 'z':
		return int(c-'a') + 26
	case '0' <= c && c <= '9':
		return int(c-'0') + 52
	case c == '+':
		return 62
	case c == '/':
		return 63
	}
	return -1
}

func toUTF8(charset string, raw []byte) (string, bool) {
	switch lower(charset) {
	case "utf-8", "us-ascii":
		return string(raw), utf8.Valid(raw)
	case "iso-8859-1":
		out := make([]byte, 0, len(raw))
		for _, c := range raw {
			out = utf8.AppendRune(out, rune(c))
		}
		return string(out), true
	}
	return "", false
}
