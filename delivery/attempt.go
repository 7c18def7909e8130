package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// attempt.go: one try to deliver a message to some of its recipients.

// attempt is a lease that is being worked on.
type attempt struct {
	e       *Engine
	lease   *store.Lease
	m       *store.Message
	content store.Content
	start   time.Time
	replies []*smtp.Reply // of each recipient of the lease; nil was not asked
	by      []*spoken     // who gave them; nil is our own word
	last    bool          // the message has run out of time, and is tried once more
}

// deliver tries a lease, and finishes it or gives it back whatever happens. It tells whether the
// worker may go on at this destination.
func (e *Engine) deliver(l *store.Lease) bool {
	if !e.await(l) {
		e.giveBack([]*store.Lease{l})
		return false
	}
	a := &attempt{e: e, lease: l, m: l.Message, start: e.now(), replies: make([]*smtp.Reply, len(l.Recipients)), by: make([]*spoken, len(l.Recipients))}
	e.Stats.Attempts.Add(1)
	defer e.under.begin(l, a.start)()
	ctx, cancel := context.WithCancelCause(e.attempts)
	defer cancel(nil)
	defer a.hold(ctx, cancel)() // until the outcome is recorded
	err := a.try(ctx)
	if a.content != nil {
		defer a.content.Close()
	}
	if lost := context.Cause(ctx); errors.Is(lost, store.ErrLeaseLost) {
		e.Stats.LeaseLost.Add(1)
		e.opts.Log.Warn("lease lost while delivering, it may be sent again", "mail", string(a.m.ID), "err", err)
		return true // whoever has it now says what becomes of it
	}
	if err != nil && e.attempts.Err() != nil && !slices.ContainsFunc(a.replies, taken) {
		e.giveBack([]*store.Lease{l}) // nothing is known to have been taken
		return false
	}
	if errors.Is(err, errElsewhere) {
		e.giveBack([]*store.Lease{l})
		return false
	}
	if errors.Is(err, errNoRoom) {
		a.postpone()
		return true
	}
	a.finish(err)
	return true
}

// taken tells whether a reply means that the next hop has the message.
func taken(r *smtp.Reply) bool { return r != nil && r.Code/100 == 2 }

// errElsewhere is that the destination is at another site than it was: its messages are to be
// counted there.
var errElsewhere = errors.New("delivery: the destination has moved")

// hold keeps the lease until stop is called, and calls lost if it is lost: another may
// deliver the message then.
func (a *attempt) hold(ctx context.Context, lost context.CancelCauseFunc) (stop func()) {
	every := a.e.opts.Lease / 3
	var mu sync.Mutex // held while the lease is extended; guards ended
	var ended bool
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(every, func() {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return
		}
		if a.e.now().Sub(a.start) >= slowTime {
			a.e.doubt(a.lease.Destination)
		}
		ctx, cancel := context.WithTimeout(ctx, storeTime)
		defer cancel()
		err := a.e.opts.Queue.Extend(ctx, a.lease, a.e.opts.Lease)
		if errors.Is(err, store.ErrLeaseLost) || err != nil && a.e.now().After(a.lease.Until) {
			lost(store.ErrLeaseLost)
			return
		}
		if err != nil {
			timer.Reset(every / 10) // the store may be back long before the lease is over
			return
		}
		timer.Reset(every)
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
		timer.Stop()
	}
}

// try asks the next hop. A nil error means that each recipient has its reply; any other is
// why those without have none.
func (a *attempt) try(ctx context.Context) error {
	content, err := a.e.opts.Queue.Content(ctx, a.m.ID)
	switch {
	case errors.Is(err, store.ErrCorrupt):
		return errDamaged.Because(err)
	case err != nil:
		return fmt.Errorf("delivery: content of %s: %w", a.m.ID, err)
	}
	a.content = content
	if !a.m.Expires.IsZero() && a.e.now().After(a.m.Expires) {
		if !a.heldBack() {
			return errExpired
		}
		a.last = true
		err := a.journey(ctx)
		if err != nil && a.e.attempts.Err() != nil || errors.Is(err, errElsewhere) {
			return err
		}
		for i, r := range a.replies {
			if r != nil && r.Temporary() {
				a.replies[i] = nil
			}
		}
		return errExpired
	}
	if a.e.out.reaches(a.lease.Destination) {
		return a.journey(ctx)
	}
	backend, ok := strings.CutPrefix(string(a.lease.Destination), backendPrefix)
	if !ok {
		return errNoWay
	}
	return a.tryBackend(ctx, backend)
}

// heldBack tells whether what kept the message from being delivered may have been a policy of the
// other side about TLS: that must be asked for anew before the message is given up (RFC 8461,
// Section 5.1).
func (a *attempt) heldBack() bool {
	return a.e.out.reaches(a.lease.Destination) && slices.ContainsFunc(a.lease.Recipients, func(at int) bool {
		r := a.m.Recipients[at].Last
		return r != nil && r.Enh[1] == 7
	})
}

