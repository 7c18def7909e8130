package delivery

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
)

// hostName is the host of the tests of Secure.
const hostName = "mx.example.net"

// demanding is a host that must show something.
func demanding(d Demand, alter ...func(*PlannedHost)) *PlannedHost {
	h := &PlannedHost{Demand: d, SNI: hostName, domain: "example.com", Reports: []tlsrpt.Policy{{Type: tlsrpt.NoPolicy}}}
	h.Name = hostName
	for _, a := range alter {
		a(h)
	}
	return h
}

// byDANE gives a host TLSA records.
func byDANE(records ...dane.Record) func(*PlannedHost) {
	return func(h *PlannedHost) {
		h.DANE = dane.Set{Base: hostName, Records: records, Usable: dane.Usable(records)}
		h.Names = []string{hostName, "example.com"}
		h.Reports = []tlsrpt.Policy{{Type: tlsrpt.TLSA, Domain: hostName}}
	}
}

// bySTS gives it a policy.
func bySTS(mode mtasts.Mode, named bool) func(*PlannedHost) {
	return func(h *PlannedHost) {
		h.STS, h.Named, h.Enforced = &mtasts.Policy{Mode: mode, MX: []string{"*.example.net"}}, named, mode == mtasts.Enforce
		h.Reports = append(h.Reports[1:], tlsrpt.Policy{Type: tlsrpt.STS, Domain: "example.com"})
	}
}

func requireTLS(h *PlannedHost) { h.RequireTLS = true }

// record is the TLSA record of a certificate.
func record(t testing.TB, c *lab.Cert, usage, selector, mtype uint8) dane.Record {
	t.Helper()
	r, err := dane.Of(c.Certificate, usage, selector, mtype)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// approach is how the tests speak to hosts.
var approach = Approach{Client: smtp.ClientOptions{LocalName: "gateway.test"}}

// dialTo connects to a fake.
func dialTo(t testing.TB, f *fake) func(context.Context) (net.Conn, error) {
	address := f.listen(t).Address
	return func(ctx context.Context) (net.Conn, error) { return dialer(ctx, "tcp", address) }
}

// tlsWith is a fake's TLS.
func tlsWith(c *tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{*c}} }

// reported is what is reported, in few words.
func reported(events []tlsrpt.Event) string {
	var words []string
	for _, e := range events {
		w := string(e.Policy.Type)
		if e.Failure != nil {
			w += " " + string(e.Failure.Type)
		}
		words = append(words, w)
	}
	return strings.Join(words, ", ")
}

