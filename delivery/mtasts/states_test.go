package mtasts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/resolver"
)

const day = 24 * time.Hour

// TestStates is the table of the package comment: what is kept, what the record says, what the
// policy host does, and what applies then.
func TestStates(t *testing.T) {
	parity.Row(t, "MX-32")
	const (
		nothing = ""
		none    = "none"    // no record
		noName  = "no name" // not even the name
		unknown = "unknown" // the look-up fails
		bogus   = "bogus"   // it does not validate
		several = "several" // two records
		wrong   = "wrong"   // one that is malformed
		same    = "1"       // the id of what is kept
		other   = "2"       // another id
	)
	records := map[string]string{
		none: "_mta-sts.example.com TXT v=spf1 -all", noName: "", unknown: "_mta-sts.example.com FAIL", bogus: "_mta-sts.example.com BOGUS",
		several: "_mta-sts.example.com TXT v=STSv1; id=1\n_mta-sts.example.com TXT v=STSv1; id=2", wrong: "_mta-sts.example.com TXT v=STSv1; id=1-1",
	}
	for _, tt := range []struct {
		kept   Mode          // "" is nothing
		age    time.Duration // of what is kept, which holds for a day
		record string
		host   Mode // "" fails
		policy Mode // that applies, "" none
		id     string
		asked  bool // the policy host
		kind   Kind
	}{
		{nothing, 0, noName, nothing, "", "", false, ""},
		{nothing, 0, none, nothing, "", "", false, ""},
		{nothing, 0, unknown, Enforce, "", "", false, FetchError},
		{nothing, 0, bogus, Enforce, "", "", false, FetchError},
		{nothing, 0, several, Enforce, "", "", false, Invalid},
		{nothing, 0, wrong, Enforce, "", "", false, Invalid},
		{nothing, 0, same, nothing, "", "", true, FetchError},
		{nothing, 0, same, Enforce, Enforce, "1", true, ""},
		{nothing, 0, same, Testing, Testing, "1", true, ""},
		{nothing, 0, same, None, None, "1", true, ""},

		{Enforce, time.Hour, same, nothing, Enforce, "1", false, ""}, // nobody needs the policy host
		{Enforce, time.Hour, same, Testing, Enforce, "1", false, ""},
		{Enforce, time.Hour, noName, nothing, Enforce, "1", false, FetchError},
		{Enforce, time.Hour, none, nothing, Enforce, "1", false, FetchError},
		{Enforce, time.Hour, unknown, nothing, Enforce, "1", false, FetchError},
		{Enforce, time.Hour, bogus, nothing, Enforce, "1", false, FetchError},
		{Enforce, time.Hour, several, Testing, Enforce, "1", false, Invalid},
		{Enforce, time.Hour, wrong, Testing, Enforce, "1", false, Invalid},
		{Enforce, time.Hour, other, nothing, Enforce, "1", true, FetchError},
		{Enforce, time.Hour, other, Testing, Testing, "2", true, ""},
		{Enforce, time.Hour, other, None, None, "2", true, ""},
		{None, time.Hour, other, Enforce, Enforce, "2", true, ""},
		{None, time.Hour, other, nothing, None, "1", true, FetchError},

		{Enforce, 25 * time.Hour, same, Enforce, Enforce, "1", true, ""}, // run out: the same id is no reason to believe it
		{Enforce, 25 * time.Hour, same, Testing, Testing, "1", true, ""},
		{Enforce, 25 * time.Hour, same, nothing, "", "", true, FetchError},
		{Enforce, 25 * time.Hour, other, nothing, "", "", true, FetchError},
		{Enforce, 25 * time.Hour, noName, Enforce, "", "", false, ""},
		{Enforce, 25 * time.Hour, unknown, Enforce, "", "", false, FetchError},
	} {
		t.Run(fmt.Sprintf("%s for %v, %s, %s", tt.kept, tt.age, tt.record, tt.host), func(t *testing.T) {
			in(t, nil, func(t *testing.T, r *rig) {
				if tt.kept != nothing {
					r.record(same)
					r.policy(tt.kept, day)
					if got := r.lookup(); got.Err != nil {
						t.Fatal(got.Err)
					}
				}
				time.Sleep(tt.age)
				record, ok := records[tt.record]
				if !ok {
					record = tt.record
				}
				r.record(record)
				r.fail()
				if tt.host != nothing {
					r.policy(tt.host, day)
				}
				r.fetches()
				for range 2 { // the second is answered from memory
					got := r.lookup()
					expectResult(t, got, tt.policy, tt.id, tt.kind)
					if record == tt.record && got.ID != tt.record {
						t.Errorf("id of the record: got %q, want %q", got.ID, tt.record)
					}
				}
				if n := r.fetches(); (n > 0) != tt.asked || n > 1 {
					t.Errorf("the policy host was asked %d times, want %v", n, tt.asked)
				}
				// A node that has nothing in memory knows as much.
				expectResult(t, r.another().Lookup(context.Background(), "example.com"), tt.policy, tt.id, tt.kind)
			})
		})
	}
}

