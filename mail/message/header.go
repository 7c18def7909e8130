// Package message holds what a gateway needs of RFC 5322 and no more: the fields of a
// header with their exact bytes, new fields, and the Received field.
//
// A message that passes through a gateway must come out as it went in, byte for byte,
// but for what was changed on purpose: signatures cover folding, case and spaces. So a
// [Header] never parses a field into something and writes it anew. It is a list of
// byte ranges, and an edit replaces one of them.
//
//	From: a@example.com\r\n            field 0, name "From"
//	Subject: hello\r\n\tworld\r\n      field 1, folded
//	\r\n                               end of the header section
//	body
package message

import (
	"bytes"
	"errors"
	"io"
	"strings"
)

// Field is one header field as it came: name, colon, value, folding and the line end.
// The zero Field is empty. Its bytes must not be changed; to append to one of its
// slices copies it. It is safe for concurrent use.
type Field struct {
	raw  []byte
	name int // length of the name
}

// Raw returns the whole field with its line end.
func (f Field) Raw() []byte { return f.raw[:len(f.raw):len(f.raw)] }

// Name returns the name as it was written, without the colon and without the space
// that may stand before it (RFC 5322, Section 4.5).
func (f Field) Name() []byte { return f.raw[:f.name:f.name] }

// Value returns what stands behind the colon, folding and leading space included,
// without the last line end.
func (f Field) Value() []byte {
	v := f.raw[f.name:]
	v = v[bytes.IndexByte(v, ':')+1:]
	if n := len(v); n > 0 && v[n-1] == '\n' {
		v = bytes.TrimSuffix(v[:n-1], []byte("\r"))
	}
	return v[:len(v):len(v)]
}

// Text returns the value unfolded (RFC 5322, Section 2.2.3) and without white space at
// its ends. Encoded words stay encoded.
func (f Field) Text() string {
	v := bytes.Trim(f.Value(), " \t\r\n")
	if bytes.IndexByte(v, '\n') < 0 {
		return string(v)
	}
	var b strings.Builder
	b.Grow(len(v))
	for line := range bytes.SplitSeq(v, []byte("\n")) {
		b.Write(bytes.TrimSuffix(line, []byte("\r")))
	}
	return b.String()
}

// Is tells whether the field has the name, in any case.
func (f Field) Is(name string) bool {
	return f.name == len(name) && bytes.EqualFold(f.Name(), []byte(name))
}

// ended returns f with a line end: the last line of a message may have none.
func (f Field) ended() Field {
	switch n := len(f.raw); {
	case n == 0 || f.raw[n-1] == '\n':
	case f.raw[n-1] == '\r':
		f.raw = append(f.Raw(), '\n')
	default:
		f.raw = append(f.Raw(), '\r', '\n')
	}
	return f
}

// Header is the header section of a message: its fields in order. It is immutable, so
// that several views of one message may share it; edits return a new Header. The zero
// Header has no fields.
type Header struct {
	fields []Field
	end    []byte // the empty line, or nothing if the message has none
}

// End finds the end of the header section in b, which begins with a message's first
// byte: n octets, the empty line included. ok is false if more input is needed to tell.
// A line that is neither a field nor the continuation of one ends the section before
// it, as every mail reader sees it. To ask again and again while a message comes in, use
// an EndFinder.
func End(b []byte) (n int, ok bool) {
	var f EndFinder
	return f.End(b)
}

// EndFinder finds the end of a header section that comes in parts. It looks at every
// octet once, however small the parts are. The zero EndFinder is ready to use.
type EndFinder struct {
	line int // where the line begins that is not judged yet
	seen int // there is no line end between line and here
}

// End is like the function End. b holds what came so far: it begins with what the call
// before was given.
func (f *EndFinder) End(b []byte) (n int, ok bool) {
	for {
		i := bytes.IndexByte(b[f.seen:], '\n')
		if i < 0 {
			f.seen = len(b)
			return f.line, false
		}
		line := b[f.line : f.seen+i+1]
		if (f.line == 0 || !isSpace(line[0])) && fieldName(line) == 0 {
			if line[0] == '\r' && line[1] == '\n' {
				return f.line + 2, true
			}
			return f.line, true
		}
		f.seen += i + 1
		f.line = f.seen
	}
}

