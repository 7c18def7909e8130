package peers

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const conversationLimit = 20 * time.Second

// talk opens a connection for a conversation by hand and reads the greeting. The
// whole conversation has a deadline.
func talk(t *testing.T, network, addr string) *textproto.Conn {
	t.Helper()
	conn, err := net.DialTimeout(network, addr, conversationLimit)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(conversationLimit)); err != nil {
		t.Fatal(err)
	}
	c := textproto.NewConn(conn)
	t.Cleanup(func() { c.Close() })
	if _, _, err := c.ReadResponse(220); err != nil {
		t.Fatalf("greeting of %s: %v", addr, err)
	}
	return c
}

// say sends a line, or several at once, and returns the next reply. It fails the
// test unless that begins with want, as in "250" or "550 5.1.1".
func say(t *testing.T, c *textproto.Conn, line, want string) string {
	t.Helper()
	if err := c.PrintfLine("%s", line); err != nil {
		t.Fatalf("send %q: %v", line, err)
	}
	return hear(t, c, line, want)
}

func hear(t *testing.T, c *textproto.Conn, line, want string) string {
	t.Helper()
	code, text, err := c.ReadResponse(0)
	if err != nil {
		t.Fatalf("reply to %q: %v", line, err)
	}
	reply := fmt.Sprintf("%d %s", code, text)
	if !strings.HasPrefix(reply, want) {
		t.Errorf("reply to %q is %q, want %s", line, reply, want)
	}
	return reply
}

// send gives one message to Postfix with net/smtp. With a tls.Config it uses
// STARTTLS.
func send(t *testing.T, addr string, config *tls.Config, to string, raw []byte) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, conversationLimit)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(conversationLimit)); err != nil {
		t.Fatal(err)
	}
	c, err := smtp.NewClient(conn, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if config != nil {
		if err := c.StartTLS(config); err != nil {
			t.Fatalf("STARTTLS: %v", err)
		}
	}
	if err := transfer(c, to, raw); err != nil {
		t.Fatalf("send %d bytes to %s: %v", len(raw), to, err)
	}
}

func transfer(c *smtp.Client, to string, raw []byte) error {
	if err := c.Mail("sender@client.test"); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(raw); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// hard is a message with what is easily changed on the way: a line of one dot,
// 8-bit text, a folded field, white space at line ends, a long line.
var hard = []byte("From: <sender@client.test>\r\nX-Folded: one\r\n\ttwo\r\nSubject: hard\r\n\r\n" +
	".\r\n..\r\nZ\xc3\xbcrich \xfc\r\ntrailing \t\r\n\r\n" + strings.Repeat("x", 5000) + "\r\n\r\n")

func sameBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func TestPostfixDeliversByteForByte(t *testing.T) {
	ca := NewCA(t)
	certificate := ca.Issue(t, "backend.test", "127.0.0.1")
	s := Postfix(t, PostfixOptions{Certificate: &certificate, ImplicitTLS: true})
	trust := &tls.Config{RootCAs: ca.Pool(), ServerName: "backend.test"}

	send(t, s.Addr, nil, "plain@example.org", hard)
	send(t, s.Addr, trust, "starttls@example.org", hard)
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: conversationLimit}, "tcp", s.TLSAddr, trust)
	if err != nil {
		t.Fatalf("implicit TLS: %v", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(conversationLimit)); err != nil {
		t.Fatal(err)
	}
	c, err := smtp.NewClient(conn, "backend.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := transfer(c, "implicit@example.org", hard); err != nil {
		t.Fatalf("implicit TLS: %v", err)
	}

	messages := s.Wait(t, 3)
	for _, to := range []string{"plain", "starttls", "implicit"} {
		i := slices.IndexFunc(messages, func(raw []byte) bool {
			return bytes.Contains(raw, []byte("Delivered-To: "+to+"@example.org\n"))
		})
		if i < 0 {
			t.Fatalf("no message to %s", to)
		}
		sameBytes(t, to, AsSent(messages[i]), hard)
		encrypted := bytes.Contains(messages[i], []byte("ESMTPS")) || bytes.Contains(messages[i], []byte("SMTPS "))
		if want := to != "plain"; encrypted != want {
			t.Errorf("%s: message says encrypted is %v, want %v:\n%.300s", to, encrypted, want, messages[i])
		}
	}
}

