package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
	"github.com/penstock/penstock/policy"
)

// login_test.go: who may log in, by whose word, and what that grants.

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key, _ = a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue signs a certificate, itself if there is no authority yet.
func (a *authority) issue(t testing.TB, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(1), time.Unix(0, 0), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) server(t testing.TB) *tls.Config {
	_, _, cert := a.issue(t, &x509.Certificate{DNSNames: []string{testHost}})
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

// client is the configuration of a client; its certificate is that of user, if there is one.
func (a *authority) client(t testing.TB, user string) *tls.Config {
	c := &tls.Config{RootCAs: a.pool(), ServerName: testHost}
	if user != "" {
		_, _, cert := a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "a user"}, EmailAddresses: []string{user}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

const annPassword, annToken = "wonderland", "token-of-ann"

// users are Credentials that know ann@example.com, and count who asks them.
type users struct {
	keys  sasl.SCRAMKeys
	mu    sync.Mutex
	asked int
}

const ann = "ann@example.com"

func newUsers(t testing.TB) *users {
	keys, err := sasl.NewSCRAMKeys(annPassword, sasl.MinIterations)
	if err != nil {
		t.Fatal(err)
	}
	return &users{keys: keys}
}

// told returns how often the users were asked, and forgets it.
func (u *users) told() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.asked
	u.asked = 0
	return n
}

func (u *users) check(ok bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked++
	if !ok {
		return sasl.ErrDenied
	}
	return nil
}

func (u *users) credentials() sasl.Credentials {
	return sasl.Credentials{
		Password: func(_ context.Context, user, password string) error {
			return u.check(user == ann && password == annPassword)
		},
		Secret: func(_ context.Context, user string) (string, error) { return annPassword, u.check(user == ann) },
		SCRAM:  func(_ context.Context, user string) (sasl.SCRAMKeys, error) { return u.keys, u.check(user == ann) },
		Token: func(_ context.Context, r sasl.TokenRequest) (string, error) {
			return ann, u.check(r.Token == annToken)
		},
		Certificate: func(_ context.Context, state *tls.ConnectionState, _ string) (string, error) {
			return sasl.CertificateNames(state.PeerCertificates[0])[0], u.check(true)
		},
	}
}

// secure is a client of the rig's first listener on TLS.
func (r *rig) secure(t testing.TB, config *tls.Config) *smtp.Client {
	t.Helper()
	nc, err := tls.Dial("tcp", r.gw.Addr("mx").String(), config)
	if err != nil {
		t.Fatal(err)
	}
	c, err := smtp.NewClient(t.Context(), nc, smtp.ClientOptions{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// logIn tries a mechanism and returns the reply, nil if the client is in.
func logIn(t testing.TB, c *smtp.Client, mechanism string, a sasl.Account) *smtp.Reply {
	t.Helper()
	if st, ok := c.TLS(); ok {
		a.TLS = &st
	}
	a.Offered = c.Mechanisms()
	m, err := sasl.NewClient(mechanism, a)
	if err != nil {
		t.Fatalf("%s: %v", mechanism, err)
	}
	if err := c.Auth(t.Context(), m); err != nil {
		if r, ok := errors.AsType[*smtp.Reply](err); ok {
			return r
		}
		t.Fatalf("%s: %v", mechanism, err)
	}
	return nil
}

func account() sasl.Account {
	return sasl.Account{User: ann, Password: annPassword, Token: annToken, Certificate: true}
}

// line is what a reply says; "in" if there is none.
func line(r *smtp.Reply) string {
	if r == nil {
		return "in"
	}
	return r.Line()
}

// logins is a rig whose listener has implicit TLS and asks for certificates.
func logins(t testing.TB, l Logins, links ...policy.Link) (*rig, *authority) {
	a := newAuthority(t)
	l.Mechanisms = sasl.Mechanisms()
	return &rig{links: links, routes: []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}},
		listener: Listener{TLS: TLSImplicit, Relay: true, Logins: l, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.pool(),
			Server: smtp.ServerOptions{Auth: smtp.AuthOptions{FailureDelay: -1}}},
		options: func(o *Options) { o.TLS = a.server(t) }}, a
}

// judge is a filter that says v about logins and notes what it sees.
type judge struct {
	v    policy.Verdict
	err  error
	mu   sync.Mutex
	seen []string
}

func (j *judge) link(o policy.OnError) policy.Link {
	return policy.Link{OnError: o, Filter: policy.Func("judge", policy.StagesOf(policy.StageAuth), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.seen = append(j.seen, fmt.Sprintf("%s %s %s%s", e.Auth.Mechanism, e.Auth.User, e.Auth.Password, e.Auth.Token))
		return j.v, j.err
	})}
}

func (j *judge) told() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.seen
	j.seen = nil
	return s
}

