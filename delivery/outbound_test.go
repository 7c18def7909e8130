package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// outbound_test.go: mail for elsewhere, with hosts in memory at addresses that nobody has.

// abroad is a house whose engine delivers to hosts elsewhere.
type abroad struct {
	house
	n     network
	plans plans
	// set changes the options.
	set  func(*OutboundOptions)
	tune func(*EngineOptions)
	rec  recorder
}

// plans are plans that a test has made. It is safe for concurrent use.
type plans struct {
	mu    sync.Mutex // guards what follows
	hosts map[string][]PlannedHost
	fails map[string]error
	waits map[string]time.Duration
	// policy is the id of the MTA-STS policy of all, and renew what Renew does first.
	policy string
	renew  func()
}

// Renew implements what a Planner does when a policy is in the way.
func (p *plans) Renew(ctx context.Context, t mx.Target, n Need) (*Plan, error) {
	if p.renew != nil {
		p.renew()
	}
	return p.Plan(ctx, t, n)
}

func (p *plans) Plan(ctx context.Context, t mx.Target, n Need) (*Plan, error) {
	p.mu.Lock()
	name := t.String()
	for _, g := range n.Given {
		name = g.Host
	}
	wait, err, hosts := p.waits[name], p.fails[name], slices.Clone(p.hosts[name])
	policy := p.policy
	delete(p.waits, name) // the next one finds it in a cache
	p.mu.Unlock()
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	plan := &Plan{Target: t, Need: n, Route: &mx.Route{Target: t}, Hosts: hosts}
	if policy != "" {
		plan.STS.Policy = &mtasts.Policy{ID: policy}
	}
	var names []string
	for i := range hosts {
		names = append(names, hosts[i].Name)
		if n.weak() {
			hosts[i].Demand, hosts[i].Refused, hosts[i].Reports = DemandOpportunistic, nil, nil
		}
		hosts[i].RequireTLS = n.RequireTLS
	}
	plan.Site = strings.Join(names, ",")
	return plan, nil
}

// put plans hosts for a domain, in order: "mx1.test 192.0.2.1 192.0.2.2".
func (p *plans) put(domain string, hosts ...string) {
	var list []PlannedHost
	for i, text := range hosts {
		f := strings.Fields(text)
		h := PlannedHost{Host: mx.Host{Name: f[0], Preference: uint16(10 * i)}, Port: 25, Demand: DemandOpportunistic, SNI: f[0], domain: domain,
			Reports: []tlsrpt.Policy{{Type: tlsrpt.NoPolicy, Domain: domain}}}
		for _, a := range f[1:] {
			h.Addrs = append(h.Addrs, netip.MustParseAddr(a))
		}
		list = append(list, h)
	}
	p.set(domain, list)
}

func (p *plans) set(domain string, list []PlannedHost) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hosts == nil {
		p.hosts, p.fails, p.waits = make(map[string][]PlannedHost), make(map[string]error), make(map[string]time.Duration)
	}
	p.hosts[domain] = list
}

// recorder keeps what was reported.
type recorder struct {
	mu   sync.Mutex
	list []tlsrpt.Event // guarded by mu
}

func (r *recorder) Record(e tlsrpt.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
}

