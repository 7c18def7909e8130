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
// replaced whole by [Gateway.Use]; a session keeps those it began with. The lock of
// a Gateway guards its counters of connections and the replacing of rules; the lock of
// a session's handover guards the backend's transaction against the timer that gives it
// back; the lock of rules guards the count of their users. No two locks are held together.
package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// Relay takes messages for backends.
type Relay interface {
	// Begin begins a transaction with the backend of that name, for the client that is told
	// of; the zero Forwarded is ourselves. The error is what the client is told in answer to
	// its RCPT (smtp.ReplyOf). Safe for concurrent use.
	Begin(ctx context.Context, backend string, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error)
}

// Offers is a Relay that knows which of the extensions that bind the receiver a backend has.
// Without it none of them is offered to clients.
type Offers interface {
	// Offers returns what the backend of that name offers; known is false as long as nobody
	// has asked it. Safe for concurrent use.
	Offers(backend string) (e smtp.Extensions, known bool)
}

// TLSMode says how a listener uses TLS.
type TLSMode string

// The modes. The zero value is TLSStart.
const (
	TLSOff      TLSMode = "off"
	TLSStart    TLSMode = "starttls"
	TLSRequired TLSMode = "starttls_required" // no mail before STARTTLS, for listeners of known clients
	TLSImplicit TLSMode = "implicit"
)

// Listener is the settings of one listener. The zero value of each field means its
// default.
type Listener struct {
	// Name is for logs and filters. Required.
	Name string
	// Addresses are what to listen on. At least one.
	Addresses []Address
	// TLS is how the listener uses TLS. Default TLSStart.
	TLS TLSMode
	// MinTLS is the lowest version, as crypto/tls counts; 0 is that of Options.TLS. ClientAuth
	// says whether clients are asked for a certificate, and ClientCAs who may have issued it.
	MinTLS     uint16
	ClientAuth tls.ClientAuthType
	ClientCAs  *x509.CertPool
	// Chain names the filter chain in Rules; empty asks no filter.
	Chain string
	// Relay lets clients of Trusted, and those who have logged in, send to any domain that has
	// a route, the route "*" included. Others may only send to the domains that are routed by
	// name.
	Relay bool
	// Routing takes recipients whose local part has "@", "%" or "!" from those who may not
	// relay, too. Many servers send on what is addressed so, and a backend that trusts our
	// address would do it for anybody: set it only where no backend does.
	Routing bool
	// Trusted are those whose clients may relay. They are not held to rates either.
	Trusted Networks
	// Logins say who may log in.
	Logins Logins
	// Proxies begin their connections with a header of the PROXY protocol, for which they
	// have ProxyTimeout. Default 5 s.
	Proxies      Networks
	ProxyTimeout time.Duration
	// XClient may say XCLIENT, XForward XFORWARD. With XClientRelay what XCLIENT tells of
	// address and login grants relaying as the client's own would, and its login is one where
	// one is required. Who may say either is not held to rates, nor to ConnectionsPerIP, until it
	// has said XCLIENT.
	XClient, XForward Networks
	XClientRelay      bool
	// ReverseDNS is how long the look-up of a client's name may take. Default 1.5 s;
	// negative looks up nothing.
	ReverseDNS time.Duration
	// Connections is the most at a time, ConnectionsPerIP of one address, which with IPv6
	// is one network of 64 bits: it is the least that a site has (RFC 6177), and has
	// addresses without end. Trusted clients are not held to the latter. Defaults 10000 and
	// 100; negative is no limit.
	Connections, ConnectionsPerIP int
	// Rates of one address, and of its network of 24 bits (IPv6: 48). Zero is no limit. Who has
	// logged in is held to MessageRate and RecipientRate by user name, wherever it comes from.
	// The latter counts the recipients that were named, refused ones too.
	ConnectionRate, ConnectionRateNetwork Rate
	MessageRate, MessageRateNetwork       Rate
	RecipientRate                         Rate
	// AuthFailureRate is how many logins of one address may fail, those under way included. Zero
	// is no limit.
	AuthFailureRate Rate
	// GreetDelay is how long the greeting waits for clients that speak before it, unless
	// their address has a good record. Zero does not wait.
	GreetDelay time.Duration
	// Hops is how many Received fields a message may have before it is taken for one that
	// goes in circles. Default 50.
	Hops int
	// MaxHeader is the largest header section in octets. Default 1 MiB.
	MaxHeader int
	// Submission is what is done with the mail of clients that may relay.
	Submission Submission
	// Server are the dialogue's own limits. What the listener knows itself is filled in:
	// Hostname, TLS, MaxConnections, Prepare, XClient, XForward, Stressed.
	Server smtp.ServerOptions
}

