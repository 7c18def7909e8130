package delivery

import (
	"slices"
	"strings"
	"time"
)

// sites.go shows how it stands with the sites, for who watches over the engine.

// SiteState is a site, a set of hosts that serves destinations, as of one moment.
type SiteState struct {
	// Key names the hosts.
	Key string
	// Destinations are those with mail that is due or under way, Waiting those of them that
	// stand in line since the site has no room.
	Destinations, Waiting int
	// Workers deliver there, of at most Limit now. It begins low and grows with each success.
	Workers, Limit int
	// Proven tells that the site took the last that it got, or answered.
	Proven bool
	// Rest is until when it is left alone, because it is to get its mail slowly; zero if it is
	// not.
	Rest time.Time
}

// OutboundStats are figures of the way to hosts elsewhere.
type OutboundStats struct {
	// Sites are those that are known.
	Sites int
	// Dead are addresses that could not be reached and are left alone at the moment.
	Dead int
	// Connections are open, Idle of them waiting for the next message.
	Connections, Idle int
	// Looking are destinations whose hosts are being looked up, or wait for that.
	Looking int
}

// Sites returns the sites that have mail now, by key. There are none without Outbound.
func (e *Engine) Sites() []SiteState {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []SiteState
	for _, s := range e.sites {
		if s.backend != "" || s.dests == 0 {
			continue
		}
		st := SiteState{Key: s.key, Destinations: s.dests, Waiting: s.line.l.Len(), Workers: s.workers, Limit: e.limit(s), Proven: s.proven}
		if e.rests(s) {
			st.Rest = s.rest
		}
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b SiteState) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// OutboundStats returns the figures of the way to hosts elsewhere; ok is false without Outbound.
func (e *Engine) OutboundStats() (s OutboundStats, ok bool) {
	if e.out == nil {
		return s, false
	}
	e.mu.Lock()
	s.Looking = e.unplaced.l.Len() + e.scouts
	for _, at := range e.sites {
		if at.backend == "" {
			s.Sites++
		}
	}
	e.mu.Unlock()
	s.Dead = e.out.hosts.count(e.now())
	s.Connections, s.Idle = e.out.links.count()
	return s, true
}
