// Package wasmtest makes WebAssembly modules for tests, octet by octet, so that a guest
// that does one odd thing needs no toolchain and no file. It is imported by tests alone.
//
// There are two floors. [Module] is an assembler: sections, functions whose code is a
// [Code], and no check of any kind, so that it can write what no compiler would.
// [Guest] stands on it: a filter that speaks mg1 and of which a test describes only what
// is special.
//
//	wasm := wasmtest.Guest{On: map[abi.Hook]wasmtest.Code{
//		abi.HookConnect: wasmtest.Trap(),
//		abi.HookMail:    wasmtest.Counter(),
//	}}.Bytes()
package wasmtest

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Kinds of imports and exports.
const (
	KindFunc   = 0
	KindTable  = 1
	KindMemory = 2
	KindGlobal = 3
)

// Limits are the size of a memory (in pages of 64 KiB) or of a table. Max is written if
// it is not nil.
type Limits struct {
	Min uint32
	Max *uint32
}

// Global is a global variable of type i64.
type Global struct {
	Mutable bool
	Init    int64
}

// Export names something.
type Export struct {
	Name  string
	Kind  byte
	Index uint32
}

// Segment is data that is copied to memory.
type Segment struct {
	Off  uint32
	Data string
}

// Section is a section as it is, for what the assembler does not know. It is written
// behind the section with the highest number that is not above ID; one with ID 0, a
// custom section, at the end.
type Section struct {
	ID   byte
	Body []byte
}

// Module is a module under construction. The zero Module is empty. It is for one
// goroutine.
type Module struct {
	Memory   *Limits
	Table    *Limits // of functions
	Elements []uint32
	Globals  []Global
	Exports  []Export
	Data     []Segment
	Start    string // name of the start function; empty: none
	Sections []Section
	Names    bool // write a name section with the functions' names

	imports []function
	funcs   []function
	types   []string
}

// function is an import, "module.name", or a function of the module.
type function struct {
	name   string
	sig    string
	locals string // types of the locals behind the parameters
	code   Code
	raw    []byte // of an import that is no function: its description
	kind   byte
}

// A signature is written as in "il>l": parameters, ">", results, of i (i32), l (i64),
// f (f32), d (f64), v (v128) and r (funcref).
var valueTypes = map[rune]byte{'i': 0x7f, 'l': 0x7e, 'f': 0x7d, 'd': 0x7c, 'v': 0x7b, 'r': 0x70}

// Import declares an imported function. It may be called at any time before Bytes.
func (m *Module) Import(module, name, sig string) {
	if !slices.ContainsFunc(m.imports, func(f function) bool { return f.name == module+"."+name }) {
		m.imports = append(m.imports, function{name: module + "." + name, sig: sig})
	}
}

// ImportOther declares an import of another kind than a function; desc is its
// description in the binary format.
func (m *Module) ImportOther(module, name string, kind byte, desc ...byte) {
	m.imports = append(m.imports, function{name: module + "." + name, kind: kind, raw: desc})
}

// Func adds a function. locals are the types of its locals, those of the parameters left
// out. Code calls it by its name.
func (m *Module) Func(name, sig, locals string, code ...Code) {
	m.funcs = append(m.funcs, function{name: name, sig: sig, locals: locals, code: Seq(code...)})
}

// ExportFunc exports a function by its own name.
func (m *Module) ExportFunc(name string) {
	m.Exports = append(m.Exports, Export{Name: name, Kind: KindFunc, Index: m.index(name)})
}

// index returns the number of a function. Imports come first; those that are no functions
// do not count. A name nobody declared gets a number that no function has. Numbers of
// functions stay right when imports are added later, because Bytes asks again.
func (m *Module) index(name string) uint32 {
	n := uint32(0)
	for _, list := range [][]function{m.imports, m.funcs} {
		for _, f := range list {
			if f.kind != KindFunc {
				continue
			}
			if f.name == name {
				return n
			}
			n++
		}
	}
	return 1<<32 - 1
}

func (m *Module) typeOf(sig string) uint32 {
	if i := slices.Index(m.types, sig); i >= 0 {
		return uint32(i)
	}
	m.types = append(m.types, sig)
	return uint32(len(m.types) - 1)
}

// Type returns the number of a type, as an instruction has it.
func (m *Module) Type(sig string) []byte { return Uint(uint64(m.typeOf(sig))) }

// Bytes encodes the module.
func (m *Module) Bytes() []byte {
	imports, funcs, code := m.importSection(), m.functionSection(), m.codeSection() // these fill m.types
	sections := []Section{
		{1, m.typeSection()}, {2, imports}, {3, funcs}, {4, m.tableSection()}, {5, m.memorySection()},
		{6, m.globalSection()}, {7, m.exportSection()}, {8, m.startSection()}, {9, m.elementSection()},
		{10, code}, {11, m.dataSection()},
	}
	for _, s := range m.Sections {
		at := slices.IndexFunc(sections, func(o Section) bool { return s.ID == 0 || o.ID > s.ID || o.ID == 0 })
		if at < 0 || s.ID == 0 {
			at = len(sections)
		}
		sections = slices.Insert(sections, at, s)
	}
	if m.Names {
		sections = append(sections, Section{0, m.nameSection()})
	}
	b := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range sections {
		if s.Body != nil {
			b = append(append(b, s.ID), Vec(s.Body)...)
		}
	}
	return b
}

