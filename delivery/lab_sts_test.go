package delivery_test

// lab_sts_test.go: MTA-STS (RFC 8461), and what it does beside DANE (Section 2), REQUIRETLS and
// TLS-Required: No (RFC 8689). Most rows have a host whose certificate the authority of the
// lab did not issue, so that mail waits if the policy applies, and goes if it does not.

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/mail/smtp"
)

// stsRows are in the zone plain.test, where nothing is authenticated.
var stsRows = []labRow{
	// What a policy asks of hosts.
	{name: "sts", ours: "sent TLS", build: func(s *site) { s.sts("enforce", s.trusted()) }},
	{name: "ststesting", ours: "sent TLS", report: "certificate-not-trusted", build: func(s *site) { s.sts("testing", s.untrusted()) }},
	{name: "stsnone", ours: "sent TLS", build: func(s *site) { s.sts("none", s.untrusted()) }},
	{name: "stsuntrusted", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) { s.sts("enforce", s.untrusted()) }},
	{name: "stsexpired", ours: "deferred 4.7.5", report: "certificate-expired", build: func(s *site) {
		s.sts("enforce", s.Authority.Issue(s.t, lab.CertSpec{DNS: []string{s.mx()}, Expired: true}).Chain())
	}},
	{name: "stswrongname", ours: "deferred 4.7.5", report: "certificate-host-mismatch", build: func(s *site) {
		s.sts("enforce", s.Authority.Leaf(s.t, "mta-sts.secure.test", s.name+".plain.test").Chain())
	}},
	{name: "stscommonname", ours: "deferred 4.7.5", report: "certificate-host-mismatch", build: func(s *site) { // RFC 8461, Section 4.2: a DNS-ID
		s.sts("enforce", s.Authority.Issue(s.t, lab.CertSpec{Name: s.mx()}).Chain())
	}},
	{name: "stswildcard", ours: "sent TLS", build: func(s *site) { s.sts("enforce", s.Authority.Leaf(s.t, "*.plain.test").Chain()) }},
	{name: "stswildcard2", ours: "deferred 4.7.5", report: "certificate-host-mismatch", build: func(s *site) { s.sts("enforce", s.Authority.Leaf(s.t, "*.test").Chain()) }},
	{name: "stsgap", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) { // the intermediate is not sent
		s.sts("enforce", s.Authority.Issue(s.t, lab.CertSpec{Name: "Gap", Authority: true}).Leaf(s.t, s.mx()).With())
	}},
	{name: "stsclear", ours: "deferred 4.7.4", report: "starttls-not-supported", build: func(s *site) { s.sts("enforce", nil) }},
	{name: "sts454", ours: "deferred 4.7.4", report: "starttls-not-supported", build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.host(lab.HostOptions{Certificate: s.trusted(), StartTLS: "454 4.7.0 not now"})
	}},
	{name: "stscname", ours: "sent TLS", build: func(s *site) { // the name in the MX record counts
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.Host("real.stscname.plain.test", lab.HostOptions{Certificate: s.trusted()})
		s.plain.Add("stscname MX 10 mx-stscname", "mx-stscname CNAME real.stscname")
	}},

	// Which hosts it names.
	{name: "stsmismatch", ours: "deferred 4.7.5", report: "validation-failure", unreached: true, build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: policyText("enforce", "other.plain.test")})
		s.host(lab.HostOptions{Certificate: s.trusted()})
	}},
	{name: "ststestmismatch", ours: "sent TLS", report: "validation-failure", build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: policyText("testing", "other.plain.test")})
		s.host(lab.HostOptions{Certificate: s.trusted()})
	}},
	{name: "stspattern", ours: "sent TLS", build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: policyText("enforce", "other.test", "*.PLAIN.test")})
		s.host(lab.HostOptions{Certificate: s.trusted()})
	}},
	{name: "stspattern2", ours: "deferred 4.7.5", report: "validation-failure", unreached: true, build: func(s *site) { // one label, not two
		s.policy(lab.PolicyOptions{ID: "1", Body: policyText("enforce", "*.test")})
		s.host(lab.HostOptions{Certificate: s.trusted()})
	}},
	{name: "stssecond", ours: "sent TLS", report: "validation-failure", build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: policyText("enforce", "mx2-stssecond.plain.test")})
		s.host(lab.HostOptions{Certificate: s.trusted()})
		s.Host("mx2-stssecond.plain.test", lab.HostOptions{Certificate: s.Authority.Leaf(s.t, "mx2-stssecond.plain.test").Chain()})
		s.plain.Add("stssecond MX 20 mx2-stssecond")
	}},
	{name: "stssubdomain", ours: "sent TLS", build: func(s *site) { // a domain above has no say
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.mailTo("sub.stssubdomain.plain.test")
		s.Host("mx-stssubdomain.plain.test", lab.HostOptions{Certificate: s.untrusted()})
		s.plain.Add("sub.stssubdomain MX 10 mx-stssubdomain")
	}},
	{name: "stsdomaincname", ours: "sent TLS", build: func(s *site) { // nor has one that a CNAME leads to
		s.Policy("real.stsdomaincname.plain.test", lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.Host("mx-stsdomaincname.plain.test", lab.HostOptions{Certificate: s.untrusted()})
		s.plain.Add("stsdomaincname CNAME real.stsdomaincname", "real.stsdomaincname MX 10 mx-stsdomaincname")
	}},

	// Policies that are found.
	{name: "stslf", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) { s.found(strings.ReplaceAll(s.text("enforce"), "\r\n", "\n")) }},
	{name: "stsextension", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) {
		s.found(strings.Replace(s.text("enforce"), "mode:", "color: red\r\nmode:", 1))
	}},
	{name: "stsduplicate", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) { // RFC 8461, Section 3.2: the first one counts
		s.found(s.text("enforce") + "mode: none\r\n")
	}},
	{name: "stsothertext", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) {
		s.found(s.text("enforce"))
		s.plain.Add(`_mta-sts.stsothertext TXT "a text of somebody else"`)
	}},
	{name: "ststextcname", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) {
		s.policy(lab.PolicyOptions{Body: s.text("enforce")})
		s.plain.Add("_mta-sts.ststextcname CNAME _text.ststextcname", `_text.ststextcname TXT "v=STSv1; id=1"`)
		s.host(lab.HostOptions{Certificate: s.untrusted()})
	}},
	{name: "stswebwildcard", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce"), Certificate: s.Authority.Leaf(s.t, "*.stswebwildcard.plain.test").Chain()})
		s.host(lab.HostOptions{Certificate: s.untrusted()})
	}},

	// Policies that are not: mail goes as if there were none.
	{name: "stsnotext", ours: "sent TLS", build: func(s *site) { s.lost(lab.PolicyOptions{Body: s.text("enforce")}) }},
	{name: "ststwotexts", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.plain.Add(`_mta-sts.ststwotexts TXT "v=STSv1; id=2;"`)
	}},
	{name: "stsbadtext", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{Body: s.text("enforce")})
		s.plain.Add(`_mta-sts.stsbadtext TXT "v=STSv1; id=not-alphanumeric;"`)
	}},
	{name: "stsredirect", ours: "sent TLS", report: "sts-policy-fetch-error", build: func(s *site) {
		target := "https://mta-sts.sts.plain.test/.well-known/mta-sts.txt"
		s.lost(lab.PolicyOptions{ID: "1", Handler: http.RedirectHandler(target, http.StatusFound)})
	}},
	{name: "sts404", ours: "sent TLS", report: "sts-policy-fetch-error", build: func(s *site) { s.lost(lab.PolicyOptions{ID: "1", Handler: http.NotFoundHandler()}) }},
	{name: "sts206", ours: "sent TLS", report: "sts-policy-fetch-error", build: func(s *site) { s.lost(lab.PolicyOptions{ID: "1", Handler: says(206, "text/plain", s.text("enforce"))}) }},
	{name: "sts500", ours: "sent TLS", report: "sts-policy-fetch-error", build: func(s *site) { s.lost(lab.PolicyOptions{ID: "1", Handler: says(500, "text/plain", s.text("enforce"))}) }},
	{name: "stshtml", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) { s.lost(lab.PolicyOptions{ID: "1", Handler: says(200, "text/html", s.text("enforce"))}) }},
	{name: "stslarge", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: s.text("enforce") + strings.Repeat("mx: other.test\r\n", 10_000)})
	}},
	{name: "stshang", hasty: true, ours: "sent TLS", report: "sts-policy-fetch-error", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "text/plain")
			fmt.Fprint(rw, "version: STSv1\r\n")
			_ = http.NewResponseController(rw).Flush()
			<-r.Context().Done()
		})})
	}},
	{name: "stswebname", ours: "sent TLS", report: "sts-webpki-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: s.text("enforce"), Certificate: s.Authority.Leaf(s.t, s.domain()).Chain()})
	}},
	{name: "stswebcommonname", ours: "sent TLS", report: "sts-webpki-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: s.text("enforce"), Certificate: s.Authority.Issue(s.t, lab.CertSpec{Name: "mta-sts.stswebcommonname.plain.test"}).Chain()})
	}},
	{name: "stswebexpired", ours: "sent TLS", report: "sts-webpki-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: s.text("enforce"), Certificate: s.Authority.Issue(s.t, lab.CertSpec{DNS: []string{"mta-sts.stswebexpired.plain.test"}, Expired: true}).Chain()})
	}},
	{name: "stswebselfsigned", ours: "sent TLS", report: "sts-webpki-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: s.text("enforce"), Certificate: lab.SelfSigned(s.t, lab.CertSpec{DNS: []string{"mta-sts.stswebselfsigned.plain.test"}}).Chain()})
	}},
	{name: "stsnohosts", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) { s.lost(lab.PolicyOptions{ID: "1", Body: policyText("enforce")}) }},
	{name: "stsmaxage", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: strings.Replace(s.text("enforce"), "86400", "31557601", 1)})
	}},
	{name: "stsnoversion", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) {
		s.lost(lab.PolicyOptions{ID: "1", Body: strings.Replace(s.text("enforce"), "version: STSv1\r\n", "", 1)})
	}},
	{name: "stsbadmode", ours: "sent TLS", report: "sts-policy-invalid", build: func(s *site) { s.lost(lab.PolicyOptions{ID: "1", Body: s.text("force")}) }},

	// What the sender asks for (RFC 8689).
	{name: "stsrequire", requireTLS: true, ours: "sent TLS", build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.host(lab.HostOptions{Certificate: s.trusted(), Offer: requireTLS})
	}},
	{name: "stsrequirenot", requireTLS: true, ours: "bounced 5.7.30", unreached: true, build: func(s *site) {
		s.host(lab.HostOptions{Certificate: s.trusted(), Offer: requireTLS})
	}},
	{name: "stsoptional", tlsOptional: true, ours: "sent TLS", build: func(s *site) { s.sts("enforce", s.untrusted()) }},
}

