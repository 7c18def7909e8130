package filtertest_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy"
)

const eml = "Subject: hi\n\nhello\n"

// obedient does what the local part of the recipient, or the Subject, says.
func obedient() *filter.Filter {
	f := filter.New("obedient")
	f.OnConnect(func(w filter.Reply, e *filter.ConnectEvent) {
		if e.ClientIP().String() == "192.0.2.66" {
			w.Reject(0, "", "")
		}
	})
	f.OnMailFrom(func(w filter.Reply, e *filter.MailEvent) { obey(w, e.From().Local()) })
	f.OnRcptTo(func(w filter.Reply, e *filter.RcptEvent) { obey(w, e.Rcpt().Local()) })
	f.OnHeaders(func(w filter.Reply, m *filter.HeadersEvent) {
		_ = m.Header.Add("X-At", "headers")
		obey(w, m.Header.Get("At-Headers"))
	})
	f.OnData(func(w filter.Reply, m *filter.Message) {
		_ = m.Header.Add("X-At", "message")
		_ = m.Body.Append([]byte("bye\r\n"))
		obey(w, m.Header.Get("At-Message"))
	})
	return f
}

func obey(w filter.Reply, word string) {
	switch word {
	case "reject":
		w.Reject(0, "", word)
	case "tempfail":
		w.Tempfail(0, "", word)
	case "discard":
		w.Discard()
	case "hold":
		w.Quarantine("told to")
	case "disconnect":
		w.Disconnect(0, "", word)
	case "fail":
		panic("told to")
	}
}

// TestDeliver: what of the session is reached, and what goes on.
func TestDeliver(t *testing.T) {
	const edited = "Subject: hi\r\nX-At: headers\r\nX-At: message\r\n\r\nhello\r\nbye\r\n"
	tests := []struct {
		name, ip, from, rcpts, eml string
		action, to, message        string
		stages                     string
	}{
		{"passes", "", "a", "x y", eml, "continue", "x y", edited, "connect helo mail rcpt rcpt data headers message"},
		{"no recipient", "", "a", "", eml, "continue", "", "", "connect helo mail"},
		{"one is refused", "", "a", "reject y", eml, "continue", "y", edited, "connect helo mail rcpt rcpt data headers message"},
		{"all are refused", "", "a", "tempfail reject", eml, "reject", "", "", "connect helo mail rcpt rcpt"},
		{"one is discarded", "", "a", "discard y", eml, "continue", "y", edited, "connect helo mail rcpt rcpt data headers message"},
		{"hung up", "", "a", "disconnect y", eml, "disconnect", "", "", "connect helo mail rcpt"},
		{"held at RCPT", "", "a", "hold reject", eml, "quarantine", "hold", edited, "connect helo mail rcpt rcpt data headers message"},
		{"held and then refused", "", "hold", "x", "At-Message: reject\n\n", "reject", "", "", "connect helo mail rcpt data headers message"},
		{"refused at connect", "192.0.2.66", "a", "x", eml, "reject", "", "", "connect"},
		{"refused at MAIL", "", "reject", "x", eml, "reject", "", "", "connect helo mail"},
		{"refused at the headers", "", "a", "x", "At-Headers: tempfail\n\n", "tempfail", "", "", "connect helo mail rcpt data headers"},
		{"discarded", "", "a", "x", "At-Message: discard\n\n", "discard", "", "", "connect helo mail rcpt data headers message"},
		{"failed", "", "a", "x", "At-Message: fail\n\n", "tempfail", "", "", "connect helo mail rcpt data headers message"},
	}
	for _, tt := range tests {
		e := filtertest.Envelope{From: tt.from + "@example.com"}
		for _, r := range strings.Fields(tt.rcpts) {
			e.To = append(e.To, r+"@example.org")
		}
		d := filtertest.Deliver(t, filtertest.Options{Filter: obedient(), Client: filtertest.Client{IP: tt.ip}}, e, tt.eml)
		var stages []string
		for _, s := range d.Steps {
			stages = append(stages, s.Stage.String())
		}
		to := strings.ReplaceAll(strings.Join(d.To, " "), "@example.org", "")
		if d.Verdict.Action.String() != tt.action || to != tt.to || d.Message != tt.message || strings.Join(stages, " ") != tt.stages {
			t.Errorf("%s: got %s to %q %q by %s\nwant %s to %q %q by %s", tt.name,
				d.Verdict.Action, to, d.Message, stages, tt.action, tt.to, tt.message, tt.stages)
		}
		if refused := strings.Contains("reject tempfail disconnect", tt.action); refused != (d.Reply != "") {
			t.Errorf("%s: reply %q", tt.name, d.Reply)
		}
	}
}

func TestOnError(t *testing.T) {
	for _, tt := range []struct {
		on     policy.OnError
		action policy.Action
		passes bool
	}{
		{policy.OnErrorTempfail, policy.Tempfail, false},
		{policy.OnErrorReject, policy.Reject, false},
		{policy.OnErrorAccept, policy.Continue, true},
		{policy.OnErrorQuarantine, policy.Quarantine, true},
	} {
		d := filtertest.Deliver(t, filtertest.Options{Filter: obedient(), OnError: tt.on},
			filtertest.Envelope{To: []string{"x@example.org"}}, "At-Message: fail\n\n")
		r := d.Step(policy.StageMessage)
		if r.Verdict.Action != tt.action || r.Err == nil || (d.Message != "") != tt.passes || strings.Contains(d.Message, "bye") {
			t.Errorf("%s: got %s, %v, message %q", tt.on, r.Verdict.Action, r.Err, d.Message)
		}
	}
}

// TestPolicy: a filter of another kind takes the same walk.
func TestPolicy(t *testing.T) {
	p := policy.Func("other", policy.StagesOf(policy.StageHelo), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		if e.Session.Helo == "bad.example" {
			return policy.Verdict{}, errors.New("broken")
		}
		return policy.Verdict{}, e.Edits.Tag("seen", e.Session.Helo)
	})
	s := filtertest.New(t, filtertest.Options{Policy: p})
	if r := s.Connect(); r.Asked {
		t.Error("asked at connect, which it did not subscribe to")
	}
	if r := s.Helo("good.example"); !r.Asked || !reflect.DeepEqual(r.Tags, []string{"seen=good.example"}) || r.Err != nil {
		t.Errorf("got %+v", r)
	}
	if r := s.Helo("bad.example"); r.Err == nil || r.Reply != "451 4.3.0 message cannot be checked now, try again later" {
		t.Errorf("got %+v", r)
	}
}

// TestConfigKinds: a configuration may be text or a value.
func TestConfigKinds(t *testing.T) {
	for _, config := range []any{`{"k": "v"}`, []byte(`{"k": "v"}`), map[string]any{"k": "v"}, struct {
		K string `json:"k"`
	}{"v"}} {
		got := ""
		f := filter.New("test")
		f.Configure(func(c filter.Config) error { got = c.String("k"); return nil })
		filtertest.New(t, filtertest.Options{Filter: f, Config: config})
		if got != "v" {
			t.Errorf("%v: got %q, want v", config, got)
		}
	}
}
