package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// engine_test.go: messages that wait, and what becomes of them, with a store in memory, in
// bubbles where days pass at once.

// house is an Engine between a store and backends. Backends are the fakes by name; one that is nil
// refuses connections. Reports go where nobody takes them, and are read in the store.
type house struct {
	t     testing.TB
	fs    *vfs.MemFS
	hosts map[string]*fake
	// connections is how many there may be to each backend.
	connections int
	pace        Pace
	options     func(*EngineOptions)
	// wrap is what stands between the engine and the queue.
	wrap func(store.Queue) store.Queue

	store  *embedded.Store
	tr     *Transport
	e      *Engine
	stop   context.CancelFunc
	ran    chan struct{}
	closed bool
}

// open makes the house, which does not deliver before run. It is closed at the end of the
// test.
func (h *house) open(t testing.TB) *house {
	t.Helper()
	h.t = t
	if h.fs == nil {
		h.fs = vfs.NewMem()
	}
	var err error
	h.store, err = embedded.Open("store", embedded.Options{FS: h.fs, Memtable: 1 << 20, Cache: 1 << 20, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	o := Options{LocalName: "gateway.test", Backends: make(map[string]BackendOptions), Log: log}
	n := &network{hosts: make(map[string]*fake)}
	for name, f := range h.hosts {
		n.hosts[name+".test:25"] = f
		b := one(Endpoint{Network: "tcp", Address: name + ".test:25", LMTP: f != nil && f.lmtp})
		b.Connections, b.Pace = h.connections, h.pace
		o.Backends[name] = b
	}
	o.Dial = n.dial
	if h.tr, err = New(o); err != nil {
		t.Fatal(err)
	}
	eo := EngineOptions{Queue: h.store.Queue(), Transport: h.tr, Hostname: "mx.test", Log: log,
		Route: func(smtp.Path) store.Destination { return "mx:reports" }}
	if h.wrap != nil {
		eo.Queue = h.wrap(eo.Queue)
	}
	if h.options != nil {
		h.options(&eo)
	}
	if h.e, err = NewEngine(eo); err != nil {
		t.Fatal(err)
	}
	h.closed = false
	t.Cleanup(h.close)
	return h
}

// run makes the engine deliver.
func (h *house) run() *house {
	ctx, stop := context.WithCancel(context.Background())
	h.stop, h.ran = stop, make(chan struct{})
	go func() {
		defer close(h.ran)
		h.e.Run(ctx)
	}()
	return h
}

// close shuts all down; deliveries get a second to end.
func (h *house) close() {
	if h.closed {
		return
	}
	h.closed = true
	h.quiet(time.Second)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := h.tr.Shutdown(ctx); err != nil {
		h.t.Errorf("shutdown: %v; a transaction is left open", err)
	}
	if err := h.store.Close(); err != nil {
		h.t.Error(err)
	}
	for _, f := range h.hosts {
		if f != nil {
			f.stop()
		}
	}
}

// quiet ends the engine and returns what Shutdown says.
func (h *house) quiet(patience time.Duration) error {
	if h.stop != nil {
		h.stop()
		<-h.ran
		h.stop = nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return h.e.Shutdown(ctx)
}

// letterTo is a letter for recipients at a backend, by the first label of their domain.
func letterTo(t testing.TB, to ...string) Keeping {
	t.Helper()
	k := Keeping{Sender: from(t), Content: letter}
	for _, r := range to {
		_, domain, _ := strings.Cut(r, "@")
		name, _, _ := strings.Cut(domain, ".")
		k.Recipients = append(k.Recipients, KeptRecipient{Recipient: rcpt(t, r), Destination: BackendDestination(name)})
	}
	return k
}

func (h *house) keep(k Keeping) store.ID {
	h.t.Helper()
	id, err := h.e.Keep(context.Background(), k)
	if err != nil {
		h.t.Fatalf("keep: %v", err)
	}
	return id
}

// put puts a message into the store without the engine.
func (h *house) put(k Keeping, change func(*store.Message)) store.ID {
	h.t.Helper()
	m, _ := h.e.messageOf(k, time.Now())
	if change != nil {
		change(m)
	}
	in, err := h.store.Queue().Begin(context.Background(), m)
	if err == nil {
		_, err = k.Content.WriteTo(in)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	id, err := in.Commit(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

// after lets time pass, and what is due happen.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// states tells what became of each recipient; "gone" if the message is.
func (h *house) states(id store.ID) string {
	h.t.Helper()
	m, err := h.store.Queue().Message(context.Background(), id)
	if errors.Is(err, store.ErrNotFound) {
		return "gone"
	}
	if err != nil {
		h.t.Fatal(err)
	}
	var all []string
	for _, r := range m.Recipients {
		s := [...]string{"waiting", "held", "delivered", "failed"}[r.State]
		if r.Tries > 0 {
			s += fmt.Sprintf(" %d", r.Tries)
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

// reports are those in the store, oldest first, with their envelope in front.
func (h *house) reports() []string {
	h.t.Helper()
	ctx := context.Background()
	var list []string
	err := h.store.Queue().List(ctx, store.Filter{Sender: "<>"}, "", func(m *store.Message) bool {
		c, err := h.store.Queue().Content(ctx, m.ID)
		if err != nil {
			h.t.Fatal(err)
		}
		defer c.Close()
		var b strings.Builder
		fmt.Fprintf(&b, "to %s\n", m.Recipients[0].Path)
		if _, err := c.WriteTo(&b); err != nil {
			h.t.Fatal(err)
		}
		list = append(list, b.String())
		return true
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return list
}

// tell checks a report for what must be in it, or with "!" in front must not.
func tell(t testing.TB, report string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		text, not := strings.CutPrefix(w, "!")
		if strings.Contains(report, text) == not {
			t.Errorf("report: want %q in\n%s", w, report)
		}
	}
}

// answers gives the replies to lines that begin as told: "RCPT TO:<bad" => "550 no".
func answers(m map[string]string) func(string) string {
	return func(line string) string {
		for prefix, reply := range m {
			if strings.HasPrefix(line, prefix) {
				return reply
			}
		}
		return ""
	}
}

func TestSchedule(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		s     Schedule
		tries int
		want  time.Duration
	}{
		{Schedule{}, 0, 5 * time.Minute}, // of a caller that did not count
		{Schedule{}, 1, 5 * time.Minute},
		{Schedule{}, 2, 10 * time.Minute},
		{Schedule{}, 4, 40 * time.Minute},
		{Schedule{}, 7, 320 * time.Minute},
		{Schedule{}, 8, 6 * time.Hour},
		{Schedule{}, 5000, 6 * time.Hour}, // more than a float bears
		{Schedule{First: time.Minute, Factor: 1, Max: time.Hour}, 9, time.Minute},
		{Schedule{First: time.Second, Factor: 1.5, Max: time.Hour}, 3, 2250 * time.Millisecond},
	} {
		least, most := time.Duration(1<<62), time.Duration(0)
		for range 500 {
			d := c.s.withDefaults().next(now, c.tries).Sub(now)
			least, most = min(least, d), max(most, d)
		}
		if least < c.want*89/100 || most > c.want*111/100 || least > c.want*95/100 || most < c.want*105/100 {
			t.Errorf("%+v after %d tries: between %v and %v, want about 10%% around %v", c.s, c.tries, least, most, c.want)
		}
	}
	for _, c := range []struct {
		s    Schedule
		want string // empty is none
	}{
		{Schedule{}, ""},
		{Schedule{Notify: -1}, ""},
		{Schedule{Max: -1}, "schedule: must not be negative"},
		{Schedule{Factor: 0.5}, "schedule: the factor must be between 1 and 100"},
		{Schedule{First: 7 * time.Hour}, "schedule: the first wait is longer than the longest"},
		{Schedule{Expire: time.Hour}, "schedule: the longest wait is longer than a message is kept"},
	} {
		got := ""
		if err := c.s.Validate(); err != nil {
			got = strings.Split(err.Error(), "\n")[0]
		}
		check(t, fmt.Sprintf("%+v", c.s), got, c.want)
	}
}

// TestOutcomes: each recipient has a fate of its own, and the sender hears of those that
// failed in one report for each attempt.
func TestOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fake{lmtp: true, ehlo: []string{"ENHANCEDSTATUSCODES"},
			answer: answers(map[string]string{"RCPT TO:<nobody": "550 5.1.1 no such user", "RCPT TO:<later": "450 4.2.0 not now"}),
			end: func(rcpt string) string {
				switch {
				case strings.Contains(rcpt, "<full"):
					return "552 5.2.2 mailbox full"
				case strings.Contains(rcpt, "<busy"):
					return "452 4.2.1 mailbox busy"
				}
				return ""
			}}
		h := (&house{hosts: map[string]*fake{"b": b}}).open(t).run()
		id := h.keep(letterTo(t, "fine@b.test", "nobody@b.test", "later@b.test", "full@b.test", "busy@b.test"))
		after(time.Second)
		check(t, "states", h.states(id), "delivered 1, failed 1, waiting 1, failed 1, waiting 1")
		reports := h.reports()
		if len(reports) != 1 {
			t.Fatalf("%d reports, want one: %q", len(reports), reports)
		}
		tell(t, reports[0], "to from@example.org", "nobody@b.test", "full@b.test", "5.1.1 no such user", "Action: failed", "!later@b.test", "!busy@b.test", "!fine@b.test")
		m, err := h.store.Queue().Message(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "attempts", len(m.Attempts), 1)
		check(t, "reply of the attempt", m.Attempts[0].Reply.Line(), "552 5.2.2 mailbox full")
		check(t, "last of the busy one", m.Recipients[4].Last.Line(), "452 4.2.1 mailbox busy")

		b.mended.Store(true)
		after(10 * time.Minute)
		check(t, "states", h.states(id), "gone")
		check(t, "reports", len(h.reports()), 1)
		check(t, "sent to the first", b.heard("RCPT TO:<fine"), 1)
		check(t, "delivered", h.e.Stats.Delivered.Load(), 3)
		check(t, "failed", h.e.Stats.Failed.Load(), 2)
	})
}

// TestBrokenOff: a backend that breaks off, with a 421 or without, is no error of ours, nor is one
// that the configuration does not have any more. The sender hears of neither's address.
func TestBrokenOff(t *testing.T) {
	const broken = "451 4.4.2 the next hop gave no proper answer, try again later"
	for _, c := range []struct {
		name, at, verb, reply, want string
	}{
		{"MAIL 421", "b", "MAIL", "421 4.3.2 going down", broken},
		{"RCPT 421", "b", "RCPT", "421 4.3.2 going down", broken},
		{"RCPT drop", "b", "RCPT", "drop", broken},
		{"DATA drop", "b", "DATA", "drop", broken},
		{"DATA 421", "b", "DATA", "421 4.3.2 going down", "451 4.3.2 going down"},
		{"no backend", "gone", "", "", "451 4.4.4 there is no way to this destination"},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &fake{ehlo: []string{"ENHANCEDSTATUSCODES"}}
			if c.verb != "" {
				b.answer = answers(map[string]string{c.verb: c.reply})
			}
			h := (&house{hosts: map[string]*fake{"b": b}, options: func(o *EngineOptions) { o.Schedule.Notify = time.Minute }}).open(t).run()
			id := h.keep(letterTo(t, "to@"+c.at+".test"))
			after(10 * time.Minute)
			m, err := h.store.Queue().Message(t.Context(), id)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			check(t, c.name+": state", m.Recipients[0].State, store.Waiting)
			if got := m.Recipients[0].Last.Line(); !strings.HasPrefix(got, c.want+" (") {
				t.Errorf("%s: got %q, want %q and why", c.name, got, c.want)
			}
			reports := h.reports()
			if len(reports) != 1 {
				t.Fatalf("%s: %d reports, want one of the delay", c.name, len(reports))
			}
			tell(t, reports[0], "Diagnostic-Code: smtp; "+c.want[:20], "Action: delayed", "!b.test:25", "!internal error")
		})
	}
}

// TestNotify: what the sender is told, by its wishes. RFC 3461.
func TestNotify(t *testing.T) {
	const never, success, failure, delay = smtp.NotifyNever, smtp.NotifySuccess, smtp.NotifyFailure, smtp.NotifyDelay
	for _, c := range []struct {
		name   string
		notify smtp.Notify
		reply  string // of the backend to RCPT
		dsn    bool   // it reports itself
		null   bool   // the sender is
		want   []string
	}{
		{"default, failed", 0, "550 no", false, false, []string{"failed"}},
		{"default, delayed", 0, "450 no", false, false, []string{"delayed", "failed"}},
		{"default, taken", 0, "", false, false, nil},
		{"never, failed", never, "550 no", false, false, nil},
		{"never, delayed", never, "450 no", false, false, nil},
		{"success, failed", success, "550 no", false, false, nil},
		{"success, taken", success, "", false, false, []string{"relayed"}},
		{"success, taken by one that reports", success, "", true, false, nil},
		{"failure, delayed", failure, "450 no", false, false, []string{"failed"}},
		{"delay, delayed", delay, "450 no", false, false, []string{"delayed"}},
		{"all, failed", success | failure | delay, "550 no", true, false, []string{"failed"}},
		{"null sender, failed", 0, "550 no", false, true, nil},
		{"null sender, delayed", failure | delay, "450 no", false, true, nil},
		{"null sender, taken", success, "", false, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &fake{answer: answers(map[string]string{"RCPT": c.reply})}
				if c.dsn {
					b.ehlo = []string{"DSN"}
				}
				h := (&house{hosts: map[string]*fake{"b": b}, options: func(o *EngineOptions) {
					o.Schedule = Schedule{First: 10 * time.Minute, Max: 20 * time.Minute, Notify: time.Hour, Expire: 3 * time.Hour}
				}}).open(t).run()
				k := letterTo(t, "to@b.test")
				k.Recipients[0].Notify = c.notify
				if c.null {
					k.Sender.Path = smtp.Path{}
				}
				id := h.keep(k)
				// Reports wait for as long as mail does, so they are all there now.
				var got []string
				seen := make(map[string]bool)
				for range 8 {
					after(30 * time.Minute)
					for _, r := range h.reports() {
						_, action, _ := strings.Cut(r, "\nAction: ")
						action, _, _ = strings.Cut(action, "\r\n")
						if action != "" && !seen[r] {
							seen[r] = true
							got = append(got, action)
						}
					}
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("reports: got %q, want %q", got, c.want)
				}
				if !c.null {
					check(t, "message", h.states(id), "gone")
				}
			})
		})
	}
}

// TestReportContent: the report has what the sender named the message and the recipient by,
// returns as much as was asked for, and nothing of our own house.
func TestReportContent(t *testing.T) {
	for _, full := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := &fake{answer: answers(map[string]string{"RCPT": "550 5.1.1 no"})}
			h := (&house{hosts: map[string]*fake{"b": b}}).open(t).run()
			k := letterTo(t, "to@b.test")
			k.Sender.EnvID, k.Sender.Return = "QQ314159", smtp.ReturnHeaders
			k.Recipients[0].Original = smtp.OriginalRecipient{Type: "rfc822", Address: "first@elsewhere.test"}
			body := "!\r\nhello\r\n"
			if full {
				k.Sender.Return, body = smtp.ReturnFull, "\r\nhello\r\n"
			}
			h.keep(k)
			after(time.Second)
			reports := h.reports()
			if len(reports) != 1 {
				t.Fatalf("%d reports, want 1", len(reports))
			}
			tell(t, reports[0], "Original-Envelope-Id: QQ314159", "Original-Recipient: rfc822; first@elsewhere.test",
				"Final-Recipient: rfc822; to@b.test", "Reporting-MTA: dns; mx.test", "Subject: test", body)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		h := (&house{hosts: map[string]*fake{"b": nil}, options: func(o *EngineOptions) { o.Schedule.Notify = time.Minute }}).open(t).run()
		id := h.keep(letterTo(t, "to@b.test"))
		after(10 * time.Minute)
		reports := h.reports()
		if len(reports) != 1 {
			t.Fatalf("%d reports, want 1", len(reports))
		}
		tell(t, reports[0], "Action: delayed", "Will-Retry-Until:", "!b.test:25", "!connection refused")
		m, err := h.store.Queue().Message(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if last := m.Recipients[0].Last; last == nil || !strings.Contains(last.Text, "connection refused") {
			t.Errorf("the queue knows %v, want the cause", last)
		}
	})
}

