package policy

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// chain.go: asking filters in order.

// Link is a filter's place in a chain.
type Link struct {
	Filter Filter
	// OnError answers for the filter when it fails.
	OnError OnError
	// MayAccept lets the filter end the asking at a stage with Accept. At StageAuth, where
	// Accept means something else, it does not count.
	MayAccept bool
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
	name   string
	stages Stages
}

// NewChain returns a chain that asks the filters in the order of links.
func NewChain(links ...Link) *Chain {
	c := &Chain{links: make([]place, len(links))}
	for i, l := range links {
		c.links[i] = place{Link: l, name: l.Filter.Name(), stages: l.Filter.Stages()}
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
	// Err is why the filter failed; Verdict is then its OnError's.
	Err      error
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
	return r.decide(ctx, Event{Stage: stage, Session: r.session, Time: time.Now(), Tx: tx, Edits: &r.edits})
}

func (r *Run) decide(ctx context.Context, event Event) Decision {
	d := r.askAll(ctx, event)
	r.event, r.edits = Event{}, Edits{} // an idle session must not keep its last message, or password, alive
	return d
}

// askAll asks the filters in order until one has the last word.
func (r *Run) askAll(ctx context.Context, event Event) Decision {
	var held Decision
	for i := range r.links {
		l := &r.links[i]
		if !l.wants(event.Stage) {
			continue
		}
		r.event = event // anew: the filter before may have written into it
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
	var start time.Duration
	if r.observe != nil {
		start = time.Since(asked) // a monotonic clock alone is cheaper than time.Now
	}
	r.edits.begin(l.name, stage, r.session, tx)
	mayAccept := l.mayAccept(&r.event) // now: a filter may write into its event
	v, err := r.try(ctx, l)
	if err == nil {
		v, err = v.check(stage, mayAccept)
	}
	if err == nil {
		err = r.edits.check(v)
	}
	if err != nil {
		l.drop()
		l.noChunks = l.noChunks || stage == StageChunk // a new instance has not seen the front
		v = l.OnError.verdict(stage, err)
		r.edits.begin(l.name, stage, r.session, tx)
	} else {
		r.edits.apply()
	}
	if r.observe != nil {
		r.observe(Step{l.name, stage, v, r.edits.Log(), err, time.Since(asked) - start})
	}
	return v
}

// try calls the filter. A panic of a Go filter is that filter's failure.
func (r *Run) try(ctx context.Context, l *link) (v Verdict, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("policy: filter %s panicked: %v\n%s", l.name, p, debug.Stack())
		}
	}()
	if l.instance == nil {
		inst, err := l.Filter.Open(ctx, r.session)
		if err != nil {
			return v, err
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
