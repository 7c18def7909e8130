package postgres

// kv.go keeps the values of filters. A write locks the row of its space, which has the sum of
// what is in it, so that the quota holds whoever writes at the same time.

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

type kv struct{ s *Store }

// Get returns a value.
func (k kv) Get(ctx context.Context, space, key string) ([]byte, error) {
	var value []byte
	err := k.s.run(ctx, "get a value", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		return c.QueryRow(ctx, "SELECT value FROM kv WHERE space = $1 AND key = $2 AND (expires IS NULL OR expires > clock_timestamp())",
			[]byte(space), []byte(key)).Scan(&value)
	})
	return value, err
}

// entry is a value in the database.
type entry struct {
	value   []byte // nil: there is none
	size    int64  // of the row, also of one that ran out
	expires *time.Time
}

func expiry(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Set keeps a value.
func (k kv) Set(ctx context.Context, space, key string, value []byte, expires time.Time, quota int64) error {
	return k.change(ctx, "set a value", idempotent, space, key, quota, func(entry) (*entry, error) {
		return &entry{value: value, expires: expiry(expires)}, nil
	})
}

// Swap is Set if the value is old.
func (k kv) Swap(ctx context.Context, space, key string, old, value []byte, expires time.Time, quota int64) (bool, error) {
	swapped := false
	err := k.change(ctx, "swap a value", once, space, key, quota, func(e entry) (*entry, error) {
		swapped = (e.value == nil) == (old == nil) && bytes.Equal(e.value, old)
		if !swapped {
			return nil, nil
		}
		return &entry{value: value, expires: expiry(expires)}, nil
	})
	return swapped && err == nil, err
}

// Add adds to a number.
func (k kv) Add(ctx context.Context, space, key string, delta int64, expires time.Time, quota int64) (int64, error) {
	var result int64
	err := k.change(ctx, "add to a value", once, space, key, quota, func(e entry) (*entry, error) {
		var n int64
		if e.value == nil {
			e.expires = expiry(expires)
		} else {
			var err error
			if n, err = strconv.ParseInt(string(e.value), 10, 64); err != nil {
				return nil, fmt.Errorf("%w: the value is no number", store.ErrConflict)
			}
		}
		if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
			return nil, fmt.Errorf("%w: the number would be too large", store.ErrConflict)
		}
		result = n + delta
		return &entry{value: strconv.AppendInt(nil, result, 10), expires: e.expires}, nil
	})
	return result, err
}

// change puts what f makes of an entry in its place; nil leaves it.
func (k kv) change(ctx context.Context, what string, kind kind, space, key string, quota int64, f func(entry) (*entry, error)) error {
	return k.s.tx(ctx, what, kind, func(ctx context.Context, tx pgx.Tx) error {
		used, old, err := lockEntry(ctx, tx, space, key)
		if err != nil {
			return err
		}
		made, err := f(old)
		if err != nil || made == nil {
			return err
		}
		made.size = int64(len(key) + len(made.value))
		if quota > 0 && used-old.size+made.size > quota && made.size > old.size {
			if used, old.size, err = expire(ctx, tx, space, key); err != nil {
				return err
			}
			if used-old.size+made.size > quota {
				return store.ErrFull
			}
		}
		if made.value == nil {
			made.value = []byte{}
		}
		var p pgx.Batch
		p.Queue(`INSERT INTO kv (space, key, value, expires) VALUES ($1, $2, $3, $4)
			ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, expires = excluded.expires`,
			[]byte(space), []byte(key), made.value, made.expires)
		p.Queue("UPDATE space SET used = used + $2 WHERE name = $1", []byte(space), made.size-old.size)
		return tx.SendBatch(ctx, &p).Close()
	})
}

