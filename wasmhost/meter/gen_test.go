package meter_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// gen_test.go makes random modules that are valid and come to an end: every function and
// every turn of a loop takes from a global, and gives up when it is used up.

const (
	i32, i64, f32, f64, v128, funcref byte = 0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x70
)

// genType is a function type.
type genType struct{ params, results []byte }

// generator writes one module.
type generator struct {
	*rand.Rand
	types   []genType
	funcs   []int // types of functions; number 0 is an import
	globals []byte

	b      []byte   // code of the function that is written
	locals []byte   // their types
	labels [][]byte // types that a branch to each open block needs
	result []byte
	size   int // instructions that may still be written
	leaf   int // if above 0, only functions below it may be called, and none indirectly
}

const (
	genImports = 1
	genTable   = 16
	genClosed  = 20  // entries of the table that is only called through
	genBudget  = 0   // the global that is used up
	genTurns   = 250 // what it begins with
)

// randomModule returns the binary of a module with exports f0, f1, ... and g0, g1, ...
func randomModule(seed uint64) []byte {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 7))}
	g.types = []genType{{[]byte{i32}, []byte{i32}}, {nil, nil}, {nil, []byte{i32, i64}}, {[]byte{i32, i64}, nil}}
	for range 6 {
		g.types = append(g.types, genType{g.some(3), g.some(3)})
	}
	g.funcs = []int{0}
	for range 3 + g.IntN(5) {
		g.funcs = append(g.funcs, g.IntN(len(g.types)))
	}
	g.globals = []byte{i32, i32, i64, f32, f64, v128, funcref}
	return g.module()
}

var numeric = []byte{i32, i64, f32, f64, v128}

func (g *generator) some(most int) (list []byte) {
	for range g.IntN(most + 1) {
		list = append(list, numeric[g.IntN(len(numeric))])
	}
	return list
}

func vec(n int, all ...byte) []byte { return append(wasmtest.Uint(uint64(n)), all...) }

func (g *generator) module() []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, body []byte) { out = append(append(out, id), wasmtest.Vec(body)...) }
	var types, funcs, exports, code []byte
	for _, t := range g.types {
		types = append(append(append(types, 0x60), wasmtest.Vec(t.params)...), wasmtest.Vec(t.results)...)
	}
	export := func(name string, kind byte, i int) {
		exports = append(append(append(exports, wasmtest.Vec([]byte(name))...), kind), wasmtest.Uint(uint64(i))...)
	}
	for i, t := range g.funcs[genImports:] {
		funcs = append(funcs, wasmtest.Uint(uint64(t))...)
		if g.leaf = 0; i < 2 {
			g.leaf = genImports + i
		}
		code = append(code, wasmtest.Vec(g.function(t))...)
		export("f"+string(rune('a'+i)), 0, genImports+i)
	}
	for i, t := range g.globals {
		if t != v128 && t != funcref {
			export("g"+string(rune('a'+i)), 3, i)
		}
	}
	n := len(g.funcs) - genImports
	section(1, vec(len(g.types), types...))
	section(2, append(vec(1, wasmtest.Vec([]byte("env"))...), append(wasmtest.Vec([]byte("f")), 0, 0)...))
	section(3, vec(n, funcs...))
	section(4, vec(3, 0x70, 1, genTable, 40, 0x6f, 0, 3, 0x70, 0, genClosed))
	section(5, []byte{1, 1, 1, 3})
	section(6, vec(len(g.globals), g.globalSection()...))
	section(7, vec(n+len(g.globals)-2, exports...))
	if s := g.start(); s >= 0 {
		section(8, wasmtest.Uint(uint64(s)))
	}
	section(9, g.elements())
	section(12, []byte{3})
	section(10, vec(n, code...))
	section(11, vec(3, 0, 0x41, 16, 0x0b, 3, 'a', 'b', 'c', 1, 5, 'h', 'e', 'l', 'l', 'o', 0, 0x41, 0x80, 2, 0x0b, 2, 'x', 'y'))
	return out
}

// start returns a function that may be the start function, sometimes.
func (g *generator) start() int {
	for i, t := range g.funcs[genImports:] {
		if len(g.types[t].params)+len(g.types[t].results) == 0 && g.IntN(2) == 0 {
			return genImports + i
		}
	}
	return -1
}

