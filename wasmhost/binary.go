package wasmhost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// binary.go reads the binary format as far as it must be trusted before a compiler sees
// it. The format begins each list with its length, and a decoder that believes it
// allocates what a module of forty octets asks for: a function with four thousand million
// locals is as short as that. So every count is held against a limit and against the
// octets that are left. What instructions do is the compiler's to check.
//
// It also bounds what an instance costs outside of its linear memory (tables, globals,
// imports), and takes out custom sections: debug information, which is a format of its
// own to be attacked through, and names of locals.
//
// WebAssembly Core Specification 2.0, Section 5.5.

// Limits of a module's parts. Compilers stay far below them.
const (
	maxTypes      = 16 << 10
	maxParams     = 256 // of one function type, and results
	maxImports    = 1000
	maxFunctions  = 128 << 10
	maxTable      = 128 << 10 // entries of the table
	maxGlobals    = 8 << 10
	maxExports    = 16 << 10
	maxElements   = 128 << 10 // entries of all element segments
	maxSegments   = 64 << 10
	maxLocals     = 4 << 10
	maxCode       = 1 << 20 // octets of one function
	maxNameLength = 1 << 10 // of anything that has a name
)

// Numbers of the sections. Section 5.5.2.
const (
	secCustom, secType, secImport, secFunction, secTable, secMemory = 0, 1, 2, 3, 4, 5
	secGlobal, secExport, secStart, secElement, secCode, secData    = 6, 7, 8, 9, 10, 11
	secDataCount                                                    = 12
)

const (
	sectionName     = "name"
	sectionManifest = "mg1.manifest"
)

// reader takes the binary format apart. The first thing that goes wrong stays in err,
// and from then on it reads zeros; loops must look at err.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.b = nil
}