// TestSecure: each demand with each kind of host, what comes of it and what is reported.
func TestSecure(t *testing.T) {
	parity.Row(t, "MX-54", "MX-74")
	root := lab.SelfSigned(t, lab.CertSpec{Name: "root", Authority: true})
	inter := root.Issue(t, lab.CertSpec{Name: "intermediate", Authority: true})
	good := inter.Leaf(t, hostName)
	wild := root.Leaf(t, "*.example.net")
	domain := root.Leaf(t, "example.com")
	cnOnly := root.Issue(t, lab.CertSpec{Name: hostName})
	expired := root.Issue(t, lab.CertSpec{DNS: []string{hostName}, Expired: true})
	self := lab.SelfSigned(t, lab.CertSpec{DNS: []string{hostName}})
	stranger := lab.SelfSigned(t, lab.CertSpec{Name: "stranger", Authority: true}).Leaf(t, hostName)
	unreadable := unreadableCertificate(t)
	asking := tlsWith(good.Chain())
	asking.ClientAuth = tls.RequireAnyClientCert
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	old := tlsWith(root.Issue(t, lab.CertSpec{DNS: []string{hostName}, Key: key}).Chain())
	old.MaxVersion, old.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
	securer := NewSecurer(SecureOptions{Authorities: root.Pool()})

	serves := func(c *lab.Cert) *fake { return &fake{tls: tlsWith(c.Chain())} }
	plain := func() *fake { return &fake{} }
	says := func(verb, reply string) *fake { return &fake{tls: tlsWith(good.Chain()), answer: on(verb, reply)} }
	pkix := demanding(DemandPKIX, bySTS(mtasts.Enforce, true))
	open := demanding(DemandOpportunistic)
	encrypted := demanding(DemandEncrypted, byDANE(dane.Record{Usage: 9}))
	ee := demanding(DemandDANE, byDANE(record(t, good, 3, 1, 1)))
	testing := demanding(DemandOpportunistic, bySTS(mtasts.Testing, true))
	testedOther := demanding(DemandOpportunistic, bySTS(mtasts.Testing, false))
	required := demanding(DemandPKIX, requireTLS)
	requiredSTS := demanding(DemandPKIX, bySTS(mtasts.Enforce, true), requireTLS)
	requiredDANE := demanding(DemandDANE, byDANE(record(t, good, 3, 1, 1)), requireTLS)
	ours := demanding(DemandPKIX)
	twoPolicies := func(h *PlannedHost) {
		h.Reports = []tlsrpt.Policy{{Type: tlsrpt.TLSA, Domain: hostName}, {Type: tlsrpt.STS, Domain: "example.com"}}
	}
	bothSTS := func(r dane.Record) *PlannedHost {
		return demanding(DemandBoth, byDANE(r), bySTS(mtasts.Enforce, true), twoPolicies)
	}
	unusableSTS := demanding(DemandPKIX, byDANE(dane.Record{Usage: 9}), bySTS(mtasts.Enforce, true), twoPolicies)
	literal := demanding(DemandOpportunistic, func(h *PlannedHost) { h.Name, h.SNI, h.domain = "", "", "" })
	offering := func(c *lab.Cert) *fake { f := serves(c); f.ehlo = []string{"REQUIRETLS"}; return f }

	for _, c := range []struct {
		what   string
		host   *PlannedHost
		fake   *fake
		want   string // what was shown, or the error
		report string
	}{
		{"clear", demanding(DemandClear), serves(good), "clear", ""},

		{"opportunistic", open, serves(good), "encrypted", "no-policy-found"},
		{"opportunistic, any certificate", open, serves(self), "encrypted", "no-policy-found"},
		{"opportunistic, expired", open, serves(expired), "encrypted", "no-policy-found"},
		{"opportunistic, no STARTTLS", open, plain(), "clear", "no-policy-found starttls-not-supported"},
		{"opportunistic, no EHLO", open, says("EHLO", "502 what"), "clear", "no-policy-found starttls-not-supported"},
		{"opportunistic, refused", open, says("STARTTLS", "454 4.7.0 not now"), "clear", "no-policy-found starttls-not-supported"},
		{"opportunistic, handshake fails", open, &fake{tls: &tls.Config{}}, "451 4.7.5 tls, again", "no-policy-found validation-failure"},
		{"opportunistic, closed at STARTTLS", open, says("STARTTLS", "drop"), "451 4.7.5 tls, again", "no-policy-found validation-failure"},
		{"opportunistic, unreadable certificate", open, &fake{tls: unreadable}, "451 4.7.5 tls, again", "no-policy-found validation-failure"},
		{"opportunistic, text before the handshake", open, says("STARTTLS", "220 go\n250 evil"), "451 4.7.5 tls, again", "no-policy-found validation-failure"},
		{"opportunistic, below TLS 1.2", open, &fake{tls: &tls.Config{Certificates: tlsWith(good.Chain()).Certificates, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}}, "451 4.7.5 tls, again", "no-policy-found validation-failure"},
		{"opportunistic, wants a certificate of ours", open, &fake{tls: asking}, "451 4.7.5 tls, again", "no-policy-found validation-failure"},
		{"DANE, wants a certificate of ours", ee, &fake{tls: asking}, "451 4.4.2 network", ""},
		{"opportunistic, without forward secrecy", open, &fake{tls: old}, "encrypted", "no-policy-found"},
		{"PKIX, without forward secrecy", pkix, &fake{tls: old}, "451 4.7.5 tls", "sts validation-failure"},
		{"opportunistic, busy", open, says("STARTTLS", "421 4.3.2 later"), "421 4.3.2 smtp", ""},
		{"a literal", literal, serves(self), "encrypted", ""},

		{"encrypted, any certificate", encrypted, serves(self), "encrypted", "tlsa tlsa-invalid"},
		{"encrypted, no STARTTLS", encrypted, plain(), "451 4.7.4 dane", "tlsa starttls-not-supported"},
		{"encrypted, refused", encrypted, says("STARTTLS", "454 4.7.0 not now"), "451 4.7.4 dane", "tlsa starttls-not-supported"},
		{"encrypted, unreadable certificate", encrypted, &fake{tls: unreadable}, "451 4.7.5 dane", "tlsa validation-failure"},
		{"encrypted by our own wish, no STARTTLS", demanding(DemandEncrypted), plain(), "451 4.7.4 tls", "no-policy-found starttls-not-supported"},

		{"DANE-EE", ee, serves(good), "dane", "tlsa"},
		{"DANE-EE, another", ee, serves(self), "451 4.7.5 dane", "tlsa validation-failure"},
		{"DANE-EE, self-signed", demanding(DemandDANE, byDANE(record(t, self, 3, 1, 1))), serves(self), "dane", "tlsa"},
		{"DANE-EE, expired", demanding(DemandDANE, byDANE(record(t, expired, 3, 1, 1))), serves(expired), "dane", "tlsa"},
		{"DANE-EE, another name", demanding(DemandDANE, byDANE(record(t, domain, 3, 1, 1))), serves(domain), "dane", "tlsa"},
		{"DANE-TA", demanding(DemandDANE, byDANE(record(t, inter, 2, 1, 1))), serves(good), "dane", "tlsa"},
		{"DANE-TA, not sent", demanding(DemandDANE, byDANE(record(t, root, 2, 0, 1))), serves(good), "451 4.7.5 dane", "tlsa validation-failure"},
		{"DANE-TA in the DNS", demanding(DemandDANE, byDANE(record(t, root, 2, 0, 0))), serves(good), "dane", "tlsa"},
		{"DANE-TA, the domain's name", demanding(DemandDANE, byDANE(record(t, root, 2, 0, 0))), serves(domain), "dane", "tlsa"},
		{"DANE-TA, another name", demanding(DemandDANE, byDANE(record(t, root, 2, 0, 0)), func(h *PlannedHost) { h.Names = h.Names[:1] }), serves(domain), "451 4.7.5 dane", "tlsa certificate-host-mismatch"},
		{"DANE-TA, expired", demanding(DemandDANE, byDANE(record(t, root, 2, 0, 0))), serves(expired), "451 4.7.5 dane", "tlsa certificate-expired"},
		{"DANE-TA, not below it", demanding(DemandDANE, byDANE(record(t, root, 2, 0, 0))), serves(stranger), "451 4.7.5 dane", "tlsa certificate-not-trusted"},
		{"DANE, no STARTTLS", ee, plain(), "451 4.7.4 dane", "tlsa starttls-not-supported"},
		{"DANE, refused", ee, says("STARTTLS", "454 4.7.0 not now"), "451 4.7.4 dane", "tlsa starttls-not-supported"},
		{"DANE, refused for good", ee, says("STARTTLS", "502 5.5.1 what"), "451 4.7.4 dane", "tlsa starttls-not-supported"}, // and the mail waits
		{"DANE, handshake fails", ee, &fake{tls: &tls.Config{}}, "451 4.7.5 dane", "tlsa validation-failure"},
		{"DANE, text before the handshake", ee, says("STARTTLS", "220 go\n250 evil"), "451 4.7.5 dane", "tlsa validation-failure"},

		// What is said before TLS anybody can have said, and no mail is returned for it.
		{"opportunistic, takes no mail", open, &fake{greeting: "521 5.3.2 no mail here"}, "521 5.3.2 smtp", ""},
		{"DANE, takes no mail", ee, &fake{greeting: "521 5.3.2 no mail here"}, "451 4.3.2 smtp", ""},
		{"PKIX, takes no mail", pkix, &fake{greeting: "521 no mail here"}, "451 4.0.0 smtp", ""},
		{"DANE, refuses EHLO and HELO", ee, &fake{tls: tlsWith(good.Chain()), answer: on("", "556 5.1.10 no")}, "451 4.1.10 smtp", ""},

		{"PKIX", pkix, serves(good), "pkix", "sts"},
		{"PKIX, wildcard", pkix, serves(wild), "pkix", "sts"},
		{"PKIX, another name", pkix, serves(domain), "451 4.7.5 tls", "sts certificate-host-mismatch"},
		{"PKIX, common name alone", pkix, serves(cnOnly), "451 4.7.5 tls", "sts certificate-host-mismatch"}, // RFC 8461, Section 4.2: a DNS-ID
		{"PKIX, expired", pkix, serves(expired), "451 4.7.5 tls", "sts certificate-expired"},
		{"PKIX, self-signed", pkix, serves(self), "451 4.7.5 tls", "sts certificate-not-trusted"},
		{"PKIX, another authority", pkix, serves(stranger), "451 4.7.5 tls", "sts certificate-not-trusted"},
		{"PKIX, the intermediate is missing", pkix, &fake{tls: tlsWith(&tls.Certificate{Certificate: [][]byte{good.Raw}, PrivateKey: good.Key})}, "451 4.7.5 tls", "sts certificate-not-trusted"},
		{"PKIX, no STARTTLS", pkix, plain(), "451 4.7.4 tls", "sts starttls-not-supported"},
		{"PKIX by our own wish", ours, serves(self), "451 4.7.5 tls", "no-policy-found certificate-not-trusted"},

		{"both, and what is reported under the one that failed", bothSTS(record(t, self, 3, 1, 1)), serves(self), "451 4.7.5 dane", "sts certificate-not-trusted"},
		{"both, and the other", bothSTS(record(t, self, 3, 1, 1)), serves(good), "451 4.7.5 dane", "tlsa validation-failure"},
		{"both, and a success of both", bothSTS(record(t, good, 3, 1, 1)), serves(good), "dane and pkix", "tlsa, sts"},
		{"PKIX beside records that are not usable", unusableSTS, serves(good), "pkix", "tlsa tlsa-invalid, sts"},
		{"PKIX beside records that are not usable, self-signed", unusableSTS, serves(self), "451 4.7.5 dane", "tlsa tlsa-invalid, sts certificate-not-trusted"},

		{"a policy in testing", testing, serves(good), "encrypted", "sts"},
		{"a policy in testing, self-signed", testing, serves(self), "encrypted", "sts certificate-not-trusted"},
		{"a policy in testing, no STARTTLS", testing, plain(), "clear", "sts starttls-not-supported"},
		{"a policy in testing for others", testedOther, serves(good), "encrypted", "sts validation-failure"},

		{"REQUIRETLS", required, offering(good), "pkix", "no-policy-found"},
		{"REQUIRETLS, not offered", required, serves(good), "550 5.7.30 policy", ""},
		{"REQUIRETLS, no STARTTLS", required, plain(), "550 5.7.30 policy", "no-policy-found starttls-not-supported"},
		{"REQUIRETLS, self-signed", required, offering(self), "550 5.7.30 policy", "no-policy-found certificate-not-trusted"},
		{"REQUIRETLS and MTA-STS, self-signed", requiredSTS, offering(self), "451 4.7.5 tls", "sts certificate-not-trusted"}, // by itself MTA-STS returns no mail
		{"REQUIRETLS and DANE", requiredDANE, offering(good), "dane", "tlsa"},
		{"REQUIRETLS and DANE, another", requiredDANE, offering(self), "451 4.7.5 dane", "tlsa validation-failure"},
		{"REQUIRETLS and DANE, not offered", requiredDANE, serves(good), "550 5.7.30 policy", ""},

		{"greeting refuses for good", ee, &fake{greeting: "554 5.7.1 go away"}, "451 4.7.1 smtp", ""},
		{"greeting refuses", pkix, &fake{greeting: "421 4.3.2 later"}, "421 4.3.2 smtp", ""},
		{"closed before the greeting", ee, &fake{greeting: "drop"}, "451 4.4.2 network", ""},
		{"no SMTP", open, &fake{greeting: "SSH-2.0-x"}, "451 4.4.2 network", ""},
		{"EHLO refused over TLS", ee, overTLS(good, "EHLO", "451 4.3.2 not now"), "451 4.3.2 smtp", ""},
	} {
		out, err := secureOnce(t, securer, c.fake, c.host, approach)
		got := string(out.Shown)
		if err != nil {
			got = code(err)
			if out.Again {
				got += ", again"
			}
			e, ok := errors.AsType[*mx.Error](err)
			if !ok || e.Host != c.host.Name || e.Addr != netip.MustParseAddr("127.0.0.1") {
				t.Errorf("%s: the error is about %+v", c.what, e)
			}
			if out.Client != nil {
				t.Errorf("%s: a client, and an error", c.what)
			}
		}
		if rep := reported(out.Events); got != c.want || rep != c.report {
			t.Errorf("%s: got %q, reported %q (%v), want %q, %q", c.what, got, rep, err, c.want, c.report)
		}
		for _, e := range out.Events {
			if f := e.Failure; e.Domain != "example.com" || e.MXHost != hostName || f != nil && (f.ReceivingIP.String() != "127.0.0.1" || !f.SendingIP.IsValid() || f.ReceivingHelo != "fake") {
				t.Errorf("%s: the report lacks something: %+v %+v", c.what, e, f)
			}
		}
	}
}

