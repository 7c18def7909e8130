package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// known_test.go: whom the routes know, through the whole gateway; what is offered for the
// backends behind them; and what becomes of clients when there is too much to do.

// TestKnownRecipients: each way to know a recipient, with a backend that knows "ann" and
// "bob" alone. Nobody is told 250 for another where that could have been found out.
func TestKnownRecipients(t *testing.T) {
	down := smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "cannot connect")
	list := &ListOptions{Path: listFile(t, "ann@example.com\ncid@example.com\n"), Separators: "+"}
	for _, c := range []struct {
		name       string
		recipients Recipients
		down       bool
		want       map[string]string // by local part: the answer to RCPT, or to the message
		heard      []string          // at RCPT alone
	}{
		{"the backend", Recipients{}, false, map[string]string{"ann": "250", "eve": "550 5.1.1 not here"}, []string{"begin a <f@client.test>", "rcpt <ann@example.com>", "rcpt <eve@example.com>"}},
		{"the backend, which is down", Recipients{}, true, map[string]string{"ann": "451 4.4.1"}, []string{"begin a <f@client.test>"}},
		{"a list", Recipients{List: list}, false, map[string]string{"ann": "250", "ann+x": "250", "eve": "550 5.1.1 no such recipient here", "cid": "250"}, nil},
		{"a list, while the backend is down", Recipients{List: list}, true, map[string]string{"ann": "data 451 4.4.1", "eve": "550 5.1.1 no such recipient here"}, nil},
		{"a callout", Recipients{Callout: &CalloutOptions{}}, false, map[string]string{"ann": "250", "eve": "550 5.1.1 not here"},
			[]string{"begin a <>", "rcpt <ann@example.com>", "abort", "begin a <>", "rcpt <eve@example.com>", "abort"}},
		{"a callout, while the backend is down", Recipients{Callout: &CalloutOptions{}}, true, map[string]string{"ann": "451 4.4.1"}, []string{"begin a <>"}},
		{"nobody", Recipients{Accept: true}, false, map[string]string{"ann": "250", "eve": "data 550 5.1.1 not here"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{routes: []Route{{Domains: []string{"example.com"}, Backend: "a", Recipients: c.recipients}}}
			r.far.rcpt = func(_, to string) error {
				if !strings.HasPrefix(to, "ann") && to != "bob@example.com" && to != "cid@example.com" {
					return smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "not here")
				}
				return nil
			}
			if c.down {
				r.far.begin = func(string) error { return down }
			}
			r.start(t)
			p := r.hello(t)
			p.talk("MAIL FROM:<f@client.test> => 250")
			for _, local := range []string{"ann", "ann+x", "eve", "cid"} { // in order
				want, ok := c.want[local]
				if !ok {
					continue
				}
				behind, late := strings.CutPrefix(want, "data ")
				if late {
					want = "250"
				}
				p.talk("RCPT TO:<" + local + "@example.com> => " + want)
				if late {
					q := r.hello(t)
					q.begin(local + "@example.com")
					if got := q.data(testMessage); !strings.HasPrefix(got, behind) {
						t.Errorf("%s: got %q, want %q", local, got, behind)
					}
					r.far.told()
				}
			}
			if heard := r.far.told(); c.heard != nil {
				is(t, "far side", heard, c.heard)
			} else if len(heard) > 0 {
				t.Errorf("far side was asked: %q", heard)
			}
			if c.recipients.Callout != nil && !c.down {
				p.talk("RCPT TO:<ann@example.com> => 250", "RCPT TO:<eve@example.com> => 550 5.1.1 not here")
				if heard := r.far.told(); len(heard) > 0 {
					t.Errorf("far side was asked again: %q", heard)
				}
			}
		})
	}
}

// followers is how many goroutines follow lists.
func followers() int {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), "gateway.(*recipientList).run(")
}

