// Package parity holds docs/parity.md against the tests. That table lists, row by row,
// what the libraries that this gateway takes the place of can do, and what it is called
// here. A row that is marked as tested has a test that says so:
//
//	func TestLineLimit(t *testing.T) {
//		parity.Row(t, "SS-41")
//		...
//	}
//
// A run of all tests records which rows were proven; the program check, which `make test`
// runs at the end, compares the record with the table. So the table cannot promise what no
// test has seen, and no test can go missing without a word.
package parity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// Dir is the environment variable that names the directory of the records. Where it is not
// set, nothing is recorded. It should name a fresh directory for each run: its value is
// part of what go test looks at before it repeats a result from its cache, so with a new
// value exactly those packages run again that have rows to record. Its own name does not begin
// with PENSTOCK_, since the program, which tests start, takes such variables for settings.
const Dir = "PARITY_DIR"

// Row says that the running test proves these rows of docs/parity.md. When the test has
// ended, with all its subtests, each row is recorded as passed, as skipped, or, if the
// test has failed, not at all. It is called at the beginning of the test, so that whatever
// the test cleans up is looked at too. A row that the table does not have ends the test.
// Several tests may prove one row. It is safe for concurrent use by parallel tests.
func Row(t testing.TB, rows ...string) {
	t.Helper()
	table, err := load()
	if err != nil {
		t.Fatalf("parity: %v", err)
	}
	for _, row := range rows {
		if !table.has(row) {
			t.Fatalf("parity: %s has no row %q: add it there, or name another here", tablePath, row)
		}
	}
	dir := os.Getenv(Dir)
	if dir == "" {
		return
	}
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if err := record(dir, t.Name(), t.Skipped(), rows); err != nil {
			t.Errorf("parity: %v", err)
		}
	})
}

// load reads the table of the module that the test belongs to.
func load() (*Table, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	return Load(root)
}

// moduleRoot walks up from the working directory, which go test sets to the package's own.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = parent
	}
}

// record appends a line for each row to this process's own file: go test runs several
// packages at the same time, each as a process. Within one process parallel tests append
// with one write each, which the kernel keeps apart.
func record(dir, test string, skipped bool, rows []string) error {
	outcome := passed
	if skipped {
		outcome = skippedOutcome
	}
	binary := filepath.Base(os.Args[0])
	var lines []byte
	for _, row := range rows {
		lines = fmt.Appendf(lines, "%s %s %s:%s\n", outcome, row, binary, test)
	}
	name := filepath.Join(dir, binary+"-"+strconv.Itoa(os.Getpid()))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(lines)
	return errors.Join(err, f.Close())
}
