package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/wasmhost"
)

// push.go changes a module while the gateway runs. The order of a change is what makes it
// safe: the chains are built with the new module first, which is the check that it is one;
// then the old module is kept, the new one written, and last the chains are taken over. Who
// fails on the way leaves what was there.

// filterStore is the modules of a running gateway, as package admin wants them.
type filterStore struct{ n *node }

// refusal makes an error that the client is told.
func refusal(code api.Code, next, format string, args ...any) error {
	return &api.Error{Code: code, Message: fmt.Sprintf(format, args...), Next: next}
}

var errEnding = &api.Error{Code: api.CodeUnavailable, Message: "the gateway is shutting down", Next: "try again when it is back"}

// Push implements admin.Filters.
func (s filterStore) Push(ctx context.Context, name string, module []byte, c api.Condition) (api.Change, error) {
	done, err := s.n.change(ctx)
	if err != nil {
		return api.Change{}, err
	}
	defer done()
	ch := s.begin(name)
	return ch.run(ctx, module, c)
}

// Rollback implements admin.Filters.
func (s filterStore) Rollback(ctx context.Context, name, to string, c api.Condition) (api.Change, error) {
	done, err := s.n.change(ctx)
	if err != nil {
		return api.Change{}, err
	}
	defer done()
	ch := s.begin(name)
	ch.withdraw = true
	module, err := ch.version(to)
	if err != nil {
		return api.Change{}, err
	}
	return ch.run(ctx, module, c)
}

// change is one module that gets another binary.
type change struct {
	n        *node
	live     *generation
	name     string
	dir      string
	file     string
	kept     versions
	withdraw bool // what is there is wrong
}

// begin needs the right to change things.
func (s filterStore) begin(name string) *change {
	live := s.n.live.Load()
	dir := string(live.cfg.Filters.Dir)
	return &change{n: s.n, live: live, name: name, dir: dir,
		file: filepath.Join(dir, name+".wasm"), kept: versionsOf(dir, name)}
}

// run makes the change.
func (ch *change) run(ctx context.Context, module []byte, c api.Condition) (api.Change, error) {
	if ch.dir == "" {
		return api.Change{}, refusal(api.CodeConflict, "set filters.dir and reload", "there is no folder to keep filters in")
	}
	old, err := ch.current()
	if err != nil {
		return api.Change{}, err
	}
	if err := ch.holds(c, old); err != nil {
		return api.Change{}, err
	}
	next, changed, err := ch.build(ctx, module)
	if err != nil {
		return api.Change{}, err
	}
	if err := ch.take(next, old, module); err != nil {
		return api.Change{}, err
	}
	sum := digest(sha256.Sum256(module))
	if err := ch.kept.forget(sum); err != nil {
		ch.n.log.Warn("an old version of a filter could not be removed", "filter", ch.name, "err", err)
	}
	return api.Change{Name: ch.name, Digest: sum.String(), OldDigest: digestOf(old), Size: int64(len(module)),
		Chains: append([]string{}, changed...)}, nil
}

// current returns the module that is there; nil for none.
func (ch *change) current() ([]byte, error) {
	old, err := readRegular(ch.file, wasmhost.MaxModule)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return old, err
}

// digestOf is empty for no module.
func digestOf(wasm []byte) string {
	if wasm == nil {
		return ""
	}
	return digest(sha256.Sum256(wasm)).String()
}

// holds tells whether what is there is what the client thinks.
func (ch *change) holds(c api.Condition, old []byte) error {
	const next = "look at what is there, and push again if it is still wanted"
	switch have := digestOf(old); {
	case c.Absent && old != nil:
		return refusal(api.CodeChanged, next, "there is a %s already, %s", ch.name, have)
	case c.Digest != "" && old == nil:
		return refusal(api.CodeChanged, next, "there is no %s", ch.name)
	case c.Digest != "" && c.Digest != have:
		return refusal(api.CodeChanged, next, "%s is %s by now", ch.name, have)
	}
	return nil
}

// build makes the chains with the new module. What serve would say of it at its start is
// said now.
func (ch *change) build(ctx context.Context, module []byte) (*chainSet, []string, error) {
	next, changed, err := ch.live.set.with(ctx, ch.n.wasm, ch.file, module)
	switch {
	case err != nil:
		return nil, nil, ch.refused(ctx, err)
	case ch.n.stopping.Load():
		next.close()
		return nil, nil, errEnding
	}
	if len(changed) == 0 { // no chain has looked at it
		m, err := ch.n.wasm.Load(ctx, ch.name, module)
		if err != nil {
			next.close()
			return nil, nil, ch.refused(ctx, err)
		}
		_ = m.Close(ctx) // frees code; it has no error to speak of
	}
	return next, changed, nil
}

// refused is what the client is told when the chains cannot be made.
func (ch *change) refused(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, errGone) || ch.n.stopping.Load():
		return errEnding
	case ctx.Err() != nil:
		return refusal(api.CodeUnavailable, "push it again", "the request was given up")
	case errors.Is(err, wasmhost.ErrCompiler):
		return refusal(api.CodeUnavailable, "mend the machine, and push it again", "%s", oneLine(err))
	}
	return refusal(api.CodeInvalidModule, "mend the filter; gateway filter inspect says the same without a gateway", "%s", oneLine(err))
}

