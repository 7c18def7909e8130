package embedded

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// faults_test.go: power cuts and disks that fail.

const here = store.Destination("here")

// mail is a message for one recipient, whose name is its own.
func mail(t testing.TB, name string) *store.Message {
	t.Helper()
	to, err := smtp.ParsePath("<" + name + "@example.com>")
	if err != nil {
		t.Fatal(err)
	}
	return &store.Message{
		Arrived:    time.Now().UTC().Truncate(time.Microsecond),
		Recipients: []store.Recipient{{Recipient: smtp.Recipient{Path: to}, Destination: here, Due: time.Unix(1, 0)}},
	}
}

// contentOf is what the message of a name holds: some have files of their own.
func contentOf(name string) string {
	n := 100
	if strings.HasSuffix(name, "7") {
		n = maxInline + 1000
	}
	return strings.Repeat(name+"\r\n", n/(len(name)+2)+1)
}

func commit(ctx context.Context, q store.Queue, m *store.Message, content string) (store.ID, error) {
	in, err := q.Begin(ctx, m)
	if err != nil {
		return "", err
	}
	defer in.Abort()
	if _, err := in.Write([]byte(content)); err != nil {
		return "", err
	}
	return in.Commit(ctx)
}

// ledger is what a workload was told.
type ledger struct {
	mu    sync.Mutex
	acked map[string]bool // committed
	begun map[string]bool // whose end has begun: it may be there or not
	told  map[string]bool // ended with a report
}

func newLedger() *ledger {
	return &ledger{acked: make(map[string]bool), begun: make(map[string]bool), told: make(map[string]bool)}
}

func (l *ledger) note(m map[string]bool, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m[name] = true
}

func (l *ledger) copy(m map[string]bool) map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(map[string]bool, len(m))
	for k := range m {
		c[k] = true
	}
	return c
}

// reported tells whether a message ends with a report. It is the same each time that its end
// is tried: after an error the message is leased again, perhaps by another, and an end without
// a report would rightly leave neither.
func reported(name string) bool {
	_, number, _ := strings.Cut(name, "-")
	n, err := strconv.Atoi(number)
	return err == nil && n%3 == 0
}

// work commits and ends messages, one in three with a report, until it made n; errors are
// given to failed, which says whether to go on.
func (l *ledger) work(t testing.TB, q store.Queue, prefix string, n int, failed func(error) bool) {
	ctx := context.Background()
	for i := range n {
		name := fmt.Sprintf("%s-%d", prefix, i)
		if _, err := commit(ctx, q, mail(t, name), contentOf(name)); err != nil {
			if !failed(err) {
				return
			}
		} else {
			l.note(l.acked, name)
		}
		if i%2 == 0 {
			continue
		}
		list, err := q.Lease(ctx, here, time.Now(), 1, time.Hour)
		if err != nil && !failed(err) {
			return
		}
		for _, lease := range list {
			if err := l.finish(t, q, lease); err != nil {
				_ = q.Return(ctx, lease)
				if !failed(err) {
					return
				}
			}
		}
	}
}

func (l *ledger) finish(t testing.TB, q store.Queue, lease *store.Lease) error {
	name := lease.Message.Recipients[0].Path.Local
	l.note(l.begun, name)
	var reports []*store.Report
	if reported(name) {
		l.note(l.told, name)
		reports = []*store.Report{{Message: mail(t, "report-"+name), Content: []byte(contentOf(name))}}
		reports[0].Message.Recipients[0].State = store.Held
	}
	return q.Finish(context.Background(), lease, []store.Outcome{{State: store.Delivered}}, nil, reports...)
}

