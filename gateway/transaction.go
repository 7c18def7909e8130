package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// transaction.go: one message, from its envelope to the backend's answer.

// transaction is a transaction of a session, and its counterpart at a backend.
type transaction struct {
	policy.Transaction
	s             *session
	start         time.Time
	back          handover
	dropCandidate bool // a filter discards the recipient at hand
	dropped       bool // a filter discards the message
	held          bool // a filter wants it held
}

// handover is the transaction with a backend. While the client sends, a timer may give
// the backend back; mu guards against that.
type handover struct {
	mu      sync.Mutex
	tr      smtp.Transaction // nil: not begun, or given back
	backend string
	sender  smtp.Sender      // as the backend has it
	rcpts   []smtp.Recipient // as the backend accepted them
	timer   *time.Timer      // gives the backend back
}

// holdFor is how long a client may keep a backend waiting, from one recipient to the next
// or to the end of the message. What it takes longer for, it takes without a backend.
const holdFor = 5 * time.Second

// abort gives the backend back, if there is one.
func (h *handover) abort() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
}

// drop is abort with h.mu held.
func (h *handover) drop() {
	h.disarm()
	if h.tr != nil {
		h.tr.Abort()
		h.tr = nil
	}
	h.rcpts = nil
}

// arm starts the client's time anew. h.mu is held.
func (h *handover) arm() {
	if h.timer == nil {
		h.timer = time.AfterFunc(holdFor, h.abort)
	} else {
		h.timer.Reset(holdFor)
	}
}

func (h *handover) disarm() {
	if h.timer != nil {
		h.timer.Stop()
	}
}

// has tells whether the backend holds exactly this envelope.
func (h *handover) has(sender smtp.Sender, rcpts []policy.Recipient) bool {
	if h.tr == nil || h.sender != sender || len(h.rcpts) != len(rcpts) {
		return false
	}
	for i := range rcpts {
		if h.rcpts[i] != rcpts[i].Recipient {
			return false
		}
	}
	return true
}

// discard makes a discarding verdict count: for the recipient at hand at StageRcpt, else
// for the message.
func (tx *transaction) discard(stage policy.Stage) {
	if stage == policy.StageRcpt {
		tx.dropCandidate = true
	} else {
		tx.dropped = true
	}
}

func (tx *transaction) removeCandidate() { tx.Rcpts = tx.Rcpts[:len(tx.Rcpts)-1] }

var errRelay = smtp.Refuse(550, smtp.Enhanced{5, 7, 1}, "relaying denied: no mail for this domain here")

// route finds where a recipient's mail goes.
func (tx *transaction) route(p smtp.Path) (*Route, error) {
	own, err := smtp.ParseDomain(tx.s.l.gw.opts.Hostname)
	if err != nil {
		return nil, err
	}
	if r := tx.s.rules.route(p, own, tx.s.relays); r != nil {
		return r, nil
	}
	return nil, errRelay
}

// offerCandidate asks the backend about the last recipient.
func (tx *transaction) offerCandidate(ctx context.Context) error {
	to := tx.Rcpts[len(tx.Rcpts)-1].Recipient
	route, err := tx.route(to.Path)
	if err != nil {
		return err
	}
	if tx.dropped {
		return nil // nobody will get it; the backend need not know
	}
	h := &tx.back
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.backend != "" && h.backend != route.Backend && len(tx.Rcpts) > 1 {
		return smtp.Refuse(452, smtp.Enhanced{4, 5, 3}, "this recipient needs a message of its own, send it again")
	}
	if h.backend != route.Backend {
		h.drop()
	}
	h.backend = route.Backend
	if route.AcceptAll {
		return nil
	}
	return h.offer(ctx, tx.s.l.gw.opts.Relay, tx.Sender, to)
}

// offer begins the backend's transaction if there is none, and adds a recipient. h.mu is
// held.
func (h *handover) offer(ctx context.Context, relay Relay, sender smtp.Sender, to smtp.Recipient) error {
	if h.tr == nil {
		tr, err := relay.Begin(ctx, h.backend, sender)
		if err != nil {
			return err
		}
		h.tr, h.sender, h.rcpts = tr, sender, h.rcpts[:0]
	}
	err := h.tr.Rcpt(ctx, to)
	if err == nil {
		h.rcpts = append(h.rcpts, to)
		h.arm()
		return nil
	}
	if _, ok := errors.AsType[*smtp.Reply](err); !ok {
		// The connection is gone, and with it what the backend had accepted. The
		// envelope is offered anew before the data.
		h.drop()
	}
	return err
}

// message takes the content in, asks policy, and hands on.
func (tx *transaction) message(ctx context.Context, body *smtp.DataReader) (*smtp.Reply, error) {
	s := tx.s
	sp := newSpool(s.l.gw.opts.SpoolDir, s.l.MaxHeader, func(h message.Header) error { return tx.headers(ctx, h) })
	defer sp.Close()
	if err := sp.fill(body); err != nil {
		return nil, err
	}
	m := *tx.Message
	m.Body = sp.body()
	tx.Message = &m
	if err := s.decide(ctx, policy.StageMessage); err != nil {
		return nil, err
	}
	switch {
	case tx.dropped || len(tx.Rcpts) == 0:
		s.l.gw.Stats.Discarded.Add(1)
		return smtp.Refuse(250, smtp.Enhanced{2, 6, 0}, "message accepted"), nil
	case tx.held:
		return nil, errHeld
	}
	return tx.deliver(ctx)
}

