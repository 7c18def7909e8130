package delivery

import (
	"container/list"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/penstock/penstock/store"
)

// site.go: who works where. Destinations that are served by the same hosts are one site: a
// thousand domains at one provider share what the provider bears. A backend is a site of its own.
//
// A worker is at one site at a time, and at one of its destinations. Nobody waits with a worker,
// let alone with a goroutine for a message: a destination whose site has its hands full stands in
// the site's line, and its messages lie in the store unleased; one whose site has room but for
// which there is no worker in all, stands in the engine's. Whoever gets free takes the next.
//
//	due ──▶ which site? ──▶ room there? ──no──▶ the site's line ─┐
//	        (scouts ask)        │ yes                            │ room
//	                            ▼                                ▼
//	                     a worker free? ──no──▶ the engine's line ──▶ worker
//
// A site that nobody knows begins with few connections and gets one more with each success. One
// whose hosts could not be reached is back at one. Those that have not shown yet that they take
// mail may have half of all workers at most, so that many dead hosts never keep mail from the
// living; and those count with them that take long for each message.

// site is a set of hosts that serves destinations. Guarded by Engine.mu.
type site struct {
	key     string
	backend string // of a backend: its name
	// dests counts the destinations that are here.
	dests   int
	workers int
	line    line
	// window is how many workers there may be now, most is how many ever.
	window, most int
	// proven tells that the last that was heard of it was good, and came soon.
	proven bool
	// rest is until when nobody begins to work here; timer ends it.
	rest  time.Time
	timer *time.Timer
	pace  *rate.Limiter // nil: no limit, or that of the backend
	used  time.Time     // when the last worker left
}

// firstWindow is how many workers a site begins with.
const firstWindow = 5

// line is destinations that wait, first come first served. A destination stands in one line at
// most.
type line struct{ l list.List }

func (l *line) push(d *destination) {
	d.waits = true
	l.l.PushBack(d)
}

// pop returns the first, nil if there is none.
func (l *line) pop() *destination {
	first := l.l.Front()
	if first == nil {
		return nil
	}
	d := l.l.Remove(first).(*destination)
	d.waits = false
	return d
}

// popLast returns the last, nil if there is none.
func (l *line) popLast() *destination {
	if last := l.l.Back(); last != nil {
		l.l.MoveToFront(last)
	}
	return l.pop()
}

// shift moves those of a site to another line.
func (l *line) shift(s *site, to *line) {
	for e := l.l.Front(); e != nil; {
		next := e.Next()
		if d := e.Value.(*destination); d.site == s {
			l.l.Remove(e)
			to.push(d)
		}
		e = next
	}
}

func (l *line) empty() bool { return l.l.Len() == 0 }

// limit is how many workers a site may have now. e.mu is held.
func (e *Engine) limit(s *site) int {
	if s.backend != "" {
		if n := e.opts.Transport.connections(s.backend); n > 0 {
			return n
		}
		return e.opts.DestinationWorkers
	}
	return min(s.window, s.most)
}

// room tells whether a site bears one more worker. e.mu is held.
func (e *Engine) room(s *site) bool { return s.workers < e.limit(s) && !e.rests(s) }

// rests tells whether a site is to be left alone. e.mu is held.
func (e *Engine) rests(s *site) bool { return e.now().Before(s.rest) }

// full tells whether there is no worker for a site, for want of workers in all. e.mu is held.
func (e *Engine) full(s *site) bool {
	return e.workers >= e.opts.Workers || !s.proven && e.unproven >= e.mostUnproven()
}

// mostUnproven is how many workers sites that are not proven may have, together.
func (e *Engine) mostUnproven() int { return max(1, e.opts.Workers/2) }

// locate gives a destination its site, if it can be told at once. e.mu is held.
func (e *Engine) locate(d *destination) {
	if d.site != nil {
		return
	}
	backend, ok := strings.CutPrefix(string(d.name), backendPrefix)
	if !ok && e.out.reaches(d.name) {
		return // a scout finds out
	}
	e.settle(d, string(d.name), backend)
}

// settle puts a destination into a site. Backend is the site's, empty if it is none. e.mu is held.
func (e *Engine) settle(d *destination, key, backend string) {
	s := e.sites[key]
	if s == nil {
		s = &site{key: key, most: e.opts.DestinationWorkers}
		switch {
		case strings.HasPrefix(string(d.name), backendPrefix):
			s.backend, s.proven = backend, true
		default:
			s.pace = e.out.pace()
			s.window = min(firstWindow, s.most)
		}
		e.sites[key] = s
	}
	d.site = s
	s.dests++
}

// unsettle takes a destination out of its site, which is forgotten when there is nothing worth
// remembering. e.mu is held.
func (e *Engine) unsettle(d *destination) {
	s := d.site
	d.site, d.stale = nil, false
	if s == nil {
		return
	}
	s.dests--
	s.used = e.now()
	if s.dests == 0 && (s.backend != "" || !s.proven && s.window <= firstWindow && !e.rests(s) || len(e.sites) > maxSites) {
		e.forget(s)
	}
}

