package smtp

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"
)

// dialogue.go: what the commands mean. RFC 5321, Section 4.1.4 gives their order; the state
// is in helo, sender, inMail, asked and rcpts.

// dispatch answers a command.
func (c *conn) dispatch(cmd command) error {
	// A chunk is read away before it is refused, whatever for.
	if cmd.verb != "" && cmd.verb != "BDAT" && c.srv.lacks[cmd.verb] {
		// AUTH and STARTTLS are extensions too. Of the latter, Without only hides the keyword.
		if cmd.verb != "STARTTLS" || slices.ContainsFunc(c.srv.opts.Disabled, isStartTLS) {
			return c.offence(errUnimplemented)
		}
	}
	switch cmd.verb {
	case "HELO", "EHLO", "LHLO":
		return c.hello(cmd.verb, cmd.args)
	case "MAIL":
		return c.mail(cmd.args)
	case "RCPT":
		return c.rcpt(cmd.args)
	case "DATA":
		return c.data(cmd.args)
	case "BDAT":
		return c.bdat(cmd.args)
	case "STARTTLS":
		return c.startTLS(cmd.args)
	case "AUTH":
		return c.auth(cmd.args)
	case "XCLIENT", "XFORWARD":
		return c.forward(cmd.verb, cmd.args)
	case "RSET":
		if cmd.args != "" {
			return c.offence(syntaxError("RSET has no parameters"))
		}
		c.reset()
		c.skips = false
		return c.say(250, Enhanced{2, 0, 0}, "flushed")
	case "NOOP":
		return c.say(250, Enhanced{2, 0, 0}, "OK")
	case "VRFY":
		// RFC 5321, Section 7.3: who has an account here is nobody's business.
		if err := c.notYet(); err != nil {
			return c.refuse(err)
		}
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
		return c.offence(errUnimplemented)
	}
}

var errUnimplemented = Refuse(502, Enhanced{5, 5, 1}, "command not implemented")

func isStartTLS(word string) bool { return strings.EqualFold(strings.TrimSpace(word), "STARTTLS") }

// maxHelo is the longest name a client may give itself: a domain or a literal fits.
const maxHelo = 255