// TestLogins: each mechanism, over TLS 1.2 and 1.3, with each thing that a filter may say.
// What it refuses by name never reaches those who know passwords.
func TestLogins(t *testing.T) {
	parity.Row(t, "SS-06", "SS-62", "SS-75")
	for _, c := range []struct {
		name    string
		judge   *judge // nil: there is none
		onError policy.OnError
		want    string
		closed  bool
	}{
		{"no filter", nil, 0, "in", false},
		{"continue", &judge{}, 0, "in", false},
		{"reject", &judge{v: policy.Verdict{Action: policy.Reject}}, 0, "535 5.7.8 authentication credentials invalid", false},
		{"reject in other words", &judge{v: policy.Verdict{Action: policy.Reject, Reply: smtp.Refuse(535, smtp.Enhanced{5, 7, 8}, "not from there")}}, 0, "535 5.7.8 not from there", false},
		{"tempfail", &judge{v: policy.Verdict{Action: policy.Tempfail}}, 0, "454 4.7.0 temporary authentication failure", false},
		{"disconnect", &judge{v: policy.Verdict{Action: policy.Disconnect}}, 0, "421 4.7.0 closing connection", true},
		{"failure", &judge{err: errors.New("broken")}, 0, "454 4.7.0 temporary authentication failure", false},
		{"failure that refuses", &judge{err: errors.New("broken")}, policy.OnErrorReject, "535 5.7.8 authentication credentials invalid", false},
		{"failure that does not count", &judge{err: errors.New("broken")}, policy.OnErrorAccept, "in", false},
		{"accept, which nobody asked for", &judge{v: policy.Verdict{Action: policy.Accept}}, 0, "454 4.7.0 temporary authentication failure", false},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(c.name+" "+tls.VersionName(version), func(t *testing.T) {
				u := newUsers(t)
				var links []policy.Link
				if c.judge != nil {
					links = append(links, c.judge.link(c.onError))
				}
				r, a := logins(t, Logins{Credentials: u.credentials}, links...)
				r.start(t)
				config := a.client(t, ann)
				config.MaxVersion = version
				for i, mechanism := range sasl.Mechanisms() {
					client := r.secure(t, config)
					if got := client.Mechanisms(); !slices.Equal(got, sasl.Mechanisms()) {
						t.Fatalf("offered: %q", got)
					}
					if got := line(logIn(t, client, mechanism, account())); got != c.want {
						t.Errorf("%s: got %q, want %q", mechanism, got, c.want)
					}
					if err := client.Noop(t.Context()); (err != nil) != c.closed {
						t.Errorf("%s: NOOP behind it: %v", mechanism, err)
					}
					early := !slices.Contains([]string{sasl.OAuthBearer, sasl.XOAuth2, sasl.External}, mechanism)
					if asked := u.told(); (asked > 0) != (c.want == "in" || !early) {
						t.Errorf("%s: the users were asked %d times", mechanism, asked)
					}
					if c.judge != nil {
						is(t, "filter saw", c.judge.told(), []string{mechanism + " " + ann + " "}) // without the secret
					}
					n := int64(i + 1)
					if in, failed := r.gw.Stats.Logins.Load(), r.gw.Stats.LoginsFailed.Load(); in+failed != n || in != 0 && c.want != "in" {
						t.Errorf("%s: counted %d logins and %d that failed", mechanism, in, failed)
					}
				}
				if log := r.log.String(); strings.Contains(log, annPassword) || strings.Contains(log, annToken) {
					t.Errorf("a secret is in the log:\n%s", log)
				}
			})
		}
	}
}

