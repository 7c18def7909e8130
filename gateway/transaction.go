package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// transaction.go: one message, from its envelope to the backend's answer.

// transaction is a transaction of a session, and its counterpart at a backend.
type transaction struct {
	policy.Transaction
	s       *session
	id      string // names the message in logs
	start   time.Time
	back    *handover // the session's
	from    smtp.Path // the sender as the client named it
	kind    kind      // of the recipients so far
	backend string    // takes the recipients so far; empty before the first
	changes []change  // of recipients, by filters
	// promised are the recipients that the client was told 250 for. With LMTP each is owed
	// an answer, without it nobody asks.
	promised []promise
	refused  []refused           // by filters, one by one
	one      [1]policy.Recipient // what Rcpts begins with: most messages have no more

	dropCandidate bool   // a filter discards the recipient at hand
	discarded     bool   // a filter has discarded a recipient
	dropped       bool   // a filter discards the message
	held          bool   // a filter wants it held
	broken        bool   // the client's message did not come to its end
	delivered     bool   // a backend took the message for somebody
	sent          bool   // the backend may have the message
	reason        string // why it is held
}

// promise is a recipient as the client named it, and whether a filter discarded it.
type promise struct {
	path      smtp.Path
	discarded bool
}

// change is a filter's change of a recipient.
type change struct{ from, to string }

// begin begins a transaction.
func (s *session) begin(from smtp.Sender) *transaction {
	if s.back == nil {
		s.back = new(handover)
	}
	s.back.reset()
	seq := uint64(s.conn.Transaction())
	tx := &transaction{s: s, back: s.back, from: from.Path, start: time.Now(), id: s.facts.ID + "." + strconv.FormatUint(seq, 10)}
	tx.Seq, tx.Sender, tx.Rcpts = seq, from, tx.one[:0]
	return tx
}

// promise notes that the client was told 250 for a recipient.
func (tx *transaction) promise(p promise) {
	if tx.s.l.Server.LMTP {
		tx.promised = append(tx.promised, p)
	}
}

// client is what a backend may be told of the client: what a proxy said with XFORWARD, or
// else what we know ourselves.
func (tx *transaction) client() smtp.Forwarded {
	s := tx.s
	if x, ok := s.conn.XForward(); ok {
		return x
	}
	proto := "SMTP"
	if s.conn.Protocol() != proto {
		proto = "ESMTP"
	}
	return smtp.Forwarded{Name: s.facts.RDNS, Addr: s.facts.Remote.Addr(), Port: s.facts.Remote.Port(), Proto: proto,
		Helo: s.facts.Helo, Ident: tx.id, Source: "REMOTE", Login: s.facts.User,
		DestAddr: s.facts.Local.Addr(), DestPort: s.facts.Local.Port()}
}

// discard makes a discarding verdict count: for the recipient at hand at StageRcpt, else
// for the message.
func (tx *transaction) discard(stage policy.Stage) {
	if stage == policy.StageRcpt {
		tx.dropCandidate = true
		return
	}
	tx.dropped = true
	tx.back.abort()
}

// note remembers which recipients a filter changed, and from what.
func (tx *transaction) note(step policy.Step) {
	for _, e := range step.Edits {
		if e.Kind == policy.EditRcptSet {
			tx.changes = append(tx.changes, change{e.Old, e.Value})
		}
	}
}

// original returns a recipient as the client had named it before filters changed it, with
// its wishes; ok is false if it was not there. Each change is undone once.
func (tx *transaction) original(r policy.Recipient) (_ policy.Recipient, ok bool) {
	name := r.Path.String()
	for i := len(tx.changes) - 1; i >= 0; i-- {
		if c := &tx.changes[i]; c.to == name {
			name, ok = c.from, true
			*c = change{}
		}
	}
	p, err := smtp.ParsePath("<" + name + ">")
	r.Path, r.AddedBy, r.Relay = p, "", false
	return r, ok && err == nil
}

func (tx *transaction) removeCandidate() { tx.Rcpts = tx.Rcpts[:len(tx.Rcpts)-1] }

