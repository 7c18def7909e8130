package smtp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// wire.go: the bytes of a connection, for the server and the client alike. Input
// is read in blocks and looked at in place; output is collected and leaves in one
// write just before the next read that would block. That is all that RFC 2920
// (PIPELINING) asks of either side, and it makes the reply to every batch of
// commands one segment.

// Sizes of the input buffer. While a connection waits for a command it holds only
// the small one, so that ten thousand peers cost little; a longer line or mail data
// borrows a large one, and gives it back when it is empty. One that dozes holds none.
const (
	smallBuffer = 512
	largeBuffer = 64 << 10
)

// Sizes of the output. maxOutput is how much is collected before it is written in any
// case; what replies a connection usually has to give fits the small buffer.
const (
	smallOutput = 512
	maxOutput   = 32 << 10
)

// smallBuffers are the small ones of a connection.
type smallBuffers struct {
	in  [smallBuffer]byte
	out [smallOutput]byte
}

var smallBufferPool = sync.Pool{New: func() any { return new(smallBuffers) }}

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

var (
	errLineTooLong = errors.New("smtp: line too long")
	errLineEnd     = errors.New("smtp: line does not end with CRLF")
	errTooSlow     = errors.New("smtp: peer sends too slowly")
	errClosing     = errors.New("smtp: shutting down")
	errDoze        = errors.New("smtp: nothing has come for some time")
)

// wire is one connection's input and output. It belongs to one goroutine; only
// interrupt may be called by another.
type wire struct {
	nc       net.Conn
	small    *smallBuffers      // borrowed; nil while the connection dozes
	large    *[largeBuffer]byte // borrowed, or nil
	buf      []byte             // small or large
	r, w     int                // unread input is buf[r:w]
	full     bool               // the last read filled buf: there is more
	largeOut *[largeBuffer]byte // borrowed for mail data that is sent, or nil
	out      []byte             // collected output

	timeout time.Duration   // for one read or write
	until   time.Time       // no read waits beyond; zero is no such bound
	armed   time.Time       // the read deadline that is set
	first   [16]byte        // what ends a doze
	closing func() bool     // nil, or tells that reading must end; see interrupt
	ctx     context.Context // nil, or its end ends every wait; see interrupt

	rate pace // in mail data: the least speed
}

func newWire(nc net.Conn) *wire {
	w := &wire{nc: nc}
	w.wake()
	return w
}

// wake borrows the small buffers.
func (w *wire) wake() {
	w.small = smallBufferPool.Get().(*smallBuffers)
	w.buf = w.small.in[:]
	w.out = w.small.out[:0]
}

// release gives all buffers back. Unread input and collected output are lost.
func (w *wire) release() {
	if w.small == nil {
		return
	}
	w.r, w.w = 0, 0
	w.shrink()
	w.out = w.out[:0]
	w.shrinkOut()
	smallBufferPool.Put(w.small)
	w.small, w.buf, w.out = nil, nil, nil
}

// doze waits for input without a buffer. It returns when the first octets are there, with
// buffers, or with why there will be none.
func (w *wire) doze() error {
	w.release()
	n, err := w.read(w.first[:])
	w.wake()
	w.w = copy(w.buf, w.first[:n])
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// moreWithin is more that gives up with errDoze after d, if until, which must be set, comes
// later.
func (w *wire) moreWithin(d time.Duration) error {
	if err := w.flush(); err != nil {
		return err // of which a deadline would be another
	}
	last, soon := w.until, time.Now().Add(d)
	if !soon.Before(last) {
		return w.more()
	}
	w.until = soon
	err := w.more()
	w.until = last
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errDoze
	}
	return err
}

// shrink goes back to the small buffer when nothing is unread.
func (w *wire) shrink() {
	if w.large != nil && w.r == w.w {
		largeBuffers.Put(w.large)
		w.large, w.buf = nil, w.small.in[:]
		w.r, w.w = 0, 0
	}
}

// grow goes to the large buffer, and takes the unread input along.
func (w *wire) grow() {
	if w.large != nil {
		return
	}
	w.large = largeBuffers.Get().(*[largeBuffer]byte)
	w.w = copy(w.large[:], w.buf[w.r:w.w])
	w.r, w.buf = 0, w.large[:]
}

// growOut goes to a large buffer for output, and takes along what is collected.
func (w *wire) growOut() {
	if w.largeOut != nil {
		return
	}
	w.largeOut = largeBuffers.Get().(*[largeBuffer]byte)
	w.out = append(w.largeOut[:0], w.out...)
}

// shrinkOut goes back to the small buffer when nothing is collected, so that an idle
// connection does not keep what a busy moment needed.
func (w *wire) shrinkOut() {
	if len(w.out) > 0 {
		return
	}
	w.out = w.small.out[:0]
	if w.largeOut != nil {
		largeBuffers.Put(w.largeOut)
		w.largeOut = nil
	}
}

// unread is the input that is there already.
func (w *wire) unread() []byte { return w.buf[w.r:w.w] }

// forget drops the input that is there already.
func (w *wire) forget() { w.r = w.w }

