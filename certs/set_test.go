package certs

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func day(n int) time.Time { return time.Now().Add(time.Duration(n) * 24 * time.Hour) }

func TestChooseByName(t *testing.T) {
	s := openFiles(t,
		spec{label: "wild", names: []string{"*.example.test"}},
		spec{label: "mx", names: []string{"other.test", "MX1.example.test"}},
		spec{label: "deep", names: []string{"*.deep.example.test"}},
		spec{label: "idn", names: []string{"xn--mnchen-3ya.test", "*.xn--mnchen-3ya.test"}},
		spec{label: "soon", names: []string{"twice.test"}, notAfter: day(10)},
		spec{label: "late", names: []string{"twice.test"}, notAfter: day(20)},
		spec{label: "mid", names: []string{"twice.test"}, notAfter: day(15)},
		spec{label: "now", names: []string{"early.test"}, notAfter: day(10)},
		spec{label: "next", names: []string{"early.test"}, notBefore: day(5), notAfter: day(99)},
		spec{label: "next2", names: []string{"early2.test"}, notBefore: day(5), notAfter: day(99)},
		spec{label: "now2", names: []string{"early2.test"}, notAfter: day(10)},
		spec{label: "past", names: []string{"past.test"}, notBefore: day(-99), notAfter: day(-9)},
		spec{label: "both-rsa", names: []string{"both.test"}, key: rsaKey(), notAfter: day(99)},
		spec{label: "both-ec", names: []string{"both.test"}, notAfter: day(9)},
		spec{label: "both-ed", names: []string{"both.test"}, key: edKey()},
		spec{label: "ec-exact", names: []string{"a.mixed.test"}},
		spec{label: "rsa-wild", names: []string{"*.mixed.test"}, key: rsaKey()},
		spec{label: "cn-only.test"},
		spec{label: "cn-ignored.test", names: []string{"san.test"}},
		spec{label: "partial", names: []string{"f*.partial.test", "a.*.partial.test", "_x.partial.test"}},
	)
	edOnly := func(name string) *tls.ClientHelloInfo {
		h := hello(name)
		h.SignatureSchemes = []tls.SignatureScheme{tls.Ed25519}
		return h
	}
	for _, tc := range []struct {
		sni    string
		client func(string) *tls.ClientHelloInfo
		want   string
	}{
		{"mx1.example.test", hello, "mx"},          // exact before wildcard, whatever the order of files
		{"MX1.EXAMPLE.TEST", hello, "mx"},          // case
		{"mx1.example.test.", hello, "mx"},         // trailing dot
		{"other.test", hello, "mx"},                // another name of one file
		{"mx2.example.test", hello, "wild"},        // wildcard
		{"Mx2.Example.Test", hello, "wild"},        // and case
		{"example.test", hello, "mx"},              // a wildcard needs its label: default
		{"a.b.example.test", hello, "mx"},          // and takes one only: default
		{"a.deep.example.test", hello, "deep"},     // the nearest wildcard
		{"xn--mnchen-3ya.test", hello, "idn"},      // A-label
		{"münchen.test", hello, "idn"},             // U-label
		{"MX.MÜNCHEN.test", hello, "idn"},          // wildcard below a U-label
		{"twice.test", hello, "late"},              // expires last
		{"early.test", hello, "now"},               // expires last, but is not valid yet
		{"early2.test", hello, "now2"},             // the same in the other order
		{"past.test", hello, "past"},               // expired is better than another name
		{"both.test", hello, "both-ec"},            // kind of key goes before expiry
		{"both.test", rsaHello, "both-rsa"},        // what the client can use
		{"both.test", edOnly, "both-ed"},           // what the client can use
		{"a.mixed.test", hello, "ec-exact"},        // exact
		{"a.mixed.test", rsaHello, "rsa-wild"},     // the wildcard stands in
		{"other.test", rsaHello, "mx"},             // nothing fits: the name's own, and crypto/tls reports
		{"cn-only.test", hello, "cn-only.test"},    // common name without other names
		{"cn-ignored.test", hello, "mx"},           // common name beside other names
		{"foo.partial.test", hello, "mx"},          // partial wildcards are none
		{"_x.partial.test", hello, "mx"},           // underscore, even if a certificate has it
		{"_25._tcp.mx1.example.test", hello, "mx"}, // underscore
		{"my_host.example.test", hello, "mx"},      // underscore, although a wildcard could cover it
		{"unknown.test", hello, "mx"},              // unknown
		{"", hello, "mx"},                          // none
		{"192.0.2.1", hello, "mx"},                 // address
		{"2001:db8::1", hello, "mx"},               // address
		{"mx1..example.test", hello, "mx"},         // invalid
		{"\x00\xff", hello, "mx"},                  // invalid
		{strings.Repeat("a.", 30000), hello, "mx"}, // far too long
		{"*.example.test", hello, "mx"},            // not a name to ask for
	} {
		if got := chosen(t, s, tc.client(tc.sni)); got != tc.want {
			t.Errorf("SNI %.80q: got %s, want %s", tc.sni, got, tc.want)
		}
	}
}