// TestListsOfRules: a list that routes share is read and followed once, and no longer than
// somebody uses the rules.
func TestListsOfRules(t *testing.T) {
	file := listFile(t, "ann@example.com\nann@example.org\n")
	shared := &ListOptions{Path: file}
	r := &rig{routes: []Route{
		{Domains: []string{"example.com"}, Backend: "a", Recipients: Recipients{List: shared}},
		{Domains: []string{"example.org"}, Backend: "b", Recipients: Recipients{List: &ListOptions{Path: file}}},
		{Domains: []string{"example.net"}, Backend: "b", Recipients: Recipients{List: &ListOptions{Path: file, Separators: "+"}}},
	}}
	r.start(t)
	eventually(t, func() bool { return followers() == 2 })
	old := r.hello(t)
	old.talk("MAIL FROM:<f@client.test> => 250", "RCPT TO:<ann@example.com> => 250", "RCPT TO:<eve@example.com> => 550 5.1.1", "RSET => 250")

	prepare := func(rules Rules) error {
		p, err := r.gw.Prepare(rules)
		if err == nil {
			p.Discard()
		}
		return err
	}
	bad := r.rules(nil)
	bad.Routes = append(bad.Routes[:2:2], Route{Domains: []string{"x.test"}, Backend: "a", Recipients: Recipients{List: &ListOptions{Path: filepath.Join(t.TempDir(), "none")}}})
	for what, f := range map[string]func(Rules) error{"Prepare": prepare, "Reload": r.gw.Reload} {
		if err := f(bad); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of rules with a list that is not there: %v", what, err)
		}
	}
	bad.Routes[2].Recipients = Recipients{List: shared, Accept: true}
	for what, f := range map[string]func(Rules) error{"Prepare": prepare, "Reload": r.gw.Reload} {
		if err := f(bad); err == nil || !strings.Contains(err.Error(), "route 3: recipients: more than one way") {
			t.Errorf("%s of a route with two ways: %v", what, err)
		}
	}
	if n := followers(); n != 2 {
		t.Errorf("%d lists are followed, want those of the rules in use alone", n)
	}

	r.routes = []Route{{Domains: []string{"example.com"}, Backend: "a", Recipients: Recipients{List: &ListOptions{Path: listFile(t, "eve@example.com\n")}}}}
	if err := prepare(r.rules(nil)); err != nil {
		t.Error(err)
	}
	if n := followers(); n != 2 {
		t.Errorf("%d lists are followed after rules were given up", n)
	}
	if err := r.gw.Reload(r.rules(nil)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return followers() == 3 }) // the old rules are in use
	old.talk("MAIL FROM:<f@client.test> => 250", "RCPT TO:<ann@example.com> => 250", "RCPT TO:<eve@example.com> => 550 5.1.1", "QUIT => 221")
	r.hello(t).talk("MAIL FROM:<f@client.test> => 250", "RCPT TO:<ann@example.com> => 550 5.1.1", "RCPT TO:<eve@example.com> => 250", "QUIT => 221")
	eventually(t, func() bool { return followers() == 1 })
	r.stop(t)
	if n := followers(); n != 0 {
		t.Errorf("%d lists are followed after the shutdown", n)
	}
}

// TestKnowledgeOutlivesRules: rules that ask for what the old ones had get it, answers and
// lists alike, so that neither a broken file nor a backend that is down stands in the way of a
// change, nor is lost by it.
func TestKnowledgeOutlivesRules(t *testing.T) {
	file := listFile(t, "ann@example.com\n")
	list := func(separators string) Recipients {
		return Recipients{List: &ListOptions{Path: file, Separators: separators}}
	}
	callout := func(positive time.Duration) Recipients {
		return Recipients{Callout: &CalloutOptions{Positive: positive, Stale: time.Hour}}
	}
	down := false
	r := &rig{routes: []Route{
		{Domains: []string{"example.com"}, Backend: "a", Recipients: list("")},
		{Domains: []string{"example.org"}, Backend: "b", Recipients: callout(0)},
	}}
	r.far.begin = func(string) error {
		if down {
			return smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "cannot connect")
		}
		return nil
	}
	r.start(t)
	answers := func(com, org string) {
		t.Helper()
		p := r.hello(t)
		p.talk("MAIL FROM:<f@client.test> => 250", "RCPT TO:<ann@example.com> => "+com, "RSET => 250",
			"MAIL FROM:<f@client.test> => 250", "RCPT TO:<bob@example.org> => "+org, "QUIT => 221")
	}
	answers("250", "250")
	r.far.mu.Lock()
	down = true
	r.far.mu.Unlock()
	if err := os.WriteFile(file, []byte("no address\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := r.gw.Reload(r.rules(nil)); err != nil {
			t.Fatal(err)
		}
		answers("250", "250")
	}
	eventually(t, func() bool { return followers() == 1 })
	want := []RecipientsState{{Backend: "a", Listed: 1}, {Backend: "b", Asked: 1, Remembered: 3}}
	if got := r.gw.Recipients(); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}

	// With other settings it is another list, and another callout.
	r.routes[0].Recipients = list("+")
	if err := r.gw.Reload(r.rules(nil)); err == nil {
		t.Error("a new list whose file is broken was taken")
	}
	answers("250", "250")
	r.routes = []Route{{Domains: []string{"example.com"}, Backend: "a", Recipients: list("")}, {Domains: []string{"example.org"}, Backend: "b", Recipients: callout(time.Minute)}}
	if err := r.gw.Reload(r.rules(nil)); err != nil {
		t.Fatal(err)
	}
	answers("250", "451")
}

