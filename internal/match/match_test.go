package match

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// find looks for patterns in text that comes in pieces of n octets.
func find(t testing.TB, kind Kind, patterns []string, text string, n int) []Hit {
	t.Helper()
	s, err := New(kind, patterns)
	if err != nil {
		t.Fatal(err)
	}
	f := s.Finder(100, nil)
	for more := true; more; {
		k := min(n, len(text))
		more = f.Next([]byte(text[:k]), k == len(text)) && k < len(text)
		text = text[k:]
	}
	return f.Hits()
}

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		kind     Kind
		patterns string // space-separated
		text     string
		want     string // pattern@offset+length
		why      string
	}{
		{Literal, "he she his hers", "ushers", "0@102+2 1@101+3 3@102+4", "the example of the paper"},
		{Literal, "a aa aaa aaaa", "xaaax", "0@101+1 1@101+2 2@101+3", "each the end of another"},
		{Literal, "b", "abcb", "0@101+1", "the first place counts"},
		{Literal, "x x", "ax", "0@101+1 1@101+1", "twice in a set"},
		{Literal, "Ab", "aB", "", "case matters"},
		{Fold, "Ab", "xaB", "0@101+2", "or does not"},
		{Fold, "\xc4", "\xe4", "", "of ASCII alone"},
		{Literal, "\x00\xff", "\xff\x00\xff", "0@101+2", "any octets"},
		{Literal, "abcd bc", "abce", "1@101+2", "a literal within one that fails"},
		{Literal, "abcd bx", "abx", "1@101+2", "the end of a beginning goes on"},
		{Regexp, `b+ ^c$ z`, "abb\nc\n", "0@101+2 1@104+1", "by line"},
		{Regexp, `(?i)AB a|b`, "xab", "0@101+2 1@101+1", "flags"},
		{Regexp, `.*`, "", "", "nothing to look at"},
	} {
		for n := range len(tt.text) + 1 {
			var got []string
			for _, h := range find(t, tt.kind, strings.Fields(tt.patterns), tt.text, n+1) {
				got = append(got, fmt.Sprintf("%d@%d+%d", h.Pattern, h.Off, h.Len))
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%s: %q in %q, by %d: got %q, want %q", tt.why, tt.patterns, tt.text, n+1, got, tt.want)
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		kind     Kind
		patterns []string
		want     string
	}{
		{Literal, nil, "0 patterns, want 1 to"},
		{Literal, []string{"a", ""}, "pattern 1 has 0 octets"},
		{Literal, []string{strings.Repeat("a", MaxLiteral+1)}, "pattern 0 has 257 octets"},
		{Literal, make([]string, MaxPatterns+1), "10001 patterns, want 1 to 10000"},
		{Regexp, make([]string, MaxRegexps+1), "65 patterns, want 1 to 64"},
		{Regexp, []string{"a", "("}, "pattern 1: error parsing regexp: missing closing )"},
		{Regexp, []string{`(a{100}){10}`}, "pattern 0"},
		{Regexp, []string{`(\w{50}){6}`}, "steps, want at most 250"},
		{Regexp, []string{strings.Repeat("a", maxRegexp+1)}, "pattern 0 has 1025 octets"},
		{Kind(3), []string{"a"}, "no kind 3"},
		{Kind(-1), []string{"a"}, "no kind -1"},
	} {
		if _, err := New(tt.kind, tt.patterns); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d, %.50q: got %v, want %q", tt.kind, tt.patterns, err, tt.want)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	many := make([]string, MaxPatterns)
	for i := range many {
		b := make([]byte, 60)
		for k := range b {
			b[k] = byte(random.UintN(256))
		}
		many[i] = string(b)
	}
	if _, err := New(Literal, many); !errors.Is(err, ErrLarge) {
		t.Errorf("600,000 octets that have nothing in common: got %v", err)
	}
}

// Work is told of before it is done, in bounded amounts, and can be refused.
func TestWork(t *testing.T) {
	text := bytes.Repeat([]byte("no such thing in this line\r\n"), 10_000)
	for _, kind := range []Kind{Literal, Regexp} {
		s, err := New(kind, []string{"never"})
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		f := s.Finder(0, func(n int64) bool {
			if asked++; n <= 0 || n > 1<<20 {
				t.Errorf("asked for %d octets at once", n)
			}
			return asked < 3
		})
		if f.Next(text, true) || asked != 3 {
			t.Errorf("kind %d: it went on after %d questions", kind, asked)
		}
	}
}

// FuzzLiteral: the automaton finds what a search for each literal finds, in pieces of any
// size, and in content that is long enough for its lanes.
func FuzzLiteral(f *testing.F) {
	f.Add("he she his hers", "ushers", 3, 900, true)
	f.Add("a aa aaa b", "aab", 7000, 5000, false)
	f.Add("xyz zx x", "xyzz", 65537, 20_000, false)
	f.Fuzz(func(t *testing.T, list, text string, n, times int, fold bool) {
		var patterns []string
		for _, p := range strings.Fields(list) {
			if len(p) <= MaxLiteral {
				patterns = append(patterns, p)
			}
		}
		if len(patterns) == 0 || n < 1 {
			return
		}
		if times = max(1, min(times, 100_000/(len(text)+1))); fold {
			text = strings.Repeat(".", times) + text
		} else {
			text = strings.Repeat(text, times)
		}
		kind, lower := Literal, func(s string) string { return s }
		if fold {
			kind, lower = Fold, func(s string) string {
				b := []byte(s)
				for i, c := range b {
					b[i] = lowerASCII(c)
				}
				return string(b)
			}
		}
		var want []Hit
		for i, p := range patterns {
			if at := strings.Index(lower(text), lower(p)); at >= 0 {
				want = append(want, Hit{i, int64(at) + 100, len(p)})
			}
		}
		if got := find(t, kind, patterns, text, n); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// words is text without any of the patterns that benchmarks look for.
func words(n int) []byte {
	random := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 0, n+12)
	for len(b) < n {
		for range 2 + random.UintN(8) {
			b = append(b, "etaoinshrdlucmfw"[random.UintN(16)])
		}
		if b = append(b, ' '); random.UintN(12) == 0 {
			b = append(b, '\r', '\n')
		}
	}
	return b[:n]
}

// BenchmarkFind is the cost of looking for what is not there.
func BenchmarkFind(b *testing.B) {
	text := words(1 << 20)
	random := rand.New(rand.NewPCG(5, 6))
	list := func(n int) (out []string) {
		for range n {
			w := []byte{'q', 'z'}
			for range 3 + random.UintN(8) {
				w = append(w, byte('a'+random.UintN(26)))
			}
			random.Shuffle(len(w), func(i, k int) { w[i], w[k] = w[k], w[i] })
			out = append(out, string(w))
		}
		return out
	}
	for _, tt := range []struct {
		name     string
		kind     Kind
		patterns []string
	}{
		{"literals=1", Literal, list(1)}, {"literals=10", Literal, list(10)}, {"literals=100", Fold, list(100)},
		{"literals=1000", Fold, list(1000)}, {"literals=10000", Literal, list(10_000)},
		{"literals=dense", Literal, []string{"e", "t", "qqq"}},
		{"regexps=1", Regexp, []string{`https?://[0-9.]+/`}}, {"regexps=1i", Regexp, []string{`(?i)zqv(iag|xyz)ra`}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			s, err := New(tt.kind, tt.patterns)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				f := s.Finder(0, nil)
				for at := 0; at < len(text); at += 64 << 10 {
					f.Next(text[at:at+64<<10], at+64<<10 == len(text))
				}
			}
		})
	}
}
