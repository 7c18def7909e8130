package wasmhost

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// filter.go: a module with a configuration, as a policy.Filter.

// FilterOptions are the settings of a Filter. The zero value of each field means its
// default.
type FilterOptions struct {
	// Name is for logs. Default: the module's.
	Name string
	// Config is the configuration as a JSON text. Default "{}".
	Config []byte
	// Memory is the most linear memory of one instance, in octets. Default 16 MiB, at
	// most 64 MiB.
	Memory int64
	// Wall is the longest time of one call. Default 5 s.
	Wall time.Duration
	// Boot is the longest time of a start: start function, _initialize and mg1_init.
	// Default 10 s.
	Boot time.Duration
	// Ready is how many instances are made ahead. Default 4, at most 1000; negative makes
	// none.
	Ready int
	// Log gets what the guest says. Default the runtime's.
	Log *slog.Logger
	// Wrap, if not nil, is called once for each instance and returns what the guest calls
	// in place of the Host it is given: a recorder of all that enters the guest. It is
	// called by several goroutines at once.
	Wrap func(guest.Host) guest.Host
}

const (
	defaultMemory = 16 << 20
	defaultWall   = 5 * time.Second
	defaultBoot   = 10 * time.Second
	defaultReady  = 4
	maxReady      = 1000
	maxConfig     = 1 << 20
)

