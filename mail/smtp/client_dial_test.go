package smtp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
)

// hosts is a network in memory: what each address does with a connection. Its zero value has
// nobody.
type hosts struct {
	at map[string]func(nc net.Conn) // nil: no answer; missing: refused
	// after is how long an address takes to answer.
	after map[string]time.Duration

	began time.Time
	mu    sync.Mutex
	calls []string // "address at time"
	all   sync.WaitGroup
	open  int
}

// countedConn is a connection of hosts.
type countedConn struct {
	net.Conn
	h    *hosts
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.h.mu.Lock(); c.h.open--; c.h.mu.Unlock() })
	return c.Conn.Close()
}

var errNobody = errors.New("connection refused")

func (h *hosts) dial(ctx context.Context, network, address string) (net.Conn, error) {
	h.mu.Lock()
	h.calls = append(h.calls, fmt.Sprintf("%s at %v", address, time.Since(h.began).Round(time.Millisecond)))
	serve, known := h.at[address]
	h.mu.Unlock()
	if d := h.after[address]; d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch {
	case !known:
		return nil, errNobody
	case serve == nil:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ours, theirs := net.Pipe()
	h.mu.Lock()
	h.open++
	h.mu.Unlock()
	h.all.Go(func() { serve(theirs); theirs.Close() })
	return &countedConn{Conn: ours, h: h}, nil
}

// playing is a host that follows one.
func playing(lines ...string) func(net.Conn) {
	return func(nc net.Conn) { badServer(nc, lines...) }
}

// TestDialTLS: what each mode makes of each kind of server.
func TestDialTLS(t *testing.T) {
	parity.Row(t, "SC-03", "SC-04", "SC-05", "SC-06", "SC-18", "SC-19", "SC-32")
	serverTLS := testTLS(t)
	leaf, _ := x509.ParseCertificate(serverTLS.Certificates[0].Certificate[0])
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	good := &tls.Config{RootCAs: roots}
	serve := func(o ServerOptions) func(net.Conn) {
		return func(nc net.Conn) { mustServer(t, acceptAll, o).ServeConn(nc) }
	}
	offer := []string{">220 mx.test", "<EHLO *", ">250-mx.test", ">250-SIZE 4711", ">250 STARTTLS"}
	const clear, secure, none = "clear", "TLS", "none"
	for _, tt := range []struct {
		name                                                                string
		serve                                                               func(net.Conn)
		host                                                                string
		offered, off, opportunistic, required, implicit, opportunisticGiven string
		again                                                               bool // opportunistic takes a second connection
	}{
		{"clear", serve(ServerOptions{}), "mx.test", clear, clear, clear, none, none, clear, false},
		{"STARTTLS", serve(ServerOptions{TLS: serverTLS}), "mx.test", secure, clear, secure, secure, none, secure, false},
		{"another name", serve(ServerOptions{TLS: serverTLS}), "other.test", none, clear, secure, none, none, clear, false},
		{"implicit", serve(ServerOptions{TLS: serverTLS, Implicit: true}), "mx.test", none, none, none, none, secure, none, false},
		{"STARTTLS refused", playing(slices.Concat(offer, []string{"<STARTTLS", ">454 4.7.0 not now", "hang"})...), "mx.test", none, clear, clear, none, none, clear, false},
		{"handshake fails", playing(slices.Concat(offer, []string{"<STARTTLS", ">220 go", "gulp", "!no TLS at all", "hang"})...), "mx.test", none, clear, clear, none, none, clear, true},
		{"injected", playing(slices.Concat(offer, []string{"<STARTTLS", "!220 go\r\n250 x\r\n", "hang"})...), "mx.test", none, clear, none, none, none, none, false},
		{"not offered, but there", playing(">220 mx.test", "<EHLO *", ">250 mx.test", "<STARTTLS", ">502 what", "hang"), "mx.test", clear, clear, clear, none, none, clear, false},
		{"no EHLO", playing(">220 mx.test", "<EHLO *", ">502 what", "<HELO *", ">250 mx.test", "hang"), "mx.test", clear, clear, clear, none, none, clear, false},
	} {
		for mode, want := range map[TLSMode]string{TLSOffered: tt.offered, TLSOff: tt.off, TLSOpportunistic: tt.opportunistic, TLSRequired: tt.required, TLSImplicit: tt.implicit} {
			check := func(config *tls.Config, want string) {
				synctest.Test(t, func(t *testing.T) {
					h := &hosts{at: map[string]func(net.Conn){"192.0.2.1:2525": tt.serve}}
					c, err := Dial(t.Context(), tt.host+":2525", DialOptions{TLS: mode, TLSConfig: config, Dial: h.dial,
						Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ClientOptions: ClientOptions{LocalName: "client.test"}})
					got := none
					if err == nil {
						got = clear
						if _, ok := c.TLS(); ok {
							got = secure
						}
						if tt.name == "STARTTLS refused" && c.MaxSize() != 4711 {
							t.Errorf("%s: what EHLO said is forgotten", tt.name)
						}
						c.Close()
					} else if _, ok := errors.AsType[*ClientError](err); !ok {
						t.Errorf("%s, mode %d: got %v, want a *ClientError", tt.name, mode, err)
					}
					h.all.Wait()
					if got != want {
						t.Errorf("%s, mode %d, config %v: got %s, %v, want %s", tt.name, mode, config != nil, got, err, want)
					}
					if h.open != 0 {
						t.Errorf("%s, mode %d: %d connections left open", tt.name, mode, h.open)
					}
					if calls := len(h.calls); tt.again && mode == TLSOpportunistic && calls != 2 {
						t.Errorf("%s: got %d connections, want 2", tt.name, calls)
					}
				})
			}
			switch mode {
			case TLSOff:
				check(nil, want)
			case TLSOpportunistic:
				check(nil, want)
				check(good, tt.opportunisticGiven)
			default:
				check(good, want)
			}
		}
	}
}

// TestDialAddresses: which addresses are tried when, and what is said when none does.
func TestDialAddresses(t *testing.T) {
	parity.Row(t, "SC-02", "SC-09", "SC-12", "SC-20", "SC-24", "SC-27", "SC-28")
	ok := func(nc net.Conn) {
		badServer(nc, ">220 mx.test", "<EHLO *", ">250 mx.test", "<QUIT", ">221 bye")
	}
	const a4, b4, a6, b6 = "192.0.2.1:25", "192.0.2.2:25", "[2001:db8::1]:25", "[2001:db8::2]:25"
	all := []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}
	for _, tt := range []struct {
		name   string
		eyes   bool
		local  string
		addrs  []string // nil: all; "" is a resolver that fails, "slow" one that does not answer
		at     map[string]func(net.Conn)
		after  map[string]time.Duration
		calls  string
		kind   Kind // of the error
		phase  Phase
		code   int
		within time.Duration
	}{
		{name: "first", at: map[string]func(net.Conn){a4: ok}, calls: a4 + " at 0s"},
		{name: "refused", at: map[string]func(net.Conn){a6: ok}, calls: a4 + " at 0s, " + b4 + " at 0s, " + a6 + " at 0s"},
		{name: "dead ones share the time", at: map[string]func(net.Conn){a4: nil, b4: nil, b6: ok},
			calls: a4 + " at 0s, " + b4 + " at 30s, " + a6 + " at 1m0s, " + b6 + " at 1m0s", within: time.Minute},
		{name: "all dead", at: map[string]func(net.Conn){a4: nil, b4: nil, a6: nil, b6: nil},
			calls: a4 + " at 0s, " + b4 + " at 30s, " + a6 + " at 1m0s, " + b6 + " at 1m30s", kind: KindTimeout, phase: PhaseConnect, within: 2 * time.Minute},
		{name: "all refuse", calls: a4 + " at 0s, " + b4 + " at 0s, " + a6 + " at 0s, " + b6 + " at 0s", kind: KindConnection, phase: PhaseConnect},
		{name: "greeting refused", at: map[string]func(net.Conn){a4: playing(">554 5.7.1 not you"), b4: ok}, calls: a4 + " at 0s, " + b4 + " at 0s"},
		{name: "closed before the greeting", at: map[string]func(net.Conn){a4: playing(), b4: ok}, calls: a4 + " at 0s, " + b4 + " at 0s"},
		{name: "all greetings refused", addrs: []string{"192.0.2.1", "192.0.2.2"}, at: map[string]func(net.Conn){a4: playing(">554 5.7.1 not you"), b4: playing(">554 no")},
			calls: a4 + " at 0s, " + b4 + " at 0s", kind: KindRefused, phase: PhaseGreeting, code: 554},
		{name: "one is temporary", addrs: []string{"192.0.2.1", "192.0.2.2"}, at: map[string]func(net.Conn){a4: playing(">554 5.7.1 not you"), b4: playing(">421 4.3.2 later")},
			calls: a4 + " at 0s, " + b4 + " at 0s", kind: KindRefused, phase: PhaseGreeting, code: 421},
		{name: "greeting that hangs", addrs: []string{"192.0.2.1", "192.0.2.2"}, at: map[string]func(net.Conn){a4: playing("hang"), b4: ok},
			calls: a4 + " at 0s, " + b4 + " at 5m0s", within: 5 * time.Minute},
		{name: "the same twice", addrs: []string{"192.0.2.1", "::ffff:192.0.2.1"}, calls: a4 + " at 0s", kind: KindConnection, phase: PhaseConnect},
		{name: "local address", local: "2001:db8::9", at: map[string]func(net.Conn){a4: ok, a6: ok}, calls: a6 + " at 0s"},
		{name: "local address of the other family", local: "2001:db8::9", addrs: []string{"192.0.2.1"}, kind: KindDNS, phase: PhaseResolve},
		{name: "resolver fails", addrs: []string{""}, kind: KindDNS, phase: PhaseResolve},
		{name: "resolver does not answer", addrs: []string{"slow"}, kind: KindTimeout, phase: PhaseResolve, within: 30 * time.Second},
		{name: "no address", addrs: []string{}, kind: KindDNS, phase: PhaseResolve},

		{name: "eyes: first", eyes: true, at: map[string]func(net.Conn){a4: ok}, calls: a4 + " at 0s"},
		{name: "eyes: families in turn", eyes: true, at: map[string]func(net.Conn){a4: nil, a6: nil, b4: nil, b6: ok},
			calls: a4 + " at 0s, " + a6 + " at 250ms, " + b4 + " at 500ms, " + b6 + " at 750ms", within: 750 * time.Millisecond},
		{name: "eyes: a failure begins the next at once", eyes: true, at: map[string]func(net.Conn){a6: nil, b4: ok}, calls: a4 + " at 0s, " + a6 + " at 0s, " + b4 + " at 250ms",
			within: 250 * time.Millisecond},
		{name: "eyes: a slow one may win yet", eyes: true, at: map[string]func(net.Conn){a4: ok, a6: ok}, after: map[string]time.Duration{a4: 300 * time.Millisecond, a6: time.Second},
			calls: a4 + " at 0s, " + a6 + " at 250ms", within: 300 * time.Millisecond},
		{name: "eyes: two win", eyes: true, at: map[string]func(net.Conn){a4: ok, a6: ok}, after: map[string]time.Duration{a4: 300 * time.Millisecond, a6: 50 * time.Millisecond},
			calls: a4 + " at 0s, " + a6 + " at 250ms", within: 300 * time.Millisecond},
		{name: "eyes: the winner does not greet", eyes: true, at: map[string]func(net.Conn){a4: playing(), b4: ok}, calls: a4 + " at 0s, " + a6 + " at 0s, " + b4 + " at 0s"},
		{name: "eyes: all dead", eyes: true, addrs: []string{"192.0.2.1", "2001:db8::1"}, at: map[string]func(net.Conn){a4: nil, a6: nil}, calls: a4 + " at 0s, " + a6 + " at 250ms",
			kind: KindTimeout, phase: PhaseConnect, within: 2 * time.Minute},
		{name: "eyes: all refuse", eyes: true, calls: a4 + " at 0s, " + a6 + " at 0s, " + b4 + " at 0s, " + b6 + " at 0s", kind: KindConnection, phase: PhaseConnect},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hosts{at: tt.at, after: tt.after, began: time.Now()}
				list := tt.addrs
				if list == nil {
					list = all
				}
				d, err := newDialing("mx.test", DialOptions{ClientOptions: ClientOptions{LocalName: "client.test"}, HappyEyeballs: tt.eyes,
					Resolve: func(ctx context.Context, host string) (addrs []netip.Addr, err error) {
						if host != "mx.test" {
							t.Errorf("looked up %q", host)
						}
						for _, a := range list {
							switch a {
							case "":
								return nil, errors.New("SERVFAIL")
							case "slow":
								<-ctx.Done()
								return nil, ctx.Err()
							}
							addrs = append(addrs, netip.MustParseAddr(a))
						}
						return addrs, nil
					}})
				if err != nil {
					t.Fatal(err)
				}
				d.Dial = h.dial // beside LocalAddr, which is of no use with a Dial of the caller
				if tt.local != "" {
					d.LocalAddr = netip.MustParseAddr(tt.local)
				}
				c, err := d.dial(t.Context())
				took := time.Since(h.began)
				if err == nil {
					if err := c.Quit(t.Context()); err != nil {
						t.Error(err)
					}
				}
				h.all.Wait()
				if got := strings.Join(h.calls, ", "); got != tt.calls || took != tt.within {
					t.Errorf("dialled %s in %v, want %s in %v", got, took, tt.calls, tt.within)
				}
				if h.open != 0 {
					t.Errorf("%d connections left open", h.open)
				}
				e, typed := errors.AsType[*ClientError](err)
				switch {
				case tt.kind == "" && err != nil, tt.kind != "" && !typed:
					t.Errorf("got %v", err)
				case typed && (e.Kind != tt.kind || e.Phase != tt.phase || e.Code() != tt.code || e.Temporary() != (tt.code != 554) || e.Timeout() != (tt.kind == KindTimeout)):
					t.Errorf("got %s at %s with %d, temporary %v (%v), want %s at %s with %d", e.Kind, e.Phase, e.Code(), e.Temporary(), err, tt.kind, tt.phase, tt.code)
				}
			})
		})
	}
}

