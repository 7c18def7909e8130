package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

func tagging(_ context.Context, e *Event) (Verdict, error) {
	_ = e.Edits.Tag("stage", e.Stage.String())
	return Verdict{}, nil
}

// Who is asked, and who answers: one line per chain.
func TestChainOrder(t *testing.T) {
	v := func(a Action) Verdict { return Verdict{Action: a} }
	for _, tt := range []struct {
		verdicts []Action
		asked    int // filters that were asked
		want     Action
		by       string
		why      string
	}{
		{nil, 0, Continue, "", "no filters"},
		{[]Action{Continue, Continue}, 2, Continue, "", "no objection"},
		{[]Action{Reject, Continue}, 1, Reject, "0", "the rest is not asked"},
		{[]Action{Continue, Tempfail, Reject}, 2, Tempfail, "1", "the first objection counts"},
		{[]Action{Accept, Reject}, 1, Continue, "", "accept ends the asking"},
		{[]Action{Skip, Discard, Reject}, 2, Discard, "1", "skip is for one filter alone"},
		{[]Action{Quarantine, Continue}, 2, Quarantine, "0", "held mail is looked at further"},
		{[]Action{Quarantine, Quarantine}, 2, Quarantine, "0", "the first reason counts"},
		{[]Action{Quarantine, Reject}, 2, Reject, "1", "a refusal is stronger"},
		{[]Action{Quarantine, Tempfail}, 2, Tempfail, "1", "this one too"},
		{[]Action{Quarantine, Disconnect}, 2, Disconnect, "1", "this one too"},
		{[]Action{Quarantine, Discard}, 2, Discard, "1", "and so is this"},
		{[]Action{Quarantine, Accept, Reject}, 2, Quarantine, "0", "accept does not release what is held"},
		{[]Action{Quarantine, Skip}, 2, Quarantine, "0", "nor does skip"},
	} {
		var links []Link
		var probes []*probe
		for i, a := range tt.verdicts {
			probes = append(probes, &probe{name: fmt.Sprint(i), decide: answers(v(a))})
			links = append(links, Link{Filter: probes[i], MayAccept: true})
		}
		d := NewChain(links...).Open(new(Session), nil).Decide(t.Context(), StageMessage, newTx(t))
		asked := 0
		for _, p := range probes {
			asked += p.asked
		}
		if d.Action != tt.want || d.Filter != tt.by || asked != tt.asked {
			t.Errorf("%v: %s by %q, %d asked, want %s by %q, %d: %s", tt.verdicts, d.Action, d.Filter, asked, tt.want, tt.by, tt.asked, tt.why)
		}
		if (d.Reply != nil) != (d.Action == Reject || d.Action == Tempfail || d.Action == Disconnect) {
			t.Errorf("%v: %s with reply %v", tt.verdicts, d.Action, d.Reply)
		}
	}
}

func TestNilChain(t *testing.T) {
	var c *Chain
	r := c.Open(new(Session), func(Step) { t.Error("somebody was asked") })
	equal(t, "decision", r.Decide(t.Context(), StageMessage, newTx(t)), Decision{})
	r.EndTransaction()
	r.Close(t.Context())
	equal(t, "stages", c.Stages(), Stages(0))
}

// A filter is asked at its stages alone, and sees what the one before it left.
func TestLaterFiltersSeeEdits(t *testing.T) {
	tx := newTx(t)
	s := new(Session)
	chain := NewChain(
		Link{Filter: Func("first", StagesOf(StageMessage), func(_ context.Context, e *Event) (Verdict, error) {
			e.Tx = nil // what it does to its event is its own business
			e.Session = nil
			return Verdict{}, errors.Join(e.Edits.AddHeader(-1, "X", "1"), e.Edits.Tag("k", "v"), e.Edits.DeleteRecipient(0))
		})},
		Link{Filter: Func("other", StagesOf(StageRcpt), func(context.Context, *Event) (Verdict, error) {
			t.Error("asked at a stage that it did not want")
			return Verdict{}, nil
		})},
		Link{Filter: Func("second", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			if e.Tx != tx || e.Session != s || e.Stage != StageMessage || e.Time.IsZero() {
				t.Errorf("event %+v", e)
			}
			equal(t, "header", e.Edits.Message().Header.Get("X"), "1")
			equal(t, "recipients", len(e.Edits.Recipients()), 2)
			equal(t, "tags", e.Tx.Tags, []Tag{{"first", "k", "v"}})
			equal(t, "log", len(e.Edits.Log()), 0)
			return Verdict{}, nil
		})},
	)
	equal(t, "stages", chain.Stages(), AllStages)
	equal(t, "decision", chain.Open(s, nil).Decide(t.Context(), StageMessage, tx), Decision{})
}

