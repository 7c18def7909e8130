package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// TestValidate: every problem at once.
func TestValidate(t *testing.T) {
	err := Options{Hostname: "bad_name", Listeners: []Listener{
		{Name: "a", Addresses: []Address{{Network: "udp"}}, TLS: TLSOff, Hops: -1},
		{Name: "a", Addresses: []Address{{Network: "tcp", Address: ":25"}}, TLS: "always"},
		{Addresses: []Address{{Network: "tcp", Address: ":465"}}, TLS: TLSImplicit},
	}}.Validate()
	for _, want := range []string{"no relay", "listener a: hostname", `network "udp"`, "must not be negative",
		`listener "a": the name is missing or used twice`, `tls "always" is none of`, `listener "": the name`, "tls implicit without a TLS configuration"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not among the problems:\n%v", want, err)
		}
	}
	if err := (Options{}).Validate(); err == nil || !strings.Contains(err.Error(), "no listeners") {
		t.Errorf("zero Options: %v", err)
	}
}

// TestConnectionLimits: too many get 421, and the counts go back to zero, which the rig
// checks.
func TestConnectionLimits(t *testing.T) {
	r := &rig{listener: Listener{Connections: 3, ConnectionsPerIP: 2},
		more: []Listener{
			{Name: "few", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff, Connections: 1},
			{Name: "any", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff, Connections: -1, ConnectionsPerIP: -1},
		}}
	r.start(t)
	first := r.dial(t, "mx")
	first.talk(" => 220")
	second := r.dial(t, "mx")
	second.talk(" => 220")
	for range 3 { // those who are turned away do not count
		r.dial(t, "mx").talk(" => 421 4.7.0 too many connections from your address", " => closed")
	}
	r.dial(t, "few").talk(" => 220") // each listener counts for itself
	r.dial(t, "few").talk(" => 421 4.3.2 too many connections, try", " => closed")
	for range 20 {
		r.dial(t, "any").talk(" => 220")
	}
	first.talk("QUIT => 221", " => closed")
	r.dial(t, "mx").talk(" => 220")
	if got := r.gw.addIP(ipKey{r.gw.listeners[1], netip.MustParseAddr("127.0.0.1")}, 0); got != 1 {
		t.Errorf("connections of the address to few: got %d, want 1: one was turned away before it was counted", got)
	}
}

// TestSite: what connections are counted by.
func TestSite(t *testing.T) {
	for _, c := range []struct{ addr, want string }{
		{"192.0.2.1", "192.0.2.1"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
		{"2001:db8:1:2::1", "2001:db8:1:2::"},
		{"2001:db8:1:3::1", "2001:db8:1:3::"},
		{"fe80::1%eth0", "fe80::"},
		{"::1", "::"},
	} {
		if got := site(netip.MustParseAddr(c.addr)).String(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.addr, got, c.want)
		}
	}
	if got := addrPort(&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 25}).String(); got != "192.0.2.1:25" {
		t.Errorf("mapped address: got %s", got)
	}
	if got := addrPort(&net.UnixAddr{}); got.IsValid() {
		t.Errorf("unix: got %v", got)
	}
}

// TestTrust: who may relay.
func TestTrust(t *testing.T) {
	parity.Row(t, "SS-50")
	r := &rig{
		routes: []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"*"}, Backend: "out"}},
		more: []Listener{
			{Name: "inside", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff, Relay: true, Trusted: Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
			{Name: "outside", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff, Relay: true, Trusted: Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
			{Name: "routes", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff, Trusted: Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
			{Name: "socket", Addresses: []Address{{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}}, TLS: TLSOff, Relay: true, Trusted: Networks{Unix: true}},
			{Name: "closed", Addresses: []Address{{Network: "unix", Address: filepath.Join(t.TempDir(), "c")}}, TLS: TLSOff, Relay: true, Trusted: Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}},
		}}
	r.start(t)
	for _, c := range []struct{ listener, want string }{
		{"mx", "550 5.7.1 relaying denied"},
		{"inside", "250"},
		{"outside", "550 5.7.1 relaying denied"},
		{"routes", "550 5.7.1 relaying denied"}, // accept: routes
		{"socket", "250"},
		{"closed", "550 5.7.1 relaying denied"}, // a socket has no address
	} {
		p := r.dial(t, c.listener)
		p.talk(" => 220", "EHLO client.test => 250", "MAIL FROM:<f@example.com> => 250", "RCPT TO:<a@elsewhere.test> => "+c.want,
			"RSET => 250", "MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250")
		p.data(testMessage)
		from := "from client.test ([127.0.0.1])"
		if c.listener == "socket" || c.listener == "closed" {
			from = "from client.test (local socket)"
		}
		if m := string(r.far.last()); !strings.HasPrefix(m, "Received: "+from) {
			t.Errorf("%s: message begins %.80q, want %q", c.listener, m, from)
		}
	}
	local := Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("fe80::/10")}}
	if !local.contains(netip.MustParseAddr("fe80::1%eth0")) {
		t.Error("a link-local address is not in fe80::/10, for its zone")
	}
}

