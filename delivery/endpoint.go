package delivery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// endpoint.go: the addresses of backends as an operator writes them.

// Endpoint is one place where a backend takes mail. It is a value; equal ones are the
// same place.
type Endpoint struct {
	// Network is "tcp" or "unix".
	Network string
	// Address is host:port, or the absolute path of a socket.
	Address string
	// LMTP speaks LMTP (RFC 2033) in place of SMTP.
	LMTP bool
	// ImplicitTLS begins with the TLS handshake (RFC 8314, Section 3.3).
	ImplicitTLS bool
}

// The schemes of ParseEndpoint. LMTP has no default port: 24 is assigned to "any
// private mail system", and RFC 2033, Section 5 forbids port 25.
var schemes = []struct {
	name string
	port string
	e    Endpoint
}{
	{"smtp", "25", Endpoint{Network: "tcp"}},
	{"smtps", "465", Endpoint{Network: "tcp", ImplicitTLS: true}},
	{"lmtp", "", Endpoint{Network: "tcp", LMTP: true}},
	{"smtp+unix", "", Endpoint{Network: "unix"}},
	{"lmtp+unix", "", Endpoint{Network: "unix", LMTP: true}},
}

// ParseEndpoint reads smtp://host[:port], smtps://host[:port], lmtp://host:port,
// smtp+unix:///path or lmtp+unix:///path. The default ports are 25 and 465; lmtp needs
// one. An IPv6 address stands in brackets. The path is taken as it is, without
// %-escapes.
func ParseEndpoint(s string) (Endpoint, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Endpoint{}, fmt.Errorf("delivery: endpoint %q: want a scheme, as in smtp://host:25", s)
	}
	for _, known := range schemes {
		if !strings.EqualFold(scheme, known.name) {
			continue
		}
		e := known.e
		e.Address = rest
		if e.Network == "tcp" {
			e.Address = withPort(rest, known.port)
		}
		if err := e.validate(); err != nil {
			return Endpoint{}, fmt.Errorf("delivery: endpoint %q: %w", s, err)
		}
		return e, nil
	}
	return Endpoint{}, fmt.Errorf("delivery: endpoint %q: the scheme must be smtp, smtps, lmtp, smtp+unix or lmtp+unix", s)
}

// withPort adds port to a host that has none.
func withPort(host, port string) string {
	bracket := strings.LastIndexByte(host, ']')
	if port == "" || strings.IndexByte(host[bracket+1:], ':') >= 0 {
		return host
	}
	return host + ":" + port
}

// validate tells what is wrong with e.
func (e Endpoint) validate() error {
	switch e.Network {
	case "tcp":
		return checkHostPort(e.Address)
	case "unix":
		if !strings.HasPrefix(e.Address, "/") || strings.IndexByte(e.Address, 0) >= 0 {
			return errors.New("a socket needs an absolute path")
		}
		if e.ImplicitTLS {
			return errors.New("implicit TLS is not for sockets")
		}
		return nil
	default:
		return fmt.Errorf("network %q is neither tcp nor unix", e.Network)
	}
}

func checkHostPort(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("want host:port, with an IPv6 address in brackets: %w", err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
		return fmt.Errorf("port %q is not a number from 1 to 65535", port)
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case address[0] == '[' && !ip.Is6():
		return fmt.Errorf("%q is not an IPv6 address", host)
	case err == nil:
		return nil
	}
	return checkHost(host)
}

// checkHost is lenient: names within an operator's network have underscores and no
// dots. It is there to find what is not a name at all.
func checkHost(host string) error {
	if host == "" || len(host) > 253 {
		return errors.New("no host")
	}
	for i := range len(host) {
		c := host[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '_', c == '.' && i > 0 && host[i-1] != '.':
		default:
			return fmt.Errorf("%q is not a host name", host)
		}
	}
	return nil
}

// String returns e in the form that ParseEndpoint reads, with its port.
func (e Endpoint) String() string {
	for _, s := range schemes {
		if s.e.Network == e.Network && s.e.LMTP == e.LMTP && s.e.ImplicitTLS == e.ImplicitTLS {
			return s.name + "://" + e.Address
		}
	}
	return e.Network + "://" + e.Address // LMTP with implicit TLS has no scheme
}

// host is the name to verify in a certificate; empty for a socket.
func (e Endpoint) host() string {
	if e.Network == "unix" {
		return ""
	}
	host, _, _ := net.SplitHostPort(e.Address)
	return strings.TrimSuffix(host, ".")
}
