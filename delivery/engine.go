package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// engine.go: what is in the queue is delivered. The store says what waits where; the Engine
// says who delivers it and when.
//
// Recipients wait at a destination, and each destination has workers of its own, as many as
// its site bears (site.go): a slow one never takes a worker from another. A worker leases what is due, a few
// messages at a time, the fresh before those that were tried already, delivers them, and
// leases again, until nothing is due; so there is no goroutine for a message that waits, and
// none for a destination where nothing is due.
//
// A message that comes in while its destination has a worker free is handed to it in the
// step that makes it safe. Whoever brings it never waits for that.
//
//	Keep ── commit ──▶ store ◀── lease ── worker ──▶ Transport ──▶ backend
//	           └ (a worker is free) lease ──────▶ ┘       │
//	                                store ◀── finish ─────┘  outcomes, and one report

// EngineOptions are the settings of an Engine. The zero value of each field but the required
// ones means its default.
type EngineOptions struct {
	// Queue is where messages are. Required.
	Queue store.Queue
	// Transport delivers to backends. Required.
	Transport *Transport
	// Hostname is our name, for reports. Required.
	Hostname string
	// Route returns where mail for an address goes: reports go there. Required.
	Route func(smtp.Path) store.Destination
	// Schedule says when to try again.
	Schedule Schedule
	// Workers is how many deliveries may be under way in all. Default 500.
	Workers int
	// DestinationWorkers is how many may be under way to one site: to a set of hosts that may
	// serve many destinations. Backends have their own number. Default 20.
	DestinationWorkers int
	// Lease is for how long a delivery is leased at a time; it is extended while it runs.
	// What a node had that died comes back to the others after that. Default 2 minutes.
	Lease time.Duration
	// KeepTime is how long the store may take to make a message safe before the client is
	// told to try again later. Default 30 seconds.
	KeepTime time.Duration
	// Sign, if not nil, returns the fields that go on top of a report of ours: its signatures,
	// none if there is no key for the domain. One that cannot be signed goes without.
	Sign func(ctx context.Context, domain smtp.Domain, content smtp.Content) ([]message.Field, error)
	// Outbound is the way to hosts elsewhere. Nil is none: what is for them waits.
	Outbound *OutboundOptions
	// Log gets a line per attempt. Nil discards.
	Log *slog.Logger
}

// Validate returns every problem, joined.
func (o EngineOptions) Validate() error {
	var errs []error
	if o.Queue == nil || o.Transport == nil || o.Route == nil {
		errs = append(errs, errors.New("queue, transport and route are required"))
	}
	if _, err := smtp.ParseDomain(o.Hostname); err != nil {
		errs = append(errs, fmt.Errorf("hostname: %w", err))
	}
	if o.Workers < 0 || o.DestinationWorkers < 0 || o.Lease < 0 || o.KeepTime < 0 {
		errs = append(errs, errors.New("workers and times must not be negative"))
	}
	if o.Outbound != nil {
		errs = append(errs, o.Outbound.Validate())
	}
	return errors.Join(append(errs, o.Schedule.Validate())...)
}

func (o EngineOptions) withDefaults() EngineOptions {
	setDefault(&o.Workers, 500)
	setDefault(&o.DestinationWorkers, 20)
	setDefault(&o.Lease, 2*time.Minute)
	setDefault(&o.KeepTime, 30*time.Second)
	o.Schedule = o.Schedule.withDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Engine delivers what is in a queue. It is safe for concurrent use. Run must be called.
type Engine struct {
	opts  EngineOptions
	own   smtp.Domain
	Stats EngineStats
	now   func() time.Time
	under underWay
	out   *outbound // nil without a way to hosts elsewhere

	wake    chan struct{} // of capacity 1: look what is due
	running sync.WaitGroup
	// attempts is the parent of every attempt; kill ends it when a shutdown runs out of
	// patience.
	attempts context.Context
	kill     context.CancelCauseFunc
	// scouting is the parent of what scouts do; recall ends it with a shutdown.
	scouting context.Context
	recall   context.CancelFunc
	closed   chan struct{} // closed with closing

	mu      sync.Mutex // guards what follows
	closing bool
	workers int
	// unproven counts the workers at sites that are not proven.
	unproven int
	dests    map[store.Destination]*destination
	sites    map[string]*site
	// short are the destinations that lack nothing but a worker: those of proven sites, and the
	// others. turn says which are next.
	short [2]line
	turn  int
	// unplaced are those whose site is not known, scouts how many look for it, slow how many of
	// these have done so for long, and newest whether the last that was looked for was the newest.
	unplaced line
	scouts   int
	slow     int
	newest   bool
	swept    time.Time // when old sites were forgotten last
}

// EngineStats counts what happened since the start.
type EngineStats struct {
	Kept      atomic.Int64 // messages taken into the queue
	Attempts  atomic.Int64
	Delivered atomic.Int64 // recipients
	Failed    atomic.Int64 // recipients, for good
	Deferred  atomic.Int64 // tries of recipients that are to be repeated
	Reports   atomic.Int64
	LeaseLost atomic.Int64
}

// destination is one with workers, or one that waits for them.
type destination struct {
	name    store.Destination
	site    *site // nil while it is not known
	workers int
	// more tells that something may be due that no worker has looked at yet.
	more bool
	// waits tells that it stands in a line; it has no workers then.
	waits bool
	// stale tells that the site is another by now, and that no more workers are to begin.
	stale bool
	moved time.Time // when it became so last
}

// backendPrefix marks the destinations that are backends.
const backendPrefix = "backend:"

// BackendDestination is the destination of a backend's recipients.
func BackendDestination(backend string) store.Destination {
	return store.Destination(backendPrefix + backend)
}

// NewEngine returns an Engine. It returns Validate's error.
func NewEngine(o EngineOptions) (*Engine, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("delivery: engine: %w", err)
	}
	e := &Engine{opts: o.withDefaults(), now: time.Now, wake: make(chan struct{}, 1), dests: make(map[store.Destination]*destination), sites: make(map[string]*site), closed: make(chan struct{})}
	e.own, _ = smtp.ParseDomain(o.Hostname)
	if o.Outbound != nil {
		e.out = newOutbound(e, *o.Outbound)
	}
	e.attempts, e.kill = context.WithCancelCause(context.Background())
	e.scouting, e.recall = context.WithCancel(e.attempts)
	return e, nil
}

