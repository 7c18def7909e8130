package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

func login() *Auth {
	return &Auth{Mechanism: "PLAIN", User: "alice", Authz: "postmaster", Password: "s3cret", Token: "t0ken", Reveal: true}
}

// Who is asked about a login, and who answers: one line per chain.
func TestDecideAuth(t *testing.T) {
	v := func(a Action) Verdict { return Verdict{Action: a} }
	say := func(code int, text string) Verdict {
		return Verdict{Action: Reject, Reply: &smtp.Reply{Code: code, Text: text}}
	}
	fails := Verdict{Action: 99}
	for _, tt := range []struct {
		verdicts []Verdict
		onError  OnError
		reveal   bool
		asked    int // filters that were asked
		want     string
		why      string
	}{
		{nil, 0, true, 0, "continue by ", "no filters"},
		{[]Verdict{v(Continue), v(Skip)}, 0, true, 2, "continue by ", "no opinion"},
		{[]Verdict{v(Accept), v(Continue)}, 0, true, 2, "accept by 0", "the credentials are right, and the rest is asked"},
		{[]Verdict{v(Continue), v(Accept), v(Accept)}, 0, true, 3, "accept by 1", "the first that says so"},
		{[]Verdict{v(Accept), v(Reject)}, 0, true, 2, "reject by 1: 535 5.7.8 authentication credentials invalid", "a refusal is stronger"},
		{[]Verdict{v(Accept), v(Tempfail)}, 0, true, 2, "tempfail by 1: 454 4.7.0 temporary authentication failure", "this one too"},
		{[]Verdict{v(Accept), v(Disconnect)}, 0, true, 2, "disconnect by 1: 421 4.7.0 closing connection", "and so is this"},
		{[]Verdict{v(Reject), v(Accept)}, 0, true, 1, "reject by 0: 535 5.7.8 authentication credentials invalid", "the rest is not asked"},
		{[]Verdict{say(0, "go away")}, 0, true, 1, "reject by 0: 535 5.7.8 go away", "a text alone"},
		{[]Verdict{say(534, "")}, 0, true, 1, "reject by 0: 534 5.7.8 authentication credentials invalid", "a code alone"},
		{[]Verdict{say(454, "")}, 0, true, 1, "tempfail by 0: 454 4.7.0 temporary authentication failure", "a senseless one"},
		{[]Verdict{v(Quarantine)}, 0, true, 1, "tempfail by 0: 454 4.7.0 temporary authentication failure", "there is no mail to hold"},
		{[]Verdict{v(Discard)}, 0, true, 1, "tempfail by 0: 454 4.7.0 temporary authentication failure", "nor to drop"},
		{[]Verdict{v(Accept), v(Reject)}, 0, false, 1, "tempfail by 0: 454 4.7.0 temporary authentication failure", "accept without the operator's word"},
		{[]Verdict{v(Accept)}, OnErrorAccept, false, 1, "continue by ", "it logs nobody in, by its failure either"},
		{[]Verdict{v(Continue), v(Reject)}, 0, false, 2, "reject by 1: 535 5.7.8 authentication credentials invalid", "a refusal needs no word"},
		{[]Verdict{fails}, OnErrorTempfail, true, 1, "tempfail by 0: 454 4.7.0 temporary authentication failure", "on_error"},
		{[]Verdict{fails}, OnErrorReject, true, 1, "reject by 0: 535 5.7.8 authentication credentials invalid", "on_error"},
		{[]Verdict{fails}, OnErrorQuarantine, true, 1, "tempfail by 0: 454 4.7.0 temporary authentication failure", "on_error"},
		{[]Verdict{fails, fails}, OnErrorAccept, true, 2, "continue by ", "a failing filter logs nobody in"},
		{[]Verdict{fails, v(Accept)}, OnErrorAccept, true, 2, "accept by 1", "it is passed over"},
		{[]Verdict{v(Accept), fails}, OnErrorTempfail, true, 2, "tempfail by 1: 454 4.7.0 temporary authentication failure", "one that might have refused"},
	} {
		for _, mayAccept := range []bool{false, true} { // of other stages; it changes nothing here
			var links []Link
			asked := 0
			for i, v := range tt.verdicts {
				links = append(links, Link{Filter: Func(fmt.Sprint(i), AllStages, func(context.Context, *Event) (Verdict, error) {
					asked++
					return v, nil
				}), OnError: tt.onError, MayAccept: mayAccept})
			}
			a := login()
			a.Reveal = tt.reveal
			d := NewChain(links...).Open(new(Session), nil).DecideAuth(t.Context(), a)
			got := fmt.Sprintf("%s by %s", d.Action, d.Filter)
			if d.Reply != nil {
				got += ": " + d.Reply.Line()
			}
			if got != tt.want || asked != tt.asked {
				t.Errorf("%v, on_error %s, reveal %t: %s, %d asked, want %s, %d: %s", tt.verdicts, tt.onError, tt.reveal, got, asked, tt.want, tt.asked, tt.why)
			}
		}
	}
}