// TestReportSigned: signatures go on top of a report and are of all of it; without one it goes as it
// is.
func TestReportSigned(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var signed strings.Builder
			b := &fake{answer: answers(map[string]string{"RCPT": "550 5.1.1 no"})}
			h := (&house{hosts: map[string]*fake{"b": b}, options: func(o *EngineOptions) {
				o.Sign = func(_ context.Context, d smtp.Domain, c smtp.Content) ([]message.Field, error) {
					if n, err := c.WriteTo(&signed); err != nil || n != c.Size() || fails {
						return nil, errors.New("no key")
					}
					f, err := message.NewField("DKIM-Signature", "d="+d.String())
					return []message.Field{f}, err
				}
			}}).open(t).run()
			h.keep(letterTo(t, "to@b.test"))
			after(time.Second)
			want := "DKIM-Signature: d=mx.test\r\n"
			if fails {
				want = ""
			}
			if reports := h.reports(); len(reports) != 1 || reports[0] != "to from@example.org\n"+want+signed.String() {
				t.Errorf("got %q", reports)
			}
		})
	}
}

// TestExpiry: what cannot be delivered in time goes back, once, as 5.4.7; what speaks of us
// and not of the message is tried until then.
func TestExpiry(t *testing.T) {
	for _, reply := range []string{"451 4.3.0 not now", "530 5.7.0 log in first"} {
		synctest.Test(t, func(t *testing.T) {
			b := &fake{answer: answers(map[string]string{"RCPT": reply})}
			h := (&house{hosts: map[string]*fake{"b": b}, options: func(o *EngineOptions) {
				o.Schedule = Schedule{First: time.Minute, Max: time.Hour, Expire: 6 * time.Hour, Notify: -1}
			}}).open(t).run()
			id := h.keep(letterTo(t, "to@b.test", "two@b.test"))
			after(6*time.Hour - time.Second)
			check(t, "reports before", len(h.reports()), 0)
			if s := h.states(id); s == "gone" {
				t.Fatal("it is gone before its time")
			}
			after(3 * time.Second)
			check(t, "states", h.states(id), "gone")
			reports := h.reports()
			if len(reports) != 1 {
				t.Fatalf("%d reports, want 1", len(reports))
			}
			tell(t, reports[0], "Status: 5.4.7", "to@b.test", "two@b.test")
		})
	}
}

