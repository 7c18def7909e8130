package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/wasmhost"
)

// versions.go keeps the modules that a push or a rollback replaced, so that there is a way
// back. They stand beside the folder's modules:
//
//	filters.dir/.versions/NAME/<sha256>.wasm
//	filters.dir/.versions/NAME/order           a line for each, the oldest first:
//	                                           <sha256> <time> replaced|withdrawn
//
// A file that no line names, or a line whose file is gone, counts for nothing.

// versions are those of one module.
type versions struct{ dir string }

func versionsOf(filtersDir, name string) versions {
	return versions{filepath.Join(filtersDir, ".versions", name)}
}

// version is one module that was replaced.
type version struct {
	digest    digest
	size      int64
	replaced  time.Time
	withdrawn bool // by a rollback
}

// The most that is kept of one module, and the most that its order may have.
const (
	maxVersions = 10
	maxOrder    = 64 << 10
)

func (v versions) order() string { return filepath.Join(v.dir, "order") }
func (v versions) file(d digest) string {
	return filepath.Join(v.dir, hex.EncodeToString(d[:])+".wasm")
}

// list returns the versions, the oldest first.
func (v versions) list() ([]version, error) {
	text, err := readRegular(v.order(), maxOrder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []version
	for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
		one, ok := parseVersion(sc.Text())
		if !ok {
			continue
		}
		if info, err := os.Stat(v.file(one.digest)); err == nil && info.Mode().IsRegular() {
			one.size = info.Size()
			list = append(list, one)
		}
	}
	return list, nil
}

func parseVersion(line string) (one version, ok bool) {
	words := strings.Fields(line)
	if len(words) != 3 || len(words[0]) != 2*sha256.Size {
		return one, false
	}
	_, err := hex.Decode(one.digest[:], []byte(words[0]))
	at, err2 := time.Parse(time.RFC3339, words[1])
	one.replaced, one.withdrawn = at, words[2] == "withdrawn"
	return one, err == nil && err2 == nil
}

func (one version) line() string {
	word := "replaced"
	if one.withdrawn {
		word = "withdrawn"
	}
	return fmt.Sprintf("%s %s %s\n", hex.EncodeToString(one.digest[:]), one.replaced.UTC().Format(time.RFC3339), word)
}

// keep adds a module as the newest version, and lets the oldest go if there are too many.
func (v versions) keep(wasm []byte, withdrawn bool) error {
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		return err
	}
	list, err := v.list()
	if err != nil {
		return err
	}
	sum := digest(sha256.Sum256(wasm))
	if err := writeFile(v.file(sum), wasm, 0o644); err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(o version) bool { return o.digest == sum })
	list = append(list, version{digest: sum, replaced: time.Now(), withdrawn: withdrawn})
	return v.write(list)
}

// forget lets one go: it is what is there again.
func (v versions) forget(d digest) error {
	list, err := v.list()
	if err != nil {
		return err
	}
	kept := slices.DeleteFunc(slices.Clone(list), func(o version) bool { return o.digest == d })
	if len(kept) == len(list) {
		return nil
	}
	if err := v.write(kept); err != nil {
		return err
	}
	return os.Remove(v.file(d))
}

// write makes list the order, and removes what is too old. The order goes first: a file too
// many does no harm.
func (v versions) write(list []version) error {
	old := list[:max(len(list)-maxVersions, 0)]
	var text strings.Builder
	for _, one := range list[len(old):] {
		text.WriteString(one.line())
	}
	err := writeFile(v.order(), []byte(text.String()), 0o644)
	for _, one := range old {
		if err == nil {
			err = os.Remove(v.file(one.digest))
		}
	}
	return err
}

// read returns a version's module. One that has changed on disk is refused.
func (v versions) read(d digest) ([]byte, error) {
	wasm, err := readRegular(v.file(d), wasmhost.MaxModule)
	if err == nil && sha256.Sum256(wasm) != d {
		err = fmt.Errorf("%s is not what its name says; it was changed on disk", v.file(d))
	}
	return wasm, err
}
