package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const exampleZone = `
example.net.       600 SOA ns.example.net. host.example.net. 1 2 3 4 60
example.net.       MX 20 MX2.Example.NET.
example.net.       MX 10 mx1.example.net.
example.net.       TXT "v=spf1 " "-all" 
example.net.       TXT "quote \" back \\ nul \000 umlaut \195\164"
example.net.       NS ns.example.net.
nomail.example.net. MX 0 .
mx1.example.net.   A 192.0.2.1
mx1.example.net.   A 192.0.2.2
mx1.example.net.   AAAA 2001:db8::1
v4.example.net.    A 192.0.2.4
v6.example.net.    AAAA 2001:db8::6
a.example.net. 200 CNAME b.example.net.
b.example.net. 100 CNAME mx1.example.net.
lost.example.net.  CNAME gone.example.net.
bare.example.net.  CNAME v6.example.net.
_25._tcp.mx1.example.net. TLSA 3 1 1 00ff10
1.2.0.192.in-addr.arpa. PTR mx1.example.net.
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. PTR mx1.example.net.
odd\'one.example.net. A 192.0.2.9
`

// TestLookups holds what comes out against the zone, type by type.
func TestLookups(t *testing.T) {
	f := newFake(t, exampleZone)
	f.ad.Store(true)
	r := start(t, Options{}, f)
	ctx := t.Context()
	for _, tt := range []struct {
		what string
		got  func() (any, Meta, error)
		want any
		name string // canonical
	}{
		{"MX", result(r.LookupMX(ctx, "Example.NET.")), []MX{{10, "mx1.example.net"}, {20, "mx2.example.net"}}, "example.net"},
		{"null MX", result(r.LookupMX(ctx, "nomail.example.net")), []MX{{0, "."}}, "nomail.example.net"},
		{"TXT", result(r.LookupTXT(ctx, "example.net")), []string{"v=spf1 -all", "quote \" back \\ nul \x00 umlaut ä"}, "example.net"},
		{"TLSA", result(r.LookupTLSA(ctx, "_25._tcp.mx1.example.net")), []TLSA{{3, 1, 1, "\x00\xff\x10"}}, "_25._tcp.mx1.example.net"},
		{"CNAME", result(r.LookupCNAME(ctx, "a.example.net")), []string{"b.example.net"}, "a.example.net"},
		{"PTR of IPv4", result(r.LookupPTR(ctx, netip.MustParseAddr("::ffff:192.0.2.1"))), []string{"mx1.example.net"}, "1.2.0.192.in-addr.arpa"},
		{"PTR of IPv6", result(r.LookupPTR(ctx, netip.MustParseAddr("2001:db8::1"))), []string{"mx1.example.net"},
			"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"},
		{"both families, through CNAMEs", hosts(r.LookupAddrs(ctx, "A.example.net", Both)), addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"), "mx1.example.net"},
		{"one family asked for", hosts(r.LookupAddrs(ctx, "mx1.example.net", IPv6)), addrs("2001:db8::1"), "mx1.example.net"},
		{"only IPv4 there", hosts(r.LookupAddrs(ctx, "v4.example.net", Both)), addrs("192.0.2.4"), "v4.example.net"},
		{"only IPv6 there", hosts(r.LookupAddrs(ctx, "v6.example.net", Both)), addrs("2001:db8::6"), "v6.example.net"},
		{"escaped", hosts(r.LookupAddrs(ctx, "odd'one.example.net", IPv4)), addrs("192.0.2.9"), `odd\'one.example.net`},
	} {
		got, meta, err := tt.got()
		if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tt.want) {
			t.Errorf("%s: got %q, %v; want %q", tt.what, got, err, tt.want)
		}
		if meta.Canonical != tt.name || !meta.Authentic || meta.EDE != nil {
			t.Errorf("%s: got %+v, want the name %s, authentic", tt.what, meta, tt.name)
		}
	}
	a, err := r.Lookup(ctx, "example.net", TypeNS)
	want := []Record{{Name: "example.net", Type: TypeNS, TTL: 300, Host: "ns.example.net"}}
	if err != nil || !slices.Equal(a.Records, want) {
		t.Errorf("NS: got %+v, %v; want %+v", a.Records, err, want)
	}
	for _, q := range f.queries() {
		if !q.edns || !q.ad || q.tcp {
			t.Errorf("query %+v: want EDNS and the AD bit over UDP", q)
		}
	}
}

