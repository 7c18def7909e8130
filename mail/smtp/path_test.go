package smtp

import (
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	local180 := strings.Repeat("l", 180)
	for _, tt := range []struct{ in, local, domain, canonical string }{
		{"<>", "", "", "<>"}, // RFC 5321, Section 4.5.5
		{"<a@example.com>", "a", "example.com", "<a@example.com>"},
		{"<A.b+c@EXAMPLE.com>", "A.b+c", "example.com", "<A.b+c@example.com>"},              // the local part keeps its case
		{"<!#$%&'*+-/=?^_`{|}~@x.test>", "!#$%&'*+-/=?^_`{|}~", "x.test", ""},               // all of atext
		{"<postmaster>", "postmaster", "", "<postmaster>"},                                  // RFC 5321, Section 4.5.1
		{"<PostMaster>", "postmaster", "", "<postmaster>"},                                  // in any case
		{"<Postmaster@x.test>", "Postmaster", "x.test", ""},                                 //
		{`<"a b"@x.test>`, "a b", "x.test", `<"a b"@x.test>`},                               // quotes that are needed
		{`<"a"@x.test>`, "a", "x.test", "<a@x.test>"},                                       // and those that are not
		{`<"a\b"@x.test>`, "ab", "x.test", "<ab@x.test>"},                                   // an escape that was not needed
		{`<"a\"b\\c"@x.test>`, `a"b\c`, "x.test", `<"a\"b\\c"@x.test>`},                     // escapes
		{`<"a@b"@x.test>`, "a@b", "x.test", `<"a@b"@x.test>`},                               // at-sign inside
		{`<"a>b"@x.test>`, "a>b", "x.test", `<"a>b"@x.test>`},                               // bracket inside
		{`<".a..b."@x.test>`, ".a..b.", "x.test", `<".a..b."@x.test>`},                      // dots that no atom may have
		{`<" "@x.test>`, " ", "x.test", `<" "@x.test>`},                                     //
		{"<@hop.test:a@x.test>", "a", "x.test", "<a@x.test>"},                               // RFC 5321, Appendix C
		{"<@one.test,@two.test:a@x.test>", "a", "x.test", "<a@x.test>"},                     //
		{"<a@[192.0.2.1]>", "a", "[192.0.2.1]", ""},                                         //
		{"<a@[ipv6:2001:DB8::1]>", "a", "[IPv6:2001:db8::1]", "<a@[IPv6:2001:db8::1]>"},     //
		{"<jörg@bücher.test>", "jörg", "xn--bcher-kva.test", "<jörg@xn--bcher-kva.test>"},   // RFC 6531, Section 3.3
		{`<"jörg b"@x.test>`, "jörg b", "x.test", `<"jörg b"@x.test>`},                      //
		{"<" + local180 + "@x.test>", local180, "x.test", ""},                               // longer than 64: VERP
		{"<@" + strings.Repeat("hop.", 60) + "test:a@x.test>", "a", "x.test", "<a@x.test>"}, // only what stays counts
	} {
		p, err := ParsePath(tt.in)
		if err != nil || p.Local != tt.local || p.Domain.String() != tt.domain {
			t.Errorf("ParsePath(%q): got %q at %q, %v, want %q at %q", tt.in, p.Local, p.Domain, err, tt.local, tt.domain)
		}
		want := tt.canonical
		if want == "" {
			want = tt.in
		}
		if got := string(appendPath(nil, p)); got != want || "<"+p.String()+">" != want || p.length() != len(want) {
			t.Errorf("ParsePath(%q) written: got %q, %q, length %d, want %q", tt.in, got, p, p.length(), want)
		}
	}
}