// Address is one thing to listen on.
type Address struct {
	// Network is "tcp", "unix", or "systemd" for a socket that the service manager opened.
	Network string
	// Address is host:port, a path, or the socket's name or number.
	Address string
	// Mode is the permissions of a unix socket; 0 leaves them to the umask.
	Mode fs.FileMode
}

// String returns the address as it is configured.
func (a Address) String() string { return a.listen().String() }

func (a Address) listen() listenAddress { return listenAddress{a.Network, a.Address, a.Mode} }

// Rate is so many in a time; the zero value is no limit.
type Rate struct {
	Count int
	Per   time.Duration
}

func (r Rate) limit() rateLimit { return rateLimit{count: r.Count, per: r.Per} }

// Overload are the limits of all listeners together. The zero value of each field means its
// default, negative is no limit.
type Overload struct {
	// Sessions is how many may be open. Default 10000.
	Sessions int
	// Memory is what the process may use, in octets. Default 80 % of what the machine, its
	// control group or GOMEMLIMIT allows.
	Memory int64
	// Spool is how many octets of messages may be on their way in. Default 4 GiB.
	Spool int64
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
	// LookUpName, if not nil, finds the verified name of a client's address, empty if there is
	// none, in the time that ctx leaves. It is called by all sessions.
	LookUpName func(ctx context.Context, a netip.Addr) string
	// Overload says when there is too much to do.
	Overload Overload
	// Sockets are those that the service manager opened; nil is none.
	Sockets *Sockets
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
	if len(l.Addresses) == 0 {
		errs = append(errs, errors.New("no address"))
	}
	for _, a := range l.Addresses {
		errs = append(errs, a.listen().validate())
	}
	for _, r := range []Rate{l.ConnectionRate, l.ConnectionRateNetwork, l.MessageRate, l.MessageRateNetwork, l.RecipientRate, l.AuthFailureRate} {
		errs = append(errs, r.limit().validate())
	}
	switch l.tls() {
	case TLSOff:
	case TLSStart, TLSRequired, TLSImplicit:
		if o.TLS == nil {
			errs = append(errs, fmt.Errorf("tls %s without a TLS configuration", l.tls()))
		}
	default:
		errs = append(errs, fmt.Errorf("tls %q is none of off, starttls, starttls_required, implicit", l.TLS))
	}
	if (l.ClientAuth == tls.VerifyClientCertIfGiven || l.ClientAuth == tls.RequireAndVerifyClientCert) && l.ClientCAs == nil {
		errs = append(errs, errors.New("client certificates are to be verified, and no authority is trusted"))
	}
	if l.Server.Auth.Required && l.Logins.Credentials == nil && !l.Logins.Filter {
		errs = append(errs, errors.New("a login is required, and nobody can log in"))
	}
	if err := l.Submission.validate(); err != nil {
		errs = append(errs, err)
	}
	if l.Hops < 0 || l.MaxHeader < 0 {
		errs = append(errs, errors.New("hops and the size of the header section must not be negative"))
	}
	so := l.server(o)
	so.Implicit, so.RequireTLS = so.Implicit && so.TLS != nil, so.RequireTLS && so.TLS != nil // has been said
	if err := so.Validate(); err != nil {
		errs = append(errs, err)
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
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
		so.TLS = l.tlsConfig(o.TLS)
		so.Implicit, so.RequireTLS = l.tls() == TLSImplicit, l.tls() == TLSRequired
	}
	return so
}

// tlsConfig is the configuration for one listener. What is asked of clients is its own, and
// so are then its session tickets: one of another listener must not stand for a certificate.
func (l Listener) tlsConfig(base *tls.Config) *tls.Config {
	if base == nil || l.MinTLS == 0 && l.ClientAuth == tls.NoClientCert {
		return base
	}
	c := base.Clone()
	if l.MinTLS != 0 {
		c.MinVersion = l.MinTLS
	}
	c.ClientAuth, c.ClientCAs = l.ClientAuth, l.ClientCAs
	return c
}

