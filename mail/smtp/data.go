package smtp

import (
	"bytes"
	"errors"
	"io"
	"slices"
)

// data.go reads and writes mail data: dot-stuffing and the end mark of RFC 5321,
// Section 4.5.2. It is strict about CRLF: only CRLF.CRLF ends a message. Servers
// that disagree on where a message ends let one message hide inside another, so a
// bare CR or LF is refused or made CRLF by the reader's option, and whatever comes
// to the writer, nothing with a bare CR or LF leaves it.
//
// Both sides work on blocks. passable finds the longest stretch of a block that
// can go on as it is; ordinary text is such a stretch from one line that begins
// with a dot to the next.

// LineEndings says what a server does with a bare CR or a bare LF in mail data.
type LineEndings int

const (
	// NormalizeLineEndings makes CRLF of them. A dot behind a bare LF is content.
	NormalizeLineEndings LineEndings = iota
	// RejectLineEndings answers 550 5.5.2 and closes the connection, as RFC 5321,
	// Section 2.3.8 allows.
	RejectLineEndings
)

var (
	crlf         = []byte("\r\n")
	cr           = []byte("\r")
	errBareLine  = Refuse(550, Enhanced{5, 5, 2}, "message has a bare CR or LF, lines must end with CRLF")
	errTooLarge  = Refuse(552, Enhanced{5, 3, 4}, "message is larger than allowed here")
	errDataDone  = errors.New("smtp: mail data is read after its handler returned")
	errDataEnded = errors.New("smtp: mail data is written after its end mark")
)

// passable returns the length of the longest prefix of b that mail data may carry
// unchanged, and the reader pass on unchanged. It ends behind a CRLF that a dot or a NUL
// follows, before a bare CR or LF, and before a CR at the end of b, of which only
// the next byte tells what it is.
func passable(b []byte) int {
	n, lines := 0, 0
	for n < len(b) {
		i := bytes.IndexByte(b[n:], '\n')
		if i < 0 {
			n = len(b)
			if b[n-1] == '\r' {
				n--
			}
			break
		}
		at := n + i
		if at == 0 || b[at-1] != '\r' {
			n = at
			break
		}
		n = at + 1
		lines++
		if n < len(b) && (b[n] == '.' || b[n] == 0) {
			break
		}
	}
	// As many CRs as CRLFs: none of them is bare. Counting is many times faster than
	// looking at each.
	if bytes.Count(b[:n], cr) == lines {
		return n
	}
	return beforeBareCR(b, n)
}

// beforeBareCR returns the place of the first CR in b[:n] without LF behind it.
func beforeBareCR(b []byte, n int) int {
	for i := 0; i < n; i++ {
		j := bytes.IndexByte(b[i:n], '\r')
		if j < 0 {
			break
		}
		i += j
		if i+1 >= len(b) || b[i+1] != '\n' {
			return i
		}
	}
	return n
}

// mendPiece is how much input mend looks at in one call.
const mendPiece = 4 << 10

// mend makes CRLF of the bare line ends in the front of in and appends the result to
// dst; it returns how much of in that was. It is called where passable has found a
// bare CR or LF, and it takes a good piece: who sends one sends many, and for each of
// them passable would look through its whole block again.
//
// mid says, before and after, that a dot which follows is not at the start of a line.
// For the writer every line end that it makes begins a line, and dots are stuffed
// here, NULs dropped. For the reader only a CRLF does that was one before, and mend stops at it if
// a dot follows. It stops before a CR that ends in, too.
func mend(dst, in []byte, mid, writing bool) (out []byte, taken int, midAfter bool) {
	dst = slices.Grow(dst, 2*min(len(in), mendPiece))
	limit := min(len(in), mendPiece)
	i, lf := 0, -1 // no LF in in[i:lf]
	for i < limit {
		if in[i] == 0 && !mid && writing {
			i++
			continue
		}
		if in[i] == '.' && !mid {
			if !writing {
				break
			}
			dst = append(dst, '.')
		}
		if lf < i {
			if lf = bytes.IndexByte(in[i:limit], '\n'); lf < 0 {
				lf = limit
			} else {
				lf += i
			}
		}
		end := lf
		if k := bytes.IndexByte(in[i:lf], '\r'); k >= 0 {
			end = i + k
		}
		if end > i {
			dst, mid = append(dst, in[i:end]...), true
			if i = end; i == limit {
				break
			}
		}
		if in[i] == '\r' && i+1 == len(in) {
			break
		}
		mid = !writing
		if in[i] == '\r' && in[i+1] == '\n' {
			mid = false
			i++
		}
		dst = append(dst, crlf...)
		i++
	}
	return dst, i, mid
}

