package wasmhost

import (
	"context"
	"fmt"
	"os"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// wazero.go: how wazero is set up. Its experimental API is used in this file only.

const pageSize = 64 << 10

// maxPages is the most memory of any guest: 64 MiB. A filter's own limit is lower.
const maxPages = 64 << 20 / pageSize

func runtimeConfig() wazero.RuntimeConfig {
	return wazero.NewRuntimeConfig().
		WithCoreFeatures(api.CoreFeaturesV2). // no threads, no tail calls: what the ABI promises, and no more
		WithMemoryLimitPages(maxPages).
		WithCustomSections(true).
		WithCloseOnContextDone(true) // see guard.go
}

func openCache(dir string) (wazero.CompilationCache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("wasmhost: cache: %w", err)
	}
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return nil, fmt.Errorf("wasmhost: cache in %s: %w", dir, err)
	}
	return cache, nil
}

// withMemory makes instances that are made under the returned context take their memory
// from the system, limit octets at most, outside of Go's heap.
func withMemory(ctx context.Context, limit uint64) context.Context {
	return experimental.WithMemoryAllocator(ctx, experimental.MemoryAllocatorFunc(
		func(_, _ uint64) experimental.LinearMemory { return newMemory(limit) }))
}
