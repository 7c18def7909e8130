package mx_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/internal/testnet"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

func TestMain(m *testing.M) { leak.Main(m) }

// guard lets mail go to the addresses of documentation, and knows one of this machine.
func guard(t testing.TB, o mx.GuardOptions) *mx.Guard {
	t.Helper()
	o.Allow = append(o.Allow, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32"))
	if o.Machine == nil {
		o.Machine = func() ([]netip.Addr, error) { return addrs("127.0.0.1", "8.8.4.99", "10.0.0.99"), nil }
	}
	g, err := mx.NewGuard(o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// keep draws no lots.
func keep(int, func(i, j int)) {}

// describe writes the hosts of a route and what stands against them on one line each.
func describe(r *mx.Route) string {
	var b strings.Builder
	for _, h := range r.Hosts {
		fmt.Fprintf(&b, "%d %s", h.Preference, h.Name)
		for _, a := range h.Addrs {
			fmt.Fprintf(&b, " %s", a)
		}
		if h.Err != nil {
			fmt.Fprintf(&b, " !%s", smtp.ReplyOf(h.Err).Enh)
		}
		b.WriteString("; ")
	}
	return strings.TrimSuffix(b.String(), "; ")
}

func outcome(r *mx.Route, err error) string {
	if err == nil {
		return describe(r)
	}
	reply := smtp.ReplyOf(err)
	e, ok := errors.AsType[*mx.Error](err)
	if !ok {
		return fmt.Sprintf("not an *mx.Error: %v", err)
	}
	return fmt.Sprintf("%d %s %s", reply.Code, reply.Enh, e.Category)
}

// TestFind tells where mail goes, as RFC 5321, Section 5.1, has it.
func TestFind(t *testing.T) {
	parity.Row(t, "MX-13", "MX-14", "MX-16", "MX-17", "MX-21", "MX-22", "MX-23", "MX-24", "MX-26", "MX-61", "MX-62", "MX-63", "MX-64", "MX-65", "MX-66", "MX-71")
	const hosts = `
		mx1.example.net A 192.0.2.1
		mx1.example.net AAAA 2001:db8::1
		mx2.example.net A 192.0.2.2
		mx6.example.net AAAA 2001:db8::6
		none.example.net TXT nothing
		fail.example.net FAIL
		local.example.net A 127.0.0.1
		us.example.net A 192.0.2.50
	`
	lookup := func(o *mx.Options) {}
	for _, tt := range []struct {
		name, zone, target string
		set                func(o *mx.Options)
		want               string
	}{
		{"by preference", "example.com MX 20 mx2.example.net\nexample.com MX 10 mx1.example.net", "example.com", lookup,
			"10 mx1.example.net 192.0.2.1 2001:db8::1; 20 mx2.example.net 192.0.2.2"},
		{"twice the same host", "example.com MX 20 mx1.example.net\nexample.com MX 10 mx1.example.net", "example.com", lookup,
			"10 mx1.example.net 192.0.2.1 2001:db8::1"},
		{"no MX: both families of the domain", "example.com A 192.0.2.7\nexample.com AAAA 2001:db8::7", "example.com", lookup,
			"0 example.com 192.0.2.7 2001:db8::7"},
		{"no MX: IPv6 alone", "example.com AAAA 2001:db8::7", "example.com", lookup, "0 example.com 2001:db8::7"},
		{"no MX, no address", "example.com TXT x", "example.com", lookup, "550 5.4.4 dns"},
		{"no such domain", "", "example.com", lookup, "550 5.1.2 dns"},
		{"the domain is an alias", "alias.example CNAME example.com\nexample.com MX 10 mx1.example.net", "alias.example", lookup,
			"10 mx1.example.net 192.0.2.1 2001:db8::1"},
		{"the alias of a domain without MX", "alias.example CNAME example.com\nexample.com A 192.0.2.7", "alias.example", lookup,
			"0 alias.example 192.0.2.7"},
		{"an alias that leads in circles", "a.example CNAME b.example\nb.example CNAME a.example", "a.example", lookup, "451 4.4.3 dns"},
		{"a host that is an alias", "example.com MX 10 alias.example\nalias.example CNAME mx1.example.net", "example.com", lookup,
			"10 alias.example 192.0.2.1 2001:db8::1"},

		{"null MX", "example.com MX 0 .\nexample.com A 192.0.2.7", "example.com", lookup, "556 5.1.10 dns"},
		{"null MX with a preference", "example.com MX 10 .", "example.com", lookup, "556 5.1.10 dns"},
		{"two null MX", "example.com MX 0 .\nexample.com MX 10 .", "example.com", lookup, "556 5.1.10 dns"},
		{"null MX beside another", "example.com MX 0 .\nexample.com MX 10 mx2.example.net", "example.com", lookup, "10 mx2.example.net 192.0.2.2"},

		{"MX look-up fails: never the domain itself", "example.com FAIL MX\nexample.com A 192.0.2.7", "example.com", lookup, "451 4.4.3 dns"},
		{"MX bogus", "example.com BOGUS\nexample.com A 192.0.2.7", "example.com", lookup, "451 4.4.3 dns"},
		{"address look-up of the domain fails", "example.com TXT x\nexample.com FAIL A\nexample.com FAIL AAAA", "example.com", lookup, "451 4.4.3 dns"},
		{"no IPv4, and IPv6 is not known", "example.com TXT x\nexample.com FAIL AAAA", "example.com", lookup, "451 4.4.3 dns"},
		{"no IPv6 is known, and IPv4 will do", "example.com A 192.0.2.7\nexample.com FAIL AAAA", "example.com", lookup, "0 example.com 192.0.2.7"},
		{"one host fails, another does not", "example.com MX 10 fail.example.net\nexample.com MX 20 mx2.example.net", "example.com", lookup,
			"10 fail.example.net !4.4.3; 20 mx2.example.net 192.0.2.2"},
		{"all hosts fail", "example.com MX 10 fail.example.net", "example.com", lookup, "451 4.4.3 dns"},
		{"one fails, one has no address", "example.com MX 10 none.example.net\nexample.com MX 10 fail.example.net", "example.com", lookup, "451 4.4.3 dns"},
		{"one has no address", "example.com MX 10 none.example.net\nexample.com MX 20 mx2.example.net", "example.com", lookup,
			"10 none.example.net !5.4.4; 20 mx2.example.net 192.0.2.2"},
		{"none has an address", "example.com MX 10 none.example.net\nexample.com MX 20 nowhere.example.net\nexample.com A 192.0.2.7", "example.com", lookup, "550 5.4.4 dns"},

		{"an address in place of a host", "example.com MX 10 192.0.2.1\nexample.com MX 10 mx2.example.net", "example.com", lookup,
			"10 192.0.2.1 !5.4.4; 10 mx2.example.net 192.0.2.2"},
		{"what is no host", `example.com MX 10 a\032b.example.net`, "example.com", lookup, "550 5.4.4 dns"},
		{"a host with an underscore", "example.com MX 10 mx_1.example.net\nmx_1.example.net A 192.0.2.8", "example.com", lookup, "10 mx_1.example.net 192.0.2.8"},
		{"a local address", "example.com MX 10 local.example.net", "example.com", lookup, "550 5.4.4 dns"},
		{"a local address and a better one", "example.com MX 10 local.example.net\nlocal.example.net A 192.0.2.3", "example.com", lookup, "10 local.example.net 192.0.2.3"},
		{"the domain has a local address", "example.com A 10.1.2.3", "example.com", lookup, "550 5.4.4 dns"},
		{"the domain has a local address of IPv6", "example.com AAAA ::ffff:127.0.0.1", "example.com", lookup, "550 5.4.4 dns"},
		{"local refused, the rest not known", "example.com A 10.1.2.3\nexample.com FAIL AAAA", "example.com", lookup, "451 4.4.3 dns"},
		{"IPv4 by way of IPv6", "example.com AAAA ::ffff:192.0.2.3", "example.com", lookup, "0 example.com 192.0.2.3"},

		{"literal", "", "[192.0.2.1]", lookup, "0  192.0.2.1"},
		{"literal of IPv6", "", "[IPv6:2001:db8::9]", lookup, "0  2001:db8::9"},
		{"local literal", "", "[127.0.0.1]", lookup, "550 5.4.4 dns"},
		{"literal of the family that is off", "", "[IPv6:2001:db8::9]", ipv4, "451 4.4.4 dns"},

		{"IPv4 alone", "example.com MX 10 mx1.example.net\nexample.com MX 20 mx6.example.net", "example.com", ipv4,
			"10 mx1.example.net 192.0.2.1; 20 mx6.example.net !4.4.4"},
		{"IPv4 alone, host of IPv6", "example.com MX 10 mx6.example.net", "example.com", ipv4, "451 4.4.4 dns"},
		{"IPv4 alone, domain of IPv6", "example.com AAAA 2001:db8::7", "example.com", ipv4, "451 4.4.4 dns"},
		{"IPv4 alone, domain of nothing", "example.com TXT x", "example.com", ipv4, "550 5.4.4 dns"},
		{"IPv4 alone, and local IPv6", "example.com AAAA ::1", "example.com", ipv4, "550 5.4.4 dns"},
		{"IPv4 alone, the rest not known", "example.com TXT x\nexample.com FAIL AAAA", "example.com", ipv4, "451 4.4.3 dns"},
		{"IPv4 alone does not come by IPv6", "example.com AAAA ::ffff:192.0.2.3", "example.com", ipv4, "451 4.4.4 dns"},
		{"IPv6 alone", "example.com MX 10 mx1.example.net", "example.com", func(o *mx.Options) { o.Families = resolver.IPv6 }, "10 mx1.example.net 2001:db8::1"},
		{"IPv6 alone is not IPv4 in disguise", "example.com AAAA ::ffff:192.0.2.3", "example.com", func(o *mx.Options) { o.Families = resolver.IPv6 }, "451 4.4.4 dns"},
		{"IPv6 first", "example.com MX 10 mx1.example.net", "example.com", func(o *mx.Options) { o.PreferIPv6 = true }, "10 mx1.example.net 2001:db8::1 192.0.2.1"},

		{"given", "", "example.com", given(mx.Given{Host: "mx2.example.net", Preference: 5}, mx.Given{Host: "MX1.example.net."}),
			"0 mx1.example.net 192.0.2.1 2001:db8::1; 5 mx2.example.net 192.0.2.2"},
		{"given addresses", "", "example.com", given(mx.Given{Host: "relay.example", Addrs: addrs("192.0.2.10")}), "0 relay.example 192.0.2.10"},
		{"given local address", "", "example.com", given(mx.Given{Host: "relay.example", Addrs: addrs("127.0.0.1")}), "550 5.4.4 dns"},
		{"given local address behind NAT64", "", "example.com", given(mx.Given{Host: "relay.example", Addrs: addrs("64:ff9b::127.0.0.1")}), "550 5.4.4 dns"},
		{"given as an address", "", "example.com", given(mx.Given{Host: "192.0.2.10"}), "0  192.0.2.10"},
		{"given as a literal", "", "example.com", given(mx.Given{Host: "[IPv6:2001:db8::10]"}), "0  2001:db8::10"},
		{"given without a name", "", "example.com", given(mx.Given{Addrs: addrs("192.0.2.10")}), "0  192.0.2.10"},
		{"given, and there is no such host", "", "example.com", given(mx.Given{Host: "nowhere.example"}), "550 5.4.4 dns"},
		{"given for a literal", "", "[192.0.2.1]", given(mx.Given{Host: "mx2.example.net"}), "0 mx2.example.net 192.0.2.2"},
		{"given is never ourselves", "", "example.com", given(mx.Given{Host: "us.example.net"}), "0 us.example.net 192.0.2.50"},

		{"skip", "example.com MX 10 mx1.example.net", "example.com", skip(nil, "192.0.2.1"), "10 mx1.example.net 2001:db8::1"},
		{"skip a host", "example.com MX 10 mx2.example.net\nexample.com MX 20 mx1.example.net", "example.com", skip(nil, "192.0.2.2"),
			"10 mx2.example.net !4.4.1; 20 mx1.example.net 192.0.2.1 2001:db8::1"},
		{"skip all", "example.com MX 10 mx2.example.net", "example.com", skip(nil, "192.0.2.2"), "451 4.4.1 network"},
		{"skip all, with an error", "example.com MX 10 mx2.example.net", "example.com",
			skip(&mx.Error{Category: mx.SMTP, Reply: smtp.Refuse(554, smtp.Enhanced{5, 7, 1}, "no")}, "192.0.2.2"), "554 5.7.1 smtp"},

		{"we are the best", "example.com MX 10 us.example.net\nexample.com MX 20 mx2.example.net", "example.com", lookup, "554 5.4.6 dns"},
		{"we are the second", "example.com MX 10 mx1.example.net\nexample.com MX 20 us.example.net\nexample.com MX 20 mx2.example.net\nexample.com MX 30 mx6.example.net", "example.com", lookup,
			"10 mx1.example.net 192.0.2.1 2001:db8::1"},
		{"we by another name", "example.com MX 10 alias.example\nalias.example CNAME us.example.net", "example.com", lookup, "554 5.4.6 dns"},
		{"we by address", "example.com MX 10 mx2.example.net\nexample.com MX 20 other.example.net\nother.example.net A 192.0.2.50\nexample.com MX 20 mx1.example.net", "example.com", lookup,
			"10 mx2.example.net 192.0.2.2"},
		{"we by the address of this machine", "example.com MX 10 other.example.net\nother.example.net A 8.8.4.99", "example.com", lookup, "554 5.4.6 dns"},
		{"this machine, where local mail may go", "example.com MX 10 other.example.net\nother.example.net A 8.8.4.99", "example.com",
			func(o *mx.Options) { o.Guard = guard(t, mx.GuardOptions{AllowLocal: true}) }, "10 other.example.net 8.8.4.99"},
		{"our loopback is everybody's", "example.com MX 10 local.example.net\nexample.com MX 20 mx2.example.net", "example.com", lookup,
			"10 local.example.net !5.4.4; 20 mx2.example.net 192.0.2.2"},
		{"our private address is everybody's", "example.com MX 10 priv.example.net\npriv.example.net A 10.0.0.99\nexample.com MX 20 mx2.example.net", "example.com", lookup,
			"10 priv.example.net !5.4.4; 20 mx2.example.net 192.0.2.2"},
		{"the domain itself is ours", "us.example.net TXT x", "us.example.net", lookup, "554 5.4.6 dns"},
		{"literal of ours", "", "[192.0.2.50]", lookup, "554 5.4.6 dns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target, err := mx.ParseTarget(tt.target)
			if err != nil {
				t.Fatal(err)
			}
			o := mx.Options{
				DNS: testnet.NewDNS(hosts + tt.zone), Guard: guard(t, mx.GuardOptions{}), Shuffle: keep,
				Own: []string{"US.example.net."}, OwnAddrs: addrs("192.0.2.50"),
			}
			tt.set(&o)
			r, err := mx.Find(t.Context(), target, o)
			if got := outcome(r, err); got != tt.want {
				t.Errorf("got  %s\nwant %s\n%v", got, tt.want, err)
			}
			if err != nil && mx.Temporary(err) != (smtp.ReplyOf(err).Code < 500) {
				t.Errorf("temporary is %t, and the reply %v", mx.Temporary(err), smtp.ReplyOf(err))
			}
		})
	}
}

func ipv4(o *mx.Options) { o.Families = resolver.IPv4 }

func given(list ...mx.Given) func(*mx.Options) {
	return func(o *mx.Options) { o.Given = list }
}

func skip(last error, list ...string) func(*mx.Options) {
	return func(o *mx.Options) { o.Skip, o.LastError = addrs(list...), last }
}

// TestRefused lists what must not be used, and why.
func TestRefused(t *testing.T) {
	parity.Row(t, "MX-44", "MX-45")
	d := testnet.NewDNS(`
		example.com MX 10 a.example.net
		example.com MX 20 10.0.0.1
		example.com MX 30 b.example.net
		a.example.net A 10.1.2.3
		a.example.net A 192.0.2.1
		a.example.net AAAA 2002:7f00:1::1
		b.example.net A 169.254.169.254
	`)
	r, err := mx.Find(t.Context(), mx.Target{Domain: "example.com"}, mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{}), Shuffle: keep})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range r.Refused {
		got = append(got, fmt.Sprintf("%s %s: %v", x.Host, x.Addr, x.Why))
		if x.Addr.IsValid() && !mx.Refused(x.Why) {
			t.Errorf("%s was not refused by the guard: %v", x.Addr, x.Why)
		}
	}
	want := []string{
		"a.example.net 10.1.2.3: netguard: 10.1.2.3 is private: address is not on the public Internet",
		"a.example.net 2002:7f00:1::1: netguard: 2002:7f00:1::1 is of a translation between IPv4 and IPv6: address is not on the public Internet",
		"10.0.0.1 invalid IP: an address in place of a name",
		"b.example.net 169.254.169.254: netguard: 169.254.169.254 is link-local: address is not on the public Internet",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestAuthentic: what DANE depends on.
func TestAuthentic(t *testing.T) {
	zone := `
		example.com MX 10 mx1.example.net
		alias.example CNAME example.com
		mx1.example.net CNAME host.example.org
		host.example.org A 192.0.2.1
		bare.example A 192.0.2.2
		open.example MX 10 host.example.org
	`
	d := testnet.NewDNS(zone)
	d.Sign("example.com", "example.net", "example.org", "bare.example")
	for _, tt := range []struct {
		target        string
		mx, host      bool
		end, hostEnds string
	}{
		{"example.com", true, true, "example.com", "host.example.org"},
		{"alias.example", false, true, "example.com", "host.example.org"}, // the alias is not signed
		{"bare.example", true, true, "bare.example", "bare.example"},      // nor is there an MX, for sure
		{"open.example", false, true, "open.example", "host.example.org"},
		{"[192.0.2.1]", false, false, "", ""},
	} {
		target, _ := mx.ParseTarget(tt.target)
		r, err := mx.Find(t.Context(), target, mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{})})
		if err != nil {
			t.Errorf("%s: %v", tt.target, err)
			continue
		}
		h := r.Hosts[0]
		if r.Authentic != tt.mx || h.Authentic != tt.host || r.Canonical != tt.end || h.Canonical != tt.hostEnds {
			t.Errorf("%s: got %t %q, host %t %q; want %t %q, host %t %q", tt.target, r.Authentic, r.Canonical, h.Authentic, h.Canonical, tt.mx, tt.end, tt.host, tt.hostEnds)
		}
		if r.Implicit != (tt.target == "bare.example") {
			t.Errorf("%s: implicit is %t", tt.target, r.Implicit)
		}
	}
	d.Unsign("host.example.org")
	if r, err := mx.Find(t.Context(), mx.Target{Domain: "example.com"}, mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{})}); err != nil || !r.Authentic || r.Hosts[0].Authentic {
		t.Errorf("behind an alias that leads to an unsigned zone: got %v, %v", r, err)
	}
}

