package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
)

func TestNative(t *testing.T) {
	testRules(t, guests.Native(newFilter))
	testConfig(t, guests.Native(newFilter))
}

func testRules(t *testing.T, load guests.Load) {
	const eml = "Subject: =?utf-8?q?Caf=C3=A9_News?=\nX-A: one\nX-A: two\n\nbody\n"
	const plain = "Subject: =?utf-8?q?Caf=C3=A9_News?=\r\nX-A: one\r\nX-A: two\r\n"
	tests := []struct {
		rules, want, why string
	}{
		{`{"add": "X-B", "value": "1"}`, plain + "X-B: 1\r\n", "no condition"},
		{`{"set": "X-A", "value": "1"}`, "Subject: =?utf-8?q?Caf=C3=A9_News?=\r\nX-A: 1\r\n", "one is left"},
		{`{"remove": "x-a"}`, "Subject: =?utf-8?q?Caf=C3=A9_News?=\r\n", "all are removed"},
		{`{"remove": "X-None"}`, plain, "none to remove"},
		{`{"when": {"header": "Subject", "contains": "café"}, "add": "X-B", "value": "1"}`, plain + "X-B: 1\r\n", "decoded, any case"},
		{`{"when": {"header": "Subject", "equals": "café"}, "add": "X-B", "value": "1"}`, plain, "equals all of it"},
		{`{"when": {"header": "x-a", "equals": "TWO"}, "add": "X-B", "value": "1"}`, plain + "X-B: 1\r\n", "the second field"},
		{`{"when": {"header": "X-A", "exists": true}, "add": "X-B", "value": "1"}`, plain + "X-B: 1\r\n", "exists"},
		{`{"when": {"header": "X-A", "exists": false}, "add": "X-B", "value": "1"}`, plain, "does not exist"},
		{`{"remove": "X-A"}, {"when": {"header": "X-A", "exists": false}, "add": "X-B", "value": "1"}`,
			"Subject: =?utf-8?q?Caf=C3=A9_News?=\r\nX-B: 1\r\n", "a rule sees what those before it did"},
		{`{"add": "X-B", "value": "${from} via ${helo} [${client_ip}] $5 ${user}."}`, plain + "X-B: a@example.com via c.example [192.0.2.10] $5 .\r\n", "variables"},
		{`{"add": "Received", "value": "x"}, {"add": "X-B", "value": "1"}`, plain + "X-B: 1\r\n", "a rule that is not allowed costs nothing else"},
	}
	for _, tt := range tests {
		o := filtertest.Options{
			Policy: load.Must(t, `{"rules": [`+tt.rules+`]}`),
			Client: filtertest.Client{Helo: "c.example"},
		}
		d := filtertest.Deliver(t, o, filtertest.Envelope{From: "a@example.com", To: []string{"b@example.org"}}, eml)
		if want := tt.want + "\r\nbody\r\n"; d.Message != want {
			t.Errorf("%s:\ngot  %q\nwant %q (%s)", tt.rules, d.Message, want, tt.why)
		}
	}
}

func testConfig(t *testing.T, load guests.Load) {
	for rule, want := range map[string]string{
		`{}`:                                                    "one of add, set and remove",
		`{"add": "X", "set": "X", "value": "1"}`:                "one of add, set and remove",
		`{"add": "X"}`:                                          "rules[0].value: belongs to",
		`{"remove": "X", "value": "1"}`:                         "rules[0].value: belongs to",
		`{"add": "X Y", "value": "1"}`:                          "rules[0].add: want the name",
		`{"add": "X", "value": "${nope}"}`:                      "unknown ${nope}",
		`{"add": "X", "value": "${from"}`:                       "${ without }",
		`{"add": "X", "value": "1", "if": 1}`:                   "rules[0].if: unknown key",
		`{"add": "X", "value": "1", "when": {"header": "X"}}`:   "rules[0].when.header: needs one of",
		`{"add": "X", "value": "1", "when": {"contains": "X"}}`: "rules[0].when.header: want the name",
		`{"add": "X", "value": "1", "when": {"header": "X", "contains": "1", "exists": true}}`: "one of contains, equals and exists",
	} {
		if _, err := load(`{"rules": [` + rule + `]}`); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", rule, err, want)
		}
	}
}

func TestClean(t *testing.T) {
	if got := clean("a\r\nb\x7fé"); got != "a??b?é" {
		t.Errorf("got %q", got)
	}
}
