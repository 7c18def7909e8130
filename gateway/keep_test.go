package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// keep_test.go: what is kept in place of being handed on at once, and what the client hears.

// farKeeper is a far side that keeps messages, too.
type farKeeper struct {
	*far
	fail error // of Keep

	mu   sync.Mutex // guards what follows
	kept []Kept
	text []string // of the messages in kept
}

// Keep implements Keeper.
func (k *farKeeper) Keep(_ context.Context, m Kept) (string, error) {
	if k.fail != nil {
		return "", k.fail
	}
	var b bytes.Buffer
	if _, err := m.Content.WriteTo(&b); err != nil {
		return "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept, k.text = append(k.kept, m), append(k.text, b.String())
	return fmt.Sprintf("m%d", len(k.kept)), nil
}

// told returns what was kept in short: "a <to> 550, b <to> (reason)".
func (k *farKeeper) told() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, m := range k.kept {
		var list []string
		for _, r := range m.Recipients {
			s := fmt.Sprintf("%s <%s>", r.Backend, r.Path)
			if r.Reply != nil {
				s += fmt.Sprintf(" %d", r.Reply.Code)
			}
			if r.Held != "" {
				s += " held: " + r.Held
			}
			list = append(list, s)
		}
		s := strings.Join(list, ", ")
		if m.Held != "" {
			s += " (" + m.Held + ")"
		}
		all = append(all, s)
	}
	return all
}

// keeping makes the rig's far side keep messages.
func (r *rig) keeping() *farKeeper {
	k := &farKeeper{far: &r.far}
	more := r.options
	r.options = func(o *Options) {
		o.Relay = k
		if more != nil {
			more(o)
		}
	}
	return k
}

// byPart answers RCPT by the local part: r550 with 550.
func byPart(_, to string) error {
	code := 0
	if fmt.Sscanf(to, "r%d@", &code); code == 0 {
		return nil
	}
	return smtp.Refuse(code, smtp.Enhanced{code / 100, 1, 1}, "for "+to)
}

// atData answers the data by the local part: d452 with 452.
func atData(rcpts []string, _ []byte) ([]*smtp.Reply, error) {
	var replies []*smtp.Reply
	for _, r := range rcpts {
		code := 250
		fmt.Sscanf(r, "<d%d@", &code)
		replies = append(replies, smtp.Refuse(code, smtp.Enhanced{code / 100, 0, 0}, "for "+strings.Trim(r, "<>")))
	}
	return replies, nil
}

// routesFor are routes for example.com at a and example.org at b, as change has them.
func routesFor(change func(a, b *Route)) []Route {
	routes := []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"example.org"}, Backend: "b"}}
	change(&routes[0], &routes[1])
	return routes
}

