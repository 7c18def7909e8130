package config

import (
	"fmt"
	"strings"
	"testing"
)

// Large files that are all mistakes, each of a kind that has to be
// compared with all others. What takes quadratic time here does not end before the
// test's deadline, and what keeps a problem for each pair does not fit in memory.
func TestLoadIsBounded(t *testing.T) {
	repeat := func(head, line string, n int) string {
		var b strings.Builder
		b.WriteString(head)
		for i := range n {
			b.WriteString(strings.ReplaceAll(line, "#", fmt.Sprint(i)))
		}
		return b.String()
	}
	for _, c := range []struct {
		name, text string
		most       int // problems
	}{
		{"listeners that are all the same", repeat("listeners:\n", "- {name: a, address: ':1'}\n", 5000), 10100},
		{"routes and backends that do not meet", repeat("routes:\n", "- {domains: [a#.test], backend: b#}\n", 4000) + repeat("backends:\n", "  k#: {}\n", 4000), 12100},
		{"unknown keys", repeat("", "k#: 1\n", 40000), 40100},
		{"routes that are shadowed", "routes:\n- backend: m\n  domains: ['*.test'" + repeat("", ",a#.b.c.d.test", 20000) + "]\n", 20100},
		{"networks", "listeners:\n- {accept: any, trusted_networks: [" + repeat("", "10.0.0.1,", 40000) + "]}\n", 100},
		{"a domain that is one long word", "hostname: " + strings.Repeat("ü", 500_000) + "\n", 100},
		{"merges of merges", "backends: {a: &a {<<: [" + strings.Repeat("*a,", 1000) + "]}}\n", 100},
		{"an open bracket in each line", strings.Repeat("[\n", maxFile/2), 100},
	} {
		if len(c.text) > maxFile {
			t.Fatalf("%s: %d bytes are no longer a file", c.name, len(c.text))
		}
		cfg, problems := load("p.yaml", []byte(c.text), nil, nil)
		if cfg != nil || len(problems) > c.most {
			t.Errorf("%s: config %v, %d problems, want at most %d", c.name, cfg != nil, len(problems), c.most)
		}
	}
}
