package delivery

import (
	"context"

	"github.com/penstock/penstock/mail/smtp"
)

// introduce.go tells a backend for whom a connection is used. XCLIENT changes who the
// backend thinks we are, for as long as the connection lives: it can be said anew for the
// next client, but there is no way back to ourselves.

// introductionError is a refusal of the client, or of us who speak for it. The connection
// is in order, but whom the backend takes it for is not known.
type introductionError struct{ reply *smtp.Reply }

func (e *introductionError) Error() string { return e.reply.Error() }

// identity is whom the backend is to take us for; zero is ourselves.
func (tx *transaction) identity() smtp.Forwarded {
	if !tx.b.opts.XClient {
		return smtp.Forwarded{}
	}
	f := tx.client
	f.Ident, f.Source = "", "" // not of XCLIENT
	return f
}

// stranger tells whether the connection at hand is somebody else's and cannot become the one
// that is needed.
func (tx *transaction) stranger() bool {
	has, want := tx.c.identity, tx.identity()
	if tx.begun || has == want || has == (smtp.Forwarded{}) {
		return false
	}
	_, offered := tx.c.client.Extension("XCLIENT")
	return !offered || want == smtp.Forwarded{}
}

// introduce tells the backend of the client, if it wants to know and does not know already.
func (tx *transaction) introduce(ctx context.Context) error {
	if err := tx.xclient(ctx); err != nil {
		return err
	}
	return tx.xforward(ctx)
}

func (tx *transaction) xclient(ctx context.Context) error {
	c, identity := tx.c, tx.identity()
	if _, ok := c.client.Extension("XCLIENT"); !ok || c.identity == identity {
		return nil
	}
	err := c.client.XClient(ctx, identity)
	if err == nil {
		c.identity, c.offers, c.named = identity, tx.b.offersOf(c.client), false
		return nil
	}
	r, refused := err.(*smtp.Reply)
	if !refused || c.client.Broken() {
		return err
	}
	if _, still := c.client.Extension("XCLIENT"); still {
		// It was not EHLO that was refused.
		tx.b.log.Error("backend refuses XCLIENT", "backend", tx.b.name, "remote", c.ep.String(), "err", err)
		r = errNoXClient.Because(err)
	}
	return &introductionError{r}
}

var errNoXClient = smtp.Refuse(451, smtp.Enhanced{4, 3, 5}, "backend does not let us speak for clients, try again later")

// xforward is said for each message: backends differ in how long they remember. Where nobody
// is to be named, one who was named before is taken back.
func (tx *transaction) xforward(ctx context.Context) error {
	c, nobody := tx.c, tx.client == smtp.Forwarded{}
	if _, ok := c.client.Extension("XFORWARD"); !ok || !tx.b.opts.XForward || nobody && !c.named {
		return nil
	}
	err := c.client.XForward(ctx, tx.client)
	if r, refused := err.(*smtp.Reply); refused && !c.client.Broken() {
		tx.b.log.Warn("backend refuses XFORWARD", "backend", tx.b.name, "remote", c.ep.String(), "err", r)
		return nil // the mail is worth more than the log
	}
	c.named = !nobody
	return err
}

// giveUpOn ends the use of a connection of which the backend thinks nobody knows what. The
// refusal answers for all recipients: the next connection would be told the same.
func (tx *transaction) giveUpOn(err *introductionError) error {
	tx.c.quit(tx.b.ctx)
	tx.b.discard(tx.c)
	tx.c, tx.unwelcome = nil, notClosing(err.reply)
	return tx.unwelcome
}
