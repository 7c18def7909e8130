package delivery_test

// lab_test.go: the outbound way in a small Internet of real parts. Each row of the tables in
// lab_mx_test.go, lab_dane_test.go and lab_sts_test.go is a domain, whose zone, hosts and
// certificates are made so that one rule decides what becomes of mail to it.
//
// The rows without MTA-STS also go through Postfix's client with smtp_tls_security_level =
// dane, which has done this for many years. Where it does something else the row says so, and
// why we do not.

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/internal/peers"
)

// labRow is a domain and what becomes of mail to it.
type labRow struct {
	name  string
	build func(s *site)
	// ours is what we make of it: "sent TLS", "sent clear", or "deferred" or "bounced" with
	// an enhanced code.
	ours string
	// postfix is what Postfix does if that is not the same, and because why. It is not asked
	// about rows where postfix is "-".
	postfix, because string
	// report is what kinds of failures are reported about the domain (RFC 8460, Section 4.3),
	// sorted. Rows of hosts without TLS, which nobody asks for, have it not: anyReport.
	report    string
	anyReport bool
	// sni is what we name in the handshake; empty for what goes without saying.
	sni string
	// unreached tells that nobody connects to the row's host.
	unreached bool
	// plain puts it into the zone plain.test.
	plain bool
	// ipv6 tells that it is about IPv6, and to be left out where there is none.
	ipv6 bool
	// required tells that DANE is required.
	required bool
	// both tells that a certificate has to please DANE and MTA-STS (PlanOptions.Both).
	both bool
	// hasty tells that policy hosts get two seconds, in place of a minute.
	hasty bool
	// requireTLS and tlsOptional are what the sender says: REQUIRETLS, and TLS-Required: No.
	requireTLS, tlsOptional bool
}

// labCode is the reason where only the code is not the same.
const labCode = "the outcome is the same, and no standard says which code it has"

// labSerial is the reason where a certificate cannot be read.
const labSerial = "RFC 5280, Section 4.1.2.2: a serial number is positive; crypto/tls ends the handshake otherwise"

// site is what the rows of the tables build with: the zones of the world, and a few
// authorities.
type site struct {
	*lab.World
	t                        *testing.T
	name                     string            // of the row: the first label of its domain
	at                       map[string]string // the domains of rows, if they have another
	zone                     *lab.Zone         // of the row: one of the next two
	secure, plain            *lab.Zone
	anchor, middle, stranger *lab.Cert
}

// newSites makes a world with the zones that all rows are in.
func newSites(t *testing.T) *site {
	w := lab.New(t)
	w.Zone("test", lab.Signed)
	s := &site{World: w, t: t, secure: w.Zone("secure.test", lab.Signed), plain: w.Zone("plain.test", lab.Insecure)}
	s.at = make(map[string]string)
	s.anchor = lab.SelfSigned(t, lab.CertSpec{Name: "Trust anchor", Authority: true})
	s.middle = s.anchor.Issue(t, lab.CertSpec{Name: "Intermediate", Authority: true})
	s.stranger = lab.SelfSigned(t, lab.CertSpec{Name: "Stranger", Authority: true})
	return s
}

// row returns the site for a row.
func (s *site) row(r labRow) *site {
	c := *s
	c.name, c.zone = r.name, s.secure
	if r.plain {
		c.zone = s.plain
	}
	return &c
}

// mx is the name of the row's host.
func (s *site) mx() string { return "mx-" + s.name + "." + s.zone.Name() }

// domain is the row's domain: one in its zone, unless mailTo said otherwise.
func (s *site) domain() string {
	if d, ok := s.at[s.name]; ok {
		return d
	}
	return s.name + "." + s.zone.Name()
}

// mailTo makes mail of the row go to another domain, or an address literal.
func (s *site) mailTo(domain string) { s.at[s.name] = domain }

// host adds the row's host, with TLSA records whose data is written out, and an MX record
// that leads there.
func (s *site) host(o lab.HostOptions, tlsa ...string) *lab.Host {
	h := s.Host(s.mx(), o)
	s.zone.Add(fmt.Sprintf("%s MX 10 mx-%s", s.name, s.name))
	s.tlsa(tlsa...)
	return h
}