var (
	errRelay   = smtp.Refuse(550, smtp.Enhanced{5, 7, 1}, "relaying denied: no mail for this domain here")
	errRouting = smtp.Refuse(550, smtp.Enhanced{5, 7, 1}, "mail is not passed on through another server here")
	errOther   = smtp.Refuse(452, smtp.Enhanced{4, 5, 3}, "this recipient needs a message of its own, send it again")
	errNoOne   = smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "no recipient is left of the message, try again later")
)

// routingMarks in a local part tell many servers to send on: user%elsewhere@here,
// elsewhere!user@here, "user@elsewhere"@here. A backend that trusts our address would do so for
// whoever asks us, so it takes a client that may relay.
const routingMarks = "@%!"

// route finds where a recipient's mail goes. For one that a filter named it counts what that
// filter may, beside what the client may.
func (tx *transaction) route(to policy.Recipient) (i int, r *Route, err error) {
	relay := to.Relay || tx.s.relays()
	if !relay && !tx.s.l.Routing && strings.ContainsAny(to.Path.Local, routingMarks) {
		return 0, nil, errRouting
	}
	i, ok := tx.s.rules.route(to.Path, tx.s.l.gw.own, relay)
	if !ok {
		return 0, nil, errRelay
	}
	return i, &tx.s.rules.Routes[i], nil
}

// offerCandidate asks the backend about the last recipient. One that a filter changed and
// that is refused is that filter's failure; if it is overlooked, the client's own takes
// its place.
func (tx *transaction) offerCandidate(ctx context.Context) error {
	last := len(tx.Rcpts) - 1
	err := tx.offer(ctx, tx.Rcpts[last])
	if _, ok := errors.AsType[*smtp.Reply](err); !ok || tx.Rcpts[last].AddedBy == "" {
		return err
	}
	if err := tx.failed(tx.Rcpts[last], policy.StageRcpt, err); err != nil {
		return err
	}
	own, ok := tx.original(tx.Rcpts[last])
	if !ok {
		return err
	}
	tx.Rcpts = append(tx.Rcpts[:last:last], own)
	return tx.offer(ctx, own)
}

// offer asks the backend about a recipient. Without a store a message has one backend.
func (tx *transaction) offer(ctx context.Context, to policy.Recipient) error {
	i, route, err := tx.route(to)
	if err != nil {
		return err
	}
	if tx.dropped {
		return nil // nobody will get it; the backend need not know
	}
	keeper := tx.s.l.gw.keeper
	other := tx.backend != "" && tx.backend != route.Backend
	if other && keeper == nil {
		return errOther
	}
	check := tx.s.rules.known.checks[i]
	if check != nil {
		if err := check(ctx, to.Path); err != nil {
			return refusal(err)
		}
	}
	if other || route.Queue && keeper != nil {
		if check == nil && !route.Recipients.Accept {
			return tx.ask(ctx, route, to.Recipient)
		}
		return nil
	}
	if check == nil && !route.Recipients.Accept {
		h := tx.back
		h.mu.Lock()
		defer h.mu.Unlock()
		if err := h.offer(ctx, tx.s.l.gw.opts.Relay, route.Backend, tx.Sender, tx.client(), to.Recipient); err != nil {
			return err
		}
	}
	tx.backend = route.Backend
	return nil
}

// failed answers for the filter that put r there, which err refuses. Nil means that the
// failure is to be overlooked.
func (tx *transaction) failed(r policy.Recipient, stage policy.Stage, err error) error {
	v := tx.s.run.Failed(r.AddedBy, stage, fmt.Errorf("recipient <%s> is refused: %w", r.Path, err)).Verdict
	if v.Action == policy.Reject && !smtp.ReplyOf(err).Permanent() {
		return err // it may pass, and so is no reason to refuse for good
	}
	return tx.s.heed(v, stage)
}

// message takes the content in, asks policy, and hands on.
func (tx *transaction) message(ctx context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	s := tx.s
	sp := newSpool(s.l.gw.opts.SpoolDir, s.l.gw.load, s.l.MaxHeader, func(h message.Header) error { return tx.headers(ctx, h) })
	defer sp.Close()
	if s.run.WantsChunks() {
		sp.wantsChunk, sp.onChunk = s.run.WantsChunks, func(off int64, p []byte) error { return tx.chunk(ctx, off, p) }
	}
	if err := sp.fill(body); err != nil {
		_, answered := errors.AsType[*smtp.Reply](err)
		tx.broken = !answered
		return nil, err
	}
	m := *tx.Message
	m.Body = sp.body()
	tx.Message = &m
	if err := s.decide(ctx, policy.StageMessage); err != nil {
		return nil, err
	}
	if err := tx.submit(ctx); err != nil {
		return nil, err
	}
	return tx.handOn(ctx)
}

