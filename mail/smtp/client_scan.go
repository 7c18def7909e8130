package smtp

import (
	"encoding/binary"
	"io"
	"unicode/utf8"
)

// client_scan.go looks at content for what a server must be able to take: octets beyond ASCII
// (8BITMIME), and a header in UTF-8 (SMTPUTF8). It looks before MAIL is said where the content
// can be read twice, else as it passes.

// scanner is an io.Writer that only looks. Its zero value is ready.
type scanner struct {
	body     bool // the header is over
	line     bool // the line has something on it
	cr       bool // the last octet was a CR
	part     [utf8.UTFMax]byte
	parts    int  // octets of a character that is not complete
	words    bool // the header has characters beyond ASCII
	broken   bool // some of them are no UTF-8
	eightBit bool
}

// utf8Header tells whether the header needs SMTPUTF8 (RFC 6532, Section 3.2). One that is not
// in UTF-8 is no header of any standard, and SMTPUTF8 would not make it one.
func (s *scanner) utf8Header() bool { return s.words && !s.broken && s.parts == 0 }

// Write implements io.Writer.
func (s *scanner) Write(p []byte) (int, error) {
	n := len(p)
	for i := 0; !s.body && i < len(p); i++ {
		s.header(p[i])
		if s.body {
			p = p[i:]
		}
	}
	if s.body && !s.eightBit {
		s.eightBit = !isSevenBit(p)
	}
	return n, nil
}

// header looks at one octet of the header. Line ends are those that DataWriter would make.
func (s *scanner) header(b byte) {
	switch {
	case b == '\n' && s.cr:
		s.cr = false
		return
	case b == '\n' || b == '\r':
		s.body = !s.line
		s.line = false
	default:
		s.line = true
	}
	s.cr = b == '\r'
	if b < utf8.RuneSelf {
		s.broken = s.broken || s.parts > 0
		s.parts = 0
		return
	}
	s.eightBit, s.words = true, true
	s.part[s.parts] = b
	s.parts++
	if utf8.FullRune(s.part[:s.parts]) {
		_, n := utf8.DecodeRune(s.part[:s.parts])
		s.broken = s.broken || n < s.parts || n == 1
		s.parts = 0
	}
}

// isSevenBit tells whether p is ASCII.
func isSevenBit(p []byte) bool {
	for ; len(p) >= 8; p = p[8:] {
		if binary.LittleEndian.Uint64(p)&0x8080808080808080 != 0 {
			return false
		}
	}
	for _, b := range p {
		if b >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// scanned is content and what is known about it.
type scanned struct {
	content io.WriterTo
	scanner // of all of it, or of what was read of it
	whole   bool
	size    int64 // 0 if it is not known
}

// peeked is how much of content that can be read only once is looked at: headers are shorter.
const peeked = 64 << 10

// scan looks at content as far as that can be done without keeping it.
func scan(content io.WriterTo) (scanned, error) {
	s := scanned{content: content}
	r, isReader := content.(io.Reader)
	if seeker, ok := content.(io.Seeker); ok {
		// What cannot seek, as a pipe, says so here.
		if at, err := seeker.Seek(0, io.SeekCurrent); err == nil {
			s.whole = true
			s.size, err = content.WriteTo(&s.scanner)
			if err == nil {
				_, err = seeker.Seek(at, io.SeekStart)
			}
			return s, err
		}
	}
	if c, ok := content.(Content); ok && !isReader {
		// A reader with a Size is something else.
		s.whole, s.size = true, c.Size()
		_, err := c.WriteTo(&s.scanner)
		return s, err
	}
	if !isReader {
		return s, nil
	}
	front := make([]byte, peeked)
	n, err := io.ReadFull(r, front)
	s.scanner.Write(front[:n])
	s.content = followed{front[:n], content}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		s.whole, s.size, err = true, int64(n), nil
	}
	return s, err
}

// followed is content of which the front was read already.
type followed struct {
	front []byte
	rest  io.WriterTo
}

// WriteTo implements io.WriterTo.
func (f followed) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(f.front)
	if err != nil {
		return int64(n), err
	}
	more, err := f.rest.WriteTo(w)
	return int64(n) + more, err
}

// outgoing is content on its way out: counted, and stopped where it turns out to be more than
// the server was told of.
type outgoing struct {
	content  io.WriterTo
	guard    bool // look at it
	eightBit bool // it may have octets beyond ASCII
	utf8     bool // and such a header
	scanner
	size    int64
	refused *Reply
	failed  error // of reading the content
}

// WriteTo implements io.WriterTo.
func (o *outgoing) WriteTo(w io.Writer) (int64, error) {
	var written error
	n, err := o.content.WriteTo(writerFunc(func(p []byte) (int, error) {
		if o.guard {
			o.scanner.Write(p)
			if o.refused = o.surprise(); o.refused != nil {
				return 0, o.refused
			}
		}
		var n int
		n, written = w.Write(p)
		o.size += int64(n)
		return n, written
	}))
	if written == nil && o.refused == nil {
		o.failed = err
	}
	return n, err
}

func (o *outgoing) surprise() *Reply {
	switch {
	case o.scanner.eightBit && !o.eightBit:
		return errEightBitContent
	case o.body && o.utf8Header() && !o.utf8:
		return errUTF8Header
	}
	return nil
}

var (
	errEightBitContent = Refuse(554, Enhanced{5, 6, 3}, "the next hop takes no 8-bit content")
	errUTF8Header      = Refuse(550, Enhanced{5, 6, 7}, "the next hop takes no header in UTF-8")
	errTooLargeThere   = Refuse(552, Enhanced{5, 3, 4}, "the message is larger than the next hop takes")
)
