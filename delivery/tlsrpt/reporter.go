package tlsrpt

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// reporter.go: counts on their way from sessions to the store. Sessions add to the fresh
// counts, under a lock that is never held for longer than that. Run takes them from there into
// counts that are its own, and writes those to the store, by shards: a file a minute for each
// shard with news, however many domains mail goes to.
//
// A set of counts that has grown large is closed, and another begun: each has files of its own.

// Reporter counts sessions and sends the reports about them. Run must be called for anything
// to be kept or sent.
type Reporter struct {
	opts   Options
	sender sender
	name   string // of this process, in the names of its rows
	web    *poster

	// Stats are counted since New.
	Stats Stats

	wake chan struct{}

	mu    sync.Mutex
	fresh map[day]sums // guarded by mu, as is size
	size  int

	sets map[day]*set // what flush alone knows

	// What send alone knows: shards with something to be tried again, and when; and when Lead
	// said last that we are to send.
	later map[string]time.Time
	led   time.Time
}

// Stats are counters, each safe to be read at any time.
type Stats struct {
	Recorded atomic.Int64 // events
	Dropped  atomic.Int64 // of them, for want of room
	Sent     atomic.Int64 // reports that a destination took
	Failed   atomic.Int64 // reports that none took in a day
}

// set is what is counted of a day under one name. Not yet written shards are dirty.
type set struct {
	number int
	size   int
	parts  [shards]sums
	dirty  [shards]bool
}

// New returns a Reporter. Its error joins all problems of the options.
func New(o Options) (*Reporter, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("tlsrpt: %w", err)
	}
	o = o.withDefaults()
	return &Reporter{opts: o, sender: o.sender(), name: randomName(), web: newPoster(o), wake: make(chan struct{}, 1),
		fresh: make(map[day]sums), sets: make(map[day]*set), later: make(map[string]time.Time)}, nil
}

var _ Recorder = (*Reporter)(nil)

// Record implements Recorder.
func (r *Reporter) Record(e Event) {
	domain := strings.ToLower(strings.TrimSuffix(e.Domain, "."))
	if !isName(domain) {
		return
	}
	r.Stats.Recorded.Add(1)
	p := e.Policy.clean(domain)
	var f *Failure
	if e.Failure != nil {
		c := e.Failure.clean()
		f = &c
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size > r.opts.Memory {
		r.Stats.Dropped.Add(1)
		return
	}
	d := countedOn(e.Time, time.Now())
	if r.fresh[d] == nil {
		r.fresh[d] = make(sums)
	}
	if r.size += r.fresh[d].add(domain, p, f, 1); r.size > r.opts.Memory/2 {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// settle is how long after its end a day still takes events, and after twice that its rows are
// read: all nodes have written theirs by then.
const settle = 5 * time.Minute

// countedOn is the day of an event. One that is told of too late counts for today: its day may
// have been told already.
func countedOn(at, now time.Time) day {
	if at.IsZero() || at.After(now) || dayOf(at) != dayOf(now.Add(-settle)) {
		at = now
	}
	return dayOf(at)
}

// Run writes counts to the store and sends reports until ctx ends, and then writes what is
// left. Failures are logged, and tried again.
func (r *Reporter) Run(ctx context.Context) {
	defer r.web.close()
	flush := time.NewTicker(r.opts.FlushEvery)
	defer flush.Stop()
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() { r.send(ctx) })
	for {
		select {
		case <-flush.C:
		case <-r.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			r.flush(last)
			return
		}
		r.flush(ctx)
	}
}

// maxSets is how many sets a process begins on one day, so that the store does not grow without
// bound either.
const maxSets = 16

// lastFlush is how long the counts of a Reporter that ends may take to be written.
const lastFlush = 5 * time.Second

// flush takes the fresh counts and writes the shards that changed.
func (r *Reporter) flush(ctx context.Context) {
	r.mu.Lock()
	fresh := r.fresh
	r.fresh, r.size = make(map[day]sums), 0
	r.mu.Unlock()
	for d, s := range fresh {
		r.take(d, s)
	}
	for d, s := range r.sets {
		if err := r.write(ctx, d, s); err != nil {
			if ctx.Err() == nil {
				r.opts.Log.Warn("counts of TLS sessions could not be stored, trying again", "err", err)
			}
			return
		}
		if s.size > r.opts.Memory && s.number < maxSets {
			r.sets[d] = &set{number: s.number + 1}
		}
		if time.Now().After(d.end().Add(settle)) {
			delete(r.sets, d)
		}
	}
}

// take adds fresh counts to those of a day. While the store takes nothing the set does not
// grow without end: what is beyond is lost.
func (r *Reporter) take(d day, fresh sums) {
	s := r.sets[d]
	if s == nil {
		s = &set{}
		r.sets[d] = s
	}
	for domain, sum := range fresh {
		if s.size > 2*r.opts.Memory {
			r.Stats.Dropped.Add(sum.events())
			continue
		}
		i := shardOf(domain)
		if s.parts[i] == nil {
			s.parts[i] = make(sums)
		}
		s.size += s.parts[i].merge(sums{domain: sum})
		s.dirty[i] = true
	}
}

// events is how many events were counted.
func (d *domainSum) events() (n int64) {
	for _, p := range d.policies {
		n += p.ok + p.failed
	}
	return n
}

// write writes the shards of a set that changed.
func (r *Reporter) write(ctx context.Context, d day, s *set) error {
	for i, dirty := range s.dirty {
		if !dirty {
			continue
		}
		data, err := s.parts[i].encode()
		if err == nil {
			err = r.opts.Files.Write(ctx, path.Join(shardFolder(d, i), fmt.Sprintf("%s-%d", r.name, s.number)), data)
		}
		if err != nil {
			return fmt.Errorf("tlsrpt: counts of %s: %w", d, err)
		}
		s.dirty[i] = false
	}
	return nil
}

// readShard adds up what all nodes have written of a shard.
func (r *Reporter) readShard(ctx context.Context, d day, shard int) (sums, error) {
	folder := shardFolder(d, shard)
	names, err := list(ctx, r.opts.Files, folder)
	if err != nil {
		return nil, err
	}
	all := make(sums)
	for _, name := range names {
		data, err := r.opts.Files.Read(ctx, path.Join(folder, name))
		if err != nil {
			return nil, fmt.Errorf("tlsrpt: counts of %s: %w", d, err)
		}
		// What one node wrote and cannot be read must not keep the rest back.
		if err := all.decode(data); err != nil {
			r.opts.Log.Error("counts of TLS sessions cannot be read, and are left out", "row", name, "err", err)
		}
	}
	return all, nil
}

var errNotLeader = errors.New("tlsrpt: another node sends reports now")