// Validate returns every problem, joined.
func (o FilterOptions) Validate() error {
	var errs []error
	if o.Memory != 0 && (o.Memory < pageSize || o.Memory > maxPages*pageSize) {
		errs = append(errs, fmt.Errorf("memory: %d octets, want %d to %d", o.Memory, pageSize, maxPages*pageSize))
	}
	if o.Wall < 0 || o.Wall > time.Minute {
		errs = append(errs, fmt.Errorf("wall: %v, want at most 1m", o.Wall))
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
	o.Memory = cmp.Or(o.Memory, defaultMemory)
	o.Wall = cmp.Or(o.Wall, defaultWall)
	o.Boot = cmp.Or(o.Boot, defaultBoot)
	o.Ready = cmp.Or(o.Ready, defaultReady)
	o.Log = cmp.Or(o.Log, m.rt.opts.Log)
	return o
}

// Filter is a policy.Filter that runs a guest. Safe for concurrent use.
type Filter struct {
	module *Module
	opts   FilterOptions
	stages policy.Stages

	closed atomic.Bool
	ready  chan *instance // made ahead
	wake   chan struct{}  // one was taken
	stop   context.CancelFunc
	done   sync.WaitGroup // the goroutine that makes them
}

// Filter boots a filter: it makes a first instance, whose mg1_init reads the
// configuration and chooses the hooks. An error of it is an error here, before any mail.
// Close the filter when no chain uses it any more.
func (m *Module) Filter(ctx context.Context, o FilterOptions) (*Filter, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("wasmhost: filter %s: %w", cmp.Or(o.Name, m.name), err)
	}
	o = o.withDefaults(m)
	if need := int64(m.Info().Memory) * pageSize; need > o.Memory {
		return nil, fmt.Errorf("wasmhost: filter %s: its memory begins with %d octets, its limit is %d", o.Name, need, o.Memory)
	}
	f := &Filter{module: m, opts: o}
	first, err := f.newInstance(ctx)
	if err != nil {
		return nil, err
	}
	f.stages = first.env.Hooks()
	f.ready = make(chan *instance, max(o.Ready, 1))
	f.wake = make(chan struct{}, 1)
	f.ready <- first
	fill, stop := context.WithCancel(context.WithoutCancel(ctx))
	f.stop = stop
	f.done.Add(1)
	go f.makeAhead(fill)
	if err := m.rt.keep(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Name implements policy.Filter.
func (f *Filter) Name() string { return f.opts.Name }

// Stages implements policy.Filter: the hooks that the guest subscribed to.
func (f *Filter) Stages() policy.Stages { return f.stages }

// Open implements policy.Filter. The instance is the session's alone. What the guest kept
// with sess_set lives as long as the instance: after a failure the session begins anew
// with an empty one.
func (f *Filter) Open(ctx context.Context, _ *policy.Session) (policy.Instance, error) {
	if f.closed.Load() {
		return nil, fmt.Errorf("wasmhost: filter %s: open: %w", f.opts.Name, errClosed)
	}
	select {
	case in := <-f.ready:
		f.want()
		return in, nil
	default:
	}
	f.want()
	in, err := f.newInstance(ctx)
	if err != nil {
		return nil, err
	}
	if in.env.Hooks() != f.stages {
		in.Close()
		return nil, fmt.Errorf("wasmhost: filter %s: start: it chose other hooks than at first: %s", f.opts.Name, in.env.Hooks())
	}
	return in, nil
}

// want tells makeAhead that an instance was taken.
func (f *Filter) want() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// makeAhead keeps f.ready filled until ctx ends.
func (f *Filter) makeAhead(ctx context.Context) {
	defer f.done.Done()
	for {
		for f.opts.Ready > 0 && len(f.ready) < f.opts.Ready && ctx.Err() == nil {
			in, err := f.newInstance(ctx)
			if err != nil {
				if ctx.Err() == nil {
					f.opts.Log.Error("filter instance could not be made ahead", "filter", f.opts.Name, "err", err)
				}
				break // the session that needs one will try again and report
			}
			f.ready <- in // there is room: this goroutine alone puts
		}
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
	}
}

// Close frees the instances that were made ahead and waits for the goroutine that makes
// them. Sessions that have an instance keep it; Open is an error from now on. It may be
// called twice.
func (f *Filter) Close() {
	f.closed.Store(true)
	f.stop()
	f.done.Wait()
	for {
		select {
		case in := <-f.ready:
			in.Close()
		default:
			f.module.rt.drop(f)
			return
		}
	}
}

// newInstance makes an instance and boots its guest.
func (f *Filter) newInstance(ctx context.Context) (*instance, error) {
	in := &instance{filter: f}
	in.guard = newGuard(in)
	in.env = guest.NewEnv(guest.Options{Name: f.opts.Name, Config: f.opts.Config, Log: f.opts.Log, Metrics: f.module.rt.opts.Metrics})
	in.host = in.env
	if f.opts.Wrap != nil {
		in.host = f.opts.Wrap(in.env)
	}
	// The guest's own collector should work harder before the host's limit ends it.
	in.environ = []string{"GOMEMLIMIT=" + strconv.FormatInt(f.opts.Memory*3/4, 10), "GOMAXPROCS=1"}
	in.mu.Lock()
	err := f.module.rt.enter(in)
	if err == nil {
		err = in.boot(ctx)
	}
	in.mu.Unlock()
	if err != nil {
		if why := in.env.Complaint(); why != "" && errors.Is(err, errRefuses) {
			err = fmt.Errorf("%w: %s", err, why)
		}
		err = fmt.Errorf("wasmhost: filter %s: start: %w", f.opts.Name, in.withStderr(err))
		in.Close()
		return nil, err
	}
	return in, nil
}

// errRefuses: the guest found its configuration wanting, or itself.
var errRefuses = errors.New("it refuses to start")

// mailboxOf unpacks what mg1_init returned, having subscribed to hooks.
func mailboxOf(v uint64, hooks policy.Stages) (ptr, size uint32, err error) {
	if int64(v) < 0 {
		return 0, 0, fmt.Errorf("%w, code %d", errRefuses, int64(v))
	}
	ptr, size = uint32(v>>32), uint32(v)
	if size < abi.MinMailbox || size > abi.MaxMailbox {
		return 0, 0, fmt.Errorf("its mailbox has %d octets, want %d to %d", size, abi.MinMailbox, abi.MaxMailbox)
	}
	if hooks.Has(policy.StageChunk) && size < abi.ChunkMailbox {
		return 0, 0, fmt.Errorf("its mailbox has %d octets, want %d or more for hook chunk", size, abi.ChunkMailbox)
	}
	return ptr, size, nil
}
