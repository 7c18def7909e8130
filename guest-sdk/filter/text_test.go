package filter

import (
	"mime"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAddress(t *testing.T) {
	tests := []struct{ in, local, domain string }{
		{"", "", ""}, // the null sender
		{"a@example.com", "a", "example.com"},
		{"postmaster", "postmaster", ""},
		{`"a b"@example.com`, "a b", "example.com"},
		{`"a@b\"c"@example.com`, `a@b"c`, "example.com"}, // the domain follows the last @
		{`""@example.com`, "", "example.com"},
		{"a@[192.0.2.1]", "a", "[192.0.2.1]"},
	}
	for _, tt := range tests {
		a := Address{tt.in}
		if a.Local() != tt.local || a.Domain() != tt.domain || a.String() != tt.in || a.IsNull() != (tt.in == "") {
			t.Errorf("%q: got %q and %q, want %q and %q", tt.in, a.Local(), a.Domain(), tt.local, tt.domain)
		}
	}
	if got := ParseAddress("Joe@EXAMPLE.com"); got != (Address{"Joe@example.com"}) {
		t.Errorf("ParseAddress: got %q, want the domain alone in lower case", got)
	}
	if got := ParseAddress("Postmaster"); got != (Address{"Postmaster"}) {
		t.Errorf("ParseAddress: got %q", got)
	}
}

// FuzzIP compares with net/netip.
func FuzzIP(f *testing.F) {
	for _, s := range []string{"", "192.0.2.1", "192.0.2.256", "192.0.2.01", "1.2.3", "1.2.3.4.5", "::", "::1", "1::",
		"2001:db8::1", "2001:DB8:0:0:1:0:0:1", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:8::", "::ffff:192.0.2.1",
		"1:2:3:4:5:6:192.0.2.1", "1::2::3", ":::", ":1", "1:", "fe80::1%eth0", "12345::", "1:2:3:4:5:6:7", "::192.0.2.1:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := ParseIP(s)
		want, err := netip.ParseAddr(s)
		if want.Zone() != "" {
			want = netip.Addr{}
		}
		want = want.Unmap()
		if ok != (err == nil && want.IsValid()) || got.IsValid() != ok || ok && got.String() != want.String() {
			t.Fatalf("%q: got %q, %v; want %q, %v", s, got, ok, want, err)
		}
		if ok && (string(got.Bytes()) != string(want.AsSlice()) || got.Is4() != want.Is4()) {
			t.Errorf("%q: got % x, want % x", s, got.Bytes(), want.AsSlice())
		}
	})
}

func FuzzPrefix(f *testing.F) {
	f.Add("192.0.2.0/24", "192.0.2.255")
	f.Add("192.0.2.0/25", "192.0.2.128")
	f.Add("192.0.2.1", "192.0.2.1")
	f.Add("2001:db8::/33", "2001:db8:8000::")
	f.Add("10.0.0.0/0", "::1")
	f.Add("10.0.0.0/33", "10.0.0.0")
	f.Add("10.0.0.0/", "10.0.0.0")
	f.Add("::/129", "::")
	f.Fuzz(func(t *testing.T, prefix, addr string) {
		if strings.Contains(prefix, "::ffff:") || strings.Contains(prefix, "%") {
			return // netip has prefixes of mapped addresses; here these are IPv4
		}
		net, bits, ok := ParsePrefix(prefix)
		want, err := netip.ParsePrefix(prefix)
		if single, e := netip.ParseAddr(prefix); e == nil {
			want, err = netip.PrefixFrom(single, single.BitLen()), nil
		}
		if want.IsValid() && want.Addr().Is4In6() {
			return
		}
		if ok != (err == nil) {
			t.Fatalf("%q: got %v, want %v", prefix, ok, err)
		}
		ip, _ := ParseIP(addr)
		if !ok || !ip.IsValid() {
			return
		}
		if got, want := ip.In(net, bits), want.Contains(netip.MustParseAddr(addr).Unmap()); got != want {
			t.Errorf("%s in %s: got %v, want %v", addr, prefix, got, want)
		}
	})
}

