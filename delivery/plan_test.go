package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/internal/testnet"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// policies is a Policies whose answers a test writes.
type policies struct {
	mu      sync.Mutex
	results map[string]mtasts.Result
	renewed map[string]mtasts.Result // what Renew finds, from then on
	asked   []string
}

func (p *policies) Lookup(_ context.Context, domain string) mtasts.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, domain)
	return p.results[domain]
}

func (p *policies) Renew(ctx context.Context, domain string) mtasts.Result {
	p.mu.Lock()
	if r, ok := p.renewed[domain]; ok {
		p.results[domain] = r
	}
	p.mu.Unlock()
	return p.Lookup(ctx, domain)
}

// sts is a policy.
func sts(mode mtasts.Mode, names ...string) mtasts.Result {
	return mtasts.Result{Policy: &mtasts.Policy{ID: "1", Mode: mode, MX: names, MaxAge: time.Hour,
		Text: []string{"version: STSv1", "mode: " + string(mode)}}}
}

const someDigest = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// world is the DNS of the tests. What is below signed.test is signed, and what is below
// plain.test is not.
var world = `
	# one host each, of the same name with mx- before it, unless said
	ok.signed.test          MX 10 mx.signed.test
	mx.signed.test          A 9.0.0.1
	_25._tcp.mx.signed.test TLSA 3 1 1 ` + someDigest + `
	none.signed.test        MX 10 mxnone.signed.test
	mxnone.signed.test      A 9.0.0.2
	unusable.signed.test    MX 10 mxunusable.signed.test
	mxunusable.signed.test  A 9.0.0.3
	_25._tcp.mxunusable.signed.test TLSA 1 1 1 ` + someDigest + `
	mixed.signed.test       MX 10 mxmixed.signed.test
	mxmixed.signed.test     A 9.0.0.4
	_25._tcp.mxmixed.signed.test TLSA 1 1 1 ` + someDigest + `
	_25._tcp.mxmixed.signed.test TLSA 3 1 1 ` + someDigest + `
	bogus.signed.test       MX 10 mxbogus.signed.test
	mxbogus.signed.test     A 9.0.0.5
	_25._tcp.mxbogus.signed.test BOGUS
	silent.signed.test      MX 10 mxsilent.signed.test
	mxsilent.signed.test    A 9.0.0.6
	_25._tcp.mxsilent.signed.test FAIL
	alias.signed.test       MX 10 mxalias.signed.test
	mxalias.signed.test     CNAME mx.signed.test
	half.plain.test         MX 10 mx.signed.test # the MX record is not signed, the host is
	badhalf.plain.test      MX 10 mxbogus.signed.test
	sec2insec.signed.test   MX 10 mx.plain.test
	mx.plain.test           A 9.0.0.7
	_25._tcp.mx.plain.test  TLSA 3 1 1 ` + someDigest + `
	plain.test              MX 10 mx.plain.test
	itself.signed.test      A 9.0.0.8
	_25._tcp.itself.signed.test TLSA 3 1 1 ` + someDigest + `
	cname.signed.test       CNAME ok.signed.test
	several.signed.test     MX 10 mxbogus.signed.test
	several.signed.test     MX 20 mx.signed.test
	several.signed.test     MX 30 mxnone.signed.test
	forged.signed.test      BOGUS
	lame.signed.test        FAIL
	null.signed.test        MX 0 .
	broken.signed.test      MX 10 mxbroken.signed.test
	broken.signed.test      MX 20 mx.signed.test
	mxbroken.signed.test    FAIL
	other.signed.test       MX 10 mxother.signed.test
	mxother.signed.test     A 9.0.0.9
	_2525._tcp.mxother.signed.test TLSA 3 1 1 ` + someDigest + `
`

func newWorld() *testnet.DNS {
	dns := testnet.NewDNS(world)
	dns.Sign("signed.test")
	return dns
}

