package testnet

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/penstock/penstock/resolver"
)

// TestDNS: a zone says what a resolver would say of it.
func TestDNS(t *testing.T) {
	d := NewDNS(`
		# a comment
		Example.com  MX 20 b.example.net. # another
		example.com  MX 10 a.example.net
		a.example.net A 192.0.2.1
		a.example.net AAAA ::ffff:192.0.2.2
		alias.example CNAME example.com
		far.example CNAME alias.example
		_25._tcp.a.example.net TLSA 3 1 1 00ff
		text.example TXT "v=x; y # not a comment? it is"
		1.2.0.192.in-addr.arpa PTR a.example.net
		broken.example FAIL
		half.example FAIL AAAA
		half.example A 192.0.2.3
		forged.example BOGUS MX
		loop.example CNAME loop.example
		slow.example HANG
	`)
	d.Sign("example.com", "example.net", "arpa", "example")
	d.Unsign("far.example")
	ctx := t.Context()
	list, err := d.LookupMX(ctx, "EXAMPLE.com.")
	if err != nil || len(list.Records) != 2 || list.Records[0] != (resolver.MX{Preference: 10, Host: "a.example.net"}) || !list.Authentic || list.Canonical != "example.com" {
		t.Errorf("MX: got %+v, %v", list, err)
	}
	if list, err = d.LookupMX(ctx, "alias.example"); err != nil || !list.Authentic || list.Canonical != "example.com" {
		t.Errorf("an alias: got %+v, %v", list, err)
	}
	if list, err = d.LookupMX(ctx, "far.example"); err != nil || list.Authentic || list.Canonical != "example.com" {
		t.Errorf("an alias that is not signed: got %+v, %v", list, err)
	}
	if c, err := d.LookupCNAME(ctx, "far.example"); err != nil || c.Authentic || c.Records[0] != "alias.example" {
		t.Errorf("CNAME: got %+v, %v", c, err)
	}
	if r, err := d.LookupTLSA(ctx, "_25._tcp.a.example.net"); err != nil || r.Records[0] != (resolver.TLSA{Usage: 3, Selector: 1, MatchingType: 1, Data: "\x00\xff"}) {
		t.Errorf("TLSA: got %+v, %v", r, err)
	}
	if r, err := d.LookupTXT(ctx, "text.example"); err != nil || r.Records[0] != "v=x; y" {
		t.Errorf("TXT: got %+v, %v", r, err)
	}
	if r, err := d.LookupPTR(ctx, netip.MustParseAddr("192.0.2.1")); err != nil || r.Records[0] != "a.example.net" {
		t.Errorf("PTR: got %+v, %v", r, err)
	}
	if a, err := d.LookupAddrs(ctx, "a.example.net", resolver.Both); err != nil || len(a.Addrs) != 2 || a.Failed != nil {
		t.Errorf("addresses: got %+v, %v", a, err)
	}
	if a, err := d.LookupAddrs(ctx, "half.example", resolver.Both); err != nil || len(a.Addrs) != 1 || !errors.Is(a.Failed, resolver.ErrTemporary) {
		t.Errorf("one family: got %+v, %v", a, err)
	}
	for _, tt := range []struct {
		name string
		typ  resolver.Type
		want error
	}{
		{"example.com", resolver.TypeA, resolver.ErrNoData}, {"_tcp.a.example.net", resolver.TypeA, resolver.ErrNoData}, // something is below
		{"nowhere.example", resolver.TypeMX, resolver.ErrNoName}, {"broken.example", resolver.TypeA, resolver.ErrTemporary},
		{"forged.example", resolver.TypeMX, resolver.ErrBogus}, {"loop.example", resolver.TypeMX, resolver.ErrTemporary},
	} {
		_, err := d.Lookup(ctx, tt.name, tt.typ)
		e, ok := errors.AsType[*resolver.Error](err)
		if !ok || !errors.Is(err, tt.want) {
			t.Errorf("%s %s: got %v, want %v", tt.name, tt.typ, err, tt.want)
		} else if !e.Temporary() && !e.Authentic {
			t.Errorf("%s %s: that there is nothing is not authentic", tt.name, tt.typ)
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for _, name := range []string{"slow.example", "example.com"} {
		if _, err := d.LookupMX(gone, name); !errors.Is(err, resolver.ErrTemporary) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n := len(d.Asked()); n != 19 {
		t.Errorf("was asked %d times", n)
	}
	d.Set("")
	if _, err := d.LookupMX(ctx, "example.com"); !errors.Is(err, resolver.ErrNoName) {
		t.Errorf("nothing is left, and yet: %v", err)
	}
}

// TestBadZone: a line that cannot be read is the test's mistake.
func TestBadZone(t *testing.T) {
	for _, zone := range []string{"x", "x SOA y", "x A", "x A ::1", "x AAAA 1.2.3.4", "x A y", "x MX y", "x MX 65536 y", "x TLSA 3 1 1", "x TLSA 256 1 1 00", "x TLSA 3 1 1 0"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was read", zone)
				}
			}()
			NewDNS(zone)
		}()
	}
}