// handOn makes what filters said of the message count.
func (tx *transaction) handOn(ctx context.Context) ([]*smtp.Reply, error) {
	s := tx.s
	switch {
	case tx.dropped:
		s.l.gw.Stats.Discarded.Add(1)
		return nil, nil
	case tx.held && s.l.gw.keeper == nil:
		return nil, errHeld
	}
	if err := tx.judge(); err != nil {
		return nil, err
	}
	switch {
	case len(tx.Rcpts) == 0 && len(tx.refused) > 0:
		return tx.deliver(ctx)
	case len(tx.Rcpts) == 0 && tx.discarded:
		s.l.gw.Stats.Discarded.Add(1)
		return nil, nil
	case len(tx.Rcpts) == 0:
		// Filters took them out one by one, which is not the same as to discard the mail.
		return nil, errNoOne
	}
	if keeper := s.l.gw.keeper; keeper != nil {
		return tx.keepOrDeliver(ctx, keeper)
	}
	return tx.deliver(ctx)
}

// headers is called when the header section is there.
func (tx *transaction) headers(ctx context.Context, h message.Header) error {
	if n := h.Count("Received"); n > tx.s.l.Hops {
		return smtp.Replyf(554, smtp.Enhanced{5, 4, 6}, "message passed %d servers, it goes in circles", n)
	}
	if err := tx.s.maySign(h); err != nil {
		return err
	}
	tx.Message = &policy.Message{Header: h}
	return tx.s.decide(ctx, policy.StageHeaders)
}

// chunk is called with a piece of the body while the client still sends.
func (tx *transaction) chunk(ctx context.Context, off int64, p []byte) error {
	d := tx.s.run.DecideChunk(ctx, &tx.Transaction, off, p)
	return tx.s.heed(d.Verdict, policy.StageChunk)
}

// deliver hands the message to the backend, and makes the client's answer of what it says.
func (tx *transaction) deliver(ctx context.Context) (replies []*smtp.Reply, err error) {
	if len(tx.Rcpts) > 0 {
		if replies, err = tx.hand(ctx); err != nil {
			if len(tx.refused) == 0 {
				return nil, err
			}
			replies = tx.each(err)
		}
	}
	tx.Rcpts, replies = tx.withRefused(tx.Rcpts, replies)
	return tx.conclude(replies)
}

// each makes err the answer of each of tx.Rcpts.
func (tx *transaction) each(err error) []*smtp.Reply {
	return slices.Repeat([]*smtp.Reply{smtp.ReplyOf(err)}, len(tx.Rcpts))
}

// hand hands the message to the backend, logs the attempt, and returns a reply for each of
// tx.Rcpts. An error speaks of all of them.
func (tx *transaction) hand(ctx context.Context) (replies []*smtp.Reply, err error) {
	h := tx.back
	h.mu.Lock()
	defer h.mu.Unlock()
	start := time.Now()
	defer func() { tx.logAttempt(tx.Message.Size(), replies, err, time.Since(start)) }()
	if !h.has(tx.Sender, tx.Rcpts) {
		if err := tx.replay(ctx); err != nil {
			return nil, err
		}
	}
	m := *tx.Message
	m.Header = m.Header.Insert(0, tx.received().Field())
	tx.sent = true
	replies, err = h.take().Data(ctx, &m) // which ends it
	switch {
	case err != nil:
		return nil, refusal(err)
	case len(replies) != len(tx.Rcpts):
		return nil, fmt.Errorf("gateway: the relay gave %d answers for %d recipients", len(replies), len(tx.Rcpts))
	}
	return replies, nil
}

// conclude makes the client's answer of the backend's replies.
func (tx *transaction) conclude(replies []*smtp.Reply) ([]*smtp.Reply, error) {
	if tx.s.l.Server.LMTP {
		return tx.outcomes(replies), nil
	}
	reply, err := tx.outcome(replies)
	if err != nil {
		return nil, err
	}
	return append(replies[:0], reply), nil
}

