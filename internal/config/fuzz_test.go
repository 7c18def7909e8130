package config

import (
	"strings"
	"testing"
	"unicode"
)

// Whatever the file, the environment and a flag hold: no panic, a Config or an
// error, one line for each problem, and the same lines the next time.
func FuzzLoad(f *testing.F) {
	f.Add(full, "PENSTOCK_LOG__LEVEL=debug", "log.level", "error")
	f.Add(minimal, "PENSTOCK_LISTENERS=[{name: a, address: ':1'}]", "backends.m.tls", "off")
	f.Add(minimal, "PENSTOCK_BACKENDS={a.b: {}}", "backends.a.b.addresses", "[[smtp://x]]")
	f.Add("a: &a [*a]\nb: {<<: *a}\n", "PENSTOCK_=", "", "")
	for _, c := range problemCases() {
		if len(c.yaml) < 2000 {
			f.Add(strings.TrimPrefix(c.yaml, "!"), "", "filters.dir", "x")
			f.Add(overMinimal(c.yaml), "PENSTOCK_ROUTES=", "", "")
		}
	}
	f.Fuzz(func(t *testing.T, file, env, key, value string) {
		if len(file)+len(env)+len(value) > 1<<16 {
			return // time is bounded by maxFile and maxNodes; the fuzzer has better to do
		}
		overrides := []Override{{Key: key, Value: value}}
		c, problems := load("p.yaml", []byte(file), strings.Split(env, "\n"), overrides)
		if (c == nil) != (len(problems.Errors()) > 0) {
			t.Errorf("config is nil: %v, problems: %v", c == nil, problems)
		}
		for _, p := range problems {
			if line := p.String(); strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("not one printable line: %q", line)
			}
		}
		if _, again := load("p.yaml", []byte(file), strings.Split(env, "\n"), overrides); again.Error() != problems.Error() {
			t.Errorf("first\n%s\nthen\n%s", problems, again)
		}
		if c != nil && len(c.Validate().Errors()) > 0 {
			t.Errorf("accepted, and then not: %v", c.Validate())
		}
	})
}
