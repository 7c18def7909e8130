package wasmhost_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

type hooks = map[abi.Hook]wasmtest.Code

// reply is the code and text that the client would hear.
func reply(s policy.Step) string {
	if s.Verdict.Reply == nil {
		return s.Verdict.Action.String()
	}
	return fmt.Sprintf("%d %s", s.Verdict.Reply.Code, s.Verdict.Reply.Text)
}

// A global that is set in one session is not seen in the next one, whatever of the
// instances was made ahead; within a session it stays.
func TestSessionsShareNothing(t *testing.T) { bothWays(t, testSessionsShareNothing) }

func testSessionsShareNothing(t *testing.T) {
	for _, ready := range []int{-1, 1, 3} {
		t.Run(fmt.Sprint("ready=", ready), func(t *testing.T) {
			f := load(t, wasmtest.Guest{Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{Ready: ready})
			for session := range 8 {
				d := talk(t, f)
				for n, stage := range []policy.Stage{policy.StageConnect, policy.StageHelo, policy.StageMail, policy.StageRcpt} {
					if got, want := d.at(stage).Verdict.Reply.Code, 450+n; got != want {
						t.Errorf("session %d, call %d: code %d, want %d", session, n, got, want)
					}
				}
				d.close()
			}
		})
	}
}

// Two sessions at the same time do not see each other either.
func TestSessionsAtOnce(t *testing.T) { bothWays(t, testSessionsAtOnce) }

func testSessionsAtOnce(t *testing.T) {
	f := load(t, wasmtest.Guest{Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{})
	a, b := talk(t, f), talk(t, f)
	defer a.close()
	defer b.close()
	for n := range 3 {
		for _, d := range []*dialogue{a, b} {
			if got := d.at(policy.StageRcpt).Verdict.Reply.Code; got != 450+n {
				t.Errorf("call %d: code %d, want %d", n, got, 450+n)
			}
		}
	}
}

// TestFailures has guests that fail. The client hears on_error's answer, the error says
// filter, stage and cause, the session's next stage and the next session work.
func TestFailures(t *testing.T) { bothWays(t, testFailures) }

func testFailures(t *testing.T) {
	recursion := wasmtest.Seq(wasmtest.Op(0x20, 0, 0xad), wasmtest.Drop(), wasmtest.Recurse())
	stderr := wasmtest.Seq(
		wasmtest.Call(wasmtest.WASI+".fd_write", wasmtest.I32(2), wasmtest.I32(40000), wasmtest.I32(1), wasmtest.I32(40100)), wasmtest.Drop())
	tests := []struct {
		name string
		code wasmtest.Code
		want []string
	}{
		{"unreachable", wasmtest.Trap(), []string{"it trapped", "unreachable", ".mg1_hook("}},
		{"division by zero", wasmtest.Op(0x42, 1, 0x42, 0, 0x7f), []string{"integer divide by zero"}},
		{"out of bounds", wasmtest.Op(0x41, 0x7c, 0x29, 0, 0), []string{"out of bounds memory access"}},
		{"loop", wasmtest.Loop(), []string{"it exceeded its CPU time of 2ms", "wasm stack trace", ".mg1_hook("}},
		{"recursion", recursion, []string{"its calls are nested too deeply", "recurse("}},
		{"error bit", wasmtest.Verdict(abi.Failed(42)), []string{"it says that it failed, code 42"}},
		{"unknown bits", wasmtest.I64(1 << 55), []string{"unknown bits"}},
		{"unknown action", wasmtest.Say(99), []string{"unknown action(99)"}},
		{"text that was not given", wasmtest.Verdict(abi.NewVerdict(abi.ActReject, 550, 5, 7, 1, true)), []string{"text that was not given"}},
		{"5xx as tempfail", wasmtest.Verdict(abi.NewVerdict(abi.ActTempfail, 550, 0, 0, 0, false)), []string{"tempfail with reply 550"}},
		{"code 9999", wasmtest.Verdict(abi.NewVerdict(abi.ActReject, 9999, 0, 0, 0, false)), []string{"reply 9999"}},
		{"accept without grant", wasmtest.Say(abi.ActAccept), []string{"accept is not granted"}},
		{"exit", wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".proc_exit", wasmtest.I32(3)), wasmtest.I64(0)), []string{"it ended itself with exit code 3"}},
		{"exit 0", wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".proc_exit", wasmtest.I32(0)), wasmtest.I64(0)), []string{"it ended itself with exit code 0"}},
		{"exit with the code of a deadline", wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".proc_exit", wasmtest.I32(-0x10000001)), wasmtest.I64(0)),
			[]string{"it ended itself with exit code 4026531839"}},
		{"stderr", wasmtest.Seq(stderr, wasmtest.Trap()), []string{"unreachable", "stderr: goodbye, cruel world"}},
		{"pointer", wasmtest.Seq(wasmtest.Imports("reply", -1, 10), wasmtest.Drop(), wasmtest.Say(abi.ActReject)), []string{"pointer outside of the guest's memory", "mg1.reply("}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wasm := wasmtest.Guest{
				On:   hooks{abi.HookRcpt: tt.code},
				Else: wasmtest.Counter(),
				Data: map[uint32]string{
					40000: le32(40200) + le32(20), 40200: "goodbye, cruel world",
				},
			}.Bytes()
			f := load(t, wasm, wasmhost.FilterOptions{Name: "guard"})
			d := talk(t, f)
			defer d.close()
			if got := d.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != 450 {
				t.Fatalf("before the failure: %v, %v", reply(got), got.Err)
			}
			got := d.at(policy.StageRcpt)
			if got.Err == nil || got.Verdict.Action != policy.Tempfail || got.Verdict.Reply.Code != 451 {
				t.Fatalf("at the failure: %s, error %v; want on_error's 451", reply(got), got.Err)
			}
			// What the chain refuses, it says itself.
			want := tt.want
			if !errors.Is(got.Err, policy.ErrVerdict) {
				want = append(want, "wasmhost: filter guard at rcpt: ")
			}
			for _, want := range want {
				if !strings.Contains(got.Err.Error(), want) {
					t.Errorf("got error %q, want it to contain %q", got.Err, want)
				}
			}
			if got := d.at(policy.StageData); got.Err != nil || got.Verdict.Reply.Code != 450 {
				t.Errorf("the stage after the failure: %v, %v; want that of a new instance", reply(got), got.Err)
			}
			next := talk(t, f)
			defer next.close()
			if got := next.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != 450 {
				t.Errorf("the next session: %v, %v", reply(got), got.Err)
			}
		})
	}
}