// outcomes gives each recipient that the client named the answer of what became of it. One
// that filters took out is served, unless those that they added are not: these may be in
// its place, and nobody else would hear of them.
func (tx *transaction) outcomes(replies []*smtp.Reply) []*smtp.Reply {
	named := make(map[smtp.Path][]*smtp.Reply, len(replies))
	served := &smtp.Reply{Code: 250, Enh: smtp.Enhanced{2, 6, 0}, Text: "message accepted"}
	others := served
	for i, r := range tx.Rcpts {
		if r.AddedBy != "" {
			own, ok := tx.original(r)
			if !ok {
				if replies[i].Code/100 != 2 && !others.Temporary() {
					others = replies[i]
				}
				continue
			}
			r = own
		}
		named[r.Path] = append(named[r.Path], replies[i])
	}
	owed := make([]*smtp.Reply, len(tx.promised))
	for i, p := range tx.promised {
		switch answers := named[p.path]; {
		case p.discarded:
			owed[i] = served
		case len(answers) > 0:
			owed[i] = answers[0]
			named[p.path] = answers[1:]
		default:
			owed[i] = others
		}
		if owed[i].Code/100 != 2 {
			owed[i] = smtp.ReplyOf(refusal(owed[i]))
		}
	}
	tx.delivered = taken(replies)
	if worst(replies).Code/100 == 2 {
		tx.s.l.gw.Stats.Relayed.Add(1)
	}
	return owed
}

// worst is the reply that a log should tell of.
func worst(replies []*smtp.Reply) *smtp.Reply {
	if len(replies) == 0 {
		return nil
	}
	return slices.MaxFunc(replies, func(a, b *smtp.Reply) int { return a.Code - b.Code })
}

// logAttempt logs what became of a message, by the backend's answers for the recipients; there
// are none if nothing was sent or the outcome is not known. err, if not nil, is what the client
// is told.
func (tx *transaction) logAttempt(size int64, replies []*smtp.Reply, err error, took time.Duration) {
	if !tx.s.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	text, refused := attempt(replies)
	reply := smtp.ReplyOf(err)
	if err == nil {
		reply = worst(replies)
	}
	attrs := make([]slog.Attr, 0, 11)
	attrs = append(attrs, slog.String("conn", tx.s.facts.ID), slog.String("mail", tx.id), slog.String("backend", tx.backend),
		slog.String("from", tx.Sender.Path.String()), slog.Int("rcpt", len(tx.Rcpts)), slog.Int64("bytes", size),
		slog.Duration("dur", took), slog.Int("code", reply.Code), slog.String("enh", reply.Enh.String()))
	if refused > 0 {
		attrs = append(attrs, slog.Int("refused", refused))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	tx.s.log.LogAttrs(context.Background(), slog.LevelInfo, text, attrs...)
}

// attempt says in a word what replies mean, and how many of them are refusals.
func attempt(replies []*smtp.Reply) (text string, refused int) {
	if len(replies) == 0 {
		return "not delivered", 0
	}
	for _, r := range replies {
		if r.Code/100 != 2 {
			refused++
		}
	}
	switch refused {
	case 0:
		return "delivered", 0
	case len(replies):
		return "refused", refused
	}
	return "partly delivered", refused
}

// replay offers the whole envelope anew, because filters changed it or the backend was
// given back meanwhile. The backend holds just tx.Rcpts then, or there is an error. h.mu
// is held.
func (tx *transaction) replay(ctx context.Context) error {
	tx.back.drop()
	tx.backend = tx.chooseBackend()
	kept := make([]policy.Recipient, 0, len(tx.Rcpts))
	var refusals []error
	for _, r := range tx.Rcpts {
		refused, err := tx.offerAgain(ctx, r)
		if refused != nil && r.AddedBy != "" {
			r, refused, err = tx.overlook(ctx, r, refused)
		}
		switch {
		case err != nil:
			return err
		case refused != nil:
			refusals = append(refusals, refused)
		case !r.Path.IsNull():
			kept = append(kept, r)
		}
		if len(kept) > 0 && len(refusals) > 0 {
			break // nobody gets it
		}
	}
	switch {
	case len(kept) == 0 && len(refusals) == 0:
		return errNoOne
	case len(refusals) == 0:
		tx.Rcpts = kept
		return nil
	case len(kept) == 0 && agree(refusals):
		return refusals[0]
	}
	// The client was told 250 for each. It can only be told about all of them, so nobody
	// gets it now.
	return smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "the envelope could not be repeated to the next hop, try again later").
		Because(errors.Join(refusals...))
}

