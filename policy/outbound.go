package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// outbound.go: mail on its way out. Once for each attempt to deliver a message, filters may
// choose the way that it goes (StageRoute) and look at the hosts that it will be tried at
// (StageDeliver); afterwards they are told what became of it. The Session is that in which the
// message came, as far as it is still known, and its ID is that of the message.

// Outbound is an attempt to deliver a message to hosts elsewhere, at the stages from
// StageRoute on. Transaction.Rcpts are the recipients that it is about.
type Outbound struct {
	// Target is the domain, or the address literal, that the recipients are at.
	Target string
	// Try counts the attempts for these recipients, this one included.
	Try int
	// Arrived is when the message came, Expires when it is given up; zero if it is not said.
	Arrived, Expires time.Time
	// Way is what filters chose so far.
	Way Way
	// Hops are the hosts that will be tried, in order, at StageDeliver.
	Hops []Hop
	// Fates are, at the stages behind it, what became of each of Transaction.Rcpts.
	Fates []Fate
}

// Way is how a message goes out. The zero Way leaves all to who delivers.
type Way struct {
	// Relay is the smart host that it goes to, instead of the hosts of its domain.
	Relay string
	// Source is the name of the address that connections come from.
	Source string
	// TLS says how far connections must be encrypted.
	TLS Encryption
	// To is where to connect to instead of the addresses of the first host.
	To netip.AddrPort
}

// Encryption says how far connections of outgoing mail must be encrypted. The numbers are those
// of the filter ABI.
type Encryption uint8

// The values of Encryption.
const (
	AsPolicySays  Encryption = 0 // as the other side's policy says
	NoEncryption  Encryption = 1 // STARTTLS is not said; takes the operator's word
	Opportunistic Encryption = 2 // where it is offered, whatever the other side's policy says; takes the operator's word
	Encrypted     Encryption = 3 // not in clear
	Verified      Encryption = 4 // and to a host with a certificate for its name
)

var encryptionNames = [...]string{"policy", "off", "opportunistic", "required", "verify"}

// String returns the word for it: policy, off, opportunistic, required or verify.
func (e Encryption) String() string {
	if int(e) < len(encryptionNames) {
		return encryptionNames[e]
	}
	return fmt.Sprintf("encryption(%d)", uint8(e))
}

// Hop is a host that will be tried.
type Hop struct {
	// Host is its name, empty for an address literal. Preference is that of its MX record.
	Host       string
	Preference uint16
	Addrs      []netip.Addr
	// Demand is what TLS it must show, in a word. Refused is why it is not to be used; empty if
	// it is.
	Demand, Refused string
}

// Fate is what became of a recipient.
type Fate struct {
	// Reply is what was said, or what went wrong in the words of a reply.
	Reply *smtp.Reply
	// Host and Addr are who said it, empty if nobody was reached.
	Host string
	Addr netip.Addr
	// Due is when it is tried again; zero if it is not.
	Due time.Time
}

// outward tells whether the stage is one of mail on its way out.
func (s Stage) outward() bool { return s >= StageRoute && s <= StageDelivered }

// Limits of what a filter chooses.
const (
	maxRelay  = 300 // a host name, and a port
	maxSource = 64
)

// way returns the Way with the edits so far, to be changed.
func (e *Edits) way(stage Stage) (*Way, error) {
	if e.stage != stage || e.tx == nil || e.tx.Outbound == nil {
		return nil, ErrPhase
	}
	if e.envelopeOps++; e.envelopeOps > maxEnvelopeOps {
		return nil, fmt.Errorf("%w: way", ErrTooMuch)
	}
	if !e.ownWay {
		e.chosen, e.ownWay = e.tx.Outbound.Way, true
	}
	return &e.chosen, nil
}

// Way returns the way of an outgoing message with the edits so far.
func (e *Edits) Way() Way {
	switch {
	case e.ownWay:
		return e.chosen
	case e.tx != nil && e.tx.Outbound != nil:
		return e.tx.Outbound.Way
	}
	return Way{}
}

// SetRelay sends the message to a smart host, at StageRoute; the empty relay sends it to the
// hosts of its domain. Whether a relay can be one is for who delivers to say: one that cannot is
// the filter's failure.
func (e *Edits) SetRelay(relay string) error {
	w, err := e.way(StageRoute)
	if err != nil {
		return err
	}
	if len(relay) > maxRelay || !isWord(relay) {
		return fmt.Errorf("%w: not a relay: %.80q", ErrRange, relay)
	}
	w.Relay = relay
	e.log = append(e.log, Edit{Kind: EditWay, Name: "relay", Value: relay})
	return nil
}

// SetSource chooses the address that connections come from, at StageRoute, by its name; the
// empty name leaves it to who delivers.
func (e *Edits) SetSource(name string) error {
	w, err := e.way(StageRoute)
	if err != nil {
		return err
	}
	if len(name) > maxSource || !isWord(name) {
		return fmt.Errorf("%w: not the name of a source: %.80q", ErrRange, name)
	}
	w.Source = name
	e.log = append(e.log, Edit{Kind: EditWay, Name: "source", Value: name})
	return nil
}

// SetEncryption says how far connections must be encrypted, at StageRoute. Encrypted and
// Verified count beside what the other side's policy asks for; what is weaker counts only where
// the operator allows it.
func (e *Edits) SetEncryption(tls Encryption) error {
	w, err := e.way(StageRoute)
	if err != nil {
		return err
	}
	if tls > Verified {
		return fmt.Errorf("%w: no such encryption: %d", ErrRange, tls)
	}
	w.TLS = tls
	e.log = append(e.log, Edit{Kind: EditWay, Name: "tls", Value: tls.String()})
	return nil
}

// Connect connects to another address than those of the first host, at StageDeliver. The host
// keeps its name, and what TLS it must show. A port of 0 is the one that would have been used;
// the zero AddrPort takes back what was said before.
func (e *Edits) Connect(to netip.AddrPort) error {
	w, err := e.way(StageDeliver)
	if err != nil {
		return err
	}
	if to != (netip.AddrPort{}) && (!to.Addr().IsValid() || to.Addr().Zone() != "") {
		return fmt.Errorf("%w: not an address to connect to: %v", ErrRange, to)
	}
	w.To = to
	value := ""
	if to.IsValid() {
		value = to.String()
	}
	e.log = append(e.log, Edit{Kind: EditWay, Name: "to", Value: value})
	return nil
}

// isWord tells whether a string is visible ASCII. The empty string is.
func isWord(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// applyWay makes the way that was chosen count. Outbound is copied: who copied the transaction
// keeps what it had.
func (e *Edits) applyWay() {
	if e.ownWay {
		out := *e.tx.Outbound
		out.Way = e.chosen
		e.tx.Outbound = &out
	}
}

// Drop closes all instances without a word to the filters: an attempt to deliver has no end that
// they are told of, as StageClose tells of that of a connection. Otherwise it is as Close.
func (r *Run) Drop() {
	r.stages = 0
	for i := range r.links {
		r.links[i].drop()
	}
}
