package wasmhost_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// The frame says what CPU time the guest has: by the hook, by the size of the message, and
// less when the transaction has used up its own.
func TestBudgetInFrame(t *testing.T) {
	left := wasmtest.Fail(wasmtest.Seq(wasmtest.I32(wasmtest.MailboxAt+abi.OffBudget), wasmtest.Op(0x29, 3, 0), wasmtest.I64(1000), wasmtest.Op(0x7f, 0xa7)))
	f := load(t, wasmtest.Guest{Else: left}.Bytes(), wasmhost.FilterOptions{Limits: wasmhost.Limits{
		CPU: 3 * time.Millisecond, CPUMessage: 5 * time.Millisecond, CPUPerMiB: 2 * time.Millisecond, CPUSession: 100 * time.Millisecond}})
	body := strings.Repeat("x", 1<<20-len("Subject: x\r\n\r\n"))
	for stage, micro := range map[policy.Stage]int{policy.StageConnect: 3000, policy.StageData: 3000, policy.StageMessage: 7000, policy.StageReset: 3000} {
		d := talk(t, f)
		d.tx.Message = message("Subject: x\r\n\r\n" + body)
		if got := d.at(stage); got.Err == nil || !strings.HasSuffix(got.Err.Error(), fmt.Sprintf("code %d", micro)) {
			t.Errorf("%s: got %v, want %d µs", stage, got.Err, micro)
		}
		d.close()
	}
}

// A guest that keeps its budget at each hook is stopped when all of them together are too
// much for one transaction; the next transaction begins anew.
func TestBudgetOfTransaction(t *testing.T) {
	f := load(t, wasmtest.Guest{On: hooks{abi.HookMail: wasmtest.Counter(), abi.HookRcpt: wasmtest.Seq(wasmtest.Work(3_000_000), wasmtest.Counter())}}.Bytes(),
		wasmhost.FilterOptions{Limits: wasmhost.Limits{CPU: 400 * time.Millisecond, CPUSession: 5 * time.Millisecond}})
	d := talk(t, f)
	defer d.close()
	var err error
	calls := 0
	for ; err == nil && calls < 1000; calls++ {
		err = d.at(policy.StageRcpt).Err
	}
	if wasmhost.Cause(err) != wasmhost.CauseCPU || !strings.Contains(err.Error(), "it exceeded its CPU time of 5ms for one transaction") {
		t.Errorf("after %d calls: %v", calls, err)
	}
	for range 2 * calls {
		d.tx.Seq++
		if err := d.at(policy.StageMail).Err; err != nil {
			t.Errorf("in another transaction: %v", err)
		}
	}
}

// A loaded machine must not fail healthy filters: of fifty guests that compute at once, each
// with a good part of its budget, none fails.
func TestLoadedMachine(t *testing.T) {
	const busy = 50
	wasm := wasmtest.Guest{Else: wasmtest.Seq(wasmtest.Work(8_000_000), wasmtest.Say(abi.ActContinue))}.Bytes()
	m, err := newRuntime(t).Load(t.Context(), "test", wasm)
	if err != nil {
		t.Fatal(err)
	}
	filter := func(cpu time.Duration) *wasmhost.Filter {
		f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Limits: wasmhost.Limits{CPU: cpu}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Close)
		return f
	}
	alone := filter(500 * time.Millisecond)
	d := talk(t, alone)
	if got := d.at(policy.StageMail); got.Err != nil {
		t.Fatal(got.Err)
	}
	d.close()
	// The processors themselves are slower when there is more to do, and when others use what
	// they share; a wait for one of two, fifty at once, would be 25 times as long.
	cpu := 3 * alone.Stats().CPU[policy.StageMail]
	f := filter(min(cpu, 500*time.Millisecond))
	var wg sync.WaitGroup
	for range busy {
		wg.Go(func() {
			d := talk(t, f)
			defer d.close()
			if got := d.at(policy.StageMail); got.Err != nil {
				t.Errorf("alone it takes %v of %v: %v", cpu/3, cpu, got.Err)
			}
		})
	}
	wg.Wait()
	s := f.Stats()
	t.Logf("alone %v, then each %v; %d ticks", cpu/3, s.CPU[policy.StageMail]/busy, s.Ticks)
	if s.Ticks < busy {
		t.Errorf("%d ticks of %d guests", s.Ticks, busy)
	}
}

