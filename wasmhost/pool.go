package wasmhost

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// pool.go: the instances of a filter that no session has.

// pool holds them. Instances that are clean can be had at once. Those that were used are
// cleaned by the filter's goroutine, or by who needs one before that has come to it.
type pool struct {
	most int // instances there may be, in sessions too; 0 for any number
	keep int // clean ones that are kept
	make func(ctx context.Context) (*instance, error)

	mu      sync.Mutex // guards what follows
	live    int        // instances there are, those that are being made included
	clean   []*instance
	dirty   []*instance
	waiting []chan *instance // of those who need one; nil stands for leave to make one
	alone   bool             // the goroutine has ended: what comes back is cleaned at once
	closed  bool             // what comes back is thrown away
	wake    chan struct{}    // there is something to do for the goroutine
}

// take returns a clean instance. It waits for one no longer than patience, and never if
// there may be any number.
func (p *pool) take(ctx context.Context, ending <-chan struct{}, patience time.Duration) (*instance, error) {
	p.mu.Lock()
	for {
		if in := pop(&p.clean); in != nil {
			p.mu.Unlock()
			p.work()
			return in, nil
		}
		in := pop(&p.dirty)
		if in == nil {
			break
		}
		p.mu.Unlock()
		if in.reset() == nil {
			in.filter.count.resets.Add(1)
			return in, nil
		}
		p.discard(in)
		p.mu.Lock()
	}
	if p.most > 0 && p.live >= p.most {
		turn := make(chan *instance, 1)
		p.waiting = append(p.waiting, turn)
		p.mu.Unlock()
		in, err := p.wait(ctx, ending, turn, patience)
		if err != nil || in != nil {
			return in, err
		}
		return p.makeOne(ctx)
	}
	p.live++
	p.mu.Unlock()
	return p.makeOne(ctx)
}

// makeOne makes an instance that is counted in live already.
func (p *pool) makeOne(ctx context.Context) (*instance, error) {
	in, err := p.make(ctx)
	if err != nil {
		p.unmade()
	}
	return in, err
}

// unmade counts one instance less; who waits may make one in its place.
func (p *pool) unmade() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if turn := shift(&p.waiting); turn != nil {
		turn <- nil
		return
	}
	p.live--
}

// wait waits for an instance, or for leave to make one: nil.
func (p *pool) wait(ctx context.Context, ending <-chan struct{}, turn chan *instance, patience time.Duration) (*instance, error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	var err error
	select {
	case in := <-turn:
		return in, nil
	case <-ctx.Done():
		err = ended(ctx)
	case <-ending:
		err = because{CauseStopped, errClosed}
	case <-t.C:
		err = because{CausePool, fmt.Errorf("it waited %v for one of %d instances", patience, p.most)}
	}
	p.mu.Lock()
	for i, w := range p.waiting {
		if w == turn {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			p.mu.Unlock()
			return nil, err
		}
	}
	p.mu.Unlock()
	if in := <-turn; in != nil { // it came at the last moment
		p.put(in)
	} else {
		p.unmade()
	}
	return nil, err
}

// give takes an instance back that was used.
func (p *pool) give(in *instance) {
	p.mu.Lock()
	alone, closed := p.alone, p.closed
	if !alone && !closed {
		p.dirty = append(p.dirty, in)
	}
	p.mu.Unlock()
	switch {
	case closed:
		p.discard(in)
	case alone:
		p.clear(in)
	default:
		p.work()
	}
}

// put takes an instance that is as it should be: into the hands of who waits, or to the
// clean ones, or away if there are enough.
func (p *pool) put(in *instance) {
	p.mu.Lock()
	if turn := shift(&p.waiting); turn != nil {
		turn <- in
		p.mu.Unlock()
		return
	}
	if len(p.clean) < p.keep && !p.closed {
		p.clean = append(p.clean, in)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.discard(in)
}

// clear makes an instance clean again and puts it back, or throws it away.
func (p *pool) clear(in *instance) {
	if err := in.reset(); err != nil {
		p.discard(in)
		return
	}
	in.filter.count.resets.Add(1)
	p.put(in)
}

// discard throws an instance away.
func (p *pool) discard(in *instance) {
	in.filter.count.discarded.Add(1)
	in.destroy()
	p.unmade()
}

// work tells the goroutine that there is something to do.
func (p *pool) work() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run cleans what was used and keeps ready clean instances made ahead, until ctx ends.
// failed is told when that cannot be done.
func (p *pool) run(ctx context.Context, ready int, failed func(error)) {
	for {
		for ctx.Err() == nil {
			if in := p.takeDirty(); in != nil {
				p.clear(in)
				continue
			}
			if !p.wants(ready) {
				break
			}
			in, err := p.makeOne(ctx)
			if err != nil {
				if ctx.Err() == nil {
					failed(err)
				}
				break // the session that needs one will try again and report
			}
			p.put(in)
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return
		}
	}
}

func (p *pool) takeDirty() *instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	return pop(&p.dirty)
}

// wants tells whether one more should be made ahead, and counts it in live.
func (p *pool) wants(ready int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.clean) >= ready || p.most > 0 && p.live >= p.most {
		return false
	}
	p.live++
	return true
}

// leaveAlone says that the goroutine has ended, and does what it left. Sessions go on.
func (p *pool) leaveAlone() {
	p.mu.Lock()
	p.alone = true
	p.mu.Unlock()
	for in := p.takeDirty(); in != nil; in = p.takeDirty() {
		p.clear(in)
	}
}

// close throws away what nobody has. What comes back later goes away at once.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	all := append(p.clean, p.dirty...)
	p.clean, p.dirty = nil, nil
	p.mu.Unlock()
	for _, in := range all {
		p.discard(in)
	}
}

// pop takes the last of list, whose memory is still warm.
func pop[T any](list *[]*T) *T {
	n := len(*list) - 1
	if n < 0 {
		return nil
	}
	v := (*list)[n]
	(*list)[n] = nil
	*list = (*list)[:n]
	return v
}

// shift takes the first of list.
func shift[T any](list *[]chan T) chan T {
	if len(*list) == 0 {
		return nil
	}
	v := (*list)[0]
	*list = append((*list)[:0], (*list)[1:]...)
	return v
}
