package parity

// report.go compares what a run of the tests recorded with the table.

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What became of a test that proves a row.
const (
	passed         = "passed"
	skippedOutcome = "skipped"
)

// Record is what a run of the tests recorded: for each row the tests that passed and those
// that were skipped.
type Record struct {
	Passed, Skipped map[string][]string
}

// ReadRecord reads all files of a directory that the tests of one run wrote.
func ReadRecord(dir string) (Record, error) {
	r := Record{make(map[string][]string), make(map[string][]string)}
	files, err := os.ReadDir(dir)
	if err != nil {
		return r, err
	}
	var errs []error
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err == nil {
			err = r.add(string(text))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.Name(), err))
		}
	}
	return r, errors.Join(errs...)
}

func (r Record) add(text string) error {
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
		if len(fields) != 3 || !rowName.MatchString(fields[1]) {
			return fmt.Errorf("not a line of a record: %q", line)
		}
		switch fields[0] {
		case passed:
			r.Passed[fields[1]] = append(r.Passed[fields[1]], fields[2])
		case skippedOutcome:
			r.Skipped[fields[1]] = append(r.Skipped[fields[1]], fields[2])
		default:
			return fmt.Errorf("not a line of a record: %q", line)
		}
	}
	return nil
}

// Report is the comparison of a record with the table. All lists are in the table's order.
type Report struct {
	table    *Table
	Missing  []Entry  // tested by the table's word, but no test passed or was skipped
	Skipped  []Entry  // tested by the table's word, but its tests were all skipped
	Unmarked []Entry  // passed, but the table does not say tested
	Unknown  []string // passed, but the table has no such row
	Later    []Entry  // still to come
}

// Compare makes the report.
func Compare(t *Table, r Record) Report {
	report := Report{table: t}
	for _, e := range t.Entries {
		switch {
		case e.Status != Tested && len(r.Passed[e.Row]) > 0:
			report.Unmarked = append(report.Unmarked, e)
		case e.Status == Later:
			report.Later = append(report.Later, e)
		case e.Status == NotApplicable || len(r.Passed[e.Row]) > 0:
		case len(r.Skipped[e.Row]) > 0:
			report.Skipped = append(report.Skipped, e)
		default:
			report.Missing = append(report.Missing, e)
		}
	}
	for row := range r.Passed {
		if !t.has(row) {
			report.Unknown = append(report.Unknown, row)
		}
	}
	slices.Sort(report.Unknown)
	return report
}

// Err tells whether the record bears the table out. Rows whose tests were skipped, since
// something that they need is missing on this machine, are an error only if strict is set,
// as under CI.
func (r Report) Err(strict bool) error {
	var errs []error
	complain := func(list []Entry, what string) {
		if len(list) > 0 {
			errs = append(errs, fmt.Errorf("%s: %s", what, names(list)))
		}
	}
	complain(r.Missing, "marked as tested, and no test that passed names them")
	complain(r.Unmarked, "proven by a test, and not marked as tested")
	if strict {
		complain(r.Skipped, "marked as tested, and their tests were skipped")
	}
	if len(r.Unknown) > 0 {
		errs = append(errs, fmt.Errorf("proven by a test, and not in the table: %s", strings.Join(r.Unknown, " ")))
	}
	return errors.Join(errs...)
}

// Write prints the counts of each table, and the rows that are not proven yet.
func (r Report) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	var kinds []string
	counts := make(map[string]map[Status]int)
	for _, e := range r.table.Entries {
		if counts[e.Kind()] == nil {
			kinds = append(kinds, e.Kind())
			counts[e.Kind()] = make(map[Status]int)
		}
		counts[e.Kind()][e.Status]++
	}
	for _, kind := range kinds {
		c := counts[kind]
		fmt.Fprintf(b, "parity %s: %d rows, %d tested, %d not applicable, %d later\n",
			kind, c[Tested]+c[NotApplicable]+c[Later], c[Tested], c[NotApplicable], c[Later])
	}
	list := func(what string, entries []Entry) {
		if len(entries) > 0 {
			fmt.Fprintf(b, "  %s: %s\n", what, names(entries))
		}
	}
	list("later", r.Later)
	list("skipped on this machine", r.Skipped)
	return b.Flush()
}

// names lists rows on one line, neighbours as a range.
func names(list []Entry) string {
	var words []string
	for i := 0; i < len(list); {
		end := i
		for end+1 < len(list) && follows(list[end], list[end+1]) {
			end++
		}
		word := list[i].Row
		if end > i {
			word += ".." + list[end].Row
		}
		words = append(words, word)
		i = end + 1
	}
	return strings.Join(words, " ")
}

// follows tells whether the second row's number is the next one of the same table.
func follows(a, b Entry) bool {
	var n, m int
	_, errA := fmt.Sscanf(a.Row, a.Kind()+"-%d", &n)
	_, errB := fmt.Sscanf(b.Row, a.Kind()+"-%d", &m)
	return errA == nil && errB == nil && m == n+1
}
