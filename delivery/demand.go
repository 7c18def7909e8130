package delivery

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/mail/smtp"
)

// demand.go decides from what is known of a host what it must show. Nothing is asked here.
//
//	TLSA records          MTA-STS      demand
//	not known             any          not to be used
//	some usable           any          DANE
//	none usable           enforce      PKIX
//	none usable           other        encrypted
//	none                  enforce      PKIX
//	none                  other        opportunistic
//
// Besides, a policy in mode enforce that does not name the host refuses it, whatever its TLSA
// records say. DANE comes first since an MTA-STS policy must not override a validation by DANE
// that fails (RFC 8461, Section 2), and for the same reason a look-up of TLSA records that
// fails does not make room for the policy.

// facts is what is known of a host.
type facts struct {
	host    *mx.Host
	route   *mx.Route
	dane    dane.Set
	daneErr error         // it is not known whether there are TLSA records
	sts     mtasts.Result // of the policy domain that is the host's
	domain  string        // that policy domain
	need    Need
	opt     *PlanOptions
	off     bool // the resolver does not validate
}

// decide makes a plan for a host.
func decide(f facts) PlannedHost {
	h := PlannedHost{Host: *f.host, Port: f.opt.Port, DANE: f.dane, SNI: f.host.Name, RequireTLS: f.need.RequireTLS,
		domain: f.domain}
	h.Secure = f.route.Authentic
	if h.Err != nil {
		h.Refused = h.Err
		return h
	}
	if f.need.weak() {
		h.unbound(f.need)
		return h
	}
	h.applySTS(f)
	h.applyDANE(f)
	h.Reports = h.reports(f)
	for _, check := range []func(*PlannedHost, facts){(*PlannedHost).namedBySTS, (*PlannedHost).knownByDANE, (*PlannedHost).requiredDANE, (*PlannedHost).own} {
		if check(&h, f); h.Refused != nil {
			break
		}
	}
	return h
}

// unbound is for mail to which no policy applies. Nothing is reported about it: what is
// reported are failures of policies, and the reports themselves go this way (RFC 8460, Section
// 5.3).
func (h *PlannedHost) unbound(n Need) {
	h.Demand, h.Why = DemandOpportunistic, "policies do not count for this message"
	if n.TLS == TLSOff {
		h.Demand, h.Why = DemandClear, "TLS is off for this message"
	}
}

// applySTS looks what the policy says about the host.
func (h *PlannedHost) applySTS(f facts) {
	h.Demand, h.Why = DemandOpportunistic, "it has no policy"
	p := f.sts.Policy
	if p == nil || p.Mode == mtasts.None || h.Name == "" {
		return
	}
	h.STS, h.Named = p, p.Match(h.Name)
	h.Enforced = p.Mode == mtasts.Enforce && f.opt.STSMode == STSEnforce
	switch {
	case h.Enforced && h.Named:
		h.Secure = true
		h.Demand, h.Why = DemandPKIX, "MTA-STS of "+f.domain
	case !h.Enforced:
		h.Why = "MTA-STS of " + f.domain + " is tested"
	}
}

// applyDANE looks what the TLSA records say about it.
func (h *PlannedHost) applyDANE(f facts) {
	set := &h.DANE
	if !set.Applies() {
		return
	}
	// RFC 7672, Section 8.1: the name that has the records.
	h.SNI = set.Base
	at := fmt.Sprintf("%s at %s", count(len(set.Records), "TLSA record"), set.Base)
	switch {
	case len(set.Usable) > 0 && h.Demand == DemandPKIX && f.opt.Both:
		h.Demand, h.Why = DemandBoth, at+", and "+h.Why
	case len(set.Usable) > 0:
		h.Demand, h.Why = DemandDANE, at
	case h.Demand == DemandPKIX:
		h.Why += "; " + at + ", none of them usable"
	default:
		h.Demand, h.Why = DemandEncrypted, at+", none of them usable"
	}
	h.Names = namesFor(f.route, set.Base, len(f.need.Given) > 0)
}

// namesFor are the names that a certificate from a DANE-TA trust anchor may have (RFC 7672,
// Section 3.2.2): that which has the records, and the domain, with where its CNAME leads, if it
// is known that the host is one of the domain's. A domain that is its own host is known to be. A
// host that was given is none of the domain's.
func namesFor(r *mx.Route, base string, given bool) []string {
	names := []string{base}
	if given {
		return names
	}
	add := func(name string) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if r.Authentic || r.Implicit {
		add(r.Target.Domain)
	}
	if r.Authentic {
		add(r.Canonical)
	}
	return names
}

// namedBySTS refuses a host that the policy does not name.
func (h *PlannedHost) namedBySTS(f facts) {
	if f.sts.Err != nil && errors.Is(f.sts.Err, mtasts.ErrUnknown) {
		h.refuse(policyError(mx.Policy, 451, smtp.Enhanced{4, 3, 0}, h.Name,
			"it cannot be told now how mail to this domain is protected", f.sts.Err))
		return
	}
	if !h.Enforced || h.Named {
		return
	}
	err := fmt.Errorf("the policy names %s", some(h.STS.MX))
	h.refuse(policyError(mx.Policy, 451, smtp.Enhanced{4, 7, 5}, h.Name,
		"the MTA-STS policy of the domain does not name this host", err))
	h.Events = h.events(tlsrpt.STS, tlsrpt.Failure{Type: tlsrpt.ValidationFailure, Reason: "mx-mismatch", Additional: err.Error()})
}

