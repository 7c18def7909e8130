package manifest

import (
	"slices"
	"strings"
	"testing"
)

const head = "\x00asm\x01\x00\x00\x00"

// TestRoundTrip: what is put into a module is found in it, and nothing else changes.
func TestRoundTrip(t *testing.T) {
	const text = `{"capabilities": ["kv", "body_read", "kv"], "name": "x", "later": 1}`
	wasm := head + "\x00\x03\x02ab" + "\x01\x01\x00"
	out, err := Append([]byte(wasm), []byte(text))
	if err != nil || !strings.HasPrefix(string(out), wasm) {
		t.Fatalf("got %q, %v", out, err)
	}
	found, err := Find(out)
	if err != nil || string(found) != text {
		t.Fatalf("got %q, %v, want %q", found, err, text)
	}
	m, err := Parse(found)
	if err != nil || m.Name != "x" || !slices.Equal(m.Capabilities, []string{"body_read", "kv"}) {
		t.Errorf("got %+v, %v", m, err)
	}
	if _, err := Append(out, []byte(text)); err == nil {
		t.Error("a second manifest: got no error")
	}
	if found, err := Find([]byte(wasm)); found != nil || err != nil {
		t.Errorf("a module without: got %q, %v", found, err)
	}
}

func TestBad(t *testing.T) {
	for _, bad := range []string{"", head[:7], head + "\x00", head + "\x01\x05ab", head + "\x00\x02\x05a", head + "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} {
		if text, err := Find([]byte(bad)); err == nil {
			t.Errorf("%q: got %q, want an error", bad, text)
		}
	}
	for _, bad := range []string{`[]`, `{"capabilities": "kv"}`, `{"capabilities": ["bodyread"]}`, `{`, `{"min_minor": -1}`, `{"min_minor": 99}`, `{"min_minor": "1"}`} {
		if _, err := Append([]byte(head), []byte(bad)); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
	if m, err := Parse([]byte(`{"capabilities": ["of_tomorrow"]}`)); err != nil || len(m.Capabilities) != 1 {
		t.Errorf("a capability of a later version: got %+v, %v", m, err)
	}
}

func FuzzFind(f *testing.F) {
	f.Add([]byte(head + "\x00\x0f\x0cmg1.manifest{}"))
	f.Fuzz(func(t *testing.T, wasm []byte) {
		text, err := Find(wasm)
		if err != nil || text != nil {
			return
		}
		out, err := Append(wasm, []byte(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := Find(out); err != nil || string(text) != "{}" {
			t.Errorf("got %q, %v", text, err)
		}
	})
}