// TestHeld: what is held waits for a person, however long.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fake{}
		h := (&house{hosts: map[string]*fake{"b": b}}).open(t).run()
		k := letterTo(t, "to@b.test")
		k.Held = "looks strange"
		id := h.keep(k)
		after(time.Hour)
		check(t, "states", h.states(id), "held")
		check(t, "sent", b.heard("MAIL"), 0)
		m, err := h.store.Queue().Message(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "reason", m.Origin.Reason, "looks strange")
		err = h.store.Queue().Update(t.Context(), id, func(m *store.Message) bool {
			m.Recipients[0].State = store.Waiting
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		check(t, "states", h.states(id), "gone")
		check(t, "sent", b.heard("MAIL"), 1)
	})
}

// TestHeldForOne: one recipient waits for a person, another gets the message at once.
func TestHeldForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fake{}
		h := (&house{hosts: map[string]*fake{"b": b}}).open(t).run()
		k := letterTo(t, "odd@b.test", "to@b.test")
		k.Recipients[0].Held = "looks strange"
		id := h.keep(k)
		after(time.Second)
		check(t, "states", h.states(id), "held, delivered 1")
		check(t, "sent", b.heard("MAIL"), 1)
		m, err := h.store.Queue().Message(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "reason", m.Origin.Reason, "looks strange")
	})
}

