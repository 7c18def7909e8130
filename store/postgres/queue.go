package postgres

// queue.go leases, and takes leases back.

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

// queue is the queue of a Store.
type queue struct{ s *Store }

// until is when a lease that was asked for at a time runs out by our clock. It began later
// by the database's clock, and a little is left for the way there.
func until(asked time.Time, lasts time.Duration) time.Time {
	return asked.Add(lasts - min(lasts/20, time.Second))
}

// leaseSQL takes recipients in the order of the index. Those of one rank lie together there,
// ordered by when they are due, and so the ranks are walked one by one: the first subquery
// jumps from one to the next. The join keeps their order, as it can be nothing but a nested
// loop. It stops as soon as there are enough. Then all due recipients of the messages that were
// met are taken, message by message: LATERAL and "state + 0" keep the planner, whose figures of
// a queue are old by nature, from looking through all that is due instead.
const leaseSQL = `WITH RECURSIVE
	ranks (rank) AS (
		(SELECT rank FROM recipient WHERE destination = $1 AND state = 0 ORDER BY rank LIMIT 1)
		UNION ALL
		SELECT (SELECT r.rank FROM recipient r WHERE r.destination = $1 AND r.state = 0 AND r.rank > ranks.rank ORDER BY r.rank LIMIT 1)
		FROM ranks WHERE ranks.rank IS NOT NULL),
	picked AS MATERIALIZED (
		SELECT p.message, p.rank, p.due FROM ranks, LATERAL (
			SELECT r.message, r.rank, r.due FROM recipient r
			WHERE r.destination = $1 AND r.state = 0 AND r.rank = ranks.rank AND r.due <= $2
			AND (r.until IS NULL OR r.until <= clock_timestamp())
			ORDER BY r.due LIMIT $3 FOR UPDATE SKIP LOCKED) AS p
		LIMIT $3),
	chosen AS MATERIALIZED (
		SELECT message FROM picked GROUP BY message ORDER BY min(rank), min(due) LIMIT $4),
	free AS MATERIALIZED (
		SELECT f.message, f.idx FROM chosen, LATERAL (
			SELECT r.message, r.idx FROM recipient r
			WHERE r.message = chosen.message AND r.destination = $1 AND r.state + 0 = 0 AND r.due <= $2
			AND (r.until IS NULL OR r.until <= clock_timestamp()) FOR UPDATE SKIP LOCKED) AS f)
	UPDATE recipient r SET token = $5, until = clock_timestamp() + $6::bigint * interval '1 microsecond'
	FROM free WHERE r.message = free.message AND r.idx = free.idx
	RETURNING r.message, r.idx, r.rank, r.due`

// leasing is a lease that is being made.
type leasing struct {
	message    uuid
	recipients []int
	rank       int16
	due        time.Time
}

// Lease hands out leases.
func (q *queue) Lease(ctx context.Context, d store.Destination, now time.Time, limit int, lasts time.Duration) ([]*store.Lease, error) {
	var all []*store.Lease
	for len(all) < limit {
		list, more, err := q.leaseSome(ctx, d, now, limit-len(all), lasts)
		all = append(all, list...)
		if err != nil && len(all) == 0 {
			return nil, err
		}
		if err != nil || !more {
			return all, nil // what there is; the error comes again
		}
	}
	return all, nil
}

// leaseSome takes up to limit leases, and tells whether there may be more: recipients of one
// message lie next to each other and become one lease.
func (q *queue) leaseSome(ctx context.Context, d store.Destination, now time.Time, limit int, lasts time.Duration) ([]*store.Lease, bool, error) {
	asked, token := time.Now(), newToken()
	var made []*leasing
	rows := 0
	err := q.s.run(ctx, "lease", once, func(ctx context.Context, c *pgxpool.Conn) error {
		r, err := c.Query(ctx, leaseSQL, []byte(d), now, limit, limit, token, lasts.Microseconds())
		if err != nil {
			return err
		}
		made, rows, err = collectLeases(r)
		return err
	})
	if err != nil || len(made) == 0 {
		return nil, false, err
	}
	list, err := q.load(ctx, d, made, until(asked, lasts), token)
	return list, rows >= limit && len(made) < limit, err
}

