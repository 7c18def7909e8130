package embedded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/penstock/penstock/store"
)

// rest.go: what is stored beside the queue: files, modules, policies, and what nodes know of
// each other, which here is one node. All of it is written and synced at once; it is little.

// set writes a record and syncs it.
func (e *engine) set(k, record []byte) error {
	return e.write(synced, len(k)+len(record)+32, doubt{}, func(b *pebble.Batch) error {
		return b.Set(k, seal(k, slices.Clip(record)), nil)
	}, nil)
}

// remove removes records.
func (e *engine) remove(keys ...[]byte) error {
	if len(keys) == 0 {
		return nil
	}
	return e.write(synced, 64*len(keys), doubt{}, func(b *pebble.Batch) error {
		var err error
		for _, k := range keys {
			err = errors.Join(err, b.Delete(k, nil))
		}
		return err
	}, nil)
}

// each calls yield with the records whose keys begin with prefix, from one key on, some at a
// time, so that nobody waits for it.
func (e *engine) each(ctx context.Context, prefix []byte, yield func(k, record []byte) bool) error {
	from := prefix
	for from != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		keys, records, next, err := e.some(prefix, from)
		if err != nil {
			return err
		}
		for i := range keys {
			if !yield(keys[i], records[i]) {
				return nil
			}
		}
		from = next
	}
	return nil
}

// someOctets is how much is read at a time.
const someOctets = 1 << 20

func (e *engine) some(prefix, from []byte) (keys, records [][]byte, next []byte, err error) {
	db, err := e.enter()
	if err != nil {
		return nil, nil, nil, err
	}
	defer e.leave()
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: behind(prefix)})
	if err != nil {
		return nil, nil, nil, err
	}
	size := 0
	for ok := it.First(); ok; ok = it.Next() {
		if size > someOctets || len(keys) >= page {
			next = bytes.Clone(it.Key())
			break
		}
		v, err := it.ValueAndErr()
		if err == nil {
			v, err = unseal(it.Key(), v)
		}
		if err != nil {
			e.corrupt.Add(1)
			e.o.Log.Error("store: a record is corrupt", "err", err)
			continue
		}
		keys, records = append(keys, bytes.Clone(it.Key())), append(records, bytes.Clone(v))
		size += len(v)
	}
	if err := it.Close(); err != nil {
		return nil, nil, nil, err
	}
	if failure := e.disk.failure(); failure != nil {
		return nil, nil, nil, outage(failure)
	}
	return keys, records, next, nil
}

