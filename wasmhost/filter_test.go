package wasmhost_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
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

// booter counts boots, by the subscribe that each makes once. From boot number fail on,
// subscribe refuses, which the guest of failing answers with a trap.
type booter struct {
	guest.Host
	boots *atomic.Int64
	fail  int64
	mask  uint64 // what it subscribes to from then on, if not 0
}

func (b booter) Subscribe(mask uint64) int32 {
	if n := b.boots.Add(1); n >= b.fail && b.mask == 0 {
		return -1
	} else if n >= b.fail {
		mask = b.mask
	}
	return b.Host.Subscribe(mask)
}

func failing(t *testing.T, o wasmhost.FilterOptions, fail int64, mask uint64) (*wasmhost.Filter, *atomic.Int64) {
	t.Helper()
	boots := new(atomic.Int64)
	o.Wrap = func(h guest.Host) guest.Host { return booter{h, boots, fail, mask} }
	// It subscribes in the Init of its own, and traps if that is refused.
	init := wasmtest.Seq(wasmtest.Imports("subscribe", int64(abi.InSession&^(1<<abi.HookChunk))), wasmtest.Op(0x04, 0x40), wasmtest.Trap(), wasmtest.Op(0x0b))
	return load(t, wasmtest.Guest{Init: init}.Bytes(), o), boots
}

// A filter whose guest cannot start any more says so when a session needs an instance,
// and lives on.
func TestBootFailsLater(t *testing.T) { t.Run(bootEach, testBootFailsLater) }

func testBootFailsLater(t *testing.T) {
	log := make(lines, 10)
	f, _ := failing(t, wasmhost.FilterOptions{Name: "guard", Ready: 2, Log: slog.New(slog.NewTextHandler(log, nil))}, 3, 0)
	// Each boot subscribes twice: the first instance alone could start.
	first := talk(t, f)
	if got := first.at(policy.StageMail); got.Err != nil {
		t.Fatal(got.Err)
	}
	defer first.close()
	for range 3 {
		d := talk(t, f)
		got := d.at(policy.StageMail)
		d.close()
		if got.Err == nil || !strings.Contains(got.Err.Error(), "filter guard: start: it trapped") {
			t.Errorf("got error %v, want that the start trapped", got.Err)
		}
	}
	if got := <-log; !strings.Contains(got, "could not be made ahead") {
		t.Errorf("got log %q, want a line about the instances that could not be made ahead", got)
	}
}

// An instance that chooses other hooks than the first is refused: the chain would not
// ask it, or ask it what it does not expect.
func TestHooksChangeLater(t *testing.T) { t.Run(bootEach, testHooksChangeLater) }

func testHooksChangeLater(t *testing.T) {
	f, _ := failing(t, wasmhost.FilterOptions{Name: "guard", Ready: -1}, 3, 1<<abi.HookMail)
	first := talk(t, f)
	if got := first.at(policy.StageMail); got.Err != nil {
		t.Fatal(got.Err)
	}
	defer first.close()
	d := talk(t, f)
	defer d.close()
	if got := d.at(policy.StageMail); got.Err == nil || !strings.Contains(got.Err.Error(), "it chose other hooks than at first") {
		t.Errorf("got error %v, want that it chose other hooks", got.Err)
	}
}

// lines gets each line of a log; those beyond its room are lost.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	select {
	case l <- string(p):
	default:
	}
	return len(p), nil
}

// The stages of a filter are the hooks that the guest subscribed to.
func TestStages(t *testing.T) { bothWays(t, testStages) }

func testStages(t *testing.T) {
	f := load(t, wasmtest.Guest{Hooks: 1<<abi.HookMail | 1<<abi.HookClose}.Bytes(), wasmhost.FilterOptions{Name: "guard"})
	if got, want := f.Stages(), policy.StagesOf(policy.StageMail, policy.StageClose); got != want || f.Name() != "guard" {
		t.Errorf("got %v of %s, want %v of guard", got, f.Name(), want)
	}
}