// take returns the next n octets.
func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(len(r.b)) {
		r.fail("it ends in the middle of something")
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// u32 reads an unsigned number in LEB128. Section 5.2.2: at most 5 octets, and no bit
// beyond the 32nd.
func (r *reader) u32() uint32 {
	v, n := binary.Uvarint(r.b[:min(len(r.b), 5)])
	if n <= 0 || v > 1<<32-1 {
		r.fail("a number is broken")
		return 0
	}
	r.b = r.b[n:]
	return uint32(v)
}

// skipLEB skips a number of any kind.
func (r *reader) skipLEB() {
	for range 10 {
		if r.byte()&0x80 == 0 {
			return
		}
	}
	r.fail("a number is broken")
}

// count reads the length of a list, each element of which has size octets at least.
func (r *reader) count(what string, limit, size int) int {
	n := r.u32()
	if n > uint32(limit) {
		r.fail("%d %s, the most is %d", n, what, limit)
		return 0
	}
	if int(n)*size > len(r.b) {
		r.fail("%d %s in %d octets", n, what, len(r.b))
		return 0
	}
	return int(n)
}

func (r *reader) name() string {
	n := r.u32()
	if n > maxNameLength {
		r.fail("a name of %d octets, the most is %d", n, maxNameLength)
		return ""
	}
	return string(r.take(n))
}

func (r *reader) limits() (low uint32) {
	flag := r.byte()
	low = r.u32()
	switch flag {
	case 0:
	case 1:
		r.u32()
	default:
		r.fail("limits of kind %d", flag)
	}
	return low
}

// constant skips a constant expression. Section 3.3.10.
func (r *reader) constant() {
	for r.err == nil {
		switch op := r.byte(); op {
		case 0x0b: // end
			return
		case 0x41, 0x42, 0x23, 0xd2: // i32.const, i64.const, global.get, ref.func
			r.skipLEB()
		case 0x43:
			r.take(4)
		case 0x44:
			r.take(8)
		case 0xd0: // ref.null
			r.byte()
		case 0xfd: // v128.const
			r.skipLEB()
			r.take(16)
		default:
			r.fail("opcode %#x in a constant expression", op)
		}
	}
}

// outside is an import that is not a function.
type outside struct{ kind, name string }

// shape is what screen found in a module.
type shape struct {
	wasm     []byte // the module without the custom sections that nobody needs
	outside  []outside
	reserved []string // exports whose names are not the guest's to give
}

// screen checks the outer form of a module.
func screen(wasm []byte) (shape, error) {
	r := &reader{b: wasm[8:]}
	s := shape{wasm: append(make([]byte, 0, len(wasm)), wasm[:8]...)}
	for len(r.b) > 0 && r.err == nil {
		id := r.byte()
		body := &reader{b: r.take(r.u32())}
		if r.err != nil {
			break
		}
		raw := body.b
		switch {
		case id == secCustom:
			raw = customSection(body)
		case id > secDataCount:
			body.fail("unknown section")
		default:
			s.section(id, body)
			if body.err == nil && len(body.b) > 0 {
				body.fail("%d octets too many", len(body.b))
			}
		}
		if body.err != nil {
			return s, fmt.Errorf("section %d: %w", id, body.err)
		}
		if raw != nil {
			s.wasm = append(binary.AppendUvarint(append(s.wasm, id), uint64(len(raw))), raw...)
		}
	}
	return s, r.err
}

func (s *shape) section(id byte, r *reader) {
	switch id {
	case secType:
		list(r, "types", maxTypes, 3, functionType)
	case secImport:
		list(r, "imports", maxImports, 4, s.importEntry)
	case secFunction:
		list(r, "functions", maxFunctions, 1, func(r *reader) { r.u32() })
	case secTable:
		list(r, "tables", 1, 3, table)
	case secMemory:
		list(r, "memories", 1, 2, func(r *reader) { r.limits() })
	case secGlobal:
		list(r, "globals", maxGlobals, 4, func(r *reader) { r.take(2); r.constant() })
	case secExport:
		list(r, "exports", maxExports, 3, s.exportEntry)
	case secStart, secDataCount:
		r.u32()
	case secElement:
		elements(r)
	case secCode:
		list(r, "functions", maxFunctions, 3, code)
	case secData:
		list(r, "data segments", maxSegments, 2, data)
	}
}

// list reads a list with one.
func list(r *reader, what string, limit, size int, one func(*reader)) {
	for range r.count(what, limit, size) {
		if r.err != nil {
			return
		}
		one(r)
	}
}

func functionType(r *reader) {
	if form := r.byte(); form != 0x60 && r.err == nil {
		r.fail("a type of form %#x, want that of functions", form)
	}
	r.take(uint32(r.count("parameters", maxParams, 1)))
	r.take(uint32(r.count("results", maxParams, 1)))
}

func (s *shape) importEntry(r *reader) {
	name := r.name() + "." + r.name()
	kind := ""
	switch k := r.byte(); k {
	case 0:
		r.u32()
	case 1:
		r.byte()
		r.limits()
		kind = "table"
	case 2:
		r.limits()
		kind = "memory"
	case 3:
		r.take(2)
		kind = "global"
	default:
		r.fail("import %q of kind %d", name, k)
	}
	if kind != "" {
		s.outside = append(s.outside, outside{kind, name})
	}
}

func (s *shape) exportEntry(r *reader) {
	name := r.name()
	r.byte()
	r.u32()
	if strings.HasPrefix(name, abi.ReservedPrefix) && len(s.reserved) < maxFaults {
		s.reserved = append(s.reserved, name)
	}
}

func table(r *reader) {
	if t := r.byte(); t != 0x70 && r.err == nil {
		r.fail("a table of type %#x, want functions", t)
	}
	if n := r.limits(); n > maxTable {
		r.fail("a table of %d entries, the most is %d", n, maxTable)
	}
}

// elements reads the segments that fill the table. Section 5.5.12: bit 0 of the flags
// says that it is not active, bit 1 that it names its table or kind, bit 2 that its
// entries are expressions.
func elements(r *reader) {
	left := maxElements
	list(r, "element segments", maxSegments, 2, func(r *reader) {
		flags := r.u32()
		if flags > 7 {
			r.fail("an element segment of kind %d", flags)
		}
		if flags&3 == 2 {
			r.u32()
		}
		if flags&1 == 0 {
			r.constant()
		}
		if flags&3 != 0 {
			r.byte()
		}
		one := func(r *reader) { r.u32() }
		if flags&4 != 0 {
			one = (*reader).constant
		}
		n := r.count("elements", left, 1)
		left -= n
		for i := 0; i < n && r.err == nil; i++ {
			one(r)
		}
	})
}

func code(r *reader) {
	size := r.u32()
	if size > maxCode {
		r.fail("a function of %d octets, the most is %d", size, maxCode)
	}
	f := &reader{b: r.take(size)}
	total := uint64(0)
	list(f, "groups of locals", maxLocals, 2, func(f *reader) {
		total += uint64(f.u32())
		f.byte()
	})
	if total > maxLocals {
		f.fail("a function of %d locals, the most is %d", total, maxLocals)
	}
	if f.err != nil {
		r.fail("%w", f.err)
	}
}

func data(r *reader) {
	switch flags := r.u32(); flags {
	case 0:
		r.constant()
	case 1:
	case 2:
		r.u32()
		r.constant()
	default:
		r.fail("a data segment of kind %d", flags)
	}
	r.take(r.u32())
}

// customSection returns what is kept of a custom section, nil for nothing.
func customSection(r *reader) []byte {
	whole := r.b
	switch r.name() {
	case sectionManifest:
		return whole
	case sectionName:
		return functionNames(r)
	}
	// A name that is too long to be read is that of a section nobody needs.
	r.err = nil
	return nil
}

// functionNames returns a name section of nothing but the functions' names, for stack
// traces. A name section that is broken is left out: Section 7.4.1 makes it no error.
func functionNames(r *reader) []byte {
	for len(r.b) > 0 && r.err == nil {
		id := r.byte()
		sub := &reader{b: r.take(r.u32())}
		if id != 1 || r.err != nil {
			continue
		}
		names := sub.b
		list(sub, "names", maxFunctions, 2, func(r *reader) { r.u32(); r.name() })
		if sub.err != nil || len(sub.b) > 0 {
			break
		}
		head := append([]byte{byte(len(sectionName))}, sectionName...)
		return slices.Concat(head, []byte{1}, binary.AppendUvarint(nil, uint64(len(names))), names)
	}
	r.err = nil
	return nil
}

// checkBinary tells what is in front of us when it is no WebAssembly module.
func checkBinary(wasm []byte) error {
	switch {
	case len(wasm) > MaxModule:
		return fmt.Errorf("%d octets, the most is %d", len(wasm), MaxModule)
	case !bytes.HasPrefix(wasm, []byte("\x00asm")):
		return fmt.Errorf("not a WebAssembly module: it begins with %q", wasm[:min(len(wasm), 4)])
	case bytes.HasPrefix(wasm[4:], []byte{0x0d, 0, 1, 0}):
		return errors.New("a WebAssembly component; build a core module instead (Go: GOOS=wasip1, -buildmode=c-shared)")
	case !bytes.HasPrefix(wasm[4:], []byte{1, 0, 0, 0}):
		return fmt.Errorf("WebAssembly of version % x, want 1", wasm[4:min(len(wasm), 8)])
	}
	return nil
}