func TestParsePathErrors(t *testing.T) {
	for _, in := range []string{
		"",                       // nothing
		"a@x.test",               // no brackets
		"<a@x.test",              // one bracket
		"<",                      //
		"< >",                    //
		"<a>",                    // only postmaster goes without a domain
		"<a@>",                   //
		"<@x.test>",              // no local part
		"<@x.test:>",             //
		"<@x.test:@y.test>",      //
		"<@x.test a@y.test>",     // route without a colon
		"<@:a@y.test>",           // route without a hop
		"<@x..test:a@y.test>",    //
		"<x.test:a@y.test>",      //
		"<@[192.0.2.1:a@y.test>", //
		"<@[IPv6:::1]:a@y.test>", // a literal is no hop
		"<a@b@x.test>",           // at-sign without quotes
		"<a b@x.test>",           // space without quotes
		"<a@x.test>b",            // text behind
		"<.a@x.test>",            // dots
		"<a.@x.test>",            //
		"<a..b@x.test>",          //
		`<""@x.test>`,            // empty, though the grammar has it: it would be the null path
		`<"a@x.test>`,            // quote without end
		`<"a\`,                   //
		`<"a"b@x.test>`,          // text behind the quote
		`<"a".b@x.test>`,         //
		"<a\x00@x.test>",         // controls
		"<\"a\x00\"@x.test>",     //
		"<\"a\\\x00\"@x.test>",   //
		"<\"a\r\nDATA\"@x.test>", //
		"<a\r\n@x.test>",         //
		"<\"a\x7f\"@x.test>",     //
		"<\xff@x.test>",          // not UTF-8
		"<a\u200bb@x.test>",      // invisible
		"<a\u202eb@x.test>",      // turns the direction
		"<a\u0085b@x.test>",      // C1
		"<a@x_y.test>",           // no domain
		"<a@x.test.>",            //
		"<" + strings.Repeat("l", 248) + "@x.test>",    // 257
		`<"` + strings.Repeat(`"`, 3) + `"@x.test>`,    //
		`<"` + strings.Repeat(`\"`, 123) + `"@x.test>`, // 257 with its escapes
		"<" + strings.Repeat("l", 248) + "@ü>",         // fits only before it is mapped
	} {
		if p, err := ParsePath(in); err == nil {
			t.Errorf("ParsePath(%q): got %q, want an error", in, p)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a@x.test", "a@x.test"},
		{`"a b"@X.test`, `"a b"@x.test`},
		{"", ""},           // the null path is no address
		{"postmaster", ""}, // it has no domain
		{"<a@x.test>", ""}, //
		{"a@x.test ", ""},  //
		{"@y.test:a@x.test", ""},
	} {
		p, err := ParseAddress(tt.in)
		if p.String() != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("ParseAddress(%q): got %q, %v, want %q", tt.in, p, err, tt.want)
		}
	}
}

// A Path that nobody parsed may hold anything; it must not get onto the wire.
func TestPathCheck(t *testing.T) {
	x := mustPath(t, "<a@x.test>").Domain
	for _, tt := range []struct {
		path Path
		ok   bool
	}{
		{Path{}, true},
		{Path{"a b", x}, true},
		{Path{"postmaster", Domain{}}, true},
		{Path{"a", Domain{}}, false},
		{Path{"", x}, false}, // it would look like a source route
		{Path{"a\r\nDATA", x}, false},
		{Path{"a\x00", x}, false},
		{Path{"\xff", x}, false},
		{Path{strings.Repeat("a", 300), x}, false},
	} {
		if err := tt.path.check(); (err == nil) != tt.ok {
			t.Errorf("%#v.check(): got %v, want ok=%v", tt.path, err, tt.ok)
		}
	}
}

// Writing a path and reading it again gives the same, and what is written is one line
// that no check refuses.
func FuzzPathRoundTrip(f *testing.F) {
	for _, s := range []string{"<>", "<postmaster>", "<a@example.com>", `<"a\"b"@x.test>`, `<" "@x.test>`, "<@h.test:a@x.test>",
		"<a@[IPv6:::1]>", "<jörg@bücher.test>", `<"..">`, `<"a\>"@x.test>`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePath(s)
		if err != nil {
			return
		}
		written := string(appendPath(nil, p))
		if again, err := ParsePath(written); err != nil || again != p {
			t.Errorf("ParsePath(%q) of %q: got %q, %v, want %q", written, s, again, err, p)
		}
		if err := p.check(); err != nil || p.length() != len(written) || len(written) > maxPath {
			t.Errorf("%q from %q: check %v, length %d, written %q", p, s, err, p.length(), written)
		}
		if strings.ContainsAny(written, "\r\n\x00") {
			t.Errorf("ParsePath(%q) written: got %q, which is more than a line", s, written)
		}
	})
}
