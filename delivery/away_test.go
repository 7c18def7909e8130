package delivery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// away_test.go: a store that does not answer for a while.

// awayQueue is a queue whose store is away between two times.
type awayQueue struct {
	store.Queue
	from, to time.Time
}

func (q *awayQueue) away() bool { return !time.Now().Before(q.from) && time.Now().Before(q.to) }

// Extend extends, or fails at once, as where nobody listens.
func (q *awayQueue) Extend(_ context.Context, l *store.Lease, lasts time.Duration) error {
	switch {
	case q.away():
		return errors.New("connection refused")
	case time.Now().After(l.Until):
		return store.ErrLeaseLost
	}
	l.Until = time.Now().Add(lasts - time.Second) // as a database does
	return nil
}

func (q *awayQueue) Finish(context.Context, *store.Lease, []store.Outcome, *store.Attempt, ...*store.Report) error {
	if q.away() {
		return errors.New("connection refused")
	}
	return nil
}

func (q *awayQueue) Begin(context.Context, *store.Message) (store.Incoming, error) {
	return awayIncoming{}, nil
}

// awayIncoming waits for the store.
type awayIncoming struct{ store.Incoming }

func (awayIncoming) Write(b []byte) (int, error) { return len(b), nil }
func (awayIncoming) Abort()                      {}
func (awayIncoming) Commit(ctx context.Context) (store.ID, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

// TestHoldThroughOutage: a lease outlives a store that is away for less than what is left of it,
// whenever that begins, and is lost with one that is away for longer.
func TestHoldThroughOutage(t *testing.T) {
	for from := range 12 {
		for away, want := range map[time.Duration]error{75 * time.Second: nil, 130 * time.Second: store.ErrLeaseLost} {
			synctest.Test(t, func(t *testing.T) {
				now := time.Now()
				q := &awayQueue{from: now.Add(time.Duration(10*from)*time.Second - 1)}
				q.to = q.from.Add(away)
				e := &Engine{opts: EngineOptions{Queue: q}.withDefaults(), now: time.Now}
				a := &attempt{e: e, lease: &store.Lease{Until: now.Add(e.opts.Lease - time.Second)}}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				stop := a.hold(ctx, cancel)
				time.Sleep(10 * time.Minute)
				stop()
				if got := context.Cause(ctx); !errors.Is(got, want) {
					t.Errorf("away for %v after %d s: got %v, want %v", away, 10*from, got, want)
				}
			})
		}
	}
}

// TestRecordAfterOutage: what was delivered while the store was away is recorded when it is back.
func TestRecordAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		q := &awayQueue{from: now, to: now.Add(30 * time.Minute)}
		e := &Engine{opts: EngineOptions{Queue: q}.withDefaults(), now: time.Now}
		e.attempts, e.kill = context.WithCancelCause(t.Context())
		defer e.kill(nil)
		m := &store.Message{Recipients: make([]store.Recipient, 1)}
		a := &attempt{e: e, m: m, lease: &store.Lease{Message: m, Recipients: []int{0}}, by: make([]*spoken, 1), replies: []*smtp.Reply{{Code: 250}}}
		a.record([]store.Outcome{{State: store.Delivered}}, nil, nil, now)
		if late := time.Since(q.to); e.Stats.Delivered.Load() != 1 || e.Stats.LeaseLost.Load() != 0 || late < 0 || late > 15*time.Second {
			t.Errorf("got %d delivered and %d lost, %v after the store was back", e.Stats.Delivered.Load(), e.Stats.LeaseLost.Load(), late)
		}
	})
}

// TestKeepTime: a client does not wait for ever for a store that is away.
func TestKeepTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &Engine{opts: EngineOptions{Queue: &awayQueue{}, KeepTime: 7 * time.Second}.withDefaults(), now: time.Now, wake: make(chan struct{}, 1)}
		began := time.Now()
		_, err := e.Keep(t.Context(), Keeping{Held: "so that no worker is asked", Content: text("x"),
			Recipients: []KeptRecipient{{Destination: "backend:b"}}})
		if r := smtp.ReplyOf(err); err == nil || r.Code != 451 || time.Since(began) != 7*time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
	})
}
