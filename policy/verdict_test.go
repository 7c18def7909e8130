package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

// Which action makes sense at which stage: the matrix of the stages' doc comments.
func TestVerdictAtStage(t *testing.T) {
	for action := range Action(9) {
		for _, stage := range allStages {
			deciding := stage != StageReset && stage != StageClose && stage <= StageDeliver
			var want bool
			switch action {
			case Continue, Skip:
				want = true
			case Accept, Reject, Tempfail:
				want = deciding
			case Disconnect:
				want = deciding && stage < StageRoute
			case Discard, Quarantine:
				want = deciding && stage >= StageMail && stage < StageRoute
			}
			_, err := Verdict{Action: action}.check(stage, true)
			if (err == nil) != want || err != nil && !errors.Is(err, ErrVerdict) {
				t.Errorf("%s at %s: %v, want sense: %t", action, stage, err, want)
			}
		}
	}
}

func TestVerdictReply(t *testing.T) {
	reply := func(code, class int, text string) *smtp.Reply {
		r := &smtp.Reply{Code: code, Text: text}
		if class != 0 {
			r.Enh = smtp.Enhanced{class, 1, 2}
		}
		return r
	}
	for _, tt := range []struct {
		action Action
		reply  *smtp.Reply
		want   string // empty: senseless
		why    string
	}{
		{Reject, nil, "550 5.7.1 refused by policy", "the default"},
		{Tempfail, nil, "451 4.7.1 deferred by policy, try again later", "the default"},
		{Disconnect, nil, "421 4.7.0 closing connection", "the default"},
		{Reject, reply(0, 0, "no"), "550 5.7.1 no", "text alone"},
		{Reject, reply(554, 0, ""), "554 5.7.1 refused by policy", "code alone"},
		{Reject, reply(0, 5, ""), "550 5.1.2 refused by policy", "enhanced code alone"},
		{Reject, reply(552, 5, "no"), "552 5.1.2 no", "all of it"},
		{Reject, reply(450, 0, ""), "", "4xx is no rejection"},
		{Reject, reply(550, 4, ""), "", "classes differ, RFC 3463, Section 2"},
		{Reject, reply(250, 0, ""), "", "2xx is no rejection"},
		{Reject, reply(-550, 0, ""), "", "a negative code"},
		{Reject, reply(600, 0, ""), "", "no code of SMTP"},
		{Tempfail, reply(452, 4, "full"), "452 4.1.2 full", "all of it"},
		{Tempfail, reply(550, 0, ""), "", "5xx is not temporary"},
		{Tempfail, reply(0, 5, ""), "", "nor is class 5"},
		{Tempfail, reply(421, 0, ""), "", "421 belongs to disconnect"},
		{Disconnect, reply(0, 0, "go"), "421 4.7.0 go", "text alone"},
		{Disconnect, reply(554, 0, ""), "554 5.7.0 closing connection", "5xx"},
		{Disconnect, reply(554, 4, ""), "", "classes differ"},
		{Disconnect, reply(0, 5, ""), "", "class 5 with the default 421"},
		{Disconnect, reply(450, 4, "go"), "450 4.1.2 go", "4xx"},
		{Disconnect, reply(220, 0, ""), "", "2xx"},
		{Continue, reply(550, 0, ""), "", "nobody would see it"},
		{Quarantine, reply(550, 0, ""), "", "the client hears 250"},
		{Discard, reply(250, 0, ""), "", "always the same one"},
		{Accept, reply(250, 0, ""), "", "not a filter's"},
		{Skip, reply(550, 0, ""), "", "nobody would see it"},
	} {
		var before smtp.Reply
		if tt.reply != nil {
			before = *tt.reply
		}
		v, err := Verdict{Action: tt.action, Reply: tt.reply}.check(StageMessage, true)
		got := ""
		if err == nil {
			got = v.Reply.Line()
		}
		if got != tt.want || err != nil && !errors.Is(err, ErrVerdict) {
			t.Errorf("%s with %+v = %q, %v, want %q: %s", tt.action, before, got, err, tt.want, tt.why)
		}
		if tt.reply != nil && *tt.reply != before {
			t.Errorf("%s changed the filter's reply from %+v to %+v: filters share them", tt.action, before, *tt.reply)
		}
	}
}

func TestAcceptNeedsPermission(t *testing.T) {
	if _, err := (Verdict{Action: Accept}).check(StageRcpt, false); !errors.Is(err, ErrVerdict) {
		t.Errorf("Accept without permission: %v", err)
	}
}

