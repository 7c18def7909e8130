package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// nodes.go turns YAML into a tree of maps, lists and words, and remembers where
// each was written. A word stays text until its key says what it is: whether `off`
// is a word or a bool is no question that YAML gets to answer.

const (
	// maxFile is the largest configuration file, and the largest value of a
	// variable, in bytes.
	maxFile = 1 << 20
	// maxNodes bounds the values of one file after its aliases are put in. Without
	// it a hundred bytes of aliases to aliases fill any memory.
	maxNodes = 100_000
	// maxDepth bounds how deep values lie inside each other; an alias can also
	// hold itself.
	maxDepth = 64
)

// parseYAML returns the one value in data; nil if there is none. The error is a
// Problem without a source.
func parseYAML(data []byte) (*yaml.Node, *Problem) {
	if p := badText(data); p != nil {
		return nil, p
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, syntaxProblem(data, err)
	}
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, syntaxProblem(data, err)
	default:
		return nil, &Problem{Line: second.Line, Column: second.Column, Text: "a second document begins here; only one is read"}
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	return doc.Content[0], nil
}

// badText finds bytes that YAML does not allow. The parser would refuse them too,
// but without saying where.
func badText(data []byte) *Problem {
	line := 1
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return &Problem{Line: line, Text: "this is not UTF-8"}
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', 0x7F <= r && r < 0xA0 && r != 0x85:
			return &Problem{Line: line, Text: fmt.Sprintf("control character %U", r)}
		}
		i += n
	}
	return nil
}

// syntaxProblem finds the line in a parser's error. It counts lines from zero in
// what its grammar refuses and from one in what its scanner refuses, and for an
// unknown alias names none.
func syntaxProblem(data []byte, err error) *Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	p := &Problem{Line: 1, Text: text}
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(text); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Text = text[len(m[0]):]
		if regexp.MustCompile(`^did not find expected (key|node content|'-' indicator|',' or|<)`).MatchString(p.Text) {
			p.Line++
		}
	} else if m := regexp.MustCompile(`^unknown anchor '(.*)' referenced`).FindStringSubmatch(text); m != nil {
		at := bytes.Index(data, []byte("*"+m[1]))
		p.Line += bytes.Count(data[:max(at, 0)], []byte("\n"))
	}
	p.Line = min(p.Line, 1+bytes.Count(data, []byte("\n")))
	p.Text = "this is not YAML: " + p.Text
	return p
}

// A walker checks the nodes of one source against the schema.
type walker struct {
	*report
	origins origins
	source  string
	lines   bool // false for a variable or flag: its lines mean nothing to the reader
	root    *schema
	nodes   int
	stopped bool // a bound was hit and reported; nothing more is said
}

// at returns the place of a node.
func (w *walker) at(n *yaml.Node) origin {
	if !w.lines {
		return origin{source: w.source}
	}
	return origin{w.source, n.Line, n.Column}
}

// enter follows an alias and counts the node. It returns nil when a bound is hit.
func (w *walker) enter(n *yaml.Node, path string, depth int) *yaml.Node {
	at := w.at(n)
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	w.nodes++
	switch {
	case w.stopped:
		return nil
	case w.nodes > maxNodes:
		w.errorf(at, path, "more than %d values, aliases put in", maxNodes)
	case depth > maxDepth:
		w.errorf(at, path, "nested more than %d deep", maxDepth)
	default:
		return n
	}
	w.stopped = true
	return nil
}

