package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// siege_test.go: what would keep mail from those who take it, or lose it.

// TestHookNonsense: the error of a hook is never taken for a next hop that has the message.
func TestHookNonsense(t *testing.T) {
	for _, code := range []int{0, 250, 354, 999} {
		synctest.Test(t, func(t *testing.T) {
			nonsense := &smtp.Reply{Code: code, Text: "fine"}
			h := &hook{route: func(Outgoing) (Way, error) { return Way{}, nonsense }}
			a := &abroad{set: func(o *OutboundOptions) { o.Hooks = h }}
			a.plans.put("a.test", "mx.a.test 192.0.2.1")
			a.open(t, map[string]*fake{"192.0.2.1": {}}).run()
			id := a.keep(mail(t, "to@a.test"))
			after(time.Second)
			check(t, fmt.Sprintf("state after %d of Route", code), a.states(id), "waiting 1")
			check(t, "fates", strings.Join(h.fates, ", "), "deferred to 451 ")
			h.route, h.deliver = nil, func([]Hop) (Turn, error) { return Turn{}, nonsense }
			id = a.keep(mail(t, "to@a.test"))
			after(time.Second)
			check(t, fmt.Sprintf("state after %d of Deliver", code), a.states(id), "waiting 1")
		})
	}
}

// TestHookAlone: what a hook changed for one message, and what came of it, is nothing to the next.
func TestHookAlone(t *testing.T) {
	refuses := func(addr string) func([]Hop) (Turn, error) {
		return func([]Hop) (Turn, error) { return Turn{To: netip.MustParseAddrPort(addr)}, nil }
	}
	for name, h := range map[string]*hook{
		"more TLS":       {route: func(Outgoing) (Way, error) { return Way{TLS: TLSVerify}, nil }},
		"another source": {route: func(Outgoing) (Way, error) { return Way{Source: "bad"}, nil }},
		"another place":  {deliver: refuses("10.0.0.1:25")},
		"who refuses":    {deliver: refuses("192.0.2.9:25")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := &fake{}
				if name == "another source" { // messages for which none is chosen have one by lot
					host.answer = func(line string) string {
						if strings.HasSuffix(line, "LO bad.test") {
							return "550 5.7.1 not you"
						}
						return ""
					}
				}
				a := &abroad{set: func(o *OutboundOptions) {
					o.Hooks, o.Sources = h, []Source{
						{Name: "good", Helo: "good.test", IPv4: netip.MustParseAddr("192.0.2.101")},
						{Name: "bad", Helo: "bad.test", IPv4: netip.MustParseAddr("192.0.2.102")}}
				}}
				a.plans.put("a.test", "mx.a.test 192.0.2.1")
				if name == "more TLS" {
					a.plans.hosts["a.test"][0].Demand = DemandEncrypted
				}
				a.open(t, map[string]*fake{"192.0.2.1": host, "192.0.2.9": {greeting: "554 no"}}).run()
				first := a.keep(mail(t, "to@a.test"))
				after(time.Second)
				check(t, "the first", a.states(first), "waiting 1")
				a.plans.put("a.test", "mx.a.test 192.0.2.1")
				h.route, h.deliver = func(Outgoing) (Way, error) { return Way{Source: "good"}, nil }, nil
				if name != "another source" {
					h.route = nil
				}
				second := a.keep(mail(t, "to@a.test"))
				after(time.Second)
				check(t, "the second", a.states(second), "gone")
			})
		})
	}
}

