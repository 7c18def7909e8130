package delivery

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/penstock/penstock/mail/smtp"
)

// backend.go: who may have a connection, which one, and which endpoints are left alone.
//
// A lease is the right to have one connection out of the pool. There are as many as
// the backend has connections, and leases + idle connections never exceed that: who
// needs a new connection and finds the rest idle elsewhere closes one of those first.

// The pause after an endpoint failed. It doubles with each failure in a row.
const (
	minPause = time.Second
	maxPause = time.Minute
)

// endpoint is an Endpoint with what we know of it. Guarded by backend.mu, but for the
// first two fields, which never change.
type endpoint struct {
	Endpoint
	tls *tls.Config

	idle []*conn // the longest idle one first
	busy int     // connections lent, or being made

	down    bool
	trying  bool // somebody tries it although it is down
	pause   time.Duration
	retry   time.Time // not to be tried before
	lastErr error

	// clear is until when TLS is not tried, after a handshake failed and with
	// TLSOpportunistic alone.
	clear time.Time

	offers Offers
	heard  time.Time // when the endpoint was last in contact; zero is never
	asked  time.Time // when it was last probed
}

// settings are those that all backends share.
type settings struct {
	ctx       context.Context // ends when a shutdown runs out of patience
	localName string
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	log       *slog.Logger
}

// backend is one backend with its connections.
type backend struct {
	*settings
	name   string
	opts   BackendOptions
	groups [][]*endpoint
	pace   *rate.Limiter // of messages from the queue

	mu      sync.Mutex // guards what follows, and the endpoints
	leases  int
	waiters list.List // of *waiter, first come first served
	idle    int       // the sum over the endpoints
	conns   map[*conn]struct{}
	retired bool // no connection is kept any more
	counts  counts

	logins chan struct{} // holds one for each login that is under way
}

// counts are what only grows.
type counts struct {
	dialled, failures, reused, transactions, waited, refused, lost uint64
}

// waiter waits for a lease. err is set before ready is closed, nil with a lease.
type waiter struct {
	ready chan struct{}
	err   error
}

func newBackend(s *settings, name string, o BackendOptions) *backend {
	b := &backend{settings: s, name: name, opts: o, conns: make(map[*conn]struct{}), logins: make(chan struct{}, o.Logins), pace: o.Pace.limiter()}
	for _, group := range o.Groups {
		var eps []*endpoint
		for _, e := range group {
			eps = append(eps, &endpoint{Endpoint: e, tls: o.tlsConfig(e)})
		}
		b.groups = append(b.groups, eps)
	}
	return b
}

// What a client is told if there is no connection for it.
var (
	errBusy        = smtp.Refuse(451, smtp.Enhanced{4, 3, 2}, "too much mail for the backend at the moment, try again later")
	errUnreachable = smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "backend is not reachable, try again later")
	errClosing     = smtp.Refuse(451, smtp.Enhanced{4, 3, 2}, "shutting down, try again later")
)

// lend returns a connection that is ready for MAIL, and a lease with it.
func (b *backend) lend(ctx context.Context) (*conn, error) {
	if err := b.lease(ctx); err != nil {
		return nil, err
	}
	return b.find(ctx, false)
}

// replace gives a new connection for one that was found dead.
func (b *backend) replace(ctx context.Context, dead *conn) (*conn, error) {
	b.drop(dead)
	return b.find(ctx, true)
}

// giveBack ends the loan of c, which must not be in a transaction of the protocol any
// more, and the lease.
func (b *backend) giveBack(c *conn) {
	if c.uses < b.opts.MaxUses && !c.client.Broken() && b.keep(c) {
		return
	}
	c.quit(b.ctx)
	b.discard(c)
}

// keep makes c idle, if connections are still kept.
func (b *backend) keep(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retired {
		return false
	}
	c.since = time.Now()
	c.ep.heard = c.since
	c.ep.busy--
	c.ep.idle = append(c.ep.idle, c)
	b.idle++
	b.unlease()
	return true
}

// discard closes c without a word, and ends the lease.
func (b *backend) discard(c *conn) {
	b.drop(c)
	b.mu.Lock()
	b.unlease()
	b.mu.Unlock()
}

// lose is discard for a connection that broke within a transaction.
func (b *backend) lose(c *conn) {
	b.mu.Lock()
	b.counts.lost++
	b.mu.Unlock()
	b.discard(c)
}

// drop closes c without a word. The lease remains.
func (b *backend) drop(c *conn) {
	c.client.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	c.ep.busy--
}

