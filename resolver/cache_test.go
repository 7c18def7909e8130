package resolver

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/parity"
)

// cache_test.go: how long what is known holds, and how much of it there can be.

// TestLifetimes asks twice, with a pause between, and looks who answered.
func TestLifetimes(t *testing.T) {
	parity.Row(t, "SC-13")
	const zone = `
s.example.    300 SOA ns.s.example. host.s.example. 1 2 3 4 60
long.example. 86400 MX 1 x.example.
short.example. 10 MX 1 x.example.
zero.example. 0 MX 1 x.example.
two.example.  20 MX 1 x.example.
two.example.  10 MX 2 x.example.
c.example.    5 CNAME long.example.
l.example.    4294967295 MX 1 x.example.
`
	f := newFake(t, zone)
	clock := newClock()
	r := start(t, Options{Now: clock.Now}, f)
	for _, tt := range []struct {
		name string
		ttl  time.Duration
		why  string
	}{
		{"long.example", time.Hour, "a day is too long"},
		{"short.example", 10 * time.Second, "as it says"},
		{"zero.example", 0, "for those alone who wait"},
		{"two.example", 10 * time.Second, "the least of a set"},
		{"c.example", 5 * time.Second, "the least of a chain"},
		{"l.example", 0, "RFC 2181, Section 8"},
		{"none.s.example", time.Minute, "RFC 2308, Section 5"},
		{"none.example", 0, "no SOA: nobody says how long"},
	} {
		count := func() int {
			r.LookupMX(t.Context(), tt.name)
			return len(f.queries())
		}
		before := count()
		if tt.ttl > 0 {
			clock.add(tt.ttl - time.Millisecond)
			if n := count() - before; n != 0 {
				t.Errorf("%s: asked again before %v (%s)", tt.name, tt.ttl, tt.why)
			}
			clock.add(time.Millisecond)
		}
		if n := count() - before; n != 1 {
			t.Errorf("%s: asked %d times after %v, want 1 (%s)", tt.name, n, tt.ttl, tt.why)
		}
	}
}

// TestBackOff: failures are remembered too, longer each time, until there is an answer
// (RFC 9520, Section 3.2).
func TestBackOff(t *testing.T) {
	f := newFake(t, "x.example. 1 MX 1 x.example.")
	clock := newClock()
	r := start(t, Options{Now: clock.Now}, f)
	ask := func() (int, error) {
		before := len(f.queries())
		_, err := r.LookupMX(t.Context(), "x.example")
		return len(f.queries()) - before, err
	}
	for round := range 2 {
		f.set(code(dns.RcodeServerFailure, 0))
		for _, wait := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			if n, err := ask(); !errors.Is(err, ErrTemporary) || n != 1 {
				t.Fatalf("got %v after %d queries, want ErrTemporary after 1", err, n)
			}
			clock.add(wait*time.Second - 1)
			if n, err := ask(); !errors.Is(err, ErrTemporary) || n != 0 {
				t.Errorf("round %d, within %d s: got %v after %d queries, want ErrTemporary from the cache", round, wait, err, n)
			}
			clock.add(1)
		}
		f.set(nil)
		if n, err := ask(); err != nil || n != 1 {
			t.Errorf("got %v after %d queries, want an answer", err, n)
		}
		clock.add(time.Second)
	}
	// A failure much later is a new one.
	f.set(code(dns.RcodeServerFailure, 0))
	for range 3 {
		clock.add(time.Hour)
		ask()
		clock.add(minFailure)
		if n, _ := ask(); n != 1 {
			t.Error("the first failure after an hour was remembered for more than a second")
		}
	}
	clock.add(time.Hour)
	// An answer that has expired is not used because the servers fail.
	f.set(code(dns.RcodeServerFailure, 0))
	if n, err := ask(); !errors.Is(err, ErrTemporary) || n != 1 {
		t.Errorf("got %v after %d queries, want ErrTemporary", err, n)
	}
}