// A login that is asked about with Decide, of which nobody knows anything, is not let in.
func TestDecideAtAuthLetsNobodyIn(t *testing.T) {
	r := NewChain(Link{Filter: Func("f", AllStages, answers(Verdict{Action: Accept})), MayAccept: true}).Open(new(Session), nil)
	if d := r.Decide(t.Context(), StageAuth, nil); d.Action != Tempfail {
		t.Errorf("got %s, want tempfail", d.Action)
	}
}

// Filters see the secrets if the operator says so, and at this stage alone; what a filter
// writes into its event neither reveals them to the next nor lets it accept.
func TestSecretsAreForFiltersThatDecide(t *testing.T) {
	for _, reveal := range []bool{true, false} {
		var seen []Auth
		look := func(_ context.Context, e *Event) (Verdict, error) {
			if (e.Auth != nil) != (e.Stage == StageAuth) {
				t.Errorf("at %s: login %v", e.Stage, e.Auth)
			}
			if e.Auth == nil {
				return Verdict{}, nil
			}
			seen = append(seen, *e.Auth)
			e.Auth = &Auth{Reveal: true}
			return Verdict{Action: Accept}, nil
		}
		given, want := login(), login()
		given.Reveal = reveal
		if want.Reveal = reveal; !reveal {
			want.Password, want.Token = "", ""
		}
		r := NewChain(Link{Filter: Func("a", AllStages, look), OnError: OnErrorAccept}, Link{Filter: Func("b", AllStages, look), OnError: OnErrorAccept}).
			Open(new(Session), nil)
		r.Decide(t.Context(), StageHelo, nil)
		d := r.DecideAuth(t.Context(), given)
		r.Decide(t.Context(), StageMail, newTx(t))
		equal(t, "what filters see", seen, []Auth{*want, *want})
		if (d.Action == Accept) != reveal || given.Password != "s3cret" {
			t.Errorf("reveal %t: %s, and the gateway's login is %#v", reveal, d.Action, *given)
		}
		if r.event.Auth != nil {
			t.Error("the session keeps the login")
		}
	}
}

// Whatever a step is printed with, the secrets are not in it; nor are they in a printed
// login or event.
func TestSecretsAreNotPrinted(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	show := func(v any) {
		fmt.Fprintf(&out, "%v %+v %s\n", v, v, v)
		log.Info("x", "v", v)
	}
	f := Func("f", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		show(e.Auth)
		show(*e.Auth)
		show(*e)
		if e.Auth.User == "panics" {
			panic("boom")
		}
		return Verdict{}, errors.New("broken")
	})
	r := NewChain(Link{Filter: f}).Open(new(Session), func(s Step) { show(s); show(s.Err) })
	a := login()
	for _, user := range []string{"alice", "panics"} {
		a.User = user
		show(r.DecideAuth(t.Context(), a))
	}
	for _, secret := range []string{"s3cret", "t0ken"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is in\n%s", secret, out.String())
		}
	}
	if !strings.Contains(out.String(), "login by PLAIN") {
		t.Errorf("a login prints as\n%s", out.String())
	}
}

// A filter may tag at a login; the tag is the session's.
func TestTagAtAuth(t *testing.T) {
	s := new(Session)
	r := NewChain(Link{Filter: Func("f", AllStages, tagging)}).Open(s, nil)
	r.DecideAuth(t.Context(), login())
	equal(t, "tags", s.Tags, []Tag{{"f", "stage", "auth"}})
}

func TestDecideAuthAsksNobody(t *testing.T) {
	r := NewChain(Link{Filter: Func("f", AllStages&^StagesOf(StageAuth), answers(Verdict{Action: Reject}))}).Open(new(Session), nil)
	equal(t, "no filter wants it", r.DecideAuth(t.Context(), login()), Decision{})
	var none *Chain
	equal(t, "no chain", none.Open(new(Session), nil).DecideAuth(t.Context(), login()), Decision{})
}
