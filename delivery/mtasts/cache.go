package mtasts

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// cache.go: what this node knows of domains, and flights that callers share.

// Result is what is known of a domain.
type Result struct {
	// Policy is the policy that applies. Nil if none does. One of mode None asks for nothing.
	Policy *Policy
	// Err is why there is no policy although the domain may have one, or why the one that
	// applies is not known to be the latest: an *Error. Nil if all is as it should be, which
	// includes a domain without MTA-STS. If it wraps ErrUnknown, mail should wait; any other
	// error does not keep mail from going as Policy says (RFC 8461, Section 3.3).
	Err error
	// ID is the id in the domain's record. Empty if there is none, or it is not known.
	ID string
	// Expires is until when the result may be used without asking again.
	Expires time.Time
}

// Mode returns the mode of the policy, and None without one.
func (r Result) Mode() Mode {
	if r.Policy == nil {
		return None
	}
	return r.Policy.Mode
}

// Cache finds policies. Its methods are safe for concurrent use. Whoever made it closes it.
type Cache struct {
	opt      Options
	counters counters

	ctx     context.Context // of all flights; ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // flights

	mu      sync.Mutex
	places  map[string]*list.Element // of *entry; guarded by mu
	recent  list.List                // the latest first; guarded by mu
	used    int                      // octets; guarded by mu
	flights map[string]*flight       // under way; guarded by mu
	closed  bool                     // guarded by mu
}

// entry is what is known of a domain.
type entry struct {
	domain string
	result Result
	used   time.Time // when mail last asked, by about a day
	// unsaved: the Store did not take the policy, so that what it has is older.
	unsaved bool
	renewed time.Time // when Fresh was last asked
	alerted time.Time // when the operator was last told
	failure failure
}

// failure is what is remembered of fetches that failed.
type failure struct {
	id    string // of the last one
	err   error
	until time.Time // when the host may be asked again
	count int       // one after the other
}

// how says what a flight is for. A later one does all that an earlier one does.
type how int

const (
	usual      how = iota // for mail
	renewing              // the record is looked up anew
	refreshing            // and the policy fetched although the id is the same
)

// flight is a look at a domain, for those who wait for it.
type flight struct {
	how    how
	done   chan struct{}
	result Result // valid after done
	kept   *kept  // what is known to be kept, be it nothing; nil until then. Guarded by Cache.mu
}

var (
	errClosed = errors.New("the cache is closed")
	errBusy   = errors.New("too many domains are being looked at")
)