func collectLeases(r pgx.Rows) (made []*leasing, rows int, err error) {
	byID := make(map[uuid]*leasing)
	var id uuid
	var idx int
	var rank int16
	var due time.Time
	_, err = pgx.ForEachRow(r, []any{&id, &idx, &rank, &due}, func() error {
		rows++
		l := byID[id]
		if l == nil {
			l = &leasing{message: id, rank: rank, due: due}
			byID[id], made = l, append(made, l)
		}
		l.recipients = append(l.recipients, idx)
		if rank < l.rank || rank == l.rank && due.Before(l.due) {
			l.rank, l.due = rank, due
		}
		return nil
	})
	return made, rows, err
}

// load reads the messages of leases that were made. A message that cannot be read is held,
// and the rest goes on.
func (q *queue) load(ctx context.Context, d store.Destination, made []*leasing, until time.Time, token int64) ([]*store.Lease, error) {
	sortLeasings(made)
	ids := make([]uuid, len(made))
	for i, l := range made {
		ids[i] = l.message
	}
	messages, err := q.read(ctx, ids)
	if err != nil {
		q.giveBack(ids, token)
		return nil, err
	}
	var list []*store.Lease
	for _, l := range made {
		m := messages[l.message]
		switch {
		case m == nil:
			continue
		case m.err != nil:
			q.setAside(ctx, l.message, m.err)
			continue
		}
		list = append(list, &store.Lease{
			Message: m.Message, Recipients: l.recipients, Destination: d, Until: until,
			Token: strconv.FormatInt(token, 36),
		})
	}
	return list, nil
}

// giveBack ends leases that nobody has seen. If it cannot, they run out.
func (q *queue) giveBack(ids []uuid, token int64) {
	_, err := q.s.exec(q.s.life, "give leases back", idempotent,
		"UPDATE recipient SET token = NULL, until = NULL WHERE message = ANY($1::uuid[]) AND token = $2", ids, token)
	if err != nil {
		q.s.opt.Log.Warn("leases could not be given back and will run out", "err", err)
	}
}

// setAside holds the recipients of a message that cannot be read, so that it is not tried
// again and again. It stays in the database for who can repair it.
func (q *queue) setAside(ctx context.Context, id uuid, why error) {
	_, err := q.s.exec(ctx, "set a message aside", idempotent,
		"UPDATE recipient SET state = 1, token = NULL, until = NULL WHERE message = $1 AND state = 0", id)
	q.s.opt.Log.Error("a stored message is corrupt and was set aside: it is held", "msg", string(store.IDFromBytes(id)), "err", why, "failed", err)
}

// tokenOf reads what a lease carries.
func tokenOf(l *store.Lease) (id uuid, token int64, err error) {
	id, ok := l.Message.ID.Bytes()
	token, err = strconv.ParseInt(l.Token, 36, 64)
	if !ok || err != nil || token == 0 {
		return id, 0, store.ErrLeaseLost
	}
	return id, token, nil
}

// Extend makes a lease last from now on.
func (q *queue) Extend(ctx context.Context, l *store.Lease, lasts time.Duration) error {
	id, token, err := tokenOf(l)
	if err != nil {
		return err
	}
	asked := time.Now()
	rows, err := q.s.exec(ctx, "extend a lease", idempotent,
		`UPDATE recipient SET until = clock_timestamp() + $3::bigint * interval '1 microsecond'
		WHERE message = $1 AND token = $2`, id, token, lasts.Microseconds())
	if err != nil {
		return err
	}
	if rows < int64(len(l.Recipients)) { // of one that had run out another may have taken a part
		return store.ErrLeaseLost
	}
	l.Until = until(asked, lasts)
	q.s.kept.extend(l.Message.ID, l.Until)
	return nil
}

// Return gives a lease back.
func (q *queue) Return(ctx context.Context, l *store.Lease) error {
	id, token, err := tokenOf(l)
	if err != nil {
		return err
	}
	q.s.kept.remove(l.Message.ID)
	var rows int64
	err = q.s.run(ctx, "return a lease", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		var p pgx.Batch
		p.Queue(relaxSQL) // lost in a crash, it runs out instead
		p.Queue(`UPDATE recipient SET token = NULL, until = NULL WHERE message = $1 AND token = $2 AND until > clock_timestamp()`, id, token).
			Exec(func(tag pgconn.CommandTag) error {
				rows = tag.RowsAffected()
				return nil
			})
		return c.SendBatch(ctx, &p).Close()
	})
	if err != nil {
		return err
	}
	if rows == 0 {
		return store.ErrLeaseLost
	}
	q.s.wake.all(queueTopic)
	return nil
}

