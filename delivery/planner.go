package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/resolver"
)

// planner.go makes plans, and keeps them as long as all that they are made of holds. A plan
// that is asked for by several is made once.

// Planner makes plans. Its methods are safe for concurrent use. Whoever made it closes it.
type Planner struct {
	opt PlanOptions

	ctx     context.Context // of all plans that are being made; ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup // plans that are being made

	hits, made, failed atomic.Uint64

	mu      sync.Mutex
	kept    map[planKey]*Plan   // guarded by mu
	flights map[planKey]*flight // guarded by mu
	closed  bool                // guarded by mu
}

// planKey is all that a plan depends on beside the world.
type planKey struct {
	target   mx.Target
	require  bool
	optional bool
	tls      TLSMode
	given    string
}

// flight is a plan that is being made, for those who wait for it.
type flight struct {
	done chan struct{}
	plan *Plan // valid after done
	err  error
}

// PlannerStats are counters since NewPlanner, and the state of now.
type PlannerStats struct {
	Hits   uint64 // plans that were kept
	Made   uint64 // plans that were made anew
	Failed uint64 // tries at that which failed
	Kept   int    // plans in the cache, some of which may have expired
}

var (
	errPlannerClosed = errors.New("the planner is closed")
	errPlannerBusy   = errors.New("too many plans are being made")
)

// NewPlanner returns a Planner. Its error joins all problems of the options.
func NewPlanner(o PlanOptions) (*Planner, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	p := &Planner{opt: o.withDefaults(), kept: make(map[planKey]*Plan), flights: make(map[planKey]*flight)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// Close ends the plans that are being made and waits for them. Later calls fail. It may be
// called more than once.
func (p *Planner) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.running.Wait()
}

// Stats returns the counters.
func (p *Planner) Stats() PlannerStats {
	p.mu.Lock()
	kept := len(p.kept)
	p.mu.Unlock()
	return PlannerStats{Hits: p.hits.Load(), Made: p.made.Load(), Failed: p.failed.Load(), Kept: kept}
}

// Plan returns where mail for a target goes: a plan that was made lately and holds, or a new
// one. The error is an *mx.Error if there is no host at all, or if that is not known; a plan
// may also have hosts of which none is to be used (see [Plan.Err]). With an error the Plan,
// unless nil, is as far as it came, for who wants to know why. A caller whose context ends does
// not end it for others that wait for the same.
func (p *Planner) Plan(ctx context.Context, t mx.Target, n Need) (*Plan, error) {
	key := keyOf(t, n)
	p.mu.Lock()
	if plan := p.keptLocked(key); plan != nil {
		p.mu.Unlock()
		return plan, nil
	}
	f, err := p.flightLocked(key, t, n)
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return f.plan, f.err
	case <-ctx.Done():
		return nil, p.unknown(t, context.Cause(ctx))
	}
}

// keptPlan is Plan for who has no time to wait: it returns nil if there is no plan yet.
func (p *Planner) keptPlan(t mx.Target, n Need) *Plan {
	key := keyOf(t, n)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keptLocked(key)
}

// keptLocked returns a plan that may be used, nil if there is none. mu is held.
func (p *Planner) keptLocked(key planKey) *Plan {
	plan := p.kept[key]
	if plan == nil || p.closed || !p.holds(plan) {
		return nil
	}
	p.hits.Add(1)
	return plan
}

// Renew is Plan, but asks for the MTA-STS policies anew: one that keeps a message from being
// delivered may have been replaced, and that must be known before the message is given up
// (RFC 8461, Section 5.1).
func (p *Planner) Renew(ctx context.Context, t mx.Target, n Need) (*Plan, error) {
	for _, domain := range p.policyDomains(t, n) {
		p.opt.STS.Renew(ctx, domain)
	}
	p.Forget(t, n)
	return p.Plan(ctx, t, n)
}

// Forget drops the plan for a target, so that the next one is made anew.
func (p *Planner) Forget(t mx.Target, n Need) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.kept, keyOf(t, n))
}

// keyOf returns the key of a plan.
func keyOf(t mx.Target, n Need) planKey {
	k := planKey{target: t, require: n.RequireTLS, optional: n.TLSOptional, tls: n.TLS}
	for _, g := range n.Given {
		k.given += fmt.Sprintf("%q %d %v %q\n", g.Host, g.Preference, g.Addrs, g.TLSA)
	}
	return k
}

// holds tells whether a kept plan may be used: whether it has not run out, and the resolver
// validates or does not as it did.
func (p *Planner) holds(plan *Plan) bool {
	return p.opt.Now().Before(plan.Expires) && plan.unchecked == p.unchecked()
}