// New returns a Cache. Its error joins all problems of the options.
func New(o Options) (*Cache, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	c := &Cache{opt: o.withDefaults(), places: make(map[string]*list.Element), flights: make(map[string]*flight)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends all that is under way and waits for it. Later look-ups fail. It may be called
// more than once.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
}

// Lookup returns the policy of a domain: that of the recipient, or of the smart host in its
// place (RFC 8461, Section 3.4), as A-labels. It waits no longer than ctx, and than
// Options.Timeout. Nothing applies to what is no domain, as an address literal.
func (c *Cache) Lookup(ctx context.Context, domain string) Result {
	return c.ask(ctx, domain, usual)
}

// renewFloor is how long the answer to a Renew is good for others.
const renewFloor = time.Minute

// Renew is Lookup, but asks for the domain's record anew: a policy that keeps mail from being
// delivered may have been replaced, and that must be known before anything is given up (RFC
// 8461, Section 5). The answer may be a minute old.
func (c *Cache) Renew(ctx context.Context, domain string) Result {
	return c.ask(ctx, domain, renewing)
}

// ask answers from memory, or from a flight that is or gets under way.
func (c *Cache) ask(ctx context.Context, domain string, h how) Result {
	domain, ok := normalise(domain)
	if !ok {
		return Result{Expires: c.opt.Now().Add(longest)}
	}
	c.counters.lookups.Add(1)
	for {
		r, f := c.find(domain, h)
		if f == nil {
			return r
		}
		select {
		case <-f.done:
			if f.how >= h {
				return f.result
			}
		case <-ctx.Done():
			return c.impatient(domain, f, context.Cause(ctx))
		}
	}
}

// normalise returns a domain in lower case. It is false for what has no policy.
func normalise(domain string) (string, bool) {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	if len(domain) > 253-len("_mta-sts.") || !isHostName(domain) {
		return "", false
	}
	// Only addresses end with a number (RFC 3696, Section 2).
	last := domain[strings.LastIndexByte(domain, '.')+1:]
	return domain, strings.Trim(last, digits) != ""
}

// find returns what memory says of a domain, or the flight that will.
func (c *Cache) find(domain string, h how) (Result, *flight) {
	now := c.opt.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entry(domain); e != nil && e.answers(h, now) {
		c.counters.hits.Add(1)
		return e.result, nil
	}
	if f := c.flights[domain]; f != nil {
		c.counters.shared.Add(1)
		return Result{}, f
	}
	switch {
	case c.closed:
		return c.instead(domain, errClosed), nil
	case len(c.flights) >= c.opt.Flights:
		return c.instead(domain, errBusy), nil
	}
	f := &flight{how: h, done: make(chan struct{})}
	c.flights[domain] = f
	c.running.Go(func() { c.fly(domain, f) })
	return Result{}, f
}

// answers tells whether an entry will do.
func (e *entry) answers(h how, now time.Time) bool {
	if !now.Before(e.result.Expires) {
		return false
	}
	return h == usual || h == renewing && now.Sub(e.renewed) < renewFloor
}

// impatient is the answer to a caller who does not wait for a flight. As far as that has come it
// may be known already that nothing is kept: then it is a policy that could not be had in time.
func (c *Cache) impatient(domain string, f *flight, cause error) Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.kept == nil {
		return c.instead(domain, cause)
	}
	now := c.opt.Now()
	r := Result{Err: &Error{domain, FetchError, cause}, Expires: now}
	if f.kept.valid(now) {
		r.Policy = f.kept.policy
	}
	return r
}

// instead is the answer if there can be no flight: the policy that memory has, if it holds.
// It is called with mu held.
func (c *Cache) instead(domain string, cause error) Result {
	now := c.opt.Now()
	if e := c.entry(domain); e != nil && e.kept().valid(now) {
		return Result{Policy: e.result.Policy, Err: &Error{domain, FetchError, cause}, Expires: now}
	}
	return Result{Err: &Error{domain, FetchError, errors.Join(ErrUnknown, cause)}, Expires: now}
}

// entry returns what is known of a domain, or nil. It is called with mu held.
func (c *Cache) entry(domain string) *entry {
	p := c.places[domain]
	if p == nil {
		return nil
	}
	c.recent.MoveToFront(p)
	return p.Value.(*entry)
}

func (e *entry) kept() kept { return kept{e.result.Policy, e.used} }

// known returns a copy of what is known of a domain.
func (c *Cache) known(domain string) entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entry(domain); e != nil {
		return *e
	}
	return entry{domain: domain}
}

// size is about what an entry takes in memory.
func (e *entry) size() int {
	n := 2*perEntry + len(e.domain)
	if p := e.result.Policy; p != nil {
		for _, s := range p.Text {
			n += 2 * len(s) // the text, and patterns that are not parts of it
		}
		n += 32 * (len(p.Text) + len(p.MX))
	}
	return n
}

// remember puts an entry in the place of what was known.
func (c *Cache) remember(e *entry) {
	if p := c.places[e.domain]; p != nil {
		c.forget(p)
	}
	c.places[e.domain] = c.recent.PushFront(e)
	c.used += e.size()
	for c.used > c.opt.MaxBytes && c.recent.Len() > 1 {
		c.forget(c.recent.Back())
	}
}

func (c *Cache) forget(p *list.Element) {
	e := c.recent.Remove(p).(*entry)
	delete(c.places, e.domain)
	c.used -= e.size()
}

