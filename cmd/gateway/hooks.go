package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/store"
)

// hooks.go asks the chain of delivery.chain about mail on its way out, and tells it what became
// of it.
//
//	Engine ─ delivery.Hooks ─▶ chainHooks ─ policy.Run ─▶ filters of the chains in force

// chainHooks is a delivery.Hooks. Each call is a session of its own: between two of one attempt
// hours may pass, in which filters are replaced.
type chainHooks struct {
	chain   string
	host    string           // our name
	live    func() *chainSet // the chains in force; nil if there are none
	sources map[string]bool  // names
	log     *slog.Logger
	count   atomic.Uint64

	failures seldom

	mu     sync.Mutex
	pinned *chainSet // whose filters run as long as it is; nil for none; guarded by mu
	unpin  func()    // guarded by mu
	closed bool      // guarded by mu
}

// newChainHooks returns the Hooks of a configuration; nil if it names no chain for them.
// Who made them closes them.
func newChainHooks(cfg *config.Config, live func() *chainSet, log *slog.Logger) *chainHooks {
	if cfg.Delivery.Chain == "" {
		return nil
	}
	h := &chainHooks{chain: cfg.Delivery.Chain, host: string(cfg.Hostname), live: live, sources: make(map[string]bool), log: log}
	for _, s := range cfg.Delivery.Sources {
		h.sources[s.Name] = true
	}
	return h
}

// weakerTLS tells whether a filter of the chain for mail to others may have it go with less
// encryption than the other side asks for.
func weakerTLS(cfg *config.Config) bool {
	for _, f := range cfg.Filters.Chains[cfg.Delivery.Chain] {
		if f.Grant.Route.Given && f.Grant.Route.WeakerTLS == config.True {
			return true
		}
	}
	return false
}

// hold returns a chain whose filters run until release is called; false if they have ended.
func (set *chainSet) hold(name string) (c *policy.Chain, release func(), ok bool) {
	var held []func()
	release = func() {
		for _, end := range held {
			end()
		}
	}
	for _, p := range set.places[name] {
		if !p.filter.acquire() {
			release()
			return nil, nil, false
		}
		held = append(held, p.filter.release)
	}
	return set.chains[name], release, true
}

// current returns the chain in force. Its filters are kept until another one is, or until close:
// when the gateway ends, deliveries are finished after the last session, with which the filters
// would go.
func (h *chainHooks) current() (*policy.Chain, func(), error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	set := h.live()
	if set == nil || h.closed {
		return nil, nil, errGone
	}
	if set != h.pinned {
		if _, unpin, ok := set.hold(h.chain); ok { // else it was replaced at this moment
			h.drop()
			h.pinned, h.unpin = set, unpin
		}
	}
	if h.pinned != nil {
		if c, release, ok := h.pinned.hold(h.chain); ok {
			return c, release, nil
		}
	}
	return nil, nil, errGone
}

// drop is called with mu held.
func (h *chainHooks) drop() {
	if h.pinned != nil {
		h.unpin()
		h.pinned, h.unpin = nil, nil
	}
}

// close lets the filters go. It comes after the last delivery.
func (h *chainHooks) close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.drop()
}

// question is what is asked of a chain.
type question struct {
	h     *chainHooks
	stage policy.Stage
	info  policy.Session
	tx    policy.Transaction
	run   *policy.Run
	// chose are the filters that said something of a part of the way, by the part.
	chose map[string]string
}

// ask asks the chain about an attempt, and then for what else may be wrong with what it said.
func (h *chainHooks) ask(ctx context.Context, stage policy.Stage, o delivery.Outgoing, who []int, fill func(*policy.Outbound), check func(*question) policy.Decision) (policy.Way, error) {
	chain, release, err := h.current()
	if err != nil {
		return policy.Way{}, err
	}
	defer release()
	if !chain.Stages().Has(stage) {
		return policy.Way{}, nil
	}
	q := &question{h: h, stage: stage, info: h.session(o.Message), tx: transactionOf(o, who), chose: make(map[string]string)}
	fill(q.tx.Outbound)
	q.run = chain.Open(&q.info, q.note)
	defer q.run.Drop()
	d := q.run.Decide(ctx, stage, &q.tx)
	if d.Reply == nil && stage.Decides() {
		if late := check(q); late.Reply != nil {
			d = late
		}
	}
	if d.Reply != nil {
		return policy.Way{}, fmt.Errorf("filter %s: %w", d.Filter, d.Reply)
	}
	return q.tx.Outbound.Way, ctx.Err()
}

// session is the session in which a message came, as far as it is still known.
func (h *chainHooks) session(m *store.Message) policy.Session {
	c := m.Origin.Client
	s := policy.Session{
		ID: string(m.ID), Number: 1<<63 | h.count.Add(1), Host: h.host, Listener: m.Origin.Listener, RDNS: c.Name, Helo: c.Helo, User: c.Login,
	}
	if c.Addr.IsValid() {
		s.Remote = netip.AddrPortFrom(c.Addr, c.Port)
	}
	if c.DestAddr.IsValid() {
		s.Local = netip.AddrPortFrom(c.DestAddr, c.DestPort)
	}
	return s
}