func TestPostfixOffersWhatTheTestsNeed(t *testing.T) {
	certificate := NewCA(t).Issue(t, "backend.test")
	s := Postfix(t, PostfixOptions{Certificate: &certificate, Main: []string{"message_size_limit = 123456"}})
	c := talk(t, "tcp", s.Addr)
	offered := strings.Split(say(t, c, "EHLO client.test", "250"), "\n")
	for _, want := range []string{"PIPELINING", "SIZE 123456", "STARTTLS", "ENHANCEDSTATUSCODES", "8BITMIME", "DSN", "SMTPUTF8", "CHUNKING"} {
		if !slices.Contains(offered, want) {
			t.Errorf("EHLO offers %q, want %s among them", offered, want)
		}
	}
}

func TestPostfixRefusesAtRCPT(t *testing.T) {
	s := Postfix(t, PostfixOptions{Domains: []string{"one.test", "two.test"}, Users: []string{"ann@one.test", "bob@two.test"}})
	c := talk(t, "tcp", s.Addr)
	say(t, c, "EHLO client.test", "250")
	say(t, c, "MAIL FROM:<>", "250 2.1.0")
	for _, test := range []struct{ to, want string }{
		{"ann@one.test", "250 2.1.5"},
		{"bob@two.test", "250 2.1.5"},
		{"bob@one.test", "550 5.1.1"},   // known in the other domain alone
		{"ann@three.test", "554 5.7.1"}, // not our domain: no relaying
	} {
		say(t, c, "RCPT TO:<"+test.to+">", test.want)
	}
	s.WaitLog(t, "User unknown in virtual mailbox table")
}

func TestPostfixTakesSMTPUTF8AndChunks(t *testing.T) {
	s := Postfix(t, PostfixOptions{})
	c := talk(t, "tcp", s.Addr)
	say(t, c, "EHLO client.test", "250")
	say(t, c, "MAIL FROM:<jürgen@client.test> SMTPUTF8 BODY=8BITMIME", "250")
	say(t, c, "RCPT TO:<jürgen@example.org> NOTIFY=NEVER ORCPT=utf-8;j\\x{FC}rgen@example.org", "250")
	half := len(hard) / 2
	for i, chunk := range [][]byte{hard[:half], hard[half:]} {
		command := fmt.Sprintf("BDAT %d", len(chunk)) + []string{"", " LAST"}[i]
		if _, err := fmt.Fprintf(c.W, "%s\r\n%s", command, chunk); err != nil {
			t.Fatal(err)
		}
		if err := c.W.Flush(); err != nil {
			t.Fatal(err)
		}
		hear(t, c, command, "250")
	}
	raw := s.WaitFor(t, func(raw []byte) bool { return bytes.Contains(raw, []byte("Delivered-To: jürgen@")) })
	sameBytes(t, "SMTPUTF8 with BDAT", AsSent(raw), hard)
}

// A Postfix with a before-queue filter answers what the filter answers. Here the
// filter is another Postfix.
func TestPostfixAsProxyFront(t *testing.T) {
	back := Postfix(t, PostfixOptions{Hostname: "back.test", Main: []string{"smtpd_authorized_xforward_hosts = 127.0.0.1"}})
	front := Postfix(t, PostfixOptions{Hostname: "front.test", SMTPDProxyTo: back.Addr})
	send(t, front.Addr, nil, "user@example.org", hard)
	raw := back.Wait(t, 1)[0]
	if !bytes.Contains(raw, []byte("by front.test")) {
		t.Errorf("message did not come by the front:\n%.500s", raw)
	}
}

