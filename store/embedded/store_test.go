package embedded

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/penstock/penstock/store/storetest"
)

// clock is a time that tests move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// open opens a store in memory, or where o says.
func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t testing.TB, s interface{ Close() error }) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestStore(t *testing.T) {
	for _, tt := range []struct {
		name string
		fs   func() vfs.FS
		slow bool
	}{
		{"disk", func() vfs.FS { return vfs.Default }, true},
		{"memory", func() vfs.FS { return vfs.NewMem() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			storetest.Run(t, func(t testing.TB) *storetest.Env {
				c := &clock{}
				dir := t.TempDir()
				o := Options{FS: tt.fs(), Now: c.now, Memtable: 8 << 20}
				e := &storetest.Env{Advance: c.advance, Slow: tt.slow}
				e.Store = open(t, dir, o)
				e.Reopen = func(t testing.TB) {
					closeStore(t, e.Store)
					e.Store = open(t, dir, o)
				}
				t.Cleanup(func() { closeStore(t, e.Store) })
				return e
			})
		})
	}
}
