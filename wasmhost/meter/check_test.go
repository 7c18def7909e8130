package meter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/penstock/penstock/wasmhost/meter"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// check_test.go looks at what Rewrite returned, with a reader of its own, and proves of each
// module that no cycle is without a fuel check: neither one within a function, nor one of
// functions that call each other.

// node is an instruction.
type node struct {
	op    byte
	sub   uint32
	arg   int64   // index, constant, or label
	arg2  int64   // second index
	labs  []int64 // of br_table
	end   int     // of a block: its end
	other int     // of an if: its else, or its end
	check bool    // nobody passes here with too little fuel
}

// subject is a module as far as the check needs it.
type subject struct {
	imports, slow, fuel, depth int
	code                       [][]node
}

// bin reads the binary format and panics on what is broken: it is ours.
type bin struct {
	b []byte
	p int
}

func (r *bin) u() int64 {
	v, n := binary.Uvarint(r.b[r.p:])
	r.p += n
	return int64(v)
}

func (r *bin) s() int64 {
	var v int64
	for shift := 0; ; shift += 7 {
		c := r.b[r.p]
		r.p++
		v |= int64(c&0x7f) << shift
		if c < 0x80 {
			if c&0x40 != 0 && shift < 57 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
}

func (r *bin) name() string {
	n := int(r.u())
	r.p += n
	return string(r.b[r.p-n : r.p])
}

func (r *bin) limits() {
	if r.u()&1 == 1 {
		r.u()
	}
	r.u()
}

func parse(wasm []byte) (p subject) {
	r := &bin{b: wasm, p: 8}
	for r.p < len(wasm) {
		id := r.b[r.p]
		r.p++
		size := int(r.u())
		s := &bin{b: r.b[r.p : r.p+size]}
		r.p += size
		switch id {
		case 2:
			for range s.u() {
				p.importEntry(s)
			}
		case 7:
			for range s.u() {
				name, _, i := s.name(), s.u(), int(s.u())
				switch name {
				case meter.FuelExport:
					p.fuel = i
				case meter.DepthExport:
					p.depth = i
				}
			}
		case 10:
			for range s.u() {
				size := int(s.u())
				p.code = append(p.code, body(&bin{b: s.b[s.p : s.p+size]}))
				s.p += size
			}
			p.slow = p.imports + len(p.code) - 1
		}
	}
	return p
}

func (p *subject) importEntry(s *bin) {
	s.name()
	s.name()
	kind := s.u()
	switch kind {
	case 0:
		s.u()
		p.imports++
	case 1:
		s.u()
		s.limits()
	case 2:
		s.limits()
	case 3:
		s.u()
		s.u()
	}
}

// body reads the instructions of a function and joins blocks with their ends.
func body(r *bin) (code []node) {
	for range r.u() {
		r.u()
		r.p++
	}
	var open []int
	for r.p < len(r.b) {
		n := r.node()
		switch at := len(code); n.op {
		case 2, 3, 4:
			open = append(open, at)
		case 5:
			code[open[len(open)-1]].other = at
		case 0x0b:
			if len(open) == 0 {
				break
			}
			b := &code[open[len(open)-1]]
			if b.end = at; b.other == 0 {
				b.other = at
			} else {
				code[b.other].end = at // of the else
			}
			open = open[:len(open)-1]
		}
		code = append(code, n)
	}
	return code
}

func (r *bin) node() (n node) {
	n.op = r.b[r.p]
	r.p++
	switch op := n.op; {
	case op >= 2 && op <= 4:
		r.s()
	case op == 0x0e:
		for range r.u() + 1 {
			n.labs = append(n.labs, r.u())
		}
	case op == 0x11, op >= 0x28 && op <= 0x3e:
		n.arg, n.arg2 = r.u(), r.u()
	case op == 0x0c, op == 0x0d, op == 0x10, op >= 0x20 && op <= 0x26, op == 0x3f, op == 0x40, op == 0xd2, op == 0xd0:
		n.arg = r.u()
	case op == 0x1c:
		r.p += int(r.u())
	case op == 0x41, op == 0x42:
		n.arg = r.s()
	case op == 0x43:
		r.p += 4
	case op == 0x44:
		r.p += 8
	case op == 0xfc:
		for range [18]int{8: 2, 9: 1, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2, 15: 1, 16: 1, 17: 1}[r.prefix(&n)] {
			r.u()
		}
	case op == 0xfd:
		r.vector(r.prefix(&n))
	}
	return n
}

func (r *bin) prefix(n *node) uint32 {
	n.sub = uint32(r.u())
	return n.sub
}

func (r *bin) vector(sub uint32) {
	switch {
	case sub == 12 || sub == 13:
		r.p += 16
	case sub >= 21 && sub <= 34:
		r.p++
	case sub <= 11 || sub >= 84 && sub <= 93:
		r.u()
		r.u()
		if sub >= 84 && sub <= 91 {
			r.p++
		}
	}
}

// markChecks finds the places
//
//	i64.const c  i64.sub  [local.tee f]  global.set $fuel  (global.get $fuel | local.get f)
//	[i32.const MaxDepth  global.get $depth  i32.sub  i64.extend_i32_s  i64.or]
//	i64.const 0  i64.lt_s  (br_if 0  br 1  end | if)  i64.const c  call $slow
//
// with c of at least 1.
func (p *subject) markChecks(code []node) {
	for i := range code {
		if c, ok := p.paysAt(code, i); ok {
			if at, ok := p.asksAt(code, i, c); ok {
				code[at].check = true
			}
		}
	}
}

// paysAt tells whether fuel is paid by the global.set at i, and how much.
func (p *subject) paysAt(code []node, i int) (cost int64, ok bool) {
	if code[i].op != 0x24 || int(code[i].arg) != p.fuel || i < 3 || i+8 >= len(code) {
		return 0, false
	}
	j := i - 1
	if code[j].op == 0x22 {
		j--
	}
	return code[j-1].arg, code[j].op == 0x7d && code[j-1].op == 0x42 && code[j-1].arg >= 1
}

// asksAt tells whether the host is asked behind i if fuel is short, and returns the branch
// that decides.
func (p *subject) asksAt(code []node, i int, cost int64) (at int, ok bool) {
	j := i + 1
	if n := code[j]; n.op == 0x23 && int(n.arg) != p.fuel || n.op == 0x20 && (code[i-1].op != 0x22 || code[i-1].arg != n.arg) || n.op != 0x23 && n.op != 0x20 {
		return 0, false
	}
	j++
	if code[j].op == 0x41 {
		d := code[j : j+5]
		if d[0].arg != meter.MaxDepth || d[1].op != 0x23 || int(d[1].arg) != p.depth || d[2].op != 0x6b || d[3].op != 0xac || d[4].op != 0x84 {
			return 0, false
		}
		j += 5
	}
	if code[j].op != 0x42 || code[j].arg != 0 || code[j+1].op != 0x53 {
		return 0, false
	}
	at = j + 2
	then := at + 1
	if code[at].op == 0x0d {
		if code[at].arg != 0 || code[at+1].op != 0x0c || code[at+1].arg != 1 || code[at+2].op != 0x0b {
			return 0, false
		}
		then = at + 3
	} else if code[at].op != 0x04 {
		return 0, false
	}
	return at, code[then].op == 0x42 && code[then].arg == cost && code[then+1].op == 0x10 && int(code[then+1].arg) == p.slow
}

// search is a walk through a function that does not pass checks.
type search struct {
	code  []node
	open  [][]int // for each instruction, the blocks around it
	state []byte  // 0 not seen, 1 on the way, 2 done
	calls []int64 // that are reached; -1 for any function
}

// next returns what may run after instruction i.
func (s *search) next(i int) []int {
	n := s.code[i]
	switch n.op {
	case 0x00, 0x0f:
		return nil
	case 0x04:
		if s.code[n.other].op == 5 {
			return []int{i + 1, n.other + 1}
		}
		return []int{i + 1, n.other}
	case 0x05:
		return []int{n.end}
	case 0x0c:
		return s.target(i, n.arg)
	case 0x0d:
		return append(s.target(i, n.arg), i+1)
	case 0x0e:
		var all []int
		for _, l := range n.labs {
			all = append(all, s.target(i, l)...)
		}
		return all
	}
	return []int{i + 1}
}

func (s *search) target(i int, label int64) []int {
	around := s.open[i]
	if int(label) == len(around) {
		return nil // the function's end
	}
	b := around[len(around)-1-int(label)]
	if s.code[b].op == 3 {
		return []int{b}
	}
	return []int{s.code[b].end}
}

// blocksAround lists for each instruction the blocks that it is in.
func blocksAround(code []node) [][]int {
	list := make([][]int, len(code))
	var open []int
	for i, n := range code {
		if n.op == 0x0b && len(open) > 0 {
			open = open[:len(open)-1]
		}
		list[i] = open[:len(open):len(open)]
		if n.op >= 2 && n.op <= 4 {
			open = append(list[i], i)
		}
	}
	return list
}

// run walks from the beginning, and from behind every check: a cycle that passes none is
// found in one of these walks.
func (s *search) run() (cycle bool) {
	s.state = make([]byte, len(s.code))
	if s.walk(0) {
		return true
	}
	calls := s.calls // without a check since the function's entry
	for i, n := range s.code {
		if n.check {
			for _, j := range s.next(i) {
				if s.walk(j) {
					return true
				}
			}
		}
	}
	s.calls = calls
	return false
}

// walk goes from i, with a stack of its own: functions are long.
func (s *search) walk(i int) (cycle bool) {
	type step struct {
		at   int
		next []int
	}
	var path []step
	for {
		if i < len(s.code) && s.state[i] == 1 {
			return true
		}
		if i < len(s.code) && s.enter(i) {
			path = append(path, step{i, s.next(i)})
			if s.code[i].check {
				path[len(path)-1].next = nil
			}
		}
		for len(path) > 0 && len(path[len(path)-1].next) == 0 {
			s.state[path[len(path)-1].at] = 2
			path = path[:len(path)-1]
		}
		if len(path) == 0 {
			return false
		}
		p := &path[len(path)-1]
		i, p.next = p.next[0], p.next[1:]
	}
}

func (s *search) enter(i int) bool {
	if s.state[i] != 0 {
		return false
	}
	s.state[i] = 1
	switch n := s.code[i]; n.op {
	case 0x10:
		s.calls = append(s.calls, n.arg)
	case 0x11:
		s.calls = append(s.calls, -1)
	}
	return true
}

// checkCycles proves the property of a rewritten module, and returns what is wrong, and how
// many functions have no check at all.
func checkCycles(wasm []byte) (unchecked int, err error) {
	p := parse(wasm)
	free := make([][]int64, len(p.code)) // calls that a function reaches without a check
	for i, code := range p.code {
		p.markChecks(code)
		s := &search{code: code, open: blocksAround(code)}
		if s.run() {
			return 0, fmt.Errorf("function %d has a loop without a check", p.imports+i)
		}
		if free[i] = s.calls; !hasCheck(code) {
			unchecked++
		}
	}
	state := make([]byte, len(p.code))
	for i := range p.code {
		if err := p.callCycle(free, state, i); err != nil {
			return 0, err
		}
	}
	return unchecked, nil
}

// isChoice tells whether a function is one of those that are called instead of through a table:
// it has no more than one branch by its last parameter, to calls. Calls through the table
// are by constants, which trap.
func isChoice(code []node) bool {
	i := 0
	for i < len(code) && code[i].op == 2 {
		i++
	}
	if i < 2 || code[i].op != 0x20 {
		return false
	}
	for i++; code[i].op == 0x41 || code[i].op == 0x6b || code[i].op == 0x76; i++ {
	}
	if code[i].op != 0x0e {
		return false
	}
	for i++; i < len(code); i++ {
		switch n := code[i]; n.op {
		case 0x0b, 0x0f, 0x10, 0x20, 0x41:
		case 0x11:
			if c := code[i-1]; c.op != 0x41 || c.arg < -1 || c.arg > 1 {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func hasCheck(code []node) bool {
	for _, n := range code {
		if n.check {
			return true
		}
	}
	return false
}

func (p *subject) callCycle(free [][]int64, state []byte, i int) error {
	if state[i] == 2 {
		return nil
	}
	if state[i] == 1 {
		return fmt.Errorf("function %d calls itself without a check", p.imports+i)
	}
	state[i] = 1
	for _, f := range free[i] {
		if (f < 0 || int(f) < p.imports) && isChoice(p.code[i]) {
			continue // whoever calls it has a check, or is found below
		}
		if f < 0 {
			return fmt.Errorf("function %d calls any function without a check", p.imports+i)
		}
		if int(f) < p.imports {
			if i != p.slow-p.imports {
				return fmt.Errorf("function %d calls the host without a check", p.imports+i)
			}
			continue
		}
		if err := p.callCycle(free, state, int(f)-p.imports); err != nil {
			return err
		}
	}
	state[i] = 2
	return nil
}

// mustCheck fails the test if a rewritten module lacks a check.
func mustCheck(t testing.TB, wasm []byte) {
	t.Helper()
	if _, err := checkCycles(wasm); err != nil {
		t.Errorf("a cycle without a check: %v", err)
	}
}

// The check finds what it is there to find.
func TestCheckCycles(t *testing.T) {
	m := &wasmtest.Module{}
	m.Func("loop", ">", "", wasmtest.Op(0x03, 0x40, 0x0c, 0, 0x0b))
	if _, err := checkCycles(m.Bytes()); err == nil {
		t.Error("a loop without a check is not found")
	}
	m = &wasmtest.Module{}
	m.Func("a", ">", "", wasmtest.Call("b"))
	m.Func("b", ">", "", wasmtest.Call("a"))
	if _, err := checkCycles(m.Bytes()); err == nil {
		t.Error("a cycle of calls is not found")
	}
	m = &wasmtest.Module{}
	m.Func("loop", ">", "", wasmtest.Op(0x03, 0x40, 0x0c, 0, 0x0b), wasmtest.Call("light"))
	m.Func("light", ">", "", wasmtest.Op(0x01))
	wasm := rewrite(t, m.Bytes()).Wasm
	if n, err := checkCycles(wasm); n != 2 || err != nil { // light and our own
		t.Errorf("%d functions without a check, %v; want 2", n, err)
	}
	at := bytes.LastIndex(wasm, []byte{0x53, 0x0d, 0, 0x0c, 1, 0x0b}) // of the loop: i64.lt_s br_if 0
	wasm[at] = 0x55                                                   // i64.gt_s
	if _, err := checkCycles(wasm); err == nil {
		t.Error("a check of the wrong sign is not found")
	}
}
