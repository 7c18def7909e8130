package postgres

// upkeep.go renews what this node has open, and removes what nobody needs any more. Every
// node does it; there is nothing to agree on.

import (
	"math/rand/v2"
	"time"
)

const upkeepEvery = time.Minute

// sweeps are statements that remove at most a thousand rows each.
var sweeps = []string{
	`WITH old AS (SELECT id FROM blob WHERE until < clock_timestamp() LIMIT 1000 FOR UPDATE SKIP LOCKED),
		c AS (DELETE FROM chunk WHERE blob IN (SELECT id FROM old))
		DELETE FROM blob WHERE id IN (SELECT id FROM old)`,
	`DELETE FROM batch WHERE id IN (SELECT id FROM batch WHERE at < clock_timestamp() - interval '1 hour' LIMIT 20000)`,
	`WITH s AS (SELECT name FROM space WHERE name IN (SELECT space FROM kv WHERE expires < clock_timestamp() LIMIT 1000) FOR UPDATE SKIP LOCKED),
		old AS (DELETE FROM kv WHERE space IN (SELECT name FROM s) AND expires < clock_timestamp()
			RETURNING space, octet_length(key) + octet_length(value) AS size)
		UPDATE space SET used = used - o.size FROM (SELECT space, sum(size) AS size FROM old GROUP BY space) AS o WHERE name = o.space`,
	`DELETE FROM lock WHERE until < clock_timestamp() - interval '1 day'`,
	`DELETE FROM leader WHERE until < clock_timestamp() - interval '1 day'`,
	`DELETE FROM node WHERE seen < clock_timestamp() - interval '30 days'`,
}

func (s *Store) upkeep() {
	t := time.NewTimer(rand.N(upkeepEvery)) // nodes that start together do not work together
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.upkeepOnce()
			t.Reset(upkeepEvery)
		case <-s.life.Done():
			return
		}
	}
}

func (s *Store) upkeepOnce() {
	s.kept.sweep(time.Now())
	if ids := s.open.list(); len(ids) > 0 {
		s.keep("renew contents", `UPDATE blob SET until = greatest(until, clock_timestamp() + $2::interval) WHERE id = ANY($1::uuid[]) AND until IS NOT NULL`,
			ids, blobGrace)
	}
	for _, sql := range sweeps {
		s.keep("sweep", sql)
	}
}

// keep logs what fails: it is tried again in a minute.
func (s *Store) keep(what, sql string, args ...any) {
	if _, err := s.exec(s.life, what, idempotent, sql, args...); err != nil && s.life.Err() == nil {
		s.opt.Log.Warn("upkeep of the database failed", "err", err)
	}
}
