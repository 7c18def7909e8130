package resolver

import (
	"errors"
	"fmt"
)

// errors.go: why a look-up has no records. The kinds are few, because callers do one of
// three things: take "none" for an answer, try later, or tell that the name is nonsense.

// Kinds of failure, to be tested with errors.Is. ErrNotFound holds for both ErrNoName and
// ErrNoData, and ErrTemporary for ErrBogus too.
var (
	// ErrNotFound: there are no such records.
	ErrNotFound = errors.New("not found")
	// ErrNoName: the name does not exist, nor does anything below it (NXDOMAIN; RFC 8020).
	ErrNoName = errors.New("no such name")
	// ErrNoData: the name exists and has no records of the type (RFC 2308, Section 2.2).
	ErrNoData = errors.New("no records of this type")
	// ErrTemporary: it is not known whether there are any. All servers failed, refused, or
	// did not answer in time, or the caller's context ended.
	ErrTemporary = errors.New("temporary failure")
	// ErrBogus: a server has records that do not validate, and keeps them to itself.
	ErrBogus = errors.New("DNSSEC validation failed")
	// ErrBadName: what was asked for can be no name in the DNS, or is of a type that this
	// package does not know. Nobody was asked.
	ErrBadName = errors.New("not a name")
)

// Error is the type of every error that a look-up returns. Errors are shared by callers,
// who must not change them.
type Error struct {
	Name string // as it was asked for, in lower case
	Type Type
	// Kind is one of ErrNoName, ErrNoData, ErrTemporary, ErrBogus and ErrBadName.
	Kind error
	// Meta tells of ErrNoName and ErrNoData whether they are authentic and how long they
	// hold. Of the other kinds it has the EDE alone.
	Meta
	// Server is the one that answered, or the last one asked. Empty if none was.
	Server string
	// Cause is what went wrong underneath. Nil if a server said it.
	Cause error
}

// Error returns one line for a log.
func (e *Error) Error() string {
	s := fmt.Sprintf("resolver: look up %s of %q: %s", e.Type, e.Name, e.Kind)
	if e.Server != "" {
		s += " at " + e.Server
	}
	if e.EDE != nil {
		s += " (" + e.EDE.String() + ")"
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Is tells whether target is the kind of the error, or a kind that holds for it too.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Kind == ErrNoName || e.Kind == ErrNoData
	case ErrTemporary:
		return e.Temporary()
	}
	return target == e.Kind
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Temporary tells whether asking again later may give another answer.
func (e *Error) Temporary() bool { return e.Kind == ErrTemporary || e.Kind == ErrBogus }