// open makes the house. hosts are by address.
func (a *abroad) open(t testing.TB, hosts map[string]*fake) *abroad {
	a.n.hosts, a.n.holes = make(map[string]*fake), make(map[string]bool)
	for addr, f := range hosts {
		a.n.hosts[addr+":25"] = f
	}
	guard, err := mx.NewGuard(mx.GuardOptions{AllowReserved: true, Machine: func() ([]netip.Addr, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	a.options = func(o *EngineOptions) {
		o.Outbound = &OutboundOptions{Planner: &a.plans, Dial: a.n.dial, Guard: guard, Recorder: &a.rec}
		o.Route = func(smtp.Path) store.Destination { return "nowhere:reports" }
		if a.set != nil {
			a.set(o.Outbound)
		}
		if a.tune != nil {
			a.tune(o)
		}
	}
	t.Cleanup(func() { // after the house was closed
		open, _ := a.e.out.links.count()
		check(t, "connections at the end", open, 0)
		for _, f := range hosts {
			if f != nil {
				f.stop()
			}
		}
	})
	a.house.open(t)
	return a
}

// mail is a letter for recipients elsewhere.
func mail(t testing.TB, to ...string) Keeping {
	t.Helper()
	k := Keeping{Sender: from(t), Content: letter}
	for _, r := range to {
		p := path(t, r)
		k.Recipients = append(k.Recipients, KeptRecipient{Recipient: smtp.Recipient{Path: p}, Destination: MXDestination(mx.TargetOf(p.Domain))})
	}
	return k
}

func (h *house) message(id store.ID) *store.Message {
	h.t.Helper()
	m, err := h.store.Queue().Message(context.Background(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return m
}

// TestElsewhere: what a host does at each step, and what becomes of the message: what is about the
// connection goes on to the next address, and what is about the mail is an answer.
func TestElsewhere(t *testing.T) {
	no := func(prefix, reply string) *fake { return &fake{answer: on(prefix, reply)} }
	endless := strings.Repeat("250-more\n", 5000) + "250 end"
	for _, c := range []struct {
		name string
		host *fake  // nil refuses connections
		want string // of the recipient if it is the only host
		next bool   // a second one is asked
		said string // of the last words, what is to be found
	}{
		{"takes it", &fake{}, "gone", false, ""},
		{"is not there", nil, "waiting 1", true, "451 4.4.1"},
		{"closes before the greeting", &fake{greeting: "drop"}, "waiting 1", true, "451 4.4.2"},
		{"hangs before the greeting", &fake{greeting: "hang"}, "waiting 1", true, "in time"},
		{"greets with 421", &fake{greeting: "421 4.3.2 too many connections"}, "waiting 1", true, "421 4.3.2 too many"},
		{"greets with 554", &fake{greeting: "554 5.7.1 we do not like you"}, "waiting 1", true, "451 4.7.1 we do not like you"},
		{"takes no mail at all", &fake{greeting: "521 5.3.2 no mail here"}, "gone", true, ""},
		{"greets with nonsense", &fake{greeting: "hello"}, "waiting 1", true, "451 4.4.2"},
		{"greets for ever", &fake{greeting: strings.ReplaceAll(endless, "250", "220")}, "waiting 1", true, "451 4.4.2"},
		{"refuses EHLO and HELO", &fake{answer: func(l string) string {
			if strings.HasPrefix(l, "EHLO") || strings.HasPrefix(l, "HELO") {
				return "550 5.7.1 bad name"
			}
			return ""
		}}, "waiting 1", true, "451 4.7.1 bad name"},
		{"answers EHLO without end", no("EHLO", endless), "waiting 1", true, "451 4.4.2"},
		{"has another code in each line", no("EHLO", "250-a\n550 b"), "waiting 1", true, "451 4.4.2"},
		{"says a blank line", no("EHLO", "\n"), "waiting 1", true, "451 4.4.2"},
		{"hangs at MAIL", no("MAIL", "hang"), "waiting 1", true, "451 4.4.2"},
		{"puts MAIL off", no("MAIL", "451 4.3.1 disk"), "waiting 1", true, "451 4.3.1 disk"},
		{"refuses MAIL", no("MAIL", "550 5.1.8 who?"), "gone", false, ""},
		{"closes with 421 at MAIL", no("MAIL", "421 4.3.2 bye"), "waiting 1", true, "421 4.3.2 bye"},
		{"refuses RCPT", no("RCPT", "550 5.1.1 no such user"), "gone", false, ""},
		{"puts RCPT off", no("RCPT", "450 4.2.0 greylisted"), "waiting 1", false, "450 4.2.0 greylisted"},
		{"closes with 421 at RCPT", no("RCPT", "421 4.3.2 bye"), "waiting 1", true, "421 4.3.2 bye"},
		{"drops at RCPT", no("RCPT", "drop"), "waiting 1", true, "451 4.4.2"},
		{"refuses DATA", no("DATA", "554 5.6.0 no"), "gone", false, ""},
		{"puts DATA off", no("DATA", "451 4.3.0 no"), "waiting 1", false, "451 4.3.0 no"},
		{"answers DATA with 250", no("DATA", "250 2.0.0 fine"), "waiting 1", true, "451 4.4.2"},
		{"says 8-bit text", &fake{end: func(string) string { return "550 5.1.1 n\xf6" }}, "gone", false, ""},
		{"refuses the message", &fake{end: func(string) string { return "554 5.7.1 spam" }}, "gone", false, ""},
		{"puts the message off", &fake{end: func(string) string { return "452 4.3.1 full" }}, "waiting 1", false, "452 4.3.1 full"},
		{"closes with 421 at the end", &fake{end: func(string) string { return "421 4.3.2 bye" }}, "waiting 1", false, "451 4.3.2 bye"},
		{"drops at the end", &fake{end: func(string) string { return "drop" }}, "waiting 1", false, "451 4.4.2"},
		{"hangs at the end", &fake{end: func(string) string { return "hang" }}, "waiting 1", false, "451 4.4.2"},
		{"drops amid the content", &fake{inData: func() string { return "drop" }}, "waiting 1", false, "451 4.4.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				second := &fake{}
				a := &abroad{set: func(o *OutboundOptions) {
					s := time.Second
					o.Timeouts = smtp.Timeouts{Greeting: s, Command: s, DataInit: s, DataBlock: s, DataEnd: s}
				}}
				a.plans.put("one.test", "mx1.one.test 192.0.2.1")
				a.plans.put("two.test", "mx1.one.test 192.0.2.1", "mx2.two.test 192.0.2.2")
				a.open(t, map[string]*fake{"192.0.2.1": c.host, "192.0.2.2": second}).run()
				id := a.keep(mail(t, "to@one.test"))
				after(10 * time.Second)
				check(t, "alone", a.states(id), c.want)
				if c.said != "" {
					m := a.message(id)
					if r := m.Recipients[0].Last; !strings.Contains(r.Line(), c.said) {
						t.Errorf("last words: got %q, want %q in it", r.Line(), c.said)
					}
				}
				after(time.Hour) // what is remembered of the host is over
				a.quiet(time.Second)
				a.close()

				b := &abroad{set: a.set}
				b.plans.put("two.test", "mx1.one.test 192.0.2.1", "mx2.two.test 192.0.2.2")
				first := c.host
				if first != nil {
					first = &fake{greeting: c.host.greeting, answer: c.host.answer, end: c.host.end, inData: c.host.inData}
				}
				b.open(t, map[string]*fake{"192.0.2.1": first, "192.0.2.2": second}).run()
				id = b.keep(mail(t, "to@two.test"))
				after(10 * time.Second)
				check(t, "the next is asked", second.heard("MAIL") > 0, c.next)
				if c.next {
					check(t, "with a next host", b.states(id), "gone")
				}
			})
		})
	}
}

// TestAsSaid: what the sender said of the content decides what a host must know, and not what is
// in it.
func TestAsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &abroad{}
		a.plans.put("one.test", "mx1.one.test 192.0.2.1")
		plain := &fake{ehlo: []string{"PIPELINING"}}
		a.open(t, map[string]*fake{"192.0.2.1": plain}).run()
		ascii, legacy := "Subject: x\r\n\r\nx\r\n", "Subject: gr\u00fc\u00dfe\r\n\r\n\u00fc\r\n"
		sent := 0
		for _, c := range []struct {
			content string
			utf8    bool
			body    smtp.Body
			goes    bool
		}{
			{legacy, false, "", true}, // nobody has spoken of it
			{legacy, true, "", false},
			{legacy, false, smtp.BodyEightBit, false},
			{ascii, true, smtp.BodyEightBit, true}, // it needs neither
		} {
			k := mail(t, "to@one.test")
			k.Sender.UTF8, k.Sender.Body, k.Content = c.utf8, c.body, text(c.content)
			id := a.keep(k)
			after(time.Second)
			check(t, fmt.Sprintf("state of %+v", c), a.states(id), "gone")
			if c.goes {
				sent++
			}
			check(t, fmt.Sprintf("DATA of %+v", c), plain.heard("DATA"), sent)
		}
		a.close()
	})
}

// TestRecordElsewhere: an attempt's record, a report and the log name the host and what it showed.
func TestRecordElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := new(abroad)
		a.plans.put("a.test", "mx.a.test 192.0.2.1 2001:db8::1")
		host := &fake{answer: answers(map[string]string{"RCPT TO:<nobody": "550 5.1.1 no such user", "RCPT TO:<later": "450 4.2.1 busy"})}
		a.open(t, map[string]*fake{"[2001:db8::1]": host}).run()
		id := a.keep(mail(t, "fine@a.test", "nobody@a.test", "later@a.test"))
		after(time.Second)
		check(t, "states", a.states(id), "delivered 1, failed 1, waiting 1")
		at := a.message(id).Attempts[0]
		check(t, "host", at.Host, "mx.a.test")
		check(t, "address", at.Addr, netip.MustParseAddr("2001:db8::1"))
		check(t, "TLS", at.TLS+at.Verdict, "")
		check(t, "name in EHLO", host.heard("EHLO mx.test"), 1)
		reports := a.reports()
		if len(reports) != 1 {
			t.Fatalf("got reports %q, want one", reports)
		}
		tell(t, reports[0], "Remote-MTA: dns; mx.a.test", "Diagnostic-Code: smtp; 550 5.1.1 no such user", "Final-Recipient: rfc822; nobody@a.test", "!later@a.test")
		x, err := a.e.Why(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if text := x.Recipients[2].Text; !strings.Contains(text, "mx.a.test said 450 4.2.1 busy") {
			t.Errorf("why: got %q", text)
		}
	})
}

