package gateway

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// keep.go: what is not handed on while the client waits. A Relay that is a Keeper takes
// messages for backends with a queue, for backends beside the first, for those that are down
// and may be waited for, and what a filter wants held; the client hears 250 once they are
// safe. What went wrong for some of the recipients of a message is then no reason to tell the
// client about all.

// Keeper is a Relay that can keep messages. Without it all are handed on at once, or refused.
type Keeper interface {
	// Keep takes a message and returns its name once it is safe: synced, or committed. The
	// error is what the client is told (smtp.ReplyOf). Safe for concurrent use.
	Keep(ctx context.Context, k Kept) (name string, err error)
}

// Kept is a message that is to be kept.
type Kept struct {
	Sender smtp.Sender
	// Client is whom we had it from; Listener and Session are for the log.
	Client            smtp.Forwarded
	Listener, Session string
	// Trusted tells that the client has logged in, or is trusted by its address.
	Trusted bool
	// Recipients are at least one.
	Recipients []KeptRecipient
	// Held, if not empty, is why a person is to look at it first.
	Held string
	// Content is valid during the call.
	Content smtp.Content
}

// KeptRecipient is a recipient of a message that is to be kept.
type KeptRecipient struct {
	smtp.Recipient
	// Backend is where it is to go; empty to the mail exchangers of its domain.
	Backend string
	// Reply is what the backend said when it was asked, nil if it was not: a refusal for good
	// is told to the sender, a temporary one repeated later.
	Reply *smtp.Reply
	// Held, if not empty, is why a person is to look before this recipient gets it, while
	// others may have it at once.
	Held string
}

// ask asks a backend about a recipient that is kept for it, unless somebody else knows.
func (tx *transaction) ask(ctx context.Context, route *Route, to smtp.Recipient) error {
	return refusal(askRelay(tx.s.l.gw.opts.Relay)(ctx, route.Backend, tx.Sender, to))
}

// split sorts the recipients into those that go to the backend now and those that are kept.
func (tx *transaction) split() (direct []policy.Recipient, kept []KeptRecipient, err error) {
	for _, r := range tx.Rcpts {
		_, route, err := tx.route(r)
		if err != nil && r.AddedBy != "" {
			if r, route, err = tx.reroute(r, err); route == nil && err == nil {
				continue
			}
		}
		if err != nil {
			return nil, nil, err
		}
		if route.Queue || tx.backend != route.Backend || isHeld(r) {
			kept = append(kept, KeptRecipient{Recipient: r.Recipient, Backend: route.Backend, Held: r.Held})
		} else {
			direct = append(direct, r)
		}
	}
	return direct, kept, nil
}

// reroute answers for the filter that put r there, where no mail goes. If that is to be
// overlooked, what the client had named takes the place of r; a nil route is that there is
// nothing.
func (tx *transaction) reroute(r policy.Recipient, refused error) (policy.Recipient, *Route, error) {
	if err := tx.failed(r, policy.StageMessage, refused); err != nil {
		return r, nil, err
	}
	own, ok := tx.original(r)
	if !ok {
		return r, nil, nil
	}
	_, route, err := tx.route(own)
	return own, route, err
}

