package wasmhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
)

// child.go compiles modules in a process of its own. The compiler's time and memory grow
// with the square of a function's size, and nothing stops it once it has begun: a hundred
// kilobytes of nested blocks take it seconds, two megabytes minutes. A process has limits
// that the kernel holds, and can be killed.
//
//	this process                          the child, CompileMain
//	look in the cache: a hit ends here
//	start, one at a time  ── module ──▶   take limits, read, compile
//	wait, or kill         ◀── text ───    write the cache's entry, exit
//	look in the cache: this must hit
//
// What is handed over is wazero's own file cache. This process never compiles when it has
// a child for that: see onlyCached.

// ErrCompiler is behind errors of compiling that are not the module's fault: the process
// could not be started, was killed from outside, or could not write.
var ErrCompiler = errors.New("wasmhost: the compiler did not work")

// The limits of compiling one module. That of CPU is Options.CompileCPU.
const (
	defaultCompileCPU = 10 * time.Second
	maxCompileCPU     = 10 * time.Minute
	compileMemory     = 1 << 30 // octets of heap, stacks and code
	compileSoftMemory = compileMemory / 2
	compileFile       = 1 << 30 // octets of one file
	compileFiles      = 64      // open ones
	compileNice       = 5       // traffic goes first
	// compileWorkers is how many functions are compiled at once. Two make an upload live in
	// about half the time, and that the second core is asked for too was not seen in the
	// sessions' p99.
	compileWorkers = 2
	// compileWall ends a child that gets no CPU. It is far more than its CPU time, since a
	// busy machine leaves it little.
	compileWall = slowness * 2 * time.Minute
	// maxCompiled is the largest module that is compiled. Metering makes a module larger
	// than what was uploaded.
	maxCompiled = 4 * MaxModule
)

// The ends of a child. Others are those of a crash.
const (
	statusDone    = 0
	statusRefused = 3 // the module does not compile; why is in the output
	statusBroken  = 4 // something else failed; what is in the output
	statusLate    = 5 // its CPU time is over
)

// CompileMain is the program that Options.Compiler runs. It limits the process it runs in,
// so it must be called first thing, and nothing but os.Exit may follow. args are what the
// Runtime put after the command, in is the module, out gets one text, and the result is the
// exit status.
func CompileMain(args []string, in io.Reader, out io.Writer) int {
	err := compileMain(args, in)
	switch _, refused := errors.AsType[refusal](err); {
	case err == nil:
		return statusDone
	case refused:
		fmt.Fprint(out, err)
		return statusRefused
	}
	fmt.Fprint(out, err)
	return statusBroken
}

// refusal is an error that is the module's fault.
type refusal struct{ error }

func compileMain(args []string, in io.Reader) error {
	if len(args) != 2 {
		return errors.New("this command is for the gateway's own use")
	}
	dir := args[0]
	cpu, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	if err := limitProcess(cpu); err != nil {
		return fmt.Errorf("limit the process: %w", err)
	}
	runtime.GOMAXPROCS(min(compileWorkers, runtime.GOMAXPROCS(0)))
	// Most modules fit into this without a collection, which would take a fifth of the time.
	debug.SetMemoryLimit(compileSoftMemory)
	debug.SetGCPercent(-1)
	wasm, err := io.ReadAll(io.LimitReader(in, maxCompiled+1))
	if err != nil {
		return fmt.Errorf("read the module: %w", err)
	}
	if len(wasm) > maxCompiled {
		return refusal{fmt.Errorf("it has more than %d octets", maxCompiled)}
	}
	return compileInto(dir, wasm)
}

// compileInto compiles wasm into the cache at dir.
func compileInto(dir string, wasm []byte) error {
	ctx := context.Background()
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return err
	}
	wz := wazero.NewRuntimeWithConfig(ctx, runtimeConfig().WithCompilationCache(cache))
	compile := func() error {
		_, err := compileWith(withWorkers(ctx, runtime.GOMAXPROCS(0)), wz, wasm)
		return err
	}
	if err = compile(); err != nil && isCacheError(err) { // an old entry is damaged
		if err = clearCache(dir); err == nil {
			err = compile()
		}
	}
	if err == nil || isSystemError(err) {
		return err
	}
	return refusal{err}
}

// isSystemError tells whether compiling failed for a reason outside of the module: the
// entry of the cache could not be written.
func isSystemError(err error) bool {
	_, path := errors.AsType[*fs.PathError](err)
	_, link := errors.AsType[*os.LinkError](err)
	return path || link
}