// TestKeep: what becomes of a message, and what the client hears after DATA.
func TestKeep(t *testing.T) {
	queued := func(a, _ *Route) { a.Queue = true }
	bothQueued := func(a, b *Route) { a.Queue, b.Queue = true, true }
	whenDown := func(a, _ *Route) { a.QueueWhenDown = true; a.Recipients.Accept = true }
	down := func(backend string) error {
		if backend == "a" {
			return smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "a is down")
		}
		return nil
	}
	lost := func([]string, []byte) ([]*smtp.Reply, error) { return nil, io.ErrUnexpectedEOF }
	refused := func([]string, []byte) ([]*smtp.Reply, error) {
		return nil, smtp.Refuse(554, smtp.Enhanced{5, 6, 0}, "not this message")
	}
	full := smtp.Refuse(452, smtp.Enhanced{4, 3, 1}, "no room")
	const kept = "250 2.6.0 message kept as m1"
	for _, c := range []struct {
		name   string
		routes func(a, b *Route)
		begin  func(backend string) error
		data   func([]string, []byte) ([]*smtp.Reply, error)
		fail   error
		to     []string
		answer string
		kept   []string
		heard  []string // by the far side, but for what was only asked
		dups   int64
	}{
		{"direct", queued, nil, nil, nil, []string{"x@example.org"}, "250 2.0.0 queued as 1", nil, []string{"data <x@example.org>"}, 0},
		{"queue", queued, nil, nil, nil, []string{"x@example.com", "y@example.com"}, kept, []string{"a <x@example.com>, a <y@example.com>"}, nil, 0},
		{"all queued, two backends", bothQueued, nil, nil, nil, []string{"x@example.com", "y@example.org"}, kept, []string{"a <x@example.com>, b <y@example.org>"}, nil, 0},
		{"direct beside queue", queued, nil, nil, nil, []string{"x@example.com", "y@example.org"}, kept, []string{"a <x@example.com>"}, []string{"data <y@example.org>"}, 0},
		{"two direct backends", func(a, b *Route) {}, nil, nil, nil, []string{"x@example.com", "y@example.org", "z@example.com"}, kept, []string{"b <y@example.org>"}, []string{"data <x@example.com> <z@example.com>"}, 0},
		{"mixed results", queued, nil, atData, nil, []string{"y@example.org", "d452@example.org", "d552@example.org"}, kept,
			[]string{"b <d452@example.org> 452, b <d552@example.org> 552"}, []string{"data <y@example.org> <d452@example.org> <d552@example.org>"}, 0},
		{"all refused", queued, nil, atData, nil, []string{"d552@example.org", "d554@example.org"}, "552 5.0.0 for d552", nil, []string{"data <d552@example.org> <d554@example.org>"}, 0},
		{"all refused for now", queued, nil, atData, nil, []string{"d452@example.org"}, "452 4.0.0 for d452", nil, []string{"data <d452@example.org>"}, 0},
		{"direct refused, others kept", queued, nil, atData, nil, []string{"d552@example.org", "x@example.com"}, kept,
			[]string{"a <x@example.com>, b <d552@example.org> 552"}, []string{"data <d552@example.org>"}, 0},
		{"the message refused", queued, nil, refused, nil, []string{"y@example.org", "x@example.com"}, "554 5.6.0 not this message", nil, []string{"data <y@example.org>"}, 0},
		{"keep fails", queued, nil, nil, full, []string{"x@example.com"}, "452 4.3.1 no room", nil, nil, 0},
		{"keep fails without a reply", queued, nil, nil, errors.New("broken"), []string{"x@example.com"}, "451 4", nil, nil, 0},
		{"keep fails beside a delivery", queued, nil, nil, errors.New("broken"), []string{"y@example.org", "x@example.com"}, "451 4", nil, []string{"data <y@example.org>"}, 1},
		{"keep fails beside a refusal", queued, nil, atData, full, []string{"d552@example.org", "x@example.com"}, "452 4.3.1", nil, []string{"data <d552@example.org>"}, 0},
		{"down, may wait", whenDown, down, nil, nil, []string{"x@example.com"}, kept, []string{"a <x@example.com>"}, nil, 0},
		{"down, may wait beside others", whenDown, down, nil, nil, []string{"x@example.com", "y@example.org"}, kept, []string{"b <y@example.org>, a <x@example.com>"}, nil, 0},
		{"down, may not wait", func(a, _ *Route) { a.Recipients.Accept = true }, down, nil, nil, []string{"x@example.com"}, "451 4.4.1 a is down", nil, nil, 0},
		{"lost at the data, may wait", whenDown, nil, lost, nil, []string{"x@example.com"}, "451 4.4.2", nil, []string{"data <x@example.com>"}, 0},
		{"refused at the data, may wait", whenDown, nil, refused, nil, []string{"x@example.com"}, "554", nil, []string{"data <x@example.com>"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{routes: routesFor(c.routes)}
			r.far.begin, r.far.data = c.begin, c.data
			k := r.keeping()
			k.fail = c.fail
			p := r.start(t).hello(t)
			p.begin(c.to...)
			if got := p.data(testMessage); !strings.HasPrefix(got, c.answer) {
				t.Errorf("answer: got %q, want %q", got, c.answer)
			}
			p.talk("QUIT => 221")
			is(t, "kept", k.told(), c.kept)
			heard := slices.DeleteFunc(r.far.told(), func(s string) bool { return !strings.HasPrefix(s, "data") })
			is(t, "heard", heard, c.heard)
			if got := r.gw.Stats.Duplicates.Load(); got != c.dups {
				t.Errorf("duplicates: got %d, want %d", got, c.dups)
			}
			if got := r.gw.Stats.Kept.Load(); got != int64(len(c.kept)) {
				t.Errorf("counted as kept: %d, want %d", got, len(c.kept))
			}
		})
	}
}

