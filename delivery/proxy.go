package delivery

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/proxy"

	"github.com/penstock/penstock/mail/smtp"
)

// proxy.go connects by way of a proxy: SOCKS5 (RFC 1928) or HTTP CONNECT (RFC 9110, Section
// 9.3.6), the latter within TLS if it is asked for. What comes out is a connection like any
// other. TLS with the proxy is not TLS with the server behind it, and must not pass for it.

// ProxyOptions are how a proxy is spoken to. The zero value of each field means its default.
type ProxyOptions struct {
	// Timeout is how long it may take until the proxy has connected. Default 30 s.
	Timeout time.Duration
	// CAs verify the certificate of an https proxy. Default: those of the system.
	CAs *x509.CertPool
	// User and Password are who we are there, in place of those of the URL. An empty User
	// leaves them to it.
	User, Password string
	// Dial connects to the proxy itself. Default: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Proxy makes connections by way of a proxy. It is safe for concurrent use.
type Proxy struct {
	opts     ProxyOptions
	url      *url.URL
	address  string // of the proxy
	tunnel   func(ctx context.Context, nc net.Conn, address string) error
	overhead string // header of a CONNECT, but for its first lines
}

// ProxyError is a connection that a Proxy could not make.
type ProxyError struct {
	// Proxy is its URL, without the password.
	Proxy string
	// Answered tells that the proxy was reached and did not connect: the fault may be with the
	// address. Otherwise the proxy is at fault, and every address would fail.
	Answered bool
	Err      error
}

// Error names the proxy and the cause.
func (e *ProxyError) Error() string { return "delivery: proxy " + e.Proxy + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ProxyError) Unwrap() error { return e.Err }

// maxProxyHeader bounds what a proxy may answer to CONNECT, in octets.
const maxProxyHeader = 64 << 10

// NewProxy returns the proxy at a URL: "socks5://host:port" (socks5h is the same: a name is
// given to the proxy as it is), "http://host:port" or "https://host:port", with
// "user:password@" before the host if it wants to know who asks. The ports are 1080, 80 and
// 443 by default.
func NewProxy(rawURL string, o ProxyOptions) (*Proxy, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// The error of url.Parse has the whole URL in it, and with it the password.
		return nil, errors.New("delivery: the proxy is no URL")
	}
	if o.User != "" {
		u.User = url.UserPassword(o.User, o.Password)
	}
	p := &Proxy{opts: o, url: u}
	setDefault(&p.opts.Timeout, 30*time.Second)
	if p.opts.Dial == nil {
		p.opts.Dial = dialer
	}
	ports := map[string]string{"socks5": "1080", "socks5h": "1080", "http": "80", "https": "443"}
	port, known := ports[u.Scheme]
	switch {
	case !known:
		return nil, fmt.Errorf("delivery: proxy %s: the scheme is none of socks5, socks5h, http and https", u.Redacted())
	case u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("delivery: proxy %s: a proxy has a host and a port alone", u.Redacted())
	}
	if u.Port() != "" {
		port = u.Port()
	}
	p.address = net.JoinHostPort(u.Hostname(), port)
	if err := checkTarget(p.address); err != nil {
		return nil, fmt.Errorf("delivery: proxy %s: %w", u.Redacted(), err)
	}
	if strings.HasPrefix(u.Scheme, "socks5") {
		return p, p.useSOCKS()
	}
	p.tunnel = p.connectHTTP
	if u.User != nil {
		password, _ := u.User.Password()
		p.overhead = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)) + "\r\n"
	}
	return p, nil
}

// useSOCKS has the library do the talking, on a connection that stays ours.
func (p *Proxy) useSOCKS() error {
	var auth *proxy.Auth
	if u := p.url.User; u != nil {
		password, _ := u.Password()
		auth = &proxy.Auth{User: u.Username(), Password: password}
		if n := len(auth.User); n == 0 || n > 255 || len(auth.Password) > 255 {
			// RFC 1929, Section 2.
			return fmt.Errorf("delivery: proxy %s: user and password have up to 255 octets", p.url.Redacted())
		}
	}
	d, err := proxy.SOCKS5("tcp", p.address, auth, nil)
	if err != nil {
		return fmt.Errorf("delivery: proxy %s: %w", p.url.Redacted(), err)
	}
	socks, ok := d.(interface {
		DialWithConn(ctx context.Context, nc net.Conn, network, address string) (net.Addr, error)
	})
	if !ok {
		return errors.New("delivery: the SOCKS library cannot use a connection of ours")
	}
	p.tunnel = func(ctx context.Context, nc net.Conn, address string) error {
		_, err := socks.DialWithConn(ctx, nc, "tcp", address)
		return err
	}
	return nil
}

