package meter

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// read.go reads the sections of a module. The format begins each list with its length, and
// a decoder that believes it allocates what a module of forty octets asks for: a function
// with four thousand million locals is as short as that. So every count is held against a
// limit and against the octets that are left.
//
// It also bounds what an instance costs outside of its linear memory (tables, globals,
// imports), and leaves out custom sections: debug information, which is a format of its
// own to be attacked through, and names of locals.
//
// WebAssembly Core Specification 2.0, Section 5.5.

// Limits of a module's parts. Compilers stay far below them.
const (
	maxTypes      = 16 << 10
	maxParams     = 256 // of one function type, and results
	maxImports    = 1000
	maxFunctions  = 128 << 10
	maxTables     = 16
	maxTable      = 128 << 10 // entries of all tables
	maxGlobals    = 8 << 10
	maxExports    = 16 << 10
	maxElements   = 128 << 10 // entries of all element segments
	maxSegments   = 64 << 10
	maxLocals     = 4 << 10
	maxCode       = 1 << 20 // octets of one function
	maxNameLength = 1 << 10 // of anything that has a name
	maxReserved   = 20      // exports that are told of
)

// Numbers of the sections. Section 5.5.2.
const (
	secCustom, secType, secImport, secFunction, secTable, secMemory = 0, 1, 2, 3, 4, 5
	secGlobal, secExport, secStart, secElement, secCode, secData    = 6, 7, 8, 9, 10, 11
	secDataCount                                                    = 12
)

// order is the order of the sections by number: the data count comes before the code.
var order = [...]int{secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secGlobal: 6,
	secExport: 7, secStart: 8, secElement: 9, secDataCount: 10, secCode: 11, secData: 12}

const (
	sectionName     = "name"
	sectionManifest = abi.ManifestSection
)

// Kinds of imports and exports. Section 5.5.5.
const (
	kindFunc   = 0
	kindTable  = 1
	kindMemory = 2
	kindGlobal = 3
)

// Module is a module that was read. It is not changed after Read, and safe for concurrent
// use.
type Module struct {
	sections [secDataCount + 1][]byte // a copy; of lists without their length
	counts   [secDataCount + 1]int    // of the lists
	fixups   [secDataCount + 1][]fixup
	manifest [][]byte // custom sections as they are
	names    []name   // of functions

	types     []funcType
	funcs     []uint32 // types of all functions, imports first
	bodies    []body
	calls     []uint32 // see body
	tables    []table
	globals   []global
	memories  int
	memoryMin uint32
	data      []dataSegment
	start     int // a function, or -1

	imports, importedGlobals, importedTables int // of functions, ...
	outside                                  []Outside
	reserved                                 []string

	declared  []bool // functions that code may take references of
	used      uses
	dataCount int // as the section says; -1 without it
	elements  []elements
	effort    int // of compiling it: see maxEffort
	scratch   []byte
}

// fixup is the index of a function outside of code: octets from to of a section.
type fixup struct {
	from, to int
	function uint32
}

// name is the name of a function.
type name struct {
	function uint32
	name     string
}

type funcType struct{ params, results []byte }

type global struct {
	typ     byte
	mutable bool
}

type table struct {
	typ      byte
	min, max uint32
	bounded  bool
	// calls are the types that code calls its functions by. If open, it is more than called
	// through, or there are too many types to tell: see dispatch.go.
	calls []uint32
	open  bool
}

// dataSegment is a data segment; one that is not active is passive.
type dataSegment struct {
	Segment
	active   bool
	imported bool // its place is that of an imported global
}

// noFunction is a null in an element segment.
const noFunction = 1<<32 - 1

// elements is an element segment: octets from to of the section.
type elements struct {
	from, to  int
	active    bool
	known     bool // the offset is a constant, and the entries are functions and nulls
	table     uint32
	offset    uint32
	functions []uint32
}

// uses says what code makes use of.
type uses struct {
	moves     bool // memory.fill or memory.copy
	data      int  // how many data segments must keep their numbers
	refs      bool // there are references of functions
	grows     bool // tables grow
	resetless bool // it changes what cannot be set back
}

// Outside returns the imports that are not functions.
func (m *Module) Outside() []Outside { return slices.Clone(m.outside) }

// Reserved returns the exports whose names are not the guest's to give; the first few if
// there are many.
func (m *Module) Reserved() []string { return slices.Clone(m.reserved) }