// Close of a filter leaves sessions the instances they have; Open is an error from then
// on, at once; a second Close is nothing.
func TestFilterClose(t *testing.T) { bothWays(t, testFilterClose) }

func testFilterClose(t *testing.T) {
	f := load(t, wasmtest.Guest{Else: wasmtest.Counter()}.Bytes(), wasmhost.FilterOptions{})
	d := talk(t, f)
	d.at(policy.StageMail)
	f.Close()
	f.Close()
	if got := d.at(policy.StageRcpt); got.Err != nil || got.Verdict.Reply.Code != 451 {
		t.Errorf("the session after Close: %s, %v; want code 451", reply(got), got.Err)
	}
	d.close()
	if _, err := f.Open(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Open after Close: got error %v, want one that says closed", err)
	}
}

// Close of the runtime ends everything: guests that run, filters that are open, and what
// sessions still have. All say so and none crashes.
func TestRuntimeClose(t *testing.T) {
	entered := make(chan struct{})
	leave := make(chan struct{})
	close(leave)
	rt, err := wasmhost.New(t.Context(), wasmhost.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := rt.Load(t.Context(), "guard", wasmtest.Guest{On: hooks{
		abi.HookRcpt: wasmtest.Seq(wasmtest.Imports("features"), wasmtest.Drop(), wasmtest.Loop()),
	}}.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Limits: wasmhost.Limits{CPU: 500 * time.Millisecond, CPUSession: 5 * time.Second},
		Wrap: func(h guest.Host) guest.Host { return &gate{Host: h, entered: entered, leave: leave} }})
	if err != nil {
		t.Fatal(err)
	}
	idle, busy := talk(t, f), talk(t, f)
	idle.at(policy.StageMail)
	step := make(chan policy.Step)
	go func() { step <- busy.at(policy.StageRcpt) }()
	<-entered
	if err := rt.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if got := <-step; got.Err == nil || !strings.Contains(got.Err.Error(), "wasmhost: closed") {
		t.Errorf("the guest that ran: got error %v, want that it was closed", got.Err)
	}
	if got := idle.at(policy.StageData); got.Err == nil {
		t.Error("the idle instance: got no error")
	}
	idle.close()
	busy.close()
	if _, err := f.Open(t.Context(), nil); err == nil {
		t.Error("Open: got no error")
	}
	if _, err := m.Filter(t.Context(), wasmhost.FilterOptions{}); err == nil {
		t.Error("Filter: got no error")
	}
	if _, err := rt.Load(t.Context(), "x", wasmtest.Guest{}.Bytes()); err == nil {
		t.Error("Load: got no error")
	}
	f.Close()
	if err := rt.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// A module that is closed makes no new instances; those that are there go on.
func TestModuleClose(t *testing.T) {
	m, err := newRuntime(t).Load(t.Context(), "guard", wasmtest.Guest{Else: wasmtest.Counter()}.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Ready: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := talk(t, f)
	defer d.close()
	d.at(policy.StageMail)
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
	runtime.GC() // what is not kept alive is unmapped
	if got := d.at(policy.StageRcpt); got.Err != nil || got.Verdict.Reply.Code != 451 {
		t.Errorf("after Close: %s, %v; want code 451", reply(got), got.Err)
	}
	late := talk(t, f)
	defer late.close()
	if got := late.at(policy.StageMail); wasmhost.Cause(got.Err) != wasmhost.CauseLoad {
		t.Errorf("a session after Close of the module: %v", got.Err)
	}
}

// Many sessions at once, some of whose guests trap, some loop, some are given up. Each
// counts alone.
func TestHammer(t *testing.T) { bothWays(t, testHammer) }

func testHammer(t *testing.T) {
	f := load(t, wasmtest.Guest{On: hooks{
		abi.HookData:    wasmtest.Trap(),
		abi.HookMessage: wasmtest.Loop(),
	}, Else: wasmtest.Seq(wasmtest.Work(1000), wasmtest.Counter())}.Bytes(), wasmhost.FilterOptions{Limits: wasmhost.Limits{Wall: time.Second}, Ready: 2})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for n := range 20 {
				d := talk(t, f)
				for i, stage := range []policy.Stage{policy.StageConnect, policy.StageMail, policy.StageRcpt} {
					if got := d.at(stage); got.Err != nil || got.Verdict.Reply.Code != 450+i {
						t.Errorf("worker %d, session %d: %s, %v; want code %d", worker, n, reply(got), got.Err, 450+i)
					}
				}
				switch n % 4 {
				case 0:
					if got := d.at(policy.StageData); got.Err == nil {
						t.Error("a trap: got no error")
					}
				case 1:
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					if got := d.with(ctx, policy.StageMessage); got.Err == nil {
						t.Error("a loop: got no error")
					}
					cancel()
				}
				d.close()
			}
		})
	}
	wg.Wait()
}

