package postgres

// files.go keeps files. A folder is there while a file is below it; nothing is stored of it.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

// longestName is the limit of names of files and locks.
const longestName = 500

type files struct{ s *Store }

func checkName(name string) error {
	if name == "" || len(name) > longestName {
		return fmt.Errorf("postgres: a name has 1 to %d octets, not %d", longestName, len(name))
	}
	return nil
}

// below are the bounds of names in a folder: from the first on, and before the second. "0"
// follows "/".
func below(folder string) (from, before []byte) {
	return []byte(folder + "/"), []byte(folder + "0")
}

// Write keeps a file.
func (f files) Write(ctx context.Context, name string, data []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	_, err := f.s.exec(ctx, "write a file", idempotent, `INSERT INTO file (name, data, size, modified) VALUES ($1, $2, $3, clock_timestamp())
		ON CONFLICT (name) DO UPDATE SET data = excluded.data, size = excluded.size, modified = excluded.modified`,
		[]byte(name), f.s.seal.seal(name, data), len(data))
	return err
}

// Read returns a file.
func (f files) Read(ctx context.Context, name string) ([]byte, error) {
	var data []byte
	err := f.s.run(ctx, "read a file", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		return c.QueryRow(ctx, "SELECT data FROM file WHERE name = $1", []byte(name)).Scan(&data)
	})
	if err != nil {
		return nil, err
	}
	return f.s.seal.open(name, data)
}

// Delete forgets a file or a folder.
func (f files) Delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	from, before := below(name)
	_, err := f.s.exec(ctx, "delete a file", idempotent, "DELETE FROM file WHERE name = $1 OR name >= $2 AND name < $3", []byte(name), from, before)
	return err
}

// Stat describes a file or a folder.
func (f files) Stat(ctx context.Context, name string) (store.FileInfo, error) {
	info := store.FileInfo{Name: name}
	err := f.s.run(ctx, "look at a file", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		return c.QueryRow(ctx, "SELECT size, modified FROM file WHERE name = $1", []byte(name)).Scan(&info.Size, &info.Modified)
	})
	info.Modified = info.Modified.UTC()
	if !errors.Is(err, store.ErrNotFound) {
		return info, err
	}
	from, before := below(name)
	err = f.s.run(ctx, "look at a folder", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		return c.QueryRow(ctx, "SELECT modified FROM file WHERE name >= $1 AND name < $2 ORDER BY modified DESC LIMIT 1", from, before).Scan(&info.Modified)
	})
	info.Folder, info.Modified = err == nil, info.Modified.UTC()
	return info, err
}

// List returns what is in a folder.
func (f files) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	sql, args := "SELECT name FROM file ORDER BY name", []any(nil)
	if folder != "" {
		from, before := below(folder)
		sql, args = "SELECT name FROM file WHERE name >= $1 AND name < $2 ORDER BY name", []any{from, before}
	}
	var names [][]byte
	err := f.s.run(ctx, "list files", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		names, err = pgx.CollectRows(rows, pgx.RowTo[[]byte])
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(names) == 0 && folder != "" {
		return nil, store.ErrNotFound
	}
	return entries(names, folder, recursive), nil
}

// entries adds the folders that names of files tell of, and leaves out what is deeper unless
// it is wanted.
func entries(names [][]byte, folder string, recursive bool) []string {
	prefix := ""
	if folder != "" {
		prefix = folder + "/"
	}
	seen := make(map[string]bool)
	for _, b := range names {
		rest := string(b[len(prefix):])
		for at := 0; ; {
			i := strings.IndexByte(rest[at:], '/')
			if i < 0 {
				seen[prefix+rest] = true
				break
			}
			at += i
			seen[prefix+rest[:at]] = true
			if !recursive {
				break
			}
			at++
		}
	}
	list := make([]string, 0, len(seen))
	for name := range seen {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}
