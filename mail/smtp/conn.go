package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"time"
)

// conn.go: the server's side of one connection, from the first byte to the last: its
// state, the reading of commands, the writing of replies, and the patience with both.
// What the commands mean is in dialogue.go, transfer.go, auth.go and forwarded.go.

// conn is one connection. It belongs to its goroutine; the server touches raw alone.
type conn struct {
	srv           *Server
	raw           net.Conn // the transport, for interrupt and the last resort
	nc            net.Conn // what Prepare made of it, without TLS
	remote, local net.Addr
	wire          *wire
	id            string
	log           *slog.Logger
	debug         bool // the log wants the dialogue
	ctx           context.Context
	cancel        context.CancelFunc // of ctx
	own           bool               // the goroutine is the server's, and may be replaced
	sess          Session

	admitted          bool // it counts among the connections that are limited
	accepted          time.Time
	greetDelay        time.Duration
	offer             Extensions
	xclient, xforward *Forwarded // what XCLIENT said, and XFORWARD of the transaction; nil if nothing
	refused           *Reply     // the last refusal

	tls      *tls.Conn // nil in clear
	secured  bool      // the client has TLS with who stands in front of us
	authed   bool      // the client has logged in
	offered  []string  // mechanisms, at the last EHLO
	helo     string    // empty before HELO
	esmtp    bool      // the client said EHLO
	inMail   bool      // MAIL was accepted
	inData   bool      // the message is under way: a shutdown waits for it
	skips    bool      // a chunk was refused: those that follow are thrown away
	asked    bool      // RCPT was said in the transaction
	sender   Sender    // of the transaction
	rcpts    int       // accepted in the transaction
	mails    int       // transactions begun
	asks     int       // MAIL that the session was asked about
	count    int       // commands since the last message
	bad      int       // bad commands so far
	errors   int       // refusals since the last message
	later    int       // recipients put off since the last message
	unknown  int       // commands before a login
	failures int       // of logins
	expires  time.Time // of the session
	decide   time.Time // until then the transaction must come to DATA
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, raw: nc, nc: nc, wire: newWire(nc), id: newID(), accepted: time.Now(), offer: s.opts.Offer}
	c.remote, c.local = nc.RemoteAddr(), nc.LocalAddr()
	c.log = s.opts.Log
	c.debug = c.log.Enabled(s.ctx, slog.LevelDebug)
	c.wire.timeout = s.opts.IdleTimeout
	c.wire.closing = func() bool { return !c.inData && s.closing.Load() }
	return c
}

// errQuit ends a dialogue in good order.
var errQuit = errors.New("smtp: quit")

// serve runs the dialogue to its end or, with own, until it leaves the connection to another
// goroutine. err, if not nil, is why the dialogue has ended already. It waits for commands
// itself, and not where they are answered: a stack that waits deep down stays large.
func (c *conn) serve(err error) {
	for err == nil {
		if err = c.guard(c.turns); err == nil {
			err = c.await()
		}
	}
	if err == errDoze {
		// The stack of this goroutine has grown with what it did, and hardly becomes small
		// again. That of a new one, which does nothing but wait, is half as large.
		go c.doze()
		return
	}
	c.end(err)
}

// dozeAfter is how long a client must be silent before its goroutine is replaced: those that
// send mail hardly ever are.
const dozeAfter = 5 * time.Second

// await waits for a command, and gives up with errDoze where another goroutine can go on.
func (c *conn) await() error {
	if c.own {
		return c.awoken(c.wire.moreWithin(dozeAfter))
	}
	return c.awoken(c.wire.more())
}

// doze goes on to wait for a client that has been silent.
func (c *conn) doze() { c.serve(c.awoken(c.wire.doze())) }

// awoken ends a wait.
func (c *conn) awoken(err error) error {
	if err == errDoze {
		return err
	}
	c.wire.until = time.Time{}
	if err != nil {
		return c.lost(err)
	}
	return nil
}

