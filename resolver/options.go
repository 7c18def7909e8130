package resolver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"
)

// options.go: settings, their defaults and what may be wrong with them.

// Trust says whether the AD bit of a server counts.
type Trust string

// The values of Trust. The empty one is TrustAuto.
const (
	// TrustAuto lets it count from the loopback and from unix sockets.
	TrustAuto Trust = "auto"
	// TrustYes lets it count from a server that is reached over TLS, too.
	TrustYes Trust = "true"
	// TrustNo never lets it count.
	TrustNo Trust = "false"
)

// Server is a resolver to ask: one that does the recursion for us.
type Server struct {
	// Network is udp (with TCP where a reply was truncated or none came), tcp, tls (RFC
	// 7858), https (RFC 8484) or unix (a stream socket that is spoken to like TCP). Default
	// udp.
	Network string
	// Address is the address and port, or the path of the socket. Required.
	Address string
	// Path is that of the URL of an https server. Default /dns-query.
	Path string
	// ServerName is the name in the certificate of a tls or https server. Default the
	// address; with Pins it is not looked at unless it is set.
	ServerName string
	// CAs are the authorities that may have issued it. Nil means those of the system.
	CAs *x509.CertPool
	// Pins are the keys that a tls or https server may have. With Pins and without a
	// ServerName a pin is all that is asked of its certificate, whoever issued it; with
	// both, both are. Empty takes any key.
	Pins []Pin
	// Trust says whether the AD bit counts. Default TrustAuto.
	Trust Trust
}

// maxServers is how many are taken. The budget would not suffice for more.
const maxServers = 4

// ParseServer reads a server as a configuration names it: an address with an optional
// port, or udp://, tcp://, tls:// or https:// before one, or unix: and a path. Behind the
// address of an https server its path may stand. Behind a # what is asked of the
// certificate of a tls or https server: the name in it, pins as sha256:BASE64, or several
// of these with commas between. Ports default to 53, 853 for tls and 443 for https.
func ParseServer(s string) (Server, error) {
	srv := Server{Network: "udp", Address: s}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		srv.Network, srv.Address = "unix", path
		return srv, srv.validate()
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		srv.Network, srv.Address = scheme, rest
	}
	port := "53"
	if srv.secure() {
		port = map[string]string{"tls": "853", "https": "443"}[srv.Network]
		address, identity, _ := strings.Cut(srv.Address, "#")
		if srv.Address = address; srv.Network == "https" {
			srv.Address, srv.Path = cutPath(address)
		}
		if err := srv.identify(identity); err != nil {
			return srv, err
		}
	}
	if _, err := netip.ParseAddrPort(srv.Address); err == nil {
		return srv, srv.validate()
	}
	if addr, err := netip.ParseAddr(strings.Trim(srv.Address, "[]")); err == nil {
		srv.Address = net.JoinHostPort(addr.String(), port)
	}
	return srv, srv.validate()
}

// cutPath parts the path of a URL from what is before it.
func cutPath(s string) (address, path string) {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// identify reads what is asked of the certificate.
func (s *Server) identify(text string) error {
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		digest, isPin := strings.CutPrefix(part, "sha256:")
		if !isPin {
			if s.ServerName != "" || part == "" {
				return fmt.Errorf("%q is not one name and pins like sha256:BASE64", text)
			}
			s.ServerName = part
			continue
		}
		pin, err := ParsePin(digest)
		if err != nil {
			return err
		}
		s.Pins = append(s.Pins, pin)
	}
	return nil
}

// secure tells whether the server is spoken to over TLS.
func (s Server) secure() bool { return s.Network == "tls" || s.Network == "https" }

func (s Server) validate() error {
	switch s.Network {
	case "", "udp", "tcp", "tls", "https":
		// A name would have to be looked up before there is somebody to ask.
		if addr, err := netip.ParseAddrPort(s.Address); err != nil || addr.Port() == 0 {
			return fmt.Errorf("%q is not an IP address with a port", s.Address)
		}
	case "unix":
		if s.Address == "" {
			return errors.New("unix: the path is empty")
		}
	default:
		return fmt.Errorf("network %q is none of udp, tcp, tls, https, unix", s.Network)
	}
	switch s.Trust {
	case "", TrustAuto, TrustNo:
	case TrustYes:
		if !s.secure() && !s.near() {
			return errors.New("its AD bit cannot be trusted over a network without tls")
		}
	default:
		return fmt.Errorf("trust %q is none of auto, true, false", s.Trust)
	}
	if !s.secure() && (s.ServerName != "" || s.CAs != nil || len(s.Pins) > 0) {
		return errors.New("a server name, authorities and pins are for tls and https alone")
	}
	if s.Path != "" && (s.Network != "https" || s.Path[0] != '/') {
		return errors.New("a path is for https alone, and begins with a slash")
	}
	return nil
}

