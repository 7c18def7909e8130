package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/policy"
)

func TestNative(t *testing.T) {
	testRules(t, guests.Native(newFilter))
	testBorders(t, guests.Native(newFilter))
	testConfig(t, guests.Native(newFilter))
}

var envelope = filtertest.Envelope{From: "a@example.com", To: []string{"b@example.org"}}

func testRules(t *testing.T, load guests.Load) {
	const eml = "Subject: =?utf-8?b?QnV5IE5vdw==?=\nX-Y: folded\n\tvalue\n\nLimited Offer\nsecond line\n"
	const rule = `{"name": "r", "texts": `
	tests := []struct {
		rules, action, why string
		tags               string
	}{
		{rule + `["limited offer"]}`, "reject", "body, any case", "match=r"},
		{rule + `["limited offer"], "fold_case": false}`, "continue", "the case counts", ""},
		{rule + `["Limited Offer"], "fold_case": false}`, "reject", "the case fits", "match=r"},
		{rule + `["buy now"]}`, "reject", "Subject, decoded", "match=r"},
		{rule + `["buy now"], "in": ["body"]}`, "continue", "the Subject was not asked for", ""},
		{rule + `["limited"], "in": ["Subject"]}`, "continue", "the body was not asked for", ""},
		{rule + `["folded\tvalue"], "in": ["x-y"]}`, "reject", "unfolded", "match=r"},
		{rule + `["no", "second"], "action": "tempfail"}`, "tempfail", "one of several", "match=r"},
		{rule + `["offer"], "action": "quarantine"}`, "quarantine", "held", "match=r reason=rule r"},
		{rule + `["offer"], "action": "discard"}`, "discard", "dropped", "match=r"},
		{rule + `["offer"], "action": "tag"}`, "continue", "noted", "match=r"},
		{rule + `["offer"], "action": "tag"},{"name": "s", "texts": ["line"], "action": "tempfail"},{"name": "t", "texts": ["second"]}`,
			"tempfail", "all are noted, the first with an action decides", "match=r match=s match=t"},
		{rule + `["nothing of it"]}`, "continue", "not found", ""},
		{``, "continue", "no rules", ""},
	}
	for _, tt := range tests {
		o := filtertest.Options{Policy: load.Must(t, `{"rules": [`+tt.rules+`]}`)}
		r := filtertest.Deliver(t, o, envelope, eml).Step(policy.StageMessage)
		if r.Verdict.Action.String() != tt.action || strings.Join(r.Tags, " ") != tt.tags || r.Err != nil {
			t.Errorf("%s: got %s %q, %v; want %s %q (%s)", tt.rules, r.Verdict.Action, r.Tags, r.Err, tt.action, tt.tags, tt.why)
		}
	}
}

// testBorders puts a text around the borders of windows and of the limit.
func testBorders(t *testing.T, load guests.Load) {
	const text, limit = "needle in a haystack", 200 << 10
	o := filtertest.Options{Policy: load.Must(t, `{"limit": "200KiB", "rules": [
		{"name": "r", "texts": ["`+strings.ToUpper(text)+`", "a much longer text, so that the overlap is larger than the one looked for"]}]}`)}
	for _, border := range []int{0, windowSize, 2 * windowSize, limit} {
		for _, off := range []int{border - 90, border - len(text), border - len(text) + 1, border - 1, border, border + 40, border + 90} {
			if off < 0 {
				continue
			}
			body := strings.Repeat("hay\r\n", off/5+1)[:off] + text + strings.Repeat("\r\nhay", 60000)
			want := policy.Continue
			if off+len(text) <= limit {
				want = policy.Reject
			}
			if d := filtertest.Deliver(t, o, envelope, "A: b\r\n\r\n"+body); d.Verdict.Action != want {
				t.Errorf("text at %d: got %s, want %s", off, d.Verdict.Action, want)
			}
		}
	}
}

func testConfig(t *testing.T, load guests.Load) {
	for config, want := range map[string]string{
		`{"rules": [{"texts": ["x"]}]}`:                                  "rules[0].name: want a name",
		`{"rules": [{"name": "a b", "texts": ["x"]}]}`:                   "rules[0].name: want a name",
		`{"rules": [{"name": "a"}]}`:                                     "rules[0].texts: want at least one",
		`{"rules": [{"name": "a", "texts": [""]}]}`:                      "1 to 1024 octets",
		`{"rules": [{"name": "a", "texts": ["x"], "action": "bounce"}]}`: "rules[0].action: want one of",
		`{"limit": "many"}`:                                              "limit: \"many\" is not a size",
		`{"rule": []}`:                                                   "rule: unknown key",
	} {
		if _, err := load(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", config, err, want)
		}
	}
}
