package main

import (
	"testing"
	"time"

	"github.com/penstock/penstock/store"
)

// TestLately: what counts is the clock of the store, and what a node says need not be known.
func TestLately(t *testing.T) {
	now := time.Now().Add(3 * time.Hour) // by the store
	got := lately([]store.Node{
		{Name: "dead", Seen: now.Add(-nodeGone - time.Second)},
		{Name: "odd\x1b", Seen: now.Add(-nodeGone), Info: []byte("x")},
		{Name: "us", Seen: now, Info: []byte(`{"version": "v1", "started": "2026-01-02T03:04:05Z", "more": 1}`)},
	}, "us")
	if len(got) != 2 || got[0].Name != "odd?" || got[0].Version != "?" || got[0].Self || !got[1].Self || got[1].Version != "v1" || got[1].Started.Year() != 2026 {
		t.Errorf("got %+v", got)
	}
	if got := (*beats)(nil).nodes(); got == nil || len(got) != 0 {
		t.Errorf("without a store: got %v", got)
	}
}
