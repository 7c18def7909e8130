package filter

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// plain makes of a node what encoding/json makes of its text, numbers as json.Number.
func plain(n node) any {
	switch n.kind {
	case kindNull:
		return nil
	case kindBool:
		return n.text == "true"
	case kindNumber:
		return json.Number(n.text)
	case kindString:
		return n.text
	case kindList:
		out := []any{}
		for _, e := range n.list {
			out = append(out, plain(e))
		}
		return out
	}
	out := map[string]any{}
	for i, k := range n.keys {
		out[k] = plain(n.list[i])
	}
	return out
}

func standard(in string) (v any, err error) {
	d := json.NewDecoder(strings.NewReader(in))
	d.UseNumber()
	err = d.Decode(&v)
	return v, err
}

func TestParseJSON(t *testing.T) {
	tests := []struct {
		in  string
		err string // part of the error; empty if the text is good
	}{
		{`{}`, ""},
		{` {"a" : [1, -2.5e+3, "x", null, true, false, {}, []] } `, ""},
		{`"\u00e9\ud83d\ude00\n\"\\\/\b\f\r\t"`, ""},
		{`0`, ""},
		{``, "want a value"},
		{`{"a":1,"a":2}`, `key "a" a second time`}, // two answers to one question
		{`{"a":1,}`, "want a key"},
		{`[1,]`, "want a value"},
		{`[1 2]`, "want a comma"},
		{`{"a" 1}`, "want a colon"},
		{`{a:1}`, "want a key"},
		{`[`, "want a value"},
		{`[1`, "want a comma"},
		{`"a`, "string without an end"},
		{`"a\`, "string without an end"},
		{`"\x"`, "bad escape"},
		{`"\u12"`, "bad escape"},
		{`"\ud83d"`, "half a surrogate pair"}, // encoding/json guesses U+FFFD
		{`"\ud83dx"`, "half a surrogate pair"},
		{`"\ude00"`, "bad escape"},
		{"\"a\nb\"", "control character"},
		{"\"\\t\n\"", "control character"},
		{"\"\xff\"", "not UTF-8"},
		{`01`, "text behind the end"},
		{`-`, "bad number"},
		{`1.`, "bad number"},
		{`1e`, "bad number"},
		{`.5`, "want a value"},
		{`tru`, "want a value"},
		{`{} {}`, "text behind the end"},
		{"{}\x00", "text behind the end"},
		{"{\x00", "want a key"},
		{strings.Repeat("[", 32) + strings.Repeat("]", 32), ""},
		{strings.Repeat("[", 33) + strings.Repeat("]", 33), "too deep"},
		{"[" + strings.Repeat("1,", maxNodes) + "1]", "too many values"},
		{`"` + strings.Repeat("a", maxConfig) + `"`, "too long"},
	}
	for _, tt := range tests {
		n, err := parseJSON(tt.in)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%.60q: got %v, want an error with %q", tt.in, err, tt.err)
			}
			continue
		}
		want, wantErr := standard(tt.in)
		if err != nil || wantErr != nil || !reflect.DeepEqual(plain(n), want) {
			t.Errorf("%.60q: got %v, %v; want %v, %v", tt.in, plain(n), err, want, wantErr)
		}
	}
}

// FuzzParseJSON: what our reader takes, encoding/json takes as well and reads the same.
// The other way round ours may be stricter.
func FuzzParseJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.5e3,"x\u00e9",null,true]}`, `"\ud83d\ude00"`, `[[[]]]`, `{"a":{"a":0}}`, `-0`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		n, err := parseJSON(in)
		if err != nil {
			if json.Valid([]byte(in)) && utf8.ValidString(in) && !mayBeStricter(in, err) {
				t.Errorf("%q: got %v, but the text is good", in, err)
			}
			return
		}
		want, err := standard(in)
		if err != nil || !reflect.DeepEqual(plain(n), want) {
			t.Errorf("%q: got %v, want %v, %v", in, plain(n), want, err)
		}
		if in[n.from:n.to] != strings.Trim(in, " \t\r\n") {
			t.Errorf("%q: stands at %q", in, in[n.from:n.to])
		}
	})
}

func mayBeStricter(in string, err error) bool {
	for _, what := range []string{"second time", "too deep", "too many", "too long"} {
		if strings.Contains(err.Error(), what) {
			return true
		}
	}
	return strings.Contains(in, `\u`) // halves of surrogate pairs
}
