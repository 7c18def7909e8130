package certs

import (
	"strings"
	"testing"

	"golang.org/x/net/idna"
)

func TestNormalise(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tc := range []struct {
		in, want string // want "" means: not a host name
	}{
		{"mx1.example.test", "mx1.example.test"},
		{"MX1.Example.TEST", "mx1.example.test"},       // RFC 4343, Section 3
		{"mx1.example.test.", "mx1.example.test"},      // one trailing dot is the root
		{"mx1.example.test..", ""},                     // two are not
		{"localhost", "localhost"},                     // one label will do
		{"3com.test", "3com.test"},                     // RFC 1123, Section 2.1 allows a leading digit
		{"münchen.test", "xn--mnchen-3ya.test"},        // U-label
		{"MÜNCHEN.test", "xn--mnchen-3ya.test"},        // and its upper case
		{"XN--MNCHEN-3YA.test", "xn--mnchen-3ya.test"}, // A-label in upper case
		{"straße.test", "xn--strae-oqa.test"},          // IDNA 2008: not "strasse"
		{"mx1。example。test", "mx1.example.test"},       // ideographic dots
		{long + "." + long + "." + long + "." + long[:61], strings.Repeat(long+".", 3) + long[:61]}, // 253 bytes
		{long + "." + long + "." + long + "." + long[:62], ""},                                      // 254 bytes
		{long + "a.test", ""},                    // label of 64
		{strings.Repeat("ü", 500) + ".test", ""}, // U-label that makes too long an A-label
		{strings.Repeat("ü", 60000), ""},         // never reaches the tables
		{"", ""},                                 // none
		{".", ""},                                // the root is no host
		{".example.test", ""},                    // empty label
		{"mx1..test", ""},                        // empty label
		{"_25._tcp.example.test", ""},            // underscore
		{"my_host.example.test", ""},             // underscore
		{"-a.test", ""},                          // leading hyphen
		{"a-.test", ""},                          // trailing hyphen
		{"*.example.test", ""},                   // a client does not ask for a wildcard
		{"192.0.2.1", ""},                        // address
		{"2001:db8::1", ""},                      // address
		{"[192.0.2.1]", ""},                      // address literal of SMTP
		{"mx1.example.7", ""},                    // numeric last label
		{"mx 1.test", ""},                        // space
		{"mx1.test\x00.example", ""},             // NUL
		{"mx1.test\r\n", ""},                     // line end
		{"\xff\xfe.test", ""},                    // not UTF-8
		{"a\u202eb.test", ""},                    // direction override
	} {
		got, ok := normalise(tc.in)
		if got != tc.want || ok != (tc.want != "") {
			t.Errorf("normalise(%.80q) = %q, %v; want %q", tc.in, got, ok, tc.want)
		}
	}
}

// FuzzNormaliseIsStable: the result is a host name, it is its own normal form, and
// neither case nor a trailing dot nor the way from A-labels to U-labels and back changes
// it.
func FuzzNormaliseIsStable(f *testing.F) {
	for _, s := range []string{"mx1.example.test", "MÜNCHEN.test.", "xn--mnchen-3ya.test", "_a.test", "192.0.2.1", "ß.test", "a。b", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out, ok := normalise(in)
		if !ok {
			if out != "" {
				t.Fatalf("normalise(%q) = %q, false; want an empty name", in, out)
			}
			return
		}
		if !isHostname(out) || strings.ToLower(out) != out || strings.HasSuffix(out, ".") {
			t.Fatalf("normalise(%q) = %q, which is not in normal form", in, out)
		}
		for _, variant := range []string{out, strings.ToUpper(out), out + "."} {
			if again, ok := normalise(variant); !ok || again != out {
				t.Fatalf("normalise(%q) = %q, but normalise(%q) = %q, %v", in, out, variant, again, ok)
			}
		}
		if isASCII(in) {
			return // "xn--" with nonsense behind it is a name too, only not one with a U-label
		}
		unicode, err := idna.Lookup.ToUnicode(out)
		if err != nil {
			t.Fatalf("normalise(%q) = %q, which has no U-label: %v", in, out, err)
		}
		if again, ok := normalise(unicode); !ok || again != out {
			t.Fatalf("normalise(%q) = %q, but its U-label %q leads to %q, %v", in, out, unicode, again, ok)
		}
	})
}
