package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
	"github.com/penstock/penstock/store/postgres"
)

// certstore_test.go: certificates in the store.

// What certmagic asks of a storage, over both stores; that in a database has two nodes.
func TestCertStorage(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		db, err := embedded.Open(t.TempDir(), embedded.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		checkStorage(t, db.Files(), db.Files())
	})
	t.Run("postgres", func(t *testing.T) {
		p := peers.Postgres(t)
		o := postgres.Options{URL: p.URL(p.Database(t)), Keys: [][]byte{make([]byte, 32)}}
		var nodes [2]store.Files
		for i := range nodes {
			db, err := postgres.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			nodes[i] = db.Files()
		}
		checkStorage(t, nodes[0], nodes[1])
	})
}

// checkStorage is the contract. There is one more file in the store, of somebody else.
func checkStorage(t *testing.T, files, otherNode store.Files) {
	ctx := t.Context()
	var s certs.Storage = newCertStorage(files, slog.New(slog.DiscardHandler))
	if _, err := s.List(ctx, "", true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("List of nothing: %v", err)
	}
	if err := files.Write(ctx, "other/file", []byte("not a certificate")); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"a/b/one": "1", "a/b/two": "22", "a/three": "333", "ab": "", "a/b/one again": "x"} {
		if err := s.Store(ctx, key, []byte("before")); err != nil {
			t.Errorf("Store %s: %v", key, err)
		}
		if err := s.Store(ctx, key, []byte(value)); err != nil {
			t.Errorf("Store %s: %v", key, err)
		}
		if got, err := s.Load(ctx, key); string(got) != value || err != nil {
			t.Errorf("Load %s: %q, %v; want %q", key, got, err, value)
		}
	}
	if err := s.Delete(ctx, "a/b/one again"); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		folder    string
		recursive bool
		want      string // empty: there is none
	}{
		{"", true, "a a/b a/b/one a/b/two a/three ab"},
		{"", false, "a ab"},
		{"a", true, "a/b a/b/one a/b/two a/three"},
		{"a", false, "a/b a/three"},
		{"other", true, ""},
		{"c", false, ""},
	} {
		got, err := s.List(ctx, tc.folder, tc.recursive)
		slices.Sort(got)
		if strings.Join(got, " ") != tc.want || errors.Is(err, fs.ErrNotExist) != (tc.want == "") {
			t.Errorf("List %q, %v: %q, %v; want %s", tc.folder, tc.recursive, got, err, tc.want)
		}
	}
	for _, tc := range []struct {
		key         string
		there, file bool
		size        int64
	}{
		{"a/three", true, true, 3}, {"ab", true, true, 0}, {"a/b", true, false, 0}, {"a", true, false, 0},
		{"a/b/one again", false, false, 0}, {"b", false, false, 0}, {"other/file", false, false, 0},
	} {
		info, err := s.Stat(ctx, tc.key)
		if tc.there && (err != nil || info.Key != tc.key || info.IsTerminal != tc.file || info.Size != tc.size || info.Modified.IsZero()) ||
			!tc.there && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Stat %s: %+v, %v", tc.key, info, err)
		}
		if got := s.Exists(ctx, tc.key); got != tc.there {
			t.Errorf("Exists %s: %v", tc.key, got)
		}
		if _, err := s.Load(ctx, tc.key); !tc.file && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load %s: %v", tc.key, err)
		}
	}
	if err := errors.Join(s.Delete(ctx, "a"), s.Delete(ctx, "a")); err != nil || s.Exists(ctx, "a/b/one") || !s.Exists(ctx, "ab") {
		t.Errorf("Delete of a folder, twice: %v", err)
	}
	if data, err := otherNode.Read(ctx, "other/file"); err != nil || len(data) == 0 {
		t.Errorf("the file of somebody else: %q, %v", data, err)
	}
	checkLocks(t, s, newCertStorage(otherNode, slog.New(slog.DiscardHandler)))
}

