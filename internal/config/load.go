package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
	"go.yaml.in/yaml/v3"
)

// load.go puts the layers on top of each other.

const (
	envPrefix    = "PENSTOCK_"
	envSeparator = "__"
	// tokenVariable is for the commands that use the admin API. It may stand in a shell
	// from which the gateway is started too.
	tokenVariable = envPrefix + "TOKEN"
	// delim separates the levels of a key inside koanf. The names of backends and
	// chains may have dots, and no text from outside has this.
	delim = "\x00"
)

// An Override is a value from the command line, which wins over all others.
type Override struct {
	Key   string // path of the value: log.level
	Value string // a word, or a YAML value for a list or a mapping
	Flag  string // what problems call it; empty means "--set KEY"
}

// Load reads the file at path, the PENSTOCK_ variables in env (each "NAME=value", as
// from os.Environ), and the overrides, in that order. An empty path means no file.
//
// It returns everything that is wrong with the configuration, sorted by place, and
// a nil Config if any of it is an error. Nothing but the one file is read: whether
// the files and modules that it names exist shows when they are opened, and
// Config.Problem puts such an error at its place.
//
// A variable that has the prefix and is no key is an error too, except for
// PENSTOCK_TOKEN, which is for commands, and for those that Kubernetes sets for
// a service called penstock.
func Load(path string, env []string, overrides []Override) (*Config, Problems) {
	data, err := readFile(path)
	if err != nil {
		return nil, Problems{{Source: path, Text: err.Error()}}
	}
	return load(path, data, env, overrides)
}

// Read is Load for who wants to look further although there are errors: the Config has
// what could be read, and zero where a value could not. It is nil only if there is no
// file, or no YAML in it.
func Read(path string, env []string, overrides []Override) (*Config, Problems) {
	data, err := readFile(path)
	if err != nil {
		return nil, Problems{{Source: path, Text: err.Error()}}
	}
	return partly(path, data, env, overrides)
}

// readFile returns the file's content; the errors leave out its name, which is the
// problem's source.
func readFile(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	// Opening a pipe would wait for whoever writes it, and nothing could end that.
	info, err := os.Stat(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is larger than %s", Size(maxFile))
	}
	return data, nil
}

func withoutPath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("cannot be read: %w", err)
}

// load is Load for a file that has been read.
func load(path string, data []byte, env []string, overrides []Override) (*Config, Problems) {
	c, problems := partly(path, data, env, overrides)
	if len(problems.Errors()) > 0 {
		return nil, problems
	}
	return c, problems
}

// partly is Read for a file that has been read.
func partly(path string, data []byte, env []string, overrides []Override) (*Config, Problems) {
	l := newLoader(path)
	if !l.file(data) {
		return nil, l.problems // without the file, every further check would be wrong
	}
	l.environment(env)
	l.flags(overrides)
	c := l.decode()
	for _, p := range c.validate(l.follows) {
		if !l.follows(p.Key) {
			l.add(p)
		}
	}
	return c, l.problems.Sorted(path)
}

// A loader holds the layers read so far.
type loader struct {
	report
	path    string
	schema  *schema
	origins origins
	layers  *koanf.Koanf
}

func newLoader(path string) *loader {
	return &loader{
		path:    path,
		schema:  schemaOf(reflect.TypeFor[Config]()),
		origins: origins{"": {source: path}},
		layers:  koanf.New(delim),
	}
}

func (l *loader) walker(source string, lines bool) *walker {
	return &walker{report: &l.report, origins: l.origins, source: source, lines: lines, root: l.schema}
}

// file reads the lowest layer. It is false when the text is not YAML, is no mapping,
// or is out of bounds.
func (l *loader) file(data []byte) bool {
	n, p := parseYAML(data)
	if p != nil {
		p.Source = l.path
		l.add(*p)
		return false
	}
	if n == nil {
		return true
	}
	w := l.walker(l.path, true)
	if tree, ok := w.value(n, nil, l.schema, "", 0); ok {
		l.layer(nil, tree)
	}
	l.origins[""] = origin{source: l.path} // the first line is not where a missing key would be
	return !w.stopped && !l.broken[""]
}

// layer lays a value over what is there.
func (l *loader) layer(segments []string, value any) {
	for _, s := range slices.Backward(segments) {
		value = map[string]any{s: value}
	}
	// Neither the provider nor the merge has a way to fail on a map.
	if err := l.layers.Load(confmap.Provider(value.(map[string]any), ""), nil); err != nil {
		panic("config: merge a layer: " + err.Error())
	}
}

