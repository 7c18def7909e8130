package store

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// queue.go: messages that wait.

// Errors of the queue that callers branch on.
var (
	// ErrNotFound: there is no such message, module, file, or key.
	ErrNotFound = errors.New("store: not found")
	// ErrLeaseLost: the lease ran out, or its message was dropped. A driver may let one that ran
	// out be extended and finished as long as nobody else has had the recipients.
	ErrLeaseLost = errors.New("store: the lease is lost")
	// ErrFull: there is no room, and should be again later. Nothing was kept.
	ErrFull = errors.New("store: no room")
	// ErrCorrupt: what is stored does not fit its checksum. It was set aside, and the rest
	// goes on.
	ErrCorrupt = errors.New("store: record is corrupt")
	// ErrConflict: what was expected to be there is not.
	ErrConflict = errors.New("store: conflict")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store: closed")
)

// ID names a message, in order of arrival for messages of one node. It is 26 characters of
// lower-case base32 without padding, and unique among all nodes. The empty ID is none.
type ID string

// Destination is where recipients wait: those of one destination are delivered by the same
// hosts. Its text is the caller's, at most 300 octets, such as "backend:mailstore" or
// "mx:example.com".
type Destination string

// State is what becomes of a recipient.
type State uint8

// The states. Waiting is the only one that Lease looks at.
const (
	Waiting   State = iota // for its time
	Held                   // by a person or a filter, until it is released
	Delivered              // the next hop took it
	Failed                 // it was refused for good, ran out of time, or was given up
)

// Message is what is known of a message but its content.
type Message struct {
	ID ID
	// Arrived is when we took it.
	Arrived time.Time
	// Sender is what MAIL said. What it said of time is in Priority and Origin instead: of
	// Sender a driver need not keep Priority, By, HoldFor and HoldUntil.
	Sender smtp.Sender
	// Size is the length of the content in octets.
	Size int64
	// Expires is when to give up; zero is never.
	Expires time.Time
	// Priority orders messages that are due at one destination, larger first. RFC 6710, from
	// -9 to 9.
	Priority int
	// Origin is what the log and a report tell of where it came from.
	Origin Origin
	// Recipients in the order of the envelope. Their places never change.
	Recipients []Recipient
	// Attempts are the latest, oldest first, of all recipients: at most 50.
	Attempts []Attempt
}

// Origin is how a message came to us.
type Origin struct {
	// Listener and Session name the connection in the log. Empty for a report of our own.
	Listener, Session string
	// Client is whom we had it from.
	Client smtp.Forwarded
	// ReportOf is the message that a report is about.
	ReportOf ID
	// Reason is why it was held at first, if it was.
	Reason string
	// By is when the sender wants it delivered, with the parameter of DELIVERBY (RFC 2852);
	// zero if it did not say. Mode is its letters, such as "R" or "NT".
	By   time.Time
	Mode string
	// Trusted tells that the client had logged in, or was trusted by its address: what the
	// message asks for about its way counts.
	Trusted bool
	// TLSOptional tells that the message is to be delivered although a policy of the other side
	// about TLS cannot be kept: it came from one who is Trusted, and says so in its header
	// (RFC 8689, Section 3).
	TLSOptional bool
}

// Recipient is a recipient and what became of it.
type Recipient struct {
	smtp.Recipient
	// Destination is where it waits.
	Destination Destination
	State       State
	// Due is when it is to be tried next, while it is Waiting.
	Due time.Time
	// Tries is how often it was tried.
	Tries int
	// Last is what the next hop said last, nil before.
	Last *smtp.Reply
	// DelayTold tells that the sender was told of the delay.
	DelayTold bool
}

// Attempt is a try to deliver.
type Attempt struct {
	Time        time.Time
	Destination Destination
	// Host is whom we spoke to, empty if nobody could be reached. Addr is at which address; it is
	// not valid where that is not known, as for backends.
	Host string
	Addr netip.Addr
	// TLS is what the connection was encrypted with, such as "TLS 1.3"; empty if it was not, or
	// for backends. Verdict says in a word who the host was by that, "dane" or "pkix" for one
	// that was authenticated; empty if nobody looked.
	TLS, Verdict string
	// Recipients are indexes into Message.Recipients.
	Recipients []int
	// Reply is what it said, or what went wrong in the words of a reply.
	Reply *smtp.Reply
	Took  time.Duration
}

