package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/penstock/penstock/store"
)

// corrupt_test.go: records that do not fit their checksum, and files that are not what they
// should be.

// spoil changes an octet of a record.
func spoil(t *testing.T, s *Store, k []byte) {
	t.Helper()
	v, closer, err := s.e.db.Get(k)
	if err != nil {
		t.Fatal(err)
	}
	v = bytes.Clone(v)
	_ = closer.Close()
	v[len(v)/2] ^= 1
	if err := s.e.db.Set(k, v, pebble.Sync); err != nil {
		t.Fatal(err)
	}
}

func TestCorrupt(t *testing.T) {
	ctx := context.Background()
	for _, tt := range []struct {
		name  string
		large bool
		harm  func(t *testing.T, s *Store, id store.ID, raw [16]byte)
		kept  string // a file in corrupt/
		open  bool   // it shows when the store is opened
	}{
		{"state", false, func(t *testing.T, s *Store, _ store.ID, raw [16]byte) { spoil(t, s, key(kindState, raw)) }, ".s", true},
		{"envelope", false, func(t *testing.T, s *Store, _ store.ID, raw [16]byte) { spoil(t, s, key(kindEnvelope, raw)) }, ".e", false},
		{"content", false, func(t *testing.T, s *Store, _ store.ID, raw [16]byte) { spoil(t, s, key(kindContent, raw)) }, ".b", false},
		{"missing envelope", false, func(t *testing.T, s *Store, _ store.ID, raw [16]byte) {
			if err := s.e.db.Delete(key(kindEnvelope, raw), pebble.Sync); err != nil {
				t.Fatal(err)
			}
		}, ".b", false},
		{"file", true, func(t *testing.T, s *Store, id store.ID, _ [16]byte) {
			name, _ := s.e.bodyPath(id)
			f, err := s.e.o.FS.OpenReadWrite(name, "test")
			if err == nil {
				_, err = f.WriteAt([]byte("spoilt"), 100_000)
			}
			if err != nil || f.Close() != nil {
				t.Fatal(err)
			}
		}, ".body", false},
		{"missing file", true, func(t *testing.T, s *Store, id store.ID, _ [16]byte) { s.e.removeBody(id) }, ".s", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fs := vfs.NewMem()
			s := open(t, "/data", Options{FS: fs})
			if _, err := commit(ctx, s.Queue(), mail(t, "before"), "x"); err != nil {
				t.Fatal(err)
			}
			content := "content"
			if tt.large {
				content = strings.Repeat("content\n", 50_000)
			}
			id, err := commit(ctx, s.Queue(), mail(t, "victim"), content)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := commit(ctx, s.Queue(), mail(t, "after"), "x"); err != nil {
				t.Fatal(err)
			}
			raw, _ := id.Bytes()
			tt.harm(t, s, id, raw)
			closeStore(t, s)
			s = open(t, "/data", Options{FS: fs})
			defer closeStore(t, s)
			var problems []string
			_, err = store.Check(ctx, s, func(what string, err error) {
				if !errors.Is(err, store.ErrCorrupt) {
					t.Errorf("%s: got %v, want ErrCorrupt", what, err)
				}
				problems = append(problems, what)
			})
			if err != nil || (len(problems) == 0) != tt.open {
				t.Errorf("check: got %v, %v", problems, err)
			}
			if _, err := s.Queue().Message(ctx, id); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("victim: got %v, want ErrNotFound", err)
			}
			if got := s.Stats().Corrupt; got != 1 {
				t.Errorf("corrupt: got %d, want 1", got)
			}
			if _, err := fs.Stat("/data/corrupt/" + string(id) + tt.kept); err != nil {
				t.Error(err)
			}
			list, err := s.Queue().Lease(ctx, here, time.Now(), 10, time.Hour)
			if err != nil || len(list) != 2 {
				t.Errorf("the others: got %d, %v", len(list), err)
			}
		})
	}
}

