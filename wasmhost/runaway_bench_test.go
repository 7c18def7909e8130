package wasmhost_test

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// median and its like of a list of figures.
func quantile(list []float64, q float64) float64 {
	slices.Sort(list)
	return list[min(int(q*float64(len(list))), len(list)-1)]
}

// BenchmarkRunaway is how far beyond its budget a guest comes that does not return: in a
// loop, in a tree of calls without a loop, and in one instruction that fills its memory.
// CPU time is counted, since on a busy machine the wall's says more about the others.
func BenchmarkRunaway(b *testing.B) {
	local := wasmtest.Op(0x20, 0)
	branch := wasmtest.Seq(local, wasmtest.I64(1), wasmtest.Op(0x7d), wasmtest.Call("tree"))
	tree := func(m *wasmtest.Module) {
		m.Func("tree", "l>", "", wasmtest.Seq(local, wasmtest.Op(0x50, 0x04, 0x40, 0x0f, 0x0b), branch, branch))
	}
	fill := wasmtest.Op(0x03, 0x40, 0x41, 0, 0x41, 0, 0x3f, 0, 0x41, 16, 0x74, 0xfc, 11, 0, 0x0c, 0, 0x0b, 0x00)
	for _, guest := range []struct {
		name string
		code wasmtest.Code
	}{
		{"loop", wasmtest.Loop()},
		{"calls", wasmtest.Seq(wasmtest.Call("tree", wasmtest.I64(60)), wasmtest.Say(abi.ActContinue))},
		{"fill", fill},
	} {
		b.Run("guest="+guest.name, func(b *testing.B) {
			f := load(b, wasmtest.Guest{Memory: wasmtest.Limits{Min: 64}, Edit: tree, Else: guest.code}.Bytes(), wasmhost.FilterOptions{})
			var over []float64
			for b.Loop() {
				before := f.Stats().CPU[policy.StageMail]
				d := talk(b, f)
				if got := d.at(policy.StageMail); wasmhost.Cause(got.Err) != wasmhost.CauseCPU {
					b.Fatal(got.Err)
				}
				over = append(over, float64(f.Stats().CPU[policy.StageMail]-before-2*time.Millisecond)/1e3)
				d.run.EndTransaction()
			}
			b.ReportMetric(quantile(over, 0.5), "over-p50-µs")
			b.ReportMetric(quantile(over, 0.99), "over-p99-µs")
		})
	}
}

// BenchmarkStopTheWorld is how long the garbage collector waits until all threads have
// stopped, as the runtime counts it, while guests compute on all of them.
func BenchmarkStopTheWorld(b *testing.B) {
	for _, guests := range []int{0, 1, 4, 16} {
		b.Run("guests="+strconv.Itoa(guests), func(b *testing.B) {
			f := load(b, wasmtest.Guest{Else: wasmtest.Loop()}.Bytes(), wasmhost.FilterOptions{Limits: wasmhost.Limits{CPUMessage: 400 * time.Millisecond}})
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for range guests {
				wg.Go(func() {
					for ctx.Err() == nil {
						d := talk(b, f)
						d.with(ctx, policy.StageMessage)
						d.run.EndTransaction()
					}
				})
			}
			before := stopping()
			for b.Loop() {
				runtime.GC()
			}
			after := stopping()
			cancel()
			wg.Wait()
			for i := range after.Counts {
				after.Counts[i] -= before.Counts[i]
			}
			b.ReportMetric(histogram(after, 0.5)*1e6, "stop-p50-µs")
			b.ReportMetric(histogram(after, 0.99)*1e6, "stop-p99-µs")
		})
	}
}

func stopping() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: "/sched/pauses/stopping/gc:seconds"}}
	metrics.Read(s)
	h := s[0].Value.Float64Histogram()
	return &metrics.Float64Histogram{Counts: slices.Clone(h.Counts), Buckets: h.Buckets}
}

