package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// queue.go: the way of one message.

func testMessage(t *testing.T, e *Env) {
	q := e.Store.Queue()
	m := full(t)
	id := commit(t, q, m, "Subject: hello\r\n\r\nworld\r\n")
	if _, ok := id.Bytes(); !ok {
		t.Errorf("%q is no ID", id)
	}
	want := full(t)
	want.Origin.ReportOf = m.Origin.ReportOf
	want.ID, want.Size = id, 25
	sameMessage(t, get(t, q, id), want)
	l := one(t, q, here, now)
	sameMessage(t, l.Message, want)
	if !slices.Equal(l.Recipients, []int{0}) || l.Destination != here {
		t.Errorf("lease: got recipients %v at %q, want the first here", l.Recipients, l.Destination)
	}
	if got := read(t, q, id); got != "Subject: hello\r\n\r\nworld\r\n" {
		t.Errorf("content: got %q", got)
	}
}

func testBegin(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	in, err := q.Begin(ctx, mail(t, user(1)))
	check(t, err)
	fmt.Fprint(in, "forgotten")
	in.Abort()
	none(t, q, here, now)

	if _, err := q.Begin(ctx, &store.Message{}); err == nil {
		t.Error("a message without recipients: got no error")
	}
	if c := counts(t, q); c.Messages != 0 {
		t.Errorf("messages: got %d, want none", c.Messages)
	}

	// Abort behind Commit does nothing.
	in, err = q.Begin(ctx, mail(t, user(1)))
	check(t, err)
	id, err := in.Commit(ctx)
	check(t, err)
	in.Abort()
	if got := read(t, q, id); got != "" {
		t.Errorf("content: got %q, want none", got)
	}
	if id2 := commit(t, q, mail(t, user(2)), "x"); id2 <= id {
		t.Errorf("IDs: %s comes after %s", id2, id)
	}
}

func testContent(t *testing.T, e *Env) {
	q := e.Store.Queue()
	for _, size := range []int{0, 1, 4096, 64<<10 - 1, 64 << 10, 256<<10 - 1, 256 << 10, 256<<10 + 1, 300_000, 1<<20 + 7} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i * 7 >> 3)
		}
		in, err := q.Begin(context.Background(), mail(t, user(size)))
		check(t, err)
		for rest := want; len(rest) > 0; { // in odd pieces
			n := min(len(rest), 10_007)
			_, err := in.Write(rest[:n])
			check(t, err)
			rest = rest[n:]
		}
		id, err := in.Commit(context.Background())
		check(t, err)
		if m := get(t, q, id); m.Size != int64(size) {
			t.Errorf("%d octets: size is %d", size, m.Size)
		}
		c, err := q.Content(context.Background(), id)
		check(t, err)
		for range 2 { // each time from the beginning
			var b bytes.Buffer
			if n, err := c.WriteTo(&b); err != nil || n != int64(size) || !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%d octets: got %d, %v", size, n, err)
			}
		}
		for _, off := range []int{0, size / 3, size/2 + 1, size - 1, size} {
			if off < 0 || off > size {
				continue
			}
			got := make([]byte, 70_000)
			n, err := c.ReadAt(got, int64(off))
			rest := want[off:min(size, off+len(got))]
			if !bytes.Equal(got[:n], rest) || n < len(got) && err != io.EOF {
				t.Errorf("%d octets at %d: got %d, %v, want %d", size, off, n, err, len(rest))
			}
		}
		check(t, c.Close())
	}
}

