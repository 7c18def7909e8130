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
	"fmt"
	"io"
	"mime"
	"strings"
)

// Field is one header field as it came: name, colon, value, folding and the CRLF at
// the end. The zero Field is empty. Its bytes must not be changed.
type Field struct {
	raw  []byte
	name int // length of the name
}

// Raw returns the whole field with its CRLF.
func (f Field) Raw() []byte { return f.raw }

// Name returns the name as it was written, without the colon.
func (f Field) Name() []byte { return f.raw[:f.name] }

// Value returns what stands behind the colon, folding and leading space included,
// without the last CRLF.
func (f Field) Value() []byte { return bytes.TrimSuffix(f.raw[f.name+1:], []byte("\r\n")) }

// Text returns the value unfolded (RFC 5322, Section 2.2.3) and without space at its
// ends. Encoded words stay encoded.
func (f Field) Text() string {
	return strings.TrimSpace(strings.ReplaceAll(string(f.Value()), "\r\n", ""))
}

// Is tells whether the field has the name, in any case.
func (f Field) Is(name string) bool { return bytes.EqualFold(f.Name(), []byte(name)) }

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
// it, as every mail reader sees it.
func End(b []byte) (n int, ok bool) {
	for n < len(b) {
		size, isField := cutField(b[n:])
		switch {
		case size == 0:
			return n, false
		case !isField:
			if bytes.HasPrefix(b[n:], []byte("\r\n")) {
				n += 2
			}
			return n, true
		}
		n += size
	}
	return n, false
}

// cutField measures the field at the front of b, with its continuation lines. size is 0
// if its end is not in b yet: only the line behind it tells.
func cutField(b []byte) (size int, isField bool) {
	at := 0
	for {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return 0, false
		}
		if at == 0 && fieldName(b[:i+1]) == 0 {
			return i + 1, false
		}
		at += i + 1
		if at == len(b) {
			return 0, false
		}
		if b[at] != ' ' && b[at] != '\t' {
			return at, true
		}
	}
}

// fieldName returns the length of the name at the front of line, 0 if line is not the
// first line of a field. RFC 5322, Section 2.2: printable US-ASCII without the colon.
// Space before the colon is of the obsolete syntax (Section 4.5) and seen in the wild.
func fieldName(line []byte) int {
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return 0
	}
	n := len(bytes.TrimRight(line[:i], " \t"))
	for _, c := range line[:n] {
		if c <= ' ' || c >= 0x7f {
			return 0
		}
	}
	if n != i {
		return i // keep the space in the name: the bytes stay where they are
	}
	return n
}

// Parse reads the header section at the front of b, which holds all of it: the whole
// message, or as much as End measured. rest is what follows. The Header keeps parts of
// b.
func Parse(b []byte) (h Header, rest []byte) {
	h.fields = make([]Field, 0, 16)
	for len(b) > 0 {
		size, isField := cutField(b)
		if size == 0 && fieldName(b) > 0 {
			size, isField = len(b), true // the last line of a message without a body
		}
		if !isField {
			if bytes.HasPrefix(b, []byte("\r\n")) {
				h.end, b = b[:2:2], b[2:]
			}
			break
		}
		h.fields = append(h.fields, Field{raw: b[:size:size], name: fieldName(b[:size])})
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
	if len(h.end) == 0 {
		h.end = []byte("\r\n")
	}
	if n := len(h.fields); n > 0 && !bytes.HasSuffix(h.fields[n-1].raw, []byte("\r\n")) {
		for i, f := range fields {
			if !bytes.HasSuffix(f.raw, []byte("\r\n")) {
				fields[i].raw = append(bytes.Clone(f.raw), "\r\n"...)
			}
		}
	}
	return Header{fields: fields, end: h.end}
}

// Errors of NewField.
var (
	ErrFieldName  = errors.New("message: not a header field name")
	ErrFieldValue = errors.New("message: not a header field value")
)

// Limits of a new field, in octets. RFC 5322, Section 2.1.1 has 998 for a line and
// wishes for 78.
const (
	maxName  = 128
	maxValue = 64 << 10
	maxLine  = 998
	fineLine = 78
)

// NewField makes a field of a name and a text. Text beyond ASCII becomes encoded words
// (RFC 2047); long text is folded at spaces. CR, LF and NUL in it are ErrFieldValue:
// whoever writes the text must not be able to write a second field.
func NewField(name, text string) (Field, error) {
	if len(name) > maxName || len(name) == 0 || fieldName([]byte(name+":")) != len(name) {
		return Field{}, fmt.Errorf("%w: %.60q", ErrFieldName, name)
	}
	if len(text) > maxValue {
		return Field{}, fmt.Errorf("%w: longer than %d octets", ErrFieldValue, maxValue)
	}
	ascii := true
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\t':
		case c < ' ' || c == 0x7f:
			return Field{}, fmt.Errorf("%w: control character 0x%02x", ErrFieldValue, c)
		case c >= 0x80:
			ascii = false
		}
	}
	if !ascii {
		text = mime.QEncoding.Encode("utf-8", strings.ToValidUTF8(text, "\uFFFD"))
	}
	raw := append(make([]byte, 0, len(name)+len(text)+16), name...)
	raw, err := appendFolded(append(raw, ':'), text)
	if err != nil {
		return Field{}, err
	}
	return Field{raw: append(raw, '\r', '\n'), name: len(name)}, nil
}

// appendFolded appends text behind the name, one space before it, folded where a line
// would exceed fineLine. A word that does not fit maxLine is an error.
func appendFolded(b []byte, text string) ([]byte, error) {
	line := len(b)
	for i, word := range strings.Split(text, " ") {
		if len(word) >= maxLine-2 {
			return nil, fmt.Errorf("%w: a word of %d octets cannot be folded", ErrFieldValue, len(word))
		}
		if i > 0 && word != "" && line+1+len(word) > fineLine {
			b = append(b, '\r', '\n')
			line = 0
		}
		b = append(append(b, ' '), word...)
		line += 1 + len(word)
	}
	return b, nil
}
