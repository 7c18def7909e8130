package tlsrpt

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// station is a cluster of gateways: files and DNS that they share, and the reports they mailed.
// Time begins at midnight UTC, as a bubble has it.
type station struct {
	t     *testing.T
	files *memFiles
	dns   zone

	mu     sync.Mutex
	leader string
	mails  []Mail
	refuse error // what Mail says
}

func newStation(t *testing.T) *station {
	return &station{t: t, files: newMemFiles(), leader: "a", dns: zone{texts: map[string][]string{
		"_smtp._tls.company-y.example": {"v=TLSRPTv1; rua=mailto:reports@company-y.example"},
	}}}
}

// start runs a node until stop is called.
func (s *station) start(name string) (r *Reporter, stop func()) {
	s.t.Helper()
	r, err := New(Options{Submitter: "company-x.example", From: address(s.t, "noreply@company-x.example"), Files: s.files, DNS: s.dns,
		Mail: func(_ context.Context, m Mail) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.refuse == nil {
				s.mails = append(s.mails, m)
			}
			return s.refuse
		},
		Lead: func(context.Context) (bool, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.leader == name, nil
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		r.Run(ctx)
		close(done)
	}()
	return r, func() {
		cancel()
		<-done
	}
}

// reports are the reports in the mails so far.
func (s *station) reports() []Report {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Report
	for _, m := range s.mails {
		r, err := ReadMessage(m.Content)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func (s *station) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

var failed = &Failure{Type: CertificateExpired, ReceivingIP: netip.MustParseAddr("192.0.2.1"), ReceivingHost: "mx.company-y.example"}

func event(f *Failure) Event {
	return Event{Domain: "Company-Y.example.", Policy: Policy{Type: STS, Strings: []string{"version: STSv1"}}, MXHost: "mx.company-y.example", Failure: f}
}

// TestDay: two nodes count, one that starts anew in between; after the day one of them sends
// one report with the sum, within four hours and a quarter.
func TestDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStation(t)
		a, stopA := s.start("a")
		b, stopB := s.start("b")
		for range 3 {
			a.Record(event(nil))
			b.Record(event(failed))
		}
		time.Sleep(6 * time.Hour)
		stopA()
		a, stopA = s.start("a")
		a.Record(event(nil))
		a.Record(Event{Domain: "silent.example"})
		a.Record(Event{Domain: "[192.0.2.1]"})
		time.Sleep(18*time.Hour + 10*time.Minute)
		if n := len(s.reports()); n != 0 {
			t.Errorf("%d reports before they are due", n)
		}
		a.Record(event(failed)) // of the next day
		time.Sleep(4*time.Hour + 10*time.Minute)
		all := s.reports()
		if len(all) != 1 {
			t.Fatalf("%d reports, want one", len(all))
		}
		ok, bad := all[0].Sessions()
		if ok != 4 || bad != 3 || all[0].Range.Start.Format(time.DateOnly) != "2000-01-01" || len(all[0].Policies) != 1 || len(all[0].Policies[0].Failures) != 1 {
			t.Errorf("got %+v", all[0])
		}
		for _, name := range s.files.names(rowsFolder) {
			if strings.Contains(name, "2000-01-01") {
				t.Errorf("%s is left", name)
			}
		}
		stopB()
		time.Sleep(24 * time.Hour)
		all = s.reports()
		if len(all) != 2 || all[1].ID == all[0].ID {
			t.Fatalf("%d reports after two days", len(all))
		}
		if _, bad := all[1].Sessions(); bad != 1 {
			t.Errorf("got %+v", all[1])
		}
		time.Sleep(8 * 24 * time.Hour)
		stopA()
		if left := s.files.names("tlsrpt"); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// TestLeaderGone: the node that sends dies between days, or after some of its reports; another
// goes on, and nobody gets two.
func TestLeaderGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStation(t)
		_, stop := s.start("a")
		b, stopB := s.start("b")
		defer stopB()
		b.Record(event(failed))
		time.Sleep(25 * time.Hour)
		stop()
		n := len(s.reports())
		if n > 0 {
			t.Log("the leader had sent it already")
		}
		s.set(func() { s.leader = "b" })
		time.Sleep(5 * time.Hour)
		if len(s.reports()) != 1 {
			t.Fatalf("%d reports, want one", len(s.reports()))
		}
		// A row that was lost on the way comes when the report was sent.
		data, err := example().encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.files.Write(t.Context(), shardFolder("2000-01-01", shardOf("company-y.example"))+"/late-0", data); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if len(s.reports()) != 1 || len(s.files.names(rowsFolder+"/2000-01-01")) != 0 {
			t.Errorf("%d reports, rows %v", len(s.reports()), s.files.names(rowsFolder))
		}
	})
}

