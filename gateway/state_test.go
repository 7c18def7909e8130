package gateway

import (
	"context"
	"testing"
)

// TestListeners: closed before Serve, open while clients are greeted, closed after.
func TestListeners(t *testing.T) {
	r := &rig{more: []Listener{{Name: "bare", Addresses: []Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: TLSOff}}}
	gw := r.build(t)
	for _, l := range gw.Listeners() {
		if l.Open || l.Addrs != nil || l.Connections != 0 {
			t.Errorf("before Listen: %+v", l)
		}
	}
	if err := gw.Listen(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- gw.Serve() }()
	r.hello(t)
	r.dial(t, "bare").talk(" => 220")
	if l := gw.Load(); l.Level != "normal" || l.Rank != 0 || l.Sessions != (Use{2, 10000}) || l.RefusedSessions+l.RefusedMessages != 0 {
		t.Errorf("load: %+v", l)
	}
	list := gw.Listeners()
	for i, name := range []string{"mx", "bare"} {
		if l := list[i]; l.Name != name || !l.Open || l.Connections != 1 || len(l.Addrs) != 1 || l.Addrs[0] != gw.Addr(name) || l.TLS != TLSOff {
			t.Errorf("while it serves: %+v", l)
		}
	}
	if err := gw.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	for _, l := range gw.Listeners() {
		if l.Open || l.Connections != 0 {
			t.Errorf("after Shutdown: %+v", l)
		}
	}
}