// testLargeContent streams 100 MB in and out; what it needs of memory is the driver's to
// watch.
func testLargeContent(t *testing.T, e *Env) {
	q := e.Store.Queue()
	in, err := q.Begin(context.Background(), mail(t, user(1)))
	check(t, err)
	block := bytes.Repeat([]byte("0123456789abcde\n"), 4<<10)
	sum := sha256.New()
	total := e.scale(100 << 20)
	for n := 0; n < total; n += len(block) {
		block[0] = byte(n >> 16)
		sum.Write(block)
		_, err := in.Write(block)
		check(t, err)
	}
	id, err := in.Commit(context.Background())
	check(t, err)
	c, err := q.Content(context.Background(), id)
	check(t, err)
	defer c.Close()
	back := sha256.New()
	if _, err := c.WriteTo(back); err != nil || !bytes.Equal(back.Sum(nil), sum.Sum(nil)) {
		t.Errorf("content is not what was written: %v", err)
	}
	l := one(t, q, here, now)
	check(t, q.Finish(context.Background(), l, outcomes(l, delivered()), nil))
	gone(t, q, id)
}

func testContentOutlives(t *testing.T, e *Env) {
	q := e.Store.Queue()
	for _, size := range []int{100, 1 << 20} {
		content := strings.Repeat("x", size)
		id := commit(t, q, mail(t, user(1)), content)
		c, err := q.Content(context.Background(), id)
		check(t, err)
		l := one(t, q, here, now)
		check(t, q.Finish(context.Background(), l, outcomes(l, delivered()), nil))
		gone(t, q, id)
		var b strings.Builder
		if _, err := c.WriteTo(&b); err != nil || b.String() != content {
			t.Errorf("%d octets: an open content ended with its message: %d octets, %v", size, b.Len(), err)
		}
		check(t, c.Close())
	}
}

func testCommitLeased(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	m := mail(t, user(1), user(2), user(3), user(4))
	m.Recipients[1].Destination = "backend:there"
	m.Recipients[2].State = store.Held
	in, err := q.Begin(ctx, m)
	check(t, err)
	fmt.Fprint(in, "content")
	l, err := in.CommitLeased(ctx, here, long)
	check(t, err)
	if !slices.Equal(l.Recipients, []int{0, 3}) || l.Destination != here || l.Message.ID == "" || l.Message.Size != 7 {
		t.Errorf("lease: got %v at %q of %+v", l.Recipients, l.Destination, l.Message)
	}
	none(t, q, here, now)
	one(t, q, "backend:there", now)
	sameMessage(t, get(t, q, l.Message.ID), l.Message)
	check(t, q.Finish(ctx, l, []store.Outcome{delivered(), later(now.Add(time.Minute))}, nil))
	none(t, q, here, now)
	if l := one(t, q, here, now.Add(time.Minute)); !slices.Equal(l.Recipients, []int{3}) {
		t.Errorf("second lease: got recipients %v, want [3]", l.Recipients)
	}
}

// testOrder: by priority, then by tries, then by due time.
func testOrder(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	put := func(priority int, tries int, due time.Duration) store.ID {
		m := mail(t, user(1))
		m.Priority = priority
		id := commit(t, q, m, "x")
		for i := range tries {
			l := one(t, q, here, now)
			at := now
			if i == tries-1 {
				at = now.Add(due)
			}
			check(t, q.Finish(ctx, l, outcomes(l, later(at)), nil))
		}
		if tries == 0 {
			check(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[0].Due = now.Add(due); return true }))
		}
		return id
	}
	last := put(-2, 0, 2*time.Second)
	third := put(0, 2, 2*time.Second)
	fourth := put(0, 2, 3*time.Second)
	second := put(0, 1, 9*time.Second)
	first := put(5, 3, 5*time.Second)
	half := put(0, 0, 8*time.Second)

	at := now.Add(10 * time.Second)
	for _, want := range []store.ID{first, half, second, third, fourth, last} {
		list, err := q.Lease(ctx, here, at, 1, long)
		check(t, err)
		if len(list) != 1 || list[0].Message.ID != want {
			t.Fatalf("order: got %v, want %s", list, want)
		}
	}
	none(t, q, here, at)
}