// TestStoreBreaks: what was counted while the store took nothing is there when it does again;
// and when the mark of a report cannot be written, the report is sent again under the same
// identifier, rather than never.
func TestStoreBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStation(t)
		broken := errors.New("broken")
		s.files.fail = func(verb, _ string) error { return broken }
		a, stop := s.start("a")
		defer stop()
		a.Record(event(failed))
		time.Sleep(time.Hour)
		s.files.mu.Lock()
		marks := 0
		s.files.fail = func(verb, name string) error {
			if strings.HasPrefix(name, sentFolder) {
				if marks++; marks == 1 {
					return broken
				}
			}
			return nil
		}
		s.files.mu.Unlock()
		a.Record(event(failed))
		time.Sleep(29 * time.Hour)
		all := s.reports()
		if len(all) != 2 || all[0].ID != all[1].ID {
			t.Fatalf("%d reports", len(all))
		}
		if _, bad := all[0].Sessions(); bad != 2 {
			t.Errorf("%d failures, want 2", bad)
		}
	})
}

// TestRetry: a report that nobody takes is tried for a day, less and less often; a domain whose
// record cannot be looked up likewise.
func TestRetry(t *testing.T) {
	for _, c := range []struct {
		what  string
		upset func(s *station)
		mend  func(s *station) // nil never
		want  int
	}{
		{"mail refused, then taken", func(s *station) { s.refuse = errors.New("no") }, func(s *station) { s.refuse = nil }, 1},
		{"mail refused for ever", func(s *station) { s.refuse = errors.New("no") }, nil, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStation(t)
				c.upset(s)
				a, stop := s.start("a")
				defer stop()
				a.Record(event(nil))
				time.Sleep(36 * time.Hour)
				if c.mend != nil {
					s.set(func() { c.mend(s) })
				}
				time.Sleep(24 * time.Hour)
				if n := len(s.reports()); n != c.want {
					t.Errorf("%d reports, want %d", n, c.want)
				}
				if sent, failed := a.Stats.Sent.Load(), a.Stats.Failed.Load(); sent != int64(c.want) || failed != int64(1-c.want) {
					t.Errorf("sent %d, failed %d", sent, failed)
				}
				if left := s.files.names(rowsFolder); len(left) != 0 {
					t.Errorf("left: %v", left)
				}
			})
		})
	}
	t.Run("DNS fails", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newStation(t)
			s.dns.fail = &resolver.Error{Kind: resolver.ErrTemporary}
			a, stop := s.start("a")
			defer stop()
			a.Record(event(nil))
			time.Sleep(30 * time.Hour)
			if len(s.files.names(rowsFolder)) == 0 {
				t.Error("given up before the day was over")
			}
			time.Sleep(24 * time.Hour)
			if a.Stats.Failed.Load() != 1 || len(s.files.names(rowsFolder)) != 0 {
				t.Errorf("failed %d, left %v", a.Stats.Failed.Load(), s.files.names(rowsFolder))
			}
		})
	})
}

// TestDown: a gateway that was down for a day still sends what it counted, and after three days
// does not any more.
func TestDown(t *testing.T) {
	for _, c := range []struct {
		down time.Duration
		want int
	}{{40 * time.Hour, 1}, {100 * time.Hour, 0}} {
		synctest.Test(t, func(t *testing.T) {
			s := newStation(t)
			a, stop := s.start("a")
			a.Record(event(failed))
			stop()
			time.Sleep(c.down)
			_, stop = s.start("a")
			defer stop()
			time.Sleep(time.Hour)
			if n := len(s.reports()); n != c.want || len(s.files.names(rowsFolder)) != 0 {
				t.Errorf("down for %v: %d reports, want %d; left %v", c.down, n, c.want, s.files.names(rowsFolder))
			}
		})
	}
}

