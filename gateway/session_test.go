package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// TestVerdicts: every verdict at every stage. The client sends one message to
// a@example.com and b@example.com, and stops where it is refused.
func TestVerdicts(t *testing.T) {
	reply := func(code int, enh smtp.Enhanced) *smtp.Reply { return smtp.Refuse(code, enh, "word") }
	stages := []policy.Stage{policy.StageConnect, policy.StageHelo, policy.StageMail, policy.StageRcpt, policy.StageData, policy.StageHeaders, policy.StageMessage}
	names := []string{"connect", "helo", "mail", "rcpt", "data", "headers", "message"}
	all := func(s string) []string { return []string{s, s, s, s, s, s, s} }
	for _, c := range []struct {
		name    string
		verdict policy.Verdict
		want    []string // by stage: the first answer that is not the usual one, and whether the client may go on
		heard   string   // of what reaches the far side at most
	}{
		{"reject", policy.Verdict{Action: policy.Reject}, []string{"550 5.7.1 refused by policy, closed", "550 5.7.1 refused by policy", "550 5.7.1 refused by policy",
			"550 5.7.1 refused by policy", "550 5.7.1 refused by policy", "550 5.7.1 refused by policy", "550 5.7.1 refused by policy"}, "rcpt"},
		{"554 at the beginning ends it", policy.Verdict{Action: policy.Reject, Reply: reply(554, smtp.Enhanced{5, 7, 7})}, []string{"554 5.7.7 word, closed", "554 5.7.7 word, closed",
			"554 5.7.7 word", "554 5.7.7 word", "554 5.7.7 word", "554 5.7.7 word", "554 5.7.7 word"}, "rcpt"},
		{"tempfail", policy.Verdict{Action: policy.Tempfail}, []string{"421 4.7.1 deferred by policy, try again later, closed", "451 4.7.1 deferred by policy, try again later", "451 4.7.1 deferred by policy, try again later",
			"451 4.7.1 deferred by policy, try again later", "451 4.7.1 deferred by policy, try again later", "451 4.7.1 deferred by policy, try again later", "451 4.7.1 deferred by policy, try again later"}, "rcpt"},
		{"disconnect with 421", policy.Verdict{Action: policy.Disconnect}, all("421 4.7.0 closing connection, closed"), "rcpt"},
		{"disconnect with 5xx", policy.Verdict{Action: policy.Disconnect, Reply: reply(550, smtp.Enhanced{5, 7, 0})}, all("550 5.7.0 word, closed"), "rcpt"},
		{"discard", policy.Verdict{Action: policy.Discard}, []string{"421 4.3.0 message cannot be checked now, try again later, closed", "451 4.3.0 message cannot be checked now, try again later", // no mail there
			"taken", "taken", "taken", "taken", "taken"}, "rcpt"},
		{"quarantine", policy.Verdict{Action: policy.Quarantine}, []string{"421 4.3.0 message cannot be checked now, try again later, closed", "451 4.3.0 message cannot be checked now, try again later",
			"451 4.3.0 message cannot be held for inspection now, try again later", "451 4.3.0 message cannot be held for inspection now, try again later", "451 4.3.0 message cannot be held for inspection now, try again later",
			"451 4.3.0 message cannot be held for inspection now, try again later", "451 4.3.0 message cannot be held for inspection now, try again later"}, "rcpt"},
		{"continue", policy.Verdict{}, all("taken"), "data"},
		{"skip", policy.Verdict{Action: policy.Skip}, all("taken"), "data"},
		{"accept", policy.Verdict{Action: policy.Accept}, all("taken"), "data"},
	} {
		for i, stage := range stages {
			t.Run(c.name+" at "+names[i], func(t *testing.T) {
				r := &rig{links: []policy.Link{filter("judge", stage, func(*policy.Event) policy.Verdict { return c.verdict })}}
				p := r.start(t).dial(t, "mx")
				if got := p.wholeMessage(); got != c.want[i] {
					t.Errorf("got %q, want %q", got, c.want[i])
				}
				p.nc.Close()
				r.stop(t)
				if heard := strings.Join(r.far.told(), "; "); strings.Contains(heard, "data") != (c.heard == "data") {
					t.Errorf("far side: %q", heard)
				}
				discarded := c.name == "discard" && stage >= policy.StageMail
				if got := r.gw.Stats.Discarded.Load() == 1; got != discarded {
					t.Errorf("discarded: got %v, want %v", got, discarded)
				}
			})
		}
	}
}

