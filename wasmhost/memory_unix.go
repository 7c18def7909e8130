//go:build unix

package wasmhost

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// memory is a guest's linear memory: address space for all it may ever have, of which
// only touched pages cost anything. It grows without moving.
type memory struct{ all []byte }

func newMemory(limit uint64) (*memory, error) {
	b, err := unix.Mmap(-1, 0, int(limit), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|noReserve)
	if err != nil {
		return nil, fmt.Errorf("no address space for its memory: %w", err)
	}
	return &memory{b}, nil
}

// Reallocate gives the guest size octets; nil if that is more than it may have.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	return m.all[:size:len(m.all)]
}

// Free is what wazero calls when it closes a module, which may be in the middle of a
// call. Nothing is freed then: a view of the memory that is still in use would end the
// process. See release.
func (m *memory) Free() {}

// release gives the address space back. No view of the memory may be used any more.
func (m *memory) release() {
	if m.all != nil {
		_ = unix.Munmap(m.all) // of a range that Mmap gave: it cannot fail
		m.all = nil
	}
}
