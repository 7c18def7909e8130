// Package account keeps books on what filters do and what they cost: by filter, by version
// of it, and by the stage at which it is asked.
//
// # The ideas
//
// A [Book] has an account for each filter and version that runs. It belongs to the link of
// a chain, which tells it every answer (policy.Account), so that nothing is looked up on
// the way of a call:
//
//	policy.Run ─ Step ─▶ Account ─ stage ─ one of a few sets of counters, by session
//	                        ▲
//	Book ── Open ───────────┘          Close: the version has ended; the newest few are kept
//	  └──── Filters: what all say together
//
// What a call costs is two additions, or a few more. Sessions are spread over several sets of
// counters, so that cores seldom wait for each other's cache lines.
//
// What the host alone knows (CPU time, memory) it counts itself; an account reads it when
// it is asked, from the function that it was opened with.
//
// What a book remembers is bounded: filters are named by configurations, of which a long
// life sees many, and so are their versions.
//
// # Goroutines and locks
//
// All is safe for concurrent use. A Book's lock is held to open, to close and to read; a
// call takes none.
package account

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/internal/metrics"
	"github.com/penstock/penstock/policy"
)

const (
	// MaxFilters is how many filters are told apart; the rest is counted as [Others].
	MaxFilters = 500
	// Others is the name of those; no filter can be called so.
	Others = "(others)"
	// MaxEnded is how many versions of a filter are kept that run no more.
	MaxEnded = 3
)

// Book is the accounts of all filters. Make it with New.
type Book struct {
	now    func() time.Time
	shards int // sets of counters of a stage; a power of two

	mu      sync.Mutex // guards what follows
	filters map[string]*filter
}

// filter is all of one name.
type filter struct {
	versions []*Account // that run or have run lately, in the order of their first use
	past     *Account   // those that were let go, together; nil for none
}

// New returns an empty Book.
func New() *Book {
	shards := 1
	for shards < min(runtime.GOMAXPROCS(0), 8) {
		shards *= 2
	}
	return &Book{now: time.Now, shards: shards, filters: make(map[string]*filter)}
}

// Host is what the host of a filter knows of it. The zero Host knows nothing.
type Host struct {
	// CPU is the filter's CPU time by stage, its start not included.
	CPU map[policy.Stage]time.Duration
	// Boot is the CPU time of its start.
	Boot time.Duration
	// Ticks is how often the host looked whether it computes for too long.
	Ticks int64
	// Waits is how often it waited for something outside, and Waited for how long.
	Waits  int64
	Waited time.Duration
	// Memory is the most memory that one of its instances had, in octets.
	Memory int64
	// Live is how many instances there are, Made how many were made so far, Booted how many
	// of these by running its start. Resets is how often one was made as new, and Discarded
	// how many were thrown away.
	Live, Made, Booted, Resets, Discarded int64
}

// add adds what another has.
func (h *Host) add(o Host) {
	if h.CPU == nil {
		h.CPU = make(map[policy.Stage]time.Duration)
	}
	for stage, d := range o.CPU {
		h.CPU[stage] += d
	}
	h.Boot += o.Boot
	h.Ticks += o.Ticks
	h.Waits += o.Waits
	h.Waited += o.Waited
	h.Memory = max(h.Memory, o.Memory)
	h.Live += o.Live
	h.Made += o.Made
	h.Booted += o.Booted
	h.Resets += o.Resets
	h.Discarded += o.Discarded
}

// Account is that of one version of a filter. It implements policy.Account.
type Account struct {
	version string
	begun   time.Time
	stages  [lastStage + 1]atomic.Pointer[stageCounts] // nil until it is asked there
	shards  int

	// What follows is guarded by the Book's lock.
	ended time.Time // zero while it runs
	hosts map[*Seat]func() Host
	past  Host // of the seats that were closed
}

const (
	lastStage  = 31 // above all stages that there are, as in package policy
	lastAction = policy.Skip
)

// counts are those of one stage and some of the sessions.
type counts struct {
	took     metrics.Histogram             // its count is that of the calls
	verdicts [lastAction + 1]atomic.Uint64 // but for Continue, which is what is left of them
	failures []atomic.Uint64               // by cause, in the order of causes
	edits    atomic.Uint64
	notAsked atomic.Uint64
	broke    atomic.Uint64
}

// stageCounts is one counts for each shard.
type stageCounts []counts

var causes = policy.Causes()

func newStageCounts(shards int) *stageCounts {
	s := make(stageCounts, shards)
	for i := range s {
		s[i].failures = make([]atomic.Uint64, len(causes))
	}
	return &s
}