func le32(v uint32) string {
	return string([]byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
}

// An instance that failed is not asked again, and closing it twice is nothing.
func TestFailedInstance(t *testing.T) { bothWays(t, testFailedInstance) }

func testFailedInstance(t *testing.T) {
	f := load(t, wasmtest.Guest{On: hooks{abi.HookMail: wasmtest.Loop()}}.Bytes(), wasmhost.FilterOptions{})
	in := open(t, f)
	var errs []error
	inChain(t, policy.StageMail, func(ctx context.Context, e *policy.Event) {
		for range 3 {
			_, err := in.Decide(ctx, e)
			errs = append(errs, err)
		}
		in.Close()
		in.Close()
		_, err := in.Decide(ctx, e)
		errs = append(errs, err)
	})
	for i, err := range errs {
		if want := "exceeded its CPU time"; i == 0 && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("first call: got error %v, want one with %q", err, want)
		}
		if i > 0 && (err == nil || !strings.Contains(err.Error(), "in use, failed or closed")) {
			t.Errorf("call %d: got error %v, want one that says it failed", i, err)
		}
	}
}

// inChain calls f with an event as a chain makes it.
func inChain(t testing.TB, stage policy.Stage, f func(ctx context.Context, e *policy.Event)) {
	t.Helper()
	fn := policy.Func("test", policy.StagesOf(stage), func(ctx context.Context, e *policy.Event) (policy.Verdict, error) {
		f(ctx, e)
		return policy.Verdict{}, nil
	})
	run := policy.NewChain(policy.Link{Filter: fn}).Open(session(), nil)
	run.Decide(t.Context(), stage, transaction(message("Subject: x\r\n\r\nhello\r\n")))
}

// One call at a time: a second one, from another goroutine, is refused and does no harm.
func TestOneCallAtATime(t *testing.T) { bothWays(t, testOneCallAtATime) }

func testOneCallAtATime(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := load(t, wasmtest.Guest{Else: wasmtest.Seq(wasmtest.Imports("features"), wasmtest.Drop(), wasmtest.Say(abi.ActContinue))}.Bytes(),
		wasmhost.FilterOptions{Wrap: func(h guest.Host) guest.Host { return &gate{Host: h, entered: entered, leave: leave} }})
	in := open(t, f)
	inChain(t, policy.StageMail, func(ctx context.Context, e *policy.Event) {
		done := make(chan error)
		go func() {
			_, err := in.Decide(ctx, e)
			done <- err
		}()
		<-entered
		if _, err := in.Decide(ctx, e); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("second call at once: got error %v, want one that says it is in use", err)
		}
		close(leave)
		if err := <-done; err != nil {
			t.Errorf("the first call: %v", err)
		}
	})
}