func testDue(t *testing.T, e *Env) {
	q := e.Store.Queue()
	m := mail(t, user(1), user(2))
	m.Recipients[1].Due = now.Add(time.Minute)
	commit(t, q, m, "x")
	none(t, q, here, now.Add(-time.Microsecond))
	none(t, q, "backend:nobody", now)
	if l := one(t, q, here, now); !slices.Equal(l.Recipients, []int{0}) {
		t.Errorf("first: got recipients %v, want [0]", l.Recipients)
	}
	none(t, q, here, now.Add(time.Minute-time.Microsecond))
	if l := one(t, q, here, now.Add(time.Minute)); !slices.Equal(l.Recipients, []int{1}) {
		t.Errorf("a minute later: got recipients %v, want [1]", l.Recipients)
	}
}

// testClockSteps: callers' clocks jump, and what is due is what is due by each.
func testClockSteps(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	for i := range 5 {
		m := mail(t, user(i))
		m.Recipients[0].Due = now.Add(time.Duration(i) * time.Hour)
		commit(t, q, m, "x")
	}
	// A look from the far future, which is given back.
	for _, l := range lease(t, q, here, now.AddDate(10, 0, 0)) {
		check(t, q.Return(ctx, l))
	}
	none(t, q, here, now.AddDate(-10, 0, 0))
	one(t, q, here, now)
	if got := len(lease(t, q, here, now.Add(2*time.Hour))); got != 2 {
		t.Errorf("two hours later: got %d leases, want 2", got)
	}
	none(t, q, here, now)
	if got := len(lease(t, q, here, now.Add(4*time.Hour))); got != 2 {
		t.Errorf("four hours later: got %d leases, want 2", got)
	}
}

// testSplit: recipients of one message at two destinations go their own ways.
func testSplit(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	m := mail(t, user(1), user(2), user(3))
	m.Recipients[1].Destination = "backend:there"
	id := commit(t, q, m, "x")
	a, b := one(t, q, here, now), one(t, q, "backend:there", now)
	if !slices.Equal(a.Recipients, []int{0, 2}) || !slices.Equal(b.Recipients, []int{1}) {
		t.Errorf("leases: got %v and %v", a.Recipients, b.Recipients)
	}
	check(t, q.Finish(ctx, a, outcomes(a, delivered()), nil))
	if got := get(t, q, id); got.Recipients[0].State != store.Delivered || got.Recipients[1].State != store.Waiting {
		t.Errorf("states: got %v, %v", got.Recipients[0].State, got.Recipients[1].State)
	}
	check(t, q.Finish(ctx, b, outcomes(b, failed()), nil))
	gone(t, q, id)
}

func testFinish(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	id := commit(t, q, mail(t, user(1), user(2), user(3), user(4)), "x")
	l := one(t, q, here, now)
	attempt := &store.Attempt{
		Time: now.Add(time.Second), Destination: here, Host: "mx1.example.com", Recipients: []int{0, 1, 2, 3},
		Reply: reply(451, "some\nlater"), Took: 1500 * time.Millisecond,
		Addr: netip.MustParseAddr("2001:db8::25"), TLS: "TLS 1.3", Verdict: "dane",
	}
	if err := q.Finish(ctx, l, outcomes(l, delivered())[:2], nil); err == nil {
		t.Error("outcomes of some recipients alone: got no error")
	}
	wait := later(now.Add(time.Hour))
	wait.DelayTold = true
	untried := store.Outcome{State: store.Waiting, Due: now.Add(time.Hour)}
	check(t, q.Finish(ctx, l, []store.Outcome{delivered(), failed(), wait, untried}, attempt))

	want := mail(t, user(1), user(2), user(3), user(4))
	want.ID, want.Size = id, 1
	r := want.Recipients
	r[0].State, r[0].Tries, r[0].Last = store.Delivered, 1, reply(250, "taken")
	r[1].State, r[1].Tries, r[1].Last = store.Failed, 1, reply(550, "no such user")
	r[2].Tries, r[2].Last, r[2].Due, r[2].DelayTold = 1, reply(451, "later"), now.Add(time.Hour), true
	r[3].Due = now.Add(time.Hour)
	want.Attempts = []store.Attempt{*attempt}
	got := get(t, q, id)
	r[0].Due, r[1].Due = got.Recipients[0].Due, got.Recipients[1].Due // it means nothing any more
	sameMessage(t, got, want)

	is(t, q.Finish(ctx, l, outcomes(l, delivered()), attempt), store.ErrLeaseLost)
	l = one(t, q, here, now.Add(time.Hour))
	if !slices.Equal(l.Recipients, []int{2, 3}) {
		t.Errorf("second lease: got recipients %v, want [2 3]", l.Recipients)
	}
	sameMessage(t, l.Message, want)
	check(t, q.Finish(ctx, l, []store.Outcome{{State: store.Held}, delivered()}, nil))
	none(t, q, here, now.AddDate(1, 0, 0))
	if got := get(t, q, id).Recipients[2].State; got != store.Held {
		t.Errorf("state: got %v, want held", got)
	}
}

