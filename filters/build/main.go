// Build makes a WebAssembly module of each filter that ships with Penstock. It is run in
// the root of the repository:
//
//	go run ./filters/build            into filters/wasm, where package filters embeds them
//	go run ./filters/build -o DIR     into DIR
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/guest-sdk/manifest"
)

func main() {
	out := flag.String("o", filepath.Join("filters", "wasm"), "write the modules to this `folder`")
	flag.Parse()
	if err := buildAll(*out); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func buildAll(dir string) error {
	for _, name := range filters.Names() {
		file := filepath.Join(dir, name+".wasm")
		if err := build(name, file); err != nil {
			return fmt.Errorf("filter %s: %w", name, err)
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%d octets\n", file, info.Size())
	}
	return nil
}

// build runs the compiler. The module is the same wherever it is built: -trimpath leaves
// the builder's paths out, -s -w what only debuggers read. It appears at file when it is
// whole: the compiler leaves a file alone that it has made before, manifest and all.
func build(name, file string) error {
	built := file + ".new"
	defer os.Remove(built) // left over only after an error
	if err := os.Remove(built); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-buildmode=c-shared", "-ldflags=-s -w", "-o", built,
		"github.com/penstock/penstock/filters/"+name)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOWORK=off")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	if err := addManifest(name, built); err != nil {
		return err
	}
	return os.Rename(built, file)
}

// addManifest puts into the module what the filter says of itself, if it does.
func addManifest(name, file string) error {
	text, err := os.ReadFile(filepath.Join("filters", name, manifest.File))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	wasm, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if wasm, err = manifest.Append(wasm, text); err != nil {
		return err
	}
	return os.WriteFile(file, wasm, 0o644)
}
