package meter_test

import (
	"bytes"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// mover is a module that fills and copies as it is told.
func mover() []byte {
	m := &wasmtest.Module{Memory: &wasmtest.Limits{Min: 8}, Exports: []wasmtest.Export{{Name: "memory", Kind: wasmtest.KindMemory}}}
	m.Func("fill", "iii>", "", wasmtest.Op(0x20, 0, 0x20, 1, 0x20, 2, 0xfc, 11, 0))
	m.Func("copy", "iii>", "", wasmtest.Op(0x20, 0, 0x20, 1, 0x20, 2, 0xfc, 10, 0, 0))
	m.ExportFunc("fill")
	m.ExportFunc("copy")
	return m.Bytes()
}

// What is filled and copied piece by piece is what is so at once: of all lengths, over
// itself in both directions, up to the end of memory and beyond it, where nothing is written.
func TestMoves(t *testing.T) {
	const size, p = 8 << 16, 16 << 10
	h := newHost(t)
	fuel := int64(400) // for a piece
	h.tick = func(int64) int64 { return fuel }
	cut := h.start(t, rewrite(t, mover()))
	whole, err := h.rt.InstantiateWithConfig(t.Context(), mover(), wazero.NewModuleConfig().WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	pattern := make([]byte, size)
	for i := range pattern {
		pattern[i] = byte(i*7 + i>>8)
	}
	memory := func(mod api.Module) []byte {
		b, _ := mod.Memory().Read(0, size)
		return b
	}
	for _, c := range [][3]uint32{ // to, from, length
		{0, 1, 10}, {0, 1, 0}, {0, 1, p}, {0, 1, p + 1}, {1, 0, p}, {1, 0, p + 1}, {5, 0, 2*p + 3}, {0, 5, 2*p + 3},
		{0, p, 3 * p}, {p, 0, 3 * p}, {p + 1, 0, 3 * p}, {0, 0, size}, {1, 0, size - 1}, {0, 1, size - 1}, {p - 1, p, 2 * p},
		{1, 0, size}, {0, 1, size}, {size, 0, 0}, {size + 1, 0, 0}, {0, size, p + 1}, {0, 1, 1<<32 - 1}, {1<<32 - 1, 0, 2 * p}, {0, 1<<32 - p, 2 * p},
		{size - p - 1, 3, p + 1}, {size - p - 1, 3, p + 2}, {3, size - p - 1, p + 1},
	} {
		for _, what := range []string{"fill", "copy"} {
			before := h.ticks
			var failed [2]bool
			for i, mod := range []api.Module{cut, whole} {
				if mod == cut {
					setFuel(mod, fuel)
				}
				copy(memory(mod), pattern)
				_, err := mod.ExportedFunction(what).Call(t.Context(), uint64(c[0]), uint64(c[1]), uint64(c[2]))
				failed[i] = err != nil
			}
			if failed[0] != failed[1] || !bytes.Equal(memory(cut), memory(whole)) {
				t.Errorf("%s(%#x, %#x, %#x): it traps: %t, want %t; memory as it should be: %t", what, c[0], c[1], c[2], failed[0], failed[1],
					bytes.Equal(memory(cut), memory(whole)))
			}
			if long := c[2] > 3*p/2 && !failed[1]; long && h.ticks == before {
				t.Errorf("%s of %#x octets: no tick", what, c[2])
			}
		}
	}
}
