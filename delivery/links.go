package delivery

import (
	"container/list"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// links.go keeps connections to hosts elsewhere for the next message. A connection is used again for
// the same host at the same address, from the same address of ours. Whoever wants it has a plan
// that is in force, and what the connection has shown is held against what that plan asks for:
// it may be more than what it was made for, or about another certificate.

// linkKey is what a connection was made for.
type linkKey struct {
	host string
	to   netip.AddrPort
	from netip.Addr
	helo string
}

// link is a connection to a host elsewhere.
type link struct {
	ready
	key     linkKey
	site    string
	secured Secured // what it has shown
	// rcptMax and mailMax are the host's own limits of recipients in a transaction and
	// transactions on a connection (RFC 9422); 0 is none.
	rcptMax, mailMax int

	place *list.Element // in links.oldest, while it is idle; guarded by links.mu
}

// quitters is how many connections are told QUIT at once by the pool.
const quitters = 50

// links is the idle connections.
type links struct {
	idleTime time.Duration
	maxUses  int
	most     int           // idle connections in all
	wake     chan struct{} // of capacity 1: look when the next is idle for too long

	quitting sync.WaitGroup
	slots    chan struct{} // holds one for each QUIT that is under way

	mu     sync.Mutex // guards what follows
	idle   map[linkKey][]*link
	oldest list.List      // of idle ones, the longest idle one first
	open   map[string]int // connections of each site, idle or busy
	closed bool
}

func newLinks(idleTime time.Duration, maxUses, most int) *links {
	return &links{idleTime: idleTime, maxUses: maxUses, most: most, wake: make(chan struct{}, 1), slots: make(chan struct{}, quitters),
		idle: make(map[linkKey][]*link), open: make(map[string]int)}
}

// get returns an idle connection that was made for the key, is in order, and suits; nil if there
// is none.
func (p *links) get(k linkKey, suits func(*link) bool) *link {
	for {
		l := p.pop(k, suits)
		if l == nil || l.usable() {
			return l
		}
		p.drop(l)
	}
}

// pop takes the connection that became idle last: the others can grow old then.
func (p *links) pop(k linkKey, suits func(*link) bool) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range slices.Backward(p.idle[k]) {
		if time.Since(l.since) >= p.idleTime {
			return nil // the others are older yet; the janitor has them
		}
		if suits(l) {
			p.remove(l)
			return l
		}
	}
	return nil
}

// remove takes a connection out of those that are idle. p.mu is held.
func (p *links) remove(l *link) {
	p.oldest.Remove(l.place)
	l.place = nil
	all := p.idle[l.key]
	for i := range all {
		if all[i] == l {
			all = append(all[:i], all[i+1:]...)
			break
		}
	}
	if len(all) == 0 {
		delete(p.idle, l.key)
	} else {
		p.idle[l.key] = all
	}
}

// begin counts a connection to a site that is about to be made, and closes an idle one of the
// site if there would be more than its share otherwise. The connection must be dropped, or put
// back, or end must be called.
func (p *links) begin(site string, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[site] >= most {
		for e := p.oldest.Front(); e != nil; e = e.Next() {
			if l := e.Value.(*link); l.site == site {
				p.remove(l)
				p.end(site)
				p.quit(l)
				break
			}
		}
	}
	p.open[site]++
}

// end counts a connection out. p.mu is held.
func (p *links) end(site string) {
	if p.open[site]--; p.open[site] <= 0 {
		delete(p.open, site)
	}
}

// put keeps a connection for the next message, if it is in order and none has been idle for too
// long already; otherwise it ends it.
func (p *links) put(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.client.Broken() || l.uses >= p.maxUses || l.mailMax > 0 && l.uses >= l.mailMax || p.closed || p.most <= 0 {
		p.end(l.site)
		p.quit(l)
		return
	}
	if p.oldest.Len() >= p.most {
		first := p.oldest.Front().Value.(*link)
		p.remove(first)
		p.end(first.site)
		p.quit(first)
	}
	l.since = time.Now()
	l.place = p.oldest.PushBack(l)
	p.idle[l.key] = append(p.idle[l.key], l)
	if p.oldest.Len() == 1 {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// drop closes a connection without a word.
func (p *links) drop(l *link) {
	l.client.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(l.site)
}

// quit ends a connection with QUIT, as RFC 5321, Section 4.1.1.10 asks, while the caller goes on.
// p.mu is held.
func (p *links) quit(l *link) {
	if l.client.Broken() {
		l.client.Close()
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		l.client.Close() // there are hosts that do not answer QUIT
		return
	}
	p.quitting.Go(func() {
		l.quit(context.Background())
		<-p.slots
	})
}

// janitor ends connections that were idle for too long, until ctx ends.
func (p *links) janitor(ctx context.Context) {
	for {
		next := p.sweep(time.Now())
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-p.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// sweep ends what was idle for too long, and returns when the next one will be.
func (p *links) sweep(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.oldest.Front(); e != nil; e = p.oldest.Front() {
		l := e.Value.(*link)
		if due := l.since.Add(p.idleTime); due.After(now) {
			return due
		}
		p.remove(l)
		p.end(l.site)
		p.quit(l)
	}
	return now.Add(time.Hour)
}

// close ends all idle connections, and those that are put back later, and waits until they are.
func (p *links) close() {
	p.mu.Lock()
	p.closed = true
	for e := p.oldest.Front(); e != nil; e = p.oldest.Front() {
		l := e.Value.(*link)
		p.remove(l)
		p.end(l.site)
		p.quit(l)
	}
	p.mu.Unlock()
	p.quitting.Wait()
}

// count returns how many connections are open, and how many of them are idle.
func (p *links) count() (open, idle int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.open {
		open += n
	}
	return open, p.oldest.Len()
}
