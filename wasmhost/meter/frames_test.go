package meter_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/penstock/penstock/wasmhost/meter"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// repeat writes code n times; at gives the number of the repetition, from 1.
func repeat(n int, at func(i int) []byte) wasmtest.Code {
	var all []byte
	for i := range n {
		all = append(all, at(i+1)...)
	}
	return wasmtest.Op(all...)
}

func withIndex(op byte, i int) []byte { return append([]byte{op}, wasmtest.Uint(uint64(i))...) }

// TestFrames calls functions of many shapes by themselves until there is no stack, and looks
// at what the compiler's stack took of the heap. It begins with 10 KiB and doubles, so
// that all together is up to four times what is used.
func TestFrames(t *testing.T) {
	op := wasmtest.Op
	self := wasmtest.Call("f", op(0x20, 0))
	adds := func(n int) wasmtest.Code { return repeat(n, func(int) []byte { return []byte{0x7c} }) }
	fill := repeat(4095, func(i int) []byte { return append([]byte{0x20, 0, 0x42, byte(i & 63), 0x7c}, withIndex(0x21, i)...) })
	use := repeat(4095, func(i int) []byte { return append(withIndex(0x20, i), 0x7c) })
	wide := repeat(4095, func(i int) []byte { return append([]byte{0x20, 0, 0xfd, 18}, withIndex(0x21, i)...) })
	useWide := repeat(4095, func(i int) []byte { return append(withIndex(0x20, i), 0xfd, 29, 0, 0x7c) })
	meet := wasmtest.Seq(op(0x20, 0, 0x50, 0x04, 0x40), // set the locals on one of two ways
		repeat(64, func(i int) []byte { return append([]byte{0x20, 0, 0x42, 1, 0x7c}, withIndex(0x21, i)...) }), op(0x0b))
	tests := []struct {
		name   string
		locals string
		code   wasmtest.Code
	}{
		{"nothing", "", wasmtest.Seq(self, op(0x42, 1, 0x7c))},
		{"4096 locals", strings.Repeat("l", 4095), wasmtest.Seq(fill, self, use)},
		{"4095 vectors", strings.Repeat("v", 4095), wasmtest.Seq(wide, self, useWide)},
		{"5000 operands", "", wasmtest.Seq(repeat(5000, func(int) []byte { return []byte{0x20, 0, 0x79} }), self, adds(5000))},
		{"results", "", wasmtest.Seq(repeat(20, func(int) []byte { return []byte{0x10, 1} }), self, adds(4000))},
		{"through a table", "", wasmtest.Seq(op(0x20, 0, 0x41, 0xac, 2, 0x11, 0, 0, 0x42, 1, 0x7c))},
		{"64 locals that meet", strings.Repeat("l", 64), wasmtest.Seq(
			meet, self, meet, self, meet, self, meet, self, meet, self, op(0x7c, 0x7c, 0x7c, 0x7c),
			repeat(64, func(i int) []byte { return append(withIndex(0x20, i), 0x7c) }))},
	}
	h := newHost(t)
	for _, tt := range tests {
		m := &wasmtest.Module{Table: &wasmtest.Limits{Min: 301}, Elements: make([]uint32, 301)} // of two layers
		m.Func("f", "l>l", tt.locals, tt.code)
		m.Func("results", ">"+strings.Repeat("l", 200), "", repeat(200, func(i int) []byte { return []byte{0x42, 1} }))
		m.ExportFunc("f")
		mod := h.start(t, rewrite(t, m.Bytes()))
		f := mod.ExportedFunction("f")
		var before, after runtime.MemStats
		setFuel(mod, 1<<40)
		runtime.ReadMemStats(&before)
		_, err := f.Call(t.Context(), 5)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), errStack.Error()) {
			t.Errorf("%s: got error %v, want %v", tt.name, err, errStack)
		}
		took := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %d KiB", tt.name, took>>10)
		if took > 16*meter.MaxDepth {
			t.Errorf("%s: its stacks took %d octets, want at most %d", tt.name, took, 16*meter.MaxDepth)
		}
	}
}

// A function whose frame alone is too large does not run, and the weight of no frame wraps
// around.
func TestHugeFrame(t *testing.T) {
	m := &wasmtest.Module{}
	m.Func("f", ">", "", wasmtest.Op(0x41, 0, 0x04, 0x40), repeat(1500, func(int) []byte { return []byte{0x10, 1} }), wasmtest.Trap(), wasmtest.Op(0x0b))
	m.Func("many", ">"+strings.Repeat("v", 250), "", wasmtest.Trap())
	m.ExportFunc("f")
	if _, err := meter.Read(m.Bytes()); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	mod := h.start(t, rewrite(t, m.Bytes()))
	setFuel(mod, 1<<40)
	if _, err := mod.ExportedFunction("f").Call(t.Context()); err == nil || !errors.Is(err, errStack) && !strings.Contains(err.Error(), errStack.Error()) {
		t.Errorf("got error %v, want %v", err, errStack)
	}
}