// TestKeepAsks: who says at RCPT whether a recipient exists whose mail is kept: the backend,
// unless somebody else vouches.
func TestKeepAsks(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("x@example.com\nr550@example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		recipients Recipients
		to, answer string
		asked      bool
	}{
		{"known", Recipients{}, "x@example.com", "250", true},
		{"unknown", Recipients{}, "r550@example.com", "550", true},
		{"not now", Recipients{}, "r450@example.com", "45", true},
		{"accept", Recipients{Accept: true}, "r550@example.com", "250", false},
		{"list", Recipients{List: &ListOptions{Path: list}}, "r550@example.com", "250", false},
		{"not in the list", Recipients{List: &ListOptions{Path: list}}, "y@example.com", "550", false},
		{"callout", Recipients{Callout: &CalloutOptions{}}, "r550@example.com", "550", true},
	} {
		for _, second := range []bool{false, true} { // behind a recipient of another backend
			t.Run(fmt.Sprintf("%s/second=%v", c.name, second), func(t *testing.T) {
				r := &rig{routes: routesFor(func(a, _ *Route) { a.Queue, a.Recipients = !second, c.recipients })}
				r.far.rcpt = byPart
				k := r.keeping()
				p := r.start(t).hello(t)
				p.begin()
				if second {
					p.talk("RCPT TO:<first@example.org> => 250")
				}
				p.talk("RCPT TO:<" + c.to + "> => " + c.answer)
				asked := slices.Contains(r.far.told(), "rcpt <"+c.to+">")
				if asked != c.asked {
					t.Errorf("the backend was asked: %v, want %v", asked, c.asked)
				}
				p.talk("RSET => 250", "QUIT => 221")
				is(t, "kept", k.told(), nil)
			})
		}
	}
}

// TestWhenDownVouched: of a backend that is down only those may wait for whom somebody else
// vouches. RCPT is where the others hear of it.
func TestWhenDownVouched(t *testing.T) {
	r := &rig{routes: routesFor(func(a, b *Route) { a.QueueWhenDown = true; b.QueueWhenDown, b.Recipients.Accept = true, true })}
	r.far.begin = func(string) error { return smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "down") }
	k := r.keeping()
	p := r.start(t).hello(t)
	p.talk("MAIL FROM:<from@client.test> => 250", "RCPT TO:<x@example.com> => 451 4.4.1", "RCPT TO:<y@example.org> => 250")
	if got := p.data(testMessage); got != "250 2.6.0 message kept as m1" {
		t.Errorf("answer: got %q", got)
	}
	p.talk("QUIT => 221")
	is(t, "kept", k.told(), []string{"b <y@example.org>"})
}

// TestKeepHeld: what a filter wants held is kept for all, whatever their routes, with its
// reason, and no backend gets it.
func TestKeepHeld(t *testing.T) {
	for _, reason := range []string{"", "looks strange"} {
		for _, stage := range []policy.Stage{policy.StageMail, policy.StageRcpt, policy.StageMessage} {
			r := &rig{routes: routesFor(func(a, _ *Route) { a.Queue = true }),
				links: []policy.Link{filter("judge", stage, func(*policy.Event) policy.Verdict {
					return policy.Verdict{Action: policy.Quarantine, Reason: reason}
				})}}
			k := r.keeping()
			p := r.start(t).hello(t)
			p.begin("x@example.com", "y@example.org")
			if got := p.data(testMessage); got != "250 2.6.0 message kept as m1" {
				t.Errorf("answer: got %q", got)
			}
			p.talk("QUIT => 221")
			want := reason
			if want == "" {
				want = "held by a filter"
			}
			is(t, "kept", k.told(), []string{"a <x@example.com>, b <y@example.org> (" + want + ")"})
			if r.far.last() != nil {
				t.Error("a backend has it")
			}
		}
	}
}

