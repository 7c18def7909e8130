package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// proxied_test.go: whose connection it is, where somebody stands in front of us or the DNS
// has a name for it, and who waits or is turned away for it.

// networks are Networks of these prefixes.
func networks(prefixes ...string) Networks {
	var n Networks
	for _, p := range prefixes {
		n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(p))
	}
	return n
}

var here = networks("127.0.0.0/8")

// witness notes at a stage who the session says it is with.
func witness(w *journal, stage policy.Stage) policy.Link {
	return filter("witness", stage, func(e *policy.Event) policy.Verdict {
		s := e.Session
		fmt.Fprintf(w, "%s name=%q user=%q tls=%v\n", s.Remote.Addr(), s.RDNS, s.User, s.TLS != nil)
		return policy.Verdict{}
	})
}

// lines returns what was noted, and forgets it.
func (j *journal) lines() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	l := strings.Split(strings.TrimSuffix(j.b.String(), "\n"), "\n")
	j.b.Reset()
	return l
}

// counted is how many connections of an address the first listener counts.
func (r *rig) counted(addr string) int {
	return r.gw.addIP(ipKey{r.gw.listeners[0], site(netip.MustParseAddr(addr))}, 0)
}

const ehlo = "EHLO client.test => 250"

// TestXClient: the session starts over as the client's own, as often as the proxy likes.
func TestXClient(t *testing.T) {
	parity.Row(t, "SS-30")
	var saw journal
	looked := 0
	r := (&rig{links: []policy.Link{witness(&saw, policy.StageConnect)},
		listener: Listener{XClient: here, ConnectionsPerIP: 1},
		options: func(o *Options) {
			o.LookUpName = func(_ context.Context, a netip.Addr) string { looked++; return "name-of-" + a.String() }
		}}).start(t)
	p := r.hello(t)
	p.begin("a@example.com")
	p.talk("RSET => 250")
	if r.counted("127.0.0.1") != 0 {
		t.Error("the proxy is counted, which speaks for many")
	}
	p.talk("XCLIENT ADDR=192.0.2.1 NAME=given.test LOGIN=bob => 220", ehlo)
	p.begin("a@example.com")
	p.talk("XCLIENT ADDR=192.0.2.2 => 503")
	p.data(testMessage)
	m := string(r.far.last())
	if !strings.HasPrefix(m, "Received: from client.test (given.test [192.0.2.1])") || !strings.Contains(m, "with ESMTP id") {
		t.Errorf("message begins %.200q", m)
	}
	if got := r.far.lastBegun().client; !strings.HasSuffix(got.Ident, ".2") { // each message of a connection has its own name
		t.Errorf("the second message of the connection is called %s", got.Ident)
	} else if got.Addr.String() != "192.0.2.1" || got.Name != "given.test" || got.Login != "bob" {
		t.Errorf("the far side was told of %+v", got)
	}
	if r.counted("127.0.0.1") != 0 || r.counted("192.0.2.1") != 1 {
		t.Errorf("counted: proxy %d, client %d", r.counted("127.0.0.1"), r.counted("192.0.2.1"))
	}
	second := r.hello(t)
	second.talk("XCLIENT ADDR=192.0.2.1 => 421 4.7.0 too many connections from your address", " => closed")
	p.talk("XCLIENT ADDR=IPV6:2001:db8::1 NAME=[UNAVAILABLE] LOGIN=[UNAVAILABLE] => 220", ehlo, "XCLIENT ADDR=[UNAVAILABLE] => 220", ehlo)
	if r.counted("192.0.2.1") != 0 || r.counted("127.0.0.1") != 0 {
		t.Errorf("counted: proxy %d, client %d", r.counted("127.0.0.1"), r.counted("192.0.2.1"))
	}
	p.talk("QUIT => 221", " => closed")
	is(t, "filters saw", saw.lines(), []string{
		`127.0.0.1 name="" user="" tls=false`,
		`192.0.2.1 name="given.test" user="bob" tls=false`,
		`127.0.0.1 name="" user="" tls=false`,
		`2001:db8::1 name="name-of-2001:db8::1" user="" tls=false`,
		`invalid IP name="" user="" tls=false`,
	})
	if looked != 1 {
		t.Errorf("%d names were looked up, want one: loopback has no owner, and who is named is not asked for", looked)
	}
}

