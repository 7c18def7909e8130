package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
)

// plan.go: which hosts get the mail of a domain, in which order, and what TLS each of them must
// show before it gets any. What is decided here from a set of facts is in demand.go, and how
// plans are kept in planner.go.
//
// A plan is made of three answers: the hosts (package mx), the TLSA records of each (package
// dane), and the policy of the domain (package mtasts). Each of the latter two may say that a
// host must not be used now, and that is not the same as that it has nothing to say.

// Demand is what TLS a host must show before it gets mail. The order of the constants is from
// the weakest to the strictest, but for the last three, which are of different kinds.
type Demand string

// The demands.
const (
	// DemandClear: no TLS is tried. Somebody has asked for that.
	DemandClear Demand = "clear"
	// DemandOpportunistic: TLS if the host offers it, with any certificate, or else clear text
	// (RFC 7435).
	DemandOpportunistic Demand = "opportunistic"
	// DemandEncrypted: TLS, with any certificate. That is for a host with TLSA records of
	// which none is usable (RFC 7672, Section 2.2).
	DemandEncrypted Demand = "encrypted"
	// DemandPKIX: TLS, with a certificate of an authority we trust that has the name of the
	// host as a DNS-ID (RFC 8461, Section 4.2).
	DemandPKIX Demand = "pkix"
	// DemandDANE: TLS, with a certificate that matches a TLSA record of the host.
	DemandDANE Demand = "dane"
	// DemandBoth: what DemandDANE and DemandPKIX ask for.
	DemandBoth Demand = "dane and pkix"
)

// Encrypted tells whether the demand keeps mail from going in clear text.
func (d Demand) Encrypted() bool { return d == DemandEncrypted || d.Authenticated() }

// Authenticated tells whether the host must prove who it is.
func (d Demand) Authenticated() bool { return d.byDANE() || d.byPKIX() }

func (d Demand) byDANE() bool { return d == DemandDANE || d == DemandBoth }
func (d Demand) byPKIX() bool { return d == DemandPKIX || d == DemandBoth }

// DANEMode says what DANE is used for.
type DANEMode string

// The values of DANEMode. The empty one is DANEOpportunistic.
const (
	// DANEOff looks no TLSA records up.
	DANEOff DANEMode = "off"
	// DANEOpportunistic holds each host to the records it has (RFC 7672).
	DANEOpportunistic DANEMode = "opportunistic"
	// DANERequired uses hosts with usable records alone, found by authenticated MX records.
	// Mail for all other domains waits.
	DANERequired DANEMode = "required"
)

// STSMode says what MTA-STS is used for.
type STSMode string

// The values of STSMode. The empty one is STSEnforce.
const (
	// STSOff looks no policies up.
	STSOff STSMode = "off"
	// STSTesting treats all policies as if they were of mode testing: what goes against them
	// is reported, and the mail goes its way.
	STSTesting STSMode = "testing"
	// STSEnforce does what the policies say.
	STSEnforce STSMode = "enforce"
)

// Policies is where a Planner finds MTA-STS policies: a *mtasts.Cache, or a test's own. Its
// methods end with the context, and in reasonable time without it.
type Policies interface {
	// Lookup returns the policy that applies to a domain.
	Lookup(ctx context.Context, domain string) mtasts.Result
	// Renew is Lookup that asks anew whether there is another one (RFC 8461, Section 5.1).
	Renew(ctx context.Context, domain string) mtasts.Result
}

