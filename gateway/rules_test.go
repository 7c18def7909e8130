package gateway

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// TestRoute: the first route that matches wins.
func TestRoute(t *testing.T) {
	own, _ := smtp.ParseDomain(testHost)
	table := []Route{
		{Domains: []string{"example.com", "*.example.com"}, Backend: "one"},
		{Domains: []string{"deep.example.com", "*.example.org"}, Backend: "two"},
		{Domains: []string{"mail.example.org", "example.org"}, Backend: "three"},
		{Domains: []string{"Bücher.example", "*.xn--bcher-kva.example"}, Backend: "idn"},
		{Domains: []string{"[192.0.2.1]"}, Backend: "literal"},
		{Domains: []string{"*"}, Backend: "any"},
		{Domains: []string{"late.test"}, Backend: "late"},
	}
	host := append([]Route{{Domains: []string{"*"}, Backend: "any"}, {Domains: []string{"example.com"}, Backend: "one"}}, Route{Domains: []string{testHost}, Backend: "own"})
	single := []Route{{Addresses: []string{"TLSRPT@example.com", "postmaster@" + testHost}, Backend: "reports"}, {Domains: []string{"example.com"}, Addresses: []string{"a@elsewhere.test"}, Backend: "one"},
		{Addresses: []string{"b@example.com"}, Backend: "late"}}
	for _, c := range []struct {
		routes   []Route
		to       string
		anywhere bool
		want     string
	}{
		{table, "a@example.com", false, "one"},
		{table, "a@EXAMPLE.Com", false, "one"},
		{table, "a@sub.example.com", false, "one"},
		{table, "a@a.b.c.example.com", false, "one"},
		{table, "a@deep.example.com", false, "one"}, // the wildcard stands before it
		{table, "a@notexample.com", false, ""},
		{table, "a@example.com.evil.test", false, ""},
		{table, "a@com", false, ""},
		{table, "a@mail.example.org", false, "two"},
		{table, "a@example.org", false, "three"}, // a wildcard is for names below
		{table, "a@bücher.example", false, "idn"},
		{table, "a@BÜCHER.example", false, "idn"},
		{table, "a@xn--bcher-kva.example", false, "idn"},
		{table, "a@sub.bücher.example", false, "idn"},
		{table, "a@[192.0.2.1]", false, "literal"},
		{table, "a@[192.0.2.2]", false, ""},
		{table, "a@elsewhere.test", false, ""}, // "*" is for those who may relay
		{table, "a@elsewhere.test", true, "any"},
		{table, "a@example.com", true, "one"},
		{table, "a@late.test", false, "late"},
		{table, "a@late.test", true, "any"},
		{table, "postmaster", false, "one"}, // our own name has no route
		{host, "postmaster", false, "own"},
		{host, "postmaster", true, "any"},
		{host[:2], "postmaster", false, "one"}, // "*" is no place for it
		{host[:1], "postmaster", false, ""},
		{nil, "postmaster", true, ""},
		{single, "tlsrpt@example.com", false, "reports"},
		{single, "TlsRpt@Example.COM", false, "reports"}, // it is ours, so the case is nobody's business
		{single, "tlsrpt@sub.example.com", false, ""},
		{single, "a@example.com", false, "one"},
		{single, "b@example.com", false, "one"}, // the domain stands before it
		{single, "a@elsewhere.test", false, "one"},
		{single, "b@elsewhere.test", false, ""},
		{single, "postmaster", false, "reports"},
	} {
		rs, err := newRuleSet(Rules{Routes: c.routes})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if i, ok := rs.route(path(c.to), own, c.anywhere); ok {
			got = rs.Routes[i].Backend
		}
		if got != c.want {
			t.Errorf("%s, anywhere %v: got %q, want %q", c.to, c.anywhere, got, c.want)
		}
	}
}

