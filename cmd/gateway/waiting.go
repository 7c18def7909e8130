package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// waiting.go puts the messages that wait behind the interface of package admin.

// waiting is the queue and who delivers what is in it. The admin API is made before they are,
// and so it asks for them when somebody asks it.
type waiting struct {
	of func() (store.Queue, *delivery.Engine)
}

func (q waiting) queue() store.Queue {
	queue, _ := q.of()
	return queue
}

func (q waiting) engine() *delivery.Engine {
	_, engine := q.of()
	return engine
}

var _ admin.Queue = waiting{}

// refused makes an error that the client is told.
func refused(code api.Code, next, format string, args ...any) error {
	return &api.Error{Code: code, Next: next, Message: fmt.Sprintf(format, args...)}
}

// List implements admin.Queue.
func (q waiting) List(ctx context.Context, f api.QueueFilter, after string, yield func(api.QueueMessage) bool) error {
	sf, err := storeFilter(f)
	if err != nil {
		return err
	}
	from, err := storeAfter(after)
	if err != nil {
		return err
	}
	err = q.queue().List(ctx, sf, from, func(m *store.Message) bool {
		am := queueMessage(m)
		am.Attempts = nil
		return yield(am)
	})
	if errors.Is(err, store.ErrCorrupt) {
		return nil // what can be read is listed, and the store has told of the rest
	}
	return queueError("", err)
}

// Counts implements admin.Queue.
func (q waiting) Counts(ctx context.Context) (api.QueueCounts, error) {
	c, err := q.queue().Count(ctx)
	if err != nil {
		return api.QueueCounts{}, queueError("", err)
	}
	counts := api.QueueCounts{Messages: c.Messages, Octets: c.Octets, UnderWay: c.Leased, Oldest: c.Oldest.UTC(), Recipients: map[api.QueueState]int64{}}
	for st, n := range c.Recipients {
		counts.Recipients[queueState(st)] = n
	}
	return counts, nil
}

// Show implements admin.Queue.
func (q waiting) Show(ctx context.Context, id string) (api.QueueMessage, error) {
	m, err := q.queue().Message(ctx, store.ID(id))
	if err != nil {
		return api.QueueMessage{}, queueError(id, err)
	}
	return queueMessage(m), nil
}

// Why implements admin.Queue.
func (q waiting) Why(ctx context.Context, id string) (api.QueueExplanation, error) {
	x, err := q.engine().Why(ctx, store.ID(id))
	if err != nil {
		return api.QueueExplanation{}, queueError(id, err)
	}
	ax := api.QueueExplanation{Message: queueMessage(x.Message), Now: x.Now.UTC(), Next: x.Next.UTC(),
		Reasons: []api.QueueReason{}, Destinations: []api.QueueDestination{}}
	for _, r := range x.Recipients {
		ax.Reasons = append(ax.Reasons, api.QueueReason{Kind: string(r.Kind), Text: r.Text})
	}
	for _, d := range x.Destinations {
		ax.Destinations = append(ax.Destinations, api.QueueDestination{Name: string(d.Name), Known: d.Known, Down: d.Down, Error: d.Err,
			Retry: d.Retry.UTC(), Workers: d.Workers, MaxWorkers: d.MaxWorkers, Waiting: d.Waiting, Ahead: d.Ahead, AheadAtLeast: d.AheadAtLeast,
			Site: d.Site, Rest: d.Rest.UTC()})
	}
	return ax, nil
}

// Act implements admin.Queue.
func (q waiting) Act(ctx context.Context, a api.QueueAction) (api.QueueDone, error) {
	after, err := storeAfter(a.After)
	if err != nil {
		return api.QueueDone{}, err
	}
	c := delivery.Choice{After: after, Limit: a.Limit, Dry: a.Dry}
	for _, id := range a.IDs {
		c.IDs = append(c.IDs, store.ID(id))
	}
	if a.Filter != nil {
		f, err := storeFilter(*a.Filter)
		if err != nil {
			return api.QueueDone{}, err
		}
		c.Filter = &f
	}
	done, err := q.act(ctx, a, c)
	if err != nil {
		return api.QueueDone{}, queueError("", err)
	}
	ad := api.QueueDone{Messages: []string{}, Recipients: done.Recipients, Reports: done.Reports, Next: string(done.Next)}
	for _, id := range done.Messages {
		ad.Messages = append(ad.Messages, string(id))
	}
	for _, p := range done.Problems {
		ad.Problems = append(ad.Problems, q.problem(p))
	}
	return ad, nil
}

func (q waiting) act(ctx context.Context, a api.QueueAction, c delivery.Choice) (delivery.Done, error) {
	e := q.engine()
	switch a.Verb {
	case api.QueueHold:
		return e.Hold(ctx, c)
	case api.QueueRelease:
		return e.Release(ctx, c)
	case api.QueueRetry:
		return e.Retry(ctx, c)
	case api.QueueDrop:
		return e.Drop(ctx, c)
	case api.QueueBounce:
		if err := delivery.CheckBounce(a.Text); err != nil {
			return delivery.Done{}, refused(api.CodeBadRequest, "", "%s", strings.TrimPrefix(err.Error(), "delivery: "))
		}
		return e.Bounce(ctx, c, a.Text)
	}
	return delivery.Done{}, refused(api.CodeBadRequest, "", "%q cannot be done to a message", a.Verb)
}

