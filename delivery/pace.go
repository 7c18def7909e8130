package delivery

import (
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/penstock/penstock/store"
)

// pace.go: backends and sites that want their mail slowly. Who waits for its turn at a backend has
// a worker, a lease that is kept alive, and no connection; a destination never has more workers
// than connections, so that others have theirs. There may be many more sites than backends: one
// whose turn is not soon is left alone until then.

// Pace is a number of messages in a time. They are spread over it: at most a tenth of a second's
// worth goes at once. The zero Pace is no limit.
type Pace struct {
	Messages int
	Per      time.Duration
}

func (p Pace) limiter() *rate.Limiter {
	if p.Messages <= 0 || p.Per <= 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	second := float64(p.Messages) / p.Per.Seconds()
	return rate.NewLimiter(rate.Limit(second), max(int(second/10), 1))
}

// await waits for the turn of a lease at its destination, and tells whether it came: not if the
// engine ends or the lease was lost before.
func (e *Engine) await(l *store.Lease) bool {
	backend, ok := strings.CutPrefix(string(l.Destination), backendPrefix)
	if !ok {
		return e.awaitSite(l)
	}
	limiter := e.opts.Transport.pace(backend)
	if limiter == nil || limiter.Limit() == rate.Inf {
		return true
	}
	turn := limiter.Reserve()
	for due := e.now().Add(turn.Delay()); ; {
		wait := due.Sub(e.now())
		if wait <= 0 {
			return true
		}
		t := time.NewTimer(min(wait, e.opts.Lease/3))
		select {
		case <-t.C:
			if wait > e.opts.Lease/3 && !e.extend(l) {
				turn.Cancel()
				return false
			}
		case <-e.closed:
			t.Stop()
			turn.Cancel()
			return false
		}
	}
}

// soon is how long a worker waits for the turn of a site.
const soon = time.Second

// awaitSite waits for the turn of a lease at a site, if it comes soon. Otherwise it leaves the site
// alone until then, and returns false.
func (e *Engine) awaitSite(l *store.Lease) bool {
	e.mu.Lock()
	var limiter *rate.Limiter
	if d := e.dests[l.Destination]; d != nil && d.site != nil {
		limiter = d.site.pace
	}
	e.mu.Unlock()
	if limiter == nil {
		return true
	}
	turn := limiter.Reserve()
	wait := turn.Delay()
	if wait <= 0 {
		return true
	}
	if wait > soon {
		turn.Cancel()
		e.restUntil(l.Destination, e.now().Add(wait))
		return false
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-e.closed:
		turn.Cancel()
		return false
	}
}
