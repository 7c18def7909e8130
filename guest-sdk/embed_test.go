package guestsdk

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSourcesAreWhole compares what is embedded with what is there.
func TestSourcesAreWhole(t *testing.T) {
	for _, dir := range []string{"abi", "filter"} {
		var want []string
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if name := f.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
				want = append(want, name)
			}
		}
		var got []string
		entries, err := fs.ReadDir(sources, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: embedded %q, want %q", dir, got, want)
		}
	}
}

const author = `package main

import "github.com/penstock/penstock/guest-sdk/filter"

func init() {
	f := filter.New("hello")
	blocked := map[string]bool{}
	f.Configure(func(c filter.Config) error {
		for _, d := range c.Strings("blocked") {
			blocked[d] = true
		}
		return c.Err()
	})
	f.OnRcptTo(func(w filter.Reply, r *filter.RcptEvent) {
		if blocked[r.Rcpt().Domain()] {
			w.Reject(550, "5.7.1", "no such place")
		}
	})
	f.Serve()
}

func main() {}
`

// maxHello is the largest that a small filter may be: a guest's size is paid for at every
// load.
const maxHello = 2_000_000

// TestWriteModule builds a filter outside of this repository, without a network.
func TestWriteModule(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a module")
	}
	dir := t.TempDir()
	if err := WriteModule(filepath.Join(dir, ".penstock")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"main.go": author,
		"go.mod":  "module example.com/hello\n\ngo 1.26\n\n" + Requirement("./.penstock"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wasm := filepath.Join(dir, "hello.wasm")
	for _, args := range [][]string{
		{"build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o", wasm},
		{"vet", "."},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOPROXY=off", "GOFLAGS=-mod=mod", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
	info, err := os.Stat(wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d octets", info.Size())
	if info.Size() > maxHello {
		t.Errorf("a small filter has %d octets, want at most %d", info.Size(), maxHello)
	}
}
