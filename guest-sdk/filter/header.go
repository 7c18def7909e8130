package filter

import "io"

// Header reads and changes the header section of a message. Fields are in the order of
// the message, from 0. Reading shows the changes made so far.
//
// Values are given and taken as text: of what is read, folding is undone (RFC 5322,
// Section 2.2.3); of what is written, the gateway encodes what is not ASCII and folds
// what is long. Trace fields such as Received cannot be changed: abi.EPERM.
type Header struct{ host host }

// Len returns the number of fields.
func (h Header) Len() int { return max(0, int(h.host.HdrCount())) }

// Find returns the index of the first field called name, in any case, from index from
// on; -1 if there is none.
func (h Header) Find(name string, from int) int {
	return max(-1, int(h.host.HdrFind([]byte(name), int32(max(from, 0)))))
}

// Has tells whether there is a field called name.
func (h Header) Has(name string) bool { return h.Find(name, 0) >= 0 }

// Get returns the text of the first field called name, unfolded and without space at its
// ends; empty if there is none. Encoded words stay encoded; see [Decode].
func (h Header) Get(name string) string {
	i := h.Find(name, 0)
	if i < 0 {
		return ""
	}
	_, raw := h.At(i)
	return Unfold(raw)
}

// Values returns the texts of all fields called name.
func (h Header) Values(name string) []string {
	var out []string
	for i := h.Find(name, 0); i >= 0; i = h.Find(name, i+1) {
		_, raw := h.At(i)
		out = append(out, Unfold(raw))
	}
	return out
}

// At returns field i: its name as written, and its value as it came, with the space in
// front and with folding. Both are empty if there is no such field.
func (h Header) At(i int) (name, value string) {
	b := make([]byte, 512)
	for {
		r := h.host.HdrGet(int32(i), b)
		if r < 0 {
			return "", ""
		}
		n, v := int(r>>32), int(r&0xffffffff)
		if n+v <= len(b) {
			return string(b[:n]), string(b[n : n+v])
		}
		b = make([]byte, n+v)
	}
}

// Add adds a field at the bottom.
func (h Header) Add(name, value string) error { return h.insert(-1, name, value) }

// Insert adds a field at index at: 0 is the top.
func (h Header) Insert(at int, name, value string) error { return h.insert(int32(at), name, value) }

func (h Header) insert(at int32, name, value string) error {
	return check("add header field "+name, h.host.HdrAdd(at, []byte(name), []byte(value)))
}

// Set makes the field called name have the value, and be the only one of that name: the
// first is changed, others are deleted, and if there is none, one is added at the bottom.
func (h Header) Set(name, value string) error {
	first := h.Find(name, 0)
	if first < 0 {
		return h.Add(name, value)
	}
	if err := h.SetAt(first, value); err != nil {
		return err
	}
	return h.deleteFrom(name, first+1)
}

// SetAt changes the value of field i.
func (h Header) SetAt(i int, value string) error {
	return check("set header field", h.host.HdrSet(int32(i), []byte(value)))
}

// Delete deletes all fields called name. It is no error if there is none.
func (h Header) Delete(name string) error { return h.deleteFrom(name, 0) }

func (h Header) deleteFrom(name string, from int) error {
	for i := h.Find(name, from); i >= 0; i = h.Find(name, i) {
		if err := h.DeleteAt(i); err != nil {
			return err
		}
	}
	return nil
}

// DeleteAt deletes field i.
func (h Header) DeleteAt(i int) error { return check("delete header field", h.host.HdrDel(int32(i))) }

// Raw returns the whole section byte for byte, with the empty line at its end, as it is
// now. A change does not show in it.
func (h Header) Raw() *io.SectionReader {
	size := max(0, h.host.HdrRaw(0, nil))
	return io.NewSectionReader(rawHeader(h), 0, int64(size))
}

// rawHeader implements io.ReaderAt.
type rawHeader Header

// ReadAt implements io.ReaderAt.
func (h rawHeader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > 1<<30 {
		return 0, io.EOF
	}
	left := h.host.HdrRaw(int32(off), p)
	if err := check("read header", left); err != nil {
		return 0, err
	}
	if int(left) < len(p) {
		return int(left), io.EOF
	}
	return len(p), nil
}

// Unfold returns the text of a field's value: line breaks are taken out, and space at
// the ends.
func Unfold(value string) string {
	value = trim(value)
	for i := range len(value) {
		if value[i] == '\r' || value[i] == '\n' {
			return unfold(value)
		}
	}
	return value
}

func unfold(value string) string {
	out := make([]byte, 0, len(value))
	for i := range len(value) {
		if value[i] != '\r' && value[i] != '\n' {
			out = append(out, value[i])
		}
	}
	return string(out)
}
