package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
