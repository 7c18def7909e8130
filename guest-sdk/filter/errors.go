package filter

import "github.com/penstock/penstock/guest-sdk/abi"

// HostError is the gateway's refusal of a call. errors.Is finds the number in it:
//
//	if errors.Is(err, abi.EPERM) { … }
type HostError struct {
	// Op is what was tried, as in "add header field".
	Op    string
	Errno abi.Errno
}

// Error implements error.
func (e *HostError) Error() string { return "filter: " + e.Op + ": " + e.Errno.Error() }

// Unwrap returns the number.
func (e *HostError) Unwrap() error { return e.Errno }

// check makes an error of a negative result.
func check[N int32 | int64](op string, n N) error {
	if n >= 0 {
		return nil
	}
	return &HostError{op, abi.Errno(n)}
}

// text is an error that is nothing but its text. Package errors would do, but it costs a
// guest more than this line.
type text string

func (t text) Error() string { return string(t) }
