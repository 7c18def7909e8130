package parts

import (
	"bytes"
	"encoding/binary"
	"io"
)

// decode.go reads content decoded, from any offset, without ever holding all of it.

const (
	// chunk is how many encoded octets are decoded at once.
	chunk = 48 << 10
	// markEvery is how far apart the places are, in decoded octets, that a Reader can go back
	// to.
	markEvery = 256 << 10
	// longSpace is how much white space at the end of a line is looked at. RFC 2045, Section
	// 6.7, rule 3 wants it taken out; more than that in one go is content.
	longSpace = 1 << 10
)

// Reader reads the content of a part, decoded. It implements io.ReaderAt. To read on is
// cheap; to go back, or ahead to where it was before, costs decoding 256 KiB at most. It is
// for one goroutine.
type Reader struct {
	src      io.ReaderAt
	off, end int64 // of the encoded content
	enc      Encoding
	work     Work

	at    mark   // where decoding goes on
	win   []byte // the octets before at.out
	raw   []byte
	marks []mark
	ended bool
}

// mark is a place in the content.
type mark struct {
	raw   int64  // offset in src
	out   int64  // of the decoded content
	quads uint32 // base64: the digits that are not written yet
	n     int    // how many
}

// NewReader returns a Reader of a part of body.
func NewReader(body io.ReaderAt, p *Part, work Work) *Reader {
	r := &Reader{src: body, off: p.Off, end: p.Off + p.Size, enc: p.Encoding, work: work}
	r.at.raw = p.Off
	r.marks = []mark{r.at}
	return r
}

// SetWork makes work what is told of work from now on.
func (r *Reader) SetWork(work Work) { r.work = work }

// Size returns the length of the decoded content. Unless it is not encoded, or was read to
// its end, all of it is decoded for that.
func (r *Reader) Size() (int64, error) {
	if r.enc == Identity {
		return r.end - r.off, nil
	}
	if err := r.seek(1<<63 - 1); err != nil && err != io.EOF {
		return 0, err
	}
	return r.at.out, nil
}

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if r.enc == Identity {
		return r.readRaw(p, off)
	}
	total := 0
	for total < len(p) {
		if err := r.seek(off); err != nil {
			return total, err
		}
		n := copy(p[total:], r.win[off-(r.at.out-int64(len(r.win))):])
		total += n
		off += int64(n)
	}
	return total, nil
}

func (r *Reader) readRaw(p []byte, off int64) (int, error) {
	size := r.end - r.off
	if off >= size {
		return 0, io.EOF
	}
	short := int64(len(p)) > size-off
	p = p[:min(int64(len(p)), size-off)]
	if err := r.work.do(len(p)); err != nil {
		return 0, err
	}
	n, err := r.src.ReadAt(p, r.off+off)
	switch {
	case n < len(p) && (err == nil || err == io.EOF):
		return n, io.ErrUnexpectedEOF
	case n < len(p):
		return n, err
	case short:
		return n, io.EOF
	}
	return n, nil
}

// seek makes the window hold the octet at off; io.EOF if there is none.
func (r *Reader) seek(off int64) error {
	if off < r.at.out-int64(len(r.win)) || r.nearest(off).out > r.at.out {
		r.at, r.win, r.ended = r.nearest(off), r.win[:0], false
	}
	for off >= r.at.out {
		if r.ended {
			return io.EOF
		}
		if err := r.decode(); err != nil {
			return err
		}
	}
	return nil
}

// nearest returns the last mark at or before off.
func (r *Reader) nearest(off int64) mark {
	for i := len(r.marks) - 1; i > 0; i-- {
		if r.marks[i].out <= off {
			return r.marks[i]
		}
	}
	return r.marks[0]
}

// decode decodes the next chunk into the window.
func (r *Reader) decode() error {
	if r.raw == nil {
		r.raw, r.win = make([]byte, chunk), make([]byte, 0, chunk+8)
	}
	raw := r.raw[:min(chunk, r.end-r.at.raw)]
	if err := r.work.do(len(raw)); err != nil {
		return err
	}
	if n, err := r.src.ReadAt(raw, r.at.raw); n < len(raw) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	last := r.at.raw+int64(len(raw)) == r.end
	used := len(raw)
	if r.enc == Base64 {
		r.win = r.at.base64(r.win[:0], raw, last)
	} else {
		r.win, used = quotedPrintable(r.win[:0], raw, last)
	}
	r.at.raw += int64(used)
	r.at.out += int64(len(r.win))
	r.ended = r.at.raw == r.end
	if r.at.out >= r.marks[len(r.marks)-1].out+markEvery {
		r.marks = append(r.marks, r.at)
	}
	return nil
}

const (
	notADigit = 64
	padding   = 65
)

// digits are the values of base64's digits. RFC 2045, Section 6.8.
var digits = func() (t [256]byte) {
	for i := range t {
		t[i] = notADigit
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		t[c] = byte(i)
	}
	t['='] = padding
	return t
}()

