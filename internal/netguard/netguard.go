// Package netguard keeps connections that others have a say in away from addresses that are
// not of the public Internet: this machine, the networks around it, and the services that
// clouds answer at link-local addresses. A name is no protection, since its owner decides
// what it leads to, and may decide otherwise a moment later; so the address is looked at when
// the connection is made, after the last look-up:
//
//	d := net.Dialer{Control: netguard.Guard{Allow: prefixes}.Control}
//
// An IPv4 address that is embedded in one of IPv6 is judged as what it is.
package netguard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
)

// Class is what an address is for.
type Class string

// The classes. Only Public is reachable by everybody.
const (
	Public        Class = "public"
	Unspecified   Class = "unspecified"
	Loopback      Class = "loopback"
	Private       Class = "private"
	Shared        Class = "shared by customers of a provider"
	LinkLocal     Class = "link-local"
	Multicast     Class = "multicast"
	Documentation Class = "for documentation"
	Benchmark     Class = "for benchmarks"
	Translated    Class = "of a translation between IPv4 and IPv6"
	Reserved      Class = "reserved"
)

// span is a range of addresses and what they are for.
type span struct {
	prefix netip.Prefix
	class  Class
}

// The registries of special-purpose addresses (RFC 6890 and those that update it) of IANA. The first
// that holds counts.
var (
	spans4 = spansOf(
		"0.0.0.0/32", Unspecified, "0.0.0.0/8", Reserved, // RFC 791, Section 3.2: this network
		"10.0.0.0/8", Private, "172.16.0.0/12", Private, "192.168.0.0/16", Private, // RFC 1918
		"100.64.0.0/10", Shared, // RFC 6598
		"127.0.0.0/8", Loopback, "169.254.0.0/16", LinkLocal, // RFC 1122, RFC 3927
		"192.0.0.0/24", Reserved, // RFC 6890
		"192.0.2.0/24", Documentation, "198.51.100.0/24", Documentation, "203.0.113.0/24", Documentation, // RFC 5737
		"192.88.99.0/24", Translated, // RFC 7526
		"198.18.0.0/15", Benchmark, // RFC 2544
		"224.0.0.0/4", Multicast, "240.0.0.0/4", Reserved, // RFC 1112
	)
	spans6 = spansOf(
		"::/128", Unspecified, "::1/128", Loopback,
		"::/96", Translated, // IPv4-compatible, RFC 4291, Section 2.5.5.1: retired
		"64:ff9b:1::/48", Translated, // RFC 8215
		"2001::/32", Translated, "2002::/16", Translated, // Teredo, RFC 4380; 6to4, RFC 7526
		"2001:2::/48", Benchmark, "2001:db8::/32", Documentation, "3fff::/20", Documentation, // RFC 5180, RFC 3849, RFC 9637
		"2001::/23", Reserved, // RFC 2928
		"fc00::/7", Private, "fec0::/10", Private, // RFC 4193, RFC 3879
		"fe80::/10", LinkLocal, "ff00::/8", Multicast, // RFC 4291
	)
	global6 = netip.MustParsePrefix("2000::/3")
	nat64   = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052, Section 2.1
)

func spansOf(list ...any) []span {
	var spans []span
	for i := 0; i < len(list); i += 2 {
		spans = append(spans, span{netip.MustParsePrefix(list[i].(string)), list[i+1].(Class)})
	}
	return spans
}

// ClassOf returns what an address is for. One that is none is Reserved.
func ClassOf(a netip.Addr) Class {
	if !a.IsValid() {
		return Reserved
	}
	a = plain(a)
	spans := spans6
	if a.Is4() {
		spans = spans4
	}
	for _, s := range spans {
		if s.prefix.Contains(a) {
			return s.class
		}
	}
	switch {
	case a.Is4():
		return Public
	case nat64.Contains(a):
		return ClassOf(embedded(a))
	case !global6.Contains(a):
		return Reserved // what is not given out yet is nobody's
	case isISATAP(a):
		if c := ClassOf(embedded(a)); c != Public {
			return c
		}
	}
	return Public
}

// plain is an address without a zone, and IPv4 in the form of IPv6 as IPv4.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("").Unmap() }

// embedded is the IPv4 address in the last four octets.
func embedded(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// isISATAP tells whether the interface of an address is made of an IPv4 address (RFC 5214,
// Section 6.1).
func isISATAP(a netip.Addr) bool {
	b := a.As16()
	return b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// Guard decides which addresses may be connected to. The zero Guard lets public ones
// through.
type Guard struct {
	// Allow are networks that are let through although they are not public.
	Allow []netip.Prefix
}

// ErrRefused is behind each error of a Guard.
var ErrRefused = errors.New("address is not on the public Internet")

// Check returns an error wrapping ErrRefused if the address may not be connected to.
func (g Guard) Check(a netip.Addr) error {
	class := ClassOf(a)
	if class == Public {
		return nil
	}
	a = plain(a)
	if slices.ContainsFunc(g.Allow, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return nil
	}
	return fmt.Errorf("netguard: %s is %s: %w", a, class, ErrRefused)
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
