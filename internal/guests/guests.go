// Package guests loads filters written in Go for tests: natively, and as WebAssembly, built
// as an author does. One table can so test both. It is for tests alone.
package guests

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// Load makes a filter with a configuration, a JSON text. The error is the one that would
// keep the filter from being loaded.
type Load func(config string) (policy.Filter, error)

// Must is Load for a configuration that the filter has to take: it fails the test if the
// filter does not.
func (load Load) Must(t testing.TB, config string) policy.Filter {
	t.Helper()
	f, err := load(config)
	if err != nil {
		t.Fatalf("%s: %v", config, err)
	}
	return f
}

// Native returns the Load of a filter as it is compiled into the test. Each call of it
// takes a filter of its own from newFilter.
func Native(newFilter func() *filter.Filter) Load {
	return func(config string) (policy.Filter, error) {
		return filtertest.Load(newFilter(), guest.Options{Config: []byte(config), Grants: guest.Everything()})
	}
}

// Build compiles the package main in dir to WebAssembly and returns the module. The
// compiler's own cache makes the second time quick.
func Build(t testing.TB, dir string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "guest.wasm")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOWORK=off")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build in %s: %v\n%s", dir, err, msg)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// Loader returns the Load of a module. The filters, and the runtime behind them, end with
// the test.
func Loader(t testing.TB, name string, wasm []byte) Load {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // clean-ups run after the test's own context
	rt, err := wasmhost.New(ctx, wasmhost.Options{CacheDir: cacheDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	module, err := rt.Load(ctx, name, wasm)
	if err != nil {
		t.Fatal(err)
	}
	return func(config string) (policy.Filter, error) {
		f, err := module.Filter(ctx, wasmhost.FilterOptions{Config: []byte(config), Ready: -1, Grants: guest.Everything()})
		if err != nil {
			return nil, err
		}
		t.Cleanup(f.Close)
		return f, nil
	}
}

// cacheDir keeps compiled modules from one test binary to the next: under the race detector
// compiling one takes many seconds. Empty, for none, where there is no such folder.
func cacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "penstock-test", "compiled")
}