// TestXClientStranger: only those who are named may say it.
func TestXClientStranger(t *testing.T) {
	parity.Row(t, "SS-30", "SS-31")
	r := (&rig{listener: Listener{XClient: networks("10.0.0.0/8"), XForward: Networks{Unix: true}}}).start(t)
	p := r.dial(t, "mx")
	p.talk(" => 220")
	p.send("EHLO client.test\r\n")
	if got := p.reply(); strings.Contains(got, "XCLIENT") || strings.Contains(got, "XFORWARD") {
		t.Errorf("offered: %s", got)
	}
	p.talk("XCLIENT ADDR=10.0.0.1 => 550 5.7.1", "XFORWARD ADDR=10.0.0.1 => 550 5.7.1")
}

// TestXClientTLS: what TLS says stays, since it is the connection's own.
func TestXClientTLS(t *testing.T) {
	var saw journal
	a := newAuthority(t)
	r := (&rig{links: []policy.Link{witness(&saw, policy.StageMail)}, listener: Listener{TLS: TLSImplicit, XClient: here},
		options: func(o *Options) { o.TLS = a.server(t) }}).start(t)
	nc, err := tls.Dial("tcp", r.gw.Addr("mx").String(), a.client(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, nc)
	p.talk(" => 220", ehlo, "XCLIENT ADDR=192.0.2.1 => 220", ehlo)
	p.begin("a@example.com")
	p.data(testMessage)
	is(t, "filters saw", saw.lines(), []string{`192.0.2.1 name="" user="" tls=true`})
	if m := string(r.far.last()); !strings.Contains(m, "with ESMTPS id") || !strings.Contains(m, "(using TLSv1.3") {
		t.Errorf("message begins %.200q", m)
	}
}

// TestXClientTrust: who may relay behind a proxy. What the proxy may do itself counts for
// nobody it speaks for.
func TestXClientTrust(t *testing.T) {
	for _, relay := range []bool{false, true} {
		r := (&rig{routes: []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}},
			listener: Listener{Relay: true, Trusted: networks("127.0.0.0/8", "10.0.0.0/8"), XClient: here, XForward: here, XClientRelay: relay}}).start(t)
		for said, granted := range map[string]bool{
			"ADDR=10.0.0.1":                                   relay,
			"ADDR=192.0.2.1":                                  false,
			"ADDR=127.0.0.1":                                  relay,
			"ADDR=192.0.2.1 LOGIN=bob":                        relay,
			"ADDR=192.0.2.1 LOGIN=[UNAVAILABLE]":              false,
			"ADDR=[UNAVAILABLE]":                              false,
			"NAME=inside.test":                                false, // and of whom?
			"ADDR=10.0.0.1|ADDR=[UNAVAILABLE]":                false,
			"ADDR=10.0.0.1|NAME=x.test":                       relay,
			"ADDR=192.0.2.1 LOGIN=bob|ADDR=192.0.2.2":         relay, // it is said until it is taken back
			"ADDR=192.0.2.1 LOGIN=bob|ADDR=192.0.2.2 LOGIN=":  false,
			"ADDR=10.0.0.1|ADDR=192.0.2.1 DESTADDR=127.0.0.1": false,
		} {
			p := r.hello(t)
			for s := range strings.SplitSeq(said, "|") {
				p.talk("XCLIENT "+s+" => 220", ehlo)
			}
			want := "550 5.7.1 relaying denied"
			if granted {
				want = "250"
			}
			p.talk("XFORWARD ADDR=10.0.0.1 => 250", "MAIL FROM:<a@x.test> => 250")
			p.send("RCPT TO:<a@elsewhere.test>\r\n")
			if got := p.reply(); !strings.HasPrefix(got, want) {
				t.Errorf("relay %v, %s: got %q, want %q", relay, said, got, want)
			}
			p.talk("QUIT => 221")
		}
		r.hello(t).talk("MAIL FROM:<a@x.test> => 250", "RCPT TO:<a@elsewhere.test> => 250") // the proxy for itself
	}
}