// Read reads a module. The error says what is wrong with it. It says nothing of the types
// of operands: see the package comment. Wasm is not kept.
func Read(wasm []byte) (*Module, error) {
	if err := checkHead(wasm); err != nil {
		return nil, err
	}
	m := &Module{start: -1, dataCount: -1}
	if err := m.read(bytes.Clone(wasm[8:])); err != nil {
		return nil, fmt.Errorf("its binary is broken: %w", err)
	}
	return m, nil
}

// checkHead tells what is in front of us when it is no WebAssembly module.
func checkHead(wasm []byte) error {
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

func (m *Module) read(wasm []byte) error {
	r := &reader{b: wasm}
	last := 0
	for r.left() > 0 && r.err == nil {
		id := r.byte()
		body := &reader{b: r.take(r.u32())}
		if r.err != nil {
			break
		}
		switch {
		case id == secCustom:
			m.customSection(body)
		case id > secDataCount:
			body.fail("unknown section")
		default:
			m.section(id, body)
			// What is rewritten comes out in order, so it must go in so.
			if body.err == nil && order[id] <= last {
				body.fail("it is not in its place")
			}
			last = order[id]
		}
		if body.err != nil {
			return fmt.Errorf("section %d: %w", id, body.err)
		}
	}
	if r.err != nil {
		return r.err
	}
	m.scratch = nil
	return m.finish()
}

// finish checks what is known only after all sections.
func (m *Module) finish() error {
	if n := len(m.funcs) - m.imports; n != len(m.bodies) {
		return fmt.Errorf("%d functions, and code for %d", n, len(m.bodies))
	}
	if m.dataCount >= 0 && m.dataCount != len(m.data) {
		return fmt.Errorf("%d data segments, and the section before the code says %d", len(m.data), m.dataCount)
	}
	return nil
}

// section reads a section. Its content behind the length of the list is kept.
func (m *Module) section(id byte, r *reader) {
	defer func() {
		if r.err == nil && r.left() > 0 {
			r.fail("%d octets too many", r.left())
		}
	}()
	each := func(what string, limit, size int, one func(*reader)) {
		list(r, what, limit, size, func() {
			if m.counts[id] == 0 {
				m.begin(id, r)
			}
			m.counts[id]++
			one(r)
		})
	}
	switch id {
	case secType:
		each("types", maxTypes, 3, m.functionType)
	case secImport:
		each("imports", maxImports, 4, m.importEntry)
	case secFunction:
		each("functions", maxFunctions, 1, func(r *reader) { m.funcs = append(m.funcs, r.below("type", len(m.types))) })
	case secTable:
		each("tables", maxTables, 3, m.table)
	case secMemory:
		each("memories", 1, 2, m.memory)
	case secGlobal:
		each("globals", maxGlobals, 4, m.global)
	case secExport:
		each("exports", maxExports, 3, m.exportEntry)
	case secStart:
		m.startFunction(r)
	case secElement:
		m.elementSection(r, each)
	case secDataCount:
		m.dataCount = int(r.u32())
	case secCode:
		each("functions", maxFunctions, 3, m.body)
	case secData:
		each("data segments", maxSegments, 2, m.dataSegment)
	}
}

// begin keeps a section that is a list, and makes room for its elements.
func (m *Module) begin(id byte, r *reader) {
	m.sections[id] = r.b[r.p:]
	n := (&reader{b: r.b}).u32() // it was read before: it is below a limit
	switch id {
	case secFunction:
		m.funcs = slices.Grow(m.funcs, int(n))
	case secCode:
		m.bodies = make([]body, 0, n)
	case secData:
		m.data = make([]dataSegment, 0, n)
	}
}

func (m *Module) functionType(r *reader) {
	if form := r.byte(); form != 0x60 && r.err == nil {
		r.fail("a type of form %#x, want that of functions", form)
	}
	params := r.take(uint32(r.count("parameters", maxParams, 1)))
	results := r.take(uint32(r.count("results", maxParams, 1)))
	for _, t := range slices.Concat(params, results) {
		checkValueType(r, t)
	}
	m.types = append(m.types, funcType{params, results})
}

func checkValueType(r *reader, t byte) {
	if !isValueType(t) && r.err == nil {
		r.fail("a value of type %#x", t)
	}
}

func (m *Module) importEntry(r *reader) {
	where := r.name() + "." + r.name()
	kind := ""
	switch k := r.byte(); k {
	case kindFunc:
		m.funcs = append(m.funcs, r.below("type", len(m.types)))
		m.imports++
	case kindTable:
		m.table(r)
		m.opened(uint32(m.importedTables))
		m.importedTables++
		kind = "table"
	case kindMemory:
		m.memory(r)
		m.memoryMin = 0 // not the guest's own
		kind = "memory"
	case kindGlobal:
		m.globalType(r)
		m.importedGlobals++
		kind = "global"
	default:
		r.fail("import %q of kind %d", where, k)
	}
	if kind != "" {
		m.outside = append(m.outside, Outside{kind, where})
	}
}

// limits reads the size of a table or memory.
func (r *reader) limits() (low, high uint32, bounded bool) {
	flag := r.byte()
	low = r.u32()
	switch flag {
	case 0:
	case 1:
		high, bounded = r.u32(), true
		if high < low {
			r.fail("limits of %d to %d", low, high)
		}
	default:
		r.fail("limits of kind %d", flag)
	}
	return low, high, bounded
}

func (m *Module) table(r *reader) {
	t := table{typ: r.byte()}
	if !isRefType(t.typ) && r.err == nil {
		r.fail("a table of type %#x, want functions", t.typ)
	}
	t.min, t.max, t.bounded = r.limits()
	total := uint64(t.min)
	for _, other := range m.tables {
		total += uint64(other.min)
	}
	if total > maxTable {
		r.fail("a table of %d entries, the most is %d", total, maxTable)
	}
	m.tables = append(m.tables, t)
}

// opened notes that a table is more than called through.
func (m *Module) opened(i uint32) {
	if int(i) < len(m.tables) {
		m.tables[i].open = true
	}
}

func (m *Module) memory(r *reader) {
	m.memoryMin, _, _ = r.limits()
	if m.memories++; m.memories > 1 {
		r.fail("2 memories, the most is 1")
	}
}

func (m *Module) globalType(r *reader) {
	g := global{typ: r.byte()}
	checkValueType(r, g.typ)
	switch mut := r.byte(); mut {
	case 0:
	case 1:
		g.mutable = true
	default:
		r.fail("a global of kind %d", mut)
	}
	m.globals = append(m.globals, g)
}

func (m *Module) global(r *reader) {
	m.globalType(r)
	m.constant(r, secGlobal)
}

// fix reads the index of a function in a section.
func (m *Module) fix(r *reader, section byte) uint32 {
	// Positions count from where the list's first element is.
	base := len(r.b) - len(m.sections[section])
	from := r.p - base
	f := r.below("function", len(m.funcs))
	if r.err == nil {
		m.fixups[section] = append(m.fixups[section], fixup{from, r.p - base, f})
	}
	return f
}

// declare notes that code may take a reference of a function. Section 3.4.10.
func (m *Module) declare(f uint32) {
	if m.declared == nil {
		m.declared = make([]bool, len(m.funcs))
	}
	if int(f) < len(m.declared) {
		m.declared[f] = true
	}
}

// constant reads a constant expression, which is one instruction. Section 3.3.10. It
// returns it, and the value of an i32.const.
func (m *Module) constant(r *reader, section byte) (in instr, value int32) {
	at := r.p
	switch op := r.byte(); op {
	case opI32Const:
		in.op, value = op, r.i32()
	case opRefFunc:
		in.op = op
		in.a = m.fix(r, section)
		m.declare(in.a)
	default:
		r.p = at
		if in = r.instr(); !isConstant(in) && r.err == nil {
			r.fail("opcode %#x in a constant expression", in.op)
		}
	}
	if in.op == opGlobalGet {
		m.constantGlobal(r, in.a)
	}
	if end := r.byte(); end != opEnd && r.err == nil {
		r.fail("a constant expression of more than one instruction")
	}
	return in, value
}

func isConstant(in instr) bool {
	switch in.op {
	case opI64Const, 0x43, 0x44, opGlobalGet, opRefNull:
		return true
	}
	return in.op == opPrefixFD && in.sub == 12
}

// constantGlobal: a constant is that of an import that does not change.
func (m *Module) constantGlobal(r *reader, i uint32) {
	if r.err == nil && (int(i) >= m.importedGlobals || m.globals[i].mutable) {
		r.fail("a constant expression of global %d, want an import that does not change", i)
	}
}

func (m *Module) exportEntry(r *reader) {
	name := r.name()
	switch k := r.byte(); k {
	case kindFunc:
		m.declare(m.fix(r, secExport))
	case kindTable:
		m.opened(r.below("table", len(m.tables)))
	case kindMemory:
		r.below("memory", m.memories)
	case kindGlobal:
		r.below("global", len(m.globals))
	default:
		r.fail("export %q of kind %d", name, k)
	}
	if strings.HasPrefix(name, abi.ReservedPrefix) && len(m.reserved) < maxReserved {
		m.reserved = append(m.reserved, name)
	}
}

func (m *Module) startFunction(r *reader) {
	f := r.below("function", len(m.funcs))
	if r.err != nil {
		return
	}
	if t := m.types[m.funcs[f]]; len(t.params)+len(t.results) > 0 {
		r.fail("a start function with parameters or results")
	}
	m.start = int(f)
}

// elementSection reads the segments that fill tables. Section 5.5.12: bit 0 of the flags
// says that it is not active, bit 1 that it names its table or kind, bit 2 that its
// entries are expressions.
func (m *Module) elementSection(r *reader, each func(string, int, int, func(*reader))) {
	left := maxElements
	each("element segments", maxSegments, 2, func(r *reader) {
		base := len(r.b) - len(m.sections[secElement])
		s := elements{from: r.p - base}
		flags := r.u32()
		if flags > 7 {
			r.fail("an element segment of kind %d", flags)
		}
		if flags&3 == 2 {
			s.table = r.below("table", len(m.tables))
		} else if flags&1 == 0 && len(m.tables) == 0 {
			r.fail("elements, and no table")
		}
		if flags&1 == 0 {
			s.active = true
			in, at := m.constant(r, secElement)
			s.offset, s.known = uint32(at), in.op == opI32Const
		}
		if flags&3 != 0 {
			kind := r.byte()
			s.known = s.known && (kind == 0 && flags&4 == 0 || kind == typeFuncref && flags&4 != 0)
		}
		n := r.count("elements", left, 1)
		left -= n
		m.entries(r, &s, n, flags&4 != 0)
		s.to = r.p - base
		m.elements = append(m.elements, s)
	})
}

// entries reads the functions of a segment: their numbers, or expressions.
func (m *Module) entries(r *reader, s *elements, n int, expressions bool) {
	s.functions = make([]uint32, 0, n)
	for i := 0; i < n && r.err == nil; i++ {
		f := uint32(noFunction)
		if !expressions {
			f = m.fix(r, secElement)
			m.declare(f)
		} else if in, _ := m.constant(r, secElement); in.op == opRefFunc {
			f = in.a
		} else if in.op != opRefNull || in.a != typeFuncref {
			s.known = false
		}
		s.functions = append(s.functions, f)
	}
}

func (m *Module) dataSegment(r *reader) {
	var d dataSegment
	switch flags := r.u32(); flags {
	case 0, 2:
		d.active = true
		if flags == 2 {
			r.below("memory", m.memories)
		} else if m.memories == 0 {
			r.fail("a data segment, and no memory")
		}
		in, at := m.constant(r, secData)
		d.Offset, d.imported = uint32(at), in.op == opGlobalGet
		if in.op != opI32Const && !(d.imported && r.err == nil && m.globals[in.a].typ == typeI32) && r.err == nil {
			r.fail("a data segment at a place that is no i32")
		}
	case 1:
	default:
		r.fail("a data segment of kind %d", flags)
	}
	d.Bytes = r.take(r.u32())
	m.data = append(m.data, d)
}

// customSection keeps the manifest and the names of functions. A name may be long here:
// the sections of others are nobody's business.
func (m *Module) customSection(r *reader) {
	name := r.take(r.u32())
	if r.err == nil && !utf8.Valid(name) {
		r.fail("a custom section whose name is not UTF-8")
	}
	switch string(name) {
	case sectionManifest:
		m.manifest = append(m.manifest, r.b)
	case sectionName:
		m.functionNames(&reader{b: r.b, p: r.p})
	}
}

// functionNames keeps the functions' names, for stack traces. A name section that is
// broken is left out: Section 7.4.1 makes it no error.
func (m *Module) functionNames(r *reader) {
	for r.left() > 0 && r.err == nil {
		id := r.byte()
		sub := &reader{b: r.take(r.u32())}
		if id != 1 || r.err != nil {
			continue
		}
		var names []name
		list(sub, "names", maxFunctions, 2, func() { names = append(names, name{sub.u32(), sub.name()}) })
		if sub.err == nil && sub.left() == 0 {
			m.names = names
		}
		return
	}
}
