package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/penstock/penstock/store"
)

// engine.go: the database, as something that can be written to and read from, and that comes
// back when the disk does.

// Names in the directory.
const (
	lockName    = "LOCK"
	formatName  = "FORMAT"
	formatText  = "penstock embedded store, version 1\n"
	formatBegun = "penstock embedded store, being made\n"
	dbName      = "db"
	bodiesName  = "bodies"
	corruptName = "corrupt"
)

// engine holds the database of a directory.
type engine struct {
	o    Options
	dir  string
	lock io.Closer

	gate sync.RWMutex // held for reading by who uses db, for writing by who replaces it
	db   *pebble.DB   // nil while there is none; guarded by gate
	disk *disk        // the layer below db; guarded by gate
	why  error        // why there is no db; guarded by gate

	// ask is called with messages that are as the new database says.
	ask func(db *pebble.DB, changed [][16]byte) error

	mu       sync.Mutex
	unsynced []unsynced    // guarded by mu: written, and in the log behind the last sync
	first    uint64        // guarded by mu: the number of unsynced[0], counted from the start
	doubts   []doubt       // guarded by mu: what may be on the disk or not
	dirty    chan struct{} // gets a value when unsynced is no longer empty
	done     []func()      // guarded by mu: what waits to be done because a write is safe
	free     atomic.Int64  // octets left on the disk, as last seen; negative if unknown
	total    atomic.Int64
	syncs    atomic.Int64
	corrupt  atomic.Int64
	reopened atomic.Int64
	broken   chan struct{} // gets a value when the disk failed

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// unsynced is a write that is in the log and perhaps not on the disk.
type unsynced struct {
	repr []byte
	// then is called once it is safe, unless it is nil.
	then func()
}

// doubt is a write that failed: the disk may hold it or not.
type doubt struct {
	// refused are messages that must not be there.
	refused [][16]byte
	// changed are messages that are as the disk says.
	changed [][16]byte
	// entered are those of them that entered the queue with the write. If the first is on the
	// disk, so is all of the write.
	entered [][16]byte
	// repr is the write, if messages entered with it.
	repr []byte
}

// openEngine takes the directory and opens the database.
func openEngine(dir string, o Options) (*engine, error) {
	e := &engine{o: o, dir: dir, dirty: make(chan struct{}, 1), broken: make(chan struct{}, 1)}
	if err := e.prepare(); err != nil {
		return nil, err
	}
	db, disk, err := e.openDB()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("embedded: open the database in %s: %w", dir, err), e.lock.Close())
	}
	e.db, e.disk = db, disk
	if err := e.made(); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded: note the format in %s: %w", dir, err), e.close())
	}
	e.look()
	return e, nil
}

// prepare makes the directory, and locks it.
func (e *engine) prepare() (err error) {
	if err := e.makeDir(e.dir); err != nil {
		return fmt.Errorf("embedded: make %s: %w", e.dir, err)
	}
	e.lock, err = e.o.FS.Lock(e.path(lockName))
	if _, ok := errors.AsType[*fs.PathError](err); ok { // the file, and not the lock
		return fmt.Errorf("embedded: %s cannot be used: %w", e.dir, err)
	}
	if err != nil {
		return fmt.Errorf("embedded: %s is in use by another process, or cannot be locked; a running gateway is asked through its admin API: %w", e.dir, err)
	}
	if err := e.layout(); err != nil {
		return errors.Join(err, e.lock.Close())
	}
	return nil
}

// makeDir makes a folder, and those above it, so that a power cut does not take them back.
func (e *engine) makeDir(name string) error {
	if _, err := e.o.FS.Stat(name); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	above := e.o.FS.PathDir(name)
	if above != name {
		if err := e.makeDir(above); err != nil {
			return err
		}
	}
	return errors.Join(e.o.FS.MkdirAll(name, 0o700), e.syncDir(above))
}

// layout looks at the format, and makes the folders. A first start that was cut off leaves
// half a database, in which nothing was promised: it is made anew.
func (e *engine) layout() error {
	made, err := e.format()
	if err != nil {
		return fmt.Errorf("embedded: look at the format of %s: %w", e.dir, err)
	}
	if !made {
		err = e.o.FS.RemoveAll(e.path(dbName))
	}
	names := []string{e.path(dbName), e.path(bodiesName), e.path(corruptName)}
	for _, x := range idLetters {
		names = append(names, e.path(bodiesName, string(x)))
	}
	for _, name := range names {
		err = errors.Join(err, e.o.FS.MkdirAll(name, 0o700))
	}
	if err = errors.Join(err, e.syncDir(e.path(bodiesName)), e.syncDir(e.dir)); err != nil {
		return fmt.Errorf("embedded: prepare %s: %w", e.dir, err)
	}
	return nil
}

