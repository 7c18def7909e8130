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

// conn.go: the server's side of one dialogue. RFC 5321, Section 4.1.4 gives the
// order of commands; the state is in five fields: helo, sender, inMail, asked and
// rcpts.

// conn is one connection. It belongs to its goroutine; the server touches raw alone.
type conn struct {
	srv           *Server
	raw           net.Conn // the transport, for interrupt and the last resort
	remote, local net.Addr
	wire          *wire
	id            string
	log           *slog.Logger
	debug         bool // the log wants the dialogue
	ctx           context.Context
	sess          Session

	tls     *tls.Conn // nil in clear
	helo    string    // empty before HELO
	esmtp   bool      // the client said EHLO
	inMail  bool      // MAIL was accepted
	inData  bool      // the message is under way: a shutdown waits for it
	asked   bool      // RCPT was said in the transaction
	sender  Sender    // of the transaction
	rcpts   int       // accepted in the transaction
	mails   int       // transactions begun
	count   int       // commands since the last message
	bad     int       // bad commands so far
	expires time.Time // of the session
	decide  time.Time // until then the transaction must come to DATA
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{srv: s, raw: nc, wire: newWire(nc), id: newID()}
	c.remote, c.local = nc.RemoteAddr(), nc.LocalAddr()
	c.log = s.opts.Log
	c.debug = c.log.Enabled(s.ctx, slog.LevelDebug)
	c.wire.timeout = s.opts.IdleTimeout
	c.wire.closing = func() bool { return !c.inData && s.closing.Load() }
	return c
}

// errQuit ends a dialogue in good order.
var errQuit = errors.New("smtp: quit")

// serve runs the dialogue to its end. It is the connection's goroutine.
func (c *conn) serve() {
	defer c.srv.removeConn(c)
	ctx, cancel := context.WithCancel(c.srv.ctx)
	defer cancel()
	c.ctx = ctx
	c.expires = time.Now().Add(c.srv.opts.SessionTimeout)
	err := c.guard(c.talk)
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
	c.hangUp(err != nil)
	c.wire.release()
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

func (c *conn) talk() error {
	sess, err := c.srv.handler.Connect(c.ctx, &Conn{c})
	if err != nil {
		return c.turnAway(ReplyOf(err).asError())
	}
	c.sess = sess
	if c.srv.opts.Implicit {
		if err := c.handshake(); err != nil {
			return err
		}
	}
	c.wire.out = append(c.wire.out, "220 "+c.srv.opts.Hostname+" ESMTP\r\n"...)
	for {
		if err := c.turn(); err != nil {
			return err
		}
	}
}

// turnAway answers a client that may not connect. Where TLS comes first, the answer
// has to wait for it; a 421 is not worth a handshake, since it is often our load that
// it speaks of. Another temporary code becomes 421: we close behind it, and a greeting
// knows no other (RFC 5321, Section 4.3.2).
func (c *conn) turnAway(r *Reply) error {
	if r.Temporary() && r.Code != 421 {
		r = &Reply{Code: 421, Enh: r.Enh, Text: r.Text, Cause: r.Cause}
	}
	if c.srv.opts.Implicit {
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
	line, err := c.readCommand()
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
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "this is no HTTP server"))
	}
	if c.count++; c.count > c.srv.opts.MaxCommands {
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many commands without a message"))
	}
	return c.dispatch(cmd)
}

// logCommand logs a line of the client, without the secrets that follow AUTH.
func (c *conn) logCommand(cmd command, line []byte) {
	said := string(line)
	if cmd.verb == "AUTH" {
		said = "AUTH …"
	}
	c.log.Debug("C", "conn", c.id, "line", said)
}

// isHTTP tells whether line is the request line of HTTP/1. A web page can make a
// browser send one to our port, with commands of the page's choice in the body.
func isHTTP(line []byte) bool {
	at := bytes.LastIndexByte(line, ' ')
	return at > 0 && bytes.HasPrefix(line[at+1:], []byte("HTTP/"))
}

