package wasmhost

// memory.go: a guest's linear memory, and the image of one that has booted.
//
// Where the system can, an image is a file in memory that nobody can change any more, and
// a memory is a private mapping of it: pages that the guest only reads are shared by all
// instances, pages that it writes become its own, and giving these back makes the memory
// what it was. Elsewhere a memory is a copy.

const (
	pageSize = 64 << 10 // of WebAssembly
	// copyBelow is the size up to which copying the whole image is cheaper than to give
	// back the pages that were written and to fault them in again.
	copyBelow = 512 << 10
)

// image is a memory as it was after the start of the guest. Immutable.
type image struct {
	size   int
	octets []byte // what it holds, if that is little or if there is no file
	file   file   // of it, if there is one
}

// newImage keeps what mem holds.
func newImage(mem []byte) *image {
	im := &image{size: len(mem), file: newFile(mem)}
	if im.size <= copyBelow || !im.file.ok() {
		im.octets = append([]byte(nil), mem...)
	}
	return im
}

// copyTo makes b, as long as the image, what the image holds.
func (im *image) copyTo(b []byte) error {
	if im.octets != nil {
		copy(b, im.octets)
		return nil
	}
	return im.file.read(b)
}

// release gives the image back. Memories that are mapped from it stay what they are.
func (im *image) release() { im.file.close() }

// memory is the linear memory of one instance. It is for one goroutine at a time.
type memory struct {
	space          // the address space it has
	limit   int    // the most octets it may have
	size    int    // those it has
	of      *image // that it began as; nil for one that was empty
	refused bool   // the guest was refused more
}

// Reallocate gives the guest size octets; nil if that is more than it may have. It is
// called by wazero, when an instance is made and when the guest asks.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(m.limit) || !m.provide(int(size)) {
		m.refused = true
		return nil
	}
	m.size = max(m.size, int(size))
	return m.octets(int(size))
}

// Free is what wazero calls when it closes a module. Nothing is freed then: see destroy.
func (m *memory) Free() {}

// grew tells whether the guest has more than it began with: memory cannot shrink.
func (m *memory) grew() bool { return m.of == nil || m.size > m.of.size }

// reset makes the memory what it was in the beginning, unless it grew.
func (m *memory) reset() error {
	m.refused = false
	if m.of.octets == nil && m.mapped() {
		return m.giveBack(m.of.size)
	}
	return m.of.copyTo(m.octets(m.of.size))
}