// TestBounds: memory, and what is told of one domain, have ends.
func TestBounds(t *testing.T) {
	s := make(sums)
	const domain = "company-y.example"
	var size int
	for i := range 2 * maxPolicies {
		p := Policy{Type: TLSA, Strings: []string{fmt.Sprintf("3 1 1 %d", i)}}.clean(domain)
		for j := range 2 * maxDetails {
			f := Failure{Type: TLSAInvalid, ReceivingHost: fmt.Sprintf("mx%d", j)}
			size += s.add(domain, p, &f, 1)
		}
	}
	if len(s[domain].policies) != maxPolicies {
		t.Fatalf("%d policies", len(s[domain].policies))
	}
	for _, p := range s[domain].policies {
		if len(p.details) > maxDetails+1 || p.failed != 2*maxDetails || p.details[Failure{Type: TLSAInvalid}] != maxDetails {
			t.Fatalf("%d details, %d failures", len(p.details), p.failed)
		}
	}
	if size > 4<<20 {
		t.Errorf("%d octets", size)
	}

	long := Failure{Type: TLSAInvalid, Additional: strings.Repeat("ä", 300) + "\r\n", Reason: "a\r\nb\x1b"}.clean()
	if len(long.Additional) > maxText || strings.ContainsAny(long.Reason, "\r\n\x1b") {
		t.Errorf("got %+v", long)
	}

	r, err := New(Options{Submitter: "x.example", From: smtp.Path{Local: "a", Domain: address(t, "a@x.example").Domain}, Files: newMemFiles(), DNS: zone{},
		Mail: func(context.Context, Mail) error { return nil }, Memory: 100 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10000 {
		r.Record(Event{Domain: fmt.Sprintf("d%d.example", i)})
	}
	if r.size > 101<<10 || r.Stats.Dropped.Load() == 0 {
		t.Errorf("%d octets, %d dropped", r.size, r.Stats.Dropped.Load())
	}
	// Flushed often enough, none is lost, and sets are closed when they are full.
	r.flush(t.Context())
	before := r.Stats.Dropped.Load()
	for i := range 3000 {
		r.Record(Event{Domain: fmt.Sprintf("e%d.example", i)})
		if i%50 == 0 {
			r.flush(t.Context())
		}
	}
	if r.Stats.Dropped.Load() != before {
		t.Error("some were dropped")
	}
	for _, set := range r.sets {
		if set.number == 0 || set.size > 201<<10 {
			t.Errorf("set %d of %d octets", set.number, set.size)
		}
	}
	r.web.close()
}

// TestHammer: sessions, the flush and a reader at once.
func TestHammer(t *testing.T) {
	files := newMemFiles()
	r, err := New(Options{Submitter: "x.example", From: address(t, "a@x.example"), Files: files, DNS: zone{}, FlushEvery: time.Millisecond,
		Mail: func(context.Context, Mail) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run, all sync.WaitGroup
	run.Go(func() { r.Run(ctx) })
	for i := range 8 {
		all.Go(func() {
			for j := range 1000 {
				r.Record(Event{Domain: fmt.Sprintf("d%d.example", j%20), Failure: &Failure{ReceivingHost: fmt.Sprint(i)}})
			}
		})
	}
	all.Wait()
	cancel()
	run.Wait()
	var n int64
	for _, d := range []day{dayOf(time.Now()), dayOf(time.Now().Add(-time.Hour))} {
		for i := range shards {
			s, err := r.readShard(t.Context(), d, i)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range s {
				n += d.events()
			}
		}
		if n == 8000 {
			return
		}
	}
	t.Errorf("%d of 8000 events are stored", n)
}

func BenchmarkRecord(b *testing.B) {
	r, err := New(Options{Submitter: "x.example", From: address(b, "a@x.example"), Files: newMemFiles(), DNS: zone{}, Mail: func(context.Context, Mail) error { return nil }})
	if err != nil {
		b.Fatal(err)
	}
	e := event(nil)
	e.Policy.Strings = []string{"version: STSv1", "mode: enforce", "mx: *.company-y.example", "max_age: 604800"}
	b.ReportAllocs()
	for b.Loop() {
		r.Record(e)
	}
}
