package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
)

var (
	hostA = Endpoint{Network: "tcp", Address: "a:25"}
	hostB = Endpoint{Network: "tcp", Address: "b:25"}
)

// bubble runs a test with hosts a and b in memory and a clock of its own.
func bubble(t *testing.T, a, b *fake, o BackendOptions, test func(t *testing.T, tr *Transport, n *network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := &network{hosts: make(map[string]*fake), holes: make(map[string]bool)}
		for address, f := range map[string]*fake{"a:25": a, "b:25": b} {
			if f != nil {
				n.hosts[address] = f
				t.Cleanup(f.stop)
			}
		}
		test(t, openWith(t, o, n), n)
	})
}

// begin opens a transaction that must succeed.
func begin(t testing.TB, tr *Transport) smtp.Transaction {
	t.Helper()
	tx, err := tr.Begin(t.Context(), "b", from(t))
	if err != nil {
		t.Fatalf("Begin: %v", err)
	}
	return tx
}

func TestReuse(t *testing.T) {
	parity.Row(t, "SC-52")
	f := &fake{}
	o := one(f.listen(t))
	o.MaxUses = 3
	tr := open(t, o)
	for range 7 {
		check(t, "outcome", send(t, tr), "250 taken")
	}
	check(t, "pool", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 3 reused 4 lost 0")
	check(t, "QUIT", f.heard("QUIT"), 2)
	check(t, "RSET", f.heard("RSET"), 0)
}

// An idle connection that the backend closed is replaced before anything is said on it.
func TestDeadWhileIdle(t *testing.T) {
	for _, last := range []string{"", "421 4.4.2 you were idle\r\n"} {
		f := &fake{}
		tr := open(t, one(f.listen(t)))
		send(t, tr)
		f.mu.Lock()
		if f.conns[0].Write([]byte(last)); last == "" {
			f.conns[0].Close()
		}
		f.mu.Unlock()
		check(t, "outcome", send(t, tr), "250 taken")
		check(t, "pool", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 2 reused 1 lost 0")
		check(t, "MAIL", f.heard("MAIL"), 2)
	}
}

// One that turns out to be dead when MAIL is said is replaced once; only before a
// recipient was accepted, and only if it was pooled.
func TestDeadAtFirstRecipient(t *testing.T) {
	for _, c := range []struct {
		name  string
		say   string // to the second MAIL; the third is taken
		want  string
		dials int
	}{
		{"closed", "drop", "250 taken", 2},
		{"421", "421 4.3.2 closing", "250 taken", 2},
		{"refused", "550 5.7.1 no", "rcpt: 550 5.7.1 no", 1}, // an answer, not a death
	} {
		mails := 0
		f := &fake{answer: func(line string) string {
			if strings.HasPrefix(line, "MAIL") {
				if mails++; mails == 2 {
					return c.say
				}
			}
			return ""
		}}
		bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
			send(t, tr)
			check(t, c.name, send(t, tr), c.want)
			all, _ := f.dialled()
			check(t, c.name+": dialled", all, c.dials)
		})
	}
	f := &fake{answer: on("MAIL", "drop")}
	tr := open(t, one(f.listen(t)))
	check(t, "fresh connection", send(t, tr), "rcpt: error")
	check(t, "MAIL", f.heard("MAIL"), 1)
}

// A connection that dies between two recipients, none of which was accepted, is
// replaced as well, and the new one is told the sender again.
func TestDeadAtSecondRecipient(t *testing.T) {
	rcpts := 0
	f := &fake{answer: func(line string) string {
		if strings.HasPrefix(line, "RCPT") {
			rcpts++
			return map[int]string{2: "550 5.1.1 no", 3: "drop"}[rcpts]
		}
		return ""
	}}
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
		send(t, tr)
		check(t, "outcome", send(t, tr, "a@example.org", "b@example.org"), "rcpt: 550 5.1.1 no, 250 taken")
		check(t, "MAIL", f.heard("MAIL"), 3)
		check(t, "RCPT TO:<b@", f.heard("RCPT TO:<b@"), 2)
	})
}

// A pooled connection that is silent is not replaced: the time is spent, and the
// backend may be at work.
func TestSilentAtFirstRecipient(t *testing.T) {
	mails := 0
	f := &fake{answer: func(line string) string {
		if strings.HasPrefix(line, "MAIL") {
			if mails++; mails == 2 {
				return "hang"
			}
		}
		return ""
	}}
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
		send(t, tr)
		check(t, "outcome", send(t, tr), "rcpt: error")
		check(t, "pool", figures(stats(t, tr)), "open 0 idle 0 busy 0 dialled 1 reused 1 lost 1")
	})
}