// unchecked tells whether the resolver does not validate.
func (p *Planner) unchecked() bool { return p.opt.Validating != nil && !p.opt.Validating() }

// flightLocked returns the flight for a plan, a new one if there is none. mu is held.
func (p *Planner) flightLocked(key planKey, t mx.Target, n Need) (*flight, error) {
	if p.closed {
		return nil, p.unknown(t, errPlannerClosed)
	}
	if f := p.flights[key]; f != nil {
		return f, nil
	}
	if len(p.flights) >= p.opt.Inflight {
		return nil, p.unknown(t, errPlannerBusy)
	}
	f := &flight{done: make(chan struct{})}
	p.flights[key] = f
	p.running.Go(func() { p.fly(key, f, t, n) })
	return f, nil
}

// fly makes a plan and keeps it.
func (p *Planner) fly(key planKey, f *flight, t mx.Target, n Need) {
	ctx, cancel := context.WithTimeout(p.ctx, p.opt.Timeout)
	defer cancel()
	f.plan, f.err = p.make(ctx, t, n)
	p.mu.Lock()
	delete(p.flights, key)
	if f.err == nil {
		p.made.Add(1)
		p.keepLocked(key, f.plan)
	} else {
		p.failed.Add(1)
	}
	p.mu.Unlock()
	close(f.done)
}

// keepLocked keeps a plan. mu is held.
func (p *Planner) keepLocked(key planKey, plan *Plan) {
	if p.opt.CacheSize < 0 {
		return
	}
	now := p.opt.Now()
	makeRoom(p.kept, p.opt.CacheSize, func(old *Plan) bool { return !now.Before(old.Expires) })
	p.kept[key] = plan
}

// unknown is the error if it is not known where mail for a target goes.
func (p *Planner) unknown(t mx.Target, cause error) error {
	e := policyError(mx.DNS, 451, [3]int{4, 4, 3}, "", "it cannot be told now where this mail goes", cause)
	e.Target = t
	return e
}

// policyDomains are the domains whose MTA-STS policies speak about the hosts.
func (p *Planner) policyDomains(t mx.Target, n Need) []string {
	switch {
	case p.opt.STSMode == STSOff, n.weak():
		return nil
	case len(n.Given) == 0 && t.Domain == "":
		return nil // RFC 8461, Section 2: the policy domain is a domain
	case len(n.Given) == 0:
		return []string{t.Domain}
	}
	var domains []string
	for _, g := range n.Given {
		if hosted, err := mx.ParseTarget(g.Host); err == nil && hosted.Domain != "" {
			domains = append(domains, hosted.Domain)
		}
	}
	return domains
}

// making is a plan that is being made.
type making struct {
	*Planner
	plan     *Plan
	domains  []string                 // policy domains
	policies map[string]mtasts.Result // by policy domain
}

// make makes a plan. The policy is looked for while the hosts are.
func (p *Planner) make(ctx context.Context, t mx.Target, n Need) (*Plan, error) {
	m := &making{Planner: p, plan: &Plan{Target: t, Need: n, Made: p.opt.Now(), unchecked: p.unchecked()}}
	// A third of the time is for TLSA records: a policy host that does not answer must not make
	// it unknown whether there are any.
	early, cancel := context.WithTimeout(ctx, p.opt.Timeout*2/3)
	defer cancel()
	wait := m.findPolicies(early)
	o := p.opt.MX
	o.Given = n.Given
	route, err := mx.Find(early, t, o)
	wait()
	if m.plan.Route = route; route == nil {
		return m.plan, err
	}
	m.plan.Site, m.plan.STS = siteOf(route), m.policies[t.Domain]
	m.planHosts(ctx)
	m.note()
	m.plan.Expires = m.expiry()
	return m.plan, err
}

// findPolicies begins to look MTA-STS policies up; the function it returns waits for them.
func (m *making) findPolicies(ctx context.Context) (wait func()) {
	var running sync.WaitGroup
	if m.domains = m.policyDomains(m.plan.Target, m.plan.Need); len(m.domains) == 0 {
		return running.Wait
	}
	m.policies = make(map[string]mtasts.Result, len(m.domains))
	running.Go(func() {
		for _, domain := range m.domains { // one, but for smart hosts
			m.policies[domain] = m.opt.STS.Lookup(ctx, domain)
		}
	})
	return running.Wait
}

// planHosts looks the TLSA records of the hosts up, and decides.
func (m *making) planHosts(ctx context.Context) {
	m.plan.Hosts = make([]PlannedHost, len(m.plan.Route.Hosts))
	room := make(chan struct{}, m.opt.Parallel)
	var running sync.WaitGroup
	for i := range m.plan.Hosts {
		if i == len(m.plan.Hosts)-1 {
			m.planHost(ctx, i) // often the only one
			break
		}
		room <- struct{}{}
		running.Go(func() {
			m.planHost(ctx, i)
			<-room
		})
	}
	running.Wait()
}

