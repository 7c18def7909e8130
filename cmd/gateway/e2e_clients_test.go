package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp/sasl/users"
)

// e2e_clients_test.go: clients that other people wrote, in front of backends that other
// people wrote.

const reportConfig = `
listeners:
  - {name: mx, address: "127.0.0.1:0", limits: {greet_delay: off}}
  - {name: lmtp, address: "127.0.0.1:0", protocol: lmtp, tls: off, limits: {greet_delay: off}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["PROTOCOL://BACKEND"]}
`

// awaitOffer waits until a listener offers an extension, which for some is when the backend
// has been asked.
func awaitOffer(t *testing.T, addr, keyword string) {
	t.Helper()
	for {
		c := dialSMTP(t, addr)
		_, ok := c.Extension(keyword)
		c.Close()
		if ok {
			return
		}
		if t.Context().Err() != nil {
			t.Fatalf("%s is never offered", keyword)
		}
	}
}

func port(t *testing.T, addr string) int {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	n, err2 := strconv.Atoi(p)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return n
}

// TestNodemailerLogin: nodemailer logs in over STARTTLS with what it is offered, and its
// wishes about reports reach Postfix, which fulfils them.
func TestNodemailerLogin(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-06", "SS-14", "SS-62", "SS-80", "SS-81")
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org", "example.net"}})
	file := filepath.Join(t.TempDir(), "users.txt")
	if _, err := users.Set(file, "alice", users.Clear, "sesame"); err != nil {
		t.Fatal(err)
	}
	ca := peers.NewCA(t)
	var listeners strings.Builder
	mechanisms := []string{"PLAIN", "LOGIN", "CRAM-MD5"}
	for _, m := range mechanisms {
		fmt.Fprintf(&listeners, "\n  - {name: %s, address: \"127.0.0.1:0\", auth: {required: true, mechanisms: [%s], users: \"file:%s\"}, limits: {greet_delay: off, auth_delay: off}}", m, m, file)
	}
	g := startEdge(t, ca, `
listeners:LISTENERS
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
`, "LISTENERS", listeners.String(), "BACKEND", pf.Addr)
	for _, m := range mechanisms {
		awaitOffer(t, g.addr[m], "DSN")
		tr := peers.NodeTransport{Host: "127.0.0.1", Port: port(t, g.addr[m]), RequireTLS: true, Name: "client.example.net",
			TLS: &peers.NodeTLS{CA: string(ca.PEM), ServerName: "mx.example.org", RejectUnauthorized: true}}
		for password, good := range map[string]bool{"sesame": true, "wrong": false} {
			tr.Auth = &peers.NodeAuth{User: "alice", Pass: password}
			r := peers.Nodemailer(t, tr, peers.NodeMessage{"from": "alice@example.net", "to": "bob@example.org", "subject": m, "text": "Hello\n",
				"dsn": map[string]any{"id": "order " + m, "return": "headers", "notify": []string{"success", "failure"}, "recipient": "alice@example.net"}})[0]
			switch {
			case good && r.Error != nil:
				t.Errorf("%s: %+v", m, r.Error)
			case !good && (r.Error == nil || r.Error.Code != "EAUTH" || r.Error.ResponseCode != 535):
				t.Errorf("%s with a wrong password: %+v", m, r.Error)
			}
		}
	}
	subjects := make(map[string]message.Header)
	reports := 0
	for _, raw := range pf.Wait(t, 2*len(mechanisms)) {
		h, _ := message.Parse(peers.AsSent(raw))
		subjects[h.Get("Subject")] = h
		if bytes.Contains(raw, []byte("\nAction: delivered\n")) {
			reports++
			id := regexp.MustCompile(`\nOriginal-Envelope-Id: order (PLAIN|LOGIN|CRAM-MD5)\n`)
			if !id.Match(raw) || !bytes.Contains(raw, []byte("text/rfc822-headers")) || !bytes.Contains(raw, []byte("Original-Recipient: rfc822;alice@example.net")) {
				t.Errorf("report:\n%s", raw)
			}
		}
	}
	if reports != len(mechanisms) {
		t.Errorf("%d reports of success, want %d", reports, len(mechanisms))
	}
	traced(t, subjects, map[string]string{"PLAIN": "with ESMTPSA", "LOGIN": "with ESMTPSA", "CRAM-MD5": "with ESMTPSA"})
}

