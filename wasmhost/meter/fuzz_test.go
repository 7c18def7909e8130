package meter_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/wasmhost/meter"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// pair are a module and its rewritten self, to be run side by side.
type pair struct {
	plain, metered *host
}

func newPair(t testing.TB) *pair {
	p := &pair{newHost(t), newHost(t)}
	p.metered.tick = func(int64) int64 { return 100 }
	for _, h := range []*host{p.plain, p.metered} {
		_, err := h.rt.NewHostModuleBuilder("env").NewFunctionBuilder().
			WithGoFunction(api.GoFunc(func(_ context.Context, stack []uint64) { stack[0] = uint64(uint32(stack[0]) * 3) }),
				[]api.ValueType{api.ValueTypeI32}, []api.ValueType{api.ValueTypeI32}).
			Export("f").Instantiate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// same runs a random module on both sides. It returns how many calls came back and how
// many trapped.
func (p *pair) same(t *testing.T, seed uint64) (returned, trapped int) {
	wasm := randomModule(seed)
	ctx := t.Context()
	config := wazero.NewModuleConfig().WithName("").WithStartFunctions()
	a, errA := p.plain.rt.InstantiateWithConfig(ctx, wasm, config)
	b, errB := p.metered.run(ctx, "", rewrite(t, wasm))
	if reason(errA) != reason(errB) {
		t.Fatalf("seed %d: instantiate: %v\nrewritten: %v", seed, errA, errB)
	}
	if errA != nil {
		return 0, 1
	}
	defer a.Close(ctx)
	defer b.Close(ctx)
	rnd := rand.New(rand.NewPCG(seed, 8))
	for range 2 {
		for i := 0; a.ExportedFunction("f"+string(rune('a'+i))) != nil; i++ {
			switch p.call(t, seed, a, b, "f"+string(rune('a'+i)), rnd) {
			case "none":
				returned++
			case "stack":
				return returned, trapped + 1 // how deep it came is not the same
			default:
				trapped++
			}
			compareInstances(t, seed, a, b)
		}
	}
	return returned, trapped
}

// call calls a function on both sides and returns why it ended.
func (p *pair) call(t *testing.T, seed uint64, a, b api.Module, name string, rnd *rand.Rand) string {
	f, g := a.ExportedFunction(name), b.ExportedFunction(name)
	var args []uint64
	for _, typ := range f.Definition().ParamTypes() {
		args = append(args, uint64(rnd.Uint32()>>rnd.IntN(32)))
		if typ == v128 {
			args = append(args, rnd.Uint64())
		}
	}
	for _, mod := range []api.Module{a, b} {
		mod.ExportedGlobal("ga").(api.MutableGlobal).Set(genTurns)
	}
	setFuel(b, 100)
	want, errA := f.Call(t.Context(), args...)
	got, errB := g.Call(t.Context(), args...)
	clear32(want, f.Definition().ResultTypes())
	clear32(got, f.Definition().ResultTypes())
	if reason(errA) != reason(errB) || !same(want, got, f.Definition().ResultTypes()) {
		t.Fatalf("seed %d: %s(%x) = %x, %v\nrewritten: %x, %v", seed, name, args, want, errA, got, errB)
	}
	if depth := b.ExportedGlobal(meter.DepthExport).Get(); errA == nil && depth != 0 {
		t.Fatalf("seed %d: %s: depth %d after it", seed, name, depth)
	}
	return reason(errA)
}

// clear32 clears the upper halves of numbers of 32 bits, which are what was there before.
func clear32(values []uint64, types []api.ValueType) {
	i := 0
	for _, t := range types {
		if i >= len(values) {
			return // it trapped
		}
		if t == api.ValueTypeI32 || t == api.ValueTypeF32 {
			values[i] = uint64(uint32(values[i]))
		}
		if i++; t == v128 {
			i++
		}
	}
}

func compareInstances(t *testing.T, seed uint64, a, b api.Module) {
	am, _ := a.Memory().Read(0, a.Memory().Size())
	bm, _ := b.Memory().Read(0, b.Memory().Size())
	if !bytes.Equal(am, bm) {
		for i := range am {
			if len(bm) != len(am) || am[i] != bm[i] {
				t.Fatalf("seed %d: memories of %d and %d octets differ at %d: % x, rewritten % x", seed, len(am), len(bm), i, am[i:i+16], bm[i:i+16])
			}
		}
	}
	for i := 0; i < 5; i++ {
		name := "g" + string(rune('a'+i))
		if x, y := a.ExportedGlobal(name).Get(), b.ExportedGlobal(name).Get(); x != y {
			t.Fatalf("seed %d: global %s is %x, rewritten %x", seed, name, x, y)
		}
	}
}

// TestEquivalent runs random modules; PENSTOCK_TORTURE runs many.
func TestEquivalent(t *testing.T) {
	p := newPair(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	returned, trapped := 0, 0
	n := uint64(100)
	if os.Getenv("PENSTOCK_TORTURE") != "" {
		n = 20_000
	}
	for i := range n {
		r, x := p.same(t, seed+i)
		returned, trapped = returned+r, trapped+x
	}
	t.Logf("%d calls returned, %d trapped", returned, trapped)
	if returned < trapped/4 {
		t.Errorf("too few returned to tell much")
	}
}

// FuzzEquivalent: a valid module, rewritten, is valid and does the same.
func FuzzEquivalent(f *testing.F) {
	for _, seed := range []uint64{0, 1, 2} {
		f.Add(seed)
	}
	p := newPair(f)
	f.Fuzz(func(t *testing.T, seed uint64) { p.same(t, seed) })
}

// FuzzRead: whatever comes in, an error or a module comes out, and a module that compiled
// before compiles afterwards and has no cycle without a check.
func FuzzRead(f *testing.F) {
	f.Add(wasmtest.Guest{}.Bytes())
	f.Add(wasmtest.Guest{Start: wasmtest.Work(1), Data: map[uint32]string{100: "x"}}.Bytes())
	f.Add(randomModule(1))
	f.Add(randomModule(2))
	f.Add(throughTable(func(*wasmtest.Module) {}))
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	f.Cleanup(func() { rt.Close(ctx) })
	compiles := func(wasm []byte) error {
		c, err := rt.CompileModule(ctx, wasm)
		if err == nil {
			err = c.Close(ctx)
		}
		return err
	}
	f.Fuzz(func(t *testing.T, wasm []byte) {
		m, err := meter.Read(wasm)
		if err != nil {
			return
		}
		r, err := m.Rewrite()
		if err != nil {
			return
		}
		before, after := compiles(wasm), compiles(r.Wasm)
		if (before == nil) != (after == nil) {
			t.Errorf("it compiled: %v\nrewritten: %v", before, after)
		}
		if after == nil {
			mustCheck(t, r.Wasm)
		}
	})
}
