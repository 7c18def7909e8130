package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/errand"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// filters.go: from the names in the configuration to chains of running filters.

// chainSet is the chains of one configuration and what they hold. Once made it is not
// changed, so what it is made of may be read at any time.
type chainSet struct {
	ledger  *ledger
	reach   reach
	chains  map[string]*policy.Chain
	places  map[string][]place // of the chains, in order
	filters []*shared[*wasmhost.Filter]
	modules map[digest]func() (*shared[*wasmhost.Module], error) // by the binary
	making  sync.Mutex                                           // of filters and modules, while the set is made
}

// reach makes who runs the errands of a filter.
type reach func(config.Filter) (*errand.Runner, error)

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

// loadChains compiles and boots every filter of c, several at once. The problems are all
// there are; with an error among them nothing is left running.
func loadChains(ctx context.Context, rt *wasmhost.Runtime, l *ledger, out *outside, c *config.Config) (*chainSet, config.Problems) {
	set := newChainSet(l, func(f config.Filter) (*errand.Runner, error) { return out.runner(c, f) })
	type spot struct {
		config.Filter
		chain string
		index int
		place place
		err   error
	}
	var spots []*spot
	for name, list := range c.Filters.Chains {
		set.places[name] = nil
		for i, f := range list {
			if f.Module != (config.Module{}) { // see readFilters
				spots = append(spots, &spot{Filter: f, chain: name, index: i})
			}
		}
	}
	var work sync.WaitGroup
	turns := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, s := range spots {
		turns <- struct{}{}
		work.Go(func() {
			s.place, s.err = set.load(ctx, rt, s.chain, s.Filter)
			<-turns
		})
	}
	work.Wait()
	var problems config.Problems
	for _, s := range spots {
		key := fmt.Sprintf("filters.chains.%s[%d]", s.chain, s.index)
		if s.err != nil {
			problems = append(problems, c.Problem(key, oneLine(s.err)))
			continue
		}
		set.places[s.chain] = append(set.places[s.chain], s.place)
		problems = append(problems, ungranted(c, key, s.Filter, s.place.asks)...)
	}
	if problems.Err() != nil {
		set.close()
		return nil, problems
	}
	set.link()
	return set, problems
}

func newChainSet(l *ledger, reach reach) *chainSet {
	return &chainSet{ledger: l, reach: reach, chains: make(map[string]*policy.Chain), places: make(map[string][]place),
		modules: make(map[digest]func() (*shared[*wasmhost.Module], error))}
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
	next := newChainSet(set.ledger, set.reach)
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
				fresh, err := next.make(ctx, rt, name, p.Filter, wasm)
				if err != nil {
					return nil, nil, fmt.Errorf("chain %s: %w", name, err)
				}
				next.places[name] = append(next.places[name], fresh)
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

// load makes a filter for a place in a chain. It may be called by several goroutines.
func (set *chainSet) load(ctx context.Context, rt *wasmhost.Runtime, chain string, f config.Filter) (place, error) {
	wasm, err := moduleBytes(f.Module)
	if err != nil {
		return place{}, err
	}
	return set.make(ctx, rt, chain, f, wasm)
}

// make is load for a module that has been read.
func (set *chainSet) make(ctx context.Context, rt *wasmhost.Runtime, chain string, f config.Filter, wasm []byte) (place, error) {
	link, err := linkOf(f)
	if err != nil {
		return place{}, err
	}
	runner, err := set.reach(f)
	if err != nil {
		return place{}, err
	}
	filter, err := set.boot(ctx, rt, wasm, f.Module.Name, wasmhost.FilterOptions{
		Name: cmp.Or(f.Name, f.Module.Name), Config: f.Config, Instance: string(f.Instance), Limits: limitsOf(f.Limits), Boot: f.Limits.Boot,
		Grants: grantsOf(f.Grant), Services: runner.Services(), LogLevel: linesOf(f.Log),
	})
	if err != nil {
		runner.Close()
		return place{}, err
	}
	link.Limits = policy.EditLimits{HeaderEdits: f.Limits.HeaderEdits, HeaderSize: int64(f.Limits.HeaderSize),
		Recipients: f.Limits.Recipients, BodyGrowth: int64(f.Limits.BodyGrowth)}
	link.Filter, link.MayAccept = filter.value, f.Grant.AcceptFinal == config.True
	link.MayRelay = f.Grant.Envelope.Given && f.Grant.Envelope.Relay == config.True
	sum := sha256.Sum256(wasm)
	end, leave := filter.end, set.ledger.enter(chain, sum, &link, hostOf(filter.value))
	filter.end = func() {
		end()
		runner.Close()
		leave()
	}
	return place{f, sum, manifestOf(wasm).Capabilities, filter, link}, nil
}

// limitsOf are limits in the words of package wasmhost.
func limitsOf(l config.FilterLimits) wasmhost.Limits {
	return wasmhost.Limits{Memory: int64(l.Memory), Stack: int64(l.Stack), LogLines: l.LogLines, SessionValues: int64(l.SessionValues), CPU: l.CPU, CPUMessage: l.CPUMessage, CPUPerMiB: l.CPUPerMiB,
		CPUSession: l.CPUSession, Wall: l.Wall}
}

// linesOf is the level of a filter's own lines; nil if it has none of its own.
func linesOf(l config.FilterLog) slog.Leveler {
	switch l {
	case "":
		return nil
	case config.FilterLogOff:
		return guest.NoLines
	}
	return levelOf(config.LogLevel(l))
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
	module, err := set.module(ctx, rt, wasm, name)
	if err != nil {
		return nil, err
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
	set.making.Lock()
	defer set.making.Unlock()
	set.filters = append(set.filters, filter)
	return filter, nil
}

// module loads a module, once for all filters of one binary.
func (set *chainSet) module(ctx context.Context, rt *wasmhost.Runtime, wasm []byte, name string) (*shared[*wasmhost.Module], error) {
	sum := digest(sha256.Sum256(wasm))
	set.making.Lock()
	load, ok := set.modules[sum]
	if !ok {
		load = sync.OnceValues(func() (*shared[*wasmhost.Module], error) {
			m, err := rt.Load(ctx, name, wasm)
			if err != nil {
				return nil, err
			}
			return share(m, func() { _ = m.Close(context.Background()) }), nil // frees code; it has no error to speak of
		})
		set.modules[sum] = load
	}
	set.making.Unlock()
	return load()
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
	for _, load := range set.modules { // of which each has been called
		if m, err := load(); err == nil {
			m.release()
		}
	}
}