func result[T any](r Result[T], err error) func() (any, Meta, error) {
	return func() (any, Meta, error) { return r.Records, r.Meta, err }
}

func hosts(a Addrs, err error) func() (any, Meta, error) {
	return func() (any, Meta, error) { return a.Addrs, a.Meta, errors.Join(err, a.Failed) }
}

// TestNone: that there is nothing is an answer too, with all that belongs to one.
func TestNone(t *testing.T) {
	f := newFake(t, exampleZone)
	f.ad.Store(true)
	clock := newClock()
	r := start(t, Options{Now: clock.Now}, f)
	ctx := t.Context()
	_, noData := r.LookupMX(ctx, "mx1.example.net")
	_, noName := r.LookupTLSA(ctx, "nothing.example.net")
	_, chain := r.LookupMX(ctx, "lost.example.net")
	_, bare := r.LookupTXT(ctx, "bare.example.net")
	_, neither := r.LookupAddrs(ctx, "example.net", Both)
	_, noHost := r.LookupAddrs(ctx, "nothing.example.net", Both)
	for _, tt := range []struct {
		what string
		err  error
		kind error
		name string
	}{
		{"no data", noData, ErrNoData, "mx1.example.net"},
		{"no name", noName, ErrNoName, "nothing.example.net"},
		{"no name behind a CNAME", chain, ErrNoName, "gone.example.net"},
		{"no data behind a CNAME", bare, ErrNoData, "v6.example.net"},
		{"no address", neither, ErrNoData, "example.net"},
		{"no host", noHost, ErrNoName, "nothing.example.net"},
	} {
		var e *Error
		if !errors.As(tt.err, &e) || !errors.Is(tt.err, tt.kind) || !errors.Is(tt.err, ErrNotFound) || errors.Is(tt.err, ErrTemporary) {
			t.Errorf("%s: got %v, want %v", tt.what, tt.err, tt.kind)
			continue
		}
		// RFC 2308, Section 5: the SOA's own time to live is 600 s, its minimum 60 s.
		if !e.Authentic || e.Canonical != tt.name || e.Temporary() || e.Expires.Sub(clock.Now()) != time.Minute {
			t.Errorf("%s: got %+v, want authentic, of %s, for a minute", tt.what, e, tt.name)
		}
	}
}

// TestBadNames: nonsense never leaves the house.
func TestBadNames(t *testing.T) {
	f := newFake(t, "")
	r := start(t, Options{}, f)
	long := ""
	for range 50 {
		long += "label."
	}
	for _, name := range []string{"", "..", "a..b", ".a", "a\x00b", "a\\.b", "bücher.example", long, long[:240] + "0123456789012345678901234567890123456789012345678901234567890123"} {
		if _, err := r.LookupMX(t.Context(), name); !errors.Is(err, ErrBadName) || errors.Is(err, ErrTemporary) {
			t.Errorf("%q: got %v, want ErrBadName", name, err)
		}
		if _, err := r.LookupAddrs(t.Context(), name, Both); !errors.Is(err, ErrBadName) {
			t.Errorf("%q: got %v, want ErrBadName", name, err)
		}
	}
	if _, err := r.Lookup(t.Context(), "example.net", 6); !errors.Is(err, ErrBadName) {
		t.Errorf("SOA: got %v, want ErrBadName", err)
	}
	if _, err := r.LookupPTR(t.Context(), netip.Addr{}); !errors.Is(err, ErrBadName) {
		t.Errorf("no address: got %v, want ErrBadName", err)
	}
	if q := f.queries(); len(q) > 0 {
		t.Errorf("the server was asked for %+v", q)
	}
}