// format checks the version of the layout, and tells whether the database was made. If there
// is no version it writes one that says that it is being made.
func (e *engine) format() (made bool, err error) {
	f, err := e.o.FS.Open(e.path(formatName))
	if errors.Is(err, os.ErrNotExist) {
		if list, err := e.o.FS.List(e.path(dbName)); err == nil && len(list) > 0 {
			return false, errors.New("there is a database, and no file FORMAT that tells of what version")
		}
		return false, errors.Join(e.writeFile(e.path(formatName), []byte(formatBegun)), e.syncDir(e.dir))
	} else if err != nil {
		return false, err
	}
	text, err := io.ReadAll(io.LimitReader(f, 1024))
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	switch string(text) {
	case formatText:
		return true, nil
	case formatBegun, "": // an empty file is one that was cut off
		return false, nil
	}
	return false, fmt.Errorf("it is %q, and this program knows %q", strings.TrimSpace(string(text)), strings.TrimSpace(formatText))
}

// made notes that the database was made.
func (e *engine) made() error {
	if made, err := e.format(); made || err != nil {
		return err
	}
	name := e.path(formatName)
	return errors.Join(e.writeFile(name+".new", []byte(formatText)), e.o.FS.Rename(name+".new", name), e.syncDir(e.dir))
}

// writeFile writes and syncs a file; its folder is the caller's.
func (e *engine) writeFile(name string, data []byte) error {
	f, err := e.o.FS.Create(name, "penstock")
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Clone(data)) // a vfs.File may change what it is given
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (e *engine) syncDir(name string) error {
	e.syncs.Add(1)
	return syncFolder(e.o.FS, name)
}

func (e *engine) path(elem ...string) string {
	return e.o.FS.PathJoin(append([]string{e.dir}, elem...)...)
}

// openDB opens the database on a new layer.
func (e *engine) openDB() (*pebble.DB, *disk, error) {
	d := newDisk(e.o.FS, &e.syncs, func() { signal(e.broken) })
	cache := pebble.NewCache(e.o.Cache)
	defer cache.Unref()
	db, err := pebble.Open(e.path(dbName), e.pebbleOptions(d, cache))
	if failure := d.failure(); failure != nil {
		if err == nil {
			e.abandon(db)
		}
		return nil, nil, failure
	}
	if err != nil {
		return nil, nil, err
	}
	return db, d, nil
}

// pebbleOptions are chosen for records that live for seconds, or for hours.
func (e *engine) pebbleOptions(d *disk, cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		FS:                 d,
		Cache:              cache,
		FormatMajorVersion: pebble.FormatValueSeparation,
		Logger:             logger{e.o.Log, d},
		MemTableSize:       uint64(e.o.Memtable),
		// Mail is taken while a table is written; four memtables are some seconds of it.
		MemTableStopWritesThreshold: 4,
		// Keys are small and few; it is better to have more tables for a while than to make
		// callers wait for compactions.
		L0CompactionThreshold: 4,
		L0StopWritesThreshold: 1000,
		LBaseMaxBytes:         64 << 20,
		MaxOpenFiles:          500,
		BytesPerSync:          1 << 20,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { e.o.Log.Error("store: the database complains", "err", err) },
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				e.o.Log.Error("store: a table is corrupt", "err", info.Details, "path", info.Path)
			},
		},
	}
	// A content that is older than a memtable goes to a file of values, which is removed when
	// nothing in it is alive, or when it is half dead and some minutes old. Keys alone are
	// compacted.
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		return pebble.ValueSeparationPolicy{
			Enabled:               true,
			MinimumSize:           512,
			MaxBlobReferenceDepth: 10,
			RewriteMinimumAge:     5 * time.Minute,
			TargetGarbageRatio:    0.5,
		}
	}
	return o
}

// logger takes what the database says. What it calls fatal makes the disk silent.
type logger struct {
	log *slog.Logger
	d   *disk
}

func (l logger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("store: the database says", "text", fmt.Sprintf(format, args...))
	}
}