// environment lays the variables over the file, those that set a mapping before
// those that set a key in it.
func (l *loader) environment(env []string) {
	values := map[string]string{}
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if ok && strings.HasPrefix(name, envPrefix) && name != tokenVariable && !fromKubernetes(strings.TrimPrefix(name, envPrefix)) {
			values[name] = value
		}
	}
	names := make([]string, 0, len(values))
	for n := range values {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if n := strings.Count(a, envSeparator) - strings.Count(b, envSeparator); n != 0 {
			return n
		}
		return strings.Compare(a, b)
	})
	for _, n := range names {
		words := strings.Split(strings.TrimPrefix(n, envPrefix), envSeparator)
		l.set(source{name: n, spell: envName}, words, values[n])
	}
}

// fromKubernetes reports whether a variable is one that Kubernetes sets in every pod
// next to a service called penstock, or penstock-anything: PENSTOCK_PORT and so on.
// No key of ours looks like these.
func fromKubernetes(name string) bool {
	if strings.Contains(name, envSeparator) {
		return false
	}
	return strings.Contains(name, "SERVICE_HOST") || strings.Contains(name, "SERVICE_PORT") ||
		name == "PORT" || strings.HasSuffix(name, "_PORT") ||
		strings.HasPrefix(name, "PORT_") || strings.Contains(name, "_PORT_")
}

// envName returns a key or a name as a variable spells it.
func envName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, name)
}

// flags lays the overrides over all else.
func (l *loader) flags(overrides []Override) {
	for _, o := range overrides {
		if o.Flag == "" {
			o.Flag = "--set " + o.Key
		}
		l.set(source{name: o.Flag}, l.split(o.Key), o.Value)
	}
}

// split cuts a path at its dots, but not inside the name of a backend or chain
// that has dots itself.
func (l *loader) split(key string) []string {
	words := strings.Split(key, ".")
	s, at := l.schema, []string(nil)
	for i := 0; i < len(words) && s != nil; i++ {
		if s.kind == kindNamed {
			for end := len(words); end > i; end-- {
				if name := strings.Join(words[i:end], "."); slices.Contains(l.names(at), name) {
					words = slices.Replace(words, i, end, name)
					break
				}
			}
		}
		at = append(at, words[i])
		s = s.below(words[i])
	}
	return words
}

// below returns the schema of a key, nil if there is none.
func (s *schema) below(key string) *schema {
	if s.kind == kindNamed {
		return s.elem
	}
	if f, ok := s.field(key); ok {
		return f.schema
	}
	return nil
}

// names returns the keys that the layers so far have in a mapping.
func (l *loader) names(path []string) []string {
	if len(path) == 0 || !l.layers.Exists(strings.Join(path, delim)) {
		return nil
	}
	return l.layers.MapKeys(strings.Join(path, delim))
}

// A source is a variable or a flag.
type source struct {
	name  string
	spell func(key string) string // how it spells keys, if not as the file does
}

// finds returns those of the names that the source means by word.
func (s source) finds(names []string, word string) []string {
	if s.spell == nil {
		s.spell = func(key string) string { return key }
	}
	word = s.spell(word)
	var out []string
	for _, name := range names {
		if s.spell(name) == word {
			out = append(out, name)
		}
	}
	return out
}