// TestGivenTLSA: what was given needs no look-up.
func TestGivenTLSA(t *testing.T) {
	parity.Row(t, "MX-25")
	d := testnet.NewDNS("")
	tlsa := []resolver.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: strings.Repeat("x", 32)}}
	r, err := mx.Find(t.Context(), mx.Target{Domain: "example.com"}, mx.Options{
		DNS: d, Guard: guard(t, mx.GuardOptions{}),
		Given: []mx.Given{{Host: "relay.example", Addrs: addrs("192.0.2.1"), TLSA: tlsa}},
	})
	if err != nil || !slices.Equal(r.Hosts[0].TLSA, tlsa) || !r.Hosts[0].Authentic || !r.Authentic || len(d.Asked()) != 0 {
		t.Errorf("got %+v, %v, and was asked %v", r, err, d.Asked())
	}
}

// TestLimits: a domain with many hosts costs so many look-ups, and a host with many addresses
// leaves room for others.
func TestLimits(t *testing.T) {
	d := testnet.NewDNS("")
	for i := range 100 {
		d.Add(fmt.Sprintf("many.example MX %d mx%d.example.net\nmx%d.example.net A 192.0.2.%d", i, i, i, i+100))
		d.Add(fmt.Sprintf("big.example A 192.0.2.%d\nbig.example AAAA 2001:db8::%d", i+100, i+100))
		d.Add(fmt.Sprintf("bigger.example A 192.0.2.%d", i+100))
		d.Add(fmt.Sprintf("junk.example MX %d junk%d.example.net", i, i))
	}
	d.Add("bigger.example AAAA 2001:db8::1")
	find := func(name string, set func(o *mx.Options)) (*mx.Route, error) {
		o := mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{})}
		set(&o)
		return mx.Find(t.Context(), mx.Target{Domain: name}, o)
	}
	r, err := find("many.example", func(*mx.Options) {})
	if err != nil || len(r.Hosts) != 20 || r.More != 80 || len(d.Asked()) != 41 || r.Hosts[19].Name != "mx19.example.net" {
		t.Errorf("got %v, %v, and %d look-ups", r, err, len(d.Asked()))
	}
	if _, err := find("junk.example", func(*mx.Options) {}); !mx.Temporary(err) {
		t.Errorf("20 of 100 hosts have no address: got %v, want a temporary error", err)
	}
	for _, tt := range []struct {
		name        string
		max, v4, v6 int
		preferIPv6  bool
	}{{"big.example", 0, 4, 4, false}, {"big.example", 3, 2, 1, false}, {"big.example", 3, 1, 2, true}, {"bigger.example", 5, 4, 1, false}, {"bigger.example", 5, 4, 1, true}, {"bigger.example", 2, 1, 1, true}} {
		r, err := find(tt.name, func(o *mx.Options) { o.MaxAddrs, o.PreferIPv6 = tt.max, tt.preferIPv6 })
		if err != nil {
			t.Fatal(err)
		}
		list := r.Hosts[0].Addrs
		v4 := len(slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return !a.Is4() }))
		if v4 != tt.v4 || len(list)-v4 != tt.v6 || list[0].Is4() == tt.preferIPv6 {
			t.Errorf("%+v: got %v", tt, list)
		}
	}
}