// String returns the URL without the password.
func (p *Proxy) String() string { return p.url.Redacted() }

// Dial connects to address, a host and a port, by way of the proxy; network must be TCP. Its
// errors are *ProxyError, but for an address that is none. The addresses of the connection are
// those of the connection to the proxy.
func (p *Proxy) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, fmt.Errorf("delivery: a proxy does not connect by %q", network)
	}
	if err := checkTarget(address); err != nil {
		return nil, fmt.Errorf("delivery: proxy: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	nc, err := p.reach(ctx)
	if err != nil {
		return nil, &ProxyError{p.url.Redacted(), false, err}
	}
	if err := p.ask(ctx, nc, address); err != nil {
		nc.Close()
		return nil, &ProxyError{p.url.Redacted(), true, err}
	}
	return nc, nil
}

// reach connects to the proxy itself.
func (p *Proxy) reach(ctx context.Context) (net.Conn, error) {
	nc, err := p.opts.Dial(ctx, "tcp", p.address)
	if err != nil || p.url.Scheme != "https" {
		return nc, err
	}
	tc := tls.Client(nc, &tls.Config{ServerName: p.url.Hostname(), RootCAs: p.opts.CAs, MinVersion: tls.VersionTLS12})
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return tunnel{tc}, nil
}

// tunnel hides that there is TLS below: that of the proxy protects nothing behind it.
type tunnel struct{ net.Conn }

// ask has the proxy connect. It ends with ctx.
func (p *Proxy) ask(ctx context.Context, nc net.Conn, address string) error {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		nc.SetDeadline(time.Unix(1, 0))
		close(fired)
	})
	err := p.tunnel(ctx, nc, address)
	if !stop() {
		<-fired
		return context.Cause(ctx)
	}
	nc.SetDeadline(time.Time{})
	return err
}

// connectHTTP says CONNECT.
func (p *Proxy) connectHTTP(_ context.Context, nc net.Conn, address string) error {
	request := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n" + p.overhead + "\r\n"
	if _, err := nc.Write([]byte(request)); err != nil {
		return err
	}
	header, err := readProxyHeader(nc)
	if err != nil {
		return err
	}
	status, err := proxyStatus(header)
	if err != nil {
		return err
	}
	if status.code/100 != 2 {
		return fmt.Errorf("it says %s", status.text)
	}
	return nil
}

// readProxyHeader reads up to the empty line, and no octet more: the server behind the proxy
// speaks first, and what it says may come in the same segment. A header is short enough to be
// read octet by octet.
func readProxyHeader(nc net.Conn) ([]byte, error) {
	header := make([]byte, 0, 512)
	var one [1]byte
	for len(header) < maxProxyHeader {
		n, err := nc.Read(one[:])
		if n == 0 && err != nil {
			return nil, fmt.Errorf("reading its answer: %w", err)
		}
		header = append(header, one[:n]...)
		if bytes.HasSuffix(header, []byte("\n\r\n")) || bytes.HasSuffix(header, []byte("\n\n")) {
			return header, nil
		}
	}
	return nil, fmt.Errorf("its answer has more than %d octets", maxProxyHeader)
}

// httpStatus is the first line of an answer.
type httpStatus struct {
	code int
	text string // code and reason, printable
}

// proxyStatus reads the status line of a header. An interim answer is none that a proxy gives
// to CONNECT.
func proxyStatus(header []byte) (httpStatus, error) {
	line, _, _ := strings.Cut(string(header), "\n")
	line = strings.TrimSuffix(line, "\r")
	version, rest, _ := strings.Cut(line, " ")
	number, _, _ := strings.Cut(rest, " ")
	code, err := strconv.ParseUint(number, 10, 16)
	if !strings.HasPrefix(version, "HTTP/1.") || len(number) != 3 || err != nil || code < 200 || code > 599 {
		return httpStatus{}, fmt.Errorf("it does not speak HTTP: %.60q", line)
	}
	shown := (&smtp.Reply{Code: int(code), Text: strings.TrimSpace(rest[len(number):])}).Line()
	return httpStatus{int(code), shown[:min(len(shown), 200)]}, nil
}

// checkTarget refuses what is no host and port: it becomes a line of a request.
func checkTarget(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %.100q: no host and port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("address %.100q: the port is no number", address)
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() == "" { // a zone may have anything in it
		return nil
	}
	for _, c := range []byte(host) {
		if c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return fmt.Errorf("address %.100q: the host is neither a name in ASCII nor an address", address)
		}
	}
	if host == "" || len(host) > 253 {
		return fmt.Errorf("address %.100q: bad length of the host", address)
	}
	return nil
}