// TestXForward: told to the far side, for one transaction.
func TestXForward(t *testing.T) {
	parity.Row(t, "SS-31")
	r := (&rig{listener: Listener{XForward: here}}).start(t)
	p := r.hello(t)
	p.talk("XFORWARD NAME=far.test ADDR=192.0.2.1 PORT=99 => 250", "XFORWARD HELO=hello.test PROTO=ESMTP IDENT=4F SOURCE=LOCAL => 250")
	p.begin("a@example.com")
	p.data(testMessage)
	want := smtp.Forwarded{Name: "far.test", Addr: netip.MustParseAddr("192.0.2.1"), Port: 99, Helo: "hello.test", Proto: "ESMTP", Ident: "4F", Source: "LOCAL"}
	if got := r.far.lastBegun().client; got != want {
		t.Errorf("the far side was told of %+v, want %+v", got, want)
	}
	if m := string(r.far.last()); !strings.HasPrefix(m, "Received: from client.test ([127.0.0.1])") {
		t.Errorf("message begins %.200q, want it to tell of who gave it to us", m)
	}
	p.begin("a@example.com")
	p.talk("RSET => 250")
	if got := r.far.lastBegun().client; got.Addr.String() != "127.0.0.1" || got.Helo != "client.test" || got.Source != "REMOTE" || got.Ident == "4F" {
		t.Errorf("of the next message the far side was told of %+v", got)
	}
}

// proxied connects with a header of the PROXY protocol.
func (r *rig) proxied(t *testing.T, header string) *peer {
	t.Helper()
	p := r.dial(t, "mx")
	p.send(header)
	return p
}

// TestProxies: a listener behind a load balancer.
func TestProxies(t *testing.T) {
	parity.Row(t, "SS-28")
	var saw journal
	r := (&rig{links: []policy.Link{witness(&saw, policy.StageConnect)},
		routes:   []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}},
		listener: Listener{Proxies: here, Relay: true, Trusted: networks("127.0.0.0/8", "10.0.0.0/8"), ConnectionsPerIP: 1, XClient: here}}).start(t)
	for _, c := range []struct{ header, saw, received, relay string }{
		{"PROXY TCP4 10.0.0.1 192.0.2.25 99 25\r\n", "10.0.0.1", "([10.0.0.1])", "250"},
		{"PROXY TCP4 192.0.2.1 192.0.2.25 99 25\r\n", "192.0.2.1", "([192.0.2.1])", "550 5.7.1"},
		{"PROXY TCP6 2001:db8::1 2001:db8::25 99 25\r\n", "2001:db8::1", "([IPv6:2001:db8::1])", "550 5.7.1"},
		{v2Header(v2Proxy, v2TCP4, addr4), "", "", "550 5.7.1"},
		{"PROXY UNKNOWN\r\n", "invalid IP", "(unknown)", "550 5.7.1"}, // unnamed: whoever it is
		{v2Header(0x20, 0, ""), "127.0.0.1", "([127.0.0.1])", "250"},  // LOCAL: the balancer itself
	} {
		p := r.proxied(t, c.header)
		p.talk(" => 220", ehlo, "MAIL FROM:<a@x.test> => 250", "RCPT TO:<a@elsewhere.test> => "+c.relay, "RCPT TO:<a@example.com> => "+map[string]string{"250": "452", "550 5.7.1": "250"}[c.relay])
		p.data(testMessage)
		if m := string(r.far.last()); !strings.Contains(m[:strings.Index(m, "\r\n")], c.received) {
			t.Errorf("%q: message begins %.100q", c.header, m)
		}
		if got := saw.lines()[0]; c.saw != "" && !strings.HasPrefix(got, c.saw+" ") {
			t.Errorf("%q: filters saw %s", c.header, got)
		}
		if c.relay == "250" { // trusted
			if n := r.counted(c.saw); n != 0 {
				t.Errorf("%q: %d connections are counted of a trusted address", c.header, n)
			}
		} else if c.saw != "" && c.saw != "invalid IP" {
			if n := r.counted(c.saw); n != 1 {
				t.Errorf("%q: %d connections of the address", c.header, n)
			}
			r.proxied(t, c.header).talk(" => 421 4.7.0 too many connections from your address", " => closed")
			saw.lines()
		}
		p.talk("QUIT => 221", " => closed")
	}
	// XCLIENT is for the address that the balancer tells of, and not for its own.
	p := r.proxied(t, "PROXY TCP4 192.0.2.1 192.0.2.25 99 25\r\n")
	p.talk(" => 220", "XCLIENT ADDR=10.0.0.1 => 550 5.7.1")
	for _, garbage := range []string{"EHLO client.test\r\n", "PROXY TCP4 nobody 192.0.2.25 99 25\r\n", v2Header(v2Proxy, v2TCP4, addr4)[:12] + "\xff\xff\xff\xff", "PROXY TCP4 0.0.0.0 192.0.2.25 99 25\r\n"} {
		r.proxied(t, garbage).talk(" => closed")
	}
	r.stop(t)
	if log := r.log.String(); !strings.Contains(log, "proxy=127.0.0.1:") {
		t.Errorf("log:\n%s", log)
	}
}

