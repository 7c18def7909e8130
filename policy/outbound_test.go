package policy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// TestWay: what filters choose one after the other; a filter that fails has chosen nothing.
func TestWay(t *testing.T) {
	one := Func("one", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		return Verdict{}, errors.Join(e.Edits.SetRelay("relay.example:587"), e.Edits.SetSource("a"), e.Edits.SetEncryption(Encrypted))
	})
	fails := Func("fails", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		return Verdict{}, errors.Join(e.Edits.SetRelay("other.example"), errors.New("broken"))
	})
	last := Func("last", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		want := Way{Relay: "relay.example:587", Source: "a", TLS: Encrypted}
		equal(t, "the last sees", e.Edits.Way(), want)
		return Verdict{}, errors.Join(e.Edits.SetSource("b"), e.Edits.SetEncryption(AsPolicySays))
	})
	tx := newTx(t)
	before := tx.Outbound
	var log []string
	r := NewChain(Link{Filter: one}, Link{Filter: fails, OnError: OnErrorAccept}, Link{Filter: last}).Open(&Session{ID: "m1"}, func(s Step) {
		for _, e := range s.Edits {
			log = append(log, e.String())
		}
	})
	d := r.Decide(t.Context(), StageRoute, tx)
	r.Drop()
	equal(t, "decision", d, Decision{})
	equal(t, "way", tx.Outbound.Way, Way{Relay: "relay.example:587", Source: "b"})
	equal(t, "what was given is as it was", before.Way, Way{})
	equal(t, "log", strings.Join(log, ", "), "goes by relay=relay.example:587, goes by source=a, goes by tls=required, goes by source=b, goes by tls=policy")
}

// TestWayRefused: what no message can go by.
func TestWayRefused(t *testing.T) {
	for name, edit := range map[string]func(e *Edits) error{
		"relay with a line end": func(e *Edits) error { return e.SetRelay("a.example\r\n") },
		"relay beyond ASCII":    func(e *Edits) error { return e.SetRelay("bücher.example") },
		"long relay":            func(e *Edits) error { return e.SetRelay(strings.Repeat("a", maxRelay+1)) },
		"source with a space":   func(e *Edits) error { return e.SetSource("a b") },
		"long source":           func(e *Edits) error { return e.SetSource(strings.Repeat("a", maxSource+1)) },
		"unknown encryption":    func(e *Edits) error { return e.SetEncryption(5) },
	} {
		runOne(StageRoute, newTx(t), func(e *Edits) {
			if err := edit(e); !errors.Is(err, ErrRange) {
				t.Errorf("%s: got %v", name, err)
			}
		})
	}
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(netip.Addr{}, 25), netip.MustParseAddrPort("[fe80::1%eth0]:25")} {
		runOne(StageDeliver, newTx(t), func(e *Edits) {
			if err := e.Connect(to); !errors.Is(err, ErrRange) {
				t.Errorf("%v: got %v", to, err)
			}
		})
	}
	runOne(StageRoute, newTx(t), func(e *Edits) {
		for range maxEnvelopeOps {
			if err := e.SetSource("a"); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.SetSource("a"); !errors.Is(err, ErrTooMuch) {
			t.Errorf("edits without an end: got %v", err)
		}
	})
}

// TestOutwardStages: refusals count at the stages that decide, what makes no sense there is a
// failure, and nobody is told of the end of a connection that there is not.
func TestOutwardStages(t *testing.T) {
	for _, tt := range []struct {
		stage  Stage
		says   Action
		action Action
		code   int
	}{
		{StageRoute, Continue, Continue, 0},
		{StageRoute, Reject, Reject, 550},
		{StageRoute, Tempfail, Tempfail, 451},
		{StageDeliver, Reject, Reject, 550},
		{StageDeliver, Tempfail, Tempfail, 451},
		{StageRoute, Discard, Tempfail, 451}, // the answer to failures
		{StageRoute, Quarantine, Tempfail, 451},
		{StageDeliver, Disconnect, Tempfail, 451},
		{StageRoute, Accept, Tempfail, 451}, // not granted
		{StageDelivered, Reject, Continue, 0},
		{StageBounced, Tempfail, Continue, 0},
		{StageDeferred, Discard, Continue, 0},
	} {
		p := &probe{name: "p", decide: answers(Verdict{Action: tt.says})}
		r := NewChain(Link{Filter: p}).Open(&Session{ID: "m1"}, nil)
		d := r.Decide(t.Context(), tt.stage, newTx(t))
		r.Drop()
		r.Drop()
		code := 0
		if d.Reply != nil {
			code = d.Reply.Code
		}
		if d.Action != tt.action || code != tt.code {
			t.Errorf("%s at %s: got %s %d, want %s %d", tt.says, tt.stage, d.Action, code, tt.action, tt.code)
		}
		if p.asked != 1 || p.opened != 1 || p.closed != 1 {
			t.Errorf("%s: asked %d, opened %d, closed %d", tt.stage, p.asked, p.opened, p.closed)
		}
	}
}