// end ends the dialogue.
func (c *conn) end(err error) {
	defer c.srv.removeConn(c)
	defer c.cancel()
	if errors.Is(err, errPanic) && (c.tls != nil || !c.srv.opts.Implicit) {
		c.reply(Refuse(421, Enhanced{4, 3, 0}, "internal error, try again later"))
	}
	if errors.Is(err, errQuit) {
		err = nil
	}
	if c.debug {
		c.log.Debug("connection ends", "conn", c.id, "err", err)
	}
	if c.sess != nil {
		c.guard(func() error { c.sess.Close(err); return nil })
	}
	c.uncount()
	c.hangUp(err != nil)
	c.wire.release()
}

// uncount takes the connection off those that are limited, once.
func (c *conn) uncount() {
	if c.admitted {
		c.admitted = false
		c.srv.admitted.Add(-1)
	}
}

// errPanic is behind the error of a call of the session that panicked.
var errPanic = errors.New("smtp: session panicked")

// guard makes an error of a panic: it is a fault of the session, and the other
// connections must not pay for it.
func (c *conn) guard(call func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v", errPanic, v)
			c.log.Error("session panicked", "conn", c.id, "err", err, "stack", string(debug.Stack()))
		}
	}()
	return call()
}

// hangUp sends what is left to say and closes. If it is us who ends it, what the
// client has sent already is read away first, for a moment: closing with unread
// input would make the kernel reset the connection, and our last reply would be
// lost with it.
func (c *conn) hangUp(ours bool) {
	c.wire.timeout = min(c.wire.timeout, 5*time.Second)
	err := c.wire.flush()
	if c.tls != nil {
		c.tls.CloseWrite() // says that this is the end; it has a deadline of its own
	}
	if err == nil && ours {
		if hc, ok := c.raw.(interface{ CloseWrite() error }); ok && hc.CloseWrite() == nil {
			c.raw.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			io.CopyN(io.Discard, c.raw, 64<<10)
		}
	}
	c.raw.Close()
}

// open brings the dialogue as far as to the greeting.
func (c *conn) open() error {
	c.ctx, c.cancel = context.WithCancel(c.srv.ctx)
	c.expires = c.accepted.Add(c.srv.opts.SessionTimeout)
	n := c.srv.admitted.Add(1)
	c.admitted = true
	if err := c.prepare(); err != nil {
		return err
	}
	if most := c.srv.opts.MaxConnections; most > 0 && n > int64(most) {
		c.srv.noteTurnedAway()
		return c.turnAway(Refuse(421, Enhanced{4, 3, 2}, "too many connections, try again later"))
	}
	return c.begin()
}

// turns answers the commands that are there. At first it opens the dialogue.
func (c *conn) turns() error {
	if c.ctx == nil {
		if err := c.open(); err != nil {
			return err
		}
	}
	for len(c.wire.unread()) > 0 {
		if err := c.turn(); err != nil {
			return err
		}
	}
	c.wire.shrink()
	if c.wire.until = time.Now().Add(c.wire.timeout); c.patience().Before(c.wire.until) {
		c.wire.until = c.patience()
	}
	return nil
}

// prepare lets the owner of the server look at the connection first.
func (c *conn) prepare() error {
	if c.srv.opts.Prepare == nil {
		return nil
	}
	nc, err := c.srv.opts.Prepare(c.ctx, c.raw)
	if err != nil {
		return fmt.Errorf("smtp: preparing the connection: %w", err)
	}
	c.nc, c.wire.nc, c.wire.armed = nc, nc, time.Time{}
	c.remote, c.local = nc.RemoteAddr(), nc.LocalAddr()
	if c.wire.closing() {
		return errClosing // its interrupt may have been cleared
	}
	return nil
}

// begin opens a session and greets.
func (c *conn) begin() error {
	sess, err := c.srv.handler.Connect(c.ctx, &Conn{c})
	if err != nil {
		return c.turnAway(ReplyOf(err).asError())
	}
	c.sess = sess
	if c.srv.opts.Implicit && c.tls == nil {
		if err := c.handshake(); err != nil {
			return err
		}
	}
	if err := c.holdBack(); err != nil {
		return err
	}
	c.wire.out = append(c.wire.out, "220 "+c.srv.opts.Hostname+" "+c.srv.opts.protocol()...)
	if c.srv.opts.Banner != "" {
		c.wire.out = append(append(c.wire.out, ' '), c.srv.opts.Banner...)
	}
	c.wire.out = append(c.wire.out, crlf...)
	return c.overflow() // it may be one of many that XCLIENT began
}

