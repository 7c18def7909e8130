package parity

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The table has every row of the three libraries, each once and in order.
func TestTableIsWhole(t *testing.T) {
	table, err := load()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, part := range []struct {
		kind        string
		first, last int
	}{{"SS", 1, 46}, {"SS", 50, 58}, {"SS", 60, 83}, {"SC", 1, 52}, {"MX", 1, 77}} {
		for n := part.first; n <= part.last; n++ {
			want = append(want, fmt.Sprintf("%s-%02d", part.kind, n))
		}
	}
	var got []string
	for _, e := range table.Entries {
		got = append(got, e.Row)
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows of the table: got %q\nwant %q", got, want)
	}
}

func TestParse(t *testing.T) {
	for _, test := range []struct {
		text string
		want string // the entries; or, with !, a part of the error
		why  string
	}{
		{"", "", "nothing"},
		{"| row | what | here | status |\n|---|---|---|---|\n| SS-01 | a | `b` | tested |", "SS-01 tested 3", "a table"},
		{"|SC-02|a| |later: with the engine|", "SC-02 later 1", "a reason for what is to come"},
		{"| MX-03 | a | | not applicable: why |\r\n", "MX-03 not applicable 1", "a reason, and CRLF"},
		{`| SS-01 | a\|b | c | later |`, "SS-01 later 1", "a bar within a cell"},
		{"SS-01 is a row", "", "text"},
		{"| greeting | 220 | a | b |", "", "a table of something else"},
		{"| SS-001 | a | b | tested |", "", "no name of a row"},
		{"| SS-01 | a | b |", "!3 cells", ""},
		{"| SS-01 | a | b | c | later |", "!5 cells", ""},
		{"| SS-01 | | b | later |", "!what it is", ""},
		{"| SS-01 | a | b | done |", `!status "done"`, ""},
		{"| SS-01 | a | b | not applicable |", "!why", ""},
		{"| SS-01 | a | b | not applicable: |", "!why", ""},
		{"| SS-01 | a | | tested |", "!called here", ""},
		{"| SS-01 | a | b | later |\n| SS-01 | a | b | later |", "!line 2: SS-01: stands in line 1", ""},
		{"| SS-01 | | b | later |\n| SS-02 | a | b | no |", "!no", "all problems at once"},
	} {
		table, err := Parse(test.text)
		if part, wrong := strings.CutPrefix(test.want, "!"); wrong {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("Parse(%q): error %v, want %q in it", test.text, err, part)
			}
			continue
		}
		var got []string
		for _, e := range table.Entries {
			got = append(got, fmt.Sprint(e.Row, " ", e.Status, " ", e.Line))
		}
		if s := strings.Join(got, ", "); err != nil || s != test.want {
			t.Errorf("Parse(%q) = %q, %v, want %q: %s", test.text, s, err, test.want, test.why)
		}
	}
}

const sample = `
| SS-01 | a | b | tested |
| SS-02 | a | b | tested |
| SS-03 | a | b | tested |
| SS-04 | a | b | tested |
| SS-05 | a | b | later |
| SS-06 | a | b | later: soon |
| SC-01 | a | | not applicable: why |
| SC-02 | a | | not applicable: why |
`

func TestCompare(t *testing.T) {
	table, err := Parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"one": "passed SS-01 a.test:TestA\nskipped SS-01 a.test:TestB\nskipped SS-02 a.test:TestB\n",
		"two": "passed SS-01 b.test:TestC/with space\npassed SS-06 b.test:TestD\npassed SC-02 b.test:TestD\npassed MX-99 b.test:TestD\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	record, err := ReadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := record.Passed["SS-01"]; len(got) != 2 || !slices.Contains(got, "b.test:TestC/with space") {
		t.Errorf("tests of SS-01: got %q", got)
	}
	report := Compare(table, record)
	for _, list := range []struct {
		what string
		got  []Entry
		want string
	}{
		{"missing", report.Missing, "SS-03..SS-04"},
		{"skipped", report.Skipped, "SS-02"},
		{"unmarked", report.Unmarked, "SS-06 SC-02"},
		{"later", report.Later, "SS-05"},
	} {
		if got := names(list.got); got != list.want {
			t.Errorf("%s: got %q, want %q", list.what, got, list.want)
		}
	}
	for _, strict := range []bool{false, true} {
		err := report.Err(strict)
		for _, part := range []string{"SS-03..SS-04", "SS-06 SC-02", "MX-99"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("Err(%v): got %v, want %q in it", strict, err, part)
			}
		}
		if got := strings.Contains(err.Error(), "SS-02"); got != strict {
			t.Errorf("Err(%v): tells of a skipped row is %v: %v", strict, got, err)
		}
	}
	var out strings.Builder
	if err := report.Write(&out); err != nil {
		t.Fatal(err)
	}
	const want = `parity SS: 6 rows, 4 tested, 0 not applicable, 2 later
parity SC: 2 rows, 0 tested, 2 not applicable, 0 later
  later: SS-05
  skipped on this machine: SS-02
`
	if out.String() != want {
		t.Errorf("report: got\n%swant\n%s", &out, want)
	}
	marked := Mark(sample, report.Unmarked)
	if want := strings.Replace(sample, "later: soon", "tested", 1); marked != want {
		t.Errorf("marked: got\n%swant\n%s", marked, want)
	}
}

