package mx

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// addrs.go: the addresses of hosts, and which of them may be used.

// candidate is a Host before its addresses are judged.
type candidate struct {
	Host
	given  bool // the addresses were given and need no look-up
	answer answer
}

// answer is what the DNS says of a host, or who gave it.
type answer struct {
	resolver.Addrs
	err error
}

// addressed makes a candidate of a host whose addresses are known.
func addressed(h Host, addrs ...netip.Addr) candidate {
	c := candidate{Host: h, given: true}
	c.answer.Addrs.Addrs, c.answer.Canonical, c.answer.Authentic = addrs, h.Canonical, h.Authentic
	return c
}

// maxJudged is how many addresses of a host and family are looked at. More are of no use, and a
// reply may have thousands.
const maxJudged = 64

// maxRefused is how many refusals a Route lists.
const maxRefused = 100

var (
	errNotHost  = errors.New("not the name of a host")
	errAddrHost = errors.New("an address in place of a name")
	errNoIPv4   = errors.New("IPv4 is turned off")
	errNoIPv6   = errors.New("IPv6 is turned off")
)

// lookUp looks the addresses of all hosts up, several at a time.
func (s *search) lookUp(ctx context.Context) {
	var next atomic.Int32
	work := func() {
		for i := int(next.Add(1)) - 1; i < len(s.hosts); i = int(next.Add(1)) - 1 {
			if c := &s.hosts[i]; !c.given {
				c.answer = s.addresses(ctx, c.Name)
			}
		}
	}
	// This goroutine is one of those that work.
	var wg sync.WaitGroup
	for range min(s.o.Parallel, len(s.hosts)) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// addresses looks a host up. If it has no addresses of the only family that is used, those
// of the other tell whether there would be any.
func (s *search) addresses(ctx context.Context, name string) answer {
	if _, err := netip.ParseAddr(name); err == nil {
		return answer{err: errAddrHost} // RFC 1035, Section 3.3.9: a name
	}
	if !hostName(name) {
		return answer{err: errNotHost}
	}
	found, err := s.o.DNS.LookupAddrs(ctx, name, s.o.Families)
	if s.o.Families != resolver.Both && errors.Is(err, resolver.ErrNoData) {
		other := resolver.IPv4
		if s.o.Families == resolver.IPv4 {
			other = resolver.IPv6
		}
		if there, otherErr := s.o.DNS.LookupAddrs(ctx, name, other); otherErr == nil || errors.Is(otherErr, resolver.ErrTemporary) {
			found, err = there, otherErr
		}
	}
	return answer{found, err}
}

// judge sets the addresses of a host that may be used, or why there are none.
func (s *search) judge(c *candidate) {
	a := &c.answer
	c.Canonical, c.Authentic, c.Expires = a.Canonical, a.Authentic, a.Expires
	c.Failed = a.Failed
	if a.err == errAddrHost || a.err == errNotHost {
		s.refuse(c.Name, netip.Addr{}, a.err)
	}
	var skipped, off bool
	var refused error
	var seen [2]int // of each family
	for _, addr := range a.Addrs.Addrs {
		addr = s.used(addr)
		if n := &seen[addr.BitLen()/128]; *n == maxJudged {
			continue
		} else {
			*n++
		}
		err := s.o.Guard.Check(addr)
		switch {
		case err != nil:
			s.refuse(c.Name, addr, err)
			refused = cmp.Or(refused, err)
		case s.turnedOff(addr) != nil:
			s.refuse(c.Name, addr, s.turnedOff(addr))
			off = true
		case slices.Contains(s.o.Skip, addr):
			s.route.Skipped = append(s.route.Skipped, addr)
			skipped = true
		case !slices.Contains(c.Addrs, addr):
			c.Addrs = append(c.Addrs, addr)
		}
	}
	if len(c.Addrs) > 0 {
		c.Addrs = s.some(c.Addrs)
		s.expire(c.Expires)
		if c.Failed != nil {
			s.expire(s.o.Now().Add(soon))
		}
		return
	}
	c.Err = s.why(c, skipped, off, refused)
}

// used is an address as it is connected to: one of IPv4 that is written as one of IPv6 is one
// of IPv4, unless only one family is used and the other must not come in by this door.
func (s *search) used(a netip.Addr) netip.Addr {
	if s.o.Families != resolver.Both {
		return a
	}
	return a.Unmap()
}

// turnedOff tells why the family of an address is not used.
func (s *search) turnedOff(a netip.Addr) error {
	switch {
	case s.o.Families == resolver.IPv4 && !a.Is4():
		return errNoIPv6
	case s.o.Families == resolver.IPv6 && (a.Is4() || a.Is4In6()):
		return errNoIPv4
	}
	return nil
}

func (s *search) refuse(host string, addr netip.Addr, why error) {
	if len(s.route.Refused) < maxRefused {
		s.route.Refused = append(s.route.Refused, Refusal{host, addr, why})
	}
}

// why tells why a host has no address to use. What may be otherwise later comes first.
func (s *search) why(c *candidate, skipped, off bool, refused error) error {
	a := &c.answer
	if skipped && s.o.LastError != nil {
		return s.o.LastError
	}
	var e *Error
	switch {
	case skipped:
		e = s.fail(451, smtp.Enhanced{4, 4, 1}, "no mail server of the recipient's domain could be reached, try again later", nil)
		e.Category = Network
	case errors.Is(a.err, resolver.ErrTemporary):
		e = s.failed(a.err)
	case a.Failed != nil:
		e = s.failed(a.Failed)
	case off:
		e = s.fail(451, smtp.Enhanced{4, 4, 4}, "the recipient's mail server is not in the Internet that we are in", s.off())
	case refused != nil:
		e = s.fail(550, smtp.Enhanced{5, 4, 4}, "the recipient's mail server has no address that mail can go to", refused)
	case s.route.Implicit:
		e = s.fail(550, smtp.Enhanced{5, 4, 4}, "the recipient's domain has neither a mail server nor an address", a.err)
	default:
		e = s.fail(550, smtp.Enhanced{5, 4, 4}, "the recipient's mail server has no address", a.err)
	}
	if e.Temporary() {
		s.expire(s.o.Now().Add(soon))
	}
	e.Host = c.Name
	return e
}

// off tells which family is not used.
func (s *search) off() error {
	if s.o.Families == resolver.IPv4 {
		return errNoIPv6
	}
	return errNoIPv4
}

// some draws the order of a host's addresses, and keeps so many of them as are allowed, of
// both families if there are both.
func (s *search) some(addrs []netip.Addr) []netip.Addr {
	s.o.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	byFamily(addrs, s.o.PreferIPv6)
	if len(addrs) <= s.o.MaxAddrs {
		return addrs
	}
	second := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() != addrs[0].Is4() })
	if second < 0 {
		return addrs[:s.o.MaxAddrs]
	}
	others := len(addrs) - second
	n := max(s.o.MaxAddrs-others, (s.o.MaxAddrs+1)/2) // of the first family
	n = min(n, second)
	return append(addrs[:n:n], addrs[second:second+s.o.MaxAddrs-n]...)
}

// byFamily puts one family before the other, without another change of order.
func byFamily(addrs []netip.Addr, ipv6First bool) {
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int {
		switch {
		case a.Is4() == b.Is4():
			return 0
		case a.Is4() == ipv6First:
			return 1
		}
		return -1
	})
}
