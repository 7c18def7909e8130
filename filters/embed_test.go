package filters

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// headings are those of every filter's README.
var headings = []string{"## Name", "## Description", "## Configuration", "## Verdicts", "## Examples"}

// TestNames: each folder with a filter has a name here, and a README that tells the same
// things in the same order.
func TestNames(t *testing.T) {
	mains, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range mains {
		if name := filepath.Dir(m); name != "build" {
			got = append(got, name)
		}
	}
	if !slices.Equal(got, Names()) {
		t.Errorf("folders: %q, Names: %q", got, Names())
	}
	for _, name := range got {
		readme, err := os.ReadFile(filepath.Join(name, "README.md"))
		if err != nil {
			t.Error(err)
			continue
		}
		var found []string
		for line := range strings.Lines(string(readme)) {
			if strings.HasPrefix(line, "## ") {
				found = append(found, strings.TrimSpace(line))
			}
		}
		if !slices.Equal(found, headings) {
			t.Errorf("%s/README.md: headings %q, want %q", name, found, headings)
		}
	}
}

// maxModule is the largest module that a shipped filter may be. A Go program that does
// nothing has 1.8 MB, and seeding math/rand in every copy brings 0.2 MB of it along; what is
// above that is ours to keep small.
const maxModule = 2_400_000

// TestBuild builds every filter, twice. It checks size and kind of the modules, and that a
// module depends on nothing of this machine.
func TestBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("builds modules")
	}
	dir := t.TempDir()
	for range 2 { // over what is there, too
		cmd := exec.Command("go", "run", "./build", "-o", dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		} else {
			t.Logf("\n%s", out)
		}
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Names() {
		b, err := os.ReadFile(filepath.Join(dir, name+".wasm"))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.HasPrefix(b, []byte("\x00asm\x01\x00\x00\x00")) || len(b) > maxModule {
			t.Errorf("%s: %d octets that begin with % x; want a module of at most %d", name, len(b), b[:min(8, len(b))], maxModule)
		}
		for _, want := range []string{"mg1_init", "mg1_hook", "_initialize", "memory"} {
			if !bytes.Contains(b, []byte(want)) {
				t.Errorf("%s: does not export %s", name, want)
			}
		}
		if bytes.Contains(b, []byte(root)) {
			t.Errorf("%s: has the path %s in it", name, root)
		}
	}
}

func TestBuiltin(t *testing.T) {
	for _, name := range []string{"", "none", "../embed", "README.md"} {
		if b, ok := Builtin(name); ok || b != nil {
			t.Errorf("%q: got %d octets, want none", name, len(b))
		}
	}
	for _, name := range Names() {
		_, err := fs.Stat(modules, "wasm/"+name+".wasm")
		if b, ok := Builtin(name); ok != (err == nil) || ok && !bytes.HasPrefix(b, []byte("\x00asm")) {
			t.Errorf("%s: got %d octets, %v; embedded: %v", name, len(b), ok, err)
		}
	}
}
