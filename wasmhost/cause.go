package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tetratelabs/wazero/sys"

	"github.com/penstock/penstock/policy"
)

// cause.go: why a filter failed, as a word to count by and as a text to read.

// The causes of failures, as [Cause] returns them: those of package policy.
const (
	CauseTrap    = policy.CauseTrap    // its code trapped, or gave the host a pointer that is none
	CauseCPU     = policy.CauseCPU     // it used up its CPU time
	CauseWall    = policy.CauseWall    // it waited too long
	CauseMemory  = policy.CauseMemory  // it was refused memory and then failed
	CauseStack   = policy.CauseStack   // its calls were nested too deeply
	CauseGuest   = policy.CauseGuest   // it said that it failed, or ended itself
	CauseVerdict = policy.CauseVerdict // its verdict makes no sense
	CausePool    = policy.CausePool    // there was no instance for it, or no place to compute
	CauseLoad    = policy.CauseLoad    // an instance could not be made
	CauseStopped = policy.CauseStopped // the session or the gateway ended: no fault of the filter
)

// Error is the failure of a filter at a stage. Its text says filter, stage and cause, has
// the stack of the guest if it was running, and the last of what it printed.
type Error struct {
	Filter string
	Stage  policy.Stage // 0 at its start
	Cause  string       // one of the constants
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Stage == 0 {
		return fmt.Sprintf("wasmhost: filter %s: start: %v", e.Filter, e.Err)
	}
	return fmt.Sprintf("wasmhost: filter %s at %s: %v", e.Filter, e.Stage, e.Err)
}

// Unwrap returns what is behind it.
func (e *Error) Unwrap() error { return e.Err }

// FailureCause is what package policy counts it by.
func (e *Error) FailureCause() string { return e.Cause }

// Cause returns the word to count a failure by, one of the constants: also of a verdict
// that package policy refuses. It is empty if err is no failure of a guest.
func Cause(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Cause
	}
	if errors.Is(err, policy.ErrVerdict) {
		return CauseVerdict
	}
	return ""
}

// because is an error with its cause, on the way to an Error.
type because struct {
	cause string
	error
}

func (b because) Unwrap() error { return b.error }

// Errors of calls.
var (
	errClosed = errors.New("wasmhost: closed")
	errStack  = errors.New("its calls are nested too deeply")
	errGone   = errors.New("it was stopped")
)

func overCPU(budget time.Duration) error {
	return because{CauseCPU, fmt.Errorf("it exceeded its CPU time of %v", budget)}
}

func overSession(budget time.Duration) error {
	return because{CauseCPU, fmt.Errorf("it exceeded its CPU time of %v for one transaction", budget)}
}

func overWall(wall time.Duration) error {
	return because{CauseWall, fmt.Errorf("it exceeded its time of %v", wall)}
}

// ended says that the context of the session is done.
func ended(ctx context.Context) error {
	return because{CauseStopped, fmt.Errorf("%w: %w", errGone, context.Cause(ctx))}
}

// explain says in words what an error of wazero means.
func (in *instance) explain(err error) error {
	if err == nil {
		return nil
	}
	// The stack is worth its lines: of what the host stopped, too.
	_, stack, _ := strings.Cut(err.Error(), "\nwasm stack trace:")
	if exit, ok := errors.AsType[*sys.ExitError](err); ok {
		return because{CauseGuest, fmt.Errorf("it ended itself with exit code %d", exit.ExitCode())}
	}
	if b, ok := errors.AsType[because](err); ok {
		return because{b.cause, withStack{b.error, stack}}
	}
	if errors.Is(err, errStack) {
		return because{CauseStack, withStack{errStack, stack}}
	}
	if errors.Is(err, errClosed) {
		return because{CauseStopped, errClosed}
	}
	cause := CauseTrap
	if in.mem.refused {
		cause = CauseMemory
	}
	return because{cause, trap{err, clip(err.Error())}}
}

// trap is the error of a guest that trapped, with its stack.
type trap struct {
	err  error
	text string
}

func (t trap) Error() string { return "it trapped: " + t.text }
func (t trap) Unwrap() error { return t.err }

// withStack is an error with the guest's stack.
type withStack struct {
	error
	stack string
}

func (w withStack) Error() string {
	if w.stack == "" {
		return w.error.Error()
	}
	return w.error.Error() + "\nwasm stack trace:" + clip(w.stack)
}
func (w withStack) Unwrap() error { return w.error }

// clip bounds a text that a guest had a part in, the names of its functions for example.
func clip(s string) string {
	const most = 8 << 10
	if len(s) > most {
		s = s[:most] + " …"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
