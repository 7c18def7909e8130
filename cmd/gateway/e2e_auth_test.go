package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
)

// e2e_auth_test.go: who a client is. It logs in, or somebody in front of us says so.

// startEdge starts a gateway. The configuration lacks the name, the certificate and the
// filters that every test has; pairs are replaced in it.
func startEdge(t *testing.T, ca *peers.CA, yaml string, pairs ...string) *gatewayProcess {
	t.Helper()
	return startGateway(t, edgeConfig(t, ca, yaml, pairs...))
}

func edgeConfig(t *testing.T, ca *peers.CA, yaml string, pairs ...string) string {
	t.Helper()
	cert := ca.Issue(t, "mx.example.org")
	head := fmt.Sprintf("hostname: mx.example.org\ncertificates: {dir: $DIR/certificates, files: [{cert: %s, key: %s}]}\n", cert.CertFile, cert.KeyFile)
	if !strings.Contains(yaml, "\nfilters:") {
		head += "filters: {cache: $CACHE}\n"
	}
	return strings.NewReplacer(pairs...).Replace(head + yaml)
}

// swaksCase is a run of swaks and what it has to come to.
type swaksCase struct {
	name, listener string
	args           []string
	code           int    // of the program
	want           string // in the transcript
}

// runSwaks runs them one after the other.
func runSwaks(t *testing.T, g *gatewayProcess, cases []swaksCase) {
	t.Helper()
	for _, tt := range cases {
		args := append([]string{"--server", g.addr[tt.listener], "--from", "alice@example.net", "--helo", "client.example.net",
			"--header", "Subject: " + tt.name}, tt.args...)
		out, code := peers.Swaks(t, args...)
		if code != tt.code || !strings.Contains(out, tt.want) {
			t.Errorf("%s: exit code %d, want %d with %q in\n%s", tt.name, code, tt.code, tt.want, out)
		}
	}
}

// bySubject returns the delivered messages without the backend's trace fields.
func bySubject(raws [][]byte) map[string]message.Header {
	m := make(map[string]message.Header)
	for _, raw := range raws {
		h, _ := message.Parse(peers.AsSent(raw))
		m[h.Get("Subject")] = h
	}
	return m
}

// traced checks the Received fields that we added.
func traced(t *testing.T, arrived map[string]message.Header, want map[string]string) {
	t.Helper()
	for subject, part := range want {
		h, ok := arrived[subject]
		if got := strings.Join(strings.Fields(h.Get("Received")), " "); !ok || !strings.Contains(got, part) {
			t.Errorf("%q: Received is %q, want %q in it", subject, got, part)
		}
	}
}

const loginConfig = `
listeners:
  - name: submission
    address: "127.0.0.1:0"
    accept: any
    auth: {required: true, required_text: "who are you?", mechanisms: [PLAIN, LOGIN, CRAM-MD5, SCRAM-SHA-256], users: "file:USERS"}
    limits: {greet_delay: off, auth_delay: off}
  - name: mx
    address: "127.0.0.1:0"
    accept: any
    auth: {users: "file:USERS"}
    limits: {greet_delay: off, auth_delay: off}
routes:
  - {domains: [example.org, "*"], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
log: {level: debug}
`