// The end of the context ends Dial wherever it is, and nothing is left behind.
func TestDialContext(t *testing.T) {
	for _, eyes := range []bool{false, true} {
		for name, at := range map[string]func(net.Conn){"connect": nil, "greeting": playing("hang"), "EHLO": playing(">220 x", "hang"),
			"STARTTLS": playing(">220 x", "<EHLO*", ">250-x", ">250 STARTTLS", "<STARTTLS", "hang"), "handshake": playing(">220 x", "<EHLO*", ">250-x", ">250 STARTTLS", "<STARTTLS", ">220 go", "hang")} {
			synctest.Test(t, func(t *testing.T) {
				h := &hosts{at: map[string]func(net.Conn){"192.0.2.1:25": at}}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				began := time.Now()
				_, err := Dial(ctx, "192.0.2.1", DialOptions{Dial: h.dial, HappyEyeballs: eyes, TLS: TLSOpportunistic})
				e, ok := errors.AsType[*ClientError](err)
				if !ok || e.Kind != KindCanceled || time.Since(began) != time.Second {
					t.Errorf("%s: got %v after %v, want canceled after a second", name, err, time.Since(began))
				}
				h.all.Wait()
				if h.open != 0 {
					t.Errorf("%s: left open", name)
				}
			})
		}
	}
}

