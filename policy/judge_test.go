package policy

import (
	"context"
	"errors"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

// What becomes of the recipients a, b and c when filters answer for them one by one.
func TestJudge(t *testing.T) {
	refuse := Verdict{Action: Reject}
	for _, tt := range []struct {
		why  string
		do   []func(e *Edits) error // one filter each
		left string
		gone string
	}{
		{"refused", []func(e *Edits) error{func(e *Edits) error { return e.Judge(1, refuse) }}, "a c", "b: reject 550 5.7.1 refused by policy"},
		{"each in its way", []func(e *Edits) error{func(e *Edits) error {
			return errors.Join(e.Judge(0, Verdict{Action: Tempfail, Reply: smtp.Refuse(450, smtp.Enhanced{4, 2, 1}, "later")}),
				e.Judge(1, Verdict{Action: Discard}), e.Judge(2, Verdict{Action: Quarantine, Reason: "odd"}))
		}}, "c (odd)", "a: tempfail 450 4.2.1 later, b: discard"},
		{"the last word counts", []func(e *Edits) error{func(e *Edits) error {
			return errors.Join(e.Judge(0, refuse), e.Judge(0, Verdict{}), e.Judge(1, refuse), e.Judge(1, Verdict{Action: Discard}))
		}}, "a c", "b: discard"},
		{"an index is of the list as it is", []func(e *Edits) error{func(e *Edits) error {
			return errors.Join(e.Judge(2, refuse), e.DeleteRecipient(0), e.Judge(0, Verdict{Action: Quarantine}))
		}}, "b (held by 1)", "c: reject 550 5.7.1 refused by policy"},
		{"held, and then refused by another", []func(e *Edits) error{
			func(e *Edits) error { return e.Judge(0, Verdict{Action: Quarantine, Reason: "odd"}) },
			func(e *Edits) error {
				return errors.Join(e.Judge(0, refuse), e.Judge(1, Verdict{Action: Quarantine, Reason: "two"}))
			},
			func(e *Edits) error { return e.Judge(0, Verdict{Action: Quarantine, Reason: "three"}) },
		}, "b (two) c", "a: reject 550 5.7.1 refused by policy"},
		{"another cannot let go what one holds", []func(e *Edits) error{
			func(e *Edits) error { return e.Judge(0, Verdict{Action: Quarantine, Reason: "odd"}) },
			func(e *Edits) error { return e.Judge(0, Verdict{}) },
		}, "a (odd) b c", ""},
		{"all of them is no fault", []func(e *Edits) error{func(e *Edits) error {
			return errors.Join(e.Judge(0, refuse), e.Judge(1, refuse), e.Judge(2, Verdict{Action: Discard}))
		}}, "", "a: reject 550 5.7.1 refused by policy, b: reject 550 5.7.1 refused by policy, c: discard"},
		{"who fails has said nothing", []func(e *Edits) error{func(e *Edits) error {
			return errors.Join(e.Judge(0, refuse), errors.New("failed"))
		}}, "a b c", ""},
		{"edits go with it", []func(e *Edits) error{func(e *Edits) error {
			return errors.Join(e.SetRecipient(0, path(t, "d@example.net")), e.Judge(0, refuse))
		}}, "b c", "d: reject 550 5.7.1 refused by policy"},
	} {
		var links []Link
		for i, do := range tt.do {
			links = append(links, Link{OnError: OnErrorAccept, Filter: Func(string(rune('1'+i)), AllStages,
				func(_ context.Context, e *Event) (Verdict, error) { return Verdict{}, do(e.Edits) })})
		}
		tx := newTx(t)
		before := *tx
		kept := before.text()
		d := NewChain(links...).Open(new(Session), nil).Decide(t.Context(), StageMessage, tx)
		left, gone := "", ""
		for _, r := range tx.Rcpts {
			left += " " + r.Path.Local
			if r.Held != "" {
				left += " (" + r.Held + ")"
			}
			equal(t, tt.why+": left behind", r.verdict, (*Verdict)(nil))
		}
		for _, j := range tx.Judged {
			gone += ", " + j.Path.Local + ": " + j.Verdict.Action.String()
			if j.Verdict.Reply != nil {
				gone += " " + j.Verdict.Reply.Line()
			}
		}
		equal(t, tt.why, []string{d.Action.String(), left, gone}, []string{"continue", pre(" ", tt.left), pre(", ", tt.gone)})
		equal(t, tt.why+": the copy", before.text(), kept)
	}
}

func pre(with, s string) string {
	if s == "" {
		return ""
	}
	return with + s
}

// What is no verdict about a recipient changes nothing, and what is one says so in the log.
func TestJudgeSense(t *testing.T) {
	for _, tt := range []struct {
		i    int
		v    Verdict
		want error
		log  string
	}{
		{3, Verdict{Action: Discard}, ErrRange, ""},
		{-1, Verdict{Action: Discard}, ErrRange, ""},
		{0, Verdict{Action: Accept}, ErrVerdict, ""},
		{0, Verdict{Action: Disconnect}, ErrVerdict, ""},
		{0, Verdict{Action: Skip}, ErrVerdict, ""},
		{0, Verdict{Action: 99}, ErrVerdict, ""},
		{0, Verdict{Action: Reject, Reply: smtp.Refuse(450, smtp.Enhanced{4, 0, 0}, "x")}, ErrVerdict, ""},
		{0, Verdict{Action: Tempfail, Reply: smtp.Refuse(421, smtp.Enhanced{4, 0, 0}, "x")}, ErrVerdict, ""},
		{0, Verdict{Action: Discard, Reply: smtp.Refuse(550, smtp.Enhanced{5, 0, 0}, "x")}, ErrVerdict, ""},
		{0, Verdict{}, nil, "recipient <a@example.net>: continue"},
		{0, Verdict{Action: Reject}, nil, "recipient <a@example.net>: reject 550 5.7.1 refused by policy"},
		{0, Verdict{Action: Quarantine, Reason: "a\r\nb"}, nil, "recipient <a@example.net>: quarantine a  b"},
	} {
		_, log := runOne(StageMessage, newTx(t), func(e *Edits) {
			if err := e.Judge(tt.i, tt.v); !errors.Is(err, tt.want) {
				t.Errorf("%d %v: got %v, want %v", tt.i, tt.v, err, tt.want)
			}
		})
		got := ""
		for _, l := range log {
			got += l.String()
		}
		equal(t, "log", got, tt.log)
	}
}
