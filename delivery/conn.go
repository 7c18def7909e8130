package delivery

import (
	"context"
	"net"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// conn.go: one connection, to a backend or to a host elsewhere.

// politeness is how long a backend may take to answer the RSET or QUIT of a
// connection that nobody waits for any more.
const politeness = 2 * time.Second

// ready is a connection that is ready for MAIL, or in the hands of one transaction.
type ready struct {
	client *smtp.Client
	nc     net.Conn // the socket below, TLS or not
	peek   *peeker  // nil if nc cannot be looked at

	offers Offers // of the last EHLO

	uses  int       // transactions lent to so far; of the borrower
	since time.Time // idle since; guarded by the pool's mutex
}

// conn is a connection to a backend.
type conn struct {
	ready
	ep *endpoint

	// Whom the backend takes us for, zero for ourselves, and whether it was told for its log
	// of a client; of the borrower.
	identity smtp.Forwarded
	named    bool
}

func (b *backend) newConn(ep *endpoint, client *smtp.Client, nc net.Conn) *conn {
	return &conn{ep: ep, ready: ready{client: client, nc: nc, peek: newPeeker(nc), offers: b.offersOf(client)}}
}

// usable tells, without a round trip, whether an idle connection may serve again. A
// backend has nothing to say to a client that asks nothing: if there is something to
// read it is the end of the connection, or a 421 before it.
func (c *ready) usable() bool {
	return !c.client.Broken() && !c.client.Unasked() && (c.peek == nil || c.peek.quiet())
}

// reset makes the connection fit for the next transaction when one was left open. It
// tells whether that worked.
func (c *ready) reset(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, politeness)
	defer cancel()
	return c.client.Reset(ctx) == nil
}

// quit ends the connection: with QUIT, as RFC 5321, Section 4.1.1.10 asks, if it is in
// order.
func (c *ready) quit(ctx context.Context) {
	if c.client.Broken() {
		c.client.Close()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, politeness)
	defer cancel()
	c.client.Quit(ctx) // the answer changes nothing
}

// needs tells what stands against a message for this recipient here. RFC 6531, Section
// 3.1; RFC 6152, Section 3; RFC 3030, Section 3; RFC 8689, Section 4.2.1; RFC 1870,
// Section 4.
func (c *ready) needs(from smtp.Sender, to smtp.Recipient) *smtp.Reply {
	o := &c.offers
	switch {
	case !o.UTF8 && (from.UTF8 || from.Path.NeedsUTF8() || to.Path.NeedsUTF8()):
		return errNoUTF8
	case !o.EightBit && from.Body == smtp.BodyEightBit:
		return errNoEightBit
	case !o.Extensions.BinaryMIME && from.Body == smtp.BodyBinary:
		return errNoBinary
	case !o.Extensions.RequireTLS && from.RequireTLS && !from.Path.IsNull():
		return errNoRequireTLS
	case o.MaxSize > 0 && from.Size > o.MaxSize:
		return errTooLarge
	}
	return nil
}

var (
	errNoUTF8       = smtp.Refuse(550, smtp.Enhanced{5, 6, 7}, "the recipient's server takes no addresses in UTF-8")
	errNoEightBit   = smtp.Refuse(554, smtp.Enhanced{5, 6, 3}, "the recipient's server takes no 8-bit content")
	errNoBinary     = smtp.Refuse(554, smtp.Enhanced{5, 6, 3}, "the recipient's server takes no binary content")
	errNoRequireTLS = smtp.Refuse(550, smtp.Enhanced{5, 7, 30}, "the recipient's server does not promise to use TLS alone")
	errTooLarge     = smtp.Refuse(552, smtp.Enhanced{5, 3, 4}, "the message is larger than the recipient's server takes")
)
