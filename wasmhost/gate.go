package wasmhost

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// gate.go: who computes. A guest that needs more than its first slice takes one of a few
// places, and passes it on at every tick if somebody waits. So guests that compute for
// long share the processors in turn, and however many they are, the goroutines that speak
// to clients find a processor soon.

// gate has the places of a Runtime. The zero value has none.
type gate struct {
	mu      sync.Mutex
	free    int
	waiting []chan struct{} // first come, first served
}

func newGate() *gate { return &gate{free: 2 * runtime.GOMAXPROCS(0)} }

// enter takes a place. turn is a channel with room for one, used for nothing else. closing
// ends when the Runtime does. It waits no longer than patience.
func (g *gate) enter(ctx context.Context, closing <-chan struct{}, turn chan struct{}, patience time.Duration) error {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return nil
	}
	g.waiting = append(g.waiting, turn)
	g.mu.Unlock()
	return g.wait(ctx, closing, turn, patience)
}

func (g *gate) wait(ctx context.Context, closing <-chan struct{}, turn chan struct{}, patience time.Duration) error {
	t := time.NewTimer(patience)
	defer t.Stop()
	var err error
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		err = ended(ctx)
	case <-closing:
		err = errClosed
	case <-t.C:
		err = because{CausePool, fmt.Errorf("it waited %v for its turn to compute: more filters want to than the machine has room for", patience)}
	}
	g.giveUp(turn)
	return err
}

// giveUp leaves the queue; a place that came meanwhile goes to the next.
func (g *gate) giveUp(turn chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.waiting {
		if w == turn {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return
		}
	}
	<-turn // it is out of the queue, so it was given a place
	g.pass()
}

// pass gives a place to the first who waits, if any. g.mu is held.
func (g *gate) pass() {
	if len(g.waiting) == 0 {
		g.free++
		return
	}
	g.waiting[0] <- struct{}{}
	g.waiting = append(g.waiting[:0], g.waiting[1:]...)
}

// leave gives a place back.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pass()
}

// again gives the place to the first who waits and waits for the next turn. On an error
// the place is lost.
func (g *gate) again(ctx context.Context, closing <-chan struct{}, turn chan struct{}, patience time.Duration) error {
	g.mu.Lock()
	if len(g.waiting) == 0 {
		g.mu.Unlock()
		return nil
	}
	g.waiting = append(g.waiting, turn)
	g.pass()
	g.mu.Unlock()
	return g.wait(ctx, closing, turn, patience)
}
