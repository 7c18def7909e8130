package postgres

// lock.go locks names for all nodes. A lock is a row with an end by the database's clock; its
// holder moves the end on while it lives.

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/penstock/penstock/store"
)

const (
	lockLasts = 30 * time.Second
	lockRenew = 10 * time.Second
	// lockReserve is how long before the end by our clock a lock that could not be renewed
	// counts as lost.
	lockReserve = 2 * time.Second
	lockPoll    = 200 * time.Millisecond
)

// Lock waits for a lock.
func (f files) Lock(ctx context.Context, name string) (store.Unlocker, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	l := &lock{s: f.s, name: []byte(name), token: newToken(), lost: make(chan struct{}), end: make(chan struct{})}
	for {
		ok, err := l.take(ctx)
		if err != nil {
			return nil, err
		}
		if ok {
			if !f.s.spawn(l.renew) {
				return nil, store.ErrClosed // it runs out
			}
			return l, nil
		}
		// Half of it to all of it, so that those who wait do not walk in step.
		t := time.NewTimer(lockPoll/2 + rand.N(lockPoll/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-f.s.life.Done():
			t.Stop()
			return nil, store.ErrClosed
		}
	}
}

// lock is a lock that is held.
type lock struct {
	s     *Store
	name  []byte
	token int64
	until time.Time // by our clock; of take, then of renew alone
	lost  chan struct{}
	end   chan struct{} // closed by Unlock
	once  sync.Once
}

// take takes the lock if it is free, or renews it. Taking it twice is taking it once, as the
// token says whose it is.
func (l *lock) take(ctx context.Context) (bool, error) {
	asked := time.Now()
	rows, err := l.s.exec(ctx, "lock a name", idempotent, `INSERT INTO lock (name, token, until)
		VALUES ($1, $2, clock_timestamp() + $3::interval)
		ON CONFLICT (name) DO UPDATE SET token = excluded.token, until = excluded.until
		WHERE lock.token = excluded.token OR lock.until <= clock_timestamp()`, l.name, l.token, lockLasts)
	if err != nil || rows == 0 {
		return false, err
	}
	l.until = asked.Add(lockLasts)
	return true, nil
}

// extend is take for a lock that is held: one that ran out is not taken back, since another
// may have had it meanwhile.
func (l *lock) extend(ctx context.Context) (bool, error) {
	asked := time.Now()
	rows, err := l.s.exec(ctx, "renew a lock", idempotent, `UPDATE lock SET until = clock_timestamp() + $3::interval
		WHERE name = $1 AND token = $2 AND until > clock_timestamp()`, l.name, l.token, lockLasts)
	if err != nil || rows == 0 {
		return false, err
	}
	l.until = asked.Add(lockLasts)
	return true, nil
}

// renew keeps the lock until Unlock, until it is lost, or until the store is closed.
func (l *lock) renew() {
	t := time.NewTicker(lockRenew)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-l.end:
			return
		case <-l.s.life.Done():
			close(l.lost) // nobody renews it any more
			return
		}
		if !l.renewOnce() {
			close(l.lost)
			return
		}
	}
}

// renewOnce tries until the lock is renewed, or it is known or must be supposed to be lost.
func (l *lock) renewOnce() bool {
	ctx, cancel := context.WithDeadline(l.s.life, l.until.Add(-lockReserve))
	defer cancel()
	for wait := newBackoff(); ; {
		ok, err := l.extend(ctx)
		if err == nil {
			return ok
		}
		if !wait.pause(ctx, l.end) {
			return false
		}
	}
}

// Unlock gives the lock back.
func (l *lock) Unlock(ctx context.Context) error {
	l.once.Do(func() { close(l.end) })
	_, err := l.s.exec(ctx, "unlock a name", idempotent, "DELETE FROM lock WHERE name = $1 AND token = $2", l.name, l.token)
	return err
}

// Lost is closed if the lock is lost.
func (l *lock) Lost() <-chan struct{} { return l.lost }
