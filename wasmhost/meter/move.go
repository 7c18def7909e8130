package meter

// move.go: memory.fill and memory.copy of much at once. One instruction runs to its end:
// over sixteen MiB, of which the system has to find each page, that takes ten milliseconds, in
// which nobody can stop the guest and Go's collector waits. So what is longer than maxMove is
// done piece by piece, by functions of ours that look at the fuel before each.

// maxMove is the most octets of one instruction: four pages that the system may have to find.
const maxMove = 16 << 10

// pieceCost is what a piece costs.
const pieceCost = maxMove>>6 + costBulk

// Names of our functions in stack traces, beside tickFunction.
const (
	fillFunction = TickModule + "_fill"
	copyFunction = TickModule + "_copy"
)

// addMoves adds our functions if the module needs them.
func (w *rewriter) addMoves() {
	if !w.m.used.moves {
		return
	}
	w.moveType = w.typeOf(funcType{[]byte{typeI32, typeI32, typeI32}, nil})
	w.fill = w.add(w.moveType, fillFunction, w.fillCode)
	w.copy = w.add(w.moveType, copyFunction, w.copyCode)
}

// move writes an instruction that takes its length from the stack, where it was put into the
// local length too: (if (param i32 i32 i32) short (then it) (else ours)).
func (c *coder) move(in instr, pay func()) {
	c.op(opLocalGet, c.length)
	c.i32(maxMove)
	c.raw(opI32LeU, opIf)
	c.out = appendInt(c.out, int64(c.w.moveType))
	pay()
	c.raw(c.b.code[in.at:c.r.p]...)
	c.raw(opElse)
	if in.sub == fcMemoryFill {
		c.op(opCall, c.w.fill)
	} else {
		c.op(opCall, c.w.copy)
	}
	c.raw(opEnd)
}

// Locals of our functions.
const (
	moveTo, moveFrom, moveLength, movePiece = 0, 1, 2, 3 // moveFrom is the octet to fill with, too
)

// fillCode is the code of our function that fills.
//
// A range outside of memory is left to one instruction, which traps and writes nothing.
// Memory never gets smaller, so a range that was inside stays there.
func (w *rewriter) fillCode() []byte {
	fill := mover{emitter{[]byte{1, 1, typeI32}}, w}
	fill.outside(moveTo)
	fill.trapIf(opPrefixFC, fcMemoryFill, 0)
	fill.forward(opPrefixFC, fcMemoryFill, 0)
	fill.raw(opEnd)
	return fill.out
}

// copyCode is that of the one that copies. What is copied to a higher place is copied from
// its end, so that no piece is written over before it was read.
func (w *rewriter) copyCode() []byte {
	move := mover{emitter{[]byte{1, 1, typeI32}}, w}
	move.outside(moveTo)
	move.outside(moveFrom)
	move.raw(opI32Or)
	move.trapIf(opPrefixFC, fcMemoryCopy, 0, 0)
	move.op(opLocalGet, moveTo)
	move.op(opLocalGet, moveFrom)
	move.raw(opI32LeU, opIf, typeNone)
	move.forward(opPrefixFC, fcMemoryCopy, 0, 0)
	move.raw(opElse)
	move.backward()
	move.raw(opEnd, opEnd)
	return move.out
}

// mover writes one of our functions.
type mover struct {
	emitter
	w *rewriter
}

// outside leaves whether the range at a local ends behind the memory.
func (e *mover) outside(at uint32) {
	e.op(opLocalGet, at)
	e.raw(opI64ExtendU32)
	e.op(opLocalGet, moveLength)
	e.raw(opI64ExtendU32, opI64Add, opMemorySize, 0, opI64ExtendU32)
	e.i64(16)
	e.raw(opI64Shl, opI64GtU)
}

// trapIf does the whole at once, and returns, if the i32 on the stack is not 0.
func (e *mover) trapIf(instruction ...byte) {
	e.raw(opIf, typeNone)
	e.op(opLocalGet, moveTo)
	e.op(opLocalGet, moveFrom)
	e.op(opLocalGet, moveLength)
	e.raw(instruction...)
	e.raw(opReturn, opEnd)
}

// piece sets how long the next piece is, and pays for it.
func (e *mover) piece() {
	e.op(opLocalGet, moveLength)
	e.i32(maxMove)
	e.op(opLocalGet, moveLength)
	e.i32(maxMove)
	e.raw(opI32LtU, opSelect)
	e.op(opLocalSet, movePiece)
	e.op(opGlobalGet, e.w.fuel)
	e.i64(pieceCost)
	e.raw(opI64Sub)
	e.op(opGlobalSet, e.w.fuel)
	e.op(opGlobalGet, e.w.fuel)
	e.i64(0)
	e.raw(opI64LtS, opIf, typeNone)
	e.i64(pieceCost) // it is given back: the piece that follows is the host's
	e.op(opCall, e.w.slow)
	e.raw(opEnd)
}

// step adds the length of the piece to a local, or takes it from it.
func (e *mover) step(local uint32, op byte) {
	e.op(opLocalGet, local)
	e.op(opLocalGet, movePiece)
	e.raw(op)
	e.op(opLocalSet, local)
}

// forward does piece after piece from the front.
func (e *mover) forward(instruction ...byte) {
	e.raw(opLoop, typeNone)
	e.piece()
	e.op(opLocalGet, moveTo)
	e.op(opLocalGet, moveFrom)
	e.op(opLocalGet, movePiece)
	e.raw(instruction...)
	e.step(moveTo, opI32Add)
	if instruction[1] == fcMemoryCopy {
		e.step(moveFrom, opI32Add)
	}
	e.step(moveLength, opI32Sub)
	e.op(opLocalGet, moveLength)
	e.raw(opBrIf, 0, opEnd)
}

// backward copies piece after piece from the end.
func (e *mover) backward() {
	e.raw(opLoop, typeNone)
	e.piece()
	e.step(moveLength, opI32Sub)
	for _, at := range []uint32{moveTo, moveFrom} {
		e.op(opLocalGet, at)
		e.op(opLocalGet, moveLength)
		e.raw(opI32Add)
	}
	e.op(opLocalGet, movePiece)
	e.raw(opPrefixFC, fcMemoryCopy, 0, 0)
	e.op(opLocalGet, moveLength)
	e.raw(opBrIf, 0, opEnd)
}