// found counts messages by name, and looks at their contents.
func found(t testing.TB, q store.Queue) map[string]int {
	t.Helper()
	names := make(map[string]int)
	err := q.List(context.Background(), store.Filter{}, "", func(m *store.Message) bool {
		name := m.Recipients[0].Path.Local
		names[name]++
		c, err := q.Content(context.Background(), m.ID)
		if err != nil {
			t.Errorf("%s: content: %v", name, err)
			return true
		}
		defer c.Close()
		var b strings.Builder
		name = strings.TrimPrefix(name, "report-")
		if _, err := c.WriteTo(&b); err != nil || name[1] == '-' && b.String() != contentOf(name) {
			t.Errorf("%s: content: %d octets, %v", name, b.Len(), err)
		}
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return names
}

// compare holds what is there against what was acknowledged.
func compare(t testing.TB, there map[string]int, acked, begun, told map[string]bool) {
	t.Helper()
	for name, n := range there {
		if n != 1 {
			t.Errorf("%s is there %d times", name, n)
		}
	}
	for name := range acked {
		if !begun[name] && there[name] != 1 {
			t.Errorf("%s was acknowledged, and is not there", name)
		}
		if told[name] && there[name]+there["report-"+name] != 1 {
			t.Errorf("%s: message %d times, report %d times", name, there[name], there["report-"+name])
		}
	}
}

// cutFS makes a picture of the disk after a power cut at each sync.
type cutFS struct {
	vfs.FS
	cut func()
}

type cutFile struct {
	vfs.File
	fs *cutFS
}

func (f *cutFile) Sync() error {
	f.fs.cut()
	defer f.fs.cut()
	return f.File.Sync()
}

func (f *cutFile) SyncData() error {
	f.fs.cut()
	defer f.fs.cut()
	return f.File.SyncData()
}

func (c *cutFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &cutFile{f, c}, nil
}

func (c *cutFS) Create(name string, k vfs.DiskWriteCategory) (vfs.File, error) {
	return c.wrap(c.FS.Create(name, k))
}
func (c *cutFS) OpenDir(name string) (vfs.File, error) { return c.wrap(c.FS.OpenDir(name)) }
func (c *cutFS) ReuseForWrite(old, name string, k vfs.DiskWriteCategory) (vfs.File, error) {
	return c.wrap(c.FS.ReuseForWrite(old, name, k))
}

// TestPowerCut cuts the power before and after each sync of a workload, with several callers
// at once, a database that is small enough to write tables, and some of what was not synced
// on the disk all the same.
func TestPowerCut(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l := newLedger()
	type picture struct {
		fs           *vfs.MemFS
		acked, begun map[string]bool
		told         map[string]bool
	}
	var mu sync.Mutex
	var pictures []picture
	rng := rand.New(rand.NewPCG(1, 2))
	n := 0
	fs := &cutFS{FS: mem, cut: func() {
		mu.Lock()
		defer mu.Unlock()
		// Not all: many syncs are much alike.
		if n++; n > 40 && rng.IntN(6) > 0 {
			return
		}
		cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 0, 50}[rng.IntN(3)], RNG: rng}
		acked := l.copy(l.acked)
		clone := mem.CrashClone(cfg)
		pictures = append(pictures, picture{clone, acked, l.copy(l.begun), l.copy(l.told)})
	}}
	s := open(t, "/data", Options{FS: fs, Memtable: 1 << 20})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			l.work(t, s.Queue(), fmt.Sprint(w), 60, func(err error) bool { t.Error(err); return false })
		})
	}
	wg.Wait()
	closeStore(t, s)

	for i, p := range pictures {
		s, err := Open("/data", Options{FS: p.fs, Memtable: 1 << 20})
		if err != nil {
			t.Errorf("picture %d: %v", i, err)
			continue
		}
		compare(t, found(t, s.Queue()), p.acked, p.begun, p.told)
		if st := s.Stats(); st.Corrupt != 0 {
			t.Errorf("picture %d: %d messages are corrupt", i, st.Corrupt)
		}
		closeStore(t, s)
		if t.Failed() {
			t.Fatalf("picture %d of %d, %d acknowledged", i, len(pictures), len(p.acked))
		}
	}
	t.Logf("%d pictures at %d sync points", len(pictures), n)
}