// wholeMessage sends a message and returns the first refusal, or "taken".
func (p *peer) wholeMessage() string {
	for _, step := range []string{"", "EHLO client.test", "MAIL FROM:<from@client.test>", "RCPT TO:<a@example.com>", "RCPT TO:<b@example.com>", "DATA", testMessage + "."} {
		if step != "" {
			p.send(step + "\r\n")
		}
		got := p.reply()
		if got[0] == '2' || got[0] == '3' {
			continue
		}
		// The client may go on if it is answered.
		p.nc.Write([]byte("NOOP\r\n"))
		if next := p.reply(); next != "250 2.0.0 OK" {
			got += ", " + next
		}
		return got
	}
	return "taken"
}

// TestDiscardOneRecipient: at rcpt the recipient alone is dropped.
func TestDiscardOneRecipient(t *testing.T) {
	r := (&rig{links: []policy.Link{filter("judge", policy.StageRcpt, func(e *policy.Event) policy.Verdict {
		rcpts := e.Edits.Recipients()
		if rcpts[len(rcpts)-1].Path.Local == "a" {
			return policy.Verdict{Action: policy.Discard}
		}
		return policy.Verdict{}
	})}}).start(t)
	p := r.hello(t)
	p.begin("a@example.com", "b@example.com", "a@example.com")
	if got := p.data(testMessage); got != "250 2.0.0 queued as 1" {
		t.Errorf("got %q", got)
	}
	p.talk("MAIL FROM:<> => 250", "RCPT TO:<a@example.com> => 250")
	if got := p.data(testMessage); got != "250 2.6.0 message accepted" {
		t.Errorf("got %q", got)
	}
	p.talk("QUIT => 221")
	r.stop(t)
	is(t, "far side", r.far.told(), []string{"begin a <from@client.test>", "rcpt <b@example.com>", "data <b@example.com>"})
}

// TestDiscardGivesBack: what nobody will get holds no backend.
func TestDiscardGivesBack(t *testing.T) {
	r := (&rig{links: []policy.Link{filter("judge", policy.StageHeaders, func(*policy.Event) policy.Verdict {
		return policy.Verdict{Action: policy.Discard}
	})}}).start(t)
	given := make(chan struct{})
	r.gw.opts.Observe = func(*policy.Session, policy.Step) { close(given) }
	p := r.hello(t)
	p.begin("a@example.com")
	p.talk("DATA => 354")
	p.send("Subject: x\r\n\r\n")
	<-given
	for len(r.far.soFar()) < 3 { // the observer is told just before
		p.send("more\r\n")
	}
	p.talk(". => 250 2.6.0")
	is(t, "far side", r.far.told(), []string{"begin a <from@client.test>", "rcpt <a@example.com>", "abort"})
}

// soFar is told without forgetting.
func (f *far) soFar() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard
}

// TestSkip: a filter that skips is asked again in the next transaction.
func TestSkip(t *testing.T) {
	asked := 0
	r := (&rig{links: []policy.Link{{Filter: policy.Func("skipper", policy.StagesOf(policy.StageMail, policy.StageRcpt, policy.StageMessage),
		func(context.Context, *policy.Event) (policy.Verdict, error) {
			asked++
			return policy.Verdict{Action: policy.Skip}, nil
		})}}}).start(t)
	p := r.hello(t)
	for range 2 {
		p.begin("a@example.com")
		p.data(testMessage)
	}
	p.begin("a@example.com")
	p.talk("RSET => 250")
	p.begin("a@example.com")
	p.talk("QUIT => 221", " => closed")
	r.stop(t)
	if asked != 4 {
		t.Errorf("asked %d times, want once in each of 4 transactions", asked)
	}
}

