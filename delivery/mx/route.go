package mx

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/penstock/penstock/resolver"
)

// route.go: what Find is told, and what it finds.

// Options say how hosts are found. The zero value of each field but DNS means its default.
type Options struct {
	// DNS looks names up. Required.
	DNS resolver.DNS
	// Families are the addresses that may be used. Default both. A host that has only
	// others is a temporary failure, since the mail could go if we were set otherwise.
	Families resolver.Families
	// PreferIPv6 puts IPv6 first among the addresses of hosts that are equally preferred. By
	// default each host's IPv4 comes first.
	PreferIPv6 bool
	// Guard says which addresses may be used. Nil lets public ones be used that are not of
	// this machine.
	Guard *Guard
	// Given are the hosts of the target, in place of those that the DNS has: as for a smart
	// host. They are not compared with Own.
	Given []Given
	// Skip are addresses to leave out, as those that failed a moment ago.
	Skip []netip.Addr
	// LastError is what to say if Skip leaves nothing: what happened there. Default a
	// temporary error.
	LastError error
	// Own are the names under which mail reaches us, as A-labels. They find loops (RFC 5321,
	// Section 5.1).
	Own []string
	// OwnAddrs are addresses at which mail reaches us, as those before a translation of
	// addresses. Public ones of this machine are found without, unless the Guard lets mail go
	// there.
	OwnAddrs []netip.Addr
	// MaxHosts is how many hosts are looked up, the preferred ones. Default 20.
	MaxHosts int
	// MaxAddrs is how many addresses of a host are kept, of both families if it has both. Two
	// at least (RFC 5321, Section 5.1). Default 8.
	MaxAddrs int
	// Parallel is how many hosts are looked up at the same time. Default 5.
	Parallel int
	// Budget is how long all of it may take. Hosts that were not looked up until then are
	// temporary failures. Default 30 s.
	Budget time.Duration
	// Shuffle draws the order of equals. Nil is rand.Shuffle.
	Shuffle func(n int, swap func(i, j int))
	// Now is the clock. Nil is time.Now.
	Now func() time.Time
}

// Validate returns every problem of the options, joined, or nil.
func (o Options) Validate() error {
	var errs []error
	if o.DNS == nil {
		errs = append(errs, errors.New("mx: no resolver"))
	}
	if o.Families < resolver.Both || o.Families > resolver.IPv6 {
		errs = append(errs, fmt.Errorf("mx: address families %d are unknown", o.Families))
	}
	for _, n := range []struct {
		name       string
		value, low int
	}{{"hosts", o.MaxHosts, 1}, {"addresses of a host", o.MaxAddrs, 2}, {"look-ups at the same time", o.Parallel, 1}} {
		if n.value != 0 && n.value < n.low {
			errs = append(errs, fmt.Errorf("mx: number of %s: %d is less than %d", n.name, n.value, n.low))
		}
	}
	if o.Budget < 0 {
		errs = append(errs, fmt.Errorf("mx: budget of %s is less than nothing", o.Budget))
	}
	for i, g := range o.Given {
		if err := g.validate(); err != nil {
			errs = append(errs, fmt.Errorf("mx: given host %d: %w", i+1, err))
		}
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	setDefault(&o.MaxHosts, 20)
	setDefault(&o.MaxAddrs, 8)
	setDefault(&o.Parallel, 5)
	setDefault(&o.Budget, 30*time.Second)
	if o.Guard == nil {
		o.Guard = PublicGuard()
	}
	if o.Shuffle == nil {
		o.Shuffle = rand.Shuffle
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Given is a host that was given and need not be found.
type Given struct {
	// Host is its name, or an IP address, with or without brackets. It may be empty if there
	// are Addrs.
	Host string
	// Preference orders the hosts, the lowest first, equals by lot.
	Preference uint16
	// Addrs are its addresses. Without any, Host is looked up. The guard judges them like
	// others.
	Addrs []netip.Addr
	// TLSA are its TLSA records, as if they had been looked up and authenticated.
	TLSA []resolver.TLSA
}

var errNoHost = errors.New("neither a name nor an address")

// literal returns the address, if Host is one.
func (g Given) literal() (netip.Addr, bool) {
	s := g.Host
	if body, ok := strings.CutPrefix(s, "["); ok {
		t, err := ParseTarget("[" + body)
		return t.Addr, err == nil
	}
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Zone() == ""
}

func (g Given) validate() error {
	if _, ok := g.literal(); ok || g.Host == "" && len(g.Addrs) > 0 {
		return nil
	}
	if _, err := domainName(g.Host); err != nil {
		if g.Host == "" {
			return errNoHost
		}
		return fmt.Errorf("%q: %w", g.Host, err)
	}
	return nil
}

// Route is where mail for a target goes. Nobody changes it once it is made, and so it is safe
// for concurrent use.
type Route struct {
	Target Target
	// Canonical is the domain at the end of the CNAMEs of the target's. Empty for a literal
	// and for hosts that were given.
	Canonical string
	// Authentic tells that the MX records, or that there are none, were authenticated, each
	// CNAME on the way included. Hosts that were given are authentic, a literal is not.
	Authentic bool
	// Implicit tells that there are no MX records, and the domain is its own host.
	Implicit bool
	// Hosts are the hosts in the order in which to try them, those without a usable address
	// included. None are there twice.
	Hosts []Host
	// Refused are the addresses, and the names of hosts, that must not be used; the first hundred.
	Refused []Refusal
	// Loop is the host, one of those of the target, that we took for ourselves. It and those that are
	// not preferred to it are not among the Hosts. Empty if there is none.
	Loop string
	// Skipped are addresses that were left out because Options.Skip says so.
	Skipped []netip.Addr
	// More is how many hosts were left out, beyond Options.MaxHosts.
	More int
	// Expires is when to look again.
	Expires time.Time
}

// Host takes mail for a target.
type Host struct {
	// Name is the one in the MX record; the target's domain, as it was written, if there are
	// no MX records. Empty for a literal.
	Name       string
	Preference uint16
	// Addrs are the addresses that may be used, in the order in which to try them.
	Addrs []netip.Addr
	// Canonical is the name at the end of the CNAMEs of Name, the one that has the addresses.
	Canonical string
	// Authentic tells that the answers with the addresses were authenticated, each CNAME
	// included. Given addresses are.
	Authentic bool
	// Err says why there are no Addrs. It is an *Error, or Options.LastError; nil if there
	// are some.
	Err error
	// Failed is why the addresses of one family are not known, while the other has some. Nil
	// if all is known.
	Failed error
	// TLSA are the records that were given with the host.
	TLSA []resolver.TLSA
	// Expires is until when the addresses hold. Zero if they were given or are not known.
	Expires time.Time
}

// Refusal is an address that must not be used, or a name that is none of a host; Addr is zero
// then.
type Refusal struct {
	Host string
	Addr netip.Addr
	Why  error
}
