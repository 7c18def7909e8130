package wasmhost_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// hostile_test.go: guests that mean harm, and what must become of each. testdata/hostile has
// their sources.

// hostileModule returns a module of testdata/hostile.
func hostileModule(t testing.TB, name string) []byte {
	t.Helper()
	wasm, err := os.ReadFile(filepath.Join("testdata", "hostile", name+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// refusedModules are modules that must not load, and what the error says.
var refusedModules = []struct{ name, want string }{
	{"two_memories", "2 memories, the most is 1"},
	{"shared_memory", "limits of kind 3"},
	{"memory64", "limits of kind 4"},
	{"large_memory", "over limit of 1024 pages"},
	{"fuel_export", "names that begin with __mg are reserved"},
	{"tick_import", "imports __mg.tick"},
	{"other_import", "imports env.system, which this gateway does not have"},
	{"hook_is_global", "lacks the export mg1_hook"},
	{"hook_is_float", "export mg1_hook is (f64, f64) -> f64, want (i32, i32) -> i64"},
	{"hook_is_import", "export mg1_hook is (i32) -> i32"},
	{"tail_call", "opcode 0x12, which is not in WebAssembly 2.0"},
	{"exception", "section"},
}

// hostileGuests are what guests do once they are loaded. With a do, the guest is that of
// hostile.c.
var hostileGuests = []struct {
	do     string
	module string
	at     policy.Stage // 0: at its start
	cause  string       // "": it does not fail
	want   string       // in the error; without a cause, the reply
}{
	// Time.
	{do: "loop", at: policy.StageRcpt, cause: wasmhost.CauseCPU, want: "it exceeded its CPU time of 5ms"},
	{do: "exponential", at: policy.StageRcpt, cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "mutual", at: policy.StageRcpt, cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "fill", at: policy.StageRcpt, cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "copy", at: policy.StageRcpt, cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "sleep", at: policy.StageRcpt, cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"}, // it is woken at once
	{do: "nap", at: policy.StageRcpt, cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{module: "loops", at: policy.StageConnect, cause: wasmhost.CauseCPU},
	{module: "loops", at: policy.StageSecure, cause: wasmhost.CauseCPU},
	{module: "loops", at: policy.StageHelo, cause: wasmhost.CauseCPU},
	{module: "loops", at: policy.StageAuth, cause: wasmhost.CauseCPU},
	{module: "loops", at: policy.StageMail, cause: wasmhost.CauseCPU},
	{module: "loops", at: policy.StageRcpt, cause: wasmhost.CauseStack, want: "its calls are nested too deeply"},
	{module: "loops", at: policy.StageData, cause: wasmhost.CauseCPU},
	{module: "loops", at: policy.StageHeaders, cause: wasmhost.CauseCPU},
	{module: "loops", at: policy.StageMessage, cause: wasmhost.CauseCPU},

	// Stack and memory.
	{do: "deep", at: policy.StageRcpt, cause: wasmhost.CauseStack, want: "its calls are nested too deeply"},
	{do: "wide", at: policy.StageRcpt, cause: wasmhost.CauseTrap, want: "out of bounds memory access"},
	{module: "frames", at: policy.StageRcpt, cause: wasmhost.CauseStack, want: "its calls are nested too deeply"},
	{do: "grow", at: policy.StageRcpt, want: "continue"},
	{do: "grow_and_trap", at: policy.StageRcpt, cause: wasmhost.CauseMemory, want: "unreachable"},
	{module: "no_maximum", at: policy.StageRcpt, want: "466"}, // 16 MiB
	{module: "table", at: policy.StageMail, cause: wasmhost.CauseTrap, want: "invalid table access"},
	{module: "table", at: policy.StageRcpt, cause: wasmhost.CauseTrap, want: "indirect call type mismatch"},
	{module: "table", at: policy.StageData, cause: wasmhost.CauseTrap, want: "invalid table access"},
	{module: "table", at: policy.StageHeaders, want: "continue"},
	{module: "table", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{module: "elem_outside", at: policy.StageRcpt, cause: wasmhost.CauseTrap, want: "invalid table access"},

	// Imports without end: the host's work is the guest's.
	{do: "flood_log", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_stderr", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_random", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_get", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_session", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_find", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_header", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_tags", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_body", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_rcpts", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_reply", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_parts", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_hash", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_match", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_scores", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_verdicts", at: policy.StageMessage, cause: wasmhost.CauseCPU},
	{do: "flood_kv", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "flood_submit", at: policy.StageRcpt, cause: wasmhost.CauseCPU},
	{do: "wait_for_dns", at: policy.StageRcpt, cause: wasmhost.CauseWall, want: "it exceeded its time of 50ms"},
	{do: "wait_for_answer", at: policy.StageMessage, cause: wasmhost.CauseWall, want: "it exceeded its time of 50ms"},
	{do: "some_lines", at: policy.StageRcpt, want: "continue"},

	// What it says.
	{do: "crlf", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "text that was not given"},
	{do: "cr", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "text that was not given"},
	{do: "nul", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "text that was not given"},
	{do: "latin1", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "text that was not given"},
	{do: "wrong_class", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "4.7.1"},
	{do: "wrong_code", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "250"},
	{do: "odd_code", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "65535"},
	{do: "unknown_action", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "unknown action(200)"},
	{do: "unknown_bits", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "unknown bits"},
	{do: "accept", at: policy.StageRcpt, cause: wasmhost.CauseVerdict, want: "needs the grant accept_final"},
	{do: "exit", at: policy.StageRcpt, cause: wasmhost.CauseGuest, want: "it ended itself with exit code 0"},

	// Pointers, and calls that the host does not expect.
	{do: "overlap", at: policy.StageMessage, want: "continue"},
	{do: "reenter", at: policy.StageRcpt, want: "continue"},
	{do: "pointer", at: policy.StageRcpt, cause: wasmhost.CauseTrap, want: "pointer outside of the guest's memory"},
	{do: "length", at: policy.StageRcpt, cause: wasmhost.CauseTrap, want: "pointer outside of the guest's memory"},

	// The start.
	{module: "start", cause: wasmhost.CauseCPU, want: "it exceeded its CPU time of 20ms"},
	{module: "start_calls", at: policy.StageRcpt, want: "continue"},
	{module: "data_outside", cause: wasmhost.CauseLoad, want: "out of bounds memory access"},
	{module: "data_negative", cause: wasmhost.CauseLoad, want: "out of bounds memory access"},
	{do: "init_loop", cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "init_exponential", cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "init_sleep", cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "init_flood_log", cause: wasmhost.CauseCPU, want: "it exceeded its CPU time"},
	{do: "init_deep", cause: wasmhost.CauseStack, want: "its calls are nested too deeply"},
	{do: "init_grow_and_trap", cause: wasmhost.CauseMemory, want: "unreachable"},
	{do: "init_grow", at: policy.StageMail, want: "continue"},
	{do: "init_exit", cause: wasmhost.CauseGuest, want: "it ended itself with exit code 0"},
	{do: "init_pointer", cause: wasmhost.CauseTrap, want: "pointer outside of the guest's memory"},
	{do: "init_bad_mailbox", cause: wasmhost.CauseGuest, want: "refuses to start"},
	{do: "init_small_mailbox", cause: wasmhost.CauseGuest, want: "its mailbox has 100 octets"},
	{do: "init_large_mailbox", cause: wasmhost.CauseGuest, want: "its mailbox has 2147483647 octets"},
	{do: "init_no_mailbox", cause: wasmhost.CauseGuest, want: "its mailbox has 0 octets"},
	{do: "init_overlap", at: policy.StageMail, want: "continue"},
	{do: "init_crlf", at: policy.StageMail, want: "continue"},
}

// A hostile module is refused, with words that say why.
func TestHostileModules(t *testing.T) {
	rt := newRuntime(t)
	for _, tt := range refusedModules {
		m, err := rt.Load(t.Context(), tt.name, hostileModule(t, tt.name))
		if err == nil {
			_, err = m.Filter(t.Context(), wasmhost.FilterOptions{})
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want one with %q", tt.name, err, tt.want)
		}
	}
}

// Hostile guests fail by themselves: with the cause that is theirs, within their budgets,
// beside a session that does not notice, and without leaving anything behind.
func TestHostileGuests(t *testing.T) { bothWays(t, testHostileGuests) }

func testHostileGuests(t *testing.T) {
	rt := newRuntime(t)
	m, err := rt.Load(t.Context(), "bystander", wasmtest.Guest{Else: wasmtest.Counter()}.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	bystander, err := m.Filter(t.Context(), wasmhost.FilterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer bystander.Close()
	grants := guest.Everything()
	grants.AcceptFinal = false
	modules := make(map[string]*wasmhost.Module)
	all := func() {
		for _, h := range hostileGuests {
			file := h.module
			if h.do != "" {
				file = "hostile"
			}
			m := modules[file]
			if m == nil {
				if m, err = rt.Load(t.Context(), file, hostileModule(t, file)); err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				modules[file] = m
			}
			beside := talk(t, bystander)
			if got := beside.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != 450 {
				t.Fatalf("the bystander before %s%s: %s, %v", h.do, h.module, reply(got), got.Err)
			}
			var log bytes.Buffer
			o := wasmhost.FilterOptions{
				Name: "hostile", Grants: grants, Config: []byte(`{"do": "` + h.do + `"}`), Ready: -1, Boot: 20 * time.Millisecond,
				Limits:   wasmhost.Limits{CPU: 5 * time.Millisecond, CPUMessage: 5 * time.Millisecond, CPUPerMiB: 1, Wall: 10 * time.Second},
				Services: silence(),
				Log:      slog.New(slog.NewTextHandler(&log, nil)),
			}
			if h.cause != wasmhost.CauseCPU { // the machine may be slow, and the race detector is
				o.Boot, o.Limits.CPU, o.Limits.CPUMessage = time.Second, 500*time.Millisecond, 500*time.Millisecond
			}
			if h.cause == wasmhost.CauseWall {
				o.Limits.Wall = 50 * time.Millisecond
			}
			judge(t, m, o, h.do+h.module, h.at, h.cause, h.want)
			if lines := strings.Count(log.String(), "\n"); lines > 2*(abi.MaxLogLines+1) { // of two sessions
				t.Errorf("%s%s: it logged %d lines", h.do, h.module, lines)
			}
			if got := beside.at(policy.StageRcpt); got.Err != nil || got.Verdict.Reply.Code != 451 {
				t.Errorf("the bystander after %s%s: %s, %v; want code 451", h.do, h.module, reply(got), got.Err)
			}
			beside.close()
		}
	}
	all()
	if bootsEach(t) {
		return
	}
	before := footprintNow(t)
	all()
	footprintNow(t).within(t, before)
}

// silence is an outside in which nobody answers.
func silence() guest.Services {
	s := new(filtertest.World).Services()
	s.DNS = silentDNS{}
	return s
}

type silentDNS struct{}

func (silentDNS) LookUp(ctx context.Context, _ uint16, _ string) (guest.DNSAnswer, error) {
	<-ctx.Done()
	return guest.DNSAnswer{}, ctx.Err()
}

// largeMessage has a part of two MiB that is encoded, and header fields by the hundred.
var largeMessage = sync.OnceValue(func() string {
	return strings.Repeat("X-Field: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n", 500) +
		"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
		strings.Repeat(strings.Repeat("eHh4", 19)+"\r\n", 2<<20/78) + "\r\n--b--\r\n"
})

// judge loads a hostile guest, brings it to a stage, and sees what becomes of it and of the
// next session.
func judge(t *testing.T, m *wasmhost.Module, o wasmhost.FilterOptions, name string, at policy.Stage, cause, want string) {
	t.Helper()
	f, err := m.Filter(t.Context(), o)
	if at == 0 {
		if err == nil {
			f.Close()
		}
		if got := wasmhost.Cause(err); got != cause || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s: at its start it failed for cause %q: %v; want %q and %q", name, got, err, cause, want)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer f.Close()
	for range 2 {
		d := talk(t, f)
		d.tx = transaction(message(largeMessage()))
		got := d.at(at)
		switch {
		case cause == "" && (got.Err != nil || !strings.HasPrefix(reply(got), want)):
			t.Errorf("%s at %s: got %s, %v; want %s", name, at, reply(got), got.Err, want)
		case wasmhost.Cause(got.Err) != cause || cause != "" && !strings.Contains(fmt.Sprint(got.Err), want):
			t.Errorf("%s at %s: it failed for cause %q: %v; want %q and %q", name, at, wasmhost.Cause(got.Err), got.Err, cause, want)
		case cause != "" && (got.Verdict.Action != policy.Tempfail || got.Verdict.Reply.Code/10 != 45):
			t.Errorf("%s at %s: the client hears %s, want that it try again", name, at, reply(got))
		}
		d.close()
	}
	// Two sessions: by the clock of the thread, a guest has little more than its budget. What
	// is one instruction runs to its end, and may take pages of memory from the system.
	if most := 2 * (o.Limits.CPU + 50*time.Millisecond); cause == wasmhost.CauseCPU && f.Stats().CPU[at] > most && !wasmhost.RaceDetector {
		t.Errorf("%s at %s: it had %v of CPU time, want at most %v", name, at, f.Stats().CPU[at], most)
	}
}

// footprint is what the process has.
type footprint struct{ maps, files, goroutines, heap int }

func footprintNow(t *testing.T) footprint {
	t.Helper()
	runtime.GC()
	maps, _ := mappings(t)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return footprint{maps, len(files), runtime.NumGoroutine(), int(m.HeapAlloc)}
}

// within fails the test if the process has more than it had before.
func (f footprint) within(t *testing.T, before footprint) {
	t.Helper()
	// The collector maps what it needs as it goes; guests would take mappings by the dozen.
	if f.maps > before.maps+10 || f.files > before.files || f.goroutines > before.goroutines || f.heap > before.heap+2<<20 {
		t.Errorf("the process has %+v, before %+v", f, before)
	}
}

// What a session changes in its guest, in any way there is, the next does not find: spy.wat
// counts what it finds changed, a bit for each.
func TestSpy(t *testing.T) { bothWays(t, testSpy) }

func testSpy(t *testing.T) {
	for _, instance := range []string{wasmhost.InstanceSession, wasmhost.InstanceHook} {
		f := load(t, hostileModule(t, "spy"), wasmhost.FilterOptions{Instance: instance})
		for n := range 20 {
			d := talk(t, f)
			if got := d.at(policy.StageMail); got.Err != nil || got.Verdict.Reply.Code != 450 {
				t.Fatalf("%s, session %d: it found %s, %v; want nothing", instance, n, reply(got), got.Err)
			}
			if got := d.at(policy.StageRcpt); got.Err != nil {
				t.Fatalf("%s, session %d: %v", instance, n, got.Err)
			}
			d.close()
		}
	}
}

// tampered are modules whose code speaks of what the rewriting adds: numbers that the module
// has not, and that would be good ones behind it.
var tampered = []struct {
	name string
	edit func(m *wasmtest.Module)
}{
	{"fuel, set", func(m *wasmtest.Module) { m.Func("x", ">", "", wasmtest.I64(1<<40), wasmtest.Op(0x24, 1)) }},
	{"depth, set", func(m *wasmtest.Module) { m.Func("x", ">", "", wasmtest.I32(0), wasmtest.Op(0x24, 2)) }},
	{"fuel, read", func(m *wasmtest.Module) { m.Func("x", ">l", "", wasmtest.Op(0x23, 1)) }},
	{"fuel's local", func(m *wasmtest.Module) { m.Func("x", "i>", "i", wasmtest.I64(1<<40), wasmtest.Op(0x21, 2)) }},
	{"tick", func(m *wasmtest.Module) { m.Func("x", ">", "", wasmtest.I64(1), wasmtest.Op(0x10, 8, 0x1a)) }},
	{"label of our block", func(m *wasmtest.Module) { m.Func("x", ">", "", wasmtest.Op(0x03, 0x40, 0x0c, 2, 0x0b)) }},
	{"type", func(m *wasmtest.Module) {
		m.Table = &wasmtest.Limits{Min: 1}
		m.Func("x", ">", "", wasmtest.I32(0), wasmtest.Op(0x11, 40, 0))
	}},
	{"our table", func(m *wasmtest.Module) { m.Func("x", ">r", "", wasmtest.I32(0), wasmtest.Op(0x25, 0)) }},
	{"export of fuel", func(m *wasmtest.Module) {
		m.Exports = append(m.Exports, wasmtest.Export{Name: "f", Kind: wasmtest.KindGlobal, Index: 1})
	}},
	{"export of tick", func(m *wasmtest.Module) {
		m.Exports = append(m.Exports, wasmtest.Export{Name: "f", Kind: wasmtest.KindFunc, Index: 40})
	}},
	{"start with tick", func(m *wasmtest.Module) { m.Sections = append(m.Sections, wasmtest.Section{ID: 8, Body: []byte{40}}) }},
	{"element of tick", func(m *wasmtest.Module) { m.Table, m.Elements = &wasmtest.Limits{Min: 1}, []uint32{40} }},
}

func TestTampering(t *testing.T) {
	rt := newRuntime(t)
	for _, tt := range tampered {
		if _, err := rt.Load(t.Context(), tt.name, edited(tt.edit)); !errors.Is(err, wasmhost.ErrModule) {
			t.Errorf("%s: got error %v, want ErrModule", tt.name, err)
		}
	}
}

// Modules that are large in one dimension are refused, or ready, in time.
func TestBombs(t *testing.T) {
	blocks := wasmtest.Op(bytes.Repeat([]byte{0x02, 0x40}, 45_000)...)
	ends := wasmtest.Op(bytes.Repeat([]byte{0x0b}, 45_000)...)
	ifs := wasmtest.Op(bytes.Repeat([]byte{0x41, 0, 0x04, 0x40, 0x0b}, 8_000)...) // what one function may have
	for _, tt := range []struct {
		name string
		edit func(m *wasmtest.Module)
		want string // in the error; "" if it may load
	}{
		{"180 KB of blocks in one another", func(m *wasmtest.Module) { m.Func("x", ">", "", blocks, ends) }, "blocks"},
		{"180 KB of blocks behind one another", func(m *wasmtest.Module) { m.Func("x", ">", "", ifs, ifs, ifs, ifs) }, "blocks"},
		{"and in four functions", func(m *wasmtest.Module) {
			for range 4 {
				m.Func("", ">", "", ifs)
			}
		}, "CPU"},
		{"names that are none", func(m *wasmtest.Module) {
			m.Sections = append(m.Sections, wasmtest.Section{Body: append(wasmtest.Vec([]byte("name")), 1, 0xff, 0xff, 0xff, 0xff, 0x0f)})
		}, ""},
		{"a name with line ends", func(m *wasmtest.Module) {
			m.Func("x\r\nfilter=good", ">", "", wasmtest.Trap())
		}, ""},
	} {
		from := time.Now()
		_, err := compiling(t, wasmhost.Options{CompileCPU: time.Second, Compiler: child(t, "compile")}).Load(t.Context(), "bomb", edited(tt.edit))
		if took := time.Since(from); took > time.Minute {
			t.Errorf("%s: took %v", tt.name, took)
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got error %v, want %q", tt.name, err, tt.want)
		}
	}
}

// 100,000 functions are a module like any other, only slower to compile.
func TestManyFunctions(t *testing.T) {
	n := 100_000
	if wasmhost.RaceDetector {
		n = 10_000 // the compiler takes a quarter of a minute for more
	}
	f := load(t, edited(func(m *wasmtest.Module) {
		for range n {
			m.Func("", ">", "")
		}
	}), wasmhost.FilterOptions{})
	d := talk(t, f)
	defer d.close()
	if got := d.at(policy.StageMail); got.Err != nil {
		t.Error(got.Err)
	}
}

// The modules that are checked in are those of the list that was written with them.
func TestHostileSums(t *testing.T) {
	sums, err := os.ReadFile("testdata/hostile/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(sums)) {
		sum, file, _ := strings.Cut(strings.TrimSpace(line), "  ")
		b, err := os.ReadFile(filepath.Join("testdata", "hostile", file))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(b)); got != sum {
			t.Errorf("%s: its sum is %s, not %s: run testdata/hostile/build.sh", file, got, sum)
		}
	}
}
