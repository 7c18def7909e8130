package gateway

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
)

// buckets.go: rates per address and per network, with token buckets.
//
// A bucket is one number: when it will be full again. Taking tokens moves that time on by
// what they take to come back, and fails if it would then be further away than a whole
// bucket takes. A bucket that is full again says as much as no bucket, so its place is
// free. Where no place is free, the fullest bucket of the set makes room, and an empty
// one never does: no number of other addresses gives an address new tokens that has used
// up its own. An address that finds nothing but empty buckets is not held against its own
// rate, since nothing is known against it; its network still is.
//
// Wiring: one rates per listener and purpose (connections, messages, failed logins), nil
// where it is off. take asks and counts at once: a connection in Connect, a message at
// MAIL; what it refuses is answered 421 4.7.0 or 451 4.7.1, and the time it returns is for
// the log. A login is counted with take when it begins, and given back with give if it does
// not fail. takeName is for users, who have no network. Clients without an address (unix sockets) pass always, and
// whom to exempt (trusted networks) is the caller's choice.

// rateLimit is so many tokens per time. The zero value is no limit.
type rateLimit struct {
	// count tokens come back in per, evenly. Default of per: a minute.
	count int
	per   time.Duration
	// burst is how many can be taken at once. Default count.
	burst int
}

func (l rateLimit) withDefaults() rateLimit {
	if l.per == 0 {
		l.per = time.Minute
	}
	if l.burst == 0 {
		l.burst = l.count
	}
	return l
}

// longestBucket is the most time that an empty bucket may need to get full.
const longestBucket = 366 * 24 * time.Hour

// validate returns what is wrong, nil if nothing is.
func (l rateLimit) validate() error {
	if l.count < 0 || l.per < 0 || l.burst < 0 {
		return errors.New("rate: must not be negative")
	}
	if l.count == 0 {
		return nil
	}
	l = l.withDefaults()
	if l.per < time.Duration(l.count) {
		return errors.New("rate: more than one per nanosecond")
	}
	if float64(l.per)/float64(l.count)*float64(l.burst) > float64(longestBucket) {
		return fmt.Errorf("rate: the burst takes longer than %s to come back", longestBucket)
	}
	return nil
}

// defaultRateEntries is how many addresses and networks are known at a time, with 16
// octets each.
const defaultRateEntries = 1 << 16

// rates is a limit per address and one per network. It is safe for concurrent use. Nil
// has no limit.
type rates struct {
	address, network *buckets // nil if off
	names            maphash.Seed
	base             time.Time
	now              func() time.Time
}

// newRates returns the rates for two limits that are valid; nil if both are off. Of
// addresses and of networks it knows as many as entries at a time; 0 is the default.
func newRates(address, network rateLimit, entries int, now func() time.Time) *rates {
	if address.count == 0 && network.count == 0 {
		return nil
	}
	if entries <= 0 {
		entries = defaultRateEntries
	}
	return &rates{address: newBuckets(address, entries), network: newBuckets(network, entries), names: maphash.MakeSeed(), base: now(), now: now}
}

// clock is nanoseconds since before the beginning, so that 0 is in the past.
func (r *rates) clock() int64 { return int64(r.now().Sub(r.base)) + 1 }

// take takes n tokens of the address and of its network, or none, and tells then how
// long it takes until there are enough. More than a whole bucket is taken as a whole one.
func (r *rates) take(addr netip.Addr, n int) (ok bool, retry time.Duration) {
	if r == nil || n <= 0 || !addr.IsValid() {
		return true, 0
	}
	now := r.clock()
	key := addressKey(addr)
	if retry := r.address.take(key, n, now); retry > 0 {
		return false, retry
	}
	if retry := r.network.take(networkKey(addr), n, now); retry > 0 {
		r.address.give(key, n, now)
		return false, retry
	}
	return true, 0
}

// give gives back what take took.
func (r *rates) give(addr netip.Addr, n int) {
	if r == nil || n <= 0 || !addr.IsValid() {
		return
	}
	now := r.clock()
	r.address.give(addressKey(addr), n, now)
	r.network.give(networkKey(addr), n, now)
}

// takeName takes a token of a name, in whatever case it is written, and tells whether there was
// one. Names and addresses are not to be kept in the same rates.
func (r *rates) takeName(name string) bool {
	if r == nil {
		return true
	}
	return r.address.take(maphash.String(r.names, strings.ToLower(name)), 1, r.clock()) <= 0
}

// untracked returns how often somebody was let through because there was no place to
// remember it: more entries are needed then.
func (r *rates) untracked() int64 {
	if r == nil {
		return 0
	}
	return r.address.missed() + r.network.missed()
}

// bucket is full again at the time full; its place is free from then on.
type bucket struct {
	key  uint64
	full int64
}

// buckets are those of one limit. Nil has no limit.
type buckets struct {
	sets      *sets[bucket]
	token     int64 // time that one takes to come back
	burst     int
	untracked atomic.Int64
}

func newBuckets(l rateLimit, entries int) *buckets {
	if l.count == 0 {
		return nil
	}
	l = l.withDefaults()
	return &buckets{sets: newSets[bucket](entries), token: max(int64(l.per)/int64(l.count), 1), burst: l.burst}
}

// cost is the time that n tokens take to come back.
func (b *buckets) cost(n int) int64 { return int64(min(n, b.burst)) * b.token }

// lack is how long a bucket must wait until it can give cost; not positive if it can now.
func (b *buckets) lack(full, cost, now int64) time.Duration {
	return time.Duration(max(full, now) + cost - now - b.cost(b.burst))
}

// take takes n tokens and returns 0, or returns how long they take to come.
func (b *buckets) take(key uint64, n int, now int64) time.Duration {
	if b == nil {
		return 0
	}
	cost := b.cost(n)
	set, mu := b.sets.of(key)
	mu.Lock()
	defer mu.Unlock()
	e := b.find(set, key, now)
	if e == nil {
		if e = b.room(set, now); e == nil {
			b.untracked.Add(1)
			return 0
		}
		*e = bucket{key: key, full: now}
	}
	if lack := b.lack(e.full, cost, now); lack > 0 {
		return lack
	}
	e.full += cost
	return 0
}

// give gives back what take took.
func (b *buckets) give(key uint64, n int, now int64) {
	if b == nil {
		return
	}
	set, mu := b.sets.of(key)
	mu.Lock()
	defer mu.Unlock()
	if e := b.find(set, key, now); e != nil {
		e.full -= b.cost(n)
	}
}

func (b *buckets) missed() int64 {
	if b == nil {
		return 0
	}
	return b.untracked.Load()
}

// find returns the bucket of key, nil if it is full.
func (b *buckets) find(set []bucket, key uint64, now int64) *bucket {
	for i := range set {
		if set[i].key == key && set[i].full > now {
			return &set[i]
		}
	}
	return nil
}

// room returns the place of the fullest bucket, nil if even that has not one token.
func (b *buckets) room(set []bucket, now int64) *bucket {
	fullest, least := 0, int64(math.MaxInt64)
	for i := range set {
		if set[i].full < least {
			fullest, least = i, set[i].full
		}
	}
	if b.lack(least, b.token, now) > 0 {
		return nil
	}
	return &set[fullest]
}