// faulty lets operations on the disk fail.
type faulty struct {
	count atomic.Int64 // operations so far
	from  atomic.Int64 // the first that fails
	to    atomic.Int64 // the first behind it that does not
	again atomic.Int64 // one more that fails
	err   error
	hit   atomic.Int64
}

func (f *faulty) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead && op.Kind != errorfs.OpOpenDir {
		return nil
	}
	if n := f.count.Add(1); n >= f.from.Load() && n < f.to.Load() || n == f.again.Load() {
		f.hit.Add(1)
		return fmt.Errorf("%v of %s: %w", op.Kind, op.Path, f.err)
	}
	return nil
}

func (f *faulty) String() string { return "faulty" }

// TestDiskFails lets each operation that changes the disk fail in turn: once, or all that
// follow until the disk is mended. Callers get errors, the process lives, and when the disk
// is well again all that was acknowledged is there, in this process and in the next.
func TestDiskFails(t *testing.T) {
	step, most := int64(3), int64(260)
	switch {
	case os.Getenv("PENSTOCK_TORTURE") != "":
		step = 1
	case testing.Short() || raceEnabled:
		step = 17
	}
	for _, tt := range []struct {
		name  string
		lasts int64
		err   error
	}{
		{"once", 1, syscall.EIO},
		{"for long", 1 << 40, syscall.EIO},
		{"full", 1 << 40, syscall.ENOSPC},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var runs, hits, reopened int64
			for at := int64(1); at < most && !t.Failed(); at += step {
				hit, again := failAt(t, at, tt.lasts, tt.err)
				runs, hits, reopened = runs+1, hits+min(hit, 1), reopened+again
			}
			if hits < runs/2 || reopened == 0 {
				t.Errorf("of %d runs %d saw a fault, and the database was opened again %d times: this tests nothing", runs, hits, reopened)
			}
		})
	}
}

func failAt(t *testing.T, at, lasts int64, why error) (hits, reopened int64) {
	mem := vfs.NewMem()
	f := &faulty{err: why}
	o := Options{FS: errorfs.Wrap(mem, f), Memtable: 1 << 20, retry: time.Millisecond, SyncDelay: time.Millisecond}
	s := open(t, "/data", o)
	start := f.count.Load()
	f.to.Store(start + at + lasts)
	f.from.Store(start + at)
	l := newLedger()
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			n := 0
			l.work(t, s.Queue(), fmt.Sprint(w), 40, func(err error) bool {
				if errors.Is(err, syscall.ENOSPC) && !errors.Is(err, store.ErrFull) {
					t.Errorf("full disk: got %v, want ErrFull", err)
				}
				n++
				return n < 10
			})
		})
	}
	wg.Wait()
	f.to.Store(0) // mended
	eventually(t, "the store is well", func() bool {
		_, err := commit(context.Background(), s.Queue(), mail(t, fmt.Sprint("again-", f.count.Load())), "x")
		return err == nil && s.Health(context.Background()) == nil
	})
	check := func(s *Store) {
		t.Helper()
		there := found(t, s.Queue())
		for name := range there {
			if strings.HasPrefix(name, "again-") {
				delete(there, name)
			}
		}
		compare(t, there, l.acked, l.begun, l.told)
		if c, err := s.Queue().Count(context.Background()); err != nil || s.Stats().Corrupt > 0 {
			t.Errorf("counts: got %+v, %v; %d corrupt", c, err, s.Stats().Corrupt)
		}
	}
	check(s)
	reopened = s.Stats().Reopened
	inMemory := counted(s)
	closeStore(t, s)
	s = open(t, "/data", o)
	check(s)
	if again := counted(s); again != inMemory {
		t.Errorf("memory knew %s, the disk %s", inMemory, again)
	}
	closeStore(t, s)
	if t.Failed() {
		t.Logf("operation %d failed, %d in all", at, f.hit.Load())
	}
	return f.hit.Load(), reopened
}

