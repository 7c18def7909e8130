//go:build !wasip1

package filter

import "github.com/penstock/penstock/guest-sdk/abi"

// host_native.go: the filter as an ordinary program, for tests.

// Host is the gateway's side of the ABI. It exists only in native builds: in a WebAssembly
// build the calls go to the imports directly.
type Host = abi.Host

// host is what the package calls.
type host = Host

// Init does what mg1_init does in a WebAssembly build: it reads the configuration and
// subscribes. mask is the set of hooks. The error is the one that would keep the filter
// from being loaded.
func (f *Filter) Init(h Host) (mask uint64, err error) { return f.start(h) }

// Hook does what mg1_hook does in a WebAssembly build: it runs the handler for the event
// in frame and returns the packed verdict.
func (f *Filter) Hook(h Host, hook uint32, frame []byte) uint64 {
	return uint64(f.hook(h, hook, frame))
}