// gate holds a guest in the import features.
type gate struct {
	guest.Host
	entered, leave chan struct{}
}

func (g *gate) Features() int32 {
	g.entered <- struct{}{}
	<-g.leave
	return 0
}

// When the session's context ends, a guest that runs is stopped, in a loop of its own and in
// one of the host's.
func TestContextStopsGuest(t *testing.T) { bothWays(t, testContextStopsGuest) }

func testContextStopsGuest(t *testing.T) {
	random := wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".random_get", wasmtest.I32(0), wasmtest.I32(60000)), wasmtest.Drop())
	for name, code := range map[string]wasmtest.Code{"loop": nil, "random octets": random} {
		t.Run(name, func(t *testing.T) {
			entered := make(chan struct{}, 1)
			leave := make(chan struct{})
			close(leave)
			wasm := wasmtest.Guest{
				Hooks: 1 << abi.HookMail,
				Else:  wasmtest.Seq(wasmtest.Imports("features"), wasmtest.Drop(), wasmtest.Op(0x03, 0x40), code, wasmtest.Op(0x0c, 0x00, 0x0b, 0x00)),
			}.Bytes()
			f := load(t, wasm, wasmhost.FilterOptions{Limits: wasmhost.Limits{CPU: 500 * time.Millisecond, CPUSession: 5 * time.Second},
				Wrap: func(h guest.Host) guest.Host { return &gate{Host: h, entered: entered, leave: leave} }})
			d := talk(t, f)
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				<-entered
				cancel(errors.New("the client hung up"))
			}()
			got := d.with(ctx, policy.StageMail)
			if got.Err == nil || !strings.Contains(got.Err.Error(), "it was stopped: the client hung up") {
				t.Errorf("got error %v, want that it was stopped because the client hung up", got.Err)
			}
			d.close()
		})
	}
}

// A context that ends after its call is not that of the next call, whether they share
// it or not.
func TestContextPerCall(t *testing.T) { bothWays(t, testContextPerCall) }