// PlanOptions are the settings of a Planner. The zero value of each field but MX.DNS means its
// default.
type PlanOptions struct {
	// MX says how hosts are found. MX.DNS is required, and is asked for TLSA records too.
	// What is Given is said by each Need.
	MX mx.Options
	// DANE says what TLSA records are used for. Default DANEOpportunistic.
	DANE DANEMode
	// Validating tells whether the resolver validates, as a *resolver.Health does. While it
	// does not, the plans say so, and with DANERequired all mail waits; otherwise each answer
	// speaks for itself, as with nil. It must answer at once.
	Validating func() bool
	// STS finds MTA-STS policies. Nil is STSOff.
	STS Policies
	// STSMode says what policies are used for. Default STSEnforce.
	STSMode STSMode
	// Both asks hosts that have usable TLSA records and an MTA-STS policy in mode enforce for
	// a certificate that both accept. By default DANE alone decides about the certificate: it
	// is the stronger of both, and a host may have a certificate that only its record vouches
	// for. That the policy names the host is asked for in any case.
	Both bool
	// Port is the port of the hosts, which is in the name of TLSA records. Default 25.
	Port uint16
	// Timeout is how long one plan may take. Default 30 s.
	Timeout time.Duration
	// Parallel is how many hosts' TLSA records are looked up at the same time. Default 5.
	Parallel int
	// Inflight is how many plans may be made at the same time; more fail at once. Default 1,000.
	Inflight int
	// Keep is how long a plan is used at most. Default 5 minutes; less where an answer it is
	// made of holds shorter.
	Keep time.Duration
	// CacheSize is how many plans are kept. Default 10,000; negative keeps none.
	CacheSize int
	// Log gets what an operator should know. Nil discards.
	Log *slog.Logger
	// Now is the clock. Nil is time.Now.
	Now func() time.Time
}

// Validate returns every problem of the options, joined, or nil.
func (o PlanOptions) Validate() error {
	errs := []error{o.MX.Validate()}
	switch o.DANE {
	case "", DANEOff, DANEOpportunistic, DANERequired:
	default:
		errs = append(errs, fmt.Errorf("dane: %q is none of off, opportunistic, required", o.DANE))
	}
	switch o.STSMode {
	case "", STSOff, STSTesting, STSEnforce:
	default:
		errs = append(errs, fmt.Errorf("mta-sts: %q is none of off, testing, enforce", o.STSMode))
	}
	for _, d := range []struct {
		what  string
		value int64
	}{{"time limit", int64(o.Timeout)}, {"number of look-ups at the same time", int64(o.Parallel)}, {"time to keep", int64(o.Keep)},
		{"number of plans at the same time", int64(o.Inflight)}} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("plan: %s is negative", d.what))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	return nil
}

