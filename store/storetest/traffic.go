package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// traffic.go: many messages, and what is told of them.

// ids lists the messages that match.
func ids(t testing.TB, q store.Queue, f store.Filter, after store.ID) []store.ID {
	t.Helper()
	var all []store.ID
	check(t, q.List(context.Background(), f, after, func(m *store.Message) bool {
		all = append(all, m.ID)
		return true
	}))
	return all
}

func testList(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	plain := commit(t, q, mail(t, user(1)), "x")
	m := mail(t, user(1), "a@xn--exmple-cua.com")
	m.Recipients[1].State, m.Recipients[1].Destination = store.Held, "backend:there"
	m.Arrived = now.Add(time.Hour)
	held := commit(t, q, m, "x")
	m = mail(t, "b@example.net")
	m.Sender.Path = smtp.Path{}
	bounce := commit(t, q, m, "x")
	m = mail(t, "c@[192.0.2.1]")
	m.Sender.Path = path(t, "<Other.Person@example.net>")
	other := commit(t, q, m, "x")
	all := []store.ID{plain, held, bounce, other}

	for _, tt := range []struct {
		name string
		f    store.Filter
		want []store.ID
	}{
		{"all", store.Filter{}, all},
		{"waiting", store.Filter{States: []store.State{store.Waiting}}, all},
		{"held", store.Filter{States: []store.State{store.Held}}, []store.ID{held}},
		{"held or failed", store.Filter{States: []store.State{store.Failed, store.Held}}, []store.ID{held}},
		{"failed", store.Filter{States: []store.State{store.Failed}}, nil},
		{"destination", store.Filter{Destination: "backend:there"}, []store.ID{held}},
		{"no such destination", store.Filter{Destination: "backend"}, nil},
		{"domain", store.Filter{Domain: "example.com"}, []store.ID{plain, held}},
		{"domain in A-labels", store.Filter{Domain: "xn--exmple-cua.com"}, []store.ID{held}},
		{"literal", store.Filter{Domain: "[192.0.2.1]"}, []store.ID{other}},
		{"sender's domain", store.Filter{SenderDomain: "example.net"}, []store.ID{other}},
		{"sender", store.Filter{Sender: "Other.Person@example.net"}, []store.ID{other}},
		{"null sender", store.Filter{Sender: "<>"}, []store.ID{bounce}},
		{"before", store.Filter{Before: now.Add(time.Minute)}, []store.ID{plain, bounce, other}},
		{"after", store.Filter{After: now.Add(time.Minute)}, []store.ID{held}},
		{"between", store.Filter{After: now.Add(-time.Minute), Before: now.Add(time.Minute)}, []store.ID{plain, bounce, other}},
		{"domain and state", store.Filter{Domain: "example.com", States: []store.State{store.Held}}, []store.ID{held}},
	} {
		if got := ids(t, q, tt.f, ""); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	if got := ids(t, q, store.Filter{}, held); !slices.Equal(got, all[2:]) {
		t.Errorf("behind the second: got %v, want %v", got, all[2:])
	}
	var seen int
	check(t, q.List(ctx, store.Filter{}, "", func(m *store.Message) bool {
		sameMessage(t, m, get(t, q, m.ID))
		seen++
		return seen < 2
	}))
	if seen != 2 {
		t.Errorf("yield returned false: called %d times, want 2", seen)
	}
}

// testListTraffic: what is there all the time is listed, whatever comes and goes.
func testListTraffic(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	var stay []store.ID
	for range 300 {
		m := mail(t, user(1))
		m.Recipients[0].State = store.Held
		stay = append(stay, commit(t, q, m, "x"))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				in, err := q.Begin(ctx, mail(t, user(2)))
				if err != nil {
					t.Error(err)
					return
				}
				l, err := in.CommitLeased(ctx, here, long)
				if err == nil {
					err = q.Finish(ctx, l, outcomes(l, delivered()), nil)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 10 {
		got := ids(t, q, store.Filter{States: []store.State{store.Held}}, "")
		if !slices.Equal(got, stay) {
			t.Errorf("list: got %d messages, want %d", len(got), len(stay))
		}
		all := ids(t, q, store.Filter{}, "")
		if !slices.IsSorted(all) || len(slices.Compact(all)) != len(all) {
			t.Error("list: not in order, or something twice")
		}
	}
	close(stop)
	wg.Wait()
}

func testCount(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	want := func(what string, messages, octets, waiting, held, leased int64, oldest time.Time) {
		t.Helper()
		c := counts(t, q)
		if c.Messages != messages || c.Octets != octets || c.Recipients[store.Waiting] != waiting ||
			c.Recipients[store.Held] != held || c.Leased != leased || !c.Oldest.Equal(oldest) {
			t.Errorf("%s: got %+v", what, c)
		}
	}
	want("nothing", 0, 0, 0, 0, 0, time.Time{})
	m := mail(t, user(1), user(2), user(3))
	m.Recipients[2].State = store.Held
	id := commit(t, q, m, "12345")
	want("one", 1, 5, 2, 1, 0, now)
	old := mail(t, user(1))
	old.Arrived = now.Add(-time.Hour)
	old.Recipients[0].Destination = "backend:there"
	commit(t, q, old, "123")
	want("two", 2, 8, 3, 1, 0, now.Add(-time.Hour))
	l, o := one(t, q, here, now), one(t, q, "backend:there", now)
	want("leased", 2, 8, 3, 1, 3, now.Add(-time.Hour))
	check(t, q.Finish(ctx, o, outcomes(o, delivered()), nil))
	want("old one gone", 1, 5, 2, 1, 2, now)
	check(t, q.Finish(ctx, l, []store.Outcome{delivered(), later(now)}, nil))
	c := counts(t, q)
	if c.Recipients[store.Delivered] != 1 {
		t.Errorf("delivered recipients of a message that waits: got %d, want 1", c.Recipients[store.Delivered])
	}
	want("one of three delivered", 1, 5, 1, 1, 0, now)
	check(t, q.Update(ctx, id, func(m *store.Message) bool { m.Recipients[2].State = store.Waiting; return true }))
	want("released", 1, 5, 2, 0, 0, now)
	l = one(t, q, here, now)
	check(t, q.Finish(ctx, l, outcomes(l, failed()), nil, report(t, id)))
	want("the report", 1, 26, 1, 0, 0, now)
}

// testRestore moves a message with its past.
func testRestore(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	var g store.IDs
	m := full(t)
	m.ID = g.Next(now)
	m.Recipients[2].State, m.Recipients[2].Last, m.Recipients[2].Tries = store.Delivered, reply(250, "taken"), 2
	m.Recipients[0].DelayTold = true
	m.Attempts = []store.Attempt{{Time: now, Destination: "backend:elsewhere", Recipients: []int{2}, Reply: reply(250, "taken"), Took: time.Second}}
	restore := func(content string) error {
		in, err := q.Restore(ctx, m)
		if err != nil {
			return err
		}
		defer in.Abort()
		fmt.Fprint(in, content)
		id, err := in.Commit(ctx)
		if err == nil && id != m.ID {
			t.Errorf("ID: got %s, want %s", id, m.ID)
		}
		return err
	}
	check(t, restore("content"))
	is(t, restore("another"), store.ErrConflict)
	want := *m
	want.Size = 7
	sameMessage(t, get(t, q, m.ID), &want)
	if got := read(t, q, m.ID); got != "content" {
		t.Errorf("content: got %q", got)
	}
	if c := counts(t, q); c.Messages != 1 || c.Octets != 7 {
		t.Errorf("counts: got %+v", c)
	}
	if next := commit(t, q, mail(t, user(1)), "x"); next <= m.ID {
		t.Errorf("IDs: %s comes after %s", next, m.ID)
	}
	m.ID = "nonsense"
	if err := restore("x"); err == nil {
		t.Error("a message with a bad ID: got no error")
	}
}

// hostile are names that mean something to somebody.
var hostile = []string{
	"", " ", "\x00", "a\x00b", "new\nline", "\r\n.\r\n", "'; DROP TABLE messages; --", `"`, `\`, "%", "_", "a%b_c", "$1", "\xff\xfe", "caf\xe9",
	"../../etc/passwd", "a/b/c", "\u202eabc", "NULL", strings.Repeat("x", 300), strings.Repeat("\xff", 300), "\xff\xff\xff\xff",
}

func testHostileNames(t *testing.T, e *Env) {
	ctx, s := context.Background(), e.Store
	q := s.Queue()
	for i, name := range hostile {
		d := store.Destination(name)
		m := mail(t, user(1))
		m.Recipients[0].Destination = d
		m.Origin.Listener, m.Origin.Reason, m.Origin.Client.Helo = name, name, name
		m.Sender.EnvID = name
		id := commit(t, q, m, name)
		got := get(t, q, id)
		if got.Recipients[0].Destination != d || got.Origin.Reason != name || got.Origin.Client.Helo != name || got.Sender.EnvID != name {
			t.Errorf("%q: got %+v", name, got)
		}
		if list := ids(t, q, store.Filter{Destination: d}, ""); name != "" && !slices.Equal(list, []store.ID{id}) {
			t.Errorf("%q: list: got %v, want %s", name, list, id)
		}
		l := one(t, q, d, now)
		said := store.Outcome{State: store.Waiting, Due: now, Tried: true, Reply: reply(451, name)}
		check(t, q.Finish(ctx, l, outcomes(l, said), &store.Attempt{Time: now, Destination: d, Host: name, Reply: reply(451, name), Recipients: []int{0}}))
		if got := get(t, q, id); got.Attempts[0].Host != name || got.Recipients[0].Last.Text != name {
			t.Errorf("%q: got attempts %+v", name, got.Attempts)
		}
		l = one(t, q, d, now)
		check(t, q.Finish(ctx, l, outcomes(l, delivered()), nil))

		check(t, s.KV().Set(ctx, name, name, []byte(name), time.Time{}, 0))
		check(t, s.KV().Set(ctx, name, "other", []byte("x"), time.Time{}, 0))
		check(t, s.Policies().Put(ctx, name, store.Policy{Domain: name, Data: []byte(name), Refresh: now, Expires: now}))
		check(t, s.Cluster().Beat(ctx, "n"+name, []byte(name)))
		digest, err := s.Modules().Put(ctx, []byte(name))
		check(t, err)
		if _, err := s.Modules().Activate(ctx, "m"+name, digest, "", name); err != nil {
			t.Errorf("%q: activate: %v", name, err)
		}
		if name != "" && !strings.Contains(name, "..") {
			check(t, s.Files().Write(ctx, "f"+name, []byte{byte(i)}))
		}
	}
	if c := counts(t, q); c.Messages != 0 {
		t.Errorf("messages: got %d, want none", c.Messages)
	}
	// Nothing lies on something else.
	for i, name := range hostile {
		if v, err := s.KV().Get(ctx, name, name); err != nil || string(v) != name {
			t.Errorf("%q: key: got %q, %v", name, v, err)
		}
		if v, err := s.KV().Get(ctx, name, "other"); err != nil || string(v) != "x" {
			t.Errorf("%q: other key: got %q, %v", name, v, err)
		}
		if p, err := s.Policies().Get(ctx, name, name); err != nil || string(p.Data) != name || p.Domain != name {
			t.Errorf("%q: policy: got %+v, %v", name, p, err)
		}
		if v, err := s.Modules().Versions(ctx, "m"+name); err != nil || len(v) != 1 || v[0].By != name {
			t.Errorf("%q: versions: got %+v, %v", name, v, err)
		}
		if name != "" && !strings.Contains(name, "..") {
			if v, err := s.Files().Read(ctx, "f"+name); err != nil || len(v) != 1 || v[0] != byte(i) {
				t.Errorf("%q: file: got %q, %v", name, v, err)
			}
		}
		check(t, s.KV().Drop(ctx, name))
		if _, err := s.KV().Get(ctx, name, name); err == nil {
			t.Errorf("%q: a dropped space has a key", name)
		}
	}
}

// book counts what became of each recipient.
type book struct {
	mu    sync.Mutex
	given map[string]int // leases that are out, by message and recipient
	done  map[string]int
}

func newBook() *book { return &book{given: make(map[string]int), done: make(map[string]int)} }

// out notes a lease, and complains if a recipient is in another one.
func (b *book) out(t *testing.T, l *store.Lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, i := range l.Recipients {
		key := fmt.Sprint(l.Message.ID, "/", i)
		if b.given[key]++; b.given[key] > 1 {
			t.Errorf("%s is in two leases", key)
		}
	}
}

// back notes that a lease is about to end: after that it may be out again.
func (b *book) back(l *store.Lease, outcomes []store.Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, i := range l.Recipients {
		key := fmt.Sprint(l.Message.ID, "/", i)
		b.given[key]--
		if outcomes != nil && outcomes[n].State == store.Delivered {
			b.done[key]++
		}
	}
}

// hammer has writers and deliverers work at once, and looks whether each recipient was
// delivered exactly once.
func hammer(t *testing.T, queues []store.Queue, messages int) {
	ctx := context.Background()
	places := []store.Destination{"a", "b", "c"}
	b := newBook()
	var committed, finished atomic.Int64
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	const hands = 8
	for w := range hands {
		writers.Go(func() {
			q := queues[w%len(queues)]
			for i := range messages / hands {
				m := mail(t, user(i), user(i+1), user(i+2))
				for r := range m.Recipients {
					m.Recipients[r].Destination = places[(i+r*w)%len(places)]
				}
				in, err := q.Begin(ctx, m)
				if err == nil {
					fmt.Fprintf(in, "%d of %d", i, w)
					_, err = in.Commit(ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
				committed.Add(3)
			}
		})
	}
	for w := range hands {
		readers.Go(func() {
			q := queues[w%len(queues)]
			for round := w; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				list, err := q.Lease(ctx, places[round%len(places)], now, 5, long)
				if err != nil {
					t.Error(err)
					return
				}
				for _, l := range list {
					b.out(t, l)
					var all []store.Outcome
					for range l.Recipients {
						if o := delivered(); rand.IntN(3) > 0 {
							all = append(all, o)
						} else {
							all = append(all, later(now))
						}
					}
					if rand.IntN(5) == 0 {
						b.back(l, nil)
						err = q.Return(ctx, l)
					} else {
						b.back(l, all)
						err = q.Finish(ctx, l, all, &store.Attempt{Time: now, Destination: l.Destination, Recipients: l.Recipients})
						for _, o := range all {
							if o.State == store.Delivered {
								finished.Add(1)
							}
						}
					}
					if err != nil {
						t.Errorf("lease of %s: %v", l.Message.ID, err)
					}
				}
				if len(list) == 0 && round%7 == 0 {
					if _, err := q.Count(ctx); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	writers.Wait()
	eventually(t, "all is delivered", func() bool { return t.Failed() || finished.Load() >= committed.Load() })
	close(stop)
	readers.Wait()
	for key, n := range b.done {
		if n != 1 {
			t.Errorf("%s was delivered %d times", key, n)
		}
	}
	if c := counts(t, queues[0]); int64(len(b.done)) != committed.Load() || c.Messages != 0 || c.Leased != 0 {
		t.Errorf("delivered %d of %d; left: %+v", len(b.done), committed.Load(), c)
	}
}

func testHammer(t *testing.T, e *Env) { hammer(t, []store.Queue{e.Store.Queue()}, e.scale(8000)) }

func testTwoHammer(t *testing.T, e *Env) {
	if e.Second == nil {
		t.Fatal("the store cannot be shared")
	}
	hammer(t, []store.Queue{e.Store.Queue(), e.Second(t).Queue()}, e.scale(8000))
}

// testMany: 100,000 messages wait, and the ones that are due are found among them.
func testMany(t *testing.T, e *Env) {
	ctx, q := context.Background(), e.Store.Queue()
	total, hands := e.scale(100_000), 50
	var wg sync.WaitGroup
	for w := range hands {
		wg.Go(func() {
			for i := range total / hands {
				m := mail(t, user(i))
				m.Recipients[0].Destination = store.Destination(fmt.Sprintf("mx:%d.example", i%100))
				m.Recipients[0].Due = now.Add(time.Duration(i*hands+w) * time.Second)
				in, err := q.Begin(ctx, m)
				if err == nil {
					fmt.Fprint(in, "x")
					_, err = in.Commit(ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if c := counts(t, q); c.Messages != int64(total) {
		t.Fatalf("messages: got %d, want %d", c.Messages, total)
	}
	found := 0
	for d := range 100 {
		place := store.Destination(fmt.Sprintf("mx:%d.example", d))
		for _, l := range lease(t, q, place, now.Add(999*time.Second)) {
			if due := l.Message.Recipients[0].Due; due.After(now.Add(999 * time.Second)) {
				t.Fatalf("leased at %v, due at %v", now.Add(999*time.Second), due)
			}
			check(t, q.Finish(ctx, l, outcomes(l, delivered()), nil))
			found++
		}
	}
	if found != 1000 {
		t.Errorf("due: got %d, want 1000", found)
	}
	n := 0
	check(t, q.List(ctx, store.Filter{}, "", func(*store.Message) bool { n++; return n < 5000 }))
	if want := min(5000, total-1000); n != want {
		t.Errorf("list: got %d, want %d", n, want)
	}
}

// testReopen: all that was acknowledged is there after a restart.
func testReopen(t *testing.T, e *Env) {
	if e.Reopen == nil {
		t.Fatal("the store cannot be opened again")
	}
	ctx := context.Background()
	q := e.Store.Queue()
	m := full(t)
	id := commit(t, q, m, "content")
	big := commit(t, q, mail(t, user(1)), strings.Repeat("x", 600_000))
	l := lease(t, q, here, now)
	for _, l := range l {
		if l.Message.ID == id {
			check(t, q.Finish(ctx, l, outcomes(l, later(now.Add(time.Hour))), &store.Attempt{Time: now, Destination: here, Recipients: l.Recipients}))
		} else {
			check(t, q.Return(ctx, l))
		}
	}
	before := get(t, q, id)
	done := commit(t, q, mail(t, user(2)), "x")
	for _, l := range lease(t, q, here, now) {
		if l.Message.ID == done {
			check(t, q.Finish(ctx, l, outcomes(l, delivered()), nil))
		} else {
			check(t, q.Return(ctx, l))
		}
	}
	count := counts(t, q)
	check(t, e.Store.KV().Set(ctx, "space", "key", []byte("value"), time.Time{}, 100))
	check(t, e.Store.Files().Write(ctx, "a/b", []byte("file")))

	e.Reopen(t)
	q = e.Store.Queue()
	sameMessage(t, get(t, q, id), before)
	if got := read(t, q, id); got != "content" {
		t.Errorf("content: got %q", got)
	}
	if got := read(t, q, big); len(got) != 600_000 {
		t.Errorf("large content: got %d octets", len(got))
	}
	gone(t, q, done)
	if got := counts(t, q); got.Messages != count.Messages || got.Octets != count.Octets || got.Recipients[store.Waiting] != count.Recipients[store.Waiting] {
		t.Errorf("counts: got %+v, want %+v", got, count)
	}
	if got := one(t, q, here, now); got.Message.ID != big {
		t.Errorf("due: got %s, want %s", got.Message.ID, big)
	}
	if v, err := e.Store.KV().Get(ctx, "space", "key"); err != nil || string(v) != "value" {
		t.Errorf("key: got %q, %v", v, err)
	}
	if v, err := e.Store.Files().Read(ctx, "a/b"); err != nil || string(v) != "file" {
		t.Errorf("file: got %q, %v", v, err)
	}
	if next := commit(t, q, mail(t, user(3)), "x"); next <= done {
		t.Errorf("IDs: %s comes after %s", next, done)
	}
}

// testTwoStores: what one store does, the other sees.
func testTwoStores(t *testing.T, e *Env) {
	if e.Second == nil {
		t.Fatal("the store cannot be shared")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	a, b := e.Store, e.Second(t)
	watch := b.Queue().Watch(ctx)
	modules := b.Modules().Watch(ctx)
	// Watch may begin a little later than it returns: until it is awake, we go on.
	id := commit(t, a.Queue(), mail(t, user(1)), "x")
	eventually(t, "the other store is woken", func() bool {
		select {
		case <-watch:
			return true
		default:
			check(t, a.Queue().Return(ctx, one(t, a.Queue(), here, now)))
			return false
		}
	})
	l := one(t, b.Queue(), here, now)
	none(t, a.Queue(), here, now)
	if got := read(t, b.Queue(), id); got != "x" {
		t.Errorf("content: got %q", got)
	}
	is(t, a.Queue().Update(ctx, id, func(m *store.Message) bool { m.Recipients[0].State = store.Held; return true }), store.ErrLeased)
	check(t, b.Queue().Finish(ctx, l, outcomes(l, delivered()), nil))
	gone(t, a.Queue(), id)

	digest, err := a.Modules().Put(ctx, []byte("binary"))
	check(t, err)
	expect := ""
	eventually(t, "the other store is told of a module", func() bool {
		_, err := a.Modules().Activate(ctx, "name", digest, expect, "me")
		check(t, err)
		expect = digest
		select {
		case <-modules:
			return true
		default:
			return false
		}
	})
	lead, err := a.Cluster().Lead(ctx, "work", "a", long)
	check(t, err)
	other, err := b.Cluster().Lead(ctx, "work", "b", long)
	check(t, err)
	if !lead || other {
		t.Errorf("lead: got %v and %v, want the first alone", lead, other)
	}
	lock, err := a.Files().Lock(ctx, "lock")
	check(t, err)
	soon, end := context.WithTimeout(ctx, 100*time.Millisecond)
	defer end()
	if _, err := b.Files().Lock(soon, "lock"); err == nil {
		t.Error("two have a lock")
	}
	check(t, lock.Unlock(ctx))
	lock, err = b.Files().Lock(ctx, "lock")
	check(t, err)
	check(t, lock.Unlock(ctx))
}
