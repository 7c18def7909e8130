package smtp

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"
)

// client_send.go sends a message in one call, and accounts for every recipient of it.
//
// With PIPELINING the sender, the recipients and DATA go in one write, and the content in the
// next: two round trips in place of one for each recipient and three more (RFC 2920). What
// DATA comes to is not known when it is said, so each of these has to come right: the sender
// is refused, all recipients are, some are, DATA is; and whichever it is, the server may have
// asked for content all the same.

// Envelope is what a message travels with: who sends it, and who is to get it.
type Envelope struct {
	From Sender
	To   []Recipient
	// AsSaid takes Body, UTF8 and Size of From for the truth, but for what the server lacks and
	// the content turns out not to need. Without it Send looks at the content, as far as that
	// can be done, and sets what From leaves out.
	AsSaid bool
}

// SendResult is what became of a message. Every recipient of the envelope is in Accepted or in
// Rejected.
type SendResult struct {
	// Accepted are the recipients for whom the server has taken the message over.
	Accepted []Path
	// Rejected has an error for each of the others, with its Recipient.
	Rejected []*ClientError
	// Response is the server's reply to the message, with LMTP the last of them; nil if it
	// came to none.
	Response *Reply
	// EnvelopeTime is how long it took to agree on the envelope, MessageTime from there to the
	// last reply.
	EnvelopeTime, MessageTime time.Duration
	// Size is how many octets of content were sent, before dots were stuffed.
	Size int64
}

// Send sends a message: MAIL, RCPT for each recipient, and the content. It returns an error if
// nobody was accepted; that some were not is in the result alone. The error is a *ClientError,
// temporary if any recipient may be tried again.
//
// What the server must not be sent is refused before it is asked: a message larger than its
// SIZE (552 5.3.4), 8-bit content without 8BITMIME (554 5.6.3; RFC 6152, Section 3 would have
// it converted, which breaks signatures), UTF-8 in an address or the header without SMTPUTF8
// (550 5.6.7), and what Mail refuses. A broken wish for reports is 501 5.5.4, whatever the
// server offers.
//
// Content that can be written again, as a Content, or that can seek, is looked at before MAIL.
// Of any other io.Reader it is the first 64 KiB: what turns out later to be more than the
// server was told of ends the connection. *bytes.Reader, *strings.Reader, *bytes.Buffer,
// *os.File and *bufio.Reader all are io.WriterTo.
func (c *Client) Send(ctx context.Context, e Envelope, content io.WriterTo) (SendResult, error) {
	began := time.Now()
	// Whoever sends a message in one call ends its context then. To be woken by that costs more
	// than to watch the next one.
	defer c.watched.end()
	s := &sending{c: c, e: e, result: &SendResult{}}
	out, err := s.prepare(ctx, content)
	var replies []*Reply
	if err == nil {
		var ready *Reply
		ready, err = s.envelope()
		s.result.EnvelopeTime = time.Since(began)
		began = time.Now()
		if err == nil {
			replies, err = s.content(ready, out)
			s.result.MessageTime, s.result.Size = time.Since(began), out.size
		}
	}
	return s.account(replies, err)
}

// sending is one call of Send.
type sending struct {
	c      *Client
	e      Envelope
	to     []Recipient // that the server is asked about
	taken  []Path      // of these, those that it accepted
	result *SendResult
}

func (s *sending) reject(e *ClientError, p Path) {
	one := *e
	one.Recipient = p
	s.result.Rejected = append(s.result.Rejected, &one)
}

// prepare checks all that can be checked before MAIL, and completes the sender.
func (s *sending) prepare(ctx context.Context, content io.WriterTo) (*outgoing, error) {
	c := s.c
	c.phase = PhaseMail
	if err := c.enter(ctx); err != nil {
		return nil, c.typed(err)
	}
	if c.Unasked() {
		return nil, c.typed(c.failAs(KindProtocol, errUnasked)) // it would be taken for the reply to MAIL
	}
	if len(s.e.To) == 0 {
		return nil, unfit(PhaseRcpt, Refuse(554, Enhanced{5, 5, 1}, "a message needs a recipient"))
	}
	if err := s.e.checkReports(); err != nil {
		return nil, err
	}
	out, err := s.look(content)
	if err != nil {
		return nil, err
	}
	if s.to = s.addressable(); len(s.to) == 0 {
		return nil, s.nobody(0)
	}
	return out, nil
}

