package filtertest

import (
	"testing"

	"github.com/penstock/penstock/policy"
)

// Delivery is what became of a message.
type Delivery struct {
	// Steps are the stages that the session reached, in order.
	Steps []Result
	// Verdict is the one that decided: what ended the session early, refused all
	// recipients or the message, discarded or held it. Its zero value says that the
	// message goes on.
	Verdict policy.Verdict
	// Reply is the line of the verdict's refusal.
	Reply string
	// From and To are the envelope as it goes on.
	From string
	To   []string
	// Judged are the recipients that had a verdict of their own, those that are held
	// behind the others. They are not in To.
	Judged []Judged
	// Message is the text that goes on or is held; empty if the mail was refused or
	// discarded.
	Message string
}

// Judged is what a filter said about one recipient of a message.
type Judged struct {
	To string
	// Verdict has the gateway's defaults filled in, Reply is its line if it refuses.
	Verdict policy.Verdict
	Reply   string
}

// Step returns the last result of a stage; its zero value if the session did not reach
// it.
func (d Delivery) Step(stage policy.Stage) Result {
	for i := len(d.Steps) - 1; i >= 0; i-- {
		if d.Steps[i].Stage == stage {
			return d.Steps[i]
		}
	}
	return Result{}
}

// Deliver walks a message through a session as the gateway does: connect, secure if the
// client has TLS, helo, MAIL, RCPT for each recipient, DATA, headers, chunks if the filter
// wants them, message, close. A
// refusal ends the walk, that of a recipient its part in it. For line ends of eml see
// Session.Message.
func Deliver(t testing.TB, o Options, e Envelope, eml string) Delivery {
	t.Helper()
	s := New(t, o)
	defer s.Close()
	w := &walk{s: s}
	w.steps(o.Client, e, eml)
	w.finish()
	return w.d
}

type walk struct {
	s *Session
	d Delivery
}

// step notes a result and tells whether the walk goes on. A quarantine holds the mail
// but does not end the walk: a later stage may refuse, which is stronger.
func (w *walk) step(r Result) bool {
	w.d.Steps = append(w.d.Steps, r)
	switch r.Verdict.Action {
	case policy.Continue, policy.Skip, policy.Accept:
		return true
	case policy.Quarantine:
		if w.d.Verdict.Action != policy.Quarantine {
			w.d.Verdict = r.Verdict
		}
		return true
	}
	w.d.Verdict, w.d.Reply = r.Verdict, r.Reply
	return false
}

func (w *walk) steps(c Client, e Envelope, eml string) {
	w.s.t.Helper()
	s := w.s
	if !w.step(s.Connect()) || c.TLS != nil && !w.step(s.Secure()) || !w.step(s.Helo(or(c.Helo, "client.example"))) ||
		!w.step(s.MailFrom(e.From)) || !w.recipients(e.To) ||
		!w.step(s.Data()) || !w.step(s.Headers(eml)) {
		return
	}
	if r := s.Chunks(eml); r.Asked && !w.step(r) {
		return
	}
	w.step(s.Message(eml))
}

// recipients tells whether any recipient is left. If none is, the last refusal is what
// decided.
func (w *walk) recipients(to []string) bool {
	w.s.t.Helper()
	held := w.d.Verdict
	for _, addr := range to {
		if !w.step(w.s.RcptTo(addr)) && w.d.Verdict.Action == policy.Disconnect {
			return false
		}
		if w.d.Verdict.Action == policy.Quarantine {
			held = w.d.Verdict
		}
	}
	if len(w.s.tx.Rcpts) == 0 {
		return false
	}
	w.d.Verdict, w.d.Reply = held, ""
	return true
}

func (w *walk) finish() {
	tx := w.s.tx
	if a := w.d.Verdict.Action; tx == nil || tx.Message == nil || a != policy.Continue && a != policy.Quarantine {
		return
	}
	w.d.From = tx.Sender.Path.String()
	w.judged(tx)
	if len(w.d.To) == 0 && len(w.d.Judged) > 0 {
		last := w.d.Judged[len(w.d.Judged)-1] // nobody is left: it is the answer to the message
		w.d.Verdict, w.d.Reply = last.Verdict, last.Reply
		if last.Verdict.Action != policy.Quarantine {
			return
		}
	}
	w.d.Message = messageText(tx.Message)
}

// judged sorts the recipients by whether they have a verdict of their own.
func (w *walk) judged(tx *policy.Transaction) {
	for _, j := range tx.Judged {
		line := ""
		if j.Verdict.Reply != nil {
			line = j.Verdict.Reply.Line()
		}
		w.d.Judged = append(w.d.Judged, Judged{j.Path.String(), j.Verdict, line})
	}
	for _, r := range tx.Rcpts {
		if r.Held != "" {
			held := policy.Verdict{Action: policy.Quarantine, Reason: r.Held}
			w.d.Judged = append(w.d.Judged, Judged{To: r.Path.String(), Verdict: held})
			continue
		}
		w.d.To = append(w.d.To, r.Path.String())
	}
}
