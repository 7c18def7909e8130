// Package wasmhost runs WebAssembly guests that speak mg1 as policy filters. It is built
// on wazero, which it keeps to itself.
//
// # The ideas
//
// There is one [Runtime] per process. A [Module] is compiled code, checked before it is
// let in, and rewritten so that it can be stopped (package meter). A [Filter] is a module
// with a configuration: a policy.Filter. Its guest starts once; what its memory is then
// becomes an image, and each further instance begins as a copy of that, which shares all
// pages that it does not write to. An instance that was used is made as new, by giving
// these pages back, so that nothing a client caused in it is there for the next one.
//
//	bytes ─ Load ─▶ Module ─ Filter ─▶ Filter ── Open ──▶ session ── hook ──▶ instance
//	       checks,            start,      │                (one client's)       │   ▲
//	       meter,             image       └── pool: clean instances ────────────┘   │
//	       compile                              ▲                                   │
//	                                            └── made as new, or thrown away ◀───┘
//
// A session has what the guest keeps in the host, which is little. The instance, which has
// memory, is the session's from its first hook to its end, or for one hook at a time
// (FilterOptions.Instance).
//
// All that enters a guest passes guest.Host (package policy/guest): mg1 in imports.go,
// WASI in wasi.go. What a guest may compute is in budget.go.
//
// # What a guest cannot do
//
// A guest is taken for hostile. Its binary is screened before a compiler sees it. Its
// memory is a mapping of its own, outside of Go's heap, with a limit. What it can make the
// host allocate has limits in package policy/guest; instructions that allocate without one
// are not compiled (wazero.go). It is stopped when its CPU time is used up, in whatever it
// does, and makes way for others every sixty microseconds. Pointers are checked on every
// call; one that points outside is a trap, and a trap is an error of this filter in this
// session.
//
// # Goroutines and locks
//
// Runtime, Module and Filter are safe for concurrent use. A Filter has one goroutine, which
// makes instances and makes them as new; Close waits for it. A session is for one goroutine
// at a time, and refuses a second. Its lock is held while the guest runs, so that its
// Close, also that by the Runtime, waits for the call. An instance belongs to one session,
// or to the pool, or to who took it out of there; nobody else touches it. Of a session's
// lock, a Filter's, its pool's, the gate's and the Runtime's, none but the session's is held
// when another is taken.
package wasmhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost/meter"
)

// MaxModule is the largest module taken, in octets.
const MaxModule = meter.MaxModule

// Options are the settings of a Runtime. The zero value of each field means its default.
type Options struct {
	// CacheDir keeps compiled code between starts. It holds native code and must be
	// nobody else's; it is made with mode 0700. Empty keeps none.
	CacheDir string
	// Compiler is a command that ends in CompileMain, usually this program with another
	// argument. Each module is compiled by a process of its own, one at a time, and is
	// refused when that takes more than CompileCPU of CPU or a gigabyte of memory (the
	// limits are Linux's; elsewhere it may take two minutes). Nil compiles in this process,
	// which is for modules that one trusts: a small one that is made for it keeps a core
	// busy for many minutes, and takes all memory, and nothing can stop it.
	Compiler []string
	// CompileCPU is the most CPU time of compiling one module, in whole seconds. Default
	// 10 s. It has no meaning without Compiler.
	CompileCPU time.Duration
	// Log gets what guests and the host say. Nil discards.
	Log *slog.Logger
	// Metrics counts what guests count. Nil discards.
	Metrics guest.Metrics
	// BootEach makes every instance by running the guest's start, as it is done for modules
	// that change what cannot be set back. It is for tests of that way.
	BootEach bool
}

