package mx

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// find.go goes from a target to its hosts.

const (
	// soon is when to look again after a look-up failed, and late is when there is nothing
	// that expires.
	soon = time.Minute
	late = time.Hour
)

// Find returns where mail for a target goes. At least one host of the Route has an address
// that may be used; otherwise the error says why there is none. It is an *Error then:
//
//	556 5.1.10  the domain takes no mail (RFC 7505)
//	550 5.1.2   there is no such domain
//	550 5.4.4   it has neither MX records nor addresses, or no host of it has one that may be used
//	554 5.4.6   we are its most preferred host ourselves (RFC 5321, Section 5.1)
//	451 4.4.3   a look-up failed, and nothing is left without it
//	451 4.4.4   there are addresses only of a family that is turned off
//
// or Options.LastError if there is nothing but addresses to skip, 451 4.4.1 if that is nil. If
// the options are wrong it is of another type, and temporary. With an error the Route, unless
// nil, is what was found until then.
//
// It takes as long as the look-ups, of which Options.Parallel are under way at a time, and ends
// with the context or after Options.Budget.
func Find(ctx context.Context, t Target, o Options) (*Route, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, o.Budget)
	defer cancel()
	s := &search{o: o, route: &Route{Target: t, Expires: o.Now().Add(late)}}
	err := s.find(ctx)
	s.route.Hosts = make([]Host, len(s.hosts))
	for i := range s.hosts {
		s.route.Hosts[i] = s.hosts[i].Host
	}
	if err != nil {
		return s.route, err
	}
	return s.route, nil
}

// search is one Find.
type search struct {
	o     Options
	route *Route
	hosts []candidate
}

func (s *search) find(ctx context.Context) error {
	if err := s.findHosts(ctx); err != nil {
		return err
	}
	s.sort()
	if err := s.cutLoop((*search).isOurName); err != nil {
		return err
	}
	if n := s.o.MaxHosts; len(s.hosts) > n {
		s.route.More = len(s.hosts) - n
		s.hosts = s.hosts[:n]
	}
	s.lookUp(ctx)
	if err := s.cutLoop((*search).isOurHost); err != nil {
		return err
	}
	for i := range s.hosts {
		s.judge(&s.hosts[i])
	}
	return s.verdict()
}

// fail makes an error of the search.
func (s *search) fail(code int, enh smtp.Enhanced, text string, cause error) *Error {
	return &Error{Category: DNS, Reply: smtp.Refuse(code, enh, text), Target: s.route.Target, Err: cause}
}

// failed makes the error of a look-up that failed.
func (s *search) failed(cause error) *Error {
	return s.fail(451, smtp.Enhanced{4, 4, 3}, "the DNS does not say where the recipient's mail goes, try again later", cause)
}

// findHosts finds the hosts, in any order and without addresses that must be looked up.
func (s *search) findHosts(ctx context.Context) error {
	t := s.route.Target
	switch {
	case len(s.o.Given) > 0:
		s.given()
		return nil
	case t.IsLiteral():
		s.hosts = []candidate{addressed(Host{}, t.Addr)}
		return nil
	case t.Domain == "":
		return s.fail(550, smtp.Enhanced{5, 1, 2}, "the recipient has no domain", errEmpty)
	}
	return s.exchangers(ctx)
}

func (s *search) given() {
	s.route.Authentic = true
	for _, g := range s.o.Given {
		h := Host{Preference: g.Preference, TLSA: g.TLSA}
		addrs := g.Addrs
		if a, ok := g.literal(); !ok {
			h.Name, _ = domainName(g.Host) // Validate has read it, or there are addresses
		} else if len(addrs) == 0 {
			addrs = append(addrs, a)
		}
		if len(addrs) == 0 {
			s.hosts = append(s.hosts, candidate{Host: h})
			continue
		}
		h.Canonical, h.Authentic = h.Name, h.Name != ""
		s.hosts = append(s.hosts, addressed(h, addrs...))
	}
}

// exchangers looks MX records up. RFC 5321, Section 5.1.
func (s *search) exchangers(ctx context.Context) error {
	domain := s.route.Target.Domain
	found, err := s.o.DNS.LookupMX(ctx, domain)
	switch {
	case err == nil:
		s.learn(found.Meta)
		return s.records(found.Records)
	case errors.Is(err, resolver.ErrNoName), errors.Is(err, resolver.ErrBadName):
		return s.fail(550, smtp.Enhanced{5, 1, 2}, "there is no such domain", err)
	case !errors.Is(err, resolver.ErrNoData):
		return s.failed(err)
	}
	// A domain without MX records is its own host, but only if a name server says that there
	// are none. After a look-up that failed, a host that happens to have the name of the domain
	// would get mail that is not for it.
	if e, ok := errors.AsType[*resolver.Error](err); ok {
		s.learn(e.Meta)
	}
	s.route.Implicit = true
	s.hosts = []candidate{{Host: Host{Name: domain}}}
	return nil
}

