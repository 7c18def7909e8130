package wasmhost

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// wazero.go: how wazero is set up. Its experimental API is used in this file only.

// maxPages is the most memory of any guest: 64 MiB. A filter's own limit is lower.
const maxPages = 64 << 20 / pageSize

// features are WebAssembly 2.0. Threads, tail calls and exceptions are not in it. What
// reference types let a guest take of the host's memory, outside of its own, is bounded by
// package meter: how far tables grow, and what ref.func allocates.
const features = api.CoreFeaturesV2

func runtimeConfig() wazero.RuntimeConfig {
	return wazero.NewRuntimeConfig().
		WithCoreFeatures(features).
		WithMemoryLimitPages(maxPages).
		WithDebugInfoEnabled(false). // see package meter
		WithCustomSections(true)     // the manifest
	// Not WithCloseOnContextDone: see budget.go.
}

// moduleConfig is that of every instance. Our WASI does not use wazero's clocks and random
// source; the latter is given because wazero would seed one for each instance, which costs
// more than all the rest of a small guest's start.
func moduleConfig() wazero.ModuleConfig {
	return wazero.NewModuleConfig().WithName("").WithStartFunctions().WithRandSource(rand.Reader)
}

// openCache opens the folder of compiled code. Whoever can write there runs code of his
// own in this process, so it must be ours alone.
func openCache(dir string) (wazero.CompilationCache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("wasmhost: cache: %w", err)
	}
	if err := checkOwned(dir); err != nil {
		return nil, fmt.Errorf("wasmhost: cache: %w", err)
	}
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return nil, fmt.Errorf("wasmhost: cache in %s: %w", dir, err)
	}
	return cache, nil
}

// onlyCached returns a context under which CompileModule loads what the cache has and never
// compiles: a context that has ended, which its workers look at before each function, and
// which keeps them from the first. What is not in the cache is then context.Canceled. With
// fewer than two workers wazero has none, and does not look.
//
// An engine that knows no cache, wazero's interpreter, does not look either: it compiles
// nothing to native code, and takes no time to speak of.
func onlyCached(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cancel()
	return withWorkers(ctx, 2)
}

// withWorkers returns a context under which CompileModule compiles n functions at once.
func withWorkers(ctx context.Context, n int) context.Context {
	return experimental.WithCompilationWorkers(ctx, n)
}

// compileWith compiles. A module that makes the compiler panic is a module that does not
// compile.
func compileWith(ctx context.Context, wz wazero.Runtime, wasm []byte) (c wazero.CompiledModule, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the compiler panicked: %v", p)
		}
	}()
	return wz.CompileModule(ctx, wasm)
}

// clearCache removes what is in the cache: one damaged file would keep a filter from
// loading for ever.
func clearCache(dir string) error { return trimCache(dir, 0) }

// trimCache removes the oldest of what is in the cache when that is more than most octets,
// until it is half of that.
func trimCache(dir string, most int64) error {
	code, err := filepath.Glob(filepath.Join(dir, "wazero-*", "*"))
	kept, err2 := filepath.Glob(filepath.Join(dir, keptFolder, "*"))
	err = errors.Join(err, err2)
	files := make(map[string]fs.FileInfo)
	total := int64(0)
	for _, f := range append(code, kept...) {
		if info, err := os.Stat(f); err == nil {
			files[f] = info
			total += info.Size()
		}
	}
	if total <= most && most > 0 {
		return err
	}
	oldest := slices.SortedFunc(maps.Keys(files), func(a, b string) int { return files[a].ModTime().Compare(files[b].ModTime()) })
	for _, f := range oldest {
		if total > most/2 || most == 0 {
			err = errors.Join(err, os.Remove(f))
			total -= files[f].Size()
		}
	}
	return err
}

// isCacheError tells whether compiling failed because of the cache, not of the module.
// wazero has no type for that.
func isCacheError(err error) bool { return strings.Contains(err.Error(), "compilationcache") }

// withMemory makes the instance that is made under the returned context use mem.
func withMemory(ctx context.Context, mem *memory) context.Context {
	return experimental.WithMemoryAllocator(ctx, experimental.MemoryAllocatorFunc(
		func(_, _ uint64) experimental.LinearMemory { return mem }))
}
