package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/config"
)

// check_test.go: what check finds is what keeps serve from starting, at the line it stands in.

// checkConfig begins with the listener's own lines, so that a case can be told by its line.
const checkConfig = `listeners:
  - name: mx
    address: "127.0.0.1:0"
    CASE
hostname: mx.example.org
routes: [{domains: [example.org], backend: store}]
backends:
  store:
    addresses: ["smtp://127.0.0.1:1"]
filters: {cache: $DIR/cache}
certificates: {dir: $DIR/certificates}
`

// checkText runs check on a text and returns what it prints, without the folder.
func checkText(t *testing.T, dir, yaml string) string {
	t.Helper()
	file := filepath.Join(dir, "penstock.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(yaml, "$DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	_ = check(t.Context(), configFlags{file: file}, &out, &out) // the problems are what is printed
	return strings.ReplaceAll(out.String(), dir+"/", "")
}

// TestServeAndCheckAgree: for values that only the parts themselves refuse, both say the same
// line, and serve opens nothing.
func TestServeAndCheckAgree(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"line too short", "limits: {line_length: 100}", "penstock.yaml:4: listeners[0].limits.line_length: "},
		{"no such extension", "disabled_extensions: [SIZE, FOO]", `penstock.yaml:4: listeners[0].disabled_extensions[1]: disabled extensions: "FOO" is none of `},
		{"no such command", "disabled_commands:\n      - WIZ", `penstock.yaml:5: listeners[0].disabled_commands[0]: disabled commands: "WIZ" is no command`},
		{"a command that mail needs", "disabled_commands: [VRFY, DATA]", "penstock.yaml:4: listeners[0].disabled_commands[1]: disabled commands: without DATA there is no mail"},
		{"banner", "tls: off\n    banner: grüß Gott", "penstock.yaml:5: listeners[0].banner: banner: must be "},
		{"hello text", "hello_text: " + strings.Repeat("x", 201), "penstock.yaml:4: listeners[0].hello_text: hello text: must be "},
		{"text of the demand", "auth: {required: true, users: 'backend:store', required_text: ä}", "penstock.yaml:4: listeners[0].auth.required_text: "},
		{"rate", "limits:\n      message_rate: 9/1ns", "penstock.yaml:5: listeners[0].limits.message_rate: rate: more than one per nanosecond"},
		{"users", "auth: {users: 'file:$DIR/nobody'}", "penstock.yaml:4: listeners[0].auth.users: "},
		{"authorities", "client_certificates: {mode: verify, ca_file: $DIR/none.pem}", "penstock.yaml:4: listeners[0].client_certificates.ca_file: "},
		{"key of the store", "trusted_networks: []\nstore: {driver: postgres, url: 'postgres://127.0.0.1:1/x', key: 'file:$DIR/none'}", "penstock.yaml:5: store.key: "},
		{"address of the store", "trusted_networks: []\nstore: {driver: postgres, url: 'postgres://[/x', key: 'file:$DIR/key'}", "penstock.yaml:5: store.url: "},
		{"resolver", "trusted_networks: []\ndelivery: {resolver: {address: 'tls://192.0.2.1#sha256:x'}}", "penstock.yaml:5: delivery.resolver.address: "},
		{"trust over a network", "trusted_networks: []\ndelivery: {resolver: {address: 192.0.2.1, trusted: true}}", "penstock.yaml:5: delivery.resolver.address: "},
		{"authorities of others", "trusted_networks: []\ndelivery: {authorities: $DIR/none.pem}", "penstock.yaml:5: delivery.authorities: "},
		{"password of a proxy", "trusted_networks: []\nstore: {driver: embedded, path: $DIR/s}\ndelivery: {proxy: 'socks5://127.0.0.1', proxy_login: {user: u, password: 'file:$DIR/none'}}", "penstock.yaml:6: delivery.proxy: "},
		{"login without TLS", "tls: off\n    auth: {required: true, users: 'backend:store'}", "penstock.yaml:5: listeners[0].auth.required: "},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "key"), []byte(strings.Repeat("ab", 32)), 0o600); err != nil {
			t.Fatal(err)
		}
		got := checkText(t, dir, strings.Replace(checkConfig, "CASE", tt.text, 1))
		if !strings.Contains("\n"+got, "\n"+tt.want) || !strings.Contains(got, "\n1 to mend\n") {
			t.Errorf("%s: check says\n%swant %s", tt.name, got, tt.want)
		}
		var out strings.Builder
		if err := serve(t.Context(), configFlags{file: filepath.Join(dir, "penstock.yaml")}, &out); err == nil {
			t.Fatalf("%s: serve has served", tt.name)
		}
		said := strings.ReplaceAll(out.String(), dir+"/", "")
		line, _, _ := strings.Cut(got[strings.Index("\n"+got, "\n"+tt.want):], "\n")
		if !strings.Contains("\n"+said, "\n"+line+"\n") {
			t.Errorf("%s: serve says\n%scheck says\n%s", tt.name, said, line)
		}
	}
}

