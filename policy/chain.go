package policy

import (
	"context"
	"runtime/debug"
	"time"
)

// chain.go: asking filters in order.

// Link is a filter's place in a chain.
type Link struct {
	Filter Filter
	// OnError answers for the filter when it fails; OnErrorAt has the exceptions, by stage.
	OnError   OnError
	OnErrorAt map[Stage]OnError
	// Breaker, if not nil, keeps the filter from being asked while it is broken. OnBroken
	// answers for it then; at stages that it lacks, what answers for a failure does.
	Breaker  *Breaker
	OnBroken map[Stage]OnError
	// Account, if not nil, is told what the filter does.
	Account Account
	// MayAccept lets the filter end the asking at a stage with Accept. At StageAuth, where
	// Accept means something else, it does not count.
	MayAccept bool
	// MayRelay takes recipients that the filter names for which the client may not relay.
	MayRelay bool
	// Limits bound what the filter may change.
	Limits EditLimits
}

// Chain is a list of filters. It is immutable and safe for concurrent use. The nil
// *Chain has no filters.
type Chain struct {
	links  []place
	stages Stages
}

// place is a Link with what its filter says of itself. It is not asked again: a filter
// is a stranger, and each call of it a chance to fail.
type place struct {
	Link
	name     string
	stages   Stages
	onError  [stageLimit]OnError
	onBroken [stageLimit]OnError
}

func newPlace(l Link) place {
	l.Limits = l.Limits.withDefaults()
	p := place{Link: l, name: l.Filter.Name(), stages: l.Filter.Stages()}
	for i := range p.onError {
		p.onError[i] = l.OnError
		if o, ok := l.OnErrorAt[Stage(i)]; ok {
			p.onError[i] = o
		}
		p.onBroken[i] = p.onError[i]
		if o, ok := l.OnBroken[Stage(i)]; ok {
			p.onBroken[i] = o
		}
	}
	return p
}

// NewChain returns a chain that asks the filters in the order of links.
func NewChain(links ...Link) *Chain {
	c := &Chain{links: make([]place, len(links))}
	for i, l := range links {
		c.links[i] = newPlace(l)
		c.stages |= c.links[i].stages
	}
	return c
}

// Stages returns the stages at which some filter wants to be asked.
func (c *Chain) Stages() Stages {
	if c == nil {
		return 0
	}
	return c.stages
}

// Step is one filter's answer at one stage, for logs. Its slices are valid during the
// observer's call.
type Step struct {
	Filter  string
	Stage   Stage
	Verdict Verdict
	// Edits are what was applied, nothing if the filter failed.
	Edits []Edit
	// Err is why the filter failed; Verdict is then its OnError's. It is ErrBroken for a
	// filter that was not asked; Verdict is then its OnBroken's.
	Err error
	// Late tells that the filter had returned, and was counted, before the failure showed.
	Late     bool
	Duration time.Duration
}

// Decision is the answer of a chain.
type Decision struct {
	Verdict
	// Filter is the one whose verdict it is; empty if none had an objection.
	Filter string
}

// Run is a chain's part of one session. It is for the session's goroutine.
type Run struct {
	session *Session
	observe func(Step)
	links   []link
	stages  Stages
	*call   // nil if no filter wants to be asked
}

// call is what belongs to the call that is under way. A Run keeps it, so that a call
// allocates nothing.
type call struct {
	edits Edits
	event Event
	step  Step
	// lap is when the filter before was done, since the chain was asked: the next begins then.
	// To look at the clock once for each filter is half of what that costs.
	lap time.Duration
}

// link is a place in a session.
type link struct {
	*place
	instance Instance
	skipped  bool // by Skip
	forGood  bool // said outside a transaction: it holds for the session
	noChunks bool // it is shown no more of the message's body
}

// Open begins the chain's part of session s. observe, if not nil, is called with every
// answer of a filter.
func (c *Chain) Open(s *Session, observe func(Step)) *Run {
	r := &Run{session: s, observe: observe, stages: c.Stages()}
	if r.stages == 0 {
		return r
	}
	r.call = new(call)
	r.links = make([]link, len(c.links))
	for i := range c.links {
		r.links[i].place = &c.links[i]
	}
	return r
}

// Decide asks the filters about stage. tx is nil outside a transaction; the changes of
// filters are made in it. A quarantine does not end the asking: a filter behind may
// still refuse, which is stronger. A login is asked about with DecideAuth.
func (r *Run) Decide(ctx context.Context, stage Stage, tx *Transaction) Decision {
	if !r.stages.Has(stage) {
		return Decision{}
	}
	return r.decide(ctx, &Event{Stage: stage, Session: r.session, Time: time.Now(), Tx: tx, Edits: &r.edits})
}

func (r *Run) decide(ctx context.Context, event *Event) Decision {
	r.lap = 0
	d := r.askAll(ctx, event)
	// An idle session must not keep its last message, or password, alive.
	r.event, r.step = Event{}, Step{}
	r.edits.end()
	return d
}