func (g *generator) globalSection() (b []byte) {
	for i, t := range g.globals {
		b = append(b, t, 1)
		switch {
		case i == genBudget:
			b = append(append(b, 0x41), wasmtest.Int(genTurns)...)
		case t == funcref:
			b = append(b, 0xd2, byte(g.IntN(len(g.funcs))))
		default:
			g.b = nil
			g.constant(t)
			b = append(b, g.b...)
		}
		b = append(b, 0x0b)
	}
	return b
}

// elements has a segment of each of a few kinds: active, passive, declared. Two that overlap
// fill the table that is only called through, from entry 3 to 14.
func (g *generator) elements() []byte {
	var list []byte
	for range 8 {
		list = append(list, byte(g.IntN(len(g.funcs))))
	}
	all := []byte{}
	for i := range g.funcs {
		all = append(all, byte(i))
	}
	b := append([]byte{6, 0, 0x41, 2, 0x0b, 8}, list...)
	b = append(append(b, 1, 0, 8), list...)
	b = append(b, 5, 0x70, 2, 0xd2, 1, 0x0b, 0xd0, 0x70, 0x0b)
	b = append(b, append([]byte{3, 0, byte(len(all))}, all...)...)
	b = append(append(b, 2, 2, 0x41, 3, 0x0b, 0, 8), list...)
	return append(b, 6, 2, 0x41, 10, 0x0b, 0x70, 5, 0xd2, list[0], 0x0b, 0xd0, 0x70, 0x0b, 0xd2, list[1], 0x0b, 0xd0, 0x70, 0x0b, 0xd2, list[2], 0x0b)
}

// function writes a function of a type.
func (g *generator) function(t int) []byte {
	typ := g.types[t]
	own := g.some(6)
	own = append(own, i32, i64)
	g.b, g.labels = nil, nil
	g.locals = append(append([]byte(nil), typ.params...), own...)
	g.result = typ.results
	g.labels = [][]byte{typ.results}
	g.size = 30 + g.IntN(200)
	if g.leaf == 0 { // else it may be light
		g.spend()
	}
	g.block(typ.results, 0)
	g.b = append(g.b, 0x0b)
	head := wasmtest.Uint(uint64(len(own)))
	for _, l := range own {
		head = append(head, 1, l)
	}
	return append(head, g.b...)
}

// spend takes from the budget and traps if it is used up.
func (g *generator) spend() {
	g.op(0x23, genBudget)
	g.op(0x41, 1)
	g.raw(0x6b)
	g.op(0x24, genBudget)
	g.op(0x23, genBudget)
	g.raw(0x45, 0x04, 0x40, 0x00, 0x0b)
}

func (g *generator) raw(b ...byte)       { g.b = append(g.b, b...) }
func (g *generator) op(op byte, i int)   { g.b = append(append(g.b, op), wasmtest.Uint(uint64(i))...) }
func (g *generator) sub(p byte, s int)   { g.b = append(append(g.b, p), wasmtest.Uint(uint64(s))...) }
func (g *generator) pick(n ...byte) byte { return n[g.IntN(len(n))] }

// block writes statements and then leaves values of the given types.
func (g *generator) block(results []byte, depth int) {
	for range g.IntN(5) + 1 {
		if g.size > 0 {
			g.statement(depth)
		}
	}
	if g.IntN(12) == 0 {
		g.branchOut()
		return
	}
	for _, t := range results {
		g.value(t, depth+1)
	}
}

// branchOut leaves for good: what follows is unreachable.
func (g *generator) branchOut() {
	switch g.IntN(4) {
	case 0:
		g.values(g.result)
		g.raw(0x0f)
	case 1:
		l := g.IntN(len(g.labels))
		g.values(g.labels[len(g.labels)-1-l])
		g.op(0x0c, l)
	case 2:
		g.brTable()
	case 3:
		g.values(g.result)
		g.raw(0x0f)
		g.raw(0x01, 0x41, 0, 0x1a) // dead code
	}
}

func (g *generator) values(types []byte) {
	for _, t := range types {
		g.value(t, 3)
	}
}