// TestPostfixAsClient: Postfix delivers to Postfix through us, over TLS that it verifies,
// and both understand each other as if we were not there.
func TestPostfixAsClient(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-14", "SS-16", "SS-64", "SS-80", "SS-81")
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org", "client.test"}, Main: []string{"message_size_limit = 30000000"}})
	ca := peers.NewCA(t)
	g := startEdge(t, ca, reportConfig, "BACKEND", pf.Addr, "PROTOCOL", "smtp")
	awaitOffer(t, g.addr["mx"], "DSN")
	sender := peers.NewPostfixSender(t, peers.PostfixSenderOptions{NextHop: g.addr["mx"], TLS: "secure", CA: ca, ServerName: "mx.example.org",
		Main: []string{"smtp_destination_recipient_limit = 1000", "smtp_tls_loglevel = 1"}})
	sent := func(what string, ds []peers.PostfixDelivery) {
		t.Helper()
		for _, d := range ds {
			if d.Status != "sent" {
				t.Fatalf("%s: %+v", what, d)
			}
		}
	}
	eight := []byte("Subject: eight\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\n.\r\n..\r\n")
	sent("8BITMIME", sender.Send(t, peers.PostfixMail{To: []string{"bob@example.org"}, MailParams: "RET=HDRS ENVID=batch+2B7", RcptParams: "NOTIFY=SUCCESS ORCPT=rfc822;list@example.com", Raw: eight}))
	sender.WaitLog(t, "Verified TLS connection established to 127.0.0.1")
	report := pf.WaitFor(t, func(raw []byte) bool { return bytes.Contains(raw, []byte("\nAction: delivered\n")) })
	for _, want := range []string{"\nOriginal-Envelope-Id: batch+7\n", "\nOriginal-Recipient: rfc822;list@example.com\n", "text/rfc822-headers"} {
		if !bytes.Contains(report, []byte(want)) {
			t.Errorf("the backend's report has no %q:\n%s", want, report)
		}
	}
	const many = 300
	var to []string
	for i := range many {
		to = append(to, fmt.Sprintf("user%d@example.org", i))
	}
	large := append([]byte("Subject: large\r\n\r\n"), bytes.Repeat([]byte(strings.Repeat("x", 76)+"\r\n"), 20<<20/78)...)
	sent("many", sender.Send(t, peers.PostfixMail{To: to, Raw: []byte("Subject: many\r\n\r\nHello\r\n")}))
	sent("large", sender.Send(t, peers.PostfixMail{To: []string{"bob@example.org"}, Raw: large}))
	want := map[string][]byte{"eight": eight, "large": large}
	count := make(map[string]int)
	for _, raw := range pf.Wait(t, 1+1+many+1) {
		if bytes.Contains(raw, []byte("\nAction: delivered\n")) {
			continue // the report, which is not for us to see
		}
		m := afterReceived(t, peers.AsSent(raw))
		h, _ := message.Parse(m)
		count[h.Get("Subject")]++
		if w := want[h.Get("Subject")]; w != nil && !bytes.HasSuffix(m, w) { // Postfix in front adds its own field
			t.Errorf("%s: %d octets came, %d were sent", h.Get("Subject"), len(m), len(w))
		}
	}
	if count["many"] != many || count["eight"] != 1 || count["large"] != 1 {
		t.Errorf("came: %v", count)
	}
	g.await("one message to many", func(l map[string]any) bool { return l["backend"] == "store" && l["rcpt"] == float64(many) })
	refused := sender.Send(t, peers.PostfixMail{To: []string{"bob@example.org", "bob@elsewhere.example"}, Raw: []byte("Subject: one\r\n\r\nHello\r\n")})
	if refused[0].Status != "sent" || refused[1].Status != "bounced" || refused[1].DSN != "5.7.1" {
		t.Errorf("one of two: %+v", refused)
	}
}

