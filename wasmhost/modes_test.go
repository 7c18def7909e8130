package wasmhost_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// modes_test.go: how long a guest's memory is a session's, and what becomes of it then.

// Code that leaves a little number on the stack, and code that changes it: what a guest can
// leave behind.
var (
	word    = wasmtest.Seq(wasmtest.I32(50_000), wasmtest.Op(0x28, 2, 0))
	setWord = wasmtest.Seq(wasmtest.I32(50_000), wasmtest.I32(1), wasmtest.Op(0x36, 2, 0))
	pages   = wasmtest.Op(0x3f, 0)
	grow    = wasmtest.Seq(wasmtest.I32(1), wasmtest.Op(0x40, 0), wasmtest.Drop())
	global  = wasmtest.Op(0x23, 0, 0xa7) // of i64, as an i32
	setGlob = wasmtest.Op(0x42, 1, 0x24, 0)
	// sess_get says ENOENT, -2, or the length, 1.
	value    = wasmtest.Seq(wasmtest.Imports("sess_get", 40_000, 1, 0, 0), wasmtest.I32(2), wasmtest.Op(0x6a))
	setValue = wasmtest.Seq(wasmtest.Imports("sess_set", 40_000, 1, 40_000, 1), wasmtest.Drop())
)

// tell is tempfail with code 450 + the number that code leaves, after which change runs.
func tell(code, change wasmtest.Code) wasmtest.Code {
	return wasmtest.Seq(wasmtest.Verdict(abi.NewVerdict(abi.ActTempfail, 450, 0, 0, 0, false)),
		code, wasmtest.Op(0xad), wasmtest.I64(8), wasmtest.Op(0x86, 0x7c), change)
}

// Whatever a guest changes is there at its next hook, if that is the same session's, and
// is not there in the next session: in the mode hook, it is the host's values alone that stay
// for the session.
func TestModes(t *testing.T) { bothWays(t, testModes) }

func testModes(t *testing.T) {
	carriers := []struct {
		name         string
		read, change wasmtest.Code
		pages        uint32
		fresh, later int // codes
		inHost       bool
	}{
		{"memory, reset by a copy", word, setWord, 1, 450, 451, false},
		{"memory, reset by the system", word, setWord, 9, 450, 451, false},
		{"size of memory", pages, grow, 1, 451, 452, false},
		{"global", global, setGlob, 1, 450, 451, false},
		{"session value", value, setValue, 1, 450, 453, true},
	}
	rt := newRuntime(t)
	for _, c := range carriers {
		wasm := wasmtest.Guest{Memory: wasmtest.Limits{Min: c.pages}, Data: map[uint32]string{40_000: "k"}, Else: tell(c.read, c.change)}.Bytes()
		m, err := rt.Load(t.Context(), "test", wasm)
		if err != nil {
			t.Fatal(err)
		}
		for mode, stays := range map[string]bool{wasmhost.InstanceSession: true, wasmhost.InstanceHook: c.inHost} {
			t.Run(c.name+"/"+mode, func(t *testing.T) {
				f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Instance: mode, Ready: 1})
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				want := []int{c.fresh, c.later}
				if !stays {
					want[1] = c.fresh
				}
				for range 20 { // more than there are instances made ahead
					d := talk(t, f)
					for _, code := range want {
						if got := d.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != code {
							t.Errorf("%s, %v; want code %d", reply(got), got.Err, code)
						}
					}
					d.close()
				}
			})
		}
	}
}

