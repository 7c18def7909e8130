package delivery

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/memqueue"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// operate_test.go: what a person does to the queue, and what a person is told of it. Nothing
// is delivered here: the engine does not run.

// noon is when these tests happen.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	mailstore = store.Destination("backend:mailstore")
	archive   = store.Destination("backend:archive")
)

// operated returns an engine for a queue, with backends mailstore and archive at endpoint.
func operated(t *testing.T, q store.Queue, endpoint Endpoint) *Engine {
	t.Helper()
	o := BackendOptions{Groups: [][]Endpoint{{endpoint}}, Connections: 2}
	tr, err := New(Options{LocalName: "mx.example.org", Backends: map[string]BackendOptions{"mailstore": o, "archive": o}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Shutdown(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	e, err := NewEngine(EngineOptions{Queue: q, Transport: tr, Hostname: "mx.example.org",
		Route: func(smtp.Path) store.Destination { return archive }})
	if err != nil {
		t.Fatal(err)
	}
	e.now = func() time.Time { return noon }
	return e
}

// nowhere is an endpoint that nobody connects to.
var nowhere = Endpoint{Network: "tcp", Address: "127.0.0.1:1"}

// twoRecipients is a message to two recipients: bob at mailstore, due in an hour, and carol at archive,
// due in two.
func twoRecipients(t *testing.T, from string) store.Message {
	t.Helper()
	m := store.Message{Arrived: noon.Add(-time.Hour), Expires: noon.Add(time.Hour), Recipients: []store.Recipient{
		memqueue.Recipient("bob@example.org", mailstore, noon.Add(time.Hour)),
		memqueue.Recipient("carol@example.com", archive, noon.Add(2*time.Hour)),
	}}
	if from != "" {
		p, err := smtp.ParseAddress(from)
		if err != nil {
			t.Fatal(err)
		}
		m.Sender.Path = p
	}
	return m
}

// fates is what became of the recipients of a message, in short.
func fates(t *testing.T, q *memqueue.Queue, id store.ID) string {
	t.Helper()
	m, err := q.Message(t.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return "gone"
	}
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, r := range m.Recipients {
		words = append(words, [...]string{"waiting", "held", "delivered", "failed"}[r.State])
		if r.State == store.Waiting {
			words[len(words)-1] += " " + r.Due.Sub(noon).String()
		}
	}
	return strings.Join(words, ", ")
}

func byID(id store.ID) Choice { return Choice{IDs: []store.ID{id}} }

// TestOperations: the life of one message under the hands of a person.
func TestOperations(t *testing.T) {
	q := &memqueue.Queue{}
	e := operated(t, q, nowhere)
	id := q.Add(twoRecipients(t, "alice@example.net"), "Subject: x\r\n\r\nhello\r\n")
	at := func(f store.Filter) Choice { return Choice{Filter: &f} }
	for _, tt := range []struct {
		name       string
		do         func() (Done, error)
		recipients int
		want       string
	}{
		{"hold at one destination", func() (Done, error) { return e.Hold(t.Context(), at(store.Filter{Destination: archive})) }, 1, "waiting 1h0m0s, held"},
		{"hold in a dry run", func() (Done, error) { return e.Hold(t.Context(), Choice{IDs: []store.ID{id}, Dry: true}) }, 1, "waiting 1h0m0s, held"},
		{"hold all", func() (Done, error) { return e.Hold(t.Context(), byID(id)) }, 1, "held, held"},
		{"hold again", func() (Done, error) { return e.Hold(t.Context(), byID(id)) }, 0, "held, held"},
		{"retry of what is held", func() (Done, error) { return e.Retry(t.Context(), byID(id)) }, 0, "held, held"},
		{"release of a domain", func() (Done, error) { return e.Release(t.Context(), at(store.Filter{Domain: "EXAMPLE.org"})) }, 1, "waiting 0s, held"},
		{"retry of what is due", func() (Done, error) { return e.Retry(t.Context(), byID(id)) }, 0, "waiting 0s, held"},
		{"drop of what is held", func() (Done, error) {
			return e.Drop(t.Context(), at(store.Filter{States: []store.State{store.Held}}))
		}, 1, "waiting 0s, failed"},
		{"of another sender", func() (Done, error) { return e.Drop(t.Context(), at(store.Filter{Sender: "<>"})) }, 0, "waiting 0s, failed"},
		{"hold of what is left", func() (Done, error) { return e.Hold(t.Context(), byID(id)) }, 1, "held, failed"},
		{"release of what is left", func() (Done, error) { return e.Release(t.Context(), byID(id)) }, 1, "waiting 0s, failed"},
		{"drop of a named one at another destination", func() (Done, error) {
			return e.Drop(t.Context(), Choice{IDs: []store.ID{id}, Filter: &store.Filter{Destination: archive, Sender: "<>"}})
		}, 0, "waiting 0s, failed"},
		{"drop", func() (Done, error) { return e.Drop(t.Context(), byID(id)) }, 1, "gone"},
	} {
		done, err := tt.do()
		if err != nil || len(done.Problems) > 0 || done.Recipients != tt.recipients || len(done.Messages) != min(1, tt.recipients) || done.Next != "" {
			t.Errorf("%s: %+v %v, want %d recipients", tt.name, done, err, tt.recipients)
		}
		if got := fates(t, q, id); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	if c, err := q.Count(t.Context()); err != nil || c.Messages != 0 {
		t.Errorf("after a drop there is %+v %v: somebody was told", c, err)
	}

	id = q.Add(twoRecipients(t, "alice@example.net"), "x")
	if done, err := e.Retry(t.Context(), byID(id)); err != nil || done.Recipients != 2 || fates(t, q, id) != "waiting 0s, waiting 0s" {
		t.Errorf("retry: %+v %v, %s", done, err, fates(t, q, id))
	}
	if _, err := e.Hold(t.Context(), byID(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Release(t.Context(), byID(id)); err != nil {
		t.Fatal(err)
	}
	if m, err := q.Message(t.Context(), id); err != nil || !m.Expires.Equal(noon.Add(5*24*time.Hour)) {
		t.Errorf("after a release it expires at %v %v: the time it was held counts", m.Expires, err)
	}
	select {
	case <-e.wake:
	default:
		t.Error("nobody looks what is due")
	}
}

// TestOperationsThatCannot: what is told of messages that are gone, or being delivered.
func TestOperationsThatCannot(t *testing.T) {
	q := &memqueue.Queue{}
	e := operated(t, q, nowhere)
	busy, free := q.Add(twoRecipients(t, "alice@example.net"), "x"), q.Add(twoRecipients(t, "alice@example.net"), "x")
	q.Borrow(busy, 0)
	done, err := e.Drop(t.Context(), Choice{IDs: []store.ID{busy, "none", free}})
	if err != nil || len(done.Messages) != 1 || done.Recipients != 2 || len(done.Problems) != 2 ||
		done.Problems[0].ID != busy || !errors.Is(done.Problems[0].Err, store.ErrLeased) || !errors.Is(done.Problems[1].Err, store.ErrNotFound) {
		t.Errorf("%+v %v", done, err)
	}
	if got := fates(t, q, busy); got != "waiting 1h0m0s, waiting 2h0m0s" {
		t.Errorf("what is being delivered is %s", got)
	}
	// The recipient that nobody delivers can be dropped.
	if done, err := e.Drop(t.Context(), Choice{Filter: &store.Filter{Destination: archive}}); err != nil || done.Recipients != 1 || len(done.Problems) > 0 {
		t.Errorf("%+v %v", done, err)
	}
	// A message that is delivered between the list and the change is no problem.
	q.BeforeUpdate = func(id store.ID) {
		q.BeforeUpdate = nil
		_ = q.Update(t.Context(), id, func(m *store.Message) bool {
			for i := range m.Recipients {
				m.Recipients[i].State = store.Delivered
			}
			return true
		})
	}
	gone := q.Add(twoRecipients(t, "gone@example.net"), "x")
	if done, err := e.Hold(t.Context(), Choice{Filter: &store.Filter{Sender: "gone@example.net"}}); err != nil || len(done.Messages) != 0 || len(done.Problems) > 0 || fates(t, q, gone) != "gone" {
		t.Errorf("%+v %v", done, err)
	}
	for _, c := range []Choice{{}, {IDs: make([]store.ID, maxChoice+1)}} {
		if done, err := e.Drop(t.Context(), c); err == nil {
			t.Errorf("a choice of nothing, or of too much: %+v", done)
		}
	}
	for _, text := range []string{"", " \r\n", strings.Repeat("x", maxBounceText+1)} {
		if _, err := e.Bounce(t.Context(), byID(busy), text); err == nil {
			t.Errorf("the text %.10q is taken", text)
		}
	}
}

// TestOperatePages: many messages are changed in steps.
func TestOperatePages(t *testing.T) {
	q := &memqueue.Queue{}
	e := operated(t, q, nowhere)
	for i := range 25 {
		q.Add(twoRecipients(t, fmt.Sprintf("a%d@example.net", i)), "x")
	}
	c := Choice{Filter: &store.Filter{}, Limit: 10}
	var counts []int
	for {
		done, err := e.Hold(t.Context(), c)
		if err != nil || done.Recipients != 2*len(done.Messages) {
			t.Fatalf("%+v %v", done, err)
		}
		counts = append(counts, len(done.Messages))
		if done.Next == "" {
			break
		}
		c.After = done.Next
	}
	if fmt.Sprint(counts) != "[10 10 5]" || q.Updates() != 25 {
		t.Errorf("%v messages in %d changes", counts, q.Updates())
	}
}

// TestBounce: who is told, what, and that it fits what was done.
func TestBounce(t *testing.T) {
	const text = "the mailbox has\nmoved"
	for _, tt := range []struct {
		name    string
		edit    func(q *memqueue.Queue, m *store.Message)
		choice  func(id store.ID) Choice
		reports int
		has     string
		hasNot  string
	}{
		{"both recipients", func(*memqueue.Queue, *store.Message) {}, byID, 1, "554 5.0.0 the mailbox has moved", ""},
		{"one recipient", func(*memqueue.Queue, *store.Message) {},
			func(store.ID) Choice { return Choice{Filter: &store.Filter{Domain: "example.org"}} }, 1, "bob", "carol"},
		{"of the null sender", func(_ *memqueue.Queue, m *store.Message) { m.Sender = smtp.Sender{} }, byID, 0, "", ""},
		{"where none is wanted", func(_ *memqueue.Queue, m *store.Message) { m.Recipients[0].Notify = smtp.NotifyNever }, byID, 1, "carol", "bob"},
		{"dry", func(*memqueue.Queue, *store.Message) {}, func(id store.ID) Choice { return Choice{IDs: []store.ID{id}, Dry: true} }, 1, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := &memqueue.Queue{}
			e := operated(t, q, nowhere)
			m := twoRecipients(t, "alice@example.net")
			tt.edit(q, &m)
			id := q.Add(m, "Subject: x\r\n\r\nhello\r\n")
			c := tt.choice(id)
			done, err := e.Bounce(t.Context(), c, text)
			if err != nil || len(done.Messages) != 1 || done.Reports != tt.reports || len(done.Problems) > 0 {
				t.Fatalf("%+v %v", done, err)
			}
			if c.Dry {
				if q.Updates() > 0 || e.Stats.Reports.Load() > 0 {
					t.Error("a dry run changed something")
				}
				return
			}
			report := reportText(t, q, id)
			if (report != "") != (tt.reports > 0) || !strings.Contains(report, tt.has) || tt.hasNot != "" && strings.Contains(report, tt.hasNot) {
				t.Errorf("the report is %q", report)
			}
		})
	}

	t.Run("the content is lost", func(t *testing.T) {
		q := &memqueue.Queue{Lost: map[store.ID]bool{}}
		e := operated(t, q, nowhere)
		id := q.Add(twoRecipients(t, "alice@example.net"), "x")
		q.Lost[id] = true
		if done, err := e.Bounce(t.Context(), byID(id), text); err != nil || done.Reports != 1 || fates(t, q, id) != "gone" {
			t.Errorf("%+v %v", done, err)
		}
	})
	t.Run("a recipient is delivered meanwhile", func(t *testing.T) {
		q := &memqueue.Queue{}
		e := operated(t, q, nowhere)
		id := q.Add(twoRecipients(t, "alice@example.net"), "x")
		q.BeforeUpdate = func(store.ID) {
			q.BeforeUpdate = nil
			_ = q.Update(t.Context(), id, func(m *store.Message) bool { m.Recipients[0].State = store.Delivered; return true })
		}
		done, err := e.Bounce(t.Context(), byID(id), text)
		if report := reportText(t, q, id); err != nil || done.Recipients != 1 || strings.Contains(report, "bob") || !strings.Contains(report, "carol") {
			t.Errorf("%+v %v, the report is %q", done, err, report)
		}
	})
	t.Run("it is being delivered", func(t *testing.T) {
		q := &memqueue.Queue{}
		e := operated(t, q, nowhere)
		id := q.Add(twoRecipients(t, "alice@example.net"), "x")
		q.Borrow(id, 1)
		done, err := e.Bounce(t.Context(), byID(id), text)
		if err != nil || done.Reports != 0 || len(done.Problems) != 1 || reportText(t, q, id) != "" {
			t.Errorf("%+v %v", done, err)
		}
	})
}

// reportText is the content of the only report that waits, empty if there is none.
func reportText(t *testing.T, q *memqueue.Queue, about store.ID) string {
	t.Helper()
	var found store.ID
	err := q.List(t.Context(), store.Filter{Sender: "<>"}, "", func(m *store.Message) bool {
		if m.Origin.ReportOf == about {
			if found != "" {
				t.Error("more than one report")
			}
			found = m.ID
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == "" {
		return ""
	}
	c, err := q.Content(t.Context(), found)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	text, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestWhy: the sentences.
func TestWhy(t *testing.T) {
	busy := smtp.Refuse(451, smtp.Enhanced{4, 2, 1}, "mailbox\nbusy")
	tried := func(m *store.Message, host string) {
		m.Recipients[0].Tries, m.Recipients[0].Last = 3, busy
		m.Attempts = []store.Attempt{
			{Time: noon.Add(-20 * time.Minute), Host: "old", Recipients: []int{0, 1}, Reply: busy},
			{Time: noon.Add(-8 * time.Minute), Destination: mailstore, Host: host, Recipients: []int{0}, Reply: busy},
		}
	}
	due := func(m *store.Message) { m.Recipients[0].Due = noon.Add(-2 * time.Minute) }
	for _, tt := range []struct {
		name string
		edit func(e *Engine, q *memqueue.Queue, m *store.Message)
		late func(e *Engine, q *memqueue.Queue, id store.ID)
		kind ReasonKind
		want string
	}{
		{"its first try", nil, nil, ReasonScheduled, "waits until 13:00 UTC (in 1 h 0 min); it has not been tried yet"},
		{"its fourth", func(_ *Engine, _ *memqueue.Queue, m *store.Message) { tried(m, "mailstore") }, nil, ReasonScheduled,
			"waits until 13:00 UTC (in 1 h 0 min): mailstore said 451 4.2.1 mailbox / busy at the third try, 11:52 UTC (8 min ago)"},
		{"nobody was there", func(_ *Engine, _ *memqueue.Queue, m *store.Message) { tried(m, "") }, nil, ReasonScheduled,
			"waits until 13:00 UTC (in 1 h 0 min): nobody could be reached, 451 4.2.1 mailbox / busy at the third try, 11:52 UTC (8 min ago)"},
		{"tomorrow, to nowhere", func(_ *Engine, _ *memqueue.Queue, m *store.Message) {
			m.Recipients[0].Destination, m.Recipients[0].Due = "backend:gone", noon.Add(25*time.Hour)
		}, nil, ReasonScheduled, "waits until 2026-03-02 13:00 UTC (in 1 d 1 h), and the configuration has no backend gone; it has not been tried yet"},
		{"held", func(_ *Engine, _ *memqueue.Queue, m *store.Message) {
			m.Recipients[0].State, m.Origin.Reason = store.Held, "looks\x1b odd"
		}, nil, ReasonHeld, "is held until somebody releases it: looks  odd"},
		{"delivered", func(_ *Engine, _ *memqueue.Queue, m *store.Message) {
			tried(m, "mailstore")
			m.Recipients[0].State, m.Recipients[0].Last = store.Delivered, smtp.Refuse(250, smtp.Enhanced{2, 0, 0}, "ok")
		}, nil, ReasonDelivered, "was delivered: mailstore said 250 2.0.0 ok at the third try, 11:52 UTC (8 min ago)"},
		{"failed", func(_ *Engine, _ *memqueue.Queue, m *store.Message) { m.Recipients[0].State = store.Failed }, nil, ReasonFailed, "was given up"},
		{"due", func(_ *Engine, _ *memqueue.Queue, m *store.Message) { due(m) }, nil, ReasonDue,
			"has been due since 11:58 UTC (2 min ago), and is about to be delivered; it has not been tried yet"},
		{"due, without a way", func(_ *Engine, _ *memqueue.Queue, m *store.Message) {
			due(m)
			m.Recipients[0].Destination = "mx:example.org"
		}, nil,
			ReasonUnknown, "has been due since 11:58 UTC (2 min ago), but there is no way to mx:example.org; it has not been tried yet"},
		{"leased by this node", func(_ *Engine, _ *memqueue.Queue, m *store.Message) { due(m) }, func(e *Engine, _ *memqueue.Queue, id store.ID) {
			e.under.begin(&store.Lease{Message: &store.Message{ID: id}, Recipients: []int{0}}, noon.Add(-3*time.Second))
		}, ReasonUnderWay, "is being delivered, since 11:59 UTC (3 s ago)"},
		{"leased by another", func(_ *Engine, _ *memqueue.Queue, m *store.Message) { due(m) },
			func(_ *Engine, q *memqueue.Queue, id store.ID) { q.Borrow(id, 0) }, ReasonUnderWay, "is being delivered, or about to be; it has not been tried yet"},
		{"others are first", func(e *Engine, q *memqueue.Queue, m *store.Message) {
			due(m)
			e.dests[mailstore] = &destination{name: mailstore, workers: 2}
			for i := range 3 {
				o := twoRecipients(t, fmt.Sprintf("a%d@example.net", i))
				o.Recipients[0].Due = noon.Add(time.Duration(i-3) * time.Minute) // one before it, one beside it, one behind it
				o.Recipients[0].Tries = i % 2
				q.Add(o, "x")
			}
		}, nil, ReasonBusy, "has been due since 11:58 UTC (2 min ago), and 2 of 2 deliveries to backend:mailstore are under way; 1 message comes before it; it has not been tried yet"},
		{"no worker is free", func(e *Engine, _ *memqueue.Queue, m *store.Message) { due(m); e.workers = e.opts.Workers }, nil, ReasonBusy,
			"has been due since 11:58 UTC (2 min ago), and 500 of 500 deliveries are under way in all; 0 messages come before it; it has not been tried yet"},
		{"at the end", func(e *Engine, _ *memqueue.Queue, m *store.Message) { due(m); e.closing = true }, nil, ReasonStopping,
			"has been due since 11:58 UTC (2 min ago), but this node is shutting down; it has not been tried yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := &memqueue.Queue{}
			e := operated(t, q, nowhere)
			m := twoRecipients(t, "alice@example.net")
			if tt.edit != nil {
				tt.edit(e, q, &m)
			}
			id := q.Add(m, "x")
			if tt.late != nil {
				tt.late(e, q, id)
			}
			x, err := e.Why(t.Context(), id)
			if err != nil || len(x.Recipients) != 2 {
				t.Fatalf("%+v %v", x, err)
			}
			if got := x.Recipients[0]; got.Kind != tt.kind || got.Text != tt.want {
				t.Errorf("%s: %s\nwant %s: %s", got.Kind, got.Text, tt.kind, tt.want)
			}
		})
	}
	e := operated(t, &memqueue.Queue{}, nowhere)
	if _, err := e.Why(t.Context(), "none"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of no message: %v", err)
	}
}

// TestWhyDown: the backend refuses connections.
func TestWhyDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	q := &memqueue.Queue{}
	e := operated(t, q, Endpoint{Network: "tcp", Address: l.Addr().String()})
	e.now = time.Now
	if _, err := e.opts.Transport.Begin(t.Context(), "mailstore", smtp.Sender{}); err == nil {
		t.Fatal("somebody is there")
	}
	m := twoRecipients(t, "alice@example.net")
	m.Recipients[0].Due, m.Recipients[1].Due = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	m.Recipients[0].Tries = 1
	x, err := e.Why(t.Context(), q.Add(m, "x"))
	if err != nil || x.Recipients[0].Kind != ReasonDown || !strings.Contains(x.Recipients[0].Text, "but backend:mailstore is down (") || !strings.Contains(x.Recipients[0].Text, "refused") {
		t.Errorf("%+v %v", x.Recipients, err)
	}
	if len(x.Destinations) != 2 || x.Destinations[0].Name != archive || x.Destinations[0].Down || !x.Destinations[1].Down || !x.Next.Equal(m.Recipients[0].Due) {
		t.Errorf("%+v, next %v", x.Destinations, x.Next)
	}
}

func TestWords(t *testing.T) {
	for n, want := range map[int]string{1: "first", 10: "tenth", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 22: "22nd", 103: "103rd", 111: "111th", 0: "0th"} {
		if got := ordinal(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0 s", 59 * time.Second: "59 s", 90 * time.Second: "1 min", 61 * time.Minute: "1 h 1 min", 49 * time.Hour: "2 d 1 h"} {
		if got := spanOf(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
