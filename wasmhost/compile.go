package wasmhost

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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

// compile compiles a module, if the cache does not have it.
func (r *Runtime) compile(ctx context.Context, wasm []byte) (wazero.CompiledModule, error) {
	if r.compiler == nil {
		c, err := r.mended(func() (wazero.CompiledModule, error) { return compileWith(ctx, r.wz, wasm) })
		if err != nil && isSystemError(err) {
			err = fmt.Errorf("%w: %w", ErrCompiler, err)
		}
		return c, err
	}
	// A look for what is not there leaves a page of memory behind each time: wazero gives
	// back what it began with a module when that is done, and only then.
	id := idOf(wasm)
	if r.isKnown(id) {
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
	switch {
	case r.scratch:
		_ = clearCache(r.cacheDir) // it was there to be handed over; Close removes what is left
	case err == nil:
		r.know(id)
	}
	return c, err
}

// codeID tells apart what is given to the compiler.
type codeID [sha256.Size]byte

func idOf(wasm []byte) codeID { return sha256.Sum256(wasm) }

// isKnown tells whether code is loaded, or probably in the cache.
func (r *Runtime) isKnown(id codeID) bool {
	r.mu.Lock()
	loaded := r.loaded[id] > 0
	r.mu.Unlock()
	if loaded {
		return true
	}
	_, err := os.Stat(knownFile(r.cacheDir, id))
	return err == nil
}

// know notes that code is in the cache. If that cannot be noted it is compiled again after
// the next start, and that will tell.
func (r *Runtime) know(id codeID) {
	file := knownFile(r.cacheDir, id)
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file, nil, 0o600)
	}
	if err != nil {
		r.opts.Log.Warn("that a filter is compiled could not be noted", "dir", r.cacheDir, "err", err)
	}
}

// load counts the modules that have code.
func (r *Runtime) load(id codeID, more int) {
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
