package guest_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// needs has the capability of each import that takes one.
var needs = map[string]string{
	"rcpt_verdict": abi.CapDiscard, // the test discards
	"body_len":     abi.CapBodyRead, "body_read": abi.CapBodyRead,
	"part_count": abi.CapBodyRead, "part_info": abi.CapBodyRead, "part_len": abi.CapBodyRead, "part_read": abi.CapBodyRead,
	"match": abi.CapBodyRead, "hash": abi.CapBodyRead, // the test looks at the body
	"kv_get": abi.CapKV, "kv_set": abi.CapKV, "kv_incr": abi.CapKV, "kv_cas": abi.CapKV, "kv_del": abi.CapKV,
	"dns": abi.CapDNS, "http": abi.CapHTTP, "submit": abi.CapHTTP, "dsn": abi.CapDSN, "secret": abi.CapSecret,
	"body_splice": abi.CapBodyEdit, "body_new": abi.CapBodyEdit, "body_write": abi.CapBodyEdit, "body_commit": abi.CapBodyEdit,
	"out_relay": abi.CapRoute, "out_source": abi.CapRoute, "out_tls": abi.CapRoute, "out_connect": abi.CapRoute,
	"env_from": abi.CapEnvelope, "rcpt_add": abi.CapEnvelope, "rcpt_set": abi.CapEnvelope, "rcpt_del": abi.CapEnvelope,
}

// TestGrants calls every import with all grants but one, one after the other, wherever it
// may be called: it answers EPERM exactly if it is the one that it takes, and the log says
// so once for all sessions of the filter.
func TestGrants(t *testing.T) {
	for _, capability := range abi.Capabilities() {
		var out bytes.Buffer
		o := guest.Options{Name: "guard", Grants: everything(), Services: world().Services(), Told: new(guest.Told), Log: slog.New(slog.NewTextHandler(&out, nil))}
		if !o.Grants.Deny(capability) || o.Grants.Has(capability) {
			t.Errorf("%s cannot be denied", capability)
		}
		refused := 0
		for _, imp := range abi.Imports() {
			for _, h := range abi.HookTable() {
				if !imp.When.Has(h.Hook) {
					continue
				}
				askEnv(t, guest.NewEnv(o), h.Hook, func(g *guest.Env, _ *policy.Event) error {
					got := abi.Errno(calls[imp.Name](g))
					if want := needs[imp.Name] == capability; (got == abi.EPERM) != want {
						t.Errorf("%s at %s without %s: got %d, want EPERM %v", imp.Name, h.Name, capability, got, want)
					}
					if got == abi.EPERM {
						refused++
					}
					return nil
				})
			}
		}
		if n := strings.Count(out.String(), "grant="+capability); refused > 0 && n != 1 || strings.Count(out.String(), "grant=") != n {
			t.Errorf("%s: refused %d times, told %d times:\n%s", capability, refused, n, out.String())
		}
	}
}

// Verdicts that take a grant are a failure of the filter without it.
func TestVerdictGrants(t *testing.T) {
	for _, tt := range []struct {
		action abi.Action
		hook   abi.Hook
		needs  string
	}{
		{abi.ActDiscard, abi.HookMessage, abi.CapDiscard},
		{abi.ActDiscard, abi.HookRcpt, abi.CapDiscard},
		{abi.ActAccept, abi.HookMail, abi.CapAcceptFinal},
		{abi.ActAccept, abi.HookAuth, abi.CapAuthData},
	} {
		for _, capability := range abi.Capabilities() {
			o := guest.Options{Grants: everything()}
			o.Grants.Deny(capability)
			askEnv(t, guest.NewEnv(o), tt.hook, func(g *guest.Env, _ *policy.Event) error {
				_, err := g.Verdict(abi.NewVerdict(tt.action, 0, 0, 0, 0, false))
				if (err != nil) != (capability == tt.needs) {
					t.Errorf("%d at hook %d without %s: got %v", tt.action, tt.hook, capability, err)
				}
				return nil
			})
		}
	}
	askEnv(t, guest.NewEnv(guest.Options{}), abi.HookMessage, func(g *guest.Env, _ *policy.Event) error {
		for _, a := range []abi.Action{abi.ActContinue, abi.ActReject, abi.ActTempfail, abi.ActQuarantine, abi.ActDisconnect, abi.ActSkip} {
			if _, err := g.Verdict(abi.NewVerdict(a, 0, 0, 0, 0, false)); err != nil {
				t.Errorf("%d without any grant: %v", a, err)
			}
		}
		return nil
	})
}

