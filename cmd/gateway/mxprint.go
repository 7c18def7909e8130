package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
)

// mxprint.go prints what gateway mx has found as a tree. Most of it was written by others:
// what a terminal would obey is replaced.

// twig is a line and what belongs to it.
type twig struct {
	text  string
	twigs []*twig
}

// add adds a line below t.
func (t *twig) add(format string, args ...any) *twig {
	below := &twig{text: fmt.Sprintf(format, args...)}
	t.twigs = append(t.twigs, below)
	return below
}

// print writes the tree.
func (t *twig) print(w io.Writer) {
	fmt.Fprintln(w, printable(t.text))
	t.printBelow(w, "")
}

func (t *twig) printBelow(w io.Writer, indent string) {
	for i, below := range t.twigs {
		branch, next := "├─ ", "│  "
		if i == len(t.twigs)-1 {
			branch, next = "└─ ", "   "
		}
		fmt.Fprintf(w, "%s%s%s\n", indent, branch, printable(below.text))
		below.printBelow(w, indent+next)
	}
}

// tree is the report for people.
func (r *mxReport) tree() *twig {
	t := &twig{text: r.Target}
	t.add("resolver %s: %s", strings.Join(r.Resolver.Servers, ", "), r.Resolver.state())
	if r.Relay != "" {
		t.add("goes by way of the relay %s", r.Relay)
	}
	if r.Records != nil {
		r.Records.print(t)
	}
	if r.Policy != nil {
		r.Policy.print(t)
	}
	for _, note := range r.Notes {
		if r.Policy == nil || r.Policy.Error == "" || !strings.HasSuffix(note, r.Policy.Error) { // else it stands above
			t.add("%s", note)
		}
	}
	for _, f := range r.Refused {
		t.add("%s is not used: %s", strings.TrimSpace(f.Name+" "+f.Address), f.Why)
	}
	for i := range r.Hosts {
		r.Hosts[i].print(t, r.Target)
	}
	r.Verdict.print(t)
	return t
}

func (r mxResolver) state() string {
	switch {
	case !r.Trusted:
		return "its word on DNSSEC does not count, and nothing is authenticated"
	case r.Error != "":
		return "whether it validates is not known: " + r.Error
	case !r.Validating:
		return "does not validate, and nothing is authenticated"
	}
	return "validates"
}

// secured says whether an answer was authenticated.
func secured(authentic bool) string {
	if authentic {
		return "authenticated"
	}
	return "not authenticated"
}

func (m *mxRecords) print(t *twig) {
	what := "MX records"
	if m.Implicit {
		what = "no MX records, so the domain is its own host"
	}
	below := t.add("%s: %s", what, secured(m.Authentic))
	if m.Canonical != "" {
		below.add("found at %s, where CNAMEs lead", m.Canonical)
	}
	if m.Loop != "" {
		below.add("%s is ourselves: it, and hosts that are not preferred to it, are left out", m.Loop)
	}
}

func (p *mxPolicy) print(t *twig) {
	text := "MTA-STS: no policy"
	if p.MX != nil || p.Mode != "none" {
		text = fmt.Sprintf("MTA-STS: %s, id %s, for %s", p.Mode, cmp.Or(p.ID, "not known"), daysText(time.Duration(p.MaxAge)*time.Second))
	}
	below := t.add("%s", text)
	for _, pattern := range p.MX {
		below.add("mx %s", pattern)
	}
	if p.Error != "" {
		below.add("%s: %s", p.Kind, p.Error)
	}
}

// daysText writes a long time in days, where it is some.
func daysText(d time.Duration) string {
	switch day := 24 * time.Hour; {
	case d == day:
		return "1 day"
	case d > day && d%day == 0:
		return fmt.Sprintf("%d days", d/day)
	}
	return d.String()
}