// TestKeptContent: what is kept has our trace field, and names in it no recipient that another
// could see.
func TestKeptContent(t *testing.T) {
	r := &rig{routes: routesFor(func(a, _ *Route) { a.Queue = true })}
	k := r.keeping()
	p := r.start(t).hello(t)
	for _, to := range [][]string{{"y@example.org", "x@example.com"}, {"x@example.com", "z@example.com"}, {"y@example.org", "x@example.com", "z@example.com"}} {
		p.begin(to...)
		p.data(testMessage)
	}
	p.talk("QUIT => 221")
	for i, want := range []string{"for <x@example.com>", "", ""} {
		text := k.text[i]
		if body([]byte(text)) != testMessage {
			t.Errorf("kept %d:\n%s", i, text)
		}
		trace, _, _ := strings.Cut(text, "From: ")
		if !strings.Contains(trace, want) || want == "" && strings.Contains(trace, "for <") || strings.Contains(trace, "y@example.org") {
			t.Errorf("kept %d: the field is %q, want %q in it", i, trace, want)
		}
	}
	m := k.kept[0]
	if m.Listener != "mx" || m.Session == "" || m.Client.Helo != "client.test" || m.Sender.Path.String() != "from@client.test" {
		t.Errorf("origin: %+v", m)
	}
}

// TestKeepLMTP: each recipient is told what became of it, kept or not.
func TestKeepLMTP(t *testing.T) {
	const kept = "250 2.6.0 message kept as m1"
	hold := filter("judge", policy.StageMessage, func(*policy.Event) policy.Verdict { return policy.Verdict{Action: policy.Quarantine, Reason: "odd"} })
	none := policy.Link{Filter: policy.Func("none", 0, nil)}
	for _, c := range []struct {
		name string
		link policy.Link
		fail error
		to   []string
		want []string
		kept []string
	}{
		{"direct", none, nil, []string{"y@example.org", "d552@example.org"}, []string{"250 2.0.0 for y", "552 5.0.0 for d552"}, nil},
		{"kept", none, nil, []string{"x@example.com", "z@example.com"}, []string{kept, kept}, []string{"a <x@example.com>, a <z@example.com>"}},
		{"both", none, nil, []string{"x@example.com", "d452@example.org", "y@example.org"}, []string{kept, "452 4.0.0 for d452", "250 2.0.0 for y"}, []string{"a <x@example.com>"}},
		{"keep fails", none, errors.New("broken"), []string{"x@example.com", "z@example.com"}, []string{"451 4", "451 4"}, nil},
		{"keep fails beside a delivery", none, errors.New("broken"), []string{"x@example.com", "y@example.org"}, []string{"451 4", "250 2.0.0 for y"}, nil},
		{"held", hold, nil, []string{"x@example.com", "y@example.org"}, []string{kept, kept}, []string{"a <x@example.com>, b <y@example.org> (odd)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{routes: routesFor(func(a, _ *Route) { a.Queue = true }), links: []policy.Link{c.link},
				listener: Listener{Server: smtp.ServerOptions{LMTP: true}}}
			r.far.data = atData
			k := r.keeping()
			k.fail = c.fail
			p := r.start(t).dial(t, "mx")
			p.talk(" => 220", "LHLO client.test => 250")
			p.begin(c.to...)
			got := []string{p.data(testMessage)}
			for len(got) < len(c.to) {
				got = append(got, p.reply())
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("answers: got %q, want %q", got, c.want)
					break
				}
			}
			p.talk("NOOP => 250", "QUIT => 221")
			is(t, "kept", k.told(), c.kept)
			if n := r.gw.Stats.Duplicates.Load(); n != 0 {
				t.Errorf("duplicates: %d", n)
			}
		})
	}
}