// TestWrongLogins: what is wrong is refused in the same words, whatever it is.
func TestWrongLogins(t *testing.T) {
	u := newUsers(t)
	r, a := logins(t, Logins{Credentials: u.credentials})
	r.listener.Server.Auth.MaxFailures = 100
	r.start(t)
	client := r.secure(t, a.client(t, ann))
	for _, mechanism := range sasl.Mechanisms() {
		wrong := []sasl.Account{
			{User: ann, Password: "x", Token: "x"},
			{User: "eve@example.com", Password: annPassword, Token: "x"},
		}
		if mechanism == sasl.External {
			wrong = []sasl.Account{{Certificate: true, Authz: "eve@example.com"}}
		}
		for _, w := range wrong {
			if got := line(logIn(t, client, mechanism, w)); !strings.HasPrefix(got, "535 5.7.8 ") {
				t.Errorf("%s as %s: got %q", mechanism, w.User, got)
			}
		}
	}
	if got := line(logIn(t, client, sasl.Plain, account())); got != "in" {
		t.Errorf("at last: got %q", got)
	}
}

// TestBinding: SCRAM with channel binding fails if somebody stands in between, who has one
// TLS connection with each side.
func TestBinding(t *testing.T) {
	u := newUsers(t)
	r, a := logins(t, Logins{Credentials: u.credentials})
	r.start(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := a.client(t, "")
		config.MaxVersion = version
		client, other := r.secure(t, config), r.secure(t, config)
		st, _ := other.TLS()
		acc := account()
		acc.TLS, acc.Offered = &st, client.Mechanisms()
		m, err := sasl.NewClient(sasl.SCRAMSHA256Plus, acc)
		if err != nil {
			t.Fatal(err)
		}
		if got := line(smtp.ReplyOf(client.Auth(t.Context(), m))); !strings.HasPrefix(got, "535 5.7.8") {
			t.Errorf("%s: got %q", tls.VersionName(version), got)
		}
		if got := line(logIn(t, client, sasl.SCRAMSHA256Plus, account())); got != "in" {
			t.Errorf("%s, by its own connection: got %q", tls.VersionName(version), got)
		}
	}
}

// TestFilterLogins: filters decide alone. One of them must accept, and a failure never lets
// anybody in.
func TestFilterLogins(t *testing.T) {
	accept, cont := &judge{v: policy.Verdict{Action: policy.Accept}}, &judge{}
	refuse, later := &judge{v: policy.Verdict{Action: policy.Reject}}, &judge{v: policy.Verdict{Action: policy.Tempfail}}
	broken := &judge{err: errors.New("broken")}
	for _, c := range []struct {
		name   string
		judges []*judge
		want   string
	}{
		{"accept", []*judge{accept}, "in"},
		{"continue", []*judge{cont}, "535 5.7.8"},
		{"both", []*judge{{}, accept, {}}, "in"},
		{"reject", []*judge{refuse}, "535 5.7.8"},
		{"reject behind accept", []*judge{accept, refuse}, "535 5.7.8"},
		{"tempfail behind accept", []*judge{accept, later}, "454 4.7.0"},
		{"failure", []*judge{broken}, "535 5.7.8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var links []policy.Link
			for _, j := range c.judges {
				links = append(links, j.link(policy.OnErrorAccept))
			}
			r, a := logins(t, Logins{Filter: true}, links...)
			r.start(t)
			for mechanism, secret := range map[string]string{sasl.Plain: annPassword, sasl.Login: annPassword, sasl.OAuthBearer: annToken, sasl.XOAuth2: annToken, sasl.External: ""} {
				client := r.secure(t, a.client(t, ann))
				want := []string{sasl.OAuthBearer, sasl.XOAuth2, sasl.Plain, sasl.Login, sasl.External} // what shows the filters nothing is not offered
				is(t, "offered", client.Mechanisms(), want)
				c.judges[0].told()
				if got := line(logIn(t, client, mechanism, account())); !strings.HasPrefix(got, c.want) {
					t.Errorf("%s: got %q, want %q", mechanism, got, c.want)
				}
				is(t, "filter saw", c.judges[0].told(), []string{mechanism + " " + ann + " " + secret})
			}
		})
	}
}