// planner returns a Planner on the world, as set by alter.
func planner(t testing.TB, alter func(*PlanOptions)) *Planner {
	t.Helper()
	o := PlanOptions{MX: mx.Options{DNS: newWorld()}}
	if alter != nil {
		alter(&o)
	}
	p, err := NewPlanner(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func target(t testing.TB, s string) mx.Target {
	t.Helper()
	to, err := mx.ParseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// summed is a plan in few words: of each host its name and the demand, or the code of the refusal.
func summed(p *Plan, err error) string {
	if err != nil {
		return "none: " + code(err)
	}
	var hosts []string
	for _, h := range p.Hosts {
		word := string(h.Demand)
		if h.Refused != nil {
			word = code(h.Refused)
		}
		name, _, _ := strings.Cut(h.Name, ".")
		hosts = append(hosts, strings.TrimSpace(name+" "+word))
	}
	return strings.Join(hosts, ", ")
}

// code is the reply and the category of an error.
func code(err error) string {
	r := smtp.ReplyOf(err)
	category := "?"
	if e, ok := errors.AsType[*mx.Error](err); ok {
		category = string(e.Category)
	}
	return fmt.Sprintf("%d %s %s", r.Code, r.Enh, category)
}

// TestDemand: what TLS the hosts of each domain must show, by DANE, MTA-STS, both, and what the
// message asks for. RFC 7672, Sections 2 and 3; RFC 8461, Sections 2 and 5; RFC 8689, Section 4.
func TestDemand(t *testing.T) {
	parity.Row(t, "MX-56", "MX-57", "MX-72", "MX-73")
	enforce, testing, none := sts(mtasts.Enforce, "*.signed.test", "*.plain.test"), sts(mtasts.Testing, "*.signed.test", "*.plain.test"), sts(mtasts.None)
	elsewhere, testedElsewhere := sts(mtasts.Enforce, "other.example"), sts(mtasts.Testing, "other.example")
	failed := mtasts.Result{Err: &mtasts.Error{Kind: mtasts.FetchError, Err: errors.New("no answer")}}
	stale := enforce
	stale.Err = failed.Err
	unknown := mtasts.Result{Err: &mtasts.Error{Kind: mtasts.FetchError, Err: mtasts.ErrUnknown}}
	var noSTS mtasts.Result

	off := func(o *PlanOptions) { o.DANE = DANEOff }
	required := func(o *PlanOptions) { o.DANE = DANERequired }
	stsOff := func(o *PlanOptions) { o.STSMode = STSOff }
	stsTesting := func(o *PlanOptions) { o.STSMode = STSTesting }
	both := func(o *PlanOptions) { o.Both = true }
	notValidating := func(o *PlanOptions) { o.Validating = func() bool { return false } }
	requiredNotValidating := func(o *PlanOptions) { required(o); notValidating(o) }
	submission := func(o *PlanOptions) { o.Port = 2525 }

	requireTLS, optional := Need{RequireTLS: true}, Need{TLSOptional: true}
	must, verify, may, never := Need{TLS: TLSRequired}, Need{TLS: TLSVerify}, Need{TLS: TLSOpportunistic}, Need{TLS: TLSOff}
	contradicts := Need{RequireTLS: true, TLSOptional: true, TLS: TLSOff}

	for _, c := range []struct {
		domain string
		sts    mtasts.Result
		alter  func(*PlanOptions)
		need   Need
		want   string
	}{
		// DANE alone.
		{"ok.signed.test", noSTS, nil, Need{}, "mx dane"},
		{"none.signed.test", noSTS, nil, Need{}, "mxnone opportunistic"},
		{"unusable.signed.test", noSTS, nil, Need{}, "mxunusable encrypted"},
		{"mixed.signed.test", noSTS, nil, Need{}, "mxmixed dane"},
		{"bogus.signed.test", noSTS, nil, Need{}, "mxbogus 451 4.7.5 dane"},
		{"silent.signed.test", noSTS, nil, Need{}, "mxsilent 451 4.7.5 dane"},
		{"alias.signed.test", noSTS, nil, Need{}, "mxalias dane"},
		{"cname.signed.test", noSTS, nil, Need{}, "mx dane"},
		{"half.plain.test", noSTS, nil, Need{}, "mx dane"}, // RFC 7672, Section 2.2.1: may be used
		{"badhalf.plain.test", noSTS, nil, Need{}, "mxbogus 451 4.7.5 dane"},
		{"sec2insec.signed.test", noSTS, nil, Need{}, "mx opportunistic"}, // the record is not asked for
		{"plain.test", noSTS, nil, Need{}, "mx opportunistic"},
		{"itself.signed.test", noSTS, nil, Need{}, "itself dane"},
		{"several.signed.test", noSTS, nil, Need{}, "mxbogus 451 4.7.5 dane, mx dane, mxnone opportunistic"}, // in their order
		{"broken.signed.test", noSTS, nil, Need{}, "mxbroken 451 4.4.3 dns, mx dane"},
		{"other.signed.test", noSTS, nil, Need{}, "mxother opportunistic"},
		{"other.signed.test", noSTS, submission, Need{}, "mxother dane"}, // the record of the port
		{"[9.0.0.1]", noSTS, nil, Need{}, "opportunistic"},
		{"ok.signed.test", noSTS, off, Need{}, "mx opportunistic"},
		{"bogus.signed.test", noSTS, off, Need{}, "mxbogus opportunistic"},
		// Whoever spoils the answer that Validating goes by must not turn DANE off for hosts
		// whose answers are authenticated.
		{"ok.signed.test", noSTS, notValidating, Need{}, "mx dane"},

		// No route.
		{"forged.signed.test", noSTS, nil, Need{}, "none: 451 4.4.3 dns"},
		{"lame.signed.test", enforce, nil, Need{}, "none: 451 4.4.3 dns"},
		{"null.signed.test", noSTS, nil, Need{}, "none: 556 5.1.10 dns"},
		{"nowhere.signed.test", noSTS, nil, Need{}, "none: 550 5.1.2 dns"},

		// DANE that is required.
		{"ok.signed.test", noSTS, required, Need{}, "mx dane"},
		{"none.signed.test", noSTS, required, Need{}, "mxnone 451 4.7.5 dane"},
		{"none.signed.test", enforce, required, Need{}, "mxnone 451 4.7.5 dane"},
		{"unusable.signed.test", noSTS, required, Need{}, "mxunusable 451 4.7.5 dane"},
		{"half.plain.test", noSTS, required, Need{}, "mx 451 4.7.5 dane"},
		{"bogus.signed.test", noSTS, required, Need{}, "mxbogus 451 4.7.5 dane"},
		{"[9.0.0.1]", noSTS, required, Need{}, "451 4.7.5 dane"},
		{"ok.signed.test", noSTS, requiredNotValidating, Need{}, "mx 451 4.7.5 dane"}, // waits, and is not returned

		// MTA-STS alone.
		{"plain.test", enforce, nil, Need{}, "mx pkix"},
		{"plain.test", stale, nil, Need{}, "mx pkix"}, // what is kept holds
		{"plain.test", testing, nil, Need{}, "mx opportunistic"},
		{"plain.test", none, nil, Need{}, "mx opportunistic"},
		{"plain.test", elsewhere, nil, Need{}, "mx 451 4.7.5 policy"},
		{"plain.test", testedElsewhere, nil, Need{}, "mx opportunistic"},
		{"plain.test", failed, nil, Need{}, "mx opportunistic"}, // RFC 8461, Section 3.3
		{"plain.test", unknown, nil, Need{}, "mx 451 4.3.0 policy"},
		{"plain.test", enforce, stsOff, Need{}, "mx opportunistic"},
		{"plain.test", enforce, stsTesting, Need{}, "mx opportunistic"},
		{"plain.test", elsewhere, stsTesting, Need{}, "mx opportunistic"},
		{"none.signed.test", enforce, nil, Need{}, "mxnone pkix"},
		{"itself.signed.test", enforce, off, Need{}, "itself pkix"},

		// Both.
		{"ok.signed.test", enforce, nil, Need{}, "mx dane"},
		{"ok.signed.test", enforce, both, Need{}, "mx dane and pkix"},
		{"ok.signed.test", testing, both, Need{}, "mx dane"},
		{"ok.signed.test", testing, nil, Need{}, "mx dane"}, // testing is about the policy alone
		{"ok.signed.test", elsewhere, nil, Need{}, "mx 451 4.7.5 policy"},
		{"bogus.signed.test", enforce, nil, Need{}, "mxbogus 451 4.7.5 dane"}, // RFC 8461, Section 2
		{"unusable.signed.test", enforce, nil, Need{}, "mxunusable pkix"},
		{"unusable.signed.test", testing, nil, Need{}, "mxunusable encrypted"},
		{"several.signed.test", enforce, nil, Need{}, "mxbogus 451 4.7.5 dane, mx dane, mxnone pkix"},

		// REQUIRETLS.
		{"ok.signed.test", noSTS, nil, requireTLS, "mx dane"},
		{"none.signed.test", noSTS, nil, requireTLS, "mxnone pkix"}, // the MX record is signed
		{"unusable.signed.test", noSTS, nil, requireTLS, "mxunusable pkix"},
		{"plain.test", noSTS, nil, requireTLS, "mx 550 5.7.30 policy"},
		{"plain.test", noSTS, notValidating, requireTLS, "mx 451 4.7.30 policy"}, // which may be why
		{"plain.test", testing, nil, requireTLS, "mx 550 5.7.30 policy"},
		{"plain.test", enforce, nil, requireTLS, "mx pkix"},
		{"plain.test", failed, nil, requireTLS, "mx 451 4.7.30 policy"}, // may have a policy
		{"half.plain.test", noSTS, nil, requireTLS, "mx 550 5.7.30 policy"},
		{"half.plain.test", enforce, nil, requireTLS, "mx dane"},
		{"bogus.signed.test", noSTS, nil, requireTLS, "mxbogus 451 4.7.5 dane"},
		{"[9.0.0.1]", noSTS, nil, requireTLS, "550 5.7.30 policy"},
		{"none.signed.test", noSTS, nil, contradicts, "mxnone pkix"}, // RFC 8689, Section 4.1

		// TLS-Required: No, and what we ask for ourselves.
		{"ok.signed.test", enforce, nil, optional, "mx opportunistic"},
		{"ok.signed.test", elsewhere, nil, optional, "mx opportunistic"},
		{"bogus.signed.test", noSTS, nil, optional, "mxbogus opportunistic"},
		{"none.signed.test", noSTS, required, optional, "mxnone opportunistic"},
		{"ok.signed.test", enforce, nil, may, "mx opportunistic"},
		{"ok.signed.test", enforce, nil, never, "mx clear"},
		{"ok.signed.test", enforce, nil, Need{TLSOptional: true, TLS: TLSOff}, "mx clear"},
		{"ok.signed.test", enforce, nil, Need{TLSOptional: true, TLS: TLSVerify}, "mx dane"}, // a sender does not waive what we ask for
		{"plain.test", noSTS, nil, Need{TLSOptional: true, TLS: TLSVerify}, "mx pkix"},
		{"plain.test", noSTS, nil, Need{TLSOptional: true, TLS: TLSRequired}, "mx encrypted"},
		{"plain.test", noSTS, nil, must, "mx encrypted"},
		{"ok.signed.test", noSTS, nil, must, "mx dane"},
		{"plain.test", enforce, nil, must, "mx pkix"},
		{"plain.test", noSTS, nil, verify, "mx pkix"},
		{"unusable.signed.test", noSTS, nil, verify, "mxunusable pkix"},
		{"ok.signed.test", noSTS, nil, verify, "mx dane"},
	} {
		p := planner(t, func(o *PlanOptions) {
			o.STS = &policies{results: map[string]mtasts.Result{c.domain: c.sts}}
			if c.alter != nil {
				c.alter(o)
			}
		})
		if got := summed(p.Plan(t.Context(), target(t, c.domain), c.need)); got != c.want {
			t.Errorf("%s, policy %s %v, %+v: got %q, want %q", c.domain, c.sts.Mode(), c.sts.Err, c.need, got, c.want)
		}
	}
}

// TestPlannedHost: the names and marks of a host, beside the demand.
func TestPlannedHost(t *testing.T) {
	parity.Row(t, "MX-53", "MX-55")
	enforce := sts(mtasts.Enforce, "*.signed.test", "*.plain.test")
	for _, c := range []struct {
		domain, sni, names string
		sts                mtasts.Result
		secure             bool
	}{
		{domain: "ok.signed.test", sni: "mx.signed.test", names: "mx.signed.test ok.signed.test", secure: true},
		// Where CNAMEs lead to: of the domain, and of the host.
		{domain: "cname.signed.test", sni: "mx.signed.test", names: "mx.signed.test cname.signed.test ok.signed.test", secure: true},
		{domain: "alias.signed.test", sni: "mx.signed.test", names: "mx.signed.test alias.signed.test", secure: true},
		// MX records that are not authenticated say nothing about the name of the domain.
		{domain: "half.plain.test", sni: "mx.signed.test", names: "mx.signed.test"},
		{domain: "half.plain.test", sni: "mx.signed.test", names: "mx.signed.test", sts: enforce, secure: true},
		{domain: "itself.signed.test", sni: "itself.signed.test", names: "itself.signed.test", secure: true},
		{domain: "none.signed.test", sni: "mxnone.signed.test", secure: true},
		{domain: "unusable.signed.test", sni: "mxunusable.signed.test", names: "mxunusable.signed.test unusable.signed.test", secure: true},
		{domain: "plain.test", sni: "mx.plain.test"},
		{domain: "plain.test", sni: "mx.plain.test", sts: enforce, secure: true},
		{domain: "[9.0.0.1]"},
	} {
		p := planner(t, func(o *PlanOptions) { o.STS = &policies{results: map[string]mtasts.Result{c.domain: c.sts}} })
		plan, err := p.Plan(t.Context(), target(t, c.domain), Need{})
		if err != nil {
			t.Errorf("%s: %v", c.domain, err)
			continue
		}
		h := plan.Hosts[0]
		if got := strings.Join(h.Names, " "); h.SNI != c.sni || got != c.names || h.Secure != c.secure {
			t.Errorf("%s: got SNI %q, names %q, secure %v, want %q, %q, %v", c.domain, h.SNI, got, h.Secure, c.sni, c.names, c.secure)
		}
	}
}

// TestReports: what is reported under which policy. RFC 8460, Section 4.
func TestReports(t *testing.T) {
	enforce, elsewhere := sts(mtasts.Enforce, "*.signed.test", "*.plain.test"), sts(mtasts.Enforce, "other.example")
	failed := mtasts.Result{Err: &mtasts.Error{Kind: mtasts.WebPKI, Err: errors.New("expired")}}
	noRecord := mtasts.Result{Err: &mtasts.Error{Kind: mtasts.FetchError, Err: &resolver.Error{Type: resolver.TypeTXT, Kind: resolver.ErrTemporary}}}
	keptOnly := enforce
	keptOnly.Err = noRecord.Err
	for _, c := range []struct {
		domain, want string
		sts          mtasts.Result
		need         Need
	}{
		{domain: "plain.test", want: "no-policy-found"},
		{domain: "ok.signed.test", want: "tlsa mx.signed.test"},
		{domain: "ok.signed.test", sts: enforce, want: "tlsa mx.signed.test"},
		{domain: "unusable.signed.test", sts: enforce, want: "tlsa mxunusable.signed.test, sts unusable.signed.test"},
		{domain: "plain.test", sts: enforce, want: "sts plain.test"},
		{domain: "plain.test", sts: elsewhere, want: "sts plain.test; refused sts plain.test validation-failure"},
		{domain: "bogus.signed.test", want: "tlsa mxbogus.signed.test; refused tlsa mxbogus.signed.test dnssec-invalid"},
		{domain: "plain.test", sts: failed, want: "no-policy-found; domain sts plain.test sts-webpki-invalid"},
		{domain: "plain.test", sts: noRecord, want: "no-policy-found"}, // it may have no policy at all
		{domain: "plain.test", sts: keptOnly, want: "sts plain.test; domain sts plain.test sts-policy-fetch-error"},
		{domain: "[9.0.0.1]", want: "no-policy-found"},
		{domain: "ok.signed.test", sts: enforce, need: Need{TLSOptional: true}, want: ""},
	} {
		p := planner(t, func(o *PlanOptions) { o.STS = &policies{results: map[string]mtasts.Result{c.domain: c.sts}} })
		plan, err := p.Plan(t.Context(), target(t, c.domain), c.need)
		if err != nil {
			t.Errorf("%s: %v", c.domain, err)
			continue
		}
		h := plan.Hosts[0]
		var words []string
		for _, r := range h.Reports {
			words = append(words, strings.TrimSpace(string(r.Type)+" "+r.Domain))
		}
		got := strings.Join(words, ", ")
		for what, events := range map[string][]tlsrpt.Event{"refused": h.Events, "domain": plan.Events} {
			for _, e := range events {
				got += fmt.Sprintf("; %s %s %s %s", what, e.Policy.Type, e.Policy.Domain, e.Failure.Type)
				if e.Domain != c.domain {
					t.Errorf("%s: reported to %s", c.domain, e.Domain)
				}
			}
		}
		if got != c.want {
			t.Errorf("%s, policy %s: got %q, want %q", c.domain, c.sts.Mode(), got, c.want)
		}
	}
}

// TestGivenHosts: a smart host answers for itself. RFC 8461, Section 2.
func TestGivenHosts(t *testing.T) {
	parity.Row(t, "MX-25")
	found := &policies{results: map[string]mtasts.Result{
		"plain.test":         sts(mtasts.Enforce, "mx.plain.test"), // of the recipient's domain: it names no smart host
		"mx.signed.test":     sts(mtasts.Enforce, "mx.signed.test"),
		"mxnone.signed.test": sts(mtasts.Enforce, "mxnone.signed.test"),
	}}
	p := planner(t, func(o *PlanOptions) { o.STS = found })
	for _, c := range []struct {
		given mx.Given
		want  string
	}{
		{mx.Given{Host: "mx.signed.test"}, "mx dane"},
		{mx.Given{Host: "mxnone.signed.test"}, "mxnone pkix"},
		{mx.Given{Host: "mx.plain.test"}, "mx opportunistic"},
		{mx.Given{Host: "[9.0.0.1]"}, "opportunistic"},
		{mx.Given{Host: "mx.plain.test", TLSA: []resolver.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: strings.Repeat("x", 32)}}}, "mx dane"},
		{mx.Given{Host: "mx.plain.test", TLSA: []resolver.TLSA{{Usage: 9}}}, "mx encrypted"},
	} {
		if got := summed(p.Plan(t.Context(), target(t, "plain.test"), Need{Given: []mx.Given{c.given}})); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.given, got, c.want)
		}
	}
	if slices.Contains(found.asked, "plain.test") {
		t.Errorf("the policy of the recipient's domain was asked for")
	}
	// Nor is the recipient's domain a name that the smart host may have.
	plan, err := p.Plan(t.Context(), target(t, "ok.signed.test"), Need{Given: []mx.Given{{Host: "mx.signed.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "names", fmt.Sprint(plan.Hosts[0].Names), "[mx.signed.test]")

	// Records that were given need no resolver that validates.
	given := Need{Given: []mx.Given{{Host: "mx.plain.test", TLSA: []resolver.TLSA{{Usage: 3, Selector: 1, MatchingType: 1, Data: strings.Repeat("x", 32)}}}}}
	for _, mode := range []DANEMode{DANEOpportunistic, DANERequired} {
		p := planner(t, func(o *PlanOptions) { o.DANE, o.Validating = mode, func() bool { return false } })
		check(t, "without a resolver that validates", summed(p.Plan(t.Context(), target(t, "plain.test"), given)), "mx dane")
	}
}

// TestSlowHosts: hosts whose addresses nobody tells leave time to ask for the TLSA records of the
// others.
func TestSlowHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := newWorld()
		dns.Add("slow.signed.test MX 10 mx.signed.test")
		for i := range 6 {
			dns.Add(fmt.Sprintf("slow.signed.test MX 20 slow%d.signed.test\nslow%d.signed.test HANG", i, i))
		}
		p := planner(t, func(o *PlanOptions) { o.MX.DNS = dns })
		begun := time.Now()
		got := summed(p.Plan(t.Context(), target(t, "slow.signed.test"), Need{}))
		if !strings.HasPrefix(got, "mx dane, slow") {
			t.Errorf("got %q", got)
		}
		check(t, "after", time.Since(begun), 20*time.Second)
	})
}