// Gateway receives mail. It is safe for concurrent use.
type Gateway struct {
	opts      Options
	own       smtp.Domain // Hostname
	listeners []*listener
	rules     atomic.Pointer[ruleSet]
	number    atomic.Uint64 // of the last connection
	keeper    Keeper        // the Relay, if it is one
	load      *overload
	record    *reputation
	apart     apart
	failures  *failures
	closing   atomic.Bool // Shutdown has begun
	Stats     Stats

	mu     sync.Mutex // guards what follows, and that rules are not replaced when closed
	perIP  map[ipKey]int
	closed bool
}

// Stats counts what happened since the start. All fields may be read at any time.
type Stats struct {
	Logins, LoginsFailed atomic.Int64
	EarlyTalkers         atomic.Int64 // clients that spoke before the greeting
	BadProxy             atomic.Int64 // connections whose PROXY header was missing or made no sense
	Limited              atomic.Int64 // connections and messages that a rate refused
	Kept                 atomic.Int64 // messages that went into the queue, whole or in part
	Sessions             atomic.Int64 // that were begun, greeted or not; XCLIENT begins another
	Relayed              atomic.Int64 // messages that a backend took for all recipients
	Refused              atomic.Int64 // messages that were answered 4xx or 5xx after DATA
	Discarded            atomic.Int64 // messages that a filter dropped
	Duplicates           atomic.Int64 // messages that some recipients got though the client was told 451
}

// listener is a Listener that runs.
type listener struct {
	Listener
	gw    *Gateway
	srv   *smtp.Server
	open  []net.Listener
	busy  atomic.Int32 // of those in open, which Serve takes connections of
	proxy proxySettings
	// Nil is no limit. userMessages and userRecipients are for those who have logged in.
	connectionRate, messageRate, userMessages, recipientRate, userRecipients, authFailures *rates

	proxyLines, fullLines seldom
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
	g := &Gateway{opts: o, perIP: make(map[ipKey]int), failures: newFailures(time.Now), record: newReputation(reputationSettings{}, time.Now)}
	g.keeper, _ = o.Relay.(Keeper)
	g.load = newOverload(overloadSettings{sessions: int64(o.Overload.Sessions), memory: o.Overload.Memory,
		spool: o.Overload.Spool, log: o.Log})
	g.own, _ = smtp.ParseDomain(o.Hostname) // every listener has checked it
	for _, lo := range o.Listeners {
		l := newListener(g, lo.withDefaults())
		srv, err := smtp.NewServer(l, l.serverOptions(o))
		if err != nil {
			return nil, fmt.Errorf("gateway: listener %s: %w", lo.Name, err)
		}
		l.srv = srv
		g.listeners = append(g.listeners, l)
	}
	first, err := g.prepare(rules, nil)
	if err != nil {
		return nil, err
	}
	g.rules.Store(first.rules)
	return g, nil
}

func newListener(g *Gateway, o Listener) *listener {
	l := &listener{Listener: o, gw: g}
	l.proxy = proxySettings{trusted: o.Proxies.Prefixes, unix: o.Proxies.Unix, timeout: o.ProxyTimeout, closing: g.closing.Load}
	l.connectionRate = newRates(o.ConnectionRate.limit(), o.ConnectionRateNetwork.limit(), 0, time.Now)
	l.messageRate = newRates(o.MessageRate.limit(), o.MessageRateNetwork.limit(), 0, time.Now)
	l.userMessages = newRates(o.MessageRate.limit(), rateLimit{}, 0, time.Now)
	l.recipientRate = newRates(o.RecipientRate.limit(), rateLimit{}, 0, time.Now)
	l.userRecipients = newRates(o.RecipientRate.limit(), rateLimit{}, 0, time.Now)
	l.authFailures = newRates(o.AuthFailureRate.limit(), rateLimit{}, 0, time.Now)
	return l
}

// serverOptions are those of the dialogue, with what the listener does in it.
func (l *listener) serverOptions(o Options) smtp.ServerOptions {
	so := l.server(o)
	so.MaxConnections = max(l.Connections, 0)
	so.TurnedAway = l.full
	so.Stressed = func() bool { return l.gw.load.level() >= loadStressed }
	if !l.Proxies.empty() {
		so.Prepare = l.prepare
	}
	if !l.XClient.empty() {
		so.XClient, so.XClientLogin = l.XClient.holds, l.XClientRelay
	}
	if !l.XForward.empty() {
		so.XForward = l.XForward.holds
	}
	return so
}

