package gateway

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// plainLog is a log without times, to be compared.
func plainLog(w *bytes.Buffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// Sessions come and go; each change of the level is logged once.
func TestOverloadSessions(t *testing.T) {
	var log bytes.Buffer
	o := newOverload(overloadSettings{sessions: 100, memory: -1, log: plainLog(&log)})
	for _, step := range []struct {
		to   int64
		want loadLevel
	}{
		{79, loadNormal}, {80, loadStressed}, {75, loadStressed}, {80, loadStressed}, {74, loadNormal}, {79, loadNormal},
		{99, loadStressed}, {100, loadFull}, {95, loadFull}, {94, loadStressed}, {99, loadStressed}, {100, loadFull}, {0, loadNormal},
	} {
		for o.sessions.used.Load() < step.to {
			if !o.enter() {
				t.Fatalf("session %d was refused", o.sessions.used.Load())
			}
		}
		for o.sessions.used.Load() > step.to {
			o.leave()
		}
		if got := o.level(); got != step.want {
			t.Fatalf("%d sessions: %v, want %v", step.to, got, step.want)
		}
	}
	want := `level=WARN msg="load is high" level=stressed reason="sessions: 80 of 100"
level=INFO msg="load is normal again" level=normal
level=WARN msg="load is high" level=stressed reason="sessions: 80 of 100"
level=WARN msg="load is high" level=full reason="sessions: 100 of 100"
level=WARN msg="load is lower, still high" level=stressed reason="sessions: 94 of 100"
level=WARN msg="load is high" level=full reason="sessions: 100 of 100"
level=WARN msg="load is lower, still high" level=stressed reason="sessions: 94 of 100"
level=INFO msg="load is normal again" level=normal
`
	if log.String() != want {
		t.Errorf("got\n%s\nwant\n%s", log.String(), want)
	}
	for range 100 {
		o.enter()
	}
	if o.enter() {
		t.Error("a session too many was let in")
	}
	if c := o.counts(); c.refusedSessions != 1 || c.sessions != 101 || c.becameFull != 3 || c.level != loadFull {
		t.Errorf("%+v", c)
	}
}

// Memory is looked at by run. Garbage turns nobody away, and is looked for no oftener than
// every ten seconds.
func TestOverloadMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		live, garbage, collections := int64(10), int64(0), 0
		set := func(l, g int64) {
			mu.Lock()
			defer mu.Unlock()
			live, garbage = l, g
		}
		o := newOverload(overloadSettings{memory: 100})
		o.measure = func() int64 { mu.Lock(); defer mu.Unlock(); return live + garbage }
		o.collect = func() { mu.Lock(); defer mu.Unlock(); garbage, collections = 0, collections+1 }
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { o.run(ctx) })
		for _, step := range []struct {
			live, garbage int64
			after         time.Duration
			want          loadLevel
			collections   int
		}{
			{10, 0, time.Second, loadNormal, 0},
			{10, 75, time.Second, loadStressed, 0},
			{10, 95, time.Second, loadNormal, 1},
			{10, 95, time.Second, loadFull, 1}, // so much garbage at once: it is load
			{10, 95, 10 * time.Second, loadNormal, 2},
			{90, 10, 10 * time.Second, loadStressed, 3},
			{120, 0, time.Second, loadFull, 3},
			{96, 0, time.Second, loadFull, 3},
			{94, 0, time.Second, loadStressed, 3},
			{10, 0, time.Second, loadNormal, 3},
		} {
			set(step.live, step.garbage)
			time.Sleep(step.after)
			synctest.Wait()
			mu.Lock()
			if o.level() != step.want || collections != step.collections {
				t.Errorf("%+v: %v, %d collections", step, o.level(), collections)
			}
			mu.Unlock()
		}
		set(200, 0)
		time.Sleep(time.Second)
		synctest.Wait()
		if o.enter() {
			t.Error("a session was let in without memory for it")
		}
		o.leave()
		cancel()
		wg.Wait()
	})
}