// keepOrDeliver is deliver with a Keeper.
func (tx *transaction) keepOrDeliver(ctx context.Context, keeper Keeper) ([]*smtp.Reply, error) {
	all := tx.Rcpts
	if tx.held {
		return tx.keepAll(ctx, keeper, all)
	}
	if tx.backend == "" {
		tx.backend = tx.directBackend()
	}
	direct, kept, err := tx.split()
	switch {
	case err != nil:
		return nil, err
	case tx.held: // by the failure of a filter
		return tx.keepAll(ctx, keeper, all)
	case len(direct)+len(kept) == 0:
		return nil, errNoOne
	}
	var replies []*smtp.Reply
	if len(direct) > 0 {
		tx.Rcpts = direct
		replies, err = tx.hand(ctx)
		direct = tx.Rcpts // filters' failures may have changed them
		if tx.held && !tx.sent {
			return tx.keepAll(ctx, keeper, all)
		}
		if err != nil && tx.mayWait(direct, err) {
			for _, r := range direct {
				kept = append(kept, KeptRecipient{Recipient: r.Recipient, Backend: tx.backend})
			}
			direct, replies, err = nil, nil, nil
		}
		if err != nil {
			if !tx.s.l.Server.LMTP || len(tx.refused) == 0 {
				return nil, err
			}
			replies = tx.each(err)
		}
	}
	direct, replies = tx.withRefused(direct, replies)
	if len(kept) == 0 && (tx.s.l.Server.LMTP || allOrNone(replies)) {
		tx.Rcpts = direct
		return tx.conclude(replies)
	}
	if !tx.s.l.Server.LMTP {
		for i, r := range replies {
			if r.Code/100 != 2 {
				kept = append(kept, KeptRecipient{Recipient: direct[i].Recipient, Backend: tx.backendOf(direct[i]), Reply: r})
			}
		}
	}
	return tx.keepRest(ctx, keeper, all, direct, replies, kept)
}

// keepRest keeps the message for those who have not got it, and answers for them and for those
// of whom a backend or a filter has spoken: direct, with their replies. all are the recipients
// of the message.
func (tx *transaction) keepRest(ctx context.Context, keeper Keeper, all, direct []policy.Recipient, replies []*smtp.Reply, kept []KeptRecipient) ([]*smtp.Reply, error) {
	name, err := tx.keep(ctx, keeper, kept, "")
	answer := keptReply(name)
	switch {
	case err == nil:
	case tx.s.l.Server.LMTP && len(direct) > 0:
		answer = smtp.ReplyOf(err) // each is told what became of it alone
	default:
		for _, r := range replies {
			if r.Code/100 == 2 {
				tx.s.l.gw.Stats.Duplicates.Add(1) // they get it again when the client comes back
				break
			}
		}
		return nil, err
	}
	if !tx.s.l.Server.LMTP {
		return []*smtp.Reply{answer}, nil
	}
	for _, k := range kept {
		direct = append(direct, tx.named(all, k))
		replies = append(replies, answer)
	}
	tx.Rcpts = direct
	return tx.outcomes(replies), nil
}

// named finds the recipient that is kept among those of the message.
func (tx *transaction) named(all []policy.Recipient, k KeptRecipient) policy.Recipient {
	for _, r := range all {
		if r.Recipient == k.Recipient {
			return r
		}
	}
	return policy.Recipient{Recipient: k.Recipient}
}

// keptReply is the answer for a message that is safe. It has no name if nothing had to be kept
// of it: all that was left of it were refusals that its sender does not want to hear of.
func keptReply(name string) *smtp.Reply {
	if name == "" {
		return &smtp.Reply{Code: 250, Enh: smtp.Enhanced{2, 6, 0}, Text: "message accepted"}
	}
	return &smtp.Reply{Code: 250, Enh: smtp.Enhanced{2, 6, 0}, Text: "message kept as " + name}
}

// directBackend is the first backend of the recipients that takes messages at once, empty if
// all have a queue.
func (tx *transaction) directBackend() string {
	for _, r := range tx.Rcpts {
		if _, route, err := tx.route(r); err == nil && !route.Queue {
			return route.Backend
		}
	}
	return ""
}

// allOrNone tells whether all replies say yes, or none.
func allOrNone(replies []*smtp.Reply) bool {
	yes := 0
	for _, r := range replies {
		if r.Code/100 == 2 {
			yes++
		}
	}
	return yes == 0 || yes == len(replies)
}