// mappings returns how many mappings of memory the process has, and how large they are
// in pages of 4 KiB.
func mappings(t *testing.T) (count, pages int) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil && runtime.GOOS == "linux" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip("this system tells no process's mappings: ", err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x", &from, &to); n == 2 {
			count++
			pages += int((to - from) >> 12)
		}
	}
	return count, pages
}

// A thousand sessions, of which some fail and some fail to start, leave neither mappings
// nor goroutines (TestMain) behind.
func TestNoLeak(t *testing.T) { bothWays(t, testNoLeak) }

func testNoLeak(t *testing.T) {
	f := load(t, wasmtest.Guest{On: hooks{abi.HookRcpt: wasmtest.Trap()}}.Bytes(), wasmhost.FilterOptions{Ready: -1, Limits: wasmhost.Limits{Wall: time.Second}})
	broken := []*wasmhost.Module{}
	rt := newRuntime(t)
	for _, g := range []wasmtest.Guest{{Start: wasmtest.Trap()}, {Mailbox: -1}, {Data: map[uint32]string{1<<16 - 1: "ab"}}, {Start: wasmtest.Loop()}} {
		m, err := rt.Load(t.Context(), "broken", g.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		broken = append(broken, m)
	}
	serve := func(n int) {
		for i := range n {
			d := talk(t, f)
			d.at(policy.StageMail)
			if i%3 == 0 {
				d.at(policy.StageRcpt)
			}
			d.close()
			if i%10 == 0 {
				if f, err := broken[i/10%len(broken)].Filter(t.Context(), wasmhost.FilterOptions{Boot: time.Millisecond}); err == nil {
					f.Close()
					t.Error("a broken module: got no error")
				}
			}
		}
	}
	serve(50) // what is made once is made now
	lines, pages := mappings(t)
	serve(1000)
	runtime.GC()
	// One instance is 16 MiB, 4096 pages. Go's own heap may take a new arena of 64 MiB.
	if l, p := mappings(t); l > lines+20 || p > pages+2*64<<20>>12 {
		t.Errorf("after 1000 sessions %d mappings of %d pages, before %d of %d", l, p, lines, pages)
	}
}

// TestComplaint: what a guest logs while it refuses to start is in the error, whatever the
// log's level.
func TestComplaint(t *testing.T) { bothWays(t, testComplaint) }

func testComplaint(t *testing.T) {
	code := wasmtest.Seq(
		wasmtest.Call("mg1.log", wasmtest.I32(int32(abi.LevelInfo)), wasmtest.I32(wasmtest.FreeAt), wasmtest.I32(4)), wasmtest.Drop(),
		wasmtest.Call("mg1.log", wasmtest.I32(int32(abi.LevelError)), wasmtest.I32(wasmtest.FreeAt+4), wasmtest.I32(8)), wasmtest.Drop(),
	)
	g := wasmtest.Guest{Init: code, Mailbox: -1, Data: map[uint32]string{wasmtest.FreeAt: "infoblok: no"}}
	m, err := newRuntime(t).Load(t.Context(), "guest", g.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Filter(t.Context(), wasmhost.FilterOptions{})
	if err == nil || !strings.HasSuffix(err.Error(), "it refuses to start, code -1: blok: no") {
		t.Errorf("got %v", err)
	}
}
