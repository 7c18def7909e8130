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
	// MayAccept lets the filter end the asking at a stage with Accept.
	MayAccept bool
}

// Chain is a list of filters. It is immutable and safe for concurrent use. The nil
// *Chain has no filters.
type Chain struct {
	links  []Link
	stages Stages
}

// NewChain returns a chain that asks the filters in the order of links.
func NewChain(links ...Link) *Chain {
	c := &Chain{links: links}
	for _, l := range links {
		c.stages |= l.Filter.Stages()
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
	Filter   string
	Stage    Stage
	Verdict  Verdict
	Edits    []Edit // applied if Err is nil
	Err      error  // why the filter failed; Verdict is then its OnError's
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
	edits   Edits
	event   Event
}

// link is a Link in a session.
type link struct {
	Link
	stages   Stages
	instance Instance
	skipped  bool // by Skip
	forGood  bool // said outside a transaction: it holds for the session
}

// Open begins the chain's part of session s. observe, if not nil, is called with every
// answer of a filter.
func (c *Chain) Open(s *Session, observe func(Step)) *Run {
	r := &Run{session: s, observe: observe, stages: c.Stages()}
	if c != nil && len(c.links) > 0 {
		r.links = make([]link, len(c.links))
		for i, l := range c.links {
			r.links[i] = link{Link: l, stages: l.Filter.Stages()}
		}
	}
	return r
}

// Decide asks the filters about stage. tx is nil outside a transaction; the changes of
// filters are made in it. A quarantine does not end the asking: a filter behind may
// still refuse, which is stronger.
func (r *Run) Decide(ctx context.Context, stage Stage, tx *Transaction) Decision {
	var held Decision
	if !r.stages.Has(stage) {
		return held
	}
	for i := range r.links {
		l := &r.links[i]
		if l.skipped || !l.stages.Has(stage) {
			continue
		}
		v := r.ask(ctx, l, stage, tx)
		switch {
		case v.Final():
			if v.Action == Accept {
				return held
			}
			return Decision{v, l.Filter.Name()}
		case v.Action == Quarantine && held.Filter == "":
			held = Decision{v, l.Filter.Name()}
		case v.Action == Skip:
			l.skipped, l.forGood = true, tx == nil
		}
	}
	return held
}

// ask asks one filter and applies its edits. The verdict makes sense whatever the
// filter said.
func (r *Run) ask(ctx context.Context, l *link, stage Stage, tx *Transaction) Verdict {
	start := time.Now()
	r.edits.begin(l.Filter.Name(), stage, tx)
	v, err := r.call(ctx, l, stage, tx, start)
	if err == nil {
		v, err = v.check(stage, l.MayAccept)
	}
	if err != nil {
		l.drop()
		v = l.OnError.verdict(stage, err)
		r.edits.begin(l.Filter.Name(), stage, tx)
	} else {
		r.edits.apply(r.session)
	}
	if r.observe != nil {
		r.observe(Step{l.Filter.Name(), stage, v, r.edits.log, err, time.Since(start)})
	}
	return v
}

// call runs the filter. A panic of a Go filter is that filter's failure.
func (r *Run) call(ctx context.Context, l *link, stage Stage, tx *Transaction, now time.Time) (v Verdict, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("policy: filter %s panicked: %v\n%s", l.Filter.Name(), p, debug.Stack())
		}
	}()
	if l.instance == nil {
		if l.instance, err = l.Filter.Open(ctx, r.session); err != nil {
			return v, err
		}
	}
	r.event = Event{Stage: stage, Session: r.session, Time: now, Tx: tx, Edits: &r.edits}
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

// EndTransaction makes filters that skipped the transaction take part again.
func (r *Run) EndTransaction() {
	for i := range r.links {
		r.links[i].skipped = r.links[i].forGood
	}
}

// Close lets observers see the end of the session and closes all instances.
func (r *Run) Close(ctx context.Context) {
	r.Decide(ctx, StageClose, nil)
	for i := range r.links {
		r.links[i].drop()
	}
}
