package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/penstock/penstock/mail/smtp"
)

// transport.go: all backends, and the life of them.

// Transport hands messages to backends. It is safe for concurrent use. It has one
// goroutine, which closes idle connections and starts those that ask endpoints what they
// offer, and Shutdown ends it.
type Transport struct {
	settings *settings
	handlers map[string]Handler
	every    time.Duration      // Options.ProbeEvery
	kill     context.CancelFunc // ends settings.ctx
	changed  chan struct{}      // wakes the janitor after Update; of capacity 1
	closed   chan struct{}      // closed when Shutdown begins
	drained  chan struct{}      // closed when no transaction runs after that
	janitor  chan struct{}      // closed when the janitor is gone

	mu       sync.Mutex // guards what follows
	closing  bool
	running  int                 // transactions
	backends map[string]*backend // never changed, but replaced
	retired  []*backend          // replaced ones, of which some connection may be lent
}

// ErrClosed is what Update returns after Shutdown.
var ErrClosed = errors.New("delivery: transport is shut down")

// errNoBackend is the error for a backend that the configuration does not have, before its name.
var errNoBackend = errors.New("delivery: there is no backend")

// New returns a Transport. It returns Validate's error. Without Options.ProbeEvery nothing
// is connected to before there is mail.
func New(o Options) (*Transport, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("delivery: options: %w", err)
	}
	s := &settings{localName: o.LocalName, dial: o.Dial, log: o.Log}
	if s.dial == nil {
		s.dial = dialer
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	t := &Transport{
		settings: s,
		handlers: maps.Clone(o.Handlers),
		every:    o.ProbeEvery,
		changed:  make(chan struct{}, 1),
		closed:   make(chan struct{}), drained: make(chan struct{}), janitor: make(chan struct{}),
		backends: make(map[string]*backend),
	}
	s.ctx, t.kill = context.WithCancel(context.Background())
	for name, b := range o.Backends {
		t.backends[name] = newBackend(s, name, b.withDefaults())
	}
	go t.clean()
	return t, nil
}

// Begin opens a transaction with a backend. It waits for a connection; nothing is said
// about from before the first recipient. The error is a *smtp.Reply of code 451 if no
// connection was free in time (4.3.2), no endpoint can be reached (4.4.1) or the
// transport is shut down (4.3.2). The end of ctx ends the wait; ctx is not kept.
//
// A recipient is refused here, without asking, if the backend lacks what the message
// needs: 550 5.6.7 for SMTPUTF8 (RFC 6531, Section 3.1), 554 5.6.3 for 8BITMIME (RFC
// 6152, Section 3) and BINARYMIME (RFC 3030, Section 3), 550 5.7.30 for REQUIRETLS, which
// asks for TLSVerify, too (RFC 8689, Section 4.2.1), and 552 5.3.4 if the announced size is
// above the backend's (RFC 1870, Section 4). What is said about reports (RFC 3461) is left
// out for a backend that lacks DSN.
//
// If replacing a dead connection fails, Rcpt returns a reply of the same kind as Begin
// and may be called again.
func (t *Transport) Begin(ctx context.Context, backend string, from smtp.Sender) (smtp.Transaction, error) {
	return t.BeginFor(ctx, backend, from, smtp.Forwarded{})
}

// BeginFor is Begin for mail of a client, of whom the backend is told as its options say:
// with XCLIENT or XFORWARD, before the first recipient and where it offers them. A zero
// client is ourselves.
//
// What the backend says to XCLIENT and to the EHLO behind it is about this client, and so it
// is the answer to the recipient; but a refusal of XCLIENT itself is made 451, since it is
// about us. Without it the backend would trust the client as it trusts us. A refused XFORWARD
// is logged.
func (t *Transport) BeginFor(ctx context.Context, backend string, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error) {
	if h := t.handlers[backend]; h != nil {
		return h.Begin(ctx, from, client)
	}
	b, err := t.enter(backend)
	if err != nil {
		return nil, err
	}
	c, err := b.lend(ctx)
	if err != nil {
		t.leave()
		return nil, err
	}
	return &transaction{t: t, b: b, c: c, from: from, client: client}, nil
}

