package postgres

// wake.go tells watchers that there may be something to do: at once for what this node did,
// by NOTIFY for what others did, and by a poll for what neither tells, such as a lease of a
// node that died.
//
// NOTIFY is sent apart from the transactions it is about and at most every notifyEvery: in
// a transaction it would make commits of all nodes wait for each other.

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const notifyEvery = 20 * time.Millisecond

// topic is what a watcher waits for.
type topic string

const (
	queueTopic  topic = "queue"
	moduleTopic topic = "modules"
)

// waker knows who watches.
type waker struct {
	s       *Store
	self    string // our name in notifications
	pending chan topic

	mu       sync.Mutex
	watchers map[topic]map[chan struct{}]struct{} // guarded by mu
}

func newWaker(s *Store) *waker {
	return &waker{
		s: s, self: strconv.FormatUint(rand.Uint64(), 36), pending: make(chan topic, 16),
		watchers: map[topic]map[chan struct{}]struct{}{queueTopic: {}, moduleTopic: {}},
	}
}

// channel is the name of the database's channel for a topic.
func (w *waker) channel(t topic) string { return w.s.opt.Schema + "." + string(t) }

// watch returns a channel that gets a value when t happens, and is closed when ctx ends or the
// store is closed.
func (w *waker) watch(ctx context.Context, t topic) <-chan struct{} {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	w.watchers[t][c] = struct{}{}
	w.mu.Unlock()
	ok := w.s.spawn(func() {
		select {
		case <-ctx.Done():
		case <-w.s.life.Done():
		}
		w.forget(t, c)
	})
	if !ok {
		w.forget(t, c)
	}
	return c
}

// forget closes a watcher's channel.
func (w *waker) forget(t topic, c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watchers[t], c)
	close(c)
}

// here wakes the watchers of this node.
func (w *waker) here(topics ...topic) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range topics {
		for c := range w.watchers[t] {
			select {
			case c <- struct{}{}:
			default: // one value waits already
			}
		}
	}
}

// all wakes the watchers of all nodes. It does not wait.
func (w *waker) all(t topic) {
	w.here(t)
	select {
	case w.pending <- t:
	default: // enough is waiting, of either topic
	}
}

// tell notifies the other nodes of what is pending.
func (w *waker) tell() {
	every := time.NewTicker(notifyEvery)
	defer every.Stop()
	for {
		topics := map[topic]bool{}
		select {
		case t := <-w.pending:
			topics[t] = true
		case <-w.s.life.Done():
			return
		}
		for len(w.pending) > 0 {
			topics[<-w.pending] = true
		}
		for t := range topics {
			// If it fails, others will look by themselves.
			_, _ = w.s.exec(w.s.life, "notify", idempotent,
				"SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)", w.channel(t), w.self)
		}
		select {
		case <-every.C:
		case <-w.s.life.Done():
			return
		}
	}
}

// listen waits for notifications until the store is closed, and connects again whenever the
// connection is lost.
func (w *waker) listen() {
	wait, told := newBackoff(), false
	for w.s.life.Err() == nil {
		err := w.listenOnce()
		if w.s.stats.listening.Swap(false) {
			wait, told = newBackoff(), false
		}
		if w.s.life.Err() == nil && !told {
			told = true // once, and not every second where there is no LISTEN
			w.s.opt.Log.Warn("the database does not wake us up; we look for ourselves", "every", w.s.opt.Poll, "err", err)
		}
		// Something may have happened while nobody listened.
		w.here(queueTopic, moduleTopic)
		w.pollUntil(wait)
	}
}

// pollUntil lets the pause of wait pass. A server without LISTEN refuses again and again; the
// pauses grow to Options.Poll then.
func (w *waker) pollUntil(wait *backoff) {
	wait.next = min(wait.next, w.s.opt.Poll)
	wait.pause(w.s.life, nil)
}

func (w *waker) listenOnce() error {
	c, err := connect(w.s.life, w.s.pool.Config().ConnConfig, w.s.opt)
	if err != nil {
		return err
	}
	defer closeConn(c)
	for _, t := range []topic{queueTopic, moduleTopic} {
		ctx, cancel := context.WithTimeout(w.s.life, w.s.opt.Timeout)
		_, err := c.Exec(ctx, "LISTEN "+quote(w.channel(t)))
		cancel()
		if err != nil {
			return err
		}
	}
	w.s.stats.listening.Store(true)
	w.here(queueTopic, moduleTopic)
	for {
		if err := w.hear(c); err != nil {
			return err
		}
	}
}

// hear waits for one notification, or for the time to look for oneself, and then makes sure
// that the connection still lives.
func (w *waker) hear(c *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(w.s.life, 10*w.s.opt.Poll)
	defer cancel()
	n, err := c.WaitForNotification(ctx)
	switch {
	case err == nil:
		if n.Payload != w.self {
			w.heard(n)
		}
		return nil
	case ctx.Err() == nil || w.s.life.Err() != nil || c.IsClosed():
		return err
	}
	w.here(queueTopic, moduleTopic)
	ping, stop := context.WithTimeout(w.s.life, w.s.opt.Timeout)
	defer stop()
	return c.Ping(ping)
}

func (w *waker) heard(n *pgconn.Notification) {
	for _, t := range []topic{queueTopic, moduleTopic} {
		if n.Channel == w.channel(t) {
			w.here(t)
		}
	}
}
