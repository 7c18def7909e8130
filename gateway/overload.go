package gateway

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	slashpath "path"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// overload.go: how close the gateway is to what it can bear.
//
// Three things can run out: sessions, memory, and room for messages that are coming in.
// Each has a limit. From 80 % of one the gateway is stressed, at 100 % of sessions or
// memory it is full. A level is left only some way below where it began, so that it does
// not flicker. Room for messages makes the gateway stressed and never full: a message
// that does not fit is refused by itself, and those who are done make room.
//
// Wiring: one per gateway. cmd or Serve runs run and waits for it. A session begins with
// enter (false: 421 4.3.2 and no session) and ends with leave, whatever enter said. level
// is asked wherever a time limit is set: stressed means short ones, for instance a tenth of
// the idle time. A spool calls reserve for what it is about to hold, and release when it
// is closed. counts is for metrics.

// loadLevel is how close the gateway is to a limit.
type loadLevel int32

// The levels, in order.
const (
	loadNormal loadLevel = iota
	loadStressed
	loadFull
)

// String returns the level's name.
func (l loadLevel) String() string { return [...]string{"normal", "stressed", "full"}[l] }

// overloadSettings are the limits. The zero value of each field means its default,
// negative is no limit.
type overloadSettings struct {
	// sessions is how many may be open at a time, of all listeners. Default 10000.
	sessions int64
	// memory is how much the process may use, in octets, as the runtime counts it.
	// Default: 80 % of the least of what the control group and GOMEMLIMIT allow and the
	// machine has; no limit if none of them can be told.
	memory int64
	// spool is how many octets of messages may be under way, in memory and on disk.
	// Default 4 GiB.
	spool int64
	// interval is the time between two looks at the memory. Default 1 s.
	interval time.Duration
	log      *slog.Logger // nil discards
}

// In percent of a limit: where a level begins and where it has ended.
const (
	stressedFrom, stressedUntil = 80, 75
	fullFrom, fullUntil         = 100, 95
)

// collectPause is the least time between two garbage collections of ours.
const collectPause = 10 * time.Second

// gauge is one thing that can run out.
type gauge struct {
	name  string
	limit int64     // not positive is none
	most  loadLevel // that it can cause
	used  atomic.Int64
	level atomic.Int32
}

// next is the level for a use, coming from level.
func (g *gauge) next(level loadLevel, used int64) loadLevel {
	if g.limit <= 0 {
		return loadNormal
	}
	percent := float64(used) / float64(g.limit) * 100
	switch {
	case percent >= fullFrom, level == loadFull && percent >= fullUntil:
		return min(loadFull, g.most)
	case percent >= stressedFrom, level >= loadStressed && percent >= stressedUntil:
		return loadStressed
	}
	return loadNormal
}

// look brings the level up to date and tells whether it changed.
func (g *gauge) look() bool {
	old := loadLevel(g.level.Load())
	next := g.next(old, g.used.Load())
	// If another has changed it meanwhile, it saw a newer use or the next look will.
	return next != old && g.level.CompareAndSwap(int32(old), int32(next))
}

// overload knows the level. It is safe for concurrent use; asking takes no lock.
type overload struct {
	sessions, memory, spool gauge
	current                 atomic.Int32
	refused, noRoom         atomic.Int64
	changes                 [3]atomic.Int64 // into each level

	interval  time.Duration
	measure   func() int64 // the memory in use
	collect   func()       // the garbage
	collected time.Time    // run's own
	log       *slog.Logger

	mu sync.Mutex // held while current changes, so that changes are logged in order
}

// newOverload returns an overload at the normal level.
func newOverload(s overloadSettings) *overload {
	def := func(v, d int64) int64 {
		if v == 0 {
			return d
		}
		return v
	}
	if s.memory == 0 {
		s.memory = memoryLimit(os.DirFS("/"), debug.SetMemoryLimit(-1)) / 100 * 80
	}
	o := &overload{interval: s.interval, measure: memoryInUse, collect: runtime.GC, log: s.log}
	o.sessions.name, o.sessions.limit, o.sessions.most = "sessions", def(s.sessions, 10000), loadFull
	o.memory.name, o.memory.limit, o.memory.most = "memory", s.memory, loadFull
	o.spool.name, o.spool.limit, o.spool.most = "spool", def(s.spool, 4<<30), loadStressed
	if o.interval <= 0 {
		o.interval = time.Second
	}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	return o
}

