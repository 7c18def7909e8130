package storetest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/store"
)

// rest.go: what is stored beside the queue.

func testModules(t *testing.T, e *Env) {
	ctx, m := context.Background(), e.Store.Modules()
	watch := m.Watch(ctx)
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(i * 11 >> 5)
	}
	digest, err := m.Put(ctx, big)
	check(t, err)
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(big)); digest != want {
		t.Errorf("digest: got %s, want %s", digest, want)
	}
	again, err := m.Put(ctx, big)
	check(t, err)
	if again != digest {
		t.Errorf("put twice: got %s, want %s", again, digest)
	}
	got, err := m.Get(ctx, digest)
	check(t, err)
	if !slices.Equal(got, big) {
		t.Errorf("binary: got %d octets that differ", len(got))
	}
	_, err = m.Get(ctx, "sha256:00")
	is(t, err, store.ErrNotFound)
	small, err := m.Put(ctx, []byte("small"))
	check(t, err)

	_, err = m.Activate(ctx, "guard", small, digest, "me")
	is(t, err, store.ErrConflict)
	_, err = m.Activate(ctx, "guard", "sha256:00", "", "me")
	is(t, err, store.ErrNotFound)
	v, err := m.Activate(ctx, "guard", small, "", "me")
	check(t, err)
	if v.Name != "guard" || v.Number != 1 || v.Digest != small || v.By != "me" || v.Since.IsZero() {
		t.Errorf("version: got %+v", v)
	}
	_, err = m.Activate(ctx, "guard", digest, "", "me")
	is(t, err, store.ErrConflict)
	_, err = m.Activate(ctx, "guard", digest, small, "you")
	check(t, err)
	v, err = m.Activate(ctx, "guard", small, "*", "you")
	check(t, err)
	if v.Number != 3 {
		t.Errorf("number: got %d, want 3", v.Number)
	}
	_, err = m.Activate(ctx, "other", digest, "*", "me")
	check(t, err)
	eventually(t, "somebody is told", func() bool {
		select {
		case <-watch:
			return true
		default:
			return false
		}
	})
	versions, err := m.Versions(ctx, "guard")
	check(t, err)
	if len(versions) != 3 || versions[0] != v || versions[2].Number != 1 || versions[1].By != "you" {
		t.Errorf("versions: got %+v", versions)
	}
	if versions, err := m.Versions(ctx, "nobody"); err != nil || len(versions) != 0 {
		t.Errorf("versions of nobody: got %+v, %v", versions, err)
	}
	var names []string
	check(t, m.Names(ctx, func(v store.Version) bool {
		names = append(names, fmt.Sprintf("%s %d %v", v.Name, v.Number, v.Digest == small))
		return true
	}))
	slices.Sort(names)
	if !slices.Equal(names, []string{"guard 3 true", "other 1 false"}) {
		t.Errorf("names: got %v", names)
	}
	check(t, m.Remove(ctx, "guard"))
	_, err = m.Get(ctx, small)
	is(t, err, store.ErrNotFound)
	if _, err := m.Get(ctx, digest); err != nil {
		t.Errorf("another name has it: got %v", err)
	}
	check(t, m.Remove(ctx, "nobody"))
}