func expectResult(t *testing.T, got Result, mode Mode, id string, kind Kind) {
	t.Helper()
	var e *Error
	errors.As(got.Err, &e)
	switch {
	case (got.Policy == nil) != (mode == "") || got.Policy != nil && (got.Policy.Mode != mode || got.Policy.ID != id):
		t.Errorf("policy: got %+v, want mode %q, id %q", got.Policy, mode, id)
	case (e == nil) != (kind == "") || e != nil && (e.Kind != kind || errors.Is(e, ErrUnknown)):
		t.Errorf("error: got %v, want %s", got.Err, kind)
	case !got.Expires.After(time.Now()) || got.Expires.After(time.Now().Add(time.Hour)):
		t.Errorf("expires in %v", time.Until(got.Expires))
	case got.Policy != nil && !got.Policy.Expires.After(time.Now()):
		t.Errorf("the policy has run out at %v", got.Policy.Expires)
	}
}

// TestBackoff: a policy host that failed is left alone for five minutes, then ten and more up
// to an hour; an id that is new is a reason to try again, but not for ever.
func TestBackoff(t *testing.T) {
	in(t, nil, func(t *testing.T, r *rig) {
		r.record("1")
		r.fail()
		var at []time.Duration
		start := time.Now()
		for time.Since(start) < 4*time.Hour {
			r.lookup()
			if r.fetches() > 0 {
				at = append(at, time.Since(start))
			}
			time.Sleep(30 * time.Second)
		}
		if got, want := fmt.Sprint(at), "[0s 5m0s 15m0s 35m0s 1h15m0s 2h15m0s 3h15m0s]"; got != want {
			t.Errorf("asked at %s, want %s", got, want)
		}
	})
	in(t, nil, func(t *testing.T, r *rig) {
		r.fail()
		asked := 0
		for i := range 20 { // in 20 minutes
			r.record(fmt.Sprint(i))
			r.cache.Renew(context.Background(), "example.com")
			asked += r.fetches()
			time.Sleep(61 * time.Second)
		}
		if asked != 3 {
			t.Errorf("20 ids in 20 minutes: asked %d times, want 3", asked)
		}
		r.policy(Enforce, day)
		time.Sleep(time.Hour)
		expectResult(t, r.lookup(), Enforce, "19", "")
	})
}

// TestRenew: before mail is given up, an id that the DNS has now counts, not one in a cache.
func TestRenew(t *testing.T) {
	fresh := make(chan *rig, 1)
	in(t, func(o *Options) { o.Fresh = late{o.DNS, fresh} }, func(t *testing.T, r *rig) {
		fresh <- r
		r.record("1")
		r.policy(Enforce, day)
		expectResult(t, r.lookup(), Enforce, "1", "")
		r.record("2")
		r.policy(Testing, day)
		expectResult(t, r.lookup(), Enforce, "1", "")
		r.record("1") // caches between us and the domain have the old one
		<-fresh
		fresh <- r
		expectResult(t, r.cache.Renew(context.Background(), "example.com"), Testing, "2", "")
		expectResult(t, r.lookup(), Testing, "2", "")
		r.fetches()
		for range 10 {
			expectResult(t, r.cache.Renew(context.Background(), "example.com"), Testing, "2", "")
		}
		if n := r.fetches(); n > 0 {
			t.Errorf("an id that is known was fetched %d times", n)
		}
		<-fresh
	})
}

// late is a DNS in which records are newer than in that of a rig.
type late struct {
	resolver.DNS
	rig chan *rig
}

