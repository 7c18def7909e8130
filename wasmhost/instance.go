package wasmhost

import (
	"context"
	"errors"
	"fmt"

	"github.com/tetratelabs/wazero"
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

	mod  api.Module
	hook api.Function
	ptr  uint32 // the mailbox
	size uint32
	args [2]uint64
}

// boot instantiates the module and runs _initialize and mg1_init.
func (in *instance) boot(ctx context.Context) error {
	boot := guard{bootWall}
	err := boot.call(ctx, in, func(ctx context.Context) error {
		ctx = &callContext{withMemory(ctx, uint64(in.filter.opts.Memory)), in}
		config := wazero.NewModuleConfig().WithName("").WithStartFunctions()
		mod, err := in.filter.module.rt.wz.InstantiateModule(ctx, in.filter.module.compiled, config)
		if err != nil {
			return err
		}
		in.mod = mod
		if init := mod.ExportedFunction(abi.ExportInitialize); init != nil {
			if _, err := init.Call(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var mailbox uint64
	err = boot.call(ctx, in, func(ctx context.Context) error {
		res, err := in.mod.ExportedFunction(abi.ExportInit).Call(ctx, abi.Minor)
		if err == nil {
			mailbox = res[0]
		}
		return err
	})
	if err != nil {
		return err
	}
	if in.ptr, in.size, err = mailboxOf(mailbox); err != nil {
		return err
	}
	if _, ok := in.mod.Memory().Read(in.ptr, in.size); !ok {
		return fmt.Errorf("its mailbox at %#x is outside of its memory", in.ptr)
	}
	in.hook = in.mod.ExportedFunction(abi.ExportHook)
	return nil
}

// errBusy would be a fault of ours: two sessions in one instance.
var errBusy = errors.New("wasmhost: instance is in use or closed")

// Decide implements policy.Instance.
func (in *instance) Decide(ctx context.Context, e *policy.Event) (policy.Verdict, error) {
	if in.mod == nil {
		return policy.Verdict{}, errBusy
	}
	in.env.Begin(abi.Hook(e.Stage), e)
	defer in.env.End()
	mailbox, ok := in.mod.Memory().Read(in.ptr, in.size)
	if !ok {
		return policy.Verdict{}, errors.New("wasmhost: mailbox is gone")
	}
	in.args[0], in.args[1] = uint64(e.Stage), uint64(in.env.Frame(mailbox))
	err := in.filter.guard.call(ctx, in, func(ctx context.Context) error {
		return in.hook.CallWithStack(ctx, in.args[:])
	})
	if err != nil {
		if tail := in.env.StderrTail(); tail != "" {
			err = fmt.Errorf("%w\nstderr: %s", err, tail)
		}
		return policy.Verdict{}, err
	}
	return in.env.Verdict(abi.Verdict(in.args[0]))
}

// Close implements policy.Instance: the memory goes back to the system.
func (in *instance) Close() {
	if in.mod == nil {
		return
	}
	// An instance that is closed by its own time limit says so again here; there is
	// nothing left to do about it.
	_ = in.mod.Close(context.Background())
	in.mod, in.hook = nil, nil
}