// TestFamilies: one family that fails does not take the other along, but is told.
func TestFamilies(t *testing.T) {
	f := newFake(t, exampleZone)
	f.ad.Store(true)
	f.set(func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
		if a.typ == TypeAAAA {
			reply.SetRcode(q, dns.RcodeServerFailure)
		}
		return reply
	})
	r := start(t, Options{}, f)
	got, err := r.LookupAddrs(t.Context(), "mx1.example.net", Both)
	if err != nil || !slices.Equal(got.Addrs, addrs("192.0.2.1", "192.0.2.2")) || !got.Authentic || !errors.Is(got.Failed, ErrTemporary) {
		t.Errorf("got %+v, %v; want the IPv4 addresses, authentic, and a failure", got, err)
	}
	// Whether a name with no IPv4 address has any is then not known.
	if _, err := r.LookupAddrs(t.Context(), "v6.example.net", Both); !errors.Is(err, ErrTemporary) {
		t.Errorf("got %v, want ErrTemporary", err)
	}
}

// TestAuthentic: when the AD bit counts.
func TestAuthentic(t *testing.T) {
	for _, tt := range []struct {
		why   string
		ad    bool
		trust Trust
		react reaction
		want  bool
	}{
		{"loopback", true, TrustAuto, nil, true},
		{"told to trust", true, TrustYes, nil, true},
		{"no AD bit", false, TrustAuto, nil, false},
		{"told not to", true, TrustNo, nil, false},
		{"a server without EDNS cannot know", true, TrustAuto, func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
			if a.edns {
				return reply.SetRcode(q, dns.RcodeFormatError)
			}
			reply.AuthenticatedData = true
			return reply
		}, false},
	} {
		f := newFake(t, exampleZone)
		f.ad.Store(tt.ad)
		f.set(tt.react)
		r := start(t, Options{Servers: []Server{{Address: f.addr, Trust: tt.trust}}})
		a, err := r.LookupMX(t.Context(), "example.net")
		if err != nil || a.Authentic != tt.want {
			t.Errorf("%s: got %v, %v; want %v", tt.why, a.Authentic, err, tt.want)
		}
		_, err = r.LookupMX(t.Context(), "nothing.example.net")
		if e := (*Error)(nil); !errors.As(err, &e) || e.Kind != ErrNoName || e.Authentic != tt.want {
			t.Errorf("%s: no such name: got %v, want authentic %v", tt.why, err, tt.want)
		}
	}
}

// TestOpenChain: a server that leaves the end of a chain to us may know less of the
// second half than of the first.
func TestOpenChain(t *testing.T) {
	f := newFake(t, exampleZone)
	f.ad.Store(true)
	f.set(func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
		if len(reply.Answer) > 1 && a.name == "a.example.net" {
			reply.Answer, reply.Ns = reply.Answer[:1], nil
		}
		reply.AuthenticatedData = a.name == "a.example.net"
		return reply
	})
	clock := newClock()
	r := start(t, Options{Now: clock.Now}, f)
	got, err := r.LookupAddrs(t.Context(), "a.example.net", IPv4)
	if err != nil || len(got.Addrs) != 2 || got.Canonical != "mx1.example.net" || got.Authentic {
		t.Errorf("got %+v, %v; want both addresses of mx1.example.net, not authentic", got, err)
	}
	if ttl := got.Expires.Sub(clock.Now()); ttl != 100*time.Second {
		t.Errorf("holds for %v, want the least of the chain, 100 s", ttl)
	}
}

// TestAuthenticates: the question for the root goes past the cache.
func TestAuthenticates(t *testing.T) {
	f := newFake(t, ". NS a.root-servers.example.")
	r := start(t, Options{Timeout: 300 * time.Millisecond, Tries: 1}, f)
	for _, want := range []bool{false, true, false} {
		f.set(func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
			reply.AuthenticatedData = want
			return reply
		})
		if got, err := r.Authenticates(t.Context()); got != want || err != nil {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
	}
	f.set(func(*dns.Msg, asked, *dns.Msg) *dns.Msg { return nil })
	if _, err := r.Authenticates(t.Context()); !errors.Is(err, ErrTemporary) {
		t.Errorf("silent server: got %v, want ErrTemporary", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Authenticates(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	r.Close()
	if _, err := r.Authenticates(t.Context()); !errors.Is(err, ErrTemporary) {
		t.Errorf("closed: got %v, want ErrTemporary", err)
	}
}