// mayWait tells whether recipients whose backend could not take them now may wait for it:
// where that is wanted, and somebody other than the backend has vouched for them.
func (tx *transaction) mayWait(rcpts []policy.Recipient, err error) bool {
	if smtp.ReplyOf(err).Permanent() || tx.sent {
		return false
	}
	for _, r := range rcpts {
		i, route, err := tx.route(r)
		if err != nil || !route.QueueWhenDown || tx.s.rules.known.checks[i] == nil && !route.Recipients.Accept {
			return false
		}
	}
	return true
}

// keepAll keeps the whole message for a person to look at.
func (tx *transaction) keepAll(ctx context.Context, keeper Keeper, all []policy.Recipient) ([]*smtp.Reply, error) {
	var kept []KeptRecipient
	for _, r := range all {
		_, route, err := tx.route(r)
		switch {
		case err == nil:
			kept = append(kept, KeptRecipient{Recipient: r.Recipient, Backend: route.Backend})
		case r.AddedBy == "":
			return nil, err
		} // what a filter added, and leads nowhere, may be why it is held
	}
	if len(kept) == 0 {
		return nil, errNoOne
	}
	reason := tx.reason
	if reason == "" {
		reason = "held by a filter"
	}
	if !tx.s.l.Server.LMTP {
		for _, r := range tx.refused {
			kept = append(kept, KeptRecipient{Recipient: r.Recipient.Recipient, Backend: tx.backendOf(r.Recipient), Reply: r.reply})
		}
	}
	name, err := tx.keep(ctx, keeper, kept, reason)
	answer := keptReply(name)
	switch {
	case err == nil:
	case tx.s.l.Server.LMTP && len(tx.refused) > 0:
		answer = smtp.ReplyOf(err)
	default:
		return nil, err
	}
	if !tx.s.l.Server.LMTP || len(tx.refused) == 0 {
		return []*smtp.Reply{answer}, nil
	}
	replies := slices.Repeat([]*smtp.Reply{answer}, len(all))
	tx.Rcpts, replies = tx.withRefused(all, replies)
	return tx.outcomes(replies), nil
}

// backendOf is where a recipient's mail goes, or would have gone.
func (tx *transaction) backendOf(r policy.Recipient) string {
	if _, route, err := tx.route(r); err == nil {
		return route.Backend
	}
	return tx.backend
}

func (tx *transaction) keep(ctx context.Context, keeper Keeper, kept []KeptRecipient, held string) (string, error) {
	start := time.Now()
	trace := tx.received()
	trace.For = "" // it names a recipient only if nobody else gets to see it
	if len(kept) == 1 {
		trace.For = kept[0].Path.String()
	}
	m := *tx.Message
	m.Header = m.Header.Insert(0, trace.Field())
	sender := tx.Sender
	if !tx.s.isUser() {
		// Strangers may put their own mail last, not before that of others. RFC 6710, Section 5.1.
		sender.Priority = min(sender.Priority, 0)
	}
	name, err := keeper.Keep(ctx, Kept{Sender: sender, Client: tx.client(), Listener: tx.s.l.Name, Session: tx.s.facts.ID,
		Trusted:    tx.s.trusted || tx.s.isUser(),
		Recipients: kept, Held: held, Content: &m})
	for _, r := range kept {
		held = cmp.Or(held, r.Held)
	}
	attrs := []slog.Attr{slog.String("conn", tx.s.facts.ID), slog.String("mail", tx.id), slog.String("from", tx.Sender.Path.String()),
		slog.Int("rcpt", len(kept)), slog.Int64("bytes", m.Size()), slog.Duration("dur", time.Since(start))}
	if err != nil {
		tx.s.log.LogAttrs(ctx, slog.LevelError, "not kept", append(attrs, slog.Any("err", err))...)
		return "", refusal(err)
	}
	tx.delivered = true
	tx.s.l.gw.Stats.Kept.Add(1)
	tx.s.log.LogAttrs(ctx, slog.LevelInfo, "kept", append(attrs, slog.String("kept", name), slog.String("held", held))...)
	return name, nil
}