// fly is a flight. It ends with its time, or with Close, which waits for it.
func (c *Cache) fly(domain string, f *flight) {
	ctx, cancel := context.WithTimeout(c.ctx, c.opt.Timeout)
	defer cancel()
	l := &look{c: c, domain: domain, how: f.how, entry: c.known(domain), flight: f}
	f.result = l.run(ctx)
	e := l.entry
	e.result = f.result
	c.mu.Lock()
	c.remember(&e)
	delete(c.flights, domain)
	c.mu.Unlock()
	close(f.done)
}

// look is the work of a flight.
type look struct {
	c      *Cache
	domain string
	how    how
	entry  entry // what was known, and what will be
	doubt  error // why it is not known what the Store has
	flight *flight
}

// run finds out which policy applies. The table in the package comment has the cases.
func (l *look) run(ctx context.Context) Result {
	k := l.kept(ctx)
	if l.doubt == nil {
		l.c.mu.Lock()
		l.flight.kept = &k
		l.c.mu.Unlock()
	}
	id, until, err := l.record(ctx)
	now := l.c.opt.Now()
	if l.how != usual && err == nil {
		l.entry.renewed = now
	}
	switch {
	case err != nil:
		return l.stay(k, "", err, until)
	case k.valid(now) && k.policy.ID == id && l.how != refreshing:
		return Result{Policy: k.policy, ID: id, Expires: earlier(until, k.policy.Expires)}
	}
	if f := &l.entry.failure; f.holds(id, now) {
		return l.stay(k, id, f.err, earlier(until, f.until))
	}
	p, err := l.fetch(ctx, id)
	if err != nil {
		return l.stay(k, id, err, earlier(until, l.entry.failure.until))
	}
	l.save(ctx, kept{p, cmp.Or(l.entry.used, p.Fetched)})
	// One that holds for no time holds for a minute, so that not every message fetches it.
	return Result{Policy: p, ID: id, Expires: later(earlier(until, p.Expires), p.Fetched.Add(shortest))}
}

// sameFailures is how many ids in a row may fail before an id that is new makes no difference:
// a domain could have a new one for each question.
const sameFailures = 3

// holds tells whether the policy host is to be left alone.
func (f *failure) holds(id string, now time.Time) bool {
	return now.Before(f.until) && (f.id == id || f.count >= sameFailures)
}

// maxBackoff ends the doubling of Options.Backoff.
const maxBackoff = time.Hour

// fetch gets the policy, and remembers if it cannot.
func (l *look) fetch(ctx context.Context, id string) (*Policy, error) {
	l.c.counters.fetches.Add(1)
	p, err := l.c.fetch(ctx, l.domain)
	now := l.c.opt.Now()
	if err != nil {
		l.c.counters.failed(kindOf(err))
		f := &l.entry.failure
		f.count++
		f.id, f.err = id, err
		f.until = now.Add(max(l.c.opt.Backoff, min(l.c.opt.Backoff<<min(f.count-1, 10), maxBackoff)))
		return nil, err
	}
	l.entry.failure = failure{}
	p.ID, p.Fetched, p.Expires = id, now, now.Add(p.MaxAge)
	return &p, nil
}

// stay is the result if there is no policy that is new: the one that is kept, if it holds.
func (l *look) stay(k kept, id string, err error, until time.Time) Result {
	r := Result{ID: id, Err: &Error{l.domain, kindOf(err), err}, Expires: until}
	switch {
	case k.valid(l.c.opt.Now()):
		r.Policy, r.Expires = k.policy, earlier(until, k.policy.Expires)
		l.alert(r)
	case l.doubt != nil:
		r.Err = &Error{l.domain, FetchError, errors.Join(ErrUnknown, l.doubt)}
		r.Expires = l.c.opt.Now()
	case errors.Is(err, ErrNoRecord):
		r.Err = nil // no MTA-STS, as most domains
	}
	return r
}

// alertEvery is how often an operator is told of one domain.
const alertEvery = 24 * time.Hour

