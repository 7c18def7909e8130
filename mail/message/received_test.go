package message

import (
	"crypto/tls"
	"net/mail"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

func typicalReceived() Received {
	return Received{
		Helo: "client.example.org", RDNS: "client.example.org", Remote: netip.MustParseAddr("192.0.2.7"), By: "mx1.example.net",
		With: "ESMTPS", ID: "0123456789abcdef", For: "a@example.com", TLSVersion: tls.VersionTLS13, TLSCipher: tls.TLS_AES_128_GCM_SHA256,
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", -2*3600)),
	}
}

func TestReceived(t *testing.T) {
	full := "Received: from client.example.org (client.example.org [192.0.2.7])\r\n" +
		"\t(using TLSv1.3 with cipher TLS_AES_128_GCM_SHA256)\r\n" +
		"\tby mx1.example.net (Penstock) with ESMTPS id 0123456789abcdef\r\n" +
		"\tfor <a@example.com>;\r\n" +
		"\tFri, 02 Jan 2026 03:04:05 -0200\r\n"
	for _, tt := range []struct {
		change   func(*Received)
		old, new string
		why      string
	}{
		{func(*Received) {}, "", "", "all of it"},
		{func(r *Received) { r.TLSVersion = 0 }, "\t(using TLSv1.3 with cipher TLS_AES_128_GCM_SHA256)\r\n", "", "a clear connection"},
		{func(r *Received) { r.TLSVersion = tls.VersionTLS12 }, "TLSv1.3", "TLSv1.2", "TLS 1.2"},
		{func(r *Received) { r.TLSVersion = tls.VersionTLS10 }, "TLSv1.3", "TLSv1.0", "what nobody should offer"},
		{func(r *Received) { r.TLSVersion = 0x0399 }, "TLSv1.3", "0x0399", "a version to come"},
		{func(r *Received) { r.TLSCipher = tls.TLS_RSA_WITH_RC4_128_SHA }, "TLS_AES_128_GCM_SHA256", "TLS_RSA_WITH_RC4_128_SHA", "an old cipher"},
		{func(r *Received) { r.TLSCipher = 0x9999 }, "TLS_AES_128_GCM_SHA256", "0x9999", "a cipher to come"},
		{func(r *Received) { r.TLSCipher = 0 }, " with cipher TLS_AES_128_GCM_SHA256", "", "a proxy said which version, and no more"},
		{func(r *Received) { r.RDNS = "" }, "(client.example.org [", "([", "no verified name"},
		{func(r *Received) { r.Remote = netip.Addr{} }, "(client.example.org [192.0.2.7])", "(local socket)", "no address"},
		{func(r *Received) { r.Remote, r.Unknown = netip.Addr{}, true }, "(client.example.org [192.0.2.7])", "(unknown)", "an address that nobody told"},
		{func(r *Received) { r.Remote = netip.MustParseAddr("::ffff:192.0.2.7") }, "", "", "mapped IPv4"},
		{func(r *Received) { r.Remote = netip.MustParseAddr("fe80::1%eth0") }, "[192.0.2.7]", "[IPv6:fe80::1]", "IPv6, without its zone"},
		{func(r *Received) { r.Helo = "" }, "from client.example.org", "from unknown", "no HELO"},
		{func(r *Received) { r.Helo = "[192.0.2.9]" }, "from client.example.org", "from [192.0.2.9]", "a literal"},
		{func(r *Received) { r.Helo = "[IPV6:2001:DB8::1]" }, "from client.example.org", "from [IPv6:2001:db8::1]", "a literal"},
		{func(r *Received) { r.Helo = "[[]" }, "from client.example.org", "from ???", "not a literal"},
		{func(r *Received) { r.Helo = "my_pc.-" }, "from client.example.org", "from my_pc.-", "not a name, harmless"},
		{func(r *Received) { r.Helo = "x (bank.example [192.0.2.1])\r\n" }, "from client.example.org", "from x??bank.example??192.0.2.1????", "a forged comment"},
		{func(r *Received) { r.RDNS = "a) by b; c\x00" }, "(client.example.org [", "(a??by?b??c? [", "the owner of an address writes its name"},
		{func(r *Received) { r.Helo = "müller\xff" }, "from client.example.org", "from m?ller?", "beyond ASCII"},
		{func(r *Received) { r.Helo = strings.Repeat("x", 9000) }, "from client.example.org", "from " + strings.Repeat("x", 255), "a long one"},
		{func(r *Received) { r.With, r.ID, r.By = "", "", "" }, "by mx1.example.net (Penstock) with ESMTPS id 0123456789abcdef", "by unknown (Penstock) with SMTP id unknown", "nothing known"},
		{func(r *Received) { r.For = "" }, "\r\n\tfor <a@example.com>;", ";", "several recipients"},
		{func(r *Received) { r.For = "postmaster" }, "a@example.com", "postmaster", "RFC 5321, Section 4.5.1"},
		{func(r *Received) { r.For = `"a b;>"@example.com` }, "a@example.com", `"a b;>"@example.com`, "quoted"},
		{func(r *Received) { r.For = "jürgen@example.com" }, "a@example.com", "jürgen@example.com", "RFC 6531, Section 3.7.3"},
		{func(r *Received) { r.For = "a@example.com>;\r\nX: y" }, "\r\n\tfor <a@example.com>;", ";", "not an address"},
		{func(r *Received) { r.For = "\"a\r\n\"@example.com" }, "\r\n\tfor <a@example.com>;", ";", "a line end in quotes"},
		{func(r *Received) { r.For = "a@" + strings.Repeat("x.", 600) + "example" }, "\r\n\tfor <a@example.com>;", ";", "too long for an address"},
	} {
		r := typicalReceived()
		tt.change(&r)
		want := full
		if tt.old != "" {
			want = strings.Replace(full, tt.old, tt.new, 1)
		}
		if got := string(r.Field().Raw()); got != want {
			t.Errorf("%s:\n%q\nwant\n%q", tt.why, got, want)
		}
		checkReceived(t, r)
	}
}

// form is RFC 5321, Section 4.4 with the comments that we write. Names that are none
// have "?" and other characters of atoms (RFC 5322, Section 3.2.3).
var form = regexp.MustCompile(strings.NewReplacer(
	"NAME", `[A-Za-z0-9?._-]{1,255}`,
	"LITERAL", `\[[0-9A-Fa-f:.IPv]+\]`,
	"PATH", `("([^"\\\x00-\x1f\x7f]|\\[ -~])+"|[^" \x00-\x1f\x7f()<>\[\]:;@\\,]+)(@([a-z0-9.-]+|\[[0-9a-fIPv:.]+\]))?`,
).Replace(`^from (NAME|LITERAL)( \((NAME )?LITERAL\)| \((local socket|unknown)\))` +
	`( \(using [A-Za-z0-9.]+( with cipher [A-Za-z0-9_]+)?\))? by (NAME|LITERAL) \(Penstock\) with NAME id NAME` +
	`( for <PATH>)?; [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}$`))

func checkReceived(t *testing.T, r Received) {
	t.Helper()
	raw := string(r.Field().Raw())
	h, rest := Parse([]byte(raw + "\r\nbody"))
	if h.Len() != 1 || string(rest) != "body" || !h.Field(0).Is("Received") {
		t.Fatalf("%+v\nis %q, not one field", r, raw)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(raw, "\r\n"), "\r\n") {
		if len(line) > 998 || strings.ContainsAny(line, "\r\n\x00") {
			t.Fatalf("%+v\nis %q, with a line of %d octets", r, raw, len(line))
		}
	}
	text := strings.ReplaceAll(h.Get("Received"), "\t", " ")
	if !form.MatchString(text) {
		t.Fatalf("%+v\nis %q,\nwhich is not of the form of RFC 5321, Section 4.4", r, text)
	}
	m, err := mail.ReadMessage(strings.NewReader(raw + "\r\nbody"))
	if err != nil || len(m.Header) != 1 {
		t.Fatalf("%q: net/mail reads %d fields, %v", raw, len(m.Header), err)
	}
	date, err := mail.ParseDate(strings.TrimSpace(text[strings.LastIndexByte(text, ';')+1:]))
	if err != nil || !date.Equal(r.Time.Truncate(time.Second)) {
		t.Fatalf("%q: date %v, %v, want %v", raw, date, err, r.Time)
	}
}

func FuzzReceivedForm(f *testing.F) {
	f.Add("client", "rdns", "By", "ESMTP", "id", "a@example.com", []byte{192, 0, 2, 1}, uint16(0x0304), uint16(0x1301))
	f.Add("[::1]\r\n", "a)(", "", "\x00", "\xff", `"\" <"@x`, []byte{}, uint16(1), uint16(2))
	f.Add("ÿÿ[", "", "", "", "", "@a,@b:c@d", make([]byte, 16), uint16(1), uint16(2))
	f.Fuzz(func(t *testing.T, helo, rdns, by, with, id, rcpt string, ip []byte, version, cipher uint16) {
		addr, _ := netip.AddrFromSlice(ip)
		checkReceived(t, Received{Helo: helo, RDNS: rdns, By: by, With: with, ID: id, For: rcpt, Remote: addr,
			TLSVersion: version, TLSCipher: cipher, Time: time.Unix(1700000000, 5)})
		if p, err := smtp.ParsePath("<" + rcpt + ">"); err == nil && !p.IsNull() {
			text := Received{For: rcpt}.Field().Text()
			if !strings.Contains(text, "for <"+p.String()+">;") {
				t.Fatalf("For %q is missing in %q", rcpt, text)
			}
		}
	})
}
