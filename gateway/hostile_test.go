package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
)

// hostile_test.go: what strangers try at a gateway: to be taken for somebody else, to send
// where they may not, to guess passwords, and to use up what others need. The rig checks
// after each that all counters are at zero again.

// v1Header is what a proxy says of a client.
func v1Header(client string) string {
	return "PROXY TCP4 " + client + " 127.0.0.1 12345 25\r\n"
}

// TestForeignIdentity: what a client says of itself through a proxy, or in the words of one,
// grants it nothing that it may not do itself, and what the proxy may do is not the client's.
func TestForeignIdentity(t *testing.T) {
	everywhere := networks("127.0.0.0/8", "10.0.0.0/8")
	unnamed := "PROXY UNKNOWN\r\n"
	for _, c := range []struct {
		name     string
		listener Listener
		head     string   // before the greeting
		steps    []string // behind EHLO
	}{
		{"nobody is trusted", Listener{}, "", []string{
			"XCLIENT ADDR=10.0.0.1 => 550 5.7.1", "XFORWARD ADDR=10.0.0.1 => 550 5.7.1", "xclient login=admin => 550 5.7.1"}},
		{"a stranger says a PROXY header", Listener{Trusted: networks("10.0.0.0/8")}, "", []string{
			"PROXY TCP4 10.0.0.1 127.0.0.1 1 25 => 500"}},
		{"a client behind a trusted proxy may not say XCLIENT", Listener{Proxies: everywhere, XClient: networks("127.0.0.0/8"), XForward: networks("127.0.0.0/8"), XClientRelay: true},
			v1Header("192.0.2.9"), []string{"XCLIENT ADDR=10.0.0.1 LOGIN=admin => 550 5.7.1", "XFORWARD ADDR=10.0.0.1 => 550 5.7.1"}},
		{"nor one that the proxy does not name", Listener{Proxies: everywhere, XClient: networks("127.0.0.0/8", "0.0.0.0/0", "::/0"), XForward: networks("0.0.0.0/0", "::/0")},
			unnamed, []string{"XCLIENT ADDR=10.0.0.1 => 550 5.7.1", "XFORWARD ADDR=10.0.0.1 => 550 5.7.1"}},
		{"nor in version 2", Listener{Proxies: everywhere, XClient: networks("0.0.0.0/0", "::/0")},
			v2Header(v2Proxy, 0, ""), []string{"XCLIENT ADDR=10.0.0.1 => 550 5.7.1"}},
		{"the proxy's address is trusted, its client is not", Listener{Proxies: everywhere, Trusted: networks("127.0.0.0/8")},
			v1Header("192.0.2.9"), nil},
		{"nor is a client without a name", Listener{Proxies: everywhere, Trusted: networks("0.0.0.0/0", "::/0")}, unnamed, nil},
		{"XCLIENT to a trusted address, without relay", Listener{XClient: everywhere, Trusted: everywhere}, "",
			[]string{"XCLIENT ADDR=10.0.0.1 => 220", "EHLO c => 250"}},
		{"XCLIENT with a login, without relay", Listener{XClient: everywhere}, "", []string{"XCLIENT LOGIN=admin => 220", "EHLO c => 250"}},
		{"XCLIENT to a stranger, with relay", Listener{XClient: everywhere, XClientRelay: true, Trusted: networks("127.0.0.0/8")}, "",
			[]string{"XCLIENT ADDR=192.0.2.9 => 220", "EHLO c => 250"}},
		{"XCLIENT to nobody", Listener{XClient: everywhere, XClientRelay: true, Trusted: everywhere}, "",
			[]string{"XCLIENT ADDR=[UNAVAILABLE] => 220", "EHLO c => 250"}},
		{"XCLIENT to one that is trusted, and then to nobody", Listener{XClient: everywhere, XClientRelay: true, Trusted: everywhere}, "",
			[]string{"XCLIENT ADDR=10.0.0.1 => 220", "EHLO c => 250", "XCLIENT ADDR=[UNAVAILABLE] => 220", "EHLO c => 250"}},
		{"XCLIENT without an address", Listener{XClient: everywhere, XClientRelay: true, Trusted: everywhere}, "",
			[]string{"XCLIENT NAME=trusted.test => 220", "EHLO c => 250"}},
		{"a login that is taken back", Listener{XClient: everywhere, XClientRelay: true}, "",
			[]string{"XCLIENT LOGIN=admin => 220", "EHLO c => 250", "XCLIENT LOGIN= => 220", "EHLO c => 250"}},
		{"XFORWARD", Listener{XForward: everywhere, Trusted: networks("10.0.0.0/8")}, "", []string{"XFORWARD ADDR=10.0.0.1 SOURCE=LOCAL => 250"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.listener.Relay = true
			r := &rig{listener: c.listener, routes: []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}}}
			p := r.start(t).dial(t, "mx")
			p.send(c.head)
			p.talk(" => 220", "EHLO c => 250")
			p.talk(c.steps...)
			p.talk("MAIL FROM:<a@example.com> => 250", "RCPT TO:<b@elsewhere.test> => 550 5.7.1 relaying denied", "RCPT TO:<b@example.com> => 250", "QUIT => 221")
		})
	}
}