// testAttempts: the latest fifty are kept.
func testAttempts(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	id := commit(t, q, mail(t, user(1)), "x")
	for i := range 53 {
		l := one(t, q, here, now)
		check(t, q.Finish(ctx, l, outcomes(l, later(now)), &store.Attempt{Time: now, Destination: here, Recipients: []int{0}, Host: fmt.Sprint(i)}))
	}
	m := get(t, q, id)
	if len(m.Attempts) != 50 || m.Attempts[0].Host != "3" || m.Attempts[49].Host != "52" || m.Recipients[0].Tries != 53 {
		t.Errorf("attempts: got %d after %d tries, want the latest 50 of 53", len(m.Attempts), m.Recipients[0].Tries)
	}
}

func testReturn(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	commit(t, q, mail(t, user(1)), "x")
	l := one(t, q, here, now)
	none(t, q, here, now)
	check(t, q.Return(ctx, l))
	is(t, q.Finish(ctx, l, outcomes(l, delivered()), nil), store.ErrLeaseLost)
	is(t, q.Extend(ctx, l, long), store.ErrLeaseLost)
	is(t, q.Return(ctx, l), store.ErrLeaseLost)
	if l := one(t, q, here, now); l.Message.Recipients[0].Tries != 0 {
		t.Errorf("tries: got %d, want 0", l.Message.Recipients[0].Tries)
	}
}

// testLeaseRunsOut: who stalls past the end of the lease changes nothing any more.
func testLeaseRunsOut(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	lasts, over := e.short()
	id := commit(t, q, mail(t, user(1)), "x")
	list, err := q.Lease(ctx, here, now, 10, lasts)
	check(t, err)
	if len(list) != 1 {
		t.Fatalf("leases: got %d, want 1", len(list))
	}
	stalled := list[0]
	if stalled.Until.IsZero() {
		t.Error("the lease does not say when it runs out")
	}
	e.pass(t, over)
	next := one(t, q, here, now)
	is(t, q.Finish(ctx, stalled, outcomes(stalled, failed()), nil), store.ErrLeaseLost)
	is(t, q.Extend(ctx, stalled, long), store.ErrLeaseLost)
	is(t, q.Return(ctx, stalled), store.ErrLeaseLost)
	if got := get(t, q, id).Recipients[0]; got.State != store.Waiting || got.Tries != 0 {
		t.Errorf("recipient: got %+v, want it as before", got)
	}
	check(t, q.Finish(ctx, next, outcomes(next, delivered()), nil))
	gone(t, q, id)
}

func testExtend(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	lasts, over := e.short()
	commit(t, q, mail(t, user(1)), "x")
	list, err := q.Lease(ctx, here, now, 10, lasts)
	check(t, err)
	before := list[0].Until
	check(t, q.Extend(ctx, list[0], long))
	if !list[0].Until.After(before) {
		t.Errorf("until: got %v, want it after %v", list[0].Until, before)
	}
	e.pass(t, over)
	none(t, q, here, now)
	check(t, q.Finish(ctx, list[0], outcomes(list[0], delivered()), nil))
}