// lookAtLeast is how often the store is asked what is due, whatever happens: it may know of
// something that nobody told us, a lease that ran out for one; if leases are shorter, it is
// asked as often as they run out. lookPause is the least time
// between two looks, and the pause is so many times as long as the look took: with a large
// queue in a database it is work.
const (
	lookAtLeast = 30 * time.Second
	lookPause   = 50 * time.Millisecond
	lookShare   = 10
)

// Run delivers until ctx ends. It then leases nothing any more, and returns; deliveries that
// run are waited for by Shutdown.
func (e *Engine) Run(ctx context.Context) {
	var janitor sync.WaitGroup
	defer janitor.Wait()
	if e.out != nil {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		janitor.Go(func() { e.out.links.janitor(ctx) })
	}
	watch := e.opts.Queue.Watch(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-watch:
			if !ok {
				watch = nil
			}
		case <-e.wake:
		case <-timer.C:
		}
		began := time.Now()
		next := e.look(ctx)
		e.pause(max(lookPause, lookShare*time.Since(began)))
		timer.Reset(max(min(time.Until(next), lookAtLeast, e.opts.Lease), 0))
	}
}

// look gives workers to destinations where something is due, and returns when the next thing
// will be.
func (e *Engine) look(ctx context.Context) (next time.Time) {
	now := e.now()
	e.mu.Lock()
	e.forgetOld(now)
	e.mu.Unlock()
	next = now.Add(lookAtLeast)
	err := e.opts.Queue.Destinations(ctx, func(w store.Waits) bool {
		switch {
		case w.Due.IsZero():
		case w.Due.After(now):
			if w.Due.Before(next) {
				next = w.Due
			}
		default:
			e.staff(w.Destination, w.Waiting)
		}
		return true
	})
	if err != nil && ctx.Err() == nil {
		e.opts.Log.Error("queue cannot be looked at, trying again", "err", err)
		next = now.Add(time.Second)
	}
	return next
}

// staff gives a destination as many workers as it has use for and may have.
func (e *Engine) staff(name store.Destination, waiting int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.destination(name)
	d.more = true
	for n := waiting - d.workers; n > 0 && e.hire(d); n-- {
		go e.work(d, nil)
	}
	if d.workers == 0 && !d.waits && !e.closing {
		e.wait(d)
	}
}

// destination returns that of a name. e.mu is held.
func (e *Engine) destination(name store.Destination) *destination {
	d := e.dests[name]
	if d == nil {
		d = &destination{name: name}
		e.dests[name] = d
	}
	return d
}

// leases is how many messages a worker leases at a time. A worker that ends gives back what
// it did not come to.
const leases = 4

// work is a worker: it delivers first, if it was given something, and then whatever is due.
func (e *Engine) work(d *destination, first *store.Lease) {
	defer e.running.Done()
	if first != nil && !e.deliver(first) {
		if d = e.move(d); d == nil {
			return
		}
	}
	for {
		batch := e.lease(d)
		if len(batch) == 0 {
			if d = e.dismiss(d); d == nil {
				return
			}
			continue
		}
		if d = e.deliverAll(d, batch); d == nil {
			return
		}
	}
}

// deliverAll delivers a batch, as far as no other worker can be had for it, and returns where
// the worker goes on; nil is nowhere.
func (e *Engine) deliverAll(d *destination, batch []*store.Lease) *destination {
	leased := e.now()
	batch = batch[:1+e.share(d, batch[1:])]
	for i, l := range batch {
		if e.stopping() {
			e.giveBack(batch[i:])
			return d
		}
		if i > 0 && e.now().Sub(leased) >= e.opts.Lease/3 && !e.extend(l) {
			continue
		}
		if !e.deliver(l) {
			e.giveBack(batch[i+1:])
			break
		}
	}
	return e.move(d)
}