// TestLMTPClients: the LMTP clients of Postfix and Exim hear of each recipient what Dovecot
// says of it.
func TestLMTPClients(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-32", "SS-65")
	dc := peers.Dovecot(t, peers.DovecotOptions{Users: []string{"bob@example.org", "carol@example.org"},
		OverQuota: []string{"full@example.org"}, Failing: []string{"broken@example.org"}})
	g := startEdge(t, peers.NewCA(t), reportConfig, "BACKEND", dc.Addr, "PROTOCOL", "lmtp")
	to := []string{"bob@example.org", "nobody@example.org", "full@example.org", "broken@example.org", "carol@example.org"}
	want := []string{"sent", "bounced", "bounced", "deferred", "sent"}
	raw := []byte("From: a@client.test\r\nSubject: lmtp\r\n\r\nHello\r\n")
	sender := peers.NewPostfixSender(t, peers.PostfixSenderOptions{NextHop: g.addr["lmtp"], LMTP: true})
	for i, d := range sender.Send(t, peers.PostfixMail{To: to, Raw: raw}) {
		if d.Status != want[i] {
			t.Errorf("Postfix: %+v, want it %s", d, want[i])
		}
	}
	exim := make(map[string]string)
	for _, d := range peers.EximSend(t, peers.EximOptions{NextHop: g.addr["lmtp"], LMTP: true}, "a@client.test", to, raw) {
		exim[d.To] = d.Status
	}
	for i, address := range to {
		if exim[address] != want[i] {
			t.Errorf("Exim: %s is %s, want it %s", address, exim[address], want[i])
		}
	}
	dc.Wait(t, "bob@example.org", 2)
	dc.Wait(t, "carol@example.org", 2)
}

// TestEximAsClient: Exim sends in chunks, over TLS.
func TestEximAsClient(t *testing.T) {
	t.Parallel()
	pf := peers.Postfix(t, peers.PostfixOptions{Users: []string{"bob@example.org", "carol@example.org"}})
	g := startEdge(t, peers.NewCA(t), reportConfig, "BACKEND", pf.Addr, "PROTOCOL", "smtp")
	raw := []byte("From: a@client.test\r\nSubject: chunks\r\n\r\n.\r\n" + strings.Repeat("0123456789.\r\n.\r\n", 30000))
	got := peers.EximSend(t, peers.EximOptions{NextHop: g.addr["mx"], Transport: []string{"hosts_require_tls = *", "tls_verify_certificates ="}},
		"a@client.test", []string{"bob@example.org", "nobody@example.org", "carol@example.org"}, raw)
	status := make(map[string]string)
	for _, d := range got {
		status[d.To] = fmt.Sprint(d.Status, " ", d.Chunked)
	}
	if status["bob@example.org"] != "sent true" || status["nobody@example.org"] != "bounced false" || status["carol@example.org"] != "sent true" {
		t.Errorf("Exim says %+v", got)
	}
	_, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	for _, m := range pf.Wait(t, 2) {
		m = afterReceived(t, peers.AsSent(m))
		if !bytes.HasSuffix(m, append([]byte("\r\n\r\n"), body...)) {
			t.Errorf("%d octets came, %d were sent", len(m), len(raw))
		}
	}
}

const tlsConfig = `
listeners:
  - {name: starttls, address: "127.0.0.1:0", limits: {greet_delay: off}}
  - {name: implicit, address: "127.0.0.1:0", tls: implicit, limits: {greet_delay: off}}
  - {name: new, address: "127.0.0.1:0", tls_min_version: "1.3", limits: {greet_delay: off}}
  - {name: newimplicit, address: "127.0.0.1:0", tls: implicit, tls_min_version: "1.3", limits: {greet_delay: off}}
  - {name: old, address: "127.0.0.1:0", tls: implicit, tls_min_version: "1.0", limits: {greet_delay: off}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://127.0.0.1:1"]}
`

