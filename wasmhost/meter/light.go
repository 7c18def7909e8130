package meter

// light.go finds the functions that need no check, and weighs stack frames.

const (
	// maxLightCost is what a light function may cost with all that it calls. It is below
	// what a check costs a few times over, and far below a slice of fuel.
	maxLightCost = 128
	// maxLightStack is how many octets of stack a light function may use with all that it
	// calls. A guest can go beyond MaxDepth by as much.
	maxLightStack = 4 << 10
)

// sum is what a light function takes with all that it calls.
type sum struct {
	cost  uint64
	stack uint32
}

// States of functions in lights.
const (
	unseen = iota
	open   // being looked at: whoever calls it is on a cycle with it
	heavy
	light
)

// lights is the search for light functions. It goes down the calls with a stack of its
// own, since calls may be as deep as there are functions.
type lights struct {
	m     *Module
	state []byte // of the module's own functions
	sums  []sum
	path  []visit
}

type visit struct {
	function int // of the module's own
	next     int // of its calls
	sum      sum
	below    uint32 // stack of what it calls
}

// findLights returns for each of the module's own functions whether it is light, and then
// what it takes.
func (m *Module) findLights() *lights {
	l := &lights{m: m, state: make([]byte, len(m.bodies)), sums: make([]sum, len(m.bodies))}
	for i := range m.bodies {
		l.look(i)
		for len(l.path) > 0 {
			l.step()
		}
	}
	return l
}

// look begins with a function that was not looked at.
func (l *lights) look(i int) {
	if l.state[i] != unseen {
		return
	}
	b := &l.m.bodies[i]
	l.state[i] = heavy
	if s := (sum{b.cost, b.frame()}); !b.heavy && s.fits() {
		l.state[i] = open
		l.path = append(l.path, visit{function: i, sum: s})
	}
}

func (s sum) fits() bool { return s.cost <= maxLightCost && s.stack <= maxLightStack }

// step looks at the next call of the function that the path ends with.
func (l *lights) step() {
	v := &l.path[len(l.path)-1]
	calls := l.m.bodies[v.function].calls
	if v.next == len(calls) {
		v.sum.stack += v.below
		l.done(v, v.sum.fits())
		return
	}
	callee := int(calls[v.next]) - l.m.imports
	switch l.state[callee] {
	case unseen:
		l.look(callee)
	case light:
		s := l.sums[callee]
		v.sum.cost += s.cost
		v.below = max(v.below, s.stack)
		if v.next++; !v.sum.fits() {
			l.done(v, false)
		}
	default:
		l.done(v, false)
	}
}

func (l *lights) done(v *visit, isLight bool) {
	l.state[v.function] = heavy
	if isLight {
		l.state[v.function] = light
		l.sums[v.function] = v.sum
	}
	l.path = l.path[:len(l.path)-1]
}

// light tells whether a function, counted with the imports, is light, and what it takes.
func (l *lights) light(f uint32) (sum, bool) {
	i := int(f) - l.m.imports
	if i < 0 || l.state[i] != light {
		return sum{}, false
	}
	return l.sums[i], true
}

// frame returns the weight of a function's stack frame in octets, an estimate. The compiler
// gives each value that leaves its register a place of its own in the frame, which no other
// value has after it: parameters and locals, what is on the operand stack during a call,
// and each local anew where paths meet. Values come of code, so that there are hardly more of
// them than octets, but for results of calls, and for where paths meet, which is blocks times
// locals at most. Real code has many fewer: that product is below 3/2 of its octets, and its
// frames are 1/7 to 4/5 of them. TestFrames compares the weight with what the compiler does.
func (b *body) frame() uint32 {
	size := uint64(len(b.code) - b.begin)
	slots := uint64(b.locals + b.wide)
	weight := 128 + 8*(slots+uint64(b.results)) + 3*size/4
	if meets, free := uint64(b.blocks)*slots, 3*size/2; meets > free {
		weight += 8 * (meets - free)
	}
	return uint32(min(weight, 2*MaxDepth)) // it cannot run either way, and sums stay small
}