// problem makes the API's words of a message that could not be changed.
func (q waiting) problem(p delivery.Problem) api.QueueProblem {
	e, ok := errors.AsType[*api.Error](queueError(string(p.ID), p.Err))
	if !ok { // a store's own words, which an operator may see
		e = &api.Error{Code: api.CodeInternal, Message: oneLine(p.Err)}
	}
	return api.QueueProblem{ID: string(p.ID), Error: e}
}

// queueError turns what a client can use to know into an error that it is told.
func queueError(id string, err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return refused(api.CodeNotFound, "it may have been delivered; gateway queue list shows what waits", "no message %s waits", printable(id[:min(len(id), 100)]))
	case errors.Is(err, store.ErrLeased):
		return refused(api.CodeConflict, "try again when that is over", "it is being delivered at the moment")
	case errors.Is(err, store.ErrConflict):
		return refused(api.CodeConflict, "try again", "it changes all the time")
	case errors.Is(err, store.ErrCorrupt):
		return refused(api.CodeConflict, "the log of the gateway has more", "what is stored of it is damaged, and was set aside")
	case errors.Is(err, store.ErrClosed):
		return refused(api.CodeUnavailable, "", "the gateway ends")
	case errors.Is(err, store.ErrFull):
		return refused(api.CodeUnavailable, "make room on the disk", "there is no room for the change")
	}
	return err
}

// storeAfter checks where a list is to go on.
func storeAfter(after string) (store.ID, error) {
	id := store.ID(after)
	if _, ok := id.Bytes(); !ok && after != "" {
		return "", refused(api.CodeBadRequest, "send what next said", "after is no ID of a message")
	}
	return id, nil
}

// storeFilter reads what a client wrote.
func storeFilter(f api.QueueFilter) (store.Filter, error) {
	sf := store.Filter{Destination: store.Destination(f.Destination), Before: f.Before, After: f.Since}
	for _, st := range f.States {
		sf.States = append(sf.States, store.State(slices.Index(api.QueueStates(), st)))
	}
	for _, d := range []struct {
		text string
		into *string
	}{{f.Domain, &sf.Domain}, {f.SenderDomain, &sf.SenderDomain}} {
		if d.text == "" {
			continue
		}
		domain, err := smtp.ParseDomain(d.text)
		if err != nil {
			return sf, refused(api.CodeBadRequest, "", "%q is no domain", printable(d.text[:min(len(d.text), 300)]))
		}
		*d.into = domain.String()
	}
	switch f.Sender {
	case "", "<>":
		sf.Sender = f.Sender
	default:
		p, err := smtp.ParseAddress(f.Sender)
		if err != nil {
			return sf, refused(api.CodeBadRequest, "write it without brackets, or <> for the null sender", "the sender is no address")
		}
		sf.Sender = p.String()
	}
	return sf, nil
}

// queueState is a state in the API's words. They stand in the order of the store's.
func queueState(st store.State) api.QueueState {
	if all := api.QueueStates(); int(st) < len(all) {
		return all[st]
	}
	return api.QueueState(fmt.Sprint(st))
}

// queueMessage is a message in the API's words.
func queueMessage(m *store.Message) api.QueueMessage {
	am := api.QueueMessage{ID: string(m.ID), Arrived: m.Arrived.UTC(), Expires: m.Expires.UTC(), Sender: m.Sender.Path.String(), Size: m.Size,
		Priority: m.Priority, Reason: m.Origin.Reason, ReportOf: string(m.Origin.ReportOf), Listener: m.Origin.Listener, Session: m.Origin.Session,
		Client: clientText(m.Origin.Client), Login: m.Origin.Client.Login, Recipients: []api.QueueRecipient{}}
	if m.Sender.Path.IsNull() {
		am.Sender = "<>"
	}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		ar := api.QueueRecipient{Address: r.Path.String(), Destination: string(r.Destination), State: queueState(r.State), Tries: r.Tries,
			Last: replyLine(r.Last), DelayTold: r.DelayTold}
		if r.State == store.Waiting {
			ar.Due = r.Due.UTC()
		}
		am.Recipients = append(am.Recipients, ar)
	}
	for _, a := range m.Attempts {
		aa := api.QueueAttempt{Time: a.Time.UTC(), Destination: string(a.Destination), Host: a.Host, TLS: a.TLS, Verdict: a.Verdict,
			Recipients: append([]int{}, a.Recipients...), Reply: replyLine(a.Reply), Seconds: a.Took.Round(time.Millisecond).Seconds()}
		if a.Addr.IsValid() {
			aa.Addr = a.Addr.String()
		}
		am.Attempts = append(am.Attempts, aa)
	}
	return am
}

func replyLine(r *smtp.Reply) string {
	if r == nil {
		return ""
	}
	return r.Line()
}

// clientText names a client by what was verified of it.
func clientText(c smtp.Forwarded) string {
	switch {
	case !c.Addr.IsValid():
		return c.Name
	case c.Name == "":
		return "[" + c.Addr.String() + "]"
	}
	return c.Name + " [" + c.Addr.String() + "]"
}