func (o *ServerOptions) protocol() string {
	if o.LMTP {
		return "LMTP"
	}
	return "ESMTP"
}

// holdBack waits before the greeting, and refuses who speaks meanwhile.
func (c *conn) holdBack() error {
	d := c.greetDelay
	c.greetDelay = 0
	if d <= 0 || c.xclient != nil { // a proxy has been greeted once
		return nil
	}
	c.wire.until = time.Now().Add(d)
	err := c.wire.more()
	c.wire.until = time.Time{}
	switch {
	case err == nil:
		c.wire.r = c.wire.w // nothing of it counts
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "you spoke before the greeting, try again later").Because(ErrEarlyTalker))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	}
	return c.lost(err)
}

// turnAway answers a client that may not connect. Where TLS comes first, the answer
// has to wait for it; a 421 is not worth a handshake, since it is often our load that
// it speaks of. Another temporary code becomes 421: we close behind it, and a greeting
// knows no other (RFC 5321, Section 4.3.2).
func (c *conn) turnAway(r *Reply) error {
	c.uncount() // it takes no other's place while it hears why
	if r.Temporary() && r.Code != 421 {
		r = &Reply{Code: 421, Enh: r.Enh, Text: r.Text, Cause: r.Cause}
	}
	if c.srv.opts.Implicit && c.tls == nil {
		if r.Code == 421 {
			return r
		}
		if err := c.upgrade(); err != nil {
			return err
		}
	}
	return c.last(r)
}

// turn reads one command and answers it.
func (c *conn) turn() error {
	line, err := c.readCommand(c.srv.opts.MaxLine)
	switch {
	case err == nil:
	case errors.Is(err, errLineTooLong):
		return c.offence(Refuse(500, Enhanced{5, 5, 2}, "line too long"))
	case errors.Is(err, errLineEnd):
		return c.offence(Refuse(500, Enhanced{5, 5, 2}, "command lines end with CRLF"))
	default:
		return c.lost(err)
	}
	cmd := parseCommand(line)
	if c.debug {
		c.logCommand(cmd, line)
	}
	if cmd.verb == "" && isHTTP(line) {
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "this is no HTTP server").Because(ErrAbuse))
	}
	if c.count++; c.count > c.srv.opts.MaxCommands {
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many commands without a message"))
	}
	if c.srv.opts.Auth.Required && !c.authed && cmd.verb != "AUTH" {
		if c.unknown++; c.unknown > c.srv.opts.MaxUnauthenticated {
			return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many commands before a login"))
		}
	}
	return c.dispatch(cmd)
}

// logCommand logs a line of the client, without the secrets that follow AUTH. What is no
// command may be one, too: a client that does not wait sends its password though AUTH was
// refused.
func (c *conn) logCommand(cmd command, line []byte) {
	said := string(line)
	switch cmd.verb {
	case "AUTH":
		said = "AUTH …"
	case "":
		said = "… (" + strconv.Itoa(len(line)) + " octets that are no command)"
	}
	c.log.Debug("C", "conn", c.id, "line", said)
}

// isHTTP tells whether line is the request line of HTTP/1. A web page can make a
// browser send one to our port, with commands of the page's choice in the body.
func isHTTP(line []byte) bool {
	at := bytes.LastIndexByte(line, ' ')
	return at > 0 && bytes.HasPrefix(line[at+1:], []byte("HTTP/"))
}

// readCommand reads a line of at most max octets.
func (c *conn) readCommand(max int) ([]byte, error) {
	c.wire.until = c.patience()
	line, err := c.wire.readLine(max)
	c.wire.until = time.Time{}
	return line, err
}

// patience is how long to wait for a command: until the session's time is over, or that of
// the open transaction.
func (c *conn) patience() time.Time {
	until := c.expires
	if c.inMail {
		until = c.decide
	}
	if s := c.srv.opts.Stressed; s != nil && s() {
		if soon := time.Now().Add(c.srv.opts.StressTimeout); soon.Before(until) {
			until = soon
		}
	}
	return until
}

