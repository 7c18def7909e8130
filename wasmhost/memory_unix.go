//go:build unix

package wasmhost

import "golang.org/x/sys/unix"

// memory is a guest's linear memory: address space for all it may ever have, of which
// only touched pages cost anything. It grows without moving.
type memory struct{ all []byte }

func newMemory(limit uint64) *memory {
	b, err := unix.Mmap(-1, 0, int(limit), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|noReserve)
	if err != nil {
		return &memory{}
	}
	return &memory{all: b}
}

// Reallocate gives the guest size octets; nil if that is more than it may have.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	return m.all[:size:len(m.all)]
}

// Free gives the address space back. No view of the memory may be used any more.
func (m *memory) Free() {
	if m.all != nil {
		_ = unix.Munmap(m.all) // of a range that Mmap gave: it cannot fail
		m.all = nil
	}
}