// openssl is a run of s_client on one of our listeners, which says EHLO and QUIT.
func openssl(t *testing.T, g *gatewayProcess, listener string, args ...string) (output string, ok bool) {
	t.Helper()
	if !strings.Contains(listener, "implicit") && listener != "old" {
		args = append(args, "-starttls", "smtp", "-name", "client.example.net")
	}
	output, code := peers.OpenSSL(t, g.addr[listener], "EHLO client.example.net\r\nQUIT\r\n", args...)
	return output, code == 0 && strings.Contains(output, "\n221 2.0.0 ")
}

// TestVersionsOfTLS: what is too old is refused, with STARTTLS as with implicit TLS; what a
// client says of protocols it would like to speak does no harm.
func TestVersionsOfTLS(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-01", "SS-16", "SS-19", "SS-53", "SS-77")
	ca := peers.NewCA(t)
	g := startEdge(t, ca, tlsConfig)
	weak := func(version string) []string { return []string{version, "-cipher", "DEFAULT@SECLEVEL=0"} }
	verified := []string{"-CAfile", ca.File, "-verify_return_error", "-verify_hostname", "mx.example.org"}
	for _, tt := range []struct {
		listeners string
		args      []string
		ok        bool
		want      string
	}{
		{"starttls implicit new newimplicit", weak("-tls1"), false, "alert protocol version"},
		{"starttls implicit new newimplicit", weak("-tls1_1"), false, "alert protocol version"},
		{"new newimplicit", []string{"-tls1_2"}, false, "alert protocol version"},
		{"starttls implicit", append(verified, "-tls1_2"), true, "Protocol  : TLSv1.2"},
		{"starttls implicit new newimplicit", append(verified, "-tls1_3"), true, "New, TLSv1.3"},
		{"old", weak("-tls1_1"), true, "TLSv1.1"},
		{"starttls implicit", []string{"-alpn", "smtp"}, true, "No ALPN negotiated"},
		{"starttls implicit", []string{"-alpn", "h2,http/1.1"}, true, "No ALPN negotiated"},
		{"starttls implicit", []string{"-alpn", "acme-tls/1"}, true, "No ALPN negotiated"},
	} {
		for _, listener := range strings.Fields(tt.listeners) {
			out, ok := openssl(t, g, listener, tt.args...)
			if ok != tt.ok || !strings.Contains(out, tt.want) {
				t.Errorf("%s %q: %v, want %v with %q in\n%s", listener, tt.args, ok, tt.ok, tt.want, out)
			}
		}
	}
	g.await("why a handshake failed", func(l map[string]any) bool {
		return l["msg"] == "session ended" && l["listener"] == "implicit" && strings.Contains(fmt.Sprint(l["err"]), "offered only unsupported versions")
	})
	g.await("the version of TLS", func(l map[string]any) bool {
		return l["msg"] == "session ended" && l["listener"] == "new" && l["tls"] == "TLS 1.3"
	})
}

