// Package match looks for many patterns at once in content that comes in pieces: literals, by
// an automaton that reads every octet once (Aho and Corasick, 1975), or regular expressions.
// Content and patterns may be hostile: time grows with the length of the content alone,
// whatever is in it, and sets have limits.
package match

import (
	"errors"
	"fmt"
)

// Kind is what the patterns of a Set are.
type Kind int

// The kinds. Numbers are those of the filter ABI.
const (
	Literal Kind = iota // octets
	Fold                // octets; letters of ASCII in any case
	Regexp              // regular expressions as package regexp has them; ^ and $ are by line
)

// Limits of a set.
const (
	MaxPatterns = 10_000    // literals
	MaxLiteral  = 256       // octets of one
	maxTable    = 8 << 20   // octets of a set's automaton
	MaxRegexps  = 64        // regular expressions
	maxRegexp   = 1 << 10   // octets of one
	maxInsts    = 250       // of its program
	maxVisits   = 256 << 10 // instructions times octets in one go: what package regexp takes without a slower engine
)

// ErrLarge is behind the error for a set that is too large.
var ErrLarge = errors.New("match: set is too large")

// Set is a set of patterns. It is immutable and safe for concurrent use.
type Set struct {
	kind Kind
	n    int
	lit  *automaton
	re   *expressions
}

// Hit is a place where a pattern was found.
type Hit struct {
	Pattern int   // its number in the set
	Off     int64 // where it begins
	Len     int
}

// New makes a set. The error says which pattern is wrong.
func New(kind Kind, patterns []string) (*Set, error) {
	s := &Set{kind: kind, n: len(patterns)}
	most := MaxPatterns
	if kind == Regexp {
		most = MaxRegexps
	}
	if len(patterns) == 0 || len(patterns) > most {
		return nil, fmt.Errorf("%w: %d patterns, want 1 to %d", ErrLarge, len(patterns), most)
	}
	var err error
	switch kind {
	case Literal, Fold:
		s.lit, err = newAutomaton(patterns, kind == Fold)
	case Regexp:
		s.re, err = newExpressions(patterns)
	default:
		err = fmt.Errorf("match: no kind %d", kind)
	}
	return s, err
}

// Len returns how many patterns there are.
func (s *Set) Len() int { return s.n }

// Memory returns about how many octets the set takes.
func (s *Set) Memory() int {
	if s.lit != nil {
		return 4*len(s.lit.next) + 24*s.n
	}
	return 16 << 10 * s.n
}

// Finder looks for the patterns of a set in one content. It is for one goroutine.
type Finder struct {
	set  *Set
	work func(octets int64) bool
	pos  int64 // of the content that is done
	hits []Hit // by pattern; Len -1: not found yet
	left int   // patterns that were not found yet

	literal progress
	carry   []byte // of regular expressions: a line that has not ended
}

// Finder returns a Finder of content that begins at off. work is told of work before it is
// done, in octets that take as long to copy as a literal's search in them; false ends it. Nil
// lets all be done.
func (s *Set) Finder(off int64, work func(octets int64) bool) *Finder {
	f := &Finder{set: s, work: work, pos: off, hits: make([]Hit, s.n), left: s.n}
	for i := range f.hits {
		f.hits[i].Len = -1
	}
	if s.lit != nil {
		f.literal = s.lit.progress()
	}
	return f
}

// Next looks at the next piece of the content; last says that there is no other. It returns
// false if no more needs to be looked at: every pattern was found, or work said no, which
// Stopped tells apart.
func (f *Finder) Next(piece []byte, last bool) (more bool) {
	if f.set.lit != nil {
		more = f.literals(piece)
	} else {
		more = f.expressions(piece, last)
	}
	return more && f.left > 0
}

// Hits returns where patterns were found, each once: at the first place it ends at, or for a
// regular expression the first at which it begins. They are in the order of the patterns.
func (f *Finder) Hits() []Hit {
	out := make([]Hit, 0, f.set.n-f.left)
	for i, h := range f.hits {
		if h.Len >= 0 {
			h.Pattern = i
			out = append(out, h)
		}
	}
	return out
}

func (f *Finder) may(octets int) bool { return f.work == nil || f.work(int64(octets)) }

// found notes a hit; an earlier one of the same pattern counts more.
func (f *Finder) found(pattern int, off int64, n int) {
	h := &f.hits[pattern]
	if h.Len < 0 {
		f.left--
	} else if h.Off <= off {
		return
	}
	h.Off, h.Len = off, n
}
