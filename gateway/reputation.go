package gateway

import (
	"math"
	"net/netip"
	"time"
)

// reputation.go: which addresses have a good record, from what we saw of them ourselves.
// Who has one need not wait before the greeting.
//
// The record is one number that fades. A message that was accepted adds one, up to a few;
// talking out of turn or abusing the protocol ends a good record at once and begins a bad
// one, against which new messages have to count first. A good record halves in a month, a
// bad one in a day: machines are cleaned, and addresses get new owners. It is about the
// address alone (with IPv6 its network of 64 bits): a record that a network shares would
// be there for its worst member to use.
//
// Memory is fixed. Bad records make room first, then the weakest good one, and a bad
// record never takes the place of a good one. So whoever has many addresses and no good
// mail can make nobody unknown.
//
// Wiring: one per gateway. known is asked before the greeting (see greetDelay), good is
// told after a backend took a message for somebody, bad about a client that is held to what
// strangers are and that spoke early, tried a smuggled command, or was cut off for too many
// errors. It must not be told for clients in front of which stands somebody else (a proxy that
// did not name them).

// reputationSettings are the settings of a reputation. The zero value of each field means
// its default.
type reputationSettings struct {
	// entries is how many addresses are known at a time, with 16 octets each. Default
	// 65536.
	entries int
	// goodHalf and badHalf are the times in which a record fades to a half. Defaults 30
	// days and 24 hours.
	goodHalf, badHalf time.Duration
}

const (
	defaultReputationEntries = 1 << 16
	defaultGoodHalf          = 30 * 24 * time.Hour
	defaultBadHalf           = 24 * time.Hour
	// mostScore is the best and, negative, the worst record. The best lasts for four
	// half-lives.
	mostScore = 8
	// knownScore makes an address known: one message, for one half-life.
	knownScore = 0.5
	// noScore and less is as good as nothing.
	noScore = 1.0 / 64
)

// reputation remembers addresses. It is safe for concurrent use.
type reputation struct {
	records           *sets[record]
	goodHalf, badHalf float64 // seconds
	base              time.Time
	now               func() time.Time
}

// record is what is known of an address: the score as it was at a time, in seconds since
// the base. A place with the score 0 is free.
type record struct {
	key   uint64
	score float32
	at    uint32
}

// newReputation returns a reputation that knows nobody.
func newReputation(s reputationSettings, now func() time.Time) *reputation {
	if s.entries <= 0 {
		s.entries = defaultReputationEntries
	}
	if s.goodHalf <= 0 {
		s.goodHalf = defaultGoodHalf
	}
	if s.badHalf <= 0 {
		s.badHalf = defaultBadHalf
	}
	return &reputation{records: newSets[record](s.entries), goodHalf: s.goodHalf.Seconds(), badHalf: s.badHalf.Seconds(),
		base: now(), now: now}
}

// known tells whether an address has a good record.
func (r *reputation) known(a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	now, key := r.clock(), addressKey(a)
	set, mu := r.records.of(key)
	mu.Lock()
	defer mu.Unlock()
	for i := range set {
		if set[i].key == key {
			return r.score(set[i], now) >= knownScore
		}
	}
	return false
}

// good notes that a message of the address was accepted.
func (r *reputation) good(a netip.Addr) {
	r.change(a, func(score float64) float64 { return min(score+1, mostScore) })
}

// bad notes that the address did what no mail server does.
func (r *reputation) bad(a netip.Addr) {
	r.change(a, func(score float64) float64 { return max(min(score, 0)-1, -mostScore) })
}

func (r *reputation) change(a netip.Addr, by func(score float64) float64) {
	if !a.IsValid() {
		return
	}
	now, key := r.clock(), addressKey(a)
	set, mu := r.records.of(key)
	mu.Lock()
	defer mu.Unlock()
	e := r.place(set, key, now)
	score := 0.0
	if e.key == key {
		score = r.score(*e, now)
	}
	score = by(score)
	if e.key != key && score < 0 && r.score(*e, now) >= noScore {
		return // a bad record does not take the place of a good one
	}
	*e = record{key, float32(score), now}
}

// place returns the record of key, or the one that is worth least: a free one before a
// bad one, and that before a good one.
func (r *reputation) place(set []record, key uint64, now uint32) *record {
	for i := range set {
		if set[i].key == key {
			return &set[i]
		}
	}
	var least *record
	worth := math.Inf(1)
	for i := range set {
		w := r.score(set[i], now)
		if w < 0 {
			w = -w / mostScore * noScore // of the bad ones, the faintest
		}
		if w < worth {
			least, worth = &set[i], w
		}
	}
	return least
}

// score is what is left of a record.
func (r *reputation) score(e record, now uint32) float64 {
	half := r.goodHalf
	if e.score < 0 {
		half = r.badHalf
	}
	// The times of two callers may be out of order by a moment.
	age := float64(now) - float64(e.at)
	return float64(e.score) * math.Exp2(-max(age, 0)/half)
}

// clock is seconds since the beginning. They last for 136 years.
func (r *reputation) clock() uint32 { return uint32(r.now().Sub(r.base) / time.Second) }