// agree tells whether all of refusals, of which there is one at least, are permanent or
// all are not.
func agree(refusals []error) bool {
	first := smtp.ReplyOf(refusals[0]).Permanent()
	for _, r := range refusals[1:] {
		if smtp.ReplyOf(r).Permanent() != first {
			return false
		}
	}
	return true
}

// chooseBackend finds the backend of an envelope that filters may have changed: the one
// that the client's recipients led to, if any recipient still leads there.
func (tx *transaction) chooseBackend() string {
	first := ""
	for _, r := range tx.Rcpts {
		_, route, err := tx.route(r)
		switch {
		case err != nil:
		case route.Backend == tx.backend:
			return tx.backend
		case first == "":
			first = route.Backend
		}
	}
	return first
}

// offerAgain holds one recipient against the listener's rules and asks the backend.
// refused is the answer about this recipient; err means that the backend is gone.
func (tx *transaction) offerAgain(ctx context.Context, to policy.Recipient) (refused, err error) {
	_, route, err := tx.route(to)
	if err != nil {
		return err, nil
	}
	if route.Backend != tx.backend {
		return smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "recipient needs another backend than the rest of the message"), nil
	}
	h := tx.back
	err = h.offer(ctx, tx.s.l.gw.opts.Relay, tx.backend, tx.Sender, tx.client(), to.Recipient)
	if err != nil && h.tr != nil {
		return err, nil
	}
	return nil, err
}

// overlook answers for the filter that put r there, which is refused. If that is to be
// overlooked, what the client had named takes the place of r; or nothing does, which is
// the null path.
func (tx *transaction) overlook(ctx context.Context, r policy.Recipient, refused error) (_ policy.Recipient, _, err error) {
	if err := tx.failed(r, policy.StageMessage, refused); err != nil {
		return r, nil, err
	}
	if tx.held {
		return r, nil, errHeld
	}
	own, ok := tx.original(r)
	if !ok {
		return policy.Recipient{}, nil, nil
	}
	refused, err = tx.offerAgain(ctx, own)
	return own, refused, err
}

// outcome makes one reply of the backend's replies, one for each of tx.Rcpts.
func (tx *transaction) outcome(replies []*smtp.Reply) (*smtp.Reply, error) {
	stats := &tx.s.l.gw.Stats
	var refusals, causes []error
	for i, r := range replies {
		if r.Code/100 == 2 {
			continue
		}
		refusals = append(refusals, r)
		causes = append(causes, fmt.Errorf("<%s>: %w", tx.Rcpts[i].Path, r))
	}
	switch first := replies[0]; {
	case len(refusals) == 0:
		stats.Relayed.Add(1)
		tx.delivered = true
		if first.Code == 250 && first.Cause == nil && !first.Hangup {
			return first, nil
		}
		return &smtp.Reply{Code: 250, Enh: first.Enh, Text: first.Text}, nil
	case len(refusals) == len(replies) && agree(refusals):
		return nil, refusal(first)
	case len(refusals) < len(replies):
		// Those who have it get it again when the client comes back.
		stats.Duplicates.Add(1)
	}
	return nil, smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "not all recipients could be served, try again later").Because(errors.Join(causes...))
}

// received is our trace field. RFC 5321, Section 4.4.
func (tx *transaction) received() message.Received {
	s := tx.s
	r := message.Received{
		Helo: s.facts.Helo, RDNS: s.facts.RDNS, Remote: s.facts.Remote.Addr(), Unknown: !s.unix,
		By: s.l.gw.opts.Hostname, With: s.conn.Protocol(), ID: tx.id, Time: tx.start,
	}
	if s.facts.TLS != nil {
		r.TLSVersion, r.TLSCipher = s.facts.TLS.Version, s.facts.TLS.Cipher
	}
	if len(tx.Rcpts) == 1 {
		r.For = tx.Rcpts[0].Path.String()
	}
	return r
}
