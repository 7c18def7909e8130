package meter

import "slices"

// code.go writes functions anew.

// codeSection returns the code section.
func (w *rewriter) codeSection() []byte {
	n := len(w.m.bodies) + len(w.ours)
	out := appendUint(make([]byte, 0, len(w.m.sections[secCode])*3/2+1024), uint32(n))
	for i := range w.m.bodies {
		out = w.code(out, i)
	}
	for _, f := range w.ours {
		code := f.code()
		out = append(appendUint(out, uint32(len(code))), code...)
	}
	return out
}

// slowFunction is the code of the function that is called when there is no fuel or no stack left.
// Whoever calls it goes back to where it paid, and so gets back what it paid:
//
//	(func (param $paid i64)
//	  (if (i32.gt_s (global.get $depth) (i32.const MaxDepth))
//	    (then (drop (call $tick (i64.const NoStack))) unreachable))
//	  (if (i64.lt_s (global.get $fuel) (i64.const 0))
//	    (then (global.set $fuel (call $tick (global.get $fuel)))))
//	  (global.set $fuel (i64.add (global.get $fuel) (local.get $paid))))
func (w *rewriter) slowFunction() []byte {
	tick := uint32(w.m.imports)
	e := emitter{out: []byte{0}}
	e.op(opGlobalGet, w.depth)
	e.i32(MaxDepth)
	e.raw(opI32GtS, opIf, typeNone)
	e.i64(NoStack)
	e.op(opCall, tick)
	e.raw(opDrop, opUnreachable, opEnd)
	e.op(opGlobalGet, w.fuel)
	e.i64(0)
	e.raw(opI64LtS, opIf, typeNone)
	e.op(opGlobalGet, w.fuel)
	e.op(opCall, tick)
	e.op(opGlobalSet, w.fuel)
	e.raw(opEnd)
	e.op(opGlobalGet, w.fuel)
	e.op(opLocalGet, 0)
	e.raw(opI64Add)
	e.op(opGlobalSet, w.fuel)
	e.raw(opEnd)
	return e.out
}

// emitter writes instructions.
type emitter struct{ out []byte }

func (e *emitter) raw(b ...byte)            { e.out = append(e.out, b...) }
func (e *emitter) op(op byte, index uint32) { e.out = appendUint(append(e.out, op), index) }
func (e *emitter) i32(v int32)              { e.out = appendInt(append(e.out, opI32Const), int64(v)) }
func (e *emitter) i64(v int64)              { e.out = appendInt(append(e.out, opI64Const), v) }

// code appends the code of a function, with its size before it.
func (w *rewriter) code(out []byte, i int) []byte {
	b := &w.m.bodies[i]
	at := len(out)
	out = append(out, 0, 0, 0, 0, 0) // its size, when it is known
	c := &w.coder
	*c = coder{emitter: emitter{out}, w: w, b: b, r: reader{b: b.code, p: b.begin}, copied: b.begin,
		open: c.open[:0], regions: c.regions[:0]}
	if w.lights.state[i] == light {
		c.raw(b.code[:b.begin]...)
		c.light()
	} else {
		c.heavy()
	}
	putPadded(c.out[at:], uint64(len(c.out)-at-5))
	return c.out
}

// coder writes a function anew. It was read before, so nothing is checked here.
type coder struct {
	emitter
	w      *rewriter
	b      *body
	r      reader
	copied int // how far code was copied

	fuel, length uint32   // locals of ours
	loops        int      // that were seen
	open         []int    // for each block that is open, its region
	regions      []region // of the function and its loops
}

// region is a function or a loop without the loops in it.
type region struct {
	cost uint64
	at   [2]int // where it is written in out: five octets each
	fast bool   // the fuel is in the local
}

// maxStretch is what code may cost behind one another without a check: that many loads that
// miss all caches are some hundred microseconds, in which nothing can stop the guest.
const maxStretch = 2 << 10

// upTo copies code up to a place.
func (c *coder) upTo(at int) {
	c.raw(c.b.code[c.copied:at]...)
	c.copied = c.r.p
}

// light copies a function that needs no checks.
func (c *coder) light() {
	for c.r.p < len(c.b.code) {
		c.r.skim(c.b.locals)
		switch in := c.r.instr(); in.op {
		case opCall:
			c.upTo(in.at)
			c.op(opCall, c.w.function(in.a))
		case opRefFunc:
			c.upTo(in.at)
			c.reference(in.a)
		}
	}
	c.upTo(len(c.b.code))
}

