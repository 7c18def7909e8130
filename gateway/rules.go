package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// rules.go: what may change while mail flows: routes and filter chains. A session keeps
// the rules it began with; the old ones are released with their last session.

// Route sends the recipients of some domains, and single ones, to a backend.
type Route struct {
	// Domains are names, "*.example.com" for all names below one, or "*" for all domains,
	// which only clients that may relay are given.
	Domains []string
	// Addresses are recipients. The case of their local parts does not count: they are ours,
	// and two that differ in it would be a trap (RFC 5321, Section 2.4).
	Addresses []string
	// Backend is the name that the Relay knows.
	Backend string
	// Recipients says who knows which recipients exist. The zero value asks the backend.
	Recipients Recipients
	// Queue has the Keeper keep all mail for the backend. QueueWhenDown has it keep what the
	// backend cannot take now, of recipients that others than the backend vouch for.
	Queue, QueueWhenDown bool

	// out is the route of what leaves, by the mail exchangers of its domains; see Rules.Out.
	out bool
}

// Recipients says who knows which recipients of a route exist. One field is set, or none:
// the backend is asked then, in the transaction itself.
type Recipients struct {
	// Accept takes all, unasked.
	Accept bool
	// Callout asks the backend in a transaction of its own, and remembers the answer.
	Callout *CalloutOptions
	// List knows them from a file.
	List *ListOptions
}

func (r Recipients) validate() error {
	if r.Accept && (r.Callout != nil || r.List != nil) || r.Callout != nil && r.List != nil {
		return errors.New("recipients: more than one way to know them")
	}
	if r.Callout != nil {
		return r.Callout.settings().validate()
	}
	return nil
}

// CalloutOptions are the settings of a callout. The zero value of each field means its
// default.
type CalloutOptions struct {
	// Positive and Negative are how long an answer is remembered. Defaults 1 h and 5 min.
	Positive, Negative time.Duration
	// Stale is how long after its time a recipient that existed is still taken while the
	// backend cannot be asked. Default: not at all.
	Stale time.Duration
	// Timeout is for one question. Default 10 s.
	Timeout time.Duration
	// Entries is how many recipients are remembered that exist. Default 50000.
	Entries int
}

func (o CalloutOptions) settings() calloutSettings {
	return calloutSettings{positive: o.Positive, negative: o.Negative, stale: o.Stale, timeout: o.Timeout, entries: o.Entries}
}

// ListOptions say where a list of recipients is. It is read when rules first have it, and again
// when it has changed.
type ListOptions struct {
	// Path is the file: an address a line, "@example.com" for all of a domain. Required.
	Path string
	// Separators are the characters that begin the part of a local part that is ignored,
	// such as "+". Default: none.
	Separators string
}

// Check reads the list and returns what is wrong with it.
func (o ListOptions) Check() error {
	_, err := newRecipientList(recipientFile{path: o.Path, separators: o.Separators})
	return err
}

// Rules are routes and chains.
type Rules struct {
	// Routes in order; the first that matches wins.
	Routes []Route
	// Chains by the name that listeners use.
	Chains map[string]*policy.Chain
	// Out takes recipients that no route leads to from clients that may relay. The Keeper, of
	// which there must be one, gets them with an empty Backend: they are for the mail
	// exchangers of their domains.
	Out bool
	// Release, if not nil, is called once when these rules have been replaced, or the
	// Gateway was shut down, and no session uses them any more.
	Release func()
}

// ruleSet is Rules that can be looked up, and a count of those who use them.
type ruleSet struct {
	Rules
	exact    map[smtp.Domain]int // index of the first route
	below    map[string]int      // by the name behind "*."
	single   map[smtp.Path]int   // by the address, with the local part in lower case
	anywhere int                 // index of the first "*", or -1
	named    int                 // index of the first route of a domain by name, or -1
	known    *knowledge          // of recipients

	mu      sync.Mutex // guards what follows
	users   int
	retired bool
}

func newRuleSet(r Rules) (*ruleSet, error) {
	if r.Out {
		r.Routes = append(slices.Clip(r.Routes), Route{Domains: []string{"*"}, Recipients: Recipients{Accept: true}, Queue: true, out: true})
	}
	rs := &ruleSet{Rules: r, exact: make(map[smtp.Domain]int), below: make(map[string]int), single: make(map[smtp.Path]int), anywhere: -1, named: -1}
	var errs []error
	for i, route := range r.Routes {
		if route.Backend == "" && !route.out {
			errs = append(errs, fmt.Errorf("gateway: route %d: no backend", i+1))
		}
		if err := route.Recipients.validate(); err != nil {
			errs = append(errs, fmt.Errorf("gateway: route %d: %w", i+1, err))
		}
		for _, name := range route.Domains {
			errs = append(errs, rs.add(name, i))
		}
		for _, address := range route.Addresses {
			errs = append(errs, rs.addAddress(address, i))
		}
	}
	return rs, errors.Join(errs...)
}

