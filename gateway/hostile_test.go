package gateway

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// hostile_test.go: what strangers try at a gateway: to be taken for somebody else, to send
// where they may not, to guess passwords, and to use up what others need. The rig checks
// after each that all counters are at zero again.

func networks(prefixes ...string) Networks {
	var n Networks
	for _, p := range prefixes {
		n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(p))
	}
	return n
}

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
