package guest_test

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// list writes a list as it stands in a frame.
func list(elements ...string) []byte {
	var b []byte
	for _, e := range elements {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(e))), e...)
	}
	return b
}

// found writes what match says: pattern@place+length.
func found(g *guest.Env, set, part int32, off int64) string {
	b := make([]byte, 4*abi.HitSize)
	n := g.Match(set, part, off, b)
	if n < 0 {
		return abi.Errno(n).Error()
	}
	var out []string
	for ; n > 0 && len(b) > 0; n, b = n-1, b[abi.HitSize:] {
		le := binary.LittleEndian
		out = append(out, fmt.Sprintf("%d@%d+%d", le.Uint32(b[abi.HitPattern:]), le.Uint64(b), le.Uint32(b[abi.HitLen:])))
	}
	return strings.Join(out, " ")
}

func TestMatch(t *testing.T) {
	boot := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	for i, set := range []struct {
		kind  abi.MatchKind
		texts []string
	}{{abi.MatchLiteral, []string{"hello", "ü", "none", "--x"}}, {abi.MatchFold, []string{"SUBJECT", "HTML"}}, {abi.MatchRegexp, []string{`<b>.*</b>`, `^h`}}} {
		if id := boot.MatchSet(int32(set.kind), list(set.texts...)); id != int32(i) {
			t.Fatalf("set %d: got %d", i, id)
		}
	}
	askMessage(t, mixed, guest.Options{Setup: boot.Setup()}, func(g *guest.Env, _ *policy.Event) {
		body := mixed[strings.Index(mixed, "--x\r\n"):]
		for _, tt := range []struct {
			set, part int32
			off       int64
			want      string
		}{
			{0, abi.ScanBody, 0, "3@0+3"}, {0, abi.ScanBody, 1, fmt.Sprintf("3@%d+3", 1+strings.Index(body[1:], "--x"))},
			{0, 0, 0, "3@0+3"}, {0, 1, 0, "1@3+2"}, {0, 2, 0, "0@0+5"}, {0, 2, 1, ""}, {0, 2, 1 << 60, ""},
			{1, abi.ScanHeader, 0, "0@0+7"}, {1, abi.ScanBody, 0, fmt.Sprintf("1@%d+4", strings.Index(body, "html"))},
			{2, 1, 0, "0@0+9"}, {2, 2, 0, "1@0+1"},
			{3, 1, 0, abi.ENOENT.Error()}, {-1, 1, 0, abi.ENOENT.Error()}, {0, 3, 0, abi.ENOENT.Error()}, {0, -3, 0, abi.ENOENT.Error()}, {0, 1, -1, abi.EINVAL.Error()},
		} {
			if got := found(g, tt.set, tt.part, tt.off); got != tt.want {
				t.Errorf("set %d in part %d at %d: got %q, want %q", tt.set, tt.part, tt.off, got, tt.want)
			}
		}
		if n := g.Match(0, 1, 0, nil); n != 1 {
			t.Errorf("without room: got %d", n)
		}
		short := make([]byte, abi.HitSize+1)
		if n := g.Match(1, 0, 0, short[:abi.HitSize-1]); n != 1 || slices.Max(short) != 0 {
			t.Errorf("with too little room: got %d, %v", n, short)
		}
	})
}