// If the replacement fails the recipient is told so, and the next one may find the
// backend again.
func TestReplacementFails(t *testing.T) {
	f := &fake{}
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, n *network) {
		send(t, tr)
		f.hangUp()
		n.set("a:25", nil)
		tx := begin(t, tr)
		defer tx.Abort()
		err := tx.Rcpt(t.Context(), rcpt(t, "a@example.org"))
		check(t, "backend gone", outcome(err), errUnreachable.Line())
		check(t, "busy", stats(t, tr).Busy, 0)
		n.set("a:25", f)
		time.Sleep(minPause)
		if err := tx.Rcpt(t.Context(), rcpt(t, "b@example.org")); err != nil {
			t.Fatal(err)
		}
		replies, err := tx.Data(t.Context(), letter)
		if err != nil || len(replies) != 1 || replies[0].Code != 250 {
			t.Errorf("got %v, %v, want one 250", replies, err)
		}
	})
}

// Whatever keeps an endpoint from being used, the next one gets the mail.
func TestNextEndpoint(t *testing.T) {
	for _, c := range []struct {
		name string
		a    *fake
	}{
		{"refused", nil},
		{"421 as greeting", &fake{greeting: "421 4.3.2 full"}},
		{"554 as greeting", &fake{greeting: "554 5.3.2 no service"}},
		{"closed before the greeting", &fake{greeting: "drop"}},
		{"silent", &fake{greeting: "hang"}},
		{"no SMTP", &fake{greeting: "SSH-2.0-x"}},
		{"250 as greeting", &fake{greeting: "250 hello"}},
		{"EHLO refused", &fake{answer: func(l string) string { return on("EHLO", "550 no")(l) + on("HELO", "550 no")(l) }}},
		{"EHLO put off", &fake{answer: on("EHLO", "450 later")}},
		{"closed after EHLO", &fake{answer: on("EHLO", "drop")}},
	} {
		b := &fake{}
		bubble(t, c.a, b, one(hostA, hostB), func(t *testing.T, tr *Transport, _ *network) {
			check(t, c.name, send(t, tr), "250 taken")
			check(t, c.name+": mail of b", b.heard("MAIL"), 1)
			s := stats(t, tr)
			check(t, c.name+": a is up", s.Endpoints[0].Up, false)
			check(t, c.name+": b is up", s.Endpoints[1].Up, true)
			check(t, c.name+": has an error", s.Endpoints[0].Err != nil, true)
			check(t, c.name+": failures", s.Failures, 1)
		})
	}
}

// The pause of an endpoint that stays down doubles, up to a limit. In between it is not
// tried, when it is over it is, and then it is first again.
func TestPause(t *testing.T) {
	b := &fake{}
	bubble(t, nil, b, one(hostA, hostB), func(t *testing.T, tr *Transport, n *network) {
		for _, pause := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
			failures := stats(t, tr).Failures
			check(t, "due", send(t, tr), "250 taken")
			check(t, "failures when due", stats(t, tr).Failures, failures+1)
			check(t, "not due", send(t, tr), "250 taken")
			time.Sleep(time.Duration(pause)*time.Second - time.Nanosecond)
			send(t, tr)
			check(t, fmt.Sprintf("failures within %d s", pause), stats(t, tr).Failures, failures+1)
			time.Sleep(time.Nanosecond)
		}
		a := &fake{}
		defer a.stop()
		n.set("a:25", a)
		check(t, "back", send(t, tr), "250 taken")
		check(t, "mail of a", a.heard("MAIL"), 1)
		n.set("a:25", nil)
		a.hangUp()
		check(t, "down again", send(t, tr), "250 taken")
		s := stats(t, tr).Endpoints[0]
		check(t, "pause after success", time.Until(s.Retry), minPause)
	})
}

// All endpoints down: an answer at once, with the reasons for our log.
func TestAllDown(t *testing.T) {
	bubble(t, nil, &fake{greeting: "554 5.3.2 closed"}, one(hostA, hostB), func(t *testing.T, tr *Transport, _ *network) {
		for _, what := range []string{"first", "in the pause"} {
			_, err := tr.Begin(t.Context(), "b", from(t))
			check(t, what, outcome(err), errUnreachable.Line())
			for _, reason := range []string{"refused", "554 5.3.2 closed"} {
				if !strings.Contains(fmt.Sprint(err), reason) {
					t.Errorf("%s: %v does not tell %q", what, err, reason)
				}
			}
		}
		check(t, "dialled", stats(t, tr).Dialled, 2)
	})
}