func TestCompareAgrees(t *testing.T) {
	table, err := Parse("| SS-01 | a | b | tested |\n| SS-02 | a | b | later |\n")
	if err != nil {
		t.Fatal(err)
	}
	record := Record{Passed: map[string][]string{"SS-01": {"a.test:TestA"}}}
	if err := Compare(table, record).Err(true); err != nil {
		t.Errorf("Err: got %v, want nil", err)
	}
}

func TestReadRecordRefuses(t *testing.T) {
	for _, text := range []string{"passed SS-01\n", "failed SS-01 a\n", "passed X a\n", "\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "one"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := ReadRecord(dir); err == nil {
			t.Errorf("record %q: got %v, want an error", text, r)
		}
	}
	if _, err := ReadRecord(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Errorf("record without a directory: got no error")
	}
}

// A row is recorded when its test has ended well, with all its subtests.
func TestRow(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Dir, dir)
	t.Run("passes", func(t *testing.T) {
		Row(t, "SS-01", "SS-02")
		t.Run("sub", func(t *testing.T) { Row(t, "SS-02") })
		if r, err := ReadRecord(dir); err != nil || len(r.Passed["SS-01"]) != 0 {
			t.Errorf("record before the end: got %v, %v, want nothing of SS-01", r, err)
		}
	})
	t.Run("skips", func(t *testing.T) {
		Row(t, "SS-03")
		t.Skip("to see that it is not recorded as passed")
	})
	failed := &standIn{TB: t, failed: true}
	Row(failed, "SS-04")
	failed.end()

	r, err := ReadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name            string
		passed, skipped int
	}{{"SS-01", 1, 0}, {"SS-02", 2, 0}, {"SS-03", 0, 1}, {"SS-04", 0, 0}} {
		if p, s := len(r.Passed[row.name]), len(r.Skipped[row.name]); p != row.passed || s != row.skipped {
			t.Errorf("%s: got %d passed and %d skipped, want %d and %d", row.name, p, s, row.passed, row.skipped)
		}
	}
	if got := r.Passed["SS-01"]; len(got) == 1 && !strings.HasSuffix(got[0], ":TestRow/passes") {
		t.Errorf("test of SS-01: got %q", got)
	}
}

func TestRowUnknown(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} { // known or not does not depend on a record
		t.Setenv(Dir, dir)
		s := &standIn{TB: t}
		func() {
			defer func() {
				if v := recover(); v != nil && v != any(s) {
					panic(v)
				}
			}()
			Row(s, "SS-01", "SS-99")
		}()
		if !strings.Contains(s.said, `no row "SS-99"`) || len(s.cleanups) > 0 {
			t.Errorf("unknown row: the test is told %q", s.said)
		}
	}
}

// A record that cannot be written fails the test: it would be missed otherwise.
func TestRowNoDirectory(t *testing.T) {
	t.Setenv(Dir, filepath.Join(t.TempDir(), "none"))
	s := &standIn{TB: t}
	Row(s, "SS-01")
	s.end()
	if !s.failed {
		t.Errorf("a record that cannot be written: the test passes")
	}
}

// standIn is a test that fails without failing the one that runs.
type standIn struct {
	testing.TB
	failed   bool
	said     string
	cleanups []func()
}

func (s *standIn) Helper()          {}
func (s *standIn) Name() string     { return "TestStandIn" }
func (s *standIn) Failed() bool     { return s.failed }
func (s *standIn) Skipped() bool    { return false }
func (s *standIn) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *standIn) Errorf(format string, args ...any) {
	s.failed, s.said = true, fmt.Sprintf(format, args...)
}

func (s *standIn) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	panic(s) // ends the call, as the real one does
}

func (s *standIn) end() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}
