package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/corpus"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

// e2e_test.go: real clients, the program, real backends.

const frontConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", chain: inbound}
  - {name: smtps, address: "127.0.0.1:0", tls: implicit, chain: inbound}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: [BACKENDS]}
filters:
  cache: $CACHE
  chains:
    inbound:
      - {module: "builtin:helocheck", config: {our_names: [mx.example.org]}}
      - {module: "builtin:rcptguard", config: {blocked: ["blocked@example.org"]}}
      - {module: "builtin:bodymatch", grant: {body_read: true}, config: {rules: [{name: refuse, texts: ["X-REFUSE-THIS-BODY"]}]}}
      - {module: "builtin:attachments", grant: {body_read: true}, config: {depth: 32, extensions: [scr]}}
certificates:
  dir: $DIR/certificates
  files: [{cert: CERT, key: KEY}]
`

func front(t *testing.T, backends string, cert peers.Certificate) *gatewayProcess {
	t.Helper()
	return startGateway(t, strings.NewReplacer("BACKENDS", backends, "CERT", cert.CertFile, "KEY", cert.KeyFile).Replace(frontConfig))
}

// dialSMTP opens a session of our own client.
func dialSMTP(t *testing.T, addr string) *smtp.Client {
	t.Helper()
	return dialWith(t, addr, smtp.ClientOptions{})
}

func dialWith(t *testing.T, addr string, o smtp.ClientOptions) *smtp.Client {
	t.Helper()
	o.LocalName = "client.example.net"
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := smtp.NewClient(t.Context(), nc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func path(t *testing.T, s string) smtp.Path {
	t.Helper()
	p, err := smtp.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// send sends a message to one recipient and returns the reply.
func send(t *testing.T, c *smtp.Client, to string, raw []byte) *smtp.Reply {
	t.Helper()
	from := smtp.Sender{Path: path(t, "alice@example.net"), Body: smtp.BodyEightBit}
	rcpts, err := c.Envelope(t.Context(), from, []smtp.Recipient{{Path: path(t, to)}})
	if err == nil && len(rcpts) == 1 {
		err = rcpts[0]
	}
	if err != nil {
		if r := smtp.ReplyOf(err); r.Code != 451 || r.Cause == nil {
			if err := c.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			return r
		}
		t.Fatal(err)
	}
	replies, err := c.Data(t.Context(), bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return replies[0]
}

// afterReceived cuts the gateway's own Received field off a delivered message.
func afterReceived(t *testing.T, raw []byte) []byte {
	t.Helper()
	h, _ := message.Parse(raw)
	if h.Len() == 0 || !h.Field(0).Is("Received") || !bytes.Contains(h.Field(0).Raw(), []byte("by mx.example.org (Penstock)")) {
		t.Fatalf("the first field is not ours: %.200q", raw)
	}
	return raw[len(h.Field(0).Raw()):]
}

// TestCorpusToPostfix sends every real message there is through filters to Postfix, over
// STARTTLS on one connection after the other, and compares what arrives byte for byte.
func TestCorpusToPostfix(t *testing.T) {
	messages := corpus.Messages(t)
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
	ca := peers.NewCA(t)
	g := front(t, `"smtp://`+pf.Addr+`"`, ca.Issue(t, "mx.example.org"))

	want := map[string][]byte{} // by the recipient's local part
	var c *smtp.Client
	for i, m := range messages {
		if i%20 == 0 {
			c = dialSMTP(t, g.addr["mx"])
			if err := c.StartTLS(t.Context(), &tls.Config{RootCAs: ca.Pool(), ServerName: "mx.example.org"}); err != nil {
				t.Fatal(err)
			}
		}
		local := fmt.Sprintf("m%d", i)
		if r := send(t, c, local+"@example.org", m.Raw); r.Code != 250 {
			t.Errorf("%s %s: %s", m.Source, m.Name, r.Line())
			continue
		}
		want[local] = m.Raw
	}
	if len(want) < 150 {
		t.Fatalf("%d messages, want 150 or more", len(want))
	}
	t.Logf("%d real messages through the gateway to Postfix", len(want))
	for _, raw := range pf.Wait(t, len(want)) {
		h, _ := message.Parse(bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n")))
		local, _, _ := strings.Cut(h.Get("Delivered-To"), "@")
		got := afterReceived(t, peers.AsSent(raw))
		if !sameMail(got, want[local]) {
			t.Errorf("%s (%s): %d octets came, %d were sent\n%s", local, name(messages, local), len(got), len(want[local]), firstDifference(got, want[local]))
		}
		delete(want, local)
	}
	if len(want) > 0 {
		t.Errorf("%d messages did not arrive", len(want))
	}
}

func name(messages []corpus.Message, local string) string {
	i, err := strconv.Atoi(strings.TrimPrefix(local, "m"))
	if err != nil || i >= len(messages) {
		return "?"
	}
	return messages[i].Source + " " + messages[i].Name
}

// sameMail compares, but for the empty line that Postfix puts between a header and a body
// that have none.
func sameMail(got, want []byte) bool {
	if bytes.Equal(got, want) {
		return true
	}
	n, ok := message.End(want)
	if !ok {
		n = len(want) // a header and nothing else
	}
	return !bytes.HasSuffix(want[:n], []byte("\r\n\r\n")) &&
		bytes.Equal(got, append(append(bytes.Clone(want[:n]), "\r\n"...), want[n:]...))
}

func firstDifference(a, b []byte) string {
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	cut := func(s []byte) []byte { return s[max(i-40, 0):min(i+40, len(s))] }
	return fmt.Sprintf("at %d: got %q, want %q", i, cut(a), cut(b))
}

// TestSwaks sends with swaks in clear, over STARTTLS and over implicit TLS, and is refused
// by filters and by the backend.
func TestSwaks(t *testing.T) {
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}, Users: []string{"bob@example.org", "blocked@example.org"}})
	g := front(t, `"smtp://`+pf.Addr+`"`, peers.NewCA(t).Issue(t, "mx.example.org"))
	common := []string{"--from", "alice@example.net", "--helo", "client.example.net"}
	to := func(addr string, extra ...string) []string {
		return append(append([]string{"--to", addr}, extra...), common...)
	}
	tests := []struct {
		name, listener string
		args           []string
		want           string // in the transcript
		code           int
	}{
		{"clear", "mx", to("bob@example.org", "--header", "Subject: clear"), "<-  250 2.0.0 Ok: ", 0},
		{"STARTTLS", "mx", to("bob@example.org", "-tls", "--header", "Subject: starttls"), "TLSv1.3", 0},
		{"implicit TLS", "smtps", to("bob@example.org", "-tlsc", "--header", "Subject: implicit"), "TLSv1.3", 0},
		{"attachment", "mx", to("bob@example.org", "--attach-type", "text/plain", "--attach-body", "body", "--attach", "line one\n.\nline three\n", "--header", "Subject: attachment"), "<-  250 2.0.0 Ok", 0},
		{"a filter refuses RCPT", "mx", to("blocked@example.org"), "<** 550 5.7.1", 24},
		{"a filter refuses the body", "mx", to("bob@example.org", "--body", "X-REFUSE-THIS-BODY"), "<** 550 5.7.1", 26},
		{"a filter refuses an attachment", "mx", to("bob@example.org", "--attach-type", "application/pdf", "--attach-name", "invoice.pdf.scr", "--attach", "hello"), "<** 550 5.7.1 attachments of this kind are not accepted here: name .scr", 26},
		{"a filter refuses HELO", "mx", []string{"--to", "bob@example.org", "--helo", "mx.example.org"}, "<** 550 5.7.1", 23},
		{"the backend refuses RCPT", "mx", to("carol@example.org"), "<** 550 5.1.1", 24},
		{"no route", "mx", to("bob@elsewhere.example"), "<** 550 5.7.1 relaying denied", 24},
	}
	delivered := 0
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, code := peers.Swaks(t, append([]string{"--server", g.addr[tt.listener]}, tt.args...)...)
			if code != tt.code || !strings.Contains(out, tt.want) {
				t.Errorf("exit code %d, want %d with %q in\n%s", code, tt.code, tt.want, out)
			}
		})
		if tt.code == 0 {
			delivered++
		}
	}
	subjects := map[string]bool{}
	for _, raw := range pf.Wait(t, delivered) {
		m := peers.AsSent(raw)
		afterReceived(t, m)
		h, _ := message.Parse(m)
		subjects[h.Get("Subject")] = true
		tlsWanted := strings.Contains("starttls implicit", h.Get("Subject"))
		if got := strings.Contains(h.Get("Received"), "(using TLSv1.3 with cipher"); got != tlsWanted {
			t.Errorf("Received of %q: TLS %v, want %v: %s", h.Get("Subject"), got, tlsWanted, h.Get("Received"))
		}
	}
	if len(subjects) != delivered {
		t.Errorf("arrived: %v", subjects)
	}
}

// TestNodemailer sends with nodemailer: SMTPUTF8, attachments, several recipients of which
// one is refused, a pooled connection.
func TestNodemailer(t *testing.T) {
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
	ca := peers.NewCA(t)
	g := front(t, `"smtp://`+pf.Addr+`"`, ca.Issue(t, "mx.example.org"))
	msgs := []peers.NodeMessage{
		{"from": "alice@example.net", "to": "bob@example.org", "subject": "Grüße aus Köln", "text": "Schöne Grüße\n.\n..\n",
			"attachments": []any{map[string]any{"filename": "a.bin", "content": "AAECAwQFBgcICQAAAQIDBAUGBwgJAAABAgMEBQYHCAk=", "encoding": "base64"}}},
		{"from": "jürgen@example.net", "to": "bücher@example.org", "subject": "utf8", "text": "UTF-8 addresses\n"},
		{"from": "alice@example.net", "to": []string{"bob@example.org", "blocked@example.org"}, "subject": "one of two", "html": "<p>hi</p>", "text": "hi"},
	}
	node := func(way string) peers.NodeTransport {
		listener := "mx"
		if way == "implicit" {
			listener = "smtps"
		}
		_, port, _ := net.SplitHostPort(g.addr[listener])
		n, _ := strconv.Atoi(port)
		return peers.NodeTransport{Host: "127.0.0.1", Port: n, Secure: way == "implicit", RequireTLS: way == "starttls", IgnoreTLS: way == "clear",
			Name: "client.example.net", Pool: true, MaxConnections: 1,
			TLS: &peers.NodeTLS{CA: string(ca.PEM), ServerName: "mx.example.org", RejectUnauthorized: true}}
	}
	ways := []string{"clear", "starttls", "implicit"}
	for _, way := range ways {
		for i, r := range peers.Nodemailer(t, node(way), msgs...) {
			if r.Error != nil || len(r.Accepted) != 1 {
				t.Errorf("%s, message %d: %+v %v", way, i, r, r.Error)
			}
		}
	}
	subjects, attachments := map[string]int{}, 0
	for _, raw := range pf.Wait(t, len(ways)*len(msgs)) {
		m := afterReceived(t, peers.AsSent(raw))
		h, _ := message.Parse(m)
		subjects[h.Get("Subject")]++
		attachments += bytes.Count(m, []byte("AAECAwQFBgcICQAAAQIDBAUGBwgJAAABAgMEBQYHCAk"))
	}
	if len(subjects) != len(msgs) || attachments != len(ways) {
		t.Errorf("subjects %v, %d attachments", subjects, attachments)
	}
	if !strings.Contains(pf.WaitLog(t, "bücher@example.org"), "bücher@example.org") {
		t.Error("the UTF-8 recipient did not reach Postfix as it was")
	}
}

// TestDovecot hands mail over by LMTP, over TCP and a Unix socket: a mixed result is 451,
// and unknown users are refused at RCPT.
func TestDovecot(t *testing.T) {
	dc := peers.Dovecot(t, peers.DovecotOptions{Users: []string{"bob@example.org", "carol@example.org"}, OverQuota: []string{"full@example.org"}})
	for name, backend := range map[string]string{"tcp": "lmtp://" + dc.Addr, "unix": "lmtp+unix://" + dc.Socket} {
		t.Run(name, func(t *testing.T) {
			g := front(t, `"`+backend+`"`, peers.NewCA(t).Issue(t, "mx.example.org"))
			c := dialSMTP(t, g.addr["mx"])
			raw := []byte("Subject: " + name + "\r\n\r\nHello\r\n.dot\r\n")
			if r := send(t, c, "bob@example.org", raw); r.Code != 250 {
				t.Errorf("bob: %s", r.Line())
			}
			if r := send(t, c, "nobody@example.org", raw); r.Code != 550 || r.Enh != (smtp.Enhanced{5, 1, 1}) {
				t.Errorf("nobody: %s", r.Line())
			}
			if r := send(t, c, "full@example.org", raw); r.Code != 552 {
				t.Errorf("full: %s", r.Line())
			}
			rcpts := []smtp.Recipient{{Path: path(t, "carol@example.org")}, {Path: path(t, "full@example.org")}}
			if _, err := c.Envelope(t.Context(), smtp.Sender{Path: path(t, "alice@example.net")}, rcpts); err != nil {
				t.Fatal(err)
			}
			replies, err := c.Data(t.Context(), bytes.NewReader(raw))
			if err != nil || replies[0].Code != 451 {
				t.Errorf("mixed: %v %v", replies, err)
			}
			got := dc.WaitFor(t, "bob@example.org", func(m []byte) bool { return bytes.Contains(m, []byte("Subject: "+name)) })
			if m := afterReceived(t, peers.AsSent(got)); !bytes.Equal(m, raw) {
				t.Errorf("got %q, want %q", m, raw)
			}
		})
	}
}

// TestBackendsInOrder: an address that is down is skipped; when all are down the client
// gets 451, and mail flows again when one is back.
func TestBackendsInOrder(t *testing.T) {
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := down.Addr().String()
	down.Close()
	cert := peers.NewCA(t).Issue(t, "mx.example.org")
	raw := []byte("Subject: order\r\n\r\nHello\r\n")

	g := front(t, `"smtp://`+dead+`", "smtp://`+pf.Addr+`"`, cert)
	if r := send(t, dialSMTP(t, g.addr["mx"]), "bob@example.org", raw); r.Code != 250 {
		t.Errorf("with one of two down: %s", r.Line())
	}
	pf.Wait(t, 1)
	g = front(t, `"smtp://`+dead+`"`, cert)
	c := dialSMTP(t, g.addr["mx"])
	if r := send(t, c, "bob@example.org", raw); r.Code != 451 {
		t.Errorf("with all down: %s", r.Line())
	}
	up, err := net.Listen("tcp", dead)
	if err != nil {
		t.Fatal(err)
	}
	back, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return smtp.Accept{}, nil }),
		smtp.ServerOptions{Hostname: "back.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- back.Serve(up) }()
	defer func() {
		back.Shutdown(context.Background())
		<-served
	}()
	// Until its pause is over the address is not tried.
	for late := time.Now().Add(patience); ; {
		c := dialSMTP(t, g.addr["mx"])
		r := send(t, c, "bob@example.org", raw)
		c.Close()
		if r.Code == 250 {
			break
		}
		if r.Code != 451 || time.Now().After(late) {
			t.Fatalf("with the backend back: %s", r.Line())
		}
	}
}

// TestReload: HUP takes new routes and filters for new sessions, while a session that was
// open keeps its own and is not dropped; a broken configuration changes nothing.
func TestReload(t *testing.T) {
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
	cert := peers.NewCA(t).Issue(t, "mx.example.org")
	yaml := strings.NewReplacer("BACKENDS", `"smtp://`+pf.Addr+`"`, "CERT", cert.CertFile, "KEY", cert.KeyFile).Replace(frontConfig)
	g := startGateway(t, yaml)
	raw := []byte("Subject: reload\r\n\r\nHello\r\n")
	old := dialSMTP(t, g.addr["mx"])
	if r := send(t, old, "blocked@example.org", raw); r.Code != 550 {
		t.Fatalf("before: %s", r.Line())
	}
	yaml = strings.ReplaceAll(yaml, "blocked@example.org", "other@example.org")
	renewed := peers.NewCA(t)
	cert2 := renewed.Issue(t, "mx.example.org")
	yaml = strings.NewReplacer(cert.CertFile, cert2.CertFile, cert.KeyFile, cert2.KeyFile).Replace(yaml)
	g.write(yaml)
	g.signal(syscall.SIGHUP)
	g.await("reloaded", func(l map[string]any) bool { return strings.HasPrefix(fmt.Sprint(l["msg"]), "reloaded") })
	fresh := dialSMTP(t, g.addr["mx"])
	if r := send(t, fresh, "blocked@example.org", raw); r.Code != 250 {
		t.Errorf("new session: %s", r.Line())
	}
	if r := send(t, fresh, "other@example.org", raw); r.Code != 550 {
		t.Errorf("new session: %s", r.Line())
	}
	if r := send(t, old, "blocked@example.org", raw); r.Code != 550 {
		t.Errorf("old session: %s", r.Line())
	}
	if err := fresh.StartTLS(t.Context(), &tls.Config{RootCAs: renewed.Pool(), ServerName: "mx.example.org"}); err != nil {
		t.Errorf("the new certificate: %v", err)
	}
	g.write(strings.NewReplacer("other@example.org", "third@example.org", cert2.KeyFile, cert.KeyFile).Replace(yaml))
	g.signal(syscall.SIGHUP)
	g.await("a key that does not fit", func(l map[string]any) bool {
		return strings.Contains(fmt.Sprint(l["problem"]), "certificates.files[0]")
	})
	if r := send(t, fresh, "third@example.org", raw); r.Code != 250 {
		t.Errorf("a part of a broken configuration was taken over: %s", r.Line())
	}
	g.write(strings.ReplaceAll(yaml, "hostname:", "hostnam:"))
	g.signal(syscall.SIGHUP)
	g.await("refusal", func(l map[string]any) bool { return strings.Contains(fmt.Sprint(l["problem"]), "hostnam") })
	if r := send(t, fresh, "other@example.org", raw); r.Code != 550 {
		t.Errorf("after a broken reload: %s", r.Line())
	}
}

// TestShutdown: TERM lets a message that is under way get its reply, tells a waiting
// client 421, and the process ends with code 0.
func TestShutdown(t *testing.T) {
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
	g := front(t, `"smtp://`+pf.Addr+`"`, peers.NewCA(t).Issue(t, "mx.example.org"))
	waiting := dialSMTP(t, g.addr["mx"])
	// A chunk is sent when it is full, and DATA at once.
	busy := dialWith(t, g.addr["mx"], smtp.ClientOptions{NoChunking: true})
	if _, err := busy.Envelope(t.Context(), smtp.Sender{Path: path(t, "alice@example.net")}, []smtp.Recipient{{Path: path(t, "bob@example.org")}}); err != nil {
		t.Fatal(err)
	}
	replies, err := busy.Data(t.Context(), interrupted{func() {
		g.signal(syscall.SIGTERM)
		g.await("shutting down", func(l map[string]any) bool { return l["msg"] == "shutting down" })
	}})
	if err != nil || replies[0].Code != 250 {
		t.Errorf("the message under way: %v %v\n%s", replies, err, g.log())
	}
	if err := waiting.Noop(context.Background()); smtp.ReplyOf(err).Code != 421 {
		t.Errorf("the waiting client: %v", err)
	}
	<-g.done
	if g.err != nil {
		t.Errorf("exit: %v\n%s", g.err, g.log())
	}
	pf.Wait(t, 1)
}

// interrupted is content in whose middle something happens.
type interrupted struct{ f func() }

func (i interrupted) WriteTo(w io.Writer) (int64, error) {
	head := strings.Repeat("X-Filler: "+strings.Repeat("x", 60)+"\r\n", 2000)
	n, err := io.WriteString(w, "Subject: under way\r\n"+head)
	if err != nil {
		return int64(n), err
	}
	i.f()
	m, err := io.WriteString(w, "\r\nthe end\r\n")
	return int64(n + m), err
}

// TestExitCodes: what docs/operations.md says of them.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		args string
		code int
		want string // of standard error
	}{
		{"version", 0, ""},
		{"--help", 0, ""},
		{"filter", 0, ""},
		{"completion bash", 0, ""},
		{"chek", 2, `did you mean "check"?`},
		{"filter tset", 2, `did you mean "test"?`},
		{"check --conf x", 2, "unknown flag: --conf"},
		{"filter test x.wasm", 2, "1 arguments"},
		{"check --set x", 2, "want key=value"},
		{"check -c none.yaml", 1, "none.yaml: cannot be read"},
		{"filter inspect none.wasm", 1, "none.wasm"},
		{"demo --once --listen 192.0.2.77:99999", 1, "99999"},
	} {
		_, errs, code := gatewayRun(t, dir, nil, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(errs, tt.want) {
			t.Errorf("gateway %s: exit code %d, want %d with %q\n%s", tt.args, code, tt.code, tt.want, errs)
		}
	}
}

// TestDemo runs the demo to its end and finds what it should say.
func TestDemo(t *testing.T) {
	dir := t.TempDir()
	out, errs, code := gatewayRun(t, dir, nil, "demo", "--once", "--dir", filepath.Join(dir, "mail"), "--listen", "127.0.0.1:0")
	if code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, out, errs)
	}
	for _, want := range []string{
		"helocheck", "rcptguard", "headertag", "bodymatch",
		"added X-Scanned-By: Penstock demo",
		"✓ accepted: 250 2.0.0 kept as 0001.eml",
		"✓ accepted: 250 2.0.0 kept as 0002.eml",
		"✗ refused: 550 5.7.1",
		"no lotteries, please",
		"relaying denied",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the demo does not say %q:\n%s", want, out)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "mail", "0001.eml"))
	if err != nil || !bytes.Contains(raw, []byte("X-Scanned-By: Penstock demo")) || !bytes.Contains(raw, []byte("\r\n.. a line with dots\r\n")) {
		t.Errorf("the first message: %q %v", raw, err)
	}
}