// TestDiskFailsAgain lets an operation fail when the database is being opened again: what was
// to be made good by that must be made good by the next try.
func TestDiskFailsAgain(t *testing.T) {
	runs := make(map[int64]int) // by how often the database was open again
	for at := int64(1); at < 60 && !t.Failed(); at++ {
		runs[failAgain(t, at)]++
	}
	// In the last ones it was open again before the second failure.
	if !t.Failed() && (runs[1] < 10 || runs[2] == 0) {
		t.Errorf("runs by how often the database was open again: %v, this tests too little", runs)
	}
}

func failAgain(t *testing.T, at int64) (reopened int64) {
	ctx := context.Background()
	f := &faulty{err: syscall.EIO}
	o := Options{FS: errorfs.Wrap(vfs.NewMem(), f), Memtable: 1 << 20, retry: time.Millisecond, SyncDelay: time.Hour}
	s := open(t, "/data", o)
	q, l := s.Queue(), newLedger()
	// One end is not synced when the disk fails, and one fails with it, whose report may be there.
	for _, name := range []string{"0-7", "0-3"} {
		if _, err := commit(ctx, q, mail(t, name), contentOf(name)); err != nil {
			t.Fatal(err)
		}
		l.note(l.acked, name)
	}
	list, err := q.Lease(ctx, here, time.Now(), 2, time.Hour)
	if err != nil || len(list) != 2 {
		t.Fatalf("lease: got %v, %v", list, err)
	}
	if reported(list[0].Message.Recipients[0].Path.Local) {
		list[0], list[1] = list[1], list[0]
	}
	if err := l.finish(t, q, list[0]); err != nil {
		t.Fatal(err)
	}
	n := f.count.Load() + 1
	f.again.Store(n + at)
	f.to.Store(n + 1)
	f.from.Store(n)
	// The operation that fails may be one of the database's own, such as the write of the first
	// end, which it does beside; the second is well then, and must be.
	ended := l.finish(t, q, list[1]) == nil
	eventually(t, "the store is well", func() bool {
		_, err := commit(ctx, q, mail(t, fmt.Sprint("again-", f.count.Load())), "x")
		return err == nil && f.hit.Load() == 2 && s.Health(ctx) == nil
	})
	reopened, inMemory := s.Stats().Reopened, counted(s)
	closeStore(t, s)
	s = open(t, "/data", o)
	there := found(t, s.Queue())
	for name := range there {
		if strings.HasPrefix(name, "again-") && there[name] == 1 {
			delete(there, name)
		}
	}
	compare(t, there, l.acked, l.begun, l.told)
	if there["0-7"] > 0 || ended && there["0-3"] > 0 {
		t.Error("what was ended is there again")
	}
	if again := counted(s); again != inMemory || s.Stats().Corrupt > 0 {
		t.Errorf("memory knew %s, the disk %s; %d corrupt", inMemory, again, s.Stats().Corrupt)
	}
	closeStore(t, s)
	if t.Failed() {
		t.Logf("operation %d behind the first failed", at)
	}
	return reopened
}