// bothRows are in the zone secure.test.
var bothRows = []labRow{
	// Beside DANE, which comes first.
	{name: "bothdanebad", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) { // the policy would be content
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(s.trusted(), s.other("3 1 1"))
	}},
	{name: "bothdaneok", ours: "sent TLS", build: func(s *site) { // the policy would not
		leaf := s.leaf()
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},
	{name: "bothasked", both: true, ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) { // if we want both
		leaf := s.leaf()
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},
	{name: "bothaskedok", both: true, ours: "sent TLS", build: func(s *site) {
		leaf := s.Authority.Leaf(s.t, s.mx())
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},
	{name: "bothmismatch", ours: "deferred 4.7.5", report: "validation-failure", unreached: true, build: func(s *site) { // it still says which hosts
		leaf := s.leaf()
		s.policy(lab.PolicyOptions{ID: "1", Body: policyText("enforce", "other.test")})
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},
	{name: "bothbogus", ours: "deferred 4.7.5", report: "dnssec-invalid", unreached: true, build: func(s *site) { // an error of DANE is not "no DANE"
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(s.trusted(), s.other("3 1 1"))
		s.secure.Break("_25._tcp.mx-bothbogus", dns.TypeTLSA)
	}},
	{name: "bothunusable", ours: "sent TLS", report: "tlsa-invalid", build: func(s *site) {
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(s.trusted(), s.other("1 1 1"))
	}},
	{name: "bothunusablebad", ours: "deferred 4.7.5", report: "certificate-not-trusted tlsa-invalid", build: func(s *site) { // TLS by DANE, the certificate by the policy
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(s.leaf().Chain(), s.other("1 1 1"))
	}},
	{name: "bothtesting", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) { // only the policy is tested
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("testing")})
		s.serve(s.trusted(), s.other("3 1 1"))
	}},
	{name: "bothabsent", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) { // no records: the policy decides
		s.policy(lab.PolicyOptions{ID: "1", Body: s.text("enforce")})
		s.serve(s.leaf().Chain())
	}},

	// What the sender asks for (RFC 8689).
	{name: "requiredane", requireTLS: true, ours: "sent TLS", build: func(s *site) {
		leaf := s.leaf()
		s.host(lab.HostOptions{Certificate: leaf.Chain(), Offer: requireTLS}, s.is("3 1 1", leaf))
	}},
	{name: "requirepkix", requireTLS: true, ours: "sent TLS", build: func(s *site) { // MX records are secure, and there is no policy
		s.host(lab.HostOptions{Certificate: s.trusted(), Offer: requireTLS})
	}},
	{name: "requirenotoffered", requireTLS: true, ours: "bounced 5.7.30", build: func(s *site) {
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},
	{name: "requiresecond", requireTLS: true, ours: "sent TLS", build: func(s *site) { // the next host offers it
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
		second := s.middle.Leaf(s.t, "second-requiresecond.secure.test")
		s.Host("second-requiresecond.secure.test", lab.HostOptions{Certificate: second.Chain(), Offer: requireTLS})
		s.secure.Add("requiresecond MX 20 second-requiresecond")
		s.secure.TLSA("second-requiresecond", "3 1 1", second)
	}},
	{name: "optionaldane", tlsOptional: true, ours: "sent TLS", build: func(s *site) { s.serve(s.leaf().Chain(), s.other("3 1 1")) }},
	{name: "optionalclear", tlsOptional: true, ours: "sent clear", build: func(s *site) { s.host(lab.HostOptions{}, s.other("3 1 1")) }},
	{name: "optionalbogus", tlsOptional: true, ours: "sent TLS", build: func(s *site) {
		s.serve(s.leaf().Chain(), s.other("3 1 1"))
		s.secure.Break("_25._tcp.mx-optionalbogus", dns.TypeTLSA)
	}},
	{name: "optionalboth", tlsOptional: true, requireTLS: true, ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) { // RFC 8689, Section 4.1: REQUIRETLS counts
		s.host(lab.HostOptions{Certificate: s.leaf().Chain(), Offer: requireTLS}, s.other("3 1 1"))
	}},
}

