package delivery

import (
	"context"
	"net/netip"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// hooks.go: what others may say about the way of a message to the outside, and what they are
// told. What they say is checked like what a configuration says, and like what the DNS says:
// an address goes through the guard again, and TLS may become more than the other side asks
// for, but less only where the operator has allowed it.

// Hooks is asked which way messages go to hosts elsewhere, and is told what became of them. It is not
// asked about mail for backends. Its methods are called by many goroutines at once, and wait no
// longer than ctx. None may change the message.
type Hooks interface {
	// Route is asked before anything is looked up, once per attempt. The zero Way is the one that
	// the message would go without it. An error ends the attempt: a *smtp.Reply in its chain is
	// the answer for all recipients, a refusal for good with 5xx; all else is temporary.
	Route(ctx context.Context, o Outgoing) (Way, error)
	// Deliver is asked once per attempt when it is known which hosts will be tried, before the
	// first is. The zero Turn leaves it at that. Errors are those of Route.
	Deliver(ctx context.Context, o Outgoing, hops []Hop) (Turn, error)
	// Deferred, Bounced and Delivered are told which recipients wait for another try, have
	// failed for good, or were taken by the next hop. They are called when that has been
	// recorded, each once per attempt at most, and only with fates.
	Deferred(ctx context.Context, o Outgoing, fates []Fate)
	Bounced(ctx context.Context, o Outgoing, fates []Fate)
	Delivered(ctx context.Context, o Outgoing, fates []Fate)
}

// Outgoing is an attempt to deliver a message to some of its recipients.
type Outgoing struct {
	// Message is as it was when the attempt began.
	Message *store.Message
	// Recipients are the places in Message.Recipients of those that it is about.
	Recipients []int
	// Target is the domain or the address literal that they are at, as mx.Target has it.
	Target string
	// Try counts the attempts for these recipients, this one included.
	Try int
}

// Way is what Route chooses.
type Way struct {
	// Relay is where the message goes instead of where the MX records of its target lead, as
	// OutboundOptions.Relay has it; empty leaves it as it is.
	Relay string
	// Source is the name of a Source; empty leaves it to the engine.
	Source string
	// TLS is how far the connection must be encrypted. TLSRequired and TLSVerify count beside
	// what the other side's policy asks for. TLSOpportunistic is as if the message had said
	// TLS-Required: No, and TLSOff never says STARTTLS: they count only with
	// OutboundOptions.WeakerTLS, and only for what has not to be protected by the sender's own
	// word. Empty is what the policy says.
	TLS TLSMode
}

// Hop is a host that will be tried.
type Hop struct {
	// Host is its name, empty for an address literal. Preference is that of its MX record.
	Host       string
	Preference uint16
	Addrs      []netip.Addr
	// Demand is what TLS it must show, in a word. Err is why it is not to be used; nil if it is.
	Demand string
	Err    error
}

// Turn is what Deliver changes.
type Turn struct {
	// To is where to connect to instead of the addresses of the first host that can be used,
	// which keeps its name and what TLS it must show. The zero value is to change nothing. A
	// port of zero is the one that would have been used.
	To netip.AddrPort
}

// Fate is what became of a recipient in an attempt.
type Fate struct {
	// Recipient is its place in Message.Recipients.
	Recipient int
	// Reply is what was said, or what went wrong in the words of a reply.
	Reply *smtp.Reply
	// Host and Addr are who said it, empty if nobody was reached.
	Host string
	Addr netip.Addr
	// Due is when it is tried again; zero if it is not.
	Due time.Time
}
