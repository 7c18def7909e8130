package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Network is a range of addresses, or all peers on a unix socket.
type Network struct {
	Prefix netip.Prefix // masked; an IPv4 range is never written as IPv6
	Unix   bool         // the word unix: peers on a unix socket have no address
}

// UnmarshalText reads a range in CIDR notation, one address, or the word unix.
func (n *Network) UnmarshalText(text []byte) error {
	t := string(text)
	if t == "unix" {
		*n = Network{Unix: true}
		return nil
	}
	p, err := netip.ParsePrefix(t)
	if a, aerr := netip.ParseAddr(t); aerr == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil {
		return fmt.Errorf("%s is not a network: write 192.0.2.0/24, 2001:db8::/32, an address, or the word unix", quote(t))
	}
	*n = Network{Prefix: unmapped(p)}
	return nil
}

// String returns the network as it is written in the file.
func (n Network) String() string {
	switch {
	case n.Unix:
		return "unix"
	case n.Prefix.IsSingleIP():
		return n.Prefix.Addr().String()
	}
	return n.Prefix.String()
}

func (Network) describe() string { return "network" }

// unmapped returns an IPv4 range that was written as ::ffff:192.0.2.0/120 as IPv4,
// because the address of an IPv4 peer is compared in that form.
func unmapped(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// Networks is a list of networks. Nil holds nobody.
type Networks []Network

// Contains reports whether a is in one of the networks. An IPv4 address in IPv6
// form is taken as IPv4, and a zone is ignored.
func (n Networks) Contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(n, func(one Network) bool { return one.Prefix.Contains(a) })
}

// ContainsUnix reports whether peers on a unix socket are in it.
func (n Networks) ContainsUnix() bool {
	return slices.ContainsFunc(n, func(one Network) bool { return one.Unix })
}

// everyone returns "IPv4" or "IPv6" when the networks hold, between them, every
// public address of that kind. Halves count as much as 0.0.0.0/0 does, and so does
// everything but the ranges from which nobody on the Internet can come anyway.
func (n Networks) everyone() string {
	var v4, v6 []netip.Prefix
	for _, one := range n {
		switch {
		case one.Unix || !one.Prefix.IsValid():
		case one.Prefix.Addr().Is4():
			v4 = append(v4, one.Prefix)
		default:
			v6 = append(v6, one.Prefix)
		}
	}
	for _, private := range []string{"10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} {
		v4 = append(v4, netip.MustParsePrefix(private))
	}
	switch {
	case covers(v4, netip.MustParseAddr("1.0.0.0"), netip.MustParseAddr("223.255.255.255")):
		return "IPv4"
	case covers(v6, netip.MustParseAddr("2000::"), netip.MustParseAddr("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")):
		return "IPv6"
	}
	return ""
}

// covers reports whether the ranges leave no gap from first to last, all of one
// address family.
func covers(ranges []netip.Prefix, first, last netip.Addr) bool {
	slices.SortFunc(ranges, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	next := first
	for _, r := range ranges {
		if next.Less(r.Addr()) {
			return false // a gap, and all later ranges begin after it
		}
		end := lastOf(r)
		if !end.Less(last) {
			return true
		}
		if !end.Less(next) {
			next = end.Next()
		}
	}
	return false
}

// lastOf returns the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// list returns the networks as they would be written in the file.
func (n Networks) list() string {
	words := make([]string, len(n))
	for i, one := range n {
		words[i] = one.String()
	}
	return strings.Join(words, ", ")
}