// TestHeloWithinTransaction: EHLO may come at any time. A refused one changes nothing; and
// the stage belongs to the session, so that a filter that skips there skips for good.
func TestHeloWithinTransaction(t *testing.T) {
	var withTx []bool
	asked := 0
	r := (&rig{links: []policy.Link{
		filter("judge", policy.StageHelo, func(e *policy.Event) policy.Verdict {
			withTx = append(withTx, e.Tx != nil)
			if e.Session.Helo == "bad" {
				return policy.Verdict{Action: policy.Reject}
			}
			return policy.Verdict{}
		}),
		{Filter: policy.Func("skipper", policy.StagesOf(policy.StageHelo, policy.StageMail), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
			if e.Stage == policy.StageMail {
				asked++
			} else if e.Session.Helo == "skip" {
				return policy.Verdict{Action: policy.Skip}, nil
			}
			return policy.Verdict{}, nil
		})}}}).start(t)
	p := r.hello(t)
	p.begin("a@example.com")
	p.talk("EHLO bad => 550 5.7.1")
	if got := p.data(testMessage); got != "250 2.0.0 queued as 1" {
		t.Errorf("got %q", got)
	}
	if m := string(r.far.last()); !strings.HasPrefix(m, "Received: from client.test ") {
		t.Errorf("message begins %.80q, want the name that was taken", m)
	}
	p.begin("a@example.com")
	p.talk("EHLO skip => 250", "MAIL FROM:<> => 250", "QUIT => 221")
	r.stop(t)
	if withTx[0] || withTx[1] || withTx[2] {
		t.Errorf("helo within a transaction: %v, want none", withTx)
	}
	if asked != 2 {
		t.Errorf("skipper was asked %d times at mail, want 2: it skips for good", asked)
	}
}

// TestFilterFails: an error and a panic are answered by on_error, and the session goes
// on.
func TestFilterFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		onError policy.OnError
		fail    func() error
		want    string
	}{
		{"error, tempfail", policy.OnErrorTempfail, func() error { return errors.New("broken") }, "451 4.3.0 message cannot be checked"},
		{"error, accept", policy.OnErrorAccept, func() error { return errors.New("broken") }, "250 2.0.0"},
		{"panic, reject", policy.OnErrorReject, func() error { panic("broken") }, "554 5.3.0"},
		{"panic, quarantine", policy.OnErrorQuarantine, func() error { panic("broken") }, "451 4.3.0 message cannot be held"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := (&rig{links: []policy.Link{{OnError: c.onError, Filter: policy.Func("faulty", policy.StagesOf(policy.StageMessage),
				func(context.Context, *policy.Event) (policy.Verdict, error) { return policy.Verdict{}, c.fail() })}}}).start(t)
			p := r.hello(t)
			p.begin("a@example.com")
			if got := p.data(testMessage); !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			p.talk("NOOP => 250")
			if !strings.Contains(r.log.String(), "level=ERROR msg=\"filter failed\"") {
				t.Errorf("no error in the log:\n%s", r.log.String())
			}
		})
	}
}

// TestObserverPanics: a fault of ours ends one connection, and leaves nothing behind.
func TestObserverPanics(t *testing.T) {
	for _, stage := range []policy.Stage{policy.StageConnect, policy.StageMessage, policy.StageClose} {
		t.Run(stage.String(), func(t *testing.T) {
			released := 0
			r := &rig{links: []policy.Link{filter("judge", stage, func(*policy.Event) policy.Verdict { return policy.Verdict{} })}}
			r.options = func(o *Options) {
				o.Observe = func(_ *policy.Session, s policy.Step) {
					if s.Stage == stage {
						panic("fault of the observer")
					}
				}
			}
			r.start(t)
			r.gw.Reload(r.rules(func() { released++ }))
			p := r.dial(t, "mx")
			got := p.wholeMessage()
			if want := "421 4.3.0 internal error, try again later, closed"; got != want && stage != policy.StageClose {
				t.Errorf("got %q, want %q", got, want)
			}
			p.nc.Close()
			r.stop(t)
			if released != 1 {
				t.Errorf("rules released %d times, want 1", released)
			}
		})
	}
}