// TestManyRecipients: they go in as many transactions as the host wants, on one connection if it
// takes more than one.
func TestManyRecipients(t *testing.T) {
	for _, c := range []struct {
		name        string
		limits      string
		most        int // that are taken of one transaction, 0 is all
		mails, dial int
	}{
		{"a hundred at a time", "", 0, 3, 1},
		{"RCPTMAX", "LIMITS RCPTMAX=60", 0, 5, 1},
		{"452 4.5.3", "", 50, 5, 1},
		{"MAILMAX", "LIMITS RCPTMAX=60 MAILMAX=2", 0, 5, 3},
		{"nonsense", "LIMITS RCPTMAX=-1 MAILMAX=99999999999999999999 RCPTMAX", 0, 3, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			taken := 0
			host := &fake{ehlo: []string{"PIPELINING", "ENHANCEDSTATUSCODES", c.limits}, answer: func(line string) string {
				switch {
				case strings.HasPrefix(line, "MAIL"):
					taken = 0
				case strings.HasPrefix(line, "RCPT"):
					if taken++; c.most > 0 && taken > c.most {
						return "452 4.5.3 too many recipients"
					}
				}
				return ""
			}}
			a := new(abroad)
			a.plans.put("a.test", "mx.a.test 192.0.2.1")
			a.open(t, map[string]*fake{"192.0.2.1": host}).run()
			var to []string
			for i := range 250 {
				to = append(to, fmt.Sprintf("to%d@a.test", i))
			}
			id := a.keep(mail(t, to...))
			after(time.Second)
			check(t, c.name+": state", a.states(id), "gone")
			check(t, c.name+": transactions", host.heard("MAIL"), c.mails)
			dialled, _ := host.dialled()
			check(t, c.name+": connections", dialled, c.dial)
			for _, r := range to {
				if n := host.heard("RCPT TO:<" + r); n == 0 {
					t.Errorf("%s: %s was never named", c.name, r)
				}
			}
		})
	}
}

// TestLinks: a connection serves the next message to the host, whatever its domain, for a while, if it
// is in order and what it showed is enough.
func TestLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &fake{}
		a := &abroad{set: func(o *OutboundOptions) { o.MaxUses = 4 }}
		for _, domain := range []string{"a.test", "b.test"} {
			a.plans.put(domain, "mx.test 192.0.2.1")
		}
		a.open(t, map[string]*fake{"192.0.2.1": host}).run()
		send := func(to string, dialled, quits int, what string) {
			t.Helper()
			id := a.keep(mail(t, to))
			after(time.Second)
			check(t, what+": state", a.states(id), "gone")
			got, _ := host.dialled()
			check(t, what+": connections", got, dialled)
			check(t, what+": ended with QUIT", host.heard("QUIT"), quits)
			check(t, what+": sessions that were reported", len(a.rec.list), dialled)
		}
		send("to@a.test", 1, 0, "first")
		send("to@b.test", 1, 0, "another domain of the host")
		after(11 * time.Second)
		check(t, "ended when it was idle", host.heard("QUIT"), 1)
		send("to@a.test", 2, 1, "after the idle time")
		host.hangUp()
		send("to@a.test", 3, 1, "after the host closed it")
		send("to@a.test", 3, 1, "again")
		send("to@a.test", 3, 1, "again")
		send("to@a.test", 3, 2, "for the fourth time, which is the last")
		send("to@a.test", 4, 2, "then")
		a.plans.mu.Lock()
		a.plans.hosts["b.test"][0].Demand = DemandEncrypted
		a.plans.mu.Unlock()
		id := a.keep(mail(t, "to@b.test"))
		after(time.Second)
		check(t, "more is asked than was shown", a.states(id), "waiting 1")
	})
}

// TestShareOfSite: domains at one provider share what it bears, and those elsewhere do not wait for
// them; nobody is forgotten.
func TestShareOfSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &fake{end: func(string) string { time.Sleep(time.Second); return "" }}
		quick := &fake{}
		a := &abroad{tune: func(o *EngineOptions) { o.DestinationWorkers = 10 }}
		for i := range 300 {
			a.plans.put(fmt.Sprintf("d%d.test", i), "mx.big.test 192.0.2.1")
		}
		a.plans.put("small.test", "mx.small.test 192.0.2.2")
		a.open(t, map[string]*fake{"192.0.2.1": slow, "192.0.2.2": quick})
		for i := range 300 {
			a.put(mail(t, fmt.Sprintf("to@d%d.test", i)), nil)
		}
		a.run()
		after(2 * time.Second)
		a.keep(mail(t, "to@small.test"))
		after(100 * time.Millisecond)
		check(t, "elsewhere", quick.heard("DATA"), 1)
		check(t, "workers", a.e.workers <= 10, true)
		after(time.Minute)
		check(t, "delivered", a.e.Stats.Delivered.Load(), 301)
		dialled, most := slow.dialled()
		if most > 10 || dialled > 20 {
			t.Errorf("got %d connections, %d at once, want at most 10, used again and again", dialled, most)
		}
		a.e.mu.Lock()
		defer a.e.mu.Unlock()
		check(t, "workers at the end", a.e.workers, 0)
		check(t, "workers at sites not proven", a.e.unproven, 0)
		check(t, "destinations at the end", len(a.e.dests), 0)
	})
}

// TestDeadAmongHundred: with one dead host among those of a hundred destinations the others get each
// message at the same moment as without; and what they put off comes again when it is to.
func TestDeadAmongHundred(t *testing.T) {
	schedule := func(dead bool) (times map[string]time.Duration) {
		times = make(map[string]time.Duration)
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			start := time.Now()
			hosts := make(map[string]*fake)
			seen := make(map[string]bool)
			a := &abroad{tune: func(o *EngineOptions) { o.Workers, o.Schedule.First = 40, time.Minute }}
			for i := range 100 {
				domain, addr := fmt.Sprintf("d%d.test", i), fmt.Sprintf("198.51.100.%d", i)
				a.plans.put(domain, "mx."+domain+" "+addr)
				hosts[addr] = &fake{answer: func(line string) string {
					to, ok := strings.CutPrefix(line, "RCPT TO:<")
					if !ok {
						return ""
					}
					mu.Lock()
					defer mu.Unlock()
					if to = to[:strings.IndexByte(to, '>')]; to[:2] == "m3" && !seen[to] {
						seen[to] = true
						return "450 4.2.0 greylisted"
					}
					times[to] = time.Since(start).Round(time.Second)
					return ""
				}}
			}
			a.open(t, hosts)
			a.n.holes["198.51.100.7:25"] = true
			a.run()
			for m := range 10 {
				for i := range 100 {
					switch to := fmt.Sprintf("m%d@d%d.test", m, i); {
					case i != 7:
						a.keep(mail(t, to))
					case dead:
						for range 20 {
							a.keep(mail(t, to))
						}
					}
				}
				after(10 * time.Second)
			}
			after(time.Hour)
			check(t, "the dead one was tried", a.e.Stats.Deferred.Load() > 400, dead)
		})
		return times
	}
	without, with := schedule(false), schedule(true)
	check(t, "messages", len(with), 990)
	for to, want := range without {
		off := with[to] - want
		if to[:2] == "m3" { // the second try is at a time by lot
			off /= 13
		}
		if off.Abs() >= time.Second {
			t.Errorf("%s: got it at %v, without a dead host at %v", to, with[to], want)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestManyDead: hosts that do not answer never have so many workers that there is none for those
// that do.
func TestManyDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := &fake{}
		a := &abroad{tune: func(o *EngineOptions) { o.Workers = 20 }}
		a.plans.put("good.test", "mx.good.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": good})
		for i := range 200 {
			domain, addr := fmt.Sprintf("d%d.test", i), fmt.Sprintf("198.51.100.%d", i)
			a.plans.put(domain, "mx."+domain+" "+addr)
			a.n.holes[addr+":25"] = true
		}
		a.run()
		a.keep(mail(t, "to@good.test"))
		after(time.Second)
		for i := range 200 {
			for range 3 {
				a.put(mail(t, fmt.Sprintf("to@d%d.test", i)), nil)
			}
		}
		a.e.nudge()
		after(5 * time.Second)
		for i := range 50 {
			a.keep(mail(t, "to@good.test"))
			after(100 * time.Millisecond)
			check(t, "delivered", good.heard("DATA"), i+2)
		}
		after(20 * time.Minute)
		check(t, "tries", a.e.Stats.Deferred.Load() >= 600, true)
	})
}

