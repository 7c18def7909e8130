package delivery

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/mail/smtp"
)

// connection.go: what Dial returns, and why a connection was not to be had.

// Connection is a connection to a host that takes the mail of a target. Nothing was read from
// it or written to it. Whoever has it closes Conn.
type Connection struct {
	Conn net.Conn
	// Host is what was found of the host: its name and preference, its TLSA records, what its
	// MTA-STS policy says, and the TLS that it must show before it gets mail.
	Host *PlannedHost
	// Plan is what was found of the target.
	Plan *Plan
	// Addr is the address and port of the host, and Local ours. Local is zero for a
	// connection that is not of TCP.
	Addr, Local netip.AddrPort
	// Helo is the name that goes with our address, that of the Source. It may be empty.
	Helo string
	// Tried are the hosts and addresses that were of no use before.
	Tried []Tried
}

func newConnection(nc net.Conn, a *Attempt, tried []Tried) *Connection {
	c := &Connection{Conn: nc, Host: a.Host, Plan: a.Plan, Addr: a.Addr, Helo: a.Helo, Tried: tried}
	if local, ok := nc.LocalAddr().(*net.TCPAddr); ok {
		ap := local.AddrPort()
		c.Local = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return c
}

// Hostname returns the name of the host, or its address if it was given as one.
func (c *Connection) Hostname() string {
	if c.Host.Name == "" {
		return c.Addr.Addr().String()
	}
	return c.Host.Name
}

// MX tells whether the host is one of an MX record, or was given, rather than the domain
// itself or a literal.
func (c *Connection) MX() bool { return !c.Plan.Route.Implicit && c.Host.Name != "" }

// DANE tells whether the host has TLSA records that must be obeyed.
func (c *Connection) DANE() bool { return c.Host.DANE.Applies() }

// TLSA returns these records, those that are of no use to us included. Nil if there are none.
func (c *Connection) TLSA() []dane.Record { return c.Host.DANE.Records }

// RequireTLS tells whether mail must not go to the host in clear text.
func (c *Connection) RequireTLS() bool { return c.Host.Demand.Encrypted() }

// VerifyDANE tells whether the certificates of a handshake, the host's own first, are what its
// TLSA records say. Nil also if it has none that are usable. The error is an *mx.Error,
// temporary, with a *dane.VerifyError in it. It is for those who do the handshake themselves;
// PlannedHost.TLSConfig looks at all that is asked of the host.
func (c *Connection) VerifyDANE(chain []*x509.Certificate) error {
	if len(c.Host.DANE.Usable) == 0 {
		return nil
	}
	_, err := dane.Verify(chain, c.Host.DANE.Usable, dane.VerifyOptions{Names: c.Host.Names})
	if err == nil {
		return nil
	}
	e := policyError(mx.DANE, 451, smtp.Enhanced{4, 7, 5}, c.Host.Name, "the certificate of the host is not what its TLSA records say (DANE)", err)
	e.Target, e.Addr = c.Plan.Target, c.Addr.Addr()
	return e
}

// connectError is the error about an address that could not be connected to.
func connectError(t mx.Target, h *PlannedHost, a *Attempt, err error) *mx.Error {
	e := &mx.Error{Category: mx.Network, Target: t, Host: h.Name, Addr: a.Addr.Addr(), Err: err}
	enh := smtp.Enhanced{4, 4, 1}
	switch {
	case mx.Refused(err):
		e.Category, enh = mx.Policy, smtp.Enhanced{4, 4, 4}
	case a.Local.IsValid() && errors.Is(err, syscall.EADDRNOTAVAIL):
		enh = smtp.Enhanced{4, 3, 5}
		e.Err = fmt.Errorf("from %s: %w", a.Local, err)
	}
	who := h.Name
	if who == "" {
		who = "the host"
	}
	e.Reply = smtp.Refuse(451, enh, who+": "+networkWords(err))
	return e
}

// networkWords says in words for a sender why there is no connection.
func networkWords(err error) string {
	for _, w := range []struct {
		err  error
		text string
	}{
		{syscall.ECONNREFUSED, "connection refused"},
		{syscall.ECONNRESET, "connection reset"},
		{syscall.ECONNABORTED, "connection aborted"},
		{syscall.EPIPE, "connection broken"},
		{syscall.EHOSTUNREACH, "no route to the host"},
		{syscall.EHOSTDOWN, "the host is down"},
		{syscall.ENETUNREACH, "no route to its network"},
		{syscall.ENETDOWN, "our network is down"},
		{syscall.EADDRNOTAVAIL, "we have no address to connect from"},
		{syscall.EAFNOSUPPORT, "no support for addresses of this kind"},
		{syscall.EMFILE, "too many connections on our side"},
		{syscall.ENFILE, "too many connections on our side"},
		{syscall.EACCES, "not allowed to connect"},
		{syscall.EPERM, "not allowed to connect"},
		{syscall.ETIMEDOUT, "no answer in time"},
		{os.ErrDeadlineExceeded, "no answer in time"},
		{context.DeadlineExceeded, "no answer in time"},
		{context.Canceled, "given up"},
	} {
		if errors.Is(err, w.err) {
			return w.text
		}
	}
	switch {
	case mx.Refused(err):
		return "mail must not go to its address"
	case isTimeout(err):
		return "no answer in time"
	}
	return "connection failed"
}
