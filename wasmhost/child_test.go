package wasmhost_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// child_test.go: modules are compiled in a process of their own. That process is this test
// binary; the modes are what it then does in place of the tests.
var modes = map[string]func(args []string) int{
	"compile": func(args []string) int { return wasmhost.CompileMain(args, os.Stdin, os.Stdout) },
	"nothing": func([]string) int { return 0 },
	"alone": func(args []string) int { // says if another runs
		lock := filepath.Join(args[0], "lock")
		if err := os.Mkdir(lock, 0o700); err != nil {
			fmt.Print(err)
			return 4
		}
		status := wasmhost.CompileMain(args, os.Stdin, os.Stdout)
		os.Remove(lock)
		return status
	},
	"panic": func([]string) int { panic("no compiler is without fault") },
	"memory": func([]string) int {
		wasmhost.LimitProcess(10 * time.Second)
		heap := make([]byte, 2<<30)
		return int(heap[len(heap)-1])
	},
	"block": func([]string) int { // until it is killed
		r, w, err := os.Pipe()
		if err != nil {
			return 1
		}
		defer w.Close()
		n, _ := r.Read(make([]byte, 1))
		return n
	},
	"flood": func([]string) int {
		for range 128 {
			os.Stdout.Write(bytes.Repeat([]byte{'o'}, 64<<10))
			os.Stderr.Write(bytes.Repeat([]byte{'e'}, 64<<10))
		}
		return 3
	},
	"inherits": func([]string) int { // says what it was given
		wasmhost.LimitProcess(10 * time.Second)
		fmt.Printf("environment %q descriptors", os.Environ())
		for fd := range uintptr(1 << 10) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
				fmt.Print(" ", fd) // what Go opens itself is not passed on
			}
		}
		return 3
	},
}

// child is the command of a mode.
func child(t testing.TB, mode string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, "child:" + mode}
}

// childStatus runs a mode if the arguments ask for one.
func childStatus() (status int, ok bool) {
	if len(os.Args) < 2 {
		return 0, false
	}
	mode, ok := strings.CutPrefix(os.Args[1], "child:")
	if !ok {
		return 0, false
	}
	return modes[mode](os.Args[2:]), true
}

// compiling returns a Runtime that compiles by a child, and ends with the test.
func compiling(t testing.TB, o wasmhost.Options) *wasmhost.Runtime {
	t.Helper()
	if o.Compiler == nil {
		o.Compiler = child(t, "compile")
	}
	rt, err := wasmhost.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return rt
}

// bomb is a guest that has functions of n conditions one after the other, of which the
// compiler's time grows with the square.
func bomb(n int) []byte {
	const most = 8000 // of one function: package meter refuses those of more than 8192
	return edited(func(m *wasmtest.Module) {
		for ; n > 0; n -= most {
			one := []byte{0x20, 0x00, 0x04, 0x40, 0x20, 0x00, 0x41, 0x01, 0x6a, 0x21, 0x00, 0x0b}
			m.Func("bomb", "i>", "", wasmtest.Op(bytes.Repeat(one, min(n, most))...))
		}
	})
}

// saying returns a guest that no other is like.
func saying(code int) []byte {
	return wasmtest.Guest{Else: wasmtest.Verdict(abi.NewVerdict(abi.ActReject, code, 5, 7, 1, false))}.Bytes()
}

