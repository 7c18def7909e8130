package main

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

const config = `{"relays": {"example.org": "relay.example.net"}, "sources": {"newsletter": "bulk"}, "verify": ["bank.example"], "never": ["typo.example"]}`

// ways is what the filter should choose, natively and as a module.
func ways(t *testing.T, options func() filtertest.Options) {
	for _, tt := range []struct {
		to, user string
		way      policy.Way
		reply    string
	}{
		{"bob@example.com", "", policy.Way{}, ""},
		{"bob@example.org", "", policy.Way{Relay: "relay.example.net"}, ""},
		{"bob@example.org", "newsletter", policy.Way{Relay: "relay.example.net", Source: "bulk"}, ""},
		{"bob@bank.example", "alice", policy.Way{TLS: policy.Verified}, ""},
		{"bob@typo.example", "newsletter", policy.Way{}, "550 5.7.1 mail to typo.example does not leave here"},
	} {
		o := options()
		o.Client.User = tt.user
		a := filtertest.Attempt{Envelope: filtertest.Envelope{From: "alice@example.net", To: []string{tt.to}}}
		got := filtertest.Outbound(t, o, policy.StageRoute, a)
		if got.Way != tt.way || got.Reply != tt.reply || got.Err != nil {
			t.Errorf("to %s by %q: got %+v %q, %v", tt.to, tt.user, got.Way, got.Reply, got.Err)
		}
		a.Fates = []policy.Fate{{Reply: smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no such user"), Host: "mx.example.org"}}
		if got := filtertest.Outbound(t, o, policy.StageBounced, a); !got.Asked || got.Err != nil {
			t.Errorf("to %s, bounced: got %+v", tt.to, got)
		}
	}
}

func TestNative(t *testing.T) {
	ways(t, func() filtertest.Options { return filtertest.Options{Filter: newFilter(), Config: config} })

	// Without the grant the mail waits: it would go another way than was written.
	o := filtertest.Options{Filter: newFilter(), Config: config, Grants: &guest.Grants{}}
	a := filtertest.Attempt{Envelope: filtertest.Envelope{To: []string{"bob@example.org"}}}
	if got := filtertest.Outbound(t, o, policy.StageRoute, a); !strings.HasPrefix(got.Reply, "451 4.3.5 ") {
		t.Errorf("without the grant: got %+v", got)
	}
}

func TestModule(t *testing.T) {
	load := guests.Loader(t, "outbound-route", guests.Build(t, "."))
	ways(t, func() filtertest.Options { return filtertest.Options{Policy: load.Must(t, config)} })
}
