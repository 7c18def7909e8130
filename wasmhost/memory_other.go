//go:build !unix

package wasmhost

// space is the memory on systems without mmap: a slice of Go's heap, which may move.
type space struct{ b []byte }

func newMemory(limit int) (*memory, error) { return &memory{limit: limit}, nil }

func (s *space) mapped() bool { return false }

func (s *space) provide(size int) bool {
	if more := size - len(s.b); more > 0 {
		s.b = append(s.b, make([]byte, more)...)
	}
	return true
}

func (s *space) octets(size int) []byte { return s.b[:size:size] }

func (s *space) destroy() { s.b = nil }
