package smtp

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseForwarded(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		args    string
		allowed forwardedSet
		want    Forwarded
		set     string
		bad     bool
	}{
		{"NAME=mx.test ADDR=192.0.2.1 PORT=25 PROTO=ESMTP HELO=there", xclientSet,
			Forwarded{Name: "mx.test", Addr: addr("192.0.2.1"), Port: 25, Proto: "ESMTP", Helo: "there"}, "NAME ADDR PORT PROTO HELO", false},
		{"login=joe+20x DestAddr=IPv6:2001:db8::1 destport=587", xclientSet,
			Forwarded{Login: "joe x", DestAddr: addr("2001:db8::1"), DestPort: 587}, "LOGIN DESTADDR DESTPORT", false},
		{"IDENT=4F2.1 SOURCE=local PROTO=http", xforwardSet, Forwarded{Ident: "4F2.1", Source: "LOCAL", Proto: "HTTP"}, "PROTO IDENT SOURCE", false},
		{"NAME=[UNAVAILABLE] ADDR=[TempUnavail] PORT=+5BUNAVAILABLE]", xclientSet, Forwarded{}, "NAME ADDR PORT", false}, // known to be unknown
		{"LOGIN=", xclientSet, Forwarded{}, "LOGIN", false},                                                              // nobody is logged in any more
		{"LOGIN=j+C3+B6rg", xclientSet, Forwarded{Login: "jörg"}, "LOGIN", false},                                        // xtext of UTF-8
		{"HELO=no+20name", xclientSet, Forwarded{}, "HELO", false},                                                       // nothing that HELO takes
		{"ADDR=2001:db8::1", xclientSet, Forwarded{Addr: addr("2001:db8::1")}, "ADDR", false},                            // without the tag
		{"ADDR=IPV6:::ffff:192.0.2.1", xclientSet, Forwarded{Addr: addr("192.0.2.1")}, "ADDR", false},                    // one address, one form
		{"NAME=a_b.test. PORT=0", xclientSet, Forwarded{Name: "a_b.test."}, "NAME PORT", false},                          // hosts have such names
		{"  PORT=1   HELO=[192.0.2.1] ", xforwardSet, Forwarded{Port: 1, Helo: "[192.0.2.1]"}, "PORT HELO", false},

		{"", xclientSet, Forwarded{}, "", true},
		{"NAME", xclientSet, Forwarded{}, "", true},
		{"=x", xclientSet, Forwarded{}, "", true},
		{"COLOUR=red", xclientSet, Forwarded{}, "", true},
		{"LOGIN=joe", xforwardSet, Forwarded{}, "", true},    // of the other command
		{"IDENT=4F2", xclientSet, Forwarded{}, "", true},     // of the other command
		{"PROTO=LMTP", xclientSet, Forwarded{}, "", true},    // decides what is spoken
		{"PORT=1 port=1", xclientSet, Forwarded{}, "", true}, // twice
		{"PORT=65536", xclientSet, Forwarded{}, "", true},
		{"PORT=-1", xclientSet, Forwarded{}, "", true},
		{"PORT=+2B1", xclientSet, Forwarded{}, "", true},
		{"PORT=", xclientSet, Forwarded{}, "", true},
		{"ADDR=IPV6:192.0.2.1", xclientSet, Forwarded{}, "", true},
		{"ADDR=fe80::1%eth0", xclientSet, Forwarded{}, "", true},
		{"ADDR=[192.0.2.1]", xclientSet, Forwarded{}, "", true},
		{"ADDR=mx.test", xclientSet, Forwarded{}, "", true},
		{"NAME=a..b", xclientSet, Forwarded{}, "", true},
		{"NAME=a+0D+0A250", xclientSet, Forwarded{}, "", true}, // a line of its own
		{"LOGIN=a+00", xclientSet, Forwarded{}, "", true},
		{"LOGIN=a+E2+80+AEb", xclientSet, Forwarded{}, "", true}, // turns the reading direction
		{"LOGIN=a+FF", xclientSet, Forwarded{}, "", true},        // no UTF-8
		{"LOGIN=a+2", xclientSet, Forwarded{}, "", true},
		{"LOGIN=a+2b", xclientSet, Forwarded{}, "", true}, // RFC 3461, Section 4: upper case
		{"SOURCE=ELSEWHERE", xforwardSet, Forwarded{}, "", true},
		{"HELO=" + strings.Repeat("x", 256), xclientSet, Forwarded{}, "", true},
	} {
		got, set, err := parseForwarded(tt.args, tt.allowed)
		if got != tt.want || set.String() != tt.set || (err != nil) != tt.bad {
			t.Errorf("%q: got %+v, %v, %v, want %+v, %v, error %v", tt.args, got, set, err, tt.want, tt.set, tt.bad)
		}
		if r := ReplyOf(err); tt.bad && (r.Code != 501 || r.Enh != Enhanced{5, 5, 4}) {
			t.Errorf("%q: got %v, want 501 5.5.4", tt.args, r)
		}
	}
}

