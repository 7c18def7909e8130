//go:build unix

package wasmhost

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// space is the address space of a memory: room for all it may ever have, so that it grows
// without moving. Only pages that were touched cost anything.
type space struct {
	all    []byte
	usable int  // octets from the front that can be touched
	image  bool // the front is mapped from an image's file
}

// newMemory returns an empty memory.
func newMemory(limit int) (*memory, error) {
	// Readable and writable as a whole: neighbours of that kind are one mapping to the
	// system, which has a limit on their number.
	b, err := unix.Mmap(-1, 0, limit, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|noReserve)
	if err != nil {
		return nil, fmt.Errorf("no address space for its memory: %w", err)
	}
	return &memory{space: space{all: b, usable: limit}, limit: limit}, nil
}

// mapped tells whether the memory shares pages with its image.
func (s *space) mapped() bool { return s.image }

// provide makes size octets usable.
func (s *space) provide(size int) bool {
	if size <= s.usable {
		return true
	}
	if size > len(s.all) || unix.Mprotect(s.all[s.usable:size], unix.PROT_READ|unix.PROT_WRITE) != nil {
		return false
	}
	s.usable = size
	return true
}

func (s *space) octets(size int) []byte { return s.all[:size:size] }

// destroy gives the address space back. No view of the memory may be used any more.
func (s *space) destroy() {
	if s.all != nil {
		_ = unix.Munmap(s.all) // of a range that Mmap gave: it cannot fail
		s.all = nil
	}
}
