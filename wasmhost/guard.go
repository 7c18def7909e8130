package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero/sys"
)

// guard.go: the one place that knows how a guest that does not return is stopped. Today
// that is wazero's own way: when the context ends, the instance is closed for good. It
// costs a goroutine per call, and a check per turn of a loop.
//
// TODO(wasmhost): the check is made in loops only. A guest that calls itself without end,
// in the shape of a tree, is not stopped by it, and one that calls itself deeply makes a
// stack of up to 128 MiB on Go's heap before it traps. Metering of the code will bound
// both, and replaces what is in this file.

// guard bounds the calls of one instance. It is the context of these calls: it ends when
// the time of a call is over or the context of the session ends, and since nobody runs a
// guest that was stopped in the middle, it ends for good. So one channel, one timer and
// one registration at the session's context serve all calls.
type guard struct {
	context.Context // of the call, for its values
	in              *instance

	timer   *time.Timer
	session <-chan struct{} // Done of the session's context
	leave   func() bool     // ends the registration at it
	done    chan struct{}

	mu sync.Mutex // guards what follows
	// current is Done of the context of the call that runs, nil between calls. Callers may
	// give each call a context of its own, which ends with it: that is not the next one's.
	current <-chan struct{}
	err     error // of this context
	cause   error
}

// Errors of calls.
var (
	errTime   = errors.New("it exceeded its time")
	errClosed = errors.New("wasmhost: closed")
)

func newGuard(in *instance) *guard {
	g := &guard{Context: context.Background(), in: in, done: make(chan struct{})}
	g.timer = time.AfterFunc(time.Hour, func() { g.end(context.DeadlineExceeded, errTime) })
	g.timer.Stop()
	return g
}

// call runs f, which enters the guest with the context it is given, and stops the guest
// when the time of the call, wall, is over. After an error the guest's state is unknown:
// throw it away. A panic of the host's side becomes an error: it may not cost more than
// this filter.
func (g *guard) call(ctx context.Context, wall time.Duration, f func(ctx context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			g.timer.Stop()
			err = fmt.Errorf("the host panicked: %v\n%s", p, debug.Stack())
		}
	}()
	g.follow(ctx)
	g.timer.Reset(wall)
	err = f(g)
	if !g.timer.Stop() {
		// A guest that came back after its time is one that exceeded it: wazero may close
		// the instance at this very moment.
		g.end(context.DeadlineExceeded, errTime)
	}
	g.mu.Lock()
	g.current = nil
	ended, cause := g.err != nil, g.cause
	g.mu.Unlock()
	return g.explain(err, wall, ended, cause)
}

// follow makes the guard end with ctx while the call runs.
func (g *guard) follow(ctx context.Context) {
	g.Context = ctx
	done := ctx.Done()
	g.mu.Lock()
	g.current = done
	g.mu.Unlock()
	if done == nil || done == g.session && ctx.Err() == nil {
		return
	}
	g.stop()
	g.session = done
	g.leave = context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.current == done {
			g.finish(ctx.Err(), context.Cause(ctx))
		}
	})
	if err := ctx.Err(); err != nil {
		g.end(err, context.Cause(ctx)) // the function above says so too, but later
	}
}

// stop ends the registration at the session's context.
func (g *guard) stop() {
	if g.leave != nil {
		g.leave()
		g.leave, g.session = nil, nil
	}
}

// end ends the context, the first time it is called.
func (g *guard) end(err, cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.finish(err, cause)
}

func (g *guard) finish(err, cause error) {
	if g.err == nil {
		g.err, g.cause = err, cause
		close(g.done)
	}
}

// explain says in words what an error of wazero means.
func (g *guard) explain(err error, wall time.Duration, ended bool, cause error) error {
	exit, exited := errors.AsType[*sys.ExitError](err)
	switch {
	case err != nil && !exited:
		return trap{err, clip(err.Error())}
	case g.in.filter.module.rt.closed.Load():
		return errClosed
	case !ended && exited:
		return fmt.Errorf("it ended itself with exit code %d", exit.ExitCode())
	case !ended:
		return nil
	case cause == errTime:
		return fmt.Errorf("%w of %v", errTime, wall)
	}
	return fmt.Errorf("it was stopped: %w", cause)
}

// Done implements context.Context.
func (g *guard) Done() <-chan struct{} { return g.done }

// Err implements context.Context.
func (g *guard) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

type instanceKey struct{}

// Value implements context.Context. It leads the host's functions to the instance that
// calls them when wazero has wrapped the context.
func (g *guard) Value(key any) any {
	if key == (instanceKey{}) {
		return g.in
	}
	return g.Context.Value(key)
}

// caller returns the instance that a host function was called by.
func caller(ctx context.Context) *instance {
	if g, ok := ctx.(*guard); ok {
		return g.in
	}
	return ctx.Value(instanceKey{}).(*instance)
}

// trap is the error of a guest that trapped, with its stack.
type trap struct {
	err  error
	text string
}

func (t trap) Error() string { return "it trapped: " + t.text }
func (t trap) Unwrap() error { return t.err }

// clip bounds a text that a guest had a part in, the names of its functions for example.
func clip(s string) string {
	const most = 8 << 10
	if len(s) > most {
		s = s[:most] + " …"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
