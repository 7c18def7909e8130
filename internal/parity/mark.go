package parity

import "strings"

// Mark returns the table's text with rows marked as tested: those of [Report.Unmarked]
// that were to come later. A row that the table calls not applicable is left to a person,
// since either it or the test is wrong. The text is the one that the table was read from.
func Mark(text string, unmarked []Entry) string {
	lines := strings.Split(text, "\n")
	for _, e := range unmarked {
		if e.Status != Later {
			continue
		}
		line := lines[e.Line-1]
		end := strings.LastIndexByte(line, '|')
		start := strings.LastIndexByte(line[:end], '|') // a status has no bar in it
		lines[e.Line-1] = line[:start+1] + " " + string(Tested) + " " + line[end:]
	}
	return strings.Join(lines, "\n")
}
