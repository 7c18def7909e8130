package gateway

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ticker is a clock that a test moves.
type ticker struct{ t time.Time }

func newTicker() *ticker               { return &ticker{time.Unix(1_700_000_000, 0)} }
func (c *ticker) now() time.Time       { return c.t }
func (c *ticker) pass(d time.Duration) { c.t = c.t.Add(d) }
func ip(s string) netip.Addr           { return netip.MustParseAddr(s) }
func perMinute(n, burst int) rateLimit { return rateLimit{count: n, burst: burst} }
func v4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func TestRateLimits(t *testing.T) {
	for _, tc := range []struct {
		limit rateLimit
		ok    bool
	}{
		{rateLimit{}, true},
		{rateLimit{count: 60}, true},
		{rateLimit{count: 1, per: time.Hour, burst: 24}, true},
		{rateLimit{count: -1}, false},
		{rateLimit{count: 1, per: -1}, false},
		{rateLimit{count: 1, burst: -1}, false},
		{rateLimit{count: 2, per: 1}, false},
		{rateLimit{count: 1, per: time.Hour, burst: 10000}, false}, // would be off, and overflow
	} {
		if err := tc.limit.validate(); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc.limit, err)
		}
	}
	off := newRates(rateLimit{}, rateLimit{}, 0, time.Now)
	if ok, _ := off.take(ip("192.0.2.1"), 1000); off != nil || !ok || off.untracked() != 0 {
		t.Error("no limit is a limit")
	}
}

func TestTakeAndRefill(t *testing.T) {
	clock := newTicker()
	r := newRates(perMinute(60, 10), rateLimit{}, 0, clock.now)
	a := ip("192.0.2.1")
	for _, step := range []struct {
		wait  time.Duration
		n     int
		ok    bool
		retry time.Duration
	}{
		{0, 10, true, 0},
		{0, 1, false, time.Second},
		{999 * time.Millisecond, 1, false, time.Millisecond},
		{time.Millisecond, 1, true, 0},
		{0, 1, false, time.Second}, // a refusal takes nothing
		{3 * time.Second, 3, true, 0},
		{time.Hour, 10, true, 0}, // no more than the burst comes back
		{0, 5, false, 5 * time.Second},
		{10 * time.Second, 1000, true, 0}, // more than a bucket is a bucket
		{0, 1000, false, 10 * time.Second},
		{0, 0, true, 0}, // nothing can always be taken
		{0, -1, true, 0},
		{5 * time.Second, 6, false, time.Second},
	} {
		clock.pass(step.wait)
		if ok, _ := r.take(a, step.n); ok {
			r.give(a, step.n) // as if nothing had been taken
		}
		if ok, retry := r.take(a, step.n); ok != step.ok || retry != step.retry {
			t.Fatalf("%+v: take says %v, %v", step, ok, retry)
		}
	}
	if ok, _ := r.take(netip.Addr{}, 100); !ok {
		t.Error("a unix socket has no rate")
	}
}

// Who shares a bucket with whom.
func TestRateKeys(t *testing.T) {
	for _, tc := range []struct {
		a, b             string
		address, network bool
	}{
		{"192.0.2.1", "192.0.2.1", true, true},
		{"192.0.2.1", "::ffff:192.0.2.1", true, true},
		{"192.0.2.1", "192.0.2.2", false, true},
		{"192.0.2.1", "192.0.3.1", false, false},
		{"2001:db8::1", "2001:db8::ffff:1", true, true},
		{"2001:db8::1", "2001:db8:0:1::1", false, true},
		{"2001:db8::1", "2001:db8:1::1", false, false},
		{"fe80::1%a", "fe80::1%b", true, true},
	} {
		a, b := ip(tc.a), ip(tc.b)
		if got := addressKey(a) == addressKey(b); got != tc.address {
			t.Errorf("%s and %s as addresses: %v", a, b, got)
		}
		if got := networkKey(a) == networkKey(b); got != tc.network {
			t.Errorf("%s and %s as networks: %v", a, b, got)
		}
	}
}

// What the network refuses is not taken of the address.
func TestNetworkRate(t *testing.T) {
	clock := newTicker()
	r := newRates(perMinute(6, 6), perMinute(6, 7), 0, clock.now)
	for range 6 {
		if ok, _ := r.take(ip("192.0.2.1"), 1); !ok {
			t.Fatal("refused within the rate")
		}
	}
	for _, want := range []bool{true, false, false} {
		if ok, _ := r.take(ip("192.0.2.2"), 1); ok != want {
			t.Fatalf("the neighbour: %v", ok)
		}
	}
	if retry := r.address.take(addressKey(ip("192.0.2.2")), 5, r.clock()); retry > 0 {
		t.Error("refused tokens were taken of the address")
	}
	if ok, retry := r.take(ip("192.0.2.2"), 1); ok || retry != 10*time.Second {
		t.Error(ok, retry)
	}
}