// TestTarpits: hosts that took mail once, and then keep whoever comes for as long as they can, have
// no more than their share of the workers, in whatever phase they do it.
func TestTarpits(t *testing.T) {
	for _, c := range []struct {
		name string
		trap func(f *fake)
	}{
		{"at MAIL", func(f *fake) { f.answer = on("MAIL", "hang") }},
		{"at DATA", func(f *fake) { f.answer = on("DATA", "hang") }},
		{"at the end", func(f *fake) { f.end = func(string) string { return "hang" } }},
		{"slow at the end", func(f *fake) { f.end = func(string) string { time.Sleep(9 * time.Minute); return "" } }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				good := &fake{}
				a := &abroad{tune: func(o *EngineOptions) { o.Workers, o.DestinationWorkers = 8, 4 }}
				a.plans.put("good.test", "mx.good.test 192.0.2.1")
				hosts := map[string]*fake{"192.0.2.1": good}
				for i := range 6 {
					domain, addr := fmt.Sprintf("d%d.test", i), fmt.Sprintf("198.51.100.%d", i)
					a.plans.put(domain, "mx."+domain+" "+addr)
					hosts[addr] = &fake{}
					c.trap(hosts[addr])
					hosts[addr].mended.Store(true)
				}
				a.open(t, hosts).run()
				for i := range 6 {
					a.keep(mail(t, fmt.Sprintf("to@d%d.test", i)))
				}
				a.keep(mail(t, "to@good.test"))
				after(time.Minute)
				check(t, "delivered at first", a.e.Stats.Delivered.Load(), 7)
				// They may take all workers by surprise, but only once.
				for i := range 6 {
					hosts[fmt.Sprintf("198.51.100.%d", i)].mended.Store(false)
					for range 6 {
						a.put(mail(t, fmt.Sprintf("to@d%d.test", i)), nil)
					}
				}
				a.e.nudge()
				after(20 * time.Minute)
				worst := time.Duration(0)
				for range 20 {
					began, n := time.Now(), good.heard("DATA")
					a.keep(mail(t, "to@good.test"))
					for good.heard("DATA") == n {
						after(time.Second)
					}
					worst = max(worst, time.Since(began))
					after(10 * time.Second)
				}
				if worst > 2*time.Second {
					t.Errorf("the good one waited for %v", worst)
				}
				for _, f := range hosts {
					f.mended.Store(true)
				}
				after(2 * time.Hour)
			})
		})
	}
}

// TestSilentZones: a thousand domains whose name servers say nothing do not keep a new one waiting.
func TestSilentZones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := new(abroad)
		a.plans.put("good.test", "mx.good.test 192.0.2.1")
		good := &fake{}
		a.open(t, map[string]*fake{"192.0.2.1": good})
		silent := func() {
			a.plans.mu.Lock()
			defer a.plans.mu.Unlock()
			for i := range 1000 {
				domain := fmt.Sprintf("d%d.test", i)
				a.plans.waits[domain] = 30 * time.Second
				a.plans.fails[domain] = &mx.Error{Category: mx.DNS, Reply: smtp.Refuse(451, smtp.Enhanced{4, 4, 3}, "the DNS does not answer")}
			}
		}
		silent()
		for i := range 1000 {
			a.put(mail(t, fmt.Sprintf("to@d%d.test", i)), nil)
		}
		a.run()
		for round := range 2 {
			after(2 * time.Second)
			began := time.Now()
			a.keep(mail(t, "to@good.test"))
			for good.heard("DATA") < round+1 {
				after(100 * time.Millisecond)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("round %d: the good one waited for %v", round, took)
			}
			after(10 * time.Minute)
			silent()
		}
		began := time.Now()
		a.close()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("shutdown took %v", took)
		}
	})
}

// TestManyDestinations: what a worker does when it leaves does not take longer with each destination
// that waits for one.
func TestManyDestinations(t *testing.T) {
	e := &Engine{opts: EngineOptions{Workers: 100, DestinationWorkers: 20}.withDefaults(), now: time.Now,
		dests: make(map[store.Destination]*destination), sites: make(map[string]*site)}
	place := func(name string) *destination {
		d := e.destination(store.Destination(name))
		e.settle(d, name, "")
		return d
	}
	var busy []*destination
	for i := range e.mostUnproven() {
		d := place(fmt.Sprint("nowhere:", i))
		e.workers++
		e.enter(d)
		busy = append(busy, d)
	}
	const many = 20000
	for i := range many {
		e.wait(place(fmt.Sprint("nowhere:dead", i)))
	}
	check(t, "waiting", e.short[1].l.Len(), many)
	began := time.Now()
	for range 1000 {
		e.serveShort() // nothing is to be had
		if d := e.next(&site{proven: true}); d != nil {
			t.Fatal("a site that is not proven got more than its share")
		}
	}
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("a thousand looks took %v", took)
	}
	// One that is proven by now is next all the same.
	last := e.dests[store.Destination(fmt.Sprint("nowhere:dead", many-1))]
	e.prove(last.site, true)
	if d := e.next(busy[0].site); d != nil && d != last && d.site.proven {
		t.Errorf("got %v", d.name)
	}
	check(t, "the line of the proven", e.short[0].l.Len(), 0)
}

