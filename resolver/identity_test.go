package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestName: what is made of the names that an address claims.
func TestName(t *testing.T) {
	zone := `
1.2.0.192.in-addr.arpa. PTR Mail.Example.net.
mail.example.net. A 192.0.2.7
mail.example.net. A 192.0.2.1
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR six.example.net.
six.example.net. CNAME real.example.net.
real.example.net. AAAA 2001:db8::1
2.2.0.192.in-addr.arpa. PTR liar.example.net.
2.2.0.192.in-addr.arpa. PTR two.example.net.
liar.example.net. A 192.0.2.99
two.example.net. A 192.0.2.2
3.2.0.192.in-addr.arpa. PTR liar.example.net.
3.2.0.192.in-addr.arpa. PTR nowhere.example.net.
4.2.0.192.in-addr.arpa. PTR a\(b.example.net.
4.2.0.192.in-addr.arpa. PTR 192.0.2.4.
4.2.0.192.in-addr.arpa. PTR .
5.2.0.192.in-addr.arpa. PTR broken.example.net.
6.2.0.192.in-addr.arpa. PTR broken.example.net.
6.2.0.192.in-addr.arpa. PTR six6.example.net.
six6.example.net. A 192.0.2.6
c.2.0.192.in-addr.arpa. PTR x.example.net.
`
	for i := range 12 { // in that order: the last two are too many
		zone += fmt.Sprintf("8.2.0.192.in-addr.arpa. PTR n%d.example.net.\nn%d.example.net. A 192.0.2.%d\n", i, i, map[bool]int{true: 8, false: 50}[i == 10])
	}
	f := newFake(t, zone)
	f.set(func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
		if a.name == "broken.example.net" || a.name == "9.2.0.192.in-addr.arpa" {
			reply.SetRcode(q, dns.RcodeServerFailure)
		}
		return reply
	})
	r := start(t, Options{}, f)
	for _, tt := range []struct {
		addr              string
		status            Status
		name, unconfirmed string
		why               string
	}{
		{"192.0.2.1", Confirmed, "mail.example.net", "", "one of its addresses"},
		{"::ffff:192.0.2.1", Confirmed, "mail.example.net", "", "mapped"},
		{"2001:db8::1", Confirmed, "six.example.net", "", "through a CNAME; the name claimed counts"},
		{"2001:db8::1%eth0", Confirmed, "six.example.net", "", "with a zone"},
		{"192.0.2.2", Confirmed, "two.example.net", "liar.example.net", "the second is true"},
		{"192.0.2.3", Unconfirmed, "", "liar.example.net", "neither is"},
		{"192.0.2.4", None, "", "", "no name of a host"},
		{"192.0.2.5", Unknown, "", "broken.example.net", "the name's servers fail"},
		{"192.0.2.6", Confirmed, "six6.example.net", "broken.example.net", "the next name is good enough"},
		{"192.0.2.8", Unconfirmed, "", "n0.example.net", "ten are looked at"},
		{"192.0.2.9", Unknown, "", "", "the address's servers fail"},
		{"192.0.2.10", None, "", "", "no PTR"},
	} {
		got := r.Name(t.Context(), netip.MustParseAddr(tt.addr))
		if got.Status != tt.status || got.Name != tt.name || got.Unconfirmed != tt.unconfirmed {
			t.Errorf("%s: got %+v; want %s %q %q (%s)", tt.addr, got, tt.status, tt.name, tt.unconfirmed, tt.why)
		}
		if (got.Err != nil) != (tt.status == Unknown) {
			t.Errorf("%s: got the error %v with %s", tt.addr, got.Err, tt.status)
		}
	}
	if got := r.Name(t.Context(), netip.Addr{}); got.Status != None {
		t.Errorf("no address: got %+v, want none", got)
	}
}

// TestNameInTime: the context bounds it, at each step.
func TestNameInTime(t *testing.T) {
	f := newFake(t, "1.2.0.192.in-addr.arpa. PTR slow.example.net.")
	f.set(func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
		if a.name == "slow.example.net" {
			return nil
		}
		return reply
	})
	r := start(t, Options{}, f)
	addr := netip.MustParseAddr("192.0.2.1")
	if _, err := r.LookupPTR(t.Context(), addr); err != nil { // from here on it is in the cache
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	got := r.Name(ctx, addr)
	if took := time.Since(began); got.Status != Unknown || got.Unconfirmed != "slow.example.net" || !errors.Is(got.Err, context.DeadlineExceeded) || took > 3*time.Second {
		t.Errorf("got %+v after %v", got, took)
	}
}

func TestHostName(t *testing.T) {
	for _, tt := range []struct {
		name string
		want bool
	}{
		{"mail.example.net", true},
		{"a-b_c.example", true},
		{"_dmarc.example", true},
		{"localhost", true},
		{"1.2.example", true},
		{"192.0.2.1", false}, // an address
		{"x.1", false},       // the end of one
		{"", false},
		{".", false},
		{"a..b", false},
		{"-a.example", false},
		{"a-.example", false},
		{"A.example", false}, // fold has been here
		{`a\046b.example`, false},
		{"a b.example", false},
		{"a\r\nb.example", false},
		{"bücher.example", false},
	} {
		if got := hostName(tt.name); got != tt.want {
			t.Errorf("hostName(%q): got %v, want %v", tt.name, got, tt.want)
		}
	}
}