// transactionOf is an attempt for some recipients, by their places in the message.
func transactionOf(o delivery.Outgoing, who []int) policy.Transaction {
	m := o.Message
	tx := policy.Transaction{Seq: 1, Sender: m.Sender, Outbound: &policy.Outbound{
		Target: o.Target, Try: o.Try, Arrived: m.Arrived, Expires: m.Expires,
	}}
	tx.Sender.Size = m.Size
	for _, i := range who {
		tx.Rcpts = append(tx.Rcpts, policy.Recipient{Recipient: m.Recipients[i].Recipient})
	}
	return tx
}

// note keeps who chose what, and logs what is not the usual.
func (q *question) note(s policy.Step) {
	for _, e := range s.Edits {
		if e.Kind == policy.EditWay {
			q.chose[e.Name] = s.Filter
		}
	}
	log := q.h.log.With("mail", q.info.ID, "stage", s.Stage.String(), "filter", s.Filter, "verdict", s.Verdict.Action.String())
	switch {
	case s.Err != nil && !errors.Is(s.Err, policy.ErrBroken): // of which the log has one line
		level := slog.LevelDebug
		cause := policy.CauseOf(s.Err)
		if q.h.failures.first(s.Filter+" "+s.Stage.String()+" "+cause, time.Now()) {
			level = slog.LevelError
		}
		line, _, _ := strings.Cut(s.Err.Error(), "\n")
		log.Log(context.Background(), level, "filter failed", "cause", cause, "dur", s.Duration, "err", line)
	case s.Verdict.Reply != nil:
		log.Info("verdict", "code", s.Verdict.Reply.Code, "enh", s.Verdict.Reply.Enh.String())
	}
}

// failureEvery is how often failures of one kind are errors in the log: a filter that is broken
// fails with each message.
const failureEvery = 10 * time.Second

// seldom tells what is the first of its kind for a while. Kinds must be few.
type seldom struct {
	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
}

func (s *seldom) first(kind string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.last[kind]; ok && now.Sub(at) < failureEvery {
		return false
	}
	if s.last == nil {
		s.last = make(map[string]time.Time)
	}
	s.last[kind] = now
	return true
}

// Route implements delivery.Hooks.
func (h *chainHooks) Route(ctx context.Context, o delivery.Outgoing) (delivery.Way, error) {
	w, err := h.ask(ctx, policy.StageRoute, o, o.Recipients, func(*policy.Outbound) {}, (*question).checkRoute)
	if err != nil {
		return delivery.Way{}, err
	}
	return delivery.Way{Relay: w.Relay, Source: w.Source, TLS: tlsMode(w.TLS)}, nil
}

// tlsMode is an encryption in the words of package delivery.
func tlsMode(e policy.Encryption) delivery.TLSMode {
	if e == policy.AsPolicySays {
		return ""
	}
	return delivery.TLSMode(e.String())
}

// checkRoute holds what filters chose against what there is. What cannot be is the failure of the
// filter that chose it; where that is to be overlooked, so is the choice.
func (q *question) checkRoute() (worst policy.Decision) {
	w := &q.tx.Outbound.Way
	if w.Relay != "" {
		if _, err := delivery.ParseRelay(w.Relay); err != nil {
			worst = q.run.Failed(q.chose["relay"], q.stage, err)
			w.Relay = ""
		}
	}
	if w.Source != "" && !q.h.sources[w.Source] {
		d := q.run.Failed(q.chose["source"], q.stage, fmt.Errorf("there is no source %q", w.Source))
		w.Source = ""
		if worst.Reply == nil {
			worst = d
		}
	}
	return worst
}

// Deliver implements delivery.Hooks. Whether an address may be connected to is for the engine to
// say, which does so with each.
func (h *chainHooks) Deliver(ctx context.Context, o delivery.Outgoing, hops []delivery.Hop) (delivery.Turn, error) {
	w, err := h.ask(ctx, policy.StageDeliver, o, o.Recipients, func(out *policy.Outbound) {
		for _, hop := range hops {
			to := policy.Hop{Host: hop.Host, Preference: hop.Preference, Addrs: hop.Addrs, Demand: hop.Demand}
			if hop.Err != nil {
				to.Refused = hop.Err.Error()
			}
			out.Hops = append(out.Hops, to)
		}
	}, func(*question) policy.Decision { return policy.Decision{} })
	return delivery.Turn{To: w.To}, err
}

// Deferred implements delivery.Hooks.
func (h *chainHooks) Deferred(ctx context.Context, o delivery.Outgoing, fates []delivery.Fate) {
	h.tell(ctx, policy.StageDeferred, o, fates)
}

// Bounced implements delivery.Hooks.
func (h *chainHooks) Bounced(ctx context.Context, o delivery.Outgoing, fates []delivery.Fate) {
	h.tell(ctx, policy.StageBounced, o, fates)
}

// Delivered implements delivery.Hooks.
func (h *chainHooks) Delivered(ctx context.Context, o delivery.Outgoing, fates []delivery.Fate) {
	h.tell(ctx, policy.StageDelivered, o, fates)
}

// tell tells the chain what became of recipients. What goes wrong with that has been logged, and
// changes nothing.
func (h *chainHooks) tell(ctx context.Context, stage policy.Stage, o delivery.Outgoing, fates []delivery.Fate) {
	who := make([]int, len(fates))
	for i, f := range fates {
		who[i] = f.Recipient
	}
	_, _ = h.ask(ctx, stage, o, who, func(out *policy.Outbound) {
		for _, f := range fates {
			out.Fates = append(out.Fates, policy.Fate{Reply: f.Reply, Host: f.Host, Addr: f.Addr, Due: f.Due})
		}
	}, nil)
}