// isSpace tells whether c is WSP (RFC 5234, Appendix B.1): at the front of a line it
// makes it a continuation.
func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// cutField measures the field at the front of b, with its continuation lines, and its
// name. name is 0 if there is no field. size is 0 if its end is not in b: only the line
// behind it tells.
func cutField(b []byte) (size, name int) {
	at := 0
	for {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return 0, max(name, fieldName(b))
		}
		if at == 0 {
			if name = fieldName(b[:i+1]); name == 0 {
				return i + 1, 0
			}
		}
		at += i + 1
		if at == len(b) {
			return 0, name
		}
		if !isSpace(b[at]) {
			return at, name
		}
	}
}

// fieldName returns the length of the name at the front of line, 0 if line is not the
// first line of a field. RFC 5322, Section 2.2: printable US-ASCII without the colon.
// Space before the colon is of the obsolete syntax (Section 4.5), seen in the wild, and
// no part of the name: mail readers ignore it, so a filter that looks for a name must
// find it too.
func fieldName(line []byte) int {
	n := 0
	for n < len(line) && line[n] > ' ' && line[n] < 0x7f && line[n] != ':' {
		n++
	}
	colon := n
	for colon < len(line) && isSpace(line[colon]) {
		colon++
	}
	if colon == len(line) || line[colon] != ':' {
		return 0
	}
	return n
}

// Parse reads the header section at the front of b, which holds all of it: the whole
// message, or as much as End measured. rest is what follows: the section and rest are
// b, whatever b is. The Header keeps parts of b, and 32 octets for each field, so
// whoever reads from a stranger limits the size of the section.
func Parse(b []byte) (h Header, rest []byte) {
	h.fields = make([]Field, 0, 24)
	for len(b) > 0 {
		size, name := cutField(b)
		if size == 0 {
			size = len(b) // the last line of a message without a body
		}
		if name == 0 {
			if bytes.HasPrefix(b, []byte("\r\n")) {
				h.end, b = b[:2:2], b[2:]
			}
			break
		}
		h.fields = append(h.fields, Field{raw: b[:size:size], name: name})
		b = b[size:]
	}
	return h, b
}

// Len returns the number of fields.
func (h Header) Len() int { return len(h.fields) }

// Field returns field i, from 0. It panics if there is none.
func (h Header) Field(i int) Field { return h.fields[i] }

// Find returns the index of the first field called name, in any case, from index from
// on; -1 if there is none.
func (h Header) Find(name string, from int) int {
	for i := max(from, 0); i < len(h.fields); i++ {
		if h.fields[i].Is(name) {
			return i
		}
	}
	return -1
}

// Count returns how many fields are called name.
func (h Header) Count(name string) int {
	n := 0
	for _, f := range h.fields {
		if f.Is(name) {
			n++
		}
	}
	return n
}

// Get returns the text of the first field called name, empty if there is none.
func (h Header) Get(name string) string {
	if i := h.Find(name, 0); i >= 0 {
		return h.fields[i].Text()
	}
	return ""
}

// Size returns the length in octets, the empty line included.
func (h Header) Size() int64 {
	n := len(h.end)
	for _, f := range h.fields {
		n += len(f.raw)
	}
	return int64(n)
}

// AppendTo appends the whole section to b.
func (h Header) AppendTo(b []byte) []byte {
	for _, f := range h.fields {
		b = append(b, f.raw...)
	}
	return append(b, h.end...)
}

// WriteTo writes the whole section. It implements io.WriterTo.
func (h Header) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(h.AppendTo(make([]byte, 0, h.Size())))
	return int64(n), err
}

// Insert returns h with f at index at: 0 is the top, Len() or more the bottom.
func (h Header) Insert(at int, f Field) Header {
	at = min(max(at, 0), len(h.fields))
	fields := make([]Field, 0, len(h.fields)+1)
	fields = append(append(append(fields, h.fields[:at]...), f), h.fields[at:]...)
	return h.with(fields)
}

// Replace returns h with f in place of field i.
func (h Header) Replace(i int, f Field) Header {
	fields := append([]Field(nil), h.fields...)
	fields[i] = f
	return h.with(fields)
}

// Delete returns h without field i.
func (h Header) Delete(i int) Header {
	fields := make([]Field, 0, len(h.fields))
	return h.with(append(append(fields, h.fields[:i]...), h.fields[i+1:]...))
}

// with keeps the end of the section. A message that had no empty line gets one with
// its first edit: else the new field's neighbour could be taken for body, or the body
// for a field.
func (h Header) with(fields []Field) Header {
	for i, f := range fields {
		fields[i] = f.ended()
	}
	if len(h.end) == 0 {
		h.end = []byte("\r\n")
	}
	return Header{fields: fields, end: h.end}
}

// Errors of NewField.
var (
	ErrFieldName  = errors.New("message: not a header field name")
	ErrFieldValue = errors.New("message: not a header field value")
)
