package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/message"
)

// TestExamplePostfix runs examples/postfix as it stands but for ports and folders, which a
// test cannot have.
func TestExamplePostfix(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "postfix", "penstock.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.com"}, Users: []string{"bob@example.com"}})
	yaml := string(text)
	for old, replacement := range map[string]string{
		`":25"`: `"127.0.0.1:0"`, `":465"`: `"127.0.0.1:0"`, "127.0.0.1:10025": pf.Addr,
		"./data/certificates": "$DIR/certificates", "./data/compiled": "$CACHE",
	} {
		if strings.Count(yaml, old) != 1 {
			t.Fatalf("the example has %q %d times", old, strings.Count(yaml, old))
		}
		yaml = strings.Replace(yaml, old, replacement, 1)
	}
	g := startGateway(t, yaml)
	tests := []struct {
		name, listener string
		args           []string
		want           string
	}{
		{"delivered", "mx", []string{"--to", "bob@example.com", "-tls"}, "<~  250"},
		{"delivered over TLS", "submissions", []string{"--to", "bob@example.com", "-tlsc"}, "<~  250"},
		{"our name", "mx", []string{"--to", "bob@example.com", "--helo", "mx1.example.net"}, "<** 550 5.7.1 you are not us"},
		{"on the list", "mx", []string{"--to", "root@example.com"}, "<** 550 5.7.1"},
		{"unknown to Postfix", "mx", []string{"--to", "carol@example.com"}, "<** 550 5.1.1"},
		{"virus", "mx", []string{"--to", "bob@example.com", "--body", "EICAR-STANDARD-ANTIVIRUS-TEST-FILE"}, "<** 550 5.7.1 a test virus"},
		{"no route", "mx", []string{"--to", "bob@example.org"}, "<** 550 5.7.1 relaying denied"},
	}
	for _, tt := range tests {
		out, _ := peers.Swaks(t, append([]string{"--server", g.addr[tt.listener], "--from", "alice@example.net", "--helo", "client.example.net"}, tt.args...)...) // the last --helo counts
		if !strings.Contains(out, tt.want) {
			t.Errorf("%s: want %q in\n%s", tt.name, tt.want, out)
		}
	}
	for _, raw := range pf.Wait(t, 2) {
		h, _ := message.Parse(bytes.Clone(peers.AsSent(raw)))
		if got := h.Get("X-Edge"); got != "127.0.0.1 said client.example.net" {
			t.Errorf("X-Edge: %q", got)
		}
	}
}

// TestSnippets: every piece of configuration in the documents is one that the gateway reads,
// with what it leaves out added. What it names need not be there.
func TestSnippets(t *testing.T) {
	files, err := filepath.Glob("../../*/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range append(files, "../../README.md", "../../docs/operations.md", "../../docs/rationale.md", "../../docs/tour.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, rest := range strings.Split(string(text), "\n```yaml\n")[1:] {
			snippet, _, ok := strings.Cut(rest, "\n```")
			if !ok {
				t.Fatalf("%s: block %d has no end", file, i+1)
			}
			seen++
			if problems := loadSnippet(t, snippet); problems.Err() != nil {
				t.Errorf("%s: block %d: %v\n%s", file, i+1, problems, snippet)
			}
		}
	}
	if seen < 6 {
		t.Errorf("%d snippets were found; the documents have more", seen)
	}
}

// loadSnippet loads a part of a configuration, which may be filters of a chain.
func loadSnippet(t *testing.T, snippet string) config.Problems {
	t.Helper()
	if strings.HasPrefix(snippet, "- module:") {
		snippet = "filters:\n  dir: /filters\n  chains:\n    inbound:\n      " + strings.ReplaceAll(snippet, "\n", "\n      ")
	}
	for key, value := range map[string]string{
		"hostname": "mx.example.org", "routes": "[{domains: [example.org], backend: b}]", "backends": "{b: {addresses: ['smtp://192.0.2.1']}}",
		"listeners": "[{name: mx, address: ':25', chain: inbound}]", "filters": "{chains: {inbound: []}}",
	} {
		if !strings.Contains("\n"+snippet, "\n"+key+":") {
			snippet += "\n" + key + ": " + value
		}
	}
	file := filepath.Join(t.TempDir(), "penstock.yaml")
	if err := os.WriteFile(file, []byte(snippet), 0o600); err != nil {
		t.Fatal(err)
	}
	_, problems := config.Load(file, nil, nil)
	return problems
}
