package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp/sasl/users"
)

// userCommand runs "gateway user ..." with text on standard input.
func userCommand(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	root := newRoot()
	root.SetArgs(append([]string{"user"}, args...))
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errOut)
	err = root.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

// A user is added, logs in, gets a new password in another scheme, and is removed; no hash
// and no password is printed at any time.
func TestUserCommands(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users.txt")
	var printed strings.Builder
	run := func(stdin string, args ...string) string {
		t.Helper()
		stdout, stderr, err := userCommand(t, stdin, append(args, "--file", file)...)
		if err != nil {
			t.Fatalf("user %q: %v", args, err)
		}
		printed.WriteString(stdout + stderr)
		return stdout + stderr
	}
	logsIn := func(name, password string) bool {
		t.Helper()
		f, err := users.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		return f.Credentials().Password(t.Context(), name, password) == nil
	}
	run("firstword\n", "add", "--stdin", "alice@example.com")
	run("bobsword\r\n", "add", "--stdin", "--scheme", "plain", "bob")
	if !logsIn("alice@example.com", "firstword") || !logsIn("bob", "bobsword") {
		t.Error("the password that was set is not taken")
	}
	if out := run("secondword", "add", "--stdin", "--scheme", "argon2id", "alice@example.com"); !strings.Contains(out, "scram-sha-256 was of another password") {
		t.Errorf("add says %q", out)
	}
	if logsIn("alice@example.com", "firstword") || !logsIn("alice@example.com", "secondword") {
		t.Error("the old password is taken, or the new one is not")
	}
	if out := run("", "list"); !strings.Contains(out, "alice@example.com  argon2id\n") || !strings.Contains(out, "SCRAM is not offered, since 1 of 2") {
		t.Errorf("list says %q", out)
	}
	var list []struct {
		Name    string
		Schemes []string
	}
	stdout, _, err := userCommand(t, "", "list", "--json", "-f", file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || len(list) != 2 || list[1].Name != "bob" || list[1].Schemes[0] != "plain" {
		t.Errorf("list --json says %q, %v", stdout, err)
	}
	run("", "remove", "bob")
	if _, _, err = userCommand(t, "", "remove", "bob", "-f", file); err == nil {
		t.Error("removed twice")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, hash, _ := strings.Cut(strings.TrimSpace(string(data)), ":")
	for _, secret := range []string{"firstword", "bobsword", "secondword", hash} {
		if strings.Contains(printed.String()+stdout, secret) {
			t.Errorf("%q was printed", secret)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// What makes no sense changes nothing.
func TestUserMistakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "users.txt")
	tests := []struct {
		name, stdin string
		args        []string
		want        string
		usage       bool
	}{
		{"no terminal", "x\n", []string{"add", "a"}, "--stdin", true},
		{"no name", "", []string{"add"}, "arguments", true},
		{"other scheme", "x\n", []string{"add", "--stdin", "--scheme", "md5", "a"}, "scram-sha-256", true},
		{"empty password", "\n", []string{"add", "--stdin", "a"}, "empty", false},
		{"two lines", "x\ny\n", []string{"add", "--stdin", "a"}, "one line", false},
		{"long password", strings.Repeat("x", 1025), []string{"add", "--stdin", "a"}, "longer than 1024", false},
		{"control in the password", "a\x07b\n", []string{"add", "--stdin", "a"}, "control", false},
		{"colon in the name", "x\n", []string{"add", "--stdin", "a:b"}, "colon", false},
		{"no file", "", []string{"list"}, "no such file", false},
		{"no file", "", []string{"remove", "a"}, "no such file", false},
	}
	for _, tt := range tests {
		_, _, err := userCommand(t, tt.stdin, append(tt.args, "--file", file)...)
		_, usage := err.(usageError)
		if err == nil || !strings.Contains(err.Error(), tt.want) || usage != tt.usage {
			t.Errorf("%s: %v (usage: %v), want %q (%v)", tt.name, err, usage, tt.want, tt.usage)
		}
		if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v behind, %v", tt.name, left, err)
		}
	}
}
