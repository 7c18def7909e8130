package wasmhost

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Places go to who waits longest; who gives up loses nobody's.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{free: 1}
		ctx := context.Background()
		turn := func() chan struct{} { return make(chan struct{}, 1) }
		if err := g.enter(ctx, nil, turn(), time.Second); err != nil {
			t.Fatal(err)
		}
		order := make(chan string, 10)
		wait := func(name string, ctx context.Context, patience time.Duration) {
			go func() {
				err := g.enter(ctx, nil, turn(), patience)
				if err != nil {
					name += " gave up: " + Cause(&Error{Cause: err.(because).cause})
				}
				order <- name
			}()
			synctest.Wait()
		}
		gone, leave := context.WithCancel(ctx)
		wait("first", ctx, time.Hour)
		wait("second", gone, time.Hour)
		wait("third", ctx, time.Second)
		wait("fourth", ctx, time.Hour)
		leave()
		<-time.After(2 * time.Second)
		// Whoever has the place passes it on and queues again.
		if err := g.again(ctx, nil, turn(), 0); err == nil {
			t.Error("got a place while others have it")
		}
		<-time.After(time.Second)
		g.leave()
		g.leave()
		synctest.Wait()
		want := []string{"second gave up: stopped", "third gave up: pool", "first", "fourth"}
		for _, w := range want {
			if got := <-order; got != w {
				t.Errorf("got %q, want %q", got, w)
			}
		}
		if g.free != 1 || len(g.waiting) != 0 {
			t.Errorf("%d places, %d wait", g.free, len(g.waiting))
		}
	})
}
