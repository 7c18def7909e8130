package embedded

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/penstock/penstock/store"
)

// embedded.go: the store as a whole, and what happens when it starts.

// Store is a store.Store in a directory.
type Store struct {
	e       *engine
	q       *queue
	kv      *kv
	files   *files
	modules *modules
	cluster *cluster
	// closed is closed by Close, once.
	closing chan struct{}
	closed  chan struct{}
	err     error
}

var _ store.Store = (*Store)(nil)

// Open opens the store in a directory, which it makes if there is none. It returns an error
// if another process has it open.
func Open(dir string, o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	e, err := openEngine(dir, o.withDefaults())
	if err != nil {
		return nil, err
	}
	s := &Store{e: e, q: newQueue(e), kv: newKV(e), files: newFiles(e), modules: &modules{e: e}, cluster: newCluster(e.o.Now),
		closing: make(chan struct{}, 1), closed: make(chan struct{})}
	s.closing <- struct{}{}
	e.ask = s.ask
	if err := s.q.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded: read the queue in %s: %w", dir, err), e.close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	e.wg.Go(func() { e.keep(ctx) })
	e.wg.Go(func() { s.housekeep(ctx) })
	return s, nil
}

// Queue implements store.Store.
func (s *Store) Queue() store.Queue { return s.q }

// Modules implements store.Store.
func (s *Store) Modules() store.Modules { return s.modules }

// KV implements store.Store.
func (s *Store) KV() store.KV { return s.kv }

// Files implements store.Store.
func (s *Store) Files() store.Files { return s.files }

// Policies implements store.Store.
func (s *Store) Policies() store.Policies { return policies{s.e} }

// Cluster implements store.Store.
func (s *Store) Cluster() store.Cluster { return s.cluster }

// Health implements store.Store: the database is open, and there is room on the disk.
func (s *Store) Health(context.Context) error {
	if _, err := s.e.enter(); err != nil {
		return err
	}
	s.e.leave()
	return s.e.room()
}

// Close implements store.Store. It may be called twice.
func (s *Store) Close() error {
	if _, first := <-s.closing; first {
		close(s.closing)
		s.e.cancel()
		s.e.wg.Wait()
		s.err = s.e.close()
		close(s.closed)
	}
	<-s.closed
	return s.err
}

// Stats are figures of a store since it was opened.
type Stats struct {
	// Syncs counts syncs of files and folders.
	Syncs int64
	// Corrupt counts messages that were set aside.
	Corrupt int64
	// Reopened counts how often the disk failed and came back.
	Reopened int64
	// Free is the room on the disk in octets, as last seen; negative if it is not known.
	Free int64
	// Written are octets that the database wrote: Log to its log, Flushed and Compacted to
	// tables.
	Log, Flushed, Compacted uint64
	// Size is the size of the database in octets, without contents in files.
	Size uint64
}

// Stats returns figures.
func (s *Store) Stats() Stats {
	e := s.e
	st := Stats{Syncs: e.syncs.Load(), Corrupt: e.corrupt.Load(), Reopened: e.reopened.Load(), Free: e.free.Load()}
	db, err := e.enter()
	if err != nil {
		return st
	}
	defer e.leave()
	m := db.Metrics()
	st.Log, st.Size = m.WAL.BytesWritten, m.DiskSpaceUsage()
	for _, l := range m.Levels {
		st.Flushed += l.TableBytesFlushed + l.BlobBytesFlushed
		st.Compacted += l.TableBytesCompacted + l.BlobBytesCompacted
	}
	return st
}

// housekeep ends leases that ran out, and sweeps, until ctx ends.
func (s *Store) housekeep(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	sweep := time.NewTicker(s.e.o.Sweep)
	defer sweep.Stop()
	s.sweep(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.q.tick()
		case <-sweep.C:
			s.sweep(ctx)
		}
	}
}

// sweep removes what nobody needs: contents without a message, and values that ran out.
func (s *Store) sweep(ctx context.Context) {
	for _, x := range idLetters {
		s.q.sweepFolder(ctx, string(x))
	}
	s.kv.sweep(ctx)
}

// sweepFolder removes contents whose message is not there, and is not about to be.
func (q *queue) sweepFolder(ctx context.Context, folder string) {
	names, err := q.e.o.FS.List(q.e.path(bodiesName, folder))
	if err != nil {
		q.e.o.Log.Warn("store: sweep contents", "err", err)
		return
	}
	for _, name := range names {
		id := store.ID(name)
		raw, ok := id.Bytes()
		if ctx.Err() != nil {
			return
		}
		if ok && q.dropBody(raw) {
			q.e.o.Log.Info("store: content without a message was removed", "msg", id)
		}
	}
}