// Runtime compiles and runs modules.
type Runtime struct {
	opts     Options
	wz       wazero.Runtime
	config   wazero.ModuleConfig // of instances
	cache    wazero.CompilationCache
	cacheDir string
	scratch  bool      // the cache is for this Runtime alone, and goes with it
	compiler *compiler // nil if this process compiles
	build    string    // of this program; empty if that is not known
	gate     *gate
	epoch    time.Time
	closed   atomic.Bool
	ending   context.Context // ends when closed is set
	end      context.CancelFunc

	mappings int64        // of images that there may be
	mapped   atomic.Int64 // that there are

	mu      sync.Mutex // guards what follows; held for moments only
	filters map[*Filter]struct{}
	loaded  map[moduleID]int // how many of each
}

// New returns a Runtime. Close it in the end.
func New(ctx context.Context, o Options) (*Runtime, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CompileCPU < 0 || o.CompileCPU > maxCompileCPU {
		return nil, fmt.Errorf("wasmhost: compile cpu: %v, want at most %v", o.CompileCPU, maxCompileCPU)
	}
	o.CompileCPU = cmp.Or(o.CompileCPU, slowness*defaultCompileCPU)
	r := &Runtime{opts: o, config: moduleConfig(), filters: make(map[*Filter]struct{}), loaded: make(map[moduleID]int), build: buildID(), gate: newGate(), epoch: time.Now()}
	r.ending, r.end = context.WithCancel(context.Background())
	r.mappings = mappingsFor(maxMappings())
	config := runtimeConfig()
	if err := r.openCache(); err != nil {
		return nil, err
	}
	if r.cache != nil {
		config = config.WithCompilationCache(r.cache)
	}
	r.wz = wazero.NewRuntimeWithConfig(ctx, config)
	if err := errors.Join(r.addImports(ctx), r.addWASI(ctx), r.addTick(ctx)); err != nil {
		return nil, errors.Join(err, r.Close(ctx))
	}
	return r, nil
}

// now is a reading of the clock on the wall.
func (r *Runtime) now() time.Duration { return time.Since(r.epoch) }

// mappingsFor is how many images may be mapped where the system allows so many mappings: a
// memory takes two, and all else of the process needs some.
func mappingsFor(most int) int64 { return int64(max(most-max(most/8, 1000), 0) / 2) }

// takeMapping tells whether one more image may be mapped, and counts it.
func (r *Runtime) takeMapping() bool {
	if r.mapped.Add(1) > r.mappings {
		r.mapped.Add(-1)
		return false
	}
	return true
}

// Close closes all filters, ends all guests and frees what they used. Calls that run are
// stopped and return an error; Close waits for them, since memory that a guest runs in
// cannot be taken away. It may be called twice.
func (r *Runtime) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed.Store(true)
	filters := slices.Collect(maps.Keys(r.filters))
	r.mu.Unlock()
	r.end()
	if r.compiler != nil {
		r.compiler.close()
	}
	for _, f := range filters {
		f.Close()
		f.shut() // guests stop at the next tick
	}
	err := r.wz.Close(ctx)
	if r.cache != nil {
		err = errors.Join(err, r.cache.Close(ctx))
	}
	if r.scratch {
		err = errors.Join(err, os.RemoveAll(r.cacheDir))
	}
	return err
}

// keep notes a filter, for Close.
func (r *Runtime) keep(f *Filter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return errClosed
	}
	r.filters[f] = struct{}{}
	return nil
}

// drop forgets a filter.
func (r *Runtime) drop(f *Filter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.filters, f)
}

// ErrModule is behind every error about a module that cannot be a filter.
var ErrModule = errors.New("wasmhost: not a filter")

// Module is a compiled module.
type Module struct {
	rt       *Runtime
	name     string
	compiled wazero.CompiledModule // of what package meter made of the binary
	id       moduleID
	closing  sync.Once
	size     int // of the binary

	// What the rewritten binary leaves to the host; see meter.Rewritten.
	globals    []meter.Global
	data       []meter.Segment
	start      string
	memory     uint32
	resettable bool
}

