package gateway

import "net"

// state.go: what can be seen from outside.

// ListenerState is what a listener is doing.
type ListenerState struct {
	Name string
	// Addrs are what it listens on, none before Listen.
	Addrs []net.Addr
	TLS   TLSMode
	// Open is true while Serve takes connections at all of them.
	Open bool
	// Connections are open now. TurnedAway are those that found all of Listener.Connections
	// taken, since the start; they are no sessions.
	Connections int
	TurnedAway  int64
	// Untracked are those who were held to no rate because there was no place to remember
	// them.
	Untracked int64
}

// Listeners returns the state of each listener, in the order of the options. It may be
// called at any time after Listen.
func (g *Gateway) Listeners() []ListenerState {
	list := make([]ListenerState, len(g.listeners))
	for i, l := range g.listeners {
		s := ListenerState{Name: l.Name, TLS: l.tls(), Connections: l.srv.Connections(), TurnedAway: l.srv.TurnedAway(), Untracked: l.untracked(),
			Open: len(l.open) > 0 && int(l.busy.Load()) == len(l.open)}
		for _, nl := range l.open {
			s.Addrs = append(s.Addrs, nl.Addr())
		}
		list[i] = s
	}
	return list
}

// untracked is of all the listener's rates.
func (l *listener) untracked() int64 {
	return l.connectionRate.untracked() + l.messageRate.untracked() + l.userMessages.untracked() +
		l.recipientRate.untracked() + l.userRecipients.untracked() + l.authFailures.untracked()
}

// Load is how close the gateway is to what it can bear.
type Load struct {
	// Level is "normal", "stressed", where time limits are short, or "full", where new
	// sessions are turned away.
	Level string
	// Rank is the place of Level in this order, from 0 on.
	Rank int
	// Sessions, Memory and Spool are what can run out: open sessions, octets of memory,
	// octets of messages under way.
	Sessions, Memory, Spool Use
	// RefusedSessions and RefusedMessages were turned away for it, since the start.
	RefusedSessions, RefusedMessages int64
	// BecameNormal, BecameStressed and BecameFull are how often the level changed to each.
	BecameNormal, BecameStressed, BecameFull int64
}

// Use is how much of something is used. A Limit that is not positive is none.
type Use struct{ Used, Limit int64 }

// Load returns how much there is to do. It may be called at any time.
func (g *Gateway) Load() Load {
	c := g.load.counts()
	return Load{
		Level: c.level.String(), Rank: int(c.level),
		Sessions:        Use{c.sessions, c.sessionLimit},
		Memory:          Use{c.memory, c.memoryLimit},
		Spool:           Use{c.spool, c.spoolLimit},
		RefusedSessions: c.refusedSessions, RefusedMessages: c.refusedSpool,
		BecameNormal: c.becameNormal, BecameStressed: c.becameStressed, BecameFull: c.becameFull,
	}
}