func testContextPerCall(t *testing.T) {
	f := load(t, wasmtest.Guest{Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{})
	d := talk(t, f)
	for n := range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		for i := range 2 {
			if got := d.with(ctx, policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != 450+2*n+i {
				t.Fatalf("call %d: %s, %v", 2*n+i, reply(got), got.Err)
			}
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.with(ctx, policy.StageRcpt)
	cancel()
	if got := d.with(ctx, policy.StageRcpt); got.Err == nil || !strings.Contains(got.Err.Error(), "it was stopped: context canceled") {
		t.Errorf("a context that has ended: got error %v", got.Err)
	}
	d.close()
}

// Memory ends at the filter's limit: memory.grow says -1 there, and what was given is
// zero and writable to its end.
func TestMemoryLimit(t *testing.T) { bothWays(t, testMemoryLimit) }

func testMemoryLimit(t *testing.T) {
	grow := func(pages int32) wasmtest.Code { return wasmtest.Seq(wasmtest.I32(pages), wasmtest.Op(0x40, 0)) }
	tests := []struct {
		name string
		code wasmtest.Code
		want uint32
	}{
		{"to the limit", grow(3), 1},
		{"beyond", grow(4), 1<<32 - 1},
		{"far beyond", grow(1 << 16), 1<<32 - 1},
		{"by a negative number", grow(-1), 1<<32 - 1},
		{"and write to the end", wasmtest.Seq(grow(3), wasmtest.Drop(), wasmtest.Op(0x41), wasmtest.Op(wasmtest.Int(4*65536-4)...),
			wasmtest.I32(77), wasmtest.Op(0x36, 2, 0, 0x41), wasmtest.Op(wasmtest.Int(4*65536-4)...), wasmtest.Op(0x28, 2, 0)), 77},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := load(t, wasmtest.Guest{Else: wasmtest.Fail(tt.code)}.Bytes(), wasmhost.FilterOptions{Limits: wasmhost.Limits{Memory: 4 << 16}})
			d := talk(t, f)
			defer d.close()
			want := fmt.Sprintf("code %d", tt.want)
			if got := d.at(policy.StageMail); got.Err == nil || !strings.HasSuffix(got.Err.Error(), want) {
				t.Errorf("got error %v, want its end to be %q", got.Err, want)
			}
		})
	}
}

// withoutPointers are the imports of two parameters or more among which there is no pointer.
var withoutPointers = map[string]bool{"metric_add": true, "part_len": true, "rcpt_verdict": true}

// Every import with every pair of pointer and length out of memory is a trap, and the
// host lives.
func TestBadPointers(t *testing.T) {
	places := [][2]int64{{-1, 1}, {0, -1}, {1 << 16, 1}, {1<<16 - 1, 2}, {-1, -1}, {1 << 31, 0}, {1 << 20, 1 << 30}}
	for _, imp := range abi.Imports() {
		var pairs []int // indexes of pointers
		for i := 0; i+1 < len(imp.Params); i++ {
			if n := imp.Params[i].Name; n == "buf" || n == "p" || strings.HasSuffix(n, "p") && len(n) == 2 {
				pairs = append(pairs, i)
			}
		}
		for _, at := range pairs {
			for _, place := range places {
				args := make([]int64, len(imp.Params))
				for _, i := range pairs { // the others are good
					args[i], args[i+1] = wasmtest.FreeAt, 1
				}
				args[at], args[at+1] = place[0], place[1]
				f := load(t, wasmtest.Guest{Else: wasmtest.Fail(wasmtest.Imports(imp.Name, args...))}.Bytes(), wasmhost.FilterOptions{Ready: -1})
				d := talk(t, f)
				got := d.at(policy.StageMessage)
				if got.Err == nil || !strings.Contains(got.Err.Error(), "pointer outside of the guest's memory") {
					t.Errorf("%s(%v): got error %v, want a trap", imp.Name, args, got.Err)
				}
				d.close()
			}
		}
		if len(imp.Params) >= 2 && len(pairs) == 0 && !withoutPointers[imp.Name] {
			t.Errorf("%s: no pointer found among its parameters", imp.Name)
		}
	}
}

// Imports of WASI with pointers out of memory give an error number or do nothing.
func TestWASIBadPointers(t *testing.T) { bothWays(t, testWASIBadPointers) }

func testWASIBadPointers(t *testing.T) {
	bad := wasmtest.I32(-4)
	few := wasmtest.I32(1)
	tests := []struct {
		name string
		code wasmtest.Code
		want uint32
	}{
		{"clock", wasmtest.Call(wasmtest.WASI+".clock_time_get", few, wasmtest.I64(0), bad), 21},
		{"clock that is none", wasmtest.Call(wasmtest.WASI+".clock_time_get", wasmtest.I32(9), wasmtest.I64(0), wasmtest.I32(40000)), 28},
		{"random", wasmtest.Call(wasmtest.WASI+".random_get", bad, wasmtest.I32(8)), 21},
		{"random too long", wasmtest.Call(wasmtest.WASI+".random_get", few, wasmtest.I32(1<<16)), 21},
		{"random, large", wasmtest.Call(wasmtest.WASI+".random_get", few, wasmtest.I32(60000)), 0},
		{"write: vectors", wasmtest.Call(wasmtest.WASI+".fd_write", wasmtest.I32(2), bad, few, wasmtest.I32(40000)), 21},
		{"write: too many vectors", wasmtest.Call(wasmtest.WASI+".fd_write", wasmtest.I32(2), few, wasmtest.I32(65), wasmtest.I32(40000)), 28},
		{"write: a vector's data", wasmtest.Call(wasmtest.WASI+".fd_write", wasmtest.I32(2), wasmtest.I32(41000), few, wasmtest.I32(40000)), 21},
		{"write: result", wasmtest.Call(wasmtest.WASI+".fd_write", wasmtest.I32(1), wasmtest.I32(42000), few, bad), 21},
		{"write: file", wasmtest.Call(wasmtest.WASI+".fd_write", wasmtest.I32(3), wasmtest.I32(42000), few, wasmtest.I32(40000)), 8},
		{"poll: subscriptions", wasmtest.Call(wasmtest.WASI+".poll_oneoff", bad, wasmtest.I32(40000), few, wasmtest.I32(40100)), 21},
		{"poll: events", wasmtest.Call(wasmtest.WASI+".poll_oneoff", wasmtest.I32(40000), bad, few, wasmtest.I32(40100)), 21},
		{"poll: result", wasmtest.Call(wasmtest.WASI+".poll_oneoff", wasmtest.I32(40000), wasmtest.I32(40200), few, bad), 21},
		{"poll: nothing", wasmtest.Call(wasmtest.WASI+".poll_oneoff", wasmtest.I32(40000), wasmtest.I32(40200), wasmtest.I32(0), few), 28},
		{"poll: too much", wasmtest.Call(wasmtest.WASI+".poll_oneoff", wasmtest.I32(40000), wasmtest.I32(40200), wasmtest.I32(-1), few), 28},
		{"environment", wasmtest.Call(wasmtest.WASI+".environ_get", bad, few), 21},
		{"environment's sizes", wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".environ_sizes_get", few, bad)), 21},
		{"arguments' sizes", wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".args_sizes_get", bad, few)), 21},
		{"clock's resolution", wasmtest.Seq(wasmtest.Call(wasmtest.WASI+".clock_res_get", few, bad)), 21},
		{"open", wasmtest.Call(wasmtest.WASI+".path_open", bad, bad, bad, bad, bad, wasmtest.I64(0), wasmtest.I64(0), bad, bad), 63},
		{"read", wasmtest.Call(wasmtest.WASI+".fd_read", bad, bad, bad, bad), 8},
		{"state", wasmtest.Call(wasmtest.WASI+".fd_fdstat_get", few, bad), 21},
		{"yield", wasmtest.Call(wasmtest.WASI + ".sched_yield"), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := map[uint32]string{41000: le32(1<<32-8) + le32(100), 42000: le32(42100) + le32(4)}
			f := load(t, wasmtest.Guest{Else: wasmtest.Fail(tt.code), Data: data}.Bytes(), wasmhost.FilterOptions{Ready: -1})
			d := talk(t, f)
			defer d.close()
			got := d.at(policy.StageMail)
			if got.Err == nil || !strings.Contains(got.Err.Error(), fmt.Sprintf("code %d", tt.want)) {
				t.Errorf("got error %v, want code %d", got.Err, tt.want)
			}
		})
	}
}