func TestTagsOutsideTransactions(t *testing.T) {
	s := &Session{}
	r := NewChain(Link{Filter: Func("f", AllStages, tagging)}).Open(s, nil)
	r.Decide(t.Context(), StageConnect, nil)
	r.Decide(t.Context(), StageHelo, nil)
	tx := newTx(t)
	r.Decide(t.Context(), StageMail, tx)
	equal(t, "session", s.Tags, []Tag{{"f", "stage", "connect"}, {"f", "stage", "helo"}})
	equal(t, "transaction", tx.Tags, []Tag{{"f", "stage", "mail"}})
}

// editEverything leaves one edit of each kind, where there can be one.
func editEverything(t *testing.T, e *Edits) {
	t.Helper()
	if e.stage != StageMessage {
		return
	}
	if err := errors.Join(e.AddHeader(0, "X", "1"), e.SetHeader(2, "x"), e.DeleteHeader(3), e.SpliceBody(0, 2, []byte("x")),
		e.SetSender(smtp.Path{}), e.AddRecipient(path(t, "x@example.com")), e.SetRecipient(0, path(t, "y@example.com")),
		e.DeleteRecipient(1), e.Tag("k", "v"), e.Judge(0, Verdict{Action: Reject}), e.Judge(1, Verdict{Action: Quarantine})); err != nil {
		t.Error(err)
	}
}