// secureOnce is Secure on a new connection. The client is closed at the end of the test.
func secureOnce(t testing.TB, s *Securer, f *fake, h *PlannedHost, a Approach) (Secured, error) {
	t.Helper()
	nc, err := dialTo(t, f)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Secure(t.Context(), nc, h, a)
	if err == nil {
		t.Cleanup(func() { out.Client.Close() })
	}
	return out, err
}

// overTLS is a fake that gives an answer once the connection is encrypted.
func overTLS(c *lab.Cert, verb, reply string) *fake {
	f := &fake{tls: tlsWith(c.Chain())}
	f.answer = func(line string) string {
		if strings.HasPrefix(line, verb) && f.heard("STARTTLS") > 0 {
			return reply
		}
		return ""
	}
	return f
}

// unreadableCertificate is a server whose certificate crypto/tls refuses to read: its serial
// number is negative (RFC 5280, Section 4.1.2.2).
func unreadableCertificate(t testing.TB) *tls.Config {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(0x7f), Subject: pkix.Name{CommonName: hostName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	// INTEGER 127 becomes INTEGER -1. The signature does not matter.
	at := strings.Index(string(der), "\x02\x01\x7f")
	der[at+2] = 0xff
	if _, err := x509.ParseCertificate(der); err == nil {
		t.Fatal("the certificate can be read")
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// TestSecureAgain: where it may, mail goes in clear text when TLS fails, and nowhere else.
func TestSecureAgain(t *testing.T) {
	s := NewSecurer(SecureOptions{})
	broken := func() *fake { return &fake{tls: &tls.Config{}} }
	f := broken()
	out, err := s.Connect(t.Context(), dialTo(t, f), demanding(DemandOpportunistic), approach)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Client.Close()
	check(t, "shown", out.Shown, DemandClear)
	check(t, "reported", reported(out.Events), "no-policy-found validation-failure") // once
	check(t, "TLS", out.TLS(), "")
	if out.Doubt == nil {
		t.Error("no word on why it is in clear")
	}
	connections, _ := f.dialled()
	check(t, "connections", connections, 3) // TLS, TLS with less in it, clear

	for _, d := range []Demand{DemandEncrypted, DemandPKIX} {
		f := broken()
		out, err := s.Connect(t.Context(), dialTo(t, f), demanding(d), approach)
		connections, _ := f.dialled()
		check(t, string(d), fmt.Sprintf("%s %v %d", code(err), out.Again, connections), "451 4.7.5 tls false 2")

		// Not even if somebody says so.
		clear := approach
		clear.Clear = true
		_, err = s.Connect(t.Context(), dialTo(t, &fake{}), demanding(d), clear)
		check(t, string(d)+", in clear", code(err), "451 4.7.4 tls")
	}
}

// TestSecureShort: a server that fails at a long first message gets a short one, whatever is
// demanded.
func TestSecureShort(t *testing.T) {
	c := lab.SelfSigned(t, lab.CertSpec{DNS: []string{hostName}})
	for _, h := range []*PlannedHost{demanding(DemandOpportunistic), demanding(DemandDANE, byDANE(record(t, c, 3, 1, 1)))} {
		f := &fake{tls: &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedCurves, tls.X25519MLKEM768) {
				return nil, errors.New("what is that?")
			}
			return tlsWith(c.Chain()), nil
		}}}
		out, err := NewSecurer(SecureOptions{}).Connect(t.Context(), dialTo(t, f), h, approach)
		if err != nil {
			t.Error(err)
			continue
		}
		defer out.Client.Close()
		connections, _ := f.dialled()
		check(t, "connections", connections, 2)
		check(t, "TLS", out.TLS(), "TLS 1.3")
		check(t, "reported", strings.Contains(reported(out.Events), "failure"), false)
	}
	// A certificate that does not fit does so with any first message.
	f := &fake{tls: tlsWith(c.Chain())}
	_, err := NewSecurer(SecureOptions{}).Connect(t.Context(), dialTo(t, f), demanding(DemandPKIX), approach)
	connections, _ := f.dialled()
	check(t, "another certificate", fmt.Sprintf("%s %d", code(err), connections), "451 4.7.5 tls 1")
	f = &fake{tls: unreadableCertificate(t)}
	_, err = NewSecurer(SecureOptions{}).Connect(t.Context(), dialTo(t, f), demanding(DemandEncrypted), approach)
	connections, _ = f.dialled()
	check(t, "unreadable", fmt.Sprintf("%s %d", code(err), connections), "451 4.7.5 tls 1")
}

