//go:build !unix

package wasmhost

// memory is a guest's linear memory on systems without mmap: a slice of Go's heap.
type memory struct {
	limit uint64
	b     []byte
}

func newMemory(limit uint64) (*memory, error) { return &memory{limit: limit}, nil }

// Reallocate gives the guest size octets; nil if that is more than it may have.
func (m *memory) Reallocate(size uint64) []byte {
	if size > m.limit {
		return nil
	}
	if more := int(size) - len(m.b); more > 0 {
		m.b = append(m.b, make([]byte, more)...)
	}
	return m.b[:size]
}

// Free does nothing; see the other memory.
func (m *memory) Free() {}

// release forgets the memory.
func (m *memory) release() { m.b = nil }
