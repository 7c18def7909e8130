package lab

// host.go is a mail host: mail/smtp's Server on an address of its own, which records what it
// got, and which can be told to do badly.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/mail/smtp"
)

// HostOptions says how a mail host behaves. The zero value takes everything in clear text.
type HostOptions struct {
	// Certificate turns on STARTTLS; see Cert.Chain.
	Certificate *tls.Certificate
	// TLS, if not nil, changes the settings of TLS.
	TLS func(*tls.Config)
	// StartTLS is the answer to STARTTLS, which is offered all the same: "454 4.7.0 no".
	// With a good certificate and without this, the handshake begins.
	StartTLS string
	// Injected is clear text that follows the 220 of STARTTLS in the same packet.
	Injected string
	// Greeting, Helo, Mail, Rcpt and Message answer at their stage; nil accepts. Whatever the
	// code, the greeting's is followed by the end of the connection.
	Greeting, Helo, Mail, Rcpt, Message *smtp.Reply
	// Hang is the command, in clear text, from which on the host says nothing any more:
	// "EHLO", "STARTTLS", "MAIL", or "" for none. "GREETING" says nothing at all.
	Hang string
	// IPv6 gives it an address of IPv6 too, and NoIPv4 no other. Both need World.IPv6. With
	// Closed4 connections to the one of IPv4 are refused.
	IPv6, NoIPv4, Closed4 bool
	// Closed lets nobody listen: connections are refused.
	Closed bool
	// Without are extensions that it does not offer, and Offer those that it offers beyond
	// the usual ones.
	Without []string
	Offer   smtp.Extensions
	// NoRecord leaves the address out of the DNS. The test may add another one.
	NoRecord bool
	// LMTP makes it speak LMTP.
	LMTP bool
}

// Message is what a host took.
type Message struct {
	Helo    string
	From    smtp.Sender
	To      []smtp.Recipient
	Content []byte               // with CRLF
	TLS     *tls.ConnectionState // nil in clear text
	Peer    netip.Addr           // where it came from
}

// Host is a mail host of the world.
type Host struct {
	Name string
	// Addr and Addr6 are its addresses. Those that it has not are zero.
	Addr, Addr6 netip.Addr

	w   *World
	opt HostOptions

	mu       sync.Mutex
	changed  chan struct{} // closed when a message has come; guarded by mu
	messages []Message     // guarded by mu
	talks    int           // connections; guarded by mu
	names    []string      // of SNI, one for each handshake; guarded by mu
}

// Host adds a mail host. Its name gets address records in the zone that it is in.
func (w *World) Host(name string, opt HostOptions) *Host {
	w.t.Helper()
	h := &Host{Name: name, w: w, opt: opt, changed: make(chan struct{})}
	if !opt.NoIPv4 {
		h.Addr = w.address()
		h.publish("A", h.Addr)
	}
	if opt.IPv6 && w.IPv6() {
		h.Addr6 = w.address6()
		h.publish("AAAA", h.Addr6)
	}
	w.hosts = append(w.hosts, h)
	return h
}

// publish puts an address into the zone of the name.
func (h *Host) publish(typ string, addr netip.Addr) {
	h.w.t.Helper()
	if !h.opt.NoRecord {
		name := dns.Fqdn(h.Name)
		h.w.zoneOf(name, false).Add(fmt.Sprintf("%s %s %s", name, typ, addr))
	}
}

// Hosts returns all mail hosts of the world.
func (w *World) Hosts() []*Host { return slices.Clone(w.hosts) }

// Messages returns what it took so far.
func (h *Host) Messages() []Message {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.messages)
}

// Connections tells how many connections were made to it.
func (h *Host) Connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.talks
}

// ServerNames returns the names that clients asked for in TLS, one for each handshake; empty
// for one that named none.
func (h *Host) ServerNames() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.names)
}

// waitLimit is how long a message may take to come.
const waitLimit = 20 * time.Second

// Wait waits until it has n messages or more and returns them. It ends the test when they
// do not come.
func (h *Host) Wait(t testing.TB, n int) []Message {
	t.Helper()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for {
		h.mu.Lock()
		messages, changed := slices.Clone(h.messages), h.changed
		h.mu.Unlock()
		if len(messages) >= n {
			return messages
		}
		select {
		case <-changed:
		case <-limit.C:
			t.Fatalf("lab: %s has %d messages after %v, want %d", h.Name, len(messages), waitLimit, n)
		}
	}
}

