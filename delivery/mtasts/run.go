package mtasts

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// run.go looks at policies again before they run out (RFC 8461, Section 3.3).

const (
	runEvery   = 5 * time.Minute
	runBatch   = 1000 // policies each time
	runAtOnce  = 8
	tryAgainIn = time.Hour // after a failure
)

// Run looks at policies again, each about once a day, until ctx ends. Of the nodes that share a
// Store, the one does it that leads.
func (c *Cache) Run(ctx context.Context) {
	for {
		// Nodes that were started together do not ask together.
		t := time.NewTimer(runEvery - time.Duration(rand.Float64()*float64(runEvery)/4))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		leads, err := c.opt.Lead(ctx)
		if err == nil && leads {
			err = c.refresh(ctx)
		}
		if err != nil && ctx.Err() == nil {
			c.opt.Log.Error("mta-sts policies cannot be looked at again", "err", err)
		}
	}
}

// refresh looks at the policies that are due.
func (c *Cache) refresh(ctx context.Context) error {
	var due []Stored
	err := c.opt.Store.Each(ctx, c.opt.Now(), func(s Stored) bool {
		due = append(due, s)
		return len(due) < runBatch
	})
	var running sync.WaitGroup
	defer running.Wait()
	places := make(chan struct{}, runAtOnce)
	for _, s := range due {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		running.Go(func() {
			defer func() { <-places }()
			c.again(ctx, s)
		})
	}
	return err
}

// again looks at a policy.
func (c *Cache) again(ctx context.Context, s Stored) {
	now := c.opt.Now()
	if k, err := decode(s); err != nil || now.Sub(k.used) > c.opt.Unused {
		c.leave(ctx, s, s.Expires)
		return
	}
	r := c.ask(ctx, s.Domain, refreshing)
	if r.Err == nil && r.Policy != nil {
		c.counters.refreshed.Add(1)
		return
	}
	if ctx.Err() == nil {
		c.leave(ctx, s, now.Add(tryAgainIn))
	}
}

// leave lets a policy be until a time, or forgets it when it does not hold any more; unless
// another has taken its place meanwhile.
func (c *Cache) leave(ctx context.Context, s Stored, until time.Time) {
	last, ok, err := c.opt.Store.Get(ctx, s.Domain)
	switch {
	case err != nil || !ok || !last.Fetched.Equal(s.Fetched):
	case c.opt.Now().Before(last.Expires):
		last.Refresh = until
		err = c.opt.Store.Put(ctx, last)
	default:
		err = c.opt.Store.Delete(ctx, s.Domain)
	}
	if err != nil && ctx.Err() == nil {
		c.opt.Log.Error("an mta-sts policy cannot be kept", "domain", s.Domain, "err", err)
	}
}
