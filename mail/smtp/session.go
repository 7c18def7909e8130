package smtp

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"time"
)

// session.go: what a program that receives mail implements.

// Handler opens a Session for each connection. Connect is called before the
// greeting; many run at once, one for each connection. If it returns an
// error, the client gets ReplyOf(err) instead of the greeting and the connection is
// closed; a nil *Session with a nil error is a mistake of the Handler.
//
// ctx is the connection's: it ends when the connection ends, or when the server's
// patience with a shutdown does. conn stays valid until Session.Close returns.
type Handler interface {
	Connect(ctx context.Context, conn *Conn) (Session, error)
}

// HandlerFunc is a function that is a Handler.
type HandlerFunc func(ctx context.Context, conn *Conn) (Session, error)

// Connect calls f.
func (f HandlerFunc) Connect(ctx context.Context, conn *Conn) (Session, error) { return f(ctx, conn) }

// Session decides on one connection, stage by stage. All calls come one after the
// other, though not always from the same goroutine. A nil error accepts with the
// standard's reply; any other error is answered with [ReplyOf] of it, as 451 if that has a code
// below 400. A reply of code 421 or 521 (554 also from Helo, any from Secure) ends the
// connection. The server has checked syntax, sequence and limits before it calls.
//
// A panic in a call is logged with its stack and ends this connection with 421; the
// others go on.
//
// Embed [Accept] to implement only some stages.
type Session interface {
	// Secure is called after a TLS handshake, the implicit one before the greeting
	// or that of STARTTLS. What the client said before it is forgotten (RFC 3207,
	// Section 4.2).
	Secure(ctx context.Context, state tls.ConnectionState) error
	// Helo is called for HELO, EHLO and LHLO; name is what the client says it is,
	// not checked against anything. An open transaction is forgotten behind it, with
	// Reset, if it is accepted, and goes on if not (RFC 5321, Section 4.1.4).
	Helo(ctx context.Context, name string) error
	// Mail begins a transaction.
	Mail(ctx context.Context, from Sender) error
	// Rcpt adds a recipient to it.
	Rcpt(ctx context.Context, to Recipient) error
	// Data is called when the client asks to send the message, before the 354.
	Data(ctx context.Context) error
	// Message is called with the content; body ends with the call. The transaction is
	// over when it returns. No reply at all means 250, one answers for all recipients.
	// With LMTP (RFC 2033, Section 4.2) there may also be one for each accepted
	// recipient, in the order of acceptance, duplicates included. An error answers for
	// all. What is left of body is read away first; where that fails, the client gets
	// no reply, or that of the failure. So a session that keeps the message reads body
	// to its end.
	Message(ctx context.Context, body *DataReader) ([]*Reply, error)
	// Reset forgets the transaction: RSET, a new HELO, or STARTTLS. It is called only
	// if there is one.
	Reset(ctx context.Context)
	// Close is called once, at the end, whatever happened; also after a Connect that
	// succeeded and was followed by a failed handshake. err is nil after QUIT, else
	// says why the connection ended.
	Close(err error)
}

// AuthSession is a Session that can find out who a client is (RFC 4954). Where a Session
// is none, nothing is offered.
type AuthSession interface {
	Session
	// Mechanisms returns the names of those that can work on the connection as it is, in
	// upper case and the order in which they are offered. It is asked at each EHLO.
	Mechanisms() []string
	// Auth begins an exchange with one of them. The client is logged in when the Mechanism
	// is done without error; the Session learns who it is from the Mechanism that it made.
	// Errors of Auth and of the Mechanism are answered with ReplyOf; what is no *Reply
	// becomes 454 4.7.0.
	Auth(ctx context.Context, mechanism string) (Mechanism, error)
}

// Mechanism is the server's side of one exchange of SASL (RFC 4422). Its shape is the one
// that SASL libraries for Go have agreed on.
type Mechanism interface {
	// Next takes what the client said, nil if it said nothing yet. It returns the next
	// challenge, or done, or why the login failed. A challenge beside done is sent to the
	// client before it hears that it is logged in (RFC 4422, Section 3.6).
	Next(response []byte) (challenge []byte, done bool, err error)
}

// Accept is a Session that accepts everything and throws messages away. It is to be
// embedded.
type Accept struct{}

// Secure accepts.
func (Accept) Secure(context.Context, tls.ConnectionState) error { return nil }

// Helo accepts.
func (Accept) Helo(context.Context, string) error { return nil }

// Mail accepts.
func (Accept) Mail(context.Context, Sender) error { return nil }

// Rcpt accepts.
func (Accept) Rcpt(context.Context, Recipient) error { return nil }

// Data accepts.
func (Accept) Data(context.Context) error { return nil }

// Message reads the content to its end and accepts.
func (Accept) Message(_ context.Context, body *DataReader) ([]*Reply, error) {
	_, err := body.WriteTo(io.Discard)
	return nil, err
}

// Reset does nothing.
func (Accept) Reset(context.Context) {}

// Close does nothing.
func (Accept) Close(error) {}