// TestSecureEnds: a host that says nothing, at each step, costs the time of the context and not
// more.
func TestSecureEnds(t *testing.T) {
	good := lab.SelfSigned(t, lab.CertSpec{DNS: []string{hostName}})
	s := NewSecurer(SecureOptions{})
	over := make(chan struct{})
	defer close(over)
	silent := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		<-over
		return nil, errors.New("over")
	}}
	for what, f := range map[string]*fake{
		"greeting":      {greeting: "hang"},
		"EHLO":          {answer: on("EHLO", "hang")},
		"STARTTLS":      {tls: tlsWith(good.Chain()), answer: on("STARTTLS", "hang")},
		"handshake":     {tls: silent},
		"EHLO over TLS": overTLS(good, "EHLO", "hang"),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		nc, err := dialTo(t, f)(ctx)
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.Secure(ctx, nc, demanding(DemandOpportunistic), approach)
		cancel()
		check(t, what, fmt.Sprintf("%s %v", code(err), out.Again), "451 4.4.2 network false")
		if e, _ := errors.AsType[*mx.Error](err); e != nil && !strings.Contains(e.Reply.Text, "in time") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestSecureSNI: which name is said in the handshake.
func TestSecureSNI(t *testing.T) {
	c := lab.SelfSigned(t, lab.CertSpec{DNS: []string{hostName}})
	for _, h := range []*PlannedHost{
		demanding(DemandOpportunistic),
		demanding(DemandDANE, byDANE(record(t, c, 3, 1, 1)), func(h *PlannedHost) { h.SNI = "base.example.net" }),
		demanding(DemandOpportunistic, func(h *PlannedHost) { h.SNI = "" }),
	} {
		var said string
		f := &fake{tls: &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			said = hello.ServerName
			return c.Chain(), nil
		}}}
		if _, err := secureOnce(t, NewSecurer(SecureOptions{}), f, h, approach); err != nil {
			t.Error(err)
		}
		check(t, "SNI", said, h.SNI)
	}
}