// addressable returns the recipients that the server can be asked about. As a rule that is all
// of them.
func (s *sending) addressable() []Recipient {
	all := s.e.To
	var some []Recipient
	for i, r := range all {
		err := s.c.addressable(r)
		switch {
		case err != nil && len(s.result.Rejected) == 0:
			some = slices.Clone(all[:i])
		case err == nil && len(s.result.Rejected) > 0:
			some = append(some, r)
		}
		if err != nil {
			s.reject(unfit(PhaseRcpt, ReplyOf(err)), r.Path)
		}
	}
	if len(s.result.Rejected) == 0 {
		return all
	}
	return some
}

// look learns from the content what it needs, and holds it against what the server offers.
func (s *sending) look(content io.WriterTo) (*outgoing, error) {
	c, from := s.c, &s.e.From
	out := &outgoing{content: content}
	lacks := from.Body == BodyEightBit && !c.offers.eightBit || from.UTF8 && !c.offers.utf8
	if !s.e.AsSaid || lacks {
		seen, err := scan(content)
		if err != nil {
			return nil, &ClientError{Phase: PhaseMail, Kind: KindContent, Err: err}
		}
		out.content, out.guard = seen.content, !seen.whole && !s.e.AsSaid
		if !s.e.AsSaid {
			seen.tell(from, c.offers)
		}
		if lacks {
			seen.correct(from, c.offers)
		}
	}
	out.eightBit = c.offers.eightBit || from.Body == BodyBinary
	out.utf8 = from.UTF8 || from.Path.NeedsUTF8()
	switch max := c.MaxSize(); {
	case max > 0 && from.Size > max:
		return nil, unfit(PhaseMail, errTooLargeThere)
	case from.Body == BodyEightBit && !c.offers.eightBit:
		return nil, unfit(PhaseMail, errEightBitContent)
	case from.UTF8 && !c.offers.utf8:
		return nil, unfit(PhaseMail, errUTF8Header)
	}
	if err := c.suits(*from); err != nil {
		return nil, unfit(PhaseMail, ReplyOf(err))
	}
	return out, nil
}

// tell sets what the sender has not said.
func (s *scanned) tell(from *Sender, offers extensions) {
	if from.Size == 0 {
		from.Size = s.size
	}
	switch {
	case from.Body == BodyBinary:
	case s.eightBit:
		from.Body = BodyEightBit
	case from.Body == "" && !s.whole && offers.eightBit:
		from.Body = BodyEightBit // which it may turn out to be
	}
	from.UTF8 = from.UTF8 || s.utf8Header()
}

// correct takes back what the sender said, where the server lacks it and the content does not need
// it: there are programs that say it of all mail, and a message in ASCII goes everywhere.
func (s *scanned) correct(from *Sender, offers extensions) {
	if !s.whole {
		return
	}
	if from.Body == BodyEightBit && !offers.eightBit && !s.eightBit {
		from.Body = ""
	}
	if from.UTF8 && !offers.utf8 && !s.utf8Header() {
		from.UTF8 = false
	}
}

// checkReports refuses what RFC 3461 does not know.
func (e *Envelope) checkReports() error {
	from := e.From
	if from.Return != "" && from.Return != ReturnFull && from.Return != ReturnHeaders {
		return unfit(PhaseMail, syntaxError("RET is FULL or HDRS"))
	}
	if checkPrintable(from.EnvID) != nil || len(appendXtext(nil, from.EnvID)) > maxEnvID {
		return unfit(PhaseMail, syntaxError("ENVID is up to 100 printable characters"))
	}
	for _, r := range e.To {
		if n := r.Notify; n.Has(NotifyNever) && n != NotifyNever || n > NotifyNever|NotifySuccess|NotifyFailure|NotifyDelay {
			return unfit(PhaseRcpt, syntaxError("NOTIFY=NEVER stands alone"))
		}
		if o := r.Original; !o.IsZero() && (!o.sound() || len(o.append(nil)) > maxORcpt) {
			return unfit(PhaseRcpt, syntaxError("ORCPT is an address type and an address"))
		}
	}
	return nil
}