func (m *making) planHost(ctx context.Context, i int) {
	route, need := m.plan.Route, m.plan.Need
	f := facts{host: &route.Hosts[i], route: route, domain: m.plan.Target.Domain, need: need, opt: &m.opt, off: m.plan.unchecked}
	if len(need.Given) > 0 {
		f.domain = f.host.Name
	}
	f.sts = m.policies[f.domain]
	if f.host.Err == nil && !need.weak() {
		f.dane, f.daneErr = m.findDANE(ctx, f.host)
	}
	m.plan.Hosts[i] = decide(f)
}

// findDANE finds the TLSA records of a host. It does so too while the resolver is thought not to
// validate: nothing is authenticated then, and nobody is asked. Where an answer is authenticated all
// the same it must count, for whoever spoils the one answer that is looked at each minute would
// otherwise turn DANE off for all hosts.
func (m *making) findDANE(ctx context.Context, h *mx.Host) (dane.Set, error) {
	switch {
	case m.opt.DANE == DANEOff:
		return dane.Set{Why: "DANE is off"}, nil
	case h.Name != "" && len(h.TLSA) > 0: // these were given
		return dane.Set{Base: h.Name, Records: h.TLSA, Usable: dane.Usable(h.TLSA)}, nil
	}
	return dane.Lookup(ctx, dane.Query{DNS: m.opt.MX.DNS, Host: h.Name, Canonical: h.Canonical, Authentic: h.Authentic, Port: m.opt.Port})
}

// note says what holds for all hosts.
func (m *making) note() {
	p := m.plan
	note := func(format string, args ...any) { p.Notes = append(p.Notes, fmt.Sprintf(format, args...)) }
	switch {
	case p.Need.weak():
		note("neither DANE nor MTA-STS count for this message")
		return
	case m.opt.DANE == DANEOff:
		note("DANE is off")
	case p.unchecked:
		note("the resolver does not validate: TLSA records do not count, but where an answer is authenticated all the same")
	case !p.Route.Authentic && p.Target.Domain != "" && len(p.Hosts) > 0:
		// RFC 7672, Section 2.2.1: such mail is not to be taken for secure, even if the host is.
		note("the MX records are not authenticated: TLSA records protect the way to a host, and not which host it is")
	}
	if m.opt.STSMode == STSOff {
		note("MTA-STS is off")
	}
	for _, domain := range m.domains {
		r := m.policies[domain]
		if e, ok := errors.AsType[*mtasts.Error](r.Err); ok {
			note("MTA-STS of %s: %v", domain, e.Err)
			m.report(domain, r, e)
		}
	}
}

// report reports a policy that could not be had.
func (m *making) report(domain string, r mtasts.Result, e *mtasts.Error) {
	if errors.Is(e, mtasts.ErrUnknown) || errors.Is(e, mtasts.ErrNoRecord) {
		return
	}
	if failed, ok := errors.AsType[*resolver.Error](e); ok && failed.Type == resolver.TypeTXT && r.Policy == nil {
		return // nobody has said that there is a policy
	}
	policy := tlsrpt.Policy{Type: tlsrpt.STS, Domain: domain}
	if r.Policy != nil {
		policy = stsReport(r.Policy, domain)
	}
	m.plan.Events = append(m.plan.Events, tlsrpt.Event{Domain: domain, Policy: policy,
		Failure: &tlsrpt.Failure{Type: tlsrpt.ResultType(e.Kind), Reason: ede(e), Additional: e.Err.Error()}})
}

const (
	// shortly is how long a plan is kept that lacks something that could not be had.
	shortly = 30 * time.Second
	// atLeast is how long one is kept in any case: less is for nobody's good.
	atLeast = time.Second
)

// expiry is until when all that the plan is made of holds.
func (m *making) expiry() time.Time {
	end := m.plan.Made.Add(m.opt.Keep)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(end) {
			end = t
		}
	}
	sooner(m.plan.Route.Expires)
	for i := range m.plan.Hosts {
		h := &m.plan.Hosts[i]
		sooner(h.Expires)
		sooner(h.DANE.Expires)
		if h.Refused != nil {
			sooner(m.plan.Made.Add(shortly))
		}
	}
	for _, r := range m.policies {
		sooner(r.Expires)
		if r.Err != nil {
			sooner(m.plan.Made.Add(shortly))
		}
	}
	if floor := m.plan.Made.Add(atLeast); end.Before(floor) {
		return floor
	}
	return end
}
