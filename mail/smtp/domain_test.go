package smtp

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseDomain(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Repeat(label63+".", 3) + strings.Repeat("b", 61)
	for _, tt := range []struct{ in, want string }{ // want is empty for an error
		{"example.com", "example.com"},
		{"EXAMPLE.Com", "example.com"},                         // names have no case
		{"localhost", "localhost"},                             // a single label will do, inside a site
		{"3com.example", "3com.example"},                       // RFC 1123, Section 2.1
		{"1.2.3.4", "1.2.3.4"},                                 // a name by the grammar, whoever may hold it
		{"a-b--c.example", "a-b--c.example"},                   // hyphens inside are free
		{label63 + ".example", label63 + ".example"},           // RFC 1035, Section 2.3.4
		{name253, name253},                                     // the longest
		{"bücher.example", "xn--bcher-kva.example"},            // U-label
		{"BÜCHER.example", "xn--bcher-kva.example"},            // UTS 46 folds, punycode alone does not
		{"bu\u0308cher.example", "xn--bcher-kva.example"},      // decomposed
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},     // A-label
		{"XN--BCHER-KVA.Example", "xn--bcher-kva.example"},     // A-label in upper case
		{"faß.example", "xn--fa-hia.example"},                  // sharp s is not ss
		{"ｅｘａｍｐｌｅ.com", "example.com"},                         // full width
		{"例え。テスト", "xn--r8jz45g.xn--zckzah"},                   // ideographic full stop
		{"a\u00ad.example", "a.example"},                       // the soft hyphen is mapped to nothing
		{"[192.0.2.1]", "[192.0.2.1]"},                         // RFC 5321, Section 4.1.3
		{"[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"},           //
		{"[ipv6:2001:0DB8:0:0:0:0:0:1]", "[IPv6:2001:db8::1]"}, // tag and address normalised
		{"[IPv6:::ffff:192.0.2.1]", "[IPv6:::ffff:192.0.2.1]"}, // mapped stays IPv6
		{"[IPv6:::FFFF:c000:201]", "[IPv6:::ffff:192.0.2.1]"},  // in one form
		{"", ""},                     // empty
		{".", ""},                    // empty labels
		{".example", ""},             //
		{"a..example", ""},           //
		{"example.", ""},             // no mail domain ends with a dot
		{"-a.example", ""},           // hyphen at the edge
		{"a-.example", ""},           //
		{"a_b.example", ""},          // underscore
		{"a b.example", ""},          // space
		{"a\x00b.example", ""},       // NUL
		{"a\r\nb.example", ""},       // line end
		{"a@example", ""},            // at-sign
		{"ü_b.example", ""},          // the same in U-labels
		{"ü\x00.example", ""},        //
		{"ü..example", ""},           //
		{"ü.example.", ""},           //
		{"\xff.example", ""},         // not UTF-8
		{label63 + "a.example", ""},  // label of 64
		{name253 + "b", ""},          // 254
		{"xn--", ""},                 // A-labels of nothing
		{"xn--.example", ""},         //
		{"xn--a.example", ""},        // decodes to U+0080
		{"xn--abc-.example", ""},     // decodes to ASCII
		{"xn--BCHER-kv.example", ""}, // nonsense
		{"a\u200d.example", ""},      // joiner without anything to join
		{"aא.example", ""},           // mixed direction
		{"[", ""},                    // no literal
		{"[]", ""},                   //
		{"[192.0.2.1", ""},           //
		{"[192.0.2]", ""},            //
		{"[192.0.2.01]", ""},         // leading zero: some read octal
		{"[192.0.2.256]", ""},        //
		{"[ 192.0.2.1]", ""},         //
		{"[::1]", ""},                // without its tag
		{"[IPv6:]", ""},              //
		{"[IPv6:192.0.2.1]", ""},     //
		{"[IPv6:fe80::1%eth0]", ""},  // zones mean something to one host only
		{"[IPv6:fe80::1%\r\nX]", ""}, //
		{"[x400:c=gb]", ""},          // tags of no transport of ours
		{"[192.0.2.1].example", ""},  //
		{"[192.0.2.1]]", ""},         //
	} {
		d, err := ParseDomain(tt.in)
		if d.String() != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("ParseDomain(%q): got %q, %v, want %q", tt.in, d, err, tt.want)
		}
	}
}