// TestPlanKept: a plan is used while all in it holds, and no longer.
func TestPlanKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns, found, validating := newWorld(), &policies{results: map[string]mtasts.Result{}}, true
		p := planner(t, func(o *PlanOptions) {
			o.MX.DNS, o.STS, o.Keep = dns, found, time.Hour
			o.Validating = func() bool { return validating }
		})
		plan := func(domain string) *Plan {
			t.Helper()
			plan, err := p.Plan(t.Context(), target(t, domain), Need{})
			if err != nil {
				t.Fatal(err)
			}
			return plan
		}
		first := plan("ok.signed.test")
		if got := first.Expires.Sub(first.Made); got != testnet.TTL {
			t.Errorf("holds for %v, want %v, as long as the answers", got, testnet.TTL)
		}
		time.Sleep(testnet.TTL - time.Second)
		check(t, "used again", plan("ok.signed.test") == first, true)
		time.Sleep(2 * time.Second)
		second := plan("ok.signed.test")
		check(t, "made anew when it has run out", second != first, true)

		validating = false
		third := plan("ok.signed.test")
		check(t, "made anew when the resolver no longer validates", third != second, true)
		validating = true
		check(t, "and when it does again", plan("ok.signed.test") != third, true)

		// What could not be had is asked for again soon.
		bad := plan("bogus.signed.test")
		check(t, "with an error", bad.Expires.Sub(bad.Made), 30*time.Second)
		found.results["none.signed.test"] = mtasts.Result{Err: &mtasts.Error{Kind: mtasts.FetchError, Err: errors.New("no answer")}}
		without := plan("none.signed.test")
		check(t, "without the policy", without.Expires.Sub(without.Made), 30*time.Second)
		time.Sleep(31 * time.Second)
		found.results["none.signed.test"] = sts(mtasts.Enforce, "*.signed.test")
		check(t, "with it", summed(plan("none.signed.test"), nil), "mxnone pkix")

		// Before anything is given up, the policy is asked for anew.
		found.renewed = map[string]mtasts.Result{"none.signed.test": sts(mtasts.None)}
		renewed, err := p.Renew(t.Context(), target(t, "none.signed.test"), Need{})
		check(t, "renewed", summed(renewed, err), "mxnone opportunistic")
		check(t, "and kept", plan("none.signed.test") == renewed, true)
	})
}