// TestNamesOfCertificates: a name that we have a certificate for gets it, all others the
// default; a client comes back without a whole handshake; new certificates come with a signal,
// and open connections go on.
func TestNamesOfCertificates(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-16", "SS-17", "SS-18", "SS-57", "SS-78")
	ca := peers.NewCA(t)
	other := ca.Issue(t, "mail.example.com", "*.wild.example.com")
	yaml := strings.Replace(edgeConfig(t, ca, tlsConfig), "files: [", fmt.Sprintf("files: [{cert: %s, key: %s}, ", other.CertFile, other.KeyFile), 1)
	g := startGateway(t, yaml)
	for _, listener := range []string{"starttls", "implicit"} {
		for _, tt := range []struct {
			sni  []string
			want string // subject of the certificate
		}{
			{[]string{"-servername", "mx.example.org"}, "mx.example.org"},
			{[]string{"-servername", "mail.example.com"}, "mail.example.com"},
			{[]string{"-servername", "MAIL.Example.COM"}, "mail.example.com"},
			{[]string{"-servername", "a.wild.example.com"}, "mail.example.com"},
			{[]string{"-servername", "unknown.example"}, "mx.example.org"},
			{[]string{"-servername", "under_score.example"}, "mx.example.org"},
			{[]string{"-servername", "_25._tcp.mail.example.com"}, "mx.example.org"},
			{[]string{"-noservername"}, "mx.example.org"},
		} {
			out, ok := openssl(t, g, listener, tt.sni...)
			if !ok || !regexp.MustCompile(`subject=CN ?= ?`+regexp.QuoteMeta(tt.want)+"\n").MatchString(out) {
				t.Errorf("%s %q: want the certificate of %s\n%s", listener, tt.sni, tt.want, out)
			}
		}
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			session := filepath.Join(t.TempDir(), "session.pem")
			first, ok := openssl(t, g, listener, version, "-sess_out", session)
			again, ok2 := openssl(t, g, listener, version, "-sess_in", session)
			if !ok || !ok2 || !strings.Contains(first, "New, TLSv1") || !strings.Contains(again, "Reused, TLSv1") {
				t.Errorf("%s %s: the session does not go on\n%s\n%s", listener, version, first, again)
			}
		}
	}
	renewedCertificate(t, g, ca, yaml)
}

// renewedCertificate takes over another certificate while a client is connected.
func renewedCertificate(t *testing.T, g *gatewayProcess, ca *peers.CA, yaml string) {
	t.Helper()
	config := &tls.Config{RootCAs: ca.Pool(), ServerName: "mx.example.org"}
	open := dialSMTP(t, g.addr["starttls"])
	if err := open.StartTLS(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	renewed := ca.Issue(t, "mx.example.org", "new.example.org")
	files := regexp.MustCompile(`files: \[.*\]`)
	g.write(files.ReplaceAllLiteralString(yaml, fmt.Sprintf("files: [{cert: %s, key: %s}]", renewed.CertFile, renewed.KeyFile)))
	g.signal(syscall.SIGHUP)
	g.await("reloaded", func(l map[string]any) bool { return strings.HasPrefix(fmt.Sprint(l["msg"]), "reloaded") })
	for _, listener := range []string{"starttls", "implicit"} {
		out, ok := openssl(t, g, listener, "-servername", "new.example.org", "-CAfile", ca.File, "-verify_return_error", "-verify_hostname", "new.example.org")
		if !ok {
			t.Errorf("%s: not the new certificate\n%s", listener, out)
		}
	}
	if err := open.Noop(t.Context()); err != nil {
		t.Errorf("the open connection: %v", err)
	}
}

// TestClientCertificates: each mode asks for what it says, with STARTTLS as with implicit TLS,
// and a certificate that is verified can be a login.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-22", "SS-62", "SS-77")
	ca, stranger := peers.NewCA(t), peers.NewCA(t)
	good, foreign, unknown := ca.Issue(t, "device.example.org"), stranger.Issue(t, "device.example.org"), ca.Issue(t, "nobody.example.org")
	file := filepath.Join(t.TempDir(), "users.txt")
	if _, err := users.Set(file, "device.example.org", users.SCRAM, "never said"); err != nil {
		t.Fatal(err)
	}
	modes := []string{"off", "request", "require", "verify_if_given", "verify"}
	var listeners strings.Builder
	for _, mode := range modes {
		mechanisms, authority := "PLAIN", ""
		if strings.HasPrefix(mode, "verify") {
			mechanisms, authority = "EXTERNAL, PLAIN", ", ca_file: "+ca.File
		}
		for _, way := range []string{"starttls", "implicit"} {
			fmt.Fprintf(&listeners, "\n  - {name: %s-%s, address: \"127.0.0.1:0\", tls: %s, client_certificates: {mode: %s%s}, limits: {greet_delay: off, auth_delay: off},"+
				" auth: {mechanisms: [%s], users: \"file:%s\"}}", mode, way, way, mode, authority, mechanisms, file)
		}
	}
	g := startEdge(t, ca, `
listeners:LISTENERS
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://127.0.0.1:1"]}
`, "LISTENERS", listeners.String())
	// What becomes of no certificate, of one that we know, and of a stranger's: refused, or
	// taken, or such that it stands for a login.
	for mode, want := range map[string][3]string{
		"off":             {"taken", "taken", "taken"},
		"request":         {"taken", "taken", "taken"},
		"require":         {"refused", "taken", "taken"},
		"verify_if_given": {"taken", "login", "refused"},
		"verify":          {"refused", "login", "refused"},
	} {
		for _, way := range []string{"starttls", "implicit"} {
			for i, c := range []*peers.Certificate{nil, &good, &foreign} {
				if got, out := external(t, g.addr[mode+"-"+way], way, c, "="); got != want[i] {
					t.Errorf("%s, %s, certificate %d: %s, want %s\n%s", mode, way, i, got, want[i], out)
				}
			}
		}
	}
	for response, want := range map[string]string{"=": "login", "ZGV2aWNlLmV4YW1wbGUub3Jn": "login", "Ym9i": "denied"} {
		if got, out := external(t, g.addr["verify-implicit"], "implicit", &good, response); got != want {
			t.Errorf("EXTERNAL %s: %s, want %s\n%s", response, got, want, out)
		}
	}
	if got, out := external(t, g.addr["verify-implicit"], "implicit", &unknown, "="); got != "denied" {
		t.Errorf("a certificate of nobody: %s\n%s", got, out)
	}
	g.await("a login", func(l map[string]any) bool {
		return l["msg"] == "logged in" && l["mechanism"] == "EXTERNAL" && l["user"] == "device.example.org"
	})
}