// TestLoginFromFile: users of a file, made by the command for it, log in with swaks. Who has
// logged in may send anywhere.
func TestLoginFromFile(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-06", "SS-07", "SS-08", "SS-09", "SS-62", "SS-75")
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org", "far.example"}})
	file := filepath.Join(t.TempDir(), "users.txt")
	const password = "correct horse+1"
	for _, scheme := range []string{"plain", "scram-sha-256"} {
		if _, _, err := userCommand(t, password+"\n", "add", "--stdin", "--scheme", scheme, "alice@example.org", "--file", file); err != nil {
			t.Fatal(err)
		}
	}
	g := startEdge(t, peers.NewCA(t), loginConfig, "USERS", file, "BACKEND", pf.Addr)
	login := func(mechanism, user, password string) []string {
		return []string{"-tls", "--to", "bob@far.example", "--auth", mechanism, "--auth-user", user, "--auth-password", password}
	}
	runSwaks(t, g, []swaksCase{
		{"PLAIN", "submission", login("PLAIN", "alice@example.org", password), 0, "<~  235 2.7.0"},
		{"LOGIN", "submission", login("LOGIN", "alice@example.org", password), 0, "<~  235 2.7.0"},
		{"CRAM-MD5", "submission", login("CRAM-MD5", "alice@example.org", password), 0, "<~  235 2.7.0"},
		{"optional", "mx", login("PLAIN", "alice@example.org", password), 0, "<~  235 2.7.0"},
		{"wrong PLAIN", "submission", login("PLAIN", "alice@example.org", "guess"), 28, "<~* 535 5.7.8"},
		{"wrong LOGIN", "submission", login("LOGIN", "alice@example.org", "guess"), 28, "<~* 535 5.7.8"},
		{"wrong CRAM-MD5", "submission", login("CRAM-MD5", "alice@example.org", "guess"), 28, "<~* 535 5.7.8"},
		{"nobody", "submission", login("PLAIN", "mallory@example.org", password), 28, "<~* 535 5.7.8"},
		{"CRAM-MD5 where it is off", "mx", login("CRAM-MD5", "alice@example.org", password), 28, "250-AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN"},
		{"not offered in clear", "submission", login("PLAIN", "alice@example.org", password)[1:], 28, "did not advertise authentication"},
		{"no login", "submission", []string{"-tls", "--to", "bob@example.org"}, 23, "<~* 530 5.7.0 who are you?"},
		{"no login, to us", "mx", []string{"-tls", "--to", "bob@example.org"}, 0, "<~  250"},
		{"no login, elsewhere", "mx", []string{"-tls", "--to", "bob@far.example"}, 24, "<~* 550 5.7.1 relaying denied"},
	})
	arrived := bySubject(pf.Wait(t, 5))
	traced(t, arrived, map[string]string{"PLAIN": "with ESMTPSA id", "LOGIN": "with ESMTPSA id", "CRAM-MD5": "with ESMTPSA id",
		"optional": "with ESMTPSA id", "no login, to us": "with ESMTPS id"})
	g.await("a login", func(l map[string]any) bool {
		return l["msg"] == "logged in" && l["user"] == "alice@example.org" && l["mechanism"] == "CRAM-MD5"
	})
	plain := base64.StdEncoding.EncodeToString([]byte("\x00alice@example.org\x00" + password))
	for _, secret := range []string{password, base64.StdEncoding.EncodeToString([]byte(password)), plain, "mallory"} {
		if strings.Contains(g.log(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	changedUser(t, g, file)
}

// changedUser: a password that is changed counts soon, without a signal.
func changedUser(t *testing.T, g *gatewayProcess, file string) {
	t.Helper()
	for _, scheme := range []string{"plain", "scram-sha-256"} {
		if _, _, err := userCommand(t, "the next one\n", "add", "--stdin", "--scheme", scheme, "alice@example.org", "--file", file); err != nil {
			t.Fatal(err)
		}
	}
	g.await("the new file of users", func(l map[string]any) bool { return l["msg"] == "users: read again" })
	runSwaks(t, g, []swaksCase{{"the new password", "mx", []string{"-tls", "--to", "bob@example.org", "--auth", "LOGIN",
		"--auth-user", "alice@example.org", "--auth-password", "the next one"}, 0, "<~  235 2.7.0"}})
}

const askedConfig = `
listeners:
  - {name: mx, address: "127.0.0.1:0", accept: any, auth: {mechanisms: [MECHANISMS], users: "backend:store"}, limits: {greet_delay: off, auth_delay: off}}
routes:
  - {domains: ["*"], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
`

// TestLoginAtBackend: Postfix, which asks Dovecot, knows the users.
func TestLoginAtBackend(t *testing.T) {
	t.Parallel()
	dc := peers.Dovecot(t, peers.DovecotOptions{Conf: []string{
		"passdb {", "driver = static", "args = password=of-the-backend", "}",
		"service auth {", "unix_listener for-postfix {", "mode = 0666", "}", "}",
	}})
	pf := peers.Postfix(t, peers.PostfixOptions{Main: []string{"smtpd_sasl_auth_enable = yes", "smtpd_sasl_type = dovecot",
		"smtpd_sasl_path = " + filepath.Join(filepath.Dir(dc.Socket), "for-postfix")}})
	g := startEdge(t, peers.NewCA(t), askedConfig, "MECHANISMS", "PLAIN, LOGIN", "BACKEND", pf.Addr)
	login := func(mechanism, password string) []string {
		return []string{"-tls", "--to", "bob@example.org", "--auth", mechanism, "--auth-user", "user@example.org", "--auth-password", password}
	}
	runSwaks(t, g, []swaksCase{
		{"right", "mx", login("PLAIN", "of-the-backend"), 0, "<~  235 2.7.0"},
		{"right by LOGIN", "mx", login("LOGIN", "of-the-backend"), 0, "<~  235 2.7.0"},
		{"wrong", "mx", login("PLAIN", "of-nobody"), 28, "<~* 535 5.7.8"},
	})
	traced(t, bySubject(pf.Wait(t, 2)), map[string]string{"right": "with ESMTPSA"})
}

// loginServer is a backend that knows users.
type loginServer struct {
	smtp.Accept
	conn *smtp.Conn
	sasl.Credentials
}

func (s *loginServer) Mechanisms() []string { return []string{sasl.XOAuth2, sasl.Plain} }

func (s *loginServer) Auth(ctx context.Context, mechanism string) (smtp.Mechanism, error) {
	return sasl.New(ctx, mechanism, s.Credentials, sasl.Conn{AllowClear: true, Hostname: "store.example.org"})
}

// serveSMTP starts a server of our own for the time of the test.
func serveSMTP(t *testing.T, h smtp.HandlerFunc, o smtp.ServerOptions) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Hostname = "store.example.org"
	srv, err := smtp.NewServer(h, o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-served
	})
	return l.Addr().String()
}

// tokenBackend takes the token "good-token" of anybody.
func tokenBackend(t *testing.T) string {
	t.Helper()
	return serveSMTP(t, func(_ context.Context, c *smtp.Conn) (smtp.Session, error) {
		return &loginServer{conn: c, Credentials: sasl.Credentials{
			Token: func(_ context.Context, r sasl.TokenRequest) (string, error) {
				if r.Token != "good-token" {
					return "", sasl.ErrDenied
				}
				return r.User, nil
			},
			Password: func(context.Context, string, string) error { return sasl.ErrDenied },
		}}, nil
	}, smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true}})
}

