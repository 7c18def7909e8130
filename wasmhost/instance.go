package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// instance is a guest with its own memory: a policy.Instance. It is for one goroutine at
// a time.
type instance struct {
	filter  *Filter
	env     *guest.Env
	host    guest.Host // env, or what wraps it
	environ []string
	mem     *memory
	guard   *guard

	mu     sync.Mutex // held while the guest runs and while it is closed
	failed bool       // its state is unknown
	mod    api.Module // nil once closed
	hook   api.Function
	ptr    uint32 // the mailbox
	size   uint32
	args   [2]uint64
}

// boot instantiates the module and runs _initialize and mg1_init.
func (in *instance) boot(ctx context.Context) (err error) {
	if in.mem, err = newMemory(uint64(in.filter.opts.Memory)); err != nil {
		return err
	}
	mailbox := []uint64{abi.Minor}
	err = in.guard.call(ctx, in.filter.opts.Boot, func(ctx context.Context) error {
		if err := in.instantiate(ctx); err != nil {
			return err
		}
		if init := in.mod.ExportedFunction(abi.ExportInitialize); init != nil {
			if err := init.CallWithStack(ctx, nil); err != nil {
				return err
			}
		}
		return in.mod.ExportedFunction(abi.ExportInit).CallWithStack(ctx, mailbox)
	})
	if err != nil {
		return err
	}
	if in.ptr, in.size, err = mailboxOf(mailbox[0], in.env.Hooks()); err != nil {
		return err
	}
	if _, ok := in.mod.Memory().Read(in.ptr, in.size); !ok {
		return fmt.Errorf("its mailbox at %#x is outside of its memory", in.ptr)
	}
	in.hook = in.mod.ExportedFunction(abi.ExportHook)
	return nil
}

// instantiate makes the module's instance, which runs its start function.
func (in *instance) instantiate(ctx context.Context) (err error) {
	m := in.filter.module
	in.mod, err = m.rt.wz.InstantiateModule(withMemory(ctx, in.mem), m.compiled, m.rt.config)
	return err
}

// errBusy would be a fault of ours: two sessions in one instance, or one that failed and
// is asked again.
var errBusy = errors.New("wasmhost: instance is in use, failed or closed")

// Decide implements policy.Instance.
func (in *instance) Decide(ctx context.Context, e *policy.Event) (policy.Verdict, error) {
	if !in.mu.TryLock() {
		return policy.Verdict{}, errBusy
	}
	defer in.mu.Unlock()
	if in.mod == nil || in.failed {
		return policy.Verdict{}, errBusy
	}
	v, err := in.decide(ctx, e)
	if err != nil {
		in.failed = true
		err = fmt.Errorf("wasmhost: filter %s at %s: %w", in.filter.opts.Name, e.Stage, in.withStderr(err))
	}
	return v, err
}

func (in *instance) decide(ctx context.Context, e *policy.Event) (v policy.Verdict, err error) {
	hook := abi.Hook(e.Stage)
	if !abi.InSession.Has(hook) {
		return v, fmt.Errorf("%s has no hook %d", abi.Module, hook)
	}
	in.env.Begin(hook, e)
	defer in.env.End()
	mailbox, ok := in.mod.Memory().Read(in.ptr, in.size)
	if !ok {
		return v, errors.New("its mailbox is gone") // memory never shrinks
	}
	in.args = [2]uint64{uint64(hook), uint64(in.host.Frame(mailbox))}
	start := time.Now()
	err = in.guard.call(ctx, in.filter.opts.Wall, func(ctx context.Context) error {
		return in.hook.CallWithStack(ctx, in.args[:])
	})
	if err != nil {
		return v, err
	}
	if time.Since(start) > longCall {
		in.hook = in.mod.ExportedFunction(abi.ExportHook)
	}
	return in.env.Verdict(abi.Verdict(in.args[0]))
}

// longCall is how long a call may last for its stack to be kept. A stack grows with what
// the guest does, on Go's heap, and never shrinks; one that grew large took its time.
const longCall = time.Millisecond

// withStderr adds what the guest printed last.
func (in *instance) withStderr(err error) error {
	if tail := in.env.StderrTail(); tail != "" {
		return fmt.Errorf("%w\nstderr: %s", err, tail)
	}
	return err
}

// Close implements policy.Instance: the memory goes back to the system.
func (in *instance) Close() {
	in.shut()
	in.filter.module.rt.forget(in)
}

// shut waits for a call that runs, and frees what the instance has.
func (in *instance) shut() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mod != nil {
		// An instance that is closed by its own time limit says so again here; there is
		// nothing left to do about it.
		_ = in.mod.Close(context.Background())
		in.mod, in.hook = nil, nil
	}
	in.guard.stop()
	if in.mem != nil {
		in.mem.release()
	}
}