func TestDecode(t *testing.T) {
	tests := []struct{ in, want string }{
		{"plain", "plain"},
		{"=?utf-8?q?caf=C3=A9?=", "café"},
		{"=?UTF-8?B?Y2Fmw6k=?= bar", "café bar"},
		{"=?utf-8?b?Y2Fmw6k?=", "café"},                 // padding is often forgotten
		{"=?utf-8?q?a?= =?utf-8?q?b?=", "ab"},           // Section 6.2
		{"=?utf-8?q?a?= b =?utf-8?q?c?=", "a b c"},      // that is text, not space
		{"=?utf-8?q?a_b?=", "a b"},                      // Section 4.2
		{"=?iso-8859-1*en?q?caf=e9?=", "café"},          // RFC 2231, Section 5
		{"=?koi8-r?q?=c1?=", "=?koi8-r?q?=c1?="},        // a charset we have no table for
		{"=?utf-8?q?=ff?=", "=?utf-8?q?=ff?="},          // not UTF-8
		{"=?utf-8?q?=f?=", "=?utf-8?q?=f?="},            // cut off
		{"=?utf-8?q?a b?=", "=?utf-8?q?a b?="},          // space ends a word
		{"=?utf-8?x?a?=", "=?utf-8?x?a?="},              // no such encoding
		{"=?utf-8?b?Y!==?=", "=?utf-8?b?Y!==?="},        // no such digit
		{"a =?utf-8?q??= b", "a  b"},                    // an empty word
		{"=?utf-8?q?a?=\r\n =?utf-8?q?b?= =?", "ab =?"}, // folded
	}
	for _, tt := range tests {
		if got := Decode(tt.in); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

// FuzzDecode: no panic, UTF-8 stays UTF-8, and what package mime encodes is read back.
func FuzzDecode(f *testing.F) {
	f.Add("=?utf-8?q?caf=C3=A9?= =?utf-8?b?w6k?=")
	f.Add("ünïcode text that is long enough to be split into several words of seventy-five octets each")
	f.Fuzz(func(t *testing.T, s string) {
		if got := Decode(s); utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Errorf("%q: got %q, which is not UTF-8", s, got)
		}
		if !utf8.ValidString(s) || strings.Contains(s, "=?") || strings.TrimSpace(s) != s {
			return
		}
		for _, enc := range []mime.WordEncoder{mime.QEncoding, mime.BEncoding} {
			if word := enc.Encode("utf-8", s); word != s {
				if got := Decode(word); got != s {
					t.Errorf("%q: got %q, want %q", word, got, s)
				}
			}
		}
	})
}

func TestUnfold(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{" a b", "a b"},
		{" a\r\n\tb\r\n c ", "a\tb c"},
		{"", ""},
		{"\r\n ", ""},
	} {
		if got := Unfold(tt.in); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestParseEnhanced(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want [3]int
		ok   bool
	}{
		{"", [3]int{}, true},
		{"5.7.1", [3]int{5, 7, 1}, true},
		{"4.999.10", [3]int{4, 999, 10}, true},
		{"5.7", [3]int{}, false},
		{"5.7.1.1", [3]int{}, false},
		{"5.7.1000", [3]int{}, false},
		{"6.0.0", [3]int{}, false},
		{"5.07.1", [3]int{}, false},
		{"5..1", [3]int{}, false},
	} {
		func() {
			defer func() {
				if p := recover(); (p == nil) != tt.ok {
					t.Errorf("%q: got %v, want ok %v", tt.in, p, tt.ok)
				}
			}()
			if got := parseEnhanced(tt.in); got != tt.want {
				t.Errorf("%q: got %v, want %v", tt.in, got, tt.want)
			}
		}()
	}
}

func TestLogValue(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain", "plain"},
		{"", `""`},
		{"a b", `"a b"`},
		{"x=1", `"x=1"`}, // would look like a pair of its own
		{"a\nb", `"a\nb"`},
		{"é", `"é"`},
	} {
		if got := string(appendValue(nil, tt.in)); got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.in, got, tt.want)
		}
	}
}
