package wasmhost

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/penstock/penstock/wasmhost/meter"
)

// kept.go keeps beside compiled code what was given to the compiler: what package meter
// made of a module that was found good. To read and rewrite a module takes longer than to
// load its code, and is the same at each start.
//
//	CacheDir/checked/ID    CRC-32C of the rest, 4 octets | length of the binary, 4 octets |
//	                       the binary | gob of the rest of meter.Rewritten
//
// ID is a digest of the module and of this build of the program: what another build found
// good, or made of it, is of no interest. That a file is there also says that wazero's cache
// has had the code, whose files' names cannot be told from outside. Like the code, these
// files are trusted as the program itself is; the sum is there for damage.

const keptFolder = "checked"

// moduleID tells apart the modules that a build was given.
type moduleID [sha256.Size]byte

func (r *Runtime) idOf(wasm []byte) (id moduleID) {
	h := sha256.New()
	h.Write([]byte(r.build))
	h.Write([]byte{0})
	h.Write(wasm)
	h.Sum(id[:0])
	return id
}

// keptFile is where a module's is; empty if nothing is kept.
func (r *Runtime) keptFile(id moduleID) string {
	if r.opts.CacheDir == "" || r.build == "" {
		return ""
	}
	return filepath.Join(r.opts.CacheDir, keptFolder, hex.EncodeToString(id[:]))
}

// recall returns what is kept of a module; nil for nothing. What is damaged is nothing.
func (r *Runtime) recall(id moduleID) *meter.Rewritten {
	file := r.keptFile(id)
	if file == "" {
		return nil
	}
	m, err := readKept(file)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return m
	}
	r.opts.Log.Warn("what was kept of a filter is damaged on disk, checking it again", "file", file, "err", err)
	if err := os.Remove(file); err != nil {
		r.opts.Log.Warn("what is damaged could not be removed", "file", file, "err", err)
	}
	return nil
}

func readKept(file string) (*meter.Rewritten, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(data) < keptHead || le.Uint32(data) != checksum(data[4:]) {
		return nil, errors.New("its sum is another")
	}
	wasm, size := data[keptHead:], int64(le.Uint32(data[4:]))
	if size > int64(len(wasm)) {
		return nil, errors.New("it is cut off")
	}
	m := new(meter.Rewritten)
	err = gob.NewDecoder(bytes.NewReader(wasm[size:])).Decode(m)
	m.Wasm = wasm[:size:size] // where it is: it is large
	return m, err
}

// keptHead is what stands before the binary.
const keptHead = 8

func checksum(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// keepModule keeps what was made of a module that was found good, unless it is there. If that
// fails it is made again after the next start.
func (r *Runtime) keepModule(id moduleID, m *meter.Rewritten) {
	file := r.keptFile(id)
	if _, err := os.Stat(file); file == "" || err == nil {
		return
	}
	var data bytes.Buffer
	data.Write(make([]byte, keptHead))
	data.Write(m.Wasm)
	rest := *m
	rest.Wasm = nil
	err := gob.NewEncoder(&data).Encode(&rest)
	if err == nil {
		binary.LittleEndian.PutUint32(data.Bytes()[4:], uint32(len(m.Wasm)))
		binary.LittleEndian.PutUint32(data.Bytes(), checksum(data.Bytes()[4:]))
		err = replaceFile(file, data.Bytes())
	}
	if err != nil {
		r.opts.Log.Warn("what was made of a filter could not be kept", "file", file, "err", err)
	}
}

// replaceFile writes a file whole or not at all; who dies in between leaves another behind.
func replaceFile(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