// value returns what a node holds in the shape of the schema: map[string]any,
// []any, or the text of a word (for a list inside a list too, if it is one word). It is false for null, and for what was reported as
// wrong. key is the node of its key, if it has one: a collection is placed there.
func (w *walker) value(n, key *yaml.Node, s *schema, path string, depth int) (any, bool) {
	if key == nil {
		key = n
	}
	if n = w.enter(n, path, depth); n == nil || isNull(n) {
		return nil, false
	}
	if n.Kind == yaml.ScalarNode {
		key = n
	}
	if old, ok := w.origins[path]; ok && old.source != w.source && s.kind == kindList {
		w.origins.dropBelow(path)
	}
	w.origins[path] = w.at(key)
	switch {
	case s.kind == kindFree:
		return w.json(n, path, depth)
	case s.kind == kindScalar && n.Kind == yaml.ScalarNode:
		return n.Value, w.plain(n, path)
	case s.kind == kindMapping && n.Kind == yaml.MappingNode:
		return w.mapping(n, s, path, depth), true
	case s.kind == kindNamed && n.Kind == yaml.MappingNode:
		return w.named(n, s, path, depth), true
	case s.kind == kindList && n.Kind == yaml.SequenceNode:
		return w.list(n, s, path, depth), true
	case s.word != "" && n.Kind == yaml.ScalarNode:
		return map[string]any{s.word: n.Value}, w.plain(n, path)
	case s.group && n.Kind == yaml.ScalarNode:
		return n.Value, w.plain(n, path)
	}
	w.errorf(w.at(key), path, "must be %s, not %s", wanted(s), found(n))
	return nil, false
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// plain reports whether a word is of YAML's own types.
func (w *walker) plain(n *yaml.Node, path string) bool {
	if slices.Contains([]string{"!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge"}, n.ShortTag()) {
		return true
	}
	w.errorf(w.at(n), path, "the tag %s has no meaning here", quote(n.Tag))
	return false
}

func wanted(s *schema) string {
	switch s.kind {
	case kindMapping:
		return "a mapping with keys such as " + s.fields[0].key
	case kindNamed:
		if s.word != "" {
			return "one value (" + s.elem.describe() + ") or a mapping by hook"
		}
		return "a mapping by name"
	case kindList:
		return "a list, such as [a, b]"
	}
	return "one value (" + s.describe() + ")"
}

func found(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return quote(n.Value)
}

func (w *walker) mapping(n *yaml.Node, s *schema, path string, depth int) map[string]any {
	out := map[string]any{}
	for _, e := range w.entries(n, path, depth) {
		at := child(path, e.name)
		f, ok := s.field(e.name)
		if !ok {
			w.unknown(w.at(e.key), path, e.name, s)
			continue
		}
		if v, ok := w.value(e.value, e.key, f.schema, at, depth+1); ok {
			out[e.name] = v
		}
	}
	return out
}

func (w *walker) named(n *yaml.Node, s *schema, path string, depth int) map[string]any {
	out := map[string]any{}
	for _, e := range w.entries(n, path, depth) {
		at := child(path, e.name)
		if e.name == "" || strings.Contains(e.name, delim) {
			w.errorf(w.at(e.key), child(path, quote(e.name)), "cannot be a name")
			continue
		}
		if s.names != nil && !slices.Contains(s.names, e.name) {
			w.unknown(w.at(e.key), path, e.name, s)
			continue
		}
		w.origins[at] = w.at(e.key)
		v, ok := w.value(e.value, e.key, s.elem, at, depth+1)
		if !ok { // the name stands, so that who refers to it is not blamed too
			v = empty(s.elem)
		}
		out[e.name] = v
	}
	return out
}

// empty returns the value of a name with nothing after it.
func empty(s *schema) any {
	if s.kind == kindMapping {
		return map[string]any{}
	}
	return []any(nil)
}

// list keeps the place of an item that was wrong with a nil, so that the indexes in
// later problems count as the file does.
func (w *walker) list(n *yaml.Node, s *schema, path string, depth int) []any {
	out := make([]any, 0, len(n.Content))
	for i, c := range n.Content {
		if w.stopped {
			break
		}
		at := item(path, i)
		w.origins[at] = w.at(c)
		v, ok := w.value(c, nil, s.elem, at, depth+1)
		if !ok {
			v = nil
		}
		out = append(out, v)
	}
	return out
}

// An entry is a key of a mapping and its value.
type entry struct {
	name       string
	key, value *yaml.Node
}

// entries returns the keys of a mapping in their order, each once, and then those
// that its merge keys (<<) bring and it does not have itself.
func (w *walker) entries(n *yaml.Node, path string, depth int) []entry {
	var out []entry
	var merges []*yaml.Node
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := w.enter(n.Content[i], path, depth)
		if key == nil {
			return nil
		}
		name := key.Value
		switch first := seen[name]; {
		case key.Kind != yaml.ScalarNode:
			w.badKey(w.at(key), path, "a key must be one word, not %s", found(key))
		case key.ShortTag() == "!!merge":
			merges = append(merges, n.Content[i+1])
		case first != nil:
			w.twice(first, key, child(path, name))
		default:
			seen[name] = key
			out = append(out, entry{name, key, n.Content[i+1]})
		}
	}
	for _, m := range merges {
		for _, e := range w.merged(m, path, depth+1) {
			if seen[e.name] == nil {
				seen[e.name] = e.key
				out = append(out, e)
			}
		}
	}
	return out
}