// TestSecureResumption: a session that is taken up again is held to what is asked now, as it
// was made by a connection of which less may have been asked.
func TestSecureResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		root := lab.SelfSigned(t, lab.CertSpec{Name: "root", Authority: true})
		c := root.Leaf(t, hostName)
		clock := time.Now()
		s := NewSecurer(SecureOptions{Authorities: root.Pool(), Now: func() time.Time { return clock }})
		var served atomic.Pointer[tls.Certificate]
		served.Store(c.Chain())
		config := &tls.Config{MaxVersion: version, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return served.Load(), nil }}
		f := &fake{tls: config}
		dial := dialTo(t, f)
		once := func(h *PlannedHost) (resumed bool, err error) {
			out, err := s.Connect(t.Context(), dial, h, approach)
			if err != nil {
				return false, err
			}
			defer out.Client.Close()
			check(t, "shown", out.Shown, h.Demand)
			check(t, "certificates", len(out.Chain) > 0, true)
			state, _ := out.Client.TLS()
			return state.DidResume, nil
		}
		demands := map[string]*PlannedHost{
			"dane": demanding(DemandDANE, byDANE(record(t, c, 3, 1, 1))),
			"pkix": demanding(DemandPKIX, bySTS(mtasts.Enforce, true)),
		}
		for what, h := range demands {
			for i := range 2 {
				resumed, err := once(h)
				check(t, fmt.Sprintf("%s, time %d: resumed", what, i+1), fmt.Sprint(resumed, err), fmt.Sprint(i > 0, nil))
			}
		}
		// The host has a new certificate and still takes the sessions of the old one up.
		renewed := root.Leaf(t, hostName)
		served.Store(renewed.Chain())
		if resumed, err := once(demanding(DemandDANE, byDANE(record(t, renewed, 3, 1, 1)))); resumed || err != nil {
			t.Errorf("%s: a host whose session has the certificate of before: resumed %v, %v", tls.VersionName(version), resumed, err)
		}
		// The record was replaced: the session does not help who still has the old key.
		other := lab.SelfSigned(t, lab.CertSpec{DNS: []string{hostName}})
		if _, err := once(demanding(DemandDANE, byDANE(record(t, other, 3, 1, 1)))); code(err) != "451 4.7.5 dane" {
			t.Errorf("%s: a session was taken up again although its certificate does not match any more: %v", tls.VersionName(version), err)
		}
		// The certificate has run out meanwhile.
		clock = clock.Add(48 * time.Hour)
		if _, err := once(demands["pkix"]); code(err) != "451 4.7.5 tls" {
			t.Errorf("%s: a session was taken up again although its certificate has run out: %v", tls.VersionName(version), err)
		}
	}
}