// alert tells the operator of a policy that cannot be looked at again, since it will run out
// (RFC 8461, Section 3.3); not so of one that asks for nothing.
func (l *look) alert(r Result) {
	now := l.c.opt.Now()
	if r.Policy.Mode == None || now.Sub(l.entry.alerted) < alertEvery {
		return
	}
	l.entry.alerted = now
	l.c.opt.Log.Warn("the mta-sts policy of a domain is kept, but cannot be looked at again",
		"domain", l.domain, "expires", r.Policy.Expires, "err", r.Err)
}

// kept returns the policy that is kept, which may have run out.
func (l *look) kept(ctx context.Context) kept {
	mine := l.entry.kept()
	s, ok, err := l.c.opt.Store.Get(ctx, l.domain)
	if err != nil {
		l.doubt = err
		l.c.opt.Log.Error("mta-sts policies cannot be read", "err", err)
		return mine
	}
	var theirs kept
	if ok {
		if theirs, err = decode(s); err != nil {
			l.c.opt.Log.Error("an mta-sts policy cannot be read and is fetched anew", "err", err)
		}
	}
	switch {
	case !mine.valid(l.c.opt.Now()):
	case theirs.policy == nil:
		// A store that has lost what it was given, or cannot read it, takes no policy away.
		theirs, l.entry.unsaved = mine, true
	case l.entry.unsaved && mine.policy.Fetched.After(theirs.policy.Fetched):
		theirs = mine
	}
	return l.use(ctx, theirs, s.Refresh)
}

// useEvery is how often it is written down that a policy is used.
const useEvery = 24 * time.Hour

// use notes that mail asked for a policy.
func (l *look) use(ctx context.Context, k kept, refresh time.Time) kept {
	now := l.c.opt.Now()
	if k.policy == nil || l.how == refreshing || now.Sub(k.used) < useEvery && !l.entry.unsaved {
		l.entry.used = k.used
		return k
	}
	k.used, l.entry.used = now, now
	if again := l.c.refreshAt(k.policy); refresh.IsZero() || again.Before(refresh) {
		refresh = again // it had been left alone, unused
	}
	l.put(ctx, k, refresh)
	return k
}

// save keeps a policy that was fetched.
func (l *look) save(ctx context.Context, k kept) {
	if l.how != refreshing {
		k.used = l.c.opt.Now()
	}
	l.entry.used = k.used
	l.put(ctx, k, l.c.refreshAt(k.policy))
}

// put writes a policy to the Store. If that fails this node has it all the same, and tries
// again with the next flight.
func (l *look) put(ctx context.Context, k kept, refresh time.Time) {
	err := l.c.opt.Store.Put(ctx, k.encode(l.domain, refresh))
	l.entry.unsaved = err != nil
	if err != nil {
		l.c.opt.Log.Error("an mta-sts policy cannot be kept", "domain", l.domain, "err", err)
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// counters count since New.
type counters struct {
	lookups, hits, shared, fetches, fetchErrors, invalid, webPKI, refreshed atomic.Uint64
}

func (n *counters) failed(k Kind) {
	switch k {
	case Invalid:
		n.invalid.Add(1)
	case WebPKI:
		n.webPKI.Add(1)
	default:
		n.fetchErrors.Add(1)
	}
}

// Stats are counters since New, and the state of now.
type Stats struct {
	Lookups     uint64 // by Lookup, Renew and Run
	Hits        uint64 // answered from memory
	Shared      uint64 // waited for a flight that was under way
	Fetches     uint64 // requests for policies
	FetchErrors uint64 // of these, failed with FetchError
	Invalid     uint64 // with Invalid
	WebPKI      uint64 // with WebPKI
	Refreshed   uint64 // policies that Run fetched again

	Inflight int // flights under way
	Domains  int // in memory
	Bytes    int // what they take, about
}

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	n := &c.counters
	s := Stats{
		Lookups: n.lookups.Load(), Hits: n.hits.Load(), Shared: n.shared.Load(), Fetches: n.fetches.Load(),
		FetchErrors: n.fetchErrors.Load(), Invalid: n.invalid.Load(), WebPKI: n.webPKI.Load(), Refreshed: n.refreshed.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Inflight, s.Domains, s.Bytes = len(c.flights), c.recent.Len(), c.used
	return s
}
