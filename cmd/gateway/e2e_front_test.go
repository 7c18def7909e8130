package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl/users"
)

// e2e_front_test.go: what is in front of us, what comes through the door, and who is asked
// about it: load balancers, proxies, the service manager, clients that are none, the DNS,
// and whoever knows the recipients.

const balancedConfig = `
listeners:
  - name: mx
    address: "127.0.0.1:0"
    proxy_protocol: {trusted: [127.0.0.1], timeout: 10s}
    reverse_dns: {enabled: false}
    limits: {greet_delay: off}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
log: {level: debug}
`

// mailFrom sends a message from an address of this machine, over TLS if a name is given.
func mailFrom(t *testing.T, from, addr, subject, tlsName string, ca *peers.CA) {
	t.Helper()
	nc := dialFrom(t, from, addr)
	if tlsName != "" {
		nc = tls.Client(nc, &tls.Config{RootCAs: ca.Pool(), ServerName: tlsName})
	}
	c, err := smtp.NewClient(t.Context(), nc, smtp.ClientOptions{LocalName: "client.example.net"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r := send(t, c, "bob@example.org", []byte("Subject: "+subject+"\r\n\r\nHello\r\n")); r.Code != 250 {
		t.Errorf("%s: %s", subject, r.Line())
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Errorf("%s: quit: %v", subject, err)
	}
}

// TestHAProxy: the client's own address is known behind HAProxy, in either version, with
// all that can go with it, and HAProxy's own checks disturb nobody.
func TestHAProxy(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-28", "SS-71")
	pf := peers.Postfix(t, peers.PostfixOptions{})
	ca := peers.NewCA(t)
	g := startEdge(t, ca, balancedConfig, "BACKEND", pf.Addr)
	front := ca.Issue(t, "front.example.org")
	want := make(map[string]string)
	for i, o := range []peers.HAProxyOptions{
		{SendProxy: "v1"},
		{SendProxy: "v2"},
		{SendProxy: "v2", TLVs: []string{"unique-id", "crc32c", "authority", "ssl", "ssl-cipher", "cert-cn"}, Certificate: &front},
		{SendProxy: "v2", Checks: true},
	} {
		o.Backend = g.addr["mx"]
		h := peers.HAProxy(t, o)
		if o.Checks {
			g.awaitNth("two checks", 2, func(l map[string]any) bool {
				return l["msg"] == "session ended" && l["helo"] == "" && l["level"] == "DEBUG"
			})
		}
		from, tlsName := fmt.Sprintf("127.0.0.%d", 9+i), ""
		if o.Certificate != nil {
			tlsName = "front.example.org"
		}
		subject := fmt.Sprintf("balanced %d", i)
		mailFrom(t, from, h.Addr, subject, tlsName, ca)
		want[subject] = "from client.example.net ([" + from + "]) "
		g.await(subject, func(l map[string]any) bool {
			remote, _, _ := net.SplitHostPort(fmt.Sprint(l["remote"]))
			proxy, _, _ := net.SplitHostPort(fmt.Sprint(l["proxy"]))
			id := fmt.Sprint(l["proxy_id"])
			return l["msg"] == "session ended" && remote == from && proxy == "127.0.0.1" && l["accepted"] == 1.0 &&
				strings.HasPrefix(id, from+":") == slices.Contains(o.TLVs, "unique-id")
		})
	}
	traced(t, bySubject(pf.Wait(t, len(want))), want)

	for _, l := range g.all() {
		if l["level"] == "ERROR" || l["level"] == "WARN" {
			t.Errorf("in the log: %v", l)
		}
	}

	// Who is trusted says who it is, always, and hears nothing if it does not. The log tells of
	// it.
	direct := newTalk(t, dialFrom(t, "127.0.0.1", g.addr["mx"]))
	direct.say("EHLO client.example.net")
	direct.ended()
	g.await("no header", func(l map[string]any) bool { return l["msg"] == "connection without a good PROXY header" })
}

// TestTLSAtHAProxy: where HAProxy ends TLS and says so, a client may do what it may on TLS.
func TestTLSAtHAProxy(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-24")
	pf := peers.Postfix(t, peers.PostfixOptions{})
	file := filepath.Join(t.TempDir(), "users.txt")
	if _, err := users.Set(file, "alice", users.SCRAM, "sesame"); err != nil {
		t.Fatal(err)
	}
	ca := peers.NewCA(t)
	front := ca.Issue(t, "front.example.org")
	g := startEdge(t, ca, strings.Replace(balancedConfig, "    limits:", "    auth: {users: \"file:USERS\"}\n    limits:", 1), "BACKEND", pf.Addr, "USERS", file)
	ended := peers.HAProxy(t, peers.HAProxyOptions{Backend: g.addr["mx"], SendProxy: "v2", TLVs: []string{"ssl", "ssl-cipher", "authority"}, Certificate: &front})
	silent := peers.HAProxy(t, peers.HAProxyOptions{Backend: g.addr["mx"], SendProxy: "v2", Certificate: &front})
	for _, tt := range []struct {
		name, addr, offered, received string
		code                          int
	}{
		{"told", ended.Addr, "250-AUTH SCRAM-SHA-256 PLAIN LOGIN", "(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384) by mx.example.org (Penstock) with ESMTPSA", 0},
		{"not told", silent.Addr, "250-STARTTLS", "", 28},
	} {
		out, code := peers.Swaks(t, "--server", tt.addr, "-tlsc", "--from", "alice@example.net", "--to", "bob@example.org", "--header", "Subject: "+tt.name,
			"--auth", "PLAIN", "--auth-user", "alice", "--auth-password", "sesame")
		both := strings.Contains(out, "250-AUTH") && strings.Contains(out, "250-STARTTLS")
		if code != tt.code || !strings.Contains(out, tt.offered) || both {
			t.Errorf("%s: exit code %d, want %d with %q in\n%s", tt.name, code, tt.code, tt.offered, out)
		}
		if tt.code == 0 {
			traced(t, bySubject(pf.Wait(t, 1)), map[string]string{tt.name: tt.received})
		}
	}
	g.await("a session on TLS", func(l map[string]any) bool {
		return l["msg"] == "session ended" && l["tls"] == "TLS 1.3" && l["user"] == "alice"
	})
}

// awaitNth waits until so many lines of the log are such.
func (g *gatewayProcess) awaitNth(what string, n int, ok func(map[string]any) bool) {
	g.t.Helper()
	g.await(what, func(l map[string]any) bool {
		if ok(l) {
			n--
		}
		return n == 0
	})
}

// all returns the lines of the log so far.
func (g *gatewayProcess) all() []map[string]any {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.lines)
}

// TestXForward: what a trusted proxy says of where mail came from reaches Postfix behind us,
// and grants nothing.
func TestXForward(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-31", "SS-79")
	pf := peers.Postfix(t, peers.PostfixOptions{Main: []string{"smtpd_authorized_xforward_hosts = 127.0.0.0/8"}})
	g := startEdge(t, peers.NewCA(t), `
listeners:
  - {name: mx, address: "127.0.0.1:0", accept: any, trusted_networks: [192.0.2.0/24], xforward: {trusted: [127.0.0.1]}, limits: {greet_delay: off}}
routes:
  - {domains: ["*", example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"], xforward: true}
`, "BACKEND", pf.Addr)
	c := newTalk(t, dialFrom(t, "127.0.0.1", g.addr["mx"]))
	c.expect("220 ")
	c.say("EHLO proxy.example.net")
	if offer := c.expect("250"); !strings.Contains(offer, "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE") {
		t.Errorf("offered: %q", offer)
	}
	c.say("XFORWARD NAME=in.example.com ADDR=192.0.2.7 PORT=1025 HELO=greets.example.com PROTO=ESMTP IDENT=abc123 SOURCE=REMOTE")
	c.expect("250 2.0.0")
	c.say("MAIL FROM:<alice@example.net>")
	c.expect("250 2.1.0")
	c.say("RCPT TO:<bob@far.example>")
	c.expect("550 5.7.1 relaying denied")
	c.say("RCPT TO:<bob@example.org>")
	c.expect("250 2.1.5")
	c.say("DATA")
	c.expect("354 ")
	c.say("Subject: forwarded\r\n\r\nHello\r\n.")
	c.expect("250 2.0.0")
	pf.WaitLog(t, "client=unknown[127.0.0.1], orig_queue_id=abc123, orig_client=in.example.com[192.0.2.7]")

	// Who says nothing of the client tells of itself: we know it then.
	mailFrom(t, "127.0.0.9", g.addr["mx"], "plain", "", nil)
	pf.WaitLog(t, "orig_client=unknown[127.0.0.9]")
	traced(t, bySubject(pf.Wait(t, 2)), map[string]string{"forwarded": "from proxy.example.net ([127.0.0.1]) by"})

	// And a Postfix in front of us says it in its own way.
	sender := peers.NewPostfixSender(t, peers.PostfixSenderOptions{NextHop: g.addr["mx"], Main: []string{"smtp_send_xforward_command = yes"}})
	if d := sender.Send(t, peers.PostfixMail{To: []string{"bob@example.org"}, Raw: []byte("Subject: postfix\r\n\r\nHello\r\n")}); d[0].Status != "sent" {
		t.Errorf("Postfix: %+v", d)
	}
	log := sender.WaitLog(t, "status=sent")
	_, id, _ := strings.Cut(log, "postfix/qmgr[")
	_, id, _ = strings.Cut(id, "]: ")
	id, _, _ = strings.Cut(id, ":")
	pf.WaitLog(t, "orig_queue_id="+id+", orig_client=unknown[127.0.0.1]")
}

// TestStrangeClients: who talks before the greeting, or another protocol, or not at all, is
// sent away, and none of them ends more than its own connection.
func TestStrangeClients(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-27", "SS-38", "SS-52", "SS-53", "SS-54")
	g := startEdge(t, peers.NewCA(t), `
listeners:
  - {name: mx, address: "127.0.0.1:0", limits: {greet_delay: 2s}}
  - {name: now, address: "127.0.0.1:0", limits: {greet_delay: off}}
  - {name: two, address: "127.0.0.1:0", limits: {greet_delay: off, connections: 2}}
  - {name: smtps, address: "127.0.0.1:0", tls: implicit, limits: {greet_delay: off, connections: 1}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://127.0.0.1:1"]}
log: {level: debug}
`)
	early := newTalk(t, dialFrom(t, "127.0.0.9", g.addr["mx"]))
	early.say("EHLO client.example.net\r\nMAIL FROM:<a@example.net>")
	early.expect("421 4.7.0 you spoke before the greeting")
	early.ended()
	g.await("the early talker", func(l map[string]any) bool {
		return l["msg"] == "session ended" && l["listener"] == "mx" && strings.Contains(fmt.Sprint(l["err"]), "before the greeting")
	})
	patient := newTalk(t, dialFrom(t, "127.0.0.10", g.addr["mx"]))
	began := time.Now()
	patient.expect("220 mx.example.org ESMTP")
	if d := time.Since(began); d < 1500*time.Millisecond {
		t.Errorf("greeted after %v", d)
	}
	for _, line := range []string{"GET / HTTP/1.1", "POST /x?y=z HTTP/1.0", "OPTIONS * HTTP/1.1"} {
		c := newTalk(t, dialFrom(t, "", g.addr["now"]))
		c.expect("220 ")
		c.say(line + "\r\nHost: mx.example.org\r\n\r\nEHLO a\r\nMAIL FROM:<a@example.net>\r\nQUIT")
		c.expect("421 4.7.0")
		c.ended()
	}
	// Resets, noise, and a TLS handshake that is none.
	for _, noise := range []string{"", "EHLO a.example\r\nMAIL FR", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", strings.Repeat("\x00\xff", 5000)} {
		nc := dialFrom(t, "", g.addr["now"])
		_, _ = io.WriteString(nc, noise)
		_ = nc.(*net.TCPConn).SetLinger(0)
		nc.Close()
	}
	start := newTalk(t, dialFrom(t, "", g.addr["now"]))
	start.expect("220 ")
	start.say("EHLO a.example")
	start.expect("250")
	start.say("STARTTLS")
	start.expect("220 2.0.0")
	start.say("this is no handshake")
	g.await("the handshake that failed", func(l map[string]any) bool {
		return l["msg"] == "session ended" && l["listener"] == "now" && strings.Contains(fmt.Sprint(l["err"]), "TLS handshake")
	})
	// Connections that say nothing count, and one in its handshake does.
	one, two := newTalk(t, dialFrom(t, "", g.addr["two"])), newTalk(t, dialFrom(t, "", g.addr["two"]))
	one.expect("220 ")
	two.expect("220 ")
	three := newTalk(t, dialFrom(t, "", g.addr["two"]))
	three.expect("421 4.3.2")
	three.ended()
	one.say("QUIT")
	one.expect("221 2.0.0")
	one.ended()
	for {
		c := newTalk(t, dialFrom(t, "", g.addr["two"]))
		if strings.HasPrefix(c.expect(""), "220 ") {
			break
		}
	}
	silentPair(t, g.addr["smtps"])
	g.await("the end of the silent one", func(l map[string]any) bool {
		return l["listener"] == "smtps" && l["msg"] == "session ended" && strings.Contains(fmt.Sprint(l["err"]), "EOF")
	})
	if _, code := peers.OpenSSL(t, g.addr["smtps"], "QUIT\r\n"); code != 0 {
		t.Error("no place is free when the silent one is gone")
	}
	patient.say("NOOP")
	patient.expect("250 2.0.0")
}

// silentPair connects twice where one place is, and begins no handshake: one of the two is
// turned away at once, the other when it is closed.
func silentPair(t *testing.T, addr string) {
	t.Helper()
	pair := []net.Conn{dialFrom(t, "", addr), dialFrom(t, "", addr)}
	ended := make(chan struct{}, len(pair))
	for _, nc := range pair {
		go func() {
			_, _ = io.Copy(io.Discard, nc)
			ended <- struct{}{}
		}()
	}
	began := time.Now()
	<-ended
	if d := time.Since(began); d > 20*time.Second { // the handshake's own limit is 30 s
		t.Errorf("nobody was turned away for %v", d)
	}
	for _, nc := range pair {
		nc.Close()
	}
	<-ended
}

// TestSockets: a listener on TCP and on a unix socket, and one on sockets that a service
// manager opened.
func TestSockets(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-44", "SS-50")
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org", "far.example"}})
	dir := t.TempDir()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	handed := filepath.Join(dir, "handed.sock")
	unix, err := net.Listen("unix", handed)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	spare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer spare.Close()
	yaml := edgeConfig(t, peers.NewCA(t), `
listeners:
  - {name: both, address: ["127.0.0.1:0", "127.0.0.1:0", "unix:FOLDER/own.sock"], socket_mode: "0620", accept: any, trusted_networks: [unix], limits: {greet_delay: off}}
  - {name: handed, address: "systemd:mail", limits: {greet_delay: off}}
routes:
  - {domains: ["*", example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
`, "FOLDER", dir, "BACKEND", pf.Addr)
	g := startGatewayAs(t, yaml, func(cmd *exec.Cmd) { handOver(t, cmd, "mail:mail:spare", tcp, unix, spare) })
	addresses := make(map[string][]string)
	g.awaitNth("five addresses", 5, func(l map[string]any) bool {
		if l["msg"] != "listening" {
			return false
		}
		name := l["listener"].(string)
		addresses[name] = append(addresses[name], l["addr"].(string))
		return true
	})
	g.await("the socket that nobody wants", func(l map[string]any) bool { return l["socket"] == "spare" })

	want, count := make(map[string]string), 0
	for name, list := range addresses {
		for _, addr := range list {
			subject, network, part, to := fmt.Sprintf("%s %d", name, count), "tcp", "([127.0.0.1]) by", "bob@example.org"
			if addr[0] == '/' {
				network, part = "unix", "(local socket) by"
				if name == "both" { // where unix is trusted
					to = "bob@far.example"
				}
			}
			nc, err := net.Dial(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			c, err := smtp.NewClient(t.Context(), nc, smtp.ClientOptions{LocalName: "client.example.net"})
			if err != nil {
				t.Fatal(err)
			}
			if r := send(t, c, to, []byte("Subject: "+subject+"\r\n\r\nHello\r\n")); r.Code != 250 {
				t.Errorf("%s: %s", addr, r.Line())
			}
			if network == "tcp" { // on the trusted socket it would be a sixth message
				if r := send(t, c, "bob@far.example", nil); r.Code != 550 {
					t.Errorf("%s: relaying: %s", addr, r.Line())
				}
			}
			c.Close()
			want[subject] = part
			count++
		}
	}
	traced(t, bySubject(pf.Wait(t, 5)), want)
	if len(addresses["both"]) != 3 || len(addresses["handed"]) != 2 {
		t.Errorf("listening on %v", addresses)
	}
	own := filepath.Join(dir, "own.sock")
	if info, err := os.Stat(own); err != nil || info.Mode().Perm() != 0o620 {
		t.Errorf("own.sock: %v, %v, want mode 0620", info, err)
	}
	g.stop()
	if _, err := os.Stat(own); err == nil {
		t.Error("own.sock is left behind")
	}
	// Those of the service manager are still open, for whoever comes next.
	nc, err := net.Dial("unix", handed)
	if err != nil {
		t.Fatalf("the socket of the service manager: %v", err)
	}
	nc.Close()
}

// handOver makes a command one that a service manager starts, with sockets that it opened.
// LISTEN_PID is the process's own number, which a shell knows and that exec keeps.
func handOver(t *testing.T, cmd *exec.Cmd, names string, sockets ...net.Listener) {
	t.Helper()
	for _, l := range sockets {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(sockets)), "LISTEN_FDNAMES="+names)
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

const namesConfig = `
listeners:
  - {name: mx, address: "127.0.0.1:0", xclient: {trusted: [127.0.0.1]}, reverse_dns: {timeout: 500ms}, limits: {greet_delay: off}}
  - {name: proxy, address: "127.0.0.1:0", proxy_protocol: {trusted: [127.0.0.1]}, limits: {greet_delay: off}}
  - {name: nameless, address: "127.0.0.1:0", xclient: {trusted: [127.0.0.1]}, reverse_dns: {enabled: false}, limits: {greet_delay: off}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
delivery: {resolver: {address: "RESOLVER"}}
`

// TestNames: the names of clients come from Unbound, and count if they are confirmed.
func TestNames(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-35", "SS-36", "SS-72")
	dns := peers.Unbound(t, peers.UnboundOptions{Data: []string{
		"7.2.0.192.in-addr.arpa. PTR out.example.com.", "out.example.com. A 192.0.2.7",
		"8.2.0.192.in-addr.arpa. PTR bank.example.com.", "bank.example.com. A 192.0.2.1",
		"9.0.0.127.in-addr.arpa. PTR loop.example.com.", "loop.example.com. A 127.0.0.9",
	}})
	pf := peers.Postfix(t, peers.PostfixOptions{})
	g := startEdge(t, peers.NewCA(t), namesConfig, "BACKEND", pf.Addr, "RESOLVER", dns.Addr)
	proxied := []string{"--to", "bob@example.org", "--proxy-version", "2", "--proxy-family", "AF_INET", "--proxy-source", "192.0.2.7",
		"--proxy-source-port", "1025", "--proxy-dest", "192.0.2.2", "--proxy-dest-port", "25"}
	addr := func(a string) []string { return []string{"--to", "bob@example.org", "--xclient-addr", a} }
	runSwaks(t, g, []swaksCase{
		{"confirmed", "mx", addr("192.0.2.7"), 0, ""},
		{"by PROXY", "proxy", proxied, 0, ""},
		{"not confirmed", "mx", addr("192.0.2.8"), 0, ""},
		{"no name", "mx", addr("192.0.2.9"), 0, ""},
		{"loopback", "mx", addr("127.0.0.9"), 0, ""},
		{"off", "nameless", addr("192.0.2.7"), 0, ""},
		{"told", "mx", append(addr("192.0.2.8"), "--xclient-name", "told.example.com"), 0, ""},
	})
	traced(t, bySubject(pf.Wait(t, 7)), map[string]string{
		"confirmed":     "(out.example.com [192.0.2.7]) by",
		"by PROXY":      "(out.example.com [192.0.2.7]) by",
		"not confirmed": "from client.example.net ([192.0.2.8]) by",
		"no name":       "from client.example.net ([192.0.2.9]) by",
		"loopback":      "from client.example.net ([127.0.0.9]) by",
		"off":           "from client.example.net ([192.0.2.7]) by",
		"told":          "(told.example.com [192.0.2.8]) by",
	})
	for _, want := range []map[string]any{
		{"listener": "mx", "remote": "192.0.2.7:0", "rdns": "out.example.com"},
		{"listener": "mx", "remote": "192.0.2.8:0", "rdns": ""},
		{"listener": "proxy", "remote": "192.0.2.7:1025", "rdns": "out.example.com"},
		{"listener": "nameless", "remote": "192.0.2.7:0", "rdns": ""},
	} {
		g.await(fmt.Sprint("a session like ", want), func(l map[string]any) bool { return l["msg"] == "session ended" && like(l, want) })
	}
}

// TestDeadResolver: a resolver that does not answer costs the time that a look-up may take,
// and the mail still comes.
func TestDeadResolver(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-37")
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	pf := peers.Postfix(t, peers.PostfixOptions{})
	g := startEdge(t, peers.NewCA(t), namesConfig, "BACKEND", pf.Addr, "RESOLVER", dead.LocalAddr().String())
	c := newTalk(t, dialFrom(t, "127.0.0.1", g.addr["mx"]))
	c.expect("220 ")
	c.say("EHLO proxy.example.net")
	c.expect("250")
	began := time.Now()
	c.say("XCLIENT ADDR=192.0.2.7")
	c.expect("220 ")
	if d := time.Since(began); d < 400*time.Millisecond || d > 3*time.Second {
		t.Errorf("greeted after %v, want it after 500ms", d)
	}
	if n, _, err := dead.ReadFrom(make([]byte, 512)); n == 0 || err != nil {
		t.Errorf("the resolver was not asked: %v", err)
	}
	c.say("EHLO client.example.net")
	c.expect("250")
	c.say("MAIL FROM:<a@example.net>\r\nRCPT TO:<bob@example.org>\r\nDATA")
	c.expect("250")
	c.expect("250")
	c.expect("354")
	c.say("Subject: late\r\n\r\n.")
	c.expect("250")
	traced(t, bySubject(pf.Wait(t, 1)), map[string]string{"late": "from client.example.net ([192.0.2.7]) by"})
}

// rollCall is a backend that counts how often it is asked about each recipient.
type rollCall struct {
	smtp.Accept
	mu    *sync.Mutex
	asked map[string]int
}

func (r rollCall) Rcpt(_ context.Context, to smtp.Recipient) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[to.Path.String()]++
	if strings.HasPrefix(to.Path.String(), "nobody") {
		return smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no such user")
	}
	return nil
}

const knownConfig = `
listeners:
  - {name: mx, address: "127.0.0.1:0", limits: {greet_delay: off, error_delay: off}}
routes:
  - {domains: [list.example], backend: list}
  - {domains: [asked.example], backend: asked}
  - {domains: [passed.example], backend: passed}
  - {domains: [down.example], backend: down}
  - {domains: [down-list.example], backend: down-list}
  - {domains: [down-asked.example], backend: down-asked}
backends:
  list: {addresses: ["smtp://BACKEND"], recipients: "file:LIST", recipient_separator: "+"}
  asked: {addresses: ["smtp://BACKEND"], recipients: callout}
  passed: {addresses: ["smtp://BACKEND"]}
  down: {addresses: ["smtp://127.0.0.1:1"]}
  down-list: {addresses: ["smtp://127.0.0.1:1"], recipients: "file:LIST"}
  down-asked: {addresses: ["smtp://127.0.0.1:1"], recipients: callout}
`

// TestRecipients: a list, a callout or the backend itself knows who exists; who does not is
// refused at RCPT, and for good only by those who know.
func TestRecipients(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-64")
	var mu sync.Mutex
	asked := make(map[string]int)
	backend := serveSMTP(t, func(context.Context, *smtp.Conn) (smtp.Session, error) {
		return rollCall{mu: &mu, asked: asked}, nil
	}, smtp.ServerOptions{})
	list := filepath.Join(t.TempDir(), "list.txt")
	writeList := func(text string) {
		t.Helper()
		// A file that changed a moment ago may be half of one.
		before := time.Now().Add(-time.Minute)
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(list, before, before); err != nil {
			t.Fatal(err)
		}
	}
	writeList("# people\nann@list.example\nann@down-list.example\n")
	g := startEdge(t, peers.NewCA(t), knownConfig, "BACKEND", backend, "LIST", list)
	expect := func(to, want string) {
		t.Helper()
		c := newTalk(t, dialFrom(t, "", g.addr["mx"]))
		c.expect("220 ")
		c.say("EHLO client.example.net\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<" + to + ">\r\nQUIT")
		c.expect("250")
		c.expect("250")
		if got := c.expect(""); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", to, got, want)
		}
		c.expect("221")
		c.nc.Close()
	}
	for range 3 {
		expect("ann@asked.example", "250 2.1.5")
		expect("nobody@asked.example", "550 5.1.1")
	}
	for _, tt := range []struct{ to, want string }{
		{"ann@list.example", "250 2.1.5"},
		{"Ann+books@List.Example", "250 2.1.5"},
		{"nobody@list.example", "550 5.1.1"},
		{"new@list.example", "550 5.1.1"},
		{"ann@passed.example", "250 2.1.5"},
		{"nobody@passed.example", "550 5.1.1 no such user"},
		{"ann@down.example", "451 4"},
		{"ann@down-asked.example", "451 4"},
		{"nobody@down-list.example", "550 5.1.1"},
		{"ann@elsewhere.example", "550 5.7.1"},
	} {
		expect(tt.to, tt.want)
	}
	mu.Lock()
	for to, n := range asked {
		if strings.HasSuffix(to, "@asked.example") && n != 1 {
			t.Errorf("the backend was asked %d times about %s", n, to)
		}
		if strings.HasPrefix(to, "nobody@list") {
			t.Errorf("the backend was asked about %s, whom the list does not have", to)
		}
	}
	mu.Unlock()

	// A signal has the list read at once; by itself it is looked at each half minute.
	writeList("new@list.example\nann@down-list.example\n")
	g.signal(syscall.SIGHUP)
	g.await("reloaded", func(l map[string]any) bool { return strings.HasPrefix(fmt.Sprint(l["msg"]), "reloaded") })
	expect("new@list.example", "250 2.1.5")
	expect("ann@list.example", "550 5.1.1")
	writeList("this is no address at all\n")
	g.await("a list that is refused", func(l map[string]any) bool {
		return strings.HasPrefix(fmt.Sprint(l["msg"]), "recipients cannot be read")
	})
	expect("new@list.example", "250 2.1.5")
}

