package postgres

// shared.go keeps modules, policies, and what nodes know of each other.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

type modules struct{ s *Store }

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// isDigest tells whether a text can be one. Others may hold what text of the database cannot.
func isDigest(s string) bool {
	rest, ok := strings.CutPrefix(s, "sha256:")
	_, err := hex.DecodeString(rest)
	return ok && err == nil && len(rest) == 2*sha256.Size
}

// Put keeps a binary.
func (m modules) Put(ctx context.Context, binary []byte) (string, error) {
	digest := digestOf(binary)
	if binary == nil {
		binary = []byte{}
	}
	_, err := m.s.exec(ctx, "put a module", idempotent, "INSERT INTO module (digest, data) VALUES ($1, $2) ON CONFLICT DO NOTHING", digest, binary)
	return digest, err
}

// Get returns a binary.
func (m modules) Get(ctx context.Context, digest string) ([]byte, error) {
	if !isDigest(digest) {
		return nil, store.ErrNotFound
	}
	var data []byte
	err := m.s.run(ctx, "get a module", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		return c.QueryRow(ctx, "SELECT data FROM module WHERE digest = $1", digest).Scan(&data)
	})
	if err == nil && digestOf(data) != digest {
		return nil, fmt.Errorf("%w: module %s", store.ErrCorrupt, digest)
	}
	return data, err
}

// Activate makes a name stand for a digest.
func (m modules) Activate(ctx context.Context, name, digest, expect, by string) (store.Version, error) {
	v := store.Version{Name: name, Digest: digest, By: by}
	if !isDigest(digest) {
		return v, store.ErrNotFound
	}
	err := m.s.tx(ctx, "activate a module", once, func(ctx context.Context, tx pgx.Tx) error {
		now, err := lockName(ctx, tx, name)
		if err != nil {
			return err
		}
		// The row of the module is locked too: Remove must not take it away.
		var there bool
		err = tx.QueryRow(ctx, "SELECT true FROM module WHERE digest = $1 FOR SHARE", digest).Scan(&there)
		if err != nil {
			return err
		}
		if expect != "*" && expect != now {
			return fmt.Errorf("%w: %s stands for %q", store.ErrConflict, name, now)
		}
		return tx.QueryRow(ctx, `WITH n AS (UPDATE name SET number = number + 1 WHERE name = $1 RETURNING number)
			INSERT INTO version (name, number, digest, since, by) SELECT $1, number, $2, clock_timestamp(), $3 FROM n RETURNING number, since`,
			[]byte(name), digest, []byte(by)).Scan(&v.Number, &v.Since)
	})
	if err != nil {
		return store.Version{}, err
	}
	v.Since = v.Since.UTC()
	m.s.wake.all(moduleTopic)
	return v, nil
}

// lockName locks a name and returns the digest that it stands for, empty if there is none.
func lockName(ctx context.Context, tx pgx.Tx, name string) (digest string, err error) {
	var p pgx.Batch
	p.Queue("INSERT INTO name (name, number) VALUES ($1, 0) ON CONFLICT DO NOTHING", []byte(name))
	p.Queue("SELECT FROM name WHERE name = $1 FOR UPDATE", []byte(name))
	p.Queue("SELECT coalesce((SELECT digest FROM version WHERE name = $1 ORDER BY number DESC LIMIT 1), '')", []byte(name)).
		QueryRow(func(r pgx.Row) error { return r.Scan(&digest) })
	return digest, tx.SendBatch(ctx, &p).Close()
}

const versionColumns = "SELECT name, number, digest, since, by FROM version "

func (m modules) versions(ctx context.Context, sql string, args ...any) (list []store.Version, err error) {
	err = m.s.run(ctx, "list modules", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		list = nil
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		var v store.Version
		var name, by []byte
		_, err = pgx.ForEachRow(rows, []any{&name, &v.Number, &v.Digest, &v.Since, &by}, func() error {
			v.Name, v.By, v.Since = string(name), string(by), v.Since.UTC()
			list = append(list, v)
			return nil
		})
		return err
	})
	return list, err
}

// Versions returns the versions of a name.
func (m modules) Versions(ctx context.Context, name string) ([]store.Version, error) {
	return m.versions(ctx, versionColumns+"WHERE name = $1 ORDER BY number DESC", []byte(name))
}

// Names calls yield with the latest version of each name.
func (m modules) Names(ctx context.Context, yield func(store.Version) bool) error {
	list, err := m.versions(ctx, "SELECT DISTINCT ON (name) name, number, digest, since, by FROM version ORDER BY name, number DESC")
	if err != nil {
		return err
	}
	for _, v := range list {
		if !yield(v) {
			break
		}
	}
	return nil
}

// Remove forgets a name. Its row stays, as others may be about to lock it.
func (m modules) Remove(ctx context.Context, name string) error {
	err := m.s.tx(ctx, "remove a module", idempotent, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := lockName(ctx, tx, name); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "DELETE FROM version WHERE name = $1 RETURNING digest", []byte(name))
		if err != nil {
			return err
		}
		digests, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		var p pgx.Batch
		// Whoever activates one of them at the moment holds its row; then look again.
		p.Queue("SELECT FROM module WHERE digest = ANY($1::text[]) ORDER BY digest FOR UPDATE", digests)
		p.Queue("DELETE FROM module m WHERE digest = ANY($1::text[]) AND NOT EXISTS (SELECT FROM version v WHERE v.digest = m.digest)", digests)
		p.Queue("UPDATE name SET number = 0 WHERE name = $1", []byte(name))
		return tx.SendBatch(ctx, &p).Close()
	})
	if err == nil {
		m.s.wake.all(moduleTopic)
	}
	return err
}

