package meter

import (
	"encoding/binary"
	"fmt"
)

// reader takes the binary format apart. The first thing that goes wrong stays in err,
// and from then on it reads zeros; loops must look at err.
//
// WebAssembly Core Specification 2.0, Section 5.2.
type reader struct {
	b   []byte
	p   int // of what comes next
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.b = r.b[:r.p]
}

// left returns how many octets are left.
func (r *reader) left() int { return len(r.b) - r.p }

// take returns the next n octets.
func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(r.left()) {
		r.fail("it ends in the middle of something")
		return nil
	}
	b := r.b[r.p : r.p+int(n) : r.p+int(n)]
	r.p += int(n)
	return b
}

func (r *reader) byte() byte {
	if r.p < len(r.b) {
		r.p++
		return r.b[r.p-1]
	}
	r.fail("it ends in the middle of something")
	return 0
}

// u32 reads an unsigned number in LEB128. Section 5.2.2: at most 5 octets, and no bit
// beyond the 32nd.
func (r *reader) u32() uint32 {
	if r.p < len(r.b) && r.b[r.p] < 0x80 { // nearly always
		r.p++
		return uint32(r.b[r.p-1])
	}
	v, n := binary.Uvarint(r.b[r.p:min(len(r.b), r.p+5)])
	if n <= 0 || v > 1<<32-1 {
		r.fail("a number is broken")
		return 0
	}
	r.p += n
	return uint32(v)
}

// skipLEB skips a number of at most n octets.
func (r *reader) skipLEB(n int) {
	for range n {
		if r.byte() < 0x80 {
			return
		}
	}
	r.fail("a number is broken")
}

// i32 reads a signed number in LEB128. Section 5.2.2: what the 5th octet has beyond the
// 32nd bit repeats the sign.
func (r *reader) i32() int32 {
	var v uint32
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		v |= uint32(c&0x7f) << shift
		if c >= 0x80 {
			continue
		}
		if shift < 28 && c&0x40 != 0 {
			v |= ^uint32(0) << (shift + 7)
		}
		if top := c & 0x78; shift == 28 && top != 0 && top != 0x78 {
			break
		}
		return int32(v)
	}
	r.fail("a number is broken")
	return 0
}

// count reads the length of a list, each element of which has size octets at least.
func (r *reader) count(what string, limit, size int) int {
	n := r.u32()
	if uint64(n) > uint64(limit) {
		r.fail("%d %s, the most is %d", n, what, limit)
		return 0
	}
	if int(n)*size > r.left() {
		r.fail("%d %s in %d octets", n, what, r.left())
		return 0
	}
	return int(n)
}

// list reads a list with one.
func list(r *reader, what string, limit, size int, one func()) {
	for range r.count(what, limit, size) {
		if r.err != nil {
			return
		}
		one()
	}
}

func (r *reader) name() string {
	n := r.u32()
	if n > maxNameLength {
		r.fail("a name of %d octets, the most is %d", n, maxNameLength)
		return ""
	}
	return string(r.take(n))
}

// below reads an index, which must be below n.
func (r *reader) below(what string, n int) uint32 {
	v := r.u32()
	if r.err == nil && uint64(v) >= uint64(n) {
		r.fail("%s %d, there are %d", what, v, n)
		return 0
	}
	return v
}

// appendInt writes a signed number in LEB128.
func appendInt(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// appendUint writes an unsigned number in LEB128.
func appendUint(b []byte, v uint32) []byte {
	if v < 0x80 {
		return append(b, byte(v))
	}
	return binary.AppendUvarint(b, uint64(v))
}

// putPadded writes v, below 1<<34, in LEB128 over all five octets of b. As a signed number
// it is the same.
func putPadded(b []byte, v uint64) {
	for i := range 5 {
		b[i] = byte(v) | 0x80
		v >>= 7
	}
	b[4] &= 0x7f
}