func testKV(t *testing.T, e *Env) {
	ctx, kv := context.Background(), e.Store.KV()
	_, err := kv.Get(ctx, "s", "k")
	is(t, err, store.ErrNotFound)
	check(t, kv.Set(ctx, "s", "k", []byte("v"), time.Time{}, 0))
	check(t, kv.Set(ctx, "s", "k", []byte("w"), time.Now().Add(long), 0))
	v, err := kv.Get(ctx, "s", "k")
	check(t, err)
	if string(v) != "w" {
		t.Errorf("value: got %q, want w", v)
	}
	_, err = kv.Get(ctx, "t", "k")
	is(t, err, store.ErrNotFound)
	check(t, kv.Set(ctx, "s", "old", []byte("v"), time.Now().Add(-time.Second), 0))
	_, err = kv.Get(ctx, "s", "old")
	is(t, err, store.ErrNotFound)
	check(t, kv.Set(ctx, "s", "empty", nil, time.Time{}, 0))
	if v, err := kv.Get(ctx, "s", "empty"); err != nil || len(v) != 0 {
		t.Errorf("empty value: got %q, %v", v, err)
	}

	n, err := kv.Add(ctx, "s", "n", 40, time.Time{}, 0)
	check(t, err)
	m, err := kv.Add(ctx, "s", "n", -42, time.Time{}, 0)
	check(t, err)
	if n != 40 || m != -2 {
		t.Errorf("add: got %d and %d, want 40 and -2", n, m)
	}
	if v, err := kv.Get(ctx, "s", "n"); err != nil || string(v) != "-2" {
		t.Errorf("number: got %q, %v", v, err)
	}
	_, err = kv.Add(ctx, "s", "k", 1, time.Time{}, 0)
	is(t, err, store.ErrConflict)
	check(t, kv.Set(ctx, "s", "n", []byte("9223372036854775807"), time.Time{}, 0))
	_, err = kv.Add(ctx, "s", "n", 1, time.Time{}, 0)
	is(t, err, store.ErrConflict)
	_, err = kv.Add(ctx, "s", "old", 5, time.Now().Add(-time.Second), 0)
	check(t, err)
	if n, err := kv.Add(ctx, "s", "old", 1, time.Time{}, 0); err != nil || n != 1 {
		t.Errorf("add to what ran out: got %d, %v, want 1", n, err)
	}

	for _, tt := range []struct {
		old, value []byte
		want       bool
		now        string
	}{
		{nil, []byte("a"), true, "a"},
		{nil, []byte("b"), false, "a"},
		{[]byte("x"), []byte("b"), false, "a"},
		{[]byte("a"), []byte("b"), true, "b"},
		{[]byte("b"), []byte{}, true, ""},
		{[]byte{}, []byte("c"), true, "c"}, // an empty value is one
	} {
		ok, err := kv.Swap(ctx, "s", "swap", tt.old, tt.value, time.Time{}, 0)
		check(t, err)
		v, err := kv.Get(ctx, "s", "swap")
		check(t, err)
		if ok != tt.want || string(v) != tt.now {
			t.Errorf("swap %q for %q: got %v, now %q; want %v, %q", tt.old, tt.value, ok, v, tt.want, tt.now)
		}
	}
	check(t, kv.Delete(ctx, "s", "k"))
	check(t, kv.Delete(ctx, "s", "k"))
	_, err = kv.Get(ctx, "s", "k")
	is(t, err, store.ErrNotFound)

	check(t, kv.Set(ctx, "t", "k", []byte("t"), time.Time{}, 0))
	var all []string
	check(t, kv.Each(ctx, func(space, key string, value []byte, _ time.Time) bool {
		all = append(all, space+"/"+key+"="+string(value))
		return true
	}))
	slices.Sort(all)
	if want := []string{"s/empty=", "s/n=9223372036854775807", "s/old=1", "s/swap=c", "t/k=t"}; !slices.Equal(all, want) {
		t.Errorf("each: got %q, want %q", all, want)
	}
	check(t, kv.Drop(ctx, "s"))
	_, err = kv.Get(ctx, "s", "swap")
	is(t, err, store.ErrNotFound)
	if v, err := kv.Get(ctx, "t", "k"); err != nil || string(v) != "t" {
		t.Errorf("another space: got %q, %v", v, err)
	}
}

func testKVQuota(t *testing.T, e *Env) {
	ctx, kv := context.Background(), e.Store.KV()
	check(t, kv.Set(ctx, "s", "a", make([]byte, 9), time.Time{}, 20)) // 10 octets
	check(t, kv.Set(ctx, "s", "b", make([]byte, 9), time.Time{}, 20)) // 20
	is(t, kv.Set(ctx, "s", "c", nil, time.Time{}, 20), store.ErrFull)
	_, err := kv.Add(ctx, "s", "c", 1, time.Time{}, 20)
	is(t, err, store.ErrFull)
	_, err = kv.Swap(ctx, "s", "c", nil, []byte("x"), time.Time{}, 20)
	is(t, err, store.ErrFull)
	check(t, kv.Set(ctx, "s", "b", make([]byte, 8), time.Time{}, 20)) // it takes the place of the other
	check(t, kv.Set(ctx, "s", "c", nil, time.Time{}, 20))
	check(t, kv.Set(ctx, "other", "a", make([]byte, 19), time.Time{}, 20))
	check(t, kv.Delete(ctx, "s", "a"))
	check(t, kv.Set(ctx, "s", "d", make([]byte, 9), time.Time{}, 20))
	check(t, kv.Drop(ctx, "s"))
	check(t, kv.Set(ctx, "s", "a", make([]byte, 19), time.Time{}, 20))
	// What ran out makes room.
	check(t, kv.Set(ctx, "s", "a", make([]byte, 19), time.Now().Add(-time.Second), 20))
	check(t, kv.Set(ctx, "s", "b", make([]byte, 19), time.Time{}, 20))
}