// waiter has a guest wait, in the import features, for what a test gives it.
type waiter struct {
	guest.Host
	in   *policy.Instance
	wait func(ctx context.Context)
}

func (w waiter) Features() int32 {
	wasmhost.Outside(*w.in, w.wait)
	return 0
}

// While a guest waits for something outside, its CPU time stands still, and its time on the
// wall goes on; the wait ends with that, with the session and with the gateway.
func TestOutside(t *testing.T) {
	errHungUp := errors.New("the client hung up")
	cancelled, cancel := context.WithCancelCause(t.Context())
	tests := []struct {
		name  string
		ctx   context.Context
		wall  time.Duration
		wait  func(ctx context.Context, rt *wasmhost.Runtime)
		cause string
	}{
		{"it comes back", t.Context(), time.Minute, func(context.Context, *wasmhost.Runtime) { <-time.After(30 * time.Millisecond) }, ""},
		{"its time is over", t.Context(), 30 * time.Millisecond, func(ctx context.Context, _ *wasmhost.Runtime) { <-ctx.Done() }, wasmhost.CauseWall},
		{"the session ends", cancelled, time.Minute, func(ctx context.Context, _ *wasmhost.Runtime) { cancel(errHungUp); <-ctx.Done() }, wasmhost.CauseStopped},
		{"the gateway ends", t.Context(), time.Minute, func(ctx context.Context, rt *wasmhost.Runtime) {
			go rt.Close(context.Background())
			<-ctx.Done()
		}, wasmhost.CauseStopped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rt := newRuntime(t)
			m, err := rt.Load(t.Context(), "test", wasmtest.Guest{Else: wasmtest.Seq(wasmtest.Work(100_000), wasmtest.Imports("features"), wasmtest.Drop(),
				wasmtest.Work(100_000), wasmtest.Counter())}.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			var in policy.Instance
			f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Limits: wasmhost.Limits{Wall: tt.wall, CPU: 20 * time.Millisecond},
				Wrap: func(h guest.Host) guest.Host {
					return waiter{h, &in, func(ctx context.Context) { tt.wait(ctx, rt) }}
				}})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if in, err = f.Open(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			inChain(t, policy.StageMail, func(_ context.Context, e *policy.Event) { _, err = in.Decide(tt.ctx, e) })
			if wasmhost.Cause(err) != tt.cause {
				t.Errorf("got error %v, want cause %q", err, tt.cause)
			}
			if s := f.Stats(); s.Waits != 1 || s.Waited <= 0 || s.CPU[policy.StageMail] <= 0 || s.CPU[policy.StageMail] > 20*time.Millisecond {
				t.Errorf("%+v, want one wait and little CPU time", s)
			}
		})
	}
}

// A guest's sleep is no wait: clocks are due at once, other subscriptions are an error.
func TestPoll(t *testing.T) {
	const subs, events = 41_000, 42_000
	load32 := func(addr int32) wasmtest.Code { return wasmtest.Seq(wasmtest.I32(addr), wasmtest.Op(0x28, 0, 0)) }
	poll := wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".poll_oneoff", wasmtest.I32(subs), wasmtest.I32(events), wasmtest.I32(2), wasmtest.I32(43_000)), wasmtest.Drop())
	never := "AAAAAAAA" + "\x00\x00\x00\x00\x00\x00\x00\x00" + le32(1) + le32(0) + le32(1<<32-1) + le32(1<<30) + strings.Repeat("\x00", 16)
	read := "BBBBBBBB" + "\x01" + strings.Repeat("\x00", 39)
	for name, tt := range map[string]struct {
		code wasmtest.Code
		want uint32
	}{
		"how many": {load32(43_000), 2}, "the clock's": {load32(events), 0x41414141}, "its error": {load32(events + 8), 0},
		"the other's": {load32(events + 32), 0x42424242}, "its error number and kind": {load32(events + 40), 8 | 1<<16},
	} {
		f := load(t, wasmtest.Guest{Else: wasmtest.Fail(wasmtest.Seq(poll, tt.code)), Data: map[uint32]string{subs: never + read}}.Bytes(), wasmhost.FilterOptions{})
		d := talk(t, f)
		if got := d.at(policy.StageMail); got.Err == nil || !strings.HasSuffix(got.Err.Error(), fmt.Sprintf("code %d", tt.want)) {
			t.Errorf("%s: got %v, want code %d", name, got.Err, tt.want)
		}
		d.close()
	}
}