// tryBackend is try for a backend.
func (a *attempt) tryBackend(ctx context.Context, backend string) error {
	tx, err := a.e.opts.Transport.BeginFor(ctx, backend, a.sender(), a.client())
	if errors.Is(err, errNoBackend) {
		return errNoWay.Because(err)
	}
	if err != nil {
		return err
	}
	defer tx.Abort()
	offers, known := a.e.opts.Transport.Offers(backend)
	said := &spoken{host: backend, backend: true, dsn: known && offers.Extensions.DSN}
	for i := range a.by { // not before it is reached: what was said so far is our own word
		a.by[i] = said
	}
	var taken []int
	for i, at := range a.lease.Recipients {
		err := tx.Rcpt(ctx, a.m.Recipients[at].Recipient)
		r, refused := errors.AsType[*smtp.Reply](err)
		switch {
		case err == nil:
			taken = append(taken, i)
		case refused:
			a.replies[i] = r
		default:
			return brokeOff(ctx, err)
		}
	}
	if len(taken) == 0 {
		return nil
	}
	replies, err := tx.Data(ctx, a.content)
	if err != nil {
		if r, ok := errors.AsType[*smtp.Reply](err); ok {
			for _, i := range taken {
				a.replies[i] = r
			}
			return nil
		}
		return brokeOff(ctx, err)
	}
	if len(replies) != len(taken) {
		return fmt.Errorf("delivery: backend %s gave %d answers for %d recipients", backend, len(replies), len(taken))
	}
	for n, i := range taken {
		a.replies[i] = replies[n]
	}
	return nil
}

// brokeOff is what is said of a conversation that the backend broke off, with a 421 or without,
// or that made no sense. If it was we who ended it, err speaks for itself, as it does of content
// that could not be read to its end.
func brokeOff(ctx context.Context, err error) error {
	f, ok := errors.AsType[*smtp.ClientError](err)
	switch {
	case errors.Is(err, store.ErrCorrupt):
		return errDamaged.Because(err)
	case ctx.Err() != nil:
		return err
	case ok && f.Kind == smtp.KindContent:
		return fmt.Errorf("delivery: the content cannot be read: %w", err)
	}
	return errBrokeOff.Because(err)
}

// sender is what MAIL is to say now: of the time that there was to deliver it, some is over.
// The store keeps the sender's wishes about time with the message.
func (a *attempt) sender() smtp.Sender {
	s, o := a.m.Sender, &a.m.Origin
	s.Priority, s.By = int8(a.m.Priority), smtp.DeliverBy{}
	if mode, trace := strings.CutSuffix(o.Mode, traceMark); !o.By.IsZero() {
		s.By.Mode, s.By.Trace = smtp.ByMode(mode), trace
		s.By.Seconds = int32(max(a.m.Origin.By.Sub(a.e.now())/time.Second, -999999999))
		if s.By.Mode == smtp.ByReturn {
			s.By.Seconds = max(s.By.Seconds, 1) // once it is over, the message has expired
		}
	}
	return s
}

// client is whom the backend is told of.
func (a *attempt) client() smtp.Forwarded {
	f := a.m.Origin.Client
	f.Ident = string(a.m.ID)
	return f
}

var (
	errExpired = smtp.Refuse(554, smtp.Enhanced{5, 4, 7}, "delivery time expired")
	errDamaged = smtp.Refuse(554, smtp.Enhanced{5, 3, 0}, "the message was damaged where it was kept and cannot be delivered")
	errNoWay   = smtp.Refuse(451, smtp.Enhanced{4, 4, 4}, "there is no way to this destination")
	// errBrokeOff is in the words that a client hears who waits for the backend's answer.
	errBrokeOff = smtp.Refuse(451, smtp.Enhanced{4, 4, 2}, "the next hop gave no proper answer, try again later")
)

