package mtasts

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
)

// running runs Run of a cache until the test ends.
func running(t *testing.T, c *Cache) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// TestRefresh: a policy is looked at once a day though no mail asks, so that it does not run
// out; by one node of those that share it; and not for ever.
func TestRefresh(t *testing.T) {
	in(t, nil, func(t *testing.T, r *rig) {
		leader := r.opt
		leader.Lead = func(context.Context) (bool, error) { return true, nil }
		follower := r.opt
		follower.Lead = func(context.Context) (bool, error) { return false, nil }
		for _, o := range []Options{leader, follower} {
			r.opt = o
			running(t, r.another())
		}
		r.record("1")
		r.policy(Enforce, 7*day)
		r.lookup()
		first := r.lookup().Policy.Expires
		r.fetches()
		time.Sleep(10*day + time.Hour)
		if n := r.fetches(); n < 10 || n > 14 {
			t.Errorf("fetched %d times in ten days", n)
		}
		got := r.another().Lookup(context.Background(), "example.com")
		expectResult(t, got, Enforce, "1", "")
		if !got.Policy.Expires.After(first.Add(9 * day)) {
			t.Errorf("expires at %v, first at %v", got.Policy.Expires, first)
		}

		time.Sleep(31 * day) // nobody has written for a month
		r.fetches()
		time.Sleep(10 * day)
		if n := r.fetches(); n > 0 {
			t.Errorf("nobody asks, and it was fetched %d times", n)
		}
		if n := r.opt.Store.(*mapStore).size(); n > 0 {
			t.Errorf("what ran out is still kept")
		}
	})
}

// TestRefreshFails: a domain that cannot be reached keeps its policy for as long as it said.
// The operator is told, but not of one that asks for nothing.
func TestRefreshFails(t *testing.T) {
	parity.Row(t, "MX-31")
	for _, mode := range []Mode{Enforce, None} {
		in(t, nil, func(t *testing.T, r *rig) {
			running(t, r.cache)
			r.record("1")
			r.policy(mode, 7*day)
			r.lookup()
			r.fail()
			r.fetches()
			time.Sleep(3 * day)
			if n := r.fetches(); n < 40 || n > 80 {
				t.Errorf("tried %d times in three days, want once an hour", n)
			}
			if n := strings.Count(r.log.take(), "cannot be looked at again"); mode == Enforce && (n < 1 || n > 3) || mode == None && n > 0 {
				t.Errorf("%s: told %d times in three days", mode, n)
			}
			r.record("")
			time.Sleep(3 * day)
			expectResult(t, r.lookup(), mode, "1", FetchError)
			time.Sleep(2 * day)
			expectResult(t, r.lookup(), "", "", "")
			synctest.Wait()
		})
	}
}

// TestNewPolicyComes: a policy that is replaced is found by Run, without mail.
func TestNewPolicyComes(t *testing.T) {
	in(t, func(o *Options) { o.Lead = sometimes() }, func(t *testing.T, r *rig) {
		running(t, r.cache)
		r.record("1")
		r.policy(Enforce, 7*day)
		r.lookup()
		r.record("2")
		r.policy(Testing, 7*day)
		time.Sleep(day + time.Hour)
		r.dns.Set("_mta-sts.example.com FAIL")
		expectResult(t, r.another().Lookup(context.Background(), "example.com"), Testing, "2", FetchError)
		if !strings.Contains(r.log.take(), "not now") {
			t.Error("nobody was told that it is not known who leads")
		}
		if s := r.cache.Stats(); s.Refreshed == 0 {
			t.Errorf("stats: got %+v", s)
		}
	})
}

// sometimes is a Lead that fails now and then.
func sometimes() func(context.Context) (bool, error) {
	n := 0
	return func(context.Context) (bool, error) {
		if n++; n%3 == 0 {
			return false, errors.New("not now")
		}
		return true, nil
	}
}