// TestSlowPlans: a name server that does not answer keeps no worker.
func TestSlowPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good := &fake{}
		a := &abroad{tune: func(o *EngineOptions) { o.Workers = 2 }}
		a.plans.put("good.test", "mx.good.test 192.0.2.1")
		for i := range 20 {
			domain := fmt.Sprintf("d%d.test", i)
			a.plans.waits[domain] = 30 * time.Second
			a.plans.fails[domain] = &mx.Error{Category: mx.DNS, Reply: smtp.Refuse(451, smtp.Enhanced{4, 4, 3}, "the DNS does not answer")}
		}
		a.open(t, map[string]*fake{"192.0.2.1": good}).run()
		var ids []store.ID
		for i := range 20 {
			ids = append(ids, a.keep(mail(t, fmt.Sprintf("to@d%d.test", i))), a.keep(mail(t, fmt.Sprintf("other@d%d.test", i))))
		}
		after(time.Second)
		a.keep(mail(t, "to@good.test"))
		after(100 * time.Millisecond)
		check(t, "delivered", good.heard("DATA"), 1)
		after(30 * time.Second)
		for _, id := range ids {
			check(t, "state", a.states(id), "waiting 1")
			check(t, "last words", a.message(id).Recipients[0].Last.Line(), "451 4.4.3 the DNS does not answer")
		}
	})
}

// TestEverybodyServed: whatever is short, workers or room at sites, nobody is forgotten in a line.
func TestEverybodyServed(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			hosts := make(map[string]*fake)
			a := &abroad{tune: func(o *EngineOptions) {
				o.Workers, o.DestinationWorkers = 1+r.IntN(6), 1+r.IntN(4)
				o.Schedule = Schedule{First: time.Second, Factor: 2, Max: time.Minute}
			}}
			for s := range 10 {
				addr := fmt.Sprintf("192.0.2.%d", s)
				var fails atomic.Int64
				fails.Store(int64(r.IntN(3)))
				took := time.Duration(r.IntN(3)) * time.Second
				hosts[addr] = &fake{
					answer: func(line string) string {
						if strings.HasPrefix(line, "EHLO") && fails.Add(-1) >= 0 {
							return "421 4.3.2 not now"
						}
						return ""
					},
					end: func(string) string { time.Sleep(took); return "" }}
			}
			for d := range 40 {
				s := r.IntN(10)
				a.plans.put(fmt.Sprintf("d%d.test", d), fmt.Sprintf("mx%d.test 192.0.2.%d", s, s))
				if r.IntN(4) == 0 {
					a.plans.waits[fmt.Sprintf("d%d.test", d)] = time.Duration(r.IntN(40)) * time.Second
				}
			}
			a.open(t, hosts).run()
			for range 200 {
				a.keep(mail(t, fmt.Sprintf("to@d%d.test", r.IntN(40))))
				if r.IntN(10) == 0 {
					after(time.Duration(r.IntN(3000)) * time.Millisecond)
				}
			}
			after(20 * time.Minute)
			check(t, fmt.Sprintf("delivered of seed %d", seed), a.e.Stats.Delivered.Load(), 200)
			a.e.mu.Lock()
			defer a.e.mu.Unlock()
			check(t, "workers", a.e.workers, 0)
			check(t, "workers at sites not proven", a.e.unproven, 0)
			check(t, "destinations", len(a.e.dests), 0)
			for _, s := range a.e.sites {
				if s.workers != 0 || s.dests != 0 || !s.line.empty() {
					t.Errorf("site %s: %d workers, %d destinations", s.key, s.workers, s.dests)
				}
			}
		})
	}
}

// TestNowhere: a domain that is not there, or takes no mail, is an answer at once.
func TestNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := new(abroad)
		a.plans.put("a.test", "mx.a.test 192.0.2.1")
		a.plans.fails["null.test"] = &mx.Error{Category: mx.DNS, Reply: smtp.Refuse(556, smtp.Enhanced{5, 1, 10}, "the domain takes no mail")}
		a.open(t, nil).run()
		id := a.keep(mail(t, "to@null.test"))
		after(time.Second)
		check(t, "state", a.states(id), "gone")
		tell(t, a.reports()[0], "Status: 5.1.10", "the domain takes no mail", "!Remote-MTA")
	})
}

// TestDeadHost: an address that was not reached is left alone for a while that doubles, and other
// messages have their answer at once; when it is over one tries it.
func TestDeadHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &fake{}
		a := &abroad{tune: func(o *EngineOptions) { o.Schedule = Schedule{First: 10 * time.Second, Factor: 1} }}
		a.plans.put("a.test", "mx.a.test 192.0.2.1")
		var tries atomic.Int64
		a.set = func(o *OutboundOptions) {
			o.Dial = func(ctx context.Context, network, address string) (c net.Conn, err error) {
				tries.Add(1)
				return a.n.dial(ctx, network, address)
			}
		}
		a.open(t, map[string]*fake{"192.0.2.1": nil}).run()
		var ids []store.ID
		for range 20 {
			ids = append(ids, a.keep(mail(t, "to@a.test")))
			after(time.Second)
		}
		check(t, "tries within the first minute", tries.Load(), 1)
		if r := a.message(ids[19]).Recipients[0].Last.Line(); !strings.Contains(r, "451 4.4.1") || !strings.Contains(r, "not tried before") {
			t.Errorf("last words: got %q", r)
		}
		after(10 * time.Minute)
		// It was tried after 1, 2 and 4 minutes more, with what the schedule takes.
		check(t, "tries within ten minutes", tries.Load(), 4)
		a.n.set("192.0.2.1:25", host)
		if _, err := a.e.Retry(t.Context(), Choice{Filter: &store.Filter{}}); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		check(t, "messages when it was back and somebody said so", host.heard("DATA"), 20)
	})
}