// When the pause of a host that swallows everything is over, one transaction waits for
// it, and no other.
func TestOneTries(t *testing.T) {
	b := &fake{}
	o := one(hostA, hostB)
	o.ConnectTimeout = 20 * time.Second
	bubble(t, nil, b, o, func(t *testing.T, tr *Transport, n *network) {
		n.holes["a:25"] = true
		start := time.Now()
		send(t, tr)
		check(t, "first", time.Since(start), o.ConnectTimeout)
		time.Sleep(minPause)
		start = time.Now()
		var waited []time.Duration
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				send(t, tr)
				mu.Lock()
				waited = append(waited, time.Since(start))
				mu.Unlock()
			})
		}
		all.Wait()
		slices.Sort(waited)
		if want := []time.Duration{0, 0, 0, 0, o.ConnectTimeout}; !slices.Equal(waited, want) {
			t.Errorf("waited %v, want %v", waited, want)
		}
	})
}

// Of many who find out at the same time that an endpoint is down, the first counts.
func TestPauseCountsOnce(t *testing.T) {
	bubble(t, nil, nil, one(hostA), func(t *testing.T, tr *Transport, n *network) {
		n.holes["a:25"] = true
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() { check(t, "outcome", send(t, tr), "begin: "+errUnreachable.Line()) })
		}
		all.Wait()
		s := stats(t, tr)
		check(t, "failures", s.Failures, 5)
		check(t, "pause", time.Until(s.Endpoints[0].Retry), minPause)
	})
}

// A caller that gives up says nothing about the endpoint.
func TestCancelWhileConnecting(t *testing.T) {
	bubble(t, nil, nil, one(hostA), func(t *testing.T, tr *Transport, n *network) {
		n.holes["a:25"] = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := tr.Begin(ctx, "b", from(t))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		s := stats(t, tr)
		check(t, "up", s.Endpoints[0].Up, true)
		check(t, "busy", s.Busy, 0)
		check(t, "failures", s.Failures, 0)
	})
}

// Who finds no free connection waits in line, and not for ever.
func TestLine(t *testing.T) {
	parity.Row(t, "SC-52")
	f := &fake{}
	o := one(hostA)
	o.Connections = 1
	bubble(t, f, nil, o, func(t *testing.T, tr *Transport, _ *network) {
		holder := begin(t, tr)
		start := time.Now()
		_, err := tr.Begin(t.Context(), "b", from(t))
		check(t, "in vain", outcome(err), errBusy.Line())
		check(t, "waited", time.Since(start), 10*time.Second)

		var all sync.WaitGroup
		order := make(chan int, 3)
		cancelled, cancel := context.WithCancel(t.Context())
		for i := range 4 {
			ctx := t.Context()
			if i == 1 {
				ctx = cancelled
			}
			all.Go(func() {
				tx, err := tr.Begin(ctx, "b", from(t))
				if i == 1 {
					if !errors.Is(err, context.Canceled) {
						t.Errorf("cancelled: %v", err)
					}
					return
				}
				if err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
				order <- i
				tx.Abort()
			})
			synctest.Wait()
		}
		check(t, "waiting", stats(t, tr).Waiting, 4)
		cancel()
		synctest.Wait()
		check(t, "waiting after one left", stats(t, tr).Waiting, 3)
		holder.Abort()
		all.Wait()
		check(t, "order", fmt.Sprint(<-order, <-order, <-order), "0 2 3")
		check(t, "pool", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 1 reused 3 lost 0")
	})
}

// A connection that breaks frees its place, too.
func TestLineAfterLoss(t *testing.T) {
	f := &fake{}
	o := one(hostA)
	o.Connections = 1
	bubble(t, f, nil, o, func(t *testing.T, tr *Transport, n *network) {
		holder := begin(t, tr)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() { check(t, "in line", send(t, tr), "begin: "+errUnreachable.Line()) })
		}
		synctest.Wait()
		n.set("a:25", nil)
		f.hangUp()
		if err := holder.Rcpt(t.Context(), rcpt(t, "a@example.org")); err == nil {
			t.Error("RCPT on a dead connection succeeded")
		}
		all.Wait()
		check(t, "pool", figures(stats(t, tr)), "open 0 idle 0 busy 0 dialled 2 reused 0 lost 1")
	})
}