func (rs *ruleSet) add(name string, i int) error {
	if name == "*" {
		if rs.anywhere < 0 {
			rs.anywhere = i
		}
		return nil
	}
	base, wild := strings.CutPrefix(name, "*.")
	d, err := smtp.ParseDomain(base)
	if err == nil && wild && d.IsLiteral() {
		err = fmt.Errorf("%q: nothing is below an address", name)
	}
	if err != nil {
		return fmt.Errorf("gateway: route %d: %w", i+1, err)
	}
	if rs.named < 0 {
		rs.named = i
	}
	if wild {
		if _, ok := rs.below[d.String()]; !ok {
			rs.below[d.String()] = i
		}
	} else if _, ok := rs.exact[d]; !ok {
		rs.exact[d] = i
	}
	return nil
}

func (rs *ruleSet) addAddress(address string, i int) error {
	p, err := smtp.ParseAddress(address)
	if err != nil {
		return fmt.Errorf("gateway: route %d: %q: %w", i+1, address, err)
	}
	p.Local = strings.ToLower(p.Local)
	if _, ok := rs.single[p]; !ok {
		rs.single[p] = i
	}
	return nil
}

// route finds the index of a recipient's route. anywhere lets "*" count.
// <postmaster> without a domain is always taken (RFC 5321, Section 4.5.1): it goes where
// our own name does, or to the first domain that has a route by name, and never out: no host
// elsewhere is found by it.
func (rs *ruleSet) route(p smtp.Path, own smtp.Domain, anywhere bool) (i int, ok bool) {
	d := p.Domain
	if d.IsZero() {
		d = own
	}
	best := len(rs.Routes)
	if i, ok := rs.exact[d]; ok {
		best = i
	}
	if len(rs.single) > 0 {
		if i, ok := rs.single[smtp.Path{Local: strings.ToLower(p.Local), Domain: d}]; ok {
			best = min(best, i)
		}
	}
	for rest := d.String(); ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		if i, ok := rs.below[parent]; ok {
			best = min(best, i)
		}
		rest = parent
	}
	if anywhere && rs.anywhere >= 0 && !(p.Domain.IsZero() && rs.Routes[rs.anywhere].out) {
		best = min(best, rs.anywhere)
	}
	if best == len(rs.Routes) && p.Domain.IsZero() {
		best = rs.named
	}
	return best, best >= 0 && best < len(rs.Routes)
}

// offers are the extensions that may be offered because every backend that mail may go to
// has them, or because we see to them ourselves: where all mail for a backend is kept, reports
// and times are our business. out tells that mail of the client may leave, held that it may ask
// for mail to be held.
func (rs *ruleSet) offers(relay Relay, out, held bool) smtp.Extensions {
	if len(rs.Routes) == 0 {
		return smtp.Extensions{}
	}
	o, asks := relay.(Offers)
	_, keeps := relay.(Keeper)
	all := smtp.Extensions{DSN: true, BinaryMIME: true, RequireTLS: true, Priority: true, DeliverBy: minDeliverBy, FutureRelease: maxRelease}
	asked := make(map[string]smtp.Extensions, 1)
	for _, r := range rs.Routes {
		e, ok := asked[r.Backend]
		if r.out {
			if !out {
				continue
			}
			e, ok = outOffers, true
		}
		if !ok && asks {
			e, _ = o.Offers(r.Backend) // one that is not known has nothing
			asked[r.Backend] = e
		}
		if keeps && r.Queue {
			e.DSN, e.Priority, e.FutureRelease = true, true, maxRelease
		}
		all.DSN, all.BinaryMIME, all.RequireTLS = all.DSN && e.DSN, all.BinaryMIME && e.BinaryMIME, all.RequireTLS && e.RequireTLS
		all.Priority = all.Priority && e.Priority
		if !keeps || !r.Queue {
			e.DeliverBy, all.FutureRelease = 0, 0
		}
		// What must be there in time may not go to who does not promise that, and not to who
		// needs more of it. RFC 2852, Section 4.1.
		if e.DeliverBy == 0 || all.DeliverBy == 0 {
			all.DeliverBy = 0
		} else {
			all.DeliverBy = max(all.DeliverBy, e.DeliverBy)
		}
	}
	if !held {
		all.FutureRelease = 0
	}
	return all
}

// outOffers are the extensions for what leaves: those that its delivery sees to, wherever it
// goes. A server that lacks REQUIRETLS does not get what came with it.
var outOffers = smtp.Extensions{RequireTLS: true}

// The bounds of the times that clients may ask for. RFC 2852, Section 4 and RFC 4865, Section
// 4.
const (
	minDeliverBy = time.Minute
	maxRelease   = 7 * 24 * time.Hour
)