func (m *Module) typeSection() []byte {
	return list(len(m.types), func(i int) []byte {
		params, results, _ := strings.Cut(m.types[i], ">")
		return slices.Concat([]byte{0x60}, typeList(params), typeList(results))
	})
}

func typeList(s string) []byte {
	b := Uint(uint64(len(s)))
	for _, c := range s {
		b = append(b, valueTypes[c])
	}
	return b
}

func (m *Module) importSection() []byte {
	return list(len(m.imports), func(i int) []byte {
		f := m.imports[i]
		module, name, _ := strings.Cut(f.name, ".")
		desc := f.raw
		if f.kind == KindFunc {
			desc = Uint(uint64(m.typeOf(f.sig)))
		}
		return slices.Concat(Vec([]byte(module)), Vec([]byte(name)), []byte{f.kind}, desc)
	})
}

func (m *Module) functionSection() []byte {
	return list(len(m.funcs), func(i int) []byte { return Uint(uint64(m.typeOf(m.funcs[i].sig))) })
}

func (m *Module) tableSection() []byte {
	if m.Table == nil {
		return nil
	}
	return slices.Concat([]byte{1, 0x70}, m.Table.bytes())
}

func (m *Module) memorySection() []byte {
	if m.Memory == nil {
		return nil
	}
	return append([]byte{1}, m.Memory.bytes()...)
}

func (l Limits) bytes() []byte {
	if l.Max == nil {
		return append([]byte{0}, Uint(uint64(l.Min))...)
	}
	return slices.Concat([]byte{1}, Uint(uint64(l.Min)), Uint(uint64(*l.Max)))
}

func (m *Module) globalSection() []byte {
	return list(len(m.Globals), func(i int) []byte {
		mutable := byte(0)
		if m.Globals[i].Mutable {
			mutable = 1
		}
		return slices.Concat([]byte{0x7e, mutable, 0x42}, Int(m.Globals[i].Init), []byte{0x0b})
	})
}

func (m *Module) exportSection() []byte {
	return list(len(m.Exports), func(i int) []byte {
		e := m.Exports[i]
		if e.Kind == KindFunc && m.index(e.Name) != 1<<32-1 {
			e.Index = m.index(e.Name)
		}
		return slices.Concat(Vec([]byte(e.Name)), []byte{e.Kind}, Uint(uint64(e.Index)))
	})
}

func (m *Module) startSection() []byte {
	if m.Start == "" {
		return nil
	}
	return Uint(uint64(m.index(m.Start)))
}

func (m *Module) elementSection() []byte {
	if m.Elements == nil {
		return nil
	}
	return slices.Concat([]byte{1, 0, 0x41, 0, 0x0b}, list(len(m.Elements), func(i int) []byte { return Uint(uint64(m.Elements[i])) }))
}

func (m *Module) codeSection() []byte {
	return list(len(m.funcs), func(i int) []byte {
		f := m.funcs[i]
		body := list(len(f.locals), func(j int) []byte { return []byte{1, valueTypes[rune(f.locals[j])]} })
		if body == nil {
			body = []byte{0}
		}
		for _, in := range f.code {
			body = append(body, in.raw...)
			if in.call != "" {
				body = append(append(body, 0x10), Uint(uint64(m.index(in.call)))...)
			}
		}
		return Vec(append(body, 0x0b))
	})
}

func (m *Module) dataSection() []byte {
	return list(len(m.Data), func(i int) []byte {
		s := m.Data[i]
		return slices.Concat([]byte{0, 0x41}, Int(int64(int32(s.Off))), []byte{0x0b}, Vec([]byte(s.Data)))
	})
}

func (m *Module) nameSection() []byte {
	all := slices.DeleteFunc(slices.Concat(m.imports, m.funcs), func(f function) bool { return f.kind != KindFunc })
	names := list(len(all), func(i int) []byte { return append(Uint(uint64(i)), Vec([]byte(all[i].name))...) })
	return slices.Concat(Vec([]byte("name")), []byte{1}, Vec(names))
}

// list encodes a vector of n elements; nil if n is 0.
func list(n int, element func(i int) []byte) []byte {
	if n == 0 {
		return nil
	}
	b := Uint(uint64(n))
	for i := range n {
		b = append(b, element(i)...)
	}
	return b
}

// Vec returns b behind its length.
func Vec(b []byte) []byte { return append(Uint(uint64(len(b))), b...) }

// Uint returns v in LEB128.
func Uint(v uint64) []byte { return binary.AppendUvarint(nil, v) }

// Int returns v in signed LEB128.
func Int(v int64) []byte {
	var b []byte
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}