// TestOffered: a mechanism is offered where it can work, and nowhere else.
func TestOffered(t *testing.T) {
	parity.Row(t, "SS-08", "SS-22")
	u := newUsers(t)
	a := newAuthority(t)
	passwords := func() sasl.Credentials { return sasl.Credentials{Password: u.credentials().Password} }
	for _, c := range []struct {
		name          string
		logins        Logins
		insecure      bool
		cert          string
		clear, secure string // EHLO's AUTH, in clear and on TLS
		auth          string // the answer to AUTH in clear
	}{
		{"nobody", Logins{}, false, "", "", "", "502 5.5.1"},
		{"nobody, and in clear", Logins{}, true, "", "", "", "502 5.5.1"},
		{"passwords", Logins{Credentials: passwords}, false, "", "", "PLAIN LOGIN", "538 5.7.11"},
		{"passwords in clear", Logins{Credentials: passwords}, true, "", "PLAIN LOGIN", "PLAIN LOGIN", "535 5.7.8"},
		{"all, default", Logins{Credentials: u.credentials}, false, ann, "", "SCRAM-SHA-256-PLUS SCRAM-SHA-256 OAUTHBEARER XOAUTH2 PLAIN LOGIN", "538"},
		{"some", Logins{Credentials: u.credentials, Mechanisms: []string{"login", "CRAM-MD5", "EXTERNAL", "SCRAM-SHA-256-PLUS"}}, true, "", "LOGIN CRAM-MD5", "LOGIN CRAM-MD5 SCRAM-SHA-256-PLUS", "504 5.5.4"},
		{"certificate", Logins{Credentials: u.credentials, Mechanisms: []string{"EXTERNAL"}}, false, ann, "", "EXTERNAL", "538"},
		{"filters of which none is asked", Logins{Filter: true}, true, "", "", "", "502 5.5.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := (&rig{listener: Listener{TLS: TLSStart, Logins: c.logins, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.pool(),
				Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: c.insecure, FailureDelay: -1}}},
				options: func(o *Options) { o.TLS = a.server(t) }}).start(t)
			nc, err := net.Dial("tcp", r.gw.Addr("mx").String())
			if err != nil {
				t.Fatal(err)
			}
			client, err := smtp.NewClient(t.Context(), nc, smtp.ClientOptions{LocalName: "client.test"})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if got := strings.Join(client.Mechanisms(), " "); got != c.clear {
				t.Errorf("in clear: got %q, want %q", got, c.clear)
			}
			if err := client.StartTLS(t.Context(), a.client(t, c.cert)); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(client.Mechanisms(), " "); got != c.secure {
				t.Errorf("on TLS: got %q, want %q", got, c.secure)
			}
			r.hello(t).talk("AUTH PLAIN AGEAYg== => " + c.auth)
		})
	}
}

// TestFailureRate: an address that has failed too often is not asked any more, on no
// connection, until time has passed.
func TestFailureRate(t *testing.T) {
	u := newUsers(t)
	r := (&rig{listener: Listener{Logins: Logins{Credentials: u.credentials}, AuthFailureRate: Rate{2, time.Hour},
		Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true, FailureDelay: -1}}}}).start(t)
	right := "AUTH PLAIN AGFubkBleGFtcGxlLmNvbQB3b25kZXJsYW5k => "
	r.hello(t).talk(right + "235")
	r.hello(t).talk("AUTH PLAIN AGEAYg== => 535")
	r.hello(t).talk("AUTH PLAIN ???? => 501") // never came to a mechanism
	r.hello(t).talk("AUTH PLAIN AGEAYg== => 535")
	u.told()
	r.hello(t).talk(right+"454 4.7.0 too many failed logins from your address", "NOOP => 250")
	if n := u.told(); n != 0 {
		t.Errorf("the users were asked %d times", n)
	}
	if in, failed := r.gw.Stats.Logins.Load(), r.gw.Stats.LoginsFailed.Load(); in != 1 || failed != 2 {
		t.Errorf("counted %d logins and %d that failed, want 1 and 2", in, failed)
	}
}

