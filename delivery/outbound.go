package delivery

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// outbound.go: the Engine's way to hosts elsewhere. A destination "mx:" is a domain or an address
// literal; which hosts take its mail, and what TLS they must show, is planned anew for each
// attempt, mostly from memory. The attempt itself is in journey.go.
//
//	destination ── plan ──▶ hosts in order ──▶ addresses ──▶ idle connection, or a new one
//	                                 │ none of them: next        │ greeting, TLS as demanded
//	                                 ▼                           ▼
//	                              deferred            MAIL, RCPT …, content; again for the rest

// mxPrefix marks the destinations that are elsewhere.
const mxPrefix = "mx:"

// MXDestination is the destination of recipients at a domain or an address literal for which no
// backend is responsible.
func MXDestination(t mx.Target) store.Destination {
	return store.Destination(mxPrefix + t.String())
}

// OutboundOptions are the settings of the Engine's way to hosts elsewhere. The zero value of each
// field but Planner means its default.
type OutboundOptions struct {
	// Planner says which hosts get the mail of a domain. Required.
	Planner Plans
	// Relay takes all mail for elsewhere, in place of the hosts of its domains. Nil is none.
	Relay *Relay
	// Secure says what certificates are held against.
	Secure SecureOptions
	// Guard says which addresses may be connected to, whatever a Hook or the DNS says; it
	// should be that of the Planner. Nil lets public ones be connected to that are not of this
	// machine.
	Guard *mx.Guard
	// LocalName is what we say in EHLO where the Source has no name. Default the Engine's
	// Hostname.
	LocalName string
	// PreferIPv6 tries IPv6 first among hosts that are equally preferred.
	PreferIPv6 bool
	// Sources are the addresses that connections are made from, each with a name of its own. A
	// message that no Hook chooses one for is sent from one of them by lot, and from the same each
	// time it is tried. None leaves the address to the system.
	Sources []Source
	// Dial makes connections in place of a net.Dialer, as that of a Proxy. The local address of
	// a Source has no effect then. It is called by many goroutines at once.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// ConnectTimeout is how long one address may take to be connected to. Default 30 s.
	ConnectTimeout time.Duration
	// ReachTime is how long an attempt may look for a host that takes the message, all of them
	// together; and AttemptTime how long it may take in all. Default 10 minutes and 1 hour.
	ReachTime, AttemptTime time.Duration
	// MaxAddrs is how many addresses are connected to in one attempt at most. Default 10.
	MaxAddrs int
	// Timeouts are those of the dialogue. Defaults of RFC 5321, Section 4.5.3.2.
	Timeouts smtp.Timeouts
	// Recipients is how many recipients one transaction has at most; the rest of a message are in
	// the next. A host's own limit (RFC 9422) counts, too. Default and most 100, which every host
	// must take (RFC 5321, Section 4.5.3.1.8).
	Recipients int
	// Pace is how fast messages go to one site. Zero is no limit.
	Pace Pace
	// IdleTime is how long a connection is kept for the next message to the same host. Default
	// 10 s; negative keeps none.
	IdleTime time.Duration
	// MaxUses is how many transactions a connection serves. Default 100.
	MaxUses int
	// IdleConnections is how many are kept in all. Default 500.
	IdleConnections int
	// Recorder is told of each session that a policy was about. Nil is nobody.
	Recorder tlsrpt.Recorder
	// Hooks are asked which way messages go, and told what became of them. Nil is nobody.
	Hooks Hooks
	// WeakerTLS lets Hooks ask for less TLS than the policies of the other side do.
	WeakerTLS bool
}

// Relay is a smart host.
type Relay struct {
	// Host is its name, or its address with or without brackets.
	Host string
	// MX sends to the mail exchangers of the domain Host, and not to a host of that name.
	MX bool
	// TLS is asked of it beside what its own policies say.
	TLS TLSMode
	// Planner makes the plans for it, with the port and the guard that it needs: a smart host
	// may be in the networks around us. Nil is OutboundOptions.Planner, and its Guard.
	Planner Plans
}

// Plans makes plans: a *Planner, or a test's own. It is safe for concurrent use.
type Plans interface {
	// Plan says where mail for a target goes. It ends with ctx, and in reasonable time without
	// it; the error is an *mx.Error.
	Plan(ctx context.Context, t mx.Target, n Need) (*Plan, error)
}

