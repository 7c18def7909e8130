package postgres

// commit.go gathers changes of many callers into transactions.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/penstock/penstock/store"
)

// Bounds of a batch: what is more waits for the next one.
const (
	maxOps    = 512
	maxOctets = 8 << 20
)

// resolveLimit is how long to ask what became of a batch. Rows of batches are kept longer.
const resolveLimit = 20 * time.Minute

// op is what one caller wants to be done, at once or not at all.
type op struct {
	ctx     context.Context
	n       int32
	records []*record // messages to put in: one, or the reports of a finish
	special bool      // the record needs conditionalSQL
	finish  *finish
	urgent  bool // must be synced
	octets  int
	done    chan error // has room for the answer
	failed  error      // what to say if it was not done
}

// finish ends a lease.
type finish struct {
	message uuid
	token   int64
	all     bool // it is of the only recipient, and the last word
	rows    []finishRow
	attempt []byte
}

type finishRow struct {
	idx   int32
	state int16
	due   time.Time
	tried int32
	told  bool
	last  []byte
}

// conditional tells whether it depends on the database whether records go in.
func (o *op) conditional() bool { return o.special || o.finish != nil }

// committer makes batches. One goroutine, run, does all of it.
type committer struct {
	s    *Store
	ops  chan *op
	quit chan struct{}
	down atomic.Bool // the last batch met no database

	// Of run alone.
	conn *pgx.Conn
	size int           // of the last batch
	took time.Duration // by it
	end  time.Time     // of it
}

func newCommitter(s *Store) *committer {
	return &committer{s: s, ops: make(chan *op), quit: make(chan struct{})}
}

// submit waits until o is done or ctx ends. In the latter case it may be done yet.
func (c *committer) submit(ctx context.Context, o *op) error {
	o.ctx, o.done = ctx, make(chan error, 1)
	for _, r := range o.records {
		o.octets += len(r.body) + len(r.envelope) + 200*len(r.recipients)
	}
	select {
	case c.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.quit:
		return store.ErrClosed
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("postgres: the outcome is not known yet: %w", ctx.Err())
	}
}

// stop makes run end after the batch that is under way.
func (c *committer) stop() { close(c.quit) }

func (c *committer) run() {
	defer func() {
		if c.conn != nil {
			closeConn(c.conn)
		}
	}()
	for {
		select {
		case o := <-c.ops:
			began := time.Now()
			ops := c.gather(o)
			c.commit(ops)
			c.size, c.end = len(ops), time.Now()
			c.took = c.end.Sub(began)
		case <-c.quit:
			return
		}
	}
}

// gather takes what waits with the first. Callers that have just got an answer come back a
// moment later; if there were many, it waits for them for a small part of what a batch takes,
// so that the first of them does not get a transaction to itself. A caller that is alone
// waits for nobody.
func (c *committer) gather(first *op) []*op {
	ops, octets := []*op{first}, first.octets
	var late <-chan time.Time
	if c.size > 2 && time.Since(c.end) < c.took {
		t := time.NewTimer(min(c.took/8, time.Millisecond))
		defer t.Stop()
		late = t.C
	}
	for len(ops) < maxOps && octets < maxOctets {
		select {
		case o := <-c.ops:
			ops, octets = append(ops, o), octets+o.octets
			continue
		default:
		}
		if late == nil || len(ops) >= c.size {
			break
		}
		select {
		case o := <-c.ops:
			ops, octets = append(ops, o), octets+o.octets
		case <-late:
			late = nil
		case <-c.quit:
			late = nil
		}
	}
	return ops
}

// commit does a batch and answers everybody in it.
func (c *committer) commit(ops []*op) {
	b := &batch{id: newUUID(), ops: ops}
	for i, o := range ops {
		o.n = int32(i)
	}
	wait, limit := newBackoff(), time.Now().Add(resolveLimit)
	for {
		b.ops = slices.DeleteFunc(b.ops, func(o *op) bool { return o.ctx.Err() != nil }) // they have gone
		if len(b.ops) == 0 {
			return
		}
		done, err := c.try(b)
		switch {
		case err == nil:
			c.answer(b, done)
			return
		case !transient(err) && len(b.ops) > 1:
			// One of them is at fault, and the others are not.
			for _, o := range b.ops {
				c.commit([]*op{o})
			}
			return
		case !transient(err) || time.Now().After(limit):
			fail(b.ops, c.s.wrap("commit", err))
			return
		}
		if !c.down.Swap(true) {
			c.s.opt.Log.Warn("a batch has to be sent again", "err", err)
		}
		c.s.stats.repeated.Add(1)
		if !c.pause(b, wait) {
			fail(b.ops, store.ErrClosed)
			return
		}
	}
}

// pause waits before the next try. It returns false if the store is closed, and returns at
// once when nobody waits any more.
func (c *committer) pause(b *batch, wait *backoff) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if len(b.ops) == 1 {
		ctx = b.ops[0].ctx
	}
	return wait.pause(ctx, c.quit) || ctx.Err() != nil
}

// try sends a batch, on the connection there is or a new one, and returns what was done. If it
// was sent before and the database has it, it asks what was done then.
func (c *committer) try(b *batch) (done []int32, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.s.opt.Timeout)
	defer cancel()
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			return nil, err
		}
	}
	done, err = c.send(ctx, b)
	if known(err) {
		c.s.stats.resolved.Add(1)
		err = c.conn.QueryRow(ctx, doneSQL, b.id).Scan(&done)
		// The messages without a condition are in done neither way.
	}
	if err != nil && (code(err) == "" || code(err) == readOnly || c.conn.IsClosed()) {
		closeConn(c.conn)
		c.conn = nil
	}
	return done, err
}

func (c *committer) connect(ctx context.Context) error {
	conn, err := connect(ctx, c.s.pool.Config().ConnConfig, c.s.opt)
	if err != nil {
		return err
	}
	// The planner must not change its mind while tables grow and shrink: every row of a batch
	// is found by an index.
	if _, err := conn.Exec(ctx, "SELECT set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false)"); err != nil {
		closeConn(conn)
		return err
	}
	c.conn = conn
	return nil
}

func (c *committer) send(ctx context.Context, b *batch) (done []int32, err error) {
	var p pgx.Batch
	asks := b.queueOn(&p)
	results := c.conn.SendBatch(ctx, &p)
	defer func() {
		if e := results.Close(); err == nil {
			err = e // the commit itself
		}
	}()
	for range p.Len() - 1 {
		if _, err := results.Exec(); err != nil {
			return nil, err
		}
	}
	if !asks {
		_, err = results.Exec()
		return nil, err
	}
	err = results.QueryRow().Scan(&done)
	return done, err
}

// known tells whether a batch failed because the database has it.
func known(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == uniqueViolation && pg.TableName == "batch"
}

// answer tells everybody that the batch is committed.
func (c *committer) answer(b *batch, done []int32) {
	c.down.Store(false)
	c.s.stats.batches.Add(1)
	c.s.stats.changes.Add(uint64(len(b.ops)))
	slices.Sort(done)
	for _, o := range b.ops {
		if _, ok := slices.BinarySearch(done, o.n); ok || !o.conditional() {
			o.done <- nil
		} else {
			o.done <- o.failed
		}
	}
}

func fail(ops []*op, err error) {
	for _, o := range ops {
		o.done <- err
	}
}

func newUUID() uuid {
	var b uuid
	for i := range 4 {
		n := rand.Uint32()
		b[4*i], b[4*i+1], b[4*i+2], b[4*i+3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	}
	return b
}
