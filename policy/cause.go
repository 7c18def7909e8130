package policy

import (
	"errors"
	"fmt"
	"slices"
)

// cause.go: why filters fail, in words that can be counted.

// The causes of failures. An error names its own with a method
// FailureCause() string.
const (
	CauseTrap    = "trap"    // the guest trapped, or the Go function panicked
	CauseCPU     = "cpu"     // it computed for too long
	CauseWall    = "wall"    // it took too long, with what it waited for
	CauseMemory  = "memory"  // it wanted more memory than it may have
	CauseStack   = "stack"   // it called itself too deeply
	CauseGuest   = "guest"   // it said itself that it failed
	CauseVerdict = "verdict" // its verdict or its edits make no sense
	CausePool    = "pool"    // there was no instance for the session, and none could be made
	CauseLoad    = "load"    // its module could not be loaded
	CauseStopped = "stopped" // the session or the gateway ended: no fault of the filter
	CauseOther   = "other"   // anything else
)

var causes = []string{CauseTrap, CauseCPU, CauseWall, CauseMemory, CauseStack, CauseGuest, CauseVerdict, CausePool, CauseLoad, CauseStopped, CauseOther}

// Causes returns all causes, in the order of the constants.
func Causes() []string { return slices.Clone(causes) }

// CauseOf returns the cause of a filter's failure: what the error says of itself, if that is
// one of the causes, and CauseOther for an error that says nothing.
func CauseOf(err error) string {
	if c, ok := errors.AsType[interface {
		error
		FailureCause() string
	}](err); ok {
		if i := slices.Index(causes, c.FailureCause()); i >= 0 {
			return causes[i]
		}
	}
	if errors.Is(err, ErrVerdict) {
		return CauseVerdict
	}
	return CauseOther
}

// because gives an error a cause, if it has none of its own.
func because(cause string, err error) error {
	if err == nil || CauseOf(err) != CauseOther {
		return err
	}
	return caused{err, cause}
}

type caused struct {
	error
	cause string
}

func (c caused) FailureCause() string { return c.cause }
func (c caused) Unwrap() error        { return c.error }

// panicked is the error of a Go filter that panicked.
func panicked(filter string, p any, stack []byte) error {
	return because(CauseTrap, fmt.Errorf("policy: filter %s panicked: %v\n%s", filter, p, stack))
}