// No number of other addresses resets one that has used up its tokens.
func TestHotAddressStays(t *testing.T) {
	clock := newTicker()
	r := newRates(perMinute(10, 10), rateLimit{}, 64, clock.now)
	hot := ip("192.0.2.1")
	r.take(hot, 10)
	for i := range uint32(100_000) {
		r.take(v4(0x0a000000+i), 1+int(i%9)) // none of them is empty
		if ok, _ := r.take(hot, 1); ok {
			t.Fatalf("after %d other addresses", i)
		}
	}
	if r.untracked() != 0 {
		t.Error("an address was not tracked though others had tokens")
	}
	for i := range uint32(10_000) {
		r.take(v4(0x0b000000+i), 10) // nor by addresses that are empty
	}
	if ok, _ := r.take(hot, 1); ok {
		t.Error("reset by empty buckets")
	}
	if r.untracked() == 0 {
		t.Error("not one of 10000 was untracked in 64 places")
	}
	clock.pass(time.Minute) // all are full: all places are free
	before := r.untracked()
	for i := range uint32(32) {
		r.take(v4(0x0c000000+i*1000), 1)
	}
	if r.untracked() != before {
		t.Error("full buckets keep their places")
	}
}

// A bucket does what one does that is written down simply.
func TestBucketModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	clock := newTicker()
	r := newRates(rateLimit{count: 10, per: time.Second, burst: 25}, rateLimit{}, 0, clock.now)
	tokens := 25.0
	for i := range 100_000 {
		d := time.Duration(rnd.IntN(20)) * 10 * time.Millisecond
		clock.pass(d)
		tokens = min(tokens+d.Seconds()*10, 25)
		n := 1 + rnd.IntN(6)
		want := tokens >= float64(n)-1e-6
		if want {
			tokens -= float64(n)
		}
		if ok, _ := r.take(ip("192.0.2.1"), n); ok != want {
			t.Fatalf("step %d: %d of %.3f tokens: %v", i, n, tokens, ok)
		}
	}
}

// Names share a bucket in whatever case they are written, and nobody else's.
func TestNameRate(t *testing.T) {
	clock := newTicker()
	r := newRates(perMinute(2, 2), rateLimit{}, 0, clock.now)
	for i, step := range []struct {
		name string
		ok   bool
	}{{"ann@example.com", true}, {"Ann@Example.com", true}, {"ANN@example.com", false}, {"bob", true}, {"", true}} {
		if got := r.takeName(step.name); got != step.ok {
			t.Errorf("%d: %s: %v", i, step.name, got)
		}
	}
	clock.pass(30 * time.Second)
	if !r.takeName("ann@example.com") || r.takeName("ann@example.com") {
		t.Error("want one token after half a minute")
	}
	var off *rates
	if !off.takeName("ann") {
		t.Error("no limit is a limit")
	}
}

func TestRatesHammer(t *testing.T) {
	clock := newTicker() // stands still: nothing comes back
	r := newRates(perMinute(50, 50), perMinute(120, 120), 1024, clock.now)
	var taken [4]atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 4000 {
				if ok, _ := r.take(v4(0x0a000000+uint32(i%4)), 1); ok {
					taken[i%4].Add(1)
				}
				if ok, _ := r.take(v4(uint32(i)), 1); ok {
					r.give(v4(uint32(i)), 1)
				}
			}
		})
	}
	wg.Wait()
	sum := int64(0)
	for i := range taken {
		n := taken[i].Load()
		if sum += n; n > 50 {
			t.Errorf("address %d took %d", i, n)
		}
	}
	if sum != 120 {
		t.Errorf("the network took %d", sum)
	}
}

func BenchmarkRates(b *testing.B) {
	addrs := make([]netip.Addr, 1<<20)
	for i := range addrs {
		addrs[i] = v4(rand.Uint32())
	}
	limits := func() *rates { return newRates(perMinute(1000, 1000), perMinute(10000, 10000), 0, time.Now) }
	b.Run("one", func(b *testing.B) {
		r := limits()
		b.ReportAllocs()
		for b.Loop() {
			r.take(addrs[0], 1)
		}
	})
	b.Run("many", func(b *testing.B) { // sixteen times as many as there are places
		r := limits()
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r.take(addrs[i&(len(addrs)-1)], 1)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		r := limits()
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.Int(); pb.Next(); i++ {
				r.take(addrs[i&(len(addrs)-1)], 1)
			}
		})
	})
}