// reference takes a reference of a function out of our table.
func (c *coder) reference(f uint32) {
	c.i32(int32(c.w.reference(f)))
	c.op(opTableGet, c.w.refTable)
}

// heavy writes a function with checks:
//
//	depth += frame
//	check
//	block (result ...)
//	  code, in which return is a branch to the end of this block
//	end
//	depth -= frame
func (c *coder) heavy() {
	c.locals()
	c.addDepth(opI32Add)
	c.raw(opLoop, typeNone)
	c.check(func() {
		c.payGlobal()
		c.i32(MaxDepth)
		c.op(opGlobalGet, c.w.depth)
		c.raw(opI32Sub, opI64ExtendI32, opI64Or)
	}, false)
	c.raw(opEnd, opBlock)
	c.resultType()
	for c.r.p < len(c.b.code) {
		c.regions[c.open[len(c.open)-1]].cost += c.r.skim(c.b.locals)
		c.step(c.r.instr())
	}
}

// locals declares the function's locals and ours.
func (c *coder) locals() {
	b := c.b
	n, next := b.groups, b.locals
	ours := []byte(nil)
	if slices.Contains(b.tight, true) {
		c.fuel, next = next, next+1
		n, ours = n+1, append(ours, 1, typeI64)
	}
	if b.bulk {
		c.length = next
		n, ours = n+1, append(ours, 1, typeI32)
	}
	c.out = append(appendUint(c.out, uint32(n)), b.code[b.decls:b.begin]...)
	c.raw(ours...)
}

// resultType writes the type of a block that leaves the function's results.
func (c *coder) resultType() {
	switch results := c.w.m.types[c.b.typ].results; len(results) {
	case 0:
		c.raw(typeNone)
	case 1:
		c.raw(results[0])
	default:
		c.out = appendInt(c.out, int64(c.w.typeOf(funcType{nil, results})))
	}
}

func (c *coder) addDepth(op byte) {
	weight := c.b.frame()
	if c.b.through {
		weight += c.w.callFrame
	}
	c.op(opGlobalGet, c.w.depth)
	c.i32(int32(weight))
	c.raw(op)
	c.op(opGlobalSet, c.w.depth)
}

// check begins a region, at the beginning of a loop:
//
//	block $enough
//	  left                         ;; pays, and leaves a number: below 0 is not enough
//	  i64.const 0  i64.ge_s  br_if $enough
//	  i64.const cost  call $slow
//	  br to the loop
//	end
//
// The call does not come back into the middle of the loop, but goes to where it begins: else
// the compiler would have each value that lives across the call in memory, in every turn.
func (c *coder) check(left func(), fast bool) {
	c.open = append(c.open, len(c.regions))
	c.regions = append(c.regions, region{})
	c.raw(opBlock, typeNone, opBlock, typeNone)
	left()
	c.i64(0)
	c.raw(opI64LtS, opBrIf, 0, opBr, 1, opEnd)
	c.slow(fast)
	c.raw(opBr, 1, opEnd)
}

// slow calls for more.
func (c *coder) slow(fast bool) {
	c.cost(1)
	c.op(opCall, c.w.slow)
	if fast {
		c.fetch()
	}
}

// fetch puts the fuel into the local.
func (c *coder) fetch() {
	c.op(opGlobalGet, c.w.fuel)
	c.op(opLocalSet, c.fuel)
}

// cost writes the cost of the last region, which is not yet known.
func (c *coder) cost(i int) {
	c.raw(opI64Const)
	c.regions[len(c.regions)-1].at[i] = len(c.out)
	c.raw(0, 0, 0, 0, 0)
}

// payGlobal takes the cost of the last region from the fuel in the global, and leaves what
// is left.
func (c *coder) payGlobal() {
	c.op(opGlobalGet, c.w.fuel)
	c.cost(0)
	c.raw(opI64Sub)
	c.op(opGlobalSet, c.w.fuel)
	c.op(opGlobalGet, c.w.fuel)
}

// payLocal does so with the local, which saves a load in every turn of a tight loop.
func (c *coder) payLocal() {
	c.op(opLocalGet, c.fuel)
	c.cost(0)
	c.raw(opI64Sub)
	c.op(opLocalTee, c.fuel)
	c.op(opGlobalSet, c.w.fuel)
	c.op(opLocalGet, c.fuel)
}

