package wasmhost_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// BenchmarkBystander is what sessions whose filters run away cost one beside them, which
// wakes each millisecond and asks its own filter. A runaway's guest computes until its
// budget ends (40 ms, by the message), and the next session begins a millisecond later. late
// is from the moment at which the bystander should have woken to its verdict, hook is the
// time of the chain alone. Run it with -benchtime 2000x.
func BenchmarkBystander(b *testing.B) {
	for _, n := range []int{0, 1, 2, 16} {
		b.Run(fmt.Sprint("runaways=", n), func(b *testing.B) { bystander(b, n, "loop") })
	}
	for _, do := range []string{"copy", "deep", "grow_and_trap", "flood_body", "flood_match", "flood_log"} {
		b.Run("runaways=16/do="+do, func(b *testing.B) { bystander(b, 16, do) })
	}
}

// bystander measures beside so many runaways, of which do says what they do: see
// testdata/hostile/hostile.c.
func bystander(b *testing.B, runaways int, do string) {
	rt := newRuntime(b)
	filterOf := func(name string, wasm []byte) *wasmhost.Filter {
		m, err := rt.Load(b.Context(), name, wasm)
		if err != nil {
			b.Fatal(err)
		}
		f, err := m.Filter(b.Context(), wasmhost.FilterOptions{Name: name, Config: []byte(`{"do": "` + do + `"}`), Grants: guest.Everything()})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(f.Close)
		return f
	}
	bad := filterOf("runaway", hostileModule(b, "hostile"))
	good := filterOf("bystander", wasmtest.Guest{Else: wasmtest.Seq(wasmtest.Work(1000), wasmtest.Say(abi.ActContinue))}.Bytes())
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for range runaways {
		wg.Go(func() { runAway(b, ctx, bad) })
	}
	defer wg.Wait()
	defer stop()
	var late, hook []time.Duration
	run := policy.NewChain(policy.Link{Filter: good}).Open(session(), func(s policy.Step) {
		if s.Err != nil {
			b.Error(s.Err)
		}
	})
	defer run.Close(context.WithoutCancel(b.Context()))
	tx := transaction(nil)
	for b.Loop() {
		due := time.Now().Add(time.Millisecond)
		time.Sleep(time.Millisecond)
		from := time.Now()
		run.Decide(b.Context(), policy.StageRcpt, tx)
		late, hook = append(late, time.Since(due)), append(hook, time.Since(from))
	}
	for name, d := range map[string][]time.Duration{"late": late, "hook": hook} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2])/1e3, name+"-p50-µs")
		b.ReportMetric(float64(d[len(d)*99/100])/1e3, name+"-p99-µs")
	}
	b.ReportMetric(0, "ns/op")
}

// runAway has one session after the other in which the filter runs away, until ctx ends.
func runAway(b *testing.B, ctx context.Context, f policy.Filter) {
	large := message(largeMessage())
	for ctx.Err() == nil {
		failed := false
		run := policy.NewChain(policy.Link{Filter: f}).Open(session(), func(s policy.Step) { failed = failed || s.Err != nil })
		run.Decide(ctx, policy.StageMessage, transaction(&policy.Message{Header: large.Header, Body: large.Body}))
		run.Close(context.WithoutCancel(ctx))
		if !failed {
			b.Error("the runaway did not run away")
			return
		}
		time.Sleep(time.Millisecond) // no client is there again at once
	}
}