// failing is a dialer that fails for some addresses as the system does.
func failing(errs map[string]error, dial func(context.Context, string, string) (net.Conn, error), tries *atomic.Int64) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		for part, err := range errs {
			if strings.Contains(address, part) {
				tries.Add(1)
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
			}
		}
		return dial(ctx, network, address)
	}
}

// TestOurSide: what is wrong on our side with the way to an address leads to the next, is not held
// against the host, and is not counted as a visit.
func TestOurSide(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
	}{
		{"no such address of ours", syscall.EADDRNOTAVAIL},
		{"no IPv6", syscall.ENETUNREACH},
		{"a rule of ours", syscall.EPERM},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := &fake{}
				a := &abroad{}
				var tries atomic.Int64
				a.set = func(o *OutboundOptions) {
					o.PreferIPv6 = true
					o.Dial = failing(map[string]error{"[2001": c.err}, a.n.dial, &tries)
				}
				six := "mx.a.test 192.0.2.1"
				for i := range 20 {
					six += fmt.Sprintf(" 2001:db8::%d", i+1)
				}
				a.plans.put("a.test", six)
				a.plans.put("six.test", "mx.six.test 2001:db8::1")
				a.open(t, map[string]*fake{"192.0.2.1": host}).run()
				id := a.keep(mail(t, "to@a.test"))
				after(time.Second)
				check(t, "state", a.states(id), "gone")
				check(t, "messages", host.heard("DATA"), 1)
				id = a.keep(mail(t, "to@six.test"))
				after(time.Second)
				check(t, "state", a.states(id), "waiting 1")
				if c.err != syscall.ENETUNREACH {
					check(t, "dead", a.e.out.hosts.count(time.Now()), 0)
				}
			})
		})
	}
}

// TestOurSideIsNotTheirs: a proxy that died says nothing of the sites behind it.
func TestOurSideIsNotTheirs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &abroad{}
		var down atomic.Bool
		a.set = func(o *OutboundOptions) {
			o.IdleTime = -1
			o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if down.Load() {
					return nil, &ProxyError{Err: errors.New("connection refused")}
				}
				return a.n.dial(ctx, network, address)
			}
		}
		a.plans.put("a.test", "mx.a.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": {}}).run()
		a.keep(mail(t, "to@a.test"))
		after(time.Second)
		down.Store(true)
		for range 5 {
			a.keep(mail(t, "to@a.test"))
		}
		after(time.Second)
		a.e.mu.Lock()
		s := a.e.sites["mx.a.test"]
		check(t, "proven", s.proven, true)
		check(t, "window", s.window, firstWindow+1)
		a.e.mu.Unlock()
	})
}

// TestClosesAtMail: a host that takes connections and sends them away at MAIL wants fewer.
func TestClosesAtMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &abroad{}
		a.plans.put("a.test", "mx.a.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": {answer: on("MAIL", "421 4.7.0 too many connections")}})
		for range 10 {
			a.put(mail(t, "to@a.test"), nil)
		}
		a.run()
		after(time.Second)
		for _, s := range a.e.sites {
			if s.proven || s.window > firstWindow {
				t.Errorf("got a window of %d, proven %v", s.window, s.proven)
			}
		}
	})
}

