package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A Problem is one thing that is wrong with the configuration, and where.
type Problem struct {
	// Source is the file, the environment variable or the flag that holds the
	// value. Empty for what is wrong with no value in particular.
	Source string
	// Line and Column count from 1. They are 0 for values that do not come from
	// the file, and for what is missing from its top level.
	Line, Column int
	// Key is the path of the value: listeners[0].tls. Empty when the text is not
	// about one, as in a YAML syntax error.
	Key string
	// Text says what is wrong.
	Text string
	// Warning is true when the gateway can run all the same.
	Warning bool
}

// maxShown is how much of a key or value a problem shows, in runes. A file may
// hold a megabyte in one word.
const maxShown = 100

// String returns the problem as one line, "penstock.yaml:12: listeners[0].tls: must
// be ...". Whatever the file holds, there is no line break and no control character
// in it.
func (p Problem) String() string {
	var b strings.Builder
	part := func(s string) {
		if s != "" {
			b.WriteString(oneLine(s))
			b.WriteString(": ")
		}
	}
	source := p.Source
	if source != "" && p.Line > 0 {
		source += ":" + strconv.Itoa(p.Line)
	}
	part(source)
	if p.Warning {
		part("warning")
	}
	part(shorten(p.Key))
	b.WriteString(oneLine(p.Text))
	return b.String()
}

// oneLine writes everything that does not print as an escape.
func oneLine(s string) string {
	clean := func(r rune) bool { return unicode.IsPrint(r) && r != unicode.ReplacementChar }
	if !strings.ContainsFunc(s, func(r rune) bool { return !clean(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if clean(r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
	}
	return b.String()
}

// shorten cuts s to what a problem shows.
func shorten(s string) string {
	n := 0
	for i := range s {
		if n == maxShown {
			return s[:i] + "..."
		}
		n++
	}
	return s
}

// quote returns s as a problem's text shows it: in quotes, and not too long.
func quote(s string) string { return strconv.Quote(shorten(s)) }

// Problems is what Load and Validate found. Nil means that all is well.
type Problems []Problem

// Errors returns the problems that keep the gateway from starting.
func (p Problems) Errors() Problems { return p.filter(false) }

// Warnings returns the problems that do not.
func (p Problems) Warnings() Problems { return p.filter(true) }

func (p Problems) filter(warning bool) Problems {
	var out Problems
	for _, one := range p {
		if one.Warning == warning {
			out = append(out, one)
		}
	}
	return out
}

// Error returns all problems, one to a line. A Problems in an error variable is not
// nil even when it is empty, so return Err instead of the value itself.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns the errors among the problems as one error, or nil if there are none.
func (p Problems) Err() error {
	if e := p.Errors(); len(e) > 0 {
		return errors.New(e.Error())
	}
	return nil
}

// At tells whether there is an error about the value at key itself.
func (p Problems) At(key string) bool {
	return slices.ContainsFunc(p, func(one Problem) bool { return !one.Warning && one.Key == key })
}

// Sorted puts the file's problems first, from top to bottom; a reader fixes
// them in that order. It changes p and returns it.
func (p Problems) Sorted(file string) Problems {
	rank := func(one Problem) int {
		switch {
		case one.Source == file:
			return 0
		case strings.HasPrefix(one.Source, envPrefix):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		if n := rank(a) - rank(b); n != 0 {
			return n
		}
		if n := strings.Compare(a.Source, b.Source); n != 0 {
			return n
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		if a.Column != b.Column {
			return a.Column - b.Column
		}
		return strings.Compare(a.Key, b.Key)
	})
	return p
}

// An origin is the place where a value was written.
type origin struct {
	source       string
	line, column int
}

// problem returns an error about the value at key, which was written here.
func (o origin) problem(key, text string) Problem {
	return Problem{Source: o.source, Line: o.line, Column: o.column, Key: key, Text: text}
}

// origins maps the path of each value to its place. The path "" stands for the
// configuration as a whole.
type origins map[string]origin

// find returns the place of key, or of the nearest value around it: what is
// missing is reported where it should have been.
func (o origins) find(key string) origin {
	for key != "" {
		if at, ok := o[key]; ok {
			return at
		}
		key = parent(key)
	}
	return o[""]
}

// has tells whether something was written at key or below it.
func (o origins) has(key string) bool {
	for k := range o {
		if k == key || strings.HasPrefix(k, key+".") {
			return true
		}
	}
	return false
}

// dropBelow forgets everything inside the list at key, which a later layer replaces.
func (o origins) dropBelow(key string) {
	for k := range o {
		if strings.HasPrefix(k, key+"[") {
			delete(o, k)
		}
	}
}

// parent returns the path of what holds the value at key; "" at the top.
func parent(key string) string { return key[:max(strings.LastIndexAny(key, ".["), 0)] }

// child returns the path of a key inside a mapping.
func child(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// item returns the path of the i-th value of a list.
func item(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// A report gathers problems while a configuration is read.
type report struct {
	problems Problems
	// broken holds the keys that an error was found at, or that a misspelt key
	// was meant to be. What follows from such an error is not reported again.
	broken map[string]bool
}

func (r *report) errorf(at origin, key, format string, args ...any) {
	r.add(at.problem(key, fmt.Sprintf(format, args...)))
}

func (r *report) add(p Problem) {
	r.problems = append(r.problems, p)
	if !p.Warning {
		r.markBroken(p.Key)
	}
}

func (r *report) markBroken(key string) {
	if r.broken == nil {
		r.broken = map[string]bool{}
	}
	r.broken[key] = true
}

// follows reports whether an earlier error at key, or at what holds it, already
// explains a problem there.
func (r *report) follows(key string) bool {
	for ; key != ""; key = parent(key) {
		if r.broken[key] {
			return true
		}
	}
	return false
}
