// Package policy decides what becomes of mail, stage by stage. It holds the words of
// that decision and the order in which filters are asked; it knows no WebAssembly and
// no sockets.
//
// # The ideas
//
// The dialogue of a client passes [Stage] after [Stage]. At each the gateway makes an
// [Event], and a [Chain] asks its filters in order. A [Filter] answers with a [Verdict]
// and may leave [Edits]: a log of changes that is applied whole if the filter returns
// in good order, and not at all if it fails. The next filter sees what the one before
// it left.
//
//	client ── stage ──▶ Event ──▶ Chain ─▶ filter 1 ─ edits ─▶ filter 2 ─ … ─▶ Decision
//	                                          │ refuses: the rest is not asked
//	                                          └ fails:   its OnError answers for it;
//	                                                     again and again: its Breaker opens
//
// A filter never stops the mail of others: what it may do wrong (an error, a panic, a
// verdict that makes no sense) becomes the answer that the operator chose for its link
// of the chain.
//
// # Goroutines and locks
//
// A Chain and its Filters are shared by all sessions and safe for concurrent use. A
// Run, its Events and Edits belong to one session and so to one goroutine. The one kind of
// lock is in a Breaker, and taken when a filter has failed.
package policy

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// Stage is a point of the dialogue at which filters may decide. The numbers are those
// of the hooks of the filter ABI and are never reused.
type Stage uint8

// The stages of receiving mail, in their order.
const (
	StageConnect Stage = 1  // a client connected, no greeting was sent
	StageSecure  Stage = 2  // a TLS handshake is done
	StageHelo    Stage = 3  // HELO or EHLO
	StageAuth    Stage = 4  // a client logs in, and no verdict about it was given
	StageMail    Stage = 5  // MAIL FROM
	StageRcpt    Stage = 6  // RCPT TO
	StageData    Stage = 7  // DATA was asked for, nothing read yet
	StageHeaders Stage = 8  // the header section is there, the client still sends
	StageChunk   Stage = 9  // a piece of the body is there, the client still sends
	StageMessage Stage = 10 // the whole message is there, no reply was sent
	StageReset   Stage = 11 // the transaction was given up
	StageClose   Stage = 12 // the connection has ended
)

// The stages of mail on its way out, once for each attempt to deliver a message. See Outbound.
const (
	StageRoute     Stage = 13 // an attempt begins, nothing was looked up
	StageDeliver   Stage = 14 // it is known which hosts will be tried
	StageDeferred  Stage = 15 // recipients wait for another try
	StageBounced   Stage = 16 // recipients have failed for good
	StageDelivered Stage = 17 // recipients were taken by the next hop
)

var stageNames = map[Stage]string{
	StageConnect: "connect", StageSecure: "secure", StageHelo: "helo", StageAuth: "auth", StageMail: "mail",
	StageRcpt: "rcpt", StageData: "data", StageHeaders: "headers", StageChunk: "chunk", StageMessage: "message", StageReset: "reset", StageClose: "close",
	StageRoute: "route", StageDeliver: "deliver", StageDeferred: "deferred", StageBounced: "bounced", StageDelivered: "delivered",
}

// String returns the stage's name, as in "rcpt".
func (s Stage) String() string {
	if n, ok := stageNames[s]; ok {
		return n
	}
	return "unknown"
}

// ParseStage returns the stage of that name; false if there is none.
func ParseStage(name string) (Stage, bool) {
	for s, n := range stageNames {
		if n == name {
			return s, true
		}
	}
	return 0, false
}

// Decides tells whether a verdict counts at the stage; at the others a filter only
// observes.
func (s Stage) Decides() bool {
	switch s {
	case StageReset, StageClose, StageDeferred, StageBounced, StageDelivered:
		return false
	}
	return true
}

// inMessage tells whether the stage belongs to a transaction, whose mail can be
// dropped or held.
func (s Stage) inMessage() bool { return s >= StageMail && s <= StageMessage }

// Stages is a set of stages; bit n stands for stage n.
type Stages uint64

// StagesOf returns the set of list.
func StagesOf(list ...Stage) Stages {
	var set Stages
	for _, s := range list {
		set |= 1 << s
	}
	return set
}

// AllStages is every stage there is.
const AllStages Stages = 1<<StageConnect | 1<<StageSecure | 1<<StageHelo | 1<<StageAuth | 1<<StageMail |
	1<<StageRcpt | 1<<StageData | 1<<StageHeaders | 1<<StageChunk | 1<<StageMessage | 1<<StageReset | 1<<StageClose |
	1<<StageRoute | 1<<StageDeliver | 1<<StageDeferred | 1<<StageBounced | 1<<StageDelivered

// Has tells whether s is in the set.
func (set Stages) Has(s Stage) bool { return set&(1<<s) != 0 }

// String lists the stages of the set.
func (set Stages) String() string {
	var names []string
	for s := range Stage(64) {
		if set.Has(s) {
			names = append(names, s.String())
		}
	}
	return strings.Join(names, " ")
}

