package match

import "fmt"

// literal.go: an automaton over all literals. A state is the longest beginning of a literal
// that the content read so far ends in; a table says for each state and octet which is next.
//
// To read one octet takes a load that depends on the one before, so the processor mostly
// waits. A piece is therefore read in four places at once (lanes). Where a lane begins, the
// state depends on what is before it, but on no more than the longest literal: that much is
// read again.

// automaton has its states premultiplied: state s has its row at next[s:s+stride], a column
// for each class. Those at which a literal ends come last; the last column has their number
// among those.
type automaton struct {
	class   [256]uint8 // of an octet; octets that no literal tells apart are one class
	stride  uint32
	next    []uint32
	states  int
	matches uint32  // the first ending state: at which a literal ends
	ends    [][]int // by ending state: the literals that are all of it
	shorter []int   // by ending state: the next, of less length, that it ends in; -1
	lens    []int   // of the literals
	overlap int     // how far before a lane the state at its beginning is decided
}

func lowerASCII(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func newAutomaton(patterns []string, fold bool) (*automaton, error) {
	a := &automaton{lens: make([]int, len(patterns))}
	for i, p := range patterns {
		if p == "" || len(p) > MaxLiteral {
			return nil, fmt.Errorf("match: pattern %d has %d octets, want 1 to %d", i, len(p), MaxLiteral)
		}
		a.lens[i] = len(p)
		a.overlap = max(a.overlap, len(p)-1)
	}
	a.classes(patterns, fold)
	b, err := a.trie(patterns)
	if err != nil {
		return nil, err
	}
	b.complete()
	a.renumber(b)
	return a, nil
}

// classes gives a class to each octet that is in a literal; 0 is all others.
func (a *automaton) classes(patterns []string, fold bool) {
	var used [256]bool
	n := 0
	for _, p := range patterns {
		for i := range len(p) {
			c := p[i]
			if fold {
				c = lowerASCII(c)
			}
			if !used[c] {
				used[c] = true
				n++
			}
		}
	}
	class := 0
	if n < 256 {
		class = 1 // 0 is left for octets that are in no literal
	}
	a.stride = uint32(n + class + 1)
	for c := range a.class {
		if used[c] {
			a.class[c] = uint8(class)
			class++
		}
	}
	if fold {
		for c := 'A'; c <= 'Z'; c++ {
			a.class[c] = a.class[lowerASCII(byte(c))]
		}
	}
}

// builder is an automaton that is being made; its states are not premultiplied.
type builder struct {
	stride int
	next   []int32 // -1: none
	ends   [][]int
	fail   []int32 // the longest other state that a state's text ends in
	short  []int32 // the first on that way at which a literal ends; -1
}

// trie has a state for each beginning of a literal.
func (a *automaton) trie(patterns []string) (*builder, error) {
	b := &builder{stride: int(a.stride) - 1}
	grow := func() int32 {
		for range b.stride {
			b.next = append(b.next, -1)
		}
		b.ends = append(b.ends, nil)
		return int32(len(b.ends) - 1)
	}
	grow()
	for i, p := range patterns {
		s := int32(0)
		for k := range len(p) {
			at := int(s)*b.stride + int(a.class[p[k]])
			if b.next[at] < 0 {
				if 4*(len(b.ends)+1)*int(a.stride) > maxTable {
					return nil, fmt.Errorf("%w: at pattern %d of %d its table takes more than %d octets", ErrLarge, i, len(patterns), maxTable)
				}
				to := grow()
				b.next[at] = to
			}
			s = b.next[at]
		}
		b.ends[s] = append(b.ends[s], i)
	}
	return b, nil
}

// complete fills in where to go on after an octet that continues no literal, in the order of
// the states' lengths.
func (b *builder) complete() {
	n := len(b.ends)
	b.fail, b.short = make([]int32, n), make([]int32, n)
	b.short[0] = -1
	queue := make([]int32, 0, n)
	for c := range b.stride {
		if to := b.next[c]; to > 0 {
			b.short[to] = -1
			queue = append(queue, to)
		} else {
			b.next[c] = 0
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		row, failRow := b.next[int(s)*b.stride:][:b.stride], b.next[int(b.fail[s])*b.stride:][:b.stride]
		for c, to := range row {
			if to < 0 {
				row[c] = failRow[c]
				continue
			}
			f := failRow[c]
			b.fail[to], b.short[to] = f, b.short[f]
			if len(b.ends[f]) > 0 {
				b.short[to] = f
			}
			queue = append(queue, to)
		}
	}
}

// renumber puts the states at which something ends last, and premultiplies.
func (a *automaton) renumber(b *builder) {
	n := len(b.ends)
	ending := func(s int) bool { return len(b.ends[s]) > 0 || b.short[s] >= 0 }
	order, number := make([]int, 0, n), make([]int, n)
	for _, want := range []bool{false, true} {
		if want {
			a.matches = uint32(len(order)) * a.stride
		}
		for s := range n {
			if ending(s) == want {
				number[s] = len(order)
				order = append(order, s)
			}
		}
	}
	a.states = n
	a.next = make([]uint32, n*int(a.stride))
	first := int(a.matches / a.stride)
	for i, s := range order {
		for c, to := range b.next[s*b.stride:][:b.stride] {
			a.next[i*int(a.stride)+c] = uint32(number[to]) * a.stride
		}
		if i >= first {
			short := -1
			if b.short[s] >= 0 {
				short = number[b.short[s]] - first
			}
			a.next[(i+1)*int(a.stride)-1] = uint32(i - first)
			a.ends, a.shorter = append(a.ends, b.ends[s]), append(a.shorter, short)
		}
	}
}

// progress is where a Finder of literals is, and what it need not look up again: at a state
// whose literals are all found, content full of hits costs little more than other content.
type progress struct {
	at    uint32          // the state
	known []bool          // by ending state: found in an earlier stretch
	fresh [lanes][]bool   // the same: in this lane of this stretch
	met   [lanes][]uint32 // the states in fresh
}

func (a *automaton) progress() (p progress) {
	n := len(a.ends)
	room := make([]bool, (1+lanes)*n)
	p.known = room[:n:n]
	for k := range p.fresh {
		p.fresh[k] = room[(1+k)*n:][:n:n]
	}
	return p
}

const (
	lanes = 4
	// minLane is how long a lane must be to be worth it.
	minLane = 512
	// stretch is how much is read between two questions whether to go on.
	stretch = 64 << 10
)

func (f *Finder) literals(piece []byte) (more bool) {
	for len(piece) > 0 && f.left > 0 {
		n := min(len(piece), stretch)
		if !f.may(n) {
			return false
		}
		f.stretch(piece[:n])
		f.pos += int64(n)
		piece = piece[n:]
	}
	return true
}

// stretch reads a piece that is not long.
func (f *Finder) stretch(p []byte) {
	a := f.set.lit
	if n := len(p) / lanes; n >= max(minLane, 4*a.overlap) {
		s := [lanes]uint32{f.literal.at}
		for k := 1; k < lanes; k++ {
			for _, c := range p[k*n-a.overlap : k*n] {
				s[k] = a.next[s[k]+uint32(a.class[c])]
			}
		}
		f.literal.at = f.together(p[:lanes*n], n, s)
		f.settle()
		f.alone(p[lanes*n:], f.pos+int64(lanes*n))
	} else {
		f.alone(p, f.pos)
	}
	f.settle()
}

// alone reads p, which lies at off, in one lane.
func (f *Finder) alone(p []byte, off int64) {
	a, s := f.set.lit, f.literal.at
	for i, c := range p {
		if s = a.next[s+uint32(a.class[c])]; s >= a.matches {
			f.ending(0, s, off+int64(i)+1)
		}
	}
	f.literal.at = s
}

// together reads p in four lanes of n octets, and returns the state of the last.
func (f *Finder) together(p []byte, n int, s [lanes]uint32) uint32 {
	a := f.set.lit
	next, class, matches := a.next, &a.class, a.matches
	s0, s1, s2, s3 := s[0], s[1], s[2], s[3]
	p0, p1, p2, p3 := p[:n], p[n:2*n], p[2*n:3*n], p[3*n:4*n]
	p1, p2, p3 = p1[:len(p0)], p2[:len(p0)], p3[:len(p0)]
	for i := range p0 {
		s0 = next[s0+uint32(class[p0[i]])]
		s1 = next[s1+uint32(class[p1[i]])]
		s2 = next[s2+uint32(class[p2[i]])]
		s3 = next[s3+uint32(class[p3[i]])]
		if max(s0, s1, s2, s3) >= matches {
			for k, s := range [lanes]uint32{s0, s1, s2, s3} {
				if s >= matches {
					f.ending(k, s, f.pos+int64(k*n+i)+1)
				}
			}
		}
	}
	return s3
}

// ending notes the literals that end at state s, which was met in a lane, before off.
func (f *Finder) ending(lane int, s uint32, off int64) {
	a, l := f.set.lit, &f.literal
	for i := int(a.next[s+a.stride-1]); i >= 0; i = a.shorter[i] {
		if l.known[i] || l.fresh[lane][i] {
			return // and so are those behind it
		}
		l.fresh[lane][i] = true
		l.met[lane] = append(l.met[lane], uint32(i))
		for _, p := range a.ends[i] {
			f.found(p, off-int64(a.lens[p]), a.lens[p])
		}
	}
}

// settle ends a stretch: what was met in any of its lanes is known from now on.
func (f *Finder) settle() {
	l := &f.literal
	for k := range l.met {
		for _, i := range l.met[k] {
			l.fresh[k][i], l.known[i] = false, true
		}
		l.met[k] = l.met[k][:0]
	}
}