// set lays one value over the layers.
func (l *loader) set(src source, words []string, text string) {
	w := l.walker(src.name, false)
	at := origin{source: src.name}
	s, path := l.schema, ""
	for i, word := range words {
		name, ok := l.resolve(w, src, s, words[:i], word)
		if !ok {
			return
		}
		words[i], path = name, child(path, name)
		s = s.below(name)
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
	if s.kind != kindScalar {
		var p *Problem
		if n, p = valueNode(text); p != nil {
			w.errorf(at, path, "%s", p.Text)
			return
		}
	}
	if v, ok := w.value(n, nil, s, path, 0); ok {
		l.layer(words, v)
	} else if s.kind == kindList && isNull(n) {
		l.origins[path] = at
		l.layer(words, []any{})
	}
}

// valueNode parses a variable's value; nothing at all is null.
func valueNode(text string) (*yaml.Node, *Problem) {
	if len(text) > maxFile {
		return nil, &Problem{Text: fmt.Sprintf("is larger than %s", Size(maxFile))}
	}
	n, p := parseYAML([]byte(text))
	if n == nil {
		n = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	}
	return n, p
}

// resolve returns the key that a source means by word, below the keys above. It is
// false when there is none, which it reports.
func (l *loader) resolve(w *walker, src source, s *schema, above []string, word string) (string, bool) {
	at, path := origin{source: src.name}, strings.Join(above, ".")
	known := s.keys()
	if s.kind == kindNamed {
		known = l.names(above)
	}
	if src.spell != nil {
		word = strings.ToLower(word)
	}
	found := src.finds(known, word)
	switch {
	case len(found) == 1:
		return found[0], true
	case len(found) > 1:
		w.errorf(at, child(path, word), "could be %s", orList(found))
	case s.kind == kindMapping:
		w.unknown(at, path, word, s)
	case s.kind == kindNamed && word != "" && !strings.Contains(word, delim):
		return word, true
	case s.kind == kindNamed:
		w.errorf(at, child(path, quote(word)), "cannot be a name")
	case s.kind == kindList:
		w.errorf(at, child(path, word), "%s is a list, and is given as a whole: a YAML value such as [a, b]", path)
	default:
		w.errorf(at, child(path, word), "unknown key; nothing lies below %s", path)
	}
	return "", false
}

// decode makes the Config of the merged layers. Values that cannot be read are
// reported and left zero.
func (l *loader) decode() *Config {
	c := &Config{origins: l.origins}
	d := &decoder{report: &l.report, origins: l.origins, file: l.path, dir: filepath.Dir(l.path)}
	d.value(reflect.ValueOf(c).Elem(), l.layers.Raw(), l.schema, "")
	c.complete()
	return c
}

// A decoder reads the merged tree into the structs.
type decoder struct {
	*report
	origins origins
	file    string // the configuration file
	dir     string // its folder
}

func (d *decoder) value(v reflect.Value, raw any, s *schema, path string) {
	switch s.kind {
	case kindMapping:
		m, _ := raw.(map[string]any)
		d.mapping(v, m, s, path)
	case kindNamed:
		m, _ := raw.(map[string]any)
		d.named(v, m, s, path)
	case kindList:
		if text, ok := raw.(string); ok {
			v.Set(reflect.MakeSlice(s.typ, 1, 1))
			d.scalar(v.Index(0), text, path)
			return
		}
		items, _ := raw.([]any)
		d.list(v, items, s, path)
	case kindFree:
		if text, ok := raw.(string); ok {
			v.SetBytes([]byte(text))
		}
	case kindScalar:
		text, _ := raw.(string)
		d.scalar(v, text, path)
	}
}

func (d *decoder) mapping(v reflect.Value, m map[string]any, s *schema, path string) {
	if g, ok := v.Addr().Interface().(interface{ give() }); ok && m != nil {
		g.give()
	}
	for _, f := range s.fields {
		fv, at := v.Field(f.index), child(path, f.key)
		d.value(fv, m[f.key], f.schema, at)
		if f.def != "" && fv.IsZero() {
			if err := setScalar(fv, f.def); err != nil {
				panic("config: default of " + at + ": " + err.Error())
			}
			if r, ok := fv.Addr().Interface().(rebaser); ok {
				r.rebase(d.dir)
			}
		}
	}
}

func (d *decoder) named(v reflect.Value, m map[string]any, s *schema, path string) {
	v.Set(reflect.MakeMap(s.typ))
	for name, raw := range m {
		e, at := reflect.New(s.elem.typ).Elem(), child(path, name)
		if _, written := d.origins[at]; name == s.word && !written {
			at = path // it is the one word that stands there
		}
		d.value(e, raw, s.elem, at)
		v.SetMapIndex(reflect.ValueOf(name), e)
	}
}

func (d *decoder) list(v reflect.Value, items []any, s *schema, path string) {
	if len(items) == 0 {
		return
	}
	v.Set(reflect.MakeSlice(s.typ, len(items), len(items)))
	for i, raw := range items {
		at := item(path, i)
		if text, _ := raw.(string); s.elem.kind == kindScalar && text == "" && !d.follows(at) {
			d.errorf(d.origins.find(at), at, "is empty")
		}
		d.value(v.Index(i), raw, s.elem, at)
	}
}

func (d *decoder) scalar(v reflect.Value, text, path string) {
	if err := setScalar(v, text); err != nil {
		d.errorf(d.origins.find(path), path, "%v", err)
		return
	}
	d.rebase(v, path)
}

// rebase makes a relative path from the file relative to the file's folder. One from
// the environment or a flag is relative to the working directory, as on any command
// line.
func (d *decoder) rebase(v reflect.Value, path string) {
	if r, ok := v.Addr().Interface().(rebaser); ok && d.origins.find(path).source == d.file {
		r.rebase(d.dir)
	}
}

// complete fills in what follows from other keys.
func (c *Config) complete() {
	if c.Store.Driver == "" {
		c.Store.Driver = StoreNone
		if c.needsStore() != "" {
			c.Store.Driver = StoreEmbedded
		}
	}
	for _, chain := range c.Filters.Chains {
		for i := range chain {
			f := &chain[i]
			if f.Name == "" {
				f.Name = f.Module.Name
			}
			if m := &f.Module; m.Name != "" && !m.Builtin && m.File == "" && c.Filters.Dir != "" {
				m.File = filepath.Join(string(c.Filters.Dir), m.Name+".wasm")
			}
		}
	}
}