// TestProxyWaits: the header has its time, within which a shutdown ends the wait.
func TestProxyWaits(t *testing.T) {
	r := (&rig{listener: Listener{Proxies: here, ProxyTimeout: 20 * time.Millisecond}}).start(t)
	r.dial(t, "mx").talk(" => closed")
	r = (&rig{listener: Listener{Proxies: here, ProxyTimeout: time.Hour}}).start(t)
	p := r.dial(t, "mx")
	p.send("PROXY TCP4 ")
	eventually(t, func() bool { return r.gw.Connections() == 1 })
	began := time.Now()
	r.stop(t)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("shutdown took %v", took)
	}
	p.talk(" => closed")
}

// eventually waits until ok.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// from is a connection that says where it comes from.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// pipedFrom is piped for a client with an address.
func (r *rig) pipedFrom(t testing.TB, addr string) (p *peer, wait func()) {
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.gw.listeners[0].srv.ServeConn(from{server, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 99))})
	}()
	p = newPeer(t, client)
	client.SetDeadline(time.Time{})
	return p, func() {
		client.Close()
		<-done
	}
}

// TestLookUpName: the name is there before anybody is asked, and costs no more time than it
// may.
func TestLookUpName(t *testing.T) {
	parity.Row(t, "SS-35", "SS-37", "SS-72")
	for _, c := range []struct {
		name, addr string
		limit      time.Duration // ReverseDNS
		slow       bool
		want       string
		took       time.Duration
		asked      bool
	}{
		{"known", "192.0.2.1", 0, false, "host.test", 0, true},
		{"slow", "192.0.2.1", 0, true, "", 1500 * time.Millisecond, true},
		{"slow, of a short time", "2001:db8::1", 100 * time.Millisecond, true, "", 100 * time.Millisecond, true},
		{"switched off", "192.0.2.1", -1, false, "", 0, false},
		{"loopback", "127.0.0.1", 0, false, "", 0, false},
		{"loopback, IPv6", "::1", 0, false, "", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var saw journal
				asked := false
				r := &rig{links: []policy.Link{witness(&saw, policy.StageConnect)}, listener: Listener{ReverseDNS: c.limit}}
				r.options = func(o *Options) {
					o.LookUpName = func(ctx context.Context, a netip.Addr) string {
						asked = true
						if a.String() != c.addr {
							t.Errorf("asked for %s", a)
						}
						if c.slow {
							<-ctx.Done()
							return ""
						}
						return "host.test"
					}
				}
				r.build(t)
				began := time.Now()
				p, wait := r.pipedFrom(t, c.addr)
				p.talk(" => 220")
				if took := time.Since(began); took != c.took || asked != c.asked {
					t.Errorf("greeted after %v, asked %v", took, asked)
				}
				p.talk(ehlo)
				p.begin("a@example.com")
				p.data(testMessage)
				if got := saw.lines()[0]; !strings.Contains(got, fmt.Sprintf("name=%q", c.want)) {
					t.Errorf("filters saw %s", got)
				}
				if m := string(r.far.last()); strings.HasPrefix(m, "Received: from client.test (host.test [") != (c.want != "") {
					t.Errorf("message begins %.100q", m)
				}
				wait()
				r.stop(t)
			})
		})
	}
	r := (&rig{listener: Listener{Addresses: []Address{{Network: "unix", Address: t.TempDir() + "/s"}}},
		options: func(o *Options) {
			o.LookUpName = func(context.Context, netip.Addr) string { t.Error("asked for a socket"); return "" }
		}}).start(t)
	r.hello(t).talk("QUIT => 221")
}

