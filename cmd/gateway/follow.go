package main

import (
	"context"
	"crypto/sha256"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/wasmhost"
)

// follow.go takes over certificates and modules that somebody has put in the place of the old
// ones. A look is a stat of each file; what has changed is read when it has lain still from one
// look to the next, so that nothing is read that is still being written, and that a certificate
// and its key are read together. What is wrong with it is said once, and the old one stays.

// followEvery is the time between two looks.
const followEvery = 2 * time.Second

// follower looks at files for changes. It is not safe for concurrent use.
type follower struct {
	last  map[string]fs.FileInfo // nil for a file that is not there
	moved bool                   // at the last look, and nobody was told
}

// begin remembers what is there. It is called before the files are read, so that no change
// is lost in between.
func (f *follower) begin(paths []string) { f.last, f.moved = statAll(paths), false }

// look tells whether files have changed, when they have lain still since the look before.
func (f *follower) look(paths []string) bool {
	now := statAll(paths)
	still := maps.EqualFunc(now, f.last, sameFile)
	f.last = now
	told := still && f.moved
	f.moved = !still
	return told
}

func statAll(paths []string) map[string]fs.FileInfo {
	all := make(map[string]fs.FileInfo, len(paths))
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			info = nil // whoever reads it will say why
		}
		all[p] = info
	}
	return all
}

func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// certificatePaths are the files that certificates.files names.
func certificatePaths(cfg *config.Config) []string {
	var paths []string
	for _, f := range cfg.Certificates.Files {
		paths = append(paths, string(f.Cert), string(f.Key))
	}
	return paths
}

// modulePaths are the files in filters.dir that chains name, sorted.
func modulePaths(cfg *config.Config) []string {
	var paths []string
	for _, chain := range cfg.Filters.Chains {
		for _, f := range chain {
			if inFolder(f.Module, string(cfg.Filters.Dir)) {
				paths = append(paths, filepath.Clean(f.Module.File))
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// inFolder tells whether a module is a file of filters.dir.
func inFolder(m config.Module, dir string) bool {
	return !m.Builtin && dir != "" && filepath.Dir(filepath.Clean(m.File)) == filepath.Clean(dir)
}

// reloadModules takes over the modules in filters.dir that are not what runs. It is a push of
// each, by whoever wrote the file.
func (n *node) reloadModules(ctx context.Context) {
	done, err := n.change(ctx)
	if err != nil {
		return // the gateway ends
	}
	defer done()
	for _, path := range modulePaths(n.live.Load().cfg) {
		if err := n.reloadModule(ctx, path); err != nil && ctx.Err() == nil && !n.stopping.Load() {
			n.log.Error("filter: the old one is kept", "file", path, "err", oneLine(err))
		}
	}
}

// reloadModule needs the right to change things.
func (n *node) reloadModule(ctx context.Context, path string) error {
	wasm, err := readRegular(path, wasmhost.MaxModule)
	if err != nil {
		return err
	}
	live, sum := n.live.Load(), digest(sha256.Sum256(wasm))
	if live.set.runs(path, sum) {
		return nil
	}
	next, changed, err := live.set.with(ctx, n.wasm, path, wasm)
	if err != nil {
		return err
	}
	if err := n.gw.Reload(gateway.Rules{Routes: routes(live.cfg), Chains: next.chains, Release: next.close}); err != nil {
		next.close()
		return err
	}
	n.live.Store(&generation{live.cfg, next})
	n.log.Info("filter: read again", "file", path, "digest", sum.String(), "chains", changed)
	return nil
}

// runs tells whether all places of the module at a file have the binary of that digest.
func (set *chainSet) runs(file string, sum digest) bool {
	for _, places := range set.places {
		for _, p := range places {
			if isFile(p.Module, file) && p.digest != sum {
				return false
			}
		}
	}
	return true
}
