package parts

import (
	"bytes"
	"io"

	"github.com/penstock/penstock/mail/message"
)

// scan.go walks over a body once, from delimiter to delimiter.

// window is how much of the body is held at once; more than longLine.
const window = 64 << 10

// longLine is how much of a line is looked at. A delimiter is shorter by far.
const longLine = 4 << 10

// fieldsCost is what an octet of a header section costs that is taken apart, in octets.
const fieldsCost = 16

// scanner is the state of one walk.
type scanner struct {
	src  io.ReaderAt
	size int64
	work Work
	room int64 // how much of the body is held at once

	buf []byte // octets of the body from at on
	at  int64

	parts []Part
	open  []frame // the parts that position is in, the outermost first
	full  bool    // there are more parts than MaxParts
}

// frame is a part that is not at its end.
type frame struct {
	part     int
	boundary []byte // with the dashes in front; nil if it is no multipart
	closed   bool   // its last delimiter has been seen
	kids     int
}

func (s *scanner) scan(h message.Header) error {
	p := Part{Parent: -1, HeaderOff: -1}
	p.describe(h, "text/plain")
	s.push(p)
	pos, err := s.enter(0)
	for err == nil && !s.full && s.delimited() {
		pos, err = s.next(pos)
		if pos < 0 {
			break
		}
	}
	s.close(0, s.size)
	if s.full {
		s.parts[0].Flags |= Truncated
	}
	return err
}

// delimited tells whether there is an open part that a delimiter could end: else the rest of
// the body need not be looked at.
func (s *scanner) delimited() bool {
	for _, f := range s.open {
		if f.boundary != nil {
			return true
		}
	}
	return false
}

// push lists a part and opens it.
func (s *scanner) push(p Part) {
	f := frame{part: len(s.parts)}
	switch {
	case !p.is("multipart/"):
	case p.boundary == "" || len(p.boundary) > maxBoundary:
		p.Flags |= Broken
	case p.Depth == MaxDepth:
		p.Flags |= Deep
	default:
		f.boundary = append([]byte("--"), p.boundary...)
	}
	s.parts = append(s.parts, p)
	s.open = append(s.open, f)
}

// enter goes on at pos, where the content of the part on top begins. If that is a message,
// its header is read and it is entered too.
func (s *scanner) enter(pos int64) (int64, error) {
	for {
		i := s.open[len(s.open)-1].part
		p := &s.parts[i]
		p.Off = pos
		switch {
		case !p.isMessage():
			return pos, nil
		case p.Encoding != Identity:
			p.Flags |= Opaque
			return pos, nil
		case p.Depth == MaxDepth:
			p.Flags |= Deep
			return pos, nil
		case len(s.parts) == MaxParts:
			s.full = true
			return pos, nil
		}
		var err error
		if pos, err = s.begin(i, pos, "text/plain"); err != nil {
			return pos, err
		}
	}
}

// begin reads a header section at pos and opens the part that it describes, in part parent.
// It returns where the content begins.
func (s *scanner) begin(parent int, pos int64, deflt string) (int64, error) {
	header, end, flags, err := s.header(pos)
	if err != nil {
		return pos, err
	}
	// To take its fields apart takes longer than to find them.
	if err := s.work.do(fieldsCost * len(header)); err != nil {
		return pos, err
	}
	p := Part{Parent: parent, Depth: s.parts[parent].Depth + 1, HeaderOff: pos, Off: end, Flags: flags}
	h, _ := message.Parse(header)
	p.describe(h, deflt)
	s.push(p)
	return end, nil
}

// header reads the header section at pos: its octets as far as they are read, where it ends,
// and what is not as it should be. A delimiter ends it, and so does a line that is no field,
// which other readers skip.
func (s *scanner) header(pos int64) (header []byte, end int64, flags Flag, err error) {
	for start := pos; pos < s.size; {
		line, next, err := s.line(pos)
		if err != nil {
			return nil, 0, 0, err
		}
		if k, _ := s.match(line); k >= 0 {
			break
		}
		cut := next-pos > int64(len(line))
		if line[len(line)-1] != '\n' {
			line = append(line[:len(line):len(line)], '\r', '\n')
		}
		if line[0] == '\n' || line[0] == '\r' && line[1] == '\n' {
			pos = next
			break
		}
		continued := pos > start && (line[0] == ' ' || line[0] == '\t')
		if _, ended := message.End(line); ended && !continued {
			flags |= Broken
			break
		}
		if cut {
			flags |= LongHeader
		}
		if len(header)+len(line) > maxHeader {
			flags |= LongHeader
		} else {
			header = append(header, line...)
		}
		pos = next
	}
	return header, pos, flags, nil
}

// next finds the next delimiter from pos on, the beginning of a line, and does what it says.
// It returns where to go on; -1 at the end.
func (s *scanner) next(pos int64) (int64, error) {
	at, err := s.dashes(pos)
	if at < 0 || err != nil {
		return -1, err
	}
	line, next, err := s.line(at)
	if err == nil {
		err = s.work.do(32) // a body may be dashes and nothing else
	}
	if err != nil {
		return -1, err
	}
	k, last := s.match(line)
	if k < 0 {
		return next, nil
	}
	end, err := s.lineEndBefore(at)
	if err != nil {
		return -1, err
	}
	s.close(k+1, end)
	f := &s.open[k]
	switch {
	case f.closed:
		s.parts[f.part].Flags |= Broken // parts behind the last
		return next, nil
	case last:
		f.closed = true
		return next, nil
	case len(s.parts) == MaxParts:
		s.full = true
		return next, nil
	}
	f.kids++
	if next, err = s.begin(f.part, next, s.parts[f.part].kidType()); err != nil {
		return -1, err
	}
	return s.enter(next)
}

