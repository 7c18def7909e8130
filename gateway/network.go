package gateway

import (
	"net"
	"net/netip"
	"slices"
)

// network.go: whom a listener believes, by where it connects from.

// Networks are addresses that something is granted to. The zero value is nobody.
type Networks struct {
	// Prefixes hold their addresses. They are masked, and IPv4 is not written as IPv6.
	Prefixes []netip.Prefix
	// Unix adds the peers on local sockets.
	Unix bool
}

// empty tells whether it is nobody.
func (n Networks) empty() bool { return len(n.Prefixes) == 0 && !n.Unix }

// holds tells whether it has an address of a connection.
func (n Networks) holds(a net.Addr) bool {
	if a.Network() == "unix" {
		return n.Unix
	}
	return n.contains(addrPort(a).Addr())
}

// contains tells whether one of its prefixes has a.
func (n Networks) contains(a netip.Addr) bool {
	a = a.WithZone("") // a Prefix contains no address with a zone
	return slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