// TestPlanShared: whoever asks while a plan is made waits for it; one that gives up does not
// end it; and no plan takes longer than it may.
func TestPlanShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := newWorld()
		dns.Add("slow.signed.test HANG")
		p := planner(t, func(o *PlanOptions) { o.MX.DNS = dns })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		var waiting sync.WaitGroup
		waiting.Go(func() {
			_, err := p.Plan(ctx, target(t, "slow.signed.test"), Need{})
			check(t, "gave up", code(err), "451 4.4.3 dns")
			check(t, "after", time.Since(begun), time.Second)
		})
		for range 9 {
			waiting.Go(func() {
				_, err := p.Plan(t.Context(), target(t, "slow.signed.test"), Need{})
				check(t, "failed", code(err), "451 4.4.3 dns")
				check(t, "in time", time.Since(begun) <= 30*time.Second, true)
			})
		}
		waiting.Wait()
		check(t, "questions", len(dns.Asked()), 1)
		check(t, "failures", p.Stats(), PlannerStats{Failed: 1})

		// There is a limit to how many are made at a time; what is kept is still there.
		if _, err := p.Plan(t.Context(), target(t, "ok.signed.test"), Need{}); err != nil {
			t.Error(err)
		}
		p.opt.Inflight = 1
		waiting.Go(func() { p.Plan(t.Context(), target(t, "slow.signed.test"), Need{}) })
		synctest.Wait()
		_, err := p.Plan(t.Context(), target(t, "none.signed.test"), Need{})
		check(t, "too many", code(err), "451 4.4.3 dns")
		_, err = p.Plan(t.Context(), target(t, "ok.signed.test"), Need{})
		check(t, "kept", err, nil)
		waiting.Wait()
		p.Close()
		_, err = p.Plan(t.Context(), target(t, "ok.signed.test"), Need{})
		check(t, "closed", code(err), "451 4.4.3 dns")
	})
}

