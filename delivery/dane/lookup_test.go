package dane_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/internal/testnet"
	"github.com/penstock/penstock/resolver"
)

const digest = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// zone: what is signed stands below signed.test, and what is not below plain.test.
var zone = `
	mx.signed.test A 192.0.2.1
	_25._tcp.mx.signed.test TLSA 3 1 1 ` + digest + `
	_2525._tcp.mx.signed.test TLSA 3 1 2 ` + digest + digest + `
	none.signed.test A 192.0.2.1
	bogus.signed.test A 192.0.2.1
	_25._tcp.bogus.signed.test BOGUS
	silent.signed.test A 192.0.2.1
	_25._tcp.silent.signed.test FAIL
	unusable.signed.test A 192.0.2.1
	_25._tcp.unusable.signed.test TLSA 1 1 1 ` + digest + `
	mx.plain.test A 192.0.2.1
	_25._tcp.mx.plain.test TLSA 3 1 1 ` + digest + `

	alias.signed.test CNAME mx.signed.test
	_25._tcp.alias.signed.test TLSA 3 1 1 ` + strings.Repeat("aa", 32) + `
	toNone.signed.test CNAME none.signed.test
	_25._tcp.toNone.signed.test TLSA 3 1 1 ` + strings.Repeat("bb", 32) + `
	toBogus.signed.test CNAME bogus.signed.test
	_25._tcp.toBogus.signed.test TLSA 3 1 1 ` + strings.Repeat("cc", 32) + `
	toNothing.signed.test CNAME none.signed.test
	toPlain.signed.test CNAME mx.plain.test
	_25._tcp.toPlain.signed.test TLSA 3 1 1 ` + strings.Repeat("dd", 32) + `
	toPlainWithout.signed.test CNAME mx.plain.test
	fromPlain.plain.test CNAME mx.signed.test
	_25._tcp.fromPlain.plain.test TLSA 3 1 1 ` + digest + `
	unknown.plain.test CNAME mx.plain.test
	unknown.plain.test FAIL CNAME

	shared.signed.test A 192.0.2.1
	_25._tcp.shared.signed.test CNAME _dane.signed.test
	_dane.signed.test TLSA 3 1 1 ` + digest + `
	away.signed.test A 192.0.2.1
	_25._tcp.away.signed.test CNAME _dane.plain.test
	_dane.plain.test TLSA 3 1 1 ` + digest + `
`

// TestLookup: where the records of each host are, and whether it has any. RFC 7672, Section 2.2.
func TestLookup(t *testing.T) {
	dns := testnet.NewDNS(zone)
	dns.Sign("signed.test")
	const fails = "fails"
	for _, c := range []struct {
		host string
		port uint16
		want string // the base domain, or empty for none
		why  string
	}{
		{"mx.signed.test", 0, "mx.signed.test", ""},
		{"mx.signed.test", 25, "mx.signed.test", ""},
		{"mx.signed.test", 2525, "mx.signed.test", ""},
		{"mx.signed.test", 465, "", "it has no TLSA records"},
		{"none.signed.test", 0, "", "it has no TLSA records"},
		{"bogus.signed.test", 0, fails, ""},
		{"silent.signed.test", 0, fails, ""},
		{"unusable.signed.test", 0, "unusable.signed.test", ""},
		{"mx.plain.test", 0, "", "its addresses are not authenticated"}, // and nobody is asked

		{"alias.signed.test", 0, "mx.signed.test", ""},      // the end of the chain first
		{"tonone.signed.test", 0, "tonone.signed.test", ""}, // or else the name
		{"tobogus.signed.test", 0, fails, ""},               // but not instead of what is not known
		{"tonothing.signed.test", 0, "", "it has no TLSA records"},
		{"toplain.signed.test", 0, "toplain.signed.test", ""},
		{"toplainwithout.signed.test", 0, "", "it has no TLSA records"},
		{"fromplain.plain.test", 0, "", "it is an alias, and neither the alias nor its addresses are authenticated"},
		{"unknown.plain.test", 0, fails, ""},

		{"shared.signed.test", 0, "shared.signed.test", ""}, // the records may be an alias
		{"away.signed.test", 0, "", "its TLSA records are not authenticated"},
		{"", 0, "", "the host has no name"},
	} {
		q := dane.Query{DNS: dns, Host: c.host, Port: c.port}
		if a, err := dns.LookupAddrs(t.Context(), c.host, resolver.IPv4); err == nil {
			q.Canonical, q.Authentic = a.Canonical, a.Authentic
		}
		set, err := dane.Lookup(t.Context(), q)
		got := set.Base
		if err != nil {
			got = fails
		}
		if got != c.want || set.Why != c.why {
			t.Errorf("%s port %d: got %q %q (%v), want %q %q", c.host, c.port, got, set.Why, err, c.want, c.why)
		}
		if set.Applies() != (c.want != "" && c.want != fails) {
			t.Errorf("%s: got records %v", c.host, set.Records)
		}
		if err != nil && !errors.Is(err, resolver.ErrTemporary) {
			t.Errorf("%s: %v is not temporary", c.host, err)
		}
	}
}