// TestDeadDestination: a destination that hangs delays nobody, neither who brings mail nor
// mail for others, also not that in the same message.
func TestDeadDestination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead, live := &fake{answer: answers(map[string]string{"MAIL": "hang"})}, &fake{}
		h := (&house{hosts: map[string]*fake{"dead": dead, "live": live}, connections: 3}).open(t).run()
		start := time.Now()
		for range 10 {
			h.keep(letterTo(t, "to@dead.test", "to@live.test"))
			h.keep(letterTo(t, "to@dead.test"))
			h.keep(letterTo(t, "to@live.test"))
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("keeping took %v", took)
		}
		after(time.Second)
		check(t, "delivered", h.e.Stats.Delivered.Load(), 20)
		_, most := dead.dialled()
		check(t, "connections to the dead one", most, 3)
		dead.mended.Store(true)
		dead.hangUp()
		after(time.Hour)
		check(t, "delivered", h.e.Stats.Delivered.Load(), 40)
		check(t, "sent by the first", dead.heard("RCPT"), dead.heard("DATA"))
	})
}

// TestOrder: the urgent goes first, and the fresh before what was tried already.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fake{}
		h := (&house{hosts: map[string]*fake{"b": b}, connections: 1}).open(t)
		for i := range 6 {
			h.put(letterTo(t, fmt.Sprintf("old%d@b.test", i)), func(m *store.Message) { m.Recipients[0].Tries = 3 })
		}
		for i := range 6 {
			h.put(letterTo(t, fmt.Sprintf("new%d@b.test", i)), nil)
		}
		k := letterTo(t, "urgent@b.test")
		k.Sender.Priority = 4
		h.put(k, nil)
		k = letterTo(t, "idle@b.test")
		k.Sender.Priority = -4
		h.put(k, nil)
		h.run()
		after(time.Second)
		var got []string
		for line := range strings.SplitSeq(b.said(), "|") {
			if name, ok := strings.CutPrefix(line, "RCPT TO:<"); ok {
				got = append(got, strings.TrimRight(name[:strings.IndexByte(name, '@')], "0123456789"))
			}
		}
		want := append(append([]string{"urgent"}, slices.Repeat([]string{"new"}, 6)...), append(slices.Repeat([]string{"old"}, 6), "idle")...)
		if !slices.Equal(got, want) {
			t.Errorf("order: got %v, want %v", got, want)
		}
	})
}