// Finish ends a lease.
func (q *queue) Finish(ctx context.Context, l *store.Lease, outcomes []store.Outcome, attempt *store.Attempt, reports ...*store.Report) error {
	o, err := q.finishOp(l, outcomes, attempt, reports)
	if err != nil {
		return err
	}
	if err := q.s.commits.submit(ctx, o); err != nil {
		return err
	}
	q.s.kept.remove(l.Message.ID)
	if len(reports) > 0 {
		q.s.wake.all(queueTopic)
	}
	return nil
}

func (q *queue) finishOp(l *store.Lease, outcomes []store.Outcome, attempt *store.Attempt, reports []*store.Report) (*op, error) {
	id, token, err := tokenOf(l)
	if err != nil {
		return nil, err
	}
	if len(outcomes) != len(l.Recipients) {
		return nil, fmt.Errorf("postgres: %d outcomes for %d recipients", len(outcomes), len(l.Recipients))
	}
	records, err := q.s.newRecords(reports)
	if err != nil {
		return nil, err
	}
	f := &finish{message: id, token: token}
	o := &op{finish: f, records: records, urgent: len(reports) > 0, failed: store.ErrLeaseLost}
	f.all = len(l.Message.Recipients) == 1 && len(outcomes) == 1 && len(l.Message.Attempts) == 0 &&
		(outcomes[0].State == store.Delivered || outcomes[0].State == store.Failed)
	if f.all {
		return o, nil
	}
	for i, out := range outcomes {
		row := finishRow{
			idx: int32(l.Recipients[i]), state: int16(out.State), due: out.Due, told: out.DelayTold, last: encodeReply(out.Reply),
		}
		if out.Tried {
			row.tried = 1
		}
		f.rows = append(f.rows, row)
	}
	if attempt != nil {
		f.attempt = encodeAttempt(attempt)
	}
	return o, nil
}

// Destinations calls yield with what waits.
func (q *queue) Destinations(ctx context.Context, yield func(store.Waits) bool) error {
	var list []store.Waits
	err := q.s.run(ctx, "look for destinations", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		list = nil
		rows, err := c.Query(ctx, `SELECT destination, min(due) FILTER (WHERE free), count(*) FILTER (WHERE free)
			FROM (SELECT destination, due, until IS NULL OR until <= clock_timestamp() AS free FROM recipient WHERE state = 0) AS r
			GROUP BY destination`)
		if err != nil {
			return err
		}
		var d []byte
		var due *time.Time
		var waiting int
		_, err = pgx.ForEachRow(rows, []any{&d, &due, &waiting}, func() error {
			w := store.Waits{Destination: store.Destination(d), Waiting: waiting}
			if due != nil {
				w.Due = due.UTC()
			}
			list = append(list, w)
			return nil
		})
		return err
	})
	if err != nil {
		return err
	}
	for _, w := range list {
		if !yield(w) {
			break
		}
	}
	return nil
}

// Watch tells when to look again.
func (q *queue) Watch(ctx context.Context) <-chan struct{} { return q.s.wake.watch(ctx, queueTopic) }

// Count counts.
func (q *queue) Count(ctx context.Context) (store.Counts, error) {
	counts := store.Counts{Recipients: make(map[store.State]int64)}
	err := q.s.run(ctx, "count", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		counts.Leased = 0
		var oldest *time.Time
		err := c.QueryRow(ctx, "SELECT count(*), coalesce(sum(size), 0)::bigint, min(arrived) FROM message").
			Scan(&counts.Messages, &counts.Octets, &oldest)
		if err != nil {
			return err
		}
		if oldest != nil {
			counts.Oldest = oldest.UTC()
		}
		rows, err := c.Query(ctx, "SELECT state, count(*), count(*) FILTER (WHERE until > clock_timestamp()) FROM recipient GROUP BY state")
		if err != nil {
			return err
		}
		var state int16
		var n, leased int64
		_, err = pgx.ForEachRow(rows, []any{&state, &n, &leased}, func() error {
			counts.Recipients[store.State(state)] = n
			counts.Leased += leased
			return nil
		})
		return err
	})
	return counts, err
}