// TestBarred: what hosts will not have, or we will not have of them, is not tried for each message.
func TestBarred(t *testing.T) {
	for what, c := range map[string]struct {
		greeting string
		demand   Demand
	}{"a greeting": {"554 5.7.1 not you", DemandOpportunistic}, "no TLS": {"", DemandEncrypted}} {
		synctest.Test(t, func(t *testing.T) {
			host := &fake{greeting: c.greeting}
			a := new(abroad)
			a.plans.put("a.test", "mx.test 192.0.2.1")
			a.plans.hosts["a.test"][0].Demand = c.demand
			a.open(t, map[string]*fake{"192.0.2.1": host}).run()
			var ids []store.ID
			for range 20 {
				ids = append(ids, a.keep(mail(t, "to@a.test")))
				after(time.Second)
			}
			for _, id := range ids {
				check(t, what+": state", a.states(id), "waiting 1")
			}
			dialled, _ := host.dialled()
			check(t, what+": connections", dialled, 1)
			check(t, what+": content that was sent", host.heard("MAIL"), 0)
		})
	}
}

// TestPaceOfSite: a site gets no more than it is to get, and meanwhile nobody works for it.
func TestPaceOfSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &fake{}
		a := &abroad{set: func(o *OutboundOptions) { o.Pace = Pace{Messages: 1, Per: 3 * time.Minute} }}
		a.plans.put("a.test", "mx.test 192.0.2.1")
		a.plans.put("b.test", "mx.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": host})
		for range 3 {
			a.put(mail(t, "to@a.test"), nil)
			a.put(mail(t, "to@b.test"), nil)
		}
		a.run()
		for i := range 6 {
			after(time.Second)
			check(t, "sent", host.heard("DATA"), i+1)
			a.e.mu.Lock()
			check(t, "workers that wait", a.e.workers, 0)
			a.e.mu.Unlock()
			after(3*time.Minute - time.Second)
		}
	})
}

// TestMoved: a domain whose hosts are others by now is counted where they are.
func TestMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := &fake{end: func(string) string { time.Sleep(2 * time.Second); return "" }}, &fake{}
		a := &abroad{tune: func(o *EngineOptions) { o.DestinationWorkers = 1 }}
		a.plans.put("a.test", "mx1.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": first, "192.0.2.2": second})
		for range 10 {
			a.put(mail(t, "to@a.test"), nil)
		}
		a.run()
		after(3 * time.Second)
		a.plans.put("a.test", "mx2.test 192.0.2.2")
		after(10 * time.Second)
		check(t, "the first got", first.heard("DATA"), 2)
		check(t, "the second got", second.heard("DATA"), 8)
		a.e.mu.Lock()
		defer a.e.mu.Unlock()
		check(t, "destinations at the end", len(a.e.dests), 0)
	})
}

// TestTLSElsewhere: what must be protected never goes in clear, and never comes back for that; what
// need not be goes in clear where TLS fails. Each session is told of once.
func TestTLSElsewhere(t *testing.T) {
	ca, today := peers.NewCA(t), time.Now()
	served := func(names ...string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, names...).TLS}, SessionTicketsDisabled: true}
	}
	good, other, broken := served("mx.test"), served("other.test"), &tls.Config{}
	for _, c := range []struct {
		name     string
		tls      *tls.Config
		ehlo     []string
		demand   Demand
		optional bool // TLS-Required: No
		require  bool // REQUIRETLS
		report   bool // of the null sender
		want     string
		how      string // TLS and verdict of the attempt
		failure  tlsrpt.ResultType
	}{
		{name: "clear is allowed", demand: DemandOpportunistic, want: "delivered 1", failure: tlsrpt.STARTTLSNotSupported},
		{name: "any certificate", tls: other, demand: DemandOpportunistic, want: "delivered 1", how: "TLS 1.3"},
		{name: "the handshake fails", tls: broken, demand: DemandOpportunistic, want: "delivered 1", failure: tlsrpt.ValidationFailure},
		{name: "the handshake fails and TLS is a must", tls: broken, demand: DemandEncrypted, want: "waiting 1", failure: tlsrpt.ValidationFailure},
		{name: "no TLS and it is a must", demand: DemandEncrypted, want: "waiting 1", failure: tlsrpt.STARTTLSNotSupported},
		{name: "PKIX", tls: good, demand: DemandPKIX, want: "delivered 1", how: "TLS 1.3 pkix"},
		{name: "PKIX, another name", tls: other, demand: DemandPKIX, want: "waiting 1", failure: tlsrpt.CertificateHostMismatch},
		{name: "PKIX, another name, and TLS is optional", tls: other, demand: DemandPKIX, optional: true, want: "delivered 1", how: "TLS 1.3"},
		{name: "PKIX, no TLS, and it is optional", demand: DemandPKIX, optional: true, want: "delivered 1"},
		{name: "REQUIRETLS and no promise", tls: good, demand: DemandPKIX, require: true, want: "gone"},
		{name: "REQUIRETLS and no promise, of a report", demand: DemandOpportunistic, require: true, report: true, want: "delivered 1", failure: tlsrpt.STARTTLSNotSupported},
		{name: "REQUIRETLS", tls: good, ehlo: []string{"REQUIRETLS"}, demand: DemandPKIX, require: true, want: "delivered 1", how: "TLS 1.3 pkix"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := &fake{tls: c.tls, ehlo: c.ehlo, answer: on("RCPT TO:<witness", "450 4.0.0 later")}
				a := &abroad{set: func(o *OutboundOptions) {
					o.Secure.Authorities = ca.Pool()
					o.Secure.Now = func() time.Time { return today }
					o.Timeouts.Command = time.Second // an alert on a net.Pipe waits for a reader
				}}
				a.plans.put("a.test", "mx.test 192.0.2.1")
				a.plans.hosts["a.test"][0].Demand = c.demand
				a.open(t, map[string]*fake{"192.0.2.1": host}).run()
				k := mail(t, "to@a.test", "witness@a.test") // who keeps the record
				if k.Sender.RequireTLS = c.require; c.report {
					k.Sender.Path = smtp.Path{}
				}
				if c.optional {
					k.Origin.Trusted, k.Content = true, text("TLS-Required: No\r\n\r\nhello\r\n")
				}
				id := a.keep(k)
				after(5 * time.Second)
				state, _, _ := strings.Cut(a.states(id), ",")
				check(t, "state", state, c.want)
				if c.want == "delivered 1" {
					at := a.message(id).Attempts[0]
					check(t, "how", strings.TrimSpace(at.TLS+" "+at.Verdict), c.how)
				} else {
					check(t, "content that was sent", host.heard("DATA"), 0)
				}
				var failures []tlsrpt.ResultType
				for _, e := range a.rec.list {
					check(t, "domain of a report", e.Domain, "a.test")
					if e.Failure != nil {
						failures = append(failures, e.Failure.Type)
					}
				}
				want := []tlsrpt.ResultType{c.failure}
				if c.failure == "" {
					want = nil
				}
				if !slices.Equal(failures, want) {
					t.Errorf("reported: got %v, want %v", failures, want)
				}
			})
		})
	}
}