func TestDomainForms(t *testing.T) {
	for _, tt := range []struct {
		in, unicode string
		addr        string // of a literal
	}{
		{"xn--bcher-kva.example", "bücher.example", ""},
		{"example.com", "example.com", ""},
		{"[192.0.2.1]", "[192.0.2.1]", "192.0.2.1"},
		{"[IPv6:2001:DB8::1]", "[IPv6:2001:db8::1]", "2001:db8::1"},
	} {
		d, err := ParseDomain(tt.in)
		if err != nil {
			t.Fatalf("ParseDomain(%q): %v", tt.in, err)
		}
		if got := d.Unicode(); got != tt.unicode {
			t.Errorf("%q.Unicode(): got %q, want %q", tt.in, got, tt.unicode)
		}
		addr, ok := d.Addr()
		if ok != d.IsLiteral() || ok != (tt.addr != "") || ok && addr != netip.MustParseAddr(tt.addr) {
			t.Errorf("%q.Addr(): got %v, %v, want %q", tt.in, addr, ok, tt.addr)
		}
		if ok && AddrDomain(addr) != d {
			t.Errorf("AddrDomain(%v): got %v, want %v", addr, AddrDomain(addr), d)
		}
	}
	if d := AddrDomain(netip.Addr{}); !d.IsZero() {
		t.Errorf("AddrDomain of no address: got %q, want none", d)
	}
	if d := AddrDomain(netip.MustParseAddr("fe80::1%eth0")); d.String() != "[IPv6:fe80::1]" {
		t.Errorf("AddrDomain with a zone: got %q, want it without", d)
	}
}

// The time to map a name grows with the square of its length, so there is a limit.
func TestParseDomainLong(t *testing.T) {
	var long strings.Builder
	for i := range 100000 { // unlike characters are the worst
		long.WriteRune(rune(0x4e00 + i*7919%20000))
	}
	for _, s := range []string{long.String(), strings.Repeat("ü.", 1<<19)} {
		if d, err := ParseDomain(s); err == nil || !strings.Contains(err.Error(), "longer than") {
			t.Errorf("ParseDomain of %d octets: got %q, %v, want too long", len(s), d, err)
		}
	}
}

// What was parsed is in canonical form: parsing it again changes nothing, and so does
// the way over U-labels.
func FuzzDomainCanonical(f *testing.F) {
	for _, s := range []string{"Example.COM", "bücher.example", "xn--bcher-kva.example", "faß.de", "例え。テスト",
		"[192.0.2.1]", "[IPv6:2001:DB8::1]", "[IPv6:::ffff:1.2.3.4]", "a\u200d.b", "xn--abc-.x", "ⅷ.example", "İ.example", "א1.example"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDomain(s)
		if err != nil {
			if !d.IsZero() {
				t.Errorf("ParseDomain(%q): got %q with the error %v", s, d, err)
			}
			return
		}
		if again, err := ParseDomain(d.String()); err != nil || again != d {
			t.Errorf("ParseDomain(%q) of %q: got %q, %v, want no change", d, s, again, err)
		}
		if again, err := ParseDomain(d.Unicode()); err != nil || again != d {
			t.Errorf("ParseDomain(%q), the U-labels of %q: got %q, %v, want the same", d.Unicode(), d, again, err)
		}
		if name := d.String(); !isASCII(name) || strings.ContainsAny(name, " \r\n\x00<>@,") || name != strings.ToLower(name) && !d.IsLiteral() {
			t.Errorf("ParseDomain(%q): got %q, which is not fit for the wire", s, name)
		}
	})
}