// TestUnnamedClients: those whom a proxy does not name are held to limits all together.
func TestUnnamedClients(t *testing.T) {
	once := Rate{Count: 1, Per: time.Hour}
	for _, c := range []struct {
		name     string
		listener Listener
		head     string
		steps    []string
		want     string // of the second connection, with a message each
	}{
		{"connections", Listener{ConnectionRate: once}, "PROXY UNKNOWN\r\n", nil, "421 4.7.0"},
		{"of a network", Listener{ConnectionRateNetwork: once}, v2Header(v2Proxy, 0, ""), nil, "421 4.7.0"},
		{"at a time", Listener{ConnectionsPerIP: 1}, "PROXY UNKNOWN\r\n", nil, "421 4.7.0"},
		{"messages", Listener{MessageRate: once}, "PROXY UNKNOWN\r\n", nil, "451 4.7.1"},
		{"messages after XCLIENT", Listener{MessageRate: once, XClient: networks("127.0.0.0/8")}, "",
			[]string{"XCLIENT ADDR=192.0.2.1 => 220", "EHLO c => 250", "XCLIENT ADDR=[UNAVAILABLE] => 220", "EHLO c => 250"}, "451 4.7.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.head != "" {
				c.listener.Proxies = networks("127.0.0.0/8")
			}
			c.listener.Trusted = networks("127.0.0.0/8") // the proxy's own address
			r := (&rig{listener: c.listener}).start(t)
			open := func() *peer {
				p := r.dial(t, "mx")
				p.send(c.head)
				return p
			}
			first := open()
			first.talk(" => 220", "EHLO c => 250")
			first.talk(c.steps...)
			first.talk("MAIL FROM:<a@c.test> => 250")
			second := open()
			if !strings.HasPrefix(c.want, "421") {
				second.talk(" => 220", "EHLO c => 250")
				second.talk(c.steps...)
				second.talk("MAIL FROM:<a@c.test> => " + c.want)
				return
			}
			second.talk(" => " + c.want)
		})
	}
}

