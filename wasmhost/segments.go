package wasmhost

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// segments.go joins data segments. Go's linker leaves out every run of zeros, so that a
// guest has more than twenty thousand of them; wazero evaluates the place of each anew for
// every instance, and that is half of what an instance costs. Fresh memory is zero, so
// segments with a few zeros between them may as well be one.

const (
	maxGap  = 256     // octets of zeros that join two segments
	maxZero = 1 << 20 // octets of zeros that a module may grow by
)

// joinSegments returns a module that makes the same memory as wasm, which has passed
// screen, with fewer segments; ok is false where that is not sure. It keeps its hands off
// unless all segments are active, at constant places, and none overlaps another. An instruction that speaks of an active segment by its number finds it
// dropped, whichever it is; but the number must still exist, so a module that does not
// compile any more is compiled as it came.
func joinSegments(wasm []byte) (joined []byte, ok bool) {
	r := &reader{b: wasm[8:]}
	out := append(make([]byte, 0, len(wasm)), wasm[:8]...)
	countAt := -1 // of the data count section in out
	for len(r.b) > 0 {
		id := r.byte()
		body := r.take(r.u32())
		if r.err != nil {
			return nil, false
		}
		switch id {
		case secDataCount:
			// The number is known when the data section has been read. It is written in five
			// octets, which any number fits, and set then.
			out = append(out, id, 5)
			countAt = len(out)
			out = append(out, 0, 0, 0, 0, 0)
			continue
		case secData:
			var n int
			if body, n, ok = joinData(body); !ok {
				return nil, false
			}
			if countAt >= 0 {
				putPadded(out[countAt:countAt+5], uint32(n))
			}
		}
		out = append(binary.AppendUvarint(append(out, id), uint64(len(body))), body...)
	}
	return out, ok
}

// putPadded writes n in LEB128 over all five octets of b.
func putPadded(b []byte, n uint32) {
	for i := range b {
		b[i] = byte(n) | 0x80
		n >>= 7
	}
	b[len(b)-1] &= 0x7f
}

// segment is an active data segment.
type segment struct {
	at   uint32
	data []byte
}

func (s segment) end() uint64 { return uint64(s.at) + uint64(len(s.data)) }

// joinData joins what a data section holds and returns the number of segments left.
func joinData(body []byte) (joined []byte, n int, ok bool) {
	list, ok := activeSegments(body)
	if !ok {
		return nil, 0, false
	}
	zeros := 0
	var all []byte
	for i := 0; i < len(list); n++ {
		first := list[i]
		run := append([]byte(nil), first.data...)
		for i++; i < len(list); i++ {
			gap := int(uint64(list[i].at) - list[i-1].end())
			if gap > maxGap || zeros+gap > maxZero {
				break
			}
			zeros += gap
			run = append(append(run, make([]byte, gap)...), list[i].data...)
		}
		all = append(appendI32(append(all, 0, opI32Const), int32(first.at)), opEnd)
		all = append(binary.AppendUvarint(all, uint64(len(run))), run...)
	}
	return append(binary.AppendUvarint(nil, uint64(n)), all...), n, true
}

// Opcodes of a constant place. Section 5.4.
const (
	opI32Const = 0x41
	opEnd      = 0x0b
)

// activeSegments reads a data section and returns its segments by their place, which is as
// good as their own order if no two overlap; ok is false if they do, or if some segment is
// of another kind.
func activeSegments(body []byte) (list []segment, ok bool) {
	r := &reader{b: body}
	for range r.u32() {
		if r.u32() != 0 || r.byte() != opI32Const {
			return nil, false
		}
		s := segment{at: uint32(r.i32())}
		if r.byte() != opEnd {
			return nil, false
		}
		s.data = r.take(r.u32())
		if r.err != nil {
			return nil, false
		}
		list = append(list, s)
	}
	// Of those at one place the empty ones come first: they overlap nothing.
	slices.SortFunc(list, func(a, b segment) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(len(a.data), len(b.data)))
	})
	for i := 1; i < len(list); i++ {
		if uint64(list[i].at) < list[i-1].end() {
			return nil, false
		}
	}
	return list, r.err == nil && len(r.b) == 0 && len(list) > 0
}

// i32 reads a signed number in LEB128. Section 5.2.2.
func (r *reader) i32() int32 {
	var v int64
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		v |= int64(c&0x7f) << shift
		if c&0x80 == 0 {
			if shift < 28 && c&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			return int32(v)
		}
	}
	r.fail("a number is broken")
	return 0
}

// appendI32 writes a signed number in LEB128.
func appendI32(b []byte, v int32) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}