func testKVConcurrent(t *testing.T, e *Env) {
	ctx, kv := context.Background(), e.Store.KV()
	const hands, each = 8, 50
	var wg sync.WaitGroup
	var won [each]atomic.Int32
	for w := range hands {
		wg.Go(func() {
			for i := range each {
				if _, err := kv.Add(ctx, "s", "n", 1, time.Time{}, 0); err != nil {
					t.Error(err)
				}
				ok, err := kv.Swap(ctx, "s", fmt.Sprint(i), nil, []byte{byte(w)}, time.Time{}, 0)
				if err != nil {
					t.Error(err)
				}
				if ok {
					won[i].Add(1)
				}
			}
		})
	}
	wg.Wait()
	if v, err := kv.Get(ctx, "s", "n"); err != nil || string(v) != fmt.Sprint(hands*each) {
		t.Errorf("sum: got %q, %v, want %d", v, err, hands*each)
	}
	for i := range won {
		if n := won[i].Load(); n != 1 {
			t.Errorf("swap: %d have %d, want 1", n, i)
		}
	}
}

func testFiles(t *testing.T, e *Env) {
	ctx, f := context.Background(), e.Store.Files()
	_, err := f.Read(ctx, "a")
	is(t, err, store.ErrNotFound)
	for _, name := range []string{"a/b/c", "a/b/d", "a/e", "ab", "z"} {
		check(t, f.Write(ctx, name, []byte("of "+name)))
	}
	check(t, f.Write(ctx, "a/e", []byte("again")))
	if b, err := f.Read(ctx, "a/e"); err != nil || string(b) != "again" {
		t.Errorf("read: got %q, %v", b, err)
	}
	for _, tt := range []struct {
		folder    string
		recursive bool
		want      []string
	}{
		{"", false, []string{"a", "ab", "z"}},
		{"", true, []string{"a", "a/b", "a/b/c", "a/b/d", "a/e", "ab", "z"}},
		{"a", false, []string{"a/b", "a/e"}},
		{"a", true, []string{"a/b", "a/b/c", "a/b/d", "a/e"}},
		{"a/b", false, []string{"a/b/c", "a/b/d"}},
	} {
		got, err := f.List(ctx, tt.folder, tt.recursive)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("list %q, recursive %v: got %v, %v, want %v", tt.folder, tt.recursive, got, err, tt.want)
		}
	}
	_, err = f.List(ctx, "nobody", true)
	is(t, err, store.ErrNotFound)

	info, err := f.Stat(ctx, "a/b/c")
	check(t, err)
	if info.Name != "a/b/c" || info.Size != 8 || info.Folder || time.Since(info.Modified).Abs() > time.Hour {
		t.Errorf("file: got %+v", info)
	}
	info, err = f.Stat(ctx, "a/b")
	check(t, err)
	if info.Name != "a/b" || !info.Folder {
		t.Errorf("folder: got %+v", info)
	}
	_, err = f.Stat(ctx, "a/")
	is(t, err, store.ErrNotFound)

	check(t, f.Delete(ctx, "a/b"))
	check(t, f.Delete(ctx, "nobody"))
	_, err = f.Read(ctx, "a/b/c")
	is(t, err, store.ErrNotFound)
	check(t, f.Delete(ctx, "a/e"))
	_, err = f.Stat(ctx, "a")
	is(t, err, store.ErrNotFound)
	if b, err := f.Read(ctx, "ab"); err != nil || string(b) != "of ab" {
		t.Errorf("its neighbour: got %q, %v", b, err)
	}
}

