package netguard

import "net/netip"

// class.go: what addresses are for.

// Class is what an address is for.
type Class string

// The classes. Only Public is reachable by everybody.
const (
	Public        Class = "public"
	Unspecified   Class = "unspecified"
	Broadcast     Class = "for broadcasts"
	Loopback      Class = "loopback"
	Private       Class = "private"
	Shared        Class = "shared by customers of a provider"
	LinkLocal     Class = "link-local"
	ThisMachine   Class = "of this machine"
	Translator    Class = "of a local translation to IPv4"
	Multicast     Class = "multicast"
	Discard       Class = "for discarding"
	Segment       Class = "of segment routing"
	Documentation Class = "for documentation"
	Benchmark     Class = "for benchmarks"
	Translated    Class = "of a translation between IPv4 and IPv6"
	Reserved      Class = "reserved"
)

// group is what classes have in common: which switch of a Guard is about them.
type group int

const (
	public   group = iota
	never          // no host can have it
	local          // this machine, and networks around it
	reserved       // set aside
)

func (c Class) group() group {
	switch c {
	case Public:
		return public
	case Loopback, Private, Shared, LinkLocal, ThisMachine, Translator:
		return local
	case Documentation, Benchmark, Translated, Reserved:
		return reserved
	}
	return never
}

// span is a range of addresses and what they are for.
type span struct {
	prefix netip.Prefix
	class  Class
}

// The registries of special-purpose addresses (RFC 6890 and those that update it) of IANA. The first
// that holds counts.
var (
	spans4 = spansOf(
		"0.0.0.0/8", Unspecified, // RFC 791, Section 3.2: this network. Of systems, some take them for themselves
		"10.0.0.0/8", Private, "172.16.0.0/12", Private, "192.168.0.0/16", Private, // RFC 1918
		"100.64.0.0/10", Shared, // RFC 6598
		"127.0.0.0/8", Loopback, "169.254.0.0/16", LinkLocal, // RFC 1122, RFC 3927
		"192.0.0.0/24", Reserved, // RFC 6890
		"192.0.2.0/24", Documentation, "198.51.100.0/24", Documentation, "203.0.113.0/24", Documentation, // RFC 5737
		"192.88.99.0/24", Translated, // RFC 7526
		"198.18.0.0/15", Benchmark, // RFC 2544
		"224.0.0.0/4", Multicast, "255.255.255.255/32", Broadcast, "240.0.0.0/4", Reserved, // RFC 1112
	)
	spans6 = spansOf(
		"::/128", Unspecified, "::1/128", Loopback,
		"::/96", Translated, "::ffff:0:0:0/96", Translated, // RFC 4291, Section 2.5.5.1; RFC 2765, Section 2.1
		"64:ff9b::/96", Public, // RFC 6052, Section 2.1: what it carries decides
		"64:ff9b:1::/48", Translator, // RFC 8215
		"100::/64", Discard, "5f00::/16", Segment, // RFC 6666, RFC 9602
		"2001::/32", Translated, "2002::/16", Translated, // Teredo, RFC 4380; 6to4, RFC 7526
		"2001:2::/48", Benchmark, "2001:db8::/32", Documentation, "3fff::/20", Documentation, // RFC 5180, RFC 3849, RFC 9637
		"2001::/23", Reserved, // RFC 2928
		"fc00::/7", Private, "fec0::/10", Private, // RFC 4193, RFC 3879
		"fe80::/10", LinkLocal, "ff00::/8", Multicast, // RFC 4291
		"2000::/3", Public,
		"::/0", Reserved, // what is not given out yet is nobody's
	)
	compatible = netip.MustParsePrefix("::/96")
	siit       = netip.MustParsePrefix("::ffff:0:0:0/96")
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
)

func spansOf(list ...any) []span {
	var spans []span
	for i := 0; i < len(list); i += 2 {
		spans = append(spans, span{netip.MustParsePrefix(list[i].(string)), list[i+1].(Class)})
	}
	return spans
}

// ClassOf returns what an address is for: its own class, or if that is Public, the one of what
// it carries. No address is Unspecified.
func ClassOf(a netip.Addr) Class {
	a = plain(a)
	if c := outer(a); c != Public || a.Is4() {
		return c
	}
	var list [2]netip.Addr
	for _, inner := range carried(list[:0], a) {
		if c := outer(inner); c != Public {
			return c
		}
	}
	return Public
}

// outer is the class of an address, whatever it carries.
func outer(a netip.Addr) Class {
	if !a.IsValid() {
		return Unspecified
	}
	spans := spans6
	if a.Is4() {
		spans = spans4
	}
	for _, s := range spans {
		if s.prefix.Contains(a) {
			return s.class
		}
	}
	return Public
}

// plain is an address without a zone, and IPv4 in the form of IPv6 as IPv4.
func plain(a netip.Addr) netip.Addr { return a.WithZone("").Unmap() }

// carried appends the addresses of IPv4 that one of IPv6 carries by a form that all the
// world knows.
func carried(list []netip.Addr, a netip.Addr) []netip.Addr {
	b := a.As16()
	last := netip.AddrFrom4([4]byte(b[12:]))
	switch {
	case siit.Contains(a), nat64.Contains(a):
		list = append(list, last)
	case compatible.Contains(a) && outer(a) == Translated: // neither :: nor ::1
		list = append(list, last)
	case sixToFour.Contains(a):
		list = append(list, netip.AddrFrom4([4]byte(b[2:])))
	case teredo.Contains(a):
		list = append(list, netip.AddrFrom4([4]byte(b[4:])),
			netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})) // RFC 4380, Section 4
	}
	if isISATAP(a) {
		list = append(list, last)
	}
	return list
}

// isISATAP tells whether the interface of an address is made of an IPv4 address (RFC 5214,
// Section 6.1).
func isISATAP(a netip.Addr) bool {
	b := a.As16()
	return b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// translated is the address that is carried behind a prefix of so many bits. Octet 8 is left
// out, since it must be zero (RFC 6052, Section 2.2).
func translated(a netip.Addr, bits int) netip.Addr {
	b := a.As16()
	var v4 [4]byte
	at := bits / 8
	for i := range v4 {
		if at == 8 {
			at++
		}
		v4[i] = b[at]
		at++
	}
	return netip.AddrFrom4(v4)
}