func TestOverloadSpool(t *testing.T) {
	o := newOverload(overloadSettings{spool: 1000})
	if err := o.reserve(790); err != nil || o.level() != loadNormal {
		t.Error(err, o.level())
	}
	if err := o.reserve(210); err != nil || o.level() != loadStressed {
		t.Error("all of it:", err, o.level())
	}
	r := smtp.ReplyOf(o.reserve(1))
	if r == nil || r.Code != 452 || r.Enh != (smtp.Enhanced{4, 3, 1}) {
		t.Errorf("over the budget: %v", r)
	}
	if o.reserve(math.MaxInt64) == nil {
		t.Error("overflow")
	}
	if !o.enter() {
		t.Error("a full spool turned a session away")
	}
	o.release(1000)
	if c := o.counts(); o.level() != loadNormal || c.refusedSpool != 2 || c.spool != 0 {
		t.Errorf("%v %+v", o.level(), c)
	}
	free := newOverload(overloadSettings{spool: -1, sessions: -1, memory: -1})
	for range 20000 {
		if !free.enter() {
			t.Fatal("no limit is a limit")
		}
	}
	if err := free.reserve(1 << 50); err != nil || free.level() != loadNormal {
		t.Error(err, free.level())
	}
}

func TestOverloadHammer(t *testing.T) {
	o := newOverload(overloadSettings{sessions: 10, spool: 100})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 2000 {
				if o.enter() && o.reserve(10) == nil {
					if used := o.spool.used.Load(); used > 100 {
						t.Errorf("%d octets of 100", used)
					}
					o.release(10)
				}
				o.leave()
			}
		})
	}
	wg.Wait()
	o.sample()
	if c := o.counts(); c.sessions != 0 || c.spool != 0 || c.level != loadNormal {
		t.Errorf("%+v", c)
	}
}

func TestMemoryLimit(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	meminfo := file("MemFree: 1 kB\nMemTotal:       1024 kB\n")
	for _, tc := range []struct {
		name    string
		files   fstest.MapFS
		golimit int64
		want    int64
	}{
		{"nothing is known", fstest.MapFS{}, math.MaxInt64, 0},
		{"GOMEMLIMIT alone", fstest.MapFS{}, 500, 500},
		{"the machine", fstest.MapFS{"proc/meminfo": meminfo}, math.MaxInt64, 1 << 20},
		{"the least counts", fstest.MapFS{"proc/meminfo": meminfo}, 500, 500},
		{"a container", fstest.MapFS{"proc/meminfo": meminfo, "proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("4096\n")}, math.MaxInt64, 4096},
		{"a unit in a slice that is smaller", fstest.MapFS{"proc/self/cgroup": file("0::/system.slice/mail.service\n"),
			"sys/fs/cgroup/system.slice/memory.max": file("8192\n"), "sys/fs/cgroup/system.slice/mail.service/memory.max": file("max\n")}, math.MaxInt64, 8192},
		{"a path from outside", fstest.MapFS{"proc/self/cgroup": file("0::/../../pod\n"), "sys/fs/cgroup/memory.max": file("4096\n")}, math.MaxInt64, 4096},
		{"version 1", fstest.MapFS{"proc/self/cgroup": file("9:cpu:/x\n4:memory:/mail\n0::/\n"), "sys/fs/cgroup/memory/mail/memory.limit_in_bytes": file("2048\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes": file("9223372036854771712\n")}, math.MaxInt64, 2048},
		{"nonsense", fstest.MapFS{"proc/meminfo": file("MemTotal: much kB\n"), "proc/self/cgroup": file("::::\nx\n"), "sys/fs/cgroup/memory.max": file("\x00")}, 7, 7},
	} {
		if got := memoryLimit(tc.files, tc.golimit); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
	if used := memoryInUse(); used < 1<<20 || used > 1<<40 {
		t.Errorf("this process uses %d octets", used)
	}
	if o := newOverload(overloadSettings{}); strings.Contains(o.memory.reason(), "of -") {
		t.Error(o.memory.reason())
	}
}