// Seat is a place of a filter that runs, and its share in the account.
type Seat struct {
	*Account
	book *Book
	name string
	once sync.Once
}

// Open returns a seat in the account of a version of a filter, which it makes if there is
// none: the filters of one name and version share one. host, if not nil, returns what the
// host of this one knows. Close the seat when the filter runs no more.
func (b *Book) Open(name, version string, host func() Host) *Seat {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.filters[name] == nil && len(b.filters) >= MaxFilters {
		name, version = Others, ""
	}
	f := b.filters[name]
	if f == nil {
		f = &filter{}
		b.filters[name] = f
	}
	i := slices.IndexFunc(f.versions, func(a *Account) bool { return a.version == version })
	if i < 0 {
		i = len(f.versions)
		f.versions = append(f.versions, b.newAccount(version))
	}
	s := &Seat{Account: f.versions[i], book: b, name: name}
	if host == nil {
		host = func() Host { return Host{} }
	}
	s.hosts[s] = host
	s.ended = time.Time{} // it may have come back
	return s
}

func (b *Book) newAccount(version string) *Account {
	return &Account{version: version, begun: b.now(), shards: b.shards, hosts: make(map[*Seat]func() Host)}
}

// Close takes the seat away. What was counted stays. It may be called twice.
func (s *Seat) Close() { s.once.Do(func() { s.book.close(s) }) }

func (b *Book) close(s *Seat) {
	b.mu.Lock()
	defer b.mu.Unlock()
	host := s.hosts[s]()
	host.Live = 0
	s.past.add(host)
	delete(s.hosts, s)
	if len(s.hosts) > 0 {
		return
	}
	s.ended = b.now()
	f := b.filters[s.name]
	ended := slices.DeleteFunc(slices.Clone(f.versions), func(a *Account) bool { return len(a.hosts) > 0 })
	if len(ended) <= MaxEnded {
		return
	}
	oldest := slices.MinFunc(ended, func(a, b *Account) int { return a.ended.Compare(b.ended) })
	if f.past == nil {
		f.past = b.newAccount("")
	}
	f.past.merge(oldest)
	f.versions = slices.DeleteFunc(f.versions, func(a *Account) bool { return a == oldest })
}

// merge adds what another account has. Nobody counts on that one any more.
func (a *Account) merge(o *Account) {
	for i := range o.stages {
		if from := o.stages[i].Load(); from != nil {
			to := &(*a.at(policy.Stage(i)))[0]
			for j := range *from {
				to.merge(&(*from)[j])
			}
		}
	}
	a.past.add(o.host())
	if o.begun.Before(a.begun) {
		a.begun = o.begun
	}
}

func (c *counts) merge(o *counts) {
	c.took.Merge(&o.took)
	for i := range c.verdicts {
		c.verdicts[i].Add(o.verdicts[i].Load())
	}
	for i := range c.failures {
		c.failures[i].Add(o.failures[i].Load())
	}
	c.edits.Add(o.edits.Load())
	c.notAsked.Add(o.notAsked.Load())
	c.broke.Add(o.broke.Load())
}

// host is what the hosts know, together. The Book's lock is held.
func (a *Account) host() Host {
	var h Host
	h.add(a.past)
	for _, f := range a.hosts {
		h.add(f())
	}
	return h
}

// at returns the counters of a stage.
func (a *Account) at(stage policy.Stage) *stageCounts {
	p := &a.stages[stage]
	if s := p.Load(); s != nil {
		return s
	}
	p.CompareAndSwap(nil, newStageCounts(a.shards))
	return p.Load()
}

// Note implements policy.Account.
func (a *Account) Note(s *policy.Session, step *policy.Step) {
	if step.Stage > lastStage || step.Verdict.Action > lastAction {
		return // which this table does not know yet
	}
	all := *a.at(step.Stage)
	c := &all[s.Number&uint64(len(all)-1)]
	if step.Err != nil && !c.failed(step) {
		return
	}
	c.took.Observe(step.Duration)
	if step.Verdict.Action != policy.Continue {
		c.verdicts[step.Verdict.Action].Add(1)
	}
	if n := len(step.Edits); n > 0 {
		c.edits.Add(uint64(n))
	}
}

// Broke counts that the filter was found broken at a stage.
func (a *Account) Broke(stage policy.Stage) { (*a.at(stage))[0].broke.Add(1) }

// failed counts a failure, and tells whether there was a call.
func (c *counts) failed(step *policy.Step) bool {
	if step.Err == policy.ErrBroken {
		c.notAsked.Add(1)
		return false
	}
	c.failures[slices.Index(causes, policy.CauseOf(step.Err))].Add(1)
	return !step.Late
}

