package store_test

import (
	"testing"
	"time"

	"github.com/penstock/penstock/store"
)

func TestIDs(t *testing.T) {
	var g store.IDs
	now := time.Date(2026, 3, 1, 12, 0, 0, 123000, time.UTC)
	first := g.Next(now)
	if got := first.Time(); len(first) != 26 || !got.Equal(now) {
		t.Errorf("%s: got time %v, want %v", first, got, now)
	}
	last := first
	for i := range 1000 {
		id := g.Next(now.Add(-time.Duration(i) * time.Hour)) // the clock is set back
		if id <= last {
			t.Fatalf("%s comes after %s", id, last)
		}
		last = id
	}
	var other store.IDs
	other.After(last)
	if id := other.Next(now); id <= last {
		t.Errorf("after a restart: %s comes after %s", id, last)
	}
}

func TestIDBytes(t *testing.T) {
	var g store.IDs
	id := g.Next(time.Now())
	b, ok := id.Bytes()
	if again := store.IDFromBytes(b); !ok || again != id {
		t.Errorf("got %s %v, want %s", again, ok, id)
	}
	for _, bad := range []store.ID{
		"", "x",
		id + "0",
		id[:25] + "v", // the last character holds three bits alone
		"zzzzzzzzzzzzzzzzzzzzzzzzzz",
		"ABCDEFGHIJKLMNOPQRSTUV0000", // one spelling
		id[:24] + "\n0",
	} {
		if _, ok := bad.Bytes(); ok {
			t.Errorf("%q: is taken", bad)
		}
	}
}
