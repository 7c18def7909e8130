package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// keep.go: messages that come in for the queue.

// Keeping is a message for the queue.
type Keeping struct {
	Sender smtp.Sender
	// Recipients are those that it is for. At least one.
	Recipients []KeptRecipient
	// Origin is where it came from. TLSOptional is found out by Keep, from the content, if it is
	// Trusted.
	Origin store.Origin
	// Held, if not empty, is why nobody gets it before a person has looked.
	Held string
	// Content may be read twice: a report may return it, too.
	Content smtp.Content
}

// KeptRecipient is a recipient of a message for the queue.
type KeptRecipient struct {
	smtp.Recipient
	// Destination is where it waits.
	Destination store.Destination
	// Reply is what the next hop said, if it was asked before: a refusal for good becomes a
	// report, a temporary one a try later. Nil if it was not asked.
	Reply *smtp.Reply
	// Held, if not empty, is why this recipient alone does not get it before a person has
	// looked.
	Held string
}

// Keep puts a message into the queue and returns its name once it is safe. If all recipients
// had been refused the name is that of the report, and empty if there is none. An error, which
// ReplyOf turns into the answer, means that it is not there, or that this could not be found
// out.
func (e *Engine) Keep(ctx context.Context, k Keeping) (store.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, e.opts.KeepTime)
	defer cancel()
	if err := k.noteTLS(); err != nil {
		return "", keepError(err)
	}
	now := e.now()
	m, failed := e.messageOf(k, now)
	if m == nil {
		return e.returnAtOnce(ctx, k, failed, now)
	}
	in, err := e.opts.Queue.Begin(ctx, m)
	if err != nil {
		return "", keepError(err)
	}
	defer in.Abort()
	if _, err := k.Content.WriteTo(in); err != nil {
		return "", keepError(err)
	}
	id, err := e.commit(ctx, in, m)
	if err != nil {
		return "", keepError(err)
	}
	e.Stats.Kept.Add(1)
	if len(failed) > 0 {
		// What waits is safe; the report about the others is a message of its own.
		if _, err := e.returnAtOnce(ctx, k, failed, now); err != nil {
			return "", err
		}
	}
	return id, nil
}

// messageOf makes the record. Recipients that were refused for good are not in it.
func (e *Engine) messageOf(k Keeping, now time.Time) (m *store.Message, failed []KeptRecipient) {
	m = &store.Message{Arrived: now, Sender: k.Sender, Expires: now.Add(e.opts.Schedule.Expire), Origin: k.Origin}
	m.Origin.Reason = k.Held
	m.Priority = int(k.Sender.Priority)
	due := release(&m.Sender, now)
	m.Expires = due.Add(e.opts.Schedule.Expire)
	if by := k.Sender.By; !by.IsZero() {
		m.Origin.By, m.Origin.Mode = now.Add(time.Duration(by.Seconds)*time.Second), string(by.Mode)
		if by.Trace {
			m.Origin.Mode += traceMark
		}
		if by.Mode == smtp.ByReturn && m.Origin.By.Before(m.Expires) {
			m.Expires = m.Origin.By // RFC 2852, Section 4.1.4.1
		}
	}
	for _, r := range k.Recipients {
		sr := store.Recipient{Recipient: r.Recipient, Destination: r.Destination, Due: due, Last: r.Reply}
		switch {
		case r.Reply != nil && r.Reply.Permanent():
			failed = append(failed, r)
			continue
		case r.Reply != nil:
			sr.Tries, sr.Due = 1, e.opts.Schedule.next(now, 1)
		}
		if k.Held != "" || r.Held != "" {
			sr.State = store.Held
			m.Origin.Reason = cmp.Or(m.Origin.Reason, r.Held)
		}
		m.Recipients = append(m.Recipients, sr)
	}
	if len(m.Recipients) == 0 {
		return nil, failed
	}
	return m, failed
}

// traceMark in Origin.Mode asks for a report from each system. RFC 2852, Section 4.
const traceMark = "T"

// release takes what the sender says of the time before which nobody is to get the message
// (RFC 4865), and forgets it: the next hop must not hold it once more.
func release(s *smtp.Sender, now time.Time) time.Time {
	due := now
	switch {
	case s.HoldFor > 0:
		due = now.Add(s.HoldFor)
	case s.HoldUntil.After(now):
		due = s.HoldUntil
	}
	s.HoldFor, s.HoldUntil = 0, time.Time{}
	return due
}

// commit makes the message safe, and hands it to a worker if one is free.
func (e *Engine) commit(ctx context.Context, in store.Incoming, m *store.Message) (store.ID, error) {
	first := m.Recipients[0]
	if !dueAt(m, first.Destination) {
		id, err := in.Commit(ctx)
		e.nudge()
		return id, err
	}
	e.mu.Lock()
	d := e.destination(first.Destination)
	free := e.hire(d)
	e.mu.Unlock()
	if !free {
		id, err := in.Commit(ctx)
		e.staff(first.Destination, 1) // whoever works there looks again before it leaves
		return id, err
	}
	l, err := in.CommitLeased(ctx, first.Destination, e.opts.Lease)
	go e.work(d, l) // also after an error: it was hired
	if err != nil {
		return "", err
	}
	for _, r := range m.Recipients[1:] {
		if r.Destination != first.Destination {
			e.nudge()
			break
		}
	}
	return l.Message.ID, nil
}

// dueAt tells whether all recipients of a new message at a destination are due.
func dueAt(m *store.Message, d store.Destination) bool {
	for _, r := range m.Recipients {
		if r.Destination == d && (r.State != store.Waiting || r.Due.After(m.Arrived)) {
			return false
		}
	}
	return true
}

// returnAtOnce puts a report about refused recipients into the queue, if the sender wants
// one, and returns its name.
func (e *Engine) returnAtOnce(ctx context.Context, k Keeping, failed []KeptRecipient, now time.Time) (store.ID, error) {
	m := &store.Message{Arrived: now, Sender: k.Sender, Size: k.Content.Size(), Origin: k.Origin}
	var told []int
	for i, r := range failed {
		m.Recipients = append(m.Recipients, store.Recipient{Recipient: r.Recipient, Destination: r.Destination, State: store.Failed, Last: r.Reply, Tries: 1})
		told = append(told, i)
	}
	rep, err := e.report(m, k.Content, message.ActionFailed, told, nil, now)
	if err != nil {
		return "", keepError(err)
	}
	if rep == nil {
		return "", nil
	}
	in, err := e.opts.Queue.Begin(ctx, rep.Message)
	if err != nil {
		return "", keepError(err)
	}
	defer in.Abort()
	if _, err := in.Write(rep.Content); err != nil {
		return "", keepError(err)
	}
	id, err := in.Commit(ctx)
	if err != nil {
		return "", keepError(err)
	}
	e.Stats.Reports.Add(1)
	e.nudge()
	return id, nil
}

// keepError says what a client is told if its message could not be kept.
func keepError(err error) error {
	if r, ok := errors.AsType[*smtp.Reply](err); ok {
		return r
	}
	if errors.Is(err, store.ErrFull) {
		return smtp.Refuse(452, smtp.Enhanced{4, 3, 1}, "no room for the message now, try again later").Because(err)
	}
	return smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "message cannot be kept now, try again later").
		Because(fmt.Errorf("delivery: keeping a message: %w", err))
}