// In the mode hook, sessions that wait have no instance, and there are no more of these than
// calls can run at once.
func TestHookModeHasFewInstances(t *testing.T) {
	f := load(t, wasmtest.Guest{Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{Instance: wasmhost.InstanceHook})
	var all []*dialogue
	for range 100 {
		d := talk(t, f)
		defer d.close()
		all = append(all, d)
	}
	var wg sync.WaitGroup
	for _, d := range all {
		wg.Go(func() {
			for range 3 {
				if got := d.at(policy.StageRcpt); got.Err != nil || got.Verdict.Reply.Code != 450 {
					t.Errorf("%s, %v; want code 450", reply(got), got.Err)
				}
			}
		})
	}
	wg.Wait()
	if s, most := f.Stats(), int64(4*runtime.GOMAXPROCS(0)); s.Live > most || s.Made > most+1 || s.Booted != 1 || s.Discarded != 0 {
		t.Errorf("%+v, want at most %d instances made and none thrown away", s, most)
	}
	if n := wasmhost.Footprint(); n > 1200 {
		t.Errorf("a session that waits takes %d octets", n)
	}
}

// Sessions that are open go on when the filter is closed, with the instances that there are,
// and what is left goes with the last of them.
func TestCloseWithSessions(t *testing.T) {
	for _, mode := range []string{wasmhost.InstanceSession, wasmhost.InstanceHook, wasmhost.InstanceShared} {
		t.Run(mode, func(t *testing.T) {
			f := load(t, wasmtest.Guest{Hooks: 1<<abi.HookMail | 1<<abi.HookRcpt, Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{Instance: mode})
			used, fresh := talk(t, f), talk(t, f)
			used.at(policy.StageMail)
			fresh.at(policy.StageMail)
			f.Close()
			made := f.Stats().Made
			for range 10 {
				for _, d := range []*dialogue{used, fresh} {
					got := d.at(policy.StageRcpt)
					// Of shared ones there may be one that nobody has used before.
					if got.Err != nil || mode != wasmhost.InstanceShared && (mode == wasmhost.InstanceHook) != (got.Verdict.Reply.Code == 450) {
						t.Errorf("after Close: %s, %v", reply(got), got.Err)
					}
				}
			}
			if s := f.Stats(); s.Made != made || s.Live == 0 {
				t.Errorf("%+v, want none made that there was not", s)
			}
			used.close()
			fresh.close()
			if s := f.Stats(); s.Live != 0 {
				t.Errorf("%d instances after the last session", s.Live)
			}
		})
	}
}

// Shared instances keep what they have from session to session, until one fails.
func TestSharedMode(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f := load(t, wasmtest.Guest{On: hooks{abi.HookData: wasmtest.Trap()}, Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{Instance: wasmhost.InstanceShared})
	for n := range 5 {
		d := talk(t, f)
		if got := d.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != 450+2*n {
			t.Errorf("session %d: %s, %v; want code %d", n, reply(got), got.Err, 450+2*n)
		}
		d.close() // which it is called for, too
	}
	d := talk(t, f)
	defer d.close()
	if got := d.at(policy.StageData); wasmhost.Cause(got.Err) != wasmhost.CauseTrap {
		t.Errorf("got error %v, want a trap", got.Err)
	}
	if got := d.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != 450 {
		t.Errorf("after a failure: %s, %v; want code 450", reply(got), got.Err)
	}
}

// Who finds all instances in use waits for one: no longer than the filter's wall time, and
// no longer than its own session.
func TestWaitForInstance(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := load(t, wasmtest.Guest{Else: wasmtest.Seq(wasmtest.Imports("features"), wasmtest.Drop(), wasmtest.Counter())}.Bytes(),
		wasmhost.FilterOptions{Instance: wasmhost.InstanceHook, Limits: wasmhost.Limits{Wall: 20 * time.Millisecond},
			Wrap: func(h guest.Host) guest.Host { return &gate{Host: h, entered: entered, leave: leave} }})
	var wg sync.WaitGroup
	n := 4 * runtime.GOMAXPROCS(0)
	for range n {
		d := talk(t, f)
		defer d.close()
		wg.Go(func() { d.at(policy.StageMail) })
		<-entered
	}
	d := talk(t, f)
	defer d.close()
	if got := d.at(policy.StageMail); wasmhost.Cause(got.Err) != wasmhost.CausePool || !strings.Contains(got.Err.Error(), fmt.Sprintf("it waited 20ms for one of %d instances", n)) {
		t.Errorf("got error %v, want that it waited", got.Err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	context.AfterFunc(ctx, func() {})
	cancel(errors.New("the client hung up"))
	if got := d.with(ctx, policy.StageMail); wasmhost.Cause(got.Err) != wasmhost.CauseStopped {
		t.Errorf("got error %v, want that it was stopped", got.Err)
	}
	close(leave)
	go func() {
		for range entered {
		}
	}()
	wg.Wait()
	// The instance of who gave up went to nobody, and is there for the next.
	if got := d.at(policy.StageMail); got.Err != nil {
		t.Error(got.Err)
	}
	close(entered)
}

// Where the system has no mappings left, memories are copies of the image.
func TestCopies(t *testing.T) {
	rt := newRuntime(t)
	rt.NoMappings()
	for _, pages := range []uint32{1, 9} {
		m, err := rt.Load(t.Context(), "test", wasmtest.Guest{Memory: wasmtest.Limits{Min: pages}, Data: map[uint32]string{50_004: "\x01"},
			Init: setWord, Else: tell(wasmtest.Seq(word, wasmtest.I32(50_004), wasmtest.Op(0x28, 2, 0, 0x6a)), wasmtest.Seq(
				wasmtest.I32(50_000), wasmtest.I32(7), wasmtest.Op(0x36, 2, 0)))}.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Ready: 1})
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			d := talk(t, f)
			for _, code := range []int{452, 458} {
				if got := d.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != code {
					t.Errorf("%d pages: %s, %v; want code %d", pages, reply(got), got.Err, code)
				}
			}
			d.close()
		}
		f.Close()
	}
}

// An instance that grew, or whose memory is not the image's, is thrown away; the others are
// made as new.
func TestDiscard(t *testing.T) {
	f := load(t, wasmtest.Guest{On: hooks{abi.HookRcpt: wasmtest.Seq(grow, wasmtest.Counter())}, Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{Ready: -1})
	visit := func(stage policy.Stage) {
		d := talk(t, f)
		d.at(stage)
		d.close()
	}
	visit(policy.StageMail)
	visit(policy.StageMail)
	visit(policy.StageRcpt)
	visit(policy.StageMail)
	f.Close()
	if s := f.Stats(); s.Live != 0 || s.Made != s.Discarded+1 || s.Memory != 2<<16 || s.Resets == 0 {
		t.Errorf("%+v, want none left, resets, and two pages seen", s) // that of the start is no instance to discard
	}
}

// The gateway may end while guests of all modes run, wait for an instance, or fail, and
// instances are made as new.
func TestCloseHammer(t *testing.T) { bothWays(t, testCloseHammer) }

func testCloseHammer(t *testing.T) {
	for range 3 {
		rt, err := wasmhost.New(t.Context(), wasmhost.Options{BootEach: bootsEach(t)})
		if err != nil {
			t.Fatal(err)
		}
		m, err := rt.Load(t.Context(), "test", wasmtest.Guest{On: hooks{abi.HookData: wasmtest.Trap(), abi.HookRcpt: wasmtest.Seq(grow, wasmtest.Counter()),
			abi.HookMessage: wasmtest.Loop()}, Else: wasmtest.Seq(wasmtest.Work(100_000), wasmtest.Counter())}.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var calls atomic.Int64
		busy := make(chan struct{})
		for _, mode := range []string{wasmhost.InstanceSession, wasmhost.InstanceHook, wasmhost.InstanceShared} {
			f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Instance: mode, Limits: wasmhost.Limits{CPUMessage: time.Millisecond, CPUPerMiB: time.Millisecond}})
			if err != nil {
				t.Fatal(err)
			}
			for range 6 {
				wg.Go(func() {
					for wasmhost.Cause(func() error {
						d := talk(t, f)
						defer d.close()
						for _, stage := range []policy.Stage{policy.StageMail, policy.StageRcpt, policy.StageMail, policy.StageData, policy.StageMessage} {
							got := d.at(stage)
							if calls.Add(1) == 200 {
								close(busy)
							}
							if got.Err != nil && wasmhost.Cause(got.Err) != wasmhost.CauseTrap && wasmhost.Cause(got.Err) != wasmhost.CauseCPU {
								return &wasmhost.Error{Cause: wasmhost.CauseStopped, Err: got.Err}
							}
						}
						return nil
					}()) != wasmhost.CauseStopped {
					}
				})
			}
		}
		<-busy
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}
