package parity

// table.go reads docs/parity.md. A line of one of its tables that begins with a row's name
// has four cells:
//
//	| SS-41 | longest command line | `MaxLine` | tested |
//
// All other lines are for people alone.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// tablePath is where the table stands in the module.
const tablePath = "docs/parity.md"

// Status is what the table says about a row.
type Status string

// The three things that the table may say.
const (
	Tested        Status = "tested"         // a test proves it
	NotApplicable Status = "not applicable" // it has no meaning here; the table says why
	Later         Status = "later"          // it is still to come
)

// Entry is one row of the table.
type Entry struct {
	Row    string // its name, as SS-41
	Status Status
	Line   int // in the file, from 1
}

// Kind is the table that the row belongs to: the letters of its name.
func (e Entry) Kind() string {
	kind, _, _ := strings.Cut(e.Row, "-")
	return kind
}

// Table is what docs/parity.md says. It is not changed after it was read.
type Table struct {
	Entries []Entry // in the order of the file
	byRow   map[string]int
}

// rowName is the form of a row's name: its table and a number.
var rowName = regexp.MustCompile(`^(SS|SC|MX)-[0-9]{2}$`)

// Load reads the table of the module in the directory root.
func Load(root string) (*Table, error) {
	text, err := os.ReadFile(filepath.Join(root, tablePath))
	if err != nil {
		return nil, err
	}
	return Parse(string(text))
}

// Parse reads the table's text. The error lists all that is wrong with it: a row that is
// there twice, one without its four cells, an unknown status, or a reason that is missing.
func Parse(text string) (*Table, error) {
	t := &Table{byRow: make(map[string]int)}
	var errs []error
	for i, line := range strings.Split(text, "\n") {
		cells := cells(line)
		if len(cells) == 0 || !rowName.MatchString(cells[0]) {
			continue
		}
		e, err := parseEntry(cells, i+1)
		if first, twice := t.byRow[e.Row]; twice {
			err = fmt.Errorf("stands in line %d already", t.Entries[first].Line)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s, line %d: %s: %w", tablePath, i+1, e.Row, err))
			continue
		}
		t.byRow[e.Row] = len(t.Entries)
		t.Entries = append(t.Entries, e)
	}
	return t, errors.Join(errs...)
}

func parseEntry(cells []string, line int) (Entry, error) {
	e := Entry{Row: cells[0], Line: line}
	if len(cells) != 4 {
		return e, fmt.Errorf("has %d cells, want row, what, here, status", len(cells))
	}
	if cells[1] == "" {
		return e, errors.New("does not say what it is")
	}
	status, why, _ := strings.Cut(cells[3], ":")
	e.Status = Status(status)
	if !slices.Contains([]Status{Tested, NotApplicable, Later}, e.Status) {
		return e, fmt.Errorf("has the status %q, want tested, later, or not applicable and why", cells[3])
	}
	if e.Status == NotApplicable && strings.TrimSpace(why) == "" {
		return e, errors.New("is not applicable, and does not say why")
	}
	if e.Status == Tested && cells[2] == "" {
		return e, errors.New("is tested, and does not say what it is called here")
	}
	return e, nil
}

// cells splits a line of a table. A bar within a cell is written \|.
func cells(line string) []string {
	line = strings.TrimSpace(line)
	if len(line) < 2 || line[0] != '|' || line[len(line)-1] != '|' {
		return nil
	}
	const bar = "\x00"
	line = strings.ReplaceAll(line[1:len(line)-1], `\|`, bar)
	list := strings.Split(line, "|")
	for i, c := range list {
		list[i] = strings.TrimSpace(strings.ReplaceAll(c, bar, "|"))
	}
	return list
}

// has tells whether the table has a row.
func (t *Table) has(row string) bool {
	_, ok := t.byRow[row]
	return ok
}
