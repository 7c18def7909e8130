package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tetratelabs/wazero/sys"
)

// guard.go: the one place that knows how a guest that does not return is stopped. Today
// that is wazero's own way: when the context ends, the instance is closed for good. It
// costs a goroutine per call, and a check per turn of a loop.

// guard bounds calls into guests.
type guard struct {
	wall time.Duration // for one call
}

// call runs f, which enters in's guest with the context it is given, and stops the guest
// when the time is over. After an error the guest's state is unknown: throw it away.
func (g guard) call(ctx context.Context, in *instance, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, g.wall)
	defer cancel()
	err := f(&callContext{ctx, in})
	if err == nil {
		return nil
	}
	if exit, ok := errors.AsType[*sys.ExitError](err); ok {
		switch exit.ExitCode() {
		case sys.ExitCodeDeadlineExceeded:
			return fmt.Errorf("%w of %v", errTime, g.wall)
		case sys.ExitCodeContextCanceled:
			return fmt.Errorf("wasmhost: filter was stopped: %w", context.Cause(ctx))
		}
		return fmt.Errorf("wasmhost: filter ended itself with exit code %d", exit.ExitCode())
	}
	return fmt.Errorf("wasmhost: filter trapped: %w", err)
}

var errTime = errors.New("wasmhost: filter exceeded its time")

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
