package postgres

// migrate.go brings the tables of a database to a version. Migrations are files of plain SQL
// with numbers. Each is applied once, in a transaction of its own, under an advisory lock, so
// that of several nodes that start together one does the work and the others wait for it.
//
// Nodes of the version before go on working while a newer one has migrated, and so a
// migration only adds: what is not used any more is removed one version later.

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one file.
type migration struct {
	version int
	name    string
	sql     string
}

// migrations returns all of them in order. The files are ours, and a test reads them.
func migrations() ([]migration, error) {
	entries, err := fs.ReadDir(migrationFiles, "migrations")
	if err != nil {
		return nil, err
	}
	var list []migration
	for _, e := range entries {
		number, _, _ := strings.Cut(e.Name(), "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("migration %s has no number", e.Name())
		}
		sql, err := fs.ReadFile(migrationFiles, "migrations/"+e.Name())
		if err != nil {
			return nil, err
		}
		list = append(list, migration{version, e.Name(), string(sql)})
	}
	slices.SortFunc(list, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	return list, nil
}

// latest is the version that this program knows.
func latest() int {
	list, err := migrations()
	if err != nil || len(list) == 0 {
		return 0
	}
	return list[len(list)-1].version
}

// lockKey is the number of the advisory lock of a schema.
func lockKey(schema string) int64 {
	h := fnv.New64a()
	h.Write([]byte("penstock migration " + schema))
	return int64(h.Sum64())
}

// migrate brings the schema to a version. It does nothing if it is there.
func migrate(ctx context.Context, c *pgx.Conn, schema string, to int) error {
	list, err := migrations()
	if err != nil {
		return err
	}
	// Another node may need longer for its migrations than a statement may take.
	if _, err := c.Exec(ctx, "SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false)"); err != nil {
		return err
	}
	if _, err := c.Exec(ctx, "SELECT pg_advisory_lock($1)", lockKey(schema)); err != nil {
		return fmt.Errorf("wait for the lock of migrations: %w", err)
	}
	// The connection is closed afterwards, which gives the lock back.
	at, err := currentVersion(ctx, c, schema)
	if err != nil {
		return err
	}
	if at > latest() {
		return fmt.Errorf("the tables in schema %s are of version %d, and this program knows %d: a newer one was here", schema, at, latest())
	}
	for _, m := range list {
		if m.version <= at || m.version > to {
			continue
		}
		if err := apply(ctx, c, m); err != nil {
			return fmt.Errorf("apply migration %s: %w", m.name, err)
		}
	}
	return nil
}

func currentVersion(ctx context.Context, c *pgx.Conn, schema string) (int, error) {
	var version int
	err := c.QueryRow(ctx, "SELECT coalesce(max(version), 0) FROM migration").Scan(&version)
	if err == nil || code(err) != undefinedTable {
		return version, err
	}
	// An account that may not make schemas can use one that was made for it.
	var there bool
	if err := c.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema).Scan(&there); err != nil {
		return 0, err
	}
	if !there {
		if _, err := c.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+quote(schema)); err != nil {
			return 0, fmt.Errorf("make the schema: %w", err)
		}
	}
	_, err = c.Exec(ctx, "CREATE TABLE migration (version integer PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL DEFAULT now())")
	if err != nil {
		return 0, fmt.Errorf("make the first table: %w", err)
	}
	return 0, nil
}

func apply(ctx context.Context, c *pgx.Conn, m migration) error {
	if m.sql == "" {
		return errors.New("it is empty")
	}
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		// Without arguments a text of many statements goes through.
		if _, err := tx.Exec(ctx, m.sql); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO migration (version, name) VALUES ($1, $2)", m.version, m.name)
		return err
	})
}