const filterLoginConfig = `
listeners:
  - {name: mx, address: "127.0.0.1:0", accept: any, chain: outbound, auth: {users: filter}, limits: {greet_delay: off, auth_delay: off}}
routes:
  - {domains: ["*"], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
filters:
  cache: $CACHE
  dir: FOLDER
  chains:
    outbound:
      - {module: app-password, grant: {auth_data: true}, config: {digests: {alice: "DIGEST"}}}
`

// TestLoginByFilter: the example that decides about logins does so.
func TestLoginByFilter(t *testing.T) {
	t.Parallel()
	pf := peers.Postfix(t, peers.PostfixOptions{})
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "app-password.wasm"), guests.Build(t, filepath.Join("..", "..", "examples", "app-password")), 0o600); err != nil {
		t.Fatal(err)
	}
	const app = "fxqd wz4k 7hnb 2rtm"
	g := startEdge(t, peers.NewCA(t), filterLoginConfig, "BACKEND", pf.Addr, "FOLDER", folder, "DIGEST", fmt.Sprintf("%x", sha256.Sum256([]byte(app))))
	login := func(mechanism, user, password string) []string {
		return []string{"-tls", "--to", "bob@example.org", "--auth", mechanism, "--auth-user", user, "--auth-password", password}
	}
	runSwaks(t, g, []swaksCase{
		{"PLAIN", "mx", login("PLAIN", "alice", app), 0, "<~  235 2.7.0"},
		{"LOGIN", "mx", login("LOGIN", "alice", app), 0, "<~  235 2.7.0"},
		{"wrong", "mx", login("PLAIN", "alice", "fxqd"), 28, "<~* 535 5.7.8"},
		{"nobody", "mx", login("LOGIN", "bob", app), 28, "<~* 535 5.7.8"},
	})
	traced(t, bySubject(pf.Wait(t, 2)), map[string]string{"PLAIN": "with ESMTPSA", "LOGIN": "with ESMTPSA"})
	if strings.Contains(g.log(), app) {
		t.Error("the password is in the log")
	}
}

// TestLMTPListener: swaks speaks LMTP with us, and we with Dovecot: each recipient has an
// answer of its own.
func TestLMTPListener(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-32")
	dc := peers.Dovecot(t, peers.DovecotOptions{Users: []string{"bob@example.org", "carol@example.org"}, OverQuota: []string{"full@example.org"}})
	g := startEdge(t, peers.NewCA(t), `
listeners:
  - {name: lmtp, address: "127.0.0.1:0", protocol: lmtp, limits: {greet_delay: off}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["lmtp://BACKEND"]}
`, "BACKEND", dc.Addr)
	out, code := peers.Swaks(t, "--server", g.addr["lmtp"], "--protocol", "LMTP", "--from", "alice@example.net", "--helo", "client.example.net",
		"--to", "bob@example.org,nobody@example.org,full@example.org,carol@example.org")
	_, after, _ := strings.Cut(out, "\n -> .\n")
	var replies []string
	for line := range strings.Lines(after) {
		if strings.HasPrefix(line, "<") {
			replies = append(replies, strings.TrimSpace(line[3:min(len(line), 13)]))
		}
	}
	if want := "250 2.0.0 552 5.2.2 250 2.0.0 221 2.0.0"; strings.Join(replies, " ") != want || !strings.Contains(out, "<** 550 5.1.1") {
		t.Errorf("exit code %d, replies %q, want %q behind a refused recipient\n%s", code, replies, want, out)
	}
	for _, user := range []string{"bob@example.org", "carol@example.org"} {
		h, _ := message.Parse(peers.AsSent(dc.Wait(t, user, 1)[0]))
		traced(t, map[string]message.Header{user: h}, map[string]string{user: "with LMTP id"})
	}
}

