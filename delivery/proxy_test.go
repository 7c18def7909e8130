package delivery

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// proxyServer is a proxy of a test: it serves what comes to a listener and notes the addresses
// that it was asked for.
type proxyServer struct {
	serve func(nc net.Conn) (address string, err error) // up to where octets are passed on
	tls   *tls.Config
	to    string // where it connects, whatever it was asked for

	mu    sync.Mutex
	asked []string
	all   sync.WaitGroup
}

func (p *proxyServer) listen(t testing.TB) string {
	l := listen(t, "tcp", "127.0.0.1:0")
	if p.tls != nil {
		l = tls.NewListener(l, p.tls)
	}
	p.all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			p.all.Go(func() { p.pass(nc) })
		}
	})
	t.Cleanup(func() { l.Close(); p.all.Wait() })
	return l.Addr().String()
}

func (p *proxyServer) pass(nc net.Conn) {
	defer nc.Close()
	address, err := p.serve(nc)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, address)
	p.mu.Unlock()
	far, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer far.Close()
	var both sync.WaitGroup
	both.Go(func() { io.Copy(far, nc); far.Close() })
	both.Go(func() { io.Copy(nc, far); nc.Close() })
	both.Wait()
}

// httpConnect serves CONNECT, for those who say auth.
func httpConnect(auth string) func(nc net.Conn) (string, error) {
	return func(nc net.Conn) (string, error) {
		header, err := readProxyHeader(nc)
		if err != nil {
			return "", err
		}
		lines := strings.Split(string(header), "\r\n")
		address, ok := strings.CutPrefix(lines[0], "CONNECT ")
		address, ok2 := strings.CutSuffix(address, " HTTP/1.1")
		if !ok || !ok2 || lines[1] != "Host: "+address {
			io.WriteString(nc, "HTTP/1.1 400 what\r\n\r\n")
			return "", errors.New("bad request")
		}
		if auth != "" && lines[2] != "Proxy-Authorization: Basic "+auth {
			io.WriteString(nc, "HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
			return "", errors.New("not allowed")
		}
		_, err = io.WriteString(nc, "HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n")
		return address, err
	}
}

// socks5 serves SOCKS5, for those who say auth, "user:password". code is what it answers.
func socks5(auth string, code byte) func(nc net.Conn) (string, error) {
	return func(nc net.Conn) (string, error) {
		r := bufio.NewReaderSize(nc, 16)
		method := byte(0)
		if auth != "" {
			method = 2
		}
		head := make([]byte, 2)
		io.ReadFull(r, head)
		io.CopyN(io.Discard, r, int64(head[1]))
		nc.Write([]byte{5, method})
		if auth != "" {
			var said []string
			r.ReadByte()
			for range 2 {
				n, _ := r.ReadByte()
				text := make([]byte, n)
				io.ReadFull(r, text)
				said = append(said, string(text))
			}
			if strings.Join(said, ":") != auth {
				nc.Write([]byte{1, 1})
				return "", errors.New("not allowed")
			}
			nc.Write([]byte{1, 0})
		}
		request := make([]byte, 4)
		if _, err := io.ReadFull(r, request); err != nil {
			return "", err
		}
		var host string
		switch request[3] {
		case 1, 4:
			b := make([]byte, 4*request[3])
			io.ReadFull(r, b)
			addr, _ := netip.AddrFromSlice(b)
			host = addr.String()
		case 3:
			n, _ := r.ReadByte()
			b := make([]byte, n)
			io.ReadFull(r, b)
			host = string(b)
		}
		port := make([]byte, 2)
		if _, err := io.ReadFull(r, port); err != nil {
			return "", err
		}
		nc.Write([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0})
		if code != 0 {
			return "", errors.New("refused")
		}
		return net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(port)))), nil
	}
}