// TestDoubtBehindUnsynced ends a message for one recipient, which is not synced, and for another
// with a report, which reaches the disk although it is told to have failed. To write the first
// end again must not undo the second, whose report is there.
func TestDoubtBehindUnsynced(t *testing.T) {
	ctx := context.Background()
	f := &faulty{err: syscall.EIO}
	o := Options{FS: errorfs.Wrap(vfs.NewMem(), f), retry: time.Millisecond, SyncDelay: time.Hour}
	s := open(t, "/data", o)
	q := s.Queue()
	m := mail(t, "0-1")
	for _, d := range []store.Destination{"there", "elsewhere"} {
		r := m.Recipients[0]
		r.Destination = d
		m.Recipients = append(m.Recipients, r)
	}
	id, err := commit(ctx, q, m, contentOf("0-1"))
	if err != nil {
		t.Fatal(err)
	}
	var leases []*store.Lease
	for _, d := range []store.Destination{here, "there"} {
		list, err := q.Lease(ctx, d, time.Now(), 1, time.Hour)
		if err != nil || len(list) != 1 {
			t.Fatalf("lease: got %v, %v", list, err)
		}
		leases = append(leases, list[0])
	}
	if err := q.Finish(ctx, leases[0], []store.Outcome{{State: store.Delivered}}, nil); err != nil {
		t.Fatal(err)
	}
	n := f.count.Load() + 2 // the sync behind the write
	f.to.Store(n + 1)
	f.from.Store(n)
	report := &store.Report{Message: mail(t, "report-0-1"), Content: []byte(contentOf("0-1"))}
	if err := q.Finish(ctx, leases[1], []store.Outcome{{State: store.Failed}}, nil, report); err == nil {
		t.Error("the end that the disk failed at: got no error")
	}
	eventually(t, "the store is well", func() bool { return s.Health(ctx) == nil })
	for range 2 {
		if there := found(t, s.Queue()); there["report-0-1"] != 1 || there["0-1"] != 1 {
			t.Errorf("got %v, want the message and the report: this tests nothing", there)
		}
		got, err := s.Queue().Message(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		r := got.Recipients
		if r[0].State != store.Delivered || r[1].State != store.Failed || r[2].State != store.Waiting {
			t.Errorf("states: got %d, %d and %d", r[0].State, r[1].State, r[2].State)
		}
		closeStore(t, s)
		s = open(t, "/data", o)
	}
	closeStore(t, s)
}

func counted(s *Store) string {
	c, err := s.Queue().Count(context.Background())
	return fmt.Sprint(c.Messages, c.Octets, c.Recipients, err)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("it did not happen in time: %s", what)
		case <-tick.C:
		}
	}
}

// TestOpenFails lets each operation of a start fail: Open returns an error and leaves nothing
// behind that keeps the next from opening.
func TestOpenFails(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, "/data", Options{FS: mem, Memtable: 1 << 20})
	l := newLedger()
	l.work(t, s.Queue(), "0", 20, func(err error) bool { t.Error(err); return false })
	closeStore(t, s)
	for at := int64(1); ; at++ {
		f := &faulty{err: syscall.EIO}
		f.from.Store(at)
		f.to.Store(at + 1)
		o := Options{FS: errorfs.Wrap(mem, f), Memtable: 1 << 20, retry: time.Millisecond}
		s, err := Open("/data", o)
		if err == nil {
			closeStore2(s)
		}
		if f.hit.Load() == 0 {
			break
		}
	}
	s = open(t, "/data", Options{FS: mem, Memtable: 1 << 20})
	compare(t, found(t, s.Queue()), l.acked, l.begun, l.told)
	closeStore(t, s)
}

// closeStore2 closes a store whose disk may fail at that.
func closeStore2(s *Store) { _ = s.Close() }

// TestNoFolder: what is no folder is not said to be in use.
func TestNoFolder(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(name, Options{})
	if err == nil {
		closeStore2(s)
	}
	if err == nil || strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("got %v, want an error that says why", err)
	}
}

func TestSecondProcess(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, "/data", Options{FS: fs})
	if _, err := Open("/data", Options{FS: fs}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second: got %v, want an error that says why", err)
	}
	closeStore(t, s)
	closeStore(t, s) // twice is once
	if _, err := s.Queue().Begin(context.Background(), mail(t, "late")); !errors.Is(err, store.ErrClosed) {
		t.Errorf("after Close: got %v, want ErrClosed", err)
	}
	closeStore(t, open(t, "/data", Options{FS: fs}))
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, formatName), []byte("penstock embedded store, version 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "version 9") {
		t.Errorf("got %v, want an error that names the version", err)
	}
}