const spokenForConfig = `
listeners:
  - {name: log, address: "127.0.0.1:0", accept: any, trusted_networks: [192.0.2.0/24], xclient: {trusted: [127.0.0.1]}, limits: {greet_delay: off}}
  - {name: relay, address: "127.0.0.1:0", accept: any, trusted_networks: [192.0.2.0/24], xclient: {trusted: [127.0.0.1], relay: true}, limits: {greet_delay: off}}
  - {name: proxy, address: "127.0.0.1:0", accept: any, trusted_networks: [192.0.2.0/24], proxy_protocol: {trusted: [127.0.0.1], timeout: 500ms}, reverse_dns: {enabled: false}, limits: {greet_delay: off}}
routes:
  - {domains: [example.org], backend: store}
  - {domains: ["*"], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
delivery: {resolver: {address: "127.0.0.1:1"}}
`

// TestXClientAndProxyBySwaks: swaks says for whom it speaks, in words of Postfix and of HAProxy.
func TestXClientAndProxyBySwaks(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-28", "SS-30", "SS-35", "SS-79")
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org", "far.example"}})
	g := startEdge(t, peers.NewCA(t), spokenForConfig, "BACKEND", pf.Addr)
	xclient := func(to string, pairs ...string) []string {
		args := []string{"--to", to}
		for i := 0; i < len(pairs); i += 2 {
			args = append(args, "--xclient-"+pairs[i], pairs[i+1])
		}
		return args
	}
	proxy := func(to, version, family, source string) []string {
		return []string{"--to", to, "--proxy-version", version, "--proxy-family", family, "--proxy-source", source, "--proxy-source-port", "1025",
			"--proxy-dest", "192.0.2.2", "--proxy-dest-port", "25"}
	}
	runSwaks(t, g, []swaksCase{
		{"all attributes", "log", xclient("bob@example.org", "addr", "198.51.100.7", "name", "far.example.com", "helo", "greets.example.com", "port", "1025", "proto", "SMTP", "login", "carol"), 0, "<-  220 mx.example.org"},
		{"IPv6", "log", xclient("bob@example.org", "addr", "IPV6:2001:db8::7", "name", "[UNAVAILABLE]"), 0, "<-  220 mx.example.org"},
		{"a trusted address does not relay", "log", xclient("bob@far.example", "addr", "192.0.2.7"), 24, "<** 550 5.7.1"},
		{"a login does not relay", "log", xclient("bob@far.example", "addr", "198.51.100.7", "login", "carol"), 24, "<** 550 5.7.1"},
		{"a trusted address relays", "relay", xclient("bob@far.example", "addr", "192.0.2.7", "name", "in.example.com"), 0, "<-  250"},
		{"a login relays", "relay", xclient("bob@far.example", "addr", "198.51.100.7", "login", "carol", "name", "out.example.com"), 0, "<-  250"},
		{"a stranger does not relay", "relay", xclient("bob@far.example", "addr", "198.51.100.7", "name", "out.example.com"), 24, "<** 550 5.7.1"},
		{"proxy 1", "proxy", proxy("bob@far.example", "1", "TCP4", "192.0.2.7"), 0, "<-  250"},
		{"proxy 2", "proxy", proxy("bob@far.example", "2", "AF_INET", "192.0.2.7"), 0, "<-  250"},
		{"proxy for a stranger", "proxy", proxy("bob@far.example", "2", "AF_INET", "198.51.100.7"), 24, "<** 550 5.7.1"},
		{"proxy over TLS", "proxy", append(proxy("bob@example.org", "2", "AF_INET", "198.51.100.7"), "-tls"), 0, "<~  250"},
		{"proxy without a header", "proxy", []string{"--to", "bob@example.org"}, 6, "Remote host closed connection"},
	})
	arrived := bySubject(pf.Wait(t, 7))
	traced(t, arrived, map[string]string{
		"all attributes":           "from client.example.net (far.example.com [198.51.100.7]) by mx.example.org",
		"IPv6":                     "([IPv6:2001:db8::7]) by",
		"a trusted address relays": "(in.example.com [192.0.2.7])",
		"a login relays":           "(out.example.com [198.51.100.7])",
		"proxy 1":                  "from client.example.net ([192.0.2.7]) by",
		"proxy 2":                  "from client.example.net ([192.0.2.7]) by",
		"proxy over TLS":           "([198.51.100.7]) (using TLSv1.3 with cipher",
	})
	for _, want := range []map[string]any{
		{"listener": "log", "remote": "198.51.100.7:1025", "rdns": "far.example.com", "user": "carol"},
		{"listener": "relay", "remote": "198.51.100.7:0", "user": "carol", "accepted": 1.0},
		{"listener": "proxy", "remote": "192.0.2.7:1025", "accepted": 1.0},
	} {
		g.await(fmt.Sprint("a session like ", want), func(l map[string]any) bool { return l["msg"] == "session ended" && like(l, want) })
	}
	notForStrangers(t, g)
}

