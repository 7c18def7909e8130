package policy

import (
	"errors"
	"io"
	"sync"

	"github.com/penstock/penstock/mail/message"
)

// message.go: the message as filters see it. The octets that came are never copied or
// changed; a view of them is a header and a list of pieces of the body.

// Message is a view of a message. It is immutable: an edit makes a new view that
// shares all that did not change.
type Message struct {
	Header message.Header
	Body   Body

	original int64 // octets of the body before the first edit, and 1; 0 until then
}

// Size returns the length in octets.
func (m *Message) Size() int64 { return m.Header.Size() + m.Body.Size() }

// came returns how large the body was before the first edit, and keeps it for the views that
// are made of this one.
func (m *Message) came() int64 {
	if m.original == 0 {
		m.original = m.Body.Size() + 1
	}
	return m.original - 1
}

// WriteTo writes the whole message. It implements io.WriterTo, and with Size
// smtp.Content.
func (m *Message) WriteTo(w io.Writer) (int64, error) {
	n, err := m.Header.WriteTo(w)
	if err != nil {
		return n, err
	}
	b, err := m.Body.WriteTo(w)
	return n + b, err
}

// Body is the part of a message behind the header section: pieces of what came and of
// what filters put in. It is immutable and, like its sources, safe for concurrent
// reading. The zero Body is empty.
type Body struct {
	pieces []piece
	size   int64
}

// piece is a stretch of memory or of a file.
type piece struct {
	mem  []byte
	file io.ReaderAt
	off  int64 // in file
	n    int64
}

// BytesBody returns a Body of pieces, one behind the other, which must not be changed any more.
func BytesBody(pieces ...[]byte) Body {
	var b Body
	for _, p := range pieces {
		b.add(piece{mem: p, n: int64(len(p))})
	}
	return b
}

// FileBody returns a Body of the n octets of r from off on.
func FileBody(r io.ReaderAt, off, n int64) Body {
	if n <= 0 {
		return Body{}
	}
	return Body{pieces: []piece{{file: r, off: off, n: n}}, size: n}
}

// Concat returns a Body of all octets of b and then those of c.
func (b Body) Concat(c Body) Body {
	pieces := append(b.pieces[:len(b.pieces):len(b.pieces)], c.pieces...)
	return Body{pieces: pieces, size: b.size + c.size}
}

// Size returns the length in octets.
func (b Body) Size() int64 { return b.size }

// Same tells whether c is made of the same pieces as b, without looking at an octet: a body
// that only reads the same is not the same.
func (b Body) Same(c Body) bool {
	return b.size == c.size && len(b.pieces) == len(c.pieces) && (len(b.pieces) == 0 || &b.pieces[0] == &c.pieces[0])
}

// ReadAt implements io.ReaderAt.
func (b Body) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("policy: body read at a negative offset")
	}
	total := 0
	for _, pc := range b.pieces {
		if off >= pc.n {
			off -= pc.n
			continue
		}
		n, err := pc.readAt(p[total:], off)
		total += n
		if err != nil || total == len(p) {
			return total, err
		}
		off = 0
	}
	return total, io.EOF
}

// readAt reads what the piece has, which may be less than p.
func (pc piece) readAt(p []byte, off int64) (int, error) {
	p = p[:min(int64(len(p)), pc.n-off)]
	if pc.file == nil {
		return copy(p, pc.mem[off:]), nil
	}
	n, err := pc.file.ReadAt(p, pc.off+off)
	switch {
	case n == len(p):
		err = nil
	case err == nil || err == io.EOF:
		err = io.ErrUnexpectedEOF // the spool is shorter than it was
	}
	return n, err
}

// copyBuffers are for WriteTo of files.
var copyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// WriteTo implements io.WriterTo.
func (b Body) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for _, pc := range b.pieces {
		n, err := pc.writeTo(w)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (pc piece) writeTo(w io.Writer) (int64, error) {
	if pc.file == nil {
		n, err := w.Write(pc.mem)
		return int64(n), err
	}
	buf := copyBuffers.Get().(*[64 << 10]byte)
	defer copyBuffers.Put(buf)
	var total int64
	for total < pc.n {
		n, err := pc.readAt(buf[:], total)
		if err != nil {
			return total, err
		}
		n, err = w.Write(buf[:n])
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// splice returns b with del octets at off replaced by data, which it keeps. The caller
// has checked the range. It costs the number of pieces, not of octets.
func (b Body) splice(off, del int64, data []byte) Body {
	c := Body{pieces: make([]piece, 0, len(b.pieces)+2)}
	c.addRange(b, 0, off)
	c.add(piece{mem: data, n: int64(len(data))})
	c.addRange(b, off+del, b.size)
	return c
}

// addRange appends the octets of from that are in [start, end).
func (b *Body) addRange(from Body, start, end int64) {
	for _, pc := range from.pieces {
		b.add(pc.cut(max(start, 0), min(end, pc.n)))
		start, end = start-pc.n, end-pc.n
	}
}

// add appends a piece to a body that nobody else has seen.
func (b *Body) add(pc piece) {
	if pc.n > 0 {
		b.pieces = append(b.pieces, pc)
		b.size += pc.n
	}
}

// cut returns the octets in [from, to) of the piece, of which there may be none.
func (pc piece) cut(from, to int64) piece {
	if from >= to {
		return piece{}
	}
	if pc.file == nil {
		return piece{mem: pc.mem[from:to:to], n: to - from}
	}
	return piece{file: pc.file, off: pc.off + from, n: to - from}
}

// NewMessage returns the view of a message that is all in memory. raw must not be
// changed any more.
func NewMessage(raw []byte) *Message {
	h, rest := message.Parse(raw)
	return &Message{Header: h, Body: BytesBody(rest)}
}