// TestHostile: what is in the DNS of others may be of any size and sense, and costs a limited
// number of look-ups, addresses and words.
func TestHostile(t *testing.T) {
	var zone strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&zone, "wide.example MX %d h%d.example.net\n", i%3, i)
		fmt.Fprintf(&zone, "junk.example MX %d 10.%d.%d.1\n", i%3, i/250, i%250)
		fmt.Fprintf(&zone, "deep.example A 10.%d.%d.1\ndeep.example AAAA 2001:db8::%x\n", i/250, i%250, i)
	}
	d := testnet.NewDNS(zone.String())
	for _, name := range []string{"wide.example", "junk.example", "deep.example"} {
		before := len(d.Asked())
		r, err := mx.Find(t.Context(), mx.Target{Domain: name}, mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{})})
		if asked := len(d.Asked()) - before; asked > 41 || r == nil || len(r.Hosts) > 20 || len(r.Hosts[0].Addrs) > 8 || len(r.Refused) > 100 {
			t.Errorf("%s: %d look-ups, %+v", name, asked, r)
		}
		if (err == nil) != (name == "deep.example") || err != nil && len(err.Error()) > 500 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestShuffle: equals share the load, and come before those that are less preferred.
func TestShuffle(t *testing.T) {
	d := testnet.NewDNS(`
		example.com MX 10 a.example.net
		example.com MX 10 b.example.net
		example.com MX 20 c.example.net
		a.example.net A 192.0.2.1
		a.example.net AAAA 2001:db8::1
		b.example.net A 192.0.2.2
		b.example.net A 192.0.2.1
		b.example.net AAAA 2001:db8::2
		c.example.net A 192.0.2.3
		c.example.net AAAA 2001:db8::3
	`)
	o := mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{})}
	first, again := map[string]bool{}, map[netip.Addr]bool{}
	for range 100 {
		r, err := mx.Find(t.Context(), mx.Target{Domain: "example.com"}, o)
		if err != nil || r.Hosts[2].Name != "c.example.net" {
			t.Fatalf("got %v, %v", r, err)
		}
		first[r.Hosts[0].Name] = true
		again[mx.Order(r.Hosts, false, nil)[0].Addr] = true
	}
	if len(first) != 2 || len(again) != 2 || !again[netip.MustParseAddr("192.0.2.2")] {
		t.Errorf("first host: %v; first address: %v", first, again)
	}
	o.Shuffle = keep
	r, _ := mx.Find(t.Context(), mx.Target{Domain: "example.com"}, o)
	for _, tt := range []struct {
		prefer bool
		want   string
	}{
		{false, "0 192.0.2.1, 0 2001:db8::1, 1 192.0.2.2, 1 2001:db8::2, 2 192.0.2.3, 2 2001:db8::3"}, // 192.0.2.1 is tried once
		{true, "0 2001:db8::1, 1 2001:db8::2, 0 192.0.2.1, 1 192.0.2.2, 2 2001:db8::3, 2 192.0.2.3"},
	} {
		var got []string
		for _, try := range mx.Order(r.Hosts, tt.prefer, keep) {
			got = append(got, fmt.Sprintf("%d %s", try.Host, try.Addr))
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("got  %s\nwant %s", s, tt.want)
		}
	}
}

