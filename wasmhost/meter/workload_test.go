package meter_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/wasmhost/meter"
)

// workload_test.go runs programs of the kind that filters are made of, in four languages,
// as they are and rewritten: the results must be the same, and the benchmark says what
// the rewriting costs. testdata/workloads has their sources.

// workloads are the functions of each module that are a workload.
var workloads = []struct {
	module string // in testdata/workloads, without .wasm; "go" is built
	names  []string
}{
	{"c", []string{"fnv", "crc32", "sha256", "scan", "base64", "headers", "fib", "queens", "sort", "nbody", "simd", "bulk", "machine"}},
	{"rust", []string{"json", "strings", "words", "rules", "patterns"}},
	{"as", []string{"bytes", "build", "floats"}},
	{"go", []string{"hash", "find", "decode64", "decode_json", "match", "parse_mail", "sort_words", "build"}},
}

// workloadModule returns a module of workloads.
func workloadModule(t testing.TB, name string) []byte {
	t.Helper()
	if name == "go" {
		return guests.Build(t, filepath.Join("testdata", "workloads", "go"))
	}
	wasm, err := os.ReadFile(filepath.Join("testdata", "workloads", name+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// ways are the ways to run a workload.
type way string

const (
	plain     way = "plain"
	rewritten way = "rewritten"
	ctxDone   way = "ctxdone" // wazero's own way to stop a guest
)

// program is an instance of a module of workloads.
type program struct {
	mod   api.Module
	ticks *atomic.Int64
}

// start instantiates a module. It ends with the test.
func start(t testing.TB, wasm []byte, as way) program {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCloseOnContextDone(as == ctxDone))
	t.Cleanup(func() { rt.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	_, err := rt.NewHostModuleBuilder("env").NewFunctionBuilder().
		WithFunc(func(context.Context, api.Module, uint32, uint32, uint32, uint32) { panic("the guest aborts") }).
		Export("abort").Instantiate(ctx) // of AssemblyScript
	if err != nil {
		t.Fatal(err)
	}
	p := program{ticks: new(atomic.Int64)}
	r := &meter.Rewritten{Wasm: wasm}
	if as == rewritten {
		r = rewrite(t, wasm)
		addTick(t, ctx, rt, p.ticks)
	}
	if p.mod, err = rt.InstantiateWithConfig(ctx, r.Wasm, wazero.NewModuleConfig().WithStartFunctions()); err != nil {
		t.Fatal(err)
	}
	for _, d := range r.Data {
		if !p.mod.Memory().Write(d.Offset, d.Bytes) {
			t.Fatalf("a segment at %d does not fit", d.Offset)
		}
	}
	for _, boot := range []string{r.Start, "_initialize"} {
		if f := p.mod.ExportedFunction(boot); f != nil {
			if _, err := f.Call(ctx); err != nil {
				t.Fatalf("%s: %v", boot, err)
			}
		}
	}
	return p
}

// addTick gives guests fuel as the host does: a slice that lasts from 50 to 100
// microseconds, with a look at the clock between slices.
func addTick(t testing.TB, ctx context.Context, rt wazero.Runtime, ticks *atomic.Int64) {
	t.Helper()
	last, slice := time.Now(), int64(10_000)
	tick := func(_ context.Context, _ api.Module, stack []uint64) {
		if int64(stack[0]) == meter.NoStack {
			panic(errors.New("the stack is exhausted"))
		}
		now := time.Now()
		switch used := now.Sub(last); {
		case used < 50*time.Microsecond:
			slice *= 2
		case used > 100*time.Microsecond && slice > 10_000:
			slice /= 2
		}
		ticks.Add(1)
		last, stack[0] = now, uint64(slice)
	}
	_, err := rt.NewHostModuleBuilder(meter.TickModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(tick), []api.ValueType{api.ValueTypeI64}, []api.ValueType{api.ValueTypeI64}).
		Export(meter.TickName).Instantiate(ctx)
	if err != nil {
		t.Fatal(err)
	}
}

// call runs a workload n times over.
func (p program) call(t testing.TB, name string, n uint32) uint64 {
	t.Helper()
	res, err := p.mod.ExportedFunction(name).Call(context.Background(), uint64(n))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return res[0]
}

// A workload computes the same in whichever way it runs, and a rewritten one asks for fuel
// while it does. Two rounds of it find something else than one, so that a workload that
// does nothing is seen. The Go module takes the race detector half a minute to compile:
// there it is left out.
func TestWorkloads(t *testing.T) {
	for _, w := range workloads {
		if w.module == "go" && raceEnabled {
			continue
		}
		wasm := workloadModule(t, w.module)
		a, b := start(t, wasm, plain), start(t, wasm, rewritten)
		for _, name := range w.names {
			got := [2]uint64{b.call(t, name, 1), b.call(t, name, 2)}
			if want := [2]uint64{a.call(t, name, 1), a.call(t, name, 2)}; got != want {
				t.Errorf("%s %s: rewritten %#x, plain %#x", w.module, name, got, want)
			} else if want[0] == want[1] || want[1] == 0 {
				t.Errorf("%s %s: the sums are %#x: it does nothing", w.module, name, want)
			}
		}
		if b.ticks.Load() == 0 {
			t.Errorf("%s: it never asked for fuel", w.module)
		}
	}
}

// BenchmarkMetering says how many times as long a workload takes that was rewritten
// (x-rewritten), and with wazero's own check for the end of a context (x-ctxdone). The
// ways take turns in short rounds, of which the quickest counts, by the clock of the thread:
// a busy machine disturbs them little. Run it with -benchtime 1x.
func BenchmarkMetering(b *testing.B) {
	all := map[way][]float64{}
	for _, w := range workloads {
		wasm := workloadModule(b, w.module)
		ways := []way{plain, rewritten, ctxDone}
		programs := make([]program, len(ways))
		for i, as := range ways {
			programs[i] = start(b, wasm, as)
		}
		for _, name := range w.names {
			b.Run(w.module+"/"+name, func(b *testing.B) {
				var best []time.Duration
				for b.Loop() {
					best = race(b, programs, name)
				}
				b.ReportMetric(float64(best[0].Nanoseconds()), "ns-plain")
				for i, as := range ways[1:] {
					x := float64(best[i+1]) / float64(best[0])
					b.ReportMetric(x, "x-"+string(as))
					all[as] = append(all[as], x)
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
	b.Run("geomean", func(b *testing.B) {
		for as, x := range all {
			b.ReportMetric(geomean(x), "x-"+string(as))
			b.ReportMetric(slices.Max(x), "x-worst-"+string(as))
		}
		b.ReportMetric(0, "ns/op")
	})
}

// rounds are how often each way runs in BenchmarkMetering, and round is how long one of
// them takes about.
const (
	rounds = 40
	round  = time.Millisecond
)

// race returns the shortest time of n calls of a workload in each program.
func race(b *testing.B, programs []program, name string) []time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n := uint32(1)
	for clock(b, programs[0], name, n) < round {
		n *= 2
	}
	best := slices.Repeat([]time.Duration{math.MaxInt64}, len(programs))
	for range rounds {
		for i, p := range programs {
			best[i] = min(best[i], clock(b, p, name, n))
		}
	}
	return best
}

func clock(b *testing.B, p program, name string, n uint32) time.Duration {
	from := threadTime()
	p.call(b, name, n)
	return threadTime() - from
}

func geomean(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += math.Log(v)
	}
	return math.Exp(sum / float64(len(x)))
}

// The binaries that are checked in are those of the list that was written with them.
func TestWorkloadSums(t *testing.T) {
	sums, err := os.ReadFile("testdata/workloads/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(sums)) {
		sum, file, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if got := fmt.Sprintf("%x", sha256.Sum256(workloadModule(t, strings.TrimSuffix(filepath.Base(file), ".wasm")))); got != sum {
			t.Errorf("%s: its sum is %s, not %s: run testdata/workloads/build.sh", file, got, sum)
		}
	}
}