// maxSites is how many sites are remembered; siteAge is for how long without mail.
const (
	maxSites = 20000
	siteAge  = time.Hour
)

// forget ends a site without destinations. e.mu is held.
func (e *Engine) forget(s *site) {
	if s.timer != nil {
		s.timer.Stop()
	}
	delete(e.sites, s.key)
}

// forgetOld forgets sites that had no mail for long. e.mu is held.
func (e *Engine) forgetOld(now time.Time) {
	if now.Sub(e.swept) < time.Minute {
		return
	}
	e.swept = now
	for _, s := range e.sites {
		if s.dests == 0 && now.Sub(s.used) > siteAge {
			e.forget(s)
		}
	}
}

// enter counts a worker in, leave counts it out. e.mu is held.
func (e *Engine) enter(d *destination) {
	d.workers++
	d.site.workers++
	if !d.site.proven {
		e.unproven++
	}
}

func (e *Engine) leave(d *destination) {
	s := d.site
	d.workers--
	s.workers--
	s.used = e.now()
	if !s.proven {
		e.unproven--
	}
	switch {
	case d.workers > 0:
	case d.more && !e.closing:
		e.wait(d)
	default:
		e.unsettle(d)
		delete(e.dests, d.name)
	}
	e.serve(s)
	e.serveShort()
}

// hire counts one more worker at a destination, if there may be one. e.mu is held.
func (e *Engine) hire(d *destination) bool {
	e.locate(d)
	if e.closing || d.waits || d.stale || d.site == nil || !d.site.line.empty() || !e.room(d.site) || e.full(d.site) {
		return false
	}
	e.employ(d)
	return true
}

// employ counts one more worker. e.mu is held.
func (e *Engine) employ(d *destination) {
	e.workers++
	e.enter(d)
	e.running.Add(1)
}

// wait puts a destination without workers into the line where it is to wait, or gives it one if it need
// not. e.mu is held.
func (e *Engine) wait(d *destination) {
	if d.stale {
		e.unsettle(d)
		e.locate(d)
	}
	switch s := d.site; {
	case s == nil:
		e.scout(d)
	case !e.room(s) || !s.line.empty():
		s.line.push(d)
	case e.full(s):
		e.short[kindOf(s)].push(d)
	default:
		e.employ(d)
		go e.work(d, nil)
	}
}

// kindOf is the line of the engine in which destinations of a site wait.
func kindOf(s *site) int {
	if s.proven {
		return 0
	}
	return 1
}

// serve gives workers to the line of a site, as far as it has room. e.mu is held.
func (e *Engine) serve(s *site) {
	for !e.closing && !s.line.empty() && e.room(s) {
		d := s.line.pop()
		if e.full(s) {
			e.short[kindOf(s)].push(d)
			return // whoever leaves this site sends the next
		}
		e.employ(d)
		go e.work(d, nil)
	}
}

// next returns the destination where a worker is needed that has none, for want of workers in
// all; nil if there is none. It is not in a line any more. The worker is one that is about to leave a
// site. e.mu is held.
func (e *Engine) next(from *site) *destination {
	e.turn ^= 1
	unproven := e.unproven
	if !from.proven {
		unproven--
	}
	for i := range e.short {
		l := &e.short[i^e.turn]
		for n := l.l.Len(); n > 0; n-- {
			if i^e.turn == 1 && unproven >= e.mostUnproven() {
				break // none of these, however many they are
			}
			d := l.pop()
			switch s := d.site; {
			case s != from && !e.room(s) || s == from && s.workers > e.limit(s) || e.rests(s):
				s.line.push(d)
			case !s.proven && unproven >= e.mostUnproven():
				e.short[1].push(d)
			default:
				return d
			}
		}
	}
	return nil
}

// serveShort gives workers to the lines of the engine, as far as there are any. e.mu is held.
func (e *Engine) serveShort() {
	for i := range e.short {
		l := &e.short[i]
		for n := l.l.Len(); n > 0 && !e.closing && e.workers < e.opts.Workers; n-- {
			if i == 1 && e.unproven >= e.mostUnproven() {
				break // none of these, however many they are
			}
			d := l.pop()
			switch s := d.site; {
			case !e.room(s):
				s.line.push(d)
			case e.full(s):
				e.short[1].push(d)
			default:
				e.employ(d)
				go e.work(d, nil)
			}
		}
	}
}

// slowTime is how long a delivery may take of a site that is proven.
const slowTime = 90 * time.Second

// succeeded notes that a site took mail, soon or not, failed that none of its hosts could be
// reached, doubt that one takes long, and crowded that it wants fewer connections than it has.
func (e *Engine) succeeded(name store.Destination, soon bool) {
	e.judge(name, func(s *site) {
		s.window = min(s.window+1, s.most)
		e.prove(s, soon)
		e.serve(s)
		e.serveShort()
	})
}

func (e *Engine) failed(name store.Destination) {
	e.judge(name, func(s *site) {
		s.window = 1
		e.prove(s, false)
	})
}

func (e *Engine) doubt(name store.Destination) {
	e.judge(name, func(s *site) { e.prove(s, false) })
}

