package mx_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
)

// TestParseTarget: the forms of a target, and what is none.
func TestParseTarget(t *testing.T) {
	parity.Row(t, "MX-03", "MX-43", "MX-67")
	for _, tt := range []struct{ in, want string }{
		{"example.com", "example.com"},
		{" Example.COM.\r\n", "example.com"},
		{"user@example.com", "example.com"},
		{`"a@b"@example.com`, "example.com"},
		{"a@b@example.com", "example.com"}, // the last one counts
		{"user@bücher.example", "xn--bcher-kva.example"},
		{"BÜCHER.example", "xn--bcher-kva.example"}, // mapped, not only coded
		{"xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"例え。テスト", "xn--r8jz45g.xn--zckzah"},  // the full stop of its script
		{"faß.example", "xn--fa-hia.example"}, // not "fass"
		{"localhost", "localhost"},
		{"under_score.example", "under_score.example"},
		{"192.0.2.1", "[192.0.2.1]"},
		{"[192.0.2.1]", "[192.0.2.1]"},
		{"user@[192.0.2.1]", "[192.0.2.1]"},
		{"2001:DB8::1", "[IPv6:2001:db8::1]"},
		{"[2001:db8::1]", "[IPv6:2001:db8::1]"},
		{"[ipv6:2001:db8:0:0::1]", "[IPv6:2001:db8::1]"},
		{"user@[IPv6:::ffff:192.0.2.1]", "[IPv6:::ffff:192.0.2.1]"},

		{"", "!5.1.2"}, {"user@", "!5.1.2"}, {"@", "!5.1.2"}, {".", "!5.1.2"},
		{"example..com", "!5.1.2"}, {".example.com", "!5.1.2"}, {"example.com..", "!5.1.2"},
		{"-a.example", "!5.1.2"}, {"a-.example", "!5.1.2"}, {"a b.example", "!5.1.2"}, {"a\x00.example", "!5.1.2"},
		{"xn--zz.example", "!5.1.2"}, // no A-label
		{strings.Repeat("a", 64) + ".example", "!5.1.2"},
		{strings.Repeat("a.", 127) + "a", "!5.1.2"},
		{strings.Repeat("a", 3000), "!5.1.2"},
		{"a\u0000bücher.example", "!5.6.7"}, {"\xff.example", "!5.6.7"}, {"ü⒈example", "!5.6.7"},
		{"[example.com]", "!5.1.3"}, {"[192.0.2.1", "!5.1.3"}, {"[IPv6:192.0.2.1]", "!5.1.3"}, {"[]", "!5.1.3"},
		{"[192.0.2.1]:25", "!5.1.3"}, {"[192.0.2.256]", "!5.1.3"}, {"[ 192.0.2.1]", "!5.1.3"}, {"[0127.0.0.1]", "!5.1.3"},
		{"[fe80::1%eth0]", "!5.1.3"}, {"fe80::1%eth0", "!5.1.3"}, {"[x400:a]", "!5.1.3"},
		// What some take for an address is no name of a host.
		{"0127.0.0.1", "!5.1.2"}, {"010.000.000.001", "!5.1.2"}, {"2130706433", "!5.1.2"}, {"0x7f000001", "!5.1.2"}, {"0X7F000001", "!5.1.2"},
		{"127.1", "!5.1.2"}, {"127.0.0.1.", "!5.1.2"}, {"127.0.0.0x1", "!5.1.2"}, {"127.0.0.1:25", "!5.1.2"}, {"a.0x", "!5.1.2"},
	} {
		got := ""
		target, err := mx.ParseTarget(tt.in)
		if err != nil {
			got = "!" + smtp.ReplyOf(err).Enh.String()
			e, ok := errors.AsType[*mx.Error](err)
			if !ok || e.Temporary() || e.Category != mx.DNS {
				t.Errorf("%q: %v is not a permanent error about the DNS", tt.in, err)
			}
		} else {
			got = target.String()
		}
		if got != tt.want {
			t.Errorf("%q: got %s (%v), want %s", tt.in, got, err, tt.want)
		}
	}
}

// FuzzParseTarget: what is read is read again as the same, is ASCII, and agrees with what
// the rest of the mail system takes for the domain.
func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"example.com", "user@bücher.example", `"a@b"@c.example`, "[192.0.2.1]", "[IPv6:2001:db8::1]", "::1", "0x7f.1", "a_b.example.", "例え。テスト", "[fe80::1%x]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, err := mx.ParseTarget(s)
		if err != nil {
			if mx.Temporary(err) || target != (mx.Target{}) {
				t.Fatalf("%q: got %v and %v", s, target, err)
			}
			return
		}
		text := target.String()
		again, err := mx.ParseTarget(text)
		if err != nil || again != target || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Fatalf("%q: %q is read as %q, %v", s, text, again, err)
		}
		if d, err := smtp.ParseDomain(text); err == nil && mx.TargetOf(d) != target {
			t.Fatalf("%q: %v is the domain of %v", s, mx.TargetOf(d), target)
		} else if err != nil && !strings.Contains(text, "_") {
			t.Fatalf("%q: %q is no domain: %v", s, text, err)
		}
	})
}

// TestError: what is said to the sender, what goes to the log, and what a caller can ask.
func TestError(t *testing.T) {
	parity.Row(t, "MX-77")
	cause := errors.New("connection refused")
	e := &mx.Error{
		Category: mx.Network, Reply: smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "no answer"), Target: mx.Target{Domain: "example.com"},
		Host: "mx.example.net", Addr: netip.MustParseAddr("192.0.2.1"), Err: cause,
	}
	if got, want := e.Error(), "delivery (network): example.com: host mx.example.net: 192.0.2.1: 451 4.4.1 no answer: connection refused"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	wrapped := fmt.Errorf("attempt: %w", e)
	if smtp.ReplyOf(wrapped) != e.Reply || !errors.Is(wrapped, cause) || !mx.Temporary(wrapped) || e.Timeout() {
		t.Errorf("%v does not tell what it holds", wrapped)
	}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{&mx.Error{}, true}, {&mx.Error{Reply: smtp.Refuse(550, smtp.Enhanced{5, 1, 2}, "")}, false}, {cause, true},
		{smtp.Refuse(550, smtp.Enhanced{}, ""), false}, {smtp.Refuse(450, smtp.Enhanced{}, ""), true},
		{&mx.Error{Err: smtp.Refuse(550, smtp.Enhanced{}, "")}, false},
		{&mx.Error{Reply: smtp.Refuse(451, smtp.Enhanced{}, ""), Err: smtp.Refuse(550, smtp.Enhanced{}, "")}, true}, // the reply decides
		{nil, false},
	} {
		if got := mx.Temporary(tt.err); got != tt.want {
			t.Errorf("%v: temporary is %t", tt.err, got)
		}
	}
}