func (h *mxHost) print(t *twig, target string) {
	below := t.add("%s", h.title(target))
	if h.Canonical != "" {
		below.add("is an alias of %s", h.Canonical)
	}
	for _, a := range h.Addresses {
		below.add("address %s, %s", a, secured(h.Authentic))
	}
	for _, f := range h.Refused {
		below.add("address %s is not used: %s", f.Address, f.Why)
	}
	if h.DANE != nil {
		h.DANE.print(below)
	}
	if h.Policy != "" {
		below.add("the MTA-STS policy %s", h.Policy)
	}
	if h.Error != nil {
		h.Error.print(below, "not used")
		return
	}
	must := below.add("must show %s (%s)", demandText(h.Demand), h.Why)
	if h.SNI != "" && h.SNI != h.Name {
		must.add("is asked for as %s", h.SNI)
	}
	if len(h.Names) > 0 {
		must.add("a certificate under a trust anchor may be for %s", strings.Join(h.Names, ", "))
	}
	for i := range h.Attempts {
		h.Attempts[i].print(below)
	}
}

// demandText tells people what a demand means.
func demandText(demand string) string {
	switch demand {
	case "clear":
		return "nothing: TLS is not tried"
	case "opportunistic":
		return "nothing: TLS is used if it has it, with any certificate"
	case "encrypted":
		return "TLS, with any certificate"
	case "pkix":
		return "TLS, with a certificate of an authority for its name"
	case "dane":
		return "TLS, with a certificate that matches a TLSA record"
	case "dane and pkix":
		return "TLS, with a certificate that matches a TLSA record and is an authority's for its name"
	}
	return demand
}

func (d *mxDANE) print(t *twig) {
	below := t
	if d.Base != "" {
		below = t.add("TLSA records at %s", d.Base)
	} else {
		below = t.add("no TLSA records: %s", d.Why)
	}
	for _, r := range d.Records {
		text := r.Record + "  " + r.Means
		if !r.Usable {
			text += ", does not count: " + r.Why
		}
		below.add("%s", text)
	}
	for _, q := range d.Asked {
		switch {
		case q.Error != "":
			below.add("asked for %s %s: %s", q.Name, q.Type, q.Error)
		case q.Extended != "":
			below.add("asked for %s %s: %s", q.Name, q.Type, q.Extended)
		}
	}
}

// print writes an error below what it is about.
func (e *mxError) print(t *twig, what string) {
	below := t.add("%s: %s", what, e.Reply)
	if e.Cause != "" {
		below.add("%s", e.Cause)
	}
}

func (c *mxConnection) print(t *twig) {
	below := t.add("connected to %s as %s", c.Address, c.Helo)
	if !c.Connected {
		below.text = "could not connect to " + c.Address
	}
	for _, l := range c.Dialogue {
		below.add("%s: %s", l.Side, l.Line)
	}
	if c.TLS != "" {
		below.add("%s, %s", c.TLS, c.Cipher)
	}
	for i, cert := range c.Chain {
		cert.print(below, i)
	}
	if c.Doubt != "" {
		below.add("less than it could be: %s", c.Doubt)
	}
	if c.Error != nil {
		c.Error.print(below, "no mail goes here")
		return
	}
	shown := below.add("shown: %s", shownText(c.Shown))
	if c.Match != "" {
		shown.add("%s", c.Match)
	}
}

// shownText tells people what a connection is worth.
func shownText(shown string) string {
	switch shown {
	case "clear":
		return "clear text"
	case "encrypted":
		return "TLS, with a certificate that nobody asked for"
	case "pkix":
		return "TLS, with a certificate of an authority for its name"
	case "dane":
		return "TLS, with a certificate that matches a TLSA record"
	case "dane and pkix":
		return "TLS, with a certificate that matches a TLSA record and is an authority's for its name"
	}
	return shown
}

func (c *mxCertificate) print(t *twig, i int) {
	below := t.add("certificate %d: %s", i, cmp.Or(c.Subject, "without a subject"))
	if len(c.Names) > 0 {
		below.add("for %s", strings.Join(c.Names, ", "))
	}
	below.add("from %s to %s, issued by %s", c.NotBefore.Format(time.DateTime), c.NotAfter.Format(time.DateTime), cmp.Or(c.Issuer, "nobody"))
	below.add("TLSA %s", c.TLSA)
}

func (v *mxVerdict) print(t *twig) {
	below := t.add("verdict: %s", v.Text)
	if v.Error != nil {
		below.add("%s", v.Error.Reply)
		if v.Error.Cause != "" {
			below.add("%s", v.Error.Cause)
		}
	}
}