// TestNoRelaying: the forms of an address by which a stranger might have us, or a backend that
// trusts us, send mail elsewhere.
func TestNoRelaying(t *testing.T) {
	r := &rig{listener: Listener{Relay: true, Trusted: networks("192.0.2.0/24")},
		routes: []Route{{Domains: []string{"example.com", "*.example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}}}
	r.start(t)
	const denied, routed = "550 5.7.1 relaying denied", "550 5.7.1 mail is not passed on through"
	for _, c := range []struct{ to, want string }{
		{"<b@elsewhere.test>", denied},
		{"<b@xexample.com>", denied},
		{"<b@example.com.elsewhere.test>", denied},
		{"<b@com>", denied},
		{"<b@EXAMPLE.COM>", "250"},
		{"<b@example.com.>", "50"},
		{"<@example.com:b@elsewhere.test>", denied},
		{"<@example.com,@mx.example.net:b@elsewhere.test>", denied},
		{"<@elsewhere.test:b@example.com>", "250"}, // the route is dropped
		{`<"b@elsewhere.test"@example.com>`, routed},
		{`<b\@elsewhere.test@example.com>`, "501"},
		{`<"b\@elsewhere.test"@example.com>`, routed},
		{`<"@example.com:b@elsewhere.test"@example.com>`, routed},
		{"<b%elsewhere.test@example.com>", routed},
		{"<b%elsewhere.test@sub.example.com>", routed},
		{"<elsewhere.test!b@example.com>", routed},
		{`<"elsewhere.test!b"@example.com>`, routed},
		{"<b%elsewhere.test>", "501"},
		{"<elsewhere.test!b>", "501"},
		{`<"b@elsewhere.test">`, "501"},
		{"<postmaster%elsewhere.test>", "501"},
		{"<b@elsewhere.test@example.com>", "501"},
		{"<b@example.com@elsewhere.test>", "501"},
		{"<b@[192.0.2.1]>", denied},
		{"<b@[127.0.0.1]>", denied},
		{"<b@[IPv6:::1]>", denied},
		{"<b@[example.com]>", "501"},
		{"<b@*>", "501"},
		{"<b@*.example.com>", "501"},
		{"b@example.com", "501"},
		{"<b@example.com> <c@elsewhere.test>", "501"},
		{"<b@example.com>,<c@elsewhere.test>", "501"},
		{"<b@example.com> ORCPT=rfc822;c@elsewhere.test", "555"},
		{"<postmaster>", "250"},
		{"<a+b@example.com>", "250"},
		{"<b=elsewhere.test@example.com>", "250"},
	} {
		p := r.hello(t)
		for _, from := range []string{"<f@c.test>", "<f@example.com>", "<postmaster@mx.example.net>"} {
			p.talk("MAIL FROM:"+from+" => 250", "RCPT TO:"+c.to+" => "+c.want, "RSET => 250")
		}
		p.talk("QUIT => 221")
	}
	// Whoever may relay may also say how, and where no backend heeds it anybody may.
	for _, l := range []Listener{{Relay: true, Trusted: networks("127.0.0.0/8")}, {Routing: true}} {
		own := &rig{listener: l, routes: r.routes}
		own.start(t).hello(t).talk("MAIL FROM:<f@c.test> => 250", "RCPT TO:<b%elsewhere.test@example.com> => 250",
			"RCPT TO:<elsewhere.test!b@example.com> => 250", "QUIT => 221")
	}
}

// passwordLogins are users "user" and "certain" with the password and the token.
func passwordLogins(t testing.TB, password, token string, asked *atomic.Int64) Logins {
	keys, err := sasl.DeriveSCRAMKeys(password, []byte("0123456789abcdef"), sasl.MinIterations)
	if err != nil {
		t.Fatal(err)
	}
	only := func(right bool) error {
		asked.Add(1)
		if right {
			return nil
		}
		return sasl.ErrDenied
	}
	return Logins{Mechanisms: sasl.Mechanisms(), Credentials: func() sasl.Credentials {
		return sasl.Credentials{
			Password: func(_ context.Context, user, said string) error { return only(user == "user" && said == password) },
			Secret:   func(_ context.Context, user string) (string, error) { return password, only(user == "user") },
			SCRAM:    func(_ context.Context, user string) (sasl.SCRAMKeys, error) { return keys, only(user == "user") },
			Token:    func(_ context.Context, r sasl.TokenRequest) (string, error) { return "user", only(r.Token == token) },
		}
	}}
}

// logIn is one exchange. It returns the last reply, and all lines that were said behind the
// command's name.
func (p *peer) logIn(mechanism string, a sasl.Account) (reply string, said []string) {
	p.t.Helper()
	a.AllowClear = true
	c, err := sasl.NewClient(mechanism, a)
	if err != nil {
		p.t.Fatal(err)
	}
	_, initial, err := c.Start()
	if err != nil {
		p.t.Fatal(err)
	}
	line := "AUTH " + mechanism
	if initial != nil {
		said = append(said, base64.StdEncoding.EncodeToString(initial))
		line += " " + said[0]
	}
	for {
		p.send(line + "\r\n")
		reply = p.reply()
		challenge, more := strings.CutPrefix(reply, "334 ")
		if !more {
			return reply, said
		}
		raw, err := base64.StdEncoding.DecodeString(challenge)
		if err != nil {
			p.t.Fatal(err)
		}
		response, err := c.Next(raw)
		if err != nil {
			line = "*"
			continue
		}
		line = base64.StdEncoding.EncodeToString(response)
		said = append(said, line)
	}
}

// TestLoginSecrets: at debug level the log tells of every login and has nothing in it with
// which another could log in.
func TestLoginSecrets(t *testing.T) {
	const password, token, other = "correct-horse", "battery.staple", "wrong-cow"
	var asked atomic.Int64
	r := &rig{listener: Listener{Logins: passwordLogins(t, password, token, &asked),
		Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true, FailureDelay: -1}, ErrorDelay: -1}}}
	r.options = func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	r.start(t)
	secrets := map[string]bool{}
	for _, s := range []string{password, token, other} {
		for _, form := range []string{s, base64.StdEncoding.EncodeToString([]byte(s)), base64.RawStdEncoding.EncodeToString([]byte(s)), fmt.Sprintf("%x", s)} {
			secrets[form] = true
		}
	}
	for _, mechanism := range []string{sasl.Plain, sasl.Login, sasl.CRAMMD5, sasl.XOAuth2, sasl.OAuthBearer, sasl.SCRAMSHA256} {
		for _, a := range []sasl.Account{{User: "user", Password: password, Token: token}, {User: "user", Password: other, Token: other}, {User: "nobody", Password: other, Token: other}} {
			p := r.hello(t)
			reply, said := p.logIn(mechanism, a)
			want := "235"
			if a.Password == other {
				want = "535"
			}
			if !strings.HasPrefix(reply, want) {
				t.Errorf("%s as %s: got %q, want %s", mechanism, a.User, reply, want)
			}
			for _, s := range said {
				if len(s) > 4 {
					secrets[s] = true
				}
			}
			p.talk("QUIT => 221")
		}
	}
	// Clients that do not wait, or that write what nobody expects.
	for _, said := range []string{
		"AUTH NONE\r\n%s\r\nQUIT\r\n", "AUTH LOGIN\r\n!\r\n%s\r\n%s\r\nQUIT\r\n", "AUTH\tPLAIN %s\r\nQUIT\r\n", "AUTHPLAIN %s\r\nQUIT\r\n",
		"AUTH PLAIN =%s\r\n%s\r\nQUIT\r\n", "MAIL FROM:<a@c.test>\r\nAUTH PLAIN %s\r\n%s\r\nBDAT 1\r\n%s\r\nQUIT\r\n", "AUTH LOGIN\r\n%s\n\r\n%s\r\nQUIT\r\n",
	} {
		p := r.hello(t)
		p.send(strings.ReplaceAll(said, "%s", base64.StdEncoding.EncodeToString([]byte(password))))
		io.Copy(io.Discard, p.r)
	}
	r.stop(t)
	log := r.log.String()
	for s := range secrets {
		if strings.Contains(log, s) {
			at := strings.Index(log, s)
			t.Errorf("%q is in the log: %s", s, log[max(0, at-200):min(len(log), at+100)])
		}
	}
	for _, want := range []string{"AUTH …", "logged in", "login failed", "mechanism=SCRAM-SHA-256"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log", want)
		}
	}
}

// TestLoginLimits: who guesses is sent away after three, and his address is not heard any
// more after five, not even with the right password; an unknown user and a wrong password
// are answered alike, and each costs one question.
func TestLoginLimits(t *testing.T) {
	var asked atomic.Int64
	r := &rig{listener: Listener{Logins: passwordLogins(t, "right", "token", &asked), AuthFailureRate: Rate{Count: 5, Per: time.Hour},
		Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true, FailureDelay: -1}}}}
	r.start(t)
	try := func(p *peer, user, password, want string, questions int64) {
		t.Helper()
		before := asked.Load()
		if got, _ := p.logIn(sasl.Plain, sasl.Account{User: user, Password: password}); got != want {
			t.Errorf("%s %s: got %q, want %q", user, password, got, want)
		}
		if n := asked.Load() - before; n != questions {
			t.Errorf("%s %s: %d questions, want %d", user, password, n, questions)
		}
	}
	const denied = "535 5.7.8 authentication credentials invalid"
	p := r.hello(t)
	try(p, "user", "wrong", denied, 1)
	try(p, "nobody", "right", denied, 1)
	try(p, "user", "wrong", "421 4.7.0 too many failed logins", 1)
	p.talk(" => closed")
	p = r.hello(t)
	try(p, "user", "right", "235 2.7.0 logged in", 1)
	p = r.hello(t)
	try(p, "user", "wrong", denied, 1)
	try(p, "user", "wrong", denied, 1)
	const tooMany = "454 4.7.0 too many failed logins from your address, try again later"
	try(p, "user", "right", tooMany, 0)
	try(r.hello(t), "user", "right", tooMany, 0)
}