// silent are policies whose host never answers.
type silent struct{}

func (silent) Lookup(ctx context.Context, _ string) mtasts.Result {
	<-ctx.Done()
	return mtasts.Result{Err: &mtasts.Error{Kind: mtasts.FetchError, Err: context.Cause(ctx)}}
}

func (s silent) Renew(ctx context.Context, domain string) mtasts.Result { return s.Lookup(ctx, domain) }

// TestPlanTime: a part that takes too long leaves the others their time.
func TestPlanTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := newWorld()
		dns.Add(`
			tarpit.signed.test MX 10 mxtarpit.signed.test
			tarpit.signed.test MX 20 mx.signed.test
			mxtarpit.signed.test A 9.0.0.10
			_25._tcp.mxtarpit.signed.test HANG
		`)
		p := planner(t, func(o *PlanOptions) { o.MX.DNS, o.STS = dns, silent{} })
		for _, c := range []struct {
			domain, want string
			took         time.Duration
		}{
			{"ok.signed.test", "mx dane", 20 * time.Second},
			{"none.signed.test", "mxnone opportunistic", 20 * time.Second}, // RFC 8461, Section 3.3
			{"tarpit.signed.test", "mxtarpit 451 4.7.5 dane, mx dane", 30 * time.Second},
		} {
			begun := time.Now()
			check(t, c.domain, summed(p.Plan(t.Context(), target(t, c.domain), Need{})), c.want)
			check(t, c.domain+": took", time.Since(begun), c.took)
		}
	})
}