func TestDefaultCertificate(t *testing.T) {
	for _, tc := range []struct {
		files  string
		specs  []spec
		client *tls.ClientHelloInfo
		want   string
	}{
		{"none", nil, hello(""), "self"},
		{"none", nil, hello("mx1.example.test"), "self"},
		{"another name", []spec{{label: "a", names: []string{"a.test"}}}, hello(""), "self"},
		{"ours", []spec{{label: "mx", names: []string{"mx1.example.test"}}}, hello(""), "mx"},
		{"a wildcard", []spec{{label: "wild", names: []string{"*.example.test"}}}, hello(""), "wild"},
		{"two alike", []spec{{label: "a", names: []string{"mx1.example.test"}, notAfter: day(9).Truncate(time.Hour)},
			{label: "b", names: []string{"mx1.example.test"}, notAfter: day(9).Truncate(time.Hour)}}, hello(""), "a"},
		{"two kinds", []spec{{label: "ec", names: []string{"mx1.example.test"}},
			{label: "rsa", names: []string{"mx1.example.test"}, key: rsaKey()}}, rsaHello(""), "rsa"},
		{"expired", []spec{{label: "old", names: []string{"mx1.example.test"}, notBefore: day(-9), notAfter: day(-1)}}, hello(""), "old"},
		{"another kind than the name's", []spec{{label: "ec", names: []string{"a.test"}},
			{label: "mx", names: []string{"mx1.example.test"}, key: rsaKey()}}, rsaHello("a.test"), "mx"},
	} {
		if got := chosen(t, openFiles(t, tc.specs...), tc.client); got != tc.want {
			t.Errorf("files: %s; SNI %q: got %s, want %s", tc.files, tc.client.ServerName, got, tc.want)
		}
	}
}

func TestNames(t *testing.T) {
	s := openFiles(t,
		spec{label: "b", names: []string{"*.B.test", "b.test", "b.test"}},
		spec{label: "a", names: []string{"a.test", "b.test", "_x.test"}})
	want := []string{"*.b.test", "a.test", "b.test", "mx1.example.test"}
	if got := s.Names(); !slices.Equal(got, want) {
		t.Errorf("Names() = %q, want %q", got, want)
	}
}

func BenchmarkGetCertificate(b *testing.B) {
	var specs []spec
	for i := range 1000 {
		specs = append(specs, spec{label: fmt.Sprint(i), names: []string{fmt.Sprintf("mx%d.example.net", i)}})
	}
	specs = append(specs, spec{label: "wild", names: []string{"*.example.test"}},
		spec{label: "ec", names: []string{"both.test"}}, spec{label: "rsa", names: []string{"both.test"}, key: rsaKey()})
	s := openFiles(b, specs...)
	for _, bc := range []struct {
		name  string
		hello *tls.ClientHelloInfo
	}{
		{"hit", hello("mx777.example.net")},
		{"wildcard", hello("anything.example.test")},
		{"miss", hello("mx777.example.org")},
		{"none", hello("")},
		{"invalid", hello("my_host.example.net")},
		{"upper", hello("MX777.EXAMPLE.NET")},
		{"rsa", rsaHello("both.test")},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.getCertificate(bc.hello); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