// TestPace: a backend gets no more than it is to get, whatever waits; a lease that waits longer than it
// lasts is not lost. What waits at the end is given back.
func TestPace(t *testing.T) {
	parity.Row(t, "SC-52")
	synctest.Test(t, func(t *testing.T) {
		b := &fake{}
		h := (&house{hosts: map[string]*fake{"b": b}, pace: Pace{Messages: 1, Per: 3 * time.Minute}}).open(t)
		for range 5 {
			h.put(letterTo(t, "to@b.test"), nil)
		}
		h.run()
		for i := range 4 {
			after(time.Second)
			check(t, "sent", b.heard("DATA"), i+1)
			after(3*time.Minute - time.Second)
		}
		start := time.Now()
		check(t, "leases lost", h.e.Stats.LeaseLost.Load(), 0)
		h.put(letterTo(t, "to@b.test"), nil)
		after(time.Minute)
		check(t, "shutdown", h.quiet(time.Second), nil)
		check(t, "shutdown waited for a turn", time.Since(start) > 2*time.Minute, false)
		check(t, "sent in all", b.heard("DATA"), 5)
	})
}

// TestWorkers: there are no more than may be, in all and at a destination, and a destination
// that none is left for gets one all the same.
func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open, most atomic.Int64
		slow := func() *fake {
			return &fake{end: func(string) string {
				n := open.Add(1)
				defer open.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(time.Second)
				return ""
			}}
		}
		a, b, c := slow(), slow(), slow()
		h := (&house{hosts: map[string]*fake{"a": a, "b": b, "c": c}, connections: 3, options: func(o *EngineOptions) { o.Workers = 5 }}).open(t)
		for range 100 {
			h.put(letterTo(t, "to@a.test"), nil)
			h.put(letterTo(t, "to@b.test"), nil)
		}
		h.run()
		after(time.Second / 2)
		h.keep(letterTo(t, "to@c.test"))
		after(8 * time.Second)
		check(t, "deliveries to the late one", c.heard("DATA"), 1)
		after(2 * time.Minute)
		check(t, "delivered", h.e.Stats.Delivered.Load(), 201)
		check(t, "most in all", most.Load(), 5)
		for name, f := range h.hosts {
			if _, most := f.dialled(); most > 3 {
				t.Errorf("%d connections to %s, want at most 3", most, name)
			}
		}
		h.e.mu.Lock()
		defer h.e.mu.Unlock()
		check(t, "workers at the end", h.e.workers, 0)
		check(t, "destinations at the end", len(h.e.dests), 0)
	})
}

// TestBatch: what was leased together with a message that takes long does not wait for it if
// it need not, and is not sent twice if it must.
func TestBatch(t *testing.T) {
	for _, connections := range []int{1, 10} {
		synctest.Test(t, func(t *testing.T) {
			var first atomic.Bool
			b := &fake{end: func(string) string {
				if first.CompareAndSwap(false, true) {
					time.Sleep(8 * time.Minute) // longer than a lease
				}
				return ""
			}}
			h := (&house{hosts: map[string]*fake{"b": b}, connections: connections}).open(t)
			for range leases {
				h.put(letterTo(t, "to@b.test"), nil)
			}
			h.run()
			after(time.Second)
			want := int64(leases - 1)
			if connections == 1 {
				want = 0
			}
			check(t, "delivered at once", h.e.Stats.Delivered.Load(), want)
			after(20 * time.Minute)
			check(t, "delivered", h.e.Stats.Delivered.Load(), leases)
			check(t, "sent", b.heard("DATA"), leases)
			check(t, "leases lost", h.e.Stats.LeaseLost.Load(), 0)
		})
	}
}