// Watch tells when a name changes.
func (m modules) Watch(ctx context.Context) <-chan struct{} { return m.s.wake.watch(ctx, moduleTopic) }

type policies struct{ s *Store }

const policyColumns = "SELECT domain, data, fetched, refresh, expires FROM policy "

func (p policies) query(ctx context.Context, sql string, args ...any) (list []store.Policy, err error) {
	err = p.s.run(ctx, "read policies", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		list = nil
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		var one store.Policy
		var domain, data []byte
		_, err = pgx.ForEachRow(rows, []any{&domain, &data, &one.Fetched, &one.Refresh, &one.Expires}, func() error {
			list = append(list, store.Policy{
				Domain: string(domain), Data: append([]byte{}, data...),
				Fetched: one.Fetched.UTC(), Refresh: one.Refresh.UTC(), Expires: one.Expires.UTC(),
			})
			return nil
		})
		return err
	})
	return list, err
}

// Get returns what is kept for a domain.
func (p policies) Get(ctx context.Context, kind, domain string) (store.Policy, error) {
	list, err := p.query(ctx, policyColumns+"WHERE kind = $1 AND domain = $2", []byte(kind), []byte(domain))
	if err != nil {
		return store.Policy{}, err
	}
	if len(list) == 0 {
		return store.Policy{}, store.ErrNotFound
	}
	return list[0], nil
}

// Put keeps it.
func (p policies) Put(ctx context.Context, kind string, one store.Policy) error {
	_, err := p.s.exec(ctx, "keep a policy", idempotent, `INSERT INTO policy (kind, domain, data, fetched, refresh, expires) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (kind, domain) DO UPDATE SET data = excluded.data, fetched = excluded.fetched, refresh = excluded.refresh, expires = excluded.expires`,
		[]byte(kind), []byte(one.Domain), append([]byte{}, one.Data...), one.Fetched, one.Refresh, one.Expires)
	return err
}

// Delete forgets it.
func (p policies) Delete(ctx context.Context, kind, domain string) error {
	_, err := p.s.exec(ctx, "forget a policy", idempotent, "DELETE FROM policy WHERE kind = $1 AND domain = $2", []byte(kind), []byte(domain))
	return err
}

// policyPage is how many policies Each reads at a time.
const policyPage = 500

// Each calls yield with those to be looked at again before a time.
func (p policies) Each(ctx context.Context, kind string, before time.Time, yield func(store.Policy) bool) error {
	after := []byte(nil)
	for {
		list, err := p.query(ctx, policyColumns+"WHERE kind = $1 AND refresh < $2 AND ($3::bytea IS NULL OR domain > $3) ORDER BY domain LIMIT $4",
			[]byte(kind), before, after, policyPage)
		if err != nil {
			return err
		}
		for _, one := range list {
			if !yield(one) {
				return nil
			}
		}
		if len(list) < policyPage {
			return nil
		}
		after = []byte(list[len(list)-1].Domain)
	}
}

type cluster struct{ s *Store }

// Beat tells that a node lives.
func (c cluster) Beat(ctx context.Context, node string, info []byte) error {
	_, err := c.s.exec(ctx, "tell that we live", idempotent, `INSERT INTO node (name, seen, info) VALUES ($1, clock_timestamp(), $2)
		ON CONFLICT (name) DO UPDATE SET seen = excluded.seen, info = excluded.info`, []byte(node), append([]byte{}, info...))
	return err
}

// Nodes returns those that were heard of since a time.
func (c cluster) Nodes(ctx context.Context, since time.Time) (list []store.Node, err error) {
	err = c.s.run(ctx, "list nodes", idempotent, func(ctx context.Context, conn *pgxpool.Conn) error {
		list = nil
		rows, err := conn.Query(ctx, "SELECT name, seen, info FROM node WHERE seen >= $1 ORDER BY name", since)
		if err != nil {
			return err
		}
		var name, info []byte
		var seen time.Time
		_, err = pgx.ForEachRow(rows, []any{&name, &seen, &info}, func() error {
			list = append(list, store.Node{Name: string(name), Seen: seen.UTC(), Info: append([]byte{}, info...)})
			return nil
		})
		return err
	})
	return list, err
}

// Lead tells whether a node leads.
func (c cluster) Lead(ctx context.Context, work, node string, lasts time.Duration) (bool, error) {
	rows, err := c.s.exec(ctx, "lead", idempotent, `INSERT INTO leader (work, node, until) VALUES ($1, $2, clock_timestamp() + $3::interval)
		ON CONFLICT (work) DO UPDATE SET node = excluded.node, until = excluded.until
		WHERE leader.node = excluded.node OR leader.until <= clock_timestamp()`, []byte(work), []byte(node), lasts)
	return rows > 0, err
}

// Resign lets another lead.
func (c cluster) Resign(ctx context.Context, work, node string) error {
	_, err := c.s.exec(ctx, "resign", idempotent, "DELETE FROM leader WHERE work = $1 AND node = $2", []byte(work), []byte(node))
	return err
}