// checkLocks wants locks to be those of all nodes, of which there are two.
func checkLocks(t *testing.T, one, other certs.Storage) {
	t.Helper()
	ctx := t.Context()
	if err := one.Unlock(ctx, "free"); err == nil {
		t.Error("Unlock of what is free: no error")
	}
	var held, most int
	var mu sync.Mutex
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		held += n
		most = max(most, held)
	}
	var all sync.WaitGroup
	for i := range 20 {
		node := []certs.Storage{one, other}[i%2]
		all.Go(func() {
			if err := node.Lock(ctx, "a name: of *any* kind/"); err != nil {
				t.Error(err)
				return
			}
			count(1)
			runtime.Gosched() // gives a second holder its chance
			count(-1)
			ended, cancel := context.WithCancel(ctx)
			cancel() // as at the end
			if err := node.Unlock(ended, "a name: of *any* kind/"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if most != 1 || held != 0 {
		t.Errorf("%d at one time, %d left; want 1 and 0", most, held)
	}
	if err := errors.Join(one.Lock(ctx, "a"), other.Lock(ctx, "b")); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := other.Lock(brief, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock of what another has: %v, want to wait", err)
	}
	if err := errors.Join(one.Unlock(ctx, "a"), other.Unlock(ctx, "b")); err != nil {
		t.Error(err)
	}
}

// sickFiles is a store that fails, or has locks that are lost.
type sickFiles struct {
	store.Files
	err  error
	lost chan struct{}
}

func (f sickFiles) Read(context.Context, string) ([]byte, error) { return nil, f.err }

func (f sickFiles) Write(context.Context, string, []byte) error { return f.err }

func (f sickFiles) Delete(context.Context, string) error { return f.err }

func (f sickFiles) Stat(context.Context, string) (store.FileInfo, error) {
	return store.FileInfo{}, f.err
}

func (f sickFiles) List(context.Context, string, bool) ([]string, error) { return nil, f.err }

func (f sickFiles) Lock(context.Context, string) (store.Unlocker, error) { return f, f.err }

func (f sickFiles) Unlock(ctx context.Context) error { return ctx.Err() }

func (f sickFiles) Lost() <-chan struct{} { return f.lost }

// Errors of the store: those that say that there is nothing become certmagic's, the others stay
// what they are, or a certificate would be ordered because a database is away.
func TestCertStorageErrors(t *testing.T) {
	away := errors.New("the database is away")
	for _, tc := range []struct {
		err     error
		missing bool // reading says that there is nothing
		log     string
	}{
		{store.ErrNotFound, true, ""},
		{fmt.Errorf("files: %w", store.ErrNotFound), true, ""},
		{fmt.Errorf("%w: checksum", store.ErrCorrupt), true, "is corrupt in the store"},
		{away, false, ""},
		{store.ErrClosed, false, ""},
		{context.Canceled, false, ""},
	} {
		var book bytes.Buffer
		s := newCertStorage(sickFiles{err: tc.err}, slog.New(slog.NewTextHandler(&book, nil)))
		ctx := t.Context()
		_, loadErr := s.Load(ctx, "a")
		_, statErr := s.Stat(ctx, "a")
		_, listErr := s.List(ctx, "a", true)
		for what, err := range map[string]error{"Load": loadErr, "Stat": statErr, "List": listErr} {
			if errors.Is(err, fs.ErrNotExist) != tc.missing || !errors.Is(err, tc.err) {
				t.Errorf("%s with %v: %v, want one that says nothing is there: %v", what, tc.err, err, tc.missing)
			}
		}
		for what, err := range map[string]error{"Store": s.Store(ctx, "a", nil), "Delete": s.Delete(ctx, "a"), "Lock": s.Lock(ctx, "a")} {
			if !errors.Is(err, tc.err) {
				t.Errorf("%s with %v: %v", what, tc.err, err)
			}
		}
		if s.Exists(ctx, "a") {
			t.Errorf("Exists with %v", tc.err)
		}
		if err := s.Unlock(ctx, "a"); err == nil {
			t.Errorf("with %v: a lock that was not given can be given back", tc.err)
		}
		if got := book.String(); (tc.log == "") != (got == "") || !strings.Contains(got, tc.log) {
			t.Errorf("log with %v: %q, want %q in it", tc.err, got, tc.log)
		}
	}
}

// A lost lock is told of, and given back like any other.
func TestCertStorageLostLock(t *testing.T) {
	lines := make(chan string, 10)
	f := sickFiles{lost: make(chan struct{})}
	s := newCertStorage(f, slog.New(slog.NewTextHandler(lineWriter(lines), nil)))
	if err := errors.Join(s.Lock(t.Context(), "kept"), s.Unlock(t.Context(), "kept"), s.Lock(t.Context(), "lost")); err != nil {
		t.Fatal(err)
	}
	close(f.lost)
	select {
	case line := <-lines:
		if !strings.Contains(line, "was lost") || !strings.Contains(line, "lock=lost") {
			t.Errorf("log: %s", line)
		}
	case <-time.After(patience):
		t.Error("nobody tells that the lock was lost")
	}
	if err := s.Unlock(t.Context(), "lost"); err != nil {
		t.Error(err)
	}
}

// lineWriter hands on what a log writes.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// TestCertificatesInStore: what a CA gave is in the store, and served from there by a node
// whose own folder is empty, without the CA; what a folder has from before is taken over.
func TestCertificatesInStore(t *testing.T) {
	p := peers.Pebble(t, peers.PebbleOptions{})
	without := strings.NewReplacer("NAMES", "mx.example.org", "DIRECTORY", p.Directory, "ROOTS", p.CA.File,
		"HTTP01", p.HTTP01, "TLSALPN01", p.TLSALPN01).Replace(acmeConfig)
	with := func(dir string) string {
		return without + "store: {driver: embedded, path: " + filepath.Join(dir, "store") + "}\n"
	}
	obtains := func(g *gatewayProcess) {
		t.Helper()
		g.await("certificate", func(l map[string]any) bool { return l["msg"] == "certificate obtained" })
	}
	kept := func(g *gatewayProcess) bool {
		_, err := os.Stat(filepath.Join(g.dir, "certificates", "acme"))
		return err == nil
	}
	roots := p.Roots(t)
	// serves starts a gateway that must have what it shows from the store.
	serves := func(yaml string) *gatewayProcess {
		t.Helper()
		g := startGateway(t, yaml)
		verify(t, g, "mx.example.org", roots)
		g.stop()
		if strings.Contains(g.log(), "certificate obtained") || strings.Contains(g.log(), "registered with the CA") {
			t.Errorf("the CA was asked for what is in the store:\n%s", g.log())
		}
		return g
	}

	data := t.TempDir()
	first := startGateway(t, with(data))
	obtains(first)
	verify(t, first, "mx.example.org", roots)
	first.stop()
	if second := serves(with(data)); kept(first) || kept(second) {
		t.Error("what is in the store is in a folder too")
	}

	before := startGateway(t, without)
	obtains(before)
	before.stop()
	data = t.TempDir()
	after := serves(strings.Replace(with(data), "$DIR/certificates", before.dir+"/certificates", 1))
	if n := strings.Count(after.log(), "taken over into the store"); n != 2 || !kept(before) {
		t.Errorf("%d files taken over, want certificate and account:\n%s", n, after.log())
	}
	serves(with(data))
}