// However a filter fails, nothing of it stays, its instance is closed, once, and the
// next filter is asked if its OnError is accept.
func TestFailureLeavesNothing(t *testing.T) {
	broken := errors.New("broken")
	edited := func(v Verdict, err error) decide {
		return func(_ context.Context, e *Event) (Verdict, error) { editEverything(t, e.Edits); return v, err }
	}
	for _, tt := range []struct {
		name   string
		filter func() *probe
		err    string
		closed int
	}{
		{"error", func() *probe { return &probe{decide: edited(Verdict{}, broken)} }, "broken", 1},
		{"error with a verdict", func() *probe { return &probe{decide: edited(Verdict{Action: Accept}, broken)} }, "broken", 1},
		{"panic", func() *probe {
			return &probe{decide: func(_ context.Context, e *Event) (Verdict, error) { editEverything(t, e.Edits); panic("boom") }}
		}, "panicked: boom", 1},
		{"panic with nil", func() *probe {
			return &probe{decide: func(_ context.Context, e *Event) (Verdict, error) { editEverything(t, e.Edits); panic(nil) }}
		}, "panicked", 1},
		{"panic in Close after an error", func() *probe {
			return &probe{decide: edited(Verdict{}, broken), close: func() { panic("again") }}
		}, "broken", 1},
		{"unknown action", func() *probe { return &probe{decide: edited(Verdict{Action: 99}, nil)} }, "action(99)", 1},
		{"accept without permission", func() *probe { return &probe{decide: edited(Verdict{Action: Accept}, nil)} }, "accept is not granted", 1},
		{"reply of another class", func() *probe {
			return &probe{decide: edited(Verdict{Action: Reject, Reply: smtp.Refuse(450, smtp.Enhanced{}, "")}, nil)}
		}, "reject with reply 450", 1},
		{"no recipient left", func() *probe {
			return &probe{decide: func(_ context.Context, e *Event) (Verdict, error) {
				for e.Edits.DeleteRecipient(0) == nil {
				}
				return Verdict{}, nil
			}}
		}, "no recipient left", 1},
		{"Open fails", func() *probe { return &probe{open: func() (Instance, error) { return nil, broken }} }, "broken", 0},
		{"Open fails with an instance", func() *probe {
			p := &probe{}
			p.open = func() (Instance, error) { return p, broken }
			return p
		}, "broken", 0},
		{"Open gives nothing", func() *probe { return &probe{open: func() (Instance, error) { return nil, nil }} }, "panicked", 0},
		{"panic in Open", func() *probe { return &probe{open: func() (Instance, error) { panic("boom") }} }, "panicked: boom", 0},
	} {
		for _, onError := range []OnError{OnErrorTempfail, OnErrorAccept, OnErrorReject, OnErrorQuarantine} {
			p, after := tt.filter(), &probe{name: "after", decide: answers(Verdict{})}
			var steps []Step
			r := NewChain(Link{Filter: p, OnError: onError}, Link{Filter: after}).Open(new(Session), func(s Step) { steps = append(steps, s) })
			tx := newTx(t)
			before := tx.text()
			d := r.Decide(t.Context(), StageMessage, tx)
			name := tt.name + ", on_error " + onError.String()
			if got := tx.text(); got != before {
				t.Errorf("%s: the transaction became\n%s", name, got)
			}
			want := map[OnError]Action{OnErrorTempfail: Tempfail, OnErrorAccept: Continue, OnErrorReject: Reject, OnErrorQuarantine: Quarantine}[onError]
			goesOn := want == Continue || want == Quarantine
			if d.Action != want || (after.asked == 1) != goesOn {
				t.Errorf("%s: %s, the next filter was asked %d times", name, d.Action, after.asked)
			}
			if s := steps[0]; s.Err == nil || !strings.Contains(s.Err.Error(), tt.err) || len(s.Edits) != 0 || s.Verdict.Action != want {
				t.Errorf("%s: observed %+v, want error with %q and no edits", name, s, tt.err)
			}
			if p.closed != tt.closed {
				t.Errorf("%s: closed %d times, want %d", name, p.closed, tt.closed)
			}
			r.Decide(t.Context(), StageReset, tx)
			if p.opened != 2 {
				t.Errorf("%s: opened %d times, the next stage wants a new instance", name, p.opened)
			}
			r.Close(t.Context())
			if tt.closed > 0 && p.closed != p.opened {
				t.Errorf("%s: opened %d times, closed %d times", name, p.opened, p.closed)
			}
		}
	}
}

// A filter that takes out every recipient may still refuse or drop the mail.
func TestNoRecipientLeft(t *testing.T) {
	for action, ok := range map[Action]bool{Continue: false, Skip: false, Quarantine: false, Accept: false,
		Reject: true, Tempfail: true, Discard: true, Disconnect: true} {
		var err error
		r := NewChain(Link{MayAccept: true, Filter: Func("f", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			for len(e.Edits.Recipients()) > 0 {
				_ = e.Edits.DeleteRecipient(0)
			}
			return Verdict{Action: action}, nil
		})}).Open(new(Session), func(s Step) { err = s.Err })
		r.Decide(t.Context(), StageData, newTx(t))
		if (err == nil) != ok {
			t.Errorf("%s with no recipient left: %v", action, err)
		}
		r.Decide(t.Context(), StageMail, &Transaction{})
		if err != nil {
			t.Errorf("%s before there was a recipient: %v", action, err)
		}
	}
}