// envelope agrees on sender and recipients. ready is the reply to DATA if that was said, too.
func (s *sending) envelope() (ready *Reply, err error) {
	c := s.c
	rcpts, ready, err := c.envelope(s.e.From, s.to, !c.offers.chunking)
	if err != nil {
		if c.broken == nil {
			c.phase = PhaseMail // which is what was refused
		}
		e := c.typed(err)
		c.noContent(ready, false)
		return nil, e
	}
	s.taken = make([]Path, 0, len(s.to))
	for i, r := range s.to {
		if rcpts[i] == nil {
			s.taken = append(s.taken, r.Path)
			continue
		}
		e := s.c.typed(rcpts[i])
		e.Phase = PhaseRcpt
		s.reject(e, r.Path)
	}
	s.to = nil
	if len(s.taken) > 0 {
		return ready, nil
	}
	c.noContent(ready, true)
	return nil, s.nobody(0)
}

// nobody is the error of a message that has no recipient left: a temporary one if there is
// one, else the first of those that count, from an index on.
func (s *sending) nobody(from int) *ClientError {
	for _, e := range s.result.Rejected {
		if e.Temporary() {
			return e
		}
	}
	return s.result.Rejected[from]
}

// noContent ends a transaction for which there is no content, since nobody is to have it. open
// tells that the server took MAIL. ready is what it said to DATA, nil if that was not said.
//
// RFC 2920, Section 3.1: a server that asks for content gets a lone dot. What it makes of the
// empty message does not matter.
func (c *Client) noContent(ready *Reply, open bool) {
	c.accepted = 0
	c.unclear = c.unclear || open || ready != nil
	if ready == nil || c.broken != nil {
		return
	}
	if ready.Code != 354 {
		c.refusal(ready)
		return
	}
	phase := c.phase
	defer func() { c.phase = phase }()
	c.phase = PhaseEnd
	switch {
	case c.Unasked():
		c.failAs(KindProtocol, errUnasked)
		return
	case c.opts.LMTP:
		// RFC 2033, Section 4.2 forbids this 354, so that nobody need know how many replies
		// the dot has.
		c.failAs(KindProtocol, errors.New("smtp: LMTP server asks for content without a recipient"))
		return
	}
	if c.queue(func(b []byte) []byte { return append(b, endMark...) }) == nil {
		c.commandReply(c.opts.Timeouts.DataEnd)
	}
}

// content sends the content to the recipients that were accepted.
func (s *sending) content(ready *Reply, out *outgoing) (replies []*Reply, err error) {
	c := s.c
	if ready == nil {
		replies, err = c.data(out)
	} else {
		c.phase = PhaseData
		replies, err = c.afterData(ready, out)
	}
	if err == nil {
		return replies, nil
	}
	c.unclear = true // DATA or a chunk was refused
	e := c.typed(err)
	if out.refused != nil {
		e = &ClientError{Phase: PhaseContent, Kind: KindUnfit, Reply: out.refused}
	} else if out.failed != nil && e.Reply == nil {
		e.Kind = KindContent
	}
	return nil, e
}

// account says of every recipient what became of it.
func (s *sending) account(replies []*Reply, err error) (SendResult, error) {
	c := s.c
	e, failed := err.(*ClientError)
	if failed {
		// Whoever was not refused before has the fate of the message.
		for _, r := range s.to {
			s.reject(e, r.Path)
		}
		if len(s.to) == 0 && len(s.taken) == 0 && len(s.result.Rejected) == 0 {
			for _, r := range s.e.To {
				s.reject(e, r.Path)
			}
		}
		for _, p := range s.taken {
			s.reject(e, p)
		}
		return *s.result, e
	}
	before := len(s.result.Rejected)
	s.result.Accepted = s.taken[:0] // in place: those that stay move to the front
	for i, p := range s.taken {
		r := replies[min(i, len(replies)-1)]
		s.result.Response = r
		if r.Positive() {
			s.result.Accepted = append(s.result.Accepted, p)
			continue
		}
		one := &ClientError{Phase: PhaseEnd, Kind: KindRefused, Reply: r}
		if lost, ok := errors.AsType[*ClientError](r.Cause); ok {
			one = lost // LMTP: the connection broke between two replies
		}
		s.reject(one, p)
	}
	if len(s.result.Accepted) > 0 {
		return *s.result, nil
	}
	c.unclear = true
	return *s.result, s.nobody(before)
}