// TestLookupAsks: what is asked, and in which order.
func TestLookupAsks(t *testing.T) {
	for _, c := range []struct {
		q    dane.Query
		want string
	}{
		{dane.Query{Host: "mx.signed.test", Authentic: true}, "_25._tcp.mx.signed.test TLSA yes 1"},
		{dane.Query{Host: "mx.signed.test", Canonical: "mx.signed.test", Authentic: true}, "_25._tcp.mx.signed.test TLSA yes 1"},
		{dane.Query{Host: "mx.plain.test"}, ""},
		{dane.Query{Host: "tonone.signed.test", Canonical: "none.signed.test", Authentic: true}, "_25._tcp.none.signed.test TLSA yes 0, _25._tcp.tonone.signed.test TLSA yes 1"},
		{dane.Query{Host: "toplain.signed.test", Canonical: "mx.plain.test"}, "toplain.signed.test CNAME yes 1, _25._tcp.toplain.signed.test TLSA yes 1"},
		{dane.Query{Host: "bogus.signed.test", Authentic: true}, "_25._tcp.bogus.signed.test TLSA no 0 (DNSSEC Bogus: \"bogus\")"},
		// A CNAME that has gone since the addresses were looked up: the name is in a signed zone.
		{dane.Query{Host: "mx.signed.test", Canonical: "mx.plain.test"}, "mx.signed.test CNAME yes 0, _25._tcp.mx.signed.test TLSA yes 1"},
		// A name that leaves no room for labels before it has no records.
		{dane.Query{Host: long, Authentic: true}, "_25._tcp." + long + " TLSA no 0"},
	} {
		dns := testnet.NewDNS(zone)
		dns.Sign("signed.test")
		c.q.DNS = &strict{dns}
		set, _ := dane.Lookup(t.Context(), c.q)
		var got []string
		for _, a := range set.Asked {
			s := fmt.Sprintf("%s %s %s %d", a.Name, a.Type, map[bool]string{true: "yes", false: "no"}[a.Authentic], a.Records)
			if a.EDE != nil {
				s += " (" + a.EDE.String() + ")"
			}
			got = append(got, s)
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: got %q, want %q", c.q.Host, s, c.want)
		}
		var asked []string
		for _, q := range dns.Asked() {
			asked = append(asked, q.Name)
		}
		if c.q.Host != long && !slices.Equal(asked, names(set.Asked)) {
			t.Errorf("%s: asked for %q, and says %q", c.q.Host, asked, names(set.Asked))
		}
	}
}

var long = strings.Repeat(strings.Repeat("a", 49)+".", 5) + "b"

// strict refuses names that are too long, as the resolver does.
type strict struct{ *testnet.DNS }

func (s strict) LookupTLSA(ctx context.Context, name string) (resolver.Result[resolver.TLSA], error) {
	if len(name) > 253 {
		return resolver.Result[resolver.TLSA]{}, &resolver.Error{Name: name, Type: resolver.TypeTLSA, Kind: resolver.ErrBadName}
	}
	return s.DNS.LookupTLSA(ctx, name)
}

func names(list []dane.Asked) []string {
	var names []string
	for _, a := range list {
		names = append(names, a.Name)
	}
	return names
}

// TestLookupExpires: the outcome holds as long as all answers that led to it.
func TestLookupExpires(t *testing.T) {
	dns := testnet.NewDNS(zone)
	dns.Sign("signed.test")
	clock := now
	dns.Now = func() time.Time { clock = clock.Add(-time.Second); return clock } // each answer shorter than the one before
	set, err := dane.Lookup(t.Context(), dane.Query{DNS: dns, Host: "tonone.signed.test", Canonical: "none.signed.test", Authentic: true})
	if want := now.Add(testnet.TTL - 2*time.Second); err != nil || !set.Expires.Equal(want) {
		t.Errorf("got %v (%v), want %v", set.Expires, err, want)
	}
	if set, _ := dane.Lookup(t.Context(), dane.Query{DNS: dns, Host: "mx.plain.test"}); !set.Expires.IsZero() {
		t.Errorf("nothing was asked, and it expires %v", set.Expires)
	}
}
