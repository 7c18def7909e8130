package mtasts

import (
	"errors"
	"fmt"
)

// errors.go: why there is no policy, or none that is fresh.

// Kind says what failed, in the words that reports have for it (RFC 8460, Section 4.3.2.2).
type Kind string

// The kinds of errors.
const (
	// FetchError: the record or the policy could not be had.
	FetchError Kind = "sts-policy-fetch-error"
	// Invalid: what was had is not what the standard says.
	Invalid Kind = "sts-policy-invalid"
	// WebPKI: the policy host did not show a valid certificate for its name.
	WebPKI Kind = "sts-webpki-invalid"
)

// ErrUnknown is behind the error of a Result if it is not known whether a policy is kept: the
// Store failed, or did not answer as long as the caller waited. Whoever delivers mail should try again later
// rather than take it for "none".
var ErrUnknown = errors.New("it is not known whether a policy is kept")

// Error is the type of the error in a Result.
type Error struct {
	Domain string
	Kind   Kind
	Err    error
}

// Error returns one line for a log.
func (e *Error) Error() string {
	return fmt.Sprintf("mtasts: policy of %s: %s: %v", e.Domain, e.Kind, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
