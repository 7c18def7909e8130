package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
)

func TestNative(t *testing.T) {
	testNames(t, guests.Native(newFilter))
	testConfig(t, guests.Native(newFilter))
}

func testNames(t *testing.T, load guests.Load) {
	const conf = `{"our_names": ["mx.example.com."], "trust": ["10.0.0.0/8", "2001:db8:1::/48"]}`
	const strict = `{"unqualified": true, "authenticated": true, "action": "tempfail"}`
	const lax = `{"our_names": ["mx.example.com"], "bare_address": false, "malformed": false, "wrong_literal": false}`
	tests := []struct {
		config, ip, user, helo, fault, why string
	}{
		{conf, "192.0.2.1", "", "mail.example.org", "", "a good name"},
		{conf, "192.0.2.1", "", "my_host.example.org", "", "the underscore is common"},
		{conf, "192.0.2.1", "", "MX.example.COM", "ours", "our name"},
		{conf, "192.0.2.1", "", "mx.example.com.", "ours", "our name with a dot"},
		{conf, "192.0.2.1", "", "sub.mx.example.com", "", "not our name"},
		{conf, "192.0.2.1", "", "192.0.2.1", "bare-address", "its own address, but no literal"},
		{conf, "192.0.2.1", "", "2001:db8::1", "bare-address", "IPv6"},
		{conf, "192.0.2.1", "", "[192.0.2.1]", "", "its literal"},
		{conf, "192.0.2.1", "", "[192.0.2.2]", "wrong-literal", "another's literal"},
		{conf, "2001:db8::1", "", "[IPv6:2001:DB8:0::1]", "", "IPv6 literal"},
		{conf, "2001:db8::1", "", "[2001:db8::1]", "malformed", "IPv6 literal without its tag"},
		{conf, "192.0.2.1", "", "[IPv6:192.0.2.1]", "malformed", "IPv4 with the tag"},
		{conf, "192.0.2.1", "", "[192.0.2.1", "malformed", "no closing bracket"},
		{conf, "192.0.2.1", "", "[]", "malformed", "empty literal"},
		{conf, "192.0.2.1", "", "a..example", "malformed", "empty label"},
		{conf, "192.0.2.1", "", "-a.example", "malformed", "hyphen in front"},
		{conf, "192.0.2.1", "", "a!.example", "malformed", "no letter"},
		{conf, "192.0.2.1", "", strings.Repeat("a", 64) + ".example", "malformed", "long label"},
		{conf, "192.0.2.1", "", "localhost", "", "unqualified names are allowed by default"},
		{conf, "10.1.2.3", "", "mx.example.com", "", "trusted network"},
		{conf, "2001:db8:1::5", "", "!!", "", "trusted network, IPv6"},
		{conf, "192.0.2.1", "alice", "!!", "", "an authenticated user"},
		{strict, "192.0.2.1", "alice", "localhost", "unqualified", "authenticated users too"},
		{lax, "192.0.2.1", "", "192.0.2.9", "", "switched off"},
		{lax, "192.0.2.1", "", "[192.0.2.9]", "", "switched off"},
		{lax, "192.0.2.1", "", "!!", "", "switched off"},
		{lax, "192.0.2.1", "", "mx.example.com", "ours", "still on"},
	}
	for _, tt := range tests {
		s := filtertest.New(t, filtertest.Options{Policy: load.Must(t, tt.config), Client: filtertest.Client{IP: tt.ip, User: tt.user}})
		s.Helo(tt.helo)
		r := s.MailFrom("a@example.org")
		reply, tags := "", ""
		if tt.fault != "" {
			reply, tags = "550 5.7.1 "+replies[tt.fault], "helo="+tt.fault
		}
		if tt.config == strict {
			reply = strings.Replace(reply, "550 5", "450 4", 1)
		}
		if r.Reply != reply || strings.Join(r.Tags, " ") != tags || r.Err != nil {
			t.Errorf("%q from %s %s: got %q %q, %v; want %q %q (%s)", tt.helo, tt.ip, tt.user, r.Reply, r.Tags, r.Err, reply, tags, tt.why)
		}
	}
	s := filtertest.New(t, filtertest.Options{Policy: load.Must(t, `{"action": "tag"}`)})
	s.Helo("!!")
	if r := s.MailFrom(""); r.Reply != "" || strings.Join(r.Tags, " ") != "helo=malformed" {
		t.Errorf("action tag: got %q %q, want the tag alone", r.Reply, r.Tags)
	}
}

func testConfig(t *testing.T, load guests.Load) {
	for config, want := range map[string]string{
		`{"ours": []}`:              "ours: unknown key",
		`{"trust": ["10.0.0.0/x"]}`: "trust: 10.0.0.0/x is not a network",
		`{"action": "drop"}`:        "action: want reject, tempfail or tag",
		`{"malformed": "yes"}`:      "malformed: is a string, want true or false",
	} {
		if _, err := load(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", config, err, want)
		}
	}
}