// readCommand waits for a line, at most until the session's time is over, or that of
// the open transaction.
func (c *conn) readCommand() ([]byte, error) {
	c.wire.until = c.expires
	if c.inMail {
		c.wire.until = c.decide
	}
	line, err := c.wire.readLine(c.srv.opts.MaxLine)
	c.wire.until = time.Time{}
	return line, err
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
	start := len(c.wire.out)
	c.wire.out = appendReply(c.wire.out, r, true, c.sender.UTF8)
	if c.debug {
		c.logReply(c.wire.out[start:len(c.wire.out)-2], r.Cause)
	}
}

func (c *conn) logReply(line []byte, cause error) {
	c.log.Debug("S", "conn", c.id, "line", string(line), "err", cause)
}

// say is reply with fixed text.
func (c *conn) say(code int, enh Enhanced, text string) error {
	c.reply(&Reply{Code: code, Enh: enh, Text: text})
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

// refuse answers with what err says, and ends the dialogue if that is a 421.
func (c *conn) refuse(err error) error {
	r := ReplyOf(err).asError()
	if r.Code == 421 || r.Code == 521 || r.Hangup {
		return c.last(r)
	}
	c.reply(r)
	return c.overflow()
}

// offence is refuse for a client that broke the protocol; too many end it.
func (c *conn) offence(err error) error {
	c.bad++
	if c.bad >= c.srv.opts.MaxBadCommands {
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many bad commands").Because(err))
	}
	return c.refuse(err)
}

func (c *conn) dispatch(cmd command) error {
	switch cmd.verb {
	case "HELO", "EHLO":
		return c.hello(cmd.args, cmd.verb == "EHLO")
	case "MAIL":
		return c.mail(cmd.args)
	case "RCPT":
		return c.rcpt(cmd.args)
	case "DATA":
		return c.data(cmd.args)
	case "STARTTLS":
		return c.startTLS(cmd.args)
	case "RSET":
		if cmd.args != "" {
			return c.offence(syntaxError("RSET has no parameters"))
		}
		c.reset()
		return c.say(250, Enhanced{2, 0, 0}, "flushed")
	case "NOOP":
		return c.say(250, Enhanced{2, 0, 0}, "OK")
	case "VRFY":
		// RFC 5321, Section 7.3: who has an account here is nobody's business.
		if cmd.args == "" {
			return c.offence(syntaxError("syntax: VRFY name"))
		}
		return c.say(252, Enhanced{2, 1, 5}, "cannot verify, send mail and see")
	case "HELP":
		return c.say(214, Enhanced{2, 0, 0}, "see RFC 5321")
	case "QUIT":
		if cmd.args != "" {
			return c.offence(syntaxError("QUIT has no parameters"))
		}
		c.reply(&Reply{Code: 221, Enh: Enhanced{2, 0, 0}, Text: c.srv.opts.Hostname + " closing connection"})
		return errQuit
	case "":
		return c.offence(Refuse(500, Enhanced{5, 5, 2}, "command not recognized"))
	default:
		return c.offence(Refuse(502, Enhanced{5, 5, 1}, "command not implemented"))
	}
}

// maxHelo is the longest name a client may give itself: a domain or a literal fits.
const maxHelo = 255

// hello answers HELO and EHLO. Either begins the dialogue anew; one that is refused
// changes nothing (RFC 5321, Section 4.1.4).
func (c *conn) hello(name string, esmtp bool) error {
	if !isHeloName(name) {
		return c.offence(syntaxError("syntax: EHLO hostname"))
	}
	if err := c.sess.Helo(c.ctx, name); err != nil {
		if r := ReplyOf(err); r.Code == 554 {
			return c.last(r) // not within a transaction, so it speaks of all that may come
		}
		return c.refuse(err)
	}
	c.reset()
	c.helo, c.esmtp = name, esmtp
	greeting := c.srv.opts.Hostname + " greets " + name
	if len(greeting) > maxReplyText {
		greeting = c.srv.opts.Hostname
	}
	if !esmtp {
		c.wire.out = append(c.wire.out, "250 "+greeting+"\r\n"...)
		return nil
	}
	c.wire.out = c.appendEhlo(c.wire.out, greeting)
	return c.overflow()
}

// isHeloName: printable ASCII without space. What it says is for policy to judge.
func isHeloName(s string) bool {
	if s == "" || len(s) > maxHelo {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func (c *conn) appendEhlo(b []byte, greeting string) []byte {
	line := func(sep, s string) { b = append(append(append(append(b, "250"...), sep...), s...), "\r\n"...) }
	line("-", greeting)
	line("-", "PIPELINING")
	line("-", "8BITMIME")
	line("-", "SMTPUTF8")
	if c.canStartTLS() {
		line("-", "STARTTLS")
	}
	line("-", "SIZE "+strconv.FormatInt(c.srv.opts.MaxMessage, 10))
	line(" ", "ENHANCEDSTATUSCODES")
	return b
}

func (c *conn) canStartTLS() bool {
	return c.tls == nil && c.srv.opts.TLS != nil && !c.srv.opts.Implicit
}

// offers is what this connection's MAIL and RCPT may say now.
func (c *conn) offers() extensions { return extensions{eightBit: true, utf8: true, size: true} }

func (c *conn) mail(args string) error {
	switch {
	case c.helo == "":
		return c.offence(badSequence("say EHLO first"))
	case c.inMail:
		return c.offence(badSequence("a transaction is open already"))
	case c.mails >= c.srv.opts.MaxMessages:
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many messages on one connection, connect again"))
	case time.Now().After(c.expires):
		return c.last(Refuse(421, Enhanced{4, 4, 2}, "session is too old, connect again"))
	}
	sender, err := parseMail(args, c.offers())
	if err != nil {
		return c.offence(err)
	}
	if sender.Size > c.srv.opts.MaxMessage {
		return c.refuse(errTooLarge)
	}
	c.sender = sender
	if err := c.sess.Mail(c.ctx, sender); err != nil {
		r := c.refuse(err)
		c.sender = Sender{}
		return r
	}
	c.inMail, c.rcpts, c.asked = true, 0, false
	c.decide = time.Now().Add(c.srv.opts.SessionTimeout)
	c.mails++
	return c.say(250, Enhanced{2, 1, 0}, "sender OK")
}

func (c *conn) rcpt(args string) error {
	switch {
	case !c.inMail:
		return c.offence(badSequence("say MAIL first"))
	case c.rcpts >= c.srv.opts.MaxRecipients:
		return c.refuse(Refuse(452, Enhanced{4, 5, 3}, "too many recipients, send the rest in another message"))
	}
	c.asked = true
	to, err := parseRcpt(args, c.sender.UTF8, c.offers())
	if err != nil {
		return c.offence(err)
	}
	if err := c.sess.Rcpt(c.ctx, to); err != nil {
		return c.refuse(err)
	}
	c.rcpts++
	c.count--
	return c.say(250, Enhanced{2, 1, 5}, "recipient OK")
}

func (c *conn) data(args string) error {
	switch {
	case args != "":
		return c.offence(syntaxError("DATA has no parameters"))
	case !c.inMail:
		return c.offence(badSequence("say MAIL first"))
	case c.rcpts == 0 && !c.asked:
		return c.offence(badSequence("say RCPT first"))
	case c.rcpts == 0:
		// RFC 5321, Section 3.3. It is no offence: a client that pipelines says DATA
		// before it knows (RFC 2920, Section 3.1).
		return c.refuse(Refuse(554, Enhanced{5, 5, 1}, "no valid recipients"))
	}
	if err := c.sess.Data(c.ctx); err != nil {
		return c.refuse(err)
	}
	c.wire.out = append(c.wire.out, "354 end with <CRLF>.<CRLF>\r\n"...)
	c.wire.rate.start(c.srv.opts.MinRate)
	defer c.wire.rate.stop()
	c.inData = true
	defer func() { c.inData = false }()

	body := newDataReader(c.wire, c.srv.opts.MaxMessage, c.srv.opts.LineEndings)
	reply, err := c.sess.Message(c.ctx, body)
	if rest := c.finish(body); rest != nil {
		return c.brokenData(rest)
	}
	answered := c.answer(body, reply, err)
	c.endMail() // only now: the reply to the message, too, may be in UTF-8
	c.count = 0
	return answered
}

// finish reads what the session left of the message.
func (c *conn) finish(body *DataReader) error {
	defer body.end()
	if body.err == io.EOF {
		return nil
	}
	return body.drain(c.srv.opts.MaxMessage + max(c.srv.opts.MaxMessage, 1<<20))
}

// brokenData ends a dialogue whose framing is lost or that takes no end.
func (c *conn) brokenData(err error) error {
	if r, ok := errors.AsType[*Reply](err); ok {
		return c.last(r)
	}
	return c.lost(err)
}

// answer is the reply to a message that was read to its end. One that was too large
// is refused even if the session did not notice.
func (c *conn) answer(body *DataReader, reply *Reply, err error) error {
	switch {
	case body.oversized:
		return c.refuse(errTooLarge)
	case err != nil:
		return c.refuse(err)
	case reply == nil:
		return c.say(250, Enhanced{2, 6, 0}, "message accepted")
	case reply.Code/100 != 2:
		return c.refuse(reply)
	default:
		c.reply(reply)
		return c.overflow()
	}
}

// endMail forgets the transaction, which the session has finished by itself.
func (c *conn) endMail() {
	c.inMail, c.sender, c.rcpts, c.asked = false, Sender{}, 0, false
}

// reset forgets the transaction and tells the session, if there is one.
func (c *conn) reset() {
	if c.inMail {
		c.sess.Reset(c.ctx)
	}
	c.endMail()
}

func (c *conn) startTLS(args string) error {
	switch {
	case c.srv.opts.TLS == nil:
		return c.offence(Refuse(502, Enhanced{5, 5, 1}, "TLS is not offered here"))
	case c.tls != nil:
		return c.offence(badSequence("TLS is active already"))
	case args != "":
		return c.offence(syntaxError("STARTTLS has no parameters"))
	case c.inMail:
		return c.offence(badSequence("not within a transaction"))
	}
	if len(c.wire.unread()) > 0 {
		// RFC 3207, Section 4.2 and CVE-2011-0411: what was sent in clear before the
		// handshake could be anybody's and must not be taken for part of the
		// encrypted dialogue.
		return fmt.Errorf("smtp: client sent data between STARTTLS and the handshake")
	}
	c.wire.out = append(c.wire.out, "220 2.0.0 ready for TLS\r\n"...)
	if err := c.wire.flush(); err != nil {
		return err
	}
	return c.handshake()
}

// handshake upgrades the connection and asks the session about it.
func (c *conn) handshake() error {
	if err := c.upgrade(); err != nil {
		return err
	}
	if err := c.sess.Secure(c.ctx, c.tls.ConnectionState()); err != nil {
		return c.last(ReplyOf(err).asError())
	}
	return nil
}

// upgrade does the TLS handshake. The dialogue starts over behind it (RFC 3207,
// Section 4.2).
func (c *conn) upgrade() error {
	ctx, cancel := context.WithTimeout(c.ctx, c.srv.opts.HandshakeTimeout)
	defer cancel()
	c.raw.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout))
	if c.wire.closing() {
		return errClosing // its interrupt came before our deadline
	}
	tc := tls.Server(c.raw, c.srv.opts.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("smtp: TLS handshake: %w", err)
	}
	c.raw.SetDeadline(time.Time{})
	c.tls = tc
	c.wire.nc, c.wire.armed = tc, time.Time{}
	c.helo, c.esmtp = "", false
	return nil
}
