package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// operate.go: what a person does to messages that wait. Each message is changed in a step of
// its own, through the store, so that it does not matter which node the person asked. What is
// being delivered at the moment is left alone: nobody can say what the other side has taken.

// Choice says which messages are meant: those named, or those that match a filter. A filter
// chooses recipients, too: of a message that has others, these keep as they are.
type Choice struct {
	// IDs are messages. With any of them After and Limit are not looked at, and of Filter
	// what is about recipients alone: States, Destination and Domain.
	IDs []store.ID
	// Filter chooses messages and recipients. One that is empty is all; without IDs nil is
	// an error.
	Filter *store.Filter
	// After is where to go on: at the messages behind it.
	After store.ID
	// Limit is how many messages to look at that match. Default and most 1000.
	Limit int
	// Dry changes nothing, and tells what would be done.
	Dry bool
}

// maxChoice is how many messages one call changes.
const maxChoice = 1000

// Done is what was done.
type Done struct {
	// Messages were changed, in the order of the choice; Recipients is how many of theirs.
	Messages   []store.ID
	Recipients int
	// Reports were put into the queue, for the senders.
	Reports int
	// Problems are messages that could not be changed, in the order of the choice.
	Problems []Problem
	// Next is After for going on; empty at the end.
	Next store.ID
}

// Problem is why a message could not be changed: store.ErrLeased if it is being delivered at
// the moment, store.ErrNotFound, or what the store said.
type Problem struct {
	ID  store.ID
	Err error
}

// ErrNoChoice is what an operation returns that is told neither messages nor a filter.
var ErrNoChoice = errors.New("delivery: neither messages nor a filter were named")

// operation is what is done to each recipient.
type operation struct {
	// word is for the log.
	word string
	// change changes a recipient and tells whether it did.
	change func(r *store.Recipient, now time.Time) bool
	// message changes the message of such recipients.
	message func(m *store.Message, now time.Time)
	// refusal is what the sender is told of them, nil for nothing.
	refusal *smtp.Reply
}

// Hold keeps recipients that wait until they are released. Errors of this and of the other
// operations tell that messages could not be listed; what was done until then is in Done.
func (e *Engine) Hold(ctx context.Context, c Choice) (Done, error) {
	return e.operate(ctx, c, operation{word: "held", change: func(r *store.Recipient, _ time.Time) bool {
		if r.State != store.Waiting {
			return false
		}
		r.State = store.Held
		return true
	}})
}

// Release lets recipients that are held be delivered now. Their message is tried for as long
// as a new one from now on: the time for which it was held does not count.
func (e *Engine) Release(ctx context.Context, c Choice) (Done, error) {
	op := operation{word: "released", change: func(r *store.Recipient, now time.Time) bool {
		if r.State != store.Held {
			return false
		}
		r.State, r.Due = store.Waiting, now
		return true
	}}
	op.message = func(m *store.Message, now time.Time) {
		if until := now.Add(e.opts.Schedule.Expire); !m.Expires.IsZero() && m.Expires.Before(until) {
			m.Expires = until
		}
	}
	return e.operate(ctx, c, op)
}

// Retry makes recipients that wait for a later time due now. Hosts elsewhere that could not be reached
// are tried, too, however short a time ago that was.
func (e *Engine) Retry(ctx context.Context, c Choice) (Done, error) {
	if e.out != nil && !c.Dry {
		e.out.forgive() // who says so wants to see a try, and not to hear of the last one
	}
	return e.operate(ctx, c, operation{word: "made due", change: func(r *store.Recipient, now time.Time) bool {
		if r.State != store.Waiting || !r.Due.After(now) {
			return false // it is due already, and may be under way
		}
		r.Due = now
		return true
	}})
}

// Bounce gives recipients up that wait or are held, and tells the sender so, in one step. The
// report has the text, which CheckBounce must like. It comes from a person, so no server is said to
// have spoken it. There is no report to the null sender, and none where the sender wants none.
func (e *Engine) Bounce(ctx context.Context, c Choice, text string) (Done, error) {
	if err := CheckBounce(text); err != nil {
		return Done{}, err
	}
	text = strings.TrimSpace(strings.Map(visible, text))
	return e.operate(ctx, c, operation{word: "bounced", change: giveUp, refusal: smtp.Refuse(554, smtp.Enhanced{5, 0, 0}, text)})
}