// TestLoginPlace: where AUTH may not stand it is refused, and what comes with it in one go is
// taken as what it is.
func TestLoginPlace(t *testing.T) {
	var asked atomic.Int64
	right := base64.StdEncoding.EncodeToString([]byte("\x00user\x00right"))
	r := &rig{listener: Listener{Relay: true, Logins: passwordLogins(t, "right", "token", &asked), TLS: TLSStart,
		Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true, FailureDelay: -1}, ErrorDelay: -1}},
		more:   []Listener{{Name: "safe", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, Relay: true, Logins: passwordLogins(t, "right", "token", &asked), TLS: TLSStart}},
		routes: []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}}}
	r.options = func(o *Options) { o.TLS = testTLS(t) }
	r.start(t)
	relay := func(p *peer, want string) {
		p.t.Helper()
		p.talk("MAIL FROM:<a@c.test> => 250", "RCPT TO:<b@elsewhere.test> => "+want, "RSET => 250")
	}
	p := r.dial(t, "mx")
	p.talk(" => 220", "AUTH PLAIN "+right+" => 503", "EHLO c => 250", "MAIL FROM:<a@c.test> => 250", "AUTH PLAIN "+right+" => 503", "RSET => 250")
	relay(p, "550 5.7.1 relaying denied")
	p.talk("AUTH PLAIN "+right+" => 235", "AUTH PLAIN "+right+" => 503")
	relay(p, "250")
	p.talk("EHLO again => 250")
	relay(p, "250") // a login outlives EHLO
	p.startTLS()
	p.talk("EHLO c => 250")
	relay(p, "550 5.7.1 relaying denied") // and not STARTTLS
	p.talk("QUIT => 221")

	// A login in one go with what needs it.
	p = r.hello(t)
	p.send("AUTH PLAIN " + right + "\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@elsewhere.test>\r\nRSET\r\nQUIT\r\n")
	p.talk(" => 235", " => 250", " => 250", " => 250", " => 221")
	p = r.hello(t)
	p.send("AUTH PLAIN\r\n*\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@elsewhere.test>\r\nQUIT\r\n")
	p.talk(" => 334", " => 501", " => 250", " => 550 5.7.1", " => 221")
	p = r.hello(t)
	p.send("AUTH PLAIN " + right + "\r\nSTARTTLS\r\nMAIL FROM:<a@c.test>\r\n")
	p.talk(" => 235", " => closed") // injected in clear

	p = r.dial(t, "safe")
	p.talk(" => 220", "EHLO c => 250", "AUTH PLAIN "+right+" => 538 5.7.11")
	relay(p, "550 5.7.1 relaying denied")
	// A certificate of a client is no login, and nothing that grants relaying.
	p.startTLS()
	p.talk("EHLO c => 250")
	relay(p, "550 5.7.1 relaying denied")
	p.talk("AUTH EXTERNAL = => 504", "QUIT => 221")
}