// like tells whether a line has what is wanted.
func like(line, want map[string]any) bool {
	for key, v := range want {
		if line[key] != v {
			return false
		}
	}
	return true
}

// dialFrom connects from an address of this machine.
func dialFrom(t *testing.T, from, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: patience}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	nc, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// notForStrangers: who is not in the networks that were named is a client like any other.
func notForStrangers(t *testing.T, g *gatewayProcess) {
	t.Helper()
	for _, tt := range []struct{ listener, say, want string }{
		{"log", "XCLIENT ADDR=192.0.2.7", "550 5.7"},
		{"log", "XFORWARD ADDR=192.0.2.7", "550 5.7"},
		{"proxy", "PROXY TCP4 192.0.2.7 192.0.2.2 1025 25", "500 5.5"},
	} {
		nc := dialFrom(t, "127.0.0.9", g.addr[tt.listener])
		c := newTalk(t, nc)
		c.expect("220 ")
		c.say("EHLO client.example.net")
		if offer := c.expect("250"); strings.Contains(offer, "XCLIENT") || strings.Contains(offer, "XFORWARD") {
			t.Errorf("%s: a stranger is offered %q", tt.listener, offer)
		}
		c.say(tt.say)
		c.expect(tt.want)
		c.say("MAIL FROM:<a@example.net>")
		c.expect("250")
		c.say("RCPT TO:<bob@far.example>")
		c.expect("550 5.7.1")
	}
}

// xoauth2 is what a client says with that mechanism.
func xoauth2(user, token string) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "user=%s\x01auth=Bearer %s\x01\x01", user, token))
}

// TestTokenAtBackend: a token is tried at the backend, over the wire from a client of our own.
func TestTokenAtBackend(t *testing.T) {
	t.Parallel()
	ca := peers.NewCA(t)
	g := startEdge(t, ca, askedConfig, "MECHANISMS", "XOAUTH2, PLAIN", "BACKEND", tokenBackend(t))
	for token, want := range map[string]string{"good-token": "235 2.7.0", "bad-token": "535 5.7.8"} {
		input := "EHLO a.example\r\nAUTH XOAUTH2 " + xoauth2("alice", token) + "\r\n\r\nQUIT\r\n"
		out, _ := peers.OpenSSL(t, g.addr["mx"], input, "-starttls", "smtp", "-quiet")
		if !strings.Contains(out, want) {
			t.Errorf("%s: want %q in\n%s", token, want, out)
		}
		if !strings.Contains(out, "250-AUTH XOAUTH2 PLAIN") {
			t.Errorf("%s: XOAUTH2 is not offered\n%s", token, out)
		}
		tr := peers.NodeTransport{Host: "127.0.0.1", Port: port(t, g.addr["mx"]), RequireTLS: true, Name: "client.example.net",
			TLS:  &peers.NodeTLS{CA: string(ca.PEM), ServerName: "mx.example.org", RejectUnauthorized: true},
			Auth: &peers.NodeAuth{Type: "OAuth2", User: "alice", AccessToken: token}}
		r := peers.Nodemailer(t, tr, peers.NodeMessage{"from": "alice@example.net", "to": "bob@example.org", "text": "Hello\n"})[0]
		if good := want[0] == '2'; good != (r.Error == nil) || !good && r.Error.ResponseCode != 535 {
			t.Errorf("nodemailer with %s: %+v", token, r.Error)
		}
	}
}