// serve is host with a certificate.
func (s *site) serve(c *tls.Certificate, tlsa ...string) *lab.Host {
	return s.host(lab.HostOptions{Certificate: c}, tlsa...)
}

// tlsa adds TLSA records for the row's host.
func (s *site) tlsa(records ...string) {
	for _, r := range records {
		s.zone.Add(fmt.Sprintf("_25._tcp.mx-%s TLSA %s", s.name, r))
	}
}

// leaf is a good certificate for the row's host.
func (s *site) leaf() *lab.Cert { return s.middle.Leaf(s.t, s.mx()) }

// other is record data that matches no certificate.
func (s *site) other(how string) string { return s.stranger.TLSA(s.t, how) }

// is is record data that matches a certificate.
func (s *site) is(how string, c *lab.Cert) string { return c.TLSA(s.t, how) }

// messages are those that came to an address.
func (s *site) messages(to string) (found []lab.Message) {
	for _, h := range s.Hosts() {
		for _, m := range h.Messages() {
			if len(m.To) == 1 && m.To[0].Path.String() == to {
				found = append(found, m)
			}
		}
	}
	return found
}

// sent tells how the message to an address came: "sent TLS", "sent clear", or that it came
// more than once or not at all.
func (s *site) sent(to string) string {
	switch found := s.messages(to); {
	case len(found) != 1:
		return fmt.Sprintf("sent %d times", len(found))
	case found[0].TLS != nil:
		return "sent TLS"
	}
	return "sent clear"
}

// connections is how many were made to the row's host.
func (s *site) connections() (n int) {
	for _, h := range s.Hosts() {
		if h.Name == s.mx() {
			n += h.Connections()
		}
	}
	return n
}

// rows are all rows that can be.
func (s *site) rows() []labRow {
	first, plain, both := slices.Clone(mxRows), slices.Clone(stsRows), slices.Clone(bothRows)
	for i := range first {
		first[i].anyReport = true
	}
	for i := range plain {
		plain[i].plain, plain[i].postfix = true, "-"
	}
	for i := range both {
		both[i].postfix = "-"
	}
	all := slices.Concat(first, daneRows, plain, both)
	if s.IPv6() {
		return all
	}
	return slices.DeleteFunc(all, func(r labRow) bool { return r.ipv6 })
}

// TestLab sends to the domain of each row, and has Postfix do it too.
func TestLab(t *testing.T) {
	t.Parallel()
	if !lab.Enter(t) {
		return
	}
	s := newSites(t)
	for _, r := range s.rows() {
		r.build(s.row(r))
	}
	servers := newServers(s)
	s.Start()
	t.Run("postfix", func(t *testing.T) {
		t.Parallel()
		s.askPostfix(t)
	})
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		s.askEngine(t)
	})
	t.Run("servers", func(t *testing.T) {
		t.Parallel()
		servers.test(t)
	})
}

// askPostfix sends one message to all domains with Postfix.
func (s *site) askPostfix(t *testing.T) {
	s.Real(t)
	var rows []labRow
	var policies strings.Builder
	mail := peers.PostfixMail{Raw: []byte("Subject: to all\r\n\r\nHello.\r\n")}
	for _, r := range s.rows() {
		if r.postfix == "-" {
			continue
		}
		domain := s.row(r).domain()
		rows = append(rows, r)
		mail.To = append(mail.To, "postfix@"+domain)
		if r.required {
			fmt.Fprintf(&policies, " { %s = dane-only }", domain)
		}
	}
	postfix := peers.NewPostfixSender(t, peers.PostfixSenderOptions{TLS: "dane", Main: []string{
		"inet_protocols = all",
		"inet_interfaces = 127.0.0.1, [::1]",
		"smtp_tls_policy_maps = inline:{" + policies.String() + " }",
	}})
	for i, d := range postfix.Send(t, mail) {
		t.Run(rows[i].name, func(t *testing.T) {
			want := rows[i].postfix
			if want == "" {
				want = rows[i].ours
			}
			got := d.Status + " " + d.DSN
			if d.Status == "sent" {
				got = s.sent(d.To)
			}
			if got != want {
				t.Errorf("got %s, want %s: %s", got, want, d.Text)
			}
			if r := rows[i]; (r.postfix == "") != (r.because == "") {
				t.Errorf("Postfix does %q, because %q: one of them is missing", r.postfix, r.because)
			}
		})
	}
}
