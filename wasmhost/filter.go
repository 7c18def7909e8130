package wasmhost

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// filter.go: a module with a configuration, as a policy.Filter.

// How long a guest's memory is a session's, in FilterOptions.Instance.
const (
	// InstanceSession is an instance for each session: what the guest keeps in its memory
	// is the session's.
	InstanceSession = "session"
	// InstanceHook is an instance for each call, of a few that there are: a session that
	// waits for its client has no memory of a guest. What the guest keeps for the session
	// it keeps with sess_set.
	InstanceHook = "hook"
	// InstanceShared is a few instances that all sessions share and that are never reset
	// but after a failure: for filters that the operator trusts, and that keep something
	// for all.
	InstanceShared = "shared"
)

// FilterOptions are the settings of a Filter. The zero value of each field means its
// default.
type FilterOptions struct {
	// Name is for logs. Default: the module's.
	Name string
	// Config is the configuration as a JSON text. Default "{}".
	Config []byte
	// Instance is how long a guest's memory is a session's, one of the constants. Default
	// InstanceSession.
	Instance string
	// Limits bound what it may use.
	Limits Limits
	// Boot is the CPU time of a start: start function, _initialize and mg1_init; the time
	// on the wall is ten times as long. Default 1 s, at most 1 min.
	Boot time.Duration
	// Ready is how many instances are made ahead. Default 4, at most 1000; negative makes
	// none.
	Ready int
	// Grants are what it may do beside answering. Default nothing.
	Grants guest.Grants
	// Services are whom its calls that leave the session reach. Default nobody.
	Services guest.Services
	// Log gets what the guest says. Default the runtime's.
	Log *slog.Logger
	// LogLevel is the least level of what the guest says that Log gets, whatever Log's own
	// level is; guest.NoLines is for none. Default Log's.
	LogLevel slog.Leveler
	// Wrap, if not nil, is called once for each session, and for a start, and returns what
	// the guest calls in place of the Host it is given: a recorder of all that enters the
	// guest. It is called by several goroutines at once.
	Wrap func(guest.Host) guest.Host
}

const (
	defaultBoot  = time.Second
	defaultReady = 4
	maxReady     = 1000
	maxConfig    = 1 << 20
)

// Validate returns every problem, joined.
func (o FilterOptions) Validate() error {
	errs := []error{o.Limits.Validate()}
	switch o.Instance {
	case "", InstanceSession, InstanceHook, InstanceShared:
	default:
		errs = append(errs, fmt.Errorf("instance: %q, want %s, %s or %s", o.Instance, InstanceSession, InstanceHook, InstanceShared))
	}
	if o.Boot < 0 || o.Boot > time.Minute {
		errs = append(errs, fmt.Errorf("boot: %v, want at most 1m", o.Boot))
	}
	if o.Ready > maxReady {
		errs = append(errs, fmt.Errorf("ready: %d instances, want at most %d", o.Ready, maxReady))
	}
	if len(o.Config) > maxConfig {
		errs = append(errs, fmt.Errorf("config: %d octets, want at most %d", len(o.Config), maxConfig))
	} else if len(o.Config) > 0 && !json.Valid(o.Config) {
		errs = append(errs, errors.New("config: not a JSON text"))
	}
	return errors.Join(errs...)
}

// withDefaults fills in what is zero.
func (o FilterOptions) withDefaults(m *Module) FilterOptions {
	o.Name = cmp.Or(o.Name, m.name)
	o.Instance = cmp.Or(o.Instance, InstanceSession)
	o.Limits = o.Limits.withDefaults()
	o.Boot = cmp.Or(o.Boot, defaultBoot)
	o.Ready = cmp.Or(o.Ready, defaultReady)
	o.Log = cmp.Or(o.Log, m.rt.opts.Log)
	return o
}

// Filter is a policy.Filter that runs a guest. Safe for concurrent use.
type Filter struct {
	module *Module
	opts   FilterOptions
	env    []string // of the guest

	// What the guest is after its start.
	setup    *guest.Setup
	stages   policy.Stages
	mailbox  mailbox
	start    time.Time
	told     guest.Told
	snapshot *snapshot // nil if each instance has to boot

	rate  atomic.Int64 // nanoseconds that 1024 units of fuel are worth
	whole atomic.Int64 // units that a slice has
	// watch is how many calls are charged by the clock from their beginning, or, below zero,
	// of how many the beginning is noted.
	watch atomic.Int64
	count counters
	pool  pool
	stop  context.CancelFunc
	done  sync.WaitGroup // the goroutine of the pool

	mu       sync.Mutex // guards what follows; no other lock is taken under it
	sessions map[*session]struct{}
	closed   bool
}