func (o PlanOptions) withDefaults() PlanOptions {
	setDefault(&o.DANE, DANEOpportunistic)
	setDefault(&o.STSMode, STSEnforce)
	if o.STS == nil {
		o.STSMode = STSOff
	}
	if o.MX.Guard == nil {
		// One for all plans: it remembers the addresses of this machine for a while.
		o.MX.Guard = mx.PublicGuard()
	}
	setDefault(&o.Port, 25)
	setDefault(&o.Timeout, 30*time.Second)
	setDefault(&o.Parallel, 5)
	setDefault(&o.Inflight, 1000)
	setDefault(&o.Keep, 5*time.Minute)
	setDefault(&o.CacheSize, 10_000)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Need is what one message needs of a plan. The zero Need is that of most.
type Need struct {
	// RequireTLS is the REQUIRETLS of its sender (RFC 8689): the hosts must be known securely
	// and prove who they are, and must promise the same for the next hop.
	RequireTLS bool
	// TLSOptional is its header field TLS-Required: No (RFC 8689, Section 3): policies do not
	// count, and a host that fails at TLS gets it in clear text. Without effect beside
	// RequireTLS and beside TLSRequired and TLSVerify: a sender may waive what the other side asks
	// for, and not what we do. Whether to believe the field is for the caller to say.
	TLSOptional bool
	// TLS is what we ask for by ourselves. TLSRequired and TLSVerify count beside the policies;
	// TLSOpportunistic is as TLSOptional, and TLSOff does not even try, both without effect
	// beside RequireTLS. Empty is what the policies say.
	TLS TLSMode
	// Given are the hosts in place of those that the DNS has, as for a smart host. Each is
	// then its own policy domain for MTA-STS (RFC 8461, Section 2): the target's policy speaks
	// about the target's own hosts.
	Given []mx.Given
}

// weak tells whether policies do not count.
func (n Need) weak() bool {
	return !n.RequireTLS && (n.TLSOptional && n.TLS == "" || n.TLS == TLSOff || n.TLS == TLSOpportunistic)
}

// Plan says where mail for a target goes. Nobody changes it once it is made, and so it is safe
// for concurrent use.
type Plan struct {
	Target mx.Target
	Need   Need
	// Route is what was found about the hosts.
	Route *mx.Route
	// STS is the answer about the policy of the target's domain. The zero Result if nobody was
	// asked: for a literal, with hosts that were given, and where policies do not count.
	STS mtasts.Result
	// Hosts are the hosts in the order of Route, those that are not to be used included.
	Hosts []PlannedHost
	// Site is the same for all targets whose mail goes to the same set of hosts.
	Site string
	// Made is when it was made, Expires when it must not be used any more.
	Made, Expires time.Time
	// Notes say in words what holds for all hosts, as that DANE is off, a line each.
	Notes []string
	// Events are what is to be reported about each attempt, whatever becomes of it: that a
	// policy could not be had. Their time is that of when they are recorded.
	Events []tlsrpt.Event

	unchecked bool // the resolver did not validate
}

// PlannedHost is a host with what is asked of it.
type PlannedHost struct {
	mx.Host
	// Port is where it is connected to.
	Port uint16
	// Secure tells that the host is known to take mail for the target: that the MX records are
	// authenticated, or that an MTA-STS policy in mode enforce names it.
	Secure bool
	// DANE is what was found of its TLSA records. The zero Set if nobody was asked.
	DANE dane.Set
	// STS is the MTA-STS policy that applies to it, in mode enforce or testing. Nil if none
	// does. Named tells whether it names the host, and Enforced whether that and the
	// certificate are asked for, and not reported alone.
	STS             *mtasts.Policy
	Named, Enforced bool
	// Demand is what TLS it must show, and Why tells in words where that comes from.
	Demand Demand
	Why    string
	// RequireTLS asks that it offers REQUIRETLS (RFC 8689).
	RequireTLS bool
	// SNI is the name to say in the handshake. Empty says none.
	SNI string
	// Names are those that a certificate from a DANE-TA trust anchor may have.
	Names []string
	// Reports are the policies that sessions with it are reported under, one at least unless
	// nothing is reported.
	Reports []tlsrpt.Policy
	// Refused is why it must not be used now: Host.Err, or an *mx.Error. Nil if it may be.
	Refused error
	// Events are what is to be reported of an attempt that passes it over since it is Refused.
	Events []tlsrpt.Event

	domain string // whose policies these are: the reports are for it
}

// Err returns nil if a host is left to try. Otherwise it says why none is, by the refusal of
// the first host that may be used later, or else of the first one.
func (p *Plan) Err() error {
	var first error
	for i := range p.Hosts {
		switch err := p.Hosts[i].Refused; {
		case err == nil:
			return nil
		case first == nil, mx.Temporary(err) && !mx.Temporary(first):
			first = err
		}
	}
	return first
}

// Usable returns the hosts that may be used, in the order of the plan. Whoever tries them draws
// lots among equals anew, as mx.Order does: a plan is used many times.
func (p *Plan) Usable() []*PlannedHost {
	hosts := make([]*PlannedHost, 0, len(p.Hosts))
	for i := range p.Hosts {
		if p.Hosts[i].Refused == nil {
			hosts = append(hosts, &p.Hosts[i])
		}
	}
	return hosts
}

// siteOf is the key of a set of hosts. It can be read, unless they are many.
func siteOf(r *mx.Route) string {
	names := make([]string, 0, len(r.Hosts))
	for i := range r.Hosts {
		switch h := &r.Hosts[i]; {
		case h.Name != "":
			names = append(names, strings.ToLower(h.Name))
		case len(h.Addrs) > 0:
			names = append(names, h.Addrs[0].String())
		}
	}
	if len(names) == 0 {
		return r.Target.String()
	}
	slices.Sort(names)
	site := strings.Join(slices.Compact(names), ",")
	if len(site) <= 200 {
		return site
	}
	sum := sha256.Sum256([]byte(site))
	return names[0] + ",... " + hex.EncodeToString(sum[:12])
}

// policyError is the error about a host that must not be used.
func policyError(c mx.Category, code int, enh smtp.Enhanced, host, text string, err error) *mx.Error {
	return &mx.Error{Category: c, Reply: smtp.Refuse(code, enh, text), Host: host, Err: err}
}

// ede returns what the resolver added to a failure (RFC 8914), empty if nothing.
func ede(err error) string {
	if e, ok := errors.AsType[*resolver.Error](err); ok && e.EDE != nil {
		return e.EDE.String()
	}
	return ""
}