// start listens and serves until the test ends.
func (h *Host) start() {
	t := h.w.t
	t.Helper()
	if h.opt.Closed {
		return
	}
	s, err := smtp.NewServer(smtp.HandlerFunc(h.connect), smtp.ServerOptions{
		Hostname:   h.Name,
		LMTP:       h.opt.LMTP,
		TLS:        h.tls(),
		Without:    h.opt.Without,
		Offer:      h.opt.Offer,
		Prepare:    h.prepare,
		ErrorDelay: -1,
	})
	if err != nil {
		t.Fatalf("lab: %s: %v", h.Name, err)
	}
	var serving sync.WaitGroup
	for _, addr := range []netip.Addr{h.Addr, h.Addr6} {
		if !addr.IsValid() || addr.Is4() && h.opt.Closed4 {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(addr.String(), h.w.Port("25")))
		if err != nil {
			t.Fatalf("lab: %s: %v", h.Name, err)
		}
		serving.Go(func() { _ = s.Serve(l) }) // ends with Shutdown
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		_ = s.Shutdown(ctx) // a client that a test left behind is cut off
		serving.Wait()
	})
}

func (h *Host) tls() *tls.Config {
	if h.opt.Certificate == nil {
		return nil
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{*h.opt.Certificate},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.names = append(h.names, hello.ServerName)
			return nil, nil
		},
	}
	if h.opt.TLS != nil {
		h.opt.TLS(c)
	}
	return c
}

// prepare counts connections, and puts what spoils them in their way.
func (h *Host) prepare(_ context.Context, nc net.Conn) (net.Conn, error) {
	h.mu.Lock()
	h.talks++
	h.mu.Unlock()
	switch {
	case h.opt.Hang == "GREETING":
		_, err := io.Copy(io.Discard, nc)
		return nil, errors.Join(errors.New("lab: the client left"), err)
	case h.opt.Hang != "" || h.opt.StartTLS != "" || h.opt.Injected != "":
		return &spoiled{Conn: nc, opt: &h.opt}, nil
	}
	return nc, nil
}

// spoiled is a connection that answers some commands itself. It sees them as they are read;
// clients send STARTTLS, and what comes first, alone.
type spoiled struct {
	net.Conn
	opt    *HostOptions
	inject bool
}

func (c *spoiled) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		switch verb := verbOf(p[:n]); {
		case err != nil || verb == "":
			return n, err
		case verb == c.opt.Hang:
			_, err := io.Copy(io.Discard, c.Conn)
			return 0, errors.Join(io.EOF, err)
		case verb == "STARTTLS" && c.opt.StartTLS != "":
			if _, err := io.WriteString(c.Conn, c.opt.StartTLS+"\r\n"); err != nil {
				return 0, err
			}
		default:
			c.inject = verb == "STARTTLS" && c.opt.Injected != ""
			return n, nil
		}
	}
}

func (c *spoiled) Write(p []byte) (int, error) {
	if !c.inject {
		return c.Conn.Write(p)
	}
	c.inject = false
	_, err := c.Conn.Write(append(slices.Clone(p), c.opt.Injected...))
	return len(p), err
}

// verbOf returns the command of a line.
func verbOf(line []byte) string {
	end := bytes.IndexAny(line, " \r\n")
	if end < 0 {
		return ""
	}
	return string(bytes.ToUpper(line[:end]))
}

// connect is the Handler.
func (h *Host) connect(_ context.Context, c *smtp.Conn) (smtp.Session, error) {
	if r := h.opt.Greeting; r != nil {
		return nil, r
	}
	c.Offer(h.opt.Offer)
	return &talk{h: h, conn: c}, nil
}

// talk is one connection.
type talk struct {
	smtp.Accept
	h    *Host
	conn *smtp.Conn
	from smtp.Sender
	to   []smtp.Recipient
}

// answer is an error only if there is one: a nil *Reply in an error would not be nil.
func answer(r *smtp.Reply) error {
	if r == nil {
		return nil
	}
	return r
}

func (s *talk) Helo(context.Context, string) error { return answer(s.h.opt.Helo) }

func (s *talk) Mail(_ context.Context, from smtp.Sender) error {
	s.from, s.to = from, nil
	return answer(s.h.opt.Mail)
}

func (s *talk) Rcpt(_ context.Context, to smtp.Recipient) error {
	if r := s.h.opt.Rcpt; r != nil {
		return r
	}
	s.to = append(s.to, to)
	return nil
}

func (s *talk) Message(_ context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	if r := s.h.opt.Message; r != nil {
		return nil, r
	}
	m := Message{Helo: s.conn.Helo(), From: s.from, To: s.to, Content: content}
	if state, ok := s.conn.TLS(); ok {
		m.TLS = &state
	}
	if addr, ok := s.conn.RemoteAddr().(*net.TCPAddr); ok {
		m.Peer = addr.AddrPort().Addr().Unmap()
	}
	s.h.record(m)
	return nil, nil
}

func (h *Host) record(m Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.messages = append(h.messages, m)
	close(h.changed)
	h.changed = make(chan struct{})
}