// TestPlanBounded: the number of plans that are kept has a limit.
func TestPlanBounded(t *testing.T) {
	p := planner(t, func(o *PlanOptions) { o.CacheSize = 3 })
	for _, name := range []string{"ok", "none", "unusable", "mixed", "bogus", "silent", "alias", "itself"} {
		if _, err := p.Plan(t.Context(), target(t, name+".signed.test"), Need{}); err != nil {
			t.Error(err)
		}
	}
	check(t, "kept", p.Stats(), PlannerStats{Made: 8, Kept: 3})
	none := planner(t, func(o *PlanOptions) { o.CacheSize = -1 })
	for range 2 {
		if _, err := none.Plan(t.Context(), target(t, "ok.signed.test"), Need{}); err != nil {
			t.Error(err)
		}
	}
	check(t, "kept", none.Stats(), PlannerStats{Made: 2})
}

// TestPlannerHammer: many at once, with a cache that is too small for them.
func TestPlannerHammer(t *testing.T) {
	var validating atomic.Bool
	p := planner(t, func(o *PlanOptions) {
		o.CacheSize, o.Validating = 2, validating.Load
		o.STS = &policies{results: map[string]mtasts.Result{"ok.signed.test": sts(mtasts.Enforce, "*.signed.test")}}
	})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 100 {
				to := target(t, []string{"ok.signed.test", "none.signed.test", "several.signed.test", "[9.0.0.1]"}[(i+n)%4])
				plan, err := p.Plan(t.Context(), to, Need{TLSOptional: n%7 == 0})
				if err != nil || plan.Target != to || len(plan.Usable()) == 0 {
					t.Errorf("%s: %v %v", to, plan, err)
				}
				switch {
				case n%10 == 0:
					p.Renew(t.Context(), to, Need{})
				case n%11 == 0:
					p.Forget(to, Need{})
				case n%13 == 0:
					validating.Store(n%2 == 0)
				}
			}
		})
	}
	all.Wait()
	if kept := p.Stats().Kept; kept > 2 {
		t.Errorf("%d plans are kept", kept)
	}
}

