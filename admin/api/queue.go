package api

import "time"

// queue.go: the messages that wait. None of their content is shown: envelope, size, and what
// became of them.

// QueueState is what becomes of a recipient.
type QueueState string

// The states.
const (
	QueueWaiting   QueueState = "waiting"   // for its time
	QueueHeld      QueueState = "held"      // until it is released
	QueueDelivered QueueState = "delivered" // the next hop took it
	QueueFailed    QueueState = "failed"    // refused for good, out of time, or given up
)

// QueueStates returns all states.
func QueueStates() []QueueState {
	return []QueueState{QueueWaiting, QueueHeld, QueueDelivered, QueueFailed}
}

// QueueFilter chooses messages that fit all that it names; the zero value fits all. In the
// address of a GET its fields are parameters, states repeated.
type QueueFilter struct {
	// States are those of which a message has a recipient.
	States []QueueState `json:"state,omitempty"`
	// Destination is one that a recipient has, such as backend:mailstore.
	Destination string `json:"destination,omitempty"`
	// Domain is that of a recipient, SenderDomain that of the sender.
	Domain       string `json:"domain,omitempty"`
	SenderDomain string `json:"sender_domain,omitempty"`
	// Sender is an address, <> for the null sender.
	Sender string `json:"sender,omitempty"`
	// Before and Since bound the time of arrival.
	Before time.Time `json:"before,omitzero"`
	Since  time.Time `json:"since,omitzero"`
}

// The limits of one request.
const (
	QueueListDefault = 100  // messages of a list
	QueueListMax     = 1000 // likewise; a list of long messages ends sooner
	QueueActionMax   = 1000 // messages of an action
)

// QueuePage is a part of the list of messages, in order of ID.
type QueuePage struct {
	// Messages are without their attempts.
	Messages []QueueMessage `json:"messages"`
	// Next is where to go on: the parameter after of the next request. Empty at the end.
	Next string `json:"next,omitempty"`
	// Error is what ended the list in the middle, when the status had been sent.
	Error *Error `json:"error,omitempty"`
}

// QueueMessage is a message that waits.
type QueueMessage struct {
	ID      string    `json:"id"`
	Arrived time.Time `json:"arrived"`
	// Expires is when it is given up; zero is never.
	Expires time.Time `json:"expires,omitzero"`
	// Sender is an address, <> for the null sender.
	Sender string `json:"sender"`
	// Size is that of the content, in octets.
	Size     int64 `json:"size"`
	Priority int   `json:"priority,omitempty"`
	// Reason is why it was held at first.
	Reason string `json:"reason,omitempty"`
	// ReportOf is the message that this is a report about.
	ReportOf string `json:"report_of,omitempty"`
	// Listener and Session are where it came in, Client is who brought it, Login the name
	// that the client logged in with.
	Listener string `json:"listener,omitempty"`
	Session  string `json:"session,omitempty"`
	Client   string `json:"client,omitempty"`
	Login    string `json:"login,omitempty"`

	Recipients []QueueRecipient `json:"recipients"`
	// Attempts are the latest, oldest first.
	Attempts []QueueAttempt `json:"attempts,omitempty"`
}

// QueueRecipient is a recipient of a message.
type QueueRecipient struct {
	Address     string     `json:"address"`
	Destination string     `json:"destination"`
	State       QueueState `json:"state"`
	// Due is when it is tried next, while it waits.
	Due   time.Time `json:"due,omitzero"`
	Tries int       `json:"tries"`
	// Last is what the next hop said last.
	Last string `json:"last,omitempty"`
	// DelayTold is true if the sender was told of the delay.
	DelayTold bool `json:"delay_told,omitempty"`
}

// QueueAttempt is a try to deliver.
type QueueAttempt struct {
	Time        time.Time `json:"time"`
	Destination string    `json:"destination"`
	// Host is whom we spoke to; empty if nobody could be reached.
	Host string `json:"host,omitempty"`
	// Addr is at which address, empty for a backend. TLS is what the connection was encrypted
	// with, empty if it was not; and Verdict by what the host was authenticated, empty if it was
	// not.
	Addr    string `json:"addr,omitempty"`
	TLS     string `json:"tls,omitempty"`
	Verdict string `json:"verdict,omitempty"`
	// Recipients are indexes into those of the message.
	Recipients []int  `json:"recipients"`
	Reply      string `json:"reply,omitempty"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`
}