// TestPrepared: rules that are prepared are taken over later, whatever became of the files and
// the rules meanwhile; those that are given up leave nothing behind.
func TestPrepared(t *testing.T) {
	file := listFile(t, "ann@example.com\n")
	r := &rig{}
	r.start(t)
	r.routes = []Route{{Domains: []string{"example.com"}, Backend: "a", Recipients: Recipients{List: &ListOptions{Path: file}}}}
	prepare := func() *Prepared {
		p, err := r.gw.Prepare(r.rules(func() { t.Error("released") }))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second := prepare(), prepare()
	released := make(chan bool, 1)
	rules := r.rules(func() { released <- true })
	third, err := r.gw.Prepare(rules)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	first.Discard()
	if err := r.gw.Use(third); err != nil {
		t.Fatal(err)
	}
	r.hello(t).talk("MAIL FROM:<f@client.test> => 250", "RCPT TO:<ann@example.com> => 250", "RCPT TO:<eve@example.com> => 550", "QUIT => 221")
	r.stop(t)
	if len(released) != 1 {
		t.Error("rules that were used were not released")
	}
	if err := r.gw.Use(second); !errors.Is(err, ErrClosed) {
		t.Errorf("Use after Shutdown: %v", err)
	}
	if _, err := r.gw.Prepare(rules); !errors.Is(err, ErrClosed) {
		t.Errorf("Prepare after Shutdown: %v", err)
	}
	if n := followers(); n != 0 {
		t.Errorf("%d lists are followed", n)
	}
}

// offered is the keywords of EHLO that bind the receiver.
func offered(ehlo string) string {
	var words []string
	for _, word := range []string{"DSN", "BINARYMIME", "REQUIRETLS"} {
		if strings.Contains(ehlo, "-"+word+"\n") {
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

// TestOffers: what binds the receiver is offered if all backends of the routes have it, and
// are known to.
func TestOffers(t *testing.T) {
	parity.Row(t, "SS-14", "SS-15")
	all := smtp.Extensions{DSN: true, BinaryMIME: true, RequireTLS: true}
	a := newAuthority(t)
	for _, c := range []struct {
		name   string
		offers map[string]smtp.Extensions
		want   string // on TLS
	}{
		{"nobody asked", nil, ""},
		{"one is not known", map[string]smtp.Extensions{"a": all}, ""},
		{"all have all", map[string]smtp.Extensions{"a": all, "b": all, "z": {}}, "DSN BINARYMIME REQUIRETLS"},
		{"each lacks one", map[string]smtp.Extensions{"a": {DSN: true, BinaryMIME: true}, "b": {DSN: true, RequireTLS: true}}, "DSN"},
		{"one has none", map[string]smtp.Extensions{"a": all, "b": {}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{listener: Listener{TLS: TLSStart}, options: func(o *Options) { o.TLS = a.server(t) }}
			r.far.offers = c.offers
			r.start(t)
			p := r.dial(t, "mx")
			p.talk(" => 220")
			p.send("EHLO client.test\r\n")
			if got, want := offered(p.reply()), strings.TrimSuffix(strings.TrimSuffix(c.want, "REQUIRETLS"), " "); got != want {
				t.Errorf("in clear: got %q, want %q", got, want)
			}
			p.talk("STARTTLS => 220")
			p = newPeer(t, tls.Client(p.nc, a.client(t, "")))
			p.send("EHLO client.test\r\n")
			if got := offered(p.reply()); got != c.want {
				t.Errorf("on TLS: got %q, want %q", got, c.want)
			}
			want := "555 5.5.4"
			if strings.Contains(c.want, "REQUIRETLS") {
				want = "250"
			}
			p.talk("MAIL FROM:<a@client.test> REQUIRETLS => " + want)
			// What is learnt later is offered at the next EHLO.
			r.far.mu.Lock()
			r.far.offers = map[string]smtp.Extensions{"a": {DSN: true}, "b": {DSN: true}}
			r.far.mu.Unlock()
			p.send("EHLO client.test\r\n")
			if got := offered(p.reply()); got != "DSN" {
				t.Errorf("at the next EHLO: got %q", got)
			}
		})
	}
}

// TestWishes: parameters of MAIL and RCPT reach the far side, also where the envelope is
// repeated, and where filters change addresses: the wishes are the sender's, and of the
// original recipient (RFC 3461, Section 5.2.1).
func TestWishes(t *testing.T) {
	msg := policy.StageMessage
	refuseX := refuseOne("x@example.com", smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no x"))
	for _, c := range []struct {
		name     string
		link     policy.Link
		rcpt     func(string, string) error
		from, to string // as the far side has them in the end
	}{
		{"as it came", policy.Link{Filter: policy.Func("none", 0, nil)}, nil, "a@client.test", "ann@example.com"},
		{"repeated", edit(msg, "", add("bob@example.com")), nil, "a@client.test", "ann@example.com"},
		{"sender changed", edit(msg, "", func(e *policy.Edits) error { return e.SetSender(path("b@client.test")) }), nil, "b@client.test", "ann@example.com"},
		{"sender changed at MAIL", edit(policy.StageMail, "", func(e *policy.Edits) error { return e.SetSender(path("b@client.test")) }), nil, "b@client.test", "ann@example.com"},
		{"recipient changed", edit(msg, "", set(0, "x@example.com")), nil, "a@client.test", "x@example.com"},
		{"recipient changed at RCPT", edit(policy.StageRcpt, "", set(-1, "x@example.com")), nil, "a@client.test", "x@example.com"},
		{"recipient changed in vain", edit(msg, "", set(0, "x@example.com")), refuseX, "a@client.test", "ann@example.com"},
		{"recipient changed in vain at RCPT", edit(policy.StageRcpt, "", set(-1, "x@example.com")), refuseX, "a@client.test", "ann@example.com"},
		{"content changed", edit(msg, "", func(e *policy.Edits) error { return e.AddHeader(0, "X-Test", "yes") }), nil, "a@client.test", "ann@example.com"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.link.OnError = policy.OnErrorAccept
			r := &rig{links: []policy.Link{c.link}}
			r.far.rcpt = c.rcpt
			r.far.offers = map[string]smtp.Extensions{"a": {DSN: true}, "b": {DSN: true}}
			r.start(t)
			p := r.hello(t)
			p.talk("MAIL FROM:<a@client.test> RET=HDRS ENVID=id+2B1 BODY=8BITMIME SIZE=99 => 250",
				"RCPT TO:<ann@example.com> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ann+2B@far.test => 250")
			if got := p.data(testMessage); got[0] != '2' {
				t.Fatal(got)
			}
			b := r.far.lastBegun()
			if s := b.sender; s.Path.String() != c.from || s.Return != smtp.ReturnHeaders || s.EnvID != "id+1" || s.Body != smtp.BodyEightBit {
				t.Errorf("sender: got %+v", s)
			}
			for _, to := range b.rcpts {
				switch to.Path.String() {
				case c.to:
					if to.Notify != smtp.NotifySuccess|smtp.NotifyDelay || to.Original != (smtp.OriginalRecipient{Type: "rfc822", Address: "Ann+@far.test"}) {
						t.Errorf("recipient: got %+v", to)
					}
				case "bob@example.com":
					if to.Notify != 0 || !to.Original.IsZero() {
						t.Errorf("recipient that a filter added: got %+v", to)
					}
				}
			}
			if told := strings.Join(r.far.told(), " "); !strings.Contains(told, "data <"+c.to+">") {
				t.Errorf("far side: %q", told)
			}
		})
	}
}

// TestBinary: content that is no text keeps its octets, also where a filter changes some.
func TestBinary(t *testing.T) {
	const binary = "Subject: x\r\n\r\n\x00\n\r.\r\n.\r\r\n\xff"
	for name, c := range map[string]struct {
		link policy.Link
		want string
	}{
		"as it came":     {policy.Link{Filter: policy.Func("none", 0, nil)}, binary},
		"body changed":   {edit(policy.StageMessage, "", func(e *policy.Edits) error { return e.SpliceBody(1, 2, []byte("\n\x00\r")) }), "Subject: x\r\n\r\n\x00\n\x00\r.\r\n.\r\r\n\xff"},
		"header added":   {edit(policy.StageMessage, "", func(e *policy.Edits) error { return e.AddHeader(-1, "X-Test", "yes") }), strings.Replace(binary, "\r\n\r\n", "\r\nX-Test: yes\r\n\r\n", 1)},
		"sender changed": {edit(policy.StageMessage, "", func(e *policy.Edits) error { return e.SetSender(smtp.Path{}) }), binary},
	} {
		t.Run(name, func(t *testing.T) {
			r := &rig{links: []policy.Link{c.link}}
			r.far.offers = map[string]smtp.Extensions{"a": {BinaryMIME: true}, "b": {BinaryMIME: true}}
			p := r.start(t).hello(t)
			p.talk("MAIL FROM:<a@client.test> BODY=BINARYMIME => 250", "RCPT TO:<a@example.com> => 250", "DATA => 503")
			p.send("BDAT 20\r\n" + binary[:20])
			p.talk(" => 250")
			p.send(fmt.Sprintf("BDAT %d LAST\r\n", len(binary)-20) + binary[20:])
			p.talk(" => 250 2.0.0 queued")
			if got := body(r.far.last()); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if b := r.far.lastBegun().sender.Body; b != smtp.BodyBinary {
				t.Errorf("the far side was told %q", b)
			}
		})
	}
}

// TestFull: who comes when all sessions are taken is told to come later, and the place of
// who leaves is free again.
func TestFull(t *testing.T) {
	parity.Row(t, "SS-27")
	r := (&rig{options: func(o *Options) { o.Overload.Sessions = 2 }}).start(t)
	first, second := r.hello(t), r.hello(t)
	for range 3 {
		r.dial(t, "mx").talk(" => 421 4.3.2 too much to do", " => closed")
	}
	first.talk("QUIT => 221", " => closed")
	second.nc.Close()
	eventually(t, func() bool { return r.gw.load.counts().sessions == 0 })
	third := r.hello(t)
	third.begin("a@example.com")
	if got := third.data(testMessage); got[0] != '2' {
		t.Error(got)
	}
	if c := r.gw.load.counts(); c.refusedSessions != 3 || c.sessions != 1 {
		t.Errorf("counted %+v", c)
	}
}

// TestStressed: near the limit a client may be silent for seconds only.
func TestStressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{options: func(o *Options) { o.Overload.Sessions = 10 }}
		r.build(t)
		var waits []func()
		for range 8 {
			p, wait := r.pipedFrom(t, "192.0.2.1")
			p.talk(" => 220")
			waits = append(waits, wait)
			if len(waits) < 8 {
				continue
			}
			began := time.Now()
			p.talk(" => 421 4.4.2 timeout", " => closed")
			if took := time.Since(began); took != 10*time.Second {
				t.Errorf("the eighth of ten was waited for %v, want 10 s", took)
			}
		}
		synctest.Wait()
		if l := r.gw.load.level(); l != loadNormal && r.gw.load.counts().sessions != 7 {
			t.Errorf("level %v with %+v", l, r.gw.load.counts())
		}
		for _, wait := range waits {
			wait()
		}
		r.stop(t)
	})
}

// TestSpoolBudget: a message for which there is no room is refused by itself.
func TestSpoolBudget(t *testing.T) {
	r := (&rig{options: func(o *Options) { o.Overload.Spool = 100 << 10 }}).start(t)
	p := r.hello(t)
	big := "Subject: big\r\n\r\n" + strings.Repeat("A line of twenty.\r\n", 8<<10)
	for range 2 {
		p.begin("a@example.com")
		if got := p.data(big); !strings.HasPrefix(got, "452 4.3.1 too much mail") {
			t.Errorf("large: got %q", got)
		}
		p.begin("a@example.com")
		if got := p.data(testMessage); !strings.HasPrefix(got, "250") {
			t.Errorf("small: got %q", got)
		}
	}
	if c := r.gw.load.counts(); c.spool != 0 || c.refusedSpool != 2 {
		t.Errorf("counted %+v", c)
	}
}