// TestKeepFilters: recipients of filters go their own way, and one where no mail goes is that
// filter's failure.
func TestKeepFilters(t *testing.T) {
	for _, c := range []struct {
		name   string
		onFail policy.OnError
		add    string
		answer string
		kept   []string
	}{
		{"added for the queue", policy.OnErrorAccept, "z@example.com", "250 2.6.0", []string{"a <x@example.com>, a <z@example.com>"}},
		{"nowhere, overlooked", policy.OnErrorAccept, "z@nowhere.test", "250 2.6.0", []string{"a <x@example.com>"}},
		{"nowhere", policy.OnErrorTempfail, "z@nowhere.test", "451", nil},
		{"nowhere, held", policy.OnErrorQuarantine, "z@nowhere.test", "250 2.6.0", []string{"a <x@example.com> (filter failed: recipient <z@nowhere.test> is refused: 550 5.7.1 relaying denied: no mail for this domain here)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			link := edit(policy.StageMessage, "", add(c.add))
			link.OnError = c.onFail
			r := &rig{routes: routesFor(func(a, _ *Route) { a.Queue = true }), links: []policy.Link{link}}
			k := r.keeping()
			p := r.start(t).hello(t)
			p.begin("x@example.com")
			if got := p.data(testMessage); !strings.HasPrefix(got, c.answer) {
				t.Errorf("answer: got %q, want %q", got, c.answer)
			}
			p.talk("QUIT => 221")
			is(t, "kept", k.told(), c.kept)
		})
	}
}

// TestKeepOffers: what a store lets us promise is offered if all mail goes into it, and delivery in
// time if the backends promise their part.
func TestKeepOffers(t *testing.T) {
	rules := func(r *rig) *ruleSet { return r.build(t).rules.Load() }
	dsn := map[string]smtp.Extensions{"a": {DSN: true}, "b": {DSN: true}}
	by := func(a, b time.Duration) map[string]smtp.Extensions {
		return map[string]smtp.Extensions{"a": {DeliverBy: a}, "b": {DeliverBy: b}}
	}
	for _, c := range []struct {
		name   string
		queue  [2]bool
		keeper bool
		held   bool // the client may have mail held
		offers map[string]smtp.Extensions
		want   smtp.Extensions
	}{
		{"all queue", [2]bool{true, true}, true, false, nil, smtp.Extensions{DSN: true, Priority: true}},
		{"all queue, logged in", [2]bool{true, true}, true, true, nil, smtp.Extensions{DSN: true, Priority: true, FutureRelease: 7 * 24 * time.Hour}},
		{"all queue, in time", [2]bool{true, true}, true, false, by(time.Second, 2*time.Minute), smtp.Extensions{DSN: true, Priority: true, DeliverBy: 2 * time.Minute}},
		{"all queue, one in time", [2]bool{true, true}, true, false, by(time.Second, 0), smtp.Extensions{DSN: true, Priority: true}},
		{"one direct", [2]bool{true, false}, true, true, nil, smtp.Extensions{}},
		{"one direct that reports", [2]bool{true, false}, true, true, dsn, smtp.Extensions{DSN: true}},
		{"no keeper", [2]bool{true, true}, false, true, dsn, smtp.Extensions{DSN: true}},
	} {
		r := &rig{routes: routesFor(func(a, b *Route) { a.Queue, b.Queue = c.queue[0], c.queue[1] })}
		r.far.offers = c.offers
		var relay Relay = &r.far
		if c.keeper {
			relay = r.keeping()
		}
		if got := rules(r).offers(relay, false, c.held); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}

	r := &rig{routes: routesFor(func(a, b *Route) { a.Queue, b.Queue = true, true })}
	r.keeping()
	p := r.start(t).dial(t, "mx")
	p.talk(" => 220")
	p.send("EHLO client.test\r\n")
	got := p.reply()
	for word, want := range map[string]bool{"DSN": true, "MT-PRIORITY": true, "DELIVERBY": false, "FUTURERELEASE": false} {
		if strings.Contains(got, word) != want {
			t.Errorf("EHLO: %s offered: %v, want %v in %q", word, !want, want, got)
		}
	}
	p.talk("MAIL FROM:<from@client.test> HOLDFOR=60 => 555", "QUIT => 221")
}