// Queue is the messages that wait.
type Queue interface {
	// Begin begins a message. Of m the ID, Size and Attempts are filled in by the store.
	// Content is written to the Incoming, which is for one goroutine; Commit or Abort must
	// be called. m must not be changed until then. It has at least one recipient that is
	// Waiting or Held.
	Begin(ctx context.Context, m *Message) (Incoming, error)

	// Restore is Begin for a message that was in a store before: its ID, its Attempts, and
	// what became of its recipients are kept. Commit returns ErrConflict, and changes
	// nothing, if there is a message of that ID.
	Restore(ctx context.Context, m *Message) (Incoming, error)

	// Lease hands out up to limit leases at a destination whose recipients are due at now, for
	// the time that is given, the more urgent first: by Priority, then by fewer tries, then
	// by Due. There may be none. No recipient is in two leases at a time.
	Lease(ctx context.Context, d Destination, now time.Time, limit int, lasts time.Duration) ([]*Lease, error)

	// Extend makes a lease last that long from now on, or returns ErrLeaseLost.
	Extend(ctx context.Context, l *Lease, lasts time.Duration) error

	// Finish ends a lease with an Outcome for each of its recipients, in the order of
	// Lease.Recipients, and puts reports into the queue, all in one step. It returns
	// ErrLeaseLost, and does nothing, if the lease is not the caller's any more. It need not
	// wait until all of it is synced: after a crash the recipients may be leased again; but
	// with reports it must be as safe as Commit.
	Finish(ctx context.Context, l *Lease, outcomes []Outcome, attempt *Attempt, reports ...*Report) error

	// Return gives a lease back unused: its recipients are due as before.
	Return(ctx context.Context, l *Lease) error

	// Destinations calls yield with what waits at each destination, until it returns false.
	Destinations(ctx context.Context, yield func(Waits) bool) error

	// Watch returns a channel that gets a value when something may have become due sooner
	// than was known: a message came, was released, or was given back, here or on another
	// node. Values that nobody takes are dropped. The channel is closed when ctx ends.
	Watch(ctx context.Context) <-chan struct{}

	// Message returns what is known of a message, or ErrNotFound.
	Message(ctx context.Context, id ID) (*Message, error)

	// Content opens the content of a message, or returns ErrNotFound or ErrCorrupt.
	Content(ctx context.Context, id ID) (Content, error)

	// List calls yield with messages that match, in order of ID, from behind after on, until
	// it returns false. It sees each message as it was at one moment, and does not hold up
	// traffic. It returns ErrCorrupt at the end if it found messages that cannot be read.
	List(ctx context.Context, f Filter, after ID, yield func(*Message) bool) error

	// Count counts recipients by state and destination.
	Count(ctx context.Context) (Counts, error)

	// Update changes recipients of a message that are not leased: change is called with a
	// copy, may be called again, and says by its result whether to keep it. What it may
	// change is State, Due, Destination and DelayTold of recipients, and Expires. A message
	// that has no recipient Waiting or Held afterwards is removed. It returns ErrNotFound, or
	// ErrLeased if recipients that were changed are leased.
	Update(ctx context.Context, id ID, change func(*Message) bool, reports ...*Report) error
}

// ErrLeased: what was to be changed is being delivered at the moment.
var ErrLeased = errors.New("store: it is being delivered")

// Incoming is a message that is being written.
type Incoming interface {
	// Write adds content.
	io.Writer
	// Commit makes the message part of the queue and returns its ID once it is safe. An error
	// means that it is not there, or that this could not be found out; then it is to be
	// sent again.
	Commit(ctx context.Context) (ID, error)
	// CommitLeased is Commit, and hands the recipients at d, which must be due, out to the
	// caller in the same step, as Lease would. What was just written need not be read again.
	CommitLeased(ctx context.Context, d Destination, lasts time.Duration) (*Lease, error)
	// Abort forgets the message. It does nothing after Commit.
	Abort()
}

// Content is the content of a message. It must be closed, and keeps valid until then, also
// when its message is removed meanwhile.
type Content interface {
	smtp.Content
	io.ReaderAt
	io.Closer
}

// Lease is the right to deliver a message to some of its recipients.
type Lease struct {
	// Message is as it was when the lease was given.
	Message *Message
	// Recipients are the indexes of those that the lease is about, in ascending order.
	Recipients  []int
	Destination Destination
	// Until is when it runs out, by the caller's clock, with some reserve.
	Until time.Time
	// Token is the store's own.
	Token string
}

// Outcome is what became of a recipient in a delivery.
type Outcome struct {
	// State is Delivered, Failed, Held, or Waiting, which is then until Due.
	State State
	Due   time.Time
	// Tried tells that this counts as a try.
	Tried bool
	Reply *smtp.Reply
	// DelayTold is set with the report that tells of the delay.
	DelayTold bool
}

// Report is a message of our own that enters the queue together with a change.
type Report struct {
	Message *Message
	Content []byte
}

// Waits is what waits at a destination.
type Waits struct {
	Destination Destination
	// Due is when the next is due; zero if all are leased.
	Due time.Time
	// Waiting counts recipients, leased ones not counted.
	Waiting int
}

// Filter chooses messages; its zero value is all of them.
type Filter struct {
	// States are those of which a message must have a recipient; empty is any.
	States []State
	// Destination is one that a recipient has.
	Destination Destination
	// Domain is the domain of a recipient, SenderDomain that of the sender, as A-labels.
	Domain, SenderDomain string
	// Sender is the sender's address, "<>" for the null sender.
	Sender string
	// Before and After bound Arrived.
	Before, After time.Time
}

// Counts are numbers of recipients.
type Counts struct {
	Messages int64
	Octets   int64
	// Recipients by state. Leased ones are Waiting.
	Recipients map[State]int64
	Leased     int64
	// Oldest is when the oldest message arrived; zero if there is none.
	Oldest time.Time
}
