package netguard

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
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

// TestCarried: an address leads where what it carries leads.
func TestCarried(t *testing.T) {
	parity.Row(t, "MX-38", "MX-39", "MX-40", "MX-41", "MX-42", "MX-20", "MX-15", "MX-19")
	nat := prefixes("2a00:64::/96", "2a00:6432::/32", "2a00:6440::/40", "2a00:6448::/48", "2a00:6456::/56", "2a00:6464::/64", "64:ff9b:1:1::/96")
	guards := []Guard{
		{},                                      // 1: public alone
		{AllowLocal: true},                      // 2
		{AllowReserved: true},                   // 3
		{AllowLocal: true, AllowReserved: true}, // 4
		{NAT64: nat},                            // 5: with prefixes
	}
	for _, tt := range []struct{ addr, passes string }{
		{"8.8.8.8", "12345"}, {"2a00::1", "12345"},
		{"0.0.0.0", ""}, {"::", ""}, {"255.255.255.255", ""}, {"224.0.0.1", ""}, {"ff02::1", ""}, {"100::1", ""}, {"5f00::1", ""}, {"0.1.2.3", ""},
		{"127.0.0.1", "24"}, {"::1", "24"}, {"10.0.0.1", "24"}, {"169.254.169.254", "24"}, {"100.64.0.1", "24"}, {"fc00::1", "24"}, {"fec0::1", "24"},
		{"fe80::1", "24"}, {"fe80::1%eth0", "24"},
		{"192.0.2.1", "34"}, {"240.0.0.1", "34"}, {"198.18.0.1", "34"}, {"2001:db8::1", "34"}, {"2001:3::1", "34"}, {"2001:2::1", "34"},
		{"::ffff:8.8.8.8", "12345"}, {"::ffff:127.0.0.1", "24"}, {"::ffff:192.0.2.1", "34"}, {"::ffff:0.0.0.0", ""},
		{"64:ff9b::8.8.8.8", "12345"}, {"64:ff9b::127.0.0.1", "24"}, {"64:ff9b::192.0.2.1", "34"}, {"64:ff9b::255.255.255.255", ""},
		{"::8.8.8.8", "34"}, {"::127.0.0.1", "4"}, {"::ffff:0:8.8.8.8", "34"}, {"::ffff:0:10.0.0.1", "4"}, {"::ffff:0:0.0.0.0", ""},
		{"2002:808:808::1", "34"}, {"2002:7f00:1::1", "4"}, {"2002:a9fe:a9fe::", "4"}, {"2002:e000:1::", ""},
		{"2001:0:808:808:0:0:f7f7:f7f7", "34"}, // server and client 8.8.8.8
		{"2001:0:7f00:1:0:0:f7f7:f7f7", "4"},   // server 127.0.0.1
		{"2001:0:808:808:0:0:80ff:fffe", "4"},  // client 127.0.0.1
		{"2001:0:808:808:0:0:ffff:ffff", ""},   // client 0.0.0.0
		{"2a00::5efe:8.8.8.8", "12345"}, {"2a00::5efe:10.0.0.1", "24"}, {"2a00::200:5efe:10.0.0.1", "24"}, {"2002:808:808:1::5efe:10.0.0.1", "4"},
		{"64:ff9b:1::1", "24"},          // nobody said what it carries
		{"64:ff9b:1:1::8.8.8.8", "245"}, // declared
		{"64:ff9b:1:1::127.0.0.1", "24"},
		{"2a00:64::10.0.0.1", "1234"}, {"2a00:64::8.8.8.8", "12345"},
		{"2a00:6432:a00:1::", "1234"}, {"2a00:6432:808:808::", "12345"}, // octets 4 to 7
		{"2a00:6440:a:0:1::", "1234"}, {"2a00:6440:8:808:8::", "12345"}, // 5 to 7, 9
		{"2a00:6448:0:a00:0:100::", "1234"}, {"2a00:6448:0:808:8:800::", "12345"}, // 6, 7, 9, 10
		{"2a00:6456:0:a:0:1::", "1234"}, {"2a00:6456:0:8:8:808::", "12345"}, // 7, 9 to 11
		{"2a00:6464:0:0:a:0:100::", "1234"}, {"2a00:6464:0:0:8:808:800::", "12345"}, // 9 to 12
	} {
		got := ""
		for i, g := range guards {
			if err := g.Check(netip.MustParseAddr(tt.addr)); err == nil {
				got += string(rune('1' + i))
			} else if !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), string(Public)+":") {
				t.Errorf("%s, guard %d: %v", tt.addr, i+1, err)
			}
		}
		if got != tt.passes {
			t.Errorf("%s: passes %q, want %q", tt.addr, got, tt.passes)
		}
	}
	if (Guard{AllowLocal: true, AllowReserved: true}).Check(netip.Addr{}) == nil {
		t.Error("no address passes")
	}
	all := Guard{Allow: prefixes("0.0.0.0/0", "::/0")}
	for s, want := range map[string]bool{"127.0.0.1": true, "192.0.2.1": true, "0.0.0.0": false, "224.0.0.1": false, "::": false, "::ffff:255.255.255.255": false, "64:ff9b::127.0.0.1": true, "64:ff9b::0.0.0.0": false} {
		if err := all.Check(netip.MustParseAddr(s)); (err == nil) != want {
			t.Errorf("all networks are allowed, and %s: %v", s, err)
		}
	}
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestMachine: what is ours is asked for now and then, and kept when there is no answer.
func TestMachine(t *testing.T) {
	parity.Row(t, "MX-40")
	synctest.Test(t, func(t *testing.T) {
		list, fails, asked := []netip.Addr{netip.MustParseAddr("8.8.4.4"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("127.0.0.1")}, error(nil), 0
		m := &Machine{List: func() ([]netip.Addr, error) { asked++; return list, fails }}
		g := Guard{Machine: m}
		check := func(s string, ok, mine bool) {
			t.Helper()
			a := netip.MustParseAddr(s)
			if err := g.Check(a); (err == nil) != ok || g.Mine(a) != mine {
				t.Errorf("%s: %v, mine %t", s, err, g.Mine(a))
			}
		}
		check("8.8.4.4", false, true)
		check("::ffff:8.8.4.4", false, true)
		check("64:ff9b::8.8.4.4", false, false) // leads to us, but is not ours
		check("8.8.8.8", true, false)
		check("10.0.0.1", false, false) // everybody has one
		check("127.0.0.1", false, false)
		g.AllowLocal = true
		check("8.8.4.4", true, false)
		check("10.0.0.1", true, false)
		g.AllowLocal = false
		g.Allow = prefixes("8.8.4.0/24")
		check("8.8.4.4", true, false)
		g.Allow = nil
		if list = list[1:]; asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		check("8.8.4.4", false, true)
		time.Sleep(machineEvery)
		check("8.8.4.4", true, false)
		list, fails = []netip.Addr{netip.MustParseAddr("8.8.4.4")}, nil
		time.Sleep(machineEvery)
		check("8.8.4.4", false, true)
		list, fails = nil, errors.New("no answer")
		time.Sleep(machineEvery)
		check("8.8.4.4", false, true)
	})
	var real Machine
	if !real.Has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("this machine has no loopback")
	}
}

// TestValidateGuard: only the lengths of RFC 6052, Section 2.2, have a place for an address.
func TestValidateGuard(t *testing.T) {
	for s, want := range map[string]bool{"64:ff9b:1::/48": true, "2a00::/32": true, "2a00::/33": false, "2a00::/128": false, "10.0.0.0/8": false, "::ffff:0:0/96": false} {
		if err := (Guard{NAT64: prefixes(s)}).Validate(); (err == nil) != want {
			t.Errorf("%s: %v", s, err)
		}
	}
	if (Guard{NAT64: []netip.Prefix{{}}}).Validate() == nil || (Guard{Allow: []netip.Prefix{{}}}).Validate() == nil {
		t.Error("no prefix is one")
	}
}

// BenchmarkCheck is what an address costs.
func BenchmarkCheck(b *testing.B) {
	g := Guard{Machine: new(Machine), NAT64: prefixes("2a00:64::/96")}
	for _, s := range []string{"8.8.8.8", "2a00::1"} {
		b.Run(s, func(b *testing.B) {
			a := netip.MustParseAddr(s)
			b.ReportAllocs()
			for b.Loop() {
				if err := g.Check(a); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
