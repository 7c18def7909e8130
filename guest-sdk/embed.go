// Package guestsdk carries the sources of the Go SDK, so that a filter can be built where
// there is a Go compiler but no network. WriteModule lays them down as a module beside
// the author's project:
//
//	myfilter/
//	├── go.mod               require github.com/penstock/penstock v0.0.0
//	│                        replace github.com/penstock/penstock => ./.penstock
//	├── main.go              import "github.com/penstock/penstock/guest-sdk/filter"
//	└── .penstock/           written by WriteModule
//	    ├── go.mod
//	    └── guest-sdk/{abi,filter}/
package guestsdk

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// sources are named one by one: a pattern would take the tests along. A test compares the
// list with the folders.
//
//go:embed abi/abi.go abi/table.go
//go:embed filter/address.go filter/body.go filter/config.go filter/errors.go filter/event.go filter/filter.go
//go:embed filter/frame.go filter/header.go filter/host_native.go filter/host_wasip1.go filter/json.go filter/log.go
//go:embed filter/reply.go filter/text.go filter/words.go
var sources embed.FS

// Module is the path of the module that WriteModule writes.
const Module = "github.com/penstock/penstock"

// goMod is all that the sources need: they import nothing but the standard library.
const goMod = "// Written by Penstock. Changes are lost.\n\nmodule " + Module + "\n\ngo 1.26\n"

// Requirement returns the lines that an author's go.mod needs for sources that are in
// folder dir, relative to it and with slashes, as in "./.penstock".
func Requirement(dir string) string {
	return "require " + Module + " v0.0.0\n\nreplace " + Module + " => " + dir + "\n"
}

// WriteModule writes the module into dir, which it makes if need be. Files of the same
// names are replaced, others stay.
func WriteModule(dir string) error {
	if err := writeFile(filepath.Join(dir, "go.mod"), []byte(goMod)); err != nil {
		return err
	}
	return fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := sources.ReadFile(path)
		if err != nil {
			return err
		}
		return writeFile(filepath.Join(dir, "guest-sdk", filepath.FromSlash(path)), text)
	})
}

func writeFile(file string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("guestsdk: write SDK: %w", err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return fmt.Errorf("guestsdk: write SDK: %w", err)
	}
	return nil
}