// DataReader is the content of one message as it arrives: without the stuffed dots
// and the end mark, every line ended by CRLF. It returns io.EOF at the end mark. It
// is not safe for concurrent use and ends with the call that it was given to.
//
// Its errors are a *Reply where the client can be told (too large, bare line end),
// and the connection's error where it cannot. io.ErrUnexpectedEOF means that the
// connection ended in the middle: what was read must not be delivered.
type DataReader struct {
	w         *wire
	max       int64 // content octets; 0 is no limit
	endings   LineEndings
	size      int64
	mid       bool   // not at the start of a line, where a dot means something
	rest      []byte // content that next returned and Read has not given out yet
	mended    []byte // what mend returned last
	err       error  // sticky
	oversized bool
	chunks    *chunks // not nil: the content comes with BDAT
}

// newDataReader reads content from w. max is the largest size in octets, 0 is none.
func newDataReader(w *wire, max int64, e LineEndings) *DataReader {
	return &DataReader{w: w, max: max, endings: e}
}

// Size returns how many octets of content have come so far.
func (d *DataReader) Size() int64 { return d.size }

// Read implements io.Reader.
func (d *DataReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(d.rest) == 0 {
		chunk, err := d.next()
		if err != nil {
			return 0, err
		}
		d.rest = chunk
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// WriteTo implements io.WriterTo: blocks go from the connection's buffer straight
// to w.
func (d *DataReader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		chunk := d.rest
		d.rest = nil
		if len(chunk) == 0 {
			var err error
			if chunk, err = d.next(); err == io.EOF {
				return total, nil
			} else if err != nil {
				return total, err
			}
		}
		n, err := w.Write(chunk)
		total += int64(n)
		if err != nil {
			d.rest = chunk[n:]
			return total, err
		}
		if n < len(chunk) {
			d.rest = chunk[n:]
			return total, io.ErrShortWrite
		}
	}
}

// next returns the next stretch of content, valid until the following call.
func (d *DataReader) next() ([]byte, error) {
	for d.err == nil {
		chunk, err := d.step()
		if err != nil {
			d.err = err
			break
		}
		if len(chunk) == 0 {
			continue
		}
		room := d.max - d.size
		d.size += int64(len(chunk))
		if d.max > 0 && d.size > d.max {
			// What fits is given out first: where the error comes must not depend on how
			// the input was cut.
			d.oversized = true
			d.err = errTooLarge
			if chunk = chunk[:room]; room == 0 {
				break
			}
		}
		return chunk, nil
	}
	return nil, d.err
}

// step looks at the front of the input and takes one decision: content, a line end
// to mend, a dot to drop, the end, or that more input is needed.
func (d *DataReader) step() ([]byte, error) {
	if d.chunks != nil {
		return d.stepChunk()
	}
	in := d.w.unread()
	if !d.mid && len(in) > 0 && in[0] == '.' {
		return nil, d.dot(in)
	}
	if n := passable(in); n > 0 {
		d.w.r += n
		d.mid = in[n-1] != '\n'
		return in[:n], nil
	}
	// Here are no input, a bare LF, a bare CR, or a CR whose next byte is unknown.
	if len(in) == 0 || len(in) == 1 && in[0] == '\r' {
		return nil, d.more()
	}
	if d.endings == RejectLineEndings {
		return nil, errBareLine
	}
	var n int
	d.mended, n, d.mid = mend(d.mended[:0], in, d.mid, false)
	d.w.r += n
	return d.mended, nil
}

// dot handles a dot at the start of a line: the end mark, or a dot to drop.
func (d *DataReader) dot(in []byte) error {
	switch {
	case len(in) == 1, len(in) == 2 && in[1] == '\r':
		return d.more()
	case in[1] == '\r' && in[2] == '\n':
		d.w.r += 3
		return io.EOF
	default:
		d.w.r++
		d.mid = true
		return nil
	}
}

func (d *DataReader) more() error {
	d.w.grow() // mail data comes in blocks
	err := d.w.more()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// drain reads the message to its end and throws the rest away, unless it has more than
// limit octets in all. It returns nil at the end mark: the connection can go on.
func (d *DataReader) drain(limit int64) error {
	if d.oversized {
		d.err = nil // the limit was the handler's; the stream is in order
	}
	d.max, d.rest = 0, nil
	for d.size <= limit {
		if _, err := d.next(); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
	return errTooLarge
}

// end makes later reads fail: the buffer behind the reader belongs to the dialogue
// again.
func (d *DataReader) end() {
	d.rest = nil
	if d.err == nil || d.err == io.EOF {
		d.err = errDataDone
	}
}

// DataWriter writes content as mail data: it stuffs dots, makes CRLF of every line
// end, and ends the data in Close. It does not close w. Not safe for concurrent use.
//
// It drops NULs at the beginning of a line. They belong into no text (RFC 2045, Section
// 2.8), and a server that takes them out before it looks for the end of the data would find
// it in a line of a NUL and a dot.
//
// After an error of w every call returns that error and writes nothing: the end mark
// would make a whole message of one that was cut short.
type DataWriter struct {
	w      io.Writer
	mid    bool   // not at the start of a line
	cr     bool   // a CR was held back: the next byte tells what it is
	mended []byte // what mend returned last
	err    error  // sticky
}

// NewDataWriter returns a DataWriter on w. Every Write becomes a few writes on w; w
// should be buffered.
func NewDataWriter(w io.Writer) *DataWriter { return &DataWriter{w: w} }

var (
	oneDot         = []byte(".")
	endMark        = []byte(".\r\n")
	lineAndEndMark = []byte("\r\n.\r\n")
)

// Write implements io.Writer.
func (d *DataWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 && d.err == nil {
		// A block at a time, so that what passable has to look at is bounded.
		n, err := d.step(p[:min(len(p), largeBuffer)])
		p, d.err = p[n:], err
	}
	return total - len(p), d.err
}

// step writes the front of p and returns how much of p that was.
func (d *DataWriter) step(p []byte) (int, error) {
	if d.cr {
		d.cr, d.mid = false, false
		_, err := d.w.Write(crlf)
		if p[0] == '\n' && err == nil {
			return 1, nil
		}
		return 0, err
	}
	if !d.mid && p[0] == 0 {
		return len(p) - len(bytes.TrimLeft(p, "\x00")), nil
	}
	if !d.mid && p[0] == '.' {
		if _, err := d.w.Write(oneDot); err != nil {
			return 0, err
		}
		d.mid = true
	}
	if n := passable(p); n > 0 {
		d.mid = p[n-1] != '\n'
		return d.w.Write(p[:n])
	}
	if len(p) == 1 && p[0] == '\r' {
		d.cr = true
		return 1, nil
	}
	var n int
	d.mended, n, d.mid = mend(d.mended[:0], p, d.mid, true)
	if _, err := d.w.Write(d.mended); err != nil {
		return 0, err
	}
	return n, nil
}

// Close ends the last line, if it has no end, and writes the end mark. Later calls do
// nothing but return an error.
func (d *DataWriter) Close() error {
	if d.err != nil {
		return d.err
	}
	end := endMark
	if d.cr || d.mid {
		end = lineAndEndMark
	}
	if _, d.err = d.w.Write(end); d.err != nil {
		return d.err
	}
	d.err = errDataEnded
	return nil
}
