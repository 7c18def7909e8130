package policy

import (
	"context"
	"fmt"
	"reflect"
	"testing"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/mail/smtp"
)

func TestMain(m *testing.M) { leak.Main(m) }

// allStages are the stages in their order.
var allStages = []Stage{StageConnect, StageSecure, StageHelo, StageAuth, StageMail, StageRcpt, StageData, StageHeaders,
	StageChunk, StageMessage, StageReset, StageClose, StageRoute, StageDeliver, StageDeferred, StageBounced, StageDelivered}

const sample = "Received: by x\r\nFrom: a@example.com\r\nSubject: one\r\n\r\nhello\r\n"

func path(t testing.TB, s string) smtp.Path {
	t.Helper()
	p, err := smtp.ParsePath("<" + s + ">")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newTx returns a transaction with everything in it.
func newTx(t testing.TB) *Transaction {
	t.Helper()
	tx := &Transaction{Seq: 1, Sender: smtp.Sender{Path: path(t, "s@example.com"), Size: 7}, Message: NewMessage([]byte(sample)),
		Outbound: &Outbound{Target: "example.net", Try: 1}}
	for _, a := range []string{"a@example.net", "b@example.net", "c@example.net"} {
		tx.Rcpts = append(tx.Rcpts, Recipient{Recipient: smtp.Recipient{Path: path(t, a)}})
	}
	return tx
}

// text is all that a transaction says, for comparison.
func (tx *Transaction) text() string {
	if tx == nil {
		return "none"
	}
	s := fmt.Sprintf("sender %q %v;", tx.Sender.Path, tx.Sender.UTF8)
	for _, r := range tx.Rcpts {
		s += fmt.Sprintf(" rcpt %s by %q;", r.Path, r.AddedBy)
		if r.Held != "" {
			s += fmt.Sprintf(" held: %s;", r.Held)
		}
	}
	for _, j := range tx.Judged {
		s += fmt.Sprintf(" %s by %q: %s;", j.Path, j.Filter, j.Verdict.Action)
	}
	s += fmt.Sprintf(" tags %v", tx.Tags)
	if len(tx.Scores) > 0 {
		s += fmt.Sprintf(" scores %v", tx.Scores)
	}
	if o := tx.Outbound; o != nil && o.Way != (Way{}) {
		s += fmt.Sprintf("; way %v", o.Way)
	}
	s += "; message "
	if tx.Message == nil {
		return s + "none"
	}
	return s + fmt.Sprintf("%q", tx.Message.bytes())
}

func (m *Message) bytes() []byte {
	return m.Body.appendAll(m.Header.AppendTo(nil))
}

func (b Body) appendAll(to []byte) []byte {
	p := make([]byte, b.Size())
	if n, err := b.ReadAt(p, 0); n != len(p) || err != nil && b.Size() > 0 {
		panic(fmt.Sprintf("ReadAt = %d, %v, want %d", n, err, len(p)))
	}
	return append(to, p...)
}

type decide = func(context.Context, *Event) (Verdict, error)

// answers returns a filter function that says v.
func answers(v Verdict) decide {
	return func(context.Context, *Event) (Verdict, error) { return v, nil }
}

// run asks one filter, at one stage, and returns what Edits said while it lasted.
func runOne(stage Stage, tx *Transaction, f func(e *Edits)) (Decision, []Edit) {
	var log []Edit
	chain := NewChain(Link{Filter: Func("one", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		f(e.Edits)
		return Verdict{}, nil
	})})
	r := chain.Open(&Session{Host: "mx.test"}, func(s Step) { log = append([]Edit(nil), s.Edits...) })
	return r.Decide(context.Background(), stage, tx), log
}

// probe is a filter whose every part can be told what to do.
type probe struct {
	name   string
	open   func() (Instance, error) // nil: itself
	decide decide
	close  func() // nil: nothing

	opened, closed, asked int
}

func (p *probe) Name() string   { return p.name }
func (p *probe) Stages() Stages { return AllStages }
func (p *probe) Open(context.Context, *Session) (Instance, error) {
	p.opened++
	if p.open != nil {
		return p.open()
	}
	return p, nil
}
func (p *probe) Decide(ctx context.Context, e *Event) (Verdict, error) {
	p.asked++
	return p.decide(ctx, e)
}
func (p *probe) Close() {
	p.closed++
	if p.close != nil {
		p.close()
	}
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\ngot  %v\nwant %v", what, got, want)
	}
}
