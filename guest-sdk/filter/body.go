package filter

import "io"

// body.go: the body of a message, which stays in the gateway and is looked at through a
// window.

// Body reads and changes the part of a message behind the header section. It implements
// io.Reader, io.ReaderAt, io.Seeker and io.WriterTo. Reads are cheap however small: they
// come out of a window of 64 KiB. Reading shows the changes made so far; after one it
// goes on at the same offset.
type Body struct{ reader }

func newBody(h host) *Body { return &Body{reader{src: source{h, -1, 0}, size: -1, room: window}} }

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
	return b.changed("splice body", b.src.host.BodySplice(off, del, data))
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
	if err := check("begin body", b.src.host.BodyNew()); err != nil {
		return nil, err
	}
	return bodyWriter{b}, nil
}

type bodyWriter struct{ b *Body }

// Write implements io.Writer.
func (w bodyWriter) Write(p []byte) (int, error) {
	if err := check("write body", w.b.src.host.BodyWrite(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close puts the new body in the place of the old one.
func (w bodyWriter) Close() error { return w.b.changed("commit body", w.b.src.host.BodyCommit()) }
