package guest

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"strings"
	"sync"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/internal/match"
)

// scan.go: work on content that the host does in the guest's stead, since it is faster at it
// and need not copy the content into the guest: looking for patterns, and checksums.

// patterns is a set of patterns and what it was made of.
type patterns struct {
	kind int32
	list string
	set  *match.Set
}

// maxMatchMemory is the most that all sets of a filter may take, in octets.
const maxMatchMemory = 16 << 20

// buildCost is what a pattern's octet costs when its set is made, in octets.
const buildCost = 64

// MatchSet implements Host.
func (g *Env) MatchSet(kind int32, list []byte) int32 {
	if !g.at(abi.DuringInit) {
		return int32(abi.EPHASE)
	}
	if len(list) > abi.MaxMatchText || g.sets >= abi.MaxMatchSets {
		return int32(abi.ELIMIT)
	}
	// A guest that starts again, with the Setup of its first start, gets the same sets.
	if g.sets < len(g.setup.sets) {
		if have := g.setup.sets[g.sets]; have.kind != kind || have.list != string(list) {
			return int32(abi.EINVAL)
		}
		g.sets++
		return int32(g.sets - 1)
	}
	if !g.charge(buildCost * int64(len(list))) {
		return int32(abi.ETIME)
	}
	texts, ok := elements(list)
	if !ok {
		return int32(abi.EINVAL)
	}
	set, err := match.New(match.Kind(kind), texts)
	if err != nil {
		g.Log(int32(abi.LevelError), []byte("match_set: "+strings.TrimPrefix(err.Error(), "match: ")))
		if errors.Is(err, match.ErrLarge) {
			return int32(abi.ELIMIT)
		}
		return int32(abi.EINVAL)
	}
	memory := set.Memory()
	for _, have := range g.setup.sets {
		memory += have.set.Memory()
	}
	if memory > maxMatchMemory {
		return int32(abi.ELIMIT)
	}
	g.setup.sets = append(g.setup.sets, patterns{kind, string(list), set})
	g.sets++
	return int32(g.sets - 1)
}

// elements reads a list as it stands in a frame.
func elements(b []byte) (out []string, ok bool) {
	for len(b) > 0 {
		if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
			return nil, false
		}
		n := binary.LittleEndian.Uint32(b)
		out = append(out, string(b[4:4+n]))
		b = b[4+n:]
	}
	return out, true
}

// scannable returns what part stands for in match and hash.
func (g *Env) scannable(part int32) (io.ReaderAt, abi.Errno) {
	switch part {
	case abi.ScanBody:
		body, ok := g.body()
		if !ok {
			return nil, abi.EPHASE
		}
		if !g.may(abi.CapBodyRead) {
			return nil, abi.EPERM
		}
		return body, 0
	case abi.ScanHeader:
		if _, ok := g.body(); !ok {
			return nil, abi.EPHASE
		}
		raw, no := g.rawHeader()
		if no != 0 {
			return nil, no
		}
		return raw, 0
	}
	r, _, no := g.content(part, int32(abi.PartDecoded))
	return r, no
}

// scanBuffers are for scan.
var scanBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// scan gives the content of r from off on to f, piece by piece, until f has enough.
func scan(r io.ReaderAt, off int64, f func(piece []byte, last bool) (more bool)) error {
	buf := scanBuffers.Get().(*[64 << 10]byte)
	defer scanBuffers.Put(buf)
	for {
		n, err := r.ReadAt(buf[:], off)
		if err != nil && err != io.EOF {
			return err
		}
		if !f(buf[:n], err == io.EOF) || err == io.EOF {
			return nil
		}
		off += int64(n)
	}
}

// hitCost is what room for a pattern's hit costs, in octets.
const hitCost = 64

// Match implements Host.
func (g *Env) Match(set, part int32, off int64, buf []byte) int32 {
	r, no := g.scannable(part)
	switch {
	case no != 0:
		return int32(no)
	case set < 0 || int(set) >= len(g.setup.sets):
		return int32(abi.ENOENT)
	case off < 0:
		return int32(abi.EINVAL)
	}
	if !g.charge(hitCost * int64(g.setup.sets[set].set.Len())) {
		return int32(abi.ETIME)
	}
	ok := true
	finder := g.setup.sets[set].set.Finder(off, func(n int64) bool {
		ok = ok && g.charge(n)
		return ok
	})
	switch err := scan(r, off, finder.Next); {
	case !ok:
		return int32(abi.ETIME)
	case err != nil:
		return int32(readErrno(err))
	}
	hits := finder.Hits()
	for i, h := range hits {
		if len(buf) < (i+1)*abi.HitSize {
			break
		}
		b := buf[i*abi.HitSize:]
		binary.LittleEndian.PutUint64(b, uint64(h.Off))
		binary.LittleEndian.PutUint32(b[abi.HitPattern:], uint32(h.Pattern))
		binary.LittleEndian.PutUint32(b[abi.HitLen:], uint32(h.Len))
	}
	return int32(len(hits))
}

// hashCost is what an octet costs that goes into a checksum, in octets.
const hashCost = 2

// newHash returns a checksum; nil if alg is none. MD5 and SHA-1 are for looking up what is
// known by them; they prove nothing.
func newHash(alg int32) hash.Hash {
	switch abi.HashAlg(alg) {
	case abi.HashSHA256:
		return sha256.New()
	case abi.HashSHA1:
		return sha1.New()
	case abi.HashMD5:
		return md5.New()
	}
	return nil
}

// Hash implements Host.
func (g *Env) Hash(alg, part int32, buf []byte) int32 {
	r, no := g.scannable(part)
	if no != 0 {
		return int32(no)
	}
	h := newHash(alg)
	if h == nil {
		return int32(abi.EINVAL)
	}
	ok := true
	err := scan(r, 0, func(piece []byte, _ bool) bool {
		if ok = g.charge(hashCost * int64(len(piece))); ok {
			h.Write(piece)
		}
		return ok
	})
	switch {
	case !ok:
		return int32(abi.ETIME)
	case err != nil:
		return int32(readErrno(err))
	}
	return fill(buf, h.Sum(nil))
}
