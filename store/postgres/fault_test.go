package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

const here = store.Destination("backend:here")

var past = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

// mail is a message for n recipients that are due.
func mail(t testing.TB, n int) *store.Message {
	t.Helper()
	from, err := smtp.ParsePath("<sender@example.org>")
	if err != nil {
		t.Fatal(err)
	}
	m := &store.Message{Arrived: past, Sender: smtp.Sender{Path: from}}
	for i := range n {
		to, err := smtp.ParsePath(fmt.Sprintf("<user%d@example.com>", i))
		if err != nil {
			t.Fatal(err)
		}
		m.Recipients = append(m.Recipients, store.Recipient{Recipient: smtp.Recipient{Path: to}, Destination: here, Due: past})
	}
	return m
}

// send commits a message.
func send(ctx context.Context, s *Store, m *store.Message, body string) (store.ID, error) {
	in, err := s.Queue().Begin(ctx, m)
	if err != nil {
		return "", err
	}
	defer in.Abort()
	if _, err := in.Write([]byte(body)); err != nil {
		return "", err
	}
	return in.Commit(ctx)
}

func mustSend(t testing.TB, s *Store, m *store.Message, body string) store.ID {
	t.Helper()
	id, err := send(t.Context(), s, m, body)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// leaseOne takes the one lease that there must be.
func leaseOne(t testing.TB, s *Store) *store.Lease {
	t.Helper()
	list, err := s.Queue().Lease(t.Context(), here, past, 100, time.Hour)
	if err != nil || len(list) != 1 {
		t.Fatalf("got %d leases, %v, want one", len(list), err)
	}
	return list[0]
}

// listed returns the IDs in the queue.
func listed(t testing.TB, s *Store) map[store.ID]bool {
	t.Helper()
	ids := make(map[store.ID]bool)
	err := s.Queue().List(t.Context(), store.Filter{}, "", func(m *store.Message) bool {
		if ids[m.ID] {
			t.Errorf("%s is there twice", m.ID)
		}
		ids[m.ID] = true
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// node is an Options for a store of its own in a database of all tests.
func node(t testing.TB, url, schema string) Options {
	o := options(t, url)
	o.Schema = schema
	return o
}

// TestFaults runs on one server, which some of the tests stop.
func TestFaults(t *testing.T) {
	t.Parallel()
	server := peers.Postgres(t)
	url := server.URL(server.Database(t))
	for _, tt := range []struct {
		name string
		test func(t *testing.T, server *peers.PostgresServer, url string)
	}{
		{"CutInCommit", testCutInCommit},
		{"CutInFinish", testCutInFinish},
		{"GoneBeforeTheAnswer", testGoneBeforeAnswer},
		{"Held", testHeld},
		{"Stalled", testStalled},
		{"RanOut", testRanOut},
		{"Restart", testRestart},
		{"Full", testFull},
		{"Poison", testPoison},
		{"Corrupt", testCorrupt},
		{"Upkeep", testUpkeep},
		{"LockLost", testLockLost},
		{"Keys", testKeys},
		{"Migrate", testMigrate},
		{"MigrateTogether", testMigrateTogether},
		{"Encoding", testEncoding},
		{"Unreachable", testUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, server, url) })
	}
}

// testCutInCommit: whether the database got the COMMIT or not, the message is there once.
func testCutInCommit(t *testing.T, server *peers.PostgresServer, url string) {
	for _, size := range []int{10, 600_000} { // in the row, and in chunks
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("size=%d,after=%v", size, after), func(t *testing.T) {
				p := newProxy(t, server.Addr)
				s := open(t, node(t, p.url(t, url), fmt.Sprintf("cut %d %v", size, after)))
				first := mustSend(t, s, mail(t, 1), strings.Repeat("x", size))
				tr := p.set(trap{text: "INSERT INTO batch", after: after})
				second := mustSend(t, s, mail(t, 3), strings.Repeat("y", size))
				<-tr.sprung
				got := listed(t, s)
				if len(got) != 2 || !got[first] || !got[second] {
					t.Errorf("messages: got %v, want %s and %s", got, first, second)
				}
				if st := s.Stats(); st.Repeated == 0 || st.Resolved > 0 != after {
					t.Errorf("stats: got %+v", st)
				}
			})
		}
	}
}

