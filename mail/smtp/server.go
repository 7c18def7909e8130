package smtp

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// server.go: accepting connections, and ending them in order.

// ServerOptions are the settings of a Server. The zero value of each field means
// its default.
type ServerOptions struct {
	// Hostname is our name in the greeting and in the answer to EHLO. Required.
	Hostname string
	// Banner is what the greeting says behind the name and the protocol. HelloText is what
	// the answer to HELO and EHLO says behind the name; "%s" in it is the name that the
	// client gave itself. Default "greets %s". Both are one line of printable ASCII.
	Banner, HelloText string
	// LMTP speaks LMTP (RFC 2033): LHLO, and a reply for each recipient after the data.
	LMTP bool
	// Disabled are commands that are answered with 502, in any case, such as "VRFY". What
	// no mail can go without cannot be disabled. The extension of AUTH, BDAT, STARTTLS,
	// XCLIENT or XFORWARD is not offered then.
	Disabled []string
	// Without are extensions that are not offered, by their EHLO keywords. Their parameters
	// are then not known. STARTTLS and PIPELINING are only not spoken of, as if a client
	// had not been told: they work.
	Without []string
	// Offer are those extensions that bind the receiver. Conn.Offer may say otherwise for a
	// connection.
	Offer Extensions
	// Auth is about logins; see AuthSession.
	Auth AuthOptions
	// XClient and XForward tell whether a peer may say XCLIENT and XFORWARD, by the address
	// that it connected from. Nil is nobody.
	XClient, XForward func(peer net.Addr) bool
	// XClientLogin lets the LOGIN of XCLIENT count as a login: for Auth.Required, and where
	// Conn speaks of who has logged in. Without it only XClient of Conn tells of it.
	XClientLogin bool
	// Prepare, if not nil, is called for each connection, from its goroutine, before all
	// else. It may read a preface off it and returns the connection to talk on, whose
	// addresses count from then on. It must return soon when a read fails with a deadline:
	// that is how a shutdown wakes it. With an error the connection is closed without a
	// word.
	Prepare func(ctx context.Context, nc net.Conn) (net.Conn, error)
	// MaxConnections is how many connections may be open, from the first byte on. Those
	// beyond are told 421, and if twice as many are open, closed at once. 0 is no limit.
	MaxConnections int
	// TurnedAway, if not nil, is called for each connection that MaxConnections turned away,
	// from any goroutine. It must not wait: no other connection is accepted meanwhile.
	TurnedAway func()
	// TLS enables STARTTLS (RFC 3207), or TLS from the first byte with Implicit.
	TLS *tls.Config
	// Implicit starts every connection with the handshake (RFC 8314, Section 3.3).
	Implicit bool
	// RequireTLS refuses MAIL, RCPT, DATA, BDAT and VRFY with 530 before STARTTLS, and AUTH with
	// 538 (RFC 3207, Section 4, which forbids it where mail from anywhere comes in).
	RequireTLS bool
	// MaxMessage is the largest message taken, in octets. Default 50 MiB. It is
	// announced with SIZE (RFC 1870, Section 4) and enforced in the stream.
	MaxMessage int64
	// MaxRecipients per transaction. Default 1000; RFC 5321, Section 4.5.3.1.8 asks
	// for at least 100.
	MaxRecipients int
	// MaxMessages is how many transactions one connection may begin. Default 1000.
	MaxMessages int
	// MaxLine is the longest command line with its CRLF, in octets. Default 4096,
	// which is more than RFC 5321, Section 4.5.3.1.4 and its extensions ask for.
	MaxLine int
	// MaxCommands is how many commands a connection may send before its first message
	// and between two messages, not counting recipients that were accepted. Default
	// 1000. It bounds those who send no mail: who guess addresses, or keep us busy.
	MaxCommands int
	// MaxBadCommands ends a connection after so many commands that were unknown, out
	// of sequence or malformed. Default 10.
	MaxBadCommands int
	// MaxErrors ends a connection after so many refusals without a message that was accepted
	// between them. A recipient that is put off to another message (452 4.5.3) is none, up
	// to ten times MaxRecipients. Default 100.
	MaxErrors int
	// ErrorDelay is how long the answer waits to each refusal after the first ten. Default 1
	// s; negative is off. It slows who tries addresses or passwords one after the other.
	ErrorDelay time.Duration
	// MaxUnauthenticated is how many commands other than AUTH a client may send before it
	// logs in, where it must. Default 20.
	MaxUnauthenticated int
	// IdleTimeout is the wait for a command or for more mail data, and for a peer to
	// take our reply. Default 5 minutes (RFC 5321, Section 4.5.3.2.7).
	IdleTimeout time.Duration
	// SessionTimeout is how long a connection may last, and how long after MAIL a
	// transaction may take until DATA. It is not looked at while mail data comes, and
	// an open transaction is not cut by the age of its connection. Default 30 minutes.
	SessionTimeout time.Duration
	// HandshakeTimeout is for one TLS handshake; that of implicit TLS has to be over so long
	// after the connection was accepted. Default 30 s.
	HandshakeTimeout time.Duration
	// Stressed, if not nil, tells that connections are short: a client may then be silent
	// for StressTimeout instead of IdleTimeout between two commands. It is asked before
	// each wait. StressTimeout defaults to 10 s.
	Stressed      func() bool
	StressTimeout time.Duration
	// MinRate is the least speed of mail data in octets per second over five minutes.
	// Default 1024; negative is off.
	MinRate int64
	// LineEndings says what happens to a bare CR or LF in mail data.
	LineEndings LineEndings
	// Log gets the dialogue at debug level and broken connections. Nil discards.
	Log *slog.Logger
}

