package gateway

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestReputation(t *testing.T) {
	const day = 24 * time.Hour
	for _, tc := range []struct {
		name string
		// acts are g (a good message), b (a bad deed), d (a day) and m (30 days).
		acts  string
		known bool
	}{
		{"nothing", "", false},
		{"one message", "g", true},
		{"one message, a month ago", "gm", true},
		{"one message, longer ago", "gmd", false},
		{"a regular sender, three months ago", "ggggggggmmm", true},
		{"no record is for ever", "ggggggggggggggggmmmmd", false},
		{"one bad deed ends it", "ggggggggb", false},
		{"and is made up for", "ggggggggbgg", true},
		{"a message does not outweigh it the same day", "bg", false},
		{"but the next", "bdg", true},
		{"many bad deeds last longer", "bbbbbbbbdgg", false},
		{"and fade too", "bbbbbbbbbbbbbdddddg", true},
	} {
		clock := newTicker()
		r := newReputation(reputationSettings{}, clock.now)
		a, other := ip("192.0.2.1"), ip("192.0.2.2")
		for _, act := range tc.acts {
			switch act {
			case 'g':
				r.good(a)
			case 'b':
				r.bad(a)
			case 'd':
				clock.pass(day)
			case 'm':
				clock.pass(30 * day)
			}
		}
		if got := r.known(a); got != tc.known || r.known(other) {
			t.Errorf("%s (%s): known is %v", tc.name, tc.acts, got)
		}
		delay := greetDelay(time.Second, r, a)
		if (delay == 0) != tc.known || greetDelay(0, r, other) != 0 || greetDelay(time.Second, r, netip.Addr{}) != 0 {
			t.Errorf("%s: waits %v", tc.name, delay)
		}
	}
	r := newReputation(reputationSettings{}, time.Now)
	r.good(netip.Addr{})
	r.bad(netip.Addr{})
	if r.known(netip.Addr{}) {
		t.Error("no address is known")
	}
}

// A flood of strangers makes nobody unknown, and weaker records go first.
func TestReputationRoom(t *testing.T) {
	clock := newTicker()
	r := newReputation(reputationSettings{entries: ways}, clock.now)
	for i := range uint32(ways) {
		r.good(v4(i + 1))
		r.good(v4(i + 1))
	}
	for i := range uint32(1000) {
		r.bad(v4(1000 + i))
	}
	for i := range uint32(ways) {
		if !r.known(v4(i + 1)) {
			t.Fatalf("a bad record took the place of a good one (%d)", i)
		}
	}
	r.good(v4(1))
	r.good(v4(2000)) // takes the place of one of those with two messages
	if r.good(v4(2001)); r.known(v4(2000)) {
		t.Error("two messages gave way to one")
	}
	if !r.known(v4(1)) || !r.known(v4(2001)) {
		t.Error("the wrong one was forgotten")
	}
	r.bad(v4(1)) // its own record it does change
	if r.known(v4(1)) {
		t.Error("a bad deed was not noted")
	}
	clock.pass(time.Minute)
	if r.good(v4(3000)); !r.known(v4(2001)) || !r.known(v4(3000)) {
		t.Error("a bad record kept its place before a good one")
	}
	clock.pass(1000 * 24 * time.Hour) // all is faded
	r.bad(v4(4000))
	if r.good(v4(4000)); r.known(v4(4000)) {
		t.Error("the place of a faded record was not given to a bad one")
	}
}

func TestReputationHammer(t *testing.T) {
	r := newReputation(reputationSettings{entries: 64}, time.Now)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 0))
			for range 10_000 {
				a := v4(uint32(rnd.IntN(1000)))
				switch rnd.IntN(3) {
				case 0:
					r.good(a)
				case 1:
					r.bad(a)
				default:
					r.known(a)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkReputation(b *testing.B) {
	addrs := make([]netip.Addr, 1<<20)
	for i := range addrs {
		addrs[i] = v4(rand.Uint32())
	}
	r := newReputation(reputationSettings{}, time.Now)
	b.Run("known", func(b *testing.B) {
		r.good(addrs[0])
		b.ReportAllocs()
		for b.Loop() {
			r.known(addrs[0])
		}
	})
	b.Run("good", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r.good(addrs[i&(len(addrs)-1)])
		}
	})
}