// TestPlanSite: a site is the same for all domains whose mail goes to the same hosts, in
// whatever order, and for no others.
func TestPlanSite(t *testing.T) {
	dns := newWorld()
	dns.Add(`
		a.test MX 20 mx.plain.test
		a.test MX 10 mx.signed.test
		b.test MX 5 MX.Plain.test
		b.test MX 1 mx.signed.test
		b.test MX 9 mx.signed.test
		c.test MX 5 mx.plain.test
		many.test MX 10 mx.plain.test
		more.test MX 10 mx.plain.test
	`)
	for i := range 20 {
		dns.Add(fmt.Sprintf("many.test MX 20 a-host-of-many-%d.plain.test\nmore.test MX 30 a-host-of-many-%[1]d.plain.test", i))
	}
	dns.Add("more.test MX 15 one-more.plain.test")
	p := planner(t, func(o *PlanOptions) { o.MX.DNS = dns })
	sites := make(map[string]string)
	for _, domain := range []string{"a.test", "b.test", "c.test", "many.test", "more.test", "[9.0.0.1]", "[9.0.0.2]", "plain.test"} {
		plan, err := p.Plan(t.Context(), target(t, domain), Need{})
		if err != nil {
			t.Fatal(err)
		}
		if sites[domain] = plan.Site; len(plan.Site) > 300 || plan.Site == "" {
			t.Errorf("%s: the key is %q", domain, plan.Site)
		}
	}
	check(t, "the same hosts", sites["a.test"], sites["b.test"])
	check(t, "the same host", sites["c.test"], sites["plain.test"])
	check(t, "readable", sites["a.test"], "mx.plain.test,mx.signed.test")
	for _, pair := range [][2]string{{"a.test", "c.test"}, {"many.test", "more.test"}, {"[9.0.0.1]", "[9.0.0.2]"}} {
		if sites[pair[0]] == sites[pair[1]] {
			t.Errorf("%s and %s have one key: %s", pair[0], pair[1], sites[pair[0]])
		}
	}
}

// TestPlanErr: which refusal stands for all.
func TestPlanErr(t *testing.T) {
	final := policyError(mx.Policy, 550, smtp.Enhanced{5, 7, 30}, "a", "never", nil)
	later := policyError(mx.DANE, 451, smtp.Enhanced{4, 7, 5}, "b", "later", nil)
	for _, c := range []struct {
		refused []error
		want    error
	}{
		{nil, nil},
		{[]error{final}, final},
		{[]error{final, later}, later}, // one that may be used later keeps the message
		{[]error{final, nil}, nil},
	} {
		var p Plan
		for _, err := range c.refused {
			p.Hosts = append(p.Hosts, PlannedHost{Refused: err})
		}
		if got := p.Err(); got != c.want {
			t.Errorf("%v: got %v, want %v", c.refused, got, c.want)
		}
	}
}