// testCutInFinish: a report is in the queue once, and what was delivered is gone.
func testCutInFinish(t *testing.T, server *peers.PostgresServer, url string) {
	for _, after := range []bool{false, true} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("after=%v,lost=%v", after, lost), func(t *testing.T) {
				p := newProxy(t, server.Addr)
				s := open(t, node(t, p.url(t, url), fmt.Sprintf("finish %v %v", after, lost)))
				id := mustSend(t, s, mail(t, 2), "x")
				l := leaseOne(t, s)
				if lost {
					if _, err := s.exec(t.Context(), "steal", once, "UPDATE recipient SET token = token + 1"); err != nil {
						t.Fatal(err)
					}
				}
				tr := p.set(trap{text: "INSERT INTO batch", after: after})
				outcomes := []store.Outcome{{State: store.Delivered}, {State: store.Failed}}
				err := s.Queue().Finish(t.Context(), l, outcomes, nil, &store.Report{Message: mail(t, 1), Content: []byte("report")})
				<-tr.sprung
				got := listed(t, s)
				if lost {
					if !errors.Is(err, store.ErrLeaseLost) || len(got) != 1 || !got[id] {
						t.Errorf("got %v, messages %v, want a lost lease and the message", err, got)
					}
				} else if err != nil || len(got) != 1 || got[id] {
					t.Errorf("got %v, messages %v, want the report alone", err, got)
				}
			})
		}
	}
}

// testGoneBeforeAnswer: the COMMIT arrives, the answer is lost, and before we can ask, another
// node has delivered the message. It must not come back.
func testGoneBeforeAnswer(t *testing.T, server *peers.PostgresServer, url string) {
	p := newProxy(t, server.Addr)
	a := open(t, node(t, p.url(t, url), "gone"))
	b := open(t, node(t, url, "gone"))
	leaseDone := mustSend(t, a, mail(t, 1), "x")
	if err := b.Queue().Finish(t.Context(), leaseOne(t, b), []store.Outcome{{State: store.Delivered}}, nil); err != nil {
		t.Fatal(err)
	}
	tr := p.set(trap{text: "INSERT INTO batch", after: true, closed: true})
	result := make(chan error, 1)
	go func() {
		_, err := send(context.Background(), a, mail(t, 1), "y")
		result <- err
	}()
	<-tr.sprung
	l := leaseOne(t, b)
	if l.Message.ID == leaseDone {
		t.Fatal("the first message came back")
	}
	if err := b.Queue().Finish(t.Context(), l, []store.Outcome{{State: store.Delivered}}, nil); err != nil {
		t.Fatal(err)
	}
	p.open()
	if err := <-result; err != nil {
		t.Errorf("commit: got %v", err)
	}
	if got := listed(t, b); len(got) != 0 {
		t.Errorf("messages: got %v, want none", got)
	}
}

// testHeld: a line that goes dead without a word is given up, and who waits too short is told
// so.
func testHeld(t *testing.T, server *peers.PostgresServer, url string) {
	p := newProxy(t, server.Addr)
	o := node(t, p.url(t, url), "held")
	o.Timeout = 300 * time.Millisecond
	s := open(t, o)
	mustSend(t, s, mail(t, 1), "x")
	p.hold()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := send(short, s, mail(t, 1), "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller in a hurry: got %v", err)
	}
	if err := s.Health(t.Context()); err == nil {
		t.Error("health: got no error")
	}
	result := make(chan error, 1)
	go func() {
		_, err := send(context.Background(), s, mail(t, 1), "x")
		result <- err
	}()
	waitFor(t, "the batch is sent again", func() bool { return s.Stats().Repeated > 0 })
	p.open()
	if err := <-result; err != nil {
		t.Errorf("commit: got %v", err)
	}
}