// CheckBounce tells what is wrong with the text of a bounce.
func CheckBounce(text string) error {
	switch {
	case strings.TrimSpace(strings.Map(visible, text)) == "":
		return errors.New("delivery: a bounce needs a text")
	case len(text) > maxBounceText:
		return fmt.Errorf("delivery: the text of a bounce has more than %d octets", maxBounceText)
	case !utf8.ValidString(text):
		return errors.New("delivery: the text of a bounce is not UTF-8")
	}
	return nil
}

// maxBounceText fits into one line of a report with room for what stands before it.
const maxBounceText = 400

// visible makes a space of a control character.
func visible(r rune) rune {
	if r < ' ' || 0x7f <= r && r < 0xa0 {
		return ' '
	}
	return r
}

// Drop gives recipients up that wait or are held, and tells nobody.
func (e *Engine) Drop(ctx context.Context, c Choice) (Done, error) {
	return e.operate(ctx, c, operation{word: "dropped", change: giveUp})
}

// giveUp ends recipients that nobody has ended yet.
func giveUp(r *store.Recipient, _ time.Time) bool {
	if !pending(r) {
		return false
	}
	r.State = store.Failed
	return true
}

// pending tells whether something is still to become of a recipient.
func pending(r *store.Recipient) bool { return r.State == store.Waiting || r.State == store.Held }

// operate does op to what is chosen.
func (e *Engine) operate(ctx context.Context, c Choice, op operation) (Done, error) {
	ids, next, err := e.choose(ctx, c)
	if err != nil {
		return Done{}, err
	}
	done := e.operateAll(ctx, ids, op, c)
	done.Next = next
	if !c.Dry && done.Recipients > 0 {
		e.nudge()
	}
	return done, ctx.Err()
}

// choose returns the messages that are meant, and after which to go on.
func (e *Engine) choose(ctx context.Context, c Choice) (ids []store.ID, next store.ID, err error) {
	if len(c.IDs) > maxChoice {
		return nil, "", fmt.Errorf("delivery: more than %d messages at once", maxChoice)
	}
	if len(c.IDs) > 0 {
		return c.IDs, "", nil
	}
	if c.Filter == nil {
		return nil, "", ErrNoChoice
	}
	limit := c.Limit
	if limit <= 0 || limit > maxChoice {
		limit = maxChoice
	}
	// They are changed after the list has ended: a driver may hold a connection for it.
	err = e.opts.Queue.List(ctx, *c.Filter, c.After, func(m *store.Message) bool {
		if len(ids) == limit {
			next = ids[limit-1]
			return false
		}
		ids = append(ids, m.ID)
		return true
	})
	if err != nil && !errors.Is(err, store.ErrCorrupt) { // the store has told of what is damaged
		return nil, "", fmt.Errorf("delivery: list the queue: %w", err)
	}
	return ids, next, nil
}

// recipients tells which recipients of the messages are meant.
func (c Choice) recipients() func(*store.Recipient) bool {
	f := c.Filter
	if f == nil {
		return func(*store.Recipient) bool { return true }
	}
	return func(r *store.Recipient) bool {
		return (len(f.States) == 0 || slices.Contains(f.States, r.State)) &&
			(f.Destination == "" || f.Destination == r.Destination) &&
			(f.Domain == "" || strings.EqualFold(f.Domain, r.Path.Domain.String()))
	}
}

// operators is how many messages are changed at once: drivers sync the changes of many
// callers together.
const operators = 16

// operateAll changes messages, several at once.
func (e *Engine) operateAll(ctx context.Context, ids []store.ID, op operation, c Choice) Done {
	type result struct {
		recipients, reports int
		err                 error
	}
	results := make([]result, len(ids))
	named, chosen := len(c.IDs) > 0, c.recipients()
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(operators, len(ids)) {
		workers.Go(func() {
			for i := range next {
				r := &results[i]
				r.recipients, r.reports, r.err = e.operateOne(ctx, ids[i], op, chosen, c.Dry)
			}
		})
	}
	for i := range ids {
		next <- i
	}
	close(next)
	workers.Wait()
	var done Done
	for i, r := range results {
		if errors.Is(r.err, store.ErrNotFound) && !named {
			continue // it was delivered since it was listed
		}
		if r.err != nil {
			done.Problems = append(done.Problems, Problem{ids[i], r.err})
			continue
		}
		if r.recipients > 0 {
			done.Messages = append(done.Messages, ids[i])
		}
		done.Recipients += r.recipients
		done.Reports += r.reports
	}
	return done
}

