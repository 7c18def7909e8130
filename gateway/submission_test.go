package gateway

import (
	"bytes"
	"context"
	"errors"
	"net/mail"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// submission_test.go: what may leave, by whom, and in what form.

// submitting is a rig with a listener for submission whose user is ann@example.com, and that
// keeps what leaves.
func submitting(t *testing.T, s Submission, change func(*rig)) (*rig, *farKeeper) {
	r := &rig{out: true, listener: Listener{Relay: true, Submission: s, Logins: Logins{Credentials: newUsers(t).credentials},
		Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true}}}}
	if change != nil {
		change(r)
	}
	k := r.keeping()
	return r.start(t), k
}

const loginAnn = "AUTH PLAIN AGFubkBleGFtcGxlLmNvbQB3b25kZXJsYW5k => 235"

// TestOut: what has no route leaves, for those who may relay, and nobody else's does.
func TestOut(t *testing.T) {
	r, k := submitting(t, Submission{}, nil)
	p := r.hello(t)
	p.talk("MAIL FROM:<ann@example.com> => 250", "RCPT TO:<b@elsewhere.test> => 550 5.7.1 relaying denied", "RSET => 250", loginAnn,
		"MAIL FROM:<ann@example.com> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<b@elsewhere.test> => 250", "RCPT TO:<c@[192.0.2.1]> => 250")
	if got := p.data(testMessage); !strings.HasPrefix(got, "250 2.6.0 message kept as m1") {
		t.Errorf("got %s", got)
	}
	is(t, "kept", k.told(), []string{" <b@elsewhere.test>,  <c@[192.0.2.1]>"})
	is(t, "handed on", r.far.told(), []string{"begin a <ann@example.com>", "rcpt <a@example.com>", "data <a@example.com>"})
	if !k.kept[0].Trusted {
		t.Error("what a user sent does not count as trusted")
	}
	if name, ok := r.gw.Backend(path("b@elsewhere.test")); ok {
		t.Errorf("what leaves has the backend %q", name)
	}
	p.talk("MAIL FROM:<ann@example.com> => 250", "RCPT TO:<postmaster> => 250")
	if got := p.data(testMessage); !strings.HasPrefix(got, "250") || len(k.kept) != 1 {
		t.Errorf("to the postmaster: %s, %v", got, k.told())
	}
	if err := r.gw.Reload(Rules{Chains: map[string]*policy.Chain{"in": nil}, Out: true}); err != nil {
		t.Error(err)
	}
	alone := &rig{}
	if err := alone.build(t).Reload(Rules{Chains: map[string]*policy.Chain{"in": nil}, Out: true}); err == nil {
		t.Error("mail may leave, and nobody keeps it")
	}
	alone.stop(t)
}

