package filtertest

import (
	"context"
	"fmt"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// native.go: a filter that was compiled natively, as a policy.Filter.

// Load reads the filter's configuration and returns the filter as the gateway's chain
// takes it. The error is the one that would keep the filter from being loaded. o.Name
// defaults to the filter's own name; o.Grants are what the filter may do.
//
// In WebAssembly every session has a copy of the filter's variables. Natively all
// sessions share them: what a handler keeps in a variable, instead of in Event.Session,
// is seen by the next session. Load a filter once: its function for Configure is called
// by each Load.
func Load(f *filter.Filter, o guest.Options) (policy.Filter, error) {
	if o.Name == "" {
		o.Name = f.Name()
	}
	env := guest.NewEnv(o)
	if _, err := f.Init(env); err != nil {
		return nil, fmt.Errorf("filtertest: load %s: %w", o.Name, err)
	}
	o.Setup = env.Setup()
	if o.Told == nil {
		o.Told = new(guest.Told)
	}
	return &native{f, o, env.Hooks()}, nil
}

type native struct {
	filter *filter.Filter
	opts   guest.Options
	stages policy.Stages
}

func (n *native) Name() string          { return n.opts.Name }
func (n *native) Stages() policy.Stages { return n.stages }

func (n *native) Open(context.Context, *policy.Session) (policy.Instance, error) {
	size := mailbox
	if n.stages.Has(policy.StageChunk) {
		size = abi.ChunkMailbox
	}
	return &instance{n.filter, guest.NewEnv(n.opts), make([]byte, size)}, nil
}

// mailbox is as large as that of a WebAssembly build.
const mailbox = 8 << 10

// instance is the filter in one session.
type instance struct {
	filter  *filter.Filter
	env     *guest.Env
	mailbox []byte
}

func (i *instance) Decide(ctx context.Context, e *policy.Event) (policy.Verdict, error) {
	i.env.Begin(ctx, abi.Hook(e.Stage), e)
	defer i.env.End()
	n := i.env.Frame(i.mailbox)
	return i.env.Verdict(abi.Verdict(i.filter.Hook(i.env, uint32(e.Stage), i.mailbox[:n])))
}

func (i *instance) Close() {}