// lost handles an error of reading: where the client can still hear it, it is told.
func (c *conn) lost(err error) error {
	switch {
	case errors.Is(err, errClosing):
		return c.last(Refuse(421, Enhanced{4, 3, 2}, c.srv.opts.Hostname+" is shutting down, try again later"))
	case errors.Is(err, errEndless):
		return c.last(Refuse(421, Enhanced{4, 5, 2}, "line without end").Because(err))
	case errors.Is(err, errTooSlow):
		return c.last(Refuse(421, Enhanced{4, 4, 2}, "message comes too slowly").Because(err))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return c.last(Refuse(421, Enhanced{4, 4, 2}, "timeout, closing connection").Because(err))
	default:
		return err
	}
}

// last sends r and ends the dialogue.
func (c *conn) last(r *Reply) error {
	c.reply(r)
	return r
}

// reply queues r. Client text in it has been made harmless by appendReply.
func (c *conn) reply(r *Reply) {
	if r.Code >= 400 {
		c.refused = r
	}
	c.put(r)
}

// put is reply for what is not remembered, so that it need not be on the heap.
func (c *conn) put(r *Reply) {
	start := len(c.wire.out)
	c.wire.out = appendReply(c.wire.out, r, !c.srv.lacks["ENHANCEDSTATUSCODES"], c.sender.UTF8)
	if c.debug {
		c.logReply(c.wire.out[start:len(c.wire.out)-2], r.Cause)
	}
}

func (c *conn) logReply(line []byte, cause error) {
	c.log.Debug("S", "conn", c.id, "line", string(line), "err", cause)
}

// say is reply with fixed text, for what is no refusal.
func (c *conn) say(code int, enh Enhanced, text string) error {
	c.put(&Reply{Code: code, Enh: enh, Text: text})
	return c.overflow()
}

// overflow writes when much has been collected: a client that pipelines without
// reading must not make us keep its replies.
func (c *conn) overflow() error {
	if len(c.wire.out) < maxOutput {
		return nil
	}
	return c.wire.flush()
}

// Of refusals, freeErrors are answered at once. maxPause is the longest time by which an
// answer is held back.
const (
	freeErrors = 10
	maxPause   = 10 * time.Second
)

// refuse answers with what err says, and ends the dialogue if that is a 421. Who has been
// refused often waits for it, and who has been refused too often is sent away.
func (c *conn) refuse(err error) error {
	r := ReplyOf(err).asError()
	c.errors++
	if c.errors > freeErrors && c.srv.opts.ErrorDelay > 0 {
		c.pause(c.srv.opts.ErrorDelay)
	}
	if c.errors >= c.srv.opts.MaxErrors {
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many errors").Because(fmt.Errorf("%w: %w", ErrAbuse, r)))
	}
	if r.Code == 421 || r.Code == 521 || r.Hangup {
		return c.last(r)
	}
	c.reply(r)
	return c.overflow()
}

// pause holds the next answer back, at most until a shutdown begins.
func (c *conn) pause(d time.Duration) { c.srv.wait(min(d, maxPause)) }

// offence is refuse for a client that broke the protocol; too many end it.
func (c *conn) offence(err error) error {
	c.bad++
	if c.bad >= c.srv.opts.MaxBadCommands {
		return c.last(tooManyBad(err))
	}
	return c.refuse(err)
}

func tooManyBad(last error) *Reply {
	cause := ErrAbuse
	if last != nil {
		cause = fmt.Errorf("%w: %w", ErrAbuse, last)
	}
	return Refuse(421, Enhanced{4, 7, 0}, "too many bad commands").Because(cause)
}

// ErrAbuse is behind the error that Session.Close is told when a client was sent away for
// what no mail server does: it broke the protocol too often, was refused too often, or
// spoke another protocol. ErrEarlyTalker is one of that kind: it spoke before the greeting.
var (
	ErrAbuse       = errors.New("smtp: client abuses the protocol")
	ErrEarlyTalker = fmt.Errorf("%w: it spoke before the greeting", ErrAbuse)
)