// behind is the first key behind those with a prefix; nil is the end of all.
func behind(prefix []byte) []byte {
	b := bytes.Clone(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}

// nameKey is a key of a kind and texts; all but the last have their length before them, so
// that no two name the same.
func nameKey(kind byte, names ...string) []byte {
	k := []byte{kind}
	for i, n := range names {
		if i < len(names)-1 {
			k = binary.AppendUvarint(k, uint64(len(n)))
		}
		k = append(k, n...)
	}
	return k
}

// files is a store.Files. Locks are in memory: there is one process.
type files struct {
	e     *engine
	mu    sync.Mutex
	locks map[string]chan struct{} // guarded by mu: closed when the lock is given back
}

func newFiles(e *engine) *files { return &files{e: e, locks: make(map[string]chan struct{})} }

// maxFileName is the longest name of a file.
const maxFileName = 500

// Write implements store.Files.
func (f *files) Write(ctx context.Context, name string, data []byte) error {
	if name == "" || len(name) > maxFileName {
		return fmt.Errorf("embedded: the name of a file has %d octets, not 1 to %d", len(name), maxFileName)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	record := &encoder{}
	record.time(f.e.o.Now())
	record.b = append(record.b, data...)
	return f.e.set(nameKey(kindFile, name), record.b)
}

// Read implements store.Files.
func (f *files) Read(ctx context.Context, name string) ([]byte, error) {
	_, data, err := f.read(name)
	return data, err
}

func (f *files) read(name string) (time.Time, []byte, error) {
	record, err := f.e.get(nameKey(kindFile, name))
	if err != nil {
		return time.Time{}, nil, err
	}
	d := &decoder{b: record}
	modified := d.time()
	return modified, d.b, d.err
}

// Delete implements store.Files.
func (f *files) Delete(ctx context.Context, name string) error {
	keys := [][]byte{nameKey(kindFile, name)}
	err := f.e.each(ctx, nameKey(kindFile, name+"/"), func(k, _ []byte) bool {
		keys = append(keys, k)
		return true
	})
	if err != nil {
		return err
	}
	return f.e.remove(keys...)
}

// Stat implements store.Files.
func (f *files) Stat(ctx context.Context, name string) (store.FileInfo, error) {
	modified, data, err := f.read(name)
	if err == nil {
		return store.FileInfo{Name: name, Modified: modified, Size: int64(len(data))}, nil
	}
	if !errors.Is(err, store.ErrNotFound) || name == "" || strings.HasSuffix(name, "/") {
		return store.FileInfo{}, err
	}
	info := store.FileInfo{Name: name, Folder: true}
	found := false
	err = f.e.each(ctx, nameKey(kindFile, name+"/"), func(_, record []byte) bool {
		found = true
		if at := (&decoder{b: record}).time(); at.After(info.Modified) {
			info.Modified = at
		}
		return true
	})
	if err == nil && !found {
		err = store.ErrNotFound
	}
	return info, err
}

// List implements store.Files.
func (f *files) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	prefix := folder
	if folder != "" {
		prefix += "/"
	}
	var names []string
	seen := make(map[string]bool)
	err := f.e.each(ctx, nameKey(kindFile, prefix), func(k, _ []byte) bool {
		rest := string(k[1+len(prefix):])
		for at := 0; ; at++ {
			slash := strings.IndexByte(rest[at:], '/')
			name := prefix + rest
			if slash >= 0 {
				at += slash
				name = prefix + rest[:at]
			}
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
			if slash < 0 || !recursive {
				return true
			}
		}
	})
	if err == nil && len(names) == 0 && folder != "" {
		err = store.ErrNotFound
	}
	return names, err
}

// Lock implements store.Files.
func (f *files) Lock(ctx context.Context, name string) (store.Unlocker, error) {
	for {
		f.mu.Lock()
		held := f.locks[name]
		if held == nil {
			l := &fileLock{f: f, name: name, back: make(chan struct{})}
			f.locks[name] = l.back
			f.mu.Unlock()
			return l, nil
		}
		f.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fileLock is a store.Unlocker.
type fileLock struct {
	f    *files
	name string
	back chan struct{}
	once sync.Once
}

// Unlock implements store.Unlocker.
func (l *fileLock) Unlock(context.Context) error {
	l.once.Do(func() {
		l.f.mu.Lock()
		defer l.f.mu.Unlock()
		delete(l.f.locks, l.name)
		close(l.back)
	})
	return nil
}

// Lost implements store.Unlocker: no lock is lost while the process lives.
func (l *fileLock) Lost() <-chan struct{} { return nil }

// modules is a store.Modules. The versions of a name are one record.
type modules struct {
	e     *engine
	mu    sync.Mutex // held while versions change
	wakes wakes
}

// Put implements store.Modules.
func (m *modules) Put(ctx context.Context, binary []byte) (string, error) {
	if err := errors.Join(ctx.Err(), m.e.room()); err != nil {
		return "", err
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(binary))
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.Get(ctx, digest); err == nil {
		return digest, nil
	}
	return digest, m.e.set(nameKey(kindModule, digest), slices.Clone(binary))
}

// Get implements store.Modules.
func (m *modules) Get(ctx context.Context, digest string) ([]byte, error) {
	return m.e.get(nameKey(kindModule, digest))
}

// Activate implements store.Modules.
func (m *modules) Activate(ctx context.Context, name, digest, expect, by string) (store.Version, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	versions, err := m.Versions(ctx, name)
	if err != nil {
		return store.Version{}, err
	}
	v := store.Version{Name: name, Number: 1, Digest: digest, Since: m.e.o.Now().UTC().Truncate(time.Microsecond), By: by}
	was := ""
	if len(versions) > 0 {
		was, v.Number = versions[0].Digest, versions[0].Number+1
	}
	if expect != "*" && expect != was {
		return store.Version{}, store.ErrConflict
	}
	if _, err := m.Get(ctx, digest); err != nil {
		return store.Version{}, err
	}
	if err := m.e.set(nameKey(kindName, name), encodeVersions(slices.Insert(versions, 0, v))); err != nil {
		return store.Version{}, err
	}
	m.wakes.wake()
	return v, nil
}

func encodeVersions(list []store.Version) []byte {
	e := &encoder{}
	e.uint(uint64(len(list)))
	for _, v := range list {
		e.int(int64(v.Number))
		e.text(v.Digest)
		e.time(v.Since)
		e.text(v.By)
	}
	return e.b
}

func decodeVersions(name string, record []byte) ([]store.Version, error) {
	d := &decoder{b: record}
	list := make([]store.Version, d.count())
	for i := range list {
		list[i] = store.Version{Name: name, Number: d.small(), Digest: d.text(), Since: d.time(), By: d.text()}
	}
	return list, broken("versions", d.end())
}

// Versions implements store.Modules.
func (m *modules) Versions(ctx context.Context, name string) ([]store.Version, error) {
	record, err := m.e.get(nameKey(kindName, name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return decodeVersions(name, record)
}

// Names implements store.Modules.
func (m *modules) Names(ctx context.Context, yield func(store.Version) bool) error {
	var bad error
	err := m.e.each(ctx, []byte{kindName}, func(k, record []byte) bool {
		list, err := decodeVersions(string(k[1:]), record)
		if err != nil {
			bad = err
		}
		return err != nil || len(list) == 0 || yield(list[0])
	})
	return errors.Join(err, bad)
}

// Remove implements store.Modules.
func (m *modules) Remove(ctx context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	mine, err := m.Versions(ctx, name)
	if err != nil || len(mine) == 0 {
		return err
	}
	used := make(map[string]bool)
	err = m.e.each(ctx, []byte{kindName}, func(k, record []byte) bool {
		list, _ := decodeVersions(string(k[1:]), record)
		for _, v := range list {
			used[v.Digest] = used[v.Digest] || v.Name != name
		}
		return true
	})
	if err != nil {
		return err
	}
	keys := [][]byte{nameKey(kindName, name)}
	for _, v := range mine {
		if !used[v.Digest] {
			keys = append(keys, nameKey(kindModule, v.Digest))
		}
	}
	if err := m.e.remove(keys...); err != nil {
		return err
	}
	m.wakes.wake()
	return nil
}

// Watch implements store.Modules.
func (m *modules) Watch(ctx context.Context) <-chan struct{} { return m.wakes.watch(ctx) }

// policies is a store.Policies.
type policies struct{ e *engine }

// Get implements store.Policies.
func (p policies) Get(ctx context.Context, kind, domain string) (store.Policy, error) {
	record, err := p.e.get(nameKey(kindPolicy, kind, domain))
	if err != nil {
		return store.Policy{}, err
	}
	return decodePolicy(domain, record)
}

func decodePolicy(domain string, record []byte) (store.Policy, error) {
	d := &decoder{b: record}
	one := store.Policy{Domain: domain, Fetched: d.time(), Refresh: d.time(), Expires: d.time()}
	one.Data = d.b
	return one, broken("policy", d.err)
}

// Put implements store.Policies.
func (p policies) Put(ctx context.Context, kind string, one store.Policy) error {
	e := &encoder{}
	e.time(one.Fetched)
	e.time(one.Refresh)
	e.time(one.Expires)
	e.b = append(e.b, one.Data...)
	return p.e.set(nameKey(kindPolicy, kind, one.Domain), e.b)
}

// Delete implements store.Policies.
func (p policies) Delete(ctx context.Context, kind, domain string) error {
	return p.e.remove(nameKey(kindPolicy, kind, domain))
}

// Each implements store.Policies.
func (p policies) Each(ctx context.Context, kind string, before time.Time, yield func(store.Policy) bool) error {
	prefix := nameKey(kindPolicy, kind, "")
	return p.e.each(ctx, prefix, func(k, record []byte) bool {
		one, err := decodePolicy(string(k[len(prefix):]), record)
		return err != nil || !one.Refresh.Before(before) || yield(one)
	})
}

// cluster is a store.Cluster of one node. It ends with the process, as its knowledge does.
type cluster struct {
	start time.Time
	mu    sync.Mutex
	nodes map[string]store.Node // guarded by mu
	leads map[string]leader     // guarded by mu
	now   func() time.Time
}

type leader struct {
	node  string
	until time.Duration
}

func newCluster(now func() time.Time) *cluster {
	return &cluster{start: now(), nodes: make(map[string]store.Node), leads: make(map[string]leader), now: now}
}

// Beat implements store.Cluster.
func (c *cluster) Beat(ctx context.Context, node string, info []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[node] = store.Node{Name: node, Seen: c.now().UTC(), Info: bytes.Clone(info)}
	return nil
}

// Nodes implements store.Cluster.
func (c *cluster) Nodes(ctx context.Context, since time.Time) ([]store.Node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []store.Node
	for _, n := range c.nodes {
		if !n.Seen.Before(since) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b store.Node) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Lead implements store.Cluster.
func (c *cluster) Lead(ctx context.Context, work, node string, lasts time.Duration) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now().Sub(c.start)
	if l, ok := c.leads[work]; ok && l.node != node && l.until > now {
		return false, nil
	}
	c.leads[work] = leader{node, now + lasts}
	return true, nil
}

// Resign implements store.Cluster.
func (c *cluster) Resign(ctx context.Context, work, node string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leads[work].node == node {
		delete(c.leads, work)
	}
	return nil
}