// TestBoot has guests that fail to start: the error comes from Filter and says why.
func TestBoot(t *testing.T) { bothWays(t, testBoot) }

func testBoot(t *testing.T) {
	nothing := wasmtest.Op(0x01)
	tests := []struct {
		name  string
		guest wasmtest.Guest
		o     wasmhost.FilterOptions
		want  string
	}{
		{"start traps", wasmtest.Guest{Start: wasmtest.Trap()}, wasmhost.FilterOptions{}, "unreachable"},
		{"start loops", wasmtest.Guest{Start: wasmtest.Loop()}, wasmhost.FilterOptions{Boot: 20 * time.Millisecond}, "it exceeded its CPU time of 20ms"},
		{"initialize traps", wasmtest.Guest{Initialize: wasmtest.Trap()}, wasmhost.FilterOptions{}, "unreachable"},
		{"initialize loops", wasmtest.Guest{Initialize: wasmtest.Loop()}, wasmhost.FilterOptions{Boot: 20 * time.Millisecond}, "it exceeded its CPU time of 20ms"},
		{"init loops", wasmtest.Guest{Init: wasmtest.Loop()}, wasmhost.FilterOptions{Boot: 20 * time.Millisecond}, "it exceeded its CPU time of 20ms"},
		{"init exits", wasmtest.Guest{Init: wasmtest.Call(wasmtest.WASI+".proc_exit", wasmtest.I32(0))}, wasmhost.FilterOptions{}, "exit code 0"},
		{"init refuses", wasmtest.Guest{Mailbox: -1}, wasmhost.FilterOptions{}, "it refuses to start, code -1"},
		{"mailbox too small", wasmtest.Guest{Mailbox: wasmtest.MailboxAt<<32 | 4095}, wasmhost.FilterOptions{}, "its mailbox has 4095 octets, want 4096 to 1048576"},
		{"mailbox too large", wasmtest.Guest{Mailbox: 1<<20 + 1}, wasmhost.FilterOptions{}, "its mailbox has 1048577 octets"},
		{"mailbox too small for chunks", wasmtest.Guest{Mailbox: wasmtest.MailboxAt<<32 | 4096, Hooks: 1 << 9}, wasmhost.FilterOptions{}, "its mailbox has 4096 octets, want 73728 or more for hook chunk"},
		{"mailbox outside", wasmtest.Guest{Mailbox: 0xf001<<32 | 4096}, wasmhost.FilterOptions{}, "outside of its memory"},
		{"mailbox far outside", wasmtest.Guest{Mailbox: 0x7fffffff<<32 | 4096}, wasmhost.FilterOptions{}, "outside of its memory"},
		{"memory above the filter's limit", wasmtest.Guest{Memory: wasmtest.Limits{Min: 3}}, wasmhost.FilterOptions{Limits: wasmhost.Limits{Memory: 2 << 16}}, "its memory begins with 196608 octets, its limit is 131072"},
		{"data outside of memory", wasmtest.Guest{Data: map[uint32]string{1<<16 - 2: "abc"}}, wasmhost.FilterOptions{}, "out of bounds memory access"},
		{"data at -1", wasmtest.Guest{Data: map[uint32]string{1<<32 - 1: "abc"}}, wasmhost.FilterOptions{}, "out of bounds memory access"},
		{"memory: too little", wasmtest.Guest{}, wasmhost.FilterOptions{Limits: wasmhost.Limits{Memory: 1}}, "memory: 1 octets, want 65536 to 67108864"},
		{"memory: too much", wasmtest.Guest{}, wasmhost.FilterOptions{Limits: wasmhost.Limits{Memory: 1 << 40}}, "memory: 1099511627776 octets"},
		{"wall", wasmtest.Guest{}, wasmhost.FilterOptions{Limits: wasmhost.Limits{Wall: -1}}, "wall: -1ns, want at most 1m"},
		{"boot", wasmtest.Guest{}, wasmhost.FilterOptions{Boot: time.Hour}, "boot: 1h0m0s, want at most 1m"},
		{"ready", wasmtest.Guest{}, wasmhost.FilterOptions{Ready: 1 << 20}, "ready: 1048576 instances"},
		{"config", wasmtest.Guest{}, wasmhost.FilterOptions{Config: []byte("a: b")}, "config: not a JSON text"},
		{"config too large", wasmtest.Guest{}, wasmhost.FilterOptions{Config: make([]byte, 1<<20+1)}, "config: 1048577 octets"},
	}
	rt := newRuntime(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := rt.Load(t.Context(), "guard", tt.guest.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			f, err := m.Filter(t.Context(), tt.o)
			if err == nil {
				f.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "filter guard") {
				t.Errorf("got error %v, want one with %q and the filter's name", err, tt.want)
			}
		})
	}
	// Several options that are wrong are all told.
	m, err := rt.Load(t.Context(), "guard", wasmtest.Guest{Init: nothing}.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Filter(t.Context(), wasmhost.FilterOptions{Limits: wasmhost.Limits{Memory: 1, Wall: -1}, Boot: -1})
	for _, want := range []string{"memory:", "wall:", "boot:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want it to contain %q", err, want)
		}
	}
}