// compiler starts children. It is safe for concurrent use.
type compiler struct {
	command []string
	dir     string // of the cache
	cpu     time.Duration
	turn    chan struct{} // a token: no child runs

	ctx   context.Context // ends with the Runtime
	stop  context.CancelCauseFunc
	ended sync.Once
}

func newCompiler(o Options, dir string) (*compiler, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("wasmhost: cache: %w", err)
	}
	c := &compiler{command: o.Compiler, dir: dir, cpu: o.CompileCPU, turn: make(chan struct{}, 1)}
	c.ctx, c.stop = context.WithCancelCause(context.Background())
	c.turn <- struct{}{}
	return c, nil
}

// close kills a child that runs, waits for its end, and lets none begin.
func (c *compiler) close() {
	c.ended.Do(func() {
		c.stop(errClosed)
		<-c.turn
	})
}

// begin waits for the turn of one more child. The caller must call done.
func (c *compiler) begin(ctx context.Context) (done func(), err error) {
	select {
	case <-c.turn:
		return func() { c.turn <- struct{}{} }, nil
	case <-c.ctx.Done():
		return nil, errClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

var errCompileWall = errors.New("compiling it took too long")

// compile has a child compile wasm into the cache. The caller has the turn. The error is a
// refusal if it is the module's fault.
func (c *compiler) compile(ctx context.Context, wasm []byte) error {
	if len(wasm) > maxCompiled {
		return refusal{fmt.Errorf("it has %d octets with its metering, the most is %d", len(wasm), maxCompiled)}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(errClosed) })()
	ctx, release := context.WithTimeoutCause(ctx, compileWall, errCompileWall)
	defer release()
	text, complaint := &head{most: 8 << 10}, &head{most: 4 << 10}
	cmd := exec.CommandContext(ctx, c.command[0], append(c.command[1:len(c.command):len(c.command)], c.dir, c.cpu.String())...)
	cmd.Env = []string{} // nothing of ours: not nil, which would be all of it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(wasm), text, complaint
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() == nil:
		return c.explain(err, cmd.ProcessState, text.String(), complaint.String())
	case context.Cause(ctx) == errCompileWall:
		return fmt.Errorf("%w: %w, more than %v: the machine has too much else to do", ErrCompiler, errCompileWall, compileWall)
	}
	return context.Cause(ctx)
}

// explain says why a child that nobody killed did not do its work. said is what it put out
// itself, complaint what its run time did.
func (c *compiler) explain(err error, state *os.ProcessState, said, complaint string) error {
	if state == nil {
		return fmt.Errorf("%w: start %s: %w", ErrCompiler, strconv.Quote(c.command[0]), err)
	}
	complaint, _, _ = strings.Cut(complaint, "\n")
	switch cpu := state.UserTime() + state.SystemTime(); {
	case state.ExitCode() == statusRefused:
		return refusal{errors.New(said)}
	case state.ExitCode() == statusBroken:
		return fmt.Errorf("%w: %s", ErrCompiler, said)
	// A child that did not get to say it is killed a second later. The kernel's clocks for
	// the limit and for what it reports differ.
	case state.ExitCode() == statusLate || !state.Exited() && cpu > c.cpu:
		return refusal{fmt.Errorf("compiling it took more than %v of CPU: a function of it is too large or too deeply nested; split the function", c.cpu)}
	case strings.Contains(complaint, "out of memory") || strings.Contains(complaint, "allocate memory"):
		return refusal{fmt.Errorf("compiling it took more than %d MiB of memory: a function of it is too large; split the function", compileMemory>>20)}
	case !state.Exited():
		return fmt.Errorf("%w: it was killed (%v) after %v of CPU; the machine may be short of memory", ErrCompiler, err, state.UserTime()+state.SystemTime())
	}
	return refusal{fmt.Errorf("the compiler crashed (%v): %s", err, complaint)}
}

// head keeps the beginning of what is written to it.
type head struct {
	most int
	buf  []byte
}

// Write implements io.Writer; it takes everything.
func (h *head) Write(p []byte) (int, error) {
	h.buf = append(h.buf, p[:min(len(p), h.most-len(h.buf))]...)
	return len(p), nil
}

func (h *head) String() string { return strings.ToValidUTF8(string(h.buf), "\uFFFD") }