// Each OnError at each stage.
func TestOnErrorAtStage(t *testing.T) {
	cause := errors.New("no luck")
	for _, o := range []OnError{OnErrorTempfail, OnErrorAccept, OnErrorReject, OnErrorQuarantine, 77} {
		for _, stage := range allStages {
			want := map[OnError]string{OnErrorTempfail: "tempfail 451 4.3.0", OnErrorAccept: "continue",
				OnErrorReject: "reject 554 5.3.0", OnErrorQuarantine: "quarantine"}[o]
			if stage == StageAuth {
				want = map[OnError]string{OnErrorAccept: "continue", OnErrorReject: "reject 535 5.7.8"}[o]
			}
			switch {
			case stage == StageAuth && want == "":
				want = "tempfail 454 4.7.0"
			case stage == StageAuth: // as it is
			case stage == StageReset || stage == StageClose || stage > StageDeliver:
				want = "continue"
			case o == 77, o == OnErrorQuarantine && (stage < StageMail || stage >= StageRoute):
				want = "tempfail 451 4.3.0" // unknown, or there is nothing to hold
			}
			r := NewChain(Link{Filter: Func("f", AllStages, func(context.Context, *Event) (Verdict, error) {
				return Verdict{Action: Reject}, cause
			}), OnError: o}).Open(new(Session), nil)
			d := r.Decide(context.Background(), stage, newTx(t))
			got := d.Action.String()
			if d.Reply != nil {
				got += fmt.Sprintf(" %d %s", d.Reply.Code, d.Reply.Enh)
				if !errors.Is(d.Reply, cause) || strings.Contains(d.Reply.Text, "luck") {
					t.Errorf("%s at %s: the cause is for the log alone: %+v", o, stage, d.Reply)
				}
			}
			if got != want {
				t.Errorf("on_error %s at %s: %s, want %s", o, stage, got, want)
			}
			if _, err := d.check(stage, false); err != nil {
				t.Errorf("on_error %s at %s: %v", o, stage, err)
			}
		}
	}
}

func TestOnErrorReasonIsOneLine(t *testing.T) {
	r := NewChain(Link{Filter: Func("f", AllStages, func(context.Context, *Event) (Verdict, error) {
		panic("boom")
	}), OnError: OnErrorQuarantine}).Open(new(Session), nil)
	d := r.Decide(context.Background(), StageMessage, newTx(t))
	equal(t, "reason", d.Reason, "filter failed: policy: filter f panicked: boom")
}

// A failure that shows later is answered by the same link, and seen by the observer.
func TestFailed(t *testing.T) {
	late := errors.New("nobody takes it")
	var steps []Step
	r := NewChain(
		Link{Filter: Func("a", AllStages, answers(Verdict{})), OnError: OnErrorReject},
		Link{Filter: Func("b", AllStages, answers(Verdict{})), OnError: OnErrorAccept},
	).Open(new(Session), func(s Step) { steps = append(steps, s) })
	for name, want := range map[string]Action{"a": Reject, "b": Continue, "c": Continue} {
		steps = nil
		d := r.Failed(name, StageMessage, late)
		if d.Action != want || (len(steps) == 1) != (name != "c") {
			t.Errorf("Failed(%q) = %s, observed %v, want %s", name, d.Action, steps, want)
		}
		if name != "c" && (steps[0].Filter != name || !errors.Is(steps[0].Err, late) || steps[0].Verdict.Action != want) {
			t.Errorf("Failed(%q) was seen as %+v", name, steps[0])
		}
	}
}

func TestParseOnError(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want OnError
		ok   bool
	}{
		{"", OnErrorTempfail, true}, {"tempfail", OnErrorTempfail, true}, {"accept", OnErrorAccept, true},
		{"reject", OnErrorReject, true}, {"quarantine", OnErrorQuarantine, true}, {"Reject", 0, false}, {"discard", 0, false},
	} {
		got, err := ParseOnError(tt.in)
		if got != tt.want || (err == nil) != tt.ok {
			t.Errorf("ParseOnError(%q) = %s, %v, want %s", tt.in, got, err, tt.want)
		}
		if tt.ok && tt.in != "" && got.String() != tt.in {
			t.Errorf("String of %q is %q", tt.in, got)
		}
	}
}

func TestNames(t *testing.T) {
	equal(t, "stages", AllStages.String(), "connect secure helo auth mail rcpt data headers chunk message reset close route deliver deferred bounced delivered")
	equal(t, "unknown", []string{Stage(18).String(), Action(9).String(), OnError(9).String(), Edit{}.String()},
		[]string{"unknown", "action(9)", "OnError(9)", "unknown edit"})
	equal(t, "set of nothing", StagesOf(), Stages(0))
	equal(t, "set of list", StagesOf(allStages...), AllStages)
	if AllStages.Has(0) || AllStages.Has(18) || AllStages.Has(200) {
		t.Error("AllStages has what is no stage")
	}
}
