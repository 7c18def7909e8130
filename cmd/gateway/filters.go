package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/wasmhost"
)

// filters.go: from the names in the configuration to chains of running filters.

// chainSet is the chains of one configuration and what they hold.
type chainSet struct {
	chains  map[string]*policy.Chain
	filters []*wasmhost.Filter
	modules map[[sha256.Size]byte]*wasmhost.Module // by the digest of the binary
}

// loadChains compiles and boots every filter of c. The problems are all there are; with
// an error among them nothing is left running.
func loadChains(ctx context.Context, rt *wasmhost.Runtime, c *config.Config) (*chainSet, config.Problems) {
	set := &chainSet{chains: make(map[string]*policy.Chain)}
	var problems config.Problems
	for name, list := range c.Filters.Chains {
		var links []policy.Link
		for i, f := range list {
			if f.Module == (config.Module{}) {
				continue // see readFilters
			}
			link, err := set.load(ctx, rt, f)
			if err != nil {
				key := fmt.Sprintf("filters.chains.%s[%d]", name, i)
				problems = append(problems, c.Problem(key, oneLine(err)))
				continue
			}
			links = append(links, link)
		}
		set.chains[name] = policy.NewChain(links...)
	}
	if problems.Err() != nil {
		set.close()
		return nil, problems
	}
	return set, problems
}

// oneLine makes an error that joins several a line of a report.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// load makes one link of a chain.
func (set *chainSet) load(ctx context.Context, rt *wasmhost.Runtime, f config.Filter) (policy.Link, error) {
	onError, err := policy.ParseOnError(string(f.OnError))
	if err != nil {
		return policy.Link{}, err
	}
	wasm, err := moduleBytes(f.Module)
	if err != nil {
		return policy.Link{}, err
	}
	name := f.Name
	if name == "" {
		name = f.Module.Name
	}
	filter, err := set.boot(ctx, rt, wasm, f.Module.Name, wasmhost.FilterOptions{
		Name: name, Config: f.Config, Memory: int64(f.Limits.Memory), Wall: f.Limits.Wall,
	})
	if err != nil {
		return policy.Link{}, err
	}
	return policy.Link{Filter: filter, OnError: onError}, nil
}

// boot makes a filter of a module. Filters of one binary share its compiled code.
func (set *chainSet) boot(ctx context.Context, rt *wasmhost.Runtime, wasm []byte, name string, o wasmhost.FilterOptions) (*wasmhost.Filter, error) {
	digest := sha256.Sum256(wasm)
	module, ok := set.modules[digest]
	if !ok {
		var err error
		if module, err = rt.Load(ctx, name, wasm); err != nil {
			return nil, err
		}
		if set.modules == nil {
			set.modules = make(map[[sha256.Size]byte]*wasmhost.Module)
		}
		set.modules[digest] = module
	}
	f, err := module.Filter(ctx, o)
	if err != nil {
		return nil, err
	}
	set.filters = append(set.filters, f)
	return f, nil
}

var errNotBuilt = errors.New("is known, but this program was built without it: run make filters and build again")

func moduleBytes(m config.Module) ([]byte, error) {
	if !m.Builtin {
		return readRegular(m.File, wasmhost.MaxModule)
	}
	if wasm, ok := filters.Builtin(m.Name); ok {
		return wasm, nil
	}
	for _, known := range filters.Names() {
		if known == m.Name {
			return nil, fmt.Errorf("builtin:%s %w", m.Name, errNotBuilt)
		}
	}
	return nil, fmt.Errorf("there is no builtin:%s; there are %s", m.Name, strings.Join(filters.Names(), ", "))
}

// close ends the filters. No session may use them any more.
func (set *chainSet) close() {
	for _, f := range set.filters {
		f.Close()
	}
	for _, m := range set.modules {
		_ = m.Close(context.Background()) // frees code; it has no error to speak of
	}
}
