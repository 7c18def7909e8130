package peers

// haproxy.go starts a load balancer in front of a server of ours. What it says about the
// client, with the PROXY protocol, is then not said by a test of our own making.

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// HAProxyOptions says what a HAProxy does with each connection. The zero value passes the
// bytes on and says nothing about the client.
type HAProxyOptions struct {
	// Backend is the host:port that connections go to. Required.
	Backend string

	// SendProxy is the version of the PROXY protocol header in front of each
	// connection: "v1", "v2", or empty for none.
	SendProxy string

	// TLVs are added to a header of version 2, in HAProxy's words: ssl, cert-cn,
	// authority, unique-id, crc32c, ssl-cipher, cert-sig, cert-key. The TLS ones have
	// something to tell only with a Certificate.
	TLVs []string

	// Checks makes HAProxy look now and then whether the backend accepts connections.
	// These connections carry the header too, of version 2 with the command LOCAL.
	Checks bool

	// Certificate makes HAProxy end TLS, from the first byte on. Nil: it does not look
	// into the connection.
	Certificate *Certificate

	// ClientCA makes HAProxy ask for a client certificate and check it. Clients without
	// one are let in.
	ClientCA *CA
}

// HAProxyServer is a running HAProxy.
type HAProxyServer struct {
	// Addr is where it listens: 127.0.0.1 and a port.
	Addr string

	// Startup is the time from the start of the process until it listened.
	Startup time.Duration

	opt    HAProxyOptions
	dir    string
	daemon *daemon
}

// HAProxy starts a HAProxy for the time of the test, in one process and as the account
// that the test runs under. Starting makes no connection to the backend. The methods may
// be used from several goroutines.
func HAProxy(t testing.TB, opt HAProxyOptions) *HAProxyServer {
	t.Helper()
	path := program(t, "haproxy", "haproxy", "/usr/sbin/haproxy")
	if opt.Backend == "" || !slices.Contains([]string{"", "v1", "v2"}, opt.SendProxy) {
		t.Fatalf("peers: HAProxyOptions need a Backend, and SendProxy v1, v2 or nothing: %+v", opt)
	}
	if opt.SendProxy != "v2" && len(opt.TLVs) > 0 || opt.Certificate == nil && opt.ClientCA != nil {
		t.Fatalf("peers: HAProxyOptions.TLVs need SendProxy v2, ClientCA a Certificate: %+v", opt)
	}
	s := &HAProxyServer{opt: opt, dir: openDir(t, "haproxy")}
	s.writeCertificate(t)
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	conf := filepath.Join(s.dir, "haproxy.cfg")
	configure := func() probe {
		s.Addr = highPort(t)
		writeFile(t, conf, s.conf())
		return s.answers
	}
	s.daemon, s.Startup = launch(t, "haproxy", s.dir, configure, path, "-db", "-f", conf)
	t.Logf("haproxy listens on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
	return s
}

// answers is the probe. A connection to Addr would be passed on to the backend, where a
// test may count; so HAProxy is asked on its own socket, which answers once all ports are
// open. The socket is in our directory: no stranger answers there.
func (s *HAProxyServer) answers(deadline time.Time) error {
	conn, err := net.DialTimeout("unix", s.socket(), time.Until(deadline))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "show info\n"); err != nil {
		return err
	}
	const want = "Name: HAProxy"
	answer := make([]byte, len(want))
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != want {
		return fmt.Errorf("haproxy says %q, want %q: %w", answer, want, err)
	}
	return nil
}

func (s *HAProxyServer) socket() string { return filepath.Join(s.dir, "stats") }

// writeCertificate writes certificate and key into one file, as HAProxy wants them.
func (s *HAProxyServer) writeCertificate(t testing.TB) {
	t.Helper()
	if s.opt.Certificate == nil {
		return
	}
	pem := append(readLimited(s.opt.Certificate.CertFile, logLimit), readLimited(s.opt.Certificate.KeyFile, logLimit)...)
	if err := os.WriteFile(s.certificate(), pem, 0o600); err != nil {
		t.Fatalf("peers: %v", err)
	}
}

func (s *HAProxyServer) certificate() string { return filepath.Join(s.dir, "cert.pem") }

// haproxyConf takes the socket, the address, the options of the frontend, the backend's
// address and its options. HAProxy would share a port with another process of the same
// account, hence noreuseport.
const haproxyConf = `
global
  noreuseport
  stats socket %s
  log stdout format raw local0
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 10s
  timeout client 1m
  timeout server 1m
frontend front
  bind %s %s
  unique-id-format %%ci:%%cp
  default_backend back
backend back
  server one %s %s
`

func (s *HAProxyServer) conf() string {
	var bind, server []string
	if s.opt.Certificate != nil {
		bind = append(bind, "ssl", "crt", s.certificate())
	}
	if s.opt.ClientCA != nil {
		bind = append(bind, "ca-file", s.opt.ClientCA.File, "verify", "optional")
	}
	switch s.opt.SendProxy {
	case "v1":
		server = append(server, "send-proxy")
	case "v2":
		server = append(server, "send-proxy-v2")
	}
	if len(s.opt.TLVs) > 0 {
		server = append(server, "proxy-v2-options", strings.Join(s.opt.TLVs, ","))
	}
	if s.opt.Checks {
		server = append(server, "check", "inter", "100ms")
	}
	return fmt.Sprintf(haproxyConf, s.socket(), s.Addr, strings.Join(bind, " "), s.opt.Backend, strings.Join(server, " "))
}

// Log returns what HAProxy has logged so far: a line for each connection, at its end.
func (s *HAProxyServer) Log() string {
	return serverLog(s.dir)
}

// WaitLog waits until the log has the text, and returns the log. It ends the test
// when the text does not come.
func (s *HAProxyServer) WaitLog(t testing.TB, text string) string {
	t.Helper()
	return waitLog(t, s.Log, text)
}

// end stops the server and shows its log if the test has failed.
func (s *HAProxyServer) end(t testing.TB) {
	t.Helper()
	if s.daemon != nil {
		s.daemon.stop()
	}
	if t.Failed() {
		t.Logf("end of haproxy's log:\n%s", tail(s.Log()))
	}
}
