package wasmhost

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noReserve: address space that is never touched is not counted against the machine.
const noReserve = unix.MAP_NORESERVE

// maxMappings is how many mappings of memory the system allows a process.
func maxMappings() int {
	b, err := os.ReadFile("/proc/sys/vm/max_map_count")
	n, err2 := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || err2 != nil {
		return 65530 // the default
	}
	return n
}

// file is a sealed file in memory. The zero value is none; its number is kept one higher.
type file struct{ fd int }

func (f file) ok() bool { return f.fd != 0 }

// newFile returns a file that holds mem; none if the system does not give one. Pages of
// zeros are left out of it.
func newFile(mem []byte) file {
	fd, err := unix.MemfdCreate("filter", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // the last of these is from Linux 6.3
		fd, err = unix.MemfdCreate("filter", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return file{}
	}
	f := file{fd + 1}
	if err := f.fill(mem); err != nil {
		f.close()
		return file{}
	}
	return f
}

func (f file) fill(mem []byte) error {
	fd := f.fd - 1
	if err := unix.Ftruncate(fd, int64(len(mem))); err != nil {
		return err
	}
	page := os.Getpagesize()
	zeros := make([]byte, page)
	for off := 0; off < len(mem); {
		end := off
		for end < len(mem) && !bytes.Equal(mem[end:end+page], zeros) {
			end += page
		}
		for off < end {
			n, err := unix.Pwrite(fd, mem[off:end], int64(off))
			if err != nil {
				return err
			}
			off += n
		}
		off += page // of zeros, or beyond the end
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	return err
}

func (f file) read(b []byte) error {
	for off := 0; off < len(b); {
		n, err := unix.Pread(f.fd-1, b[off:], int64(off))
		if err != nil || n == 0 {
			return fmt.Errorf("its image cannot be read: %w", err)
		}
		off += n
	}
	return nil
}

func (f file) close() {
	if f.ok() {
		_ = unix.Close(f.fd - 1) // of memory: nothing can get lost
	}
}

// newMapped returns a memory that shares the image's pages until it writes to them.
func newMapped(im *image, limit int) (*memory, error) {
	all, err := unix.Mmap(-1, 0, limit, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|noReserve)
	if err != nil {
		return nil, fmt.Errorf("no address space for its memory: %w", err)
	}
	s := space{all: all, usable: im.size, image: true}
	if im.size > 0 {
		// Over the front of the range that is ours. Go's Munmap wants the whole range, which
		// it then gives back at once.
		_, err = unix.MmapPtr(im.file.fd-1, 0, unsafe.Pointer(&all[0]), uintptr(im.size),
			unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED|noReserve)
		if err != nil {
			s.destroy()
			return nil, fmt.Errorf("its image cannot be mapped: %w", err)
		}
	}
	return &memory{space: s, limit: limit, of: im}, nil
}

// giveBack drops what was written to the first size octets, which the image then shines
// through again.
func (s *space) giveBack(size int) error {
	return unix.Madvise(s.all[:size], unix.MADV_DONTNEED)
}