// TestAfterLogin: what a login grants, who is told of it, and that it ends with the
// handshake.
func TestAfterLogin(t *testing.T) {
	parity.Row(t, "SS-07", "SS-75")
	u := newUsers(t)
	a := newAuthority(t)
	var seen journal
	note := filter("note", policy.StageMail, func(e *policy.Event) policy.Verdict {
		fmt.Fprintf(&seen, "%q ", e.Session.User)
		return policy.Verdict{}
	})
	everybody := Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	r := (&rig{links: []policy.Link{note}, routes: []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}},
		listener: Listener{TLS: TLSStart, Relay: true, Logins: Logins{Credentials: u.credentials}, XClient: everybody, XClientRelay: true, MessageRate: Rate{4, time.Hour},
			Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true}}},
		options: func(o *Options) { o.TLS = a.server(t) }}).start(t)
	const in, denied = "AUTH PLAIN AGFubkBleGFtcGxlLmNvbQB3b25kZXJsYW5k => 235", "RCPT TO:<a@elsewhere.test> => 550 5.7.1 relaying denied"
	p := r.hello(t)
	p.talk(in, "MAIL FROM:<a@x.test> => 250", "RCPT TO:<a@elsewhere.test> => 250")
	p.data(testMessage)
	if m := string(r.far.last()); !strings.Contains(m, " with ESMTPA id ") {
		t.Errorf("message begins %.200q", m)
	}
	if got := r.far.lastBegun().client.Login; got != ann {
		t.Errorf("the far side was told of %q", got)
	}
	for range 5 { // a proxy is held to no rate, whoever has logged in
		p.talk("MAIL FROM:<a@x.test> => 250", "RSET => 250")
	}
	starttls := func(p *peer) *peer {
		p.talk("STARTTLS => 220")
		return newPeer(t, tls.Client(p.nc, a.client(t, "")))
	}
	seen.b.Reset()
	p = starttls(p)
	p.talk("EHLO client.test => 250", "MAIL FROM:<a@x.test> => 250", denied, "RSET => 250", in, "MAIL FROM:<a@x.test> => 250", "RCPT TO:<a@elsewhere.test> => 250", "QUIT => 221")
	if got := seen.String(); got != `"" "ann@example.com" ` {
		t.Errorf("filters saw %s", got)
	}
	// The same by XCLIENT.
	p = r.hello(t)
	p.talk(in, "XCLIENT ADDR=192.0.2.1 LOGIN=bob => 220", "EHLO client.test => 250")
	for range 3 {
		p.talk("MAIL FROM:<a@x.test> => 250", "RCPT TO:<a@elsewhere.test> => 250", "RSET => 250")
	}
	seen.b.Reset()
	p.talk("XCLIENT NAME=a.test => 220", "EHLO client.test => 250", "MAIL FROM:<a@x.test> => 250", "RSET => 250",
		"MAIL FROM:<a@x.test> => 451 4.7.1 too many messages of this user",
		"XCLIENT LOGIN= => 220", "EHLO client.test => 250", "MAIL FROM:<a@x.test> => 250", denied, "RSET => 250",
		"XCLIENT ADDR=192.0.2.2 LOGIN=bob => 220", "EHLO client.test => 250")
	p = starttls(p)
	p.talk("EHLO client.test => 250", "MAIL FROM:<a@x.test> => 250", denied, "RSET => 250", "QUIT => 221")
	if got := seen.String(); got != `"bob" "" "" ` {
		t.Errorf("filters saw %s", got)
	}
	r.stop(t)
	if log := r.log.String(); !strings.Contains(log, "user=ann@example.com") || !strings.Contains(log, `msg="logged in"`) {
		t.Errorf("log:\n%s", log)
	}
}