// TestCorruptTable: a block of a table is unreadable. The store opens, and has the messages of
// other blocks.
func TestCorruptTable(t *testing.T) {
	ctx, fs := context.Background(), vfs.NewMem()
	s := open(t, "/data", Options{FS: fs})
	const all = 2000
	for i := range all {
		if _, err := commit(ctx, s.Queue(), mail(t, fmt.Sprint("user", i)), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	tables, err := s.e.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	for _, level := range tables {
		for _, table := range level {
			name := fmt.Sprintf("/data/db/%06d.sst", table.BackingSSTNum)
			f, err := fs.OpenReadWrite(name, "test")
			if err != nil {
				t.Fatal(err)
			}
			info, err := f.Stat()
			if err == nil { // states are the last records
				_, err = f.WriteAt([]byte("spoilt"), info.Size()*9/10)
			}
			if err != nil || f.Close() != nil {
				t.Fatal(err)
			}
		}
	}
	s = open(t, "/data", Options{FS: fs})
	defer func() { _ = s.Close() }()
	c, err := s.Queue().Count(ctx)
	if err != nil || c.Messages == 0 || c.Messages == all || s.Stats().Corrupt == 0 {
		t.Errorf("messages: got %d of %d, %v; %d times corrupt", c.Messages, all, err, s.Stats().Corrupt)
	}
	if _, err := commit(ctx, s.Queue(), mail(t, "new"), "x"); err != nil {
		t.Error(err)
	}
}

// TestSweep: files without a message go, also those of a message that was being written when
// the process ended; files of messages stay.
func TestSweep(t *testing.T) {
	ctx, fs := context.Background(), vfs.NewMem()
	s := open(t, "/data", Options{FS: fs})
	large := strings.Repeat("content\n", 50_000)
	id, err := commit(ctx, s.Queue(), mail(t, "stays"), large)
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Queue().Begin(ctx, mail(t, "unfinished"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte(large)); err != nil {
		t.Fatal(err)
	}
	files := func() (n int) {
		for _, x := range idLetters {
			list, err := fs.List("/data/bodies/" + string(x))
			if err != nil {
				t.Fatal(err)
			}
			n += len(list)
		}
		return n
	}
	s.sweep(ctx)
	if got := files(); got != 2 {
		t.Errorf("while it is written: got %d files, want 2", got)
	}
	closeStore(t, s)
	s = open(t, "/data", Options{FS: fs})
	defer closeStore(t, s)
	eventually(t, "the file without a message is swept", func() bool { return files() == 1 })
	if c, err := s.Queue().Content(ctx, id); err != nil || c.Size() != int64(len(large)) || c.Close() != nil {
		t.Errorf("the other: got %v", err)
	}
	list, err := s.Queue().Lease(ctx, here, time.Now(), 10, time.Hour)
	if err != nil || len(list) != 1 {
		t.Fatalf("lease: got %d, %v", len(list), err)
	}
	if err := s.Queue().Finish(ctx, list[0], []store.Outcome{{State: store.Delivered}}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file of what was delivered goes", func() bool { return files() == 0 })
}

func FuzzRecordsDoNotPanic(f *testing.F) {
	m := &store.Message{Recipients: make([]store.Recipient, 2)}
	f.Add(appendEnvelope(nil, m))
	f.Add(appendState(nil, newDraft("", m).st))
	f.Add(appendAttempts(nil, &attempts{list: []store.Attempt{{Host: "h", Recipients: []int{1}}}}))
	f.Fuzz(func(t *testing.T, record []byte) {
		var m store.Message
		if decodeEnvelope(record, &m) == nil {
			var again store.Message
			if err := decodeEnvelope(appendEnvelope(nil, &m), &again); err != nil {
				t.Errorf("what was read cannot be read again: %v", err)
			}
		}
		var st state
		_ = decodeState(record, &st)
		_, _ = decodeAttempts(record)
	})
}