func TestMatchSetRefuses(t *testing.T) {
	g := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	for _, tt := range []struct {
		name string
		kind int32
		list []byte
		want abi.Errno
	}{
		{"no kind", 3, list("a"), abi.EINVAL},
		{"no kind", -1, list("a"), abi.EINVAL},
		{"a list that is cut off", 0, list("abc")[:6], abi.EINVAL},
		{"half a length", 0, []byte{1, 0}, abi.EINVAL},
		{"no patterns", 0, nil, abi.ELIMIT},
		{"an empty pattern", 0, list(""), abi.EINVAL},
		{"a bad expression", 2, list("a", "("), abi.EINVAL},
		{"a long list", 0, make([]byte, abi.MaxMatchText+1), abi.ELIMIT},
	} {
		if got := g.MatchSet(tt.kind, tt.list); got != int32(tt.want) {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
	if want := "match_set: pattern 1: error parsing regexp"; !strings.Contains(g.Complaint(), want) {
		t.Errorf("the log says %q, want %q", g.Complaint(), want)
	}
	for i := range abi.MaxMatchSets {
		if got := g.MatchSet(0, list("a")); got != int32(i) {
			t.Errorf("set %d: got %d", i, got)
		}
	}
	if got := g.MatchSet(0, list("a")); got != int32(abi.ELIMIT) {
		t.Errorf("one set too many: got %d", got)
	}
	// A guest that starts again gets the sets that it has, and no others.
	again := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services(), Setup: g.Setup()})
	if got := again.MatchSet(0, list("a")); got != 0 {
		t.Errorf("the first set again: got %d", got)
	}
	if got := again.MatchSet(0, list("b")); got != int32(abi.EINVAL) {
		t.Errorf("another set than at first: got %d", got)
	}
}

func TestHash(t *testing.T) {
	body := mixed[strings.Index(mixed, "--x\r\n"):]
	header := mixed[:len(mixed)-len(body)]
	askMessage(t, mixed, guest.Options{}, func(g *guest.Env, _ *policy.Event) {
		for part, content := range map[int32]string{abi.ScanBody: body, abi.ScanHeader: header, 0: body, 1: "<b>ü</b>", 2: "hello"} {
			s256, s1, m5 := sha256.Sum256([]byte(content)), sha1.Sum([]byte(content)), md5.Sum([]byte(content))
			for alg, want := range map[abi.HashAlg][]byte{abi.HashSHA256: s256[:], abi.HashSHA1: s1[:], abi.HashMD5: m5[:]} {
				buf := make([]byte, 40)
				if n := g.Hash(int32(alg), part, buf); n != int32(len(want)) || string(buf[:n]) != string(want) {
					t.Errorf("hash %d of part %d: got %d, %x, want %x", alg, part, n, buf, want)
				}
			}
		}
		for _, bad := range [][3]int32{{0, 1, int32(abi.EINVAL)}, {4, 1, int32(abi.EINVAL)}, {1, 3, int32(abi.ENOENT)}, {1, -3, int32(abi.ENOENT)}} {
			if got := g.Hash(bad[0], bad[1], nil); got != bad[2] {
				t.Errorf("hash %d of part %d: got %d, want %d", bad[0], bad[1], got, bad[2])
			}
		}
	})
}

// BenchmarkScan is the cost of what the host does with a body of 8 MiB in the guest's stead.
func BenchmarkScan(b *testing.B) {
	text := "Subject: x\r\n\r\n" + strings.Repeat("the quick brown fox jumps over the lazy dog and then does it again\r\n", 8<<20/68)
	boot := guest.NewEnv(guest.Options{Grants: everything(), Services: world().Services()})
	var words []string
	for i := range 100 {
		words = append(words, fmt.Sprintf("wo%drd", i*i))
	}
	boot.MatchSet(0, list(words...))
	for _, tt := range []struct {
		name string
		work func(g *guest.Env) int32
	}{
		{"match=100", func(g *guest.Env) int32 { return g.Match(0, abi.ScanBody, 0, nil) }},
		{"hash=sha256", func(g *guest.Env) int32 { return g.Hash(1, abi.ScanBody, nil) }},
		{"hash=sha1", func(g *guest.Env) int32 { return g.Hash(2, abi.ScanBody, nil) }},
		{"hash=md5", func(g *guest.Env) int32 { return g.Hash(3, abi.ScanBody, nil) }},
	} {
		b.Run(tt.name, func(b *testing.B) {
			askMessage(b, text, guest.Options{Setup: boot.Setup()}, func(g *guest.Env, _ *policy.Event) {
				b.SetBytes(int64(len(text)))
				b.ReportAllocs()
				for b.Loop() {
					if n := tt.work(g); n < 0 {
						b.Fatal(n)
					}
				}
			})
		})
	}
}