func report(t testing.TB, of store.ID) *store.Report {
	m := mail(t, "sender@example.org")
	m.Sender = smtp.Sender{}
	m.Recipients[0].Destination = "mx:example.org"
	m.Origin.ReportOf = of
	return &store.Report{Message: m, Content: []byte("Subject: undeliverable\r\n\r\n")}
}

func testReports(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	id := commit(t, q, mail(t, user(1), user(2)), "x")
	l := one(t, q, here, now)
	check(t, q.Finish(ctx, l, outcomes(l, failed()), nil, report(t, id), report(t, id)))
	gone(t, q, id)
	list := lease(t, q, "mx:example.org", now)
	if len(list) != 2 {
		t.Fatalf("reports: got %d, want 2", len(list))
	}
	for _, l := range list {
		if l.Message.Origin.ReportOf != id || !l.Message.Sender.Path.IsNull() || l.Message.ID == id {
			t.Errorf("report: got %+v", l.Message)
		}
		if got := read(t, q, l.Message.ID); got != "Subject: undeliverable\r\n\r\n" {
			t.Errorf("report: got %q", got)
		}
	}
}

func testLostReports(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	id := commit(t, q, mail(t, user(1)), "x")
	l := one(t, q, here, now)
	check(t, q.Return(ctx, l))
	is(t, q.Finish(ctx, l, outcomes(l, failed()), nil, report(t, id)), store.ErrLeaseLost)
	none(t, q, "mx:example.org", now)
	if c := counts(t, q); c.Messages != 1 {
		t.Errorf("messages: got %d, want 1", c.Messages)
	}
}

func testUpdate(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	id := commit(t, q, mail(t, user(1), user(2)), "x")
	update := func(change func(m *store.Message) bool, reports ...*store.Report) error {
		return q.Update(ctx, id, change, reports...)
	}
	check(t, update(func(m *store.Message) bool { m.Recipients[0].Due = now.Add(time.Hour); return false }))
	if got := get(t, q, id).Recipients[0].Due; !got.Equal(now) {
		t.Errorf("what change did not want to keep: due is %v", got)
	}
	check(t, update(func(m *store.Message) bool {
		m.Recipients[0].Destination, m.Recipients[0].DelayTold = "backend:there", true
		m.Recipients[1].Due = now.Add(time.Hour)
		m.Expires = now.Add(2 * time.Hour)
		return true
	}))
	none(t, q, here, now)
	l := one(t, q, "backend:there", now)
	if !slices.Equal(l.Recipients, []int{0}) || !l.Message.Recipients[0].DelayTold || !l.Message.Expires.Equal(now.Add(2*time.Hour)) {
		t.Errorf("after a change: got %v of %+v", l.Recipients, l.Message)
	}
	check(t, q.Return(ctx, l))
	// The last two are given up, with a report.
	check(t, update(func(m *store.Message) bool {
		m.Recipients[0].State, m.Recipients[1].State = store.Failed, store.Failed
		return true
	}, report(t, id)))
	gone(t, q, id)
	one(t, q, "mx:example.org", now)
	is(t, update(func(*store.Message) bool { return true }), store.ErrNotFound)
	is(t, q.Update(ctx, "nonsense", func(*store.Message) bool { return true }), store.ErrNotFound)
	if c := counts(t, q); c.Messages != 1 {
		t.Errorf("messages: got %d, want the report", c.Messages)
	}
}

func testUpdateLeased(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	m := mail(t, user(1), user(2))
	m.Recipients[1].Destination = "backend:there"
	id := commit(t, q, m, "x")
	l := one(t, q, here, now)
	is(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[0].State = store.Held; return true }, report(t, id)), store.ErrLeased)
	none(t, q, "mx:example.org", now)
	// The other one is free.
	check(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[1].State = store.Held; return true }))
	none(t, q, "backend:there", now)
	check(t, q.Finish(ctx, l, outcomes(l, delivered()), nil))
	check(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[1].State = store.Failed; return true }))
	gone(t, q, id)
}

