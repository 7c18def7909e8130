package resolver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// exchange_test.go: streams, in clear text and over TLS, over TCP and unix sockets.

// streams is a listener in front of a fake that counts connections, and can close them.
type streams struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (s *streams) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err == nil {
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
	}
	return c, err
}

func (s *streams) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *streams) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
}

// serve lets the fake answer on a listener.
func serve(t *testing.T, f *fake, l net.Listener) *streams {
	t.Helper()
	s := &streams{Listener: l}
	srv := &dns.Server{Listener: s, Handler: f}
	started, done := make(chan struct{}), make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() {
		defer close(done)
		srv.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() {
		srv.Shutdown()
		<-done
	})
	return s
}

// TestStreams: a stream serves many queries, several serve those at the same time, and one
// that the server closed meanwhile costs nothing.
func TestStreams(t *testing.T) {
	cert, pool := certificate(t, "dns.example")
	for _, network := range []string{"tcp", "tls", "unix"} {
		t.Run(network, func(t *testing.T) {
			f := newFake(t, ". NS a.root-servers.example.")
			f.ad.Store(true)
			o := Options{Servers: []Server{{Network: network}}}
			l := listenStream(t, network)
			o.Servers[0].Address = l.Addr().String()
			if network == "tls" {
				l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}})
				o.Servers[0].ServerName, o.Servers[0].CAs = "dns.example", pool
				o.Servers[0].Trust = TrustYes
			}
			s := serve(t, f, l)
			r := start(t, o)
			ask := func(i int) {
				var e *Error
				if _, err := r.LookupMX(t.Context(), fmt.Sprintf("x%d.example", i)); !errors.As(err, &e) || e.Kind != ErrNoName || !e.Authentic {
					t.Errorf("got %v, want no such name, authentic", err)
				}
			}
			for i := range 10 {
				ask(i)
			}
			if n := s.count(); n != 1 {
				t.Errorf("%d connections for 10 queries in a row, want 1", n)
			}
			s.drop()
			ask(10)
			if n := s.count(); n != 2 {
				t.Errorf("%d connections after one was closed, want 2", n)
			}
			var all sync.WaitGroup
			for i := range 20 {
				all.Go(func() { ask(20 + i) })
			}
			all.Wait()
			h := r.hosts[0]
			h.mu.Lock()
			idle := len(h.idle)
			h.mu.Unlock()
			if idle > maxIdle {
				t.Errorf("%d streams are kept, want %d at most", idle, maxIdle)
			}
		})
	}
}

func listenStream(t *testing.T, network string) net.Listener {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "dns")
	} else {
		network = "tcp"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestImpostor: a TLS server with another's certificate is not asked.
func TestImpostor(t *testing.T) {
	cert, _ := certificate(t, "dns.example")
	_, other := certificate(t, "dns.example")
	f := newFake(t, "x.example. MX 1 x.example.")
	l := listenStream(t, "tls")
	s := Server{Network: "tls", Address: l.Addr().String(), ServerName: "dns.example", CAs: other}
	serve(t, f, tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}))
	r := start(t, Options{Servers: []Server{s}, Tries: 1})
	if _, err := r.LookupMX(t.Context(), "x.example"); !errors.Is(err, ErrTemporary) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v, want a failure that speaks of the certificate", err)
	}
	if q := f.queries(); len(q) > 0 {
		t.Errorf("it was asked %v", q)
	}
}

// certificate makes a certificate for a name, and a pool that trusts it.
func certificate(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestExpire: an idle stream is closed by its timer, and Close does not wait for that.
func TestExpire(t *testing.T) {
	h := newHost(Server{Network: "tcp", Address: "127.0.0.1:53"})
	ours, theirs := net.Pipe()
	defer theirs.Close()
	s := &stream{Conn: ours}
	if !h.keep(s) {
		t.Fatal("the stream was not kept")
	}
	s.expiry.Reset(0)
	theirs.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := theirs.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the stream", err)
	}
	if got := h.takeIdle(); got != nil {
		t.Error("an expired stream was given out")
	}
	h.close()
	if h.keep(s) {
		t.Error("a stream was kept after close")
	}
}

// TestDownAndUp: the log tells when a server stops answering and when it is back, once
// each.
func TestDownAndUp(t *testing.T) {
	f := newFake(t, "x.example. MX 1 x.example.")
	silent := func(*dns.Msg, asked, *dns.Msg) *dns.Msg { return nil }
	var log strings.Builder
	r := start(t, Options{Timeout: 200 * time.Millisecond, Tries: 1, Log: slog.New(slog.NewTextHandler(&log, nil))}, f)
	for i, react := range []reaction{nil, silent, silent, nil, nil} {
		f.set(react)
		r.LookupMX(t.Context(), fmt.Sprintf("x%d.example", i))
	}
	r.Close() // so that the log is ours
	if down, up := strings.Count(log.String(), "does not answer"), strings.Count(log.String(), "answers again"); down != 1 || up != 1 {
		t.Errorf("got\n%s\nwant one line for each turn", log.String())
	}
}
