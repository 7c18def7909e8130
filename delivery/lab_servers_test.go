package delivery_test

// lab_servers_test.go: hosts that others wrote take our mail. Their TLS is OpenSSL and GnuTLS,
// and each demand of ours must be one that they can meet.

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// servers are domains whose hosts are Postfix and Exim. The domains are those of the hosts
// below secure.test.
type servers struct {
	*site
	postfix, exim *lab.Host
	certs         map[*lab.Host]*lab.Cert
}

// newServers adds the domains. Each host takes mail for three: one that asks for nothing, one
// with DANE, and one with MTA-STS.
func newServers(s *site) *servers {
	v := &servers{site: s, certs: make(map[*lab.Host]*lab.Cert)}
	v.postfix, v.exim = v.add("postfix", "3 1 1"), v.add("exim", "2 1 1")
	return v
}

// add adds a host under three names that have one certificate.
func (v *servers) add(name, tlsa string) *lab.Host {
	names := []string{name + "-may.secure.test", name + "-dane.secure.test", name + "-sts.secure.test"}
	issuer := v.Authority.Issue(v.t, lab.CertSpec{Name: "Intermediate of " + name, Authority: true})
	leaf := issuer.Leaf(v.t, names...)
	h := v.Host(names[0], lab.HostOptions{Closed: true}) // the server itself listens there
	v.secure.Add(fmt.Sprintf("%s-dane A %s", name, h.Addr), fmt.Sprintf("%s-sts A %s", name, h.Addr))
	matched := leaf
	if strings.HasPrefix(tlsa, "2") {
		matched = issuer
	}
	v.secure.TLSA(name+"-dane", tlsa, matched)
	v.Policy(names[2], lab.PolicyOptions{ID: "1", Body: policyText("enforce", names[2])})
	v.certs[h] = leaf
	return h
}

// peculiarMessage is one that is easily got wrong on the way.
const peculiarMessage = "From: <from@client.test>\r\nDate: Thu, 26 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@client.test>\r\nSubject: %s\r\n" +
	"X-Folded: a\r\n\tb\r\n\r\n.\r\n..\r\n.hidden\r\ntrailing \r\nZ\xc3\xbcrich\r\n\r\n"

// test starts the servers and sends to them.
func (v *servers) test(t *testing.T) {
	v.Real(t)
	e := v.engine(t, func(*delivery.PlanOptions) {})
	certFile, keyFile := v.certs[v.postfix].Files(t)
	postfix := peers.Postfix(t, peers.PostfixOptions{
		Addr:        net.JoinHostPort(v.postfix.Addr.String(), "25"),
		Domains:     []string{"postfix-may.secure.test", "postfix-dane.secure.test", "postfix-sts.secure.test"},
		Users:       []string{"a@postfix-may.secure.test", "a@postfix-dane.secure.test", "a@postfix-sts.secure.test", "b@postfix-dane.secure.test"},
		Certificate: &peers.Certificate{CertFile: certFile, KeyFile: keyFile},
		Main:        []string{"smtpd_tls_received_header = yes"},
	})
	certFile, keyFile = v.certs[v.exim].Files(t)
	exim := peers.Exim(t, peers.EximServerOptions{
		Addr: net.JoinHostPort(v.exim.Addr.String(), "25"), CertFile: certFile, KeyFile: keyFile,
	})
	sender := smtp.Sender{Body: smtp.BodyEightBit}
	for _, name := range []string{"postfix-may", "postfix-dane", "postfix-sts", "exim-may", "exim-dane", "exim-sts"} {
		to := "a@" + name + ".secure.test"
		if got := e.send(t, sender, fmt.Sprintf(peculiarMessage, name), to); got[0] != "sent" {
			t.Errorf("%s: %s", to, got[0])
		}
	}
	// One transaction, of which the server likes some recipients.
	got := e.send(t, sender, fmt.Sprintf(peculiarMessage, "three"), "a@postfix-dane.secure.test", "none@postfix-dane.secure.test", "b@postfix-dane.secure.test")
	if got[0] != "sent" || !strings.HasPrefix(got[1], "bounced 5.1.1") || got[2] != "sent" {
		t.Errorf("three recipients: got %q", got)
	}
	if t.Failed() {
		return
	}
	v.compare(t, postfix.Wait(t, 5), "postfix-may", "postfix-dane", "postfix-sts", "three", "three")
	v.compare(t, exim.Wait(t, 3), "exim-may", "exim-dane", "exim-sts")
}

// compare looks that messages came as they were sent, and by TLS.
func (v *servers) compare(t *testing.T, raw [][]byte, subjects ...string) {
	t.Helper()
	var found []string
	for _, m := range raw {
		_, rest, _ := bytes.Cut(m, []byte("\nSubject: "))
		subject, _, _ := bytes.Cut(rest, []byte("\n"))
		found = append(found, string(subject))
		want := strings.ReplaceAll(fmt.Sprintf(peculiarMessage, subject), "\r\n", "\n")
		if !bytes.HasSuffix(m, []byte(want)) || !bytes.Contains(m, []byte("TLS")) {
			t.Errorf("got %q, want it to end with %q and to tell of TLS", m, want)
		}
	}
	slices.Sort(found)
	slices.Sort(subjects)
	if !slices.Equal(found, subjects) {
		t.Errorf("got messages %q, want %q", found, subjects)
	}
}