// Filter boots a filter: it runs the start of the guest, whose mg1_init reads the
// configuration and chooses the hooks. An error of it is an error here, before any mail.
// Close the filter when no chain uses it any more.
func (m *Module) Filter(ctx context.Context, o FilterOptions) (*Filter, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("wasmhost: filter %s: %w", cmp.Or(o.Name, m.name), err)
	}
	o = o.withDefaults(m)
	if need := int64(m.memory) * pageSize; need > o.Limits.Memory {
		return nil, fmt.Errorf("wasmhost: filter %s: its memory begins with %d octets, its limit is %d", o.Name, need, o.Limits.Memory)
	}
	f := &Filter{module: m, opts: o, sessions: make(map[*session]struct{}), start: time.Now()}
	f.env = f.environ()
	f.setRate(startRate)
	f.initPool()
	if err := f.first(ctx); err != nil {
		return nil, err
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	f.stop = stop
	f.done.Go(func() { f.pool.run(work, f.ready(), f.notAhead) })
	if err := m.rt.keep(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// initPool sizes the pool by the filter's mode.
func (f *Filter) initPool() {
	p := &f.pool
	p.wake = make(chan struct{}, 1)
	p.make = f.another
	cores := runtime.GOMAXPROCS(0)
	switch f.opts.Instance {
	case InstanceHook:
		p.most = 4 * cores
		p.keep = p.most
	case InstanceShared:
		p.most = cores
		p.keep = p.most
	default:
		p.keep = max(f.opts.Ready, 8*cores)
	}
}

// ready is how many instances are made ahead.
func (f *Filter) ready() int { return max(f.opts.Ready, 0) }

// notAhead says that no instance could be made ahead.
func (f *Filter) notAhead(err error) {
	f.opts.Log.Error("filter instance could not be made ahead", "filter", f.opts.Name, "err", err)
}

// first boots the first instance, and learns from it what the filter is.
func (f *Filter) first(ctx context.Context) error {
	in, env, box, err := f.boot(ctx)
	if err != nil {
		return err
	}
	f.setup, f.mailbox = env.Setup(), box
	f.stages = env.Hooks()
	if f.module.resettable && !f.module.rt.opts.BootEach {
		f.snapshot, err = in.snapshot()
	}
	if err != nil || f.snapshot != nil {
		in.destroy()
		return err
	}
	f.pool.live = 1
	f.pool.clean = append(f.pool.clean, in)
	return nil
}

// another makes an instance: as the first was after its start, or by a start of its own.
func (f *Filter) another(ctx context.Context) (*instance, error) {
	if f.module.rt.closed.Load() {
		return nil, because{CauseStopped, errClosed}
	}
	if f.snapshot != nil {
		return f.clone()
	}
	in, env, box, err := f.boot(ctx)
	if err != nil {
		return nil, err
	}
	// The chain knows the first one's hooks, and goes by them.
	if env.Hooks() != f.stages || box != f.mailbox {
		in.destroy()
		return nil, &Error{f.opts.Name, 0, CauseLoad, fmt.Errorf("it chose other hooks than at first, or another mailbox: %s", env.Hooks())}
	}
	return in, nil
}

// boot makes an instance and has its guest start.
func (f *Filter) boot(ctx context.Context) (*instance, *guest.Env, mailbox, error) {
	var in *instance
	env, host := f.newEnv(guest.Options{
		Setup:   f.setup, // nil at the first start
		Charge:  func(octets int64) bool { return in.charge(octets) },
		Outside: func(do func(context.Context)) { in.outside(do) },
	})
	mem, err := newMemory(int(f.opts.Limits.Memory))
	if err != nil {
		return nil, nil, mailbox{}, f.failure(0, because{CauseLoad, err}, env)
	}
	if in, err = f.newInstance(mem); err != nil {
		return nil, nil, mailbox{}, f.failure(0, err, env)
	}
	box, err := in.boot(ctx, env, host)
	if err != nil {
		in.destroy()
		return nil, nil, box, f.failure(0, err, env)
	}
	f.count.booted.Add(1)
	return in, env, box, nil
}

// newEnv returns the host's side of a session or of a start, for which o has what differs.
func (f *Filter) newEnv(o guest.Options) (*guest.Env, guest.Host) {
	o.Name, o.Config, o.Metrics, o.Start = f.opts.Name, f.opts.Config, f.module.rt.opts.Metrics, f.start
	o.Log, o.LogLevel = f.opts.Log, f.opts.LogLevel
	o.LogLines, o.SessionValues = f.opts.Limits.LogLines, int(f.opts.Limits.SessionValues)
	o.Grants, o.Services, o.Told = f.opts.Grants, f.opts.Services, &f.told
	env := guest.NewEnv(o)
	if f.opts.Wrap != nil {
		return env, f.opts.Wrap(env)
	}
	return env, env
}

// failure makes err the error that a caller gets: with the filter's name, and the guest's
// own last words.
func (f *Filter) failure(stage policy.Stage, err error, env *guest.Env) error {
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	cause := CauseTrap
	if b, ok := errors.AsType[because](err); ok {
		cause = b.cause
	}
	if why := env.Complaint(); why != "" && errors.Is(err, errRefuses) {
		err = fmt.Errorf("%w: %s", err, why)
	}
	if tail := env.StderrTail(); tail != "" {
		err = fmt.Errorf("%w\nstderr: %s", err, tail)
	}
	return &Error{f.opts.Name, stage, cause, err}
}

// Name implements policy.Filter.
func (f *Filter) Name() string { return f.opts.Name }

// Stages implements policy.Filter: the hooks that the guest subscribed to.
func (f *Filter) Stages() policy.Stages { return f.stages }

// Open implements policy.Filter. What the guest kept with sess_set lives as long as what is
// returned: after a failure the session begins anew with an empty one.
func (f *Filter) Open(context.Context, *policy.Session) (policy.Instance, error) {
	s := &session{filter: f}
	s.env, s.host = f.newEnv(guest.Options{Setup: f.setup, Charge: s.charge, Outside: s.outside})
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, fmt.Errorf("wasmhost: filter %s: open: %w", f.opts.Name, errClosed)
	}
	f.sessions[s] = struct{}{}
	return s, nil
}

// borrow returns an instance for a session.
func (f *Filter) borrow(ctx context.Context) (*instance, error) {
	return f.pool.take(ctx, f.module.rt.ending.Done(), f.opts.Limits.Wall)
}

// giveBack takes an instance back from a session. failed says that the guest was stopped
// in the middle of something.
func (f *Filter) giveBack(in *instance, failed bool) {
	f.count.sawMemory(int64(in.mem.size))
	if f.opts.Instance == InstanceShared && !failed {
		f.pool.put(in)
		return
	}
	f.pool.give(in)
}

// Close makes Open an error, and frees the instances that no session needs. Sessions that
// are open go on; when the last of them is closed, all is freed. It waits for the goroutine
// that makes instances, and may be called twice.
func (f *Filter) Close() {
	f.mu.Lock()
	closed := f.closed
	f.closed = true
	last := len(f.sessions) == 0
	f.mu.Unlock()
	f.stop()
	f.done.Wait()
	switch {
	case closed:
	case last:
		f.pool.close()
		f.free()
	case f.opts.Instance == InstanceSession: // sessions have theirs
		f.pool.close()
	default:
		f.pool.leaveAlone()
	}
}

// leave ends a session.
func (f *Filter) leave(s *session) {
	f.mu.Lock()
	delete(f.sessions, s)
	last := f.closed && len(f.sessions) == 0
	f.mu.Unlock()
	if last {
		f.done.Wait() // Close may be on its way
		f.pool.close()
		f.free()
	}
}

// free gives back what is left when nobody uses the filter any more.
func (f *Filter) free() {
	if f.snapshot != nil {
		f.snapshot.image.release()
	}
	f.module.rt.drop(f)
}

// shut closes all sessions. It waits for calls that run.
func (f *Filter) shut() {
	f.mu.Lock()
	var all []*session
	for s := range f.sessions {
		all = append(all, s)
	}
	f.mu.Unlock()
	for _, s := range all {
		s.Close()
	}
}
