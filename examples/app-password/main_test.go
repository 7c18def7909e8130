package main

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/policy"
)

const password = "fxqd wz4k 7hnb 2rtm"

// logins is what the filter should say, natively and as a module.
func logins(t *testing.T, options func(config string) filtertest.Options) {
	config := fmt.Sprintf(`{"digests": {"alice": "%x", "nobody": ""}}`, sha256.Sum256([]byte(password)))
	const wrong = "535 5.7.8 authentication credentials invalid"
	tests := []struct {
		name   string
		login  policy.Auth
		action policy.Action
		reply  string
	}{
		{"right", policy.Auth{User: "alice", Password: password, Reveal: true}, policy.Accept, ""},
		{"right, by LOGIN", policy.Auth{Mechanism: "LOGIN", User: "alice", Password: password, Reveal: true}, policy.Accept, ""},
		{"as themself", policy.Auth{User: "alice", Authz: "alice", Password: password, Reveal: true}, policy.Accept, ""},
		{"as somebody else", policy.Auth{User: "alice", Authz: "bob", Password: password, Reveal: true}, policy.Reject, wrong},
		{"wrong password", policy.Auth{User: "alice", Password: "fxqd", Reveal: true}, policy.Reject, wrong},
		{"another user", policy.Auth{User: "bob", Password: password, Reveal: true}, policy.Reject, wrong},
		{"a user without a digest", policy.Auth{User: "nobody", Password: "x", Reveal: true}, policy.Reject, wrong},
		{"no password", policy.Auth{User: "alice", Reveal: true}, policy.Continue, ""},
		{"a token", policy.Auth{Mechanism: "XOAUTH2", User: "alice", Token: password, Reveal: true}, policy.Continue, ""},
		{"where others decide", policy.Auth{User: "alice", Password: password}, policy.Continue, ""},
	}
	for _, tt := range tests {
		s := filtertest.New(t, options(config))
		s.Connect()
		s.Helo("client.example")
		r := s.Auth(tt.login)
		if r.Verdict.Action != tt.action || r.Reply != tt.reply || r.Err != nil {
			t.Errorf("%s: %s %q, %v, want %s %q", tt.name, r.Verdict.Action, r.Reply, r.Err, tt.action, tt.reply)
		}
		if got := s.Info().User == "alice"; got != (tt.action == policy.Accept) {
			t.Errorf("%s: the session's user is %q", tt.name, s.Info().User)
		}
		if said := fmt.Sprint(r.Tags, r.Log); strings.Contains(said, password) {
			t.Errorf("%s: the password is in %s", tt.name, said)
		}
		s.Close()
	}
}

func TestNative(t *testing.T) {
	logins(t, func(config string) filtertest.Options {
		return filtertest.Options{Filter: newFilter(), Config: config}
	})
}

func TestModule(t *testing.T) {
	load := guests.Loader(t, "app-password", guests.Build(t, "."))
	logins(t, func(config string) filtertest.Options {
		return filtertest.Options{Policy: load.Must(t, config)}
	})
}
