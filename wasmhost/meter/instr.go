package meter

// instr.go knows where instructions begin and end. Section 5.4 of the specification.

// Opcodes that the rewriter reads or writes.
const (
	opUnreachable  = 0x00
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opDrop         = 0x1a
	opSelect       = 0x1b
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opTableGet     = 0x25
	opTableSet     = 0x26
	opMemorySize   = 0x3f
	opMemoryGrow   = 0x40
	opI32Const     = 0x41
	opI64Const     = 0x42
	opI32LtU       = 0x49
	opI32GtS       = 0x4a
	opI32LeU       = 0x4d
	opI64LtS       = 0x53
	opI64GtU       = 0x56
	opI64GeS       = 0x59
	opI32Add       = 0x6a
	opI32Sub       = 0x6b
	opI32Or        = 0x72
	opI32ShrU      = 0x76
	opI64Add       = 0x7c
	opI64Sub       = 0x7d
	opI64Or        = 0x84
	opI64Shl       = 0x86
	opI64ShrU      = 0x88
	opI64ExtendI32 = 0xac // signed
	opI64ExtendU32 = 0xad
	opRefNull      = 0xd0
	opRefFunc      = 0xd2
	opPrefixFC     = 0xfc
	opPrefixFD     = 0xfd

	fcMemoryInit = 8
	fcDataDrop   = 9
	fcMemoryCopy = 10
	fcMemoryFill = 11
	fcTableInit  = 12
	fcElemDrop   = 13
	fcTableCopy  = 14
	fcTableGrow  = 15
	fcTableSize  = 16
	fcTableFill  = 17
)

// Types of values. Section 5.3.
const (
	typeI32       = 0x7f
	typeI64       = 0x7e
	typeF32       = 0x7d
	typeF64       = 0x7c
	typeV128      = 0x7b
	typeFuncref   = 0x70
	typeExternref = 0x6f
	typeNone      = 0x40 // of a block
)

func isValueType(t byte) bool { return t >= typeV128 && t <= typeI32 || isRefType(t) }
func isRefType(t byte) bool   { return t == typeFuncref || t == typeExternref }

// Kinds of immediates.
const (
	immBad = iota
	immNone
	immBlock
	immLabel
	immLabels
	immFunc
	immTypeTable
	immTypes
	immLocal
	immGlobal
	immTable
	immMemarg
	immMemory
	immS32
	immS64
	imm4
	imm8
	immRef
	immFC
	immFD
)

// immediates has the kind of what follows each opcode. What is not in it are instructions
// of proposals: tail calls, exceptions, threads, garbage collection.
var immediates = func() (t [256]byte) {
	set := func(from, to int, kind byte) {
		for i := from; i <= to; i++ {
			t[i] = kind
		}
	}
	set(0x00, 0x01, immNone)
	set(opBlock, opIf, immBlock)
	set(opElse, opElse, immNone)
	set(opEnd, opEnd, immNone)
	set(opBr, 0x0d, immLabel)
	set(opBrTable, opBrTable, immLabels)
	set(opReturn, opReturn, immNone)
	set(opCall, opCall, immFunc)
	set(opCallIndirect, opCallIndirect, immTypeTable)
	set(0x1a, 0x1b, immNone)
	set(0x1c, 0x1c, immTypes)
	set(opLocalGet, opLocalTee, immLocal)
	set(opGlobalGet, opGlobalSet, immGlobal)
	set(opTableGet, opTableSet, immTable)
	set(0x28, 0x3e, immMemarg)
	set(0x3f, opMemoryGrow, immMemory)
	set(opI32Const, opI32Const, immS32)
	set(opI64Const, opI64Const, immS64)
	set(0x43, 0x43, imm4)
	set(0x44, 0x44, imm8)
	set(0x45, 0xc4, immNone)
	set(opRefNull, opRefNull, immRef)
	set(0xd1, 0xd1, immNone)
	set(opRefFunc, opRefFunc, immFunc)
	set(opPrefixFC, opPrefixFC, immFC)
	set(opPrefixFD, opPrefixFD, immFD)
	return t
}()

// instr is an instruction.
type instr struct {
	op   byte
	sub  uint32 // after a prefix
	at   int    // where it begins
	a, b uint32 // its indices; of br_table, the number of labels and the highest
}