// TestRates: who comes or sends too often, of an address and of its network, and who may.
func TestRates(t *testing.T) {
	hour := time.Hour
	for _, c := range []struct {
		name     string
		listener Listener
		addrs    []string
		refused  int // of one connection from each, with one message each
		says     string
	}{
		{"connections of an address", Listener{ConnectionRate: Rate{2, hour}}, []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"}, 1, "421 4.7.0 too many connections from your network"},
		{"connections of a network", Listener{ConnectionRateNetwork: Rate{2, hour}}, []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.3.1"}, 1, "421 4.7.0 too many connections from your network"},
		{"connections of a trusted network", Listener{ConnectionRate: Rate{1, hour}, Trusted: networks("192.0.2.0/24")}, []string{"192.0.2.1", "192.0.2.1", "192.0.2.1"}, 0, ""},
		{"connections of a proxy", Listener{ConnectionRate: Rate{1, hour}, XClient: networks("192.0.2.0/24")}, []string{"192.0.2.1", "192.0.2.1", "192.0.2.1"}, 0, ""},
		{"messages of an address", Listener{MessageRate: Rate{2, hour}}, []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"}, 1, "451 4.7.1 too many messages from your network"},
		{"messages of a network", Listener{MessageRateNetwork: Rate{2, hour}}, []string{"2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:4::1", "2001:db8:2::1"}, 1, "451 4.7.1 too many messages from your network"},
		{"messages of a trusted network", Listener{MessageRate: Rate{1, hour}, Trusted: networks("192.0.2.0/24")}, []string{"192.0.2.1", "192.0.2.1"}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{listener: c.listener}
			r.build(t)
			refused := 0
			for _, addr := range c.addrs {
				p, wait := r.pipedFrom(t, addr)
				if got := p.wholeMessage(); got != "taken" {
					refused++
					if !strings.HasPrefix(got, c.says) {
						t.Errorf("%s: got %q", addr, got)
					}
				}
				wait()
			}
			if n := r.gw.Stats.Limited.Load(); refused != c.refused || n != int64(refused) {
				t.Errorf("refused %d, counted %d, want %d", refused, n, c.refused)
			}
			r.stop(t)
		})
	}
	// A client is held to its rate also behind a proxy, which is not.
	r := (&rig{listener: Listener{XClient: here, ConnectionRate: Rate{1, hour}}}).start(t)
	for range 3 {
		r.hello(t).talk("QUIT => 221")
	}
	p := r.hello(t)
	p.talk("XCLIENT ADDR=192.0.2.1 => 220", "XCLIENT ADDR=192.0.2.2 => 220", "XCLIENT ADDR=192.0.2.1 => 421 4.7.0 too many connections from your network", " => closed")
}

// TestGreetDelay: strangers wait for the greeting, those with a good record do not.
func TestGreetDelay(t *testing.T) {
	parity.Row(t, "SS-38")
	synctest.Test(t, func(t *testing.T) {
		discards := filter("judge", policy.StageMail, func(e *policy.Event) policy.Verdict {
			if e.Tx.Sender.Path.Local == "spam" {
				return policy.Verdict{Action: policy.Discard}
			}
			return policy.Verdict{}
		})
		r := &rig{links: []policy.Link{discards}, listener: Listener{GreetDelay: 6 * time.Second, Trusted: networks("10.0.0.0/8"), Server: smtp.ServerOptions{MaxBadCommands: 2}}}
		r.build(t)
		greeted := func(addr string, steps ...string) time.Duration {
			t.Helper()
			began := time.Now()
			p, wait := r.pipedFrom(t, addr)
			p.talk(" => 220")
			took := time.Since(began)
			p.talk(steps...)
			wait()
			return took
		}
		message := []string{ehlo, "MAIL FROM:<a@x.test> => 250", "RCPT TO:<a@example.com> => 250", "DATA => 354", ". => 250"}
		spam := []string{ehlo, "MAIL FROM:<spam@x.test> => 250", "RCPT TO:<a@example.com> => 250", "DATA => 354", ". => 250"}
		for _, c := range []struct {
			addr  string
			steps []string
			want  time.Duration
		}{
			{"192.0.2.1", spam, 6 * time.Second},
			{"192.0.2.1", []string{"QUIT => 221"}, 6 * time.Second}, // what is thrown away makes nobody known
			{"192.0.2.1", message, 6 * time.Second},
			{"192.0.2.1", nil, 0},
			{"192.0.2.2", nil, 6 * time.Second},
			{"10.0.0.1", nil, 0},
			{"192.0.2.1", []string{"FROB => 500", "FROB => 421 4.7.0"}, 0}, // which ends the good record
			{"192.0.2.1", nil, 6 * time.Second},
		} {
			if took := greeted(c.addr, c.steps...); took != c.want {
				t.Errorf("%s, before %q: greeted after %v, want %v", c.addr, c.steps, took, c.want)
			}
		}
		p, wait := r.pipedFrom(t, "192.0.2.3")
		p.talk("EHLO client.test => 421 4.7.0 you spoke before the greeting", " => closed")
		wait()
		if n := r.gw.Stats.EarlyTalkers.Load(); n != 1 {
			t.Errorf("counted %d who spoke early", n)
		}
		r.stop(t)
	})
}

// TestProxiedTLS: TLS that the load balancer has ended counts as TLS for logins and is told to
// filters and in our field. That a client came to it in clear changes nothing.
func TestProxiedTLS(t *testing.T) {
	parity.Row(t, "SS-24")
	var seen policy.TLS
	u, a := newUsers(t), newAuthority(t)
	look := filter("look", policy.StageMail, func(e *policy.Event) policy.Verdict {
		if seen = (policy.TLS{}); e.Session.TLS != nil {
			seen = *e.Session.TLS
		}
		return policy.Verdict{}
	})
	ssl := func(bits, verify byte, sub ...string) string {
		return tlv(0x20, string([]byte{bits, 0, 0, 0, verify})+strings.Join(sub, ""))
	}
	r := (&rig{links: []policy.Link{look}, listener: Listener{TLS: TLSStart, Proxies: here, Logins: Logins{Credentials: u.credentials}},
		options: func(o *Options) { o.TLS = a.server(t) }}).start(t)
	for _, c := range []struct {
		name   string
		tlvs   []string
		secure bool
		seen   policy.TLS
		using  string // in our field
	}{
		{"TLS 1.3 with a certificate", []string{tlv(2, "mx.test"), tlv(1, "smtp"), ssl(7, 0, tlv(0x21, "TLSv1.3"), tlv(0x22, "ann"), tlv(0x23, "TLS_AES_128_GCM_SHA256"))}, true,
			policy.TLS{Version: tls.VersionTLS13, Cipher: tls.TLS_AES_128_GCM_SHA256, ServerName: "mx.test", ALPN: "smtp", Peer: "CN=ann", Verified: true}, "(using TLSv1.3 with cipher TLS_AES_128_GCM_SHA256)"},
		{"a certificate that is not good, and a cipher of another name", []string{ssl(7, 1, tlv(0x21, "TLSv1.2"), tlv(0x22, "ann"), tlv(0x23, "AES128-SHA"))}, true, policy.TLS{Version: tls.VersionTLS12}, "(using TLSv1.2)"},
		{"an old one", []string{ssl(1, 0, tlv(0x21, "TLSv1"))}, true, policy.TLS{Version: tls.VersionTLS10}, "(using TLSv1.0)"},
		{"in clear", []string{ssl(0, 1)}, false, policy.TLS{}, ""},
		{"nothing said", nil, false, policy.TLS{}, ""},
	} {
		p := r.proxied(t, v2Header(v2Proxy, v2TCP4, addr4, c.tlvs...))
		p.talk(" => 220")
		p.send("EHLO client.test\r\n")
		said := p.reply()
		if strings.Contains(said, "-AUTH ") != c.secure || strings.Contains(said, "-STARTTLS") == c.secure {
			t.Errorf("%s: offered\n%s", c.name, said)
		}
		with := "ESMTP"
		if c.secure {
			p.talk("STARTTLS => 503", "AUTH PLAIN AGFubkBleGFtcGxlLmNvbQB3b25kZXJsYW5k => 235")
			with = "ESMTPSA"
		} else {
			p.talk("AUTH PLAIN AGFubkBleGFtcGxlLmNvbQB3b25kZXJsYW5k => 538")
		}
		p.begin("a@example.com")
		p.data(testMessage)
		m := string(r.far.last())
		if !strings.Contains(m, " with "+with+" id ") || strings.Contains(m, "(using ") != (c.using != "") || !strings.Contains(m, c.using) {
			t.Errorf("%s: message begins %.200q", c.name, m)
		}
		if seen != c.seen {
			t.Errorf("%s: filters saw %+v, want %+v", c.name, seen, c.seen)
		}
		p.talk("QUIT => 221")
	}
}