// TestSecureLargeSession: no session is kept that takes much memory.
func TestSecureLargeSession(t *testing.T) {
	root := lab.SelfSigned(t, lab.CertSpec{Name: "root", Authority: true})
	var names []string
	for i := range 1500 {
		names = append(names, fmt.Sprintf("a-name-of-some-length-%d.example.net", i))
	}
	for _, c := range []struct {
		dns  []string
		want bool
	}{{[]string{hostName}, true}, {append(names, hostName), false}} {
		s := NewSecurer(SecureOptions{Authorities: root.Pool()})
		dial := dialTo(t, &fake{tls: tlsWith(root.Issue(t, lab.CertSpec{DNS: c.dns}).Chain())})
		resumed := false
		for range 2 {
			out, err := s.Connect(t.Context(), dial, demanding(DemandPKIX, bySTS(mtasts.Enforce, true)), approach)
			if err != nil {
				t.Fatal(err)
			}
			state, _ := out.Client.TLS()
			resumed = state.DidResume
			out.Client.Close()
		}
		check(t, fmt.Sprintf("resumed, %d names", len(c.dns)), resumed, c.want)
	}
}

// TestMeets: whether a connection that is open may be used for what a later plan asks.
func TestMeets(t *testing.T) {
	root := lab.SelfSigned(t, lab.CertSpec{Name: "root", Authority: true})
	c := root.Leaf(t, hostName)
	o := CheckOptions{Authorities: root.Pool()}
	s := NewSecurer(SecureOptions{Authorities: root.Pool()})
	first := demanding(DemandDANE, byDANE(record(t, c, 3, 1, 1)))
	secured, err := secureOnce(t, s, &fake{tls: tlsWith(c.Chain())}, first, approach)
	if err != nil {
		t.Fatal(err)
	}
	clear, err := secureOnce(t, s, &fake{}, demanding(DemandOpportunistic), approach)
	if err != nil {
		t.Fatal(err)
	}
	promising, err := secureOnce(t, s, &fake{tls: tlsWith(c.Chain()), ehlo: []string{"REQUIRETLS"}}, first, approach)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "TLS", secured.TLS(), "TLS 1.3")
	for _, row := range []struct {
		what                      string
		h                         *PlannedHost
		secured, clear, promising bool
	}{
		{"the same", first, true, false, true},
		{"the same record", demanding(DemandDANE, byDANE(record(t, c, 3, 1, 1))), true, false, true},
		{"another record", demanding(DemandDANE, byDANE(record(t, root, 3, 1, 1))), false, false, false},
		{"PKIX", demanding(DemandPKIX), true, false, true},
		{"PKIX for another name", demanding(DemandPKIX, func(h *PlannedHost) { h.Name = "mx2.example.net" }), false, false, false},
		{"encrypted", demanding(DemandEncrypted), true, false, true},
		{"opportunistic", demanding(DemandOpportunistic), true, true, true},
		{"clear", demanding(DemandClear), true, true, true},
		{"REQUIRETLS", demanding(DemandPKIX, requireTLS), false, false, true},
		{"refused", demanding(DemandOpportunistic, func(h *PlannedHost) { h.Refused = errors.New("no") }), false, false, false},
	} {
		check(t, row.what+", TLS", secured.Meets(row.h, o), row.secured)
		check(t, row.what+", clear", clear.Meets(row.h, o), row.clear)
		check(t, row.what+", REQUIRETLS", promising.Meets(row.h, o), row.promising)
	}
	// What is known of one host is true for another that asks the same, and for no other.
	byRoot := func(names ...string) *PlannedHost {
		return demanding(DemandDANE, byDANE(record(t, root, 2, 1, 1)), func(h *PlannedHost) { h.Names = names })
	}
	issued, err := secureOnce(t, s, &fake{tls: tlsWith(c.With(root))}, byRoot(hostName, "a.test"), approach)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		what string
		h    *PlannedHost
		want bool
	}{
		{"another domain", byRoot(hostName, "b.test"), true},
		{"none of its names", byRoot("b.test"), false},
		{"none of its names, again", byRoot("b.test"), false},
		{"a name again", byRoot("c.test", hostName), true},
		{"another record", demanding(DemandDANE, byDANE(record(t, c, 2, 1, 1))), false},
		{"its own key", demanding(DemandDANE, byDANE(record(t, c, 3, 1, 1)), func(h *PlannedHost) { h.Names = nil }), true},
		{"no names", demanding(DemandDANE, byDANE(record(t, root, 2, 1, 1)), func(h *PlannedHost) { h.Names = nil }), false},
		{"PKIX", demanding(DemandPKIX), true},
		{"both, another name", demanding(DemandBoth, byDANE(record(t, root, 2, 1, 1)), func(h *PlannedHost) { h.Name = "mx2.example.net" }), false},
		{"both", demanding(DemandBoth, byDANE(record(t, root, 2, 1, 1))), true},
	} {
		check(t, "trust anchor: "+row.what, issued.Meets(row.h, o), row.want)
	}
	check(t, "shown in the end", issued.Shown, DemandBoth)
	secured.Client.Close()
	check(t, "closed", secured.Meets(first, o), false)
}

