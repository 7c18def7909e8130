package tck_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/tck"
)

// old_test.go runs guests that were built for older versions of the contract.

var keep = flag.Bool("keep", false, "keep the guest of the current version in testdata/abi")

// dirOf is where guests of a minor version are.
func dirOf(minor int) string { return filepath.Join("testdata", "abi", fmt.Sprint("1.", minor)) }

// With -keep, TestKeep writes the guest of the current version where there is none: at a
// release, before the next minor version begins.
func TestKeep(t *testing.T) {
	if !*keep {
		return
	}
	file := filepath.Join(dirOf(abi.Minor), "tck.wasm")
	if _, err := os.Stat(file); err == nil {
		t.Fatalf("%s is there: guests that were kept stay as they are", file)
	}
	if err := os.MkdirAll(dirOf(abi.Minor), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, tck.Guest(), 0o666); err != nil {
		t.Fatal(err)
	}
}

// A guest of an older version finds all that its version promised.
func TestOldGuests(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join("testdata", "abi", "1.*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no old guests: %v", err)
	}
	for _, dir := range dirs {
		_, text, _ := strings.Cut(filepath.Base(dir), ".")
		minor, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		wasm, err := os.ReadFile(filepath.Join(dir, "tck.wasm"))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			tck.Run(t, tck.Subject{Load: load(t, wasm), Minor: minor})
		})
	}
}