func testLocks(t *testing.T, e *Env) {
	ctx, f := context.Background(), e.Store.Files()
	a, err := f.Lock(ctx, "name")
	check(t, err)
	b, err := f.Lock(ctx, "another")
	check(t, err)
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err = f.Lock(soon, "name")
	is(t, err, context.DeadlineExceeded)

	got := make(chan error)
	go func() {
		c, err := f.Lock(ctx, "name")
		if err == nil {
			err = c.Unlock(ctx)
		}
		got <- err
	}()
	select {
	case <-a.Lost():
		t.Error("the lock is lost")
	default:
	}
	check(t, a.Unlock(ctx))
	check(t, <-got)
	check(t, b.Unlock(ctx))

	// No two have it at a time.
	var wg sync.WaitGroup
	var holders int
	for range 8 {
		wg.Go(func() {
			l, err := f.Lock(ctx, "name")
			if err != nil {
				t.Error(err)
				return
			}
			holders++ // the race detector looks on
			if err := l.Unlock(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if holders != 8 {
		t.Errorf("holders: got %d, want 8", holders)
	}
}

func testPolicies(t *testing.T, e *Env) {
	ctx, p := context.Background(), e.Store.Policies()
	_, err := p.Get(ctx, "mta-sts", "example.com")
	is(t, err, store.ErrNotFound)
	at := time.Now().UTC().Truncate(time.Microsecond)
	put := func(kind, domain string, refresh time.Duration) store.Policy {
		one := store.Policy{Domain: domain, Data: []byte(kind + " of " + domain), Fetched: at, Refresh: at.Add(refresh), Expires: at.Add(24 * time.Hour)}
		check(t, p.Put(ctx, kind, one))
		return one
	}
	put("mta-sts", "example.com", time.Hour)
	want := put("mta-sts", "example.com", 2*time.Hour)
	put("mta-sts", "example.net", time.Minute)
	put("other", "example.com", time.Minute)
	got, err := p.Get(ctx, "mta-sts", "example.com")
	check(t, err)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("policy: got %+v, want %+v", got, want)
	}
	each := func(before time.Duration) (all []string) {
		check(t, p.Each(ctx, "mta-sts", at.Add(before), func(p store.Policy) bool {
			all = append(all, p.Domain)
			return true
		}))
		slices.Sort(all)
		return all
	}
	if got := each(time.Hour); !slices.Equal(got, []string{"example.net"}) {
		t.Errorf("within an hour: got %v", got)
	}
	if got := each(3 * time.Hour); !slices.Equal(got, []string{"example.com", "example.net"}) {
		t.Errorf("within three hours: got %v", got)
	}
	check(t, p.Delete(ctx, "mta-sts", "example.com"))
	check(t, p.Delete(ctx, "mta-sts", "example.com"))
	_, err = p.Get(ctx, "mta-sts", "example.com")
	is(t, err, store.ErrNotFound)
	if _, err := p.Get(ctx, "other", "example.com"); err != nil {
		t.Errorf("another kind: got %v", err)
	}
}

func testCluster(t *testing.T, e *Env) {
	ctx, c := context.Background(), e.Store.Cluster()
	if nodes, err := c.Nodes(ctx, time.Now().Add(-time.Hour)); err != nil || len(nodes) != 0 {
		t.Errorf("nobody: got %+v, %v", nodes, err)
	}
	check(t, c.Beat(ctx, "a", []byte("old")))
	check(t, c.Beat(ctx, "a", []byte("info")))
	nodes, err := c.Nodes(ctx, time.Now().Add(-time.Hour))
	check(t, err)
	if len(nodes) != 1 || nodes[0].Name != "a" || string(nodes[0].Info) != "info" || time.Since(nodes[0].Seen).Abs() > time.Hour {
		t.Errorf("nodes: got %+v", nodes)
	}
	if nodes, err := c.Nodes(ctx, time.Now().Add(time.Hour)); err != nil || len(nodes) != 0 {
		t.Errorf("nobody since: got %+v, %v", nodes, err)
	}
	lasts, over := e.short()
	leads := func(work, node string, want bool) {
		t.Helper()
		got, err := c.Lead(ctx, work, node, lasts)
		check(t, err)
		if got != want {
			t.Errorf("%s leads in %s: got %v, want %v", node, work, got, want)
		}
	}
	leads("work", "a", true)
	leads("work", "a", true)
	leads("work", "b", false)
	leads("other", "b", true)
	check(t, c.Resign(ctx, "work", "b"))
	leads("work", "b", false)
	check(t, c.Resign(ctx, "work", "a"))
	leads("work", "b", true)
	e.pass(t, over)
	leads("work", "a", true)
	check(t, e.Store.Health(ctx))
}
