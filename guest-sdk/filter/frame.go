package filter

import "github.com/penstock/penstock/guest-sdk/abi"

// frame.go reads the event frame that package abi draws. It trusts nothing in it: a
// field that points out of the frame is a field that is not there.

// frame is an event frame whose head and table are within b.
type frame struct {
	b []byte
	n int // fields
}

// parseFrame checks the head of the frame in b. hook is the one that the host named
// beside it; both must agree.
func parseFrame(b []byte, hook uint32) (frame, bool) {
	if len(b) < abi.FrameHead || u32(b[abi.OffMagic:]) != abi.FrameMagic || uint32(u16(b[abi.OffHook:])) != hook {
		return frame{}, false
	}
	length := u32(b[abi.OffLength:])
	n := int(u16(b[abi.OffFields:]))
	if uint64(length) > uint64(len(b)) || abi.FrameHead+n*abi.FrameEntry > int(length) {
		return frame{}, false
	}
	return frame{b[:length], n}, true
}

// field returns the payload of a field in the frame, without copying it.
func (f frame) field(id abi.Field) (p []byte, kind abi.Kind, ok bool) {
	for i := range f.n {
		e := f.b[abi.FrameHead+i*abi.FrameEntry:]
		if u16(e) != uint16(id) {
			continue
		}
		off, n := uint64(u32(e[abi.EntryOff:])), uint64(u32(e[abi.EntryLen:]))
		if off+n > uint64(len(f.b)) {
			return nil, 0, false
		}
		return f.b[off : off+n : off+n], abi.Kind(u16(e[abi.EntryKind:])), true
	}
	return nil, 0, false
}

// session, transaction, time and budget are of the head.
func (f frame) session() uint64     { return u64(f.b[abi.OffSession:]) }
func (f frame) transaction() uint64 { return u64(f.b[abi.OffTransaction:]) }
func (f frame) time() int64         { return int64(u64(f.b[abi.OffTime:])) }
func (f frame) budget() int64       { return int64(u64(f.b[abi.OffBudget:])) }

// list splits the payload of a list. It stops at an element that is cut short.
func list(p []byte) []string {
	var out []string
	for len(p) >= 4 {
		n := uint64(u32(p))
		if p = p[4:]; n > uint64(len(p)) {
			break
		}
		out = append(out, string(p[:n]))
		p = p[n:]
	}
	return out
}

func u16(b []byte) uint16 { return uint16(b[0]) | uint16(b[1])<<8 }

func u32(b []byte) uint32 {
	_ = b[3]
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func u64(b []byte) uint64 { return uint64(u32(b)) | uint64(u32(b[4:]))<<32 }
