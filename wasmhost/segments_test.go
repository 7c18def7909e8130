package wasmhost

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// section writes a data section.
func section(list []segment) []byte {
	b := binary.AppendUvarint(nil, uint64(len(list)))
	for _, s := range list {
		b = append(appendI32(append(b, 0, 0x41), int32(s.at)), 0x0b)
		b = append(binary.AppendUvarint(b, uint64(len(s.data))), s.data...)
	}
	return b
}

// segmentsOf reads a data section.
func segmentsOf(t *testing.T, body []byte) []segment {
	t.Helper()
	list, ok := activeSegments(body)
	if !ok {
		t.Fatalf("the segments of % x cannot be read", body)
	}
	return list
}

// memoryOf applies segments to fresh memory.
func memoryOf(list []segment, size int) []byte {
	mem := make([]byte, size)
	for _, s := range list {
		copy(mem[s.at:], s.data)
	}
	return mem
}

func TestJoinData(t *testing.T) {
	seg := func(at uint32, data string) segment { return segment{at, []byte(data)} }
	tests := []struct {
		name string
		list []segment
		want int // segments left; 0 is "not joined"
	}{
		{"one", []segment{seg(8, "a")}, 1},
		{"a gap of zeros", []segment{seg(8, "a"), seg(20, "b")}, 1},
		{"no gap", []segment{seg(8, "a"), seg(9, "b")}, 1},
		{"the widest gap", []segment{seg(0, "a"), seg(1+maxGap, "b")}, 1},
		{"too wide a gap", []segment{seg(0, "a"), seg(2+maxGap, "b")}, 2},
		{"wide, then narrow", []segment{seg(0, "a"), seg(9000, "b"), seg(9010, "c")}, 2},
		{"out of order: no gap may cover an earlier segment", []segment{seg(1000, "a"), seg(990, "b"), seg(1020, "c")}, 1},
		{"two groups", []segment{seg(9000, "a"), seg(9010, "b"), seg(100, "c"), seg(110, "d")}, 2},
		{"overlapping", []segment{seg(8, "abc"), seg(10, "d")}, 0},
		{"overlapping, out of order", []segment{seg(10, "d"), seg(8, "abc")}, 0},
		{"empty ones", []segment{seg(8, ""), seg(8, "a"), seg(9, "")}, 1},
		{"none", nil, 0},
	}
	for _, tt := range tests {
		joined, n, ok := joinData(section(tt.list))
		if !ok || n != tt.want {
			if ok || tt.want != 0 {
				t.Errorf("%s: %d segments, %v, want %d", tt.name, n, ok, tt.want)
			}
			continue
		}
		got := segmentsOf(t, joined)
		if len(got) != n || !bytes.Equal(memoryOf(got, 16<<10), memoryOf(tt.list, 16<<10)) {
			t.Errorf("%s: another memory: %v", tt.name, got)
		}
	}
	// Passive, of another memory, at a place that a global holds.
	for _, body := range [][]byte{{1, 1, 1, 'a'}, {1, 2, 0, 0x41, 0, 0x0b, 1, 'a'}, {1, 0, 0x23, 0, 0x0b, 1, 'a'}} {
		if _, _, ok := joinData(body); ok {
			t.Errorf("% x is joined", body)
		}
	}
}

// TestJoinRandom: whatever does not overlap makes the same memory.
func TestJoinRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		var list []segment
		at := uint32(0)
		for range rnd.IntN(40) + 1 {
			at += uint32(rnd.IntN(2 * maxGap))
			data := make([]byte, rnd.IntN(20))
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
			list = append(list, segment{at, data})
			at += uint32(len(data))
		}
		rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		joined, _, ok := joinData(section(list))
		if !ok || !bytes.Equal(memoryOf(segmentsOf(t, joined), 64<<10), memoryOf(list, 64<<10)) {
			t.Fatalf("%v", list)
		}
	}
}

func TestI32RoundTrip(t *testing.T) {
	for _, v := range []int32{0, 1, 63, 64, 127, 128, -1, -64, -65, 1 << 30, -1 << 31, 1<<31 - 1} {
		r := &reader{b: appendI32(nil, v)}
		if got := r.i32(); got != v || r.err != nil || len(r.b) > 0 {
			t.Errorf("%d became %d, %v", v, got, r.err)
		}
	}
}