// headers is called when the header section is there.
func (tx *transaction) headers(ctx context.Context, h message.Header) error {
	if n := h.Count("Received"); n > tx.s.l.Hops {
		return smtp.Replyf(554, smtp.Enhanced{5, 4, 6}, "message passed %d servers, it goes in circles", n)
	}
	tx.Message = &policy.Message{Header: h}
	return tx.s.decide(ctx, policy.StageHeaders)
}

// deliver hands the message to the backend.
func (tx *transaction) deliver(ctx context.Context) (*smtp.Reply, error) {
	h := &tx.back
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.has(tx.Sender, tx.Rcpts) {
		if err := tx.replay(ctx); err != nil {
			return nil, err
		}
		if h.tr == nil { // every recipient was overlooked
			tx.s.l.gw.Stats.Discarded.Add(1)
			return nil, nil
		}
	}
	m := *tx.Message
	m.Header = m.Header.Insert(0, tx.received().Field())
	tr := h.tr
	h.tr = nil // Data ends it
	h.disarm()
	start := tx.s.l.gw.opts.Now()
	replies, err := tr.Data(ctx, &m)
	reply, err := tx.outcome(replies, err)
	tx.logAttempt(m.Size(), reply, err, tx.s.l.gw.opts.Now().Sub(start))
	return reply, err
}

func (tx *transaction) logAttempt(size int64, reply *smtp.Reply, err error, took time.Duration) {
	attrs := []any{"conn", tx.s.facts.ID, "backend", tx.back.backend, "from", tx.Sender.Path.String(),
		"rcpts", len(tx.Rcpts), "bytes", size, "dur", took}
	if err != nil {
		r := smtp.ReplyOf(err)
		tx.s.log.Info("not delivered", append(attrs, "code", r.Code, "enh", r.Enh.String(), "err", err)...)
		return
	}
	tx.s.log.Info("delivered", append(attrs, "code", reply.Code, "enh", reply.Enh.String())...)
}

// replay offers the whole envelope anew, because filters changed it or the backend was
// given back meanwhile. h.mu is held. A recipient that a filter put there and that is
// refused is that filter's failure.
func (tx *transaction) replay(ctx context.Context) error {
	h := &tx.back
	h.drop()
	kept := make([]policy.Recipient, 0, len(tx.Rcpts))
	var refusal error
	for _, r := range tx.Rcpts {
		err := tx.offerAgain(ctx, r)
		switch {
		case err == nil:
			kept = append(kept, r)
		case r.AddedBy != "":
			v := tx.s.run.Failed(r.AddedBy, policy.StageMessage, fmt.Errorf("recipient <%s> is refused: %w", r.Path, err))
			if err := tx.s.heed(v.Verdict, policy.StageMessage); err != nil {
				return err
			}
			if tx.held {
				return errHeld
			}
		case refusal == nil:
			refusal = err
		}
	}
	if refusal != nil {
		if len(tx.Rcpts) == 1 {
			return refusal
		}
		// The client was told 250 for this recipient. It can only be told about all of
		// them, so nobody gets it now.
		return smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "the envelope could not be repeated to the next hop, try again later").Because(refusal)
	}
	tx.Rcpts = kept
	return nil
}

// offerAgain holds one recipient against the listener's rules and the backend. Without
// a store a message has one backend; the first recipient's it is.
func (tx *transaction) offerAgain(ctx context.Context, r policy.Recipient) error {
	route, err := tx.route(r.Path)
	if err != nil {
		return err
	}
	h := &tx.back
	if h.tr == nil {
		h.backend = route.Backend
	} else if h.backend != route.Backend {
		return smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "recipient needs another backend than the rest of the message")
	}
	return h.offer(ctx, tx.s.l.gw.opts.Relay, tx.Sender, r.Recipient)
}

// outcome makes one reply of the backend's replies per recipient.
func (tx *transaction) outcome(replies []*smtp.Reply, err error) (*smtp.Reply, error) {
	stats := &tx.s.l.gw.Stats
	if err != nil {
		return nil, err
	}
	if len(replies) == 0 {
		return nil, errors.New("gateway: the relay gave no answer")
	}
	first, taken, refused := replies[0], 0, 0
	for _, r := range replies {
		if r.Positive() {
			taken++
		} else if r.Permanent() {
			refused++
		}
	}
	switch {
	case taken == len(replies):
		stats.Relayed.Add(1)
		return &smtp.Reply{Code: 250, Enh: first.Enh, Text: first.Text}, nil
	case refused == len(replies), len(replies) == 1:
		return nil, first
	}
	if taken > 0 {
		// Those who have it get it again when the client comes back.
		stats.Duplicates.Add(1)
	}
	var causes []error
	for i, r := range replies {
		if !r.Positive() && i < len(tx.Rcpts) {
			causes = append(causes, fmt.Errorf("<%s>: %w", tx.Rcpts[i].Path, r))
		}
	}
	return nil, smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "not all recipients could be served, try again later").Because(errors.Join(causes...))
}

// received is our trace field. RFC 5321, Section 4.4.
func (tx *transaction) received() message.Received {
	s := tx.s
	r := message.Received{
		Helo: s.facts.Helo, RDNS: s.facts.RDNS, Remote: s.facts.Remote.Addr(),
		By: s.l.gw.opts.Hostname, With: s.conn.Protocol(), ID: fmt.Sprintf("%s.%d", s.facts.ID, tx.Seq), Time: tx.start,
	}
	if s.facts.TLS != nil {
		r.TLSVersion, r.TLSCipher = s.facts.TLS.Version, s.facts.TLS.Cipher
	}
	if len(tx.Rcpts) == 1 {
		r.For = tx.Rcpts[0].Path.String()
	}
	return r
}