// knownByDANE refuses a host of which it is not known whether it has TLSA records.
func (h *PlannedHost) knownByDANE(f facts) {
	if f.daneErr == nil {
		return
	}
	h.refuse(policyError(mx.DANE, 451, smtp.Enhanced{4, 7, 5}, h.Name,
		"it cannot be told now whether this host has TLSA records", f.daneErr))
	h.Reports = []tlsrpt.Policy{{Type: tlsrpt.TLSA, Domain: h.Name}}
	h.Events = h.events(tlsrpt.TLSA, tlsrpt.Failure{Type: tlsrpt.DNSSECInvalid, Reason: ede(f.daneErr), Additional: f.daneErr.Error()})
}

// requiredDANE refuses a host without DANE, where we use no others.
func (h *PlannedHost) requiredDANE(f facts) {
	if f.opt.DANE != DANERequired {
		return
	}
	var why string
	switch {
	case f.off && len(f.host.TLSA) == 0:
		why = "the resolver does not validate"
	case h.Name == "":
		why = "it is an address"
	case !f.route.Authentic:
		why = "the MX records are not authenticated"
	case !h.DANE.Applies():
		why = h.DANE.Why
	case len(h.DANE.Usable) == 0:
		why = "none of its TLSA records is usable"
	default:
		return
	}
	h.refuse(policyError(mx.DANE, 451, smtp.Enhanced{4, 7, 5}, h.Name, "we use hosts with DANE alone, and this one lacks it", errors.New(why)))
	if !h.DANE.Applies() {
		h.Reports = []tlsrpt.Policy{{Type: tlsrpt.TLSA, Domain: h.Name}}
	}
	h.Events = h.events(tlsrpt.TLSA, tlsrpt.Failure{Type: tlsrpt.DANERequired, Additional: why})
}

// own adds what we, or the sender, ask for beside the policies.
func (h *PlannedHost) own(f facts) {
	switch {
	case f.need.RequireTLS && !h.Secure:
		h.insecurely(f)
	case (f.need.RequireTLS || f.need.TLS == TLSVerify) && !h.Demand.Authenticated():
		h.Demand, h.Why = DemandPKIX, h.Why+"; we ask for a valid certificate"
	case f.need.TLS == TLSRequired && !h.Demand.Encrypted():
		h.Demand, h.Why = DemandEncrypted, h.Why+"; we ask for TLS"
	}
}

// insecurely refuses a host for mail with REQUIRETLS, since whoever can forge MX records could
// have put it there (RFC 8689, Section 4.2.1). It is final, but for a domain whose policy
// could not be had.
func (h *PlannedHost) insecurely(f facts) {
	code, enh := 550, smtp.Enhanced{5, 7, 30}
	if f.sts.Err != nil || f.off { // it may be our own resolver that keeps it from us
		code, enh = 451, smtp.Enhanced{4, 7, 30}
	}
	h.refuse(policyError(mx.Policy, code, enh, h.Name, "REQUIRETLS: neither DNSSEC nor MTA-STS vouches for this host", f.sts.Err))
}

func (h *PlannedHost) refuse(err *mx.Error) { h.Refused = err }

// reports are the policies that a session with the host is reported under: those that decide.
func (h *PlannedHost) reports(f facts) []tlsrpt.Policy {
	var list []tlsrpt.Policy
	if h.DANE.Applies() {
		p := tlsrpt.Policy{Type: tlsrpt.TLSA, Domain: h.DANE.Base}
		for _, r := range h.DANE.Records[:min(len(h.DANE.Records), maxReported)] {
			p.Strings = append(p.Strings, dane.Format(r))
		}
		list = append(list, p)
	}
	if h.STS != nil && h.Demand != DemandDANE || h.STS != nil && h.Enforced && !h.Named {
		list = append(list, stsReport(h.STS, f.domain))
	}
	if list == nil {
		list = append(list, tlsrpt.Policy{Type: tlsrpt.NoPolicy})
	}
	return list
}

// maxReported is how many TLSA records of a host a report lists.
const maxReported = 20

func stsReport(p *mtasts.Policy, domain string) tlsrpt.Policy {
	return tlsrpt.Policy{Type: tlsrpt.STS, Strings: p.Text, Domain: domain, MXHosts: p.MX}
}

// events are the reports of a failure under the policies of a type.
func (h *PlannedHost) events(t tlsrpt.PolicyType, f tlsrpt.Failure) []tlsrpt.Event {
	if h.domain == "" {
		return nil
	}
	var events []tlsrpt.Event
	f.ReceivingHost = h.Name
	for _, p := range h.Reports {
		if p.Type == t {
			events = append(events, tlsrpt.Event{Domain: h.domain, Policy: p, MXHost: h.Name, Failure: &f})
		}
	}
	return events
}

// count returns "1 thing" or "2 things".
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// some returns names, not all if they are many.
func some(names []string) string {
	const enough = 10
	if len(names) > enough {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:enough], ", "), len(names)-enough)
	}
	return strings.Join(names, ", ")
}
