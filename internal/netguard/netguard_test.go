package netguard

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

// TestClasses: both ends of each range, and what lies beside it.
func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		class Class
		addrs []string
	}{
		{Public, []string{
			"1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
			"169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0", "192.88.98.255", "192.88.100.0",
			"192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
			"::ffff:8.8.8.8", "64:ff9b::808:808", "2001:200::1", "2001:db7:ffff::", "2001:db9::", "2003::1", "2a00::1", "3ffe::", "3fff:1000::", "2a00::5efe:808:808",
		}},
		{Unspecified, []string{"0.0.0.0", "0.0.0.1", "0.255.255.255", "::", "::ffff:0.0.0.0", "64:ff9b::"}},
		{Loopback, []string{"127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "2a00::5efe:7f00:1", "2a00::200:5efe:127.0.0.1"}},
		{Private, []string{
			"10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.0", "192.168.255.255", "::ffff:10.1.2.3", "64:ff9b::a01:203", "2a00::5efe:10.0.0.1",
			"fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fec0::1", "feff::1",
		}},
		{Shared, []string{"100.64.0.0", "100.127.255.255", "::ffff:100.64.0.1"}},
		{LinkLocal, []string{"169.254.0.0", "169.254.169.254", "169.254.255.255", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::1%eth0", "febf::1"}},
		{Multicast, []string{"224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "::ffff:224.0.0.1"}},
		{Documentation, []string{"192.0.2.0", "192.0.2.255", "198.51.100.1", "203.0.113.1", "2001:db8::", "2001:db8:ffff:ffff::1", "3fff::1", "3fff:fff:ffff::1"}},
		{Benchmark, []string{"198.18.0.0", "198.19.255.255", "2001:2::1"}},
		{Translated, []string{"::7f00:1", "::127.0.0.1", "::8.8.8.8", "::2", "::ffff:0:8.8.8.8", "2001::1", "2001:0:ffff::", "2002:7f00:1::", "2002:808:808::1", "192.88.99.1"}},
		{Reserved, []string{"192.0.0.0", "192.0.0.170", "240.0.0.0", "255.255.255.254", "2001:3::1", "2001:10::1", "2001:20::1", "2001:1ff::1", "1::", "100:0:0:1::", "4000::1", "5f01::1", "fe00::1", "64:ff9b:2::1"}},
		{Broadcast, []string{"255.255.255.255", "::ffff:255.255.255.255", "64:ff9b::255.255.255.255"}},
		{Translator, []string{"64:ff9b:1::1", "64:ff9b:1::7f00:1", "64:ff9b:1:ffff::"}},
		{Discard, []string{"100::1", "100::ffff:ffff:ffff:ffff"}},
		{Segment, []string{"5f00::1", "5f00:ffff::1"}},
	} {
		for _, s := range tt.addrs {
			a := netip.MustParseAddr(s)
			if got := ClassOf(a); got != tt.class {
				t.Errorf("%s: got %s, want %s", s, got, tt.class)
			}
			if err := (Guard{}).Check(a); (err == nil) != (tt.class == Public) || err != nil && !errors.Is(err, ErrRefused) {
				t.Errorf("%s: check says %v", s, err)
			}
		}
	}
	if got := ClassOf(netip.Addr{}); got != Unspecified {
		t.Errorf("no address: got %s", got)
	}
}

// What is allowed is let through in all its forms, and nothing else.
func TestAllow(t *testing.T) {
	g := Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("fd00::/16")}}
	for s, want := range map[string]bool{
		"127.0.0.1": true, "::ffff:127.0.0.1": true, "127.0.0.2": false, "fd00::1": true, "fd00::1%lo": true, "fd01::1": false,
		"64:ff9b::7f00:1": false, // another way to get there, which was not spoken of
		"8.8.8.8":         true,
	} {
		if err := g.Check(netip.MustParseAddr(s)); (err == nil) != want {
			t.Errorf("%s: got %v", s, err)
		}
	}
}

// TestControl dials: the guard looks at what a name led to.
func TestControl(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		guard Guard
		want  bool
	}{{Guard{}, false}, {Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, true}} {
		d := net.Dialer{Control: tt.guard.Control}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1", "0177.0.0.1"} {
			c, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
			if err == nil {
				c.Close()
			}
			if host[0] != '0' && (err == nil) != tt.want || err == nil && !tt.want {
				t.Errorf("%v dials %s: %v", tt.guard, host, err)
			}
			if err != nil && host[0] != '0' && !errors.Is(err, ErrRefused) {
				t.Errorf("%v dials %s: %v, want ErrRefused", tt.guard, host, err)
			}
		}
	}
	for _, bad := range [][2]string{{"unix", "/x"}, {"tcp4", "8.8.8.8"}, {"tcp4", "localhost:1"}, {"ip4", "8.8.8.8:1"}} {
		if err := (Guard{}).Control(bad[0], bad[1], nil); !errors.Is(err, ErrRefused) {
			t.Errorf("%v: got %v", bad, err)
		}
	}
}