// In mg1_init, imports that belong to a hook say EPHASE and do no harm.
func TestInitPhase(t *testing.T) {
	for _, imp := range abi.Imports() {
		if imp.When.Has(0) {
			continue
		}
		args := make([]int64, len(imp.Params))
		refuse := wasmtest.Seq(wasmtest.Imports(imp.Name, args...), wasmtest.I32(int32(abi.EPHASE)), wasmtest.Op(0x47, 0x04, 0x40), wasmtest.Trap(), wasmtest.Op(0x0b))
		m, err := newRuntime(t).Load(t.Context(), imp.Name, wasmtest.Guest{Init: refuse}.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Ready: -1})
		if err != nil {
			t.Errorf("%s in mg1_init is not EPHASE: %v", imp.Name, err)
			continue
		}
		f.Close()
	}
}

// recorder notes what passes the seam, and gives a guest a clock and random octets that
// it chose.
type recorder struct {
	guest.Host
	mu   *sync.Mutex
	seen map[string]int
}

func (r recorder) note(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[name]++
}

func (r recorder) Now() int64                       { r.note("now"); return 1e18 }
func (r recorder) Mono() int64                      { r.note("mono"); return 12345 }
func (r recorder) Random(b []byte) int32            { r.note("random"); clear(b); return int32(len(b)) }
func (r recorder) Stderr(b []byte)                  { r.note("stderr " + string(b)) }
func (r recorder) Frame(b []byte) int               { r.note("frame"); return r.Host.Frame(b) }
func (r recorder) Config(off int32, b []byte) int32 { r.note("config"); return r.Host.Config(off, b) }
func (r recorder) Get(f, i int32, b []byte) int32   { r.note("get"); return r.Host.Get(f, i, b) }
func (r recorder) Subscribe(mask uint64) int32      { r.note("subscribe"); return r.Host.Subscribe(mask) }
func (r recorder) BodyRead(off int64, b []byte) int32 {
	r.note("body_read")
	return r.Host.BodyRead(off, b)
}
func (r recorder) Log(level int32, line []byte) int32 { r.note("log " + string(line)); return 0 }