// run looks at the memory until ctx ends.
func (o *overload) run(ctx context.Context) {
	t := time.NewTicker(o.interval)
	defer t.Stop()
	for {
		o.sample()
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// sample measures, and sets right what looks that overtook each other left.
func (o *overload) sample() {
	if o.memory.limit > 0 {
		o.memory.used.Store(o.measure())
		level := loadLevel(o.memory.level.Load())
		// Of what is in use some is garbage, which the runtime may leave lying for two
		// minutes once there is less to do. Nobody is turned away for that.
		if o.memory.next(level, o.memory.used.Load()) == loadFull && time.Since(o.collected) >= collectPause {
			o.collect()
			o.collected = time.Now()
			o.memory.used.Store(o.measure())
		}
	}
	for _, g := range o.gauges() {
		if g.look() {
			o.update()
		}
	}
}

func (o *overload) gauges() [3]*gauge { return [...]*gauge{&o.sessions, &o.memory, &o.spool} }

// level returns the level.
func (o *overload) level() loadLevel { return loadLevel(o.current.Load()) }

// update takes over the highest level of the three.
func (o *overload) update() {
	o.mu.Lock()
	defer o.mu.Unlock()
	old, next, why := o.level(), loadNormal, &o.sessions
	for _, g := range o.gauges() {
		if l := loadLevel(g.level.Load()); l > next {
			next, why = l, g
		}
	}
	if next == old {
		return
	}
	o.current.Store(int32(next))
	o.changes[next].Add(1)
	switch {
	case next == loadNormal:
		o.log.Info("load is normal again", "level", next.String())
	case next > old:
		o.log.Warn("load is high", "level", next.String(), "reason", why.reason())
	default:
		o.log.Warn("load is lower, still high", "level", next.String(), "reason", why.reason())
	}
}

// reason says what a level is about.
func (g *gauge) reason() string { return fmt.Sprintf("%s: %d of %d", g.name, g.used.Load(), g.limit) }

// add changes what is used of g.
func (o *overload) add(g *gauge, n int64) {
	g.used.Add(n)
	o.changed(g)
}

func (o *overload) changed(g *gauge) {
	if g.look() {
		o.update()
	}
}

// enter counts a session and tells whether there is room for it. In either case leave
// must follow.
func (o *overload) enter() bool {
	full := o.level() == loadFull
	n := o.sessions.used.Add(1)
	o.changed(&o.sessions)
	if full || o.sessions.limit > 0 && n > o.sessions.limit {
		o.refused.Add(1)
		return false
	}
	return true
}

// leave takes a session off.
func (o *overload) leave() { o.add(&o.sessions, -1) }

// reserve takes room for n octets of a message, or returns what to tell the client: 452
// 4.3.1.
func (o *overload) reserve(n int64) error {
	for {
		used := o.spool.used.Load()
		if o.spool.limit > 0 && n > o.spool.limit-used {
			o.noRoom.Add(1)
			return smtp.Refuse(452, smtp.Enhanced{4, 3, 1}, "too much mail is coming in, try again later")
		}
		if o.spool.used.CompareAndSwap(used, used+n) {
			o.changed(&o.spool)
			return nil
		}
	}
}

// release gives room back.
func (o *overload) release(n int64) { o.add(&o.spool, -n) }

// overloadCounts is a look at everything, for metrics.
type overloadCounts struct {
	level                                    loadLevel
	sessions, sessionLimit                   int64
	memory, memoryLimit                      int64 // 0 before the first sample, and without a limit
	spool, spoolLimit                        int64
	refusedSessions, refusedSpool            int64
	becameNormal, becameStressed, becameFull int64
}

func (o *overload) counts() overloadCounts {
	return overloadCounts{
		level:    o.level(),
		sessions: o.sessions.used.Load(), sessionLimit: o.sessions.limit,
		memory: o.memory.used.Load(), memoryLimit: o.memory.limit,
		spool: o.spool.used.Load(), spoolLimit: o.spool.limit,
		refusedSessions: o.refused.Load(), refusedSpool: o.noRoom.Load(),
		becameNormal: o.changes[loadNormal].Load(), becameStressed: o.changes[loadStressed].Load(), becameFull: o.changes[loadFull].Load(),
	}
}

// memoryInUse is what the runtime has from the system and uses: without what it gave back,
// and without free pages of the heap, which are there for the next message.
func memoryInUse() int64 {
	s := []metrics.Sample{
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	var v [3]uint64
	for i := range s {
		if s[i].Value.Kind() == metrics.KindUint64 {
			v[i] = s[i].Value.Uint64()
		}
	}
	return int64(v[0] - min(v[0], v[1]+v[2]))
}

// memoryLimit is the least of what limits our memory: the control groups we are in, the
// machine, and golimit, which is GOMEMLIMIT. 0 if nothing does.
func memoryLimit(root fs.FS, golimit int64) int64 {
	least := int64(math.MaxInt64)
	note := func(v int64, ok bool) {
		if ok && v > 0 {
			least = min(least, v)
		}
	}
	note(golimit, true)
	note(machineMemory(root))
	// A group is bound by those it is in. In a container the path may be one that is seen
	// from outside only; what is at the top is then ours.
	for _, g := range cgroups(root) {
		for p := g.path; ; p = slashpath.Dir(p) {
			note(numberIn(root, slashpath.Join(g.dir, p, g.file)))
			if p == "." || p == "/" {
				break
			}
		}
	}
	if least == math.MaxInt64 {
		return 0
	}
	return least
}

// cgroup is a control group: its path below a folder, and the file of its limit.
type cgroup struct{ dir, path, file string }

// cgroups returns the groups that bind our memory, of both versions of the interface.
func cgroups(root fs.FS) []cgroup {
	v1 := cgroup{"sys/fs/cgroup/memory", ".", "memory.limit_in_bytes"}
	v2 := cgroup{"sys/fs/cgroup", ".", "memory.max"}
	data, _ := fs.ReadFile(root, "proc/self/cgroup") // without it, the top
	for line := range strings.Lines(string(data)) {
		// number:controllers:/path
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			p := slashpath.Clean(strings.TrimPrefix(f[2], "/"))
			switch {
			case f[1] == "":
				v2.path = p
			case f[1] == "memory":
				v1.path = p
			}
		}
	}
	return []cgroup{v1, v2}
}

// numberIn reads a file of one number; "max" is none.
func numberIn(root fs.FS, name string) (int64, bool) {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil
}

// machineMemory is what the machine has, where it has /proc.
func machineMemory(root fs.FS) (int64, bool) {
	data, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, false
	}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err == nil
		}
	}
	return 0, false
}
