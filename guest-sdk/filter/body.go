package filter

import "io"

// body.go: the body of a message, which stays in the gateway and is looked at through a
// window.

// window is how much of a body is held at once.
const window = 64 << 10

// Body reads and changes the part of a message behind the header section. It implements
// io.Reader, io.ReaderAt, io.Seeker and io.WriterTo. Reads are cheap however small: they
// come out of a window of 64 KiB. Reading shows the changes made so far; after one it
// goes on at the same offset.
type Body struct {
	host  host
	size  int64 // -1: not asked yet
	err   error // of asking
	pos   int64
	win   []byte
	winAt int64
}

func newBody(h host) *Body { return &Body{host: h, size: -1} }

// measure asks for the size once.
func (b *Body) measure() error {
	if b.size < 0 {
		n := b.host.BodyLen()
		b.size, b.err = max(n, 0), check("read body", n)
	}
	return b.err
}

// Size returns the length in octets; 0 if it cannot be read.
func (b *Body) Size() int64 {
	_ = b.measure() // reading tells
	return b.size
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.ReadAt(p, b.pos)
	b.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (b *Body) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, text("filter: body read at a negative offset")
	}
	if err := b.measure(); err != nil {
		return 0, err
	}
	total := 0
	for total < len(p) {
		if off >= b.size {
			return total, io.EOF
		}
		n, err := b.readSome(p[total:], off)
		if err != nil {
			return total, err
		}
		total += n
		off += int64(n)
	}
	return total, nil
}

// readSome reads at least one octet, out of the window unless p is as large as that.
func (b *Body) readSome(p []byte, off int64) (int, error) {
	if off < b.winAt || off >= b.winAt+int64(len(b.win)) {
		if len(p) >= window {
			return b.fetch(p, off)
		}
		if err := b.move(off); err != nil {
			return 0, err
		}
	}
	return copy(p, b.win[off-b.winAt:]), nil
}

// move puts the window at off.
func (b *Body) move(off int64) error {
	if b.win == nil {
		b.win = make([]byte, 0, min(window, b.size))
	}
	n, err := b.fetch(b.win[:cap(b.win)], off)
	b.win, b.winAt = b.win[:n], off
	return err
}

// fetch calls the host. That a body ends before its size is the gateway's fault, not the
// end of the body.
func (b *Body) fetch(p []byte, off int64) (int, error) {
	n := b.host.BodyRead(off, p)
	if err := check("read body", n); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return int(n), nil
}

// Seek implements io.Seeker.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += b.pos
	case io.SeekEnd:
		offset += b.Size()
	default:
		return b.pos, text("filter: seek: bad whence")
	}
	if offset < 0 {
		return b.pos, text("filter: seek to a negative offset")
	}
	b.pos = offset
	return offset, nil
}

// WriteTo implements io.WriterTo: it writes what Read would still read. io.Copy uses it.
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	if err := b.measure(); err != nil {
		return 0, err
	}
	var total int64
	for b.pos < b.size {
		if err := b.move(b.pos); err != nil {
			return total, err
		}
		n, err := w.Write(b.win)
		total += int64(n)
		b.pos += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// changed forgets what was read. A window that was made for a small body is given up.
func (b *Body) changed(op string, n int32) error {
	if cap(b.win) < window {
		b.win = nil
	}
	b.size, b.win, b.winAt = -1, b.win[:0], 0
	return check(op, n)
}

// Splice replaces del octets at off by data. It costs as much as data is long, however
// long the body is.
func (b *Body) Splice(off, del int64, data []byte) error {
	return b.changed("splice body", b.host.BodySplice(off, del, data))
}

// Append adds data at the end.
func (b *Body) Append(data []byte) error {
	if err := b.measure(); err != nil {
		return err
	}
	return b.Splice(b.size, 0, data)
}

// Replace makes data the body.
func (b *Body) Replace(data []byte) error {
	if err := b.measure(); err != nil {
		return err
	}
	return b.Splice(0, b.size, data)
}

// NewWriter begins a new body, which takes the old one's place when the writer is
// closed. Until then reading gives the old one, so that a body can be copied with
// changes. There is one at a time: a second begins anew. Each Write is a call of the
// gateway; package bufio makes small ones cheap.
func (b *Body) NewWriter() (io.WriteCloser, error) {
	if err := check("begin body", b.host.BodyNew()); err != nil {
		return nil, err
	}
	return bodyWriter{b}, nil
}

type bodyWriter struct{ b *Body }

// Write implements io.Writer.
func (w bodyWriter) Write(p []byte) (int, error) {
	if err := check("write body", w.b.host.BodyWrite(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close puts the new body in the place of the old one.
func (w bodyWriter) Close() error { return w.b.changed("commit body", w.b.host.BodyCommit()) }
