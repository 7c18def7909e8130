package meter

import (
	"errors"
	"slices"
	"strconv"
)

// rewriter writes a module anew.
//
// The tick import comes behind all other imports of functions, so that functions of the
// module move up by one. Behind all functions come ours, the last of which calls it.
type rewriter struct {
	m      *Module
	lights *lights
	out    []byte
	types  []funcType // that are added
	refs   []uint32   // functions that code takes references of; what table refTable holds
	refAt  map[uint32]uint32
	coder  coder

	ours      []ourFunction
	tickType  uint32
	slowType  uint32
	moveType  uint32
	fill      uint32 // our functions; fill and copy if the module needs them
	copy      uint32
	slow      uint32
	calls     map[indirect]uint32 // functions of ours that are called instead
	closed    []*closed
	callFrame uint32 // the weight of the heaviest of them
	places    int    // entries that they look at
	targets   int    // functions that they call
	fuel      uint32 // globals
	depth     uint32
	refTable  uint32
	rewritten Rewritten
}

// Rewrite writes the module anew. It fails on what cannot be taken out of a module: data at
// a place that an import decides.
func (m *Module) Rewrite() (*Rewritten, error) {
	if slices.ContainsFunc(m.data, func(d dataSegment) bool { return d.imported }) {
		return nil, errors.New("a data segment at a place that an imported global decides")
	}
	w := &rewriter{m: m, lights: m.findLights(), refAt: make(map[uint32]uint32)}
	w.fuel = uint32(len(m.globals))
	w.depth = w.fuel + 1
	w.refTable = uint32(len(m.tables))
	w.tickType = w.typeOf(funcType{[]byte{typeI64}, []byte{typeI64}})
	w.slowType = w.typeOf(funcType{[]byte{typeI64}, nil})
	w.addMoves()
	w.addCalls()
	w.slow = w.add(w.slowType, tickFunction, w.slowFunction)
	code := w.codeSection() // fills types and refs
	w.out = append(make([]byte, 0, len(code)+len(code)/2+4096), "\x00asm\x01\x00\x00\x00"...)
	w.typeSection()
	w.importSection()
	w.functionSection()
	w.tableSection()
	w.copySection(secMemory)
	w.globalSection()
	w.exportSection()
	w.elementSection()
	if n := m.used.data; n > 0 {
		w.section(secDataCount, appendUint(nil, uint32(n)))
	}
	w.section(secCode, code)
	w.dataSection()
	w.customSections()
	w.rewritten.Wasm = w.out
	w.rewritten.MemoryMin = m.memoryMin
	w.rewritten.Resettable = w.resettable()
	return &w.rewritten, nil
}

// resettable tells whether what code changes can be set back.
func (w *rewriter) resettable() bool { return !w.m.used.resetless }

// ourFunction is a function of ours.
type ourFunction struct {
	typ  uint32
	name string // in stack traces
	code func() []byte
}

// add gives a function of ours a number.
func (w *rewriter) add(typ uint32, name string, code func() []byte) uint32 {
	w.ours = append(w.ours, ourFunction{typ, name, code})
	return uint32(len(w.m.funcs) + len(w.ours))
}

// function returns the number that a function has now.
func (w *rewriter) function(f uint32) uint32 {
	if int(f) < w.m.imports {
		return f
	}
	return f + 1
}

// typeOf returns the number of a type, which is added if need be.
func (w *rewriter) typeOf(t funcType) uint32 {
	same := func(o funcType) bool { return slices.Equal(o.params, t.params) && slices.Equal(o.results, t.results) }
	i := slices.IndexFunc(w.types, same)
	if i < 0 {
		i = len(w.types)
		w.types = append(w.types, t)
	}
	return uint32(len(w.m.types) + i)
}

// reference returns the place of a function in our table.
func (w *rewriter) reference(f uint32) uint32 {
	i, ok := w.refAt[f]
	if !ok {
		i = uint32(len(w.refs))
		w.refs = append(w.refs, f)
		w.refAt[f] = i
	}
	return i
}

// section writes a section.
func (w *rewriter) section(id byte, content []byte) {
	w.out = append(appendUint(append(w.out, id), uint32(len(content))), content...)
}

// list writes a section that is a list: of the n elements that were there before, content,
// and of more.
func (w *rewriter) list(id byte, content []byte, more ...[]byte) {
	w.listOf(id, content, len(more), slices.Concat(more...))
}

// listOf writes such a section with so many more elements.
func (w *rewriter) listOf(id byte, content []byte, count int, more []byte) {
	if n := w.m.counts[id] + count; n > 0 {
		w.section(id, slices.Concat(appendUint(nil, uint32(n)), content, more))
	}
}

func (w *rewriter) copySection(id byte) { w.list(id, w.m.sections[id]) }

// fixed returns the content of a section with the new numbers of functions, and with other
// octets in place of some.
func (w *rewriter) fixed(id byte, others ...other) []byte {
	old := w.m.sections[id]
	b := make([]byte, 0, len(old)+len(w.m.fixups[id])/8)
	at := 0
	replace := func(o other) {
		b = append(append(b, old[at:o.from]...), o.octets...)
		at = o.to
	}
	for _, f := range w.m.fixups[id] {
		for ; len(others) > 0 && others[0].from < f.from; others = others[1:] {
			replace(others[0])
		}
		if f.from >= at {
			b = appendUint(append(b, old[at:f.from]...), w.function(f.function))
			at = f.to
		}
	}
	for _, o := range others {
		replace(o)
	}
	return append(b, old[at:]...)
}