// startTLS shows a certificate that the client made itself.
func (p *peer) startTLS() {
	p.t.Helper()
	p.talk("STARTTLS => 220")
	p.nc = tls.Client(p.nc, &tls.Config{InsecureSkipVerify: true, Certificates: testTLS(p.t).Certificates})
	p.r = bufio.NewReader(p.nc)
}

// testTLS is a configuration with a certificate that nobody trusts, which asks for one.
func testTLS(t testing.TB) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "user"}, DNSNames: []string{"user"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// TestHeaderBombs: header sections that are too much are refused, those that are only odd go
// through, and neither costs more than some times their size.
func TestHeaderBombs(t *testing.T) {
	r := (&rig{listener: Listener{MaxHeader: 1 << 20}}).start(t)
	for _, c := range []struct{ name, message, want string }{
		{"one field of 900 KB", "Subject: " + strings.Repeat("x", 900<<10) + "\r\n\r\nbody\r\n", "250"},
		{"one field of 2 MB", "Subject: " + strings.Repeat("x", 2<<20) + "\r\n\r\nbody\r\n", "552 5.3.4"},
		{"a name of 1 MB", strings.Repeat("x", 1<<20+1) + ": a\r\n\r\nbody\r\n", "552 5.3.4"},
		{"a million fields", strings.Repeat("a:\r\n", 1e6) + "\r\nbody\r\n", "552 5.3.4"},
		{"a million fields without an end", strings.Repeat("a:\r\n", 1e6), "552 5.3.4"},
		{"eleven thousand fields", strings.Repeat("a:\r\n", 11_000) + "\r\n", "552 5.3.4"},
		{"nine thousand fields", strings.Repeat("a:\r\n", 9_000) + "\r\n", "250"},
		{"a field of a million lines", "Subject: a\r\n" + strings.Repeat(" \r\n", 1e6) + "\r\n", "552 5.3.4"},
		{"a thousand Received fields", strings.Repeat("Received: from a by b\r\n", 1000) + "\r\n", "554 5.4.6"},
		{"bare line ends only", strings.Repeat("a:\n", 1e6) + "\r\n", "552 5.3.4"},
		{"no header", strings.Repeat("x", 3<<20) + "\r\n", "552 5.3.4"},
		{"NULs", strings.Repeat("\x00", 100_000) + "\r\n\r\n", "250"},
		{"nothing", "", "250"},
	} {
		p := r.hello(t)
		p.begin("b@example.com")
		if got := p.data(c.message); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: got %q, want %s", c.name, got, c.want)
		}
		p.talk("QUIT => 221")
	}
}

