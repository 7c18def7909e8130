package certs

import (
	"fmt"
	"strings"
	"testing"
)

// TestExpiries: what clients are shown, the first to end in front; the self-signed one only
// where our own name has no other.
func TestExpiries(t *testing.T) {
	for _, tt := range []struct {
		specs []spec
		want  string
	}{
		{nil, "mx1.example.test"},
		{[]spec{{label: "c1", names: []string{"b.test", "a.test"}, notAfter: day(20)}, {label: "c2", names: []string{"*.c.test"}, notAfter: day(10)}},
			"*.c.test; a.test b.test; mx1.example.test"},
		{[]spec{{label: "c3", names: []string{"a.test"}, notAfter: day(20)}, {label: "c4", names: []string{"mx1.example.test"}, notAfter: day(10)}},
			"mx1.example.test; a.test"},
		{[]spec{{label: "c5", names: []string{"a.test", "mx1.example.test"}, notAfter: day(20)}, {label: "c6", names: []string{"a.test"}, notAfter: day(30)}},
			"mx1.example.test; a.test"}, // the later one of a.test is shown
	} {
		s := openFiles(t, tt.specs...)
		var got []string
		for _, e := range s.Expiries() {
			got = append(got, strings.Join(e.Names, " "))
			if e.NotAfter.IsZero() {
				t.Errorf("%v has no end", e.Names)
			}
		}
		if text := strings.Join(got, "; "); text != tt.want {
			t.Errorf("%s: %s, want %s", fmt.Sprint(len(tt.specs)), text, tt.want)
		}
	}
}
