package meter

// body.go reads the code of functions: it checks every index and label, and adds up what
// the rewriter must know before it writes the first of them.

// body is a function's code.
type body struct {
	typ    uint32
	code   []byte // local declarations and instructions
	groups int    // of locals
	decls  int    // where the groups begin in code
	begin  int    // where the instructions begin
	locals uint32 // parameters and locals
	wide   uint32 // of them, those of 128 bits

	blocks  uint32
	results uint32 // of calls, beyond one each
	cost    uint64 // of the code outside of loops
	heavy   bool   // it cannot be light
	bulk    bool   // it has bulk operations
	through bool   // it calls through tables
	tight   []bool // for each loop in order: no loop, call or bulk operation is in it
	// calls are the functions that it calls: a part of Module.calls. They are kept while
	// it may be light.
	calls []uint32
}

// Costs of instructions, in units of fuel.
const (
	costCall     = 8
	costIndirect = 12
	costHost     = 32
	costGrow     = 1024
	costBulk     = 32
)

func (m *Module) body(r *reader) {
	size := r.u32()
	if size > maxCode {
		r.fail("a function of %d octets, the most is %d", size, maxCode)
	}
	f := &reader{b: r.take(size)}
	b := body{code: f.b}
	m.locals(f, &b)
	if i := m.imports + len(m.bodies); i < len(m.funcs) {
		b.typ = m.funcs[i]
		m.params(f, &b)
	} else {
		f.fail("code, and no function that it belongs to")
	}
	m.instructions(f, &b)
	if f.err != nil {
		r.fail("function %d: %w", m.imports+len(m.bodies), f.err)
	}
	m.bodies = append(m.bodies, b)
}

func (m *Module) locals(f *reader, b *body) {
	total, wide := uint64(0), uint64(0)
	b.groups = f.count("groups of locals", maxLocals, 2)
	b.decls = f.p
	for range b.groups {
		n := uint64(f.u32())
		t := f.byte()
		checkValueType(f, t)
		if total += n; t == typeV128 {
			wide += n
		}
	}
	if total > maxLocals {
		f.fail("a function of %d locals, the most is %d", total, maxLocals)
	}
	b.locals, b.wide, b.begin = uint32(total), uint32(wide), f.p
}

func (m *Module) params(f *reader, b *body) {
	for _, t := range m.types[b.typ].params {
		if b.locals++; t == typeV128 {
			b.wide++
		}
	}
}

// Limits of a function. The compiler's time grows with the square of its blocks, faster
// with loops, and with the values that each local has at each place where paths meet. Of
// 12 MB of guests in Go and C, none has a function with more than 1007 blocks, 53 loops, 549
// blocks in one another or 57399 for blocks times locals; their squares of blocks add up
// to 9 million for 4 MB.
const (
	maxBlocks  = 8 << 10
	maxLoops   = 512
	maxNesting = 2 << 10
	maxMeets   = 128 << 10 // blocks times locals
	maxEffort  = 256 << 20 // of a module: squares of blocks, and 16 times what maxMeets is about
)

// instructions reads to the end of a function.
func (m *Module) instructions(f *reader, b *body) {
	w := walk{m: m, b: b, first: len(m.calls), open: append(m.scratch[:0], opBlock)}
	for f.err == nil && len(w.open) > 0 {
		if cost := f.skim(b.locals); len(w.loops) == 0 {
			b.cost += cost
		}
		in := f.instr()
		if f.err != nil {
			return
		}
		w.step(f, in)
	}
	m.scratch = w.open
	b.blocks = uint32(w.blocks)
	if f.err == nil && f.left() > 0 {
		f.fail("%d octets behind its end", f.left())
	}
	if m.effort += w.blocks * (w.blocks + 16*int(b.locals)); m.effort > maxEffort {
		f.fail("too many functions of many blocks: compiling them would take too long")
	}
	if b.heavy {
		m.calls = m.calls[:w.first]
	}
	b.calls = m.calls[w.first:len(m.calls):len(m.calls)]
}

// walk is the state while a function is read.
type walk struct {
	m      *Module
	b      *body
	open   []byte // opcodes of the blocks that are open
	loops  []int  // numbers of the loops that are open
	blocks int
	first  int // of its calls in Module.calls
}

// notTight notes that the innermost loop has something in it that takes long.
func (w *walk) notTight() {
	if n := len(w.loops); n > 0 {
		w.b.tight[w.loops[n-1]] = false
	}
}

