package wasmhost_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
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
