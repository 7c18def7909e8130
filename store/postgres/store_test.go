package postgres

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/storetest"
)

// key is a key for files.
func key(n byte) []byte { return bytes.Repeat([]byte{n}, keySize) }

// options are those for a database of a test.
func options(t testing.TB, url string) Options {
	return Options{URL: url, Keys: [][]byte{key(1)}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// open opens a store and closes it when the test ends.
func open(t testing.TB, o Options) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	t.Parallel() // beside TestFaults: both wait for disks and clocks most of the time
	server := peers.Postgres(t)
	url, n := server.URL(server.Database(t)), 0
	env := func(t testing.TB) *storetest.Env {
		n++
		o := options(t, url)
		o.Schema = fmt.Sprintf("test %d", n) // quicker than a database for each
		s := open(t, o)
		e := &storetest.Env{Store: s, Slow: true}
		e.Reopen = func(t testing.TB) {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			e.Store = open(t, o)
		}
		e.Second = func(t testing.TB) store.Store { return open(t, o) }
		return e
	}
	storetest.Run(t, env)
	storetest.RunShared(t, env)
}
