// Package gateway is the receiving half: it listens, runs the dialogue with each client
// through package mail/smtp, asks policy at each stage, and hands messages on to whoever
// takes them for their recipients.
//
// # The ideas
//
// A session asks the filter chain of its listener first and the far side second, at every
// stage, so that what a filter refuses never reaches a backend. The backend is known by
// the recipient: its transaction begins with the first RCPT, and its refusals are the
// answers that the client gets. The client hears 250 after the backend said 250, and not
// before.
//
//	client ─ smtp.Server ─▶ session ─ policy.Run ─▶ filters
//	                           │
//	                           ├ spool (while the client sends)
//	                           └ Relay.Begin ─▶ smtp.Transaction ─▶ backend
//
// What the gateway needs of the far side is [Relay], an interface of its own in words of
// mail/smtp alone. It never imports what satisfies it.
//
// # Goroutines and locks
//
// Each listener has one goroutine and each connection has one. Rules (routes and chains) are
// replaced whole by [Gateway.Reload]; a session keeps those it began with. The lock of
// a Gateway guards its counters of connections and the replacing of rules; the lock of
// a session's handover guards the backend's transaction against the timer that gives it
// back; the lock of rules guards the count of their users. No two locks are held together.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// Relay takes messages for backends.
type Relay interface {
	// Begin begins a transaction with the backend of that name. The error is what the
	// client is told in answer to its RCPT (smtp.ReplyOf). Safe for concurrent use.
	Begin(ctx context.Context, backend string, from smtp.Sender) (smtp.Transaction, error)
}

// TLSMode says how a listener uses TLS.
type TLSMode string

// The modes. The zero value is TLSStart.
const (
	TLSOff      TLSMode = "off"
	TLSStart    TLSMode = "starttls"
	TLSImplicit TLSMode = "implicit"
)

// Listener is the settings of one listener. The zero value of each field means its
// default.
type Listener struct {
	// Name is for logs and filters. Required.
	Name string
	// Network is "tcp" or "unix", Address "host:port" or a path. Required.
	Network, Address string
	// TLS is how the listener uses TLS. Default TLSStart.
	TLS TLSMode
	// Chain names the filter chain in Rules; empty asks no filter.
	Chain string
	// Relay lets clients of Trusted send to any domain that has a route, the route "*"
	// included. Others may only send to the domains that are routed by name.
	Relay bool
	// Trusted are the networks whose clients may relay, TrustUnix adds local sockets.
	Trusted   []netip.Prefix
	TrustUnix bool
	// Connections is the most at a time, ConnectionsPerIP of one address, which with IPv6
	// is one network of 64 bits: it is the least that a site has (RFC 6177), and has
	// addresses without end. Defaults 10000 and 100; negative is no limit.
	Connections, ConnectionsPerIP int
	// Hops is how many Received fields a message may have before it is taken for one that
	// goes in circles. Default 50.
	Hops int
	// MaxHeader is the largest header section in octets. Default 1 MiB.
	MaxHeader int
	// Server are the dialogue's own limits. Hostname and TLS are filled in.
	Server smtp.ServerOptions
}

// Options are the settings of a Gateway. The zero value of each field means its default.
type Options struct {
	// Hostname is our name. Required.
	Hostname string
	// Listeners are what to listen on. At least one.
	Listeners []Listener
	// Relay takes the messages. Required.
	Relay Relay
	// TLS serves certificates; required unless every listener is TLSOff.
	TLS *tls.Config
	// SpoolDir holds what of large messages does not fit into memory. Default: the
	// system's directory for temporary files.
	SpoolDir string
	// Observe, if not nil, is told what every filter said. It is called by all sessions.
	Observe func(*policy.Session, policy.Step)
	// Log. Nil discards.
	Log *slog.Logger
}

// Validate returns every problem, joined.
func (o Options) Validate() error {
	var errs []error
	if o.Relay == nil {
		errs = append(errs, errors.New("no relay"))
	}
	if len(o.Listeners) == 0 {
		errs = append(errs, errors.New("no listeners"))
	}
	seen := make(map[string]bool)
	for _, l := range o.Listeners {
		if l.Name == "" || seen[l.Name] {
			errs = append(errs, fmt.Errorf("listener %q: the name is missing or used twice", l.Name))
		}
		seen[l.Name] = true
		for _, err := range l.check(o) {
			errs = append(errs, fmt.Errorf("listener %s: %w", l.Name, err))
		}
	}
	return errors.Join(errs...)
}

// check returns what is wrong with one listener.
func (l Listener) check(o Options) []error {
	var errs []error
	if l.Network != "tcp" && l.Network != "unix" {
		errs = append(errs, fmt.Errorf("network %q is neither tcp nor unix", l.Network))
	}
	if l.Address == "" {
		errs = append(errs, errors.New("no address"))
	}
	switch l.tls() {
	case TLSOff:
	case TLSStart, TLSImplicit:
		if o.TLS == nil {
			errs = append(errs, fmt.Errorf("tls %s without a TLS configuration", l.tls()))
		}
	default:
		errs = append(errs, fmt.Errorf("tls %q is none of off, starttls, implicit", l.TLS))
	}
	if l.Hops < 0 || l.MaxHeader < 0 {
		errs = append(errs, errors.New("hops and the size of the header section must not be negative"))
	}
	so := l.server(o)
	so.Implicit = so.Implicit && so.TLS != nil // has been said
	if err := so.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errs
}

