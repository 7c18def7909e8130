package gateway

import (
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// judged_test.go: filters that answer for single recipients of a message.

// judging answers for each recipient by its local part.
func judging() policy.Link {
	return filter("judge", policy.StageMessage, func(e *policy.Event) policy.Verdict {
		for i, r := range e.Edits.Recipients() {
			v := policy.Verdict{}
			switch part := r.Path.Local; {
			case strings.HasPrefix(part, "no"):
				v = policy.Verdict{Action: policy.Reject, Reply: smtp.Refuse(551, smtp.Enhanced{5, 7, 1}, "not "+part)}
			case strings.HasPrefix(part, "later"):
				v = policy.Verdict{Action: policy.Tempfail}
			case strings.HasPrefix(part, "drop"):
				v = policy.Verdict{Action: policy.Discard}
			case strings.HasPrefix(part, "hold"):
				v = policy.Verdict{Action: policy.Quarantine, Reason: "odd"}
			}
			if err := e.Edits.Judge(i, v); err != nil {
				panic(err)
			}
		}
		return policy.Verdict{}
	})
}

// trusting makes the client one of the operator's own.
func trusting(l Listener) Listener {
	l.Trusted = Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	return l
}

// TestJudged: what the client hears, and who gets the message.
func TestJudged(t *testing.T) {
	const accepted, apart = "250 2.6.0 message accepted", "451 4.5.3"
	const a, kept, held = "250 2.0.0", "250 2.6.0 message kept as m1", "451 4.3.0 message cannot be held"
	lmtp := Listener{Server: smtp.ServerOptions{LMTP: true}}
	for _, c := range []struct {
		name     string
		listener Listener
		store    bool
		to       string   // local parts
		want     []string // beginnings
		heard    string   // recipients of the data that the backend got
		kept     []string
		link     policy.Link // before the one that judges
	}{
		{"LMTP: each its own", lmtp, false, "a no later drop hold b", []string{a, "551 5.7.1 not no", "451 4.7.1", accepted, held, a}, "a b", nil, policy.Link{}},
		{"LMTP: all refused", lmtp, false, "no later", []string{"551 5.7.1", "451 4.7.1"}, "", nil, policy.Link{}},
		{"LMTP: all discarded", lmtp, false, "drop drop2", []string{accepted, accepted}, "", nil, policy.Link{}},
		{"LMTP: refused and discarded", lmtp, false, "drop no", []string{accepted, "551"}, "", nil, policy.Link{}},
		{"LMTP: named twice", lmtp, false, "no a no drop drop", []string{"551", a, "551", accepted, accepted}, "a", nil, policy.Link{}},
		{"LMTP: beside what the backend says", lmtp, false, "d552 no a", []string{"552", "551", a}, "d552 a", nil, policy.Link{}},
		{"LMTP: the backend is lost", lmtp, false, "lost no", []string{"451 4.4.2", "551"}, "lost", nil, policy.Link{}},
		{"LMTP: changed, and then refused", lmtp, false, "x a", []string{"551 5.7.1 not no2", a}, "a", nil, edit(policy.StageMessage, "", set(0, "no2@example.com"))},
		{"LMTP: changed, and then discarded", lmtp, false, "x a", []string{accepted, a}, "a", nil, edit(policy.StageMessage, "", set(0, "drop2@example.com"))},
		{"LMTP: added, and then refused", lmtp, false, "a", []string{a}, "a", nil, edit(policy.StageMessage, "", add("no2@example.com"))},
		{"LMTP and a store", lmtp, true, "a no later drop hold", []string{a, "551", "451", accepted, kept}, "a", []string{"a <hold> held: odd"}, policy.Link{}},
		{"LMTP and a store, the message held", lmtp, true, "a no", []string{kept, "551"}, "", []string{"a <a> (all)"}, holdAll()},

		{"nobody is refused", Listener{}, false, "a b", []string{a}, "a b", nil, policy.Link{}},
		{"all refused for good", Listener{}, false, "no no2", []string{"551 5.7.1 not no"}, "", nil, policy.Link{}},
		{"all refused for now", Listener{}, false, "later later2", []string{"451 4.7.1"}, "", nil, policy.Link{}},
		{"all refused, in two ways", Listener{}, false, "later no", []string{apart}, "", nil, policy.Link{}},
		{"some discarded", Listener{}, false, "a drop", []string{a}, "a", nil, policy.Link{}},
		{"all discarded", Listener{}, false, "drop drop2", []string{accepted}, "", nil, policy.Link{}},
		{"refused and discarded", Listener{}, false, "drop no", []string{"551"}, "", nil, policy.Link{}},
		{"some refused for good", Listener{}, false, "a no", []string{apart}, "", nil, policy.Link{}},
		{"some refused for now", Listener{}, false, "a later", []string{apart}, "", nil, policy.Link{}},
		{"some held, without a store", Listener{}, false, "a hold", []string{apart}, "", nil, policy.Link{}},
		{"all held, without a store", Listener{}, false, "hold", []string{held}, "", nil, policy.Link{}},
		{"added, and then refused", Listener{}, false, "a", []string{a}, "a", nil, edit(policy.StageMessage, "", add("no2@example.com"))},
		{"one of our own, without a store", trusting(Listener{}), false, "a no", []string{apart}, "", nil, policy.Link{}},

		{"a store, held for one", Listener{}, true, "a hold", []string{kept}, "a", []string{"a <hold> held: odd"}, policy.Link{}},
		{"a store, a stranger", Listener{}, true, "a no", []string{apart}, "", nil, policy.Link{}},
		{"a store, one of our own", trusting(Listener{}), true, "a no no2", []string{kept}, "a", []string{"a <no> 551, a <no2> 551"}, policy.Link{}},
		{"a store, one of our own, for now", trusting(Listener{}), true, "a later", []string{apart}, "", nil, policy.Link{}},
		{"a store, one of our own, held and refused", trusting(Listener{}), true, "hold no", []string{kept}, "", []string{"a <hold> held: odd, a <no> 551"}, policy.Link{}},
		{"a store, one of our own, all held", trusting(Listener{}), true, "a no", []string{kept}, "", []string{"a <a>, a <no> 551 (all)"}, holdAll()},
		{"a store, one of our own, the rest refused by the backend", trusting(Listener{}), true, "d552 no", []string{"552"}, "d552", nil, policy.Link{}},
		{"a store, one of our own, changed and refused", trusting(Listener{}), true, "x a", []string{kept}, "a", []string{"a <x> 551"}, edit(policy.StageMessage, "", set(0, "no2@example.com"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{listener: c.listener, links: []policy.Link{judging()}}
			if c.link.Filter != nil {
				r.links = []policy.Link{c.link, judging()}
			}
			r.far.data = func(rcpts []string, b []byte) ([]*smtp.Reply, error) {
				if strings.HasPrefix(rcpts[0], "<lost") {
					return nil, io.ErrUnexpectedEOF
				}
				return atData(rcpts, b)
			}
			var k *farKeeper
			if c.store {
				k = r.keeping()
			}
			p := r.start(t).dial(t, "mx")
			p.talk(" => 220", map[bool]string{true: "LHLO c => 250", false: "EHLO c => 250"}[c.listener.Server.LMTP])
			names := strings.Fields(c.to)
			for i := range names {
				names[i] += "@example.com"
			}
			p.begin(names...)
			got := []string{p.data(testMessage)}
			for len(got) < len(c.want) {
				got = append(got, p.reply())
			}
			p.talk("NOOP => 250 2.0.0 OK", "QUIT => 221")
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("answers:\n got %q\nwant %q", got, c.want)
			}
			heard := ""
			for _, h := range r.far.told() {
				if rcpts, ok := strings.CutPrefix(h, "data "); ok {
					heard += strings.NewReplacer("<", "", "@example.com>", "").Replace(rcpts)
				}
			}
			if heard != c.heard {
				t.Errorf("the backend got it for %q, want %q", heard, c.heard)
			}
			if c.store {
				var kept []string
				for _, s := range k.told() {
					kept = append(kept, strings.ReplaceAll(s, "@example.com", ""))
				}
				is(t, "kept", kept, c.kept)
			}
		})
	}
}

// holdAll holds every message.
func holdAll() policy.Link {
	return filter("holder", policy.StageHeaders, func(*policy.Event) policy.Verdict {
		return policy.Verdict{Action: policy.Quarantine, Reason: "all"}
	})
}

// TestApart: a message that could not be answered for in one comes again, in parts that can.
func TestApart(t *testing.T) {
	r := (&rig{links: []policy.Link{judging()}}).start(t)
	p := r.hello(t)
	p.begin("no@example.com", "a@example.com", "later@example.com", "b@example.com")
	if got := p.data(testMessage); !strings.HasPrefix(got, "451 4.5.3 ") {
		t.Errorf("at first: %q", got)
	}
	const other = " => 452 4.5.3 this recipient needs a message of its own"
	p.talk("MAIL FROM:<from@client.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<later@example.com>"+other,
		"RCPT TO:<no@example.com>"+other, "RCPT TO:<b@example.com> => 250")
	if got := p.data(testMessage); !strings.HasPrefix(got, "250") {
		t.Errorf("those who are not refused: %q", got)
	}
	// Whoever is refused for now stands in nobody's way.
	for i := range 3 {
		p.talk("MAIL FROM:<from@client.test> => 250", "RCPT TO:<later@example.com>"+[]string{other, " => 250", other}[i],
			"RCPT TO:<no@example.com>"+[]string{" => 250", other, " => 250"}[i])
		if got := p.data(testMessage); !strings.HasPrefix(got, []string{"551 5.7.1 ", "451 4.7.1 ", "551 5.7.1 "}[i]) {
			t.Errorf("refused, %d: %q", i, got)
		}
	}
	p.talk("MAIL FROM:<another@client.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<no@example.com> => 250", "RSET => 250", "QUIT => 221")
	var got []string
	for _, h := range r.far.told() {
		if strings.HasPrefix(h, "data ") {
			got = append(got, h)
		}
	}
	is(t, "delivered, once", got, []string{"data <a@example.com> <b@example.com>"})
	if n := r.gw.Stats.Duplicates.Load(); n != 0 {
		t.Errorf("%d duplicates", n)
	}
	for _, want := range []string{"msg=verdict .*verdict=reject rcpt=no@example.com", "verdict=tempfail rcpt=later@example.com"} {
		if !regexp.MustCompile(want).MatchString(r.log.String()) {
			t.Errorf("the log has no %s:\n%s", want, r.log.String())
		}
	}
}

// TestApartMany: a client with more refused recipients than it may make errors is not sent away.
func TestApartMany(t *testing.T) {
	r := (&rig{links: []policy.Link{judging()}, listener: Listener{Server: smtp.ServerOptions{MaxErrors: 20}}}).start(t)
	p := r.hello(t)
	to := []string{"a@example.com"}
	for i := range 200 {
		to = append(to, fmt.Sprintf("no%d@example.com", i))
	}
	p.begin(to...)
	if got := p.data(testMessage); !strings.HasPrefix(got, "451 4.5.3 ") {
		t.Errorf("at first: %q", got)
	}
	p.begin(to[0])
	for _, no := range to[1:] {
		p.talk("RCPT TO:<" + no + "> => 452 4.5.3")
	}
	if got := p.data(testMessage); !strings.HasPrefix(got, "250") {
		t.Errorf("who is not refused: %q", got)
	}
	p.begin(to[1:]...)
	if got := p.data(testMessage); !strings.HasPrefix(got, "551 5.7.1 ") {
		t.Errorf("who is refused: %q", got)
	}
}

// kindNow is what is noted of a recipient.
func kindNow(a *apart, from, to smtp.Path) kind {
	if !a.any.Load() {
		return kindTaken
	}
	n, _ := a.find(a.key(from, to))
	return n.kind
}

// TestApartForgets: notes are bounded in number and in time, and the newest are there.
func TestApartForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a apart
		from, to := path("from@client.test"), path("no@example.com")
		if got := kindNow(&a, from, to); got != kindTaken {
			t.Errorf("of nothing: %d", got)
		}
		a.note(from, to, kindPermanent)
		for i := range maxApart {
			a.note(from, smtp.Path{Local: strconv.Itoa(i), Domain: to.Domain}, kindTemporary)
		}
		if got := kindNow(&a, from, to); got != kindPermanent {
			t.Errorf("with as many others: %d, want %d", got, kindPermanent)
		}
		for i := range maxApart {
			a.note(to, smtp.Path{Local: strconv.Itoa(i), Domain: to.Domain}, kindTemporary)
		}
		if got := kindNow(&a, from, to); got != kindTaken || len(a.newer)+len(a.old) > 2*maxApart {
			t.Errorf("after more than it keeps: %d, %d notes", got, len(a.newer)+len(a.old))
		}
		a.note(from, to, kindTemporary)
		time.Sleep(apartFor)
		if got := kindNow(&a, from, to); got != kindTemporary {
			t.Errorf("after hours: %d, want %d", got, kindTemporary)
		}
		time.Sleep(2 * apartFor)
		if got := kindNow(&a, from, to); got != kindTaken {
			t.Errorf("after a day: %d", got)
		}
	})
}