// QueueExplanation is why a message waits.
type QueueExplanation struct {
	Message QueueMessage `json:"message"`
	Now     time.Time    `json:"now"`
	// Next is when the next try is due; zero if there is none.
	Next time.Time `json:"next,omitzero"`
	// Reasons has one for each recipient, in their order.
	Reasons []QueueReason `json:"reasons"`
	// Destinations are those where recipients wait.
	Destinations []QueueDestination `json:"destinations"`
}

// QueueReason is why a recipient is where it is.
type QueueReason struct {
	// Kind is delivered, failed, held, under_way, scheduled, unknown, down, busy, due or
	// stopping. There may be more of them.
	Kind string `json:"kind"`
	// Text says it in a sentence, whose times are UTC.
	Text string `json:"text"`
}

// QueueDestination is what is known of a destination.
type QueueDestination struct {
	Name string `json:"name"`
	// Known is true if there is a way to it.
	Known bool `json:"known"`
	// Down is true if nobody answers there. Error is why, Retry when that is looked at again.
	Down  bool      `json:"down"`
	Error string    `json:"error,omitempty"`
	Retry time.Time `json:"retry,omitzero"`
	// Site names the hosts that serve it, if they serve others, too, and are known at the moment.
	// Rest is until when they are left alone because they want their mail slowly.
	Site string    `json:"site,omitempty"`
	Rest time.Time `json:"rest,omitzero"`
	// Workers are deliveries under way there from this node, MaxWorkers how many there may be;
	// where there is a Site, for all its destinations.
	Workers    int `json:"workers"`
	MaxWorkers int `json:"max_workers"`
	// Waiting counts recipients that wait there.
	Waiting int `json:"waiting"`
	// Ahead is how many messages come before this one, or more if AheadAtLeast is true;
	// counted only where it is due and has to wait for others.
	Ahead        int  `json:"ahead,omitempty"`
	AheadAtLeast bool `json:"ahead_at_least,omitempty"`
}

// QueueCounts is how much waits.
type QueueCounts struct {
	Messages int64 `json:"messages"`
	Octets   int64 `json:"octets"`
	// Recipients by state; those under way are waiting.
	Recipients map[QueueState]int64 `json:"recipients"`
	UnderWay   int64                `json:"under_way"`
	// Oldest is when the oldest message arrived.
	Oldest time.Time `json:"oldest,omitzero"`
}

// QueueVerb is what can be done to messages.
type QueueVerb string

// The verbs.
const (
	QueueHold    QueueVerb = "hold"    // deliver nothing until it is released
	QueueRelease QueueVerb = "release" // deliver what is held
	QueueRetry   QueueVerb = "retry"   // try now
	QueueBounce  QueueVerb = "bounce"  // give up, and tell the sender
	QueueDrop    QueueVerb = "drop"    // give up, and tell nobody
)

// QueueVerbs returns all verbs.
func QueueVerbs() []QueueVerb {
	return []QueueVerb{QueueHold, QueueRelease, QueueRetry, QueueBounce, QueueDrop}
}

// QueueAction is the body of an action. It names messages, or has a filter that chooses them.
// Recipients that do not fit the filter's states, destination and domain keep as they are.
type QueueAction struct {
	Verb QueueVerb `json:"verb"`
	// IDs are at most QueueActionMax. With them the filter chooses among their recipients
	// alone, and sender and times are not allowed in it.
	IDs []string `json:"ids,omitempty"`
	// Filter: {} is all messages, and nothing is no filter.
	Filter *QueueFilter `json:"filter,omitempty"`
	// After is where to go on, with a filter. Limit is how many messages to look at;
	// default and most QueueActionMax.
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"`
	// Text is what the sender is told by a bounce, and needed for it.
	Text string `json:"text,omitempty"`
	// Dry changes nothing, and tells what would be done.
	Dry bool `json:"dry,omitempty"`
}

// QueueDone is what an action did.
type QueueDone struct {
	Verb QueueVerb `json:"verb"`
	Dry  bool      `json:"dry,omitempty"`
	// Messages were changed, by ID; Recipients is how many of theirs, Reports how many
	// reports go to their senders.
	Messages   []string `json:"messages"`
	Recipients int      `json:"recipients"`
	Reports    int      `json:"reports"`
	// Problems are messages that could not be changed.
	Problems []QueueProblem `json:"problems,omitempty"`
	// Next is After for going on; empty at the end.
	Next string `json:"next,omitempty"`
}

// QueueProblem is why a message could not be changed: CodeConflict if it is being delivered
// at the moment, CodeNotFound if it is not there.
type QueueProblem struct {
	ID    string `json:"id"`
	Error *Error `json:"error"`
}