// Session is what is known of a connection. The gateway fills it as the dialogue goes
// on; filters read it.
type Session struct {
	// ID names the connection in logs.
	ID string
	// Number counts connections since the start, from 1.
	Number uint64
	// Host is our own name, as we write it into header fields.
	Host string
	// Listener is the name of the listener.
	Listener string
	// Remote is the client's address, Local ours; the zero value for a local socket.
	Remote, Local netip.AddrPort
	// RDNS is the name of the client's address, if it leads back to the address; empty if
	// there is none that does, or if nobody looked.
	RDNS string
	// Helo is what the client called itself, empty before HELO.
	Helo string
	// TLS is nil on a clear connection.
	TLS *TLS
	// User is who the client has proven to be, empty before a login.
	User string
	// Tags are what filters noted outside a transaction.
	Tags []Tag
	// Scores are what filters added up outside a transaction.
	Scores []Score
}

// TLS is what policy may know of an encrypted connection.
type TLS struct {
	Version, Cipher uint16 // the numbers of crypto/tls
	ServerName      string // SNI
	ALPN            string
	Peer            string // subject of the client's certificate, empty if it sent none
	// Verified tells that an authority which the listener trusts vouches for that certificate;
	// without it anybody can have any subject.
	Verified bool
	// Fingerprint is the SHA-256 of the certificate in DER, in lower-case hexadecimal; empty if
	// there is none, or a proxy has ended TLS.
	Fingerprint string
}

// Tag is a note of one filter for those after it and for the log.
type Tag struct {
	Filter, Key, Value string
}

// Transaction is one mail transaction as policy sees it, with the changes of all
// filters so far.
type Transaction struct {
	// Seq counts the transactions of a session, from 1.
	Seq uint64
	// Sender is what MAIL said, or what a filter made of it.
	Sender smtp.Sender
	// Rcpts are the recipients; at StageRcpt the last is the candidate.
	Rcpts []Recipient
	// Judged are the recipients that filters answered for one by one and that do not go
	// on; they are not in Rcpts any more.
	Judged []Judged
	// Message is nil before StageHeaders. At StageHeaders and StageChunk it has a header
	// only.
	Message *Message
	// Tags are what filters noted in the transaction.
	Tags []Tag
	// Scores are what filters added up in the transaction.
	Scores []Score
	// Outbound is the attempt to deliver the message, at the stages of mail on its way out; nil
	// at the others.
	Outbound *Outbound
}

// Recipient is a recipient of a transaction.
type Recipient struct {
	smtp.Recipient
	// AddedBy names the filter that added or changed it, empty if the client named it.
	AddedBy string
	// Relay tells that this filter may name whom the client may not relay to.
	Relay bool
	// Held, if not empty, is why a filter wants a person to look at the message before
	// this recipient gets it.
	Held string

	verdict *Verdict // of the filter that is being asked
}

// Event is what a filter is asked about. It is valid during the call.
type Event struct {
	Stage   Stage
	Session *Session
	// Time is when the chain was asked, the same for all its filters.
	Time time.Time
	// Tx is nil outside a transaction.
	Tx *Transaction
	// Auth is the login at StageAuth, nil elsewhere. It must not be changed.
	Auth *Auth
	// Chunk is the piece of the body at StageChunk, nil elsewhere. It must not be changed.
	Chunk *Chunk
	// Edits takes the filter's changes and shows them to it; never nil. Of Tx a filter
	// should read what Edits has, which is Tx until it changes something.
	Edits *Edits
}

// Filter is one policy. It is shared by all sessions and safe for concurrent use.
type Filter interface {
	// Name is for logs and replies to operators. It is asked for once.
	Name() string
	// Stages are those at which the filter wants to be asked. It is asked for once.
	Stages() Stages
	// Open begins the filter's part of one session. It is called before the first
	// stage that the filter wants. Its error is answered like one of Decide, and an
	// Instance beside an error is ignored.
	Open(ctx context.Context, s *Session) (Instance, error)
}

// Instance is a filter's part of one session: one call at a time. An Instance that
// returned an error is closed and not asked again; the session's next stage opens a
// new one.
type Instance interface {
	// Decide answers e. An error means that the filter failed, whatever it wanted.
	Decide(ctx context.Context, e *Event) (Verdict, error)
	// Close is called once, when the session ends or after an error of Decide.
	Close()
}

// Func returns a Filter that is a Go function. f is called by many sessions at once.
func Func(name string, stages Stages, f func(ctx context.Context, e *Event) (Verdict, error)) Filter {
	return &funcFilter{name, stages, f}
}

type funcFilter struct {
	name   string
	stages Stages
	f      func(ctx context.Context, e *Event) (Verdict, error)
}

func (f *funcFilter) Name() string                                          { return f.name }
func (f *funcFilter) Stages() Stages                                        { return f.stages }
func (f *funcFilter) Open(context.Context, *Session) (Instance, error)      { return f, nil }
func (f *funcFilter) Decide(ctx context.Context, e *Event) (Verdict, error) { return f.f(ctx, e) }
func (f *funcFilter) Close()                                                {}