// take writes the module and has the gateway take the chains over, which is prepared before.
// With an error next is closed and the file is what it was.
func (ch *change) take(next *chainSet, old, module []byte) (err error) {
	defer func() {
		if err != nil {
			next.close()
		}
	}()
	prepared, err := ch.n.gw.Prepare(gateway.Rules{Routes: routes(ch.live.cfg), Chains: next.chains, Release: next.close})
	if errors.Is(err, gateway.ErrClosed) {
		return errEnding
	}
	if err != nil {
		return err
	}
	if err := ch.write(old, module); err != nil {
		prepared.Discard()
		return err
	}
	if err := ch.n.gw.Use(prepared); err != nil { // it was shut down
		return errors.Join(errEnding, ch.undo(old))
	}
	ch.n.live.Store(&generation{ch.live.cfg, next})
	return nil
}

// write puts the module in the place of the old one, which is kept.
func (ch *change) write(old, module []byte) error {
	if err := os.MkdirAll(ch.dir, 0o755); err != nil {
		return err
	}
	if old != nil && sha256.Sum256(old) != sha256.Sum256(module) {
		if err := ch.kept.keep(old, ch.withdraw); err != nil {
			return fmt.Errorf("keep the old version of filter %s: %w", ch.name, err)
		}
	}
	if err := writeFile(ch.file, module, 0o644); err != nil {
		return fmt.Errorf("write filter %s: %w", ch.name, err)
	}
	return nil
}

// undo puts the old module back.
func (ch *change) undo(old []byte) error {
	if old == nil {
		return os.Remove(ch.file)
	}
	return writeFile(ch.file, old, 0o644)
}

// version returns the module of a version: the one with the digest to, or the newest that
// was not withdrawn if to is empty.
func (ch *change) version(to string) ([]byte, error) {
	old, err := ch.current()
	if err != nil {
		return nil, err
	}
	list, err := ch.kept.list()
	if err != nil {
		return nil, err
	}
	if old == nil && len(list) == 0 {
		return nil, refusal(api.CodeNotFound, "gateway filter list has those that there are", "there is no filter %s", ch.name)
	}
	for _, v := range slices.Backward(list) {
		if to == v.digest.String() || to == "" && !v.withdrawn && v.digest.String() != digestOf(old) {
			return ch.kept.read(v.digest)
		}
	}
	if to != "" {
		return nil, refusal(api.CodeNotFound, "gateway filter list --json has the versions that are kept", "no version %s of %s is kept", to, ch.name)
	}
	return nil, refusal(api.CodeConflict, "push the module that you want", "there is no earlier version of %s to go back to", ch.name)
}

// List implements admin.Filters.
func (s filterStore) List(context.Context) ([]api.Filter, error) {
	live := s.n.live.Load()
	dir := string(live.cfg.Filters.Dir)
	list := make(map[string]*api.Filter) // by source and name
	if err := addFolder(list, dir); err != nil {
		return nil, err
	}
	for _, chain := range slices.Sorted(maps.Keys(live.set.places)) {
		for _, p := range live.set.places[chain] {
			f := known(list, dir, p.Module)
			f.Running = p.digest.String()
			if !slices.Contains(f.Chains, chain) {
				f.Chains = append(f.Chains, chain)
			}
		}
	}
	var all []api.Filter
	for _, key := range slices.Sorted(maps.Keys(list)) {
		all = append(all, *list[key])
	}
	return all, nil
}

// The sources of a module.
const (
	sourceDir     = "dir"
	sourceFile    = "file"
	sourceBuiltin = "builtin"
)

// addFolder adds the modules of filters.dir. A folder that is not there is empty.
func addFolder(list map[string]*api.Filter, dir string) error {
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".wasm")
		if !ok || !config.ValidName(name) {
			continue
		}
		f := known(list, dir, config.Module{Name: name, File: filepath.Join(dir, e.Name())})
		kept, err := versionsOf(dir, name).list()
		if err != nil {
			return err
		}
		for _, v := range slices.Backward(kept) {
			f.Versions = append(f.Versions, api.Version{Digest: v.digest.String(), Size: v.size, Replaced: v.replaced, Withdrawn: v.withdrawn})
		}
	}
	return nil
}

// known returns the entry of a module, which it makes if there is none. A module that cannot
// be read has neither digest nor size.
func known(list map[string]*api.Filter, dir string, m config.Module) *api.Filter {
	source := sourceFile
	switch {
	case m.Builtin:
		source = sourceBuiltin
	case inFolder(m, dir):
		source = sourceDir
	}
	key := m.Name + " " + source + " " + filepath.Clean(m.File)
	if f, ok := list[key]; ok {
		return f
	}
	f := &api.Filter{Name: m.Name, Source: source, Chains: []string{}, Versions: []api.Version{}}
	if wasm, err := moduleBytes(m); err == nil {
		f.Digest, f.Size, f.Asks = digestOf(wasm), int64(len(wasm)), manifestOf(wasm).Capabilities
	}
	list[key] = f
	return f
}

// parseDigest reads "sha256:" and 64 hexadecimal digits.
func parseDigest(s string) (d digest, err error) {
	text, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(text) != 2*sha256.Size {
		return d, fmt.Errorf("%q is not a digest: want %s and %d hexadecimal digits", s, digestPrefix, 2*sha256.Size)
	}
	if _, err := hex.Decode(d[:], []byte(text)); err != nil {
		return d, fmt.Errorf("%q is not a digest: %w", s, err)
	}
	return d, nil
}
