package delivery

import (
	"bytes"
	"crypto/tls"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// peers_test.go: the same against the servers that operators have.

// peculiar is a message that a next hop can easily get wrong.
const peculiar = text("From: <from@example.org>\r\nSubject: peculiar\r\nX-Folded: a\r\n\tb\r\n\r\n" +
	".\r\n..\r\n.hidden\r\ntrailing \r\nZ\xc3\xbcrich\r\n\r\n")

// transact does a transaction with a given content and returns what it came to.
func transact(t *testing.T, tr *Transport, sender smtp.Sender, content smtp.Content, to ...string) string {
	t.Helper()
	tx, err := tr.Begin(t.Context(), "b", sender)
	if err != nil {
		t.Fatalf("Begin: %v", err)
	}
	defer tx.Abort()
	var codes []string
	for _, r := range to {
		if err := tx.Rcpt(t.Context(), rcpt(t, r)); err != nil {
			codes = append(codes, "rcpt: "+status(smtp.ReplyOf(err)))
		}
	}
	replies, err := tx.Data(t.Context(), content)
	if err != nil {
		return strings.Join(append(codes, "data: "+err.Error()), ", ")
	}
	for _, r := range replies {
		codes = append(codes, status(r))
	}
	return strings.Join(codes, ", ")
}

// status is the code and the enhanced code, as the words of others change.
func status(r *smtp.Reply) string {
	return (&smtp.Reply{Code: r.Code, Enh: r.Enh}).Line()
}

// arrived checks that a message came byte for byte behind what the server put before
// it.
func arrived(t *testing.T, raw []byte, content text) {
	t.Helper()
	want := strings.ReplaceAll(string(content), "\r\n", "\n")
	got := strings.ReplaceAll(string(raw), "\r\n", "\n")
	if !strings.HasSuffix(got, want) {
		t.Errorf("arrived:\n got %q\nwant %q at the end", got, want)
	}
}

func TestPostfix(t *testing.T) {
	ca := peers.NewCA(t)
	certificate := ca.Issue(t, "backend.test")
	s := peers.Postfix(t, peers.PostfixOptions{Certificate: &certificate, ImplicitTLS: true,
		Users: []string{"a@example.org", "b@example.org"}})
	eight := from(t)
	eight.Body = smtp.BodyEightBit
	for _, e := range []Endpoint{{Network: "tcp", Address: s.Addr}, {Network: "tcp", Address: s.TLSAddr, ImplicitTLS: true}} {
		address, o := e.String(), one(e)
		o.TLS, o.CAs, o.ServerName = TLSVerify, ca.Pool(), "backend.test"
		tr := open(t, o)
		for range 3 {
			got := transact(t, tr, eight, peculiar, "a@example.org", "nobody@example.org", "b@example.org")
			check(t, address, got, "rcpt: 550 5.1.1, 250 2.0.0, 250 2.0.0")
		}
		check(t, address, figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 1 reused 2 lost 0")

		// A transaction that is given up leaves the connection in order.
		tx, err := tr.Begin(t.Context(), "b", eight)
		if err != nil {
			t.Fatal(err)
		}
		tx.Rcpt(t.Context(), rcpt(t, "a@example.org"))
		tx.Abort()
		got := transact(t, tr, eight, peculiar, "b@example.org")
		check(t, address+" after Abort", got, "250 2.0.0")
		check(t, address, figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 1 reused 4 lost 0")

		found, err := tr.Probe(t.Context(), "b")
		if err != nil || !found.Has("DSN") || found.MaxSize() == 0 || found.Endpoints[0].TLS < tls.VersionTLS12 {
			t.Errorf("probe of %s: %+v, %v", address, found, err)
		}
	}
	for _, raw := range s.Wait(t, 14) { // twice: three messages for two, one for one
		if bytes.Contains(raw, []byte("Subject: peculiar")) {
			arrived(t, raw, peculiar)
		}
	}
}

// What is told of a message and its client reaches Postfix: chunks, the wishes about reports,
// XFORWARD and XCLIENT.
func TestPostfixIsTold(t *testing.T) {
	s := peers.Postfix(t, peers.PostfixOptions{Main: []string{
		"smtpd_authorized_xforward_hosts = 127.0.0.0/8", "smtpd_authorized_xclient_hosts = 127.0.0.0/8"}})
	e := Endpoint{Network: "tcp", Address: s.Addr}
	plain := open(t, one(e))

	// A success that the sender wanted to hear of is reported in its own words.
	sender := from(t)
	sender.Return, sender.EnvID = smtp.ReturnHeaders, "batch+7=1"
	tx, err := plain.Begin(t.Context(), "b", sender)
	if err != nil {
		t.Fatal(err)
	}
	to := rcpt(t, "to@example.org")
	to.Notify, to.Original = smtp.NotifySuccess, smtp.OriginalRecipient{Type: "rfc822", Address: "list+a@example.com"}
	if err := tx.Rcpt(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Data(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	report := s.WaitFor(t, func(raw []byte) bool { return bytes.Contains(raw, []byte("Reporting-MTA:")) })
	for _, want := range []string{"Original-Envelope-Id: batch+7=1\n", "Original-Recipient: rfc822;list+a@example.com\n", "Action: delivered\n"} {
		if !bytes.Contains(report, []byte(want)) {
			t.Errorf("report has no %q:\n%s", want, report)
		}
	}
	if offers, known := plain.Offers("b"); !known || !offers.Extensions.DSN || offers.Extensions.BinaryMIME || offers.MaxSize == 0 {
		t.Errorf("Offers: got %+v, %v", offers, known)
	}

	// A message of many chunks arrives as it was sent.
	large := text("Subject: large\r\n\r\n" + strings.Repeat("0123456789.\r\n.\r\n", 60000))
	check(t, "large", transact(t, plain, from(t), large, "to@example.org"), "250 2.0.0")
	arrived(t, s.WaitFor(t, func(raw []byte) bool { return bytes.Contains(raw, []byte("Subject: large")) }), large)

	o := one(e)
	o.XForward = true
	check(t, "XFORWARD", sendFor(t, open(t, o), alice, "to@example.org")[:3], "250")
	s.WaitLog(t, "orig_queue_id=1, orig_client=unknown[192.0.2.1]")

	o.XForward, o.XClient = false, true
	tr := open(t, o)
	for _, who := range []smtp.Forwarded{alice, bob, nobody} {
		check(t, "XCLIENT", sendFor(t, tr, who, "to@example.org")[:3], "250")
	}
	for _, who := range []string{"from alice.test (unknown [192.0.2.1])", "from bob.test (unknown [192.0.2.2])", "from gateway.test (unknown [127.0.0.1])"} {
		s.WaitFor(t, func(raw []byte) bool { return bytes.Contains(raw, []byte(who)) })
	}

	stop(t, plain)
	s.WaitLog(t, "mail=2 rcpt=2 bdat=6") // one chunk, and five
}

// stop shuts a transport down, so that its connections say QUIT.
func stop(t *testing.T, tr *Transport) {
	t.Helper()
	if err := tr.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDovecot(t *testing.T) {
	s := peers.Dovecot(t, peers.DovecotOptions{
		Users: []string{"user@example.org", "other@example.org"}, OverQuota: []string{"full@example.org"}, Failing: []string{"broken@example.org"},
	})
	for i, e := range []Endpoint{{Network: "tcp", Address: s.Addr, LMTP: true}, {Network: "unix", Address: s.Socket, LMTP: true}} {
		address, tr := e.String(), open(t, one(e))
		for range 2 {
			got := transact(t, tr, from(t), peculiar,
				"user@example.org", "nobody@example.org", "full@example.org", "broken@example.org", "other@example.org")
			check(t, address, got, "rcpt: 550 5.1.1, 250 2.0.0, 552 5.2.2, 451 4.2.0, 250 2.0.0")
		}
		check(t, address, figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 1 reused 1 lost 0")
		for _, user := range []string{"user@example.org", "other@example.org"} {
			for _, raw := range s.Wait(t, user, 2*(i+1)) {
				arrived(t, raw, peculiar)
			}
		}
	}
}
