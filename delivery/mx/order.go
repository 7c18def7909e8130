package mx

import (
	"math/rand/v2"
	"net/netip"
	"slices"
)

// order.go: in which order the addresses of several hosts are tried.

// Try is an address to try.
type Try struct {
	Host int // its place among the hosts
	Addr netip.Addr
}

// Order returns the addresses of hosts in the order in which to try them. It draws lots anew
// each time, among equally preferred hosts and among the addresses of a host's family, so
// that a Route can be kept and its hosts share the load all the same (RFC 5321, Section 5.1).
// Hosts that are not to be used are left out by their Err, and an address that two hosts have
// is tried once.
//
// preferIPv6 puts IPv6 first among hosts that are equally preferred; otherwise each host's
// IPv4 comes first. shuffle draws lots; nil is rand.Shuffle.
func Order(hosts []Host, preferIPv6 bool, shuffle func(n int, swap func(i, j int))) []Try {
	if shuffle == nil {
		shuffle = rand.Shuffle
	}
	order := make([]int, len(hosts))
	n := 0
	for i := range hosts {
		order[i] = i
		n += len(hosts[i].Addrs)
	}
	shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	slices.SortStableFunc(order, func(i, j int) int { return int(hosts[i].Preference) - int(hosts[j].Preference) })
	tries := make([]Try, 0, n)
	for _, i := range order {
		if hosts[i].Err == nil {
			tries = appendTries(tries, i, hosts[i].Addrs, preferIPv6, shuffle)
		}
	}
	if preferIPv6 {
		slices.SortStableFunc(tries, func(a, b Try) int {
			if d := int(hosts[a.Host].Preference) - int(hosts[b.Host].Preference); d != 0 || a.Addr.Is4() == b.Addr.Is4() {
				return d
			} else if a.Addr.Is4() {
				return 1
			}
			return -1
		})
	}
	return tries
}

func appendTries(tries []Try, host int, addrs []netip.Addr, preferIPv6 bool, shuffle func(n int, swap func(i, j int))) []Try {
	addrs = slices.Clone(addrs)
	shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	byFamily(addrs, preferIPv6)
	for _, a := range addrs {
		if !slices.ContainsFunc(tries, func(t Try) bool { return t.Addr == a }) {
			tries = append(tries, Try{host, a})
		}
	}
	return tries
}
