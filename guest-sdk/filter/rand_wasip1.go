//go:build wasip1

package filter

import (
	"math/rand"
	"runtime"
)

// rand_wasip1.go: a filter starts once, and every session begins with a copy of its memory, in
// which the random state of package math/rand is the same. So it is seeded anew, at the first
// hook of each copy; the gateway lets Seed work (GODEBUG=randseednop=0). Seeding takes ten
// microseconds, so it is left out in programs that use no function of math/rand that needs
// it.

var (
	usesRand bool // set before memory is copied
	seeded   bool // false in the memory that is copied, since it is set at hooks alone
)

// seedRand seeds math/rand at the first hook of a copy.
func seedRand() {
	if seeded || !usesRand {
		return
	}
	seeded = true
	var b [8]byte
	if random(ptr(b[:]), 8) == 8 {
		//lint:ignore SA1019 there is no other way to change the state of the functions that have no Rand
		rand.Seed(int64(u64(b[:])))
	}
}

// lookForRand finds out whether the program has the function that all functions of math/rand
// call that have no Rand: the linker leaves out what nobody calls. In WebAssembly the program
// counter has the number of the function in its upper bits.
func lookForRand() {
	pc, _, _, ok := runtime.Caller(0)
	if !ok {
		usesRand = true // nobody knows
		return
	}
	const step = 1 << 16
	for _, by := range [...]uintptr{step, ^uintptr(step - 1)} {
		for at := pc; ; at += by {
			f := runtime.FuncForPC(at)
			if f == nil {
				break
			}
			if f.Name() == "math/rand.globalRand" {
				usesRand = true
				return
			}
		}
	}
}