// lockEntry locks a space, and returns what it holds in sum and under the key.
func lockEntry(ctx context.Context, tx pgx.Tx, space, key string) (used int64, e entry, err error) {
	var p pgx.Batch
	var gone bool
	p.Queue("INSERT INTO space (name, used) VALUES ($1, 0) ON CONFLICT DO NOTHING", []byte(space))
	p.Queue("SELECT used FROM space WHERE name = $1 FOR UPDATE", []byte(space)).QueryRow(func(r pgx.Row) error { return r.Scan(&used) })
	p.Queue("SELECT value, expires, coalesce(expires <= clock_timestamp(), false) FROM kv WHERE space = $1 AND key = $2", []byte(space), []byte(key)).
		Query(func(r pgx.Rows) error {
			_, err := pgx.ForEachRow(r, []any{&e.value, &e.expires, &gone}, func() error { return nil })
			return err
		})
	if err := tx.SendBatch(ctx, &p).Close(); err != nil {
		return 0, e, err
	}
	if e.value != nil {
		e.size = int64(len(key) + len(e.value))
	}
	if gone {
		e.value, e.expires = nil, nil
	}
	return used, e, nil
}

// expire removes what ran out in a locked space, and returns what lockEntry does then.
func expire(ctx context.Context, tx pgx.Tx, space, key string) (used, size int64, err error) {
	_, err = tx.Exec(ctx, `WITH old AS (DELETE FROM kv WHERE space = $1 AND expires <= clock_timestamp()
			RETURNING octet_length(key) + octet_length(value) AS size)
		UPDATE space SET used = used - coalesce((SELECT sum(size) FROM old), 0) WHERE name = $1`, []byte(space))
	if err != nil {
		return 0, 0, err
	}
	used, e, err := lockEntry(ctx, tx, space, key)
	return used, e.size, err
}

// Delete forgets a value.
func (k kv) Delete(ctx context.Context, space, key string) error {
	return k.s.tx(ctx, "delete a value", idempotent, func(ctx context.Context, tx pgx.Tx) error {
		_, old, err := lockEntry(ctx, tx, space, key)
		if err != nil || old.size == 0 && old.value == nil {
			return err
		}
		var p pgx.Batch
		p.Queue("DELETE FROM kv WHERE space = $1 AND key = $2", []byte(space), []byte(key))
		p.Queue("UPDATE space SET used = used - $2 WHERE name = $1", []byte(space), old.size)
		return tx.SendBatch(ctx, &p).Close()
	})
}

// Drop forgets a space. Its row stays, as others may be about to lock it.
func (k kv) Drop(ctx context.Context, space string) error {
	return k.s.tx(ctx, "drop a space", idempotent, func(ctx context.Context, tx pgx.Tx) error {
		var p pgx.Batch
		p.Queue("UPDATE space SET used = 0 WHERE name = $1", []byte(space))
		p.Queue("DELETE FROM kv WHERE space = $1", []byte(space))
		return tx.SendBatch(ctx, &p).Close()
	})
}

// Each calls yield with all that is kept. It reads a thousand at a time.
func (k kv) Each(ctx context.Context, yield func(space, key string, value []byte, expires time.Time) bool) error {
	const page = 1000
	type row struct {
		Space, Key, Value []byte
		Expires           *time.Time
	}
	// Nothing is less than an empty space with an empty key, which may be there.
	last := row{Space: []byte{}, Key: []byte{}}
	than := ">="
	for {
		var rows []row
		err := k.s.run(ctx, "read all values", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
			r, err := c.Query(ctx, `SELECT space, key, value, expires FROM kv WHERE (space, key) `+than+` ($1, $2)
				AND (expires IS NULL OR expires > clock_timestamp()) ORDER BY space, key LIMIT $3`, last.Space, last.Key, page)
			if err != nil {
				return err
			}
			rows, err = pgx.CollectRows(r, pgx.RowToStructByPos[row])
			return err
		})
		if err != nil {
			return err
		}
		for _, r := range rows {
			var expires time.Time
			if r.Expires != nil {
				expires = r.Expires.UTC()
			}
			if !yield(string(r.Space), string(r.Key), r.Value, expires) {
				return nil
			}
		}
		if len(rows) < page {
			return nil
		}
		last, than = rows[page-1], ">"
	}
}