func (l logger) Errorf(format string, args ...any) {
	l.log.Warn("store: the database says", "text", fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	l.d.fail(fmt.Errorf(format, args...))
}

// outage is the error of a store whose disk fails.
func outage(why error) error {
	if errors.Is(why, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", store.ErrFull, why)
	}
	return fmt.Errorf("embedded: the disk fails: %w", why)
}

// enter lets a caller use the database until leave.
func (e *engine) enter() (*pebble.DB, error) {
	e.gate.RLock()
	if e.db == nil {
		why := e.why
		e.gate.RUnlock()
		if errors.Is(why, store.ErrClosed) {
			return nil, store.ErrClosed
		}
		return nil, outage(why)
	}
	if err := e.disk.failure(); err != nil {
		e.gate.RUnlock()
		return nil, outage(err)
	}
	return e.db, nil
}

func (e *engine) leave() { e.gate.RUnlock() }

// Two ways to write.
const (
	synced = true  // it is safe when write returns
	soon   = false // it is in the log, and safe soon
)

// write writes a batch. If it fails, d tells what must be found out when the disk is back.
// then is called once the write is safe; it may be nil.
func (e *engine) write(sync bool, size int, d doubt, fill func(b *pebble.Batch) error, then func()) error {
	db, err := e.enter()
	if err != nil {
		return err
	}
	defer e.leave()
	b := db.NewBatchWithSize(size)
	if err := fill(b); err != nil {
		return errors.Join(err, b.Close())
	}
	if !sync {
		return e.writeSoon(db, b, d, then)
	}
	if len(d.entered) > 0 {
		d.repr = slices.Clone(b.Repr())
	}
	n := e.pending()
	err = db.Apply(b, pebble.Sync)
	if err == nil {
		err = e.disk.failure()
	}
	if err != nil {
		// The database may still hold the batch: it is not given back.
		e.inDoubt(d)
		return outage(err)
	}
	e.safe(n)
	if then != nil {
		e.later(then)
	}
	return b.Close()
}

func (e *engine) writeSoon(db *pebble.DB, b *pebble.Batch, d doubt, then func()) error {
	u := unsynced{slices.Clone(b.Repr()), then}
	err := db.Apply(b, pebble.NoSync)
	if err == nil {
		err = e.disk.failure()
	}
	if err != nil {
		e.inDoubt(d)
		return outage(err)
	}
	e.mu.Lock()
	e.unsynced = append(e.unsynced, u)
	first := len(e.unsynced) == 1
	e.mu.Unlock()
	if first {
		signal(e.dirty)
	}
	return b.Close()
}

// signal puts a value into a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pending is the number behind the last write that the next sync makes safe.
func (e *engine) pending() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.first + uint64(len(e.unsynced))
}

// safe notes that writes before end are safe.
func (e *engine) safe(end uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if end <= e.first { // another sync was faster
		return
	}
	n := int(end - e.first)
	for _, u := range e.unsynced[:n] {
		if u.then != nil {
			e.done = append(e.done, u.then)
		}
	}
	e.unsynced = slices.Delete(e.unsynced, 0, n)
	e.first = end
	if len(e.done) > 0 {
		signal(e.dirty)
	}
}

// later has the keeper call f.
func (e *engine) later(f func()) {
	e.mu.Lock()
	e.done = append(e.done, f)
	e.mu.Unlock()
	signal(e.dirty)
}

func (e *engine) inDoubt(d doubt) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doubts = append(e.doubts, d)
}

// keep syncs what waits for it, looks after the room on the disk, and opens the database
// again when the disk failed, until ctx ends.
func (e *engine) keep(ctx context.Context) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	sync, retry := stopped(), stopped()
	defer sync.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.dirty:
			sync.Reset(e.o.SyncDelay)
		case <-sync.C:
			_ = e.flush() // the disk knows of a failure, too
		case <-look.C:
			e.look()
		case <-e.broken:
			retry.Reset(0)
		case <-retry.C:
			if err := e.reopen(); err != nil {
				e.o.Log.Error("store: the disk still fails, mail is refused", "err", err)
				retry.Reset(e.o.retry)
			}
		}
		e.finishUp()
	}
}

// stopped is a timer that waits to be set.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// flush syncs what is in the log.
func (e *engine) flush() error {
	if e.pending() == e.synced() {
		return nil
	}
	err := e.write(synced, 16, doubt{}, func(b *pebble.Batch) error { return b.LogData(nil, nil) }, nil)
	if err != nil {
		e.o.Log.Warn("store: sync", "err", err)
	}
	return err
}

// synced is the number of the first write that is not safe.
func (e *engine) synced() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.first
}

// finishUp does what waited for a write to be safe.
func (e *engine) finishUp() {
	e.mu.Lock()
	done := e.done
	e.done = nil
	e.mu.Unlock()
	for _, f := range done {
		f()
	}
}

// look looks how much room is left. A file system that cannot tell has enough.
func (e *engine) look() {
	u, err := e.o.FS.GetDiskUsage(e.dir)
	if err != nil {
		e.free.Store(-1)
		return
	}
	e.total.Store(int64(u.TotalBytes))
	e.free.Store(int64(u.AvailBytes))
}