// histogram returns a quantile, in the middle of its bucket.
func histogram(h *metrics.Float64Histogram, q float64) float64 {
	total := uint64(0)
	for _, n := range h.Counts {
		total += n
	}
	seen := uint64(0)
	for i, n := range h.Counts {
		if seen += n; float64(seen) > q*float64(total) {
			from, to := h.Buckets[i], h.Buckets[i+1]
			if math.IsInf(from, 0) || math.IsInf(to, 0) {
				return max(from, 0)
			}
			return (from + to) / 2
		}
	}
	return 0
}

// BenchmarkReset is the cost of making an instance as new that had one hook, and
// BenchmarkClone that of a new one.
func BenchmarkReset(b *testing.B) {
	benchLife(b, func(b *testing.B, l *wasmhost.Life) {
		for b.Loop() {
			b.StopTimer()
			l.Hook(b.Context())
			b.StartTimer()
			l.Reset()
		}
	})
}

func BenchmarkClone(b *testing.B) {
	benchLife(b, func(b *testing.B, l *wasmhost.Life) {
		for b.Loop() {
			l.Clone()
			b.StopTimer()
			l.Destroy()
			b.StartTimer()
		}
	})
}

func benchLife(b *testing.B, bench func(b *testing.B, l *wasmhost.Life)) {
	for _, guest := range []struct {
		name string
		wasm func() []byte
	}{
		{"128K", func() []byte {
			return wasmtest.Guest{Memory: wasmtest.Limits{Min: 2}, Else: wasmtest.Counter()}.Bytes()
		}},
		{"go", func() []byte { return goGuest(b) }},
	} {
		b.Run("guest="+guest.name, func(b *testing.B) {
			f := load(b, guest.wasm(), wasmhost.FilterOptions{Ready: -1, Config: []byte(`{"mode": "count"}`)})
			inChain(b, policy.StageMail, func(_ context.Context, e *policy.Event) {
				l, err := wasmhost.NewLife(f, e)
				if err != nil {
					b.Fatal(err)
				}
				defer l.Close()
				b.ReportAllocs()
				bench(b, l)
			})
		})
	}
}

// BenchmarkSessions opens 10,000 sessions with one Go filter, has each pass MAIL, and tells
// what the process has then, beyond what it had before: memory that is its own, what it
// shares in parts (PSS), and mappings. It takes its time, so it runs with PENSTOCK_TORTURE.
func BenchmarkSessions(b *testing.B) {
	if os.Getenv("PENSTOCK_TORTURE") == "" {
		return
	}
	for _, mode := range []string{wasmhost.InstanceSession, wasmhost.InstanceHook} {
		b.Run("instance="+mode, func(b *testing.B) {
			for b.Loop() {
				f := load(b, goGuest(b), wasmhost.FilterOptions{Instance: mode, Ready: -1, Config: []byte(`{"mode": "count"}`)})
				debug.FreeOSMemory()
				before, mappings, heap := rollup(b, "Pss:"), mapLines(b), goHeap()
				all := make([]*dialogue, 10_000)
				start := time.Now()
				for i := range all {
					all[i] = talk(b, f)
					if got := all[i].at(policy.StageMail); got.Err != nil {
						b.Fatal(got.Err)
					}
					all[i].steps = nil
				}
				took := time.Since(start)
				debug.FreeOSMemory() // what is needed, not what the collector lets lie
				b.ReportMetric(float64(rollup(b, "Pss:")-before)/1024, "MB-pss")
				b.ReportMetric(float64(goHeap()-heap)/(1<<20), "MB-go-heap")
				b.ReportMetric(float64(mapLines(b)-mappings), "mappings")
				b.ReportMetric(float64(f.Stats().Live), "instances")
				b.ReportMetric(float64(took.Microseconds())/float64(len(all)), "µs/session")
				for _, d := range all {
					d.close()
				}
			}
		})
	}
}

func goHeap() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// rollup returns a figure of the process, in KiB.
func rollup(b *testing.B, key string) int {
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return 0
}

func mapLines(b *testing.B) int {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		b.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}