// Load checks and compiles a module. The error says what is wrong with it, and wraps
// ErrModule where it is the module's fault, ErrCompiler where compiling it failed for
// another reason.
func (r *Runtime) Load(ctx context.Context, name string, wasm []byte) (*Module, error) {
	bad := func(err error) error { return fmt.Errorf("%w: %s: %w", ErrModule, name, err) }
	if r.closed.Load() {
		return nil, fmt.Errorf("wasmhost: load %s: %w", name, errClosed)
	}
	id := r.idOf(wasm)
	c, err := r.check(id, wasm)
	if err != nil {
		return nil, bad(err)
	}
	compiled, err := r.compile(ctx, c.Wasm, c.kept || r.isLoaded(id))
	if err != nil && (errors.Is(err, ErrCompiler) || errors.Is(err, errClosed) || ctx.Err() != nil) {
		return nil, fmt.Errorf("wasmhost: load %s: %w", name, err)
	}
	if err != nil {
		return nil, bad(fmt.Errorf("does not compile: %s", clip(err.Error())))
	}
	m := &Module{rt: r, name: name, compiled: compiled, id: id, size: len(wasm), globals: c.Globals, data: c.Data,
		start: c.Start, memory: c.MemoryMin, resettable: c.Resettable}
	if err := errors.Join(checkManifest(m.Info().Manifest), m.checkExports(), m.checkImports(c.outside)); err != nil {
		return nil, errors.Join(bad(err), compiled.Close(ctx))
	}
	r.keepModule(id, c.Rewritten)
	r.load(id, 1)
	return m, nil
}

// checked is a module as the compiler may have it.
type checked struct {
	*meter.Rewritten
	outside []meter.Outside
	kept    bool // it was found good before
}

// check checks a module and meters it.
func (r *Runtime) check(id moduleID, wasm []byte) (checked, error) {
	if m := r.recall(id); m != nil {
		return checked{Rewritten: m, kept: true}, nil
	}
	read, err := meter.Read(wasm)
	if err != nil {
		return checked{}, err
	}
	if err := checkReserved(read.Reserved()); err != nil { // before ours are added
		return checked{}, err
	}
	m, err := read.Rewrite()
	return checked{Rewritten: m, outside: read.Outside()}, err
}

var (
	i32, i64 = api.ValueTypeI32, api.ValueTypeI64
)

// checkReserved returns an error if there are exports with names that are ours.
func checkReserved(exports []string) error {
	var errs []error
	for _, name := range exports {
		errs = append(errs, fmt.Errorf("export %s: names that begin with %s are reserved", name, abi.ReservedPrefix))
	}
	return errors.Join(errs...)
}

// checkExports holds exports against the contract.
func (m *Module) checkExports() error {
	var errs []error
	want := func(name string, required bool, params, results []api.ValueType) {
		def, ok := m.compiled.ExportedFunctions()[name]
		switch {
		case !ok && required:
			errs = append(errs, fmt.Errorf("lacks the export %s", name))
		case ok && (!slices.Equal(def.ParamTypes(), params) || !slices.Equal(def.ResultTypes(), results)):
			errs = append(errs, fmt.Errorf("export %s is %s, want %s", name,
				signature(def.ParamTypes(), def.ResultTypes()), signature(params, results)))
		}
	}
	want(abi.ExportInit, true, []api.ValueType{i32}, []api.ValueType{i64})
	want(abi.ExportHook, true, []api.ValueType{i32, i32}, []api.ValueType{i64})
	want(abi.ExportInitialize, false, nil, nil)
	if _, ok := m.compiled.ExportedMemories()[abi.ExportMemory]; !ok {
		errs = append(errs, fmt.Errorf("lacks the export %s", abi.ExportMemory))
	}
	if _, ok := m.compiled.ExportedFunctions()["_start"]; ok && len(errs) > 0 {
		errs = append(errs, errors.New("it is a command, not a library: build it with -buildmode=c-shared (Go) or as a reactor"))
	}
	return errors.Join(errs...)
}