func TestSenders(t *testing.T) {
	list, err := ParseSenders(strings.NewReader("# who: what\nann@EXAMPLE.com: sales@example.net @shop.test # all of it\n"))
	if err != nil {
		t.Fatal(err)
	}
	own := Submission{Senders: SendersOwn}
	listed := Submission{Senders: SendersListed, MaySend: list.MaySend}
	for _, c := range []struct {
		name       string
		rule       Submission
		from, head string
		want       string
	}{
		{"any", Submission{}, "boss@example.com", "From: x@y.test\r\n", "250"},
		{"own", own, "ann@example.com", "From: Ann <Ann@Example.COM>\r\n", "250"},
		{"own with a subaddress", own, "ann+books@example.com", "From: ann+books@example.com\r\n", "250"},
		{"own at another domain", own, "ann@example.org", "", "550 5.7.1 this user may not send"},
		{"another's", own, "bob@example.com", "", "550 5.7.1 this user may not send"},
		{"another in From", own, "ann@example.com", "From: bob@example.com\r\n", "550 5.7.1 this user may not send with"},
		{"two in From, one another's", own, "ann@example.com", "From: ann@example.com, bob@example.com\r\n", "550 5.7.1 this user may not send with"},
		{"a group in From", own, "ann@example.com", "From: us: ann@example.com, bob@example.com;\r\n", "550 5.7.1 this user may not send with"},
		{"another's name", own, "ann@example.com", "From: \"bob@example.com\" <ann@example.com>\r\n", "250"},
		{"two Froms", own, "ann@example.com", "From: ann@example.com\r\nfrom : bob@example.com\r\n", "550 5.6.0"},
		{"no From", own, "ann@example.com", "Subject: x\r\n", "550 5.6.0"},
		{"an unreadable From", own, "ann@example.com", "From: <ann@example.com\r\n", "550 5.6.0"},
		{"a Sender", own, "ann@example.com", "From: ann@example.com\r\nSender: ann+x@example.com\r\n", "250"},
		{"another's Sender", own, "ann@example.com", "From: ann@example.com\r\nSender: bob@example.com\r\n", "550 5.7.1 this user may not send with"},
		{"two Senders", own, "ann@example.com", "From: ann@example.com\r\nSender: ann@example.com\r\nSender: ann@example.com\r\n", "550 5.6.0 the field Sender"},
		{"a group of nobody", own, "ann@example.com", "From: \"bob@example.com\":;\r\n", "550 5.6.0"},
		{"a name in another charset", own, "ann@example.com", "From: =?windows-1252?Q?=C4nn?= <ann@example.com>\r\n", "250"},
		{"an address in an encoded word", listed, "ann@shop.test", "From: =?utf-8?Q?bob=40example.com=00?=@shop.test\r\n", "550 5.6.0"},
		{"an address in the local part", listed, "ann@shop.test", "From: \"x <bob@example.com>\"@shop.test\r\n", "550 5.6.0"},
		{"a name that ends early", own, "ann@example.com", "From: =?utf-8?Q?bob=40example.com=0A=00?= <ann@example.com>\r\n", "550 5.6.0"},
		{"the null path", own, "", "From: ann@example.com\r\n", "250"},
		{"the null path for another", own, "", "From: bob@example.com\r\n", "550 5.7.1"},
		{"listed", listed, "Sales@example.net", "From: x@shop.test\r\n", "250"},
		{"not listed", listed, "ann@example.com", "", "550 5.7.1"},
		{"below what is listed", listed, "a@b.shop.test", "", "550 5.7.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := submitting(t, c.rule, nil)
			p := r.hello(t)
			p.talk(loginAnn)
			p.send("MAIL FROM:<" + c.from + ">\r\n")
			got := p.reply()
			if strings.HasPrefix(got, "250") && c.head != "" {
				p.talk("RCPT TO:<a@elsewhere.test> => 250")
				got = p.data(c.head + "\r\nx\r\n")
			}
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestSendersOfNames: a user whose name is no address has one at each of our domains, and those
// who are trusted by their address any.
func TestSendersOfNames(t *testing.T) {
	r := &rig{listener: Listener{Relay: true, Submission: Submission{Senders: SendersOwn}, Trusted: Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}}}
	r.start(t)
	rules := r.gw.acquire()
	defer rules.release()
	s := &session{l: r.gw.listeners[0], rules: rules}
	s.facts.User = "ann"
	for from, want := range map[string]bool{"ann@example.com": true, "ANN+x@example.org": true, "ann@" + testHost: true,
		"ann@elsewhere.test": false, "bob@example.com": false, "annx@example.com": false} {
		if got := s.owns(path(from)); got != want {
			t.Errorf("%s: got %v", from, got)
		}
	}
	p := r.hello(t)
	p.talk("MAIL FROM:<anybody@elsewhere.test> => 250")
}

// TestComplete: what a message must have is there once it leaves, what it had stays as it was,
// and signatures are of all of that, by the domain that is seen.
func TestComplete(t *testing.T) {
	sign := func(_ context.Context, d smtp.Domain, c smtp.Content) ([]message.Field, error) {
		var b bytes.Buffer
		if _, err := c.WriteTo(&b); err != nil || int64(b.Len()) != c.Size() || bytes.HasPrefix(b.Bytes(), []byte("Received:")) {
			t.Errorf("%d octets of %d, %v: %.60q", b.Len(), c.Size(), err, b.String())
		}
		if d.String() == "broken.test" {
			return nil, errors.New("no key")
		}
		f, err := message.NewField("DKIM-Signature", "v=1; d="+d.String())
		return []message.Field{f}, err
	}
	edit := filter("edit", policy.StageMessage, func(e *policy.Event) policy.Verdict {
		if err := e.Edits.AddHeader(-1, "X-Seen", "yes"); err != nil {
			t.Error(err)
		}
		return policy.Verdict{}
	})
	r, k := submitting(t, Submission{Complete: true, Sign: sign}, func(r *rig) { r.links = []policy.Link{edit} })
	p := r.hello(t)
	p.talk(loginAnn)
	send := func(header string) string {
		p.talk("MAIL FROM:<x@y.test> => 250", "RCPT TO:<a@elsewhere.test> => 250")
		return p.data(header + "\r\nbody\r\n")
	}
	if got := send("From: a@client.test\r\n"); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	m, err := mail.ReadMessage(strings.NewReader(k.text[0]))
	if err != nil {
		t.Fatal(err)
	}
	if date, err := m.Header.Date(); err != nil || time.Since(date) > time.Minute {
		t.Errorf("date %v, %v", date, err)
	}
	if id := m.Header.Get("Message-ID"); !strings.HasSuffix(id, "@"+testHost+">") || len(id) < 20 {
		t.Errorf("message-id %q", id)
	}
	if got := m.Header.Get("DKIM-Signature"); got != "v=1; d=client.test" || !strings.HasPrefix(body([]byte(k.text[0])), "DKIM-Signature: ") {
		t.Errorf("signed %q:\n%s", got, k.text[0])
	}
	const whole = "From: a@client.test\r\nMessage-Id: <1@client.test>\r\nDATE: yesterday\r\n"
	if got := send(whole); !strings.HasPrefix(got, "250") {
		t.Fatal(got)
	}
	if got := body([]byte(k.text[1])); got != "DKIM-Signature: v=1; d=client.test\r\n"+whole+"X-Seen: yes\r\n\r\nbody\r\n" {
		t.Errorf("got %q", got)
	}
	if got := send("From: nobody:;\r\n"); !strings.HasPrefix(got, "250") || strings.Contains(k.text[2], "DKIM-Signature") {
		t.Errorf("a message of nobody: %s, %q", got, k.text[2:])
	}
	if got := send("From: a@broken.test\r\n"); !strings.HasPrefix(got, "451 4.3.0 message cannot be signed") {
		t.Errorf("without its key: %s", got)
	}
	stranger := r.hello(t)
	stranger.begin("a@example.com")
	if got := stranger.data("Subject: x\r\n\r\n"); !strings.HasPrefix(got, "250") || body(r.far.last()) != "Subject: x\r\nX-Seen: yes\r\n\r\n" {
		t.Errorf("a stranger's: %s, %q", got, body(r.far.last()))
	}
}

// TestSignEnd: what is signed is the header as it leaves, with the empty line that it lacked.
func TestSignEnd(t *testing.T) {
	sign := func(_ context.Context, _ smtp.Domain, c smtp.Content) ([]message.Field, error) {
		var b strings.Builder
		_, err := c.WriteTo(&b)
		is(t, "signed", []string{b.String()}, []string{"From: a@client.test\r\n\r\nno field\r\n\r\nx\r\n"})
		return nil, err
	}
	r, _ := submitting(t, Submission{Sign: sign}, nil)
	p := r.hello(t)
	p.talk(loginAnn, "MAIL FROM:<a@client.test> => 250", "RCPT TO:<a@elsewhere.test> => 250")
	if got := p.data("From: a@client.test\r\nno field\r\n\r\nx\r\n"); !strings.HasPrefix(got, "250") {
		t.Error(got)
	}
}

func TestRecipientRate(t *testing.T) {
	r, _ := submitting(t, Submission{}, func(r *rig) { r.listener.RecipientRate = Rate{3, time.Hour} })
	p := r.hello(t)
	p.talk(loginAnn, "MAIL FROM:<ann@example.com> => 250", "RCPT TO:<a@x.test> => 250", "RCPT TO:<b@x.test> => 250", "RSET => 250")
	p = r.hello(t)
	p.talk(loginAnn, "MAIL FROM:<ann@example.com> => 250", "RCPT TO:<c@x.test> => 250", "RCPT TO:<d@x.test> => 450 4.7.1 too many recipients")
	stranger := r.hello(t) // who is counted by address
	stranger.begin("a@example.com", "b@example.com", "c@example.com")
	stranger.talk("RCPT TO:<d@example.com> => 450 4.7.1")
}

func FuzzParseSenders(f *testing.F) {
	f.Add("ann: a@b.c @d.e *\n", "ann", "a@b.c")
	f.Add("a:b: x@[192.0.2.1]\n#\n\n", "a:b", "x@[192.0.2.1]")
	f.Fuzz(func(t *testing.T, list, user, from string) {
		l, err := ParseSenders(strings.NewReader(list))
		if err != nil {
			return
		}
		p, err := smtp.ParsePath("<" + from + ">")
		if err != nil {
			return
		}
		if l.MaySend(user, p) && !strings.Contains(strings.ToLower(list), strings.ToLower(user)) {
			t.Errorf("%q may send from %s by a list without it: %q", user, from, list)
		}
	})
}
