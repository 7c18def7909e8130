package meter

import "slices"

// dispatch.go: calls through tables. A table costs each instance an allocation or two for
// every entry: 100 KB and 200 microseconds for a guest in Go, which has all its functions in a
// table. But most tables are never changed, and seen by nobody: no more is done to them than
// to call what is in them. Then a call through the table is a choice between functions that are
// known, which code can make, and all instances share. So there is a function of ours for each
// type that is called, which branches by the index (br_table) to a call of the function that
// the table has there; a long table has two layers of them.
//
// Where the index is outside of the table, at a null or at a function of another type, ours makes
// such a call through what is left of the table, so that it traps as it did.

const (
	// maxCallTypes is how many types the functions of a table may be called by.
	maxCallTypes = 64
	// maxCallValues is how many parameters or results a type may have.
	maxCallValues = 32
	// maxTargets is how many calls those of ours may have together, with their parameters and
	// results, and maxPlaces how many entries they may look at.
	maxTargets = 96 << 10
	maxPlaces  = 64 << 10

	// layerBits is how many bits of the index one function decides by: the compiler's time grows
	// with the square of its branches.
	layerBits = 7

	callFunction = TickModule + "_call" // in stack traces
)

// indirect is a call through a table by a type.
type indirect struct{ table, typ uint32 }

// calledBy notes that functions of a table are called by a type.
func (m *Module) calledBy(t *table, typ uint32) {
	n := len(t.calls)
	if t.open || n > 0 && t.calls[n-1] == typ || slices.Contains(t.calls, typ) {
		return
	}
	t.open = n == maxCallTypes
	t.calls = append(t.calls, typ)
}

// closed is a table that calls need not go through.
type closed struct {
	index uint32
	low   uint32   // the first entry that is not null
	funcs []uint32 // the entries from there to the last one that is not
}

// addCalls finds closed tables, and adds the functions that are called instead.
func (w *rewriter) addCalls() {
	w.calls = make(map[indirect]uint32)
	if !w.m.filled() {
		return
	}
	for i := range w.m.tables {
		if t := &w.m.tables[i]; t.open || t.typ != typeFuncref {
			continue
		}
		c := w.m.contents(uint32(i))
		types, ok := w.callTypes(c)
		if !ok {
			continue
		}
		for _, typ := range w.m.tables[i].calls {
			same := slices.IndexFunc(types, func(o uint32) bool { return w.m.sameType(o, typ) })
			first := indirect{c.index, types[same]}
			if _, ok := w.calls[first]; !ok {
				w.calls[first] = w.addLayers(c, types[same])
			}
			w.calls[indirect{c.index, typ}] = w.calls[first]
		}
		w.closed = append(w.closed, c)
	}
}

// filled tells whether all segments are within their tables, at places that are known.
func (m *Module) filled() bool {
	return !slices.ContainsFunc(m.elements, func(s elements) bool {
		return s.active && (!s.known || uint64(s.offset)+uint64(len(s.functions)) > uint64(m.tables[s.table].min))
	})
}

// contents returns what is in a table.
func (m *Module) contents(i uint32) *closed {
	all := slices.Repeat([]uint32{noFunction}, int(m.tables[i].min))
	for _, s := range m.elements {
		if s.active && s.table == i {
			copy(all[s.offset:], s.functions)
		}
	}
	c := &closed{index: i}
	for len(all) > 0 && all[len(all)-1] == noFunction {
		all = all[:len(all)-1]
	}
	for len(all) > 0 && all[0] == noFunction {
		c.low, all = c.low+1, all[1:]
	}
	c.funcs = all
	return c
}

func (m *Module) sameType(a, b uint32) bool {
	x, y := m.types[a], m.types[b]
	return a == b || slices.Equal(x.params, y.params) && slices.Equal(x.results, y.results)
}

// callTypes returns the types that a table is called by, each once, unless this would take
// too much code.
func (w *rewriter) callTypes(c *closed) (types []uint32, ok bool) {
	for _, typ := range w.m.tables[c.index].calls {
		if t := w.m.types[typ]; len(t.params) > maxCallValues || len(t.results) > maxCallValues {
			return nil, false
		}
		if !slices.ContainsFunc(types, func(o uint32) bool { return w.m.sameType(o, typ) }) {
			types = append(types, typ)
		}
	}
	places, targets := len(types)*len(c.funcs), 0
	if w.places += places; w.places > maxPlaces {
		return nil, false
	}
	for _, typ := range types {
		for _, f := range c.funcs {
			if f != noFunction && w.m.sameType(w.m.funcs[f], typ) {
				targets += 1 + len(w.m.types[typ].params) + len(w.m.types[typ].results)
			}
		}
	}
	w.targets += targets
	return types, w.targets <= maxTargets
}

// addLayers adds the functions for calls by a type, and returns the one that is called.
func (w *rewriter) addLayers(c *closed, typ uint32) uint32 {
	t := w.m.types[typ]
	layer := w.typeOf(funcType{append(slices.Clone(t.params), typeI32), t.results})
	add := func(code func() []byte) uint32 { return w.add(layer, callFunction, code) }
	const size = 1 << layerBits
	// What a frame has is parameters and results, once or twice: TestFrames has one.
	frame := 64 + 16*uint32(len(t.params)+len(t.results))
	if len(c.funcs) <= size {
		w.callFrame = max(w.callFrame, frame)
		return add(func() []byte { return w.callCode(c, typ, c.low, c.funcs) })
	}
	w.callFrame = max(w.callFrame, 2*frame)
	first, n := uint32(0), uint32(0)
	for at := 0; at < len(c.funcs); at += size {
		some := c.funcs[at:min(at+size, len(c.funcs))]
		f := add(func() []byte { return w.callCode(c, typ, c.low+uint32(at), some) })
		if n == 0 {
			first = f
		}
		n++
	}
	return add(func() []byte { return w.layerCode(c, typ, first, n) })
}