func TestRoom(t *testing.T) {
	fs := vfs.NewMem()
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 600 << 20, TotalBytes: 100 << 30})
	s := open(t, "/data", Options{FS: fs})
	defer closeStore(t, s)
	ctx := context.Background()
	if _, err := commit(ctx, s.Queue(), mail(t, "first"), "x"); err != nil {
		t.Fatal(err)
	}
	in, err := s.Queue().Begin(ctx, mail(t, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Abort()
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 500 << 20, TotalBytes: 100 << 30})
	s.e.look()
	if _, err := s.Queue().Begin(ctx, mail(t, "second")); !errors.Is(err, store.ErrFull) {
		t.Errorf("begin: got %v, want ErrFull", err)
	}
	if _, err := in.Write(make([]byte, maxInline+1)); !errors.Is(err, store.ErrFull) {
		t.Errorf("large content: got %v, want ErrFull", err)
	}
	if err := s.Health(ctx); !errors.Is(err, store.ErrFull) {
		t.Errorf("health: got %v, want ErrFull", err)
	}
	// What is there can be delivered.
	list, err := s.Queue().Lease(ctx, here, time.Now(), 1, time.Hour)
	if err != nil || len(list) != 1 {
		t.Fatalf("lease: got %v, %v", list, err)
	}
	if err := s.Queue().Finish(ctx, list[0], []store.Outcome{{State: store.Delivered}}, nil); err != nil {
		t.Error(err)
	}
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 5 << 30, TotalBytes: 100 << 30})
	s.e.look()
	if _, err := commit(ctx, s.Queue(), mail(t, "third"), "x"); err != nil {
		t.Error(err)
	}
}

// restoreAgain begins to restore a message that was just ended, with another content of a file
// of its own, while the end is not safe yet and the old file waits for that.
func restoreAgain(t *testing.T, s *Store) (in store.Incoming, id store.ID) {
	t.Helper()
	ctx, q := context.Background(), s.Queue()
	id, err := commit(ctx, q, mail(t, "0-7"), contentOf("0-7"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := q.Lease(ctx, here, time.Now(), 1, time.Hour)
	if err != nil || len(list) != 1 {
		t.Fatalf("lease: got %v, %v", list, err)
	}
	m := mail(t, "1-7")
	m.ID = id
	if in, err = q.Restore(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := q.Finish(ctx, list[0], []store.Outcome{{State: store.Delivered}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte(contentOf("1-7"))); err != nil {
		t.Fatal(err)
	}
	return in, id
}

// TestRestoreAgain restores a message that ended a moment ago. The removal of its old file
// comes late, and must leave the new one alone, before and after the commit.
func TestRestoreAgain(t *testing.T) {
	for _, early := range []bool{true, false} {
		t.Run(fmt.Sprint("early ", early), func(t *testing.T) {
			o := Options{FS: vfs.NewMem(), SyncDelay: time.Hour}
			s := open(t, "/data", o)
			in, id := restoreAgain(t, s)
			remove := func() {
				if err := s.e.flush(); err != nil {
					t.Error(err)
				}
				s.e.finishUp()
				s.sweep(context.Background())
			}
			if early {
				remove()
			}
			if got, err := in.Commit(context.Background()); err != nil || got != id {
				t.Fatalf("commit: got %s, %v", got, err)
			}
			remove()
			for range 2 {
				if there := found(t, s.Queue()); len(there) != 1 || there["1-7"] != 1 {
					t.Errorf("got %v, want the message that was restored", there)
				}
				closeStore(t, s)
				s = open(t, "/data", o)
			}
			closeStore(t, s)
		})
	}
}

// TestRestoreAgainPowerCut cuts the power when the new file has taken the place of the old:
// the records that the old was of must not come back.
func TestRestoreAgainPowerCut(t *testing.T) {
	mem := vfs.NewCrashableMem()
	s := open(t, "/data", Options{FS: mem, SyncDelay: time.Hour})
	in, _ := restoreAgain(t, s)
	cut := mem.CrashClone(vfs.CrashCloneCfg{})
	in.Abort()
	closeStore(t, s)
	s = open(t, "/data", Options{FS: cut})
	defer closeStore(t, s)
	if there := found(t, s.Queue()); len(there) > 0 || s.Stats().Corrupt > 0 {
		t.Errorf("got %v and %d corrupt, want nothing", there, s.Stats().Corrupt)
	}
}