// Backend returns the backend that mail for an address goes to by the rules in force, those
// for clients that may relay included.
func (g *Gateway) Backend(p smtp.Path) (name string, ok bool) { return g.backend(p, true) }

// PublicBackend is Backend by the rules for strangers, who may not relay: nor may they by an
// address that leads on from a backend.
func (g *Gateway) PublicBackend(p smtp.Path) (name string, ok bool) {
	if strings.ContainsAny(p.Local, routingMarks) {
		return "", false
	}
	return g.backend(p, false)
}

func (g *Gateway) backend(p smtp.Path, anywhere bool) (name string, ok bool) {
	rs := g.acquire()
	if rs == nil {
		return "", false
	}
	defer rs.release()
	i, ok := rs.route(p, g.own, anywhere)
	if !ok || rs.Routes[i].out {
		return "", false
	}
	return rs.Routes[i].Backend, true
}

// ErrClosed is what Prepare, Use and Reload return after Shutdown. ErrNoChain is behind the
// error of rules that lack the chain of a listener.
var (
	ErrClosed  = errors.New("gateway: shut down")
	ErrNoChain = errors.New("there is no chain")
)

// Prepared are rules that can be taken over at any time. Use takes them, or Discard gives them
// up; one of the two must be called, once.
type Prepared struct{ rules *ruleSet }

// Discard gives the rules up. Their Release is not called.
func (p *Prepared) Discard() { p.rules.known.leave() }

// Prepare does all of a change of rules that may fail: it fails if a listener's chain is
// missing, a route makes no sense, or a list of recipients that the rules in use do not have
// cannot be read, and with ErrClosed after Shutdown. Release is not called then. r must not be
// changed any more.
//
// Lists of recipients and answers of callouts that the rules in use have, with the same
// options, go on as they are.
func (g *Gateway) Prepare(r Rules) (*Prepared, error) {
	old := g.acquire()
	if old == nil {
		return nil, ErrClosed
	}
	defer old.release()
	return g.prepare(r, old.known)
}

// prepare is Prepare with what is known already, nil for nothing.
func (g *Gateway) prepare(r Rules, known *knowledge) (*Prepared, error) {
	rs, err := g.checked(r)
	if err != nil {
		return nil, err
	}
	if rs.known, err = knowledgeOf(rs.Routes, known, g.opts.Relay, g.opts.Log); err != nil {
		return nil, err
	}
	return &Prepared{rs}, nil
}

// Use replaces the rules. Sessions that run keep the old ones. It fails with ErrClosed after
// Shutdown alone; the rules are discarded then.
func (g *Gateway) Use(p *Prepared) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		p.Discard()
		return ErrClosed
	}
	old := g.rules.Swap(p.rules)
	g.mu.Unlock()
	p.rules.known.look()
	old.retire()
	return nil
}

// Reload is Prepare and Use. With an error nothing has changed.
func (g *Gateway) Reload(r Rules) error {
	p, err := g.Prepare(r)
	if err != nil {
		return err
	}
	return g.Use(p)
}

// free is called once nobody uses the rules any more.
func (rs *ruleSet) free() {
	rs.known.leave()
	if rs.Release != nil {
		rs.Release()
	}
}

// checked makes r one that can be looked up, if it fits the listeners.
func (g *Gateway) checked(r Rules) (*ruleSet, error) {
	rs, err := newRuleSet(r)
	if err != nil {
		return nil, err
	}
	if r.Out && g.keeper == nil {
		return nil, errors.New("gateway: there is nobody to keep what is to be sent out")
	}
	for _, l := range g.listeners {
		if _, ok := r.Chains[l.Chain]; l.Chain != "" && !ok {
			return nil, fmt.Errorf("gateway: listener %s: %w %q", l.Name, ErrNoChain, l.Chain)
		}
	}
	return rs, nil
}

// retire marks rules as replaced. Nil is none.
func (rs *ruleSet) retire() {
	if rs == nil {
		return
	}
	rs.mu.Lock()
	rs.retired = true
	idle := rs.users == 0
	rs.mu.Unlock()
	if idle {
		rs.free()
	}
}

// acquire returns the current rules, counted as used; nil after Shutdown.
func (g *Gateway) acquire() *ruleSet {
	for {
		rs := g.rules.Load()
		if rs == nil {
			return nil
		}
		rs.mu.Lock()
		retired := rs.retired
		if !retired {
			rs.users++
		}
		rs.mu.Unlock()
		if !retired {
			return rs
		}
	}
}

// release ends a use.
func (rs *ruleSet) release() {
	rs.mu.Lock()
	rs.users--
	last := rs.retired && rs.users == 0
	rs.mu.Unlock()
	if last {
		rs.free()
	}
}
