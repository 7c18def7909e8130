package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
	"github.com/penstock/penstock/policy"
)

// strangers_test.go: what is noticed of those who come, and what is granted to whom.

// TestBadProxy: a header that is missing or broken is counted, and logged now and then with
// what to do; a check of the port, which says nothing, is neither.
func TestBadProxy(t *testing.T) {
	r := (&rig{listener: Listener{Proxies: here}}).start(t)
	r.dial(t, "mx").nc.Close()
	for _, garbage := range []string{"EHLO client.test\r\n", "PROXY TCP4 nobody 192.0.2.25 99 25\r\n", "QUIT\r\n"} {
		r.proxied(t, garbage).talk(" => closed")
	}
	r.proxied(t, "PROXY UNKNOWN\r\n").talk(" => 220", "QUIT => 221")
	r.stop(t)
	if n := r.gw.Stats.BadProxy.Load(); n != 3 {
		t.Errorf("counted %d, want 3", n)
	}
	log := r.log.String()
	if n := strings.Count(log, "connection without a good PROXY header"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, log)
	}
	for _, want := range []string{"level=WARN", "listener=mx", "PROXY header from 127.0.0.1:", "send-proxy"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
}

// TestSeldom: one line a minute.
func TestSeldom(t *testing.T) {
	var s seldom
	start := time.Unix(1e9, 0)
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {0, false}, {59 * time.Second, false}, {time.Minute, true}, {61 * time.Second, false}, {time.Hour, true}} {
		if got := s.due(start.Add(step.after)); got != step.want {
			t.Errorf("after %v: %v", step.after, got)
		}
	}
}

// TestAllConnectionsTaken: who finds no room is counted for the listener, and the log says so.
func TestAllConnectionsTaken(t *testing.T) {
	r := (&rig{listener: Listener{Connections: 1}}).start(t)
	p := r.hello(t)
	for range 3 {
		r.dial(t, "mx").talk(" => 421 4.3.2 too many connections", " => closed")
	}
	if l := r.gw.Listeners()[0]; l.TurnedAway != 3 || r.gw.Stats.Sessions.Load() != 1 {
		t.Errorf("got %+v, %d sessions", l, r.gw.Stats.Sessions.Load())
	}
	p.talk("QUIT => 221")
	if log := r.log.String(); strings.Count(log, "all connections of the listener are taken") != 1 || !strings.Contains(log, "listener=mx limit=1") {
		t.Errorf("log:\n%s", log)
	}
}

// TestManyOfOneAddress: who is trusted, or speaks for many, may come more often than others.
func TestManyOfOneAddress(t *testing.T) {
	for name, c := range map[string]struct {
		listener Listener
		many     bool
	}{
		"a stranger":           {Listener{}, false},
		"trusted":              {Listener{Trusted: here}, true},
		"may say XCLIENT":      {Listener{XClient: here}, true},
		"may say XFORWARD":     {Listener{XForward: here}, true},
		"others say XCLIENT":   {Listener{XClient: networks("10.0.0.0/8")}, false},
		"may not say XFORWARD": {Listener{XForward: networks("10.0.0.0/8")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.listener.ConnectionsPerIP = 1
			r := (&rig{listener: c.listener}).start(t)
			r.hello(t)
			want := " => 421 4.7.0 too many connections from your address"
			if c.many {
				want = " => 220"
			}
			r.dial(t, "mx").talk(want)
		})
	}
}

// TestProxyLogin: what a proxy says of a login satisfies a demand for one only where its word
// grants relaying. Filters see it in any case.
func TestProxyLogin(t *testing.T) {
	for _, granted := range []bool{false, true} {
		var saw journal
		l := Listener{XClient: here, XClientRelay: granted, Logins: Logins{Credentials: newUsers(t).credentials}}
		l.Server.Auth = smtp.AuthOptions{Required: true, Insecure: true}
		r := (&rig{links: []policy.Link{witness(&saw, policy.StageConnect)}, listener: l}).start(t)
		p := r.hello(t)
		p.talk("MAIL FROM:<a@client.test> => 530", "XCLIENT ADDR=192.0.2.1 LOGIN=bob => 220", ehlo,
			"MAIL FROM:<a@client.test> => "+map[bool]string{false: "530 5.7.0", true: "250"}[granted])
		if !granted {
			p.talk("AUTH PLAIN AGFubkBleGFtcGxlLmNvbQB3b25kZXJsYW5k => 235", "MAIL FROM:<a@client.test> => 250")
		}
		is(t, fmt.Sprintf("granted %v: filters saw", granted), saw.lines()[1:], []string{`192.0.2.1 name="" user="bob" tls=false`})
	}
}

// TestStartTLSRequired: no mail and no login in clear.
func TestStartTLSRequired(t *testing.T) {
	a := newAuthority(t)
	r := (&rig{listener: Listener{TLS: TLSRequired, Logins: Logins{Credentials: newUsers(t).credentials},
		Server: smtp.ServerOptions{Auth: smtp.AuthOptions{Insecure: true}}},
		options: func(o *Options) { o.TLS = a.server(t) }}).start(t)
	p := r.hello(t)
	p.talk("MAIL FROM:<a@client.test> => 530 5.7.0 say STARTTLS first", "AUTH PLAIN AGFubkBleGFtcGxlLmNvbQB3b25kZXJsYW5k => 538", "NOOP => 250", "STARTTLS => 220")
	p = newPeer(t, tls.Client(p.nc, a.client(t, "")))
	p.talk(ehlo)
	p.begin("a@example.com")
	if got := p.data(testMessage); got[0] != '2' {
		t.Error(got)
	}
	if l := r.gw.Listeners()[0]; l.TLS != TLSRequired {
		t.Errorf("listener: %+v", l)
	}
	if _, err := New(Options{Hostname: testHost, Relay: &r.far, Listeners: []Listener{{Name: "mx", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSRequired}}}, Rules{}); err == nil || !strings.Contains(err.Error(), "tls starttls_required without a TLS configuration") {
		t.Errorf("without certificates: %v", err)
	}
}