// dropBody removes a content that nobody needs, and tells whether it did. The lock of the
// message keeps others from making the file anew meanwhile: a message that ended may be
// restored before the file that it had is gone.
func (q *queue) dropBody(raw [16]byte) bool {
	unlock := q.hold(raw)
	defer unlock()
	id := store.IDFromBytes(raw)
	if q.needsFile(id, raw) {
		return false
	}
	q.e.removeBody(id)
	return true
}

func (q *queue) needsFile(id store.ID, raw [16]byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, writing := q.writing[id]
	return writing || q.ix.entries[raw] != nil || q.e.doubted()
}

// doubted tells whether the disk may hold records that memory does not know.
func (e *engine) doubted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.doubts) > 0
}

// load makes memory from the states of messages.
func (q *queue) load() error {
	db, err := q.e.enter()
	if err != nil {
		return err
	}
	bad, last, err := q.scan(db)
	q.e.leave()
	if err != nil {
		return err
	}
	for id, why := range bad {
		q.e.setAside(id, false, why)
	}
	q.ids.After(store.IDFromBytes(last))
	return nil
}

// scan reads all states. What cannot be read is returned, by ID.
func (q *queue) scan(db *pebble.DB) (bad map[[16]byte]error, last [16]byte, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	bad = make(map[[16]byte]error)
	from := []byte{kindState}
	for gap := time.Millisecond; ; gap *= 2 {
		before := last
		last, err = q.scanFrom(db, from, last, bad)
		if err == nil || !pebble.IsCorruptionError(err) || gap > maxGap {
			return bad, last, err
		}
		// A block of a table is corrupt. What is in it is lost to us; IDs begin with a time, and
		// so we go on a little later, each time further.
		q.e.corrupt.Add(1)
		if last != before {
			gap = time.Millisecond
		}
		q.e.o.Log.Error("store: messages cannot be read, a part of a table is corrupt",
			"behind", store.IDFromBytes(last), "skipped", gap, "err", err)
		at := last
		if at == ([16]byte{}) {
			at = firstEnvelope(db)
		}
		from = key(kindState, later(at, gap))
	}
}

// firstEnvelope is the ID of the first message, where its state does not tell.
func firstEnvelope(db *pebble.DB) (id [16]byte) {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{kindEnvelope}, UpperBound: []byte{kindEnvelope + 1}})
	if err != nil {
		return id
	}
	if it.First() && len(it.Key()) == 17 {
		id = [16]byte(it.Key()[1:])
	}
	_ = it.Close() // what it could not read is reported elsewhere
	return id
}

// maxGap is more than all the time that IDs can tell of.
const maxGap = 1 << 61

// later is the first ID that much later.
func later(id [16]byte, d time.Duration) (n [16]byte) {
	micros := binary.BigEndian.Uint64(id[:])>>8 + uint64(d.Microseconds())
	binary.BigEndian.PutUint64(n[:], min(micros, 1<<56-1)<<8)
	return n
}

// scanFrom reads states from a key on, and returns the last ID that it saw.
func (q *queue) scanFrom(db *pebble.DB, from []byte, last [16]byte, bad map[[16]byte]error) ([16]byte, error) {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: []byte{kindState + 1}})
	if err != nil {
		return last, err
	}
	var st state
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()
		if len(k) != 17 {
			continue
		}
		last = [16]byte(k[1:])
		v, err := it.ValueAndErr()
		if err == nil {
			v, err = unseal(k, v)
		}
		if err == nil {
			err = broken("state", decodeState(v, &st))
		}
		if err == nil && !st.alive() {
			err = broken("a state without work", errRecord)
		}
		if err != nil {
			bad[last] = err
			continue
		}
		q.ix.add(last, &st)
	}
	return last, it.Close()
}

// ask makes messages in memory what a new database says of them, where they differ.
func (s *Store) ask(db *pebble.DB, changed [][16]byte) error {
	for _, id := range changed {
		if err := s.q.ask(db, id); err != nil {
			return err
		}
	}
	s.kv.forget()
	return nil
}

func (q *queue) ask(db *pebble.DB, id [16]byte) error {
	unlock := q.hold(id)
	defer unlock()
	record, err := get(db, key(kindState, id))
	if err == nil {
		_, err = get(db, key(kindEnvelope, id))
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrCorrupt) {
		return err
	}
	there := err == nil
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.ix.entries[id]
	if e != nil && there && bytes.Equal(record, appendState(nil, e.state())) {
		return nil
	}
	if e != nil {
		q.ix.discard(e)
	}
	if !there {
		return db.Delete(key(kindState, id), pebble.Sync)
	}
	var st state
	if err := decodeState(record, &st); err != nil {
		return err
	}
	st.recipients = slices.Clone(st.recipients)
	q.ix.add(id, &st)
	q.wakes.wake()
	return nil
}