// TestBudget: servers that do not answer cost a limited time, and so does a caller that gives
// up. A host that answers is found all the same.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := testnet.NewDNS(`
			dead.example HANG
			half.example MX 10 dead.example
			half.example MX 20 mx.example.net
			mx.example.net A 192.0.2.1
		`)
		o := mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{})}
		start := time.Now()
		_, err := mx.Find(t.Context(), mx.Target{Domain: "dead.example"}, o)
		if got := outcome(nil, err); got != "451 4.4.3 dns" || time.Since(start) != 30*time.Second {
			t.Errorf("got %s after %s", got, time.Since(start))
		}
		if e, _ := errors.AsType[*mx.Error](err); !e.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		r, err := mx.Find(t.Context(), mx.Target{Domain: "half.example"}, o)
		if got, want := outcome(r, err), "10 dead.example !4.4.3; 20 mx.example.net 192.0.2.1"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if left := time.Until(r.Expires); left > time.Minute {
			t.Errorf("with a host that failed, the route holds %s", left)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if _, err := mx.Find(ctx, mx.Target{Domain: "dead.example"}, o); !mx.Temporary(err) || time.Since(start) != time.Second {
			t.Errorf("got %v after %s", err, time.Since(start))
		}
	})
}

// TestExpires: a route holds as long as the first of its answers.
func TestExpires(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	d := testnet.NewDNS("example.com MX 10 mx.example.net\nmx.example.net A 192.0.2.1")
	d.Now = func() time.Time { return now }
	o := mx.Options{DNS: d, Guard: guard(t, mx.GuardOptions{}), Now: d.Now}
	r, err := mx.Find(t.Context(), mx.Target{Domain: "example.com"}, o)
	if err != nil || !r.Expires.Equal(now.Add(testnet.TTL)) {
		t.Errorf("got %v, %v", r, err)
	}
	if r, err = mx.Find(t.Context(), mx.Target{Addr: netip.MustParseAddr("192.0.2.1")}, o); err != nil || !r.Expires.After(now) {
		t.Errorf("a literal: got %v, %v", r, err)
	}
}

// TestValidate: every problem at once, before anything is looked up.
func TestValidate(t *testing.T) {
	parity.Row(t, "MX-18")
	_, err := mx.Find(t.Context(), mx.Target{Domain: "example.com"}, mx.Options{
		Families: 7, MaxHosts: -1, MaxAddrs: 1, Parallel: -1, Budget: -1,
		Given: []mx.Given{{}, {Host: "a b"}, {Host: " 127.0.0.1"}, {Host: "127.0.0.1:25"}, {Host: "0x7f000001"}},
	})
	for _, want := range []string{"no resolver", "families 7", "hosts: -1", "addresses of a host: 1 is less than 2", "same time: -1", "budget", "host 1: neither", `host 2: "a b"`, "host 3", "host 4", "host 5"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if !mx.Temporary(err) {
		t.Error("a wrong setting of ours is no reason to return mail")
	}
	if err := (mx.GuardOptions{NAT64: []netip.Prefix{netip.MustParsePrefix("64:ff9b:1::/52")}}).Validate(); err == nil {
		t.Error("a NAT64 prefix of 52 bits is no problem")
	}
}