// hello answers HELO, EHLO and LHLO. Each begins the dialogue anew; one that is refused
// changes nothing (RFC 5321, Section 4.1.4).
func (c *conn) hello(verb, name string) error {
	if c.srv.opts.LMTP != (verb == "LHLO") {
		// RFC 2033, Section 4.1: LMTP has LHLO alone, and SMTP has not.
		return c.offence(Refuse(500, Enhanced{5, 5, 1}, "this is "+c.srv.opts.protocol()+", say hello in its way"))
	}
	if !isHeloName(name) {
		return c.offence(syntaxError("syntax: " + verb + " hostname"))
	}
	if err := c.sess.Helo(c.ctx, name); err != nil {
		if r := ReplyOf(err); r.Code == 554 {
			return c.last(r) // not within a transaction, so it speaks of all that may come
		}
		return c.refuse(err)
	}
	c.reset()
	c.skips = false
	c.helo, c.esmtp, c.offered = name, verb != "HELO", c.mechanisms()
	greeting := c.srv.opts.Hostname + " " + strings.ReplaceAll(c.srv.opts.HelloText, "%s", name)
	if len(greeting) > maxReplyText {
		greeting = c.srv.opts.Hostname
	}
	if !c.esmtp {
		c.wire.out = append(c.wire.out, "250 "+greeting+"\r\n"...)
		return c.overflow()
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

// appendEhlo writes the answer to EHLO. An extension that would be refused now is not in
// it.
func (c *conn) appendEhlo(b []byte, greeting string) []byte {
	ext := c.offers()
	start := len(b)
	b = append(append(append(b, "250-"...), greeting...), crlf...)
	line := func(offered bool, keyword string, params ...string) {
		if !offered || c.srv.lacks[keyword] {
			return
		}
		start = len(b)
		b = append(append(b, "250-"...), keyword...)
		for _, p := range params {
			b = append(append(b, ' '), p...)
		}
		b = append(b, crlf...)
	}
	line(true, "PIPELINING")
	line(ext.eightBit, "8BITMIME")
	line(ext.utf8, "SMTPUTF8")
	line(c.canStartTLS() && !c.srv.lacks["STARTTLS"], "STARTTLS")
	line(len(c.offered) > 0, "AUTH", c.offered...)
	line(ext.dsn, "DSN")
	line(ext.chunking, "CHUNKING")
	line(ext.binary, "BINARYMIME")
	line(ext.requireTLS && ext.secure, "REQUIRETLS")
	line(ext.priority, "MT-PRIORITY")
	if ext.deliverBy {
		line(true, "DELIVERBY", ext.deliverByParam())
	}
	if ext.hold {
		line(true, "FUTURERELEASE", ext.holdParams()...)
	}
	line(true, "LIMITS", c.srv.limits...)
	if c.trusts("XCLIENT") {
		line(true, "XCLIENT", xclientSet.String())
	}
	if c.trusts("XFORWARD") {
		line(true, "XFORWARD", xforwardSet.String())
	}
	line(ext.size, "SIZE", c.srv.size)
	line(true, "ENHANCEDSTATUSCODES")
	b[start+len("250")] = ' '
	return b
}

// encrypted tells whether nobody can read what the client says on its way.
func (c *conn) encrypted() bool { return c.tls != nil || c.secured }

func (c *conn) canStartTLS() bool {
	return !c.encrypted() && c.srv.opts.TLS != nil && !c.srv.opts.Implicit
}

// offers is what MAIL and RCPT may say on this connection now.
func (c *conn) offers() extensions {
	lacks := c.srv.lacks
	chunking := !lacks["CHUNKING"] && !lacks["BDAT"]
	ext := extensions{
		eightBit: !lacks["8BITMIME"], utf8: !lacks["SMTPUTF8"], size: !lacks["SIZE"], chunking: chunking,
		dsn: c.offer.DSN && !lacks["DSN"], binary: chunking && c.offer.BinaryMIME && !lacks["BINARYMIME"],
		requireTLS: c.offer.RequireTLS && !lacks["REQUIRETLS"], secure: c.encrypted(),
		auth: (c.authed || len(c.offered) > 0) && !lacks["AUTH"],
	}
	ext.offerTiming(c.offer, lacks)
	return ext
}

func (c *conn) mail(args string) error {
	switch {
	case c.helo == "":
		return c.offence(badSequence("say EHLO first"))
	case c.notYet() != nil:
		return c.refuse(c.notYet())
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
	c.asks++
	if err := c.sess.Mail(c.ctx, sender); err != nil {
		r := c.refuse(err)
		c.sender = Sender{}
		return r
	}
	c.inMail, c.rcpts, c.asked, c.skips = true, 0, false, false
	c.decide = time.Now().Add(c.srv.opts.SessionTimeout)
	c.mails++
	return c.say(250, Enhanced{2, 1, 0}, "sender OK")
}

func (c *conn) rcpt(args string) error {
	switch {
	case c.notYet() != nil:
		return c.refuse(c.notYet())
	case !c.inMail:
		return c.offence(badSequence("say MAIL first"))
	case c.rcpts >= c.srv.opts.MaxRecipients:
		return c.putOff(errTooMany)
	}
	c.asked = true
	to, err := parseRcpt(args, c.sender.UTF8, c.offers())
	if err != nil {
		return c.offence(err)
	}
	if err := c.sess.Rcpt(c.ctx, to); err != nil {
		if r := ReplyOf(err); r.Code == errTooMany.Code && r.Enh == errTooMany.Enh && !r.Hangup {
			return c.putOff(r)
		}
		return c.refuse(err)
	}
	c.rcpts++
	c.count--
	return c.say(250, Enhanced{2, 1, 5}, "recipient OK")
}

var errTooMany = Refuse(452, Enhanced{4, 5, 3}, "too many recipients, send the rest in another message")

// maxPutOff is how many recipients may be put off between two messages, for each that a
// transaction can have.
const maxPutOff = 10

// putOff refuses a recipient that belongs into another message. RFC 5321, Section 4.5.3.1.10
// has the client send the message to those that were taken, and then the rest. So it is no
// error of the client's, nor is a long list of them a reason to send it away: its message
// would never get through. Only lists without end are held against it.
func (c *conn) putOff(r *Reply) error {
	if c.later++; c.later > maxPutOff*c.srv.opts.MaxRecipients {
		return c.refuse(r)
	}
	c.count--
	c.reply(r)
	return c.overflow()
}

// endMail forgets the transaction, which the session has finished by itself.
func (c *conn) endMail() {
	c.inMail, c.sender, c.rcpts, c.asked = false, Sender{}, 0, false
	c.xforward = nil
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
	case c.encrypted():
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
	until := time.Now().Add(c.srv.opts.HandshakeTimeout)
	if c.srv.opts.Implicit {
		until = c.accepted.Add(c.srv.opts.HandshakeTimeout)
	}
	ctx, cancel := context.WithDeadline(c.ctx, until)
	defer cancel()
	c.nc.SetDeadline(until)
	if c.wire.closing() {
		return errClosing // its interrupt came before our deadline
	}
	tc := tls.Server(c.nc, c.srv.opts.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("smtp: TLS handshake: %w", err)
	}
	c.nc.SetDeadline(time.Time{})
	c.tls = tc
	c.wire.nc, c.wire.armed = tc, time.Time{}
	c.helo, c.esmtp, c.authed = "", false, false
	if c.xclient != nil {
		c.xclient.Login = "" // the proxy said it in clear
	}
	c.xforward = nil
	return nil
}