// loop writes the beginning of a loop.
func (c *coder) loop(in instr) {
	fast := c.b.tight[c.loops]
	c.loops++
	pay := c.payGlobal
	if fast {
		c.upTo(in.at)
		c.fetch()
		c.raw(c.b.code[in.at:c.r.p]...)
		pay = c.payLocal
	} else {
		c.upTo(c.r.p)
	}
	if in.a == 0 || len(c.w.m.types[in.a-1].params) == 0 {
		c.check(pay, fast)
		c.regions[len(c.regions)-1].fast = fast
		return
	}
	// A branch to this loop needs its parameters, which are out of reach in a block.
	c.open = append(c.open, len(c.regions))
	c.regions = append(c.regions, region{fast: fast})
	pay()
	c.ifEmpty(func() { c.slow(fast) })
}

// ifEmpty does something if the number on the stack is below 0.
func (c *coder) ifEmpty(then func()) {
	c.i64(0)
	c.raw(opI64LtS, opIf, typeNone)
	then()
	c.raw(opEnd)
}

// stretch begins a region in the middle of one that costs much, before an instruction. It ends
// where the block ends: who jumps over the check jumps over what it pays for.
func (c *coder) stretch(in instr) {
	c.raw(c.b.code[c.copied:in.at]...)
	c.copied = in.at
	top := len(c.open) - 1
	old := c.open[top]
	fast := c.regions[old].fast
	if top == 0 || c.open[top-1] != old {
		c.regions[old].write(c.out)
	}
	c.open[top] = len(c.regions)
	c.regions = append(c.regions, region{fast: fast})
	if fast {
		c.payLocal()
	} else {
		c.payGlobal()
	}
	c.ifEmpty(func() { c.slow(fast) })
}

// write writes the cost where it is paid.
func (r *region) write(out []byte) {
	for _, at := range r.at {
		putPadded(out[at:], min(r.cost+1, 1<<33))
	}
}

// step writes an instruction of a heavy function.
func (c *coder) step(in instr) {
	if c.regions[c.open[len(c.open)-1]].cost >= maxStretch {
		c.stretch(in)
	}
	r := &c.regions[c.open[len(c.open)-1]]
	r.cost += cost(in)
	switch in.op {
	case opBlock, opIf:
		c.open = append(c.open, c.open[len(c.open)-1])
	case opLoop:
		c.loop(in)
	case opEnd:
		c.end()
	case opReturn:
		c.upTo(in.at)
		c.op(opBr, uint32(len(c.open)-1))
	case opCall:
		c.upTo(in.at)
		c.op(opCall, c.w.function(in.a))
		if s, ok := c.w.lights.light(in.a); ok {
			r.cost += s.cost
		} else if int(in.a) < c.w.m.imports {
			r.cost += costHost
		}
	case opCallIndirect:
		c.indirect(in)
	case opRefFunc:
		c.upTo(in.at)
		c.reference(in.a)
	case opPrefixFC:
		c.bulk(in)
	}
}

// end ends a block.
func (c *coder) end() {
	last := c.open[len(c.open)-1]
	c.open = c.open[:len(c.open)-1]
	if len(c.open) == 0 {
		c.upTo(c.r.p) // ends our block
		c.addDepth(opI32Sub)
		c.raw(opEnd)
	}
	if len(c.open) == 0 || c.open[len(c.open)-1] != last {
		c.regions[last].write(c.out)
	}
}

// bulk makes an instruction pay for the length that is on top of the stack.
func (c *coder) bulk(in instr) {
	shift := 0
	switch in.sub {
	case fcMemoryInit, fcMemoryCopy, fcMemoryFill:
		shift = 6
	case fcTableInit, fcTableCopy, fcTableGrow, fcTableFill:
		shift = 3
	default:
		return
	}
	c.upTo(in.at)
	c.op(opLocalTee, c.length)
	if in.sub == fcMemoryCopy || in.sub == fcMemoryFill {
		c.move(in, func() { c.payLength(shift) })
		return
	}
	c.payLength(shift)
	c.raw(c.b.code[in.at:c.r.p]...)
}

// payLength pays for the length that is in the local, and calls for more if need be.
func (c *coder) payLength(shift int) {
	c.op(opGlobalGet, c.w.fuel)
	c.op(opLocalGet, c.length)
	c.raw(opI64ExtendU32)
	c.i64(int64(shift))
	c.raw(opI64ShrU, opI64Sub)
	c.op(opGlobalSet, c.w.fuel)
	c.op(opGlobalGet, c.w.fuel)
	c.ifEmpty(func() {
		c.i64(0)
		c.op(opCall, c.w.slow)
	})
}
