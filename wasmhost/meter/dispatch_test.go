package meter_test

import (
	"slices"
	"strconv"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/penstock/penstock/wasmhost/meter"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// throughTable is a module that calls whatever is at an index of a table, by two types. The
// table has nulls in front, between and behind, functions of three types, and one of the host.
func throughTable(edit func(*wasmtest.Module)) []byte {
	op := wasmtest.Op
	m := &wasmtest.Module{Table: &wasmtest.Limits{Min: 500}}
	m.Import("env", "f", "i>i")
	m.Func("call", "il>l", "", op(0x20, 1, 0x20, 0, 0x11), op(m.Type("l>l")...), op(0))
	m.Func("other", "ii>i", "", op(0x20, 1, 0x20, 0, 0x11), op(m.Type("i>i")...), op(0))
	m.Func("slow", "il>", "", op(0x20, 1, 0x20, 0, 0x11), op(m.Type("l>")...), op(0))
	m.Func("none", ">", "", op(0x01))
	m.Func("drop", "l>", "", op(0x01))
	const first = 6 // of those that follow
	for i := range 40 {
		m.Func("n"+strconv.Itoa(i), "l>l", "", op(0x20, 0, 0x42, byte(i), 0x7c))
	}
	segment := func(at int64, entries ...byte) []byte {
		return slices.Concat([]byte{0, 0x41}, wasmtest.Int(at), []byte{0x0b}, wasmtest.Uint(uint64(len(entries))), entries)
	}
	var many []byte
	for i := range 300 {
		many = append(many, byte(first+i*7%40))
	}
	list := slices.Concat([]byte{3}, segment(100, many...), segment(300, 4, 5, 0), segment(420, 3, first))
	m.Sections = append(m.Sections, wasmtest.Section{ID: 9, Body: list})
	for _, name := range []string{"call", "other", "slow"} {
		m.ExportFunc(name)
	}
	edit(m)
	return m.Bytes()
}

// choices counts the functions of ours that are called instead of through a table.
func choices(wasm []byte) (n int) {
	for _, code := range parse(wasm).code {
		if isChoice(code) {
			n++
		}
	}
	return n
}

// Calls through a table that nobody changes do not go through it, and do and trap as they
// did, at every index.
func TestDispatch(t *testing.T) {
	p := newPair(t)
	wasm := throughTable(func(*wasmtest.Module) {})
	r := rewrite(t, wasm)
	if n := choices(r.Wasm); n != 3*4 {
		t.Errorf("%d functions to choose by an index, want 12", n)
	}
	a, err := p.plain.rt.InstantiateWithConfig(t.Context(), wasm, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	b := p.metered.start(t, r)
	reasons := map[string]int{}
	for _, name := range []string{"call", "other", "slow"} {
		for i := range 1020 {
			index := uint64(uint32(i - 510))
			setFuel(b, 100)
			want, errA := a.ExportedFunction(name).Call(t.Context(), index, 1000)
			got, errB := b.ExportedFunction(name).Call(t.Context(), index, 1000)
			if reason(errA) != reason(errB) || !slices.Equal(want, got) {
				t.Errorf("%s at %d: %d, %v; want %d, %v", name, int32(index), got, errB, want, errA)
			}
			reasons[reason(errA)]++
			if depth := b.ExportedGlobal(meter.DepthExport).Get(); errA == nil && depth != 0 {
				t.Errorf("%s at %d: depth %d after it", name, int32(index), depth)
			}
		}
	}
	if len(reasons) != 3 || reasons["none"] < 300 {
		t.Errorf("calls ended for %v, want some that return and two kinds of traps", reasons)
	}
}

// A table stays what it is if more is done with it than to call.
func TestDispatchNot(t *testing.T) {
	code := func(b ...byte) func(m *wasmtest.Module) {
		return func(m *wasmtest.Module) { m.Func("more", ">", "", wasmtest.Op(b...)) }
	}
	for name, edit := range map[string]func(m *wasmtest.Module){
		"exported":   func(m *wasmtest.Module) { m.Exports = append(m.Exports, wasmtest.Export{Name: "t", Kind: 1}) },
		"imported":   func(m *wasmtest.Module) { m.Table = nil; m.ImportOther("env", "t", 1, 0x70, 0, 0) },
		"table.get":  code(0x41, 0, 0x25, 0, 0x1a),
		"table.set":  code(0x41, 0, 0xd0, 0x70, 0x26, 0),
		"table.size": code(0xfc, 16, 0, 0x1a),
		"table.grow": code(0xd0, 0x70, 0x41, 1, 0xfc, 15, 0, 0x1a),
		"table.fill": code(0x41, 0, 0xd0, 0x70, 0x41, 1, 0xfc, 17, 0),
		"table.copy": code(0x41, 0, 0x41, 0, 0x41, 0, 0xfc, 14, 0, 0),
		"table.init": code(0x41, 0, 0x41, 0, 0x41, 0, 0xfc, 12, 0, 0),
		"too small":  func(m *wasmtest.Module) { m.Table.Min = 421 },
	} {
		if n := choices(rewrite(t, throughTable(edit)).Wasm); n != 0 {
			t.Errorf("%s: %d functions to choose by an index", name, n)
		}
	}
}
