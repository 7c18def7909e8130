package tck

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// frame.go: what is in an event frame.

// checkFrame says what is wrong with a frame of a hook, of which b has the first octets.
func checkFrame(h abi.Hook, b []byte) string {
	le := binary.LittleEndian
	hook, fields, length := abi.Hook(le.Uint16(b[abi.OffHook:])), int(le.Uint16(b[abi.OffFields:])), le.Uint32(b[abi.OffLength:])
	switch {
	case le.Uint32(b[abi.OffMagic:]) != abi.FrameMagic:
		return fmt.Sprintf("it begins with % x", b[:4])
	case hook != h:
		return fmt.Sprintf("it is of hook %d", hook)
	case le.Uint64(b[abi.OffSession:]) != 7:
		return "it has another session's number"
	case int(length) < abi.FrameHead+fields*abi.FrameEntry || int(length) > len(b):
		return fmt.Sprintf("%d fields in %d octets", fields, length)
	}
	return checkEntries(h, b[:length], fields)
}

// checkEntries looks at the entries: known fields of the hook, each in its kind, none
// outside of the frame.
func checkEntries(h abi.Hook, b []byte, n int) string {
	kinds := make(map[abi.Field]abi.Kind)
	for _, f := range abi.FieldTable() {
		kinds[f.Field] = f.Kind
	}
	table := abi.HookTable()
	of := table[slices.IndexFunc(table, func(i abi.HookInfo) bool { return i.Hook == h })].Fields
	for i := range n {
		e := b[abi.FrameHead+i*abi.FrameEntry:]
		field, kind := abi.Field(binary.LittleEndian.Uint16(e)), abi.Kind(binary.LittleEndian.Uint16(e[abi.EntryKind:]))
		off, size := binary.LittleEndian.Uint32(e[abi.EntryOff:]), binary.LittleEndian.Uint32(e[abi.EntryLen:])
		switch {
		case !slices.Contains(of, field):
			return fmt.Sprintf("field %d is not one of the hook's", field)
		case kinds[field] != kind:
			return fmt.Sprintf("field %d is of kind %d, want %d", field, kind, kinds[field])
		case uint64(off)+uint64(size) > uint64(len(b)) || off < uint32(abi.FrameHead+n*abi.FrameEntry):
			return fmt.Sprintf("field %d is at %d, %d octets long, in a frame of %d", field, off, size, len(b))
		case kind == abi.KindInt && size != 8:
			return fmt.Sprintf("field %d, a number, has %d octets", field, size)
		}
	}
	return ""
}
