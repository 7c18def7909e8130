package meter

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// memoryOf applies segments to fresh memory.
func memoryOf(list []Segment, size int) []byte {
	mem := make([]byte, size)
	for _, s := range list {
		copy(mem[s.Offset:], s.Bytes)
	}
	return mem
}

func TestJoinSegments(t *testing.T) {
	seg := func(at uint32, data string) Segment { return Segment{at, []byte(data)} }
	tests := []struct {
		name string
		list []Segment
		want int // segments left
	}{
		{"one", []Segment{seg(8, "a")}, 1},
		{"a gap of zeros", []Segment{seg(8, "a"), seg(20, "b")}, 1},
		{"no gap", []Segment{seg(8, "a"), seg(9, "b")}, 1},
		{"the widest gap", []Segment{seg(0, "a"), seg(1+maxGap, "b")}, 1},
		{"too wide a gap", []Segment{seg(0, "a"), seg(2+maxGap, "b")}, 2},
		{"wide, then narrow", []Segment{seg(0, "a"), seg(9000, "b"), seg(9010, "c")}, 2},
		{"out of order: no gap may cover an earlier segment", []Segment{seg(1000, "a"), seg(990, "b"), seg(1020, "c")}, 1},
		{"two groups", []Segment{seg(9000, "a"), seg(9010, "b"), seg(100, "c"), seg(110, "d")}, 2},
		{"overlapping: their order matters", []Segment{seg(8, "abc"), seg(10, "d")}, 2},
		{"overlapping, out of order", []Segment{seg(10, "d"), seg(8, "abc")}, 2},
		{"empty ones", []Segment{seg(8, ""), seg(8, "a"), seg(9, "")}, 1},
		{"at the end of the address space", []Segment{seg(1<<32-1, "")}, 1},
		{"none", nil, 0},
	}
	for _, tt := range tests {
		got := joinSegments(tt.list)
		if len(got) != tt.want {
			t.Errorf("%s: %d segments, want %d", tt.name, len(got), tt.want)
		}
		if tt.name != "at the end of the address space" && !bytes.Equal(memoryOf(got, 16<<10), memoryOf(tt.list, 16<<10)) {
			t.Errorf("%s: another memory: %v", tt.name, got)
		}
	}
}

// TestJoinRandom: whatever does not overlap makes the same memory.
func TestJoinRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		var list []Segment
		at := uint32(0)
		for range rnd.IntN(40) + 1 {
			at += uint32(rnd.IntN(2 * maxGap))
			data := make([]byte, rnd.IntN(20))
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
			list = append(list, Segment{at, data})
			at += uint32(len(data))
		}
		rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		if joined := joinSegments(list); !bytes.Equal(memoryOf(joined, 64<<10), memoryOf(list, 64<<10)) {
			t.Fatalf("%v", list)
		}
	}
}

func TestIntRoundTrip(t *testing.T) {
	for _, v := range []int32{0, 1, 63, 64, 127, 128, -1, -64, -65, 1 << 30, -1 << 31, 1<<31 - 1} {
		r := &reader{b: appendInt(nil, int64(v))}
		if got := r.i32(); got != v || r.err != nil || r.left() > 0 {
			t.Errorf("%d became %d, %v", v, got, r.err)
		}
	}
	for _, b := range [][]byte{{0x80, 0x80, 0x80, 0x80, 0x08}, {0xff, 0xff, 0xff, 0xff, 0x77}, {0x80, 0x80, 0x80, 0x80, 0x80, 0}, {0x80}} {
		r := &reader{b: b}
		if got := r.i32(); r.err == nil {
			t.Errorf("% x is %d, want an error", b, got)
		}
	}
}