func TestSkip(t *testing.T) {
	// The stages of a session with two transactions, and where a filter is asked that
	// says skip at the one marked.
	session := []Stage{StageConnect, StageHelo, StageMail, StageRcpt, StageMessage, StageMail, StageRcpt, StageReset, StageClose}
	for at, want := range map[int]string{
		-1: "connect helo mail rcpt message mail rcpt reset close",
		0:  "connect",
		1:  "connect helo",
		2:  "connect helo mail mail rcpt reset close",
		4:  "connect helo mail rcpt message mail rcpt reset close",
		6:  "connect helo mail rcpt message mail rcpt close",
	} {
		var asked []string
		step := 0
		r := NewChain(Link{Filter: Func("f", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			asked = append(asked, e.Stage.String())
			if step == at {
				return Verdict{Action: Skip}, nil
			}
			return Verdict{}, nil
		})}).Open(new(Session), nil)
		var tx *Transaction
		for step = range session {
			switch session[step] {
			case StageMail:
				tx = newTx(t)
			case StageClose:
				tx = nil
				r.Close(t.Context())
				continue
			}
			r.Decide(t.Context(), session[step], tx)
			if session[step] == StageMessage || session[step] == StageReset {
				r.EndTransaction()
			}
		}
		if got := strings.Join(asked, " "); got != want {
			t.Errorf("skip at step %d: asked at %s, want %s", at, got, want)
		}
	}
}

// Every filter that was asked is seen, with what it did; one that was not is not.
func TestObserverSeesEverything(t *testing.T) {
	broken := errors.New("broken")
	var steps []string
	chain := NewChain(
		Link{Filter: Func("edits", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			return Verdict{Reason: "fine"}, e.Edits.Tag("k", "v")
		})},
		Link{Filter: Func("fails", AllStages, func(context.Context, *Event) (Verdict, error) { return Verdict{}, broken }), OnError: OnErrorAccept},
		Link{Filter: Func("quiet", AllStages, answers(Verdict{}))},
		Link{Filter: Func("skips", AllStages, answers(Verdict{Action: Skip}))},
		Link{Filter: Func("elsewhere", StagesOf(StageData), answers(Verdict{Action: Reject}))},
		Link{Filter: Func("rejects", AllStages, answers(Verdict{Action: Reject, Reason: "spam"}))},
		Link{Filter: Func("late", AllStages, answers(Verdict{}))},
	)
	r := chain.Open(new(Session), func(s Step) {
		if s.Duration < 0 {
			t.Errorf("duration %s", s.Duration)
		}
		steps = append(steps, fmt.Sprintf("%s/%s: %s %q %v %v", s.Filter, s.Stage, s.Verdict.Action, s.Verdict.Reason, s.Edits, s.Err))
	})
	r.Decide(t.Context(), StageRcpt, newTx(t))
	r.Close(t.Context())
	r.Close(t.Context())
	equal(t, "steps", steps, []string{
		`edits/rcpt: continue "fine" [tag k=v] <nil>`,
		`fails/rcpt: continue "" [] broken`,
		`quiet/rcpt: continue "" [] <nil>`,
		`skips/rcpt: skip "" [] <nil>`,
		`rejects/rcpt: reject "spam" [] <nil>`,
		`edits/close: continue "" [] policy: not at this stage`,
		`fails/close: continue "" [] broken`,
		`quiet/close: continue "" [] <nil>`,
		`rejects/close: continue "" [] policy: verdict makes no sense: reject at stage close, where a filter only observes`,
		`late/close: continue "" [] <nil>`,
	})
}

func TestCloseClosesOnce(t *testing.T) {
	p := &probe{decide: answers(Verdict{}), close: func() { panic("never mind") }}
	idle := &probe{decide: answers(Verdict{})}
	r := NewChain(Link{Filter: p}, Link{Filter: onlyAt{idle, StageData}}).Open(new(Session), nil)
	r.Decide(t.Context(), StageConnect, nil)
	r.Close(t.Context())
	r.Close(t.Context())
	equal(t, "decision after Close", r.Decide(t.Context(), StageMail, newTx(t)), Decision{})
	equal(t, "opened, asked, closed", []int{p.opened, p.asked, p.closed}, []int{1, 2, 1})
	equal(t, "one that was never asked", []int{idle.opened, idle.asked, idle.closed}, []int{0, 0, 0})
}

// onlyAt is a filter with other stages.
type onlyAt struct {
	Filter
	stage Stage
}

func (o onlyAt) Stages() Stages { return StagesOf(o.stage) }

