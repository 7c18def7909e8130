package guest

import (
	"context"
	"slices"

	"github.com/penstock/penstock/policy"
)

// setup.go: what a guest chose in mg1_init. The numbers that it was given there are in its
// memory; so whoever freezes that memory and goes on with copies of it must go on with the
// Setup too.

// Setup is what a guest chose in mg1_init: its hooks, metrics and sets of patterns. It does
// not change and is safe for concurrent use.
type Setup struct {
	mask    uint64 // subscribed hooks
	metrics []string
	sets    []patterns
}

// Setup returns what the guest chose so far, for Options.Setup of other Envs.
func (g *Env) Setup() *Setup {
	s := g.setup.clone()
	return &s
}

// clone returns a copy that may grow.
func (s *Setup) clone() Setup {
	c := *s
	c.metrics, c.sets = slices.Clone(s.metrics), slices.Clone(s.sets)
	return c
}

// Hooks returns the hooks that the guest subscribed to in this Env, as stages.
func (g *Env) Hooks() policy.Stages { return policy.Stages(g.setup.mask) }

// charge tells the host of work on n octets. If it returns false the guest has used up its
// time, and the work must not be done.
func (g *Env) charge(n int64) bool { return g.opts.Charge == nil || g.opts.Charge(n) }

// outside runs f, which waits for something outside.
func (g *Env) outside(f func(ctx context.Context)) {
	if g.opts.Outside == nil {
		ctx := g.ctx
		if ctx == nil { // in mg1_init
			ctx = context.Background()
		}
		f(ctx)
		return
	}
	g.opts.Outside(f)
}