// brTable branches by a number, to labels that need the same.
func (g *generator) brTable() {
	l := g.IntN(len(g.labels))
	want := g.labels[len(g.labels)-1-l]
	var fit []byte
	for i := range g.labels {
		if string(g.labels[len(g.labels)-1-i]) == string(want) {
			fit = append(fit, byte(i))
		}
	}
	g.values(want)
	g.value(i32, 3)
	n := g.IntN(4)
	g.op(0x0e, n)
	for range n + 1 {
		g.raw(g.pick(fit...))
	}
}

// enter opens a block of a random type; a branch to a loop needs its parameters.
func (g *generator) enter(op byte) (results []byte) {
	var params []byte
	switch g.IntN(3) {
	case 0:
		g.raw(op, 0x40)
	case 1:
		results = []byte{g.pick(numeric...)}
		g.raw(op, results[0])
	case 2:
		t := g.IntN(len(g.types))
		params, results = g.types[t].params, g.types[t].results
		if op == 0x04 { // its condition is on the stack
			params = nil
			t = g.noParams(t)
			results = g.types[t].results
		}
		g.values(params)
		g.op(op, t)
	}
	label := results
	if op == 0x03 {
		label = params
	}
	g.labels = append(g.labels, label)
	for range params {
		g.raw(0x1a)
	}
	return results
}

// noParams returns a type without parameters.
func (g *generator) noParams(t int) int {
	if len(g.types[t].params) > 0 {
		return 2
	}
	return t
}

func (g *generator) leave(results []byte) {
	g.raw(0x0b)
	g.labels = g.labels[:len(g.labels)-1]
	g.drop(results)
}

func (g *generator) drop(types []byte) {
	for i := range types {
		t := types[len(types)-1-i]
		if l := g.local(t); l >= 0 && g.IntN(3) > 0 {
			g.op(0x21, l)
		} else {
			g.raw(0x1a)
		}
	}
}

// local returns a local of a type, -1 for none.
func (g *generator) local(t byte) int {
	at := g.IntN(len(g.locals))
	for i := range g.locals {
		if l := (at + i) % len(g.locals); g.locals[l] == t {
			return l
		}
	}
	return -1
}

// statement writes something that leaves the stack as it was.
func (g *generator) statement(depth int) {
	g.size--
	if depth > 5 {
		g.simple()
		return
	}
	switch g.IntN(14) {
	case 0, 1:
		r := g.enter(0x02)
		g.block(r, depth+1)
		g.leave(r)
	case 2, 3:
		r := g.enter(0x03)
		g.spend()
		g.loopBody(r, depth+1)
		g.leave(r)
	case 4, 5:
		g.value(i32, depth+1)
		r := g.enter(0x04)
		g.block(r, depth+1)
		if len(r) > 0 || g.IntN(2) == 0 {
			g.raw(0x05)
			g.block(r, depth+1)
		}
		g.leave(r)
	case 6, 7:
		g.call(depth)
	case 8:
		l := g.IntN(len(g.labels))
		want := g.labels[len(g.labels)-1-l]
		g.values(want)
		g.value(i32, depth+1)
		g.op(0x0d, l)
		g.drop(want)
	case 9:
		g.bulk()
	default:
		g.simple()
	}
}

// loopBody is a block that often goes round again.
func (g *generator) loopBody(results []byte, depth int) {
	for range g.IntN(4) {
		g.statement(depth)
	}
	if want := g.labels[len(g.labels)-1]; g.IntN(4) > 0 {
		g.values(want)
		g.value(i32, depth+1)
		g.op(0x0d, 0)
		g.drop(want)
	}
	g.values(results)
}

func (g *generator) call(depth int) {
	f := g.IntN(len(g.funcs))
	if g.leaf > 0 {
		f = g.IntN(g.leaf)
	}
	t := g.types[g.funcs[f]]
	g.values(t.params)
	if g.IntN(3) == 0 && g.leaf == 0 {
		g.value(i32, depth+1)
		table := g.pick(0, 2)
		g.op(0x41, 15+8*int(table)) // the other table has fewer
		g.raw(0x71)
		g.op(0x11, g.funcs[f])
		g.raw(table)
	} else {
		g.op(0x10, f)
	}
	g.drop(t.results)
}