// A session that waits must not keep its last message, and a filter that keeps its
// Edits must not reach the next call with it.
func TestRunKeepsNothing(t *testing.T) {
	var kept *Edits
	r := NewChain(Link{Filter: Func("f", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		kept = e.Edits
		return Verdict{}, e.Edits.Tag("k", "v")
	})}).Open(new(Session), nil)
	tx := newTx(t)
	r.Decide(t.Context(), StageMessage, tx)
	if r.event != (Event{}) || r.edits.tx != nil || r.edits.message != nil || r.edits.rcpts != nil || r.edits.log != nil {
		t.Errorf("kept %+v, %+v", r.event, r.edits)
	}
	before := tx.text()
	for _, err := range []error{kept.Tag("late", "v"), kept.AddHeader(0, "X", "y"), kept.SetSender(smtp.Path{})} {
		if !errors.Is(err, ErrPhase) {
			t.Errorf("an edit after the call: %v", err)
		}
	}
	equal(t, "transaction", tx.text(), before)
}

func TestChainKeepsItsLinks(t *testing.T) {
	links := []Link{{Filter: Func("a", AllStages, answers(Verdict{}))}}
	c := NewChain(links...)
	links[0].Filter = Func("b", AllStages, answers(Verdict{Action: Reject}))
	equal(t, "decision", c.Open(new(Session), nil).Decide(t.Context(), StageData, newTx(t)), Decision{})
}

// Many sessions on one chain at once; each finds its own edits and nobody else's.
func TestChainHammer(t *testing.T) {
	var links []Link
	for i := range 3 {
		links = append(links, Link{OnError: OnErrorAccept, Filter: Func(fmt.Sprint("f", i), AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			id := e.Session.ID
			if e.Stage == StageData {
				panic(id)
			}
			err := e.Edits.Tag("id", id)
			if e.Stage == StageMessage {
				err = errors.Join(err, e.Edits.AddHeader(-1, "X-ID", id), e.Edits.SpliceBody(0, 0, []byte(id)),
					e.Edits.SetRecipient(0, smtp.Path{Local: id, Domain: e.Edits.Sender().Path.Domain}))
			}
			return Verdict{}, err
		})})
	}
	chain := NewChain(links...)
	raw := []byte(sample)
	shared := NewMessage(raw) // views of one message may be edited by many
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			s := &Session{ID: fmt.Sprint("s", n)}
			r := chain.Open(s, func(Step) {})
			defer r.Close(context.Background())
			r.Decide(context.Background(), StageConnect, nil)
			for range 30 {
				tx := newTx(t)
				tx.Message = shared
				for _, stage := range []Stage{StageMail, StageRcpt, StageData, StageHeaders, StageMessage} {
					r.Decide(context.Background(), stage, tx)
				}
				r.EndTransaction()
				want := strings.Repeat(s.ID, 3) + "hello\r\n"
				if got := string(tx.Message.Body.appendAll(nil)); got != want || tx.Message.Header.Count("X-ID") != 3 ||
					tx.Rcpts[0].Path.Local != s.ID || slices.ContainsFunc(tx.Tags, func(t Tag) bool { return t.Value != s.ID }) {
					t.Errorf("session %s: %s", s.ID, tx.text())
				}
			}
		})
	}
	wg.Wait()
	equal(t, "the message that they shared", string(shared.bytes()), sample)
	equal(t, "its octets", string(raw), sample)
}

func TestDecideAllocatesNothing(t *testing.T) {
	var links []Link
	for i := range 3 {
		links = append(links, Link{Filter: Func(fmt.Sprint(i), AllStages, answers(Verdict{}))})
	}
	tx := newTx(t)
	for name, observe := range map[string]func(Step){"alone": nil, "observed": func(Step) {}} {
		r := NewChain(links...).Open(new(Session), observe)
		n := testing.AllocsPerRun(100, func() {
			for _, stage := range allStages {
				r.Decide(t.Context(), stage, tx)
			}
		})
		if n > 0 {
			t.Errorf("%s: %v allocations at %d stages, want none", name, n, len(allStages))
		}
	}
}