var requireTLS = smtp.Extensions{RequireTLS: true}

// text is a policy that names the row's host.
func (s *site) text(mode string) string { return policyText(mode, s.mx()) }

// policyText is a policy.
func policyText(mode string, hosts ...string) string {
	text := "version: STSv1\r\nmode: " + mode + "\r\nmax_age: 86400\r\n"
	for _, h := range hosts {
		text += "mx: " + h + "\r\n"
	}
	return text
}

// policy adds a policy for the row's domain.
func (s *site) policy(o lab.PolicyOptions) { s.Policy(s.domain(), o) }

// sts adds a policy that names the row's host, and the host with a certificate.
func (s *site) sts(mode string, c *tls.Certificate) {
	s.policy(lab.PolicyOptions{ID: "1", Body: s.text(mode)})
	s.host(lab.HostOptions{Certificate: c})
}

// found adds a policy that is to be found, and a host that it does not like.
func (s *site) found(body string) { s.lost(lab.PolicyOptions{ID: "1", Body: body}) }

// lost adds a policy and a host that it would not like.
func (s *site) lost(o lab.PolicyOptions) {
	s.policy(o)
	s.host(lab.HostOptions{Certificate: s.untrusted()})
}

// trusted is a certificate of the lab's authority for the row's host, untrusted one of another.
func (s *site) trusted() *tls.Certificate {
	return s.Authority.Leaf(s.t, s.mx()).Chain()
}

func (s *site) untrusted() *tls.Certificate {
	return s.stranger.Leaf(s.t, s.mx()).Chain()
}

// says answers requests.
func says(code int, kind, body string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", kind)
		rw.WriteHeader(code)
		fmt.Fprint(rw, body)
	})
}
