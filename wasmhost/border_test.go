package wasmhost_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/guest-sdk/tck"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// border_test.go: whatever a guest passes to whichever import at whichever hook, no more
// happens than that it traps.

// borderHooks are where imports are called: at the start (0) and at each hook.
func borderHooks() []abi.Hook {
	hooks := []abi.Hook{0}
	for _, h := range abi.HookTable() {
		hooks = append(hooks, h.Hook)
	}
	return hooks
}

// oddNumbers are numbers at which things end. The guest has a MiB of memory.
var oddNumbers = []int64{
	0, 1, 2, 3, 7, 8, 10, 100, 0x10000, 0x30000, 0x31000, 4096, 1 << 20, 1<<20 - 1, 1<<20 - 8, 1<<20 + 1, 0xfffff, 65536, 65537,
	1<<31 - 1, 1 << 31, 1<<32 - 1, 1<<32 - 8, 1<<62 + 1, 1<<63 - 1, -1, -2, -8, -1 << 31, -1 << 63, 1 << 16, 1 << 24, 1<<63 - 1<<20,
}

// program makes calls of imports from any octets.
func program(b []byte) []tck.RawStep {
	imports, hooks := abi.Imports(), borderHooks()
	var steps []tck.RawStep
	take := func() (c byte) {
		if len(b) > 0 {
			c, b = b[0], b[1:]
		}
		return c
	}
	for len(b) > 0 && len(steps) < 400 {
		imp := imports[int(take())%len(imports)]
		s := tck.RawStep{At: hooks[int(take())%len(hooks)], Import: imp.Name}
		for range imp.Params {
			switch c := take(); {
			case c < 0x30: // a number at which something ends
				s.Params = append(s.Params, oddNumbers[int(c)%len(oddNumbers)])
			case c < 0x50: // a pointer or a length within its memory
				s.Params = append(s.Params, int64(c-0x30)<<15|int64(take()))
			case c < 0xf0: // a small number
				s.Params = append(s.Params, int64(take())%20)
			default: // any
				var v [8]byte
				for i := range v {
					v[i] = take()
				}
				s.Params = append(s.Params, int64(binary.LittleEndian.Uint64(v[:])))
			}
		}
		steps = append(steps, s)
	}
	return steps
}

// border runs programs.
type border struct {
	t      testing.TB
	module *wasmhost.Module
}

func newBorder(t testing.TB) border {
	t.Helper()
	m, err := newRuntime(t).Load(t.Context(), "border", tck.Guest())
	if err != nil {
		t.Fatal(err)
	}
	return border{t, m}
}

// run has a guest follow a program, in a session that passes every stage. It returns how many
// of the stages it failed at.
func (b border) run(t testing.TB, steps []tck.RawStep) (failed int) {
	t.Helper()
	f, err := b.module.Filter(t.Context(), wasmhost.FilterOptions{
		Name: "border", Grants: guest.Everything(), Services: new(filtertest.World).Services(), Config: tck.RawConfig(steps), Ready: -1, Boot: 100 * time.Millisecond,
		Limits: wasmhost.Limits{CPU: 100 * time.Millisecond, CPUMessage: 100 * time.Millisecond, Wall: time.Second},
	})
	if err != nil {
		checkFailure(t, steps, err)
		return 1
	}
	defer f.Close()
	run := policy.NewChain(policy.Link{Filter: f, MayAccept: true}).Open(session(), func(s policy.Step) {
		if s.Err != nil {
			failed++
			checkFailure(t, steps, s.Err)
		}
	})
	ctx := context.WithoutCancel(t.Context())
	defer run.Close(ctx)
	tx := transaction(nil)
	tx.Outbound = &policy.Outbound{Target: "example.net", Try: 1, Hops: []policy.Hop{{Host: "mx.example.net"}}, Fates: []policy.Fate{{Host: "mx.example.net"}}}
	for _, h := range abi.HookTable() {
		switch stage := policy.Stage(h.Hook); {
		case h.Hook == abi.HookAuth:
			run.DecideAuth(ctx, &policy.Auth{Mechanism: "PLAIN", User: "u", Password: "secret", Reveal: true})
		case h.Hook == abi.HookChunk:
			run.DecideChunk(ctx, tx, 0, []byte("hello\r\n"))
		case stage < policy.StageMail:
			run.Decide(ctx, stage, nil)
		case h.Hook != abi.HookClose:
			if h.Hook == abi.HookHeaders {
				tx.Message = message("Received: by us\r\nSubject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b--\r\n")
			}
			run.Decide(ctx, stage, tx)
		}
	}
	return failed
}

// checkFailure fails the test if a failure is one of the host's.
func checkFailure(t testing.TB, steps []tck.RawStep, err error) {
	t.Helper()
	text := err.Error()
	switch cause := wasmhost.Cause(err); {
	case strings.Contains(text, "panic"):
		t.Fatalf("after %d calls the host panicked: %v\n%s", len(steps), err, describe(steps))
	case cause == wasmhost.CauseTrap && !strings.Contains(text, "pointer outside of the guest's memory"):
		t.Fatalf("it trapped for another reason than a pointer: %v\n%s", err, describe(steps))
	case cause != wasmhost.CauseTrap && cause != wasmhost.CauseVerdict && cause != wasmhost.CauseCPU && cause != wasmhost.CauseWall:
		t.Fatalf("it failed for cause %q: %v\n%s", cause, err, describe(steps))
	}
}

func describe(steps []tck.RawStep) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "hook %d: %s %#x\n", s.At, s.Import, s.Params)
	}
	return b.String()
}

// randomProgram is octets for program: seeded, so that a failure comes again.
func randomProgram(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, 20+r.IntN(1200))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Some hundred programs, with each import at each hook among them. None takes more from the
// host than a trap, and the host does not grow.
func TestBorder(t *testing.T) {
	b := newBorder(t)
	b.everyCell(t)
	failed := 0
	for seed := range uint64(100) {
		failed += b.run(t, program(randomProgram(seed)))
	}
	before := footprintNow(t)
	for seed := range uint64(100) {
		failed += b.run(t, program(randomProgram(1000+seed)))
	}
	footprintNow(t).within(t, before)
	if failed == 0 {
		t.Error("nothing failed: this tests nothing")
	}
}

// everyCell calls each import at each hook, alone, with each odd number for each parameter.
func (b border) everyCell(t *testing.T) {
	for _, imp := range abi.Imports() {
		for i := range max(len(imp.Params), 1) {
			for _, n := range oddNumbers[len(oddNumbers)-14:] {
				var steps []tck.RawStep
				for _, h := range borderHooks() {
					s := tck.RawStep{At: h, Import: imp.Name}
					for j := range imp.Params {
						v := int64(2)
						if i == j {
							v = n
						}
						s.Params = append(s.Params, v)
					}
					steps = append(steps, s)
				}
				b.run(t, steps[1:])
				b.run(t, steps[:1])
			}
		}
	}
}

// FuzzBorder has a guest pass any numbers to any imports at any hooks.
func FuzzBorder(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomProgram(seed))
	}
	b := newBorder(f)
	f.Fuzz(func(t *testing.T, data []byte) { b.run(t, program(data)) })
}
