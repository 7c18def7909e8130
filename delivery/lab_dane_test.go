package delivery_test

// lab_dane_test.go: DANE (RFC 7672), each rule with a host that keeps it or breaks it.

import (
	"strings"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/lab"
)

// daneRows are the rules of RFC 7672, with those of RFC 7671 that it stands on.
var daneRows = []labRow{
	// What is known of the hosts.
	{name: "bogusmx", ours: "deferred 4.4.3", build: func(s *site) {
		s.mailTo("bogus.test")
		s.Zone("bogus.test", lab.Bogus).Add("@ MX 10 mx-ok311.secure.test.")
	}},
	{name: "lamemx", ours: "deferred 4.4.3", build: func(s *site) {
		s.Zone("lame.test", lab.Lame)
		s.mailTo("lame.test")
	}},
	{name: "insecmx", ours: "sent TLS", build: func(s *site) {
		s.mailTo("insecmx.plain.test")
		leaf := s.leaf()
		s.Host(s.mx(), lab.HostOptions{Certificate: leaf.Chain()})
		s.tlsa(s.is("3 1 1", leaf))
		s.plain.Add("insecmx MX 10 " + s.mx() + ".")
	}},
	{name: "insecmxbad", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		s.mailTo("insecmxbad.plain.test")
		s.Host(s.mx(), lab.HostOptions{Certificate: s.leaf().Chain()})
		s.tlsa(s.other("3 1 1"))
		s.plain.Add("insecmxbad MX 10 " + s.mx() + ".")
	}},
	{name: "plain", ours: "sent clear", report: "starttls-not-supported", build: func(s *site) {
		s.mailTo("plain.test")
		s.Host("mx.plain.test", lab.HostOptions{})
		s.plain.Add("@ MX 10 mx")
	}},
	{name: "sec2insec", ours: "sent TLS", build: func(s *site) { // insecure address: no question for TLSA
		leaf := s.leaf()
		s.Host("mx-sec2insec.plain.test", lab.HostOptions{Certificate: leaf.Chain()})
		s.secure.Add("sec2insec MX 10 mx-sec2insec.plain.test.")
		s.plain.Add("_25._tcp.mx-sec2insec TLSA " + s.other("3 1 1"))
	}},
	{name: "bogusaddr", ours: "deferred 4.4.3", unreached: true, build: func(s *site) { // nothing is known of the host
		s.serve(s.leaf().Chain(), s.is("3 1 1", s.leaf()))
		s.secure.Break("mx-bogusaddr", dns.TypeA)
	}},

	// Where the records are.
	{name: "cnamemx", ours: "sent TLS", sni: "real-cnamemx.secure.test", build: func(s *site) { // the expanded name has the records
		leaf := s.middle.Leaf(s.t, "real-cnamemx.secure.test")
		s.Host("real-cnamemx.secure.test", lab.HostOptions{Certificate: leaf.Chain()})
		s.secure.Add("cnamemx MX 10 mx-cnamemx", "mx-cnamemx CNAME real-cnamemx")
		s.secure.TLSA("real-cnamemx", "3 1 1", leaf)
	}},
	{name: "cnamemx2", ours: "sent TLS", sni: "mx-cnamemx2.secure.test", build: func(s *site) { // else the initial one
		leaf := s.leaf()
		s.Host("real-cnamemx2.secure.test", lab.HostOptions{Certificate: leaf.Chain()})
		s.secure.Add("cnamemx2 MX 10 mx-cnamemx2", "mx-cnamemx2 CNAME real-cnamemx2")
		s.tlsa(s.is("3 1 1", leaf))
	}},
	{name: "cnamebad", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) { // the expanded name's count, whatever the initial one has
		leaf := s.leaf()
		s.Host("real-cnamebad.secure.test", lab.HostOptions{Certificate: leaf.Chain()})
		s.secure.Add("cnamebad MX 10 mx-cnamebad", "mx-cnamebad CNAME real-cnamebad", "_25._tcp.real-cnamebad TLSA "+s.other("3 1 1"))
		s.tlsa(s.is("3 1 1", leaf))
	}},
	{name: "cnameinsec", ours: "sent TLS", sni: "mx-cnameinsec.secure.test", build: func(s *site) { // the CNAME is secure, what it leads to is not
		leaf := s.leaf()
		s.Host("mx-cnameinsec.plain.test", lab.HostOptions{Certificate: leaf.Chain()})
		s.secure.Add("cnameinsec MX 10 mx-cnameinsec", "mx-cnameinsec CNAME mx-cnameinsec.plain.test.")
		s.tlsa(s.is("3 1 1", leaf))
	}},
	{name: "cnameinsecbad", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		s.Host("mx-cnameinsecbad.plain.test", lab.HostOptions{Certificate: s.leaf().Chain()})
		s.secure.Add("cnameinsecbad MX 10 mx-cnameinsecbad", "mx-cnameinsecbad CNAME mx-cnameinsecbad.plain.test.")
		s.tlsa(s.other("3 1 1"))
	}},
	{name: "tlsacname", ours: "sent TLS", sni: "mx-tlsacname.secure.test", build: func(s *site) {
		leaf := s.leaf()
		s.serve(leaf.Chain())
		s.secure.Add("_25._tcp.mx-tlsacname CNAME _dane.tlsacname", "_dane.tlsacname TLSA "+s.is("3 1 1", leaf))
	}},
	{name: "tlsacnamebad", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		s.serve(s.leaf().Chain())
		s.secure.Add("_25._tcp.mx-tlsacnamebad CNAME _dane.tlsacnamebad", "_dane.tlsacnamebad TLSA "+s.other("3 1 1"))
	}},
	{name: "tlsainsec", ours: "sent TLS", build: func(s *site) { // one insecure link, and there are no records
		s.serve(s.leaf().Chain())
		s.secure.Add("_25._tcp.mx-tlsainsec CNAME _dane.tlsainsec.plain.test.")
		s.plain.Add("_dane.tlsainsec TLSA " + s.other("3 1 1"))
	}},
	{name: "bogustlsa", ours: "deferred 4.7.5", report: "dnssec-invalid", unreached: true, build: func(s *site) {
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
		s.secure.Break("_25._tcp.mx-bogustlsa", dns.TypeTLSA)
	}},
	{name: "sftlsa", ours: "deferred 4.7.5", report: "dnssec-invalid", unreached: true, build: func(s *site) {
		s.serve(s.leaf().Chain())
		s.Zone("_25._tcp.mx-sftlsa.secure.test", lab.Lame)
	}},
	{name: "notlsa", ours: "sent TLS", build: func(s *site) { s.serve(s.stranger.Leaf(s.t, "nobody.test").Chain()) }},
	{name: "notlsaclear", ours: "sent clear", report: "starttls-not-supported", build: func(s *site) { s.host(lab.HostOptions{}) }},
	{name: "implicit", ours: "sent TLS", sni: "implicit.secure.test", build: func(s *site) {
		leaf := s.middle.Leaf(s.t, s.domain())
		s.Host(s.domain(), lab.HostOptions{Certificate: leaf.Chain()})
		s.secure.TLSA("implicit", "3 1 1", leaf)
	}},
	{name: "implicitbad", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		s.Host(s.domain(), lab.HostOptions{Certificate: s.leaf().Chain()})
		s.secure.Add("_25._tcp.implicitbad TLSA " + s.other("3 1 1"))
	}},

	// Records that cannot be used: TLS, with any certificate.
	{name: "unusable", ours: "sent TLS", report: "tlsa-invalid", build: func(s *site) { s.serve(s.leaf().Chain(), s.other("1 1 1")) }},
	{name: "unusablebad", ours: "sent TLS", report: "tlsa-invalid", build: func(s *site) {
		s.serve(s.stranger.Leaf(s.t, "nobody.test").Chain(), s.other("0 0 1"))
	}},
	{name: "mtype9", ours: "sent TLS", report: "tlsa-invalid", build: func(s *site) { s.serve(s.leaf().Chain(), "3 1 9 00112233") }},
	{name: "selector7", ours: "sent TLS", report: "tlsa-invalid", build: func(s *site) { s.serve(s.leaf().Chain(), "3 7 1 "+strings.Repeat("5a", 32)) }},
	{name: "shortdig", ours: "sent TLS", report: "tlsa-invalid", build: func(s *site) { s.serve(s.leaf().Chain(), "3 1 1 00112233") }},
	{name: "nostarttlsunus", ours: "deferred 4.7.4", report: "starttls-not-supported", build: func(s *site) { s.host(lab.HostOptions{}, s.other("1 1 1")) }},
	{name: "mixbad", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		s.serve(s.leaf().Chain(), s.other("1 1 1"), s.other("3 1 1"))
	}},
	{name: "mixok", ours: "sent TLS", build: func(s *site) {
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.other("1 1 1"), s.is("3 1 1", leaf))
	}},

	// STARTTLS.
	{name: "nostarttls", ours: "deferred 4.7.4", report: "starttls-not-supported", build: func(s *site) { s.host(lab.HostOptions{}, s.other("3 1 1")) }},
	{name: "starttls454", ours: "deferred 4.7.4", report: "starttls-not-supported", postfix: "deferred 4.7.0", because: labCode, build: func(s *site) {
		leaf := s.leaf()
		s.host(lab.HostOptions{Certificate: leaf.Chain(), StartTLS: "454 4.7.0 TLS is not to be had"}, s.is("3 1 1", leaf))
	}},
	{name: "wrong311", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) { s.serve(s.leaf().Chain(), s.other("3 1 1")) }},

	// DANE-EE: the record alone decides.
	{name: "ok311", ours: "sent TLS", sni: "mx-ok311.secure.test", build: func(s *site) { leaf := s.leaf(); s.serve(leaf.Chain(), s.is("3 1 1", leaf)) }},
	{name: "ok312", ours: "sent TLS", build: func(s *site) { leaf := s.leaf(); s.serve(leaf.Chain(), s.is("3 1 2", leaf)) }},
	{name: "ok301", ours: "sent TLS", build: func(s *site) { leaf := s.leaf(); s.serve(leaf.Chain(), s.is("3 0 1", leaf)) }},
	{name: "ok300", ours: "sent TLS", build: func(s *site) { leaf := s.leaf(); s.serve(leaf.Chain(), s.is("3 0 0", leaf)) }},
	{name: "spki0", ours: "sent TLS", build: func(s *site) { leaf := s.leaf(); s.serve(leaf.Chain(), s.is("3 1 0", leaf)) }},
	{name: "eename", ours: "sent TLS", build: func(s *site) {
		leaf := s.middle.Leaf(s.t, "nobody.test")
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},
	{name: "expired", ours: "sent TLS", build: func(s *site) {
		leaf := s.middle.Issue(s.t, lab.CertSpec{DNS: []string{s.mx()}, Expired: true})
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},
	{name: "selfsigned", ours: "sent TLS", build: func(s *site) {
		leaf := lab.SelfSigned(s.t, lab.CertSpec{Name: s.mx()})
		s.serve(leaf.Chain(), s.is("3 0 1", leaf))
	}},
	{name: "eeint", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) { // usage 3 is about the leaf alone
		s.serve(s.leaf().Chain(), s.is("3 1 1", s.middle))
	}},
	{name: "roll", ours: "sent TLS", build: func(s *site) {
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.other("3 1 1"), s.is("3 1 1", leaf))
	}},
	{name: "eeunreadable", ours: "deferred 4.7.5", postfix: "sent TLS", because: labSerial, report: "validation-failure", build: func(s *site) {
		leaf := s.middle.Issue(s.t, lab.CertSpec{DNS: []string{s.mx()}, Negative: true})
		s.serve(leaf.Chain(), s.is("3 1 1", leaf))
	}},

	// DANE-TA: a path, dates and names.
	{name: "ta201", ours: "sent TLS", build: func(s *site) {
		s.serve(s.leaf().With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "ta211int", ours: "sent TLS", build: func(s *site) { s.serve(s.leaf().With(s.middle), s.is("2 1 1", s.middle)) }},
	{name: "ta200", ours: "sent TLS", build: func(s *site) { s.serve(s.leaf().With(s.middle), s.is("2 0 0", s.anchor)) }},
	{name: "ta210", ours: "sent TLS", build: func(s *site) { s.serve(s.leaf().With(s.middle), s.is("2 1 0", s.anchor)) }},
	{name: "taexpired", ours: "deferred 4.7.5", report: "certificate-expired", build: func(s *site) {
		leaf := s.middle.Issue(s.t, lab.CertSpec{DNS: []string{s.mx()}, Expired: true})
		s.serve(leaf.With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "tafuture", ours: "deferred 4.7.5", report: "certificate-expired", build: func(s *site) {
		leaf := s.middle.Issue(s.t, lab.CertSpec{DNS: []string{s.mx()}, Future: true})
		s.serve(leaf.With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "tamissing", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) { s.serve(s.leaf().With(s.middle), s.is("2 0 1", s.anchor)) }},
	{name: "tagap", ours: "deferred 4.7.5", report: "certificate-not-trusted", build: func(s *site) { // the anchor is there, the way to it is not
		s.serve(s.leaf().With(s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "taleaf", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		leaf := s.leaf()
		s.serve(leaf.With(s.middle, s.anchor), s.is("2 0 1", leaf))
	}},
	{name: "taself", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		leaf := lab.SelfSigned(s.t, lab.CertSpec{Name: s.mx(), DNS: []string{s.mx()}})
		s.serve(leaf.Chain(), s.is("2 0 1", leaf))
	}},
	{name: "taname", ours: "deferred 4.7.5", report: "certificate-host-mismatch", build: func(s *site) {
		s.serve(s.middle.Leaf(s.t, "nobody.test").With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "tanexthop", ours: "sent TLS", build: func(s *site) {
		s.serve(s.middle.Leaf(s.t, s.domain()).With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "tanexthopinsec", ours: "deferred 4.7.5", report: "certificate-host-mismatch", postfix: "sent TLS",
		because: "RFC 7672, Section 3.2.2: the domain is among the names where the host was found by a secure MX look-up; else there is only the TLSA base domain",
		build: func(s *site) { // that name came by an insecure MX
			s.mailTo("tanexthopinsec.plain.test")
			s.Host(s.mx(), lab.HostOptions{Certificate: s.middle.Leaf(s.t, "tanexthopinsec.plain.test").With(s.middle, s.anchor)})
			s.tlsa(s.is("2 0 1", s.anchor))
			s.plain.Add("tanexthopinsec MX 10 " + s.mx() + ".")
		}},
	{name: "cdom1", ours: "sent TLS", build: func(s *site) { // the certificate is for the domain, which is a CNAME
		s.Host(s.mx(), lab.HostOptions{Certificate: s.middle.Leaf(s.t, s.domain()).With(s.middle, s.anchor)})
		s.secure.Add("cdom1 CNAME real.cdom1", "real.cdom1 MX 10 mx-cdom1")
		s.tlsa(s.is("2 0 1", s.anchor))
	}},
	{name: "cdom2", ours: "sent TLS", sni: "mx-cdom2.secure.test", build: func(s *site) { // or for where that leads
		s.Host(s.mx(), lab.HostOptions{Certificate: s.middle.Leaf(s.t, "real."+s.domain()).With(s.middle, s.anchor)})
		s.secure.Add("cdom2 CNAME real.cdom2", "real.cdom2 MX 10 mx-cdom2")
		s.tlsa(s.is("2 0 1", s.anchor))
	}},
	{name: "cnsan", ours: "deferred 4.7.5", report: "certificate-host-mismatch", build: func(s *site) { // with DNS names the common name does not count
		leaf := s.middle.Issue(s.t, lab.CertSpec{Name: s.mx(), DNS: []string{"nobody.test"}})
		s.serve(leaf.With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "cnonly", ours: "sent TLS", build: func(s *site) {
		leaf := s.middle.Issue(s.t, lab.CertSpec{Name: s.mx()})
		s.serve(leaf.With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "tawild", ours: "sent TLS", build: func(s *site) {
		s.serve(s.middle.Leaf(s.t, "*.secure.test").With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},
	{name: "tawild2", ours: "deferred 4.7.5", report: "certificate-host-mismatch", build: func(s *site) { // one label, not two
		s.serve(s.middle.Leaf(s.t, "*.test").With(s.middle, s.anchor), s.is("2 0 1", s.anchor))
	}},

	// Digest agility.
	{name: "agile1", ours: "deferred 4.7.5", report: "validation-failure", build: func(s *site) {
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.other("3 1 2"), s.is("3 1 1", leaf))
	}},
	{name: "agile2", ours: "sent TLS", build: func(s *site) { // another selector is another matter
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.other("3 1 2"), s.is("3 0 1", leaf))
	}},
	{name: "agile0", ours: "sent TLS", build: func(s *site) { // the whole key always counts
		leaf := s.leaf()
		s.serve(leaf.Chain(), s.other("3 1 2"), s.is("3 1 0", leaf))
	}},

	// Several hosts: the next one, in their order.
	{name: "multi", ours: "sent TLS", report: "validation-failure", build: func(s *site) {
		s.serve(s.leaf().Chain(), s.other("3 1 1"))
		second := s.middle.Leaf(s.t, "second-multi.secure.test")
		s.Host("second-multi.secure.test", lab.HostOptions{Certificate: second.Chain()})
		s.secure.Add("multi MX 20 second-multi")
		s.secure.TLSA("second-multi", "3 1 1", second)
	}},
	{name: "multibogus", ours: "sent TLS", report: "dnssec-invalid", build: func(s *site) {
		s.serve(s.leaf().Chain(), s.other("3 1 1"))
		s.secure.Break("_25._tcp.mx-multibogus", dns.TypeTLSA)
		s.Host("second-multibogus.secure.test", lab.HostOptions{Certificate: s.leaf().Chain()})
		s.secure.Add("multibogus MX 20 second-multibogus")
	}},
	{name: "multiorder", ours: "sent clear", report: "starttls-not-supported", build: func(s *site) { // a safer host does not come first
		s.host(lab.HostOptions{})
		second := s.middle.Leaf(s.t, "second-multiorder.secure.test")
		s.Host("second-multiorder.secure.test", lab.HostOptions{Certificate: second.Chain()})
		s.secure.Add("multiorder MX 20 second-multiorder")
		s.secure.TLSA("second-multiorder", "3 1 1", second)
	}},

	// Where DANE is required.
	{name: "mustok", required: true, ours: "sent TLS", build: func(s *site) { leaf := s.leaf(); s.serve(leaf.Chain(), s.is("3 1 1", leaf)) }},
	{name: "mustnone", required: true, ours: "deferred 4.7.5", report: "dane-required", build: func(s *site) { s.serve(s.leaf().Chain()) }},
	{name: "mustunusable", required: true, ours: "deferred 4.7.5", report: "dane-required", build: func(s *site) { s.serve(s.leaf().Chain(), s.other("1 1 1")) }},
	{name: "mustinsec", required: true, ours: "deferred 4.7.5", report: "dane-required", build: func(s *site) {
		s.mailTo("mustinsec.plain.test")
		leaf := s.leaf()
		s.Host(s.mx(), lab.HostOptions{Certificate: leaf.Chain()})
		s.tlsa(s.is("3 1 1", leaf))
		s.plain.Add("mustinsec MX 10 " + s.mx() + ".")
	}},

	// Addresses have no records.
	{name: "literal", ours: "sent TLS", build: func(s *site) {
		h := s.serve(s.leaf().Chain(), s.other("3 1 1"))
		s.mailTo("[" + h.Addr.String() + "]")
	}},
}
