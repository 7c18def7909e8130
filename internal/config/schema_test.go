package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// everyKey returns the path of every key there is, found without the schema.
func everyKey(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		path += map[reflect.Kind]string{reflect.Slice: "[]", reflect.Map: ".NAME"}[t.Kind()]
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var out []string
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("key"); key != "" {
			at := strings.TrimPrefix(path+"."+key, ".")
			out = append(append(out, at), everyKey(t.Field(i).Type, at)...)
		}
	}
	return out
}

func TestReferenceHasEveryKey(t *testing.T) {
	ref := Reference()
	keys := everyKey(reflect.TypeFor[Config](), "")
	if len(keys) < 50 {
		t.Fatalf("only %d keys were found", len(keys))
	}
	for _, key := range keys {
		if n := strings.Count(ref, "\n| `"+key+"` |"); n != 1 {
			t.Errorf("%s: is there %d times", key, n)
		}
	}
	if got := strings.Count(ref, "\n| `"); got != len(keys) {
		t.Errorf("%d rows for %d keys", got, len(keys))
	}
	for _, row := range []string{
		"| `hostname` | domain name | required |",
		"| `listeners[].tls` | off, starttls, starttls_required or implicit | `starttls` |",
		"| `listeners[].limits.message_size` | size | `50MiB` |",
		"| `listeners[].trusted_networks` | list of: network |  |",
		"| `backends.NAME.addresses` | list of: list of: backend address | required |",
		"| `backends.NAME.timeouts.data` | duration | `10m` |",
		"| `filters.chains` | mapping by name |  |",
		"| `filters.chains.NAME[].config` | anything |  |",
	} {
		if !strings.Contains(ref, row) {
			t.Errorf("lacks %s", row)
		}
	}
}

// The rows of a Markdown table must keep their cells, and each key its meaning.
func TestReferenceRows(t *testing.T) {
	for line := range strings.Lines(Reference()) {
		if strings.HasPrefix(line, "| `") && strings.Count(line, "|") != 5 {
			t.Errorf("not four cells: %s", line)
		}
	}
	schemaOf(reflect.TypeFor[Config]()).each("", func(path string, f field) {
		if f.doc == "" || !strings.HasSuffix(f.doc, ".") {
			t.Errorf("%s: its meaning is %q", path, f.doc)
		}
		if f.required && f.def != "" {
			t.Errorf("%s: is required and has a default", path)
		}
		if f.schema.kind != kindScalar {
			return
		}
		v := reflect.New(f.schema.typ).Elem()
		if err := setScalar(v, f.def); err != nil {
			t.Errorf("%s: its default: %v", path, err)
		}
	})
}

// A key must not look like a variable of Kubernetes, which is passed over.
func TestNoKeyLooksLikeKubernetes(t *testing.T) {
	for _, key := range schemaOf(reflect.TypeFor[Config]()).keys() {
		if fromKubernetes(envName(key)) {
			t.Errorf("%s", key)
		}
	}
}

func TestNearest(t *testing.T) {
	keys := []string{"name", "address", "protocol", "tls", "chain", "accept", "trusted_networks", "line_endings", "limits"}
	for word, want := range map[string]string{
		"tsl":                           "tls",     // swapped
		"adress":                        "address", // left out
		"addresss":                      "address", // twice
		"Address":                       "address", // case
		"chian":                         "chain",   // swapped
		"trusted-networks":              "trusted_networks",
		"trustednets":                   "", // too far
		"limit":                         "limits",
		"nam":                           "name",
		"tl":                            "tls",
		"auth":                          "",
		"x":                             "",
		"":                              "",
		"tls" + strings.Repeat("s", 80): "",
	} {
		if got, _ := nearest(word, keys); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "abd", 1},
		{"abc", "ab", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3}, // a swapped pair is not changed again
	} {
		if got, back := distance(c.a, c.b), distance(c.b, c.a); got != c.want || back != c.want {
			t.Errorf("%q, %q: got %d and back %d, want %d", c.a, c.b, got, back, c.want)
		}
	}
}

func TestProblemString(t *testing.T) {
	for _, c := range []struct {
		in   Problem
		want string
	}{
		{Problem{Source: "a.yaml", Line: 3, Column: 5, Key: "log.level", Text: "is wrong"}, "a.yaml:3: log.level: is wrong"},
		{Problem{Source: "a.yaml", Key: "log", Text: "x", Warning: true}, "a.yaml: warning: log: x"},
		{Problem{Key: "log", Line: 3, Text: "x"}, "log: x"}, // a line of nothing is not shown
		{Problem{Text: "x"}, "x"},
		{Problem{Source: "a\nb", Key: "c\r\x1b[1m", Text: "d\u202e\xff'\"\\é"}, `a\nb: c\r\x1b[1m: d\u202e\ufffd'"\é`},
		{Problem{Key: strings.Repeat("é", 101), Text: "x"}, strings.Repeat("é", 100) + "...: x"},
	} {
		if got := c.in.String(); got != c.want {
			t.Errorf("%+v\ngot  %s\nwant %s", c.in, got, c.want)
		}
	}
}

func TestProblems_Err(t *testing.T) {
	p := Problems{{Text: "a", Warning: true}, {Text: "b"}, {Text: "c"}}
	if got := fmt.Sprint(p.Err(), len(p.Errors()), len(p.Warnings())); got != "b\nc 2 1" {
		t.Errorf("got %s", got)
	}
	if err := p.Warnings().Err(); err != nil {
		t.Errorf("warnings alone: got %v", err)
	}
}
