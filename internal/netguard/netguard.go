// Package netguard keeps connections that others have a say in away from addresses that are
// not of the public Internet: this machine, the networks around it, and the services that
// clouds answer at link-local addresses. A name is no protection, since its owner decides
// what it leads to, and may decide otherwise a moment later; so the address is looked at when
// the connection is made, after the last look-up:
//
//	d := net.Dialer{Control: netguard.Guard{Allow: prefixes}.Control}
//
// An address of IPv6 may carry one of IPv4 to which it leads in the end. Both are judged, and
// the worse of them counts:
//
//	::ffff:0:0/96     mapped (RFC 4291)           is what it carries
//	64:ff9b::/96      NAT64 (RFC 6052)            is what it carries
//	::/96             compatible (RFC 4291)       retired; last four octets
//	::ffff:0:0:0/96   translated (RFC 2765)       retired; last four octets
//	2002::/16         6to4 (RFC 3056)             octets 2 to 5
//	2001::/32         Teredo (RFC 4380)           server: octets 4 to 7; client: the last four, inverted
//	...:0:5efe:*      ISATAP (RFC 5214)           last four octets
//	Guard.NAT64       as declared (RFC 6052)      by the length of the prefix
package netguard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// ErrRefused is behind each error of a Guard.
var ErrRefused = errors.New("address is not on the public Internet")

// Guard decides which addresses may be connected to. The zero Guard lets public ones
// through. It is a value that is not changed while in use, and then safe for concurrent use.
type Guard struct {
	// Allow are networks that are let through although they are not public. They hold for an
	// address as it is, not for one that it carries. What can be no host is never let through.
	Allow []netip.Prefix
	// AllowLocal lets all addresses through that are of this machine and the networks around
	// it.
	AllowLocal bool
	// AllowReserved lets addresses through that are set aside: for documentation, benchmarks,
	// translation or the future.
	AllowReserved bool
	// NAT64 are prefixes by which IPv6 leads to IPv4 here, beside 64:ff9b::/96. An address in
	// one carries an IPv4 address (RFC 6052, Section 2.2), and both are judged. One within
	// 64:ff9b:1::/48, which is there for the purpose (RFC 8215), counts as what it carries.
	NAT64 []netip.Prefix
	// Machine knows the addresses of this machine, so that public ones count as local, too.
	// Nil does not look at them.
	Machine *Machine
}

// Validate returns every problem, joined, or nil. A prefix of NAT64 must be of IPv6 and have
// one of the lengths of RFC 6052, Section 2.2.
func (g Guard) Validate() error {
	var errs []error
	for _, p := range g.Allow {
		if !p.IsValid() {
			errs = append(errs, errors.New("netguard: allowed network: not valid"))
		}
	}
	for _, p := range g.NAT64 {
		if !p.IsValid() || p.Addr().Is4() || p.Addr().Is4In6() || !slices.Contains([]int{32, 40, 48, 56, 64, 96}, p.Bits()) {
			errs = append(errs, fmt.Errorf("netguard: NAT64 prefix %s: want one of IPv6 whose length is 32, 40, 48, 56, 64 or 96", p))
		}
	}
	return errors.Join(errs...)
}

// Check returns an error wrapping ErrRefused if the address may not be connected to. The
// error names the address and what it is for.
func (g Guard) Check(a netip.Addr) error {
	a = plain(a)
	if class := g.classOf(a); !g.passes(class) && !(class.group() != never && g.allows(a)) {
		return refusal(a, class, netip.Addr{})
	}
	var list [4]netip.Addr
	for _, inner := range g.carried(list[:0], a) {
		// What is allowed as it is is allowed for what it carries, too.
		if class := g.classOf(inner); !g.passes(class) && !(class.group() != never && g.allows(a)) {
			return refusal(a, class, inner)
		}
	}
	return nil
}

func refusal(a netip.Addr, class Class, inner netip.Addr) error {
	if inner.IsValid() {
		return fmt.Errorf("netguard: %s carries %s, which is %s: %w", a, inner, class, ErrRefused)
	}
	return fmt.Errorf("netguard: %s is %s: %w", a, class, ErrRefused)
}

// passes tells whether addresses of a class are let through.
func (g Guard) passes(c Class) bool {
	switch c.group() {
	case never:
		return false
	case local:
		return g.AllowLocal
	case reserved:
		return g.AllowReserved
	}
	return true
}

func (g Guard) allows(a netip.Addr) bool {
	return slices.ContainsFunc(g.Allow, func(p netip.Prefix) bool { return p.Contains(a) })
}

// classOf is the class of an address itself.
func (g Guard) classOf(a netip.Addr) Class {
	class := outer(a)
	switch {
	case class == Public && g.Machine != nil && g.Machine.Has(a):
		return ThisMachine
	case class == Translator && slices.ContainsFunc(g.NAT64, func(p netip.Prefix) bool { return p.Contains(a) }):
		return Public
	}
	return class
}

// carried appends the addresses of IPv4 that a carries.
func (g Guard) carried(list []netip.Addr, a netip.Addr) []netip.Addr {
	if !a.Is6() {
		return list
	}
	list = carried(list, a)
	for _, p := range g.NAT64 {
		if p.Contains(a) {
			list = append(list, translated(a, p.Bits()))
		}
	}
	return list
}

// Mine tells whether the guard refuses the address because it is one of this machine's, and for
// no other reason: whoever connects to it by a public name means us.
func (g Guard) Mine(a netip.Addr) bool {
	a = plain(a)
	return g.classOf(a) == ThisMachine && !g.AllowLocal && !g.allows(a)
}

// Control is for the field of that name of a net.Dialer. It refuses what Check refuses, and
// all that is neither TCP nor UDP.
func (g Guard) Control(network, address string, _ syscall.RawConn) error {
	switch network {
	case "tcp4", "tcp6", "udp4", "udp6":
	default:
		return fmt.Errorf("netguard: network %s: %w", network, ErrRefused)
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("netguard: %q: %w", address, ErrRefused)
	}
	return g.Check(ap.Addr())
}
