package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
)

// verdicts is what the filter should say, natively and as a module.
func verdicts(t *testing.T, options func(config string) filtertest.Options) {
	tests := []struct {
		config, to, subject, want string
	}{
		{`{}`, "bob@example.com", "Hello", ""},
		{`{}`, "Robot@example.com", "Hello", "550 5.7.1 people only, please"},
		{`{"robots": ["bot"]}`, "robot@example.com", "Hello", ""},
		{`{}`, "bob@example.com", "BUY NOW", ""},
		{`{"refuse_shouting": true}`, "bob@example.com", "BUY NOW", "550 5.7.1 no need to shout"},
		{`{"refuse_shouting": true}`, "bob@example.com", "=?utf-8?q?GR=C3=9CSSE?=", "550 5.7.1 no need to shout"},
		{`{"refuse_shouting": true}`, "bob@example.com", "1234", ""},
	}
	for _, tt := range tests {
		e := filtertest.Envelope{From: "alice@example.org", To: []string{tt.to}}
		d := filtertest.Deliver(t, options(tt.config), e, "Subject: "+tt.subject+"\n\none\ntwo\n")
		if d.Reply != tt.want {
			t.Errorf("%s, to %s, subject %q: %q, want %q", tt.config, tt.to, tt.subject, d.Reply, tt.want)
		}
		if tt.want == "" && !strings.Contains(d.Message, "\r\nX-Lines: 2\r\n") {
			t.Errorf("%s: message %q", tt.config, d.Message)
		}
	}
}

func TestNative(t *testing.T) {
	verdicts(t, func(config string) filtertest.Options {
		return filtertest.Options{Filter: newFilter(), Config: config}
	})
}

func TestModule(t *testing.T) {
	load := guests.Loader(t, "first-filter", guests.Build(t, "."))
	verdicts(t, func(config string) filtertest.Options {
		return filtertest.Options{Policy: load.Must(t, config)}
	})
	if _, err := load(`{"robot": ["bot"]}`); err == nil {
		t.Error("a misspelt key is taken")
	}
}