func TestDovecotGivesMixedResults(t *testing.T) {
	s := Dovecot(t, DovecotOptions{
		Users:     []string{"ann@example.org", "bob@example.org"},
		OverQuota: []string{"full@example.org"},
		Failing:   []string{"broken@example.org"},
	})
	recipients := []struct{ to, rcpt, data string }{
		{"ann@example.org", "250 2.1.5", "250 2.0.0"},
		{"nobody@example.org", "550 5.1.1", ""}, // no reply after DATA for the refused
		{"full@example.org", "250 2.1.5", "552 5.2.2"},
		{"broken@example.org", "250 2.1.5", "451 4.2.0"},
		{"bob@example.org", "250 2.1.5", "250 2.0.0"},
	}
	for _, place := range [][2]string{{"tcp", s.Addr}, {"unix", s.Socket}} {
		c := talk(t, place[0], place[1])
		say(t, c, "LHLO client.test", "250")
		say(t, c, "MAIL FROM:<sender@client.test> BODY=8BITMIME", "250")
		for _, r := range recipients {
			say(t, c, "RCPT TO:<"+r.to+">", r.rcpt)
		}
		say(t, c, "DATA", "354")
		w := c.DotWriter()
		if _, err := w.Write(hard); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, r := range recipients {
			if r.data != "" {
				hear(t, c, "the end of data for "+r.to, r.data)
			}
		}
		say(t, c, "QUIT", "221")
	}
	s.WaitLog(t, "Quota exceeded")
	for _, user := range []string{"ann@example.org", "bob@example.org"} {
		messages := s.Wait(t, user, 2)
		for _, raw := range messages {
			sameBytes(t, user, AsSent(raw), hard)
		}
	}
	s.WaitFor(t, "ann@example.org", func(raw []byte) bool { return bytes.Contains(raw, []byte("Subject: hard")) })
}

func TestSwaks(t *testing.T) {
	certificate := NewCA(t).Issue(t, "backend.test")
	s := Postfix(t, PostfixOptions{Certificate: &certificate, Users: []string{"ann@example.org"}})
	transcript, code := Swaks(t, "--server", s.Addr, "--tls", "--from", "sender@client.test", "--to", "ann@example.org", "--body", "by swaks")
	if code != 0 || !strings.Contains(transcript, "TLS started") {
		t.Errorf("swaks exits with %d, want 0 after TLS:\n%s", code, transcript)
	}
	raw := s.Wait(t, 1)[0]
	if !bytes.HasSuffix(bytes.TrimSpace(raw), []byte("by swaks")) {
		t.Errorf("message of swaks: %q, want the body %q", raw, "by swaks")
	}
	const noRecipientAccepted = 24
	transcript, code = Swaks(t, "--server", s.Addr, "--to", "bob@example.org")
	if code != noRecipientAccepted || !strings.Contains(transcript, "<** 550 5.1.1") {
		t.Errorf("swaks to an unknown user exits with %d, want %d:\n%s", code, noRecipientAccepted, transcript)
	}
}