func testHold(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	m := mail(t, user(1))
	m.Recipients[0].State = store.Held
	m.Origin.Reason = "quarantine"
	id := commit(t, q, m, "x")
	none(t, q, here, now.AddDate(1, 0, 0))
	check(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[0].State = store.Waiting; return true }))
	l := one(t, q, here, now)
	if l.Message.Origin.Reason != "quarantine" {
		t.Errorf("reason: got %q", l.Message.Origin.Reason)
	}
}

func testDestinations(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	waits := func() map[store.Destination]store.Waits {
		all := make(map[store.Destination]store.Waits)
		check(t, q.Destinations(ctx, func(w store.Waits) bool { all[w.Destination] = w; return true }))
		return all
	}
	if got := waits(); len(got) != 0 {
		t.Errorf("nothing waits: got %v", got)
	}
	m := mail(t, user(1), user(2), user(3))
	m.Recipients[1].Due = now.Add(time.Hour)
	m.Recipients[2].Destination = "backend:there"
	commit(t, q, m, "x")
	got := waits()
	if len(got) != 2 || !got[here].Due.Equal(now) || got[here].Waiting != 2 || got["backend:there"].Waiting != 1 {
		t.Errorf("two destinations: got %v", got)
	}
	a, b := one(t, q, here, now), one(t, q, "backend:there", now)
	got = waits()
	if w := got[here]; !w.Due.Equal(now.Add(time.Hour)) || w.Waiting != 1 {
		t.Errorf("one of two leased: got %+v", w)
	}
	if w := got["backend:there"]; !w.Due.IsZero() || w.Waiting != 0 {
		t.Errorf("all leased: got %+v", w)
	}
	check(t, q.Finish(ctx, b, outcomes(b, delivered()), nil))
	check(t, q.Finish(ctx, a, outcomes(a, delivered()), nil))
	if got := waits(); len(got) != 1 || got[here].Waiting != 1 {
		t.Errorf("one is left: got %v", got)
	}
	seen := 0
	commit(t, q, m, "x")
	check(t, q.Destinations(ctx, func(store.Waits) bool { seen++; return false }))
	if seen != 1 {
		t.Errorf("yield returned false: called %d times, want 1", seen)
	}
}

func testWatch(t *testing.T, e *Env) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	q := e.Store.Queue()
	watch := q.Watch(ctx)
	wakes := func(what string, do func()) {
		t.Helper()
		select { // what came before does not count
		case <-watch:
		default:
		}
		do()
		timer := time.NewTimer(20 * time.Second)
		defer timer.Stop()
		select {
		case <-watch:
		case <-timer.C:
			t.Fatalf("%s: nobody is woken", what)
		}
	}
	var id store.ID
	var l *store.Lease
	wakes("commit", func() { id = commit(t, q, mail(t, user(1)), "x") })
	l = one(t, q, here, now)
	wakes("return", func() { check(t, q.Return(ctx, l)) })
	wakes("hold and release", func() {
		check(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[0].State = store.Held; return true }))
		check(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[0].State = store.Waiting; return true }))
	})
	l = one(t, q, here, now)
	wakes("finish with a report", func() {
		check(t, q.Finish(ctx, l, outcomes(l, failed()), nil, report(t, id)))
	})
	cancel()
	eventually(t, "the channel is closed", func() bool {
		select {
		case _, ok := <-watch:
			return !ok
		default:
			return false
		}
	})
}

func testCancelled(t *testing.T, e *Env) {
	q := e.Store.Queue()
	ctx, cancel := context.WithCancel(context.Background())
	in, err := q.Begin(ctx, mail(t, user(1)))
	check(t, err)
	cancel()
	// Whatever the answer is, a message whose commit failed may be there or not, but one that
	// was acknowledged is.
	id, err := in.Commit(ctx)
	if err == nil {
		get(t, q, id)
	}
	in.Abort()
	commit(t, q, mail(t, user(2)), "x") // and life goes on
}
