package config

import (
	"net/netip"
	"strings"
	"testing"
)

func networks(t *testing.T, text string) Networks {
	t.Helper()
	var out Networks
	for _, word := range strings.Fields(text) {
		var n Network
		if err := n.UnmarshalText([]byte(word)); err != nil {
			t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

func TestNetworksContains(t *testing.T) {
	for _, c := range []struct {
		networks, addr string
		want           bool
	}{
		{"10.0.0.0/8", "10.255.255.255", true},
		{"10.0.0.0/8", "11.0.0.0", false},
		{"10.1.2.3/8", "10.9.9.9", true}, // bits of the host are ignored
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true}, // a peer on a socket for both families
		{"::ffff:192.0.2.0/120", "192.0.2.9", true},
		{"::ffff:192.0.2.9", "192.0.2.9", true},
		{"fe80::/10", "fe80::1%eth0", true},
		{"::/0", "192.0.2.1", false}, // IPv4 is no part of IPv6
		{"unix", "0.0.0.0", false},
		{"", "192.0.2.1", false},
	} {
		if got := networks(t, c.networks).Contains(netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%q contains %s: got %v, want %v", c.networks, c.addr, got, c.want)
		}
	}
	if !networks(t, "10.0.0.0/8 unix").ContainsUnix() || networks(t, "10.0.0.0/8").ContainsUnix() {
		t.Error("ContainsUnix is not about the word unix")
	}
	if got := networks(t, "10.1.2.3/8 192.0.2.1 unix ::ffff:192.0.2.9").list(); got != "10.0.0.0/8, 192.0.2.1, unix, 192.0.2.9" {
		t.Errorf("list: got %s", got)
	}
	if (Networks{{}}).Contains(netip.MustParseAddr("192.0.2.1")) || (Networks{{}}).everyone() != "" {
		t.Error("a network that was not read holds somebody")
	}
}

func TestEveryone(t *testing.T) {
	for _, c := range []struct{ networks, want string }{
		{"", ""},
		{"unix", ""},
		{"0.0.0.0/0", "IPv4"},
		{"203.0.113.7/0", "IPv4"},
		{"::ffff:0.0.0.0/96", "IPv4"},
		{"0.0.0.0/1 128.0.0.0/1", "IPv4"},
		{"128.0.0.0/1 0.0.0.0/1 10.0.0.0/8", "IPv4"},
		{"0.0.0.0/1 128.0.0.0/2 192.0.0.0/3", "IPv4"}, // multicast and reserved space left out
		{"0.0.0.0/5 8.0.0.0/7 11.0.0.0/8 12.0.0.0/6 16.0.0.0/4 32.0.0.0/3 64.0.0.0/2 128.0.0.0/1", "IPv4"}, // all but 10/8
		{"0.0.0.0/1 128.0.0.0/2", ""},
		{"0.0.0.0/1 128.0.0.0/2 192.0.0.0/4", ""},                                          // 208/4 is left
		{"2.0.0.0/7 4.0.0.0/6 8.0.0.0/5 16.0.0.0/4 32.0.0.0/3 64.0.0.0/2 128.0.0.0/1", ""}, // 1/8 is left
		{"::/0", "IPv6"},
		{"2001:db8::/0", "IPv6"},
		{"::/1 8000::/1", "IPv6"},
		{"2000::/3", "IPv6"}, // all there is in use
		{"2000::/4 3000::/4", "IPv6"},
		{"2000::/4", ""},
		{"::/3 4000::/2", ""},
		{"10.0.0.0/8 2001:db8::/32 unix", ""},
	} {
		if got := networks(t, c.networks).everyone(); got != c.want {
			t.Errorf("%q: got %q, want %q", c.networks, got, c.want)
		}
	}
}
