package filter

import (
	"strconv"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// outbound.go: mail on its way out. The handlers are called once for each attempt to deliver a
// message from the queue to hosts elsewhere. A call is a session of its own: what has to last
// from one to the next belongs in [Event.KV].

// OutboundEvent is an attempt to deliver a message. Its session is the one in which the message
// came, as far as it is still known.
type OutboundEvent struct{ Event }

// RouteEvent is an attempt that begins. Choosing takes the grant route.
type RouteEvent struct{ OutboundEvent }

// DeliverEvent is an attempt of which it is known which hosts it will try.
type DeliverEvent struct{ OutboundEvent }

// OutcomeEvent is what became of recipients in an attempt.
type OutcomeEvent struct{ OutboundEvent }

// QueueID returns the name that the message has in the queue and in the gateway's log.
func (e OutboundEvent) QueueID() string { return e.text(abi.FieldQueueID) }

// Target returns the domain that the recipients are at, in A-labels and lower case, or an address
// literal with its brackets.
func (e OutboundEvent) Target() string { return e.text(abi.FieldTarget) }

// Try returns which attempt it is for these recipients, from 1.
func (e OutboundEvent) Try() int { return int(e.number(abi.FieldTry)) }

// Arrived returns when the message came, in nanoseconds since 1970 UTC.
func (e OutboundEvent) Arrived() int64 { return e.number(abi.FieldArrived) }

// Expires returns when the message is given up, likewise; 0 if its sender did not say.
func (e OutboundEvent) Expires() int64 { return e.number(abi.FieldExpires) }

// From returns the sender; the null sender is the zero Address.
func (e OutboundEvent) From() Address { return Address{e.text(abi.FieldMailFrom)} }

// Params returns the parameters of MAIL.
func (e OutboundEvent) Params() Params { return e.list(abi.FieldMailParams) }

// Size returns the size of the message in octets.
func (e OutboundEvent) Size() int64 { return e.number(abi.FieldSize) }

// Recipients returns the recipients that the attempt, or what became of it, is about. They cannot
// be changed any more.
func (e OutboundEvent) Recipients() []Address { return Recipients{e.call}.All() }

// Way returns what filters chose so far, this one included: the value of relay, source, tls or
// to; empty if none chose it.
func (e OutboundEvent) Way(key string) string {
	for _, s := range e.list(abi.FieldWay) {
		if k, v := cut(s, '='); k == key {
			return v
		}
	}
	return ""
}

// SetRelay sends the message to a smart host instead of the hosts of its domain: a host name, an
// address, or "mx:" and the domain whose hosts it is. Whether there can be one of that name is
// seen when the handler has returned: one that cannot be is the filter's failure.
func (e RouteEvent) SetRelay(relay string) error {
	e.call.edited = true
	return check("set relay", e.call.host.OutRelay([]byte(relay)))
}

// SetSource chooses the address that connections come from, by its name in the gateway's
// configuration. A name that is not there is the filter's failure.
func (e RouteEvent) SetSource(name string) error {
	e.call.edited = true
	return check("set source", e.call.host.OutSource([]byte(name)))
}

// Encryption says how far connections of outgoing mail must be encrypted.
type Encryption = abi.Encryption

// How far connections may have to be encrypted.
const (
	TLSPolicy        = abi.TLSPolicy        // as the other side's policy says
	TLSOff           = abi.TLSOff           // not at all; takes more than the grant route
	TLSOpportunistic = abi.TLSOpportunistic // where it is offered; takes more than the grant route
	TLSRequired      = abi.TLSRequired      // in any case
	TLSVerify        = abi.TLSVerify        // and to hosts with a certificate for their name
)

// SetTLS says how far connections must be encrypted. TLSRequired and TLSVerify count beside what
// the other side's policy asks for.
func (e RouteEvent) SetTLS(mode Encryption) error {
	e.call.edited = true
	return check("set encryption", e.call.host.OutTls(int32(mode)))
}

// Connect connects to another address than those of the first host: an address and perhaps a
// port, as in "192.0.2.1:26" and "[2001:db8::1]:26". The host keeps its name and what TLS it must
// show. The gateway holds the address against its own rules.
func (e DeliverEvent) Connect(address string) error {
	e.call.edited = true
	return check("connect", e.call.host.OutConnect([]byte(address)))
}

// Hop is a host that will be tried.
type Hop struct {
	// Host is its name, empty for an address literal.
	Host       string
	Preference int
	// Addrs are its addresses, as text.
	Addrs []string
	// Demand is what TLS it must show, in a word.
	Demand string
	// Refused is why it is not to be used; empty if it is.
	Refused string
}

// Hops returns the hosts that will be tried, in order.
func (e DeliverEvent) Hops() []Hop {
	var hops []Hop
	for _, s := range e.list(abi.FieldHops) {
		p := fields(s, 5)
		h := Hop{Host: p[0], Demand: p[3], Refused: p[4]}
		h.Preference, _ = strconv.Atoi(p[1])
		for rest := p[2]; rest != ""; {
			var a string
			a, rest = cut(rest, ',')
			h.Addrs = append(h.Addrs, a)
		}
		hops = append(hops, h)
	}
	return hops
}

// Fate is what became of a recipient.
type Fate struct {
	Rcpt Address
	// Reply is the reply in one line, as in "550 5.1.1 no such user".
	Reply string
	// Host and Addr are who said it, empty if nobody was reached.
	Host, Addr string
	// Due is when it is tried again, in nanoseconds since 1970 UTC; 0 if it is not.
	Due int64
}

// Fates returns what became of each recipient.
func (e OutcomeEvent) Fates() []Fate {
	rcpts := e.Recipients()
	var fates []Fate
	for i, s := range e.list(abi.FieldFates) {
		p := fields(s, 4)
		f := Fate{Host: p[1], Addr: p[2], Reply: p[3]}
		f.Due, _ = strconv.ParseInt(p[0], 10, 64)
		if i < len(rcpts) {
			f.Rcpt = rcpts[i]
		}
		fates = append(fates, f)
	}
	return fates
}

// fields splits a text at TABs into n parts, of which the last may be empty.
func fields(s string, n int) []string {
	parts := make([]string, n)
	for i := range parts {
		parts[i], s = cut(s, '\t')
	}
	return parts
}

// OnRoute sets the handler for an attempt to deliver a message, before anything is looked up. It
// may choose the way; Reject makes the recipients fail, Tempfail has them wait.
func (f *Filter) OnRoute(handle func(w Reply, e *RouteEvent)) {
	f.on(abi.HookRoute, func(c *call) { handle(Reply{c}, &RouteEvent{OutboundEvent{Event{c}}}) })
}

// OnDeliver sets the handler for an attempt of which it is known which hosts it will try.
// Verdicts are as for OnRoute.
func (f *Filter) OnDeliver(handle func(w Reply, e *DeliverEvent)) {
	f.on(abi.HookDeliver, func(c *call) { handle(Reply{c}, &DeliverEvent{OutboundEvent{Event{c}}}) })
}

// OnDeferred sets the observer of recipients that wait for another try.
func (f *Filter) OnDeferred(observe func(e *OutcomeEvent)) { f.outcome(abi.HookDeferred, observe) }

// OnBounced sets the observer of recipients that have failed for good.
func (f *Filter) OnBounced(observe func(e *OutcomeEvent)) { f.outcome(abi.HookBounced, observe) }

// OnDelivered sets the observer of recipients that the next hop took.
func (f *Filter) OnDelivered(observe func(e *OutcomeEvent)) { f.outcome(abi.HookDelivered, observe) }

func (f *Filter) outcome(hook abi.Hook, observe func(e *OutcomeEvent)) {
	f.on(hook, func(c *call) { observe(&OutcomeEvent{OutboundEvent{Event{c}}}) })
}