// Extensions are those that bind the receiver to more than to take the message in, so that
// they are offered only where that is seen to.
type Extensions struct {
	// DSN (RFC 3461): the session heeds Sender.Return and EnvID, and Recipient.Notify and
	// Original, or carries them on.
	DSN bool
	// BinaryMIME (RFC 3030, Section 3): the session takes content that is not text. It is
	// offered beside CHUNKING alone.
	BinaryMIME bool
	// RequireTLS (RFC 8689): the session carries Sender.RequireTLS on. It is offered on TLS
	// alone.
	RequireTLS bool
	// Priority (RFC 6710): messages that wait are sent in the order of Sender.Priority, or it
	// is carried on.
	Priority bool
	// DeliverBy (RFC 2852): Sender.By is kept to. It is the least time, in whole seconds, in
	// which a message that is not delivered is returned; ByReturn with less is refused. 0 does
	// not offer it.
	DeliverBy time.Duration
	// FutureRelease (RFC 4865): a message with Sender.HoldFor or HoldUntil does not leave
	// before. It is the longest time for which one is held, in whole seconds, up to 31 years;
	// what is to be held longer is refused. 0 does not offer it. It is meant for clients that
	// hand in mail of their own (Section 3).
	FutureRelease time.Duration
}

// Validate returns every problem, joined.
func (o ServerOptions) Validate() error {
	var errs []error
	if _, err := ParseDomain(o.Hostname); err != nil {
		errs = append(errs, fmt.Errorf("hostname: %w", err))
	}
	if o.Implicit && o.TLS == nil {
		errs = append(errs, errors.New("implicit TLS needs a TLS configuration"))
	}
	if o.RequireTLS && (o.TLS == nil || slices.ContainsFunc(o.Disabled, isStartTLS) && !o.Implicit) {
		errs = append(errs, errors.New("TLS is required, and nobody can have it"))
	}
	for _, v := range []struct {
		name  string
		value int64
	}{
		{"largest message", o.MaxMessage},
		{"recipients", int64(o.MaxRecipients)},
		{"messages", int64(o.MaxMessages)},
		{"commands", int64(o.MaxCommands)},
		{"bad commands", int64(o.MaxBadCommands)},
		{"errors", int64(o.MaxErrors)},
		{"commands before a login", int64(o.MaxUnauthenticated)},
		{"connections", int64(o.MaxConnections)},
		{"login failures", int64(o.Auth.MaxFailures)},
		{"stress timeout", int64(o.StressTimeout)},
		{"idle timeout", int64(o.IdleTimeout)},
		{"session timeout", int64(o.SessionTimeout)},
		{"handshake timeout", int64(o.HandshakeTimeout)},
		{"least time to deliver by", int64(o.Offer.DeliverBy)},
		{"longest hold", int64(o.Offer.FutureRelease)},
	} {
		if v.value < 0 {
			errs = append(errs, fmt.Errorf("%s: must not be negative", v.name))
		}
	}
	if o.LineEndings != NormalizeLineEndings && o.LineEndings != RejectLineEndings {
		errs = append(errs, fmt.Errorf("line endings: unknown value %d", o.LineEndings))
	}
	if o.MaxLine != 0 && (o.MaxLine < 512 || o.MaxLine > 32<<10) {
		errs = append(errs, errors.New("line length: must be between 512 and 32768 octets"))
	}
	errs = append(errs, o.checkWords()...)
	return errors.Join(errs...)
}

