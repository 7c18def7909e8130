package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/wasmhost"
)

// filters.go: from the names in the configuration to chains of running filters.

// chainSet is the chains of one configuration and what they hold. Once made it is not
// changed, so what it is made of may be read at any time.
type chainSet struct {
	ledger  *ledger
	chains  map[string]*policy.Chain
	places  map[string][]place // of the chains, in order
	filters []*shared[*wasmhost.Filter]
	modules map[digest]*shared[*wasmhost.Module] // by the binary
}

// place is a filter's place in a chain.
type place struct {
	config.Filter
	digest digest   // of the binary that runs
	asks   []string // by its manifest
	filter *shared[*wasmhost.Filter]
	link   policy.Link
}

// digest is the SHA-256 of a module's binary.
type digest [sha256.Size]byte

const digestPrefix = "sha256:"

// String returns the digest as configuration and API write it.
func (d digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// shared is something that several sets of chains use, and that ends with the last of them.
type shared[T any] struct {
	value T
	end   func()
	users atomic.Int64
}

func share[T any](value T, end func()) *shared[T] {
	s := &shared[T]{value: value, end: end}
	s.users.Store(1)
	return s
}

// acquire adds a user; false if the last one has gone.
func (s *shared[T]) acquire() bool {
	for {
		n := s.users.Load()
		if n == 0 {
			return false
		}
		if s.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release takes a user away.
func (s *shared[T]) release() {
	if s.users.Add(-1) == 0 {
		s.end()
	}
}

// loadChains compiles and boots every filter of c. The problems are all there are; with
// an error among them nothing is left running.
func loadChains(ctx context.Context, rt *wasmhost.Runtime, l *ledger, c *config.Config) (*chainSet, config.Problems) {
	set := newChainSet(l)
	var problems config.Problems
	for name, list := range c.Filters.Chains {
		set.places[name] = nil
		for i, f := range list {
			if f.Module == (config.Module{}) {
				continue // see readFilters
			}
			key := fmt.Sprintf("filters.chains.%s[%d]", name, i)
			if err := set.load(ctx, rt, name, f); err != nil {
				problems = append(problems, c.Problem(key, oneLine(err)))
				continue
			}
			problems = append(problems, ungranted(c, key, f, set.places[name][len(set.places[name])-1].asks)...)
		}
	}
	if problems.Err() != nil {
		set.close()
		return nil, problems
	}
	set.link()
	return set, problems
}

func newChainSet(l *ledger) *chainSet {
	return &chainSet{ledger: l, chains: make(map[string]*policy.Chain), places: make(map[string][]place)}
}

// link makes the chains of the places.
func (set *chainSet) link() {
	for name, places := range set.places {
		links := make([]policy.Link, len(places))
		for i, p := range places {
			links[i] = p.link
		}
		set.chains[name] = policy.NewChain(links...)
	}
}

// errGone: the chains were released, for the gateway ends.
var errGone = errors.New("the gateway ends")

// with returns a set in which wasm is the module at file, and all else is what it is in
// set: the same filters with the instances they have made ahead. It also returns the chains
// that have a new filter. With an error nothing of it is left running.
func (set *chainSet) with(ctx context.Context, rt *wasmhost.Runtime, file string, wasm []byte) (_ *chainSet, changed []string, err error) {
	next := newChainSet(set.ledger)
	defer func() {
		if err != nil {
			next.close()
		}
	}()
	for _, name := range slices.Sorted(maps.Keys(set.places)) {
		next.places[name] = nil
		for _, p := range set.places[name] {
			switch {
			case isFile(p.Module, file):
				if err := next.add(ctx, rt, name, p.Filter, wasm); err != nil {
					return nil, nil, fmt.Errorf("chain %s: %w", name, err)
				}
				changed = append(changed, name)
			case !p.filter.acquire():
				return nil, nil, errGone
			default:
				next.filters = append(next.filters, p.filter)
				next.places[name] = append(next.places[name], p)
			}
		}
	}
	next.link()
	return next, slices.Compact(changed), nil
}

// isFile tells whether a module is the one at file.
func isFile(m config.Module, file string) bool {
	return !m.Builtin && filepath.Clean(m.File) == filepath.Clean(file)
}

// oneLine makes an error that joins several a line of a report.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// load adds a filter to a chain.
func (set *chainSet) load(ctx context.Context, rt *wasmhost.Runtime, chain string, f config.Filter) error {
	wasm, err := moduleBytes(f.Module)
	if err != nil {
		return err
	}
	return set.add(ctx, rt, chain, f, wasm)
}

// add is load for a module that has been read.
func (set *chainSet) add(ctx context.Context, rt *wasmhost.Runtime, chain string, f config.Filter, wasm []byte) error {
	link, err := linkOf(f)
	if err != nil {
		return err
	}
	filter, err := set.boot(ctx, rt, wasm, f.Module.Name, wasmhost.FilterOptions{
		Name: cmp.Or(f.Name, f.Module.Name), Config: f.Config, Instance: string(f.Instance), Limits: wasmhost.Limits{
			Memory: int64(f.Limits.Memory), CPU: f.Limits.CPU, CPUMessage: f.Limits.CPUMessage, CPUPerMiB: f.Limits.CPUPerMiB,
			CPUSession: f.Limits.CPUSession, Wall: f.Limits.Wall,
		},
		Grants: grantsOf(f.Grant),
	})
	if err != nil {
		return err
	}
	link.Filter, link.MayAccept = filter.value, f.Grant.AcceptFinal == config.True
	link.MayRelay = f.Grant.Envelope.Given && f.Grant.Envelope.Relay == config.True
	sum := sha256.Sum256(wasm)
	end, leave := filter.end, set.ledger.enter(chain, sum, &link, hostOf(filter.value))
	filter.end = func() {
		end()
		leave()
	}
	set.places[chain] = append(set.places[chain], place{f, sum, manifestOf(wasm).Capabilities, filter, link})
	return nil
}

// linkOf is what the configuration says of the failures of a filter.
func linkOf(f config.Filter) (l policy.Link, err error) {
	var broken policy.OnError
	l.OnError, l.OnErrorAt, err = onErrors(f.OnError)
	if err != nil {
		return l, err
	}
	if broken, l.OnBroken, err = onErrors(f.OnBroken); err != nil || f.OnBroken[config.DefaultHook] == "" {
		return l, err // where it says nothing, what answers for a failure does
	}
	for _, hook := range config.Hooks() {
		stage, _ := policy.ParseStage(hook)
		if _, ok := l.OnBroken[stage]; !ok {
			l.OnBroken[stage] = broken
		}
	}
	return l, nil
}

// onErrors reads a mapping by hook.
func onErrors(o config.OnErrors) (all policy.OnError, at map[policy.Stage]policy.OnError, err error) {
	at = make(map[policy.Stage]policy.OnError)
	for hook, word := range o {
		parsed, err := policy.ParseOnError(string(word))
		if err != nil {
			return all, at, err
		}
		stage, ok := policy.ParseStage(hook)
		switch {
		case hook == config.DefaultHook:
			all = parsed
		case !ok:
			return all, at, fmt.Errorf("there is no hook %q", hook)
		default:
			at[stage] = parsed
		}
	}
	return all, at, nil
}

// boot makes a filter of a module. Filters of one binary share its compiled code.
func (set *chainSet) boot(ctx context.Context, rt *wasmhost.Runtime, wasm []byte, name string, o wasmhost.FilterOptions) (*shared[*wasmhost.Filter], error) {
	sum := digest(sha256.Sum256(wasm))
	module, ok := set.modules[sum]
	if !ok {
		m, err := rt.Load(ctx, name, wasm)
		if err != nil {
			return nil, err
		}
		module = share(m, func() { _ = m.Close(context.Background()) }) // frees code; it has no error to speak of
		if set.modules == nil {
			set.modules = make(map[digest]*shared[*wasmhost.Module])
		}
		set.modules[sum] = module
	}
	f, err := module.value.Filter(ctx, o)
	if err != nil {
		return nil, err
	}
	module.acquire() // it cannot fail: the set has it too
	filter := share(f, func() {
		f.Close()
		module.release()
	})
	set.filters = append(set.filters, filter)
	return filter, nil
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

// close ends the filters that no other set uses. No session may use the set any more.
func (set *chainSet) close() {
	for _, f := range set.filters {
		f.release()
	}
	for _, m := range set.modules {
		m.release()
	}
}