// BenchmarkMeets: what it costs to use a connection again for another domain that asks the same.
func BenchmarkMeets(b *testing.B) {
	root := lab.SelfSigned(b, lab.CertSpec{Name: "root", Authority: true})
	c := root.Leaf(b, hostName)
	s, o := NewSecurer(SecureOptions{Authorities: root.Pool()}), CheckOptions{Authorities: root.Pool()}
	for _, row := range []struct {
		name string
		ask  func() *PlannedHost
		want bool
	}{
		{"DANE-EE", func() *PlannedHost { return demanding(DemandDANE, byDANE(record(b, c, 3, 1, 1))) }, true},
		{"DANE-TA", func() *PlannedHost { return demanding(DemandDANE, byDANE(record(b, root, 2, 1, 1))) }, true},
		{"PKIX", func() *PlannedHost { return demanding(DemandPKIX) }, true},
		{"not met", func() *PlannedHost { return demanding(DemandDANE, byDANE(record(b, root, 3, 1, 1))) }, false},
	} {
		b.Run(row.name, func(b *testing.B) {
			first, domains := row.ask(), []*PlannedHost{row.ask(), row.ask()}
			if !row.want {
				first = demanding(DemandPKIX)
			}
			secured, err := secureOnce(b, s, &fake{tls: tlsWith(c.With(root))}, first, approach)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if secured.Meets(domains[i%2], o) != row.want {
					b.Fatalf("not %v", row.want)
				}
			}
		})
	}
}