// operateOne changes one message, and returns how many of its recipients, and how many
// reports that makes.
func (e *Engine) operateOne(ctx context.Context, id store.ID, op operation, chosen func(*store.Recipient) bool, dry bool) (recipients, reports int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	now := e.now()
	apply := func(m *store.Message) (who []int) {
		for i := range m.Recipients {
			if r := &m.Recipients[i]; chosen(r) && op.change(r, now) {
				who = append(who, i)
			}
		}
		if len(who) > 0 && op.message != nil {
			op.message(m, now)
		}
		return who
	}
	var who []int
	var added []*store.Report
	switch {
	case op.refusal != nil:
		who, added, err = e.giveUpReported(ctx, id, op, apply, dry, now)
	case dry:
		who, err = e.wouldChange(ctx, id, apply)
	default:
		err = e.opts.Queue.Update(ctx, id, func(m *store.Message) bool {
			who = apply(m)
			return len(who) > 0
		})
	}
	if err != nil {
		return 0, 0, err
	}
	if !dry && len(who) > 0 {
		e.opts.Log.Info("message "+op.word+" by hand", "mail", string(id), "rcpt", len(who), "reports", len(added))
		e.Stats.Reports.Add(int64(len(added)))
	}
	return len(who), len(added), nil
}

// wouldChange tells which recipients apply would change.
func (e *Engine) wouldChange(ctx context.Context, id store.ID, apply func(*store.Message) []int) ([]int, error) {
	m, err := e.opts.Queue.Message(ctx, id)
	if err != nil {
		return nil, err
	}
	return apply(m), nil
}

// bounceTries is how often a report is made anew because its message has changed meanwhile.
const bounceTries = 5

// giveUpReported gives recipients up with a report about them. The report is made of the
// message as it is now; if its recipients are others by the time of the change, it is made
// anew.
func (e *Engine) giveUpReported(ctx context.Context, id store.ID, op operation, apply func(*store.Message) []int, dry bool, now time.Time) ([]int, []*store.Report, error) {
	for range bounceTries {
		m, err := e.opts.Queue.Message(ctx, id)
		if err != nil {
			return nil, nil, err
		}
		who := apply(m)
		if len(who) == 0 {
			return nil, nil, nil
		}
		for _, i := range who {
			m.Recipients[i].Last = op.refusal
		}
		reports, err := e.reportGivenUp(ctx, m, who, dry, now)
		if err != nil || dry {
			return who, reports, err
		}
		same := false
		err = e.opts.Queue.Update(ctx, id, func(m *store.Message) bool {
			same = slices.Equal(who, apply(m))
			return same
		}, reports...)
		if err != nil || same {
			return who, reports, err
		}
	}
	return nil, nil, store.ErrConflict
}

// reportGivenUp makes the report about recipients of m that were given up; none if nobody
// wants it. A dry one lacks the content, and so has that of a message whose content is lost.
func (e *Engine) reportGivenUp(ctx context.Context, m *store.Message, who []int, dry bool, now time.Time) ([]*store.Report, error) {
	var original smtp.Content
	if !dry && !m.Sender.Path.IsNull() {
		content, err := e.opts.Queue.Content(ctx, m.ID)
		switch {
		case err == nil:
			defer content.Close()
			original = content
		case !errors.Is(err, store.ErrCorrupt):
			return nil, fmt.Errorf("delivery: content of %s: %w", m.ID, err)
		}
	}
	r, err := e.report(m, original, message.ActionFailed, who, nil, now)
	if err != nil {
		return nil, fmt.Errorf("delivery: report about %s: %w", m.ID, err)
	}
	if r == nil {
		return nil, nil
	}
	return []*store.Report{r}, nil
}