// room returns ErrFull if the disk is nearly full.
func (e *engine) room() error {
	least := e.o.MinFree
	if least == 0 {
		least = min(512<<20, e.total.Load()/50)
	}
	if free := e.free.Load(); free >= 0 && free < least {
		return fmt.Errorf("%w: %d octets left on the disk, and %d are kept free", store.ErrFull, free, least)
	}
	return nil
}

// reopen replaces the database if its disk failed.
func (e *engine) reopen() error {
	e.gate.Lock()
	old, layer := e.db, e.disk
	if old != nil && layer.failure() == nil {
		e.gate.Unlock()
		return nil
	}
	if old != nil {
		e.db, e.why = nil, layer.failure()
	}
	e.gate.Unlock()
	if old != nil {
		e.o.Log.Error("store: the disk failed, the database is opened again", "err", layer.failure())
		e.abandon(old)
	}
	db, layer, err := e.openDB()
	if err != nil {
		return err
	}
	changed, err := e.agree(db)
	if err == nil {
		err = e.ask(db, changed)
	}
	if err == nil {
		err = layer.failure() // the database is not told of it
	}
	if err != nil {
		layer.fail(err)
		e.abandon(db)
		return err
	}
	e.agreed()
	e.gate.Lock()
	e.db, e.disk, e.why = db, layer, nil
	e.gate.Unlock()
	e.reopened.Add(1)
	e.o.Log.Info("store: the database is open again")
	return nil
}

// abandon closes a database that writes nothing any more. What it says about that does not
// matter.
func (e *engine) abandon(db *pebble.DB) {
	defer func() {
		if r := recover(); r != nil {
			e.o.Log.Error("store: closing the database that failed", "err", r)
		}
	}()
	if err := db.Close(); err != nil {
		e.o.Log.Debug("store: closing the database that failed", "err", err)
	}
}

// agree writes again what was not synced, and removes what was refused. Nobody else writes.
// It returns the messages that are as the database says. All of it is kept until agreed is
// called: the disk may fail once more meanwhile.
func (e *engine) agree(db *pebble.DB) (changed [][16]byte, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var again [][]byte
	for _, u := range e.unsynced {
		again = append(again, u.repr)
	}
	// What was not synced may be older than a write in doubt that changes the same message. If
	// the disk has that, it is written again, too, or its message would be as before and what
	// entered with it would be there all the same.
	for _, d := range e.doubts {
		there, err := d.there(db)
		if err != nil {
			return nil, err
		}
		if there {
			again = append(again, d.repr)
		}
	}
	for _, repr := range again {
		b := db.NewBatch()
		if err := b.SetRepr(slices.Clone(repr)); err != nil {
			return nil, err
		}
		if err := db.Apply(b, pebble.NoSync); err != nil {
			return nil, err
		}
	}
	b := db.NewBatch()
	for _, d := range e.doubts {
		for _, id := range d.refused {
			for _, kind := range recordKinds {
				if err := b.Delete(key(kind, id), nil); err != nil {
					return nil, err
				}
			}
		}
		changed = append(changed, d.changed...)
	}
	if err := b.LogData(nil, nil); err != nil {
		return nil, err
	}
	return changed, db.Apply(b, pebble.Sync)
}

// there tells whether the disk has a write that messages entered the queue with.
func (d *doubt) there(db *pebble.DB) (bool, error) {
	if d.repr == nil {
		return false, nil
	}
	_, err := get(db, key(kindState, d.entered[0]))
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if errors.Is(err, store.ErrCorrupt) { // what is written again is not
		err = nil
	}
	return err == nil, err
}

// agreed notes that the disk and memory are of one mind: what was not synced is safe, and
// nothing is in doubt.
func (e *engine) agreed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, u := range e.unsynced {
		if u.then != nil {
			e.done = append(e.done, u.then)
		}
	}
	e.first += uint64(len(e.unsynced))
	e.unsynced, e.doubts = nil, nil
}

// close syncs, and closes all.
func (e *engine) close() error {
	_ = e.flush() // the disk knows of a failure, too
	e.finishUp()
	e.gate.Lock()
	defer e.gate.Unlock()
	var err error
	if e.db != nil {
		err = e.disk.failure()
		if err2 := e.db.Close(); err == nil && e.disk.failure() == nil {
			err = err2
		}
	}
	e.db, e.why = nil, store.ErrClosed
	if err != nil {
		err = fmt.Errorf("embedded: close the database in %s: %w", e.dir, err)
	}
	return errors.Join(err, e.lock.Close())
}