// TestTLSConfig: the check goes with the configuration, for who speaks the rest himself.
func TestTLSConfig(t *testing.T) {
	c := lab.SelfSigned(t, lab.CertSpec{DNS: []string{hostName}})
	for _, row := range []struct {
		h    *PlannedHost
		want bool
	}{
		{demanding(DemandOpportunistic), true},
		{demanding(DemandDANE, byDANE(record(t, c, 3, 1, 1))), true},
		{demanding(DemandDANE, byDANE(record(t, c, 3, 1, 2))), true},
		{demanding(DemandPKIX), false},
	} {
		server, client := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			tls.Server(server, tlsWith(c.Chain())).HandshakeContext(t.Context())
			server.Close()
		}()
		tc := tls.Client(client, row.h.TLSConfig(CheckOptions{}))
		err := tc.HandshakeContext(t.Context())
		client.Close()
		<-done
		check(t, string(row.h.Demand), err == nil, row.want)
	}
}

// BenchmarkCheck: what it costs to hold a certificate against a demand, beside the handshake.
func BenchmarkCheck(b *testing.B) {
	root := lab.SelfSigned(b, lab.CertSpec{Name: "root", Authority: true})
	inter := root.Issue(b, lab.CertSpec{Name: "intermediate", Authority: true})
	leaf := inter.Leaf(b, hostName)
	chain := []*x509.Certificate{leaf.Certificate, inter.Certificate}
	for _, c := range []struct {
		name string
		h    *PlannedHost
	}{
		{"DANE-EE", demanding(DemandDANE, byDANE(record(b, leaf, 3, 1, 1)))},
		{"DANE-TA", demanding(DemandDANE, byDANE(record(b, inter, 2, 1, 1)))},
		{"PKIX", demanding(DemandPKIX)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.h.Check(chain, CheckOptions{Authorities: root.Pool()}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