func TestDialOptions(t *testing.T) {
	parity.Row(t, "SC-01", "SC-02", "SC-07", "SC-20", "SC-21", "SC-22")
	pipe, _ := net.Pipe()
	for _, tt := range []struct {
		address string
		o       DialOptions
		want    string // network, host and port, or the error
	}{
		{"mx.test", DialOptions{}, "tcp mx.test 25 false"},
		{"mx.test", DialOptions{TLS: TLSImplicit}, "tcp mx.test 465 true"},
		{"mx.test", DialOptions{ClientOptions: ClientOptions{LMTP: true}}, "tcp mx.test 24 false"},
		{"mx.test:465", DialOptions{}, "tcp mx.test 465 true"}, // RFC 8314
		{"mx.test:465", DialOptions{TLS: TLSOff}, "tcp mx.test 465 false"},
		{"mx.test:587", DialOptions{TLS: TLSRequired}, "tcp mx.test 587 false"},
		{"MX.Test.:25", DialOptions{}, "tcp mx.test 25 false"},
		{"bücher.example", DialOptions{}, "tcp xn--bcher-kva.example 25 false"},
		{"my_host.test", DialOptions{}, "tcp my_host.test 25 false"},
		{"localhost", DialOptions{}, "tcp localhost 25 false"},
		{"192.0.2.1", DialOptions{}, "tcp 192.0.2.1 25 false"},
		{"2001:db8::1", DialOptions{}, "tcp 2001:db8::1 25 false"},
		{"[2001:db8::1]", DialOptions{}, "tcp 2001:db8::1 25 false"},
		{"[2001:db8::1]:26", DialOptions{}, "tcp 2001:db8::1 26 false"},
		{"unix:/run/lmtp", DialOptions{ClientOptions: ClientOptions{LMTP: true}}, "unix /run/lmtp  false"},
		{"", DialOptions{}, "not a domain name"},
		{"unix:", DialOptions{}, "port"},
		{"a b", DialOptions{}, "not a domain name"},
		{"mx.test:", DialOptions{}, "no number"},
		{"mx.test:smtp", DialOptions{}, "no number"},
		{"mx.test:0", DialOptions{}, "no number"},
		{"mx.test:70000", DialOptions{}, "no number"},
		{"mx\r\n.test:25", DialOptions{}, "not a domain name"},
		{"mx.test:25", DialOptions{ClientOptions: ClientOptions{LMTP: true}}, "LMTP must not"},
		{"mx.test", DialOptions{TLS: TLSOff, TLSConfig: &tls.Config{}}, "TLSOff"},
		{"mx.test", DialOptions{TLS: TLSOff, ServerName: "x"}, "TLSOff"},
		{"mx.test", DialOptions{TLS: 9}, "modes"},
		{"mx.test", DialOptions{Conn: pipe, HappyEyeballs: true}, "nothing to dial"},
		{"mx.test", DialOptions{Dial: (&hosts{}).dial, LocalAddr: netip.MustParseAddr("192.0.2.1")}, "LocalAddr"},
		{"mx.test", DialOptions{Addrs: []netip.Addr{{}}}, "zero address"},
		{"unix:/x", DialOptions{HappyEyeballs: true}, "no addresses"},
		{"mx.test", DialOptions{ConnectTimeout: -1}, "negative"},
		{"mx.test", DialOptions{ClientOptions: ClientOptions{LocalName: "a\r\nQUIT"}}, "EHLO"},
	} {
		d, err := newDialing(tt.address, tt.o)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(d.network, " ", d.host, " ", d.port, " ", d.implicit)
		}
		if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
			t.Errorf("%q: got %s, want %s", tt.address, got, tt.want)
		}
	}
	err := DialOptions{TLS: 9, ConnectTimeout: -1, AttemptDelay: -1, ClientOptions: ClientOptions{LocalName: "a b"}}.Validate()
	if n := strings.Count(fmt.Sprint(err), "\n"); n != 2 {
		t.Errorf("Validate: got %v, want every problem", err)
	}
	for _, tt := range []struct{ name, want string }{
		{"192.0.2.1", "[192.0.2.1]"}, {"2001:db8::1", "[IPv6:2001:db8::1]"}, {"[192.0.2.1]", "[192.0.2.1]"}, {"Client.Test", "client.test"},
		{"bücher.example", "xn--bcher-kva.example"}, {"my_host", "my_host"},
	} {
		c, said := dialPipe(t, tt.name, DialOptions{})
		c.Close()
		if said() != tt.want {
			t.Errorf("LocalName %q: got EHLO %s, want %s", tt.name, said(), tt.want)
		}
	}
	c, said := dialPipe(t, "", DialOptions{}) // of which nobody knows the result but that it is one
	c.Close()
	if !isHeloName(said()) {
		t.Errorf("no LocalName: got EHLO %q", said())
	}
}