// troubled is a queue that fails as told.
type troubled struct {
	store.Queue
	begin, write, commit, extend, content, finish func() error
}

func fails(f func() error) error {
	if f == nil {
		return nil
	}
	return f()
}

func (q *troubled) Begin(ctx context.Context, m *store.Message) (store.Incoming, error) {
	if err := fails(q.begin); err != nil {
		return nil, err
	}
	in, err := q.Queue.Begin(ctx, m)
	return &troubledIncoming{in, q}, err
}

func (q *troubled) Extend(ctx context.Context, l *store.Lease, d time.Duration) error {
	if err := fails(q.extend); err != nil {
		return err
	}
	return q.Queue.Extend(ctx, l, d)
}

func (q *troubled) Content(ctx context.Context, id store.ID) (store.Content, error) {
	if err := fails(q.content); err != nil {
		return nil, err
	}
	return q.Queue.Content(ctx, id)
}

func (q *troubled) Finish(ctx context.Context, l *store.Lease, o []store.Outcome, a *store.Attempt, r ...*store.Report) error {
	if err := fails(q.finish); err != nil {
		return err
	}
	return q.Queue.Finish(ctx, l, o, a, r...)
}

type troubledIncoming struct {
	store.Incoming
	q *troubled
}

func (in *troubledIncoming) Write(p []byte) (int, error) {
	if err := fails(in.q.write); err != nil {
		return 0, err
	}
	return in.Incoming.Write(p)
}

func (in *troubledIncoming) Commit(ctx context.Context) (store.ID, error) {
	if err := fails(in.q.commit); err != nil {
		return "", err
	}
	return in.Incoming.Commit(ctx)
}

func (in *troubledIncoming) CommitLeased(ctx context.Context, d store.Destination, lasts time.Duration) (*store.Lease, error) {
	if err := fails(in.q.commit); err != nil {
		return nil, err
	}
	return in.Incoming.CommitLeased(ctx, d, lasts)
}

// unreadable is a content that cannot be read, which its reader says in a reply or not.
type unreadable struct{ err error }

func (u unreadable) WriteTo(io.Writer) (int64, error) { return 0, u.err }
func (u unreadable) Size() int64                      { return 10 }

// TestKeepFails: what a client is told if its message cannot be kept; nothing of it is then.
func TestKeepFails(t *testing.T) {
	broken := func() error { return errors.New("input/output error") }
	full := func() error { return fmt.Errorf("no: %w", store.ErrFull) }
	for _, c := range []struct {
		name    string
		queue   troubled
		content smtp.Content
		want    string
	}{
		{"begin", troubled{begin: broken}, letter, "451 4.3.0"},
		{"write", troubled{write: broken}, letter, "451 4.3.0"},
		{"commit", troubled{commit: broken}, letter, "451 4.3.0"},
		{"begin, full", troubled{begin: full}, letter, "452 4.3.1"},
		{"write, full", troubled{write: full}, letter, "452 4.3.1"},
		{"commit, full", troubled{commit: full}, letter, "452 4.3.1"},
		{"closed", troubled{begin: func() error { return store.ErrClosed }}, letter, "451 4.3.0"},
		{"content", troubled{}, unreadable{io.ErrUnexpectedEOF}, "451 4.3.0"},
		{"content with a reply", troubled{}, unreadable{smtp.Refuse(452, smtp.Enhanced{4, 3, 1}, "spool is full")}, "452 4.3.1 spool is full"},
	} {
		for _, refused := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/refused=%v", c.name, refused), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &fake{}
					h := (&house{hosts: map[string]*fake{"b": b}, wrap: func(q store.Queue) store.Queue { c.queue.Queue = q; return &c.queue }}).open(t).run()
					k := letterTo(t, "to@b.test")
					k.Content = c.content
					if refused { // so that there is a report alone
						if _, ok := c.content.(unreadable); ok {
							return // it is made without the content
						}
						k.Recipients[0].Reply = smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no")
					}
					_, err := h.e.Keep(t.Context(), k)
					if got := smtp.ReplyOf(err).Line(); err == nil || !strings.HasPrefix(got, c.want) {
						t.Errorf("got %q, want %q", got, c.want)
					}
					after(time.Minute)
					check(t, "kept", h.e.Stats.Kept.Load(), 0)
					check(t, "sent", b.heard("MAIL"), 0)
					n, err := h.store.Queue().Count(t.Context())
					if err != nil || n.Messages != 0 {
						t.Errorf("%d messages, %v; want none", n.Messages, err)
					}
				})
			})
		}
	}
}

