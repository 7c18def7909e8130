package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/tetratelabs/wazero"
)

// compile.go: from a module that was checked to code, by way of the cache.

// openCache opens the cache, and makes the compiler if there is to be one. What a child
// compiles comes by way of a folder, so without CacheDir there is one for as long as the
// Runtime lives.
func (r *Runtime) openCache() (err error) {
	r.cacheDir = r.opts.CacheDir
	if r.cacheDir == "" && r.opts.Compiler != nil {
		if r.cacheDir, err = os.MkdirTemp("", "penstock-compiled-*"); err != nil {
			return fmt.Errorf("wasmhost: cache: %w", err)
		}
		r.scratch = true
	}
	if r.cacheDir == "" {
		return nil
	}
	if r.cache, err = openCache(r.cacheDir); err == nil && r.opts.Compiler != nil {
		r.compiler, err = newCompiler(r.opts, r.cacheDir)
	}
	if err != nil && r.scratch {
		err = errors.Join(err, os.RemoveAll(r.cacheDir))
	}
	return err
}

// maxCache is the most that the folder of the cache holds, in octets: about a hundred
// filters written in Go. The oldest make room, and take half a second at the next start if
// they still run.
const maxCache = 1 << 30

// compile compiles a module, if the cache does not have it. known says that it is probably
// there, or loaded.
func (r *Runtime) compile(ctx context.Context, wasm []byte, known bool) (wazero.CompiledModule, error) {
	if r.compiler == nil {
		c, err := r.mended(func() (wazero.CompiledModule, error) { return compileWith(ctx, r.wz, wasm) })
		if err != nil && isSystemError(err) {
			err = fmt.Errorf("%w: %w", ErrCompiler, err)
		}
		return c, err
	}
	// A look for what is not there leaves a page of memory behind each time: wazero gives
	// back what it began with a module when that is done, and only then.
	if known {
		if c, err := r.lookUp(ctx, wasm); !errors.Is(err, errNotCached) {
			return c, err
		}
	}
	done, err := r.compiler.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := r.compiler.compile(ctx, wasm); err != nil {
		return nil, err
	}
	c, err := r.lookUp(ctx, wasm)
	if errors.Is(err, errNotCached) {
		return nil, fmt.Errorf("%w: it left nothing in %s; do compiler and gateway differ, or does somebody empty the folder?", ErrCompiler, r.cacheDir)
	}
	most := int64(maxCache)
	if r.scratch {
		most = 0 // it was there to be handed over; Close removes what is left
	}
	if err := trimCache(r.cacheDir, most); err != nil {
		r.opts.Log.Warn("old compiled filters could not be removed", "dir", r.cacheDir, "err", err)
	}
	return c, err
}

// isLoaded tells whether there is a module of that binary.
func (r *Runtime) isLoaded(id moduleID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loaded[id] > 0
}

// load counts the modules of a binary.
func (r *Runtime) load(id moduleID, more int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.loaded[id] += more; r.loaded[id] == 0 {
		delete(r.loaded, id)
	}
}

var errNotCached = errors.New("not in the cache")

// lookUp returns a module that has been compiled, from memory or from the cache.
func (r *Runtime) lookUp(ctx context.Context, wasm []byte) (wazero.CompiledModule, error) {
	c, err := r.mended(func() (wazero.CompiledModule, error) { return compileWith(onlyCached(ctx), r.wz, wasm) })
	if errors.Is(err, context.Canceled) {
		return nil, errNotCached
	}
	return c, err
}

// mended is compile, which looks into the cache; one that is damaged is emptied and does no
// harm.
func (r *Runtime) mended(compile func() (wazero.CompiledModule, error)) (wazero.CompiledModule, error) {
	c, err := compile()
	if err == nil || r.cache == nil || !isCacheError(err) {
		return c, err
	}
	r.opts.Log.Warn("compiled filters are damaged on disk, compiling them again", "dir", r.cacheDir, "err", err)
	if clearErr := clearCache(r.cacheDir); clearErr != nil {
		return nil, errors.Join(err, clearErr)
	}
	return compile()
}
