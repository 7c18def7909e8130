package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/penstock/penstock/store"
)

// bodies.go: contents in files of their own. A file is blocks of 64 KiB, the last shorter,
// each followed by the CRC-32C of the message's ID, the block's number, and the block:
//
//	+----------------+-------+----------------+-------+ … +-----------+-------+
//	| 65536 octets   | crc32 | 65536 octets   | crc32 |   | the rest  | crc32 |
//	+----------------+-------+----------------+-------+ … +-----------+-------+
//
// so that any part can be read and checked alone, and no block passes for another. How many
// octets there are is known from the message's record.

const (
	blockLen = 64 << 10
	slotLen  = blockLen + sumLen
	// maxInline is the largest content that goes into the database.
	maxInline = 256 << 10
	// idLetters are what an ID ends with: contents are spread over folders by them. Of the
	// last character's five bits two are always zero.
	idLetters = "048cgkos"
)

// bodyPath is where the content of a message is, and in which folder.
func (e *engine) bodyPath(id store.ID) (name, folder string) {
	folder = e.path(bodiesName, string(id[len(id)-1:]))
	return e.o.FS.PathJoin(folder, string(id)), folder
}

// blockSum is the checksum of a block.
func blockSum(id store.ID, number int64, block []byte) uint32 {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(number))
	sum := crc32.Checksum([]byte(id), castagnoli)
	return crc32.Update(crc32.Update(sum, castagnoli, n[:]), castagnoli, block)
}

// bodyWriter writes a content to its file as it comes.
type bodyWriter struct {
	e      *engine
	id     store.ID
	f      vfs.File
	slot   []byte // the block that is being filled
	blocks int64
}

func (e *engine) createBody(id store.ID) (*bodyWriter, error) {
	name, _ := e.bodyPath(id)
	f, err := e.o.FS.Create(name, "penstock-body")
	if err != nil {
		return nil, diskError("create a file for content", err)
	}
	return &bodyWriter{e: e, id: id, f: f, slot: make([]byte, 0, slotLen)}, nil
}

// diskError names what was being done, and tells a full disk from a broken one.
func diskError(what string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %s: %w", store.ErrFull, what, err)
	}
	return fmt.Errorf("embedded: %s: %w", what, err)
}

func (w *bodyWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), blockLen-len(w.slot))
		w.slot = append(w.slot, p[:n]...)
		p = p[n:]
		if len(w.slot) == blockLen {
			if err := w.flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

func (w *bodyWriter) flush() error {
	w.slot = binary.LittleEndian.AppendUint32(w.slot, blockSum(w.id, w.blocks, w.slot))
	n, err := w.f.Write(w.slot)
	if err == nil && n < len(w.slot) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return diskError("write content", err)
	}
	w.slot = w.slot[:0]
	w.blocks++
	return nil
}

// finish makes the file safe, with its name.
func (w *bodyWriter) finish() error {
	if len(w.slot) > 0 {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.e.syncs.Add(1)
	err := w.f.Sync()
	f := w.f
	w.f = nil
	if err = errors.Join(err, f.Close()); err != nil {
		return diskError("sync content", err)
	}
	_, folder := w.e.bodyPath(w.id)
	if err := w.e.syncDir(folder); err != nil {
		return diskError("sync the folder of content", err)
	}
	return nil
}

// remove closes and removes the file.
func (w *bodyWriter) remove() {
	if w.f != nil {
		_ = w.f.Close() // it goes away
		w.f = nil
	}
	w.e.removeBody(w.id)
}

// removeBody removes a content. What cannot be removed is swept later.
func (e *engine) removeBody(id store.ID) {
	name, _ := e.bodyPath(id)
	if err := e.o.FS.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		e.o.Log.Warn("store: remove content", "msg", id, "err", err)
	}
}

// body reads a content from its file.
type body struct {
	id   store.ID
	f    vfs.File
	size int64
	// spoilt is called at the first block that does not fit its checksum.
	spoilt func(error)
}

// openBody opens a content, whose file must be as long as its record says.
func (e *engine) openBody(id store.ID, size int64, spoilt func(error)) (*body, error) {
	name, _ := e.bodyPath(id)
	f, err := e.o.FS.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: the file of the content is missing", store.ErrCorrupt)
	} else if err != nil {
		return nil, diskError("open content", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(diskError("stat content", err), f.Close())
	}
	if want := size + (size+blockLen-1)/blockLen*sumLen; info.Size() != want {
		err := fmt.Errorf("%w: the file of the content has %d octets of %d", store.ErrCorrupt, info.Size(), want)
		return nil, errors.Join(err, f.Close())
	}
	return &body{id: id, f: f, size: size, spoilt: spoilt}, nil
}

func (b *body) Size() int64  { return b.size }
func (b *body) Close() error { return b.f.Close() }

// block reads and checks a block into slot.
func (b *body) block(number int64, slot []byte) ([]byte, error) {
	n := min(blockLen, b.size-number*blockLen)
	slot = slot[:n+sumLen]
	if _, err := b.f.ReadAt(slot, number*slotLen); err != nil && err != io.EOF {
		return nil, diskError("read content", err)
	}
	if binary.LittleEndian.Uint32(slot[n:]) != blockSum(b.id, number, slot[:n]) {
		err := fmt.Errorf("%w: checksum of block %d of the content", store.ErrCorrupt, number)
		b.spoilt(err)
		return nil, err
	}
	return slot[:n], nil
}

func (b *body) WriteTo(w io.Writer) (total int64, err error) {
	slot := make([]byte, slotLen)
	for total < b.size {
		block, err := b.block(total/blockLen, slot)
		if err != nil {
			return total, err
		}
		n, err := w.Write(block)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (b *body) ReadAt(p []byte, off int64) (total int, err error) {
	if off < 0 {
		return 0, errors.New("embedded: read before the content")
	}
	var slot []byte
	for len(p) > 0 {
		if off >= b.size {
			return total, io.EOF
		}
		if slot == nil {
			slot = make([]byte, slotLen)
		}
		block, err := b.block(off/blockLen, slot)
		if err != nil {
			return total, err
		}
		n := copy(p, block[off%blockLen:])
		p, off, total = p[n:], off+int64(n), total+n
	}
	return total, nil
}

// inline is a content that was in the database.
type inline []byte

func (c inline) Size() int64  { return int64(len(c)) }
func (c inline) Close() error { return nil }

func (c inline) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c)
	return int64(n), err
}

func (c inline) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(c)) {
		off = int64(len(c))
	}
	n := copy(p, c[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