// connections is how many connections there may be to a backend, 0 if there is no such
// backend.
func (t *Transport) connections(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.backends[name]; b != nil {
		return b.opts.Connections
	}
	return 0
}

// handles tells whether a backend is a Handler.
func (t *Transport) handles(name string) bool { return t.handlers[name] != nil }

// pace returns what messages from the queue wait for, nil if there is no such backend.
func (t *Transport) pace(name string) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.backends[name]; b != nil {
		return b.pace
	}
	return nil
}

// enter counts a transaction.
func (t *Transport) enter(name string) (*backend, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, ok := t.backends[name]
	switch {
	case t.closing:
		return nil, errClosing
	case !ok:
		return nil, fmt.Errorf("%w %q", errNoBackend, name)
	}
	t.running++
	return b, nil
}

// leave counts the end of a transaction.
func (t *Transport) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running--; t.running == 0 && t.closing {
		close(t.drained)
	}
}

// Update replaces the backends. Those whose settings are the same keep their
// connections. Transactions that run keep the settings they began with; the idle
// connections of a backend that is gone or changed are closed now, the others when they
// are given back, and so for that time there may be more than its cap. It returns the
// problems of all backends, joined, and changes nothing then, and ErrClosed after
// Shutdown.
func (t *Transport) Update(backends map[string]BackendOptions) error {
	if err := errors.Join(checkBackends(backends)...); err != nil {
		return fmt.Errorf("delivery: backends: %w", err)
	}
	gone, err := t.swap(backends)
	if err != nil {
		return err
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
	retireAll(t.settings.ctx, gone, nil)
	return nil
}

// swap installs new backends and returns those that are not used any more.
func (t *Transport) swap(backends map[string]BackendOptions) (gone []*backend, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return nil, ErrClosed
	}
	old := maps.Clone(t.backends)
	next := make(map[string]*backend)
	for name, o := range backends {
		o = o.withDefaults()
		if b, ok := old[name]; ok && b.opts.same(o) {
			next[name] = b
			delete(old, name)
			continue
		}
		next[name] = newBackend(t.settings, name, o)
	}
	gone = slices.Collect(maps.Values(old))
	t.backends = next
	t.retired = append(slices.DeleteFunc(t.retired, (*backend).empty), gone...)
	return gone, nil
}

func retireAll(ctx context.Context, backends []*backend, reason error) {
	var retiring sync.WaitGroup
	for _, b := range backends {
		retiring.Go(func() { b.retire(ctx, reason) })
	}
	retiring.Wait()
}

// Shutdown refuses new transactions, also those that wait for a connection, closes idle
// connections, and waits for running transactions to end. When ctx ends first their
// connections are cut, so that whatever they wait for fails, and ctx's error is
// returned. It may be called again.
func (t *Transport) Shutdown(ctx context.Context) error {
	all := t.close()
	retireAll(ctx, all, errClosing)
	var err error
	select {
	case <-t.drained:
	case <-ctx.Done():
		err = ctx.Err()
	}
	t.kill()
	for _, b := range all {
		b.cut()
	}
	<-t.janitor
	return err
}

// close marks the transport as closing and returns all backends there are.
func (t *Transport) close() []*backend {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closing {
		t.closing = true
		close(t.closed)
		if t.running == 0 {
			close(t.drained)
		}
	}
	return append(slices.Collect(maps.Values(t.backends)), t.retired...)
}

// all returns the backends in use, by name.
func (t *Transport) all() []*backend {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*backend
	for _, name := range slices.Sorted(maps.Keys(t.backends)) {
		all = append(all, t.backends[name])
	}
	return all
}

// clean is the janitor: it wakes when the next connection has been idle for too long, or an
// endpoint without contact.
func (t *Transport) clean() {
	defer close(t.janitor)
	probes := newProber(t.settings.ctx, t.every)
	defer probes.stop()
	for {
		next := time.Now().Add(time.Hour)
		for _, b := range t.all() {
			for _, due := range []time.Time{probes.start(b), b.sweep()} {
				if due.Before(next) {
					next = due
				}
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-t.changed:
			timer.Stop()
		case <-t.closed:
			timer.Stop()
			return
		}
	}
}