// What takes a grant for the message takes it for one recipient, and a chunk is of the body.
func TestPartGrants(t *testing.T) {
	for _, grant := range []bool{true, false} {
		o := guest.Options{Grants: guest.Grants{Discard: grant}}
		askEnv(t, guest.NewEnv(o), abi.HookMessage, func(g *guest.Env, _ *policy.Event) error {
			n := abi.Errno(g.RcptVerdict(0, int64(abi.NewVerdict(abi.ActDiscard, 0, 0, 0, 0, false))))
			if grant != (n == 0) || !grant && n != abi.EPERM {
				t.Errorf("discard one recipient, granted %v: got %d", grant, n)
			}
			return nil
		})
		g := guest.NewEnv(guest.Options{Grants: guest.Grants{BodyRead: grant}})
		e := &policy.Event{Stage: policy.StageChunk, Session: session(), Chunk: &policy.Chunk{Data: []byte("secret")}, Edits: new(policy.Edits)}
		g.Begin(context.Background(), abi.HookChunk, e)
		buf, frame := make([]byte, 20), make([]byte, abi.MinMailbox)
		n := g.Get(int32(abi.FieldChunk), 0, buf)
		frame = frame[:g.Frame(frame)]
		if grant != (n == 6) || !grant && abi.Errno(n) != abi.EPERM || grant != bytes.Contains(frame, []byte("secret")) {
			t.Errorf("chunk, granted %v: got %d, frame %q", grant, n, frame)
		}
		g.End()
	}
}

// Secrets of a login are there for who was granted them; the others hear that they are not.
func TestAuthDataGrant(t *testing.T) {
	for _, grant := range []bool{true, false} {
		g := guest.NewEnv(guest.Options{Grants: guest.Grants{AuthData: grant}})
		askEnv(t, g, abi.HookAuth, func(g *guest.Env, _ *policy.Event) error {
			for _, f := range []abi.Field{abi.FieldAuthPassword, abi.FieldAuthToken} {
				buf := make([]byte, 20)
				n := g.Get(int32(f), 0, buf)
				if grant != (n > 0) || !grant && (abi.Errno(n) != abi.EPERM || !bytes.Equal(buf, make([]byte, 20))) {
					t.Errorf("field %d, granted %v: got %d, %q", f, grant, n, buf)
				}
			}
			return nil
		})
	}
	// Where filters do not decide there is nothing to be refused.
	g := guest.NewEnv(guest.Options{})
	e := &policy.Event{Stage: policy.StageAuth, Session: session(), Auth: &policy.Auth{Mechanism: "PLAIN", User: "u", Password: "p"}, Edits: new(policy.Edits)}
	g.Begin(context.Background(), abi.HookAuth, e)
	defer g.End()
	if n := abi.Errno(g.Get(int32(abi.FieldAuthPassword), 0, nil)); n != abi.ENOENT {
		t.Errorf("not revealed: got %d, want ENOENT", n)
	}
}

// TestHostPatterns: which hosts a pattern means.
func TestHostPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern guest.HostPattern
		scheme  string
		host    string
		port    uint16
		want    bool
	}{
		{guest.HostPattern{Scheme: "https", Host: "a.test"}, "https", "a.test", 443, true},
		{guest.HostPattern{Scheme: "https", Host: "a.test"}, "http", "a.test", 443, false},
		{guest.HostPattern{Scheme: "https", Host: "a.test"}, "https", "a.test", 8443, false},
		{guest.HostPattern{Scheme: "https", Host: "a.test"}, "https", "b.a.test", 443, false},
		{guest.HostPattern{Scheme: "http", Host: "a.test"}, "http", "a.test", 80, true},
		{guest.HostPattern{Scheme: "https", Host: "a.test", Port: 8443}, "https", "a.test", 8443, true},
		{guest.HostPattern{Scheme: "https", Host: "*.a.test"}, "https", "c.b.a.test", 443, true},
		{guest.HostPattern{Scheme: "https", Host: "*.a.test"}, "https", "a.test", 443, false},
		{guest.HostPattern{Scheme: "https", Host: "*.a.test"}, "https", "xa.test", 443, false},
		{guest.HostPattern{Scheme: "https", Host: "*"}, "https", "any.example", 443, true},
		{guest.HostPattern{Scheme: "https", Host: "*"}, "https", "192.0.2.1", 443, false},
		{guest.HostPattern{Scheme: "https", Host: "*"}, "https", "2001:db8::1", 443, false},
		{guest.HostPattern{Scheme: "https", Host: "*.2.1"}, "https", "192.0.2.1", 443, false},
		{guest.HostPattern{Scheme: "https", Host: "2001:db8::1"}, "https", "2001:db8:0::1", 443, true},
	} {
		if got := tt.pattern.Matches(tt.scheme, tt.host, tt.port); got != tt.want {
			t.Errorf("%+v, %s://%s:%d: got %v", tt.pattern, tt.scheme, tt.host, tt.port, got)
		}
	}
}
