package meter

// code.go writes functions anew.

// codeSection returns the code section.
func (w *rewriter) codeSection() []byte {
	n := len(w.m.bodies) + 1
	out := appendUint(make([]byte, 0, len(w.m.sections[secCode])*3/2+1024), uint32(n))
	for i := range w.m.bodies {
		out = w.rewriteFunction(out, i)
	}
	return w.slowFunction(out)
}

// slowFunction appends the function that is called when there is no fuel or no stack left:
//
//	(func (param $fuel i64) (result i64)
//	  (if (i32.gt_s (global.get $depth) (i32.const MaxDepth))
//	    (then (drop (call $tick (i64.const NoStack))) unreachable))
//	  (if (i64.lt_s (local.get $fuel) (i64.const 0))
//	    (then (local.set $fuel (call $tick (local.get $fuel)))))
//	  local.get $fuel)
func (w *rewriter) slowFunction(out []byte) []byte {
	tick := uint32(w.m.imports)
	e := emitter{out: append([]byte(nil), 0)}
	e.op(opGlobalGet, w.depth)
	e.i32(MaxDepth)
	e.out = append(e.out, opI32GtS, opIf, typeNone)
	e.i64(NoStack)
	e.op(opCall, tick)
	e.out = append(e.out, 0x1a, opUnreachable, opEnd)
	e.op(opLocalGet, 0)
	e.i64(0)
	e.out = append(e.out, opI64LtS, opIf, typeNone)
	e.op(opLocalGet, 0)
	e.op(opCall, tick)
	e.op(opLocalSet, 0)
	e.out = append(e.out, opEnd)
	e.op(opLocalGet, 0)
	e.out = append(e.out, opEnd)
	return append(appendUint(out, uint32(len(e.out))), e.out...)
}

// emitter writes instructions.
type emitter struct{ out []byte }

func (e *emitter) op(op byte, index uint32) { e.out = appendUint(append(e.out, op), index) }
func (e *emitter) i32(v int32)              { e.out = appendInt(append(e.out, opI32Const), int64(v)) }
func (e *emitter) i64(v int64)              { e.out = appendInt(append(e.out, opI64Const), v) }