func TestNodemailer(t *testing.T) {
	ca := NewCA(t)
	certificate := ca.Issue(t, "backend.test")
	s := Postfix(t, PostfixOptions{Certificate: &certificate, Users: []string{"ann@example.org"}})
	host, port := split(t, s.Addr)
	transport := NodeTransport{Host: host, Port: port, RequireTLS: true, Pool: true,
		TLS: &NodeTLS{CA: string(ca.PEM), ServerName: "backend.test", RejectUnauthorized: true}}
	results := Nodemailer(t, transport,
		NodeMessage{"from": "sender@client.test", "to": "ann@example.org", "subject": "Grüße", "text": "one",
			"attachments": []NodeMessage{{"filename": "a.bin", "content": "AAECAw==", "encoding": "base64"}}},
		NodeMessage{"from": "sender@client.test", "to": "bob@example.org", "text": "two"},
		NodeMessage{"envelope": NodeMessage{"from": "sender@client.test", "to": []string{"ann@example.org", "bob@example.org"}},
			"raw": "Subject: three\r\n\r\n.\r\nthree\r\n", "dsn": NodeMessage{"id": "x1", "return": "headers", "notify": "never"}},
	)
	if one := results[0]; one.Error != nil || !strings.HasPrefix(one.Response, "250 2.0.0") || !slices.Equal(one.Accepted, []string{"ann@example.org"}) {
		t.Errorf("message to a known user: %+v, want accepted", one)
	}
	if two := results[1]; two.Error == nil || two.Error.ResponseCode != 550 || two.Error.Code != "EENVELOPE" {
		t.Errorf("message to an unknown user: %+v, want EENVELOPE with 550", two)
	}
	if three := results[2]; three.Error != nil || !slices.Equal(three.Rejected, []string{"bob@example.org"}) || len(three.Errors) != 1 || three.Errors[0].Recipient != "bob@example.org" {
		t.Errorf("message to one of each: %+v, want bob rejected", three)
	}
	s.WaitFor(t, func(raw []byte) bool { return bytes.Contains(raw, []byte("name=a.bin\n")) })
	raw := s.WaitFor(t, func(raw []byte) bool { return bytes.Contains(raw, []byte("Subject: three")) })
	sameBytes(t, "raw message", AsSent(raw), []byte("Subject: three\r\n\r\n.\r\nthree\r\n"))

	transport.TLS.CA, transport.Pool = "", false
	untrusted := Nodemailer(t, transport, NodeMessage{"from": "sender@client.test", "to": "ann@example.org"})
	if err := untrusted[0].Error; err == nil || err.Command != "CONN" {
		t.Errorf("certificate of an unknown authority: %+v, want an error of the connection", untrusted[0])
	}
}

func TestNodemailerSpeaksLMTP(t *testing.T) {
	s := Dovecot(t, DovecotOptions{OverQuota: []string{"full@example.org"}, Users: []string{"ann@example.org"}})
	host, port := split(t, s.Addr)
	results := Nodemailer(t, NodeTransport{Host: host, Port: port, LMTP: true},
		NodeMessage{"from": "sender@client.test", "to": []string{"ann@example.org", "full@example.org"}, "text": "one"})
	if one := results[0]; !slices.Equal(one.Accepted, []string{"ann@example.org"}) || !slices.Equal(one.Rejected, []string{"full@example.org"}) {
		t.Errorf("LMTP to one of each: %+v, want ann accepted, full rejected", one)
	}
	s.Wait(t, "ann@example.org", 1)
}

func TestNodeBuild(t *testing.T) {
	raw := NodeBuild(t, NodeMessage{"subject": "Grüße", "text": "text", "html": "<p>html</p>"})[0]
	for _, want := range []string{"Subject: =?UTF-8?", "multipart/alternative", "\r\n"} {
		if !bytes.Contains(raw, []byte(want)) {
			t.Errorf("built message has no %q:\n%s", want, raw)
		}
	}
}

func split(t *testing.T, addr string) (host string, port int) {
	t.Helper()
	host, service, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(service)
	}
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

// After a test nothing is left of its peers: no port, no directory, no process.
func TestNothingIsLeft(t *testing.T) {
	var addrs, dirs []string
	var group []int
	t.Run("peers", func(t *testing.T) {
		p := Postfix(t, PostfixOptions{})
		send(t, p.Addr, nil, "user@example.org", hard) // starts the children
		p.Wait(t, 1)
		d := Dovecot(t, DovecotOptions{})
		addrs = []string{p.Addr, d.Addr}
		dirs = []string{p.dir, d.dir}
		group = []int{p.daemon.cmd.Process.Pid, d.daemon.cmd.Process.Pid}
	})
	if addrs == nil {
		t.Skip("there were no peers")
	}
	for i := range addrs {
		if conn, err := net.DialTimeout("tcp", addrs[i], time.Second); err == nil {
			conn.Close()
			t.Errorf("%s still accepts", addrs[i])
		}
		if _, err := os.Stat(dirs[i]); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", dirs[i], err)
		}
		if left := processesOf(t, group[i]); len(left) > 0 {
			t.Errorf("process group %d still has %v", group[i], left)
		}
	}
}