// finish records what became of each recipient, with reports to the sender where it is to
// be told.
func (a *attempt) finish(err error) {
	e, now := a.e, a.e.now()
	outcomes := make([]store.Outcome, len(a.lease.Recipients))
	var delivered, failed, deferred, delayed []int // places in the lease
	for i, at := range a.lease.Recipients {
		r := &a.m.Recipients[at]
		if a.replies[i] == nil {
			a.replies[i] = lastAnswer(smtp.ReplyOf(err), r.Last)
		}
		reply := a.replies[i]
		o := &outcomes[i]
		*o = store.Outcome{Tried: true, Reply: strip(reply)}
		r.Last, r.Tries = reply, r.Tries+1 // without the cause, which is not for the sender
		switch {
		case reply.Code/100 == 2:
			o.State = store.Delivered
			delivered = append(delivered, i)
		case reply.Permanent() && a.final(reply):
			o.State = store.Failed
			failed = append(failed, i)
		default:
			o.State, o.Due = store.Waiting, a.soonest(e.opts.Schedule.next(now, r.Tries), now)
			deferred = append(deferred, i)
			if !r.DelayTold && a.late(now) {
				o.DelayTold = true
				delayed = append(delayed, i)
			}
		}
	}
	var reports []*store.Report
	for _, part := range []struct {
		action message.Action
		who    []int
	}{{message.ActionFailed, failed}, {message.ActionDelayed, delayed}, {message.ActionRelayed, a.unreported(delivered)}} {
		rep, rerr := e.report(a.m, a.original(), part.action, a.places(part.who), a.remote, now)
		if rerr != nil {
			e.opts.Log.Error("a report could not be made", "mail", string(a.m.ID), "err", rerr)
		}
		if rep != nil {
			reports = append(reports, rep)
		}
	}
	if a.record(outcomes, reports, err, now) && e.out.reaches(a.lease.Destination) {
		a.tell(outcomes, delivered, failed, deferred)
	}
}

// lastAnswer adds to the news that the time is over what was said last, for the sender to read.
func lastAnswer(r, last *smtp.Reply) *smtp.Reply {
	if r != errExpired || last == nil {
		return r
	}
	return strip(smtp.Refuse(r.Code, r.Enh, r.Text+"; the last answer was: "+last.Line()))
}

// places are recipients of the lease, by their places in the message.
func (a *attempt) places(who []int) []int {
	list := make([]int, len(who))
	for n, i := range who {
		list[n] = a.lease.Recipients[i]
	}
	return list
}

// remote is the host that spoke last about a recipient, given by its place in the message; empty if
// nobody did, or a backend, whose name means nothing elsewhere.
func (a *attempt) remote(place int) string {
	for i, at := range a.lease.Recipients {
		if at == place && a.by[i] != nil && !a.by[i].backend {
			return a.by[i].host
		}
	}
	return ""
}

// postpone has recipients tried again soon, without counting it as a try.
func (a *attempt) postpone() {
	due := a.e.now().Add(postponeTime + rand.N(postponeTime))
	outcomes := make([]store.Outcome, len(a.lease.Recipients))
	for i := range outcomes {
		outcomes[i] = store.Outcome{State: store.Waiting, Due: due}
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTime)
	defer cancel()
	if err := a.e.opts.Queue.Finish(ctx, a.lease, outcomes, nil); err != nil {
		a.e.giveBack([]*store.Lease{a.lease})
	}
	a.e.nudge()
}

// postponeTime is the least time until something that was postponed is tried.
const postponeTime = 3 * time.Second

// tell tells Hooks what became of recipients.
func (a *attempt) tell(outcomes []store.Outcome, delivered, failed, deferred []int) {
	h := a.e.out.opts.Hooks
	if h == nil {
		return
	}
	ctx, cancel := context.WithTimeout(a.e.attempts, hookTime)
	defer cancel()
	out := a.outgoing()
	out.Try-- // it has been counted by now
	for _, part := range []struct {
		call func(context.Context, Outgoing, []Fate)
		who  []int
	}{{h.Deferred, deferred}, {h.Bounced, failed}, {h.Delivered, delivered}} {
		var fates []Fate
		for _, i := range part.who {
			f := Fate{Recipient: a.lease.Recipients[i], Reply: a.replies[i], Due: outcomes[i].Due}
			if by := a.by[i]; by != nil {
				f.Host, f.Addr = by.host, by.addr
			}
			fates = append(fates, f)
		}
		if len(fates) > 0 {
			part.call(ctx, out, fates)
		}
	}
}

// soonest is when to try again instead of due, if something is to be told to the sender before.
func (a *attempt) soonest(due, now time.Time) time.Time {
	if by := a.tellBy(); by.After(now) && due.After(by) {
		due = by.Add(time.Second)
	}
	if end := a.m.Expires; !end.IsZero() && due.After(end) {
		due = end.Add(time.Second)
	}
	return due
}

// late tells whether it is time to tell the sender of the delay.
func (a *attempt) late(now time.Time) bool {
	n, by := a.e.opts.Schedule.Notify, a.tellBy()
	return n > 0 && now.Sub(a.m.Arrived) >= n || !by.IsZero() && now.After(by)
}

// tellBy is when the sender wants to be told that the message is not there yet; zero is at no
// certain time. RFC 2852, Section 4.
func (a *attempt) tellBy() time.Time {
	if o := &a.m.Origin; strings.HasPrefix(o.Mode, string(smtp.ByNotify)) {
		return o.By
	}
	return time.Time{}
}

// original is the content for a report, nil if it could not be opened.
func (a *attempt) original() smtp.Content {
	if a.content == nil {
		return nil
	}
	return a.content
}

