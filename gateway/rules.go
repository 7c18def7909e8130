package gateway

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// rules.go: what may change while mail flows: routes and filter chains. A session keeps
// the rules it began with; the old ones are released with their last session.

// Route sends the recipients of some domains to a backend.
type Route struct {
	// Domains are names, "*.example.com" for all names below one, or "*" for all domains,
	// which only clients that may relay are given.
	Domains []string
	// Backend is the name that the Relay knows.
	Backend string
	// Recipients says who knows which recipients exist. The zero value asks the backend.
	Recipients Recipients
}

// Recipients says who knows which recipients of a route exist. One field is set, or none:
// the backend is asked then, in the transaction.
type Recipients struct {
	// Accept takes all, unasked.
	Accept bool
	// Callout asks the backend in a transaction of its own, and remembers the answer.
	Callout *Callout
	// List knows them from a file.
	List *RecipientList
}

// Callout are the settings of a callout. The zero value of each field means its default.
type Callout struct {
	// Positive and Negative are how long an answer is remembered. Defaults 1 h and 5 min.
	Positive, Negative time.Duration
	// Stale is how long after its time a recipient that existed is still taken while the
	// backend cannot be asked. Zero is not at all.
	Stale time.Duration
	// Timeout is for one question. Default 10 s.
	Timeout time.Duration
	// Entries is how many recipients are remembered. Default 100000.
	Entries int
}

// Rules are routes and chains.
type Rules struct {
	// Routes in order; the first that matches wins.
	Routes []Route
	// Chains by the name that listeners use.
	Chains map[string]*policy.Chain
	// Release, if not nil, is called once when these rules have been replaced, or the
	// Gateway was shut down, and no session uses them any more.
	Release func()
}

// ruleSet is Rules that can be looked up, and a count of those who use them.
type ruleSet struct {
	Rules
	exact    map[smtp.Domain]int // index of the first route
	below    map[string]int      // by the name behind "*."
	anywhere int                 // index of the first "*", or -1
	named    int                 // index of the first route of a domain by name, or -1

	mu      sync.Mutex // guards what follows
	users   int
	retired bool
}

func newRuleSet(r Rules) (*ruleSet, error) {
	rs := &ruleSet{Rules: r, exact: make(map[smtp.Domain]int), below: make(map[string]int), anywhere: -1, named: -1}
	var errs []error
	for i, route := range r.Routes {
		if route.Backend == "" {
			errs = append(errs, fmt.Errorf("gateway: route %d: no backend", i+1))
		}
		for _, name := range route.Domains {
			errs = append(errs, rs.add(name, i))
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

// route finds the route of a recipient; nil if there is none. anywhere lets "*" count.
// <postmaster> without a domain is always taken (RFC 5321, Section 4.5.1): it goes where
// our own name does, or to the first domain that has a route by name.
func (rs *ruleSet) route(p smtp.Path, own smtp.Domain, anywhere bool) *Route {
	d := p.Domain
	if d.IsZero() {
		d = own
	}
	best := len(rs.Routes)
	if i, ok := rs.exact[d]; ok {
		best = i
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
	if anywhere && rs.anywhere >= 0 {
		best = min(best, rs.anywhere)
	}
	if best == len(rs.Routes) && p.Domain.IsZero() {
		best = rs.named
	}
	if best < 0 || best == len(rs.Routes) {
		return nil
	}
	return &rs.Routes[best]
}

// ErrClosed is what Reload returns after Shutdown.
var ErrClosed = errors.New("gateway: shut down")

// Reload replaces the rules, which must not be changed any more. Sessions that run keep
// the old ones. It fails, and changes nothing, if a listener's chain is missing or a route
// makes no sense, and with ErrClosed after Shutdown; Release is not called then.
func (g *Gateway) Reload(r Rules) error {
	rs, err := g.checked(r)
	if err != nil {
		return err
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	old := g.rules.Swap(rs)
	g.mu.Unlock()
	old.retire()
	return nil
}

// CheckRules returns what Reload would find wrong with r, and changes nothing.
func (g *Gateway) CheckRules(r Rules) error {
	_, err := g.checked(r)
	return err
}

// checked makes r one that can be looked up, if it fits the listeners.
func (g *Gateway) checked(r Rules) (*ruleSet, error) {
	rs, err := newRuleSet(r)
	if err != nil {
		return nil, err
	}
	for _, l := range g.listeners {
		if _, ok := r.Chains[l.Chain]; l.Chain != "" && !ok {
			return nil, fmt.Errorf("gateway: listener %s: there is no chain %q", l.Name, l.Chain)
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
	if idle && rs.Release != nil {
		rs.Release()
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
	if last && rs.Release != nil {
		rs.Release()
	}
}
