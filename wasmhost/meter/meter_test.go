package meter_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/wasmhost/meter"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// host runs rewritten modules.
type host struct {
	rt    wazero.Runtime
	ticks int
	// tick answers a tick. Nil gives fuel without end.
	tick func(fuel int64) int64
}

var (
	errFuel  = errors.New("no fuel")
	errStack = errors.New("no stack")
)

func newHost(t testing.TB) *host {
	h := &host{rt: wazero.NewRuntime(t.Context())}
	t.Cleanup(func() { h.rt.Close(context.Background()) })
	_, err := h.rt.NewHostModuleBuilder(meter.TickModule).NewFunctionBuilder().
		WithGoFunction(api.GoFunc(h.answer), []api.ValueType{api.ValueTypeI64}, []api.ValueType{api.ValueTypeI64}).
		Export(meter.TickName).Instantiate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) answer(_ context.Context, stack []uint64) {
	fuel := int64(stack[0])
	h.ticks++
	switch {
	case fuel == meter.NoStack:
		panic(errStack)
	case h.tick != nil:
		stack[0] = uint64(h.tick(fuel))
	default:
		stack[0] = math.MaxInt64
	}
}

func rewrite(t testing.TB, wasm []byte) *meter.Rewritten {
	t.Helper()
	m, err := meter.Read(wasm)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	r, err := m.Rewrite()
	if err != nil {
		t.Fatalf("rewrite: %v", err)
	}
	mustCheck(t, r.Wasm)
	return r
}

// start makes an instance.
func (h *host) start(t testing.TB, r *meter.Rewritten) api.Module {
	t.Helper()
	mod, err := h.run(t.Context(), "", r)
	if err != nil {
		t.Fatalf("instantiate: %v", err)
	}
	return mod
}

// run makes an instance as a host must: data, then the start function.
func (h *host) run(ctx context.Context, name string, r *meter.Rewritten) (api.Module, error) {
	mod, err := h.rt.InstantiateWithConfig(ctx, r.Wasm, wazero.NewModuleConfig().WithName(name).WithStartFunctions())
	if err != nil {
		return nil, err
	}
	if len(r.Data) > 0 || r.Start != "" {
		err = begin(ctx, mod, r)
	}
	if err != nil {
		return nil, errors.Join(err, mod.Close(ctx))
	}
	return mod, nil
}

func begin(ctx context.Context, mod api.Module, r *meter.Rewritten) error {
	for _, s := range r.Data {
		if !mod.Memory().Write(s.Offset, s.Bytes) {
			return errors.New("out of bounds memory access")
		}
	}
	if r.Start == "" {
		return nil
	}
	_, err := mod.ExportedFunction(r.Start).Call(ctx)
	return err
}

func fuelOf(mod api.Module) int64 {
	return int64(mod.ExportedGlobal(meter.FuelExport).Get())
}

func setFuel(mod api.Module, n int64) {
	mod.ExportedGlobal(meter.FuelExport).(api.MutableGlobal).Set(uint64(n))
	mod.ExportedGlobal(meter.DepthExport).(api.MutableGlobal).Set(0)
}

// Whatever does not end is stopped, and what did not trap leaves no depth.
func TestStops(t *testing.T) {
	m := &wasmtest.Module{Memory: &wasmtest.Limits{Min: 1}}
	op := wasmtest.Op
	m.Func("loop", ">", "", op(0x03, 0x40, 0x0c, 0, 0x0b))
	m.Func("recurse", "l>l", "", op(0x20, 0), wasmtest.Call("recurse"), op(0x42, 1, 0x7c))
	m.Func("fib", "l>l", "", op(0x20, 0, 0x42, 2, 0x53, 0x04, 0x7e, 0x20, 0, 0x05, 0x20, 0, 0x42, 1, 0x7d),
		wasmtest.Call("fib"), op(0x20, 0, 0x42, 2, 0x7d), wasmtest.Call("fib"), op(0x7c, 0x0b))
	m.Func("fill", ">", "", op(0x03, 0x40, 0x41, 0, 0x41, 0, 0x41), op(wasmtest.Int(1<<16)...), op(0xfc, 11, 0, 0x0c, 0, 0x0b))
	m.Func("count", "l>l", "", wasmtest.Call("work"), op(0x20, 0))
	m.Func("work", ">", "", op(0x01))
	for _, name := range []string{"loop", "recurse", "fib", "fill", "count"} {
		m.ExportFunc(name)
	}
	h := newHost(t)
	mod := h.start(t, rewrite(t, m.Bytes()))
	h.tick = func(int64) int64 { panic(errFuel) }
	tests := []struct {
		name string
		arg  uint64
		want error
	}{
		{"loop", 0, errFuel}, {"recurse", 0, errStack}, {"fib", 60, errFuel}, {"fib", 10, nil}, {"fill", 0, errFuel}, {"count", 5, nil},
	}
	for _, tt := range tests {
		setFuel(mod, 1_000_000)
		f := mod.ExportedFunction(tt.name)
		_, err := f.Call(t.Context(), make([]uint64, len(f.Definition().ParamTypes()))...)
		if tt.arg > 0 {
			setFuel(mod, 1_000_000)
			_, err = f.Call(t.Context(), tt.arg)
		}
		if (err == nil) != (tt.want == nil) || err != nil && !strings.Contains(err.Error(), tt.want.Error()) {
			t.Errorf("%s(%d): got error %v, want %v", tt.name, tt.arg, err, tt.want)
		}
		if depth := mod.ExportedGlobal(meter.DepthExport).Get(); err == nil && depth != 0 {
			t.Errorf("%s(%d): depth %d after it", tt.name, tt.arg, depth)
		}
	}
	setFuel(mod, 100)
	if h.tick = func(fuel int64) int64 { return fuel + 1000 }; h.ticks == 0 {
		t.Error("no ticks")
	}
	h.ticks = 0
	if got, err := mod.ExportedFunction("fib").Call(t.Context(), 15); err != nil || got[0] != 610 || h.ticks < 5 {
		t.Errorf("fib(15) with little fuel: %v, %v after %d ticks", got, err, h.ticks)
	}
	if fuel := fuelOf(mod); fuel < 0 || fuel > 1000 {
		t.Errorf("%d fuel left, want what the last tick gave or less", fuel)
	}
}
