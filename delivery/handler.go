package delivery

import (
	"context"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// handler.go: backends that are part of this program. Mail gets to them by routes, queue and
// retries as to any other, so that nothing else need know that there is no server.

// Handler takes mail for a backend that is no server.
type Handler interface {
	// Begin begins a transaction for the client that is told of; the zero Forwarded is
	// ourselves. The error is as that of Transport.Begin. Safe for concurrent use.
	Begin(ctx context.Context, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error)
}

// handlerOffers are what every Handler takes: it is the last to have the message, and so there
// is nobody who could lack something.
var handlerOffers = Offers{
	Extensions: smtp.Extensions{DSN: true, BinaryMIME: true, RequireTLS: true, Priority: true, DeliverBy: time.Second},
	UTF8:       true, EightBit: true,
}