// dialPipe dials on a connection that is there already. said returns the name of EHLO.
func dialPipe(t *testing.T, localName string, o DialOptions) (c *Client, said func() string) {
	t.Helper()
	ours, theirs := net.Pipe()
	sess := &scripted{}
	done := make(chan error, 1)
	go func() { done <- sess.serve(ServerOptions{Hostname: "mx.test"}, theirs) }()
	o.Conn, o.LocalName = ours, localName
	c, err := Dial(t.Context(), "mx.test", o)
	if err != nil {
		t.Fatal(err)
	}
	return c, func() string {
		c.Close()
		if done != nil {
			<-done
			done = nil
		}
		for _, e := range sess.events {
			if name, ok := strings.CutPrefix(e, "helo "); ok {
				return name
			}
		}
		return ""
	}
}

// By TCP and by a unix socket, and from an address of our choice.
func TestDialSockets(t *testing.T) {
	parity.Row(t, "SC-08", "SC-22", "SC-29", "SC-31", "SC-33")
	serverTLS := testTLS(t)
	remote := make(chan string, 5)
	srv := mustServer(t, HandlerFunc(func(_ context.Context, c *Conn) (Session, error) {
		remote <- c.RemoteAddr().String()
		return Accept{}, nil
	}), ServerOptions{TLS: serverTLS, Implicit: true})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unix, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { srv.Serve(tcp) })
	served.Go(func() { srv.Serve(unix) })
	o := DialOptions{TLS: TLSImplicit, TLSConfig: &tls.Config{InsecureSkipVerify: true}}
	local := o
	local.LocalAddr = netip.MustParseAddr("127.0.0.2")
	for _, tt := range []struct {
		address string
		o       DialOptions
		from    string
	}{
		{tcp.Addr().String(), o, "127.0.0.1:"},
		{tcp.Addr().String(), local, "127.0.0.2:"},
		{"unix:" + unix.Addr().String(), o, ""},
		{"there already", o, "127.0.0.1:"},
	} {
		if tt.address == "there already" {
			nc, err := net.Dial("tcp", tcp.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			tt.address, tt.o.Conn = "mx.test", tls.Client(nc, o.TLSConfig)
		}
		c, err := Dial(t.Context(), tt.address, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		if from := <-remote; !strings.HasPrefix(from, tt.from) {
			t.Errorf("%s: server saw %s, want %s", tt.address, from, tt.from)
		}
		if _, secure := c.TLS(); !secure || c.LoggedIn() || c.Greeting.Code != 220 || c.Last().Code != 250 || !slices.Contains(c.Extensions(), "8BITMIME") {
			t.Errorf("%s: TLS %v, logged in %v, %v, %v, %v", tt.address, secure, c.LoggedIn(), c.Greeting, c.Last(), c.Extensions())
		}
		if err := c.Quit(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := Dial(t.Context(), tcp.Addr().String(), DialOptions{TLS: TLSImplicit}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("certificate of nobody: got %v", err)
	}
	srv.Shutdown(t.Context())
	served.Wait()
}