// rewriteFunction appends the code of a function.
func (w *rewriter) rewriteFunction(out []byte, i int) []byte {
	b := &w.m.bodies[i]
	at := len(out)
	out = append(out, 0, 0, 0, 0, 0) // its size, when it is known
	c := coder{emitter: emitter{out}, w: w, b: b, r: reader{b: b.code, p: b.begin}, copied: b.begin}
	if w.lights.state[i] == light {
		c.out = append(c.out, b.code[:b.begin]...)
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
	open         []int    // for each block that is open, its region
	regions      []region // of the function and its loops
}

// region is a function or a loop without the loops in it.
type region struct {
	at   int // of its cost in out: five octets
	cost uint64
}

// upTo copies code up to a place.
func (c *coder) upTo(at int) {
	c.out = append(c.out, c.b.code[c.copied:at]...)
	c.copied = c.r.p
}

// light copies a function that needs no checks.
func (c *coder) light() {
	for c.r.p < len(c.b.code) {
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

// heavy writes a function with checks.
//
//	(local $fuel i64) (local $length i32)
//	entry
//	block (result ...)
//	  code, in which return is a branch to the end of this block
//	end
//	exit
func (c *coder) heavy() {
	b := c.b
	c.fuel, c.length = b.locals, b.locals+1
	groups := b.groups + 1
	if b.bulk {
		groups++
	}
	c.out = append(appendUint(c.out, uint32(groups)), b.code[b.decls:b.begin]...)
	c.out = append(c.out, 1, typeI64)
	if b.bulk {
		c.out = append(c.out, 1, typeI32)
	}
	c.enter()
	c.out = c.blockType(append(c.out, opBlock))
	for c.r.p < len(b.code) {
		c.step(c.r.instr())
	}
}

// blockType appends the type of a block that leaves the function's results.
func (c *coder) blockType(out []byte) []byte {
	switch results := c.w.m.types[c.b.typ].results; len(results) {
	case 0:
		return append(out, typeNone)
	case 1:
		return append(out, results[0])
	default:
		return appendInt(out, int64(c.w.typeOf(funcType{nil, results})))
	}
}

// enter takes stack and fuel, and looks at both at once: either is below 0 if their union
// is.
func (c *coder) enter() {
	c.op(opGlobalGet, c.w.depth)
	c.i32(int32(c.b.frame()))
	c.out = append(c.out, opI32Add)
	c.op(opGlobalSet, c.w.depth)
	c.load()
	c.pay()
	c.i32(MaxDepth)
	c.op(opGlobalGet, c.w.depth)
	c.out = append(c.out, opI32Sub, opI64ExtendI32, opI64Or)
	c.check()
	c.open = append(c.open, 0)
}

// load puts the fuel on the stack that is in the global.
func (c *coder) load() { c.op(opGlobalGet, c.w.fuel) }

// store puts the fuel where others look for it.
func (c *coder) store() {
	c.op(opLocalGet, c.fuel)
	c.op(opGlobalSet, c.w.fuel)
}

// pay begins a region: it takes the region's cost from the fuel that is on the stack,
// which stays there.
func (c *coder) pay() {
	c.out = append(c.out, opI64Const)
	c.regions = append(c.regions, region{at: len(c.out)})
	c.out = append(c.out, 0, 0, 0, 0, 0, opI64Sub)
	c.op(opLocalTee, c.fuel)
}

// paid ends a region.
func (c *coder) paid(r region) { putPadded(c.out[r.at:], min(r.cost+1, 1<<33)) }

// check calls for more if the number on the stack is below 0. That it is not comes first, as
// an empty branch: the compiler goes on with what is in registers at the end of the branch
// that it reads first, and at the end of a call that is nothing. With an if that holds the
// call alone, loops keep their variables in memory.
func (c *coder) check() {
	c.i64(0)
	c.out = append(c.out, opI64GeS, opIf, typeNone, opElse)
	c.op(opLocalGet, c.fuel)
	c.op(opCall, c.w.slow)
	c.op(opLocalSet, c.fuel)
	c.out = append(c.out, opEnd)
}

// leave gives back the stack.
func (c *coder) leave() {
	c.store()
	c.op(opGlobalGet, c.w.depth)
	c.i32(int32(c.b.frame()))
	c.out = append(c.out, opI32Sub)
	c.op(opGlobalSet, c.w.depth)
}

// step writes an instruction of a heavy function.
func (c *coder) step(in instr) {
	r := &c.regions[c.open[len(c.open)-1]]
	r.cost += cost(in)
	switch in.op {
	case opBlock, opIf:
		c.open = append(c.open, c.open[len(c.open)-1])
	case opLoop:
		c.upTo(c.r.p)
		c.open = append(c.open, len(c.regions))
		c.op(opLocalGet, c.fuel)
		c.pay()
		c.check()
	case opEnd:
		c.end()
	case opReturn:
		c.upTo(in.at)
		c.op(opBr, uint32(len(c.open)-1))
	case opCall:
		c.upTo(in.at)
		c.call(in.a, r)
	case opCallIndirect:
		c.upTo(in.at)
		c.store()
		c.out = append(c.out, c.b.code[in.at:c.r.p]...)
		c.reload()
	case opRefFunc:
		c.upTo(in.at)
		c.reference(in.a)
	case opPrefixFC:
		c.bulk(in)
	}
}

func (c *coder) call(f uint32, r *region) {
	if s, ok := c.w.lights.light(f); ok {
		r.cost += s.cost
		c.op(opCall, c.w.function(f))
		return
	}
	if int(f) < c.w.m.imports {
		r.cost += costHost
	}
	c.store()
	c.op(opCall, c.w.function(f))
	c.reload()
}

// reload takes back the fuel after a call.
func (c *coder) reload() {
	c.load()
	c.op(opLocalSet, c.fuel)
}

// end ends a block.
func (c *coder) end() {
	last := c.open[len(c.open)-1]
	c.open = c.open[:len(c.open)-1]
	if len(c.open) == 0 {
		c.upTo(c.r.p) // ends our block
		c.leave()
		c.out = append(c.out, opEnd)
	}
	if len(c.open) == 0 || c.open[len(c.open)-1] != last {
		c.paid(c.regions[last])
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
	c.op(opLocalGet, c.fuel)
	c.op(opLocalGet, c.length)
	c.out = append(c.out, opI64ExtendU32)
	c.i64(int64(shift))
	c.out = append(c.out, opI64ShrU, opI64Sub)
	c.op(opLocalTee, c.fuel)
	c.check()
	c.out = append(c.out, c.b.code[in.at:c.r.p]...)
}
