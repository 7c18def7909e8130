package gateway

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync"
)

// sets.go: what is remembered about addresses, in memory that never grows.
//
// A table is an array of sets with a few places each. The hash of a key names its set; what
// is not in its set is nowhere. Thus to forget something for something else is a choice
// among a few, and whoever holds the table makes it: it knows what is worth least. The
// hash has a secret seed, so that nobody can choose addresses that share a set. Entries
// hold no pointers, so the garbage collector never looks at them, and places that were
// never used take no memory of the machine.

// ways is how many places a set has, lockCount how many locks the sets of a table share.
const (
	ways      = 8
	lockCount = 64
)

// sets is the table. It is safe for concurrent use as far as the locks are held.
type sets[E any] struct {
	seed    maphash.Seed
	mask    uint64
	entries []E
	locks   [lockCount]struct {
		sync.Mutex
		_ [56]byte // a lock has a cache line of its own
	}
}

// newSets returns a table with room for at least that many entries.
func newSets[E any](entries int) *sets[E] {
	n := uint64(1) << bits.Len(uint(max(entries, 1)-1)/ways)
	return &sets[E]{seed: maphash.MakeSeed(), mask: n - 1, entries: make([]E, n*ways)}
}

// of returns the set of key, and the lock that must be held while it is used.
func (s *sets[E]) of(key uint64) ([]E, *sync.Mutex) {
	i := maphash.Comparable(s.seed, key) & s.mask
	return s.entries[i*ways : (i+1)*ways : (i+1)*ways], &s.locks[i%lockCount].Mutex
}

// addressKey is what an address is remembered by: itself, and with IPv6 its network of 64
// bits. That is the least that a site has (RFC 6177), and has addresses without end.
// IPv4 takes the keys of ::/32, which is reserved (RFC 4291, Section 4).
func addressKey(a netip.Addr) uint64 {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}

// networkKey is the key of the network around an address: 24 bits of IPv4, 48 of IPv6, as
// is usual for the networks of one customer.
func networkKey(a netip.Addr) uint64 {
	if a.Unmap().Is4() {
		return addressKey(a) &^ 0xff
	}
	return addressKey(a) &^ 0xffff
}