// TestEditsArrive: what filters change of the content arrives, and the rest as it came.
func TestEditsArrive(t *testing.T) {
	in := "From: a@client.test\r\nSubject: odd  \r\n\tfolding\r\nX-Spam: 1\r\n\r\nfirst\r\n.dot\r\nthird\r\n"
	r := (&rig{links: []policy.Link{
		edit(policy.StageHeaders, "", func(e *policy.Edits) error {
			return errors.Join(e.AddHeader(0, "X-First", "one"), e.DeleteHeader(e.Message().Header.Find("X-Spam", 0)))
		}),
		edit(policy.StageMessage, "", func(e *policy.Edits) error {
			return errors.Join(e.SpliceBody(0, 5, []byte("FIRST")), e.AddHeader(-1, "X-Last", "two"))
		}),
	}}).start(t)
	p := r.hello(t)
	p.begin("a@example.com")
	if got := p.data(in); got != "250 2.0.0 queued as 1" {
		t.Fatalf("got %q", got)
	}
	want := "X-First: one\r\nFrom: a@client.test\r\nSubject: odd  \r\n\tfolding\r\nX-Last: two\r\n\r\nFIRST\r\n.dot\r\nthird\r\n"
	if got := body(r.far.last()); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestReceived: the field says what we know, and for whom only where it is one.
func TestReceived(t *testing.T) {
	for _, c := range []struct {
		name, hello, mail string
		to                []string
		with, forClause   string
	}{
		{"EHLO", "EHLO client.test", "<f@x.test>", []string{"a@example.com"}, "ESMTP", "\r\n\tfor <a@example.com>"},
		{"HELO", "HELO client.test", "<f@x.test>", []string{"a@example.com"}, "SMTP", "\r\n\tfor <a@example.com>"},
		{"SMTPUTF8", "EHLO client.test", "<fä@x.test> SMTPUTF8 BODY=8BITMIME", []string{"ö@example.com"}, "UTF8SMTP", "\r\n\tfor <ö@example.com>"},
		{"two recipients", "EHLO client.test", "<f@x.test>", []string{"a@example.com", "b@example.com"}, "ESMTP", ""},
		{"an odd name", "EHLO (bank[192.0.2.1])", "<f@x.test>", []string{"postmaster"}, "ESMTP", "\r\n\tfor <postmaster>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{}
			began := time.Now().Truncate(time.Second)
			p := r.start(t).dial(t, "mx")
			p.talk(" => 220", c.hello+" => 250", "MAIL FROM:"+c.mail+" => 250")
			for _, to := range c.to {
				p.talk("RCPT TO:<" + to + "> => 250")
			}
			if got := p.data(testMessage); got != "250 2.0.0 queued as 1" {
				t.Fatal(got)
			}
			m := string(r.far.last())
			head := strings.TrimSuffix(m, testMessage)
			id := between(head, " id ", ".1")
			name := "client.test"
			if strings.HasPrefix(c.name, "an odd") {
				name = "?bank?192.0.2.1??"
			}
			stamp := strings.TrimSuffix(head[strings.LastIndexByte(head, '\t')+1:], "\r\n")
			const layout = "Mon, 02 Jan 2006 15:04:05 -0700"
			if at, err := time.Parse(layout, stamp); err != nil || at.Before(began) || at.After(time.Now()) || at.Format(layout) != stamp {
				t.Errorf("time: got %q, %v, want between %v and now", stamp, err, began)
			}
			want := "Received: from " + name + " ([127.0.0.1])\r\n\tby mx.example.net (Penstock) with " + c.with + " id " + id + ".1" +
				c.forClause + ";\r\n\t" + stamp + "\r\n"
			if head != want {
				t.Errorf("got  %q\nwant %q", head, want)
			}
			if !strings.Contains(r.log.String(), "conn="+id+" ") {
				t.Errorf("id %q is not the connection's in the log:\n%s", id, r.log.String())
			}
		})
	}
}

// between returns what stands between two marks.
func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