func (e *Engine) crowded(name store.Destination) {
	e.judge(name, func(s *site) {
		if s.workers <= 1 {
			e.prove(s, false)
		}
		s.window = max(1, min(s.window, s.workers-1))
	})
}

// proven tells whether the last that was heard of the site of a destination was good.
func (e *Engine) proven(name store.Destination) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.dests[name]
	return d != nil && d.site != nil && d.site.proven
}

// worksAt tells whether a destination is at the site of a key.
func (e *Engine) worksAt(name store.Destination, key string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.dests[name]
	return d == nil || d.site == nil || d.site.key == key
}

// judge changes what is known of the site of a destination.
func (e *Engine) judge(name store.Destination, change func(*site)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d := e.dests[name]; d != nil && d.site != nil && d.site.backend == "" {
		change(d.site)
	}
}

// prove changes whether a site is proven. e.mu is held.
func (e *Engine) prove(s *site, proven bool) {
	switch {
	case s.proven == proven:
		return
	case proven:
		e.unproven -= s.workers
		if s.dests > 1 {
			e.short[1].shift(s, &e.short[0])
		}
	default:
		e.unproven += s.workers
	}
	s.proven = proven
}

// restUntil leaves the site of a destination alone until a time.
func (e *Engine) restUntil(name store.Destination, until time.Time) {
	e.judge(name, func(s *site) {
		if e.closing || !until.After(s.rest) {
			return
		}
		s.rest = until
		if s.timer != nil {
			s.timer.Stop()
		}
		s.timer = time.AfterFunc(until.Sub(e.now()), func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.serve(s)
		})
	})
}

// displace makes a destination look for its site anew, once its workers have left it. It does
// nothing, and returns false, if that was the case a moment ago: there are domains whose hosts are
// others each time.
func (e *Engine) displace(name store.Destination) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.dests[name]
	switch {
	case d == nil || d.site == nil:
		return false
	case d.stale:
		return true
	case e.now().Sub(d.moved) < displaceTime:
		return false
	}
	d.stale, d.more, d.moved = true, true, e.now()
	return true
}

// displaceTime is how long a destination stays where it is.
const displaceTime = 10 * time.Second

// maxScouts is how many destinations are looked up at once, and maxSlow how many more that take
// longer than planTime: zones whose name servers say nothing are not to keep the others waiting.
// What takes long there holds no worker.
const (
	maxScouts = 100
	maxSlow   = 500
)

// scout puts a destination into the line of those whose site is not known. e.mu is held.
func (e *Engine) scout(d *destination) {
	e.unplaced.push(d)
	e.sendScout()
}

// sendScout sends one more scout, if there is something to look up and there may be one. e.mu is
// held.
func (e *Engine) sendScout() {
	if e.scouts-min(e.slow, maxSlow) < maxScouts && !e.unplaced.empty() && !e.closing {
		e.scouts++
		e.running.Add(1)
		go e.scoutAll()
	}
}

// unplacedNext returns the next whose site is not known, nil if there is none: the first and the
// last by turns, so that one that has just come need not wait for all that came with trouble
// before it. e.mu is held.
func (e *Engine) unplacedNext() *destination {
	if e.newest = !e.newest; e.newest {
		return e.unplaced.popLast()
	}
	return e.unplaced.pop()
}

// find is siteOf, and lets another scout be sent when it takes long.
func (e *Engine) find(d store.Destination) (key string) {
	var slow, done bool // guarded by e.mu
	t := time.AfterFunc(planTime, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if done {
			return
		}
		slow = true
		e.slow++
		e.sendScout()
	})
	key = e.out.siteOf(e.scouting, d)
	t.Stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	if done = true; slow {
		e.slow--
	}
	return key
}

// scoutAll is a scout: it finds sites until all are known.
func (e *Engine) scoutAll() {
	defer e.running.Done()
	for {
		e.mu.Lock()
		over := e.scouts-min(e.slow, maxSlow) > maxScouts
		var d *destination
		if !over {
			d = e.unplacedNext()
		}
		if d == nil || e.closing {
			e.scouts--
			e.mu.Unlock()
			return
		}
		d.waits = true // in no line, but not to be touched
		e.mu.Unlock()
		key := e.find(d.name)
		e.mu.Lock()
		d.waits = false
		e.settle(d, key, "")
		if e.hire(d) {
			go e.work(d, nil)
		} else if !e.closing {
			e.wait(d)
		}
		e.mu.Unlock()
	}
}

// borrow lets a message that goes another way than its destination's use the site of a key for
// a while; ok is false if that has no room. The worker stays where it is.
func (e *Engine) borrow(key string) (giveBack func(), ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.sites[key]
	if s == nil {
		s = &site{key: key, most: e.opts.DestinationWorkers, proven: true, pace: e.out.pace()}
		s.window = s.most
		e.sites[key] = s
	}
	if !e.room(s) {
		return nil, false
	}
	s.workers++
	s.dests++
	if !s.proven {
		e.unproven++
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		s.workers--
		s.dests--
		s.used = e.now()
		if !s.proven {
			e.unproven--
		}
		e.serve(s)
		e.serveShort()
	}, true
}
