package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
)

func TestNative(t *testing.T) {
	testRecipients(t, guests.Native(newFilter))
	testConfig(t, guests.Native(newFilter))
}

func testRecipients(t *testing.T, load guests.Load) {
	const block = `{"blocked": ["a@example.com", "bad.example", "*.evil.example", "root@*", "\"a b\"@example.org"]}`
	const allow = `{"allowed": ["example.com", "*.example.com", "postmaster@*"], "blocked": ["b@example.com"], "code": 450, "text": "later"}`
	const no, later = "550 5.7.1 recipient is not accepted here", "450 4.7.1 later"
	tests := []struct {
		config, rcpt, reply, why string
	}{
		{block, "b@example.com", "", "another address"},
		{block, "a@example.com", no, "exact"},
		{block, "A@EXAMPLE.com", no, "no list is passed with a capital letter"},
		{block, "x@bad.example", no, "domain"},
		{block, "x@sub.bad.example", "", "a domain is not its subdomains"},
		{block, "x@notbad.example", "", "nor what ends like it"},
		{block, "x@a.evil.example", no, "wildcard"},
		{block, "x@a.b.evil.example", no, "wildcard, deeper"},
		{block, "x@evil.example", "", "a wildcard needs a label"},
		{block, "x@verevil.example", "", "a whole one"},
		{block, "root@anywhere.example", no, "local part"},
		{block, `"root"@anywhere.example`, no, "the same local part in quotes"},
		{block, "chroot@anywhere.example", "", "another local part"},
		{block, "x@[192.0.2.1]", "", "literal"},
		{allow, "a@example.com", "", "allowed domain"},
		{allow, "a@mx.example.com", "", "allowed subdomain"},
		{allow, "b@example.com", later, "blocked wins over allowed"},
		{allow, "a@example.org", later, "not on the list"},
		{allow, "postmaster@example.org", "", "local part allowed"},
		{allow, "postmaster", "", "postmaster without a domain"},
		{`{}`, "a@example.org", "", "nothing is configured"},
		{`{"blocked": ["[192.0.2.1]"], "enhanced": "5.1.1"}`, "x@[192.0.2.1]", "550 5.1.1 recipient is not accepted here", "literal on the list"},
	}
	for _, tt := range tests {
		s := filtertest.New(t, filtertest.Options{Policy: load.Must(t, tt.config)})
		s.MailFrom("sender@client.example")
		if r := s.RcptTo(tt.rcpt); r.Reply != tt.reply || r.Err != nil {
			t.Errorf("%s: %s: got %q, %v; want %q (%s)", tt.config, tt.rcpt, r.Reply, r.Err, tt.reply, tt.why)
		}
	}
}

func testConfig(t *testing.T, load guests.Load) {
	for config, want := range map[string]string{
		`{"block": []}`:                          "block: unknown key",
		`{"blocked": ["a@b@"]}`:                  "blocked: a@b@ is not",
		`{"blocked": ["@example.com"]}`:          "blocked: @example.com is not",
		`{"blocked": ["*"]}`:                     "blocked: * is not",
		`{"blocked": ["bücher.example"]}`:        "A-labels",
		`{"blocked": ["a@*.example"]}`:           "is not",
		`{"code": 250}`:                          "code: want",
		`{"code": 421}`:                          "not 421",
		`{"code": 550, "enhanced": "4.7.1"}`:     "enhanced: want 5.x.y",
		`{"code": 550, "enhanced": "5.07.1"}`:    "enhanced: want 5.x.y",
		`{"enhanced": "5.7", "blocked": ["a@"]}`: "enhanced: want 5.x.y",
	} {
		if _, err := load(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", config, err, want)
		}
	}
}