// TestTransactionNumbers: each message of a connection has a number of its own.
func TestTransactionNumbers(t *testing.T) {
	t.Parallel()
	parity.Row(t, "SS-76")
	pf := peers.Postfix(t, peers.PostfixOptions{})
	g := startEdge(t, peers.NewCA(t), `
listeners:
  - {name: mx, address: "127.0.0.1:0", limits: {greet_delay: off}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
`, "BACKEND", pf.Addr)
	c := dialSMTP(t, g.addr["mx"])
	for i := range 3 {
		if r := send(t, c, "bob@example.org", fmt.Appendf(nil, "Subject: %d\r\n\r\nHello\r\n", i+1)); r.Code != 250 {
			t.Fatal(r.Line())
		}
	}
	var conn string
	arrived := bySubject(pf.Wait(t, 3))
	for i := 1; i <= 3; i++ {
		h := arrived[fmt.Sprint(i)]
		conn = sameConn(t, h, conn, i)
	}
	c.Close()
	g.await("the session", func(l map[string]any) bool {
		return l["msg"] == "session ended" && l["conn"] == conn && l["accepted"] == 3.0
	})
}

// sameConn checks the id of a message, which is that of its connection and its number.
func sameConn(t *testing.T, h message.Header, conn string, number int) string {
	t.Helper()
	_, id, _ := strings.Cut(h.Get("Received"), " id ")
	id, n, _ := strings.Cut(strings.Fields(id + " none")[0], ".")
	if n != fmt.Sprint(number) || conn != "" && id != conn {
		t.Errorf("message %d has the id %s.%s, want it on %s", number, id, n, conn)
	}
	return id
}