// Mail goes through every kind of proxy, with STARTTLS and without, and the server's greeting
// that comes close behind the proxy's answer is not lost.
func TestProxy(t *testing.T) {
	parity.Row(t, "SC-51")
	ca := peers.NewCA(t)
	f := &fake{tls: &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "mx.example").TLS}}}
	backend := f.listen(t).Address
	basic := "dTpwOnc=" // u:p:w
	for _, tt := range []struct {
		name, url, target string
		proxy             *proxyServer
		want              string // what it was asked for
		err               string
		answered          bool
	}{
		{"http", "http://%s", "192.0.2.1:25", &proxyServer{serve: httpConnect("")}, "192.0.2.1:25", "", true},
		{"http with a login", "http://u:p%%3Aw@%s/", "[2001:db8::1]:25", &proxyServer{serve: httpConnect(basic)}, "[2001:db8::1]:25", "", true},
		{"http, wrong login", "http://u:wrong@%s", "192.0.2.1:25", &proxyServer{serve: httpConnect(basic)}, "", "407 Who are you", true},
		{"https", "https://%s", "mx.example:25", &proxyServer{serve: httpConnect(""), tls: &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "127.0.0.1").TLS}}},
			"mx.example:25", "", true},
		{"https, other certificate", "https://%s", "mx.example:25", &proxyServer{serve: httpConnect(""), tls: &tls.Config{Certificates: []tls.Certificate{peers.NewCA(t).Issue(t, "127.0.0.1").TLS}}},
			"", "TLS handshake", false},
		{"socks", "socks5://%s", "192.0.2.1:25", &proxyServer{serve: socks5("", 0)}, "192.0.2.1:25", "", true},
		{"socks, a name", "socks5h://%s", "mx.example:2525", &proxyServer{serve: socks5("", 0)}, "mx.example:2525", "", true},
		{"socks with a login", "socks5://u:w@%s", "[2001:db8::1]:25", &proxyServer{serve: socks5("u:w", 0)}, "[2001:db8::1]:25", "", true},
		{"socks, wrong login", "socks5://u:x@%s", "192.0.2.1:25", &proxyServer{serve: socks5("u:w", 0)}, "", "authentication failed", true},
		{"socks refuses", "socks5://%s", "192.0.2.1:25", &proxyServer{serve: socks5("", 5)}, "", "connection refused", true},
	} {
		for _, mode := range []smtp.TLSMode{smtp.TLSOff, smtp.TLSRequired} {
			t.Run(fmt.Sprint(tt.name, mode), func(t *testing.T) {
				p := &proxyServer{serve: tt.proxy.serve, tls: tt.proxy.tls, to: backend}
				proxy, err := NewProxy(fmt.Sprintf(tt.url, p.listen(t)), ProxyOptions{CAs: ca.Pool()})
				if err != nil {
					t.Fatal(err)
				}
				nc, err := proxy.Dial(t.Context(), "tcp", tt.target)
				if tt.err != "" {
					e, typed := errors.AsType[*ProxyError](err)
					if !typed || e.Answered != tt.answered || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "wrong@") {
						t.Errorf("got %v, want %q", err, tt.err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				o := smtp.DialOptions{Conn: nc, TLS: mode, ClientOptions: smtp.ClientOptions{LocalName: "client.test"}}
				if mode == smtp.TLSRequired {
					o.TLSConfig = &tls.Config{RootCAs: ca.Pool()}
				}
				c, err := smtp.Dial(t.Context(), "mx.example", o)
				if err != nil {
					t.Fatal(err)
				}
				// TLS with the proxy is none with the server.
				if _, secure := c.TLS(); secure != (mode == smtp.TLSRequired) {
					t.Errorf("TLS: got %v", secure)
				}
				if err := c.Quit(t.Context()); err != nil {
					t.Error(err)
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				if len(p.asked) != 1 || p.asked[0] != tt.want {
					t.Errorf("asked for %q, want %q", p.asked, tt.want)
				}
			})
		}
	}
}

// A proxy that says too much, nothing, or something else is given up in time, and nothing of an
// address can become a line of its own.
func TestProxyBad(t *testing.T) {
	parity.Row(t, "SC-51")
	for _, tt := range []struct {
		name, says string
		hang       bool
		want       string
		took       time.Duration
	}{
		{"nothing", "", true, "deadline", 30 * time.Second},
		{"half a header", "HTTP/1.1 200 OK\r\nA: b\r\n", true, "deadline", 30 * time.Second},
		{"closes", "HTTP/1.1 200 OK\r\nA: b\r\n", false, "EOF", 0},
		{"endless header", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 20000), true, "65536 octets", 0},
		{"refuses", "HTTP/1.1 502 Bad\x1b[1m gateway\r\n\r\n", true, "it says 502 Bad [1m gateway", 0},
		{"asks for a login", "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", true, "407", 0},
		{"another protocol", "220 mx.test ESMTP\r\n\r\n", true, "does not speak HTTP", 0},
		{"no code", "HTTP/1.1 OK\r\n\r\n", true, "does not speak HTTP", 0},
		{"an interim answer", "HTTP/1.1 101 Switching\r\n\r\n", true, "does not speak HTTP", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer theirs.Close()
					readProxyHeader(theirs)
					io.WriteString(theirs, tt.says)
					if tt.hang {
						io.Copy(io.Discard, theirs)
					}
				}()
				dial := func(context.Context, string, string) (net.Conn, error) { return ours, nil }
				p, err := NewProxy("http://proxy.test", ProxyOptions{Dial: dial})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				_, err = p.Dial(t.Context(), "tcp", "192.0.2.1:25")
				if err == nil || !strings.Contains(err.Error(), tt.want) || time.Since(began) != tt.took {
					t.Errorf("got %v after %v, want %q after %v", err, time.Since(began), tt.want, tt.took)
				}
				<-done
			})
		})
	}
	nobody := ProxyOptions{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("dialled") }}
	p, err := NewProxy("https://u:secret@proxy.test", nobody)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"", "x", "a\r\nb:25", "[fe80::1%a\r\nb]:25", "[fe80::1%eth0]:25", "a:0", "a:65536", "a:+25", "a:25\r\nX: y", "a b:25", ":25", "ü.test:25"} {
		if _, err := p.Dial(t.Context(), "tcp", address); err == nil || strings.Contains(err.Error(), "dialled") {
			t.Errorf("address %q: got %v", address, err)
		}
	}
	_, err = p.Dial(t.Context(), "tcp", "mx.test:25")
	if e, ok := errors.AsType[*ProxyError](err); !ok || e.Answered || strings.Contains(err.Error(), "secret") {
		t.Errorf("proxy that is not there: got %v", err)
	}
	for _, url := range []string{"", "proxy.test:80", "ftp://proxy.test", "http://", "http://proxy.test/path", "http://proxy.test?x", "http://pr oxy", "http://proxy.test:0",
		"socks5://:p@proxy.test", "socks5://u:" + strings.Repeat("p", 256) + "@proxy.test", "http://u:secret@proxy.test:x"} {
		if _, err := NewProxy(url, ProxyOptions{}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("proxy %q: got %v, want an error without the password", url, err)
		}
	}
}

// FuzzProxyAnswer: no answer of a proxy passes for a connection unless it begins with a status
// line of 2xx, and none is shown with control characters.
func FuzzProxyAnswer(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 407 x\r\n\r\n", "HTTP/1.1 200\n\n", "220 x\r\n", "HTTP/1.1 2000 x", "HTTP/1.1 \xff\x1b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, header []byte) {
		s, err := proxyStatus(header)
		if err != nil {
			return
		}
		if s.code < 200 || s.code > 599 || !strings.HasPrefix(string(header), "HTTP/1.") || strings.ContainsAny(s.text, "\r\n\x1b\x00") || len(s.text) > 200 {
			t.Errorf("%q: got %+v", header, s)
		}
	})
}
