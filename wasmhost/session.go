package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// session is a filter's part of one session of a client: a policy.Instance. It has what the
// guest keeps in the host; the instance, which has the guest's memory, is its own from the
// first hook to the end, or borrowed for each hook, as the filter's mode says.
type session struct {
	filter *Filter
	env    *guest.Env
	host   guest.Host // env, or what wraps it

	mu     sync.Mutex // held while the guest runs and while the session is closed
	in     *instance  // nil if it has none now
	purse  purse
	failed bool // the guest's state is unknown
	closed bool
}

// errBusy would be a fault of ours: two calls at a time, or a session that failed and is
// asked again.
var errBusy = errors.New("wasmhost: instance is in use, failed or closed")

// Decide implements policy.Instance. Its errors are of type *Error.
func (s *session) Decide(ctx context.Context, e *policy.Event) (policy.Verdict, error) {
	if !s.mu.TryLock() {
		return policy.Verdict{}, errBusy
	}
	defer s.mu.Unlock()
	if s.failed || s.closed {
		return policy.Verdict{}, errBusy
	}
	v, err := s.decide(ctx, e)
	if err != nil {
		s.failed = true
		err = s.filter.failure(e.Stage, err, s.env)
	}
	return v, err
}

func (s *session) decide(ctx context.Context, e *policy.Event) (v policy.Verdict, err error) {
	hook := abi.Hook(e.Stage)
	if !abi.InSession.Has(hook) {
		return v, because{CauseLoad, fmt.Errorf("%s has no hook %d", abi.Module, hook)}
	}
	if ctx.Err() != nil {
		return v, ended(ctx)
	}
	if s.in == nil {
		if s.in, err = s.filter.borrow(ctx); err != nil {
			return v, err
		}
	}
	v, err = s.ask(ctx, e, hook)
	if s.filter.opts.Instance != InstanceSession || err != nil {
		s.giveBack(err != nil)
	}
	return v, err
}

// ask has the guest answer.
func (s *session) ask(ctx context.Context, e *policy.Event, hook abi.Hook) (_ policy.Verdict, err error) {
	defer panicked(&err)
	b := s.budgetAt(e)
	s.env.Begin(ctx, hook, e)
	defer s.env.End()
	s.env.SetBudget(min(b.cpu, b.rest))
	v, used, err := s.in.call(ctx, s, hook, b, e.Time)
	s.purse.spent += used.spent
	s.filter.count.add(e.Stage, used)
	if err != nil {
		return policy.Verdict{}, err
	}
	verdict, err := s.env.Verdict(v)
	if err != nil {
		cause := CauseVerdict
		if v&abi.ErrorBit != 0 {
			cause = CauseGuest
		}
		return verdict, because{cause, err}
	}
	return verdict, nil
}

// giveBack gives the session's instance back to the filter.
func (s *session) giveBack(failed bool) {
	if in := s.in; in != nil {
		s.in = nil
		s.filter.giveBack(in, failed)
	}
}

// Close implements policy.Instance. It waits for a call that runs. It may be called twice.
func (s *session) Close() {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.giveBack(s.failed)
	s.mu.Unlock()
	if !closed {
		s.filter.leave(s)
	}
}

// charge is guest.Options.Charge.
func (s *session) charge(octets int64) bool { return s.in.charge(octets) }

// outside is guest.Options.Outside.
func (s *session) outside(f func(ctx context.Context)) { s.in.outside(f) }