// external tries to log in with a certificate: refused is no TLS, taken is TLS and no offer,
// denied is an offer that does not hold.
func external(t *testing.T, addr, way string, c *peers.Certificate, response string) (result, output string) {
	t.Helper()
	var args []string
	if way == "starttls" {
		args = append(args, "-starttls", "smtp")
	}
	if c != nil {
		args = append(args, "-cert", c.CertFile, "-key", c.KeyFile)
	}
	output, _ = peers.OpenSSL(t, addr, "EHLO device.example.org\r\nAUTH EXTERNAL "+response+"\r\nQUIT\r\n", args...)
	switch {
	case !strings.Contains(output, "\n221 2.0.0"):
		return "refused", output
	case strings.Contains(output, "\n504 5.5.4") && !strings.Contains(output, "250-AUTH EXTERNAL"):
		return "taken", output
	case strings.Contains(output, "250-AUTH EXTERNAL PLAIN") && strings.Contains(output, "\n235 2.7.0"):
		return "login", output
	case strings.Contains(output, "\n535 5.7.8"):
		return "denied", output
	}
	return "odd", output
}

// TestStartTLSInjection: what comes with STARTTLS in clear is no part of what is said on TLS;
// it ends the connection (RFC 3207, Section 4.2).
func TestStartTLSInjection(t *testing.T) {
	t.Parallel()
	g := startEdge(t, peers.NewCA(t), tlsConfig)
	c := newTalk(t, dialFrom(t, "", g.addr["starttls"]))
	c.expect("220 ")
	c.say("EHLO client.example.net")
	c.expect("250")
	c.say("STARTTLS\r\nMAIL FROM:<mallory@example.net>")
	for {
		line, err := c.r.ReadString('\n')
		if strings.HasPrefix(line, "250") || strings.HasPrefix(line, "220") {
			t.Errorf("the server goes on: %q", line)
		}
		if err != nil {
			break
		}
	}
}