// needed are the commands that cannot be disabled.
var needed = []string{"EHLO", "LHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT"}

// extensionKeywords are those that Without may name.
var extensionKeywords = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE", "ENHANCEDSTATUSCODES", "STARTTLS", "AUTH",
	"DSN", "CHUNKING", "BINARYMIME", "REQUIRETLS", "MT-PRIORITY", "DELIVERBY", "FUTURERELEASE", "LIMITS", "XCLIENT", "XFORWARD"}

// checkWords returns what is wrong with the options that are text.
func (o ServerOptions) checkWords() []error {
	var errs []error
	for _, t := range []struct{ name, text string }{
		{"banner", o.Banner}, {"hello text", o.HelloText}, {"text of the demand for a login", o.Auth.RequiredText},
	} {
		if len(t.text) > 200 || strings.IndexFunc(t.text, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
			errs = append(errs, fmt.Errorf("%s: must be at most 200 characters of printable ASCII", t.name))
		}
	}
	for _, d := range o.Disabled {
		verb := strings.ToUpper(strings.TrimSpace(d))
		switch {
		case slices.Contains(needed, verb):
			errs = append(errs, fmt.Errorf("disabled commands: without %s there is no mail", verb))
		case !slices.Contains(verbs[:], verb):
			errs = append(errs, fmt.Errorf("disabled commands: %q is no command", d))
		}
	}
	for _, w := range o.Without {
		if !slices.Contains(extensionKeywords, strings.ToUpper(strings.TrimSpace(w))) {
			errs = append(errs, fmt.Errorf("disabled extensions: %q is none of %s", w, strings.Join(extensionKeywords, ", ")))
		}
	}
	return errs
}

func (o ServerOptions) withDefaults() ServerOptions {
	if !isASCII(o.Hostname) {
		d, _ := ParseDomain(o.Hostname) // a greeting is ASCII; Validate has seen it
		o.Hostname = d.String()
	}
	setDefault(&o.MaxMessage, 50<<20)
	setDefault(&o.MaxRecipients, 1000)
	setDefault(&o.MaxMessages, 1000)
	setDefault(&o.MaxLine, 4096)
	setDefault(&o.MaxCommands, 1000)
	setDefault(&o.MaxBadCommands, 10)
	setDefault(&o.MaxErrors, 100)
	setDefault(&o.ErrorDelay, time.Second)
	setDefault(&o.MaxUnauthenticated, 20)
	setDefault(&o.StressTimeout, 10*time.Second)
	setDefault(&o.HelloText, "greets %s")
	o.Auth = o.Auth.withDefaults()
	o.Auth.Insecure = o.Auth.Insecure && !o.RequireTLS
	setDefault(&o.IdleTimeout, 5*time.Minute)
	setDefault(&o.SessionTimeout, 30*time.Minute)
	setDefault(&o.HandshakeTimeout, 30*time.Second)
	setDefault(&o.MinRate, 1024)
	o.MinRate = max(o.MinRate, 0)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Server receives mail on any number of listeners and hands what happens to a
// Handler. It is safe for concurrent use. Each connection has one goroutine at a time,
// which is replaced by a smaller one while the client is silent; there is no other.
type Server struct {
	opts    ServerOptions
	handler Handler
	lacks   map[string]bool // commands and EHLO keywords that are switched off
	limits  []string        // parameters of LIMITS
	size    string          // parameter of SIZE
	open    atomic.Int64    // connections
	// admitted is how many of them count for MaxConnections: not those that were turned away.
	admitted   atomic.Int64
	turnedAway atomic.Int64 // by MaxConnections
	closing    atomic.Bool
	// ctx is the parent of every connection's; kill ends it when a shutdown runs out
	// of patience. halting ends earlier, when a shutdown begins.
	ctx, halting context.Context
	kill, halt   context.CancelFunc

	mu        sync.Mutex // guards what follows
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	running   sync.WaitGroup // connections; Add only under mu, and not after closing
}

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("smtp: server closed")

// NewServer returns a Server that asks h. It returns Validate's error.
func NewServer(h Handler, o ServerOptions) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("smtp: server options: %w", err)
	}
	s := &Server{opts: o.withDefaults(), handler: h, lacks: make(map[string]bool)}
	for _, word := range slices.Concat(o.Disabled, o.Without) {
		s.lacks[strings.ToUpper(strings.TrimSpace(word))] = true
	}
	// RFC 9422, Section 4.
	s.limits = []string{"MAILMAX=" + strconv.Itoa(s.opts.MaxMessages), "RCPTMAX=" + strconv.Itoa(s.opts.MaxRecipients)}
	s.size = strconv.FormatInt(s.opts.MaxMessage, 10)
	s.ctx, s.kill = context.WithCancel(context.Background())
	s.halting, s.halt = context.WithCancel(s.ctx)
	s.listeners = make(map[net.Listener]struct{})
	s.conns = make(map[*conn]struct{})
	return s, nil
}