// TestBadRules: each is refused, with all that is wrong, and what was there stays.
func TestBadRules(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules Rules
		want  []string
	}{
		{"domains", Rules{Routes: []Route{{Domains: []string{"a_b", "*.*", "", "example.com."}, Backend: "a"}}}, []string{`route 1: not a domain name: "a_b"`, `"*"`, `""`, `"example.com."`}},
		{"below an address", Rules{Routes: []Route{{Domains: []string{"*.[192.0.2.1]"}, Backend: "a"}}}, []string{"nothing is below an address"}},
		{"no backend", Rules{Routes: []Route{{Domains: []string{"example.com"}}, {Domains: []string{"-"}}}}, []string{"route 1: no backend", "route 2: no backend", `"-"`}},
		{"no chain", Rules{}, []string{`listener mx: there is no chain "in"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{}
			old, fresh := 0, 0
			gw := r.build(t)
			if err := gw.Reload(r.rules(func() { old++ })); err != nil {
				t.Fatal(err)
			}
			c.rules.Release = func() { fresh++ }
			err := gw.Reload(c.rules)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
			if _, err := New(gw.opts, c.rules); err == nil {
				t.Error("New takes them")
			}
			if old != 0 || fresh != 0 {
				t.Errorf("released: old %d, new %d; want neither", old, fresh)
			}
			r.stop(t)
			if old != 1 || fresh != 0 {
				t.Errorf("released after Shutdown: old %d, new %d; want the old once", old, fresh)
			}
			if err := gw.Reload(r.rules(func() { fresh++ })); !errors.Is(err, ErrClosed) || fresh != 0 {
				t.Errorf("Reload after Shutdown: %v, released %d", err, fresh)
			}
		})
	}
}

// TestSessionsKeepRules: a session goes on with what it began with, and holds it.
func TestSessionsKeepRules(t *testing.T) {
	r := (&rig{}).start(t)
	var released [3]atomic.Int32
	release := func(i int) func() { return func() { released[i].Add(1) } }
	r.gw.Reload(r.rules(release(0)))
	p := r.hello(t)
	other := r.hello(t)
	r.routes = []Route{{Domains: []string{"example.net"}, Backend: "n"}}
	r.gw.Reload(r.rules(release(1)))
	p.talk("MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<a@example.net> => 550")
	q := r.hello(t)
	q.talk("MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 550", "RCPT TO:<a@example.net> => 250")
	other.talk("QUIT => 221", " => closed")
	if n := released[0].Load(); n != 0 {
		t.Errorf("released %d times while a session uses it", n)
	}
	p.talk("QUIT => 221", " => closed")
	r.gw.Reload(r.rules(release(2)))
	q.talk("QUIT => 221", " => closed")
	r.stop(t)
	for i := range released {
		if n := released[i].Load(); n != 1 {
			t.Errorf("rules %d released %d times, want once", i, n)
		}
	}
}

// TestReloadUnderLoad: while mail flows, rules are replaced again and again. None is used
// after its release, and each is released once.
func TestReloadUnderLoad(t *testing.T) {
	const clients, sessions, messages, reloads = 8, 10, 3, 100
	r := (&rig{}).start(t)
	type generation struct{ used, released atomic.Int32 }
	generations := make([]generation, reloads)
	var late atomic.Int32
	rules := func(g *generation) Rules {
		r := r.rules(func() { g.released.Add(1) })
		r.Chains = map[string]*policy.Chain{"in": policy.NewChain(filter("watch", policy.StageMessage, func(*policy.Event) policy.Verdict {
			g.used.Add(1)
			late.Add(g.released.Load())
			return policy.Verdict{}
		}))}
		return r
	}
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range sessions {
				p := r.hello(t)
				for range messages {
					p.begin("a@example.com")
					if got := p.data(testMessage); got != "250 2.0.0 queued as 1" {
						t.Errorf("got %q", got)
					}
				}
				p.talk("QUIT => 221")
			}
		})
	}
	for i := range generations {
		for r.gw.Stats.Relayed.Load() < int64(i*clients*sessions*messages/reloads) {
			if t.Failed() {
				break
			}
			p := r.hello(t) // passes the time
			p.talk("QUIT => 221")
		}
		if err := r.gw.Reload(rules(&generations[i])); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	r.stop(t)
	used := 0
	for i := range generations {
		g := &generations[i]
		if g.released.Load() != 1 {
			t.Errorf("rules %d released %d times, want once", i, g.released.Load())
		}
		if g.used.Load() > 0 {
			used++
		}
	}
	if late.Load() != 0 || used < 2 {
		t.Errorf("%d uses after the release; %d of %d rules used, want some", late.Load(), used, reloads)
	}
	if n := len(r.far.messages); n != clients*sessions*messages {
		t.Errorf("messages: got %d, want %d", n, clients*sessions*messages)
	}
}
