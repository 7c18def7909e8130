package delivery

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// endpoint.go: the addresses of backends, and what is wrong with them.

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

// String returns e as a URL, for errors and logs: smtp, smtps, lmtp or lmtps in the scheme,
// with +unix behind it for a socket.
func (e Endpoint) String() string {
	scheme := "smtp"
	if e.LMTP {
		scheme = "lmtp"
	}
	if e.ImplicitTLS {
		scheme += "s"
	}
	switch e.Network {
	case "tcp":
	case "unix":
		scheme += "+unix"
	default:
		scheme = e.Network // validate refuses it, and names it by this
	}
	return scheme + "://" + e.Address
}

// local tells whether e is on this machine, where nobody can listen in between.
func (e Endpoint) local() bool {
	if e.Network == "unix" {
		return true
	}
	ip, err := netip.ParseAddr(e.host())
	return err == nil && ip.Unmap().IsLoopback()
}

// host is the name to verify in a certificate; empty for a socket.
func (e Endpoint) host() string {
	if e.Network == "unix" {
		return ""
	}
	host, _, _ := net.SplitHostPort(e.Address)
	return strings.TrimSuffix(host, ".")
}