// TestSharedServer: domains and names that share a server are each held to what is asked of them.
func TestSharedServer(t *testing.T) {
	ca, today := peers.NewCA(t), time.Now()
	served := func(name string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, name).TLS}}
	}
	other, second := served("other.test"), served("mx2.test")
	run := func(t *testing.T, c *tls.Config, plan func(*plans)) (*abroad, *fake) {
		host := &fake{tls: c}
		a := &abroad{set: func(o *OutboundOptions) {
			o.Secure.Authorities, o.Secure.Now = ca.Pool(), func() time.Time { return today }
			o.Timeouts.Command, o.IdleTime = time.Second, time.Minute
		}}
		plan(&a.plans)
		a.open(t, map[string]*fake{"192.0.2.1": host}).run()
		return a, host
	}
	synctest.Test(t, func(t *testing.T) {
		// The connection that one domain's mail has opened does not serve for another's that asks
		// for more, and not the other way about.
		a, host := run(t, other, func(p *plans) {
			p.put("open.test", "mx.test 192.0.2.1")
			p.put("shut.test", "mx.test 192.0.2.1")
			p.hosts["shut.test"][0].Demand = DemandPKIX
		})
		for range 2 {
			a.keep(mail(t, "to@open.test"))
			after(time.Second)
			id := a.keep(mail(t, "to@shut.test"))
			after(time.Second)
			check(t, "mail that must not go", a.states(id), "waiting 1")
		}
		check(t, "messages", host.heard("DATA"), 2)
	})
	synctest.Test(t, func(t *testing.T) {
		// A server with a certificate for its second name alone.
		a, host := run(t, second, func(p *plans) {
			p.put("a.test", "mx1.test 192.0.2.1", "mx2.test 192.0.2.1", "mx3.test 192.0.2.1")
			for i := range 2 {
				p.hosts["a.test"][i].Demand = DemandPKIX
			}
		})
		id := a.keep(mail(t, "to@a.test"))
		after(5 * time.Second)
		check(t, "mail for the second name", a.states(id), "gone")
		check(t, "messages", host.heard("DATA"), 1)
	})
}

// hook is Hooks made of functions.
type hook struct {
	route   func(Outgoing) (Way, error)
	deliver func([]Hop) (Turn, error)
	mu      sync.Mutex
	fates   []string // guarded by mu
}

func (h *hook) Route(_ context.Context, o Outgoing) (Way, error) {
	if h.route == nil {
		return Way{}, nil
	}
	return h.route(o)
}

func (h *hook) Deliver(_ context.Context, _ Outgoing, hops []Hop) (Turn, error) {
	if h.deliver == nil {
		return Turn{}, nil
	}
	return h.deliver(hops)
}

func (h *hook) note(what string, o Outgoing, fates []Fate) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range fates {
		h.fates = append(h.fates, fmt.Sprintf("%s %s %d %s", what, o.Message.Recipients[f.Recipient].Path.Local, f.Reply.Code, f.Host))
	}
}

func (h *hook) Deferred(_ context.Context, o Outgoing, f []Fate)  { h.note("deferred", o, f) }
func (h *hook) Bounced(_ context.Context, o Outgoing, f []Fate)   { h.note("bounced", o, f) }
func (h *hook) Delivered(_ context.Context, o Outgoing, f []Fate) { h.note("delivered", o, f) }

// TestHooks: what hooks choose is done, if it may be, and they are told what became of it.
func TestHooks(t *testing.T) {
	usual, relay, hidden := "192.0.2.1", "192.0.2.2", "10.0.0.1"
	for _, c := range []struct {
		name   string
		h      *hook
		demand Demand
		weaker bool
		want   string // who got it
		fates  string
		said   string
	}{
		{name: "nothing is changed", h: &hook{}, want: usual, fates: "delivered to 250 mx.a.test"},
		{name: "by a relay", h: &hook{route: func(Outgoing) (Way, error) { return Way{Relay: "relay.test"}, nil }}, want: relay, fates: "delivered to 250 relay.test"},
		{name: "to another address", h: &hook{deliver: func([]Hop) (Turn, error) { return Turn{To: netip.MustParseAddrPort(relay + ":25")}, nil }}, want: relay, fates: "delivered to 250 mx.a.test"},
		{name: "to an address inside", h: &hook{deliver: func([]Hop) (Turn, error) { return Turn{To: netip.MustParseAddrPort(hidden + ":25")}, nil }}, fates: "deferred to 451 ", said: "10.0.0.1 is private"},
		{name: "by no relay at all", h: &hook{route: func(Outgoing) (Way, error) { return Way{Relay: "not a name"}, nil }}, fates: "deferred to 451 "},
		{name: "from no source at all", h: &hook{route: func(Outgoing) (Way, error) { return Way{Source: "none"}, nil }}, fates: "deferred to 451 "},
		{name: "refused", h: &hook{route: func(Outgoing) (Way, error) { return Way{}, smtp.Refuse(550, smtp.Enhanced{5, 7, 1}, "not by us") }}, fates: "bounced to 550 "},
		{name: "put off", h: &hook{deliver: func(h []Hop) (Turn, error) {
			return Turn{}, smtp.Refuse(450, smtp.Enhanced{4, 7, 1}, "not by "+h[0].Host)
		}}, fates: "deferred to 450 ", said: "not by mx.a.test"},
		{name: "broken", h: &hook{deliver: func([]Hop) (Turn, error) { return Turn{}, errors.New("no") }}, fates: "deferred to 451 "},
		{name: "less TLS, which may not be", h: &hook{route: func(Outgoing) (Way, error) { return Way{TLS: TLSOpportunistic}, nil }}, demand: DemandEncrypted, fates: "deferred to 451 "},
		{name: "less TLS, which may be", h: &hook{route: func(Outgoing) (Way, error) { return Way{TLS: TLSOpportunistic}, nil }}, demand: DemandEncrypted, weaker: true, want: usual, fates: "delivered to 250 mx.a.test"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := map[string]*fake{usual: {}, relay: {}, hidden: {}}
				a := &abroad{set: func(o *OutboundOptions) { o.Hooks, o.WeakerTLS = c.h, c.weaker }}
				a.plans.put("a.test", "mx.a.test "+usual)
				if c.demand != "" {
					a.plans.hosts["a.test"][0].Demand = c.demand
				}
				a.plans.put("relay.test", "relay.test "+relay)
				a.open(t, hosts).run()
				id := a.keep(mail(t, "to@a.test"))
				after(time.Second)
				for _, addr := range slices.Sorted(maps.Keys(hosts)) {
					check(t, addr, hosts[addr].heard("DATA"), btoi(addr == c.want))
				}
				check(t, "fates", strings.Join(c.h.fates, ", "), c.fates)
				if c.said != "" && !strings.Contains(a.message(id).Recipients[0].Last.Line(), c.said) {
					t.Errorf("last words: got %q, want %q", a.message(id).Recipients[0].Last.Line(), c.said)
				}
			})
		})
	}
}