// TestSilence: five hundred that say nothing, with and without a proxy's header half said,
// keep nobody out and are gone in time.
func TestSilence(t *testing.T) {
	for _, c := range []struct {
		name, head string
		listener   Listener
		gone       time.Duration
	}{
		{"behind the greeting", "", Listener{}, 5 * time.Minute},
		{"before a PROXY header", "", Listener{Proxies: networks("0.0.0.0/0", "::/0")}, 5 * time.Second},
		{"in a PROXY header", "PROXY TCP4 192.0.2.1 ", Listener{Proxies: networks("0.0.0.0/0", "::/0")}, 5 * time.Second},
		{"in one of version 2", v2Header(v2Proxy, v2TCP4, addr4)[:20], Listener{Proxies: networks("0.0.0.0/0", "::/0")}, 5 * time.Second},
		{"behind one", v1Header("192.0.2.1"), Listener{Proxies: networks("0.0.0.0/0", "::/0")}, 5 * time.Minute},
		{"in a command", "EHLO", Listener{}, 5 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.listener.ConnectionsPerIP = -1
				r := &rig{listener: c.listener}
				r.build(t)
				start := time.Now()
				var clients sync.WaitGroup
				for range 500 {
					ours, theirs := net.Pipe()
					go r.gw.listeners[0].srv.ServeConn(&addressed{theirs})
					clients.Go(func() {
						if c.head != "" { // of nothing a pipe makes a read of nothing
							go io.WriteString(ours, c.head)
						}
						io.Copy(io.Discard, ours)
						if d := time.Since(start); d < c.gone || d > c.gone+c.gone/10 {
							t.Errorf("gone after %s, want %s", d, c.gone)
						}
					})
				}
				clients.Wait()
				r.stop(t)
			})
		})
	}
}

