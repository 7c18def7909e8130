package match

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
)

// regexp.go: regular expressions. Package regexp takes time that grows with instructions
// times octets, and cannot be interrupted; so content is given to it in chunks that are small
// enough to be done in about a millisecond, each the longer the simpler the expressions are.

// expressions are the regular expressions of a set.
type expressions struct {
	list  []*regexp.Regexp
	insts []int // of the programs
	chunk int   // octets
}

// minChunk is the shortest chunk: lines of mail have 1000 octets (RFC 5322, Section 2.1.1).
const minChunk = maxVisits / maxInsts

func newExpressions(patterns []string) (*expressions, error) {
	e := &expressions{chunk: 16 << 10}
	for i, p := range patterns {
		if len(p) > maxRegexp {
			return nil, fmt.Errorf("match: pattern %d has %d octets, want at most %d", i, len(p), maxRegexp)
		}
		insts, err := instructions(p)
		if err != nil {
			return nil, fmt.Errorf("match: pattern %d: %w", i, err)
		}
		if insts > maxInsts {
			return nil, fmt.Errorf("match: pattern %d makes %d steps, want at most %d: count less often in it", i, insts, maxInsts)
		}
		re, err := regexp.Compile("(?m:" + p + ")")
		if err != nil {
			return nil, fmt.Errorf("match: pattern %d: %w", i, err)
		}
		e.list, e.insts = append(e.list, re), append(e.insts, insts)
		e.chunk = min(e.chunk, max(minChunk, maxVisits/insts))
	}
	return e, nil
}

// instructions returns the length of a pattern's program.
func instructions(p string) (int, error) {
	re, err := syntax.Parse(p, syntax.Perl)
	if err != nil {
		return 0, err
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return 0, err
	}
	return len(prog.Inst), nil
}

// expressions cuts content into chunks at the ends of lines. A line that is longer than a
// chunk is cut too.
func (f *Finder) expressions(piece []byte, last bool) (more bool) {
	chunk := f.set.re.chunk
	f.carry = append(f.carry, piece...)
	rest := f.carry
	for len(rest) >= chunk || last && len(rest) > 0 {
		n := min(chunk, len(rest))
		if n < len(rest) || !last {
			if i := bytes.LastIndexByte(rest[:n], '\n'); i >= 0 {
				n = i + 1
			}
		}
		if !f.search(rest[:n]) {
			return false
		}
		rest = rest[n:]
	}
	f.carry = append(f.carry[:0], rest...)
	return true
}

// search looks for what was not found yet.
func (f *Finder) search(chunk []byte) (more bool) {
	for i, re := range f.set.re.list {
		if f.hits[i].Len >= 0 {
			continue
		}
		// An instruction costs a few times what an octet costs a search for literals.
		if !f.may(len(chunk) * (8 + f.set.re.insts[i])) {
			return false
		}
		if at := re.FindIndex(chunk); at != nil {
			f.found(i, f.pos+int64(at[0]), at[1]-at[0])
		}
	}
	f.pos += int64(len(chunk))
	return f.left > 0
}