func (l late) LookupTXT(ctx context.Context, name string) (resolver.Result[string], error) {
	r := <-l.rig
	r.record("2")
	found, err := l.DNS.LookupTXT(ctx, name)
	r.record("1")
	l.rig <- r
	return found, err
}

// TestShared: what one node has fetched, the others know, whoever keeps them from the policy
// host or the DNS.
func TestShared(t *testing.T) {
	in(t, nil, func(t *testing.T, r *rig) {
		r.record("1")
		r.policy(Enforce, day)
		other := r.another()
		r.lookup()
		r.fail()
		expectResult(t, other.Lookup(context.Background(), "example.com"), Enforce, "1", "")

		time.Sleep(2 * time.Hour)
		r.record("2")
		r.policy(None, day)
		expectResult(t, other.Lookup(context.Background(), "example.com"), None, "2", "")
		r.fail()
		r.fetches()
		expectResult(t, r.lookup(), None, "2", "")
		if n := r.fetches(); n > 0 {
			t.Errorf("what the other node fetched was fetched again")
		}
	})
}

// TestFlight: callers share a look at a domain, and one that gives up does not end it.
func TestFlight(t *testing.T) {
	in(t, func(o *Options) { o.Flights = 1 }, func(t *testing.T, r *rig) {
		r.record("1")
		release := make(chan struct{})
		r.host(&policyHost{cert: r.ca.issue(t, nil, "mta-sts.example.com"), serve: func(conn net.Conn, req *http.Request) {
			<-release
			answer(goodPolicy)(conn, req)
		}})
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { expectResult(t, r.lookup(), Enforce, "1", "") })
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if got := r.cache.Lookup(ctx, "example.com"); got.Policy != nil || errors.Is(got.Err, ErrUnknown) || !errors.Is(got.Err, context.DeadlineExceeded) {
			t.Errorf("without patience, and nothing is kept: got %+v", got)
		}
		if got := r.cache.Lookup(context.Background(), "other.example"); !errors.Is(got.Err, errBusy) || !errors.Is(got.Err, ErrUnknown) {
			t.Errorf("too many: got %+v", got)
		}
		close(release)
		all.Wait()
		if n := r.fetches(); n != 1 {
			t.Errorf("fetched %d times", n)
		}
		if s := r.cache.Stats(); s.Lookups != 52 || s.Shared != 50 || s.Fetches != 1 || s.Domains != 1 || s.Inflight != 0 {
			t.Errorf("stats: got %+v", s)
		}

		// One that has a policy goes by it when there is no time to look again.
		time.Sleep(time.Hour)
		r.record("2")
		r.host(&policyHost{serve: func(conn net.Conn, _ *http.Request) {
			for _, err := conn.Read(make([]byte, 1)); err == nil; _, err = conn.Read(make([]byte, 1)) {
			}
		}})
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if got := r.cache.Lookup(ctx, "example.com"); got.Mode() != Enforce || !errors.Is(got.Err, context.DeadlineExceeded) || errors.Is(got.Err, ErrUnknown) {
			t.Errorf("without patience, with a policy: got %+v", got)
		}
		r.cache.Close()
		if got := r.cache.Lookup(context.Background(), "example.com"); got.Mode() != Enforce || got.Err == nil {
			t.Errorf("after Close: got %+v", got)
		}
		if got := r.cache.Lookup(context.Background(), "other.example"); !errors.Is(got.Err, ErrUnknown) {
			t.Errorf("after Close: got %+v", got)
		}
	})
}