// entries returns the files of a cache.
func entries(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "wazero-*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestChild: what a child compiled runs, and is there for the next start, which needs no
// child.
func TestChild(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	for _, mode := range []string{"compile", "nothing"} {
		m, err := compiling(t, wasmhost.Options{CacheDir: dir, Compiler: child(t, mode)}).Load(t.Context(), "guest", saying(550))
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		f, err := m.Filter(t.Context(), wasmhost.FilterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d := talk(t, f)
		if got := d.at(policy.StageConnect).Verdict.Reply.Code; got != 550 {
			t.Errorf("%s: the filter says %d", mode, got)
		}
		d.close()
		f.Close()
		if n := len(entries(t, dir)); n != 1 {
			t.Errorf("%s: the cache has %d entries", mode, n)
		}
	}
}

// TestNeverCompilesHere: with a child that does nothing, a module that is not in the cache
// is an error, and not compiled after all: a trace of that would be in the cache.
func TestNeverCompilesHere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	rt := compiling(t, wasmhost.Options{CacheDir: dir, Compiler: child(t, "nothing")})
	for name, wasm := range map[string][]byte{"small": saying(550), "bomb": bomb(15_000)} {
		_, err := rt.Load(t.Context(), name, wasm)
		if !errors.Is(err, wasmhost.ErrCompiler) || errors.Is(err, wasmhost.ErrModule) || !strings.Contains(err.Error(), "left nothing") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if files := entries(t, dir); len(files) > 0 {
		t.Errorf("it was compiled: %v", files)
	}
}

// TestChildFails: each way to fail is an error that says whose fault it is and what to do,
// and the next module loads.
func TestChildFails(t *testing.T) {
	mistyped := edited(func(m *wasmtest.Module) { m.Func("mistyped", ">i", "", wasmtest.I64(1)) })
	for _, tt := range []struct {
		name, mode string
		wasm       []byte
		fault      error
		want       string
	}{
		{"a module that is invalid", "compile", mistyped, wasmhost.ErrModule, "cannot use i64 as result"},
		{"a bomb", "compile", bomb(25_000), wasmhost.ErrModule, "took more than 1s of CPU: a function of it is too large or too deeply nested; split the function"},
		{"a compiler that takes all memory", "memory", saying(1), wasmhost.ErrModule, "more than 1024 MiB of memory"},
		{"a compiler that panics", "panic", saying(2), wasmhost.ErrModule, "crashed (exit status 2): panic: no compiler is without fault"},
		{"a compiler that says too much", "flood", saying(3), wasmhost.ErrModule, "ooooo"},
	} {
		if wasmhost.RaceDetector && tt.mode == "memory" {
			continue // it needs more than that limit for itself
		}
		rt := compiling(t, wasmhost.Options{CompileCPU: time.Second, Compiler: child(t, tt.mode)})
		_, err := rt.Load(t.Context(), "guest", tt.wasm)
		if !errors.Is(err, tt.fault) || !strings.Contains(fmt.Sprint(err), tt.want) || len(fmt.Sprint(err)) > 16<<10 {
			t.Errorf("%s: got %.1000v", tt.name, err)
		}
		if tt.mode == "compile" {
			if _, err := rt.Load(t.Context(), "guest", saying(550)); err != nil {
				t.Errorf("after %s: %v", tt.name, err)
			}
		}
	}
	rt := compiling(t, wasmhost.Options{Compiler: []string{filepath.Join(t.TempDir(), "gone")}})
	if _, err := rt.Load(t.Context(), "guest", saying(4)); !errors.Is(err, wasmhost.ErrCompiler) || errors.Is(err, wasmhost.ErrModule) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a compiler that is not there: %v", err)
	}
}

// TestChildEnds: a child ends when nobody waits for it any more, and when the Runtime is
// closed; so does the wait for its turn.
func TestChildEnds(t *testing.T) {
	rt := compiling(t, wasmhost.Options{Compiler: child(t, "block")})
	why := errors.New("the request was given up")
	var loads sync.WaitGroup
	load := func(ctx context.Context, want string) {
		loads.Go(func() {
			_, err := rt.Load(ctx, "guest", saying(550))
			if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, wasmhost.ErrModule) {
				t.Errorf("got %v, want %s", err, want)
			}
		})
	}
	given, giveUp := context.WithCancelCause(t.Context())
	for range 3 { // one runs, two wait
		load(given, why.Error())
	}
	awaitChild(t)
	giveUp(why)
	loads.Wait()
	for range 2 {
		load(t.Context(), "closed")
	}
	awaitChild(t)
	if err := rt.Close(t.Context()); err != nil {
		t.Error(err)
	}
	loads.Wait()
	load(t.Context(), "closed")
	loads.Wait()
	if n := len(children(t)); n > 0 {
		t.Errorf("%d children are left", n)
	}
}