func (w *walker) twice(first, second *yaml.Node, path string) {
	if !w.lines {
		w.errorf(w.at(second), path, "is given twice in one mapping")
		return
	}
	w.errorf(w.at(second), path, "is given twice in one mapping, in line %d and in line %d", first.Line, second.Line)
}

// merged returns the entries that the value of a merge key stands for: a mapping's,
// or those of several mappings, the earlier winning.
func (w *walker) merged(n *yaml.Node, path string, depth int) []entry {
	at := w.at(n)
	if n = w.enter(n, path, depth); n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		return w.entries(n, path, depth)
	case yaml.SequenceNode:
		var out []entry
		for _, c := range n.Content {
			out = append(out, w.merged(c, path, depth+1)...)
		}
		return out
	}
	w.badKey(at, path, "<< must be a mapping, not %s", found(n))
	return nil
}

// badKey reports a key that has no path of its own. The mapping around it is sound
// and is judged on.
func (w *walker) badKey(at origin, path, format string, args ...any) {
	w.problems = append(w.problems, at.problem(path, fmt.Sprintf(format, args...)))
}

// unknown reports a key that does not exist, with the one that was probably meant:
// one next to it that looks like it, or one of the same name elsewhere.
func (w *walker) unknown(at origin, path, name string, s *schema) {
	text := "unknown key"
	if near, ok := nearest(name, s.keys()); ok {
		text += fmt.Sprintf("; did you mean %q?", near)
		w.markBroken(child(path, near))
	} else if places := w.places(name); len(places) > 0 {
		text += "; there is " + orList(places)
	} else {
		text += "; the keys here are " + strings.Join(s.keys(), ", ")
	}
	w.errorf(at, child(path, name), "%s", text)
}

// places returns the paths of all keys with this name.
func (w *walker) places(name string) []string {
	var out []string
	w.root.each("", func(path string, _ field) {
		if path == name || strings.HasSuffix(path, "."+name) {
			out = append(out, path)
		}
	})
	return out
}

// json returns a free-form value as JSON text, keys sorted.
func (w *walker) json(n *yaml.Node, path string, depth int) (any, bool) {
	before := len(w.problems)
	v := w.free(n, path, depth)
	if w.stopped || len(w.problems) > before {
		return nil, false
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		w.errorf(w.at(n), path, "cannot be written as JSON: %v", err)
		return nil, false
	}
	return strings.TrimSuffix(b.String(), "\n"), true
}

func (w *walker) free(n *yaml.Node, path string, depth int) any {
	if n = w.enter(n, path, depth); n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for _, e := range w.entries(n, path, depth) {
			out[e.name] = w.free(e.value, child(path, e.name), depth+1)
		}
		return out
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for i, c := range n.Content {
			out = append(out, w.free(c, item(path, i), depth+1))
		}
		return out
	}
	return w.freeScalar(n, path)
}

func (w *walker) freeScalar(n *yaml.Node, path string) any {
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!timestamp": // JSON has no dates; the filter gets what was written
		return n.Value
	}
	if !w.plain(n, path) {
		return nil
	}
	var v any
	if err := n.Decode(&v); err != nil {
		w.errorf(w.at(n), path, "cannot be read: %v", err)
		return nil
	}
	if f, ok := v.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
		w.errorf(w.at(n), path, "%s is a number that JSON does not have", n.Value)
		return nil
	}
	return v
}