// processesOf lists the processes of a group that have not ended.
func processesOf(t *testing.T, group int) (left []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Skipf("no /proc to look at: %v", err)
	}
	for _, e := range entries {
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state ppid pgrp ...; the name may hold anything.
		end := bytes.LastIndexByte(stat, ')')
		if fields := strings.Fields(string(stat[end+1:])); len(fields) > 2 && fields[2] == strconv.Itoa(group) && fields[0] != "Z" {
			left = append(left, string(stat[:end+1]))
		}
	}
	return left
}

func TestSeveralAtOnce(t *testing.T) {
	const clients, each = 10, 10
	s := Postfix(t, PostfixOptions{})
	var wg sync.WaitGroup
	errs := make(chan error, clients*each)
	for range clients {
		wg.Go(func() {
			for range each {
				errs <- smtp.SendMail(s.Addr, nil, "sender@client.test", []string{"user@example.org"}, hard)
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	for _, raw := range s.Wait(t, clients*each) {
		sameBytes(t, "one of many", AsSent(raw), hard)
	}
}

func TestAsSent(t *testing.T) {
	for _, test := range []struct{ stored, want, why string }{
		{"", "", "nothing"},
		{"Subject: a\n\nb\n", "Subject: a\r\n\r\nb\r\n", "no trace fields"},
		{"Return-Path: <>\nX-Original-To: a@b\nDelivered-To: a@b\nReceived: from c\n\tby d\n e\nReceived: f\n\nb\n", "Received: f\r\n\r\nb\r\n", "the server's own Received field alone, with its folded lines"},
		{"Return-Path: <>\nno field\n", "no field\r\n", "a line that is no field"},
		{"Received: a", "", "a field without line end"},
		{"\nReceived: a\n", "\r\nReceived: a\r\n", "an empty header"},
		{"DELIVERED-TO: a\n\n", "\r\n", "names in any case"},
	} {
		if got := string(AsSent([]byte(test.stored))); got != test.want {
			t.Errorf("AsSent(%q) = %q, want %q: %s", test.stored, got, test.want, test.why)
		}
	}
}

// A recorder stands in for the test that a missing program ends.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Skipf(f string, a ...any)  { r.skipped = fmt.Sprintf(f, a...) }
func (r *recorder) Fatalf(f string, a ...any) { r.failed = fmt.Sprintf(f, a...) }

func TestMissing(t *testing.T) {
	for _, ci := range []string{"", "true"} {
		t.Setenv("CI", ci)
		r := &recorder{}
		program(r, "some-package", "no-such-program-of-penstock", "/nonexistent/program")
		told := r.skipped + r.failed
		if !strings.Contains(told, "make test-deps") || !strings.Contains(told, "some-package") {
			t.Errorf("CI=%q: the test is told %q, want how to get it", ci, told)
		}
		if failed := r.failed != ""; failed != (ci != "") {
			t.Errorf("CI=%q: failed is %v; the message is %q", ci, failed, told)
		}
	}
}

func TestCertificateIsForItsNamesAlone(t *testing.T) {
	ca, other := NewCA(t), NewCA(t)
	leaf, err := x509.ParseCertificate(ca.Issue(t, "mx.test", "127.0.0.1").TLS.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		roots *x509.CertPool
		ok    bool
	}{
		{"mx.test", ca.Pool(), true},
		{"127.0.0.1", ca.Pool(), true},
		{"other.test", ca.Pool(), false},
		{"mx.test", other.Pool(), false}, // another authority
	} {
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: test.name, Roots: test.roots})
		if (err == nil) != test.ok {
			t.Errorf("certificate for %s: %v, want valid %v", test.name, err, test.ok)
		}
	}
}

func TestPebble(t *testing.T) {
	p := Pebble(t, PebbleOptions{Lifetime: time.Hour})
	if directory := fetch(t, p.client, p.Directory); !bytes.Contains(directory, []byte("newOrder")) {
		t.Errorf("directory: %s", directory)
	}
	if roots := p.Roots(t); roots.Equal(x509.NewCertPool()) || roots.Equal(p.CA.Pool()) {
		t.Error("no root of its own")
	}
}