// ParseRelay reads HOST, which may be an address with or without brackets, or mx:DOMAIN.
func ParseRelay(s string) (Relay, error) {
	domain, byMX := strings.CutPrefix(s, mxPrefix)
	t, err := mx.ParseTarget(domain)
	switch {
	case err != nil:
		return Relay{}, fmt.Errorf("delivery: relay %q: %w", s, err)
	case byMX && t.IsLiteral():
		return Relay{}, fmt.Errorf("delivery: relay %q: an address has no mail exchangers", s)
	}
	return Relay{Host: t.String(), MX: byMX}, nil
}

// target is what is planned for, for mail to t.
func (r *Relay) target(t mx.Target) (mx.Target, []mx.Given, error) {
	if !r.MX {
		return t, []mx.Given{{Host: r.Host}}, nil
	}
	t, err := mx.ParseTarget(r.Host)
	return t, nil, err
}

// Validate returns every problem, joined.
func (o OutboundOptions) Validate() error {
	var errs []error
	if o.Planner == nil {
		errs = append(errs, errors.New("outbound: a planner is required"))
	}
	if r := o.Relay; r != nil {
		host := r.Host
		if r.MX {
			host = mxPrefix + host
		}
		if _, err := ParseRelay(host); err != nil {
			errs = append(errs, err)
		}
	}
	if o.LocalName != "" {
		if _, err := smtp.ParseDomain(o.LocalName); err != nil {
			errs = append(errs, fmt.Errorf("outbound: local name: %w", err))
		}
	}
	for i, s := range o.Sources {
		if err := s.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("outbound: %w", err))
		}
		if slices.ContainsFunc(o.Sources[:i], func(other Source) bool { return other.Name == s.Name }) {
			errs = append(errs, fmt.Errorf("outbound: two sources have the name %q", s.Name))
		}
	}
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"connect timeout", int64(o.ConnectTimeout)}, {"time to reach a host", int64(o.ReachTime)},
		{"time of an attempt", int64(o.AttemptTime)}, {"addresses of an attempt", int64(o.MaxAddrs)},
		{"recipients", int64(o.Recipients)}, {"messages of the pace", int64(o.Pace.Messages)}, {"time of the pace", int64(o.Pace.Per)},
		{"uses of a connection", int64(o.MaxUses)}, {"idle connections", int64(o.IdleConnections)},
	} {
		if n.value < 0 {
			errs = append(errs, fmt.Errorf("outbound: %s: must not be negative", n.name))
		}
	}
	return errors.Join(errs...)
}

func (o OutboundOptions) withDefaults(hostname string) OutboundOptions {
	setDefault(&o.LocalName, hostname)
	setDefault(&o.ConnectTimeout, 30*time.Second)
	setDefault(&o.ReachTime, 10*time.Minute)
	setDefault(&o.AttemptTime, time.Hour)
	setDefault(&o.MaxAddrs, 10)
	setDefault(&o.Recipients, maxRecipients)
	o.Recipients = min(o.Recipients, maxRecipients)
	setDefault(&o.IdleTime, 10*time.Second)
	setDefault(&o.MaxUses, 100)
	setDefault(&o.IdleConnections, 500)
	if o.IdleTime < 0 {
		o.IdleTime, o.IdleConnections = time.Second, 0
	}
	if o.Guard == nil {
		o.Guard, _ = mx.NewGuard(mx.GuardOptions{}) // of which nothing can be wrong
	}
	return o
}

// maxRecipients is how many recipients every host takes. RFC 5321, Section 4.5.3.1.8.
const maxRecipients = 100

// outbound is the way to hosts elsewhere.
type outbound struct {
	opts    OutboundOptions
	e       *Engine
	hosts   hosts
	links   *links
	securer *Securer

	mu sync.Mutex // guards what follows
	// troubles are destinations for which lately no plan could be made, or no host would do: nobody
	// is kept waiting for the same again.
	troubles map[store.Destination]trouble
}

type trouble struct {
	err    error
	events []tlsrpt.Event // what is to be reported of each attempt
	until  time.Time
}

// troubleTime is for how long a destination in trouble is not tried again. maxTroubles is how
// many are remembered.
const (
	troubleTime = time.Minute
	maxTroubles = 10000
)

func newOutbound(e *Engine, o OutboundOptions) *outbound {
	o = o.withDefaults(e.opts.Hostname)
	return &outbound{opts: o, e: e, troubles: make(map[store.Destination]trouble),
		securer: NewSecurer(o.Secure), links: newLinks(o.IdleTime, o.MaxUses, o.IdleConnections)}
}