// Transaction is one mail transaction with a next hop, as the sending side offers
// it to whoever has mail to hand on. It is used by one goroutine, and ends with Data
// or Abort, one of which must be called.
//
// An error that is a *Reply (see [ReplyOf]) is the next hop's own answer and leaves
// the transaction alive; any other error ends it.
type Transaction interface {
	// Rcpt offers one recipient and returns nil if the next hop took it. The first
	// call may begin the transaction there, so that a refused sender is the answer to
	// it.
	Rcpt(ctx context.Context, to Recipient) error
	// Data sends content, of which it reads all, and returns one reply per accepted
	// recipient in the order of acceptance: the same one for each where the next hop
	// speaks SMTP, its own for each with LMTP (RFC 2033, Section 4.2). An error means
	// that the outcome is unknown or that nothing was taken; a try later is right.
	Data(ctx context.Context, content Content) ([]*Reply, error)
	// Abort gives the transaction up, and the connection back. It does nothing after
	// Data.
	Abort()
}

// Content is a message that can be read: header and body, lines ended by CRLF,
// without stuffed dots.
type Content interface {
	// WriteTo writes the content, from its beginning, each time it is called.
	io.WriterTo
	// Size is the length in octets.
	Size() int64
}

// Conn is what a Session may know of its connection, and what it may say about it. Its
// methods are for those calls alone that the server makes: for Connect and the Session's
// methods.
type Conn struct{ c *conn }

// ID names the connection in logs: 16 characters, random, unique.
func (c *Conn) ID() string { return c.c.id }

// RemoteAddr is the client's address: the connection's own, or what ServerOptions.Prepare
// or XCLIENT put in its place. It is a *net.TCPAddr without an IP if XCLIENT said that the
// client's is not known.
func (c *Conn) RemoteAddr() net.Addr { return c.c.remote }

// LocalAddr is the address that the client connected to.
func (c *Conn) LocalAddr() net.Addr { return c.c.local }

// Peer is the address that the connection came from, whoever it speaks for by XCLIENT.
func (c *Conn) Peer() net.Addr { return c.c.nc.RemoteAddr() }

// NetConn is what ServerOptions.Prepare returned, or else the accepted connection. It must
// be neither read from nor written to.
func (c *Conn) NetConn() net.Conn { return c.c.nc }

// TLS returns the state of TLS; ok is false on a clear connection.
func (c *Conn) TLS() (state tls.ConnectionState, ok bool) {
	if c.c.tls == nil {
		return state, false
	}
	return c.c.tls.ConnectionState(), true
}

// Helo returns the name that the client gave itself, empty before HELO.
func (c *Conn) Helo() string { return c.c.helo }

// Authenticated tells whether the client has logged in, or XCLIENT said so and that counts
// (ServerOptions.XClientLogin).
func (c *Conn) Authenticated() bool { return c.c.authed }

// XClient returns what XCLIENT said; ok is false if there was none. It holds from the
// Connect that follows XCLIENT to the end of the connection, but for the login, which
// STARTTLS ends like any other.
func (c *Conn) XClient() (x Forwarded, ok bool) { return c.c.xclient.value() }

// XForward returns what XFORWARD said about the origin of the transaction at hand, or of
// the one to come; ok is false if it said nothing.
func (c *Conn) XForward() (x Forwarded, ok bool) { return c.c.xforward.value() }

// Transaction is the number of the transaction at hand, or else of the last one: how often
// Session.Mail was called on this connection, XCLIENT or not.
func (c *Conn) Transaction() int { return c.c.asks }

// Offer sets which of the extensions that bind the receiver are offered on this
// connection, from the next EHLO on. It is for Connect and Helo.
func (c *Conn) Offer(e Extensions) { c.c.offer = e }

// GreetDelay makes the server wait before its greeting, and refuse a client that speaks
// meanwhile (RFC 5321, Section 3.1 has the server speak first; who does not wait for that
// does not listen either). It is for Connect, and for Secure before the greeting. Zero, the
// default, does not wait.
func (c *Conn) GreetDelay(d time.Duration) { c.c.greetDelay = d }

// Secured tells the server that the client speaks TLS, which somebody in front of us has
// ended: what needs TLS is offered then, STARTTLS is not, and Protocol says so. TLS still
// returns false, since it is not ours. It is for Connect.
func (c *Conn) Secured() { c.c.secured = true }

// LastRefusal is the last reply of 400 or above that the client was sent, nil if there was
// none.
func (c *Conn) LastRefusal() *Reply { return c.c.refused }

// Protocol returns the name for the "with" clause of a Received field, of RFC 3848 and RFC
// 6531, Section 4.3: SMTP, ESMTP or LMTP, with UTF8 in front when the transaction says
// SMTPUTF8, and behind it S on TLS and A for a client that has logged in.
func (c *Conn) Protocol() string {
	k := c.c
	if !k.esmtp {
		return "SMTP"
	}
	name := "ESMTP"
	switch {
	case k.srv.opts.LMTP && k.sender.UTF8:
		name = "UTF8LMTP"
	case k.srv.opts.LMTP:
		name = "LMTP"
	case k.sender.UTF8:
		name = "UTF8SMTP"
	}
	if k.encrypted() {
		name += "S"
	}
	if k.authed {
		name += "A"
	}
	return name
}
