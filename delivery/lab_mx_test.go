package delivery_test

// lab_mx_test.go: which hosts take the mail of a domain (RFC 5321, Section 5.1; RFC 7505), and
// what happens at their doors.

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"fmt"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/mail/smtp"
)

var mxRows = []labRow{
	// Which hosts there are.
	{name: "nexthop", ours: "sent clear", build: func(s *site) { // the domain is a CNAME
		s.Host(s.mx(), lab.HostOptions{})
		s.secure.Add("nexthop CNAME one.nexthop", "one.nexthop CNAME two.nexthop", "two.nexthop MX 10 mx-nexthop")
	}},
	{name: "order", ours: "sent clear", build: func(s *site) {
		s.hosts(lab.HostOptions{}, lab.HostOptions{Rcpt: refusal(550, smtp.Enhanced{5, 1, 1})})
	}},
	{name: "nomx", ours: "sent clear", build: func(s *site) { s.Host(s.domain(), lab.HostOptions{}) }},
	{name: "nomxcname", ours: "sent clear", build: func(s *site) {
		s.secure.Add("nomxcname CNAME real.nomxcname")
		s.Host("real."+s.domain(), lab.HostOptions{})
	}},
	{name: "nothing", ours: "bounced 5.4.4", build: func(s *site) { s.secure.Add("nothing TXT nothing") }},
	{name: "noname", ours: "bounced 5.1.2", postfix: "bounced 5.4.4", because: labCode, build: func(*site) {}},
	{name: "nullmx", ours: "bounced 5.1.10", postfix: "bounced 5.1.0",
		because: "RFC 7505, Section 4.2: the code for it is 5.1.10", build: func(s *site) { s.secure.Add("nullmx MX 0 .") }},
	{name: "nullandmx", ours: "sent clear", postfix: "bounced 5.1.0",
		because: "RFC 7505, Section 3: a null MX is a single record; beside others it is a mistake, and there is a host that takes the mail",
		build: func(s *site) {
			s.host(lab.HostOptions{})
			s.secure.Add("nullandmx MX 0 .")
		}},
	{name: "mxnoaddr", ours: "sent clear", build: func(s *site) { // the next host
		s.host(lab.HostOptions{})
		s.secure.Add("mxnoaddr MX 5 empty.mxnoaddr", "empty.mxnoaddr TXT nothing")
	}},
	{name: "mxnoaddrs", ours: "bounced 5.4.4", build: func(s *site) {
		s.secure.Add("mxnoaddrs MX 5 empty.mxnoaddrs", "empty.mxnoaddrs TXT nothing", "mxnoaddrs MX 10 noname.mxnoaddrs")
	}},
	{name: "mxbroken", ours: "sent clear", build: func(s *site) { // one of them is not known
		s.host(lab.HostOptions{})
		s.secure.Add("mxbroken MX 5 broken.mxbroken", "broken.mxbroken A 127.0.0.9")
		s.secure.Break("broken.mxbroken", dns.TypeA)
	}},
	{name: "mxbrokenall", ours: "deferred 4.4.3", postfix: "deferred 4.4.4", because: labCode, build: func(s *site) {
		s.secure.Add("mxbrokenall MX 5 broken.mxbrokenall", "broken.mxbrokenall A 127.0.0.9", "mxbrokenall MX 10 noname.mxbrokenall")
		s.secure.Break("broken.mxbrokenall", dns.TypeA)
	}},
	{name: "mxliteral", ours: "bounced 5.4.4", postfix: "sent clear", because: "RFC 1035, Section 3.3.9: what an MX record names is a domain", build: func(s *site) {
		h := s.Host("unused-mxliteral.secure.test", lab.HostOptions{})
		s.secure.Add("mxliteral MX 10 " + h.Addr.String() + ".")
	}},

	// Who takes the mail of those.
	{name: "mxclosed", ours: "sent clear", build: func(s *site) { s.hosts(lab.HostOptions{Closed: true}, lab.HostOptions{}) }},
	{name: "mxallclosed", ours: "deferred 4.4.1", build: func(s *site) {
		s.hosts(lab.HostOptions{Closed: true}, lab.HostOptions{Closed: true})
	}},
	{name: "addresses", ours: "sent clear", build: func(s *site) { // the next address of a host
		closed := s.Host("closed-addresses.secure.test", lab.HostOptions{Closed: true})
		s.host(lab.HostOptions{})
		s.secure.Add("mx-addresses A " + closed.Addr.String())
	}},
	{name: "ipv6", ipv6: true, ours: "sent clear", build: func(s *site) { s.host(lab.HostOptions{IPv6: true, NoIPv4: true}) }},
	{name: "ipv6next", ipv6: true, ours: "sent clear", build: func(s *site) { // the other family
		s.host(lab.HostOptions{IPv6: true, Closed4: true})
	}},
	{name: "ipv6implicit", ipv6: true, ours: "sent clear", build: func(s *site) {
		s.Host(s.domain(), lab.HostOptions{IPv6: true, Closed4: true})
	}},
	{name: "ipv6tlsa", ipv6: true, ours: "sent TLS", build: func(s *site) {
		leaf := s.leaf()
		s.host(lab.HostOptions{IPv6: true, NoIPv4: true, Certificate: leaf.Chain()}, s.is("3 1 1", leaf))
	}},
	{name: "greeting421", ours: "sent clear", build: func(s *site) {
		s.hosts(lab.HostOptions{Greeting: refusal(421, smtp.Enhanced{4, 3, 2})}, lab.HostOptions{})
	}},
	{name: "greeting554", ours: "sent clear", build: func(s *site) {
		s.hosts(lab.HostOptions{Greeting: refusal(554, smtp.Enhanced{5, 7, 1})}, lab.HostOptions{})
	}},
	{name: "mail451", ours: "sent clear", build: func(s *site) {
		s.hosts(lab.HostOptions{Mail: refusal(451, smtp.Enhanced{4, 3, 0})}, lab.HostOptions{})
	}},
	{name: "rcpt550", ours: "bounced 5.1.1", build: func(s *site) { // that is final: the next host is not asked
		s.hosts(lab.HostOptions{Rcpt: refusal(550, smtp.Enhanced{5, 1, 1})}, lab.HostOptions{})
	}},
	{name: "data552", ours: "bounced 5.2.2", build: func(s *site) {
		s.hosts(lab.HostOptions{Message: refusal(552, smtp.Enhanced{5, 2, 2})}, lab.HostOptions{})
	}},

	// STARTTLS where nobody asks for it.
	{name: "tls454", ours: "sent clear", build: func(s *site) {
		s.host(lab.HostOptions{Certificate: s.leaf().Chain(), StartTLS: "454 4.7.0 not now"})
	}},
	{name: "tlsbroken", ours: "sent clear", postfix: "deferred 4.7.5",
		because: "it tries clear text too, but not before the message has waited for some minutes (minimal_backoff_time)", build: func(s *site) {
			s.host(lab.HostOptions{Certificate: s.leaf().Chain(), StartTLS: "220 2.0.0 but no handshake"})
		}},
	{name: "tlsinjected", ours: "sent TLS", build: func(s *site) {
		s.host(lab.HostOptions{Certificate: s.leaf().Chain(), Injected: "250 injected\r\n"})
	}},
	{name: "tlsold", ours: "sent clear", postfix: "sent TLS", because: "RFC 8996, Sections 4 and 5: neither TLS 1.0 nor 1.1 must be used", build: func(s *site) { // TLS 1.1 at most
		s.host(lab.HostOptions{Certificate: s.leaf().Chain(), TLS: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }})
	}},
	{name: "tlsrsa", ours: "sent TLS", build: func(s *site) { // what old hosts have: no forward secrecy
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			s.t.Fatal(err)
		}
		leaf := s.middle.Issue(s.t, lab.CertSpec{DNS: []string{s.mx()}, Key: key})
		s.host(lab.HostOptions{Certificate: leaf.Chain(), TLS: func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}})
	}},
	{name: "tlsunreadable", ours: "sent clear", postfix: "sent TLS", because: labSerial, build: func(s *site) {
		s.host(lab.HostOptions{Certificate: s.middle.Issue(s.t, lab.CertSpec{DNS: []string{s.mx()}, Negative: true}).Chain()})
	}},
}

// refusal is a reply for a host.
func refusal(code int, enh smtp.Enhanced) *smtp.Reply { return smtp.Refuse(code, enh, "not here") }

// hosts adds hosts for the row in the order of their preference, the first being mx().
func (s *site) hosts(options ...lab.HostOptions) {
	s.host(options[0])
	for i, o := range options[1:] {
		name := fmt.Sprintf("mx%d-%s", i+2, s.name)
		s.Host(name+".secure.test", o)
		s.secure.Add(fmt.Sprintf("%s MX %d %s", s.name, 20+i, name))
	}
}