// children are the processes that this one started and has not waited for.
func children(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(files) == 0 {
		t.Fatalf("no list of children: %v", err)
	}
	var list []string
	for _, f := range files {
		text, _ := os.ReadFile(f) // a thread may have ended
		list = append(list, strings.Fields(string(text))...)
	}
	return list
}

// awaitChild waits until there is one.
func awaitChild(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); len(children(t)) == 0; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("no child was started")
		}
	}
}

// TestOneChild: however many modules are loaded at once, one is compiled at a time.
func TestOneChild(t *testing.T) {
	rt := compiling(t, wasmhost.Options{Compiler: child(t, "alone")})
	var loads sync.WaitGroup
	for i := range 6 {
		loads.Go(func() {
			m, err := rt.Load(t.Context(), "guest", saying(550+i%3)) // some are the same
			if err != nil {
				t.Error(err)
				return
			}
			m.Close(t.Context())
		})
	}
	loads.Wait()
}

// TestChildInherits: a child has three descriptors, and nothing of this process's
// environment.
func TestChildInherits(t *testing.T) {
	t.Setenv("PENSTOCK_SECRET", "s3cret")
	fd, err := unix.Dup(1) // one that is passed on, as a service manager may leave it
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_, err = compiling(t, wasmhost.Options{Compiler: child(t, "inherits")}).Load(t.Context(), "guest", saying(550))
	if got, want := fmt.Sprint(err), "environment [] descriptors 0 1 2"; !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestScratch: without a folder for the cache there is one while the Runtime lives, for
// this user alone, and what was handed over does not stay in it.
func TestScratch(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	rt := compiling(t, wasmhost.Options{})
	if _, err := rt.Load(t.Context(), "guest", saying(550)); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(tmp, "*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v %v", found, err)
	}
	if info, err := os.Stat(found[0]); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if files := entries(t, found[0]); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
	for range 2 {
		if err := rt.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(tmp, "*")); len(found) > 0 {
		t.Errorf("left after Close: %v", found)
	}
}

// TestBombBesideTraffic: while a module is compiled that takes all the CPU it may have,
// sessions take what they took before. The relation is a generous one, for machines that
// have other things to do; docs/bench.md has figures.
func TestBombBesideTraffic(t *testing.T) {
	rt := compiling(t, wasmhost.Options{CompileCPU: time.Second})
	m, err := rt.Load(t.Context(), "guest", saying(550))
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.Filter(t.Context(), wasmhost.FilterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	alone, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	before := sessionsUntil(t, f, alone.Done())
	refused := make(chan struct{})
	go func() {
		defer close(refused)
		if _, err := rt.Load(t.Context(), "bomb", bomb(32_000)); !errors.Is(err, wasmhost.ErrModule) {
			t.Errorf("the bomb: %v", err)
		}
	}()
	during := sessionsUntil(t, f, refused)
	t.Logf("sessions before: %s", before)
	t.Logf("sessions during: %s", during)
	if before, during := before.quantile(0.99), during.quantile(0.99); during > 10*before+5*time.Millisecond {
		t.Errorf("p99 of a session went from %v to %v", before, during)
	}
}

// durations are sorted.
type durations []time.Duration

func (d durations) quantile(q float64) time.Duration { return d[int(q*float64(len(d)-1))] }

func (d durations) String() string {
	return fmt.Sprintf("%d, p50 %v, p99 %v, max %v", len(d), d.quantile(0.5), d.quantile(0.99), d[len(d)-1])
}

// sessionsUntil runs one session of a filter after the other until done is closed, at least
// one, and returns what each took.
func sessionsUntil(t *testing.T, f policy.Filter, done <-chan struct{}) durations {
	t.Helper()
	var all durations
	for {
		start := time.Now()
		d := talk(t, f)
		if got := d.at(policy.StageConnect).Verdict.Reply.Code; got != 550 {
			t.Fatalf("the filter says %d", got)
		}
		d.close()
		all = append(all, time.Since(start))
		select {
		case <-done:
			slices.Sort(all)
			return all
		default:
		}
	}
}
