package wasmhost

import (
	"context"
	"time"
	"unsafe"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// LimitProcess is limitProcess, for a test that runs in a process of its own.
func LimitProcess(cpu time.Duration) { _ = limitProcess(cpu) }

// RaceDetector tells whether this is a test with it.
const RaceDetector = raceDetector

// Outside has the guest of a session, during a call of it to its Host, wait for f.
func Outside(in policy.Instance, f func(ctx context.Context)) { in.(*session).outside(f) }

// NoMappings has no image mapped any more: memories are copies.
func (r *Runtime) NoMappings() { r.mappings = 0 }

// Footprint is what a session keeps between two calls, in octets: itself and its Env.
func Footprint() uintptr { return unsafe.Sizeof(session{}) + unsafe.Sizeof(guest.Env{}) }

// Life is an instance in the hands of a benchmark.
type Life struct {
	s  *session
	e  *policy.Event
	in *instance // a second one
}

// NewLife takes an instance out of f's pool, for events like e.
func NewLife(f *Filter, e *policy.Event) (*Life, error) {
	in, err := f.Open(context.Background(), nil)
	if err != nil {
		return nil, err
	}
	l := &Life{s: in.(*session), e: e}
	l.s.in, err = f.borrow(context.Background())
	return l, err
}

// Hook calls the guest.
func (l *Life) Hook(ctx context.Context) {
	l.e.Tx.Seq++
	if _, err := l.s.Decide(ctx, l.e); err != nil {
		panic(err)
	}
}

// Bare calls the guest's code and nothing around it but wazero.
func (l *Life) Bare(hook abi.Hook) {
	in := l.s.in
	in.args = [2]uint64{uint64(hook), abi.FrameHead}
	if err := in.hook.CallWithStack(&in.ctx, in.args[:]); err != nil {
		panic(err)
	}
}

// Reset makes the instance as new.
func (l *Life) Reset() {
	if err := l.s.in.reset(); err != nil {
		panic(err)
	}
}

// Clone makes another instance, and Destroy destroys it.
func (l *Life) Clone() {
	var err error
	if l.in, err = l.s.filter.clone(); err != nil {
		panic(err)
	}
}

// Destroy destroys it.
func (l *Life) Destroy() { l.in.destroy() }

// Close gives the first one back.
func (l *Life) Close() { l.s.Close() }

// TrimCache is trimCache.
func TrimCache(dir string, most int64) error { return trimCache(dir, most) }

// ThreadCPU is the CPU time of the calling thread; 0 where there is no such clock.
func ThreadCPU() time.Duration {
	cpu, _ := threadCPU()
	return cpu
}
