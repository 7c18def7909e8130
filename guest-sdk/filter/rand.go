package filter

import (
	"math/rand/v2"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// Rand returns a generator of random numbers that no other session has, seeded by the
// gateway.
//
// Every session begins with a copy of the program's memory, and random state is part of it.
// The functions of package math/rand are seeded anew for each session. Those of math/rand/v2
// that have no Rand cannot be: they give the same numbers in every session, and so does the
// order in which a map is gone through. Package crypto/rand and [Event.Random] ask the gateway
// and are always fresh.
func (e Event) Rand() *rand.Rand {
	var seed [32]byte
	if n := e.call.host.Random(seed[:]); n < 0 {
		panic("filter: no random octets: " + abi.Errno(n).Error())
	}
	return rand.New(rand.NewChaCha8(seed))
}
