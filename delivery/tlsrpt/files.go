package tlsrpt

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
)

// files.go: where things lie.
//
//	tlsrpt/rows/2026-11-26/07/NODE-3     what a node counted, of the domains of shard 7
//	tlsrpt/sent/2026-11-26/example.com   how far the report to a domain is
//	tlsrpt/got/2026-11-26/NAME           a report that we got on that day
//
// Each node writes rows of its own, whole, again and again, so nodes never wait for each other
// and a crash costs what was counted since the last time. Nobody reads a row before its day
// is over.

// Files is where counts and reports are kept: small files, shared by all nodes. It is the part
// of store.Files that is needed here.
type Files interface {
	// Write keeps a file. It is safe when it returns.
	Write(ctx context.Context, name string, data []byte) error
	// Read returns a file, or an error that is fs.ErrNotExist.
	Read(ctx context.Context, name string) ([]byte, error)
	// Delete forgets a file, or all below a folder. It is no error if there is none.
	Delete(ctx context.Context, name string) error
	// List returns the full names of what is in a folder, or an error that is fs.ErrNotExist.
	List(ctx context.Context, folder string, recursive bool) ([]string, error)
}

const (
	rowsFolder = "tlsrpt/rows"
	sentFolder = "tlsrpt/sent"
	gotFolder  = "tlsrpt/got"
)

func shardFolder(d day, shard int) string {
	return path.Join(rowsFolder, string(d), fmt.Sprintf("%02d", shard))
}

// list returns the last elements of the names in a folder, in order. One that does not exist
// is empty.
func list(ctx context.Context, files Files, folder string) ([]string, error) {
	names, err := files.List(ctx, folder, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("tlsrpt: %s: %w", folder, err)
	}
	for i, name := range names {
		names[i] = path.Base(name)
	}
	slices.Sort(names)
	return names, nil
}

// days are the days that a folder has something of.
func days(ctx context.Context, files Files, folder string) ([]day, error) {
	names, err := list(ctx, files, folder)
	var all []day
	for _, name := range names {
		if d := day(name); !d.begin().IsZero() {
			all = append(all, d)
		}
	}
	return all, err
}

// randomName is a name that nothing else has.
func randomName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