func TestAppendForwarded(t *testing.T) {
	long := strings.Repeat("x", 250)
	full := Forwarded{Name: "mx.test", Addr: netip.MustParseAddr("2001:db8::1"), Port: 1025, Proto: "ESMTP", Helo: "a+b",
		Ident: "4F2.1", Source: "REMOTE", Login: "jörg", DestAddr: netip.MustParseAddr("192.0.2.1"), DestPort: 25}
	for _, tt := range []struct {
		verb    string
		f       Forwarded
		offered string
		want    string
	}{
		{"XCLIENT", full, "NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT",
			"XCLIENT NAME=mx.test ADDR=IPV6:2001:db8::1 PORT=1025 PROTO=ESMTP HELO=a+2Bb LOGIN=j+C3+B6rg DESTADDR=192.0.2.1 DESTPORT=25\r\n"},
		{"XFORWARD", full, "name addr port proto helo ident source colour",
			"XFORWARD NAME=mx.test ADDR=IPV6:2001:db8::1 PORT=1025 PROTO=ESMTP HELO=a+2Bb IDENT=4F2.1 SOURCE=REMOTE\r\n"},
		{"XCLIENT", full, "ADDR", "XCLIENT ADDR=IPV6:2001:db8::1\r\n"},
		{"XCLIENT", full, "", ""},
		{"XCLIENT", Forwarded{}, "ADDR PROTO LOGIN", "XCLIENT ADDR=[UNAVAILABLE] LOGIN=[UNAVAILABLE]\r\n"},
		{"XFORWARD", Forwarded{}, "PROTO SOURCE", "XFORWARD PROTO=[UNAVAILABLE] SOURCE=[UNAVAILABLE]\r\n"},
		{"XFORWARD", Forwarded{Ident: "a\r\nRSET", Name: "a b", Source: "x y"}, "NAME IDENT SOURCE",
			"XFORWARD NAME=[UNAVAILABLE] IDENT=[UNAVAILABLE] SOURCE=[UNAVAILABLE]\r\n"},
		{"XFORWARD", Forwarded{Helo: long, Ident: long}, "HELO IDENT SOURCE",
			"XFORWARD HELO=" + long + "\r\nXFORWARD IDENT=" + long + " SOURCE=[UNAVAILABLE]\r\n"},
	} {
		b, n := appendForwarded(nil, tt.verb, tt.f, offeredSet(tt.offered))
		if string(b) != tt.want || n != strings.Count(tt.want, "\n") {
			t.Errorf("%s %q: got %q in %d commands, want %q", tt.verb, tt.offered, b, n, tt.want)
		}
	}
}

// FuzzForwardedRoundTrip: what is understood is sent on so that it is understood in the
// same way, in lines that a server takes, and nothing in it is unseen.
func FuzzForwardedRoundTrip(f *testing.F) {
	f.Add("NAME=mx.test ADDR=192.0.2.1 PORT=25 PROTO=ESMTP HELO=there LOGIN=a+3Db")
	f.Add("ADDR=IPV6:2001:db8::1 IDENT=x SOURCE=LOCAL DESTADDR=::1 DESTPORT=1")
	f.Add("NAME=[UNAVAILABLE] HELO=" + strings.Repeat("+2B", 200))
	f.Fuzz(func(t *testing.T, args string) {
		for verb, allowed := range map[string]forwardedSet{"XCLIENT": xclientSet, "XFORWARD": xforwardSet} {
			got, set, err := parseForwarded(args, allowed)
			if err != nil {
				if got != (Forwarded{}) || set != 0 || ReplyOf(err).Code != 501 {
					t.Fatalf("%q: got %+v, %v with %v", args, got, set, err)
				}
				continue
			}
			lines, _ := appendForwarded(nil, verb, got, allowed)
			var again Forwarded
			for line := range strings.SplitSeq(strings.TrimSuffix(string(lines), "\r\n"), "\r\n") {
				if len(line) > 510 || strings.ContainsAny(line, "\r\n") {
					t.Fatalf("%q: sent as %q", args, line)
				}
				part, partSet, err := parseForwarded(strings.TrimPrefix(line, verb), allowed)
				if err != nil {
					t.Fatalf("%q: sent as %q, which is %v", args, line, err)
				}
				again.take(part, partSet)
			}
			want := got
			want.Ident, want.Login, want.Helo = short(got.Ident), short(got.Login), short(got.Helo)
			if again != want {
				t.Fatalf("%q: got %+v, then %+v", args, want, again)
			}
		}
	})
}

// short is what is left of a value that may be too long to be sent.
func short(s string) string {
	if len(s) > maxForwardedLine/3-16 && !isPlain(s) {
		return ""
	}
	return s
}
