package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
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

// guard bounds calls into guests.
type guard struct {
	wall time.Duration // for one call
}

// Errors of calls.
var (
	errTime   = errors.New("it exceeded its time")
	errClosed = errors.New("wasmhost: closed")
)

// call runs f, which enters in's guest with the context it is given, and stops the guest
// when the time is over. After an error the guest's state is unknown: throw it away. A
// panic of the host's side becomes an error: it may not cost more than this filter.
func (g guard) call(ctx context.Context, in *instance, f func(ctx context.Context) error) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, g.wall, errTime)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the host panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return g.explain(ctx, in, f(&callContext{ctx, in}))
}

// explain says in words what an error of wazero means.
func (g guard) explain(ctx context.Context, in *instance, err error) error {
	if err == nil {
		return nil
	}
	exit, ok := errors.AsType[*sys.ExitError](err)
	switch {
	case !ok:
		return trap{err, clip(err.Error())}
	case in.filter.module.rt.closed.Load():
		return errClosed
	case ctx.Err() == nil:
		return fmt.Errorf("it ended itself with exit code %d", exit.ExitCode())
	case context.Cause(ctx) == errTime:
		return fmt.Errorf("%w of %v", errTime, g.wall)
	}
	return fmt.Errorf("it was stopped: %w", context.Cause(ctx))
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

// callContext leads the host's functions to the instance that calls them, without a
// search.
type callContext struct {
	context.Context
	in *instance
}

type instanceKey struct{}

// Value implements context.Context.
func (c *callContext) Value(key any) any {
	if key == (instanceKey{}) {
		return c.in
	}
	return c.Context.Value(key)
}

// caller returns the instance that a host function was called by.
func caller(ctx context.Context) *instance {
	if c, ok := ctx.(*callContext); ok {
		return c.in
	}
	return ctx.Value(instanceKey{}).(*instance)
}