// other is what is written instead of octets from to of a section.
type other struct {
	from, to int
	octets   []byte
}

func (w *rewriter) typeSection() {
	var more [][]byte
	for _, t := range w.types {
		b := append(appendUint([]byte{0x60}, uint32(len(t.params))), t.params...)
		more = append(more, append(appendUint(b, uint32(len(t.results))), t.results...))
	}
	w.list(secType, w.m.sections[secType], more...)
}

func (w *rewriter) importSection() {
	b := appendName(appendName(nil, TickModule), TickName)
	w.list(secImport, w.m.sections[secImport], appendUint(append(b, kindFunc), w.tickType))
}

func appendName(b []byte, s string) []byte { return append(appendUint(b, uint32(len(s))), s...) }

func (w *rewriter) functionSection() {
	var ours []byte
	for _, f := range w.ours {
		ours = appendUint(ours, f.typ)
	}
	w.listOf(secFunction, w.m.sections[secFunction], len(w.ours), ours)
}

// tableSection bounds tables that grow, since they do so in the host's memory, and adds one
// for references of functions: ref.func would allocate there once each time it runs.
func (w *rewriter) tableSection() {
	var more [][]byte
	if n := uint32(len(w.refs)); n > 0 {
		more = append(more, table{typ: typeFuncref, min: n, max: n, bounded: true}.bytes())
	}
	var all []byte
	for i, t := range w.m.tables {
		if i < w.m.importedTables {
			continue
		}
		if most := max(t.min, maxTable/uint32(len(w.m.tables))); w.m.used.grows && (!t.bounded || t.max > most) {
			t.max, t.bounded = most, true
		}
		if w.closedTable(i) {
			t = table{typ: typeFuncref, min: trapEntries, max: trapEntries, bounded: true}
		}
		all = append(all, t.bytes()...)
	}
	w.list(secTable, all, more...)
}

// bytes encodes a table.
func (t table) bytes() []byte {
	if !t.bounded {
		return appendUint([]byte{t.typ, 0}, t.min)
	}
	return appendUint(appendUint([]byte{t.typ, 1}, t.min), t.max)
}

func (w *rewriter) globalSection() {
	w.list(secGlobal, w.fixed(secGlobal), []byte{typeI64, 1, opI64Const, 0, opEnd}, []byte{typeI32, 1, opI32Const, 0, opEnd})
}

func (w *rewriter) exportSection() {
	export := func(name string, kind byte, i uint32) []byte {
		return appendUint(append(appendName(nil, name), kind), i)
	}
	more := [][]byte{export(FuelExport, kindGlobal, w.fuel), export(DepthExport, kindGlobal, w.depth)}
	for i, g := range w.m.globals {
		if i < w.m.importedGlobals || !g.mutable || g.typ < typeF64 {
			continue
		}
		name := globalExport + strconv.Itoa(i)
		more = append(more, export(name, kindGlobal, uint32(i)))
		w.rewritten.Globals = append(w.rewritten.Globals, Global{name, g.typ})
	}
	if w.m.start >= 0 {
		w.rewritten.Start = startExport
		more = append(more, export(startExport, kindFunc, w.function(uint32(w.m.start))))
	}
	w.list(secExport, w.fixed(secExport), more...)
}

// elementSection adds the segments that fill our table, and those that we call instead of.
func (w *rewriter) elementSection() {
	more := w.trapSegments()
	if len(w.refs) > 0 {
		b := append(appendUint([]byte{2}, w.refTable), opI32Const, 0, opEnd, 0)
		b = appendUint(b, uint32(len(w.refs)))
		for _, f := range w.refs {
			b = appendUint(b, w.function(f))
		}
		more = append(more, b)
	}
	w.list(secElement, w.fixed(secElement, w.emptied()...), more...)
}

// dataSection keeps the segments that code speaks of, and takes the active ones out.
func (w *rewriter) dataSection() {
	n := w.m.used.data
	b := appendUint(nil, uint32(n))
	w.rewritten.Data = make([]Segment, 0, len(w.m.data))
	for i, d := range w.m.data {
		if d.active {
			w.rewritten.Data = append(w.rewritten.Data, d.Segment)
			d.Bytes = nil
		}
		if i < n {
			b = append(appendUint(append(b, 1), uint32(len(d.Bytes))), d.Bytes...)
		}
	}
	w.rewritten.Data = joinSegments(w.rewritten.Data)
	if n > 0 {
		w.section(secData, b)
	}
}

// customSections keeps the manifest and the names of functions.
func (w *rewriter) customSections() {
	for _, s := range w.m.manifest {
		w.section(secCustom, s)
	}
	var names []name
	for _, n := range w.m.names {
		if int(n.function) < len(w.m.funcs) {
			names = append(names, name{w.function(n.function), n.name})
		}
	}
	if len(names) > 0 {
		w.section(secCustom, nameSection(append(names, w.ourNames()...)))
	}
}

// ourNames are the names of our functions.
func (w *rewriter) ourNames() (names []name) {
	for i, f := range w.ours {
		names = append(names, name{uint32(len(w.m.funcs) + 1 + i), f.name})
	}
	return names
}

// nameSection encodes the names of functions.
func nameSection(names []name) []byte {
	b := appendUint(nil, uint32(len(names)))
	for _, n := range names {
		b = appendName(appendUint(b, n.function), n.name)
	}
	s := append(appendName(nil, sectionName), 1)
	return append(appendUint(s, uint32(len(b))), b...)
}
