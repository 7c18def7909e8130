package config

import (
	"encoding"
	"fmt"
	"strings"
	"testing"
)

// readText returns what a value prints as after reading in, or "error".
func readText[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](in string) string {
	var v T
	if err := P(&v).UnmarshalText([]byte(in)); err != nil {
		return "error"
	}
	return fmt.Sprint(v)
}

func TestAddresses(t *testing.T) {
	domain, pattern := readText[Domain], readText[Pattern]
	listen, backend, module := readText[ListenAddress], readText[BackendAddress], readText[Module]
	for _, c := range []struct {
		read     func(string) string
		in, want string
	}{
		{domain, "Example.COM", "example.com"},
		{domain, "localhost", "localhost"},
		{domain, "bücher.example", "xn--bcher-kva.example"},
		{domain, "BÜCHER.example", "xn--bcher-kva.example"},
		{domain, "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{domain, "XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{domain, "r3---sn.example", "r3---sn.example"}, // exists, whatever IDNA says of the hyphens
		{domain, "例え。テスト", "xn--r8jz45g.xn--zckzah"},   // a dot of another script
		{domain, "1.2.3.4.example", "1.2.3.4.example"},
		{domain, strings.Repeat("a", 63) + ".test", strings.Repeat("a", 63) + ".test"},
		{domain, "::1", "error"},
		{domain, "a b.test", "error"},
		{domain, "a\x00.test", "error"},
		{domain, "a\xff.test", "error"},
		{domain, "a\ufffd.test", "error"},
		{domain, ".", "error"},
		{domain, strings.Repeat("ü", 70) + ".test", "error"}, // too long once it is ASCII
		{domain, strings.Repeat("ü", 500_000), "error"},      // and soon

		{pattern, "*.Bücher.example", "*.xn--bcher-kva.example"},
		{pattern, "a.test", "a.test"},
		{pattern, "*.test", "*.test"},
		{pattern, "*", "*"},
		{pattern, "*.*.test", "error"},
		{pattern, "a*.test", "error"},

		{listen, ":25", ":25"},
		{listen, "127.0.0.1:0", "127.0.0.1:0"},
		{listen, "[::1]:25", "[::1]:25"},
		{listen, "[fe80::1%eth0]:25", "[fe80::1%eth0]:25"},
		{listen, "LocalHost:25", "localhost:25"},
		{listen, "unix:/run/mx.sock", "unix:/run/mx.sock"},
		{listen, "unix:@mx", "unix:@mx"},
		{listen, "25", "error"},
		{listen, "::1:25", "error"},
		{listen, "127.0.0.1:-1", "error"},

		{backend, "smtp://10.0.0.6:25", "smtp://10.0.0.6:25"},
		{backend, "SMTP://Mail.Example.com", "smtp://mail.example.com:25"},
		{backend, "lmtp://[::1]", "lmtp://[::1]:24"},
		{backend, "lmtp://::1", "lmtp://[::1]:24"},
		{backend, "smtps://mail.example.com", "smtps://mail.example.com:465"},
		{backend, "smtp://a.test:0025", "smtp://a.test:25"},
		{backend, "lmtp+unix:///run/lmtp.sock", "lmtp+unix:///run/lmtp.sock"},
		{backend, "smtp+unix://lmtp.sock", "smtp+unix://lmtp.sock"},
		{backend, "smtps+unix:///x", "error"},
		{backend, "smtp:/a.test", "error"},
		{backend, "smtp://a.test:", "error"},
		{backend, "smtp://a.test:65536", "error"},
		{backend, "smtp://a.test?x", "error"},
		{backend, "smtp://:25", "error"},

		{module, "builtin:rcptguard", "builtin:rcptguard"},
		{module, "spam-check_2.1", "spam-check_2.1"},
		{module, "dir/a b.wasm", "dir/a b.wasm"},
		{module, "a.wasm", "a.wasm"},
		{module, "builtin:../x", "error"},
		{module, "../x", "error"},
		{module, "x.js@1", "error"},
		{module, "dir/", "error"},
	} {
		if got := c.read(c.in); got != c.want {
			t.Errorf("%q: got %s, want %s", c.in, got, c.want)
		}
	}
	if got := (BackendAddress{Network: "unix", Address: "/x"}).Host() + (BackendAddress{Network: "tcp", Address: "[::1]:25"}).Host(); got != "::1" {
		t.Errorf("Host: got %q", got)
	}
}

func TestPatternMatches(t *testing.T) {
	for _, c := range []struct {
		pattern Pattern
		domain  string
		want    bool
	}{
		{"a.test", "a.test", true},
		{"a.test", "b.a.test", false},
		{"*.a.test", "b.a.test", true},
		{"*.a.test", "c.b.a.test", true}, // any number of labels
		{"*.a.test", "a.test", false},    // but not none
		{"*.a.test", "ba.test", false},
		{"*.a.test", ".a.test", false},
		{"*.a.test", "", false},
	} {
		if got := c.pattern.Matches(c.domain); got != c.want {
			t.Errorf("%s matches %q: got %v, want %v", c.pattern, c.domain, got, c.want)
		}
	}
}

// A pattern that shadows another matches whatever the other matches.
func FuzzPatternWider(f *testing.F) {
	f.Add("*.x.a.test", "b.x.a.test")
	f.Add("x.a.test", "x.a.test")
	f.Fuzz(func(t *testing.T, pattern, domain string) {
		var p Pattern
		var d Domain
		if p.UnmarshalText([]byte(pattern)) != nil || d.UnmarshalText([]byte(domain)) != nil || !p.Matches(string(d)) {
			return
		}
		p.wider(func(w Pattern) bool {
			if !w.Matches(string(d)) {
				t.Errorf("%s matches %s, and %s does not", p, d, w)
			}
			return false
		})
	})
}