// lease waits for a lease, in line.
func (b *backend) lease(ctx context.Context) error {
	b.mu.Lock()
	b.counts.transactions++
	if b.leases < b.opts.Connections && b.waiters.Len() == 0 {
		b.leases++
		b.mu.Unlock()
		return nil
	}
	b.counts.waited++
	w := &waiter{ready: make(chan struct{})}
	place := b.waiters.PushBack(w)
	b.mu.Unlock()

	timer := time.NewTimer(b.opts.WaitConnection)
	defer timer.Stop()
	select {
	case <-w.ready:
		return w.err
	case <-timer.C:
		return b.leaveLine(place, errBusy)
	case <-ctx.Done():
		return b.leaveLine(place, fmt.Errorf("delivery: waiting for a connection to backend %s: %w", b.name, context.Cause(ctx)))
	}
}

// leaveLine gives a place in the line up because of err. It may have been this one's
// turn in the same moment, and then it is taken.
func (b *backend) leaveLine(place *list.Element, err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := place.Value.(*waiter)
	select {
	case <-w.ready:
		return w.err
	default:
	}
	b.waiters.Remove(place)
	b.counts.refused++
	return err
}

// unlease ends a lease: it goes to the first in line. b.mu is held.
func (b *backend) unlease() {
	first := b.waiters.Front()
	if first == nil {
		b.leases--
		return
	}
	close(b.waiters.Remove(first).(*waiter).ready)
}

// find turns a lease into a connection: an idle one, or else a new one. The lease ends
// if there is none.
func (b *backend) find(ctx context.Context, fresh bool) (*conn, error) {
	c, err := b.search(ctx, fresh)
	if err != nil {
		b.mu.Lock()
		b.unlease()
		b.mu.Unlock()
		return nil, err
	}
	c.uses++
	return c, nil
}

func (b *backend) search(ctx context.Context, fresh bool) (*conn, error) {
	var failed []error
	var tried []*endpoint
	for {
		p := b.pick(fresh, tried)
		switch {
		case p.idle != nil && p.idle.usable():
			return p.idle, nil
		case p.idle != nil:
			b.drop(p.idle)
			continue
		case p.ep == nil:
			return nil, errUnreachable.Because(b.whyDown(failed))
		}
		if p.evicted != nil {
			p.evicted.quit(b.ctx)
		}
		c, err := b.connect(ctx, p.ep)
		b.note(ctx, p, c, err)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("delivery: connecting to backend %s: %w", b.name, context.Cause(ctx))
		}
		tried = append(tried, p.ep)
		failed = append(failed, err)
	}
}

// choice is what pick found: an idle connection, or an endpoint to connect to, or
// neither.
type choice struct {
	idle    *conn
	ep      *endpoint
	probe   bool  // ep is down, and this is to find out whether it still is
	evicted *conn // to be closed first, so that the cap is kept
}

// pick chooses for one who has a lease, and counts the choice as busy. An endpoint in
// tried is not connected to again; fresh leaves the idle connections alone.
func (b *backend) pick(fresh bool, tried []*endpoint) choice {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	full := b.leases+b.idle > b.opts.Connections
	for _, group := range b.groups {
		ep := best(group, full, func(ep *endpoint) bool {
			return !fresh && b.hasIdle(ep, now) || ep.dialable(now) && !slices.Contains(tried, ep)
		})
		switch {
		case ep == nil:
			continue
		case !fresh && b.hasIdle(ep, now):
			return choice{idle: b.popIdle(ep)}
		}
		p := choice{ep: ep, probe: ep.down}
		ep.busy++
		ep.trying = ep.down
		if full {
			p.evicted = b.evict()
		}
		return p
	}
	return choice{}
}

// best returns the usable endpoint with the fewest transactions, and of equal ones any.
// When a new connection would cost an idle one, those that have one go first.
func best(group []*endpoint, full bool, usable func(*endpoint) bool) *endpoint {
	var found *endpoint
	equals := 0
	for _, ep := range group {
		if !usable(ep) {
			continue
		}
		switch order := compare(ep, found, full); {
		case order < 0:
			found, equals = ep, 1
		case order == 0:
			// The n-th of equals takes the place with the chance of 1 in n.
			if equals++; rand.IntN(equals) == 0 {
				found = ep
			}
		}
	}
	return found
}

// compare is negative if a is better than o, which may be nil.
func compare(a, o *endpoint, full bool) int {
	switch {
	case o == nil:
		return -1
	case full && (len(a.idle) > 0) != (len(o.idle) > 0):
		return len(o.idle) - len(a.idle)
	}
	return a.busy - o.busy
}

func (ep *endpoint) dialable(now time.Time) bool {
	return !ep.down || !ep.trying && !now.Before(ep.retry)
}

// hasIdle tells whether ep has a connection that is not too old. Those that are, are
// left to the janitor. b.mu is held.
func (b *backend) hasIdle(ep *endpoint, now time.Time) bool {
	n := len(ep.idle)
	return n > 0 && now.Sub(ep.idle[n-1].since) < b.opts.IdleTimeout
}

