package admin

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/admin/api"
)

const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseTokens(t *testing.T) {
	for _, tt := range []struct{ in, want string }{ // the names, or what the error says
		{"", ""},
		{"# a comment\n\n  \na:read:" + hash, "a"},
		{"a:read:" + hash + "\r\nb:upload, operate:" + hash + "\n", "a b"},
		{"a:admin:" + strings.ToUpper(hash), "a"},
		{"a:read", "line 1: is not name:role:hash"},
		{"a:read:" + hash + ":x", "line 1: is not name:role:hash"},
		{"\n:read:" + hash, `line 2: "" is not a name`},
		{"-a:read:" + hash, "is not a name"},
		{".a:read:" + hash, "is not a name"},
		{"a/b:read:" + hash, "is not a name"},
		{strings.Repeat("a", 65) + ":read:" + hash, "is not a name"},
		{"a::" + hash, `"" is no role`},
		{"a:root:" + hash, `"root" is no role`},
		{"a:read,:" + hash, `"" is no role`},
		{"a:read:" + hash[1:], "the hash of a is not 64"},
		{"a:read:" + hash + "00", "the hash of a is not 64"},
		{"a:read:g" + hash[1:], "the hash of a is not 64"},
		{"a:read:" + hash + "\na:admin:" + hash, "line 2: a is there twice"},
		{"a\nb", "line 2: is not"}, // all of them
		{strings.Repeat("#", maxTokenFile+1), "octets"},
	} {
		tokens, err := ParseTokens([]byte(tt.in))
		var names []string
		for _, tok := range tokens {
			names = append(names, tok.Name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != tt.want || err != nil && (tt.want == "" || !strings.Contains(got, tt.want)) {
			t.Errorf("%.80q: %q, want %q", tt.in, got, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), hash[1:20]) {
			t.Errorf("%.80q: the error has the hash: %v", tt.in, err)
		}
	}
}

// FuzzTokenRoundTrip: what is taken is written as it was meant.
func FuzzTokenRoundTrip(f *testing.F) {
	f.Add([]byte("a:read:" + hash + "\n#\nb:upload, operate:" + hash))
	f.Fuzz(func(t *testing.T, in []byte) {
		tokens, err := ParseTokens(in)
		if err != nil {
			return
		}
		var file strings.Builder
		for _, tok := range tokens {
			file.WriteString(tok.String() + "\n")
		}
		again, err := ParseTokens([]byte(file.String()))
		same := func(a, b Token) bool {
			return a.Name == b.Name && a.Hash == b.Hash && slices.Equal(a.Roles, b.Roles)
		}
		if err != nil || !slices.EqualFunc(tokens, again, same) {
			t.Errorf("%q: %v, then %v (%v)", in, tokens, again, err)
		}
	})
}

func TestNewToken(t *testing.T) {
	a, line, err := NewToken("a", api.RoleRead)
	b, _, _ := NewToken("a", api.RoleRead)
	if err != nil || a == b || len(a) < 40 || !strings.HasPrefix(a, "penstock_") || strings.Contains(line.String(), a) {
		t.Errorf("%q %q %q %v", a, b, line, err)
	}
	if _, _, err := NewToken("a"); err == nil {
		t.Error("a token without a role")
	}
	if _, _, err := NewToken("a:b", api.RoleRead); err == nil {
		t.Error("a name with a colon")
	}
}

// TestKeyring: a file that changes is read again; one that is broken changes nothing; one
// that is gone lets nobody in; one that others can read is warned of, once.
func TestKeyring(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.txt")
	var log bytes.Buffer
	now := time.Now()
	k := &keyring{path: path, log: slog.New(slog.NewTextHandler(&log, nil)), now: func() time.Time { return now }}
	if err := k.load(); err != nil || !strings.Contains(log.String(), "is not there") {
		t.Fatalf("without a file: %v %s", err, log.String())
	}
	secret, tok, err := NewToken("a", api.RoleRead)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	known := func(step string, want bool) {
		t.Helper()
		if got, ok := k.find(secret); ok != want || ok && got.Name != "a" {
			t.Errorf("%s: %v %v, want %v", step, got, ok, want)
		}
	}
	write(tok.String(), 0o644)
	known("within the second", false)
	now = now.Add(2 * time.Second)
	known("with a file", true)
	if _, ok := k.find(secret[:len(secret)-1]); ok {
		t.Error("a part of a token is taken for it")
	}
	write("nonsense", 0o644)
	now = now.Add(2 * time.Second)
	known("with a broken file", true)
	if err := k.load(); err == nil {
		t.Error("no error for a broken file")
	}
	write(tok.String()+"\n", 0o644)
	now = now.Add(2 * time.Second)
	known("mended", true)
	if n := strings.Count(log.String(), "can be read by others"); n != 1 {
		t.Errorf("warned %d times, want 1:\n%s", n, log.String())
	}
	os.Remove(path)
	now = now.Add(2 * time.Second)
	known("with the file gone", false)
	if strings.Contains(log.String(), secret) {
		t.Error("the log has the token")
	}
}
