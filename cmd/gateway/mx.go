package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/smtp"
)

// mx.go: the command that explains where mail for a domain goes. It makes the plan that a
// delivery would make, by the same means, and tells all that led to it. What --connect adds is
// in mxconnect.go, how it is printed in mxprint.go.

// Exit codes of gateway mx beside the common ones, as docs/outbound.md lists them.
const (
	exitWaits   = 4 // mail would wait, and be tried again
	exitReturns = 5 // mail would be returned to its sender
)

// mxFlags are the flags of the command.
type mxFlags struct {
	configFlags
	connect, all, json, requireTLS, direct bool
	timeout                                time.Duration
}

func newMX() *cobra.Command {
	var f mxFlags
	cmd := &cobra.Command{
		Use:   "mx TARGET",
		Short: "Explain where mail for a domain goes, and what TLS its hosts must show",
		Long: `Makes the plan that a delivery would make, and tells what led to it: the MX records and
whether they are authenticated, the addresses of each host and why some are not used, its TLSA
records and which of them count, the MTA-STS policy and whether it names the host, and what TLS
the host must show. TARGET is a domain, an e-mail address or an address in brackets.

With --connect it goes to each host, up to where a message would begin, and tells what the
host showed; no mail is sent. With --json the same is printed for programs.

No gateway need run. Without -c the defaults count; with it the delivery section of the file.
A policy that a running gateway keeps is not seen here.

Exits 0 if mail would go, 4 if it would wait, 5 if it would be returned.`,
		Example: `  gateway mx example.com
  gateway mx --connect user@example.com
  gateway mx -c /etc/penstock/penstock.yaml --connect --json example.com
  gateway mx --set delivery.resolver.address=tls://192.0.2.53#dns.example.net --set delivery.resolver.trusted=true example.com`,
		Args: rangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			return explainMX(ctx, f, args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f.add(cmd)
	cmd.Flags().Lookup("config").DefValue = ""
	f.file = ""
	flags := cmd.Flags()
	flags.BoolVar(&f.connect, "connect", false, "connect to each host at the first of its addresses that answers")
	flags.BoolVar(&f.all, "all", false, "with --connect: at all addresses")
	flags.BoolVar(&f.requireTLS, "requiretls", false, "as for a message whose sender said REQUIRETLS")
	flags.BoolVar(&f.direct, "direct", false, "as if there were no delivery.relay")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	flags.DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long all of it may take")
	return cmd
}

// explainMX is the command.
func explainMX(ctx context.Context, f mxFlags, target string, stdout, stderr io.Writer) error {
	t, err := mx.ParseTarget(target)
	if err != nil {
		return usageError{fmt.Errorf("%q: %w", target, err)}
	}
	cfg, err := f.delivery(stderr)
	if err != nil {
		return err
	}
	silent := slog.New(slog.DiscardHandler)
	set, problems := readOutbound(cfg, silent)
	var out *outbound
	if problems.Err() == nil {
		var more config.Problems
		out, more = newOutbound(cfg, set, nil, nil, silent)
		problems = append(problems, more...)
	}
	if out == nil {
		printProblems(stderr, problems.Sorted(f.file))
		return errReported
	}
	defer out.close()
	r := out.explain(ctx, t, f)
	if err := (&remote{json: f.json}).print(stdout, r, func(w io.Writer) { r.tree().print(w) }); err != nil {
		return err
	}
	if r.Verdict.Outcome != outcomeGoes {
		return exitStatus(map[string]int{outcomeWaits: exitWaits, outcomeReturns: exitReturns}[r.Verdict.Outcome])
	}
	return nil
}

// delivery reads what of the configuration is about deliveries. What is wrong with the rest of
// it, as that there is nothing else, is for others to find.
func (f *mxFlags) delivery(stderr io.Writer) (*config.Config, error) {
	overrides, err := f.overrides()
	if err != nil {
		return nil, err
	}
	cfg, problems := config.Read(f.file, os.Environ(), overrides)
	var ours config.Problems
	for _, p := range problems.Errors() {
		if key, _, _ := strings.Cut(p.Key, "."); key == "delivery" || key == "" || cfg == nil {
			ours = append(ours, p)
		}
	}
	if ours != nil {
		printProblems(stderr, ours.Sorted(f.file))
		return nil, errReported
	}
	if cfg.Hostname == "" {
		cfg.Hostname = config.Domain(thisHost())
	}
	return cfg, nil
}

// thisHost is the name of the machine, as far as it has one that can be said to others.
func thisHost() string {
	name, err := os.Hostname()
	if d, perr := smtp.ParseDomain(name); err == nil && perr == nil {
		return d.String()
	}
	return "localhost"
}

// The outcomes of a verdict.
const (
	outcomeGoes    = "goes"
	outcomeWaits   = "waits"
	outcomeReturns = "returns"
)

// mxReport is all that is known, in the form of --json. Empty and absent are the same.
type mxReport struct {
	Target   string      `json:"target"`
	Relay    string      `json:"relay,omitempty"` // that takes the mail in place of the target's hosts
	Resolver mxResolver  `json:"resolver"`
	Records  *mxRecords  `json:"mx,omitempty"`      // nil if the look-up failed, and for a literal
	Policy   *mxPolicy   `json:"mta_sts,omitempty"` // nil if nobody was asked
	Notes    []string    `json:"notes,omitempty"`
	Hosts    []mxHost    `json:"hosts"`
	Refused  []mxRefusal `json:"refused_names,omitempty"` // in MX records, that can be no host's
	Verdict  mxVerdict   `json:"verdict"`
	plan     *delivery.Plan
}

type mxResolver struct {
	Servers []string `json:"servers"`
	// Trusted tells whether its word on DNSSEC counts, Validating whether it did validate when
	// it was asked just now.
	Trusted    bool   `json:"trusted"`
	Validating bool   `json:"validating"`
	Error      string `json:"error,omitempty"`
}

type mxRecords struct {
	Domain    string    `json:"domain"`
	Canonical string    `json:"canonical,omitempty"` // the end of its CNAMEs, if there are some
	Authentic bool      `json:"authentic"`
	Implicit  bool      `json:"implicit"` // there are none, and the domain is its own host
	Loop      string    `json:"loop,omitempty"`
	Expires   time.Time `json:"expires"`
}

type mxPolicy struct {
	Mode    string    `json:"mode"` // none without a policy
	ID      string    `json:"id,omitempty"`
	MX      []string  `json:"mx,omitempty"`
	MaxAge  float64   `json:"max_age_seconds,omitempty"`
	Fetched time.Time `json:"fetched,omitzero"`
	Error   string    `json:"error,omitempty"`
	Kind    string    `json:"kind,omitempty"` // of the error, in the words of RFC 8460
}

type mxHost struct {
	Name       string         `json:"name,omitempty"` // empty for a literal
	Preference uint16         `json:"preference"`
	Canonical  string         `json:"canonical,omitempty"`
	Addresses  []string       `json:"addresses"`
	Authentic  bool           `json:"authentic"` // the addresses
	Refused    []mxRefusal    `json:"refused_addresses,omitempty"`
	DANE       *mxDANE        `json:"dane,omitempty"`
	Policy     string         `json:"mta_sts,omitempty"` // names it, or does not name it
	Port       uint16         `json:"port"`
	Demand     string         `json:"demand,omitempty"`
	Why        string         `json:"why,omitempty"`
	SNI        string         `json:"sni,omitempty"`
	Names      []string       `json:"names,omitempty"` // that a certificate may have, for TLSA records of usage 2
	Error      *mxError       `json:"error,omitempty"` // why it must not be used now
	Attempts   []mxConnection `json:"connections,omitempty"`
}

type mxRefusal struct {
	Name    string `json:"name,omitempty"`
	Address string `json:"address,omitempty"`
	Why     string `json:"why"`
}

type mxDANE struct {
	Base    string       `json:"base,omitempty"`
	Records []mxTLSA     `json:"records,omitempty"`
	Asked   []mxQuestion `json:"asked,omitempty"`
	Why     string       `json:"why,omitempty"` // there are none
}

type mxTLSA struct {
	Record string `json:"record"`
	Means  string `json:"means"`
	Usable bool   `json:"usable"`
	Why    string `json:"why,omitempty"` // it is not
}

type mxQuestion struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	Records   int    `json:"records"`
	Authentic bool   `json:"authentic"`
	Extended  string `json:"extended_error,omitempty"`
	Error     string `json:"error,omitempty"`
}

type mxError struct {
	Category  string `json:"category,omitempty"`
	Reply     string `json:"reply"`
	Temporary bool   `json:"temporary"`
	Cause     string `json:"cause,omitempty"`
}

type mxVerdict struct {
	Outcome string   `json:"outcome"` // goes, waits or returns
	Text    string   `json:"text"`
	Error   *mxError `json:"error,omitempty"`
}

// explain makes the plan and, if that is asked for, connects.
func (o *outbound) explain(ctx context.Context, t mx.Target, f mxFlags) *mxReport {
	r := &mxReport{Target: t.String(), Hosts: []mxHost{}}
	state := o.health.Check(ctx)
	r.Resolver = mxResolver{Servers: o.dns.Servers(), Trusted: o.dns.Trusted(), Validating: state.Validating}
	if state.Err != nil {
		r.Resolver.Error = state.Err.Error()
	}
	planner, need := o.planner, delivery.Need{RequireTLS: f.requireTLS}
	guarded := true
	if o.relay != nil && !f.direct {
		planner, guarded = o.relayed, false
		need.TLS = o.relay.TLS
		r.Relay = o.cfg.Delivery.Relay.String()
		if o.relay.MX {
			t = mx.Target{Domain: o.relay.Host}
		} else {
			need.Given = []mx.Given{{Host: o.relay.Host}}
		}
	}
	plan, err := planner.Plan(ctx, t, need)
	if plan != nil && plan.Route != nil && (plan.Route.Canonical != "" || len(plan.Hosts) > 0) {
		r.fill(plan) // with an error, too: what was found until then tells why
	}
	if err != nil {
		r.Verdict = verdictOf(err)
		return r
	}
	if r.Verdict.Outcome == outcomeGoes && f.connect {
		o.visit(ctx, r, guarded, f.all)
	}
	return r
}

// fill takes over what a plan says.
func (r *mxReport) fill(p *delivery.Plan) {
	r.plan, r.Notes = p, p.Notes
	route := p.Route
	if r.Relay == "" || p.Need.Given == nil {
		if !route.Target.IsLiteral() {
			r.Records = &mxRecords{Domain: route.Target.Domain, Authentic: route.Authentic, Implicit: route.Implicit, Loop: route.Loop, Expires: route.Expires.UTC()}
			if route.Canonical != route.Target.Domain {
				r.Records.Canonical = route.Canonical
			}
		}
	}
	r.Policy = policyOf(p.STS)
	names := make(map[string]bool)
	for i := range p.Hosts {
		h := plannedHost(&p.Hosts[i])
		for _, refused := range route.Refused {
			if refused.Host == h.Name && refused.Addr.IsValid() {
				h.Refused = append(h.Refused, refusalOf(refused))
			}
		}
		names[h.Name] = true
		r.Hosts = append(r.Hosts, h)
	}
	for _, refused := range route.Refused {
		if !names[refused.Host] || !refused.Addr.IsValid() {
			r.Refused = append(r.Refused, refusalOf(refused))
		}
	}
	if err := p.Err(); err != nil {
		r.Verdict = verdictOf(err)
		return
	}
	if usable := p.Usable(); len(usable) > 0 {
		r.Verdict = mxVerdict{Outcome: outcomeGoes, Text: "mail goes to " + cmp.Or(usable[0].Name, r.Target) + " first"}
	}
}

func refusalOf(f mx.Refusal) mxRefusal {
	r := mxRefusal{Name: f.Host, Why: f.Why.Error()}
	if f.Addr.IsValid() {
		r.Address = f.Addr.String()
	}
	return r
}

func policyOf(res mtasts.Result) *mxPolicy {
	if res == (mtasts.Result{}) {
		return nil
	}
	p := &mxPolicy{Mode: string(res.Mode()), ID: res.ID}
	if res.Policy != nil {
		p.ID = cmp.Or(p.ID, res.Policy.ID)
		p.MX, p.MaxAge, p.Fetched = res.Policy.MX, res.Policy.MaxAge.Seconds(), res.Policy.Fetched.UTC()
	}
	if res.Err != nil {
		p.Error = res.Err.Error()
		if e, ok := errors.AsType[*mtasts.Error](res.Err); ok {
			p.Kind, p.Error = string(e.Kind), e.Err.Error()
		}
	}
	return p
}

func plannedHost(h *delivery.PlannedHost) mxHost {
	m := mxHost{Name: h.Name, Preference: h.Preference, Authentic: h.Authentic, Port: h.Port, Addresses: []string{},
		Demand: string(h.Demand), Why: h.Why, SNI: h.SNI, Error: errorOf(h.Refused)}
	if h.Canonical != h.Name {
		m.Canonical = h.Canonical
	}
	for _, a := range h.Addrs {
		m.Addresses = append(m.Addresses, a.String())
	}
	if h.STS != nil {
		m.Policy = map[bool]string{true: "names it", false: "does not name it"}[h.Named]
	}
	m.DANE = daneOf(h.DANE)
	for _, r := range h.DANE.Usable {
		if r.Usage == dane.UsageDANETA {
			m.Names = h.Names
		}
	}
	return m
}

func daneOf(set dane.Set) *mxDANE {
	if len(set.Asked) == 0 && set.Why == "" && len(set.Records) == 0 {
		return nil
	}
	d := &mxDANE{Base: set.Base, Why: set.Why}
	usable := make(map[dane.Record]bool)
	for _, r := range set.Usable {
		usable[r] = true
	}
	for _, r := range set.Records {
		t := mxTLSA{Record: dane.Format(r), Means: dane.Describe(r), Usable: usable[r]}
		if !t.Usable {
			t.Why = cmp.Or(dane.Why(r), "there is one like it with a stronger digest, which counts")
		}
		d.Records = append(d.Records, t)
	}
	// Servers give them in any order.
	slices.SortFunc(d.Records, func(a, b mxTLSA) int {
		if a.Usable != b.Usable {
			return map[bool]int{true: -1, false: 1}[a.Usable]
		}
		return strings.Compare(a.Record, b.Record)
	})
	for _, a := range set.Asked {
		q := mxQuestion{Name: a.Name, Type: a.Type.String(), Records: a.Records, Authentic: a.Authentic}
		if a.EDE != nil {
			q.Extended = a.EDE.String()
		}
		if a.Err != nil {
			q.Error = a.Err.Error()
		}
		d.Asked = append(d.Asked, q)
	}
	return d
}

// errorOf takes an error over; nil stays nil.
func errorOf(err error) *mxError {
	if err == nil {
		return nil
	}
	m := &mxError{Reply: smtp.ReplyOf(err).Line(), Temporary: mx.Temporary(err), Cause: err.Error()}
	if e, ok := errors.AsType[*mx.Error](err); ok {
		m.Category, m.Cause = string(e.Category), ""
		if e.Err != nil {
			m.Cause = e.Err.Error()
		}
	}
	return m
}

func verdictOf(err error) mxVerdict {
	if mx.Temporary(err) {
		return mxVerdict{Outcome: outcomeWaits, Text: "mail waits, and is tried again", Error: errorOf(err)}
	}
	return mxVerdict{Outcome: outcomeReturns, Text: "mail is returned to its sender", Error: errorOf(err)}
}

// title is how a host is called: by its name, or the target's, for a literal.
func (h *mxHost) title(target string) string {
	return fmt.Sprintf("%d %s", h.Preference, cmp.Or(h.Name, target))
}