// final: a refusal that speaks of us, and not of the message or its recipient, is no reason
// to return mail. RFC 5321, Section 4.2.1: 5yz is about the same request; but a backend that
// asks for a login or for TLS has been set up wrong, and that can be mended.
func (a *attempt) final(r *smtp.Reply) bool {
	switch r.Code {
	case 521:
		// RFC 7504: a host that takes no mail at all. A backend is set up wrong then.
		if strings.HasPrefix(string(a.lease.Destination), mxPrefix) {
			return true
		}
		fallthrough
	case 530, 535, 538:
		return a.e.now().After(a.m.Expires) && !a.m.Expires.IsZero()
	}
	return true
}

// unreported are those of the recipients whose next hop does not report for us. RFC 3461, Section 5.2.1: the others have been
// asked to.
func (a *attempt) unreported(who []int) (list []int) {
	for _, i := range who {
		if a.by[i] == nil || !a.by[i].dsn {
			list = append(list, i)
		}
	}
	return list
}

// recordTime is for how long a store that does not answer is told what became of a message. It
// may take it also when the lease is over, and nobody can lease the message while it is away.
const recordTime = time.Hour

// record finishes the lease. A store that cannot is asked again until the lease is lost, or
// the engine ends: what was delivered would be delivered twice. It tells whether that could be
// recorded.
func (a *attempt) record(outcomes []store.Outcome, reports []*store.Report, err error, now time.Time) bool {
	e := a.e
	reply, by := a.told()
	att := &store.Attempt{Time: a.start, Destination: a.lease.Destination, Recipients: a.lease.Recipients, Reply: reply, Took: now.Sub(a.start)}
	if by != nil {
		att.Host, att.Addr, att.TLS, att.Verdict = by.host, by.addr, by.tls, by.verdict
	}
	until := e.now().Add(max(e.opts.Lease, recordTime))
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 10*time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), storeTime)
		ferr := e.opts.Queue.Finish(ctx, a.lease, outcomes, att, reports...)
		cancel()
		if ferr == nil {
			a.count(outcomes, reports)
			a.log(outcomes, att, err)
			if len(reports) > 0 {
				e.nudge()
			}
			return true
		}
		if errors.Is(ferr, store.ErrLeaseLost) || errors.Is(ferr, store.ErrClosed) || e.attempts.Err() != nil || e.now().After(until) {
			e.Stats.LeaseLost.Add(1)
			e.opts.Log.Error("what became of a message could not be recorded; it may be sent again", "mail", string(a.m.ID), "err", ferr)
			return false
		}
		e.pause(pause)
	}
}

// told is the reply that stands for the attempt, the worst, and who gave it.
func (a *attempt) told() (worst *smtp.Reply, by *spoken) {
	for i, r := range a.replies {
		if worst == nil || r.Code > worst.Code {
			worst, by = r, a.by[i]
		}
	}
	return strip(worst), by
}

// strip leaves out what is not to be stored.
func strip(r *smtp.Reply) *smtp.Reply {
	c := &smtp.Reply{Code: r.Code, Enh: r.Enh, Text: r.Text}
	if r.Cause != nil && r.Code/100 == 4 {
		c.Text += " (" + r.Cause.Error() + ")"
	}
	const most = 1000
	if len(c.Text) > most {
		c.Text = strings.ToValidUTF8(c.Text[:most], "")
	}
	return c
}

func (a *attempt) count(outcomes []store.Outcome, reports []*store.Report) {
	s := &a.e.Stats
	for _, o := range outcomes {
		switch o.State {
		case store.Delivered:
			s.Delivered.Add(1)
		case store.Failed:
			s.Failed.Add(1)
		default:
			s.Deferred.Add(1)
		}
	}
	s.Reports.Add(int64(len(reports)))
}

func (a *attempt) log(outcomes []store.Outcome, att *store.Attempt, err error) {
	var n [4]int
	for _, o := range outcomes {
		n[o.State]++
	}
	attrs := []slog.Attr{slog.String("mail", string(a.m.ID)), slog.String("destination", string(att.Destination)), slog.String("mx", att.Host),
		slog.String("from", a.m.Sender.Path.String()), slog.Int("rcpt", len(outcomes)), slog.Int64("bytes", a.m.Size),
		slog.Int("delivered", n[store.Delivered]), slog.Int("failed", n[store.Failed]), slog.Int("deferred", n[store.Waiting]),
		slog.Duration("dur", att.Took), slog.Int("code", att.Reply.Code), slog.String("enh", att.Reply.Enh.String())}
	if att.Addr.IsValid() {
		attrs = append(attrs, slog.String("ip", att.Addr.String()), slog.String("tls", att.TLS), slog.String("verdict", att.Verdict))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	a.e.opts.Log.LogAttrs(context.Background(), slog.LevelInfo, "delivery", attrs...)
}