// Idle connections are closed when they get old, with QUIT.
func TestIdleTimeout(t *testing.T) {
	f := &fake{}
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
		first, second := begin(t, tr), begin(t, tr)
		first.Abort()
		time.Sleep(10 * time.Second)
		second.Abort()
		time.Sleep(20*time.Second - time.Nanosecond)
		synctest.Wait()
		check(t, "idle before", stats(t, tr).Idle, 2)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		check(t, "idle after 30 s", stats(t, tr).Idle, 1)
		check(t, "QUIT", f.heard("QUIT"), 1)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		check(t, "idle after 40 s", stats(t, tr).Idle, 0)
		check(t, "QUIT", f.heard("QUIT"), 2)
	})
}

// A backend that does not answer QUIT holds nothing up for long.
func TestQuitUnanswered(t *testing.T) {
	f := &fake{answer: on("QUIT", "hang")}
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
		send(t, tr)
		time.Sleep(30*time.Second + politeness)
		synctest.Wait()
		check(t, "open", stats(t, tr).Open, 0)
		check(t, "QUIT", f.heard("QUIT"), 1)
	})
}

// Equals of one group share the load.
func TestBalance(t *testing.T) {
	a, b := &fake{}, &fake{}
	o := BackendOptions{Groups: [][]Endpoint{{hostA, hostB}}}
	bubble(t, a, b, o, func(t *testing.T, tr *Transport, _ *network) {
		var open []smtp.Transaction
		for range 10 {
			open = append(open, begin(t, tr))
		}
		for _, ep := range stats(t, tr).Endpoints {
			check(t, ep.Endpoint.String(), ep.Busy, 5)
		}
		for _, tx := range open {
			tx.Abort()
		}
		for range 60 { // one after the other: by lot
			send(t, tr)
		}
		if n := a.heard("MAIL"); n < 10 || n > 50 {
			t.Errorf("a got %d of 60 messages", n)
		}
		check(t, "dialled", stats(t, tr).Dialled, 10)
	})
}

// With as many connections as there may be, one that is idle at a less wanted endpoint
// makes room for a wanted one.
func TestEvict(t *testing.T) {
	a, b := &fake{}, &fake{}
	o := one(hostA, hostB)
	o.Connections = 2
	bubble(t, nil, b, o, func(t *testing.T, tr *Transport, n *network) {
		t.Cleanup(a.stop)
		first, second := begin(t, tr), begin(t, tr) // both at b
		first.Abort()
		second.Abort()
		time.Sleep(minPause)
		n.set("a:25", a)
		check(t, "outcome", send(t, tr), "250 taken")
		check(t, "mail of a", a.heard("MAIL"), 1)
		s := stats(t, tr)
		check(t, "open", s.Open, 2)
		check(t, "idle at b", s.Endpoints[1].Idle, 1)
		check(t, "QUIT at b", b.heard("QUIT"), 1)
	})
}

func TestUpdate(t *testing.T) {
	a, b := &fake{}, &fake{}
	bubble(t, a, b, one(hostA), func(t *testing.T, tr *Transport, _ *network) {
		first, running := begin(t, tr), begin(t, tr)
		first.Abort()
		if err := running.Rcpt(t.Context(), rcpt(t, "a@example.org")); err != nil {
			t.Fatal(err)
		}
		same := one(hostA)
		same.Connections = 50 // the default in other words
		if err := tr.Update(map[string]BackendOptions{"b": same}); err != nil {
			t.Fatal(err)
		}
		check(t, "same settings", figures(stats(t, tr)), "open 2 idle 1 busy 1 dialled 2 reused 0 lost 0")

		if err := tr.Update(map[string]BackendOptions{"b": {TLS: "maybe"}}); err == nil {
			t.Error("Update took options without sense")
		}
		if err := tr.Update(map[string]BackendOptions{"b": one(hostB)}); err != nil {
			t.Fatal(err)
		}
		check(t, "idle connections of a are closed", a.heard("QUIT"), 1)
		check(t, "new mail", send(t, tr), "250 taken")
		check(t, "goes to b", b.heard("MAIL"), 1)
		if replies, err := running.Data(t.Context(), letter); err != nil || replies[0].Code != 250 {
			t.Errorf("running transaction: %v, %v", replies, err)
		}
		check(t, "its connection is closed then", a.heard("QUIT"), 2)

		if err := tr.Update(nil); err != nil {
			t.Fatal(err)
		}
		_, err := tr.Begin(t.Context(), "b", from(t))
		if err == nil || smtp.ReplyOf(err).Code != 451 {
			t.Errorf("backend that is gone: %v, want 451", err)
		}
		check(t, "b is closed", b.heard("QUIT"), 1)
	})
}

