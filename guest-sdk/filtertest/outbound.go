package filtertest

import (
	"context"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// outbound.go: mail on its way out.

// Attempt is an attempt to deliver a message to hosts elsewhere, which is all that a filter is
// told of. The zero value of a field is that there is no such thing.
type Attempt struct {
	Envelope
	// Size is that of the message.
	Size int64
	// Outbound is the rest; of its fields Target defaults to the domain of the first
	// recipient, and Try to 1. Its Way is what filters before have chosen.
	policy.Outbound
}

// Outcome is what came of one stage of an attempt.
type Outcome struct {
	Result
	// Way is what was chosen.
	Way policy.Way
}

// Outbound asks about an attempt, at policy.StageRoute or one of the stages behind it. Like the
// gateway it makes a session of its own for each, that of Options.Client.
func Outbound(t testing.TB, o Options, stage policy.Stage, a Attempt) Outcome {
	t.Helper()
	s := New(t, o)
	out := a.Outbound
	tx := &policy.Transaction{Seq: 1, Sender: smtp.Sender{Path: s.path(a.From), Size: a.Size}, Outbound: &out}
	for _, addr := range a.To {
		tx.Rcpts = append(tx.Rcpts, policy.Recipient{Recipient: smtp.Recipient{Path: s.path(addr)}})
	}
	if out.Target == "" && len(tx.Rcpts) > 0 {
		out.Target = tx.Rcpts[0].Path.Domain.String()
	}
	out.Try = max(out.Try, 1)
	s.info.ID, s.info.Helo = "queue-1", or(o.Client.Helo, "client.example")
	s.last = Result{Stage: stage}
	s.run.Decide(context.Background(), stage, tx)
	s.last.Log = s.log.list
	s.run.Drop()
	s.run = nil
	return Outcome{s.last, tx.Outbound.Way}
}
