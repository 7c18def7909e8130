package delivery

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/penstock/penstock/mail/smtp"
)

// transaction.go: one mail transaction on a connection that was lent for it.

var (
	errEnded        = errors.New("delivery: the transaction has ended")
	errNoRecipients = errors.New("delivery: data without an accepted recipient")
)

// transaction is a smtp.Transaction. It has a lease as long as it has a connection.
type transaction struct {
	t    *Transport
	b    *backend
	c    *conn // nil if a dead one could not be replaced; the next Rcpt tries again
	from smtp.Sender

	client    smtp.Forwarded // for whom this is
	unwelcome *smtp.Reply    // what the backend says of the client, if it does not want it

	begun    bool // the backend took MAIL
	accepted int
	ended    bool
	one      [1]smtp.Recipient // saves an allocation per transaction
}

// Rcpt offers one recipient; the first one goes together with MAIL.
func (tx *transaction) Rcpt(ctx context.Context, to smtp.Recipient) error {
	if err := tx.ready(ctx); err != nil {
		return err
	}
	if tx.stranger() {
		tx.c.quit(tx.b.ctx)
		if err := tx.replace(ctx); err != nil {
			return err
		}
	}
	err := tx.tryRcpt(ctx, to)
	if err != nil && tx.stale(ctx, err) {
		if err := tx.replace(ctx); err != nil {
			return err
		}
		err = tx.tryRcpt(ctx, to)
	}
	if err == nil {
		tx.accepted++
		return nil
	}
	if refused, ok := err.(*introductionError); ok {
		return tx.giveUpOn(refused)
	}
	if r, ok := err.(*smtp.Reply); ok && !tx.c.client.Broken() {
		return r
	}
	return tx.lose(ctx, "RCPT", err)
}

// replace gets another connection, a new one.
func (tx *transaction) replace(ctx context.Context) error {
	c, err := tx.b.replace(ctx, tx.c)
	tx.c, tx.begun = c, false
	return err
}

// ready tells whether the transaction can go on, and gets a connection if it has none.
func (tx *transaction) ready(ctx context.Context) error {
	if tx.ended {
		return errEnded
	}
	if ctx.Err() != nil {
		// The connection is in order, do not begin what would break it.
		tx.Abort()
		return fmt.Errorf("delivery: backend %s: %w", tx.b.name, context.Cause(ctx))
	}
	if tx.unwelcome != nil {
		return tx.unwelcome
	}
	if tx.c != nil {
		return nil
	}
	c, err := tx.b.lend(ctx)
	tx.c = c
	return err
}

// tryRcpt offers a recipient on the connection at hand.
func (tx *transaction) tryRcpt(ctx context.Context, to smtp.Recipient) error {
	if !tx.begun {
		if err := tx.introduce(ctx); err != nil {
			return err
		}
	}
	if r := tx.c.needs(tx.from, to); r != nil {
		return r
	}
	if tx.begun {
		return tx.c.client.Rcpt(ctx, to)
	}
	// SIZE is left out: the message grows by our Received field and by what filters
	// add, so that what the client announced may be too little, and anything added to
	// it could make the backend refuse for good what would have fitted. What exceeds
	// the backend's own SIZE by the client's word does not get here, see conn.needs.
	from := tx.from
	from.Size = 0
	tx.one[0] = to
	rcpts, err := tx.c.client.Envelope(ctx, from, tx.one[:])
	if err != nil {
		return err
	}
	tx.begun = true
	return rcpts[0]
}

// stale tells whether err means that a pooled connection had been closed before we
// used it, so that another one may be tried: the backend took nothing yet. A backend
// that does not answer in time is no such case, the time is spent.
func (tx *transaction) stale(ctx context.Context, err error) bool {
	return tx.accepted == 0 && tx.c.uses > 1 && tx.c.client.Broken() &&
		ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// Data sends the content, once, and ends the transaction.
func (tx *transaction) Data(ctx context.Context, content smtp.Content) ([]*smtp.Reply, error) {
	if tx.ended {
		return nil, errEnded
	}
	if tx.accepted == 0 {
		tx.Abort()
		return nil, errNoRecipients
	}
	if err := tx.ready(ctx); err != nil {
		return nil, err
	}
	replies, err := tx.c.client.Data(ctx, content)
	if err != nil {
		return nil, tx.dataFailed(ctx, err)
	}
	for i, r := range replies {
		replies[i] = notClosing(r)
	}
	if !tx.c.ep.LMTP {
		for len(replies) < tx.accepted {
			replies = append(replies, replies[0])
		}
	}
	tx.giveBack()
	return replies, nil
}

// dataFailed ends the transaction after an error of DATA. A reply is the backend's
// refusal, of DATA itself or in the midst of the content.
func (tx *transaction) dataFailed(ctx context.Context, err error) error {
	r, ok := err.(*smtp.Reply)
	if !ok || r.Positive() {
		return tx.lose(ctx, "DATA", err)
	}
	// A refused DATA leaves the backend's transaction open.
	tx.Abort()
	return notClosing(r)
}

// notClosing turns a 421 of the backend into 451: it says that the backend closes its
// connection to us, and our client is not to lose its own for that.
func notClosing(r *smtp.Reply) *smtp.Reply {
	if r.Code != 421 {
		return r
	}
	return smtp.Refuse(451, r.Enh, r.Text).Because(r)
}

// Abort gives the transaction up, with RSET if the backend knows of it.
func (tx *transaction) Abort() {
	if tx.ended {
		return
	}
	if tx.c != nil && tx.begun && !tx.c.client.Broken() && !tx.c.reset(tx.b.ctx) {
		tx.c.client.Close()
	}
	tx.giveBack()
}

// giveBack ends the transaction.
func (tx *transaction) giveBack() {
	tx.ended = true
	if tx.c != nil {
		tx.b.giveBack(tx.c)
		tx.c = nil
	}
	tx.t.leave()
}

// lose ends the transaction because its connection is of no use any more. The error it
// returns is never a *smtp.Reply, whatever was said last: nothing is known about the
// recipients.
func (tx *transaction) lose(ctx context.Context, verb string, err error) error {
	ep := tx.c.ep
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if r, ok := errors.AsType[*smtp.Reply](err); ok {
		err = errors.New(r.Line())
	}
	tx.ended = true
	tx.b.lose(tx.c)
	tx.c = nil
	tx.t.leave()
	return fmt.Errorf("delivery: %s to backend %s at %s: %w", verb, tx.b.name, ep.Endpoint, err)
}