// askAll asks the filters in order until one has the last word.
func (r *Run) askAll(ctx context.Context, event *Event) Decision {
	var held Decision
	for i := range r.links {
		l := &r.links[i]
		if !l.wants(event.Stage) {
			continue
		}
		r.event = *event // anew: the filter before may have written into it
		v := r.ask(ctx, l, event.Stage, event.Tx)
		switch {
		case v.Action == Accept && event.Stage == StageAuth:
			if held.Filter == "" {
				held = Decision{v, l.name}
			}
		case v.Action == Accept:
			r.endChunks(event.Stage, i)
			return held
		case v.Final():
			r.endChunks(event.Stage, i)
			return Decision{v, l.name}
		case v.Action == Quarantine && held.Filter == "":
			held = Decision{v, l.name}
		case v.Action == Skip && event.Stage == StageChunk:
			l.noChunks = true
		case v.Action == Skip:
			l.skipped, l.forGood = true, event.Tx == nil
		}
	}
	return held
}

// ask asks one filter and applies its edits. The verdict makes sense whatever the
// filter said.
func (r *Run) ask(ctx context.Context, l *link, stage Stage, tx *Transaction) Verdict {
	asked := r.event.Time
	permit := l.Breaker.ask(stage, asked)
	if permit == denied {
		r.step = Step{Filter: l.name, Stage: stage, Verdict: standIn(l.onBroken[stage], stage), Err: ErrBroken}
		l.noChunks = l.noChunks || stage == StageChunk // what it would see next has no front
		r.tell(l)
		return r.step.Verdict
	}
	r.edits.begin(l.place, stage, r.session, tx)
	mayAccept := l.mayAccept(&r.event) // now: a filter may write into its event
	v, err := r.try(ctx, l)
	if err == nil {
		v, err = v.check(stage, mayAccept)
	}
	if err == nil {
		err = r.edits.check(v)
	}
	if err != nil {
		v = r.fail(ctx, l, stage, permit, err)
		r.edits.begin(l.place, stage, r.session, tx)
	} else {
		if permit == probing {
			l.Breaker.passed(stage, time.Now())
		}
		r.edits.apply()
	}
	if r.observe != nil || l.Account != nil {
		now := time.Since(asked) // a monotonic clock alone is cheaper than time.Now
		r.step = Step{Filter: l.name, Stage: stage, Verdict: v, Edits: r.edits.Log(), Err: err, Duration: now - r.lap}
		r.lap = now
		r.tell(l)
		if err != nil || v.Action != Continue { // it was written to a log
			r.lap = time.Since(asked)
		}
	}
	return v
}

// tell tells whoever wants to know of the step.
func (r *Run) tell(l *link) {
	if l.Account != nil {
		l.Account.Note(r.session, &r.step)
	}
	if r.observe != nil {
		r.observe(r.step)
	}
}

// fail is what a failure of the filter that was asked comes to.
func (r *Run) fail(ctx context.Context, l *link, stage Stage, p permit, err error) Verdict {
	l.drop()
	l.noChunks = l.noChunks || stage == StageChunk // a new instance has not seen the front
	if l.Breaker != nil {
		switch now := time.Now(); {
		case ctx.Err() == nil && CauseOf(err) != CauseStopped:
			l.Breaker.failed(stage, r.session.Remote.Addr(), now, p, err)
		case p == probing:
			l.Breaker.abandoned(stage, now)
		}
	}
	return l.onError[stage].verdict(stage, err)
}

// standIn answers for a filter that is broken.
func standIn(o OnError, stage Stage) Verdict {
	v := o.verdict(stage, ErrBroken)
	if v.Reason != "" {
		v.Reason = "filter is broken"
	}
	return v
}

// try calls the filter. A panic of a Go filter is that filter's failure.
func (r *Run) try(ctx context.Context, l *link) (v Verdict, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(l.name, p, debug.Stack())
		}
	}()
	if l.instance == nil {
		inst, err := l.Filter.Open(ctx, r.session)
		if err != nil {
			return v, because(CausePool, err)
		}
		l.instance = inst
	}
	return l.instance.Decide(ctx, &r.event)
}

// drop closes the instance: after a failure nobody knows what state it is in.
func (l *link) drop() {
	if l.instance == nil {
		return
	}
	inst := l.instance
	l.instance = nil
	defer func() { _ = recover() }() // a Go filter that panics twice is still only its own failure
	inst.Close()
}

// EndTransaction makes filters that skipped the transaction, or chunks of its message, take
// part again.
func (r *Run) EndTransaction() {
	for i := range r.links {
		r.links[i].skipped, r.links[i].noChunks = r.links[i].forGood, false
	}
}

// Close lets observers see the end of the session and closes all instances. After it
// nobody is asked any more; to call it again does nothing.
func (r *Run) Close(ctx context.Context) {
	r.Decide(ctx, StageClose, nil)
	r.stages = 0
	for i := range r.links {
		r.links[i].drop()
	}
}
