package parts

import (
	"io"
	"mime"
	"slices"
	"strings"

	"golang.org/x/text/encoding/htmlindex"

	"github.com/penstock/penstock/mail/message"
)

// describe.go: what a part's header section says of it.

// describe reads the fields of a header section. deflt is the type where none is named.
func (p *Part) describe(h message.Header, deflt string) {
	typ, params := p.field(h, "Content-Type")
	p.Type = deflt
	typ, garbage, _ := strings.Cut(typ, " ")
	if garbage != "" {
		p.Flags |= Broken
	}
	switch {
	case isType(typ):
		p.Type = clean(lower(typ))
	case typ != "" || h.Find("Content-Type", 0) >= 0:
		p.Flags |= Broken
		p.Type = "text/plain" // RFC 2045, Section 5.2
	}
	p.Charset = clean(lower(first(p.values(params, "charset"))))
	if p.is("multipart/") {
		p.boundary = strings.TrimRight(first(p.values(params, "boundary")), " \t")
	}
	disposition, more := p.field(h, "Content-Disposition")
	p.Disposition = clean(lower(disposition))
	for _, name := range slices.Concat(p.values(more, "filename"), p.values(params, "name"), p.values(params, "filename"), p.values(params, "file")) {
		if name = clean(decodeWords(name)); name != "" && len(p.Names) < maxNames && !slices.Contains(p.Names, name) {
			p.Names = append(p.Names, name)
		}
	}
	p.transfer(h)
	p.ID = clean(strings.Trim(h.Get("Content-ID"), "<> \t"))
}

// transfer reads the transfer encoding. A multipart has none, whatever it says: readers look
// for the delimiters in what is there (RFC 2045, Section 6.4).
func (p *Part) transfer(h message.Header) {
	value, _ := p.field(h, "Content-Transfer-Encoding")
	p.Transfer = clean(lower(value))
	if p.is("multipart/") {
		return
	}
	switch p.Transfer {
	case "", "7bit", "8bit", "binary":
	case "quoted-printable":
		p.Encoding = QuotedPrintable
	case "base64":
		p.Encoding = Base64
	default:
		p.Flags |= UnknownEncoding
	}
}

// field reads a field with parameters, and notes that it is there twice.
func (p *Part) field(h message.Header, name string) (value string, params []param) {
	i := h.Find(name, 0)
	if i < 0 {
		return "", nil
	}
	if h.Find(name, i+1) >= 0 {
		p.Flags |= Ambiguous
	}
	return parseParams(h.Field(i).Text())
}

// values returns what is given under a parameter's name, that first which readers prefer:
// RFC 2231's forms, then the plain one. It notes that a form is there twice.
func (p *Part) values(params []param, name string) []string {
	var extended, plain []string
	var pieces []param
	for _, q := range params {
		key, star, _ := strings.Cut(q.name, "*")
		switch {
		case key != name:
		case q.name == name:
			plain = append(plain, q.value)
		case star == "":
			extended = append(extended, decodeExtended(q.value))
		default:
			q.name = star
			pieces = append(pieces, q)
		}
	}
	if len(extended) > 1 || len(plain) > 1 {
		p.Flags |= Ambiguous
	}
	if s, ok := p.joinPieces(pieces); ok {
		extended = append(extended, s)
	}
	return append(extended, plain...)
}

// isType tells whether s looks like a media type.
func isType(s string) bool {
	kind, sub, ok := strings.Cut(s, "/")
	return ok && isToken(kind) && isToken(sub)
}

func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?=`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// lower changes ASCII alone: what else there is does not become another word.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// clean makes text of a stranger's octets: valid UTF-8, no control characters, not long.
func clean(s string) string {
	if len(s) > maxText {
		// A file name's end says more than its middle.
		s = s[:maxText/2] + s[len(s)-maxText/2:]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// words decodes encoded words (RFC 2047), which by its Section 5 have no place in parameters,
// and which most mail programs put there and read there.
var words = mime.WordDecoder{CharsetReader: func(charset string, input io.Reader) (io.Reader, error) {
	enc, err := htmlindex.Get(charset)
	if err != nil {
		return nil, err
	}
	return enc.NewDecoder().Reader(input), nil
}}

func decodeWords(s string) string {
	if !strings.Contains(s, "=?") {
		return s
	}
	out, err := words.DecodeHeader(s)
	if err != nil {
		return s
	}
	return out
}

// toUTF8 decodes octets in a charset; those of one that is not known stay as they are.
func toUTF8(charset, s string) string {
	enc, err := htmlindex.Get(charset)
	if err != nil {
		return s
	}
	out, err := enc.NewDecoder().String(s)
	if err != nil {
		return s
	}
	return out
}