// Stage is what a filter did at one stage.
type Stage struct {
	Stage policy.Stage
	// Calls are all answers of the filter, by verdict: for a call that failed, that of its
	// on_error.
	Calls    uint64
	Verdicts map[policy.Action]uint64
	// Failures are those calls that failed, by cause, with what failed after the filter had
	// returned.
	Failures map[string]uint64
	// Broke is how often it was found broken, and NotAsked how often it was passed over
	// since it was.
	Broke, NotAsked uint64
	// Edits are the changes that it made.
	Edits uint64
	// Took is how long the calls took.
	Took Durations
	// CPU is what the filter computed; 0 if nobody knows.
	CPU time.Duration
}

// Durations are those of calls, counted in buckets. The zero Durations is of no use.
type Durations struct{ of *counts }

// Count returns how many there are.
func (d Durations) Count() uint64 { return d.of.took.Count() }

// Sum returns their sum.
func (d Durations) Sum() time.Duration { return d.of.took.Sum() }

// Quantile returns the duration that the share q of all, from 0 to 1, does not exceed, to
// about an eighth.
func (d Durations) Quantile(q float64) time.Duration { return d.of.took.Quantile(q) }

// Snapshot returns how many there are, their sum in seconds, and how many are not above each
// of some bounds in seconds, which double from 1 µs on.
func (d Durations) Snapshot() (count uint64, sum float64, upTo map[float64]uint64) {
	return d.of.took.Snapshot()
}

// Failed returns the number of failures of all causes.
func (s Stage) Failed() (n uint64) {
	for _, v := range s.Failures {
		n += v
	}
	return n
}

// Version is what one version of a filter did.
type Version struct {
	// Version is what it was opened with; empty for versions of which too many have ended to
	// be told apart.
	Version string
	// Begun is when it was first used, Ended when it ran no more; zero if it runs.
	Begun, Ended time.Time
	// Stages are those at which it was asked, in their order.
	Stages []Stage
	Host   Host
}

// CPU is what it computed at all stages.
func (v Version) CPU() (d time.Duration) {
	for _, c := range v.Host.CPU {
		d += c
	}
	return d
}

// Filter is what a filter did.
type Filter struct {
	Name string
	// Total is what all its versions did together. It only grows.
	Total Version
	// Versions are those that run, and the last that ran; the newest first.
	Versions []Version
}

// Filters returns what is in the book, in the order of names.
func (b *Book) Filters() []Filter {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []Filter
	for _, name := range slices.Sorted(maps.Keys(b.filters)) {
		f := b.filters[name]
		out, total := Filter{Name: name}, b.newAccount("")
		total.shards = 1
		if f.past != nil {
			total.merge(f.past)
		}
		for _, a := range slices.Backward(f.versions) {
			total.merge(a)
			out.Versions = append(out.Versions, a.read())
		}
		slices.SortStableFunc(out.Versions, func(a, b Version) int { return cmp.Compare(btoi(!a.Ended.IsZero()), btoi(!b.Ended.IsZero())) })
		out.Total = total.read()
		list = append(list, out)
	}
	return list
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// read returns what the account says. The Book's lock is held.
func (a *Account) read() Version {
	v := Version{Version: a.version, Begun: a.begun, Ended: a.ended, Host: a.host()}
	for i := range a.stages {
		if all := a.stages[i].Load(); all != nil {
			v.Stages = append(v.Stages, all.read(policy.Stage(i), v.Host.CPU[policy.Stage(i)]))
		}
	}
	return v
}

func (all *stageCounts) read(stage policy.Stage, cpu time.Duration) Stage {
	sum := &(*newStageCounts(1))[0]
	for i := range *all {
		sum.merge(&(*all)[i])
	}
	s := Stage{Stage: stage, Verdicts: make(map[policy.Action]uint64), Failures: make(map[string]uint64),
		Calls: sum.took.Count(), Broke: sum.broke.Load(), NotAsked: sum.notAsked.Load(), Edits: sum.edits.Load(), Took: Durations{sum}, CPU: cpu}
	rest := s.Calls
	for i := range sum.verdicts {
		// Of a call that is under way the time may be counted, and not yet the verdict.
		if n := min(sum.verdicts[i].Load(), rest); n > 0 {
			s.Verdicts[policy.Action(i)] = n
			rest -= n
		}
	}
	if rest > 0 {
		s.Verdicts[policy.Continue] = rest
	}
	for i := range sum.failures {
		if n := sum.failures[i].Load(); n > 0 {
			s.Failures[causes[i]] = n
		}
	}
	return s
}