// near tells whether what the server says does not leave this machine.
func (s Server) near() bool {
	if s.Network == "unix" {
		return true
	}
	addr, err := netip.ParseAddrPort(s.Address)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// Authenticates tells whether the AD bit of the server counts.
func (s Server) Authenticates() bool {
	return s.Trust == TrustYes || s.Trust != TrustNo && s.near()
}

// tlsConfig returns the configuration for a server over TLS, and nil for another.
func (s Server) tlsConfig() *tls.Config {
	if !s.secure() {
		return nil
	}
	name := s.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(s.Address)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: name, RootCAs: s.CAs,
		// Without a name the pin alone counts, which is looked at then.
		InsecureSkipVerify: s.ServerName == "" && len(s.Pins) > 0,
		VerifyConnection:   pinned(s.Pins),
	}
}

// Options are the settings of a Resolver. The zero value of each field means its default.
type Options struct {
	// Servers are asked in order, four at most; one that did not answer lately is asked
	// last. The AD bit of all of them must count, or of none. Default: the server on
	// 127.0.0.1:53 if there is one that does recursion while New runs, or else those of ResolvConf, with
	// TrustNo.
	Servers []Server
	// ResolvConf is a file in the form of resolv.conf(5); its nameserver lines count.
	// Default /etc/resolv.conf.
	ResolvConf string

	// Timeout is how long one try at one server may take. Default 5 s.
	Timeout time.Duration
	// Tries is how often each server is asked that does not answer. Default 2.
	Tries int
	// Budget is how long a look-up may take in all. Default 12 s.
	Budget time.Duration
	// Inflight is how many questions may be under way at the same time; more fail at
	// once. Default 1000.
	Inflight int

	// CacheSize is how many answers are kept, those without records included. Default
	// 10,000; negative keeps none.
	CacheSize int
	// CacheBytes is how much memory they may take, about. Default 16 MiB.
	CacheBytes int

	// Plain says that nobody asks whether answers were authenticated, so that it is no news if
	// none is.
	Plain bool
	// Log gets what an operator should know: that no answer will be authenticated, and
	// servers that do not answer. Nil discards.
	Log *slog.Logger
	// Now is the clock of the cache. Nil is time.Now.
	Now func() time.Time

	local string // in place of 127.0.0.1:53, for tests
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (o Options) withDefaults() Options {
	setDefault(&o.ResolvConf, "/etc/resolv.conf")
	setDefault(&o.Timeout, 5*time.Second)
	setDefault(&o.Tries, 2)
	setDefault(&o.Budget, 12*time.Second)
	setDefault(&o.Inflight, 1000)
	setDefault(&o.CacheSize, 10_000)
	setDefault(&o.CacheBytes, 16<<20)
	setDefault(&o.local, "127.0.0.1:53")
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Validate returns every problem of the options, joined, or nil. It asks nobody.
func (o Options) Validate() error {
	errs := o.checkServers()
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"timeout", int64(o.Timeout)}, {"tries", int64(o.Tries)}, {"budget", int64(o.Budget)},
		{"inflight", int64(o.Inflight)}, {"bytes of the cache", int64(o.CacheBytes)},
	} {
		if n.value < 0 {
			errs = append(errs, fmt.Errorf("resolver: %s: must not be negative", n.name))
		}
	}
	return errors.Join(errs...)
}

func (o Options) checkServers() []error {
	var errs []error
	if len(o.Servers) > maxServers {
		errs = append(errs, fmt.Errorf("resolver: %d servers are more than %d", len(o.Servers), maxServers))
	}
	authenticate := 0
	for _, s := range o.Servers {
		if err := s.validate(); err != nil {
			errs = append(errs, fmt.Errorf("resolver: server %s: %w", s.Address, err))
		}
		if s.Authenticates() {
			authenticate++
		}
	}
	if authenticate > 0 && authenticate < len(o.Servers) {
		errs = append(errs, errors.New("resolver: the AD bit counts from some servers and not from others; whoever makes the former fail would have us believe the latter"))
	}
	return errs
}