// TestBounds: neither many answers nor large ones fill the memory.
func TestBounds(t *testing.T) {
	out := func(n, size int) *outcome {
		o := &outcome{meta: Meta{Expires: time.Unix(100, 0)}}
		for range n {
			o.records = append(o.records, Record{Text: strings.Repeat("x", size)})
		}
		return o
	}
	now := time.Unix(0, 0)
	k := func(i int) key { return key{fmt.Sprintf("x%d", i), TypeTXT} }

	c := newCache(100, 1<<20)
	for i := range 1000 {
		c.put(k(i), out(1, 1), now)
		c.get(k(0), now) // used all the time
	}
	if c.recent.Len() != 100 || len(c.byKey) != 100 || c.get(k(0), now) == nil || c.get(k(1), now) != nil || c.get(k(999), now) == nil {
		t.Errorf("%d entries; want 100, the first and the last of them", c.recent.Len())
	}
	for i := range 1000 {
		c.put(k(i), out(3, 10_000), now)
		if c.used > 1<<20 {
			t.Fatalf("%d bytes are used", c.used)
		}
	}
	if n := c.recent.Len(); n < 20 || n > 35 {
		t.Errorf("%d large entries in 1 MiB, want about 33", n)
	}
	c.put(k(0), out(1, 2<<20), now)
	if c.get(k(0), now) != nil {
		t.Error("an answer larger than the cache was kept")
	}
	for e := c.recent.Front(); e != nil; e = c.recent.Front() {
		c.remove(e)
	}
	if c.used != 0 || len(c.byKey) != 0 {
		t.Errorf("empty, with %d bytes and %d keys", c.used, len(c.byKey))
	}
}

// TestNoCache: a negative size keeps nothing.
func TestNoCache(t *testing.T) {
	f := newFake(t, "x.example. MX 1 x.example.")
	r := start(t, Options{CacheSize: -1}, f)
	for range 3 {
		if _, err := r.LookupMX(t.Context(), "x.example"); err != nil {
			t.Error(err)
		}
	}
	if n := len(f.queries()); n != 3 {
		t.Errorf("%d queries, want 3", n)
	}
}

// TestApart: what a caller does to its answer is not seen by others.
func TestApart(t *testing.T) {
	f := newFake(t, exampleZone)
	r := start(t, Options{}, f)
	for range 2 {
		a, err := r.Lookup(t.Context(), "example.net", TypeMX)
		if err != nil || a.Records[0].Host != "mx2.example.net" {
			t.Fatalf("got %+v, %v", a, err)
		}
		a.Records[0].Host = "spoiled"
		b, err := r.LookupAddrs(t.Context(), "mx1.example.net", IPv4)
		if err != nil || b.Addrs[0] != addrs("192.0.2.1")[0] {
			t.Fatalf("got %+v, %v", b, err)
		}
		b.Addrs[0] = addrs("192.0.2.66")[0]
	}
}

// TestHammer asks from all sides, in a cache that is too small, while servers fail.
func TestHammer(t *testing.T) {
	f := newFake(t, exampleZone)
	f.set(func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
		switch a.id % 8 {
		case 0:
			reply.Truncated = !a.tcp
		case 1:
			return reply.SetRcode(q, dns.RcodeServerFailure)
		case 2:
			if a.edns {
				return reply.SetRcode(q, dns.RcodeFormatError)
			}
		}
		return reply
	})
	r := start(t, Options{CacheSize: 3, Inflight: 6}, f)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 100 {
				ctx := t.Context()
				r.LookupMX(ctx, "example.net")
				r.LookupAddrs(ctx, "a.example.net", Families(j%3))
				r.LookupTXT(ctx, fmt.Sprintf("x%d.example.net", (i+j)%7))
				r.Name(ctx, addrs("192.0.2.1")[0])
				r.Stats()
			}
		})
	}
	all.Wait()
	if s := r.Stats(); s.CacheEntries > 3 || s.Inflight != 0 {
		t.Errorf("got %+v, want at most 3 entries and no flight", s)
	}
}