// testStalled: a node stalls past its lease and comes back when another has the message. It is
// told so, changes nothing, and nobody sends a third time.
func testStalled(t *testing.T, _ *peers.PostgresServer, url string) {
	ctx := t.Context()
	a, b := open(t, node(t, url, "stalled")), open(t, node(t, url, "stalled"))
	in, err := a.Queue().Begin(ctx, mail(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	stalled, err := in.CommitLeased(ctx, here, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	var theirs []*store.Lease
	waitFor(t, "the lease runs out by the database's clock", func() bool {
		theirs, err = b.Queue().Lease(ctx, here, past, 10, time.Hour)
		return err != nil || len(theirs) > 0
	})
	if err != nil || len(theirs) != 1 || len(theirs[0].Recipients) != 2 {
		t.Fatalf("got %d leases, %v", len(theirs), err)
	}
	if time.Now().Before(stalled.Until) {
		t.Error("by our clock the lease is not over")
	}
	done := []store.Outcome{{State: store.Delivered}, {State: store.Failed}}
	for _, err := range []error{
		a.Queue().Extend(ctx, stalled, time.Hour),
		a.Queue().Return(ctx, stalled),
		a.Queue().Finish(ctx, stalled, done, nil, &store.Report{Message: mail(t, 1)}),
	} {
		if !errors.Is(err, store.ErrLeaseLost) {
			t.Errorf("got %v, want %v", err, store.ErrLeaseLost)
		}
	}
	if got := listed(t, a); len(got) != 1 {
		t.Errorf("messages: got %v, want the one", got)
	}
	if err := b.Queue().Finish(ctx, theirs[0], done, nil); err != nil {
		t.Error(err)
	}
	if err := a.Queue().Finish(ctx, stalled, done, nil); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("when it is gone: got %v", err)
	}
	if got := listed(t, a); len(got) != 0 {
		t.Errorf("messages: got %v, want none", got)
	}
}

// testRanOut: a lease that ran out, because the database was away, is finished and extended as
// long as nobody else had the recipients.
func testRanOut(t *testing.T, _ *peers.PostgresServer, url string) {
	ctx, s := t.Context(), open(t, node(t, url, "ranout"))
	lease := func(recipients int) *store.Lease {
		t.Helper()
		mustSend(t, s, mail(t, recipients), "x")
		l := leaseOne(t, s)
		if _, err := s.exec(ctx, "let it run out", once, "UPDATE recipient SET until = clock_timestamp() - interval '1 second'"); err != nil {
			t.Fatal(err)
		}
		return l
	}
	for recipients := 1; recipients <= 2; recipients++ {
		done := slices.Repeat([]store.Outcome{{State: store.Delivered}}, recipients)
		if err := s.Queue().Finish(ctx, lease(recipients), done, nil); err != nil {
			t.Errorf("finish of %d: %v", recipients, err)
		}
		l := lease(recipients)
		if err := s.Queue().Extend(ctx, l, time.Hour); err != nil {
			t.Errorf("extend of %d: %v", recipients, err)
		}
		if more, err := s.Queue().Lease(ctx, here, past, 10, time.Hour); err != nil || len(more) != 0 {
			t.Errorf("after an extension: got %d leases, %v", len(more), err)
		}
		if err := s.Queue().Finish(ctx, l, done, nil); err != nil {
			t.Errorf("finish of %d after an extension: %v", recipients, err)
		}
		l = lease(recipients)
		err := s.Queue().Update(ctx, l.Message.ID, func(m *store.Message) bool {
			m.Recipients[0].State = store.Held
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{s.Queue().Extend(ctx, l, time.Hour), s.Queue().Finish(ctx, l, done, nil)} {
			if !errors.Is(err, store.ErrLeaseLost) {
				t.Errorf("after a change: got %v, want %v", err, store.ErrLeaseLost)
			}
		}
		err = s.Queue().Update(ctx, l.Message.ID, func(m *store.Message) bool {
			for i := range m.Recipients {
				m.Recipients[i].State = store.Failed
			}
			return true
		})
		if recipients == 1 && err != nil { // the other one of two was just extended
			t.Fatal(err)
		}
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// testRestart stops the server under load, several times. What was acknowledged is there.
func testRestart(t *testing.T, server *peers.PostgresServer, url string) {
	s := open(t, node(t, url, "restart"))
	var mu sync.Mutex
	acknowledged := make(map[store.ID]bool)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				id, err := send(context.Background(), s, mail(t, 1), "x")
				if err != nil {
					t.Errorf("commit: %v", err) // the caller can wait, and so it is done
					return
				}
				mu.Lock()
				acknowledged[id] = true
				mu.Unlock()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	for range 3 {
		n := count()
		waitFor(t, "more is committed", func() bool { return count() > n+50 || t.Failed() })
		server.Stop(t)
		server.Start(t)
	}
	n := count()
	waitFor(t, "it goes on", func() bool { return count() > n+50 || t.Failed() })
	close(stop)
	wg.Wait()
	got := listed(t, s)
	for id := range acknowledged {
		if !got[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	if len(got) != len(acknowledged) {
		t.Errorf("messages: got %d, want %d", len(got), len(acknowledged))
	}
	waitFor(t, "notifications come again", func() bool { return s.Stats().Listening })
	if _, err := s.Modules().Put(t.Context(), []byte("x")); err != nil {
		t.Error(err)
	}
}

// refuse makes the database refuse messages of a sender with a condition.
func refuse(t testing.TB, s *Store, condition, sender string) {
	t.Helper()
	_, err := s.exec(t.Context(), "refuse", once, fmt.Sprintf(`DO $do$ BEGIN
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '%s'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON message FOR EACH ROW WHEN (convert_from(NEW.sender, 'UTF8') LIKE '%s') EXECUTE FUNCTION refuse();
		END $do$`, condition, sender))
	if err != nil {
		t.Fatal(err)
	}
}

// testFull: no room is said as such.
func testFull(t *testing.T, _ *peers.PostgresServer, url string) {
	s := open(t, node(t, url, "full"))
	refuse(t, s, diskFull, "%")
	if _, err := send(t.Context(), s, mail(t, 1), "x"); !errors.Is(err, store.ErrFull) {
		t.Errorf("got %v, want %v", err, store.ErrFull)
	}
	if got := listed(t, s); len(got) != 0 {
		t.Errorf("messages: got %v, want none", got)
	}
}

// testPoison: a message that the database does not take fails alone, whatever batch it is in.
func testPoison(t *testing.T, _ *peers.PostgresServer, url string) {
	s := open(t, node(t, url, "poison"))
	refuse(t, s, "22000", "poison%")
	var wg sync.WaitGroup
	for i := range 20 {
		m := mail(t, 1)
		if i%10 == 7 {
			m.Sender.Path.Local = "poison"
		}
		wg.Go(func() {
			for range 5 {
				_, err := send(context.Background(), s, m, "x")
				if (err != nil) != (m.Sender.Path.Local == "poison") {
					t.Errorf("from %s: got %v", m.Sender.Path, err)
				}
			}
		})
	}
	wg.Wait()
	if got := listed(t, s); len(got) != 90 {
		t.Errorf("messages: got %d, want 90", len(got))
	}
}

// testCorrupt: what does not fit its checksum is set aside, and the rest goes on.
func testCorrupt(t *testing.T, _ *peers.PostgresServer, url string) {
	ctx, s := t.Context(), open(t, node(t, url, "corrupt"))
	body := mustSend(t, s, mail(t, 1), "content")
	chunk := mustSend(t, s, mail(t, 1), strings.Repeat("x", 600_000))
	envelope := mustSend(t, s, mail(t, 1), "y")
	good := mustSend(t, s, mail(t, 1), "z")
	for sql, id := range map[string]store.ID{
		"UPDATE message SET body = 'contend' WHERE id = $1":                                            body,
		"UPDATE chunk SET data = set_byte(data, 7, 7) WHERE n = 1 AND $1::uuid IS NOT NULL":            chunk,
		"UPDATE message SET envelope = set_byte(envelope, 9, get_byte(envelope, 9) # 1) WHERE id = $1": envelope,
	} {
		b, _ := id.Bytes()
		if n, err := s.exec(ctx, "damage", once, sql, b); err != nil || n != 1 {
			t.Fatal(n, err)
		}
	}
	if _, err := s.Queue().Content(ctx, body); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("content: got %v", err)
	}
	c, err := s.Queue().Content(ctx, chunk)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var b strings.Builder
	if n, err := c.WriteTo(&b); !errors.Is(err, store.ErrCorrupt) || n != chunkSize {
		t.Errorf("chunks: got %d, %v", n, err)
	}
	list, err := s.Queue().Lease(ctx, here, past, 10, time.Hour)
	if err != nil || len(list) != 3 || list[0].Message.ID == envelope || list[2].Message.ID != good {
		t.Errorf("leases: got %d, %v, want the three that can be read", len(list), err)
	}
	counts, err := s.Queue().Count(ctx)
	if err != nil || counts.Recipients[store.Held] != 1 {
		t.Errorf("counts: got %+v, %v, want one held", counts, err)
	}
	if _, err := s.Queue().Message(ctx, envelope); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("message: got %v", err)
	}
}

// testUpkeep: what nobody refers to goes, and what somebody has open stays.
func testUpkeep(t *testing.T, _ *peers.PostgresServer, url string) {
	ctx, s := t.Context(), open(t, node(t, url, "upkeep"))
	big := strings.Repeat("x", 600_000)
	rows := func(table string) (n int) {
		t.Helper()
		if err := s.pool.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	age := func() {
		t.Helper()
		for _, sql := range []string{
			"UPDATE blob SET until = until - interval '11 minutes'",
			"UPDATE batch SET at = at - interval '2 hours'",
		} {
			if _, err := s.exec(ctx, "age", once, sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	in, err := s.Queue().Begin(ctx, mail(t, 1)) // is aborted
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte(big)); err != nil {
		t.Fatal(err)
	}
	open, err := s.Queue().Begin(ctx, mail(t, 1)) // goes on
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.Write([]byte(big)); err != nil {
		t.Fatal(err)
	}
	id := mustSend(t, s, mail(t, 1), big)
	in.Abort()
	c, err := s.Queue().Content(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Queue().Finish(ctx, leaseOne(t, s), []store.Outcome{{State: store.Delivered}}, nil); err != nil {
		t.Fatal(err)
	}
	age()
	s.upkeepOnce() // renews, then sweeps
	if n := rows("blob"); n != 2 {
		t.Errorf("contents: got %d, want the two that are open", n)
	}
	if n, err := c.WriteTo(&strings.Builder{}); err != nil || n != int64(len(big)) {
		t.Errorf("read: got %d, %v", n, err)
	}
	c.Close()
	if _, err := open.Commit(ctx); err != nil {
		t.Errorf("commit: %v", err)
	}
	age()
	s.upkeepOnce()
	if b, c, n := rows("blob"), rows("chunk"), rows("batch"); b != 1 || c != 3 || n != 0 {
		t.Errorf("got %d contents, %d chunks and %d batches, want 1, 3 and 0", b, c, n)
	}

	// One that was swept while nobody renewed it is not committed.
	in, err = s.Queue().Begin(ctx, mail(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte(big)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.exec(ctx, "sweep", once, "DELETE FROM blob WHERE until IS NOT NULL"); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(ctx); err == nil {
		t.Error("a content that is gone: got no error")
	}
	if err := s.KV().Set(ctx, "s", "k", []byte("v"), past, 0); err != nil {
		t.Fatal(err)
	}
	s.upkeepOnce()
	var used int64
	if err := s.pool.QueryRow(ctx, "SELECT used FROM space").Scan(&used); err != nil || used != 0 || rows("kv") != 0 {
		t.Errorf("values: got %d octets in %d rows, %v, want none", used, rows("kv"), err)
	}
}

// testLockLost: a lock that ran out, because its holder stalled, belongs to the next.
func testLockLost(t *testing.T, _ *peers.PostgresServer, url string) {
	ctx, s := t.Context(), open(t, node(t, url, "lock"))
	u, err := s.Files().Lock(ctx, "name")
	if err != nil {
		t.Fatal(err)
	}
	a := u.(*lock)
	if !a.renewOnce() {
		t.Error("the lock could not be renewed")
	}
	if _, err := s.exec(ctx, "stall", once, "UPDATE lock SET until = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	b, err := s.Files().Lock(ctx, "name")
	if err != nil {
		t.Fatal(err)
	}
	if a.renewOnce() {
		t.Error("the first holder has the lock again")
	}
	if err := a.Unlock(ctx); err != nil {
		t.Error(err)
	}
	if !b.(*lock).renewOnce() {
		t.Error("the first holder's Unlock took the lock from the second")
	}
	if err := b.Unlock(ctx); err != nil {
		t.Error(err)
	}
}

// testKeys: files are encrypted, and a key is replaced by a new one in front.
func testKeys(t *testing.T, _ *peers.PostgresServer, url string) {
	ctx := t.Context()
	o := node(t, url, "keys")
	s := open(t, o)
	if err := s.Files().Write(ctx, "a.key", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	var raw []byte
	if err := s.pool.QueryRow(ctx, "SELECT data FROM file").Scan(&raw); err != nil || strings.Contains(string(raw), "secret") {
		t.Errorf("in the database: got %q, %v", raw, err)
	}
	if _, err := s.exec(ctx, "copy", once, "INSERT INTO file SELECT 'b.key', data, size, modified FROM file"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Files().Read(ctx, "b.key"); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("under another name: got %v", err)
	}
	o.Keys = [][]byte{key(2), key(1)}
	rotated := open(t, o)
	if b, err := rotated.Files().Read(ctx, "a.key"); err != nil || string(b) != "secret" {
		t.Errorf("with a new key in front: got %q, %v", b, err)
	}
	if err := rotated.Files().Write(ctx, "a.key", []byte("again")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Files().Read(ctx, "a.key"); err == nil || !strings.Contains(err.Error(), "not configured") {
		t.Errorf("without the key: got %v", err)
	}
}

// testMigrate: what an older version has stored is there in the newer one.
func testMigrate(t *testing.T, _ *peers.PostgresServer, url string) {
	o := node(t, url, `odd "schema"`).withDefaults()
	config, err := poolConfig(o)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := connect(t.Context(), config.ConnConfig, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(conn)
	if err := migrate(t.Context(), conn, o.Schema, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "INSERT INTO batch (id) VALUES (gen_random_uuid())"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT pg_advisory_unlock_all()"); err != nil {
		t.Fatal(err)
	}
	s := open(t, o)
	var version, batches int
	if err := s.pool.QueryRow(t.Context(), "SELECT (SELECT max(version) FROM migration), (SELECT count(*) FROM batch)").Scan(&version, &batches); err != nil {
		t.Fatal(err)
	}
	if version != latest() || batches != 1 {
		t.Errorf("got version %d with %d rows, want %d with 1", version, batches, latest())
	}
	if _, err := s.exec(t.Context(), "come from the future", once, "INSERT INTO migration (version, name) VALUES (1000, 'x')"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("tables of a newer version: got %v", err)
	}
}

func testMigrateTogether(t *testing.T, _ *peers.PostgresServer, url string) {
	var wg sync.WaitGroup
	o := node(t, url, "together")
	for range 4 {
		wg.Go(func() {
			s, err := Open(context.Background(), o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func testEncoding(t *testing.T, server *peers.PostgresServer, _ string) {
	server.Exec(t, "postgres", "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
	_, err := Open(t.Context(), options(t, server.URL("ascii")))
	if err == nil || !strings.Contains(err.Error(), "want UTF8") {
		t.Errorf("got %v", err)
	}
}

// testUnreachable: Open waits for a database that is not there yet, as long as it may.
func testUnreachable(t *testing.T, server *peers.PostgresServer, url string) {
	server.Stop(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, node(t, url, "unreachable")); err == nil {
		t.Error("got no error")
	}
	opened := make(chan *Store)
	go func() {
		s, err := Open(context.Background(), node(t, url, "unreachable"))
		if err != nil {
			t.Error(err)
		}
		opened <- s
	}()
	server.Start(t)
	if s := <-opened; s != nil {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := send(t.Context(), s, mail(t, 1), "x"); !errors.Is(err, store.ErrClosed) {
			t.Errorf("closed: got %v", err)
		}
		if _, err := s.Queue().Count(t.Context()); !errors.Is(err, store.ErrClosed) {
			t.Errorf("closed: got %v", err)
		}
	}
}

func TestAcceptable(t *testing.T) {
	for _, tt := range []struct {
		version, encoding, want string
	}{
		{"150018", "UTF8", ""},
		{"130000", "utf8", ""},
		{"120022", "UTF8", "PostgreSQL 12"},
		{"90624", "UTF8", "PostgreSQL 9"},
		{"150018", "LATIN1", "LATIN1"},
		{"fifteen", "UTF8", "fifteen"},
	} {
		err := acceptable(tt.version, tt.encoding)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s in %s: got %v, want %q", tt.version, tt.encoding, err, tt.want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Options{URL: "postgres://a@b/c", Keys: [][]byte{key(1)}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	err := Options{Keys: [][]byte{{1}}, Schema: strings.Repeat("x", 41), Poll: -1}.Validate()
	for _, want := range []string{"URL", "key 1", "schema", "negative"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want something about %s", err, want)
		}
	}
	if err := (Options{URL: "postgres://a:secret@b:port/c"}).Validate(); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a bad URL: got %v, want an error without the password", err)
	}
}