// step takes the next instruction.
func (w *walk) step(f *reader, in instr) {
	m := w.m
	switch in.op {
	case opBlock, opLoop, opIf:
		w.enter(f, in)
	case opElse:
		if w.open[len(w.open)-1] != opIf {
			f.fail("an else without its if")
		}
		w.open[len(w.open)-1] = opElse
	case opEnd:
		if w.open[len(w.open)-1] == opLoop {
			w.loops = w.loops[:len(w.loops)-1]
		}
		w.open = w.open[:len(w.open)-1]
	case opBr, opBrIf:
		below(f, "label", in.a, len(w.open))
	case opBrTable:
		below(f, "label", in.b, len(w.open))
	case opCall:
		if below(f, "function", in.a, len(m.funcs)); int(in.a) < m.imports {
			w.b.heavy = true
		}
		m.calls = append(m.calls, in.a)
		w.notTight()
		if f.err == nil {
			w.results(m.funcs[in.a])
		}
	case opCallIndirect:
		below(f, "type", in.a, len(m.types))
		below(f, "table", in.b, len(m.tables))
		w.b.heavy = true
		w.notTight()
		if f.err == nil {
			w.results(in.a)
			w.b.through = true
			m.calledBy(&m.tables[in.b], in.a)
		}
	case opLocalGet, opLocalSet, opLocalTee:
		if in.a >= w.b.locals {
			below(f, "local", in.a, int(w.b.locals))
		}
	case opGlobalGet, opGlobalSet:
		if below(f, "global", in.a, len(m.globals)); in.op == opGlobalSet {
			m.changes(f, in.a)
		}
	case opTableGet, opTableSet:
		below(f, "table", in.a, len(m.tables))
		m.opened(in.a)
		m.used.resetless = m.used.resetless || in.op == opTableSet
	case opMemoryGrow:
		w.b.heavy = true
		w.notTight()
	case opRefFunc:
		w.reference(f, in)
	case opPrefixFC:
		w.bulk(f, in)
	}
	if len(w.loops) == 0 {
		w.b.cost += cost(in)
	}
}

// results counts what a call leaves.
func (w *walk) results(typ uint32) {
	for i, t := range w.m.types[typ].results {
		if i > 0 {
			w.b.results++
		}
		if t == typeV128 {
			w.b.results++
		}
	}
}

func below(f *reader, what string, i uint32, n int) {
	if uint64(i) >= uint64(n) && f.err == nil {
		f.fail("%s %d, there are %d", what, i, n)
	}
}

func (w *walk) enter(f *reader, in instr) {
	if in.a > 0 {
		below(f, "type", in.a-1, len(w.m.types))
	}
	w.blocks++
	switch {
	case w.blocks > maxBlocks:
		f.fail("more than %d blocks", maxBlocks)
	case len(w.open) > maxNesting:
		f.fail("more than %d blocks in one another", maxNesting)
	case len(w.b.tight) == maxLoops && in.op == opLoop:
		f.fail("more than %d loops", maxLoops)
	case w.blocks*int(w.b.locals) > maxMeets:
		f.fail("more than %d blocks times locals", maxMeets)
	}
	if in.op == opLoop {
		w.notTight()
		w.loops = append(w.loops, len(w.b.tight))
		w.b.tight = append(w.b.tight, true)
		w.b.heavy = true
	}
	w.open = append(w.open, in.op)
}

// changes notes a global that is written.
func (m *Module) changes(f *reader, i uint32) {
	if f.err != nil {
		return
	}
	switch g := m.globals[i]; {
	case !g.mutable:
		f.fail("global %d does not change", i)
	case g.typ < typeF64:
		m.used.resetless = true
	}
}

func (w *walk) reference(f *reader, in instr) {
	if below(f, "function", in.a, len(w.m.funcs)); f.err != nil {
		return
	}
	if int(in.a) >= len(w.m.declared) || !w.m.declared[in.a] {
		f.fail("a reference of function %d, which is in no element segment, export or global", in.a)
	}
	w.m.used.refs = true
}

// bulk takes an instruction that begins with 0xfc.
func (w *walk) bulk(f *reader, in instr) {
	m := w.m
	if in.sub < fcMemoryInit || in.sub == fcTableSize {
		if in.sub == fcTableSize {
			below(f, "table", in.a, len(m.tables))
			m.opened(in.a)
		}
		return
	}
	w.b.heavy, w.b.bulk = true, true
	w.notTight()
	switch in.sub {
	case fcMemoryInit, fcDataDrop:
		below(f, "data segment", in.a, max(m.dataCount, 0))
		if in.sub == fcMemoryInit {
			below(f, "memory", in.b, 1)
		}
		m.used.data = max(m.used.data, int(in.a)+1)
	case fcMemoryCopy, fcMemoryFill:
		m.used.moves = true
		below(f, "memory", max(in.a, in.b), 1)
		return
	case fcTableInit, fcElemDrop:
		below(f, "element segment", in.a, len(m.elements))
		if in.sub == fcTableInit {
			below(f, "table", in.b, len(m.tables))
			m.opened(in.b)
		}
	default:
		below(f, "table", max(in.a, in.b), len(m.tables))
		if m.opened(in.a); in.sub == fcTableCopy {
			m.opened(in.b)
		}
		m.used.grows = m.used.grows || in.sub == fcTableGrow
	}
	m.used.resetless = true
}

// cost returns what an instruction costs.
func cost(in instr) uint64 {
	switch in.op {
	case opBlock, opLoop, opElse, opEnd, 0x01, 0x1a, opLocalGet, opLocalSet, opLocalTee, opI32Const, opI64Const:
		return 0 // no machine code, or nearly so
	case opCall:
		return costCall
	case opCallIndirect:
		return costIndirect
	case opMemoryGrow:
		return costGrow
	case opPrefixFC:
		if in.sub >= fcMemoryInit {
			return costBulk
		}
	}
	return 1
}