func (l Listener) tls() TLSMode {
	if l.TLS == "" {
		return TLSStart
	}
	return l.TLS
}

// server completes the dialogue's options.
func (l Listener) server(o Options) smtp.ServerOptions {
	so := l.Server
	so.Hostname = o.Hostname
	so.Log = o.Log
	if l.tls() != TLSOff {
		so.TLS = o.TLS
		so.Implicit = l.tls() == TLSImplicit
	}
	return so
}

// Gateway receives mail. It is safe for concurrent use.
type Gateway struct {
	opts      Options
	own       smtp.Domain // Hostname
	listeners []*listener
	rules     atomic.Pointer[ruleSet]
	number    atomic.Uint64 // of the last connection
	Stats     Stats

	mu     sync.Mutex // guards what follows, and that rules are not replaced when closed
	perIP  map[ipKey]int
	closed bool
}

// Stats counts what happened since the start. All fields may be read at any time.
type Stats struct {
	Sessions   atomic.Int64 // connections that were greeted or turned away
	Relayed    atomic.Int64 // messages that a backend took for all recipients
	Refused    atomic.Int64 // messages that were answered 4xx or 5xx after DATA
	Discarded  atomic.Int64 // messages that a filter dropped
	Duplicates atomic.Int64 // messages that some recipients got though the client was told 451
}

// listener is a Listener that runs.
type listener struct {
	Listener
	gw    *Gateway
	srv   *smtp.Server
	net   net.Listener
	conns atomic.Int64
}

type ipKey struct {
	listener *listener
	addr     netip.Addr
}

// New returns a Gateway with its first rules. It does not listen yet. With an error the
// rules are not taken over: their Release is not called.
func New(o Options, rules Rules) (*Gateway, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g := &Gateway{opts: o, perIP: make(map[ipKey]int)}
	g.own, _ = smtp.ParseDomain(o.Hostname) // every listener has checked it
	for _, lo := range o.Listeners {
		l := &listener{Listener: lo.withDefaults(), gw: g}
		srv, err := smtp.NewServer(l, lo.server(o))
		if err != nil {
			return nil, fmt.Errorf("gateway: listener %s: %w", lo.Name, err)
		}
		l.srv = srv
		g.listeners = append(g.listeners, l)
	}
	if err := g.Reload(rules); err != nil {
		return nil, err
	}
	return g, nil
}

func (l Listener) withDefaults() Listener {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&l.Connections, 10000)
	def(&l.ConnectionsPerIP, 100)
	def(&l.Hops, 50)
	def(&l.MaxHeader, 1<<20)
	return l
}

// Listen opens all listeners, or none and returns why. It is called once, before Serve
// and Shutdown.
func (g *Gateway) Listen() error {
	for _, l := range g.listeners {
		if l.Network == "unix" {
			removeStale(l.Address)
		}
		nl, err := net.Listen(l.Network, l.Address)
		if err != nil {
			g.closeListeners()
			return fmt.Errorf("gateway: listener %s: %w", l.Name, err)
		}
		l.net = nl
	}
	return nil
}

func (g *Gateway) closeListeners() {
	for _, l := range g.listeners {
		if l.net != nil {
			l.net.Close()
		}
	}
}

// removeStale removes a socket that a process left behind which is gone: nobody listens
// to it. Any other stays, also one that is too busy to answer or that we may not connect
// to, and listening fails.
func removeStale(path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
}

// Addr returns the address that the listener of that name listens on, nil if there is
// none or Listen was not called.
func (g *Gateway) Addr(name string) net.Addr {
	for _, l := range g.listeners {
		if l.Name == name && l.net != nil {
			return l.net.Addr()
		}
	}
	return nil
}

// Serve accepts mail until Shutdown, and returns nil then. Listen must have been called.
// If one listener fails for good, the others go on and Serve returns its error at the
// end.
func (g *Gateway) Serve() error {
	errs := make([]error, len(g.listeners))
	var wg sync.WaitGroup
	for i, l := range g.listeners {
		wg.Go(func() {
			if l.net == nil {
				errs[i] = fmt.Errorf("gateway: listener %s: does not listen", l.Name)
				return
			}
			g.opts.Log.Info("listening", "listener", l.Name, "addr", l.net.Addr().String(), "tls", string(l.tls()))
			if err := l.srv.Serve(l.net); !errors.Is(err, smtp.ErrServerClosed) {
				g.opts.Log.Error("listener failed", "listener", l.Name, "err", err)
				errs[i] = fmt.Errorf("gateway: listener %s: %w", l.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Shutdown stops listening, tells waiting clients 421, lets messages that are under way get
// their reply, and cuts off what is left when ctx ends, whose error it returns then. The
// rules are released. It may be called again, and ends a Gateway that never served.
func (g *Gateway) Shutdown(ctx context.Context) error {
	errs := make([]error, len(g.listeners))
	var wg sync.WaitGroup
	for i, l := range g.listeners {
		wg.Go(func() { errs[i] = l.srv.Shutdown(ctx) })
	}
	wg.Wait()
	g.closeListeners() // of which Serve may know nothing
	g.mu.Lock()
	g.closed = true
	last := g.rules.Swap(nil)
	g.mu.Unlock()
	last.retire()
	for _, err := range errs {
		if err != nil {
			return err // it is the same for all: ctx's
		}
	}
	return nil
}

// Connections returns how many connections are open.
func (g *Gateway) Connections() int {
	n := 0
	for _, l := range g.listeners {
		n += l.srv.Connections()
	}
	return n
}
