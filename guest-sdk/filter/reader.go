package filter

import (
	"io"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// reader.go reads what stays in the gateway: a body, or a part of it.

// window is how much is held at once.
const window = 64 << 10

// source is what is read: the body, or a part in a form.
type source struct {
	host host
	part int32 // -1: the body
	form abi.PartForm
}

func (s source) len() int64 {
	if s.part < 0 {
		return s.host.BodyLen()
	}
	return s.host.PartLen(s.part, int32(s.form))
}

func (s source) read(off int64, p []byte) int32 {
	if s.part < 0 {
		return s.host.BodyRead(off, p)
	}
	return s.host.PartRead(s.part, int32(s.form), off, p)
}

func (s source) op() string {
	if s.part < 0 {
		return "read body"
	}
	return "read part"
}

// reader reads through a window.
type reader struct {
	src   source
	size  int64 // -1: not asked yet
	err   error // of asking
	room  int64 // how large the window may become
	pos   int64
	win   []byte
	winAt int64
}

// measure asks for the size once.
func (r *reader) measure() error {
	if r.size < 0 {
		n := r.src.len()
		r.size, r.err = max(n, 0), check(r.src.op(), n)
	}
	return r.err
}

// begin is called before reading. The size of a body is known to the gateway; that of a part
// has to be found by decoding it, and its end comes by itself.
func (r *reader) begin() error {
	if r.src.part < 0 {
		return r.measure()
	}
	return nil
}

// Size returns the length in octets; 0 if it cannot be read.
func (r *reader) Size() int64 {
	_ = r.measure() // reading tells
	return r.size
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := r.ReadAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, text("filter: read at a negative offset")
	}
	if err := r.begin(); err != nil {
		return 0, err
	}
	total := 0
	for total < len(p) {
		n, err := r.readSome(p[total:], off)
		if err != nil {
			return total, err
		}
		total += n
		off += int64(n)
	}
	return total, nil
}

// readSome reads at least one octet, out of the window unless p is as large as that.
func (r *reader) readSome(p []byte, off int64) (int, error) {
	if off < r.winAt || off >= r.winAt+int64(len(r.win)) {
		if len(p) >= window {
			return r.fetch(p, off)
		}
		if err := r.move(off); err != nil {
			return 0, err
		}
	}
	return copy(p, r.win[off-r.winAt:]), nil
}

// move puts the window at off.
func (r *reader) move(off int64) error {
	if r.win == nil {
		room := r.room
		if r.size >= 0 {
			room = min(room, r.size)
		}
		r.win = make([]byte, 0, max(room, 1))
	}
	n, err := r.fetch(r.win[:cap(r.win)], off)
	r.win, r.winAt = r.win[:n], off
	return err
}

// fetch calls the host. That a body ends before its size is the gateway's fault, not the
// end of the body.
func (r *reader) fetch(p []byte, off int64) (int, error) {
	if r.size >= 0 && off >= r.size {
		return 0, io.EOF
	}
	n := r.src.read(off, p)
	if err := check(r.src.op(), n); err != nil {
		return 0, err
	}
	switch {
	case n > 0:
		return int(n), nil
	case r.size >= 0:
		return 0, io.ErrUnexpectedEOF
	}
	return 0, io.EOF
}

// Seek implements io.Seeker.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.Size()
	default:
		return r.pos, text("filter: seek: bad whence")
	}
	if offset < 0 {
		return r.pos, text("filter: seek to a negative offset")
	}
	r.pos = offset
	return offset, nil
}

// WriteTo implements io.WriterTo: it writes what Read would still read. io.Copy uses it.
func (r *reader) WriteTo(w io.Writer) (int64, error) {
	if err := r.begin(); err != nil {
		return 0, err
	}
	var total int64
	for {
		switch err := r.move(r.pos); {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		}
		n, err := w.Write(r.win)
		total += int64(n)
		r.pos += int64(n)
		if err != nil {
			return total, err
		}
	}
}