// popIdle takes the connection that became idle last, as the others then can grow old
// and be closed. b.mu is held.
func (b *backend) popIdle(ep *endpoint) *conn {
	last := len(ep.idle) - 1
	c := ep.idle[last]
	ep.idle[last] = nil
	ep.idle = ep.idle[:last]
	ep.busy++
	b.idle--
	b.counts.reused++
	return c
}

// evict takes the oldest idle connection of the least wanted group out of the pool.
// b.mu is held.
func (b *backend) evict() *conn {
	for _, group := range slices.Backward(b.groups) {
		if c := b.takeOldest(group); c != nil {
			delete(b.conns, c)
			return c
		}
	}
	return nil
}

// takeOldest takes the longest idle connection of a group out of the pool, nil if there
// is none. b.mu is held.
func (b *backend) takeOldest(group []*endpoint) *conn {
	var oldest *endpoint
	for _, ep := range group {
		if len(ep.idle) > 0 && (oldest == nil || ep.idle[0].since.Before(oldest.idle[0].since)) {
			oldest = ep
		}
	}
	if oldest == nil {
		return nil
	}
	c := oldest.idle[0]
	oldest.idle = slices.Delete(oldest.idle, 0, 1)
	b.idle--
	return c
}

// note records how an attempt to connect ended. One that the caller ended says nothing
// about the endpoint.
func (b *backend) note(ctx context.Context, p choice, c *conn, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ep := p.ep
	b.counts.dialled++
	if p.probe {
		ep.trying = false
	}
	switch {
	case err == nil:
		if ep.down {
			b.log.Info("endpoint is back", "backend", b.name, "remote", ep.String())
		}
		ep.down, ep.pause, ep.lastErr = false, 0, nil
		ep.learn(c.offers)
		b.conns[c] = struct{}{}
		if b.ctx.Err() != nil {
			c.nc.Close() // cut has been here already
		}
		return
	case ctx.Err() == nil && b.ctx.Err() == nil:
		b.counts.failures++
		ep.lastErr = err
		// Of those who were already trying when it went down, each would double the
		// pause.
		if !ep.down || p.probe {
			ep.pause = min(max(2*ep.pause, minPause), maxPause)
			ep.retry = time.Now().Add(ep.pause)
			ep.down = true
			b.log.Warn("endpoint is down", "backend", b.name, "remote", ep.String(), "dur", ep.pause, "err", err)
		}
	}
	ep.busy--
}

// whyDown joins what went wrong in this attempt, or else in those before.
func (b *backend) whyDown(failed []error) error {
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for ep := range b.endpoints() {
		if ep.lastErr != nil {
			failed = append(failed, ep.lastErr)
		}
	}
	return errors.Join(failed...)
}

// endpoints yields the endpoints in order.
func (b *backend) endpoints() func(yield func(*endpoint) bool) {
	return func(yield func(*endpoint) bool) {
		for _, group := range b.groups {
			for _, ep := range group {
				if !yield(ep) {
					return
				}
			}
		}
	}
}

// sweep closes connections that were idle for too long and returns when the next one
// will be. Each is borrowed for that, one at a time: so it stays within the cap, and a
// backend that does not answer QUIT costs others no more than one connection.
func (b *backend) sweep() time.Time {
	for {
		c, next := b.borrowExpired(time.Now())
		if c == nil {
			return next
		}
		c.quit(b.ctx)
		b.discard(c)
	}
}

func (b *backend) borrowExpired(now time.Time) (c *conn, next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// What becomes idle from now on is not due before this.
	next = now.Add(b.opts.IdleTimeout)
	for ep := range b.endpoints() {
		if len(ep.idle) == 0 {
			continue
		}
		due := ep.idle[0].since.Add(b.opts.IdleTimeout)
		if !due.After(now) {
			c = b.takeOldest([]*endpoint{ep})
			ep.busy++
			b.leases++ // one is free: leases + idle was within the cap
			return c, next
		}
		if due.Before(next) {
			next = due
		}
	}
	return nil, next
}

// retire ends the pool: idle connections are closed, those that are lent will be. With
// a reason those in line get it.
func (b *backend) retire(ctx context.Context, reason error) {
	b.mu.Lock()
	b.retired = true
	var idle []*conn
	for _, group := range b.groups {
		for c := b.takeOldest(group); c != nil; c = b.takeOldest(group) {
			delete(b.conns, c)
			idle = append(idle, c)
		}
	}
	for e := b.waiters.Front(); e != nil && reason != nil; e = b.waiters.Front() {
		w := b.waiters.Remove(e).(*waiter)
		w.err = reason
		close(w.ready)
	}
	b.mu.Unlock()
	var quitting sync.WaitGroup
	for _, c := range idle {
		quitting.Go(func() { c.quit(ctx) })
	}
	quitting.Wait()
}

// cut closes the sockets of all connections under their users' hands.
func (b *backend) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.nc.Close()
	}
}

// empty tells whether nothing is open or lent any more.
func (b *backend) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leases == 0 && len(b.conns) == 0
}