// TestStoreFails: a store that fails takes no policy away, and is no reason to think that
// there is none.
func TestStoreFails(t *testing.T) {
	in(t, nil, func(t *testing.T, r *rig) {
		store := r.opt.Store.(*mapStore)
		broken := errors.New("no disk")
		store.broken(broken)
		if got := r.lookup(); got.Policy != nil || !errors.Is(got.Err, ErrUnknown) || !errors.Is(got.Err, broken) {
			t.Errorf("no record, and a store that fails: got %+v", got)
		}
		r.record("1")
		r.policy(Enforce, day)
		expectResult(t, r.lookup(), Enforce, "1", "") // it is what the domain says
		time.Sleep(time.Hour)
		r.record("")
		expectResult(t, r.lookup(), Enforce, "1", FetchError) // from memory
		store.broken(nil)
		time.Sleep(time.Hour)
		r.lookup()
		expectResult(t, r.another().Lookup(context.Background(), "example.com"), Enforce, "1", FetchError)

		// What cannot be read is fetched again.
		store.Put(context.Background(), Stored{Domain: "example.com", Data: []byte("{"), Expires: time.Now().Add(day)})
		r.record("1")
		expectResult(t, r.another().Lookup(context.Background(), "example.com"), Enforce, "1", "")

		// What the store has lost, those have that have fetched it.
		r.lookup()
		check(t, store.Delete(context.Background(), "example.com"))
		time.Sleep(time.Hour)
		r.record("")
		expectResult(t, r.lookup(), Enforce, "1", FetchError)
		expectResult(t, r.another().Lookup(context.Background(), "example.com"), Enforce, "1", FetchError)
	})
}

// TestNothingApplies: what is no domain has no policy, and nobody is asked.
func TestNothingApplies(t *testing.T) {
	in(t, nil, func(t *testing.T, r *rig) {
		for _, s := range []string{"", ".", "[192.0.2.1]", "192.0.2.1", "[IPv6:2001:db8::1]", "2001:db8::1", "a..b", "a b.example",
			"bücher.example", "-a.example", strings.Repeat("a.", 130) + "example"} {
			if got := r.cache.Lookup(context.Background(), s); got.Policy != nil || got.Err != nil {
				t.Errorf("%q: got %+v", s, got)
			}
		}
		if asked := r.dns.Asked(); len(asked) > 0 {
			t.Errorf("asked for %v", asked)
		}
	})
}

// TestShort: a policy that holds for no time is fetched once a minute, not once a message.
func TestShort(t *testing.T) {
	in(t, nil, func(t *testing.T, r *rig) {
		r.record("1")
		r.policy(Enforce, 0)
		for range 20 { // in 200 s
			if got := r.lookup(); got.Mode() != Enforce {
				t.Errorf("got %+v", got)
			}
			time.Sleep(10 * time.Second)
		}
		if n := r.fetches(); n != 4 {
			t.Errorf("fetched %d times, want 4", n)
		}
	})
}

// TestMemory: memory has an end, and what falls out of it is in the store.
func TestMemory(t *testing.T) {
	in(t, func(o *Options) { o.MaxBytes = 20_000 }, func(t *testing.T, r *rig) {
		r.record("1")
		r.policy(Enforce, day)
		r.lookup()
		for i := range 1000 {
			r.cache.Lookup(context.Background(), fmt.Sprintf("%d.example", i))
		}
		if s := r.cache.Stats(); s.Bytes > 20_000 || s.Domains < 20 || s.Domains > 50 {
			t.Errorf("stats: got %+v", s)
		}
		r.record("")
		expectResult(t, r.lookup(), Enforce, "1", FetchError)
	})
}

// TestOwnMemory: without a store, policies are kept in memory within its bound.
func TestOwnMemory(t *testing.T) {
	in(t, func(o *Options) { o.Store, o.MaxBytes = nil, 10_000 }, func(t *testing.T, r *rig) {
		r.record("1")
		r.policy(Enforce, day)
		r.lookup()
		time.Sleep(time.Hour)
		r.record("")
		expectResult(t, r.lookup(), Enforce, "1", FetchError)
	})
	m := newMemory(2000)
	for i := range 100 {
		check(t, m.Put(context.Background(), Stored{Domain: fmt.Sprint(i), Data: make([]byte, 100)}))
	}
	check(t, m.Delete(context.Background(), "99"))
	check(t, m.Delete(context.Background(), "0"))
	n := 0
	check(t, m.Each(context.Background(), time.Now(), func(Stored) bool { n++; return true }))
	_, first, _ := m.Get(context.Background(), "0")
	_, last, _ := m.Get(context.Background(), "98")
	if n != len(m.places) || n != m.recent.Len() || m.used > 2000 || first || !last {
		t.Errorf("got %d in %d octets, the first %v, the last but one %v", n, m.used, first, last)
	}
}

func TestOptions(t *testing.T) {
	_, err := New(Options{Backoff: time.Minute, Flights: -1})
	for _, want := range []string{"nobody to ask", "backoff", "flights"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