func TestShutdown(t *testing.T) {
	f := &fake{}
	o := one(hostA)
	o.Connections = 2
	bubble(t, f, nil, o, func(t *testing.T, tr *Transport, _ *network) {
		first, running := begin(t, tr), begin(t, tr)
		var all sync.WaitGroup
		all.Go(func() {
			_, err := tr.Begin(t.Context(), "b", from(t))
			check(t, "in line", outcome(err), errClosing.Line())
		})
		synctest.Wait()
		ended := make(chan error, 2)
		for range 2 {
			all.Go(func() { ended <- tr.Shutdown(t.Context()) })
		}
		synctest.Wait()
		_, err := tr.Begin(t.Context(), "b", from(t))
		check(t, "new", outcome(err), errClosing.Line())
		check(t, "update", tr.Update(nil), ErrClosed)
		first.Abort()
		if err := running.Rcpt(t.Context(), rcpt(t, "a@example.org")); err != nil {
			t.Fatal(err)
		}
		check(t, "ended while a transaction runs", len(ended), 0)
		if replies, err := running.Data(t.Context(), letter); err != nil || replies[0].Code != 250 {
			t.Errorf("running transaction: %v, %v", replies, err)
		}
		all.Wait()
		check(t, "first", <-ended, nil)
		check(t, "second", <-ended, nil)
		check(t, "QUIT", f.heard("QUIT"), 2)
	})
}

// When patience ends, what still waits for a backend fails.
func TestShutdownCuts(t *testing.T) {
	f := &fake{end: func(string) string { return "hang" }}
	bubble(t, f, nil, one(hostA), func(t *testing.T, tr *Transport, n *network) {
		var all sync.WaitGroup
		all.Go(func() { check(t, "in the data", send(t, tr), "data: error") })
		synctest.Wait()
		n.mu.Lock()
		n.holes["a:25"] = true
		n.mu.Unlock()
		all.Go(func() { check(t, "connecting", send(t, tr), "begin: "+errUnreachable.Line()) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		check(t, "error", tr.Shutdown(ctx), context.DeadlineExceeded)
		all.Wait()
		check(t, "took", time.Since(start), 5*time.Second)
		check(t, "again", tr.Shutdown(t.Context()), nil)
	})
}

func TestUnixSocket(t *testing.T) {
	f := &fake{lmtp: true, ehlo: pipelining, end: func(r string) string {
		if strings.Contains(r, "<full@") {
			return "452 4.2.2 full"
		}
		return ""
	}}
	tr := open(t, one(f.serve(t, listen(t, "unix", socket(t)))))
	check(t, "outcome", send(t, tr, "a@example.org", "full@example.org"), "250 taken, 452 4.2.2 full")
	f.hangUp()
	check(t, "outcome", send(t, tr), "250 taken")
	check(t, "pool", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 2 reused 1 lost 0")
}

func TestProbe(t *testing.T) {
	a := &fake{ehlo: []string{"SIZE 1000", "DSN", "8BITMIME"}}
	b := &fake{ehlo: []string{"SIZE 900", "DSN"}}
	for _, c := range []struct {
		name      string
		a, b      *fake
		dsn, mime bool
		size      int64
		ok        bool
	}{
		{"both", a, b, true, false, 900, true},
		{"one", a, nil, true, true, 1000, true},
		{"none", nil, &fake{greeting: "421 no"}, false, false, 0, false},
	} {
		bubble(t, c.a, c.b, one(hostA, hostB), func(t *testing.T, tr *Transport, _ *network) {
			got, err := tr.Probe(t.Context(), "b")
			check(t, c.name+": reached", err == nil, c.ok)
			check(t, c.name+": DSN", got.Has("DSN"), c.dsn)
			check(t, c.name+": 8BITMIME", got.Has("8BITMIME"), c.mime)
			check(t, c.name+": SIZE", got.MaxSize(), c.size)
			check(t, c.name+": endpoints", len(got.Endpoints), 2)
			check(t, c.name+": a reached", got.Endpoints[0].Err == nil, c.a != nil)
			check(t, c.name+": pool", figures(stats(t, tr)), "open 0 idle 0 busy 0 dialled 0 reused 0 lost 0")
			if c.a != nil {
				check(t, c.name+": greeting", got.Endpoints[0].Greeting, "fake")
				check(t, c.name+": mail", c.a.heard("MAIL"), 0)
			}
		})
	}
}

// TestUnaskedReply: a backend that answers once too often is not used again. What it said
// would be taken for the answer to the next transaction's first command.
func TestUnaskedReply(t *testing.T) {
	f := &fake{end: func(string) string { return "250 taken\n550 and one that nobody asked for" }}
	tr := open(t, one(f.listen(t)))
	for range 3 {
		check(t, "outcome", send(t, tr), "250 taken")
	}
	check(t, "connections", stats(t, tr).Dialled, 3)
}