// learn keeps what the answer about MX records says beside them.
func (s *search) learn(m resolver.Meta) {
	s.route.Authentic, s.route.Canonical = m.Authentic, m.Canonical
	s.expire(m.Expires)
}

func (s *search) expire(at time.Time) {
	if !at.IsZero() && at.Before(s.route.Expires) {
		s.route.Expires = at
	}
}

func (s *search) records(list []resolver.MX) error {
	for _, r := range list {
		// RFC 7505, Section 3: the root label alone means "no mail here". Beside others it
		// means nothing.
		if r.Host != "." && r.Host != "" {
			s.hosts = append(s.hosts, candidate{Host: Host{Name: r.Host, Preference: r.Preference}})
		}
	}
	if len(s.hosts) == 0 {
		return s.fail(556, smtp.Enhanced{5, 1, 10}, "the recipient's domain takes no mail", nil)
	}
	return nil
}

// sort puts the hosts in the order in which to try them: by preference, equals by lot, so that
// they share the load (RFC 5321, Section 5.1). A host that is there twice counts as the better
// one.
func (s *search) sort() {
	s.o.Shuffle(len(s.hosts), func(i, j int) { s.hosts[i], s.hosts[j] = s.hosts[j], s.hosts[i] })
	slices.SortStableFunc(s.hosts, func(a, b candidate) int { return cmp.Compare(a.Preference, b.Preference) })
	if len(s.hosts) < 2 {
		return
	}
	seen := make(map[string]bool, len(s.hosts))
	s.hosts = slices.DeleteFunc(s.hosts, func(c candidate) bool {
		twice := c.Name != "" && seen[c.Name]
		seen[c.Name] = true
		return twice
	})
}

// cutLoop drops the hosts that are us, and those that are not preferred to us: whoever gave us
// the mail could have given it to them, and they would give it back. If none is left, the
// mail must be returned. RFC 5321, Section 5.1.
func (s *search) cutLoop(isUs func(*search, *candidate) bool) error {
	if len(s.o.Given) > 0 {
		return nil
	}
	for i := range s.hosts {
		if !isUs(s, &s.hosts[i]) {
			continue
		}
		us := s.hosts[i].Host
		if s.route.Loop = us.Name; us.Name == "" {
			s.route.Loop = s.route.Target.String()
		}
		s.hosts = slices.DeleteFunc(s.hosts, func(c candidate) bool { return c.Preference >= us.Preference })
		break // the first is the one with the lowest preference
	}
	if len(s.hosts) > 0 {
		return nil
	}
	e := s.fail(554, smtp.Enhanced{5, 4, 6}, "the recipient's mail goes to this host, which does not take it", errLoop)
	e.Host = s.route.Loop
	return e
}

var errLoop = errors.New("the most preferred host is ourselves")

// isOurName tells whether the host has a name of ours.
func (s *search) isOurName(c *candidate) bool { return s.ours(c.Name) }

func (s *search) ours(name string) bool {
	return name != "" && slices.ContainsFunc(s.o.Own, func(own string) bool { return strings.EqualFold(strings.TrimSuffix(own, "."), name) })
}

// isOurHost tells whether the host leads to us by another name, or has an address of ours.
func (s *search) isOurHost(c *candidate) bool {
	if s.ours(c.answer.Canonical) {
		return true
	}
	for _, a := range c.answer.Addrs.Addrs {
		if a = a.Unmap(); slices.Contains(s.o.OwnAddrs, a) || s.o.Guard.mine(a) {
			return true
		}
	}
	return false
}

// verdict tells why no host is left, if so. A host of which little is known may be there
// later, so that it decides.
func (s *search) verdict() error {
	var why error
	for i := range s.hosts {
		h := &s.hosts[i]
		switch {
		case h.Err == nil:
			return nil
		case why == nil, !Temporary(why) && Temporary(h.Err):
			why = h.Err
		}
	}
	if s.route.More > 0 && !Temporary(why) {
		return s.fail(451, smtp.Enhanced{4, 4, 4}, "no mail server of the recipient's domain was found, try again later", why)
	}
	return why
}
