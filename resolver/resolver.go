package resolver

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// resolver.go holds what a Resolver is, and lets look-ups of the same question share one
// flight.

// Resolver looks names up. Its methods are safe for concurrent use. Whoever made it closes
// it.
type Resolver struct {
	opt      Options
	hosts    []*host
	counters counters

	ctx     context.Context // of all flights; ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // flights

	mu     sync.Mutex
	cache  *cache        // guarded by mu
	calls  map[key]*call // under way; guarded by mu
	closed bool          // guarded by mu
}

// call is a flight for those who wait for it.
type call struct {
	done    chan struct{}
	outcome *outcome // valid after done
}

var (
	errClosed = errors.New("the resolver is closed")
	errBusy   = errors.New("too many look-ups are under way")
)

// New returns a Resolver. If no servers are named it looks for them, which takes two seconds
// at most; otherwise it asks nobody. Its error joins all problems of the options, or tells
// why there is no server to be found.
func New(o Options) (*Resolver, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	servers, err := o.servers()
	if err != nil {
		return nil, err
	}
	r := &Resolver{opt: o, cache: newCache(o.CacheSize, o.CacheBytes), calls: make(map[key]*call)}
	for _, s := range servers {
		r.hosts = append(r.hosts, newHost(s))
	}
	if !o.Plain && !r.Trusted() {
		o.Log.Warn("no dns answer will count as authenticated: the servers are neither on the loopback nor trusted over tls",
			"remote", r.Servers())
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Trusted tells whether answers may be authenticated at all: whether the AD bit of the
// servers counts.
func (r *Resolver) Trusted() bool { return r.hosts[0].Authenticates() }

// Servers returns the addresses of the servers that are asked.
func (r *Resolver) Servers() []string {
	var list []string
	for _, h := range r.hosts {
		list = append(list, h.Address)
	}
	return list
}

// Close ends all look-ups, waits for them and closes the connections. Look-ups that were
// under way, and later ones, fail with ErrTemporary. It may be called more than once.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
	for _, h := range r.hosts {
		h.close()
	}
}

// enter counts in a user of the hosts. It is false after Close.
func (r *Resolver) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.running.Add(1)
	return true
}

// find returns what the cache knows about the question, or else the flight that will, one
// that is under way or a new one.
func (r *Resolver) find(k key) (*outcome, *call) {
	r.counters.lookups.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.cache.get(k, r.opt.Now()); o != nil {
		r.counters.hits.Add(1)
		return o, nil
	}
	if c := r.calls[k]; c != nil {
		r.counters.shared.Add(1)
		return nil, c
	}
	switch {
	case r.closed:
		return temporary(k, errClosed), nil
	case len(r.calls) >= r.opt.Inflight:
		return temporary(k, errBusy), nil
	}
	c := &call{done: make(chan struct{})}
	r.calls[k] = c
	r.running.Add(1)
	go r.fly(k, c)
	return nil, c
}

// fly runs a flight. It ends with its budget, or with Close, which waits for it.
func (r *Resolver) fly(k key, c *call) {
	defer r.running.Done()
	ctx, cancel := r.until()
	defer cancel()
	o := r.resolve(ctx, k)
	r.mu.Lock()
	r.cache.put(k, o, r.opt.Now())
	delete(r.calls, k)
	r.mu.Unlock()
	c.outcome = o
	close(c.done)
}

func temporary(k key, cause error) *outcome {
	return &outcome{err: &Error{Name: k.name, Type: k.typ, Kind: ErrTemporary, Cause: cause}}
}

// wait waits for the flight, but not longer than the caller wants to.
func wait(ctx context.Context, k key, o *outcome, c *call) *outcome {
	if o != nil {
		return o
	}
	select {
	case <-c.done:
		return c.outcome
	case <-ctx.Done():
		return temporary(k, context.Cause(ctx))
	}
}

// lookup is the way of every look-up.
func (r *Resolver) lookup(ctx context.Context, name string, typ Type) (*outcome, error) {
	k, err := question(name, typ)
	if err != nil {
		return nil, err
	}
	o, c := r.find(k)
	if o = wait(ctx, k, o, c); o.err != nil {
		return nil, o.err
	}
	return o, nil
}

// question returns the key for a name, or an error for what cannot be one.
func question(name string, typ Type) (key, error) {
	normal, ok := normalise(name)
	if !ok {
		return key{}, &Error{Name: name, Type: typ, Kind: ErrBadName}
	}
	if _, ok := typeNames[typ]; !ok {
		return key{}, &Error{Name: normal, Type: typ, Kind: ErrBadName, Cause: errType}
	}
	return key{normal, typ}, nil
}

var errType = errors.New("records of this type are not looked up here")

// counters count since New.
type counters struct {
	lookups, hits, shared, queries, streams, timeouts, foreign, failures, bogus atomic.Uint64
}

// Stats are counters since New, and the state of now.
type Stats struct {
	Lookups  uint64 // questions asked of the Resolver; LookupAddrs asks one for each family
	Hits     uint64 // answered from the cache
	Shared   uint64 // waited for a flight that was under way
	Queries  uint64 // sent to servers
	Streams  uint64 // of these, sent again over TCP
	Timeouts uint64 // queries without a reply in time
	Foreign  uint64 // datagrams that were not the reply to our query, or unreadable
	Failures uint64 // flights that ended without knowing
	Bogus    uint64 // of these, because the validation failed

	Inflight     int // flights under way
	CacheEntries int // answers in the cache, some of which may have expired
	CacheBytes   int // what they take, about
}

// Stats returns the counters.
func (r *Resolver) Stats() Stats {
	n := &r.counters
	s := Stats{
		Lookups: n.lookups.Load(), Hits: n.hits.Load(), Shared: n.shared.Load(),
		Queries: n.queries.Load(), Streams: n.streams.Load(), Timeouts: n.timeouts.Load(),
		Foreign: n.foreign.Load(), Failures: n.failures.Load(), Bogus: n.bogus.Load(),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Inflight, s.CacheEntries, s.CacheBytes = len(r.calls), r.cache.recent.Len(), r.cache.used
	return s
}