// kidType is the type of a part that names none. RFC 2046, Section 5.1.5.
func (p *Part) kidType() string {
	if p.Type == "multipart/digest" {
		return "message/rfc822"
	}
	return "text/plain"
}

// match returns the open part that a line is the delimiter of, and whether it is its last
// one; -1 if there is none. Of several it is the innermost. A line that only begins like a
// delimiter is none to most readers and one by the letter of RFC 2046, Section 5.1.1.
func (s *scanner) match(line []byte) (k int, last bool) {
	if len(line) < 2 || line[0] != '-' || line[1] != '-' {
		return -1, false
	}
	line = bytes.TrimRight(line, " \t\r\n")
	for k := len(s.open) - 1; k >= 0; k-- {
		f := &s.open[k]
		rest, ok := bytes.CutPrefix(line, f.boundary)
		if f.boundary == nil || !ok {
			continue
		}
		switch string(rest) {
		case "":
			return k, false
		case "--":
			return k, true
		}
		// Many parts may have boundaries that the line begins with: that is looked at once.
		if p := &s.parts[f.part]; p.Flags&Broken == 0 && !s.longer(k, line) {
			p.Flags |= Broken
		}
	}
	return -1, false
}

// longer tells whether line is the delimiter of another open part than k.
func (s *scanner) longer(k int, line []byte) bool {
	for i, f := range s.open {
		if i == k || f.boundary == nil {
			continue
		}
		if rest, ok := bytes.CutPrefix(line, f.boundary); ok && (len(rest) == 0 || string(rest) == "--") {
			return true
		}
	}
	return false
}

// close ends the open parts from k on at end.
func (s *scanner) close(k int, end int64) {
	for i := len(s.open) - 1; i >= k; i-- {
		f := s.open[i]
		p := &s.parts[f.part]
		p.Size = max(0, end-p.Off)
		if f.boundary != nil && (!f.closed || f.kids == 0) && !s.full {
			p.Flags |= Broken
		}
	}
	s.open = s.open[:k]
}

// lineEndBefore returns where the line end before at begins: it belongs to the delimiter.
func (s *scanner) lineEndBefore(at int64) (int64, error) {
	var b [2]byte
	n := min(2, at)
	if at-n >= s.at && at <= s.at+int64(len(s.buf)) {
		copy(b[2-n:], s.buf[at-n-s.at:])
	} else if _, err := s.src.ReadAt(b[2-n:], at-n); err != nil && err != io.EOF {
		return 0, err
	}
	switch {
	case b == [2]byte{'\r', '\n'}:
		return at - 2, nil
	case b[1] == '\n':
		return at - 1, nil
	}
	return at, nil
}

// from returns the octets at pos: at least n of them, or all that there are.
func (s *scanner) from(pos int64, n int) ([]byte, error) {
	if pos >= s.at && pos <= s.at+int64(len(s.buf)) {
		if have := s.buf[pos-s.at:]; len(have) >= n || s.at+int64(len(s.buf)) == s.size {
			return have, nil
		}
	}
	if s.buf == nil {
		s.buf = make([]byte, 0, min(s.room, s.size))
	}
	s.buf = s.buf[:min(int64(cap(s.buf)), s.size-pos)]
	s.at = pos
	if err := s.work.do(len(s.buf)); err != nil {
		s.buf = s.buf[:0]
		return nil, err
	}
	got, err := s.src.ReadAt(s.buf, pos)
	if got == len(s.buf) {
		return s.buf, nil
	}
	s.buf = s.buf[:0]
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// line returns the first octets of the line at pos, with its end if it is not a long one, and
// where the line behind it begins.
func (s *scanner) line(pos int64) (line []byte, next int64, err error) {
	have, err := s.from(pos, longLine)
	if err != nil {
		return nil, 0, err
	}
	if i := bytes.IndexByte(have, '\n'); i >= 0 {
		return have[:min(i+1, longLine)], pos + int64(i+1), nil
	}
	line = append([]byte(nil), have[:min(len(have), longLine)]...)
	for next = pos + int64(len(have)); next < s.size; next += int64(len(have)) {
		if have, err = s.from(next, 1); err != nil {
			return nil, 0, err
		}
		if i := bytes.IndexByte(have, '\n'); i >= 0 {
			return line, next + int64(i+1), nil
		}
	}
	return line, next, nil
}

var newLineDashes = []byte("\n--")

// dashes finds the next line that begins with two dashes, from pos on, the beginning of a
// line; -1 if there is none.
func (s *scanner) dashes(pos int64) (int64, error) {
	have, err := s.from(pos, 2)
	if err != nil {
		return 0, err
	}
	if bytes.HasPrefix(have, newLineDashes[1:]) {
		return pos, nil
	}
	for {
		if i := bytes.Index(have, newLineDashes); i >= 0 {
			return pos + int64(i) + 1, nil
		}
		if pos+int64(len(have)) >= s.size {
			return -1, nil
		}
		pos += int64(len(have)) - 2
		if have, err = s.from(pos, 3); err != nil {
			return 0, err
		}
	}
}