// TestRelayInside: the relay of the operator may be inside, and what a hook names instead of it may
// not.
func TestRelayInside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := new(hook)
		a := &abroad{}
		a.set = func(o *OutboundOptions) { o.Relay, o.Hooks = &Relay{Host: "relay.test", Planner: &a.plans}, h }
		a.plans.put("relay.test", "relay.test 10.0.0.1")
		relay, other := &fake{}, &fake{}
		a.open(t, map[string]*fake{"10.0.0.1": relay, "10.0.0.2": other}).run()
		a.keep(mail(t, "to@a.test"))
		after(time.Second)
		check(t, "to the relay", relay.heard("DATA"), 1)
		h.deliver = func([]Hop) (Turn, error) { return Turn{To: netip.MustParseAddrPort("10.0.0.2:25")}, nil }
		a.keep(mail(t, "to@a.test"))
		after(time.Second)
		check(t, "to what is beside it", other.heard("MAIL"), 0)
		check(t, "fates", strings.Join(h.fates, ", "), "delivered to 250 relay.test, deferred to 451 ")
	})
}

// TestBusyRelay: a relay that hooks choose has no more connections than others, and what finds no
// room there is tried soon, without counting.
func TestBusyRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay := &fake{end: func(string) string { time.Sleep(10 * time.Second); return "" }}
		a := &abroad{tune: func(o *EngineOptions) { o.DestinationWorkers = 3 }, set: func(o *OutboundOptions) {
			o.Hooks = &hook{route: func(Outgoing) (Way, error) { return Way{Relay: "relay.test"}, nil }}
		}}
		a.plans.put("relay.test", "relay.test 192.0.2.1")
		for i := range 10 {
			a.plans.put(fmt.Sprintf("d%d.test", i), fmt.Sprintf("mx.d%d.test 192.0.2.9", i))
		}
		a.open(t, map[string]*fake{"192.0.2.1": relay}).run()
		for i := range 10 {
			a.keep(mail(t, fmt.Sprintf("to@d%d.test", i)))
		}
		after(2 * time.Minute)
		check(t, "delivered", a.e.Stats.Delivered.Load(), 10)
		check(t, "deferred", a.e.Stats.Deferred.Load(), 0)
		if _, most := relay.dialled(); most > 3 {
			t.Errorf("got %d connections at once, want 3 at most", most)
		}
	})
}

// TestSmartHost: with a relay all goes there, and is one site.
func TestSmartHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		relay := &fake{}
		a := &abroad{set: func(o *OutboundOptions) { o.Relay = &Relay{Host: "relay.test"} }}
		a.plans.put("relay.test", "relay.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": relay}).run()
		for i := range 5 {
			a.keep(mail(t, fmt.Sprintf("to@d%d.test", i)))
		}
		after(time.Second)
		check(t, "sent", relay.heard("DATA"), 5)
		a.e.mu.Lock()
		defer a.e.mu.Unlock()
		check(t, "sites", fmt.Sprint(slices.Collect(maps.Keys(a.e.sites))), "[relay.test]")
	})
	for text, want := range map[string]Relay{"relay.test": {Host: "relay.test"}, "mx:Example.COM": {Host: "example.com", MX: true},
		"192.0.2.1": {Host: "[192.0.2.1]"}, "[IPv6:2001:db8::1]": {Host: "[IPv6:2001:db8::1]"}} {
		got, err := ParseRelay(text)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "mx:", "mx:[192.0.2.1]", "a b", "x..y"} {
		if r, err := ParseRelay(text); err == nil {
			t.Errorf("%q: got %+v, want an error", text, r)
		}
	}
}

// TestCutOff: what is under way when a shutdown runs out of patience is given back, and delivered by
// the next engine: at least once, and once if nothing had been sent.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &fake{answer: on("RCPT", "hang")}
		a := new(abroad)
		a.plans.put("a.test", "mx.a.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": host}).run()
		id := a.keep(mail(t, "to@a.test"))
		after(time.Second)
		if err := a.quiet(time.Second); err == nil {
			t.Error("shutdown did not cut the attempt off")
		}
		check(t, "state", a.states(id), "waiting")
		a.close()
		b := new(abroad)
		b.fs = a.fs
		b.plans.put("a.test", "mx.a.test 192.0.2.1")
		good := &fake{}
		b.open(t, map[string]*fake{"192.0.2.1": good}).run()
		after(5 * time.Minute)
		check(t, "state", b.states(id), "gone")
		check(t, "sent", good.heard("DATA"), 1)
	})
}

// TestPolicyInTheWay: before a message is given up, and each time after that, it is asked whether the
// policy that holds it back is still the one; a new one counts at once.
func TestPolicyInTheWay(t *testing.T) {
	for _, c := range []struct{ late, relay bool }{{}, {late: true}, {relay: true}} {
		synctest.Test(t, func(t *testing.T) {
			late := c.late
			a := &abroad{tune: func(o *EngineOptions) { o.Schedule = Schedule{Max: time.Hour, Expire: 4 * time.Hour} }}
			a.plans.put("a.test", "mx.test 192.0.2.1")
			refused := policyError(mx.Policy, 451, smtp.Enhanced{4, 7, 5}, "mx.test", "the policy does not name this host", nil)
			h := &a.plans.hosts["a.test"][0]
			h.Enforced, h.Refused, a.plans.policy = true, refused, "1"
			if c.relay { // which has a policy of its own, in place of the domain's
				a.set = func(o *OutboundOptions) { o.Relay = &Relay{Host: "a.test"} }
				h.STS, a.plans.policy = &mtasts.Policy{ID: "1"}, ""
			}
			host := &fake{}
			var renewed atomic.Int64
			start := time.Now()
			a.plans.renew = func() {
				renewed.Add(1)
				if !late || time.Since(start) > 4*time.Hour {
					a.plans.mu.Lock()
					defer a.plans.mu.Unlock()
					h := &a.plans.hosts["a.test"][0]
					if h.Refused = nil; c.relay {
						h.STS = nil
						return
					}
					a.plans.policy = "2"
				}
			}
			a.open(t, map[string]*fake{"192.0.2.1": host}).run()
			to := "to@a.test"
			if c.relay {
				to = "to@b.test"
			}
			id := a.keep(mail(t, to))
			after(time.Second)
			check(t, "asked anew", renewed.Load(), 1)
			check(t, "sent at once", host.heard("DATA"), btoi(!late))
			after(5 * time.Hour)
			check(t, "state", a.states(id), "gone")
			check(t, "sent", host.heard("DATA"), 1)
			check(t, "delivered", a.e.Stats.Delivered.Load(), 1)
		})
	}
}

