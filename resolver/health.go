package resolver

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// health.go watches whether the servers validate. A resolver that stops doing so does not
// fail: it answers as before, and only the AD bit is gone. All that depends on DNSSEC is
// then quietly off, and nobody would know. So we ask each minute for something that is
// known to be signed, and say it aloud when the answer is not authenticated.

// Health is what is known about the servers. Its methods are safe for concurrent use. Who
// made it runs it.
type Health struct {
	opt   HealthOptions
	asker asker

	mu    sync.Mutex
	state HealthState // guarded by mu
}

// asker is what a Health needs of a Resolver.
type asker interface {
	authenticates(ctx context.Context, name string) (bool, error)
	Trusted() bool
}

// HealthOptions are the settings of a Health. The zero value of each field means its
// default.
type HealthOptions struct {
	// Name is a name whose zone is signed; its NS records are asked for. Default ".". On a
	// network without the root of the Internet it is one of the network's own.
	Name string
	// Every is the time between questions. Default 1 minute.
	Every time.Duration
	// Timeout is how long an answer may take. Default 10 s.
	Timeout time.Duration
	// Log gets each change of the state. Nil discards.
	Log *slog.Logger
}

// HealthState is what is known at a time.
type HealthState struct {
	// Validating tells whether the servers validate: whether their last clear answer was
	// authenticated. Before there is one it tells whether an answer may be at all; each
	// says itself whether it is.
	Validating bool
	// Since is when Validating became what it is, Checked when the servers were asked
	// last. Both are zero before the first question was answered, or failed.
	Since, Checked time.Time
	// Err is why the last question has no clear answer. Nil if it has.
	Err error
	// Checks and Failures count the questions, and those that have no clear answer.
	Checks, Failures uint64
}

// NewHealth returns a Health that has asked nothing yet.
func NewHealth(r *Resolver, o HealthOptions) *Health { return newHealth(r, o) }

func newHealth(a asker, o HealthOptions) *Health {
	setDefault(&o.Name, ".")
	setDefault(&o.Every, time.Minute)
	setDefault(&o.Timeout, 10*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Health{opt: o, asker: a, state: HealthState{Validating: a.Trusted()}}
}

// Validating tells whether the servers validate: HealthState says how that is known. It
// costs next to nothing.
func (h *Health) Validating() bool { return h.State().Validating }

// State returns what is known now.
func (h *Health) State() HealthState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// Run asks at once and then again and again, until the context ends. Where no answer can
// be authenticated there is nothing to ask for, and it only waits.
func (h *Health) Run(ctx context.Context) {
	if !h.asker.Trusted() {
		<-ctx.Done()
		return
	}
	tick := time.NewTicker(h.opt.Every)
	defer tick.Stop()
	for {
		h.Check(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Check asks once, and returns what is known then. A question without a clear answer
// changes nothing: servers that are away for a minute say nothing about DNSSEC, and
// look-ups fail as temporary meanwhile.
func (h *Health) Check(ctx context.Context) HealthState {
	if !h.asker.Trusted() {
		return h.State()
	}
	limited, cancel := context.WithTimeout(ctx, h.opt.Timeout)
	defer cancel()
	ok, err := h.asker.authenticates(limited, h.opt.Name)
	if ctx.Err() != nil {
		return h.State() // we are ending; the servers are not to blame
	}
	before, now := h.note(ok, err)
	h.tell(before, now)
	return now
}

// note takes an answer over.
func (h *Health) note(ok bool, err error) (before, now HealthState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before = h.state
	s := &h.state
	s.Checked, s.Err = time.Now(), err
	s.Checks++
	switch {
	case errors.Is(err, ErrBogus):
		// The servers do validate; it is their trust anchor that does not fit. Nothing
		// will be found to be authentic, but nothing false either.
	case err != nil:
		s.Failures++
		return before, *s
	}
	if s.Validating != ok || s.Since.IsZero() {
		s.Validating, s.Since = ok, s.Checked
	}
	return before, *s
}

// tell logs what changed.
func (h *Health) tell(before, now HealthState) {
	log := h.opt.Log.With("name", h.opt.Name)
	first := before.Checked.IsZero()
	switch {
	case now.Err != nil && !errors.Is(now.Err, ErrBogus):
		if before.Err == nil {
			log.Warn("dnssec: whether the resolver validates is not known, since it does not answer", "err", now.Err)
		}
	case now.Validating && (first || !before.Validating || before.Err != nil):
		log.Info("dnssec: the resolver validates")
	case !now.Validating && (first || before.Validating || before.Err != nil):
		if now.Err != nil {
			log = log.With("err", now.Err)
		}
		log.Warn("dnssec: the resolver does not validate; there is no DANE until it does")
	}
}
