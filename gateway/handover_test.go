package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// refuseOne refuses one recipient.
func refuseOne(to string, err error) func(string, string) error {
	return func(_, got string) error {
		if got == to {
			return err
		}
		return nil
	}
}

// failTimes fails the first n calls with err.
func failTimes(n int, err error) func(string, string) error {
	return func(string, string) error {
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

// TestEnvelope: what the client hears at RCPT, and what the far side does.
func TestEnvelope(t *testing.T) {
	mailbox := smtp.Refuse(550, smtp.Enhanced{5, 2, 1}, "mailbox is closed")
	for _, c := range []struct {
		name   string
		begin  func(backend string) error
		rcpt   func(backend, to string) error
		accept bool // recipients are not asked for
		steps  []string
		heard  []string
	}{
		{name: "MAIL goes to the backend with the first RCPT",
			steps: []string{"MAIL FROM:<f@x.test> => 250"}},
		{name: "one message",
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250 2.1.5", "RCPT TO:<b@example.com> => 250", "DATA => 354", "hello\r\n. => 250 2.0.0 queued as 1"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "data <a@example.com> <b@example.com>"}},
		{name: "a refused MAIL is the answer to RCPT",
			begin: func(string) error { return smtp.Refuse(550, smtp.Enhanced{5, 1, 8}, "bad sender") },
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 550 5.1.8 bad sender", "DATA => 554 5.5.1"},
			heard: []string{"begin a <f@x.test>"}},
		{name: "no route",
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@elsewhere.test> => 550 5.7.1 ", "RCPT TO:<a@sub.example.com> => 550 5.7.1 ", "RCPT TO:<a%elsewhere.test@example.com> => 550 5.7.1 "}},
		{name: "a refusal passes as it is, and the transaction goes on",
			rcpt:  refuseOne("a@example.com", mailbox),
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 550 5.2.1 mailbox is closed", "RCPT TO:<b@example.com> => 250", "DATA => 354", "hello\r\n. => 250"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "data <b@example.com>"}},
		{name: "a 421 of the next hop speaks of its connection, not of ours",
			rcpt:  failTimes(1, smtp.Refuse(421, smtp.Enhanced{4, 3, 2}, "going down")),
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 451 4.3.2 going down", "RCPT TO:<a@example.com> => 250", "RSET => 250"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <a@example.com>", "abort"}},
		{name: "so does a 521",
			rcpt:  failTimes(1, smtp.Refuse(521, smtp.Enhanced{5, 3, 2}, "no mail here")),
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 550 5.3.2 no mail here", "NOOP => 250"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "abort"}},
		{name: "a refusal that is none is one",
			rcpt:  failTimes(1, smtp.Refuse(250, smtp.Enhanced{}, "odd")),
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 451 4.3.0"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "abort"}},
		{name: "a lost backend is 451, the next RCPT begins anew, the envelope is repeated",
			rcpt:  refuseOnce("b@example.com", io.ErrUnexpectedEOF),
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<b@example.com> => 451 4.4.2", "RCPT TO:<c@example.com> => 250", "DATA => 354", "hello\r\n. => 250"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "begin a <f@x.test>", "rcpt <c@example.com>",
				"abort", "begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <c@example.com>", "data <a@example.com> <c@example.com>"}},
		{name: "no backend",
			begin: func(string) error { return io.ErrUnexpectedEOF },
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 451 4.4.2", "NOOP => 250"},
			heard: []string{"begin a <f@x.test>"}},
		{name: "a second backend",
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<a@example.org> => 452 4.5.3", "RCPT TO:<b@example.com> => 250", "DATA => 354", "hello\r\n. => 250", "MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.org> => 250", "QUIT => 221"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "data <a@example.com> <b@example.com>", "begin b <f@x.test>", "rcpt <a@example.org>", "abort"}},
		{name: "a backend that took nobody does not bind the message",
			rcpt:  refuseOne("a@example.com", mailbox),
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 550", "RCPT TO:<a@example.org> => 250", "DATA => 354", "hello\r\n. => 250"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "abort", "begin b <f@x.test>", "rcpt <a@example.org>", "data <a@example.org>"}},
		{name: "RSET gives the backend back",
			steps: []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RSET => 250", "MAIL FROM:<g@x.test> => 250", "RCPT TO:<a@example.com> => 250", "EHLO again => 250"},
			heard: []string{"begin a <f@x.test>", "rcpt <a@example.com>", "abort", "begin a <g@x.test>", "rcpt <a@example.com>", "abort"}},
		{name: "postmaster needs no domain",
			steps: []string{"MAIL FROM:<> => 250", "RCPT TO:<postmaster> => 250", "DATA => 354", "hello\r\n. => 250"},
			heard: []string{"begin a <>", "rcpt <postmaster>", "data <postmaster>"}},
		{name: "recipients are not asked for",
			accept: true,
			steps:  []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<b@example.com> => 250", "DATA => 354", "hello\r\n. => 250"},
			heard:  []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "data <a@example.com> <b@example.com>"}},
		{name: "not asked for and then unknown: the answer to the message",
			accept: true,
			rcpt:   refuseOne("a@example.com", mailbox),
			steps:  []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "DATA => 354", "hello\r\n. => 550 5.2.1 mailbox is closed", "NOOP => 250"},
			heard:  []string{"begin a <f@x.test>", "rcpt <a@example.com>", "abort"}},
		{name: "all unknown: the same",
			accept: true,
			rcpt:   func(string, string) error { return mailbox },
			steps:  []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<b@example.com> => 250", "DATA => 354", "hello\r\n. => 550 5.2.1 mailbox is closed"},
			heard:  []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "abort"}},
		{name: "one unknown: nobody gets it",
			accept: true,
			rcpt:   refuseOne("b@example.com", mailbox),
			steps:  []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<b@example.com> => 250", "DATA => 354", "hello\r\n. => 451 4.3.0 the envelope"},
			heard:  []string{"begin a <f@x.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "abort"}},
		{name: "a backend that is gone is asked for once, not for each recipient",
			accept: true,
			begin:  func(string) error { return smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "unreachable") },
			steps:  []string{"MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<b@example.com> => 250", "DATA => 354", "hello\r\n. => 451 4.4.1 unreachable"},
			heard:  []string{"begin a <f@x.test>"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{}
			r.far.begin, r.far.rcpt = c.begin, c.rcpt
			if c.accept {
				r.routes = []Route{{Domains: []string{"example.com"}, Backend: "a", Recipients: Recipients{Accept: true}}}
			}
			p := r.start(t).hello(t)
			p.talk(c.steps...)
			p.nc.Close()
			r.stop(t)
			is(t, "far side", r.far.told(), c.heard)
		})
	}
}

// refuseOnce refuses one recipient the first time.
func refuseOnce(to string, err error) func(string, string) error {
	done := false
	return func(_, got string) error {
		if got == to && !done {
			done = true
			return err
		}
		return nil
	}
}

// TestOutcome: one answer of many, and what is counted.
func TestOutcome(t *testing.T) {
	reply := func(code int) *smtp.Reply { return smtp.Refuse(code, smtp.Enhanced{code / 100, 9, 9}, "word") }
	for _, c := range []struct {
		name    string
		replies []int // of a and b
		err     error
		want    string
		counts  [3]int64 // relayed, refused, duplicates
	}{
		{"taken", []int{250, 250}, nil, "250 2.9.9 word", [3]int64{1, 0, 0}},
		{"all refused", []int{554, 550}, nil, "554 5.9.9 word", [3]int64{0, 1, 0}},
		{"all deferred", []int{452, 450}, nil, "452 4.9.9 word", [3]int64{0, 1, 0}},
		{"all say 421: our connection stays", []int{421, 421}, nil, "451 4.9.9 word", [3]int64{0, 1, 0}},
		{"one taken, one refused", []int{250, 550}, nil, "451 4.3.0 not all", [3]int64{0, 1, 1}},
		{"one taken, one deferred", []int{450, 250}, nil, "451 4.3.0 not all", [3]int64{0, 1, 1}},
		{"one deferred, one refused: nobody has it", []int{450, 550}, nil, "451 4.3.0 not all", [3]int64{0, 1, 0}},
		{"an answer is missing", []int{250}, nil, "451 4.3.0", [3]int64{0, 1, 0}},
		{"no answer", nil, nil, "451 4.3.0", [3]int64{0, 1, 0}},
		{"354 is no answer", []int{354, 354}, nil, "451 4.3.0", [3]int64{0, 1, 0}},
		{"DATA refused", nil, smtp.Refuse(554, smtp.Enhanced{5, 6, 0}, "not that"), "554 5.6.0 not that", [3]int64{0, 1, 0}},
		{"lost in the midst", nil, io.ErrUnexpectedEOF, "451 4.4.2", [3]int64{0, 1, 0}},
		{"lost with 421", nil, reply(421), "451 4.9.9", [3]int64{0, 1, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{}
			r.far.data = func([]string, []byte) ([]*smtp.Reply, error) {
				var replies []*smtp.Reply
				for _, code := range c.replies {
					replies = append(replies, reply(code))
				}
				return replies, c.err
			}
			p := r.start(t).hello(t)
			p.begin("a@example.com", "b@example.com")
			if got := p.data(testMessage); !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			p.talk("NOOP => 250")
			s := &r.gw.Stats
			if got := [3]int64{s.Relayed.Load(), s.Refused.Load(), s.Duplicates.Load()}; got != c.counts {
				t.Errorf("relayed, refused, duplicates: got %v, want %v", got, c.counts)
			}
		})
	}
}

// edit is a filter that makes one edit at a stage. Where only is not empty, it is made
// when the candidate is this one.
func edit(stage policy.Stage, only string, f func(*policy.Edits) error) policy.Link {
	return policy.Link{Filter: policy.Func("editor", policy.StagesOf(stage), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		rcpts := e.Edits.Recipients()
		if only != "" && rcpts[len(rcpts)-1].Path != path(only) {
			return policy.Verdict{}, nil
		}
		return policy.Verdict{}, f(e.Edits)
	})}
}

func add(to string) func(*policy.Edits) error {
	return func(e *policy.Edits) error { return e.AddRecipient(path(to)) }
}

func set(i int, to string) func(*policy.Edits) error {
	return func(e *policy.Edits) error {
		at := i
		if at < 0 {
			at += len(e.Recipients())
		}
		return e.SetRecipient(at, path(to))
	}
}

// TestChangedEnvelope: filters change the envelope, the client names a@example.com and
// perhaps b@example.com.
func TestChangedEnvelope(t *testing.T) {
	refused := refuseOne("x@example.com", smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no x"))
	deferred := refuseOne("x@example.com", smtp.Refuse(450, smtp.Enhanced{4, 2, 1}, "no x now"))
	ab := []string{"a@example.com", "b@example.com"}
	rcpt, msg, headers := policy.StageRcpt, policy.StageMessage, policy.StageHeaders
	one := func(rest ...string) []string {
		return append([]string{"begin a <from@client.test>", "rcpt <a@example.com>"}, rest...)
	}
	for _, c := range []struct {
		name    string
		link    policy.Link
		onError policy.OnError
		rcpt    func(string, string) error
		to      []string
		want    string // the answer to the message, or to a RCPT that is not taken
		heard   []string
	}{
		{"added at message: Abort, and again before the data", edit(msg, "", add("x@example.com")), 0, nil, nil, "250",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <x@example.com>", "data <a@example.com> <x@example.com>")},
		{"added at headers", edit(headers, "", add("x@example.com")), 0, nil, nil, "250",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <x@example.com>", "data <a@example.com> <x@example.com>")},
		{"added at rcpt stands before the candidate", edit(rcpt, "", add("x@example.com")), 0, nil, nil, "250",
			one("abort", "begin a <from@client.test>", "rcpt <x@example.com>", "rcpt <a@example.com>", "data <x@example.com> <a@example.com>")},
		{"sender changed", edit(msg, "", func(e *policy.Edits) error { return e.SetSender(path("other@client.test")) }), 0, nil, nil, "250",
			one("abort", "begin a <other@client.test>", "rcpt <a@example.com>", "data <a@example.com>")},
		{"sender changed before the backend knows", edit(policy.StageMail, "", func(e *policy.Edits) error { return e.SetSender(smtp.Path{}) }), 0, nil, nil, "250",
			[]string{"begin a <>", "rcpt <a@example.com>", "data <a@example.com>"}},
		{"taken out", edit(msg, "", func(e *policy.Edits) error { return e.DeleteRecipient(0) }), 0, nil, ab, "250",
			[]string{"begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "abort", "begin a <from@client.test>", "rcpt <b@example.com>", "data <b@example.com>"}},
		{"candidate changed", edit(rcpt, "", set(-1, "x@example.com")), 0, nil, nil, "250",
			[]string{"begin a <from@client.test>", "rcpt <x@example.com>", "data <x@example.com>"}},
		{"changed to another backend", edit(msg, "", set(0, "x@example.org")), 0, nil, nil, "250",
			one("abort", "begin b <from@client.test>", "rcpt <x@example.org>", "data <x@example.org>")},

		{"added and refused: tempfail", edit(msg, "", add("x@example.com")), policy.OnErrorTempfail, refused, nil, "451 4.3.0 message cannot be checked",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <x@example.com>", "abort")},
		{"added and refused: reject", edit(msg, "", add("x@example.com")), policy.OnErrorReject, refused, nil, "554 5.3.0 message cannot be checked",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <x@example.com>", "abort")},
		{"added and deferred: to reject would be too much", edit(msg, "", add("x@example.com")), policy.OnErrorReject, deferred, nil, "450 4.2.1 no x now",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <x@example.com>", "abort")},
		{"added and refused: quarantine", edit(msg, "", add("x@example.com")), policy.OnErrorQuarantine, refused, nil, "451 4.3.0 message cannot be held",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <x@example.com>", "abort")},
		{"added and refused: accept", edit(msg, "", add("x@example.com")), policy.OnErrorAccept, refused, nil, "250",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <x@example.com>", "data <a@example.com>")},
		{"added, and the backend is lost: nobody's failure, and no mail for a alone", edit(msg, "", add("x@example.com")), policy.OnErrorAccept,
			refuseOne("x@example.com", io.ErrUnexpectedEOF), ab, "451 4.4.2",
			[]string{"begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "abort", "begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "rcpt <x@example.com>"}},
		{"added where no mail may go: no relay through filters", edit(msg, "", add("x@elsewhere.test")), policy.OnErrorAccept, nil, nil, "250",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "data <a@example.com>")},
		{"the same: tempfail", edit(msg, "", add("x@elsewhere.test")), policy.OnErrorTempfail, nil, nil, "451 4.3.0",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "abort")},
		{"added first, for another backend: the client's own decide", edit(rcpt, "", add("x@example.org")), policy.OnErrorAccept, nil, nil, "250",
			one("abort", "begin a <from@client.test>", "rcpt <a@example.com>", "data <a@example.com>")},

		{"changed and refused: tempfail", edit(msg, "", set(0, "x@example.com")), policy.OnErrorTempfail, refused, nil, "451 4.3.0",
			one("abort", "begin a <from@client.test>", "rcpt <x@example.com>", "abort")},
		{"changed and refused: accept is as if it had not been changed", edit(msg, "", set(0, "x@example.com")), policy.OnErrorAccept, refused, nil, "250",
			one("abort", "begin a <from@client.test>", "rcpt <x@example.com>", "rcpt <a@example.com>", "data <a@example.com>")},
		{"two changed to the same", edit(msg, "", func(e *policy.Edits) error {
			return errors.Join(e.SetRecipient(0, path("x@example.com")), e.SetRecipient(1, path("x@example.com")))
		}), policy.OnErrorAccept, refused, ab, "250",
			[]string{"begin a <from@client.test>", "rcpt <a@example.com>", "rcpt <b@example.com>", "abort", "begin a <from@client.test>",
				"rcpt <x@example.com>", "rcpt <b@example.com>", "rcpt <x@example.com>", "rcpt <a@example.com>", "data <b@example.com> <a@example.com>"}},
		{"taken out and another added, refused: no mail is lost", edit(msg, "", func(e *policy.Edits) error {
			return errors.Join(e.DeleteRecipient(0), e.AddRecipient(path("x@example.com")))
		}), policy.OnErrorAccept, refused, nil, "451 4.3.0 no recipient is left",
			one("abort", "begin a <from@client.test>", "rcpt <x@example.com>", "abort")},
		{"candidate changed and refused: the answer to RCPT", edit(rcpt, "", set(-1, "x@example.com")), policy.OnErrorTempfail, refused, nil, "rcpt 451 4.3.0",
			[]string{"begin a <from@client.test>", "rcpt <x@example.com>", "abort"}},
		{"candidate changed and refused: accept", edit(rcpt, "", set(-1, "x@example.com")), policy.OnErrorAccept, refused, nil, "250",
			[]string{"begin a <from@client.test>", "rcpt <x@example.com>", "rcpt <a@example.com>", "data <a@example.com>"}},
		{"candidate changed to where no mail may go", edit(rcpt, "", set(-1, "x@elsewhere.test")), policy.OnErrorReject, nil, nil, "rcpt 554 5.3.0", nil},
		{"an unrouted candidate that a filter sends home", edit(rcpt, "", set(-1, "x@example.com")), 0, nil, []string{"a@elsewhere.test"}, "250",
			[]string{"begin a <from@client.test>", "rcpt <x@example.com>", "data <x@example.com>"}},
		{"the others taken out with a candidate that is refused", edit(rcpt, "x@example.com", func(e *policy.Edits) error { return e.DeleteRecipient(0) }),
			0, refused, []string{"a@example.com", "-x@example.com"}, "451 4.3.0 no recipient is left", one("rcpt <x@example.com>", "abort")},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.link.OnError = c.onError
			r := &rig{links: []policy.Link{c.link}}
			r.far.rcpt = c.rcpt
			p := r.start(t).hello(t)
			got := p.attempt(c.to)
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			p.talk("NOOP => 250", "QUIT => 221", " => closed")
			r.stop(t)
			is(t, "far side", r.far.told(), c.heard)
		})
	}
}

// TestRelayGrant: whom a filter names passes the listener's rule like whom the client names,
// unless the filter may relay. What another filter makes of such a recipient is that one's.
func TestRelayGrant(t *testing.T) {
	// The second leads on from a backend that trusts us.
	for _, elsewhere := range []string{"x@elsewhere.test", "x%elsewhere.test@example.com"} {
		testRelayGrant(t, elsewhere)
	}
	// A filter that writes what the client named anew says no more than the client did, and
	// one whose failure is overlooked leaves it as it was.
	for _, to := range []string{"x%elsewhere.test@example.com", "x@none.test"} {
		link := edit(policy.StageRcpt, "", set(-1, to))
		link.OnError = policy.OnErrorAccept
		r := &rig{links: []policy.Link{link}}
		p := r.start(t).hello(t)
		if got := p.attempt([]string{"x%elsewhere.test@example.com"}); !strings.HasPrefix(got, "rcpt 550 5.7.1") {
			t.Errorf("changed to %s: got %q", to, got)
		}
		_, relays := r.gw.PublicBackend(path("x%elsewhere.test@example.com"))
		if _, ok := r.gw.PublicBackend(path("x@example.com")); !ok || relays {
			t.Errorf("a stranger's mail: to x %v, and on to elsewhere %v", ok, relays)
		}
		p.talk("QUIT => 221", " => closed")
		r.stop(t)
	}
}

func testRelayGrant(t *testing.T, elsewhere string) {
	for _, stage := range []policy.Stage{policy.StageRcpt, policy.StageMessage} {
		for _, change := range []func(*policy.Edits) error{add(elsewhere), set(-1, elsewhere)} {
			for _, tt := range []struct {
				first, second bool // may relay
				two           bool
				want          string
			}{{false, false, false, "451 4.3.0"}, {true, false, false, "250"}, {true, false, true, "451 4.3.0"}, {false, true, true, "250"}} {
				links := []policy.Link{edit(stage, "", change)}
				links[0].MayRelay = tt.first
				if tt.two {
					again := edit(stage, "", func(e *policy.Edits) error {
						for i, r := range e.Recipients() {
							if r.Path == path(elsewhere) {
								return e.SetRecipient(i, path("y@elsewhere.test"))
							}
						}
						return nil
					})
					again.MayRelay = tt.second
					links = append(links, again)
				}
				r := &rig{links: links, routes: []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "a"}}}
				p := r.start(t).hello(t)
				if got := strings.TrimPrefix(p.attempt(nil), "rcpt "); !strings.HasPrefix(got, tt.want) {
					t.Errorf("at %s, %+v: got %q", stage, tt, got)
				}
				p.talk("QUIT => 221", " => closed")
				r.stop(t)
			}
		}
	}
}

// attempt sends a message and returns the last reply. A recipient behind "-" is one that
// is refused.
func (p *peer) attempt(to []string) string {
	p.t.Helper()
	if to == nil {
		to = []string{"a@example.com"}
	}
	p.talk("MAIL FROM:<from@client.test> => 250")
	for _, rcpt := range to {
		rcpt, expected := strings.CutPrefix(rcpt, "-")
		p.send("RCPT TO:<" + rcpt + ">\r\n")
		if got := p.reply(); got[0] != '2' && !expected {
			return "rcpt " + got
		}
	}
	return p.data(testMessage)
}

// TestSlowClient: a backend is held for five seconds of the client's time, and the
// envelope is repeated when the message is complete.
func TestSlowClient(t *testing.T) {
	begin := []string{"begin a <from@client.test>", "rcpt <a@example.com>"}
	for _, c := range []struct {
		name  string
		run   func(t *testing.T, p *peer, pause func(time.Duration, ...string))
		heard []string // at the end, since the last pause
	}{
		{"within the time", func(t *testing.T, p *peer, pause func(time.Duration, ...string)) {
			p.begin("a@example.com")
			pause(2*time.Second, begin...)
			p.talk("DATA => 354")
			pause(2900 * time.Millisecond)
			p.talk(testMessage + ". => 250")
		}, []string{"data <a@example.com>"}},
		{"slow in DATA", func(t *testing.T, p *peer, pause func(time.Duration, ...string)) {
			p.begin("a@example.com")
			p.talk("DATA => 354")
			p.send("Subject: slow\r\n")
			pause(4900*time.Millisecond, begin...)
			p.send("From: a@client.test\r\n\r\n")
			pause(time.Second, "abort")
			p.talk("done.\r\n. => 250")
		}, append(begin, "data <a@example.com>")},
		{"the next message has all the time again", func(t *testing.T, p *peer, pause func(time.Duration, ...string)) {
			p.begin("a@example.com")
			pause(6*time.Second, withAbort(begin)...)
			p.talk("DATA => 354", testMessage+". => 250")
			pause(time.Minute, append(begin, "data <a@example.com>")...)
			p.begin("a@example.com")
			pause(4900*time.Millisecond, begin...)
			p.talk("DATA => 354", testMessage+". => 250")
		}, []string{"data <a@example.com>"}},
		{"slow before DATA", func(t *testing.T, p *peer, pause func(time.Duration, ...string)) {
			p.begin("a@example.com")
			pause(6*time.Second, withAbort(begin)...)
			p.talk("DATA => 354", testMessage+". => 250")
		}, append(begin, "data <a@example.com>")},
		{"a refused recipient holds no backend either", func(t *testing.T, p *peer, pause func(time.Duration, ...string)) {
			p.talk("MAIL FROM:<from@client.test> => 250", "RCPT TO:<x@example.com> => 550")
			pause(6*time.Second, "begin a <from@client.test>", "rcpt <x@example.com>", "abort")
			p.talk("RCPT TO:<a@example.com> => 250", "DATA => 354", testMessage+". => 250")
		}, append(begin, "data <a@example.com>")},
		{"many recipients, each in time, do not hold it for ever", func(t *testing.T, p *peer, pause func(time.Duration, ...string)) {
			p.begin("a@example.com")
			pause(4*time.Second, begin...)
			p.talk("RCPT TO:<a@example.com> => 250")
			pause(4*time.Second, "rcpt <a@example.com>", "abort")
			p.talk("RCPT TO:<a@example.com> => 250") // from now on only for a moment
			pause(200*time.Millisecond, begin...)
			p.talk("RCPT TO:<a@example.com> => 250")
			pause(300*time.Millisecond, "rcpt <a@example.com>", "abort")
			p.talk("RSET => 250")
		}, nil},
		{"a refusal when it is repeated", func(t *testing.T, p *peer, pause func(time.Duration, ...string)) {
			p.begin("once@example.com")
			pause(6*time.Second, "begin a <from@client.test>", "rcpt <once@example.com>", "abort")
			p.talk("DATA => 354", testMessage+". => 450 4.2.0 not twice", "NOOP => 250")
		}, []string{"begin a <from@client.test>", "rcpt <once@example.com>", "abort"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &rig{}
				asked := 0
				r.far.rcpt = func(_, to string) error {
					switch to {
					case "x@example.com":
						return smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no x")
					case "once@example.com":
						if asked++; asked > 1 {
							return smtp.Refuse(450, smtp.Enhanced{4, 2, 0}, "not twice")
						}
					}
					return nil
				}
				r.build(t)
				p, wait := r.piped(t)
				p.talk(" => 220", "EHLO client.test => 250")
				c.run(t, p, func(d time.Duration, heard ...string) {
					t.Helper()
					<-time.After(d)
					synctest.Wait()
					is(t, "far side after the pause", r.far.told(), heard)
				})
				synctest.Wait()
				is(t, "far side at the end", r.far.told(), c.heard)
				wait()
				r.stop(t)
			})
		})
	}
}

func withAbort(begin []string) []string { return append(begin[:len(begin):len(begin)], "abort") }

// TestLateTimer: a timer that fires while a recipient is asked for must not take the
// backend away behind it.
func TestLateTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &far{}
		h := &handover{}
		ask := func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if err := h.offer(t.Context(), f, "a", smtp.Sender{}, smtp.Forwarded{}, smtp.Recipient{Path: path("a@example.com")}); err != nil {
				t.Error(err)
			}
		}
		ask()
		f.rcpt = func(string, string) error { <-time.After(time.Minute); return nil } // the backend is slow
		<-time.After(4 * time.Second)
		ask()
		h.expire() // what a timer does that was on its way
		is(t, "far side", f.told(), []string{"begin a <>", "rcpt <a@example.com>", "rcpt <a@example.com>"})
		h.abort()
		if f.open != 0 || !h.since.IsZero() {
			t.Errorf("after abort: %d open, time runs since %v", f.open, h.since)
		}
	})
}

// TestClientDrops: a client that goes away in the midst of a message leaves nothing.
func TestClientDrops(t *testing.T) {
	for _, c := range []struct{ name, sent string }{
		{"before DATA", ""},
		{"in the header", "DATA\r\nSubject: x\r\n"},
		{"in the body", "DATA\r\nSubject: x\r\n\r\nhello\r\n"},
		{"before the last line end", "DATA\r\nSubject: x\r\n\r\nhello\r\n.\r"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := (&rig{}).start(t)
			p := r.hello(t)
			p.begin("a@example.com")
			p.send(c.sent)
			p.nc.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, p.r)
			r.stop(t)
			is(t, "far side", r.far.told(), []string{"begin a <from@client.test>", "rcpt <a@example.com>", "abort"})
			if n := r.gw.Stats.Refused.Load(); n != 0 {
				t.Errorf("refused: got %d, want 0: the client heard nothing", n)
			}
		})
	}
}