// reaches tells whether a destination is elsewhere, and there is a way.
func (o *outbound) reaches(d store.Destination) bool {
	return o != nil && strings.HasPrefix(string(d), mxPrefix)
}

// pace returns what messages to one site wait for, nil for nothing.
func (o *outbound) pace() *rate.Limiter {
	if o == nil || o.opts.Pace == (Pace{}) {
		return nil
	}
	return o.opts.Pace.limiter()
}

// targetOf returns the target that a destination is about.
func targetOf(d store.Destination) (mx.Target, error) {
	return mx.ParseTarget(strings.TrimPrefix(string(d), mxPrefix))
}

// siteOf returns the key of the site that serves a destination: of what its plan says, or, if there
// is none, of the destination's own.
func (o *outbound) siteOf(ctx context.Context, d store.Destination) string {
	t, err := targetOf(d)
	if err != nil {
		return string(d)
	}
	if _, ok := o.trouble(d); ok {
		return string(d) // nobody will be connected to
	}
	w := o.way(t, nil)
	plan, err := w.plan(ctx)
	if err != nil {
		o.remember(d, plan, err)
		return string(d)
	}
	return plan.Site
}

// way is what is planned: where the mail of a target goes if nothing else is chosen for it.
type way struct {
	planner Plans
	target  mx.Target
	need    Need
	err     error
	// relayed tells that it goes by the Relay, whose addresses the guard does not judge.
	relayed bool
}

func (w *way) plan(ctx context.Context) (*Plan, error) {
	if w.err != nil {
		return nil, w.err
	}
	return w.planner.Plan(ctx, w.target, w.need)
}

// kept returns the plan if there is one at hand, nil if it has to be made.
func (w *way) kept() *Plan {
	if p, ok := w.planner.(*Planner); ok && w.err == nil {
		return p.keptPlan(w.target, w.need)
	}
	return nil
}

// way returns the way to a target, by a relay that was chosen for it, or else by that of the
// settings.
func (o *outbound) way(t mx.Target, chosen *Relay) way {
	w := way{planner: o.opts.Planner, target: t}
	relay := o.opts.Relay
	if chosen != nil {
		relay = chosen
	}
	if relay == nil {
		return w
	}
	w.target, w.need.Given, w.err = relay.target(t)
	w.need.TLS = relay.TLS
	if relay.Planner != nil {
		w.planner, w.relayed = relay.Planner, true
	}
	return w
}

// remember keeps in mind why a destination is in trouble; part is its plan, as far as there is one.
func (o *outbound) remember(d store.Destination, part *Plan, err error) {
	var events []tlsrpt.Event
	if part != nil {
		events = part.Events
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.e.now()
	if _, known := o.troubles[d]; !known {
		makeRoom(o.troubles, maxTroubles, func(t trouble) bool { return now.After(t.until) })
	}
	o.troubles[d] = trouble{err, events, now.Add(troubleTime)}
}

// forgive lets everything be tried again.
func (o *outbound) forgive() {
	o.mu.Lock()
	clear(o.troubles)
	o.mu.Unlock()
	o.hosts.forgive()
}

// trouble returns why there was no plan lately; ok is false if there may be one.
func (o *outbound) trouble(d store.Destination) (t trouble, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	t, ok = o.troubles[d]
	if ok && o.e.now().After(t.until) {
		delete(o.troubles, d)
		return trouble{}, false
	}
	return t, ok
}

// source returns the Source of a message: the one that is named, or one by lot that is the same for
// each attempt.
func (o *outbound) source(name string, id store.ID) (Source, error) {
	all := o.opts.Sources
	if name != "" {
		if i := slices.IndexFunc(all, func(s Source) bool { return s.Name == name }); i >= 0 {
			return all[i], nil
		}
		return Source{}, fmt.Errorf("delivery: there is no source %q", name)
	}
	if len(all) == 0 {
		return Source{}, nil
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	return all[h.Sum32()%uint32(len(all))], nil
}

// connect makes a TCP connection to an address, or one through the proxy.
func (o *outbound) connect(ctx context.Context, to netip.AddrPort, from netip.Addr, guarded bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.opts.ConnectTimeout)
	defer cancel()
	if guarded {
		if err := o.opts.Guard.Check(to.Addr()); err != nil {
			return nil, err
		}
	}
	if o.opts.Dial != nil {
		return o.opts.Dial(ctx, "tcp", to.String())
	}
	var d net.Dialer
	if guarded {
		d.Control = o.opts.Guard.Control
	}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return d.DialContext(ctx, "tcp", to.String())
}