// bulk writes an operation on memory or tables, mostly within bounds.
func (g *generator) bulk() {
	args := func(bound ...int) {
		for _, b := range bound {
			if g.IntN(6) == 0 {
				g.value(i32, 5)
				continue
			}
			g.raw(0x41)
			g.raw(wasmtest.Int(int64(g.IntN(b)))...)
		}
	}
	switch g.IntN(13) {
	case 0, 1:
		args(60000, 256, 5000)
		g.raw(0xfc, 11, 0)
	case 2, 3:
		args(60000, 60000, 5000)
		g.raw(0xfc, 10, 0, 0)
	case 4:
		// Of the passive one alone: wazero forgets to drop those that are active, against
		// Section 4.5.4; rewritten they are dropped.
		args(60000, 3, 3)
		g.raw(0xfc, 8, 1, 0)
	case 5:
		g.raw(0xfc, 9, byte(g.IntN(3)))
	case 6:
		args(genTable, 4, 4)
		g.raw(0xfc, 12, byte(g.IntN(2)), 0)
	case 7:
		g.raw(0xfc, 13, byte(g.IntN(6)))
	case 8:
		args(genTable, genTable, 4)
		g.raw(0xfc, 14, 0, 0)
	case 9:
		g.value(funcref, 4)
		args(4)
		g.raw(0xfc, 15, 0)
		g.drop([]byte{i32})
	case 10:
		args(genTable)
		g.value(funcref, 4)
		args(4)
		g.raw(0xfc, 17, 0)
	case 11:
		args(genTable)
		g.value(funcref, 4)
		g.op(0x26, 0)
	case 12:
		args(3)
		g.raw(0x40, 0)
		g.drop([]byte{i32})
	}
}

func (g *generator) simple() {
	switch g.IntN(4) {
	case 0:
		t := g.pick(g.locals...)
		g.value(t, 2)
		g.op(0x21, g.local(t))
	case 1:
		i := 1 + g.IntN(len(g.globals)-1)
		g.value(g.globals[i], 2)
		g.op(0x24, i)
	case 2:
		g.address()
		t := g.pick(i32, i64, f32, f64, v128)
		g.value(t, 3)
		if t == v128 {
			g.raw(0xfd, 11)
		} else {
			g.raw(map[byte]byte{i32: 0x36, i64: 0x37, f32: 0x38, f64: 0x39}[t])
		}
		g.raw(0, g.pick(0, 8, 127))
	case 3:
		g.value(g.pick(numeric...), 2)
		g.raw(0x1a)
	}
}

// address leaves a place in memory, mostly within bounds.
func (g *generator) address() {
	g.value(i32, 4)
	if g.IntN(30) > 0 {
		g.raw(0x41)
		g.raw(wasmtest.Int(0xffff)...)
		g.raw(0x71)
	}
}

func (g *generator) constant(t byte) {
	switch t {
	case i32:
		g.raw(0x41)
		g.raw(wasmtest.Int(int64(int32(g.Uint32()) >> g.IntN(32)))...)
	case i64:
		g.raw(0x42)
		g.raw(wasmtest.Int(int64(g.Uint64()) >> g.IntN(64))...)
	case f32:
		g.b = binary.LittleEndian.AppendUint32(append(g.b, 0x43), math.Float32bits(float32(g.IntN(2000)-1000)/8))
	case f64:
		g.b = binary.LittleEndian.AppendUint64(append(g.b, 0x44), math.Float64bits(float64(g.IntN(2000)-1000)/8))
	case v128:
		g.raw(0xfd, 12)
		g.b = binary.LittleEndian.AppendUint64(g.b, g.Uint64())
		g.b = binary.LittleEndian.AppendUint64(g.b, g.Uint64())
	case funcref:
		if g.IntN(3) == 0 {
			g.raw(0xd0, 0x70)
		} else {
			g.op(0xd2, g.IntN(len(g.funcs)))
		}
	}
}