// Everything that enters a guest passes the Host: imports of mg1, and the clock, random
// octets and standard error of WASI.
func TestOneSeam(t *testing.T) { bothWays(t, testOneSeam) }

func testOneSeam(t *testing.T) {
	rec := recorder{mu: new(sync.Mutex), seen: make(map[string]int)}
	wasi := func(name string, args ...wasmtest.Code) wasmtest.Code {
		return wasmtest.Seq(wasmtest.Call(wasmtest.WASI+"."+name, args...), wasmtest.Drop())
	}
	i := wasmtest.I32
	wasm := wasmtest.Guest{
		Init: wasmtest.Seq(wasmtest.Imports("config", 0, 0, 0), wasmtest.Drop()),
		On: hooks{abi.HookMail: wasmtest.Seq(
			wasi("clock_time_get", i(0), wasmtest.I64(0), i(50000)),
			wasi("clock_time_get", i(1), wasmtest.I64(0), i(50008)),
			wasi("random_get", i(50016), i(8)),
			wasi("fd_write", i(2), i(40000), i(1), i(50100)),
			wasi("poll_oneoff", i(41000), i(51000), i(1), i(50100)),
			wasmtest.Imports("get", int64(abi.FieldHelo), 0, 52000, 10), wasmtest.Drop(),
			wasmtest.Imports("log", 1, 40200, 4), wasmtest.Drop(),
			// The clock's answer is what the recorder said: 12345.
			wasmtest.Fail(wasmtest.Seq(i(50008), wasmtest.Op(0x28, 2, 0))),
		)},
		Data: map[uint32]string{40000: le32(40200) + le32(4), 40200: "text",
			41000: strings.Repeat("\x00", 16) + le32(1) + "\x00\x00\x00\x00" + le32(1000) + "\x00\x00\x00\x00"},
	}.Bytes()
	f := load(t, wasm, wasmhost.FilterOptions{Ready: -1, Wrap: func(h guest.Host) guest.Host {
		r := rec
		r.Host = h
		return r
	}})
	d := talk(t, f)
	got := d.at(policy.StageMail)
	if got.Err == nil || !strings.Contains(got.Err.Error(), "code 12345") {
		t.Errorf("got error %v, want the recorder's clock, code 12345", got.Err)
	}
	for name, want := range map[string]int{"config": 1, "subscribe": 1, "frame": 1, "now": 1, "mono": 1, "random": 1, "stderr text": 1, "get": 1, "log text": 1} {
		if rec.seen[name] != want {
			t.Errorf("%s: seen %d times, want %d; all: %v", name, rec.seen[name], want, rec.seen)
		}
	}
	d.close()
}

// A field that does not fit the mailbox is left out, the frame says so, and get has it.
func TestPartialFrame(t *testing.T) { bothWays(t, testPartialFrame) }

func testPartialFrame(t *testing.T) {
	flags := wasmtest.Seq(wasmtest.I32(wasmtest.MailboxAt+abi.OffFlags), wasmtest.Op(0x28, 2, 0))
	length := wasmtest.Imports("get", int64(abi.FieldMailFrom), 0, 0, 0)
	for _, tt := range []struct {
		name string
		helo int
		code wasmtest.Code
		want uint32
	}{
		{"all fits", 100, flags, 0},
		{"too much", 5000, flags, abi.FlagPartial},
		{"what fits behind it is there", 5000, length, uint32(len("a@example.net"))},
		{"get has it", 5000, wasmtest.Imports("get", int64(abi.FieldHelo), 0, 0, 0), 5000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := load(t, wasmtest.Guest{Else: wasmtest.Fail(tt.code)}.Bytes(), wasmhost.FilterOptions{})
			d := talk(t, f)
			defer d.close()
			s := session()
			s.Helo = strings.Repeat("h", tt.helo)
			run := policy.NewChain(policy.Link{Filter: f}).Open(s, func(s policy.Step) { d.steps = append(d.steps, s) })
			run.Decide(t.Context(), policy.StageMail, d.tx)
			if want := fmt.Sprintf("code %d", tt.want); !strings.Contains(fmt.Sprint(d.steps[0].Err), want) {
				t.Errorf("got error %v, want %q", d.steps[0].Err, want)
			}
			run.Close(t.Context())
		})
	}
}