// checkImports holds imports against the contract. Each fault is told once.
func (m *Module) checkImports(others []meter.Outside) error {
	known := make(map[string]string) // "module.name" -> signature
	for _, f := range abi.Imports() {
		known[abi.Module+"."+f.Name] = signature(importTypes(f))
	}
	for _, f := range wasiFuncs {
		known[wasiModule+"."+f.name] = signature(f.params, f.results)
	}
	var faults []string
	ticks := 0
	for _, def := range m.compiled.ImportedFunctions() {
		module, name, _ := def.Import()
		if module == meter.TickModule && name == meter.TickName {
			if ticks++; ticks == 1 {
				continue // ours; see package meter
			}
		}
		sig, ok := known[module+"."+name]
		got := signature(def.ParamTypes(), def.ResultTypes())
		switch {
		case ok && sig != got:
			faults = append(faults, fmt.Sprintf("imports %s.%s as %s, it is %s", module, name, got, sig))
		case !ok && module != abi.Module && isMajor(module):
			faults = append(faults, fmt.Sprintf("speaks the ABI %s, this gateway speaks %s: build it with a matching SDK", module, abi.Module))
		case !ok:
			faults = append(faults, fmt.Sprintf("imports %s.%s, which this gateway does not have", module, name))
		}
	}
	for _, o := range others {
		faults = append(faults, fmt.Sprintf("imports the %s %s; a filter imports functions only", o.Kind, o.Name))
	}
	slices.Sort(faults)
	var errs []error
	for i, f := range slices.Compact(faults) {
		if i == maxFaults {
			errs = append(errs, errors.New("and more"))
			break
		}
		errs = append(errs, errors.New(f))
	}
	return errors.Join(errs...)
}

// maxFaults is how many faults of imports are told.
const maxFaults = 20

// isMajor tells whether s looks like another major of our ABI.
func isMajor(s string) bool {
	rest, ok := strings.CutPrefix(s, "mg")
	return ok && rest != "" && strings.Trim(rest, "0123456789") == ""
}

// signature writes a function type, as in "(i32, i64) -> i64".
func signature(params, results []api.ValueType) string {
	if len(results) == 1 {
		return "(" + typeNames(params) + ") -> " + typeNames(results)
	}
	return "(" + typeNames(params) + ") -> (" + typeNames(results) + ")"
}

func typeNames(types []api.ValueType) string {
	var names []string
	for _, t := range types {
		switch t {
		case 0x7b:
			names = append(names, "v128")
		case 0x70:
			names = append(names, "funcref")
		default:
			names = append(names, api.ValueTypeName(t))
		}
	}
	return strings.Join(names, ", ")
}

// Close frees the compiled code once no instance uses it any more. It may be called twice.
func (m *Module) Close(ctx context.Context) (err error) {
	m.closing.Do(func() {
		m.rt.load(m.id, -1)
		err = m.compiled.Close(ctx)
	})
	return err
}

// Info is what can be told of a module without running it.
type Info struct {
	Size      int      // octets of the binary
	Memory    uint32   // pages of 64 KiB it starts with
	MemoryMax uint32   // the most it asks for; 0 if it does not say
	Imports   []string // "mg1.get" and so on, sorted
	Exports   []string // function names, sorted
	Manifest  []byte   // the custom section "mg1.manifest", if there is one
}

// Info describes the module.
func (m *Module) Info() Info {
	info := Info{Size: m.size}
	if mem, ok := m.compiled.ExportedMemories()[abi.ExportMemory]; ok {
		info.Memory = mem.Min()
		if most, ok := mem.Max(); ok {
			info.MemoryMax = most
		}
	}
	for _, def := range m.compiled.ImportedFunctions() {
		if module, name, _ := def.Import(); module != meter.TickModule {
			info.Imports = append(info.Imports, module+"."+name)
		}
	}
	for name := range m.compiled.ExportedFunctions() {
		if !strings.HasPrefix(name, abi.ReservedPrefix) {
			info.Exports = append(info.Exports, name)
		}
	}
	for _, s := range m.compiled.CustomSections() {
		if s.Name() == abi.ManifestSection {
			info.Manifest = s.Data()
		}
	}
	sort.Strings(info.Imports)
	sort.Strings(info.Exports)
	return info
}
