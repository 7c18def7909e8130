package store

import (
	"encoding/base32"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"time"
)

// id.go: names of messages. An ID is 16 octets in base32: seven of microseconds since 1970,
// which order the messages of a node, and nine of chance, which keep nodes apart.

// idText is base32 whose texts sort as what they stand for (RFC 4648, Section 7).
var idText = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// idLen is the length of an ID as text.
const idLen = 26

// IDs makes IDs, each larger than the one before, also when the clock is set back. The zero
// value is ready. It is safe for concurrent use.
type IDs struct {
	mu   sync.Mutex
	last uint64 // guarded by mu
}

// Next returns an ID for a message that arrives now.
func (g *IDs) Next(now time.Time) ID {
	g.mu.Lock()
	g.last = max(uint64(now.UnixMicro())&(1<<56-1), g.last+1)
	micros := g.last
	g.mu.Unlock()

	// The generator is ChaCha8: an ID is no secret, but nobody can foresee it either.
	var b [17]byte
	binary.BigEndian.PutUint64(b[:], micros)
	binary.BigEndian.PutUint64(b[8:], rand.Uint64())
	b[16] = byte(rand.Uint32())
	return IDFromBytes([16]byte(b[1:]))
}

// After makes the following IDs larger than id.
func (g *IDs) After(id ID) {
	b, ok := id.Bytes()
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = max(g.last, binary.BigEndian.Uint64(b[:])>>8)
}

// IDFromBytes returns the ID whose octets are b.
func IDFromBytes(b [16]byte) ID {
	var text [idLen]byte
	idText.Encode(text[:], b[:])
	return ID(text[:])
}

// Bytes returns the 16 octets of an ID, in the same order as IDs themselves, or false if it
// is none.
func (id ID) Bytes() (b [16]byte, ok bool) {
	if len(id) != idLen {
		return b, false
	}
	if _, err := idText.Decode(b[:], []byte(id)); err != nil {
		return [16]byte{}, false
	}
	// The last character has two bits more than there are: one spelling alone counts.
	return b, IDFromBytes(b) == id
}

// Time returns when the message arrived, as its ID tells; zero if it is none.
func (id ID) Time() time.Time {
	b, ok := id.Bytes()
	if !ok {
		return time.Time{}
	}
	return time.UnixMicro(int64(binary.BigEndian.Uint64(b[:]) >> 8)).UTC()
}