// TestExpiredElsewhere: a report that a message ran out of time tells what was said last.
func TestExpiredElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &abroad{tune: func(o *EngineOptions) { o.Schedule = Schedule{Max: time.Hour, Expire: 4 * time.Hour} }}
		a.plans.put("a.test", "mx.a.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": {answer: on("RCPT", "450 4.2.1 over quota")}}).run()
		id := a.keep(mail(t, "to@a.test"))
		after(5 * time.Hour)
		check(t, "state", a.states(id), "gone")
		reports := a.reports()
		tell(t, reports[len(reports)-1], "Status: 5.4.7", "450 4.2.1 over quota")
	})
}

func TestTLSOptional(t *testing.T) {
	for header, want := range map[string]bool{
		"TLS-Required: No\r\n":                     true,
		"tls-required:\r\n\tNO\r\nSubject: x\r\n":  true,
		"TLS-Required: Yes\r\n":                    false,
		"TLS-Required: No\r\nTLS-Required: No\r\n": false,
		"Subject: x\r\n\r\nTLS-Required: No\r\n":   false,
		"":                                         false,
		"X: " + strings.Repeat("a", maxHeader) + "\r\nTLS-Required: No\r\n": false,
	} {
		got, err := tlsOptional(text(header + "\r\nhello\r\n"))
		if err != nil || got != want {
			t.Errorf("%.60q: got %v, %v, want %v", header, got, err, want)
		}
	}
	k := Keeping{Content: text("TLS-Required: No\r\n\r\n")}
	for _, c := range []struct{ trusted, require, want bool }{{true, false, true}, {false, false, false}, {true, true, false}} {
		k.Origin.Trusted, k.Sender.RequireTLS = c.trusted, c.require
		if err := k.noteTLS(); err != nil || k.Origin.TLSOptional != c.want {
			t.Errorf("%+v: got %v, %v", c, k.Origin.TLSOptional, err)
		}
	}
}

// TestSources: the name in EHLO goes with the family, a message keeps its source, and a hook may name
// another.
func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		four, six := &fake{}, &fake{}
		h := &hook{}
		a := &abroad{set: func(o *OutboundOptions) {
			o.Sources = []Source{{Name: "one", HeloIPv4: "v4.one.test", HeloIPv6: "v6.one.test"}, {Name: "two", Helo: "two.test"}}
			o.Hooks, o.IdleTime = h, -1
		}, tune: func(o *EngineOptions) { o.Schedule = Schedule{First: 10 * time.Second, Factor: 1} }}
		a.plans.put("four.test", "mx.four.test 192.0.2.1")
		a.plans.put("six.test", "mx.six.test 2001:db8::1")
		a.open(t, map[string]*fake{"192.0.2.1": four, "[2001:db8::1]": six}).run()
		for range 40 {
			a.keep(mail(t, "to@four.test"))
			a.keep(mail(t, "to@six.test"))
		}
		after(time.Second)
		for _, c := range []struct {
			f    *fake
			one  string
			host string
		}{{four, "v4.one.test", "four"}, {six, "v6.one.test", "six"}} {
			one, two := c.f.heard("EHLO "+c.one), c.f.heard("EHLO two.test")
			if one+two != 40 || one < 5 || two < 5 {
				t.Errorf("%s: got %d connections as one and %d as two, want 40, of both many", c.host, one, two)
			}
		}
		h.route = func(Outgoing) (Way, error) { return Way{Source: "two"}, nil }
		two := four.heard("EHLO two.test")
		for range 10 {
			a.keep(mail(t, "to@four.test"))
		}
		after(time.Second)
		check(t, "from the source that a hook names", four.heard("EHLO two.test")-two, 10)
		four.answer = on("RCPT", "450 4.2.0 later")
		h.route = nil
		a.keep(mail(t, "to@four.test"))
		one, two := four.heard("EHLO v4.one"), four.heard("EHLO two.test")
		after(time.Minute)
		one, two = four.heard("EHLO v4.one")-one, four.heard("EHLO two.test")-two
		if one+two < 4 || one*two != 0 {
			t.Errorf("tries of one message: got %d from one and %d from two, want all from one of them", one, two)
		}
	})
}

// TestWhyElsewhere: somebody who asks hears of the site.
func TestWhyElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &fake{end: func(string) string { time.Sleep(time.Minute); return "" }}
		a := &abroad{tune: func(o *EngineOptions) { o.DestinationWorkers = 1 }}
		a.plans.put("a.test", "mx.test 192.0.2.1")
		a.plans.put("b.test", "mx.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": slow}).run()
		a.keep(mail(t, "to@a.test"))
		after(time.Second)
		id := a.keep(mail(t, "to@b.test"))
		after(time.Second)
		why := func() (Reason, DestinationState) {
			x, err := a.e.Why(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return x.Recipients[0], x.Destinations[0]
		}
		r, d := why()
		check(t, "kind", r.Kind, ReasonBusy)
		check(t, "site", d.Site, "mx.test")
		if !strings.Contains(r.Text, "1 of 1 deliveries to mx:b.test and others at mx.test are under way") {
			t.Errorf("why: got %q", r.Text)
		}
		sites := a.e.Sites()
		if len(sites) != 1 || sites[0].Waiting != 1 || sites[0].Workers != 1 || sites[0].Destinations != 2 {
			t.Errorf("sites: got %+v", sites)
		}
		after(time.Minute)
		r, _ = why()
		check(t, "kind", r.Kind, ReasonUnderWay)
		after(time.Minute)
		check(t, "delivered", a.e.Stats.Delivered.Load(), 2)
		s, _ := a.e.OutboundStats()
		check(t, "figures", s, OutboundStats{Sites: 1, Connections: 1, Idle: 1})
	})
}

// TestHostsBounded: however many addresses are dead, few are remembered.
func TestHostsBounded(t *testing.T) {
	var h hosts
	now := time.Now()
	for i := range maxDead + 1000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		v, _, err := h.ask(hostKey{to: netip.AddrPortFrom(a, 25)}, now)
		if err != nil {
			t.Fatal(err)
		}
		v.failed(errors.New("gone"), now)
	}
	check(t, "remembered", h.count(now), maxDead)
	k := hostKey{to: netip.MustParseAddrPort("192.0.2.1:25")}
	var pauses []time.Duration
	for range 7 {
		v, _, err := h.ask(k, now)
		if err != nil {
			t.Fatal(err)
		}
		other, _, _ := h.ask(k, now)
		v.failed(errors.New("gone"), now)
		if other != nil {
			other.failed(errors.New("gone, too"), now) // it was under way already
		}
		_, until, err := h.ask(k, now)
		if err == nil || err.Error() != "gone" {
			t.Fatalf("got %v, want what happened last", err)
		}
		pauses = append(pauses, until.Sub(now).Round(time.Minute)/time.Minute)
		now = until
	}
	check(t, "pauses in minutes", fmt.Sprint(pauses), "[1ns 2ns 4ns 8ns 16ns 30ns 30ns]")
	v, _, _ := h.ask(k, now)
	v.reached()
	v, _, err := h.ask(k, now)
	if err != nil {
		t.Fatal(err)
	}
	v.failed(errors.New("again"), now)
	_, until, _ := h.ask(k, now)
	check(t, "pause after it was back", until.Sub(now), time.Minute)
}
