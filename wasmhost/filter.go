package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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
	// Ready is how many instances are made ahead. Default 4; negative makes none.
	Ready int
}

const (
	defaultMemory = 16 << 20
	defaultWall   = 5 * time.Second
	bootWall      = 10 * time.Second // for _initialize and mg1_init
)

// Validate returns every problem, joined.
func (o FilterOptions) Validate() error {
	var errs []error
	if o.Memory < 0 || o.Memory > maxPages*pageSize {
		errs = append(errs, fmt.Errorf("memory: %d octets, want at most %d", o.Memory, maxPages*pageSize))
	}
	if o.Wall < 0 || o.Wall > time.Minute {
		errs = append(errs, fmt.Errorf("wall: %v, want at most 1m", o.Wall))
	}
	return errors.Join(errs...)
}

// Filter is a policy.Filter that runs a guest. Safe for concurrent use.
type Filter struct {
	module *Module
	opts   FilterOptions
	stages policy.Stages
	guard  guard
	log    *slog.Logger

	ready chan *instance // made ahead
	wake  chan struct{}  // one was taken
	stop  context.CancelFunc
	done  sync.WaitGroup // the goroutine that makes them
}

// Filter boots a filter: it makes a first instance, whose mg1_init reads the
// configuration and chooses the hooks. An error of it is an error here, before any mail.
func (m *Module) Filter(ctx context.Context, o FilterOptions) (*Filter, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("wasmhost: filter %s: %w", m.name, err)
	}
	if o.Name == "" {
		o.Name = m.name
	}
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	if o.Wall == 0 {
		o.Wall = defaultWall
	}
	if o.Ready == 0 {
		o.Ready = 4
	}
	f := &Filter{module: m, opts: o, guard: guard{o.Wall}, log: m.rt.opts.Log}
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
	return f, nil
}

// Name implements policy.Filter.
func (f *Filter) Name() string { return f.opts.Name }

// Stages implements policy.Filter: the hooks that the guest subscribed to.
func (f *Filter) Stages() policy.Stages { return f.stages }

// Open implements policy.Filter. The instance is the session's alone.
func (f *Filter) Open(ctx context.Context, _ *policy.Session) (policy.Instance, error) {
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
					f.log.Error("filter instance could not be made ahead", "filter", f.opts.Name, "err", err)
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
// them. Sessions that have an instance keep it. The filter is of no use afterwards.
func (f *Filter) Close() {
	f.stop()
	f.done.Wait()
	for {
		select {
		case in := <-f.ready:
			in.Close()
		default:
			return
		}
	}
}

// newInstance makes an instance and boots its guest.
func (f *Filter) newInstance(ctx context.Context) (*instance, error) {
	in := &instance{filter: f}
	in.env = guest.NewEnv(guest.Options{Name: f.opts.Name, Config: f.opts.Config, Log: f.log})
	in.host = in.env
	// The guest's own collector should work harder before the host's limit ends it.
	in.environ = []string{fmt.Sprintf("GOMEMLIMIT=%d", f.opts.Memory*3/4), "GOMAXPROCS=1"}
	if err := in.boot(ctx); err != nil {
		if tail := in.env.StderrTail(); tail != "" {
			err = fmt.Errorf("%w\nstderr: %s", err, tail)
		}
		in.Close()
		return nil, fmt.Errorf("wasmhost: filter %s: start: %w", f.opts.Name, err)
	}
	return in, nil
}

// mailboxOf unpacks what mg1_init returned.
func mailboxOf(v uint64) (ptr, size uint32, err error) {
	if int64(v) < 0 {
		return 0, 0, fmt.Errorf("it refuses to start, code %d; see its log lines", int64(v))
	}
	ptr, size = uint32(v>>32), uint32(v)
	if size < abi.MinMailbox || size > abi.MaxMailbox {
		return 0, 0, fmt.Errorf("its mailbox has %d octets, want %d to %d", size, abi.MinMailbox, abi.MaxMailbox)
	}
	return ptr, size, nil
}
