// Command check compares a record of the tests with docs/parity.md, from the root of the
// module:
//
//	PARITY_DIR=DIR go test ./... && go run ./internal/parity/check DIR
//
// It prints how many rows of each table are tested, and exits with 1 if a row that is
// marked as tested was not proven, or a proven one is not marked. Rows whose tests were
// skipped are told, and count as not proven under CI. With -mark it first marks the proven
// rows that were to come later; the change is for a person to read before it is committed.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/penstock/penstock/internal/parity"
)

func main() {
	mark := flag.Bool("mark", false, "mark the rows as tested that a test has proven")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: check [-mark] DIR")
		os.Exit(2)
	}
	if err := check(flag.Arg(0), *mark); err != nil {
		fmt.Fprintf(os.Stderr, "docs/parity.md and the tests disagree:\n%v\n", err)
		os.Exit(1)
	}
}

func check(dir string, mark bool) error {
	record, err := parity.ReadRecord(dir)
	if err != nil {
		return err
	}
	table, err := parity.Load(".")
	if err != nil {
		return err
	}
	report := parity.Compare(table, record)
	if mark && len(report.Unmarked) > 0 {
		if err := rewrite(report.Unmarked); err != nil {
			return err
		}
		return check(dir, false)
	}
	if err := report.Write(os.Stdout); err != nil {
		return err
	}
	return report.Err(os.Getenv("CI") != "")
}

func rewrite(unmarked []parity.Entry) error {
	path := filepath.Join("docs", "parity.md")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(parity.Mark(string(text), unmarked)), 0o644)
}