// TestPipelined: a client that sends a whole session in one write gets what it would get
// one by one.
func TestPipelined(t *testing.T) {
	r := (&rig{}).start(t)
	p := r.hello(t)
	p.send("MAIL FROM:<f@x.test> BODY=8BITMIME\r\nRCPT TO:<a@example.com>\r\nRCPT TO:<b@elsewhere.test>\r\nDATA\r\n")
	p.talk(" => 250", " => 250", " => 550 5.7.1", " => 354")
	p.send("Subject: ä\r\n\r\n\xff\x00\r\n.\r\nMAIL FROM:<g@x.test>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
	p.talk(" => 250", " => 250", " => 250", " => 354", "second\r\n. => 250", "QUIT => 221", " => closed")
	is(t, "far side", r.far.told(), []string{"begin a <f@x.test>", "rcpt <a@example.com>", "data <a@example.com>", "begin a <g@x.test>", "rcpt <b@example.com>", "data <b@example.com>"})
	if got := body(r.far.messages[0]); got != "Subject: ä\r\n\r\n\xff\x00\r\n" {
		t.Errorf("first message: got %q", got)
	}
}

// TestLog: one line for each session, verdict and attempt; no content of a message.
func TestLog(t *testing.T) {
	parity.Row(t, "SS-54")
	r := (&rig{links: []policy.Link{filter("judge", policy.StageRcpt, func(e *policy.Event) policy.Verdict {
		rcpts := e.Edits.Recipients()
		switch rcpts[len(rcpts)-1].Path.Local {
		case "bad":
			return policy.Verdict{Action: policy.Reject, Reason: "listed"}
		case "good":
			return policy.Verdict{Action: policy.Accept}
		}
		return policy.Verdict{}
	})}}).start(t)
	r.far.data = func(rcpts []string, content []byte) ([]*smtp.Reply, error) {
		if rcpts[0] == "<lost@example.com>" {
			return nil, errors.New("backend hung up")
		}
		return []*smtp.Reply{smtp.Refuse(250, smtp.Enhanced{2, 0, 0}, "ok")}, nil
	}
	p := r.hello(t)
	p.talk("MAIL FROM:<f@x.test> => 250", "RCPT TO:<bad@example.com> => 550", "RCPT TO:<good@example.com> => 250")
	p.data("Subject: sesame\r\n\r\nsesame\r\n")
	p.begin("lost@example.com")
	p.data("Subject: sesame\r\n\r\nsesame\r\n")
	p.talk("QUIT => 221", " => closed")
	r.stop(t)
	log := r.log.String()
	var lines []string
	for line := range strings.Lines(log) {
		_, line, _ = strings.Cut(line, "msg=")
		if !strings.HasPrefix(line, "listening") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 4 {
		t.Fatalf("lines: got %d, want 4:\n%s", len(lines), log)
	}
	for i, want := range [][]string{
		{"verdict ", "stage=rcpt", "filter=judge", "verdict=reject", "remote=127.0.0.1:", "from=f@x.test", "code=550", "enh=5.7.1", "reason=listed"},
		{"delivered ", "backend=a", "from=f@x.test", "rcpt=1", "bytes=", "code=250", "enh=2.0.0", "dur="},
		{`"not delivered" `, "backend=a", "from=from@client.test", "code=451", "enh=4.4.2", "backend hung up"},
		{`"session ended" `, "listener=mx", "helo=client.test", "accepted=1", "refused=1"},
	} {
		for _, part := range want {
			if !strings.Contains(lines[i], part) {
				t.Errorf("line %d: %s has no %q", i+1, lines[i], part)
			}
		}
	}
	if strings.Contains(log, "sesame") {
		t.Errorf("the log has content of the message:\n%s", log)
	}
}

// TestGoneClients: who leaves without a word is no news; a load balancer does so all day.
func TestGoneClients(t *testing.T) {
	for _, c := range []struct {
		name string
		talk []string
		news bool
	}{
		{"nothing said", nil, false},
		{"a name", []string{"EHLO client.test => 250"}, true},
		{"nonsense", []string{"NONSENSE => 500"}, true},
		{"QUIT", []string{"QUIT => 221"}, true},
	} {
		r := (&rig{}).start(t)
		p := r.dial(t, "mx")
		p.talk(append([]string{" => 220"}, c.talk...)...)
		p.nc.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, p.nc) // until the session has ended
		r.stop(t)
		if got := strings.Contains(r.log.String(), "session ended"); got != c.news {
			t.Errorf("%s: logged %v, want %v\n%s", c.name, got, c.news, r.log.String())
		}
	}
}