// branch writes one of these functions.
type branch struct {
	emitter
	typ    uint32
	params uint32
}

func (w *rewriter) newBranch(typ uint32) *branch {
	return &branch{emitter{[]byte{0}}, typ, uint32(len(w.m.types[typ].params))}
}

// to begins with as many blocks as there are places to go, and two more: for a function of another
// type, and for none. It goes to the one that labels has for the index, less base.
func (e *branch) to(places int, base uint32, shift int32, labels []uint32) {
	for range places + 2 {
		e.raw(opBlock, typeNone)
	}
	e.op(opLocalGet, e.params)
	if base > 0 {
		e.i32(int32(base))
		e.raw(opI32Sub)
	}
	if shift > 0 {
		e.i32(shift)
		e.raw(opI32ShrU)
	}
	e.op(opBrTable, uint32(len(labels)))
	for _, l := range labels {
		e.out = appendUint(e.out, l)
	}
	e.out = appendUint(e.out, uint32(places+1))
	e.raw(opEnd)
}

// give leaves the parameters on the stack.
func (e *branch) give() {
	for i := range e.params {
		e.op(opLocalGet, i)
	}
}

// trap traps as a call through the table does at an index.
func (e *branch) trap(c *closed, index int32) {
	e.give()
	e.i32(index)
	e.op(opCallIndirect, e.typ)
	e.out = appendUint(e.out, c.index)
}

// traps ends the function with what happens where there is nothing to call.
func (w *rewriter) traps(e *branch, c *closed) []byte {
	wrong := int32(trapOther)
	if t := w.m.types[e.typ]; slices.Equal(t.params, []byte{typeI64}) && len(t.results) == 0 {
		wrong = trapTick
	}
	e.trap(c, wrong)
	e.raw(opReturn, opEnd)
	e.trap(c, -1)
	e.raw(opEnd)
	return e.out
}

// What is left of a closed table: functions of two types, one of which is not that of a call.
const (
	trapOther   = 0 // of slowType
	trapTick    = 1 // of tickType
	trapEntries = 2
)

// callCode is the code of a function that calls what some entries of a table have, which
// begin at base.
func (w *rewriter) callCode(c *closed, typ, base uint32, some []uint32) []byte {
	var targets []uint32
	label := make(map[uint32]uint32)
	labels := make([]uint32, len(some))
	for _, f := range some {
		if _, ok := label[f]; !ok && f != noFunction && w.m.sameType(w.m.funcs[f], typ) {
			label[f] = uint32(len(targets))
			targets = append(targets, f)
		}
	}
	for i, f := range some {
		l, ok := label[f]
		switch {
		case f == noFunction:
			l = uint32(len(targets)) + 1
		case !ok:
			l = uint32(len(targets))
		}
		labels[i] = l
	}
	e := w.newBranch(typ)
	e.to(len(targets), base, 0, labels)
	for _, f := range targets {
		e.give()
		e.op(opCall, w.function(f))
		e.raw(opReturn, opEnd)
	}
	return w.traps(e, c)
}

// layerCode is that of the function that calls one of the n functions from first on.
func (w *rewriter) layerCode(c *closed, typ, first, n uint32) []byte {
	e := w.newBranch(typ)
	labels := make([]uint32, n)
	for i := range labels {
		labels[i] = uint32(i)
	}
	e.to(int(n), c.low, layerBits, labels)
	for i := range n {
		e.give()
		e.op(opLocalGet, e.params)
		e.op(opCall, first+i)
		e.raw(opReturn, opEnd)
	}
	return w.traps(e, c)
}

// indirect writes a call through a table.
func (c *coder) indirect(in instr) {
	if f, ok := c.w.calls[indirect{in.b, in.a}]; ok {
		c.upTo(in.at)
		c.op(opCall, f)
	}
}

// closedTable tells whether calls do not go through a table any more.
func (w *rewriter) closedTable(i int) bool {
	return slices.ContainsFunc(w.closed, func(c *closed) bool { return c.index == uint32(i) })
}

// emptied returns what becomes of the segments of closed tables: they keep their numbers.
func (w *rewriter) emptied() (list []other) {
	for _, s := range w.m.elements {
		if s.active && w.closedTable(int(s.table)) {
			empty := appendUint([]byte{2}, s.table)
			list = append(list, other{s.from, s.to, append(empty, opI32Const, 0, opEnd, 0, 0)})
		}
	}
	return list
}

// trapSegments are the segments of closed tables.
func (w *rewriter) trapSegments() (list [][]byte) {
	for _, c := range w.closed {
		b := appendUint([]byte{2}, c.index)
		b = appendUint(append(b, opI32Const, 0, opEnd, 0, trapEntries), w.slow)
		list = append(list, appendUint(b, uint32(w.m.imports)))
	}
	return list
}