// shifted are the digits at their places in a quad; a bit above 24 says that it is none.
var shifted = func() (t [4][256]uint32) {
	for place := range t {
		for c, v := range digits {
			t[place][c] = 1 << 31
			if v < 64 {
				t[place][c] = uint32(v) << (18 - 6*place)
			}
		}
	}
	return t
}()

// wholeQuads appends what src decodes to up to an octet that is no digit, in quads, and
// returns how many octets that took. dst has room for what src decodes to and 4 octets.
func wholeQuads(dst, src []byte) (_ []byte, used int) {
	n := len(dst)
	out := dst[:cap(dst)]
	for len(src) >= 4 && n+4 <= len(out) {
		v := shifted[0][src[0]] | shifted[1][src[1]] | shifted[2][src[2]] | shifted[3][src[3]]
		if v >= 1<<24 {
			break
		}
		binary.BigEndian.PutUint32(out[n:n+4], v<<8)
		src = src[4:]
		n, used = n+3, used+4
	}
	return out[:n], used
}

// base64 appends what src decodes to. Octets that are no digits are ignored; behind padding
// it goes on, since readers do that to texts that were encoded in pieces.
func (m *mark) base64(dst, src []byte, last bool) []byte {
	for i := 0; i < len(src); {
		if m.n == 0 {
			var n int
			dst, n = wholeQuads(dst, src[i:])
			if i += n; i == len(src) {
				break
			}
		}
		v := digits[src[i]]
		i++
		switch {
		case v < 64:
			m.quads = m.quads<<6 | uint32(v)
			if m.n++; m.n == 4 {
				dst = append(dst, byte(m.quads>>16), byte(m.quads>>8), byte(m.quads))
				m.quads, m.n = 0, 0
			}
		case v == padding:
			dst = m.flush(dst)
		}
	}
	if last {
		dst = m.flush(dst)
	}
	return dst
}

// flush writes the octets of digits that are not four.
func (m *mark) flush(dst []byte) []byte {
	switch m.n {
	case 2:
		dst = append(dst, byte(m.quads>>4))
	case 3:
		dst = append(dst, byte(m.quads>>10), byte(m.quads>>2))
	}
	m.quads, m.n = 0, 0
	return dst
}

// unhex are the values of hexadecimal digits; 255 is none.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i := range 10 {
		t['0'+i] = byte(i)
	}
	for i := range 6 {
		t['a'+i], t['A'+i] = byte(10+i), byte(10+i)
	}
	return t
}()

// quotedPrintable appends what src decodes to, as far as that is certain before more is seen,
// and returns how much of src that took. RFC 2045, Section 6.7.
func quotedPrintable(dst, src []byte, last bool) (_ []byte, used int) {
	for used < len(src) {
		line := src[used:]
		i := bytes.IndexByte(line, '\n')
		if i >= 0 {
			dst = qpLine(dst, line[:i+1])
			used += i + 1
			continue
		}
		if last {
			return qpLine(dst, line), len(src)
		}
		// The end of the line is not seen: keep what could be white space before it, or
		// an escape.
		n := len(line) - longSpace - 3
		if n <= 0 && used > 0 {
			return dst, used
		}
		n = qpCut(line, max(n, 1))
		return qpEscapes(dst, line[:n]), used + n
	}
	return dst, used
}

// qpCut returns a place at or before n at which a line may be cut: not in an escape, and not in
// white space, which may be at the end of the line.
func qpCut(line []byte, n int) int {
	cut := len(trimSpace(line[:n]))
	isHex := func(i int) bool { return unhex[line[i]] < 16 }
	switch {
	case cut > 1 && line[cut-1] == '=' && (cut < n || isHex(cut) && isHex(cut+1)):
		cut--
	case cut > 2 && cut == n && line[cut-2] == '=' && isHex(cut-1) && isHex(cut):
		cut -= 2
	}
	return max(cut, 1)
}

// qpLine decodes a line with its end.
func qpLine(dst, line []byte) []byte {
	text := bytes.TrimSuffix(line, []byte("\n"))
	if len(text) < len(line) {
		text = bytes.TrimSuffix(text, []byte("\r"))
	}
	end := line[len(text):]
	text = trimSpace(text)
	if n := len(text); n > 0 && text[n-1] == '=' {
		return qpEscapes(dst, text[:n-1]) // a soft line break
	}
	return append(qpEscapes(dst, text), end...)
}

// trimSpace takes white space from the end of a line, unless there is much of it.
func trimSpace(text []byte) []byte {
	n := len(text)
	for n > 0 && (text[n-1] == ' ' || text[n-1] == '\t') {
		if n--; len(text)-n > longSpace {
			return text
		}
	}
	return text[:n]
}

// qpEscapes undoes =XX; what is not one stays as it is.
func qpEscapes(dst, text []byte) []byte {
	for {
		i := bytes.IndexByte(text, '=')
		if i < 0 {
			return append(dst, text...)
		}
		dst = append(dst, text[:i]...)
		text = text[i:]
		if len(text) > 2 {
			if hi, lo := unhex[text[1]], unhex[text[2]]; hi|lo < 16 {
				dst, text = append(dst, hi<<4|lo), text[3:]
				continue
			}
		}
		dst, text = append(dst, '='), text[1:]
	}
}