// value writes an expression of a type.
func (g *generator) value(t byte, depth int) {
	g.size--
	if depth > 4 || g.size < 0 || g.IntN(5) == 0 {
		if l := g.local(t); l >= 0 && g.IntN(3) > 0 {
			g.op(0x20, l)
		} else {
			g.constant(t)
		}
		return
	}
	depth++
	switch g.IntN(8) {
	case 0:
		for i, other := range g.globals {
			if other == t && i != genBudget {
				g.op(0x23, i)
				return
			}
		}
		g.constant(t)
	case 1:
		g.value(t, depth)
		if l := g.local(t); l >= 0 {
			g.op(0x22, l)
		}
	case 2:
		g.value(t, depth)
		g.value(t, depth)
		g.value(i32, depth)
		g.raw(0x1c, 1, t)
	case 3:
		for f, typ := range g.funcs {
			if g.leaf > 0 && f >= g.leaf {
				break
			}
			if r := g.types[typ].results; len(r) == 1 && r[0] == t && g.IntN(2) == 0 {
				g.values(g.types[typ].params)
				g.op(0x10, f)
				return
			}
		}
		g.constant(t)
	default:
		g.operation(t, depth)
	}
}

// operation writes an instruction that computes. No operation makes a NaN whose bits are
// not the machine's own choice, since the two compilations may choose differently.
func (g *generator) operation(t byte, depth int) {
	two := func(t byte) { g.value(t, depth); g.value(t, depth) }
	switch t {
	case i32:
		switch g.IntN(7) {
		case 0:
			g.value(i64, depth)
			g.raw(g.pick(0x50, 0xa7))
		case 1:
			two(i64)
			g.raw(byte(0x51 + g.IntN(10)))
		case 2:
			two(f64)
			g.raw(byte(0x61 + g.IntN(6)))
		case 3:
			g.address()
			g.raw(g.pick(0x28, 0x2c, 0x2d, 0x2e, 0x2f), 0, g.pick(0, 4, 100))
		case 4:
			g.value(v128, depth)
			g.raw(0xfd, g.pick(21, 22), byte(g.IntN(16)))
		case 5:
			switch g.IntN(4) {
			case 0:
				g.raw(0x3f, 0)
			case 1:
				g.value(funcref, depth)
				g.raw(0xd1)
			case 2:
				g.raw(0xfc, 16, byte(g.IntN(2)))
			case 3:
				g.value(f32, depth)
				g.raw(0xfc, byte(g.IntN(2)))
			}
		default:
			two(i32)
			g.raw(byte(0x6a + g.IntN(15)))
		}
	case i64:
		switch g.IntN(4) {
		case 0:
			g.value(i32, depth)
			g.raw(g.pick(0xac, 0xad))
		case 1:
			g.address()
			g.raw(byte(0x30+g.IntN(6)), 0, 3)
		case 2:
			g.value(v128, depth)
			g.raw(0xfd, 29, byte(g.IntN(2)))
		default:
			two(i64)
			g.raw(byte(0x7c + g.IntN(15)))
		}
	case f32:
		if g.IntN(2) == 0 {
			g.value(i32, depth)
			g.raw(0xb2)
			return
		}
		two(f32)
		g.raw(byte(0x92 + g.IntN(2)))
	case f64:
		if g.IntN(2) == 0 {
			g.value(i64, depth)
			g.raw(0xb9)
			return
		}
		two(f64)
		g.raw(byte(0xa0 + g.IntN(2)))
	case v128:
		g.vector(depth)
	case funcref:
		g.op(0x41, g.IntN(genTable))
		g.op(0x25, 0)
	}
}

// vector writes an operation on vectors of integers.
func (g *generator) vector(depth int) {
	switch g.IntN(6) {
	case 0:
		g.value(i32, depth)
		g.raw(0xfd, g.pick(15, 16, 17))
	case 1:
		g.address()
		g.raw(0xfd, 0, 0, 1)
	case 2:
		g.value(v128, depth)
		g.value(i32, depth)
		g.raw(0xfd, 23, byte(g.IntN(16)))
	case 3:
		g.address()
		g.value(v128, depth)
		g.raw(0xfd, 84, 0, 2, byte(g.IntN(16)))
	case 4:
		g.value(v128, depth)
		g.value(v128, depth)
		g.sub(0xfd, 13)
		for range 16 {
			g.raw(byte(g.IntN(32)))
		}
	default:
		g.value(v128, depth)
		g.value(v128, depth)
		g.sub(0xfd, []int{110, 113, 142, 145, 174, 177, 206, 78, 80, 81, 35, 45}[g.IntN(12)])
	}
}
