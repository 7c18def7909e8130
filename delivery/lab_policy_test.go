package delivery_test

// lab_policy_test.go: what becomes of an MTA-STS policy that is kept, when the domain's records
// and its policy host change or fail (RFC 8461, Sections 3.3 and 5.1). The policy names another
// host than the domain has, so that mail waits for as long as it holds.

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/miekg/dns"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
	"github.com/penstock/penstock/store/embedded"
)

// policyNode returns the planner of a node that remembers no answers of the DNS and no plans: what
// it knows is in its cache of policies, and in the store.
func (s *site) policyNode(t *testing.T, st *embedded.Store, now func() time.Time) *delivery.Planner {
	t.Helper()
	names := s.resolver(t, resolver.Options{CacheSize: -1})
	cache, err := mtasts.New(mtasts.Options{
		DNS: names, Store: delivery.PolicyStore(st.Policies()), RootCAs: s.Authority.Pool(), Dial: s.Dial, Now: now,
		Check: labGuard(t).Check,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cache.Close)
	return s.planner(t, delivery.PlanOptions{MX: mx.Options{DNS: names}, STS: cache, CacheSize: -1, Now: now})
}

// resolver returns one that asks unbound.
func (s *site) resolver(t *testing.T, o resolver.Options) *resolver.Resolver {
	t.Helper()
	o.Servers = []resolver.Server{{Address: s.Resolver}}
	r, err := resolver.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// planner returns one for which the addresses of the lab are good.
func (s *site) planner(t *testing.T, o delivery.PlanOptions) *delivery.Planner {
	t.Helper()
	o.MX.Guard = labGuard(t)
	p, err := delivery.NewPlanner(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// keptWaits tells whether the policy keeps mail from going.
func keptWaits(t *testing.T, p *delivery.Planner) bool {
	t.Helper()
	target, err := mx.ParseTarget("kept.plain.test")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := p.Plan(t.Context(), target, delivery.Need{})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Err(); err != nil && !mx.Temporary(err) {
		t.Errorf("got a refusal for good: %v", err)
	}
	return plan.Err() != nil
}

// TestLabPolicy goes through the states, hours apart.
func TestLabPolicy(t *testing.T) {
	t.Parallel()
	if !lab.Enter(t) {
		return
	}
	s := newSites(t)
	good := lab.PolicyOptions{Body: policyText("enforce", "other.test")}
	s.Host("mx.kept.plain.test", lab.HostOptions{})
	policy := s.Policy("kept.plain.test", good)
	s.plain.Add("kept MX 10 mx.kept", `_mta-sts.kept 0 TXT "v=STSv1; id=1"`)
	s.Start()

	var passed atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }
	st, err := embedded.Open("store", embedded.Options{FS: vfs.NewMem(), Memtable: 1 << 20, Cache: 1 << 20, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	node := s.policyNode(t, st, now)
	text := func(records ...string) {
		s.plain.Remove("_mta-sts.kept", dns.TypeTXT)
		s.plain.Add(records...)
		s.Update(t, s.plain)
	}
	gone := lab.PolicyOptions{Handler: http.NotFoundHandler()}

	for _, step := range []struct {
		name     string
		change   func()
		after    time.Duration
		waits    bool
		requests int // of the policy, since the beginning
	}{
		{"the policy is fetched", func() {}, 0, true, 1},
		{"the same id: it is not fetched again", func() { policy.Change(gone) }, 2 * time.Hour, true, 1},
		{"another id, and the host fails", func() { text(`_mta-sts.kept 0 TXT "v=STSv1; id=2"`) }, 2 * time.Hour, true, 2},
		{"the host is left alone for some minutes", func() {}, time.Minute, true, 2},
		{"a policy of mode none", func() { policy.Change(lab.PolicyOptions{Body: policyText("none")}) }, 2 * time.Hour, false, 3},
		{"enforce again", func() { policy.Change(good); text(`_mta-sts.kept 0 TXT "v=STSv1; id=3"`) }, 2 * time.Hour, true, 4},
		{"two records are none", func() {
			text(`_mta-sts.kept 0 TXT "v=STSv1; id=4"`, `_mta-sts.kept 0 TXT "v=STSv1; id=5"`)
		}, 2 * time.Hour, true, 4},
		{"another node has it from the store", func() { node = s.policyNode(t, st, now) }, 0, true, 4},
		{"the record is gone", func() { text() }, 2 * time.Hour, true, 4},
		{"the policy has run out", func() {}, 24 * time.Hour, false, 4},
	} {
		step.change()
		passed.Add(int64(step.after))
		if got, n := keptWaits(t, node), policy.Requests(); got != step.waits || n != step.requests {
			t.Fatalf("%s: got waits %v after %d requests, want %v after %d", step.name, got, n, step.waits, step.requests)
		}
	}
}

// TestLabSilence plans for a domain whose name servers do not answer. Unbound would keep us
// waiting for much longer than we do.
func TestLabSilence(t *testing.T) {
	t.Parallel()
	if !lab.Enter(t) {
		return
	}
	s := newSites(t)
	s.Zone("silent.test", lab.Silent)
	s.Host("mx.plain.test", lab.HostOptions{})
	s.plain.Add("@ MX 10 mx", "@ MX 20 mx.silent.test.")
	s.Start()
	names := s.resolver(t, resolver.Options{Timeout: 3 * time.Second, Tries: 1})
	p := s.planner(t, delivery.PlanOptions{MX: mx.Options{DNS: names}})
	plan := func(domain string) error {
		target, err := mx.ParseTarget(domain)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := p.Plan(t.Context(), target, delivery.Need{})
		if err != nil {
			return err
		}
		return plan.Err()
	}
	began := time.Now()
	err := plan("silent.test")
	if e, ok := errors.AsType[*mx.Error](err); !ok || e.Category != mx.DNS || e.Reply.Enh != (smtp.Enhanced{4, 4, 3}) || !e.Timeout() {
		t.Errorf("got %v, want 4.4.3 after a time", err)
	}
	if err := plan("plain.test"); err != nil {
		t.Errorf("one of two hosts is not known: got %v, want the other", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
}
