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
	// Connections are open now.
	Connections int
}

// Listeners returns the state of each listener, in the order of the options. It may be
// called at any time after Listen.
func (g *Gateway) Listeners() []ListenerState {
	list := make([]ListenerState, len(g.listeners))
	for i, l := range g.listeners {
		s := ListenerState{Name: l.Name, TLS: l.tls(), Connections: l.srv.Connections(),
			Open: len(l.open) > 0 && int(l.busy.Load()) == len(l.open)}
		for _, nl := range l.open {
			s.Addrs = append(s.Addrs, nl.Addr())
		}
		list[i] = s
	}
	return list
}
