package wasmhost_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// TestDamagedCache: files of the cache that are cut, empty or altered cost a compilation,
// not the filter, whoever compiles.
func TestDamagedCache(t *testing.T) {
	t.Run("here", func(t *testing.T) { damagedCache(t, nil) })
	t.Run("by a child", func(t *testing.T) { damagedCache(t, child(t, "compile")) })
}

func damagedCache(t *testing.T, compiler []string) {
	dir := filepath.Join(t.TempDir(), "cache")
	wasm := wasmtest.Guest{Else: wasmtest.Say(abi.ActContinue)}.Bytes()
	load := func() error {
		rt, err := wasmhost.New(t.Context(), wasmhost.Options{CacheDir: dir, Compiler: compiler})
		if err != nil {
			return err
		}
		defer rt.Close(t.Context())
		_, err = rt.Load(t.Context(), "guest", wasm)
		return err
	}
	if err := load(); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"empty":   func([]byte) []byte { return nil },
		"altered": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
	} {
		files := entries(t, dir)
		if len(files) == 0 {
			t.Fatal("the cache has no files")
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(f, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := load(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSharedCache: native code from a folder that others can write to is not run.
func TestSharedCache(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := wasmhost.New(t.Context(), wasmhost.Options{CacheDir: dir}); err == nil || !strings.Contains(err.Error(), "others could change") {
		t.Errorf("got %v", err)
	}
}

// TestKept: what was made of a module is kept; a damaged one is made anew, and one of
// another module is not taken for it.
func TestKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	says := func(what string, wasm []byte, want int) {
		t.Helper()
		m, err := compiling(t, wasmhost.Options{CacheDir: dir}).Load(t.Context(), "guest", wasm)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close(t.Context())
		f, err := m.Filter(t.Context(), wasmhost.FilterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d := talk(t, f)
		defer d.close()
		if got := d.at(policy.StageConnect).Verdict.Reply.Code; got != want {
			t.Errorf("%s: the filter says %d, want %d", what, got, want)
		}
	}
	kept := func() string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(dir, "checked", "*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("kept: %v, %v", files, err)
		}
		return files[0]
	}
	says("new", saying(550), 550)
	file := kept()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	says("again", saying(550), 550)
	for what, data := range map[string][]byte{"empty": nil, "cut": whole[:len(whole)-1], "altered": append([]byte("x"), whole[1:]...)} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		says(what, saying(550), 550)
		if now, err := os.ReadFile(kept()); err != nil || !bytes.Equal(now, whole) {
			t.Errorf("%s: it is not what it was before (%v)", what, err)
		}
	}
	says("another", saying(551), 551)
}

// TestCacheIsTrimmed: of a cache that is too large the oldest goes.
func TestCacheIsTrimmed(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"wazero-x/a", "checked/b", "wazero-x/c", "checked/d"} {
		file := filepath.Join(dir, name)
		at := time.Unix(int64(i+1), 0)
		err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, make([]byte, 10), 0o600), os.Chtimes(file, at, at))
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		most int64
		want string
	}{{40, "checked/b checked/d wazero-x/a wazero-x/c"}, {39, "checked/d"}, {10, "checked/d"}, {0, ""}} {
		if err := wasmhost.TrimCache(dir, step.most); err != nil {
			t.Fatal(err)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
		for i := range files {
			files[i], _ = filepath.Rel(dir, files[i])
		}
		if got := strings.Join(files, " "); got != step.want {
			t.Errorf("at most %d: %s are left, want %s", step.most, got, step.want)
		}
	}
}