// prepare reads the header of a proxy.
func (l *listener) prepare(ctx context.Context, nc net.Conn) (net.Conn, error) {
	nc, info, err := l.proxy.accept(ctx, nc)
	if err != nil {
		l.badProxy(err)
		return nil, err
	}
	if info.version == 0 {
		return nc, nil
	}
	return &announced{nc, info}, nil
}

// badProxy takes note of a header that is missing or makes no sense, which nobody else will
// hear of. Checks of a port, which leave without an octet, are none.
func (l *listener) badProxy(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || l.gw.closing.Load() {
		return
	}
	l.gw.Stats.BadProxy.Add(1)
	if l.proxyLines.due(time.Now()) {
		l.gw.opts.Log.Warn("connection without a good PROXY header", "listener", l.Name, "err", err,
			"do", "does the balancer send the header? (HAProxy: send-proxy)")
	}
}

// full takes note of a connection for which there was no room.
func (l *listener) full() {
	if l.fullLines.due(time.Now()) {
		l.gw.opts.Log.Warn("all connections of the listener are taken, others are turned away", "listener", l.Name, "limit", l.Connections)
	}
}

// announced is a connection whose proxy has said something about it.
type announced struct {
	net.Conn
	info proxyInfo
}

// RemoteAddr is no address where the proxy did not say whose connection it is: its own must
// grant nothing to a stranger.
func (a *announced) RemoteAddr() net.Addr {
	if a.info.unnamed {
		return &net.TCPAddr{}
	}
	return a.Conn.RemoteAddr()
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
	if l.ReverseDNS == 0 {
		l.ReverseDNS = 1500 * time.Millisecond
	}
	return l
}

// Listen opens all listeners, or none and returns why. It is called once, before Serve
// and Shutdown.
func (g *Gateway) Listen() error {
	for _, l := range g.listeners {
		var addresses []listenAddress
		for _, a := range l.Addresses {
			addresses = append(addresses, a.listen())
		}
		open, err := openListeners(addresses, g.opts.Sockets.inner())
		if err != nil {
			g.closeListeners()
			return fmt.Errorf("gateway: listener %s: %w", l.Name, err)
		}
		l.open = open
	}
	return nil
}

func (g *Gateway) closeListeners() {
	for _, l := range g.listeners {
		for _, nl := range l.open {
			nl.Close()
		}
	}
}

// Addr returns the first address that the listener of that name listens on, nil if there is
// none or Listen was not called.
func (g *Gateway) Addr(name string) net.Addr {
	for _, l := range g.listeners {
		if l.Name == name && len(l.open) > 0 {
			return l.open[0].Addr()
		}
	}
	return nil
}

// Serve accepts mail until Shutdown, and returns nil then. Listen must have been called.
// If one listener fails for good, the others go on and Serve returns its error at the
// end.
func (g *Gateway) Serve() error {
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { g.load.run(ctx) })
	var mu sync.Mutex // guards errs
	var errs []error
	fail := func(l *listener, err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, fmt.Errorf("gateway: listener %s: %w", l.Name, err))
	}
	var serving sync.WaitGroup
	for _, l := range g.listeners {
		if len(l.open) == 0 {
			fail(l, errors.New("does not listen"))
		}
		for _, nl := range l.open {
			serving.Go(func() {
				g.opts.Log.Info("listening", "listener", l.Name, "addr", nl.Addr().String(), "tls", string(l.tls()))
				l.busy.Add(1)
				defer l.busy.Add(-1)
				if err := l.srv.Serve(nl); !errors.Is(err, smtp.ErrServerClosed) {
					g.opts.Log.Error("listener failed", "listener", l.Name, "err", err)
					fail(l, err)
				}
			})
		}
	}
	serving.Wait()
	stop()
	watching.Wait()
	return errors.Join(errs...)
}

// Shutdown stops listening, tells waiting clients 421, lets messages that are under way get
// their reply, and cuts off what is left when ctx ends, whose error it returns then. The
// rules are released. It may be called again, and ends a Gateway that never served.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.closing.Store(true)
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