// TestAsked: recipients whose next hop was asked before: refusals become a report, and what
// it could not take now is tried later.
func TestAsked(t *testing.T) {
	refused, busy := smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no such user"), smtp.Refuse(452, smtp.Enhanced{4, 2, 1}, "busy")
	synctest.Test(t, func(t *testing.T) {
		b := &fake{}
		h := (&house{hosts: map[string]*fake{"b": b}}).open(t).run()
		k := letterTo(t, "fresh@b.test", "busy@b.test", "no@b.test", "none@b.test")
		k.Recipients[1].Reply, k.Recipients[2].Reply, k.Recipients[3].Reply = busy, refused, refused
		id := h.keep(k)
		after(time.Second)
		check(t, "states", h.states(id), "delivered 1, waiting 1")
		check(t, "asked of the busy one", b.heard("RCPT TO:<busy"), 0)
		reports := h.reports()
		if len(reports) != 1 {
			t.Fatalf("%d reports, want 1", len(reports))
		}
		tell(t, reports[0], "no@b.test", "none@b.test", "5.1.1 no such user", "!busy@b.test")
		m, err := h.store.Queue().Message(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if last := m.Recipients[1].Last; last == nil || last.Line() != busy.Line() {
			t.Errorf("last reply of the busy one: got %v, want %v", last, busy)
		}
		after(10 * time.Minute)
		check(t, "states", h.states(id), "gone")
		check(t, "delivered", h.e.Stats.Delivered.Load(), 2)

		all := letterTo(t, "no@b.test")
		all.Recipients[0].Reply = refused
		name := h.keep(all)
		if m, err := h.store.Queue().Message(t.Context(), name); err != nil || !m.Sender.Path.IsNull() {
			t.Errorf("all refused: %q is no report: %v", name, err)
		}
		all.Sender.Path = smtp.Path{}
		check(t, "all refused, null sender", h.keep(all), "")
	})
}

// TestLeaseLost: who loses a lease stops, and says nothing of what became of the message.
func TestLeaseLost(t *testing.T) {
	for _, err := range []error{store.ErrLeaseLost, errors.New("no connection")} {
		synctest.Test(t, func(t *testing.T) {
			b := &fake{end: func(string) string { return "hang" }}
			h := (&house{hosts: map[string]*fake{"b": b}, wrap: func(q store.Queue) store.Queue {
				return &troubled{Queue: q, extend: func() error { return err }}
			}, options: func(o *EngineOptions) { o.Lease = 5 * time.Minute }}).open(t).run()
			id := h.keep(letterTo(t, "to@b.test"))
			after(time.Minute)
			check(t, "leases lost", h.e.Stats.LeaseLost.Load(), 0)
			b.mended.Store(true)
			after(9 * time.Minute)
			check(t, "leases lost", h.e.Stats.LeaseLost.Load(), 1)
			check(t, "sent", b.heard("DATA"), 2)
			check(t, "states", h.states(id), "gone")
			check(t, "deferred", h.e.Stats.Deferred.Load(), 0)
			check(t, "delivered", h.e.Stats.Delivered.Load(), 1)
		})
	}
}

// TestUnrecorded: what was delivered is not sent again because the store cannot write for a
// while.
func TestUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, sick := &fake{}, atomic.Bool{}
		sick.Store(true)
		h := (&house{hosts: map[string]*fake{"b": b}, wrap: func(q store.Queue) store.Queue {
			return &troubled{Queue: q, finish: func() error {
				if sick.Load() {
					return errors.New("input/output error")
				}
				return nil
			}}
		}}).open(t).run()
		id := h.keep(letterTo(t, "to@b.test"))
		after(2 * time.Minute)
		check(t, "states", h.states(id), "waiting")
		sick.Store(false)
		after(time.Minute)
		check(t, "states", h.states(id), "gone")
		after(time.Hour)
		check(t, "sent", b.heard("DATA"), 1)
	})
}

// TestEngineShutdown: what runs is waited for, or given back untouched; nothing is sent twice, and
// whoever comes next delivers the rest.
func TestEngineShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fake{end: func(string) string { time.Sleep(time.Second); return "" }}
		c := &fake{answer: answers(map[string]string{"RCPT": "hang"})}
		h := (&house{hosts: map[string]*fake{"b": b, "c": c}, connections: 2}).open(t)
		for range 10 {
			h.put(letterTo(t, "to@b.test"), nil)
			h.put(letterTo(t, "to@c.test"), nil)
		}
		h.run()
		after(1500 * time.Millisecond) // two were sent, two are being sent
		start := time.Now()
		if err := h.quiet(3 * time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown: got %v, want the deadline's error", err)
		}
		check(t, "shutdown took", time.Since(start), 3*time.Second)
		check(t, "second shutdown", h.quiet(time.Second), nil)
		check(t, "delivered", h.e.Stats.Delivered.Load(), 4)
		check(t, "deferred", h.e.Stats.Deferred.Load(), 0)
		// What comes now is safe, and stays.
		late := h.keep(letterTo(t, "to@b.test"))
		check(t, "late one", h.states(late), "waiting")
		waits := 0
		err := h.store.Queue().Destinations(t.Context(), func(w store.Waits) bool {
			if w.Due.IsZero() || w.Due.After(time.Now()) {
				t.Errorf("%s: due at %v, want at once", w.Destination, w.Due)
			}
			waits += w.Waiting
			return true
		})
		check(t, "destinations", err, nil)
		check(t, "waiting", waits, 17)
		h.close()

		// The next process.
		b2, c2 := &fake{}, &fake{}
		next := (&house{fs: h.fs, hosts: map[string]*fake{"b": b2, "c": c2}}).open(t).run()
		after(time.Second)
		check(t, "delivered afterwards", next.e.Stats.Delivered.Load(), 17)
		check(t, "sent to b in all", b.heard("DATA")+b2.heard("DATA"), 11)
		check(t, "sent to c", c2.heard("DATA"), 10)
	})
}