// more waits for at least one more byte behind the unread ones. Output is written
// first: a peer that waits for us would never send.
func (w *wire) more() error {
	if err := w.flush(); err != nil {
		return err
	}
	if w.full {
		w.grow() // a long batch of commands is answered in few pieces then
	}
	if w.r == w.w {
		w.r, w.w = 0, 0
	} else if w.w == len(w.buf) {
		if w.r == 0 {
			if w.large != nil {
				return errLineTooLong
			}
			w.grow()
		} else {
			w.w = copy(w.buf, w.buf[w.r:w.w])
			w.r = 0
		}
	}
	began := w.rate.clock()
	n, err := w.read(w.buf[w.w:])
	w.w += n
	w.full = w.w == len(w.buf)
	if n > 0 {
		return w.rate.add(n, began)
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// read reads once, by the deadline. A reader that is woken though its time has not come,
// by interrupt or by a deadline that was set for an earlier wait, goes on, unless closing
// or ctx say that waiting must end. They are asked after the deadline is set: an interrupt
// that comes in between is seen, and one that comes later finds its deadline left alone.
func (w *wire) read(p []byte) (int, error) {
	now := time.Now()
	deadline := now.Add(w.timeout)
	if !w.until.IsZero() && w.until.Before(deadline) {
		deadline = w.until
	}
	for {
		w.arm(now, deadline)
		if w.closing != nil && w.closing() {
			return 0, errClosing
		}
		if err := w.ended(); err != nil {
			return 0, err
		}
		n, err := w.nc.Read(p)
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			if now = time.Now(); now.Before(deadline) {
				w.armed = time.Time{}
				continue
			}
		}
		return n, err
	}
}

// arm sets the read deadline. One that is set and comes earlier is left, since to be woken
// by it once costs less than to set another for every read.
func (w *wire) arm(now, deadline time.Time) {
	if !w.armed.After(now) || w.armed.After(deadline) {
		w.nc.SetReadDeadline(deadline)
		w.armed = deadline
	}
}

// ended returns why every wait must end, or nil.
func (w *wire) ended() error {
	if w.ctx == nil || w.ctx.Err() == nil {
		return nil
	}
	return context.Cause(w.ctx)
}

// interrupt wakes a reader, which then asks closing and ctx. Safe for concurrent use.
func interrupt(nc net.Conn) { nc.SetReadDeadline(time.Unix(1, 0)) }

// flush writes the collected output.
func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	err := w.writeAll(w.out)
	w.out = w.out[:0]
	if w.largeOut == nil {
		w.shrinkOut()
	}
	return err
}

func (w *wire) writeAll(p []byte) error {
	w.nc.SetWriteDeadline(time.Now().Add(w.timeout))
	if err := w.ended(); err != nil {
		return err
	}
	_, err := w.nc.Write(p)
	if err != nil && w.ended() != nil {
		err = w.ended()
	}
	return err
}

// readLine returns the next line without its CRLF, valid until the next read. A
// line of more than max octets, CRLF included, gives errLineTooLong once all of it
// is consumed. A line with a bare CR or LF gives errLineEnd, so that nothing is
// executed of which two programs could disagree where it ends.
func (w *wire) readLine(max int) ([]byte, error) {
	seen := 0 // no LF in the first seen unread bytes
	for {
		in := w.unread()
		if i := bytes.IndexByte(in[seen:], '\n'); i >= 0 {
			line := in[:seen+i+1]
			w.r += len(line)
			return checkLine(line, max)
		}
		seen = len(in)
		if seen > max {
			return nil, w.skipLine()
		}
		if seen == 0 {
			w.shrink()
		}
		if err := w.more(); err != nil {
			if seen > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

func checkLine(line []byte, max int) ([]byte, error) {
	body := bytes.TrimSuffix(line, []byte("\r\n"))
	switch {
	case len(line) > max:
		return nil, errLineTooLong
	case len(body) == len(line) || bytes.IndexByte(body, '\r') >= 0:
		return nil, errLineEnd
	}
	return body, nil
}

// maxSkip is how long a line may be of which all but the end is thrown away.
const maxSkip = 1 << 20

// skipLine drops input up to the next LF. It returns errLineTooLong if the peer may
// go on, and errEndless, which ends the connection, if the line has no end in sight.
func (w *wire) skipLine() error {
	for skipped := 0; ; {
		in := w.unread()
		in = in[:min(len(in), maxSkip-skipped)]
		if i := bytes.IndexByte(in, '\n'); i >= 0 {
			w.r += i + 1
			return errLineTooLong
		}
		skipped += len(in)
		w.r += len(in)
		if skipped == maxSkip {
			return errEndless
		}
		if err := w.more(); err != nil {
			return err
		}
	}
}

var errEndless = errors.New("smtp: line without end")

// pace is the least speed of a peer that sends mail data, measured over windows: a
// stall is no reason to give up, minutes at a trickle are. Only the time that we wait
// for the peer counts. While whoever takes the data from us is slow, we do not read,
// and that is not the peer's fault.
type pace struct {
	min    int64 // bytes per second; 0 is off
	waited time.Duration
	bytes  int64
}

// paceWindow is the time over which the speed is measured.
const paceWindow = 5 * time.Minute

func (p *pace) start(min int64) { *p = pace{min: min} }
func (p *pace) stop()           { p.min = 0 }

// clock returns the time if it matters.
func (p *pace) clock() time.Time {
	if p.min == 0 {
		return time.Time{}
	}
	return time.Now()
}

// add counts n bytes for which the peer has been waited for since began.
func (p *pace) add(n int, began time.Time) error {
	if p.min == 0 {
		return nil
	}
	p.bytes += int64(n)
	p.waited += time.Since(began)
	if p.waited < paceWindow {
		return nil
	}
	if p.bytes < p.min*int64(p.waited/time.Second) {
		return errTooSlow
	}
	p.waited, p.bytes = 0, 0
	return nil
}