// Serve accepts connections on l until Shutdown, when it returns ErrServerClosed,
// or until l fails for good, when it returns that error. Errors of Accept that may
// pass, such as too many open files, are waited out with a growing pause. Serve
// closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if !s.addListener(l) {
		return ErrServerClosed
	}
	defer s.removeListener(l)
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		if s.closing.Load() {
			if err == nil {
				nc.Close()
			}
			return ErrServerClosed
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.opts.Log.Error("accept failed, trying again", "err", err, "dur", pause)
			if !s.wait(pause) {
				return ErrServerClosed
			}
			continue
		}
		pause = 0
		if s.flooded() {
			s.noteTurnedAway()
			nc.Close()
			continue
		}
		c, ok := s.addConn(nc)
		if !ok {
			nc.Close()
			return ErrServerClosed
		}
		c.own = true
		go c.serve(nil)
	}
}

// flooded tells whether so many connections are being turned away that a new one is not even
// told why.
func (s *Server) flooded() bool {
	return s.opts.MaxConnections > 0 && s.open.Load() > 2*int64(s.opts.MaxConnections)+100
}

// noteTurnedAway counts a connection for which there is no room.
func (s *Server) noteTurnedAway() {
	s.turnedAway.Add(1)
	if s.opts.TurnedAway != nil {
		s.opts.TurnedAway()
	}
}

// wait waits, and returns false if a shutdown has begun meanwhile.
func (s *Server) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.halting.Done():
		return false
	}
}

// ServeConn serves one connection that the caller made, and returns when it is
// closed. After Shutdown it closes nc at once and returns ErrServerClosed.
func (s *Server) ServeConn(nc net.Conn) error {
	c, ok := s.addConn(nc)
	if !ok {
		nc.Close()
		return ErrServerClosed
	}
	c.serve(nil)
	return nil
}

// Shutdown stops the server: listeners are closed, clients that wait get 421, a
// command or message in progress is finished and answered, then its client gets
// 421 too. When ctx ends first, the rest is cut off and ctx's error returned. It
// returns when no goroutine of the server runs any more, and may be called again.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing.Store(true)
	s.halt()
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		interrupt(c.raw)
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		s.kill()
		return nil
	case <-ctx.Done():
	}
	s.kill()
	s.mu.Lock()
	for c := range s.conns {
		c.raw.Close()
	}
	s.mu.Unlock()
	<-done
	return ctx.Err()
}

// Connections returns how many connections are open.
func (s *Server) Connections() int { return int(s.open.Load()) }

// TurnedAway returns how many connections MaxConnections has turned away, of which no Handler
// was told.
func (s *Server) TurnedAway() int64 { return s.turnedAway.Load() }

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

func (s *Server) addConn(nc net.Conn) (*conn, bool) {
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return nil, false
	}
	s.conns[c] = struct{}{}
	s.open.Add(1)
	s.running.Add(1)
	return c, true
}

func (s *Server) removeConn(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.open.Add(-1)
	s.running.Done()
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// newID returns 80 random bits in 16 characters.
func newID() string {
	var b [10]byte
	rand.Read(b[:])
	return idEncoding.EncodeToString(b[:])
}
