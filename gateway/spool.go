package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// spool.go: a message while it comes in. What filters and backends get can be read more
// than once, and a slow client holds nothing but this.

// memorySpool is how much of a message is kept in memory; the rest goes to a file that
// has no name any more, so that nothing is left behind by a crash.
const memorySpool = 256 << 10

var spoolBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 16<<10); return &b }}

// spool collects one message. It is an io.Writer.
type spool struct {
	dir       string
	maxHeader int
	// onHeader is called once, when the header section is there: with the first octet
	// behind it or at the end. Its error ends the spooling.
	onHeader func(message.Header) error
	// onChunk is called with each policy.MaxChunk octets of the body as they are there, and
	// with what is behind the last of them at the end, while wantsChunk says so. p is valid
	// during the call. Its error ends the spooling. Nil: nobody wants them.
	onChunk    func(off int64, p []byte) error
	wantsChunk func() bool

	buf    *[]byte // the front of the message
	file   *os.File
	inFile int64     // octets in file
	load   *overload // has room for all of it
	held   int64     // octets that were reserved there
	end    message.EndFinder
	header int   // octets of the header section; -1 while it is not known
	shown  int64 // octets of the body that onChunk has had
}

func newSpool(dir string, load *overload, maxHeader int, onHeader func(message.Header) error) *spool {
	return &spool{dir: dir, load: load, maxHeader: maxHeader, onHeader: onHeader, header: -1, buf: spoolBuffers.Get().(*[]byte)}
}

// errSpool is temporary: the disk may have room again.
func errSpool(err error) error {
	return smtp.Refuse(452, smtp.Enhanced{4, 3, 1}, "no room for the message now, try again later").Because(err)
}

// Write implements io.Writer.
func (s *spool) Write(p []byte) (int, error) {
	if err := s.load.reserve(int64(len(p))); err != nil {
		return 0, err
	}
	s.held += int64(len(p))
	room := memorySpool
	if s.header < 0 {
		room = max(room, s.maxHeader+len(p))
	}
	n := len(p)
	if keep := min(len(p), max(room-len(*s.buf), 0)); s.file == nil && keep > 0 {
		*s.buf = append(*s.buf, p[:keep]...)
		p = p[keep:]
	}
	if s.header < 0 {
		if err := s.findHeader(false); err != nil {
			return 0, err
		}
	}
	if len(p) > 0 {
		if err := s.toFile(p); err != nil {
			return 0, errSpool(err)
		}
	}
	return n, s.showChunks(false)
}

func (s *spool) toFile(p []byte) error {
	if s.file == nil {
		f, err := os.CreateTemp(s.dir, "penstock-*.spool")
		if err != nil {
			return err
		}
		s.file = f
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
	}
	n, err := s.file.Write(p)
	s.inFile += int64(n)
	return err
}

// findHeader looks for the end of the header section. last tells that nothing follows.
func (s *spool) findHeader(last bool) error {
	b := *s.buf
	n, ok := s.end.End(b)
	if !ok {
		n = len(b)
	}
	switch {
	case n > s.maxHeader:
		return smtp.Replyf(552, smtp.Enhanced{5, 3, 4}, "header section is larger than %d octets", s.maxHeader)
	case !ok && !last:
		return nil
	}
	if bytes.Count(b[:n], []byte("\n")) > maxHeaderLines {
		return smtp.Replyf(552, smtp.Enhanced{5, 3, 4}, "header section has more than %d lines", maxHeaderLines)
	}
	h, rest := message.Parse(b[:n:n])
	s.header = n - len(rest)
	return s.onHeader(h)
}

// maxHeaderLines is how many lines a header section may have. A field of four octets costs
// eight times that in memory once it is taken apart, for as long as the client likes.
const maxHeaderLines = 10_000

// fill reads the whole of body. The error is the client's, the spool's or onHeader's.
func (s *spool) fill(body *smtp.DataReader) error {
	if _, err := body.WriteTo(s); err != nil {
		return err
	}
	if s.header < 0 {
		if err := s.findHeader(true); err != nil {
			return err
		}
	}
	return s.showChunks(true)
}

// chunkBuffers are for pieces of bodies. One is borrowed for a call of onChunk, not while the
// client is waited for.
var chunkBuffers = sync.Pool{New: func() any { return new([policy.MaxChunk]byte) }}

// showChunks calls onChunk for what is there. last tells that nothing follows.
func (s *spool) showChunks(last bool) error {
	for s.onChunk != nil && s.header >= 0 {
		n := min(int64(len(*s.buf)-s.header)+s.inFile-s.shown, policy.MaxChunk)
		if n == 0 || n < policy.MaxChunk && !last {
			return nil
		}
		if !s.wantsChunk() {
			s.onChunk = nil
			return nil
		}
		if err := s.showChunk(int(n)); err != nil {
			return err
		}
		s.shown += n
	}
	return nil
}

func (s *spool) showChunk(n int) error {
	buf := chunkBuffers.Get().(*[policy.MaxChunk]byte)
	defer chunkBuffers.Put(buf)
	if _, err := s.body().ReadAt(buf[:n], s.shown); err != nil && err != io.EOF {
		return errSpool(err)
	}
	return s.onChunk(s.shown, buf[:n])
}

// body is the part behind the header section.
func (s *spool) body() policy.Body {
	b := policy.BytesBody((*s.buf)[s.header:])
	if s.file != nil {
		b = b.Concat(policy.FileBody(s.file, 0, s.inFile))
	}
	return b
}

// Close frees the spool. Nothing that was made of it may be used any more.
func (s *spool) Close() error {
	s.load.release(s.held)
	s.held = 0
	if s.buf != nil {
		*s.buf = (*s.buf)[:0]
		if cap(*s.buf) <= 2*memorySpool {
			spoolBuffers.Put(s.buf)
		}
		s.buf = nil
	}
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	if err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("gateway: spool: %w", err)
	}
	return nil
}

var _ io.Writer = (*spool)(nil)