// instr reads an instruction. What it does not read of the immediates, constants for
// example, is the compiler's to check.
func (r *reader) instr() (in instr) {
	in.at = r.p
	in.op = r.byte()
	switch immediates[in.op] {
	case immNone:
	case immLabel, immFunc, immLocal, immGlobal, immTable, immMemory:
		in.a = r.u32()
	case immS32:
		r.skipLEB(5)
	case immMemarg:
		in.a, in.b = r.u32(), r.u32()
	case immBlock:
		r.blockType(&in)
	case immTypeTable:
		in.a, in.b = r.u32(), r.u32()
	case immS64:
		r.skipLEB(10)
	case immLabels:
		r.labels(&in)
	case immTypes:
		r.take(uint32(r.count("types of a select", maxParams, 1)))
	case imm4:
		r.take(4)
	case imm8:
		r.take(8)
	case immRef:
		in.a = uint32(r.byte())
	case immFC:
		r.prefixFC(&in)
	case immFD:
		r.prefixFD(&in)
	default:
		if r.err == nil {
			r.fail("opcode %#x, which is not in WebAssembly 2.0", in.op)
		}
	}
	return in
}

// blockType reads the type of a block: in b a value type or typeNone, or in a the index of
// a type, plus one. Section 5.4.1: an index is a signed number of 33 bits.
func (r *reader) blockType(in *instr) {
	if r.p < len(r.b) {
		if t := r.b[r.p]; t == typeNone || isValueType(t) {
			r.p++
			in.b = uint32(t)
			return
		}
	}
	v := r.u32()
	if r.err == nil && r.b[r.p-1]&0x40 != 0 || v == 1<<32-1 {
		r.fail("a block of an unknown type")
	}
	in.a = v + 1
}

func (r *reader) labels(in *instr) {
	in.a = uint32(r.count("labels", maxCode, 1))
	for range in.a + 1 {
		in.b = max(in.b, r.u32())
		if r.err != nil {
			return
		}
	}
}

func (r *reader) prefixFC(in *instr) {
	switch in.sub = r.u32(); {
	case in.sub < fcMemoryInit:
	case in.sub == fcMemoryInit, in.sub == fcMemoryCopy, in.sub == fcTableInit, in.sub == fcTableCopy:
		in.a, in.b = r.u32(), r.u32()
	case in.sub <= fcTableFill:
		in.a = r.u32()
	default:
		r.fail("opcode 0xfc %d, which is not in WebAssembly 2.0", in.sub)
	}
}

// prefixFD reads an instruction on vectors. Section 5.4.8.
func (r *reader) prefixFD(in *instr) {
	switch in.sub = r.u32(); {
	case in.sub <= 11, in.sub == 92, in.sub == 93: // load, store
		in.a, in.b = r.u32(), r.u32()
	case in.sub == 12, in.sub == 13: // const, shuffle
		r.take(16)
	case in.sub >= 21 && in.sub <= 34: // lanes
		r.byte()
	case in.sub >= 84 && in.sub <= 91: // load and store of lanes
		in.a, in.b = r.u32(), r.u32()
		r.byte()
	case in.sub > 255:
		r.fail("opcode 0xfd %d, which is not in WebAssembly 2.0", in.sub)
	}
}

// Kinds of instructions for skim.
const (
	skimNot   = iota
	skimFree  // nothing follows, and it costs nothing
	skimOne   // nothing follows, and it costs one
	skimLocal // a local
	skimI32   // a number of at most five octets
	skimI64   // a number of at most ten octets
	skimMem   // an alignment and an offset
)

// skims has the kind of each opcode.
var skims = func() (t [256]byte) {
	for op, kind := range immediates {
		switch kind {
		case immNone:
			t[op] = skimOne
		case immLocal:
			t[op] = skimLocal
		case immS32:
			t[op] = skimI32
		case immS64:
			t[op] = skimI64
		case immMemarg:
			t[op] = skimMem
		}
	}
	t[0x01], t[opDrop] = skimFree, skimFree
	t[opElse], t[opEnd], t[opReturn] = skimNot, skimNot, skimNot
	return t
}()

// skim passes over instructions that are neither checked nor changed, locals below the given
// number among them, and returns what they cost. It stops at one that must be looked at
// closely. Most instructions are read here, which is what makes reading fast.
func (r *reader) skim(locals uint32) (cost uint64) {
	const longest = 11 // octets
	b, p := r.b, r.p
	for p+longest <= len(b) && cost < maxStretch {
		n := 1
		switch skims[b[p]] {
		case skimFree:
		case skimOne:
			cost++
		case skimLocal:
			if n = 2; b[p+1] >= 0x80 || uint32(b[p+1]) >= locals {
				n = 0
			}
		case skimI32:
			n = numberEnd(b[p:p+6], 1)
		case skimI64:
			n = numberEnd(b[p:p+11], 1)
		case skimMem:
			if n = numberEnd(b[p:p+7], 2); b[p+1] >= 0x80 {
				n = 0
			}
			if n > 0 {
				cost++
			}
		default:
			n = 0
		}
		if n == 0 {
			break
		}
		p += n
	}
	r.p = p
	return cost
}

// numberEnd returns where the number ends that begins at an index, 0 if it does not.
func numberEnd(b []byte, at int) int {
	for i := at; i < len(b); i++ {
		if b[i] < 0x80 {
			return i + 1
		}
	}
	return 0
}