// TestStaleSocket: what a dead process left is replaced, a living one is left alone, and
// so is what is no socket.
func TestStaleSocket(t *testing.T) {
	dir := t.TempDir()
	stale, alive, file := filepath.Join(dir, "stale"), filepath.Join(dir, "alive"), filepath.Join(dir, "file")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	r := &rig{listener: Listener{Addresses: []Address{{Network: "unix", Address: stale}}}}
	r.start(t).hello(t).talk("QUIT => 221")
	r.stop(t)
	if _, err := os.Lstat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left after Shutdown: %v", err)
	}

	living, err := net.Listen("unix", alive)
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	os.WriteFile(file, []byte("precious"), 0o600)
	for _, path := range []string{alive, file} {
		r := &rig{listener: Listener{Name: "first"}, more: []Listener{{Name: "second", Addresses: []Address{{Network: "unix", Address: path}}, TLS: TLSOff}}}
		if err := r.build(t).Listen(); err == nil || !strings.Contains(err.Error(), "listener second") {
			t.Errorf("%s: got %v", path, err)
		}
		if _, err := net.Dial("tcp", r.gw.Addr("first").String()); err == nil {
			t.Error("the first listener stays open though the second failed")
		}
		if err := r.gw.Serve(); err == nil {
			t.Error("Serve with a listener that does not listen: no error")
		}
		r.stop(t)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file holds %q", b)
	}
}

// TestAddr: nil for what is not there.
func TestAddr(t *testing.T) {
	r := &rig{}
	gw := r.build(t)
	if a := gw.Addr("mx"); a != nil {
		t.Errorf("before Listen: got %v", a)
	}
	gw.Listen()
	if a := gw.Addr("nobody"); a != nil {
		t.Errorf("unknown: got %v", a)
	}
	a := gw.Addr("mx")
	r.stop(t) // without Serve
	if nc, err := net.Dial("tcp", a.String()); err == nil {
		nc.Close()
		t.Error("the listener is open after Shutdown")
	}
	if err := gw.Serve(); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

// TestShutdown: who waits hears 421, a message under way gets its answer, and its client
// 421 behind it.
func TestShutdown(t *testing.T) {
	released := 0
	r := (&rig{}).start(t)
	r.gw.Reload(r.rules(func() { released++ }))
	idle, mid, sending := r.hello(t), r.hello(t), r.hello(t)
	mid.begin("a@example.com")
	sending.begin("a@example.com")
	sending.talk("DATA => 354")
	sending.send("Subject: x\r\n\r\n")
	done := make(chan error, 1)
	go func() { done <- r.gw.Shutdown(context.Background()) }()
	idle.talk(" => 421 4.3.2", " => closed")
	mid.talk(" => 421 4.3.2", " => closed")
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned %v before the message was answered", err)
	default:
	}
	if released != 0 {
		t.Error("rules are released while a session uses them")
	}
	sending.talk("done\r\n. => 250 2.0.0 queued", " => 421 4.3.2", " => closed")
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	r.stop(t) // again
	if released != 1 {
		t.Errorf("rules released %d times, want once", released)
	}
}

// TestShutdownCuts: when the time is over, the rest is cut off: a client that sends
// without end, and a backend that does not answer.
func TestShutdownCuts(t *testing.T) {
	r := &rig{}
	asked := make(chan struct{})
	r.links = []policy.Link{{Filter: policy.Func("waits", policy.StagesOf(policy.StageMessage), func(ctx context.Context, _ *policy.Event) (policy.Verdict, error) {
		close(asked)
		<-ctx.Done()
		return policy.Verdict{}, ctx.Err()
	})}}
	r.start(t)
	sending, waiting := r.hello(t), r.hello(t)
	sending.begin("a@example.com")
	sending.talk("DATA => 354")
	sending.send("Subject: x\r\n\r\n")
	waiting.begin("a@example.com")
	waiting.talk("DATA => 354")
	waiting.send(testMessage + ".\r\n")
	<-asked
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := r.gw.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	sending.talk(" => closed")
	if got := waiting.reply(); strings.HasPrefix(got, "2") {
		t.Errorf("the client of a message that was cut off hears %q", got)
	}
	r.stop(t)
	if len(r.far.messages) != 0 {
		t.Errorf("the far side got %d messages", len(r.far.messages))
	}
}

// TestListenersTogether: each has its own chain and limits.
func TestListenersTogether(t *testing.T) {
	r := &rig{
		links: []policy.Link{filter("judge", policy.StageMail, func(*policy.Event) policy.Verdict { return policy.Verdict{Action: policy.Reject} })},
		more: []Listener{
			{Name: "bare", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff, Server: smtp.ServerOptions{MaxMessage: 1000, MaxRecipients: 1}},
		}}
	r.start(t)
	r.hello(t).talk("MAIL FROM:<f@x.test> => 550 5.7.1")
	p := r.dial(t, "bare")
	p.talk(" => 220", "EHLO client.test => 250", "MAIL FROM:<f@x.test> SIZE=1001 => 552", "MAIL FROM:<f@x.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<b@example.com> => 452 4.5.3")
	if got := p.data(strings.Repeat("line\r\n", 200)); !strings.HasPrefix(got, "552 5.3.4") {
		t.Errorf("too large: got %q", got)
	}
	is(t, "far side", r.far.told(), []string{"begin a <f@x.test>", "rcpt <a@example.com>", "abort"})
}