// nested adds deep(n) = n == 0 ? 0 : deep(n-1) + 1.
func nested(m *wasmtest.Module) {
	m.Func("deep", "l>l", "", wasmtest.Op(0x20, 0, 0x50, 0x04, 0x7e), wasmtest.I64(0), wasmtest.Op(0x05, 0x20, 0),
		wasmtest.I64(1), wasmtest.Op(0x7d), wasmtest.Call("deep"), wasmtest.I64(1), wasmtest.Op(0x7c, 0x0b))
}

// Deep recursion that returns leaves no large stack behind, and the instance goes on.
func TestDeepCall(t *testing.T) { bothWays(t, testDeepCall) }

func testDeepCall(t *testing.T) {
	f := load(t, wasmtest.Guest{Edit: nested, On: hooks{
		abi.HookMail: wasmtest.Seq(wasmtest.Call("deep", wasmtest.I64(3_000)), wasmtest.Drop(), wasmtest.Counter()),
		abi.HookRcpt: wasmtest.Counter(),
	}}.Bytes(), wasmhost.FilterOptions{})
	d := talk(t, f)
	defer d.close()
	for n, stage := range []policy.Stage{policy.StageMail, policy.StageRcpt, policy.StageMail} {
		if got := d.at(stage); got.Err != nil || got.Verdict.Reply.Code != 450+n {
			t.Errorf("call %d: %s, %v; want code %d", n, reply(got), got.Err, 450+n)
		}
	}
}

// A filter with a smaller stack is stopped earlier, in its first copy and in others, and goes
// on afterwards.
func TestStackLimit(t *testing.T) { bothWays(t, testStackLimit) }

func testStackLimit(t *testing.T) {
	f := load(t, wasmtest.Guest{Edit: nested, On: hooks{
		abi.HookMail: wasmtest.Seq(wasmtest.Call("deep", wasmtest.I64(3_000)), wasmtest.Drop(), wasmtest.Counter()),
		abi.HookRcpt: wasmtest.Seq(wasmtest.Call("deep", wasmtest.I64(10)), wasmtest.Drop(), wasmtest.Counter()),
	}}.Bytes(), wasmhost.FilterOptions{Limits: wasmhost.Limits{Stack: 16 << 10}})
	for range 3 {
		d := talk(t, f)
		if got := d.at(policy.StageMail); wasmhost.Cause(got.Err) != wasmhost.CauseStack {
			t.Errorf("3,000 calls: %s, %v; want cause stack", reply(got), got.Err)
		}
		if got := d.at(policy.StageRcpt); got.Err != nil {
			t.Errorf("10 calls: %v", got.Err)
		}
		d.close()
	}
}

// A stage that the ABI does not know is an error, not a crash.
func TestUnknownStage(t *testing.T) {
	in := open(t, load(t, wasmtest.Guest{}.Bytes(), wasmhost.FilterOptions{}))
	inChain(t, policy.StageMail, func(ctx context.Context, e *policy.Event) {
		for _, stage := range []policy.Stage{0, 18, 31, 63, 64, 255} {
			ev := *e
			ev.Stage = stage
			if _, err := in.Decide(ctx, &ev); err == nil {
				t.Errorf("stage %d: got no error", stage)
			}
			in = open(t, load(t, wasmtest.Guest{}.Bytes(), wasmhost.FilterOptions{}))
		}
	})
}

// What the guest logs goes to the filter's log, with the filter, stage and connection.
func TestGuestLog(t *testing.T) { bothWays(t, testGuestLog) }

func testGuestLog(t *testing.T) {
	r, w := io.Pipe()
	lines := make(chan string, 10)
	go func() {
		defer close(lines)
		b, _ := io.ReadAll(r)
		lines <- string(b)
	}()
	wasm := wasmtest.Guest{
		On:   hooks{abi.HookMail: wasmtest.Seq(wasmtest.Imports("log", 2, 40000, 12), wasmtest.Drop(), wasmtest.Say(abi.ActContinue))},
		Data: map[uint32]string{40000: "a\nb\x1b[31mc\xff\xfe!"},
	}.Bytes()
	f := load(t, wasm, wasmhost.FilterOptions{Name: "guard", Log: slog.New(slog.NewTextHandler(w, nil))})
	d := talk(t, f)
	d.at(policy.StageMail)
	d.close()
	w.Close()
	got := <-lines
	for _, want := range []string{"level=WARN", "filter=guard", "stage=mail", "conn=c1", `a\nb\x1b[31mc`} {
		if !strings.Contains(got, want) {
			t.Errorf("got log %q, want it to contain %q", got, want)
		}
	}
}