// addressed is a pipe from 127.0.0.1 as far as anybody can tell.
type addressed struct{ net.Conn }

func (addressed) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (addressed) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 25} }

// FuzzProxied: whatever stands before the greeting, behind it and in place of it, a session
// ends, nothing stays counted, and the client is told whole lines or nothing.
func FuzzProxied(f *testing.F) {
	for _, head := range []string{"", v1Header("192.0.2.1"), "PROXY UNKNOWN\r\n", v2Header(v2Proxy, v2TCP4, addr4), v2Header(v2Local, 0, ""),
		v2Header(v2Proxy, v2TCP6, addr6, tlv(2, "mx.test"), tlv(5, "id")), "PROXY TCP4 192.0.2.1", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01"} {
		for _, rest := range []string{"", "EHLO c\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@example.com>\r\nDATA\r\na\n.\n\r\n.\r\nQUIT\r\n",
			"EHLO c\r\nXCLIENT ADDR=192.0.2.7 LOGIN=u\r\nEHLO d\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@example.com>\r\nBDAT 3\r\na\r\nBDAT 0 LAST\r\n",
			"EHLO c\r\nXFORWARD NAME=x\r\nSTARTTLS\r\n"} {
			f.Add([]byte(head+rest), false)
			f.Add([]byte(head+rest), true)
		}
	}
	r := &rig{listener: Listener{Proxies: networks("127.0.0.0/8"), XClient: networks("192.0.2.0/24"), XForward: networks("192.0.2.0/24"),
		ConnectionsPerIP: -1, Server: smtp.ServerOptions{ErrorDelay: -1}},
		more: []Listener{{Name: "direct", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff, ConnectionsPerIP: -1,
			XClient: networks("127.0.0.0/8"), XForward: networks("127.0.0.0/8"), Server: smtp.ServerOptions{ErrorDelay: -1}}}}
	r.build(f)
	f.Cleanup(func() { r.stop(f) })
	f.Fuzz(func(t *testing.T, said []byte, direct bool) {
		defer time.AfterFunc(20*time.Second, func() { panic(fmt.Sprintf("%q: no end", said)) }).Stop()
		l := r.gw.listeners[0]
		if direct {
			l = r.gw.listeners[1]
		}
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.srv.ServeConn(&halfClosed{Conn: addressed{theirs}, said: said})
		}()
		told, _ := io.ReadAll(ours)
		<-done
		if len(told) > 0 && !bytes.HasSuffix(told, []byte("\r\n")) || bytes.ContainsAny(bytes.ReplaceAll(told, []byte("\r\n"), nil), "\r\n\x00") {
			t.Errorf("%q: told %q", said, told)
		}
		for _, m := range r.far.took() {
			if i := bytes.IndexAny(bytes.ReplaceAll(m, []byte("\r\n"), nil), "\r\n"); i >= 0 {
				t.Errorf("%q: the far side got %q", said, m)
			}
		}
		if c := r.gw.load.counts(); c.sessions != 0 || c.spool != 0 || len(r.gw.perIP) != 0 || l.srv.Connections() != 0 || r.far.count(0) != 0 {
			t.Errorf("%q: %d sessions, %d octets, addresses %v, %d connections, %d transactions are counted at the end",
				said, c.sessions, c.spool, r.gw.perIP, l.srv.Connections(), r.far.count(0))
		}
	})
}

// halfClosed is a connection whose client says this and no more.
type halfClosed struct {
	net.Conn
	said []byte
}

func (c *halfClosed) Read(p []byte) (int, error) {
	if len(c.said) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.said)
	c.said = c.said[n:]
	return n, nil
}

// took returns the messages since it was asked last, and forgets what was heard.
func (f *far) took() [][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.messages
	f.messages, f.heard = nil, nil
	return m
}