// share gives leases to new workers, the last first, so that none waits behind a message that
// takes long, and returns how many remain.
func (e *Engine) share(d *destination, batch []*store.Lease) (left int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for left = len(batch); left > 0 && e.hire(d); left-- {
		go e.work(d, batch[left-1])
	}
	return left
}

// extend makes a lease that lay for a while last anew, and tells whether it is still ours.
func (e *Engine) extend(l *store.Lease) bool {
	ctx, cancel := context.WithTimeout(e.attempts, storeTime)
	defer cancel()
	err := e.opts.Queue.Extend(ctx, l, e.opts.Lease)
	if err != nil && !errors.Is(err, store.ErrLeaseLost) {
		e.giveBack([]*store.Lease{l})
	}
	return err == nil
}

// move lets a worker go over to a destination that has none: for want of workers in all, or of
// room at the site. Otherwise those that came first, and always have mail, would keep all. It
// returns where the worker is then, nil if it is to end because the site wants fewer.
func (e *Engine) move(d *destination) *destination {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return d
	}
	other, over := e.next(d.site), e.over(d)
	switch {
	case other == nil && over:
		d.more = true // its turn comes again
		e.workers--
		e.leave(d)
		return nil
	case other == nil && d.site.line.empty():
		return d
	case other == nil:
		other = d.site.line.pop()
	}
	d.more = true
	e.enter(other)
	e.leave(d)
	return other
}

// over tells whether a destination has a worker too many: its site wants fewer by now, or is
// another one, or is one of those that are not proven and have too many together. e.mu is held.
func (e *Engine) over(d *destination) bool {
	s := d.site
	return d.stale || e.rests(s) || s.workers > e.limit(s) || !s.proven && e.unproven > e.mostUnproven()
}

// dismiss lets a worker go. It returns where the worker is needed instead, if something may
// have become due since it looked, or elsewhere nobody could be hired for what is due; nil if
// it is to end.
func (e *Engine) dismiss(d *destination) *destination {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d.more && !e.closing && !e.over(d) {
		return d
	}
	if e.closing {
		e.workers--
		e.leave(d)
		return nil
	}
	other := e.next(d.site)
	if other == nil {
		e.workers--
		e.leave(d)
		return nil
	}
	e.enter(other)
	e.leave(d)
	return other
}

func (e *Engine) stopping() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing
}

// lease leases what is due at a destination.
func (e *Engine) lease(d *destination) []*store.Lease {
	e.mu.Lock()
	none := e.closing || e.over(d)
	d.more = none // what it is not to look at is left to others
	e.mu.Unlock()
	if none {
		return nil
	}
	ctx, cancel := context.WithTimeout(e.attempts, storeTime)
	defer cancel()
	batch, err := e.opts.Queue.Lease(ctx, d.name, e.now(), leases, e.opts.Lease)
	if err != nil {
		if e.attempts.Err() == nil {
			e.opts.Log.Error("queue gives nothing out, trying again", "err", err)
			e.pause(time.Second)
		}
		e.nudge()
		return nil
	}
	if len(batch) == leases {
		e.mu.Lock()
		d.more = true
		e.mu.Unlock()
	}
	return batch
}

// storeTime is how long one call of the store may take.
const storeTime = 30 * time.Second

// giveBack returns leases that are not used.
func (e *Engine) giveBack(batch []*store.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTime)
	defer cancel()
	for _, l := range batch {
		if err := e.opts.Queue.Return(ctx, l); err != nil && !errors.Is(err, store.ErrLeaseLost) {
			e.opts.Log.Warn("a lease could not be given back, and will run out", "mail", string(l.Message.ID), "err", err)
		}
	}
}

// nudge makes Run look what is due.
func (e *Engine) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// pause waits, unless the engine is cut off.
func (e *Engine) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-e.attempts.Done():
	}
}

// errShutdown ends attempts that a shutdown does not wait for.
var errShutdown = errors.New("delivery: shutting down")

// Shutdown waits for the deliveries that run, after Run was ended. When ctx ends first, they
// are cut off and tried again later, and ctx's error is returned. It may be called again.
func (e *Engine) Shutdown(ctx context.Context) error {
	e.mu.Lock()
	if !e.closing {
		close(e.closed)
		e.recall() // what they look for waits in the store
		for _, s := range e.sites {
			if s.timer != nil {
				s.timer.Stop()
			}
		}
	}
	e.closing = true
	e.mu.Unlock()
	done := make(chan struct{})
	go func() {
		e.running.Wait()
		if e.out != nil {
			e.out.links.close()
		}
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	e.kill(errShutdown)
	<-done
	return ctx.Err()
}