// TestWhyTruth: what is said of a message is so in each state.
func TestWhyTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &abroad{tune: func(o *EngineOptions) { o.Workers = 2 }}
		a.plans.put("dead.test", "mx.dead.test 192.0.2.1")
		a.plans.put("other.test", "mx.other.test 192.0.2.2")
		a.plans.put("slow.test", "mx.slow.test 192.0.2.3")
		a.plans.waits["slow.test"] = 20 * time.Second
		a.open(t, nil)
		a.n.holes["192.0.2.1:25"], a.n.holes["192.0.2.2:25"] = true, true
		a.tr.handlers = map[string]Handler{"handler:x": &counting{}}
		a.run()
		a.keep(mail(t, "to@dead.test"))
		after(time.Second)
		other := a.keep(mail(t, "to@other.test"))
		slow := a.keep(mail(t, "to@slow.test"))
		held := mail(t, "to@inside.test")
		held.Recipients[0].Destination = BackendDestination("handler:x")
		inside := a.put(held, func(m *store.Message) { m.Recipients[0].Due = time.Now().Add(time.Hour) })
		after(time.Second)
		for _, c := range []struct {
			id        store.ID
			kind      ReasonKind
			say, dont string
		}{
			{other, ReasonBusy, "1 of 1 deliveries to hosts that have not taken mail yet", "about to be"},
			{slow, ReasonDue, "hosts are being looked up", "about to be"},
			{inside, ReasonScheduled, "waits until", "no backend"},
		} {
			x, err := a.e.Why(t.Context(), c.id)
			if err != nil {
				t.Fatal(err)
			}
			r := x.Recipients[0]
			if r.Kind != c.kind || !strings.Contains(r.Text, c.say) || strings.Contains(r.Text, c.dont) {
				t.Errorf("got %s %q, want %s %q", r.Kind, r.Text, c.kind, c.say)
			}
		}
		if d := a.e.stateOf(BackendDestination("handler:x"), store.Waits{}); !d.Known {
			t.Error("a backend within this program is not known")
		}
		after(time.Minute)
	})
}

// halfRead is content that cannot be read to its end.
type halfRead struct {
	store.Content
	err error
}

func (h halfRead) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, "Subject: half\r\n\r\n")
	if err != nil {
		return int64(n), err
	}
	return int64(n), h.err
}

// halfQueue gives out such content.
type halfQueue struct {
	store.Queue
	err error
}

func (q halfQueue) Content(ctx context.Context, id store.ID) (store.Content, error) {
	c, err := q.Queue.Content(ctx, id)
	return halfRead{c, q.err}, err
}

// TestHalfContent: of content that cannot be read to its end nothing is taken, and nobody is blamed.
func TestHalfContent(t *testing.T) {
	for _, c := range []struct {
		err         error
		state, said string
	}{
		{errors.New("input/output error"), "waiting 1", "451 4.3.0"},
		{fmt.Errorf("no: %w", store.ErrCorrupt), "gone", ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			host, ended := &fake{}, atomic.Int64{}
			host.end = func(string) string { ended.Add(1); return "" }
			a := &abroad{}
			a.wrap = func(q store.Queue) store.Queue { return halfQueue{q, c.err} }
			a.plans.put("a.test", "mx.a.test 192.0.2.1", "mx2.a.test 192.0.2.2")
			a.open(t, map[string]*fake{"192.0.2.1": host, "192.0.2.2": {}}).run()
			id := a.keep(mail(t, "to@a.test"))
			after(time.Second)
			check(t, "state", a.states(id), c.state)
			check(t, "ended", ended.Load(), 0)
			if c.said != "" {
				m := a.message(id)
				if r := m.Recipients[0].Last.Line(); !strings.Contains(r, c.said) {
					t.Errorf("last words: got %q, want %q", r, c.said)
				}
				check(t, "who is said to have spoken", m.Attempts[0].Host, "")
			}
		})
	}
}

// TestNoMailAtAll: a report about a host that takes no mail at all names it.
func TestNoMailAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := new(abroad)
		a.plans.put("a.test", "mx.a.test 192.0.2.1")
		a.open(t, map[string]*fake{"192.0.2.1": {greeting: "521 5.3.2 no mail here"}}).run()
		id := a.keep(mail(t, "to@a.test"))
		after(time.Second)
		check(t, "state", a.states(id), "gone")
		tell(t, a.reports()[0], "Remote-MTA: dns; mx.a.test", "521 5.3.2 no mail here")
	})
}