// TestRelease: nobody gets a message before its time, and the next hop is not told of it. RFC
// 4865.
func TestRelease(t *testing.T) {
	for _, until := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := &fake{ehlo: []string{"FUTURERELEASE 1000000 2030-01-01T00:00:00Z"}}
			h := (&house{hosts: map[string]*fake{"b": b}, options: func(o *EngineOptions) {
				o.Schedule = Schedule{Max: time.Hour, Expire: 2 * time.Hour}
			}}).open(t).run()
			k := letterTo(t, "to@b.test")
			k.Sender.HoldFor = 5 * time.Hour // longer than it is tried
			if until {
				k.Sender.HoldFor, k.Sender.HoldUntil = 0, time.Now().Add(5*time.Hour)
			}
			id := h.keep(k)
			after(5*time.Hour - time.Second)
			check(t, "states", h.states(id), "waiting")
			check(t, "sent", b.heard("MAIL"), 0)
			after(2 * time.Second)
			check(t, "states", h.states(id), "gone")
			check(t, "sent", b.heard("MAIL"), 1)
			check(t, "told to hold", strings.Contains(b.said(), "HOLD"), false)
		})
	}
}

// TestDeliverBy: the time that is left is told to the next hop, and a message that must be
// there by then goes back when it is over. RFC 2852.
func TestDeliverBy(t *testing.T) {
	for _, c := range []struct {
		by      smtp.DeliverBy
		mended  time.Duration // when the backend takes it
		mail    string        // what the last MAIL has
		reports int
	}{
		{smtp.DeliverBy{Seconds: 3600, Mode: smtp.ByReturn}, 20 * time.Minute, ";R", 0},
		{smtp.DeliverBy{Seconds: 3600, Mode: smtp.ByReturn}, 2 * time.Hour, "", 1},
		{smtp.DeliverBy{Seconds: 3600, Mode: smtp.ByNotify, Trace: true}, 2 * time.Hour, ";NT", 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := &fake{ehlo: []string{"DELIVERBY", "DSN"}, answer: answers(map[string]string{"RCPT": "450 not now"})}
			h := (&house{hosts: map[string]*fake{"b": b}, options: func(o *EngineOptions) { o.Schedule = Schedule{Max: 30 * time.Minute, Notify: -1} }}).open(t).run()
			k := letterTo(t, "to@b.test")
			k.Sender.By = c.by
			id := h.keep(k)
			after(c.mended)
			b.mended.Store(true)
			after(time.Hour)
			check(t, "states", h.states(id), "gone")
			reports := h.reports()
			check(t, "reports", len(reports), c.reports)
			for _, r := range reports {
				if c.by.Mode == smtp.ByReturn {
					tell(t, r, "Status: 5.4.7", "Action: failed")
				} else {
					tell(t, r, "Action: delayed")
				}
			}
			if c.mail == "" {
				check(t, "taken", b.heard("DATA"), 0)
				return
			}
			lines := strings.Split(b.said(), "|")
			var mails []string
			for _, l := range lines {
				if strings.HasPrefix(l, "MAIL") {
					mails = append(mails, l)
				}
			}
			if first := mails[0]; !strings.Contains(first, "BY=3600;") {
				t.Errorf("first: %q", first)
			}
			if last := mails[len(mails)-1]; !strings.Contains(last, c.mail) || strings.Contains(last, "BY=3600;") {
				t.Errorf("last: %q, want %q with less time", last, c.mail)
			}
		})
	}
}

// TestDamaged: a message whose content is spoilt goes back without it; one that cannot be
// read now is tried again.
func TestDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fake{}
		var mu sync.Mutex
		fault := error(fmt.Errorf("no: %w", store.ErrCorrupt))
		h := (&house{hosts: map[string]*fake{"b": b}, wrap: func(q store.Queue) store.Queue {
			return &troubled{Queue: q, content: func() error {
				mu.Lock()
				defer mu.Unlock()
				err := fault
				if errors.Is(err, store.ErrCorrupt) {
					fault = nil // the report can be read
				}
				return err
			}}
		}}).open(t).run()
		id := h.keep(letterTo(t, "to@b.test"))
		after(time.Second)
		check(t, "corrupt", h.states(id), "gone")
		mu.Lock()
		fault = errors.New("input/output error")
		mu.Unlock()
		reports := h.reports()
		if len(reports) != 1 {
			t.Fatalf("%d reports, want 1", len(reports))
		}
		tell(t, reports[0], "Status: 5.3.0", "was damaged")
		id = h.keep(letterTo(t, "to@b.test"))
		after(time.Second)
		check(t, "unreadable", h.states(id), "waiting 1")
		mu.Lock()
		fault = nil
		mu.Unlock()
		after(10 * time.Minute)
		check(t, "mended", h.states(id), "gone")
		check(t, "sent", b.heard("DATA"), 1)
	})
}