// TestCheckRelativeSocket: a path relative to the file is fine for both, wherever the file is
// named from.
func TestCheckRelativeSocket(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	yaml := strings.Replace(strings.Replace(checkConfig, `"127.0.0.1:0"`, "unix:run.sock", 1), "CASE", "", 1)
	if got := checkText(t, ".", yaml); !strings.Contains(got, ": fine") {
		t.Errorf("check: %s", got)
	}
	if got := checkText(t, ".", strings.Replace(yaml, "unix:run.sock", "unix:none/run.sock", 1)); !strings.Contains(got, "penstock.yaml:3: warning: listeners[0].address: no folder for the socket: ") {
		t.Errorf("check: %s", got)
	}
	checkText(t, ".", yaml)
	cfg, problems := config.Load("penstock.yaml", nil, nil)
	if problems.Err() != nil {
		t.Fatal(problems)
	}
	if got, want := listener(cfg.Listeners[0]).Addresses[0].Address, filepath.Join(dir, "run.sock"); got != want {
		t.Errorf("listens on %s, want %s", got, want)
	}
}

// TestCheckSaysAllAtOnce: no mistake hides another, wherever it is found.
func TestCheckSaysAllAtOnce(t *testing.T) {
	dir := t.TempDir()
	got := checkText(t, dir, `hostname: a..b
log: debug
listeners:
  - name: mx
    address: ":smtp"
    tls: maybe
    banner: grüß Gott
    disabled_commands: [WIZ]
    auth: {users: "file:nobody.txt"}
  - {name: two, address: "127.0.0.1:2526", client_certificates: {mode: verify, ca_file: none.pem}, chain: c}
routes: [{domains: [example.org], backend: store}, {domains: [example.net], backend: stor}]
backends:
  store: {addresses: ["smtp://127.0.0.1:1", "http://x"], tls: verify, ca_file: gone.pem, login: {user: us, password: "file:pw"}}
  list: {addresses: ["smtp://127.0.0.1:1"], recipients: "file:list.txt"}
filters:
  chains:
    c: [{module: here.wasm}, {module: "x y"}]
certificates: {files: [{cert: a.pem, key: a.key}]}
admin: {tokens: "file:tokens.txt"}
`)
	want := []string{
		"penstock.yaml:1: hostname: ",
		"penstock.yaml:2: log: ",
		"penstock.yaml:5: listeners[0].address: ",
		"penstock.yaml:6: listeners[0].tls: ",
		"penstock.yaml:7: listeners[0].banner: ",
		"penstock.yaml:8: listeners[0].disabled_commands[0]: ",
		"penstock.yaml:9: listeners[0].auth.users: ",
		"penstock.yaml:10: listeners[1].client_certificates.ca_file: ",
		"penstock.yaml:11: routes[1].backend: ",
		"penstock.yaml:13: backends.store.addresses[1]: ",
		"penstock.yaml:13: backends.store.ca_file: ",
		"penstock.yaml:13: backends.store.login.password: ",
		"penstock.yaml:14: warning: backends.list: ",
		"penstock.yaml:14: backends.list.recipients: ",
		"penstock.yaml:17: filters.chains.c[0]: ",
		"penstock.yaml:17: filters.chains.c[1].module: ",
		"penstock.yaml:18: certificates.files[0].cert: ",
		"penstock.yaml:18: certificates.files[0].key: ",
		"penstock.yaml:19: warning: admin.tokens: ",
		"17 to mend",
	}
	lines := strings.Split(strings.TrimSpace(got), "\n")
	for i, w := range want {
		if i >= len(lines) || !strings.HasPrefix(lines[i], w) {
			t.Fatalf("line %d is not %q\n%s", i+1, w, got)
		}
	}
	if len(lines) != len(want) {
		t.Errorf("there is more than was wanted:\n%s", got)
	}
}

// TestCheckOutbound: what would keep all mail for others back, or do nothing, is told.
func TestCheckOutbound(t *testing.T) {
	for _, tt := range []struct{ delivery, want string }{
		{"{resolver: {address: 192.0.2.1}}", "warning: delivery.dane: no host is authenticated"},
		{"{resolver: {address: 192.0.2.1}, dane: required}", "warning: delivery.dane: required keeps back all mail for others"},
		{"{resolver: {address: 192.0.2.1}, dane: off}", ""},
		{"{resolver: {address: 127.0.0.1, trusted: false}}", "warning: delivery.dane: no host"},
		{"{resolver: {address: 127.0.0.1}, dane: required}", ""},
		{"{resolver: {address: 'https://192.0.2.1/dns-query#dns.example', trusted: true}}", ""},
	} {
		got := checkText(t, t.TempDir(), strings.Replace(strings.Replace(checkConfig, "CASE", "trusted_networks: []", 1), "filters:", "delivery: "+tt.delivery+"\nfilters:", 1))
		if strings.Contains(got, "warning") != (tt.want != "") || !strings.Contains(got, tt.want) || !strings.Contains(got, "fine") {
			t.Errorf("%s: got %s, want %q", tt.delivery, got, tt.want)
		}
	}
}