// TestCertificateFacts: filters can tell a certificate that an authority vouches for from one
// that anybody can make.
func TestCertificateFacts(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	template := func() *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: "mail.example.com"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	}
	for _, c := range []struct {
		name   string
		mode   tls.ClientAuthType
		issuer *authority
		want   string
	}{
		{"verified", tls.VerifyClientCertIfGiven, a, "CN=mail.example.com true"},
		{"only asked for", tls.RequestClientCert, a, "CN=mail.example.com false"},
		{"of a stranger", tls.RequestClientCert, stranger, "CN=mail.example.com false"},
		{"none", tls.VerifyClientCertIfGiven, nil, " false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, sum := a.client(t, ""), ""
			if c.issuer != nil {
				leaf, _, cert := c.issuer.issue(t, template())
				config.Certificates = []tls.Certificate{cert}
				sum = fingerprint(leaf)
			}
			seen := make(chan policy.TLS, 1)
			r := (&rig{links: []policy.Link{filter("look", policy.StageSecure, func(e *policy.Event) policy.Verdict {
				seen <- *e.Session.TLS
				return policy.Verdict{}
			})}, listener: Listener{TLS: TLSImplicit, ClientAuth: c.mode, ClientCAs: a.pool()}, options: func(o *Options) { o.TLS = a.server(t) }}).start(t)
			r.secure(t, config)
			got := <-seen
			if s := fmt.Sprintf("%s %v", got.Peer, got.Verified); s != c.want || got.Fingerprint != sum {
				t.Errorf("got %q with fingerprint %q, want %q with %q", s, got.Fingerprint, c.want, sum)
			}
		})
	}
}

// guessers are Credentials that take their time: all who ask wait until go is closed.
type guessers struct {
	entered chan bool
	proceed chan struct{}
}

func (g *guessers) credentials() sasl.Credentials {
	return sasl.Credentials{Password: func(_ context.Context, _, password string) error {
		g.entered <- true
		<-g.proceed
		switch password {
		case "right":
			return nil
		case "broken":
			return context.DeadlineExceeded
		}
		return sasl.ErrDenied
	}}
}

// TestParallelGuesses: logins count from their beginning, so that nobody has more tries by
// making them at once. What does not fail, or not by the client's fault, is given back; who is
// trusted may fail as often as it likes.
func TestParallelGuesses(t *testing.T) {
	const right, wrong, broken = "AUTH PLAIN AGEAcmlnaHQ=", "AUTH PLAIN AGEAd3Jvbmc=", "AUTH PLAIN AGEAYnJva2Vu"
	synctest.Test(t, func(t *testing.T) {
		g := &guessers{make(chan bool, 100), make(chan struct{})}
		l := Listener{Logins: Logins{Credentials: g.credentials}, AuthFailureRate: Rate{2, time.Hour}, Trusted: networks("10.0.0.0/8")}
		l.Server.Auth = smtp.AuthOptions{Insecure: true, FailureDelay: -1}
		r := &rig{listener: l}
		r.build(t)
		var waits []func()
		try := func(from, command string) (answer func() string) {
			p, wait := r.pipedFrom(t, from)
			waits = append(waits, wait)
			p.talk(" => 220", ehlo)
			p.send(command + "\r\n")
			return p.reply
		}
		first, second := try("192.0.2.1", wrong), try("192.0.2.1", right)
		<-g.entered
		<-g.entered
		const late = "454 4.7.0 too many failed logins"
		if got := try("192.0.2.1", right)(); !strings.HasPrefix(got, late) {
			t.Errorf("the third at once: %q", got)
		}
		close(g.proceed)
		var wg sync.WaitGroup
		for _, c := range []struct {
			answer func() string
			want   string
		}{{first, "535"}, {second, "235"}} {
			wg.Go(func() {
				if got := c.answer(); !strings.HasPrefix(got, c.want) {
					t.Errorf("got %q, want %s", got, c.want)
				}
			})
		}
		wg.Wait()
		for i, step := range []struct{ from, command, want string }{
			{"192.0.2.1", broken, "454 4.7.0 cannot check credentials"},
			{"192.0.2.1", broken, "454 4.7.0 cannot check credentials"},
			{"192.0.2.1", right, "235"},
			{"192.0.2.1", wrong, "535"},
			{"192.0.2.1", right, late},
			{"192.0.2.2", right, "235"},
			{"10.0.0.1", wrong, "535"},
			{"10.0.0.1", wrong, "535"},
			{"10.0.0.1", wrong, "535"},
			{"10.0.0.1", right, "235"},
		} {
			if got := try(step.from, step.command)(); !strings.HasPrefix(got, step.want) {
				t.Errorf("%d: got %q, want %q", i, got, step.want)
			}
		}
		for _, wait := range waits {
			wait()
		}
		r.stop(t)
	})
}
