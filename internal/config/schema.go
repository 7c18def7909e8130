package config

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"
)

// schema.go turns the struct Config and its tags into the table that the rest
// works from: which keys there are, what shape each has, and how a word becomes its
// value.

type kind int

const (
	kindScalar  kind = iota // one word, read by setScalar
	kindMapping             // a struct: the keys are known
	kindNamed               // a map: the operator makes up the keys
	kindList
	kindFree // anything at all, kept as JSON
)

// A schema describes the values a key may have.
type schema struct {
	kind   kind
	typ    reflect.Type
	fields []field // of kindMapping
	elem   *schema // of kindNamed and kindList
	// group is true for a list inside a list, and for those that say so: one word stands
	// for a list of that word.
	group bool
	// names are those that a mapping by name may have; nil for any. word is the one of them
	// that a single word stands for, if it may stand for the mapping.
	names []string
	word  string
}

// byHook is a mapping whose names are known, and that may be one word.
type byHook interface {
	names() []string
	word() string
}

// A field is one key of a mapping.
type field struct {
	key, def, doc string
	required      bool
	index         int // in the struct
	schema        *schema
}

// rebaser is a value that may be a path, and is read relative to a folder.
type rebaser interface{ rebase(dir string) }

// schemaOf returns the schema of a type. Types that no key may have are a mistake
// in Config, and panic.
func schemaOf(t reflect.Type) *schema {
	s := &schema{typ: t}
	switch {
	case t == reflect.TypeFor[json.RawMessage]():
		s.kind = kindFree
	case isScalar(t):
		s.kind = kindScalar
	case t.Kind() == reflect.Struct:
		s.kind = kindMapping
		s.fields = fieldsOf(t)
	case t.Kind() == reflect.Map:
		s.kind, s.elem = kindNamed, schemaOf(t.Elem())
		if b, ok := reflect.Zero(t).Interface().(byHook); ok {
			s.names, s.word = b.names(), b.word()
		}
	case t.Kind() == reflect.Slice:
		s.kind, s.elem = kindList, schemaOf(t.Elem())
		_, s.group = reflect.Zero(t).Interface().(interface{ oneOrMore() })
		s.elem.group = s.elem.kind == kindList
	default:
		panic(fmt.Sprintf("config: no key can be a %s", t))
	}
	return s
}

func isScalar(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String, reflect.Int:
		return true
	}
	return t == reflect.TypeFor[time.Duration]() || reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		key := f.Tag.Get("key")
		if key == "" {
			continue
		}
		out = append(out, field{
			key: key, def: f.Tag.Get("default"), doc: f.Tag.Get("doc"),
			required: f.Tag.Get("required") == "true",
			index:    i, schema: schemaOf(f.Type),
		})
	}
	return out
}

func (s *schema) field(key string) (field, bool) {
	i := slices.IndexFunc(s.fields, func(f field) bool { return f.key == key })
	if i < 0 {
		return field{}, false
	}
	return s.fields[i], true
}

func (s *schema) keys() []string {
	if s.kind == kindNamed {
		return s.names
	}
	out := make([]string, len(s.fields))
	for i, f := range s.fields {
		out[i] = f.key
	}
	return out
}

// each calls yield with every key below s, in the order of the structs: its path
// with [] for the items of a list and NAME for what the operator names.
func (s *schema) each(path string, yield func(path string, f field)) {
	switch s.kind {
	case kindNamed:
		s.elem.each(child(path, "NAME"), yield)
	case kindList:
		s.elem.each(path+"[]", yield)
	case kindMapping:
		for _, f := range s.fields {
			yield(child(path, f.key), f)
			f.schema.each(child(path, f.key), yield)
		}
	}
}

// describe names what may stand at a key, for people.
func (s *schema) describe() string {
	switch s.kind {
	case kindFree:
		return "anything"
	case kindMapping:
		return "mapping"
	case kindNamed:
		if s.word != "" {
			return s.elem.describe() + "; or a mapping by hook"
		}
		return "mapping by name"
	case kindList:
		return "list"
	}
	zero := reflect.Zero(s.typ).Interface()
	switch v := zero.(type) {
	case enum:
		return orList(v.words())
	case interface{ describe() string }:
		return v.describe()
	case time.Duration:
		return "duration"
	case int:
		return "number"
	}
	return "text"
}

// setScalar reads a word into v. Empty text leaves the zero value, which is the
// default of every key.
func setScalar(v reflect.Value, text string) error {
	if text == "" {
		return nil
	}
	switch p := v.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		if err := p.UnmarshalText([]byte(text)); err != nil {
			v.SetZero() // a half-read value must not be judged further
			return err
		}
		return nil
	case *time.Duration:
		d, err := ParseDuration(text)
		*p = d
		return err
	case *int:
		n, err := parseCount(text)
		*p = n
		return err
	}
	if e, ok := v.Interface().(enum); ok {
		if err := checkWord(e, text); err != nil {
			return err
		}
	}
	v.SetString(text)
	return nil
}
