package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/manifest"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

var update = flag.Bool("update", false, "rewrite generated documents")

// TestReferenceIsCurrent keeps docs/config.md what the configuration's own table says.
func TestReferenceIsCurrent(t *testing.T) {
	file := filepath.Join("..", "..", "docs", "config.md")
	want := config.Reference()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(file); err != nil || string(have) != want {
		t.Errorf("docs/config.md is not what config.Reference says (%v): go test ./cmd/gateway -run Reference -update", err)
	}
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// block takes the first block of a language out of Markdown.
func block(t *testing.T, text, language string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, "\n```"+language+"\n")
	code, _, ok2 := strings.Cut(rest, "\n```")
	if !ok || !ok2 {
		t.Fatalf("there is no block of %s", language)
	}
	return code + "\n"
}

func readmeBlock(t *testing.T, language string) string { return block(t, readme(t), language) }

// TestReadmeConfig: gateway check finds the README's configuration fine, with the README's
// filter in the folder that it names.
func TestReadmeConfig(t *testing.T) {
	dir := t.TempDir()
	project := filepath.Join(dir, "people-only")
	if err := os.Mkdir(project, 0o755); err != nil {
		t.Fatal(err)
	}
	yaml := readmeBlock(t, "yaml")
	if strings.Count(yaml, "/etc/penstock/filters") != 1 {
		t.Fatal("the README names another folder for filters")
	}
	for name, text := range map[string]string{
		"people-only/main.go": readmeBlock(t, "go"),
		"penstock.yaml":       strings.Replace(yaml, "/etc/penstock/filters", project, 1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"filter", "build", "people-only"}, {"check"}} {
		if out, errs, code := gatewayRun(t, dir, nil, args...); code != 0 {
			t.Errorf("gateway %s: exit code %d\n%s\n%s", strings.Join(args, " "), code, out, errs)
		}
	}
}

const authorConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", chain: inbound}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
filters:
  cache: $CACHE
  dir: DIR
  chains:
    inbound:
      - {module: NAME}
certificates: {dir: $DIR/certificates}
`

// TestReadme does what the README says, as somebody who has nothing but a Go toolchain:
// the ten lines in an empty folder outside of this repository, without network and without
// a module cache, and the shell's lines as they stand; and then a real client's mail is
// refused by them.
func TestReadme(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people-only")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(readmeBlock(t, "go")), 0o644); err != nil {
		t.Fatal(err)
	}
	_, minute, _ := strings.Cut(readme(t), "## A filter in a minute")
	lines := exec.Command("sh", "-e", "-c", block(t, minute, "sh"))
	lines.Dir = dir
	bin := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(bin, "gateway")); err != nil {
		t.Fatal(err)
	}
	lines.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GOWORK=off", "GOMODCACHE="+t.TempDir(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := lines.CombinedOutput()
	for _, want := range []string{"a filter that this gateway takes", "stages   rcpt\n", "reject     550 5.7.1 people only, please"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("%v, want %q in\n%s", err, want, out)
		}
	}
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
	g := startGateway(t, strings.NewReplacer("BACKEND", pf.Addr, "$DIR", "$DIR", "DIR", dir, "NAME", "people-only").Replace(authorConfig))
	said, code := peers.Swaks(t, "--server", g.addr["mx"], "--from", "alice@example.net", "--to", "robot@example.org")
	if code == 0 || !strings.Contains(said, "<** 550 5.7.1 people only, please") {
		t.Errorf("robot: exit code %d\n%s", code, said)
	}
	said, code = peers.Swaks(t, "--server", g.addr["mx"], "--from", "alice@example.net", "--to", "bob@example.org")
	if code != 0 {
		t.Errorf("bob: exit code %d\n%s", code, said)
	}
	pf.Wait(t, 1)
}

// TestFilterNew: the project that filter new makes passes its own test, builds and works;
// and a second one is not laid over it.
func TestFilterNew(t *testing.T) {
	dir := t.TempDir()
	offline := []string{"GOPROXY=off", "GOFLAGS=", "GOWORK=off"}
	if out, errs, code := gatewayRun(t, dir, offline, "filter", "new", "greet"); code != 0 {
		t.Fatalf("new: %d\n%s\n%s", code, out, errs)
	}
	test := exec.Command("go", "test", "./...")
	test.Dir, test.Env = filepath.Join(dir, "greet"), append(os.Environ(), offline...)
	if out, err := test.CombinedOutput(); err != nil {
		t.Errorf("its native test: %v\n%s", err, out)
	}
	if out, errs, code := gatewayRun(t, dir, offline, "filter", "build", "greet"); code != 0 {
		t.Fatalf("build: %d\n%s\n%s", code, out, errs)
	}
	out, errs, code := gatewayRun(t, dir, offline, "filter", "test", "greet/greet.wasm", "greet/sample.eml", "--show")
	if code != 0 || !strings.Contains(out, "\nX-Greeting: hello from greet\r\n") {
		t.Errorf("test: %d\n%s\n%s", code, out, errs)
	}
	if _, errs, code := gatewayRun(t, dir, offline, "filter", "new", "greet"); code != 1 || !strings.Contains(errs, "not empty") {
		t.Errorf("new over it: %d %s", code, errs)
	}
}

// TestBadModules: a file that is no filter is refused by inspect, by check and by serve,
// and each says which file and why.
func TestBadModules(t *testing.T) {
	guest := wasmtest.Guest{Hooks: abi.Hooks(1 << abi.HookRcpt), Else: wasmtest.Say(abi.ActContinue)}
	other := bytes.ReplaceAll(wasmtest.Guest{Hooks: 1 << abi.HookRcpt, Init: wasmtest.Seq(wasmtest.Imports("features"), wasmtest.Drop()),
		Else: wasmtest.Say(abi.ActContinue)}.Bytes(), []byte("\x03mg1"), []byte("\x03mg7"))
	tests := []struct {
		name string
		wasm []byte
		want string
	}{
		{"empty", nil, "not a WebAssembly module"},
		{"text", []byte("package main\n"), "not a WebAssembly module"},
		{"truncated", guest.Bytes()[:40], "in the middle of something"},
		{"no-exports", []byte("\x00asm\x01\x00\x00\x00"), "lacks the export mg1_init"},
		{"other-abi", other, "mg7"},
		{"traps-at-start", wasmtest.Guest{Init: wasmtest.Trap()}.Bytes(), "trapped"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, tt.name+".wasm"), tt.wasm, 0o644); err != nil {
				t.Fatal(err)
			}
			yaml := strings.NewReplacer("BACKEND", "127.0.0.1:9", "$CACHE", dir+"/cache", "$DIR", dir, "DIR", dir, "NAME", tt.name).Replace(authorConfig)
			if err := os.WriteFile(filepath.Join(dir, "penstock.yaml"), []byte(yaml), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"filter", "inspect", tt.name + ".wasm"}, {"check"}, {"serve"}} {
				out, errs, code := gatewayRun(t, dir, nil, args...)
				if code != 1 || !strings.Contains(errs, tt.want) || !strings.Contains(errs, tt.name) {
					t.Errorf("gateway %s: exit code %d, want 1 with %q\n%s\n%s", strings.Join(args, " "), code, tt.want, out, errs)
				}
				if args[0] != "filter" && !strings.Contains(errs, "penstock.yaml:14: filters.chains.inbound[0]") {
					t.Errorf("gateway %s does not name the line\n%s", args[0], errs)
				}
			}
		})
	}
}

// TestFailingFilters: a guest that traps, loops or talks nonsense costs its own answer: the
// client gets what on_error says, the log says which filter, stage and why, and the next
// session is untouched.
func TestFailingFilters(t *testing.T) {
	pf := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
	dir := t.TempDir()
	guests := map[string]wasmtest.Code{
		"trap":     wasmtest.Trap(),
		"loop":     wasmtest.Loop(),
		"nonsense": wasmtest.Verdict(abi.NewVerdict(abi.ActReject, 250, 2, 0, 0, false)),
		"unknown":  wasmtest.Say(99),
		"failed":   wasmtest.Verdict(abi.Failed(7)),
	}
	causes := map[string]string{"trap": "unreachable", "loop": "exceeded its CPU time", "nonsense": "makes no sense", "unknown": "makes no sense", "failed": "code 7"}
	chains, listeners := "", ""
	policies := map[string]string{"tempfail": "451 4.3.0", "reject": "554 5.3.0", "accept": "250"}
	for name, code := range guests {
		g := wasmtest.Guest{Hooks: 1 << abi.HookMessage, On: map[abi.Hook]wasmtest.Code{abi.HookMessage: code}, Else: wasmtest.Say(abi.ActContinue)}
		if err := os.WriteFile(filepath.Join(dir, name+".wasm"), g.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		for policy := range policies {
			id := name + "-" + policy
			chains += fmt.Sprintf("    %s: [{module: %s, on_error: %s, limits: {wall: 200ms}}]\n", id, name, policy)
			listeners += fmt.Sprintf("  - {name: %s, address: \"127.0.0.1:0\", chain: %s}\n", id, id)
		}
	}
	g := startGateway(t, `
hostname: mx.example.org
listeners:
`+listeners+`routes: [{domains: [example.org], backend: store}]
backends: {store: {addresses: ["smtp://`+pf.Addr+`"]}}
certificates: {dir: $DIR/certificates}
filters:
  cache: $CACHE
  dir: `+dir+`
  chains:
`+chains)
	accepted := 0
	for name := range guests {
		for policy, want := range policies {
			addr := g.addr[name+"-"+policy]
			for range 2 { // the second session meets a fresh instance
				r := send(t, dialSMTP(t, addr), "bob@example.org", []byte("Subject: "+name+"\r\n\r\nHello\r\n"))
				if !strings.HasPrefix(r.Line(), want) {
					t.Errorf("%s with on_error %s: %s, want %s", name, policy, r.Line(), want)
				}
				if r.Code == 250 {
					accepted++
				}
			}
		}
		g.await("why "+name+" failed", func(l map[string]any) bool {
			return l["msg"] == "filter failed" && l["filter"] == name && l["stage"] == "message" && strings.Contains(fmt.Sprint(l["err"]), causes[name])
		})
	}
	pf.Wait(t, accepted)
}

// TestCheckSaysWhyFiltersRefuse: every filter that does not take its configuration is named
// with its place and its own words.
func TestCheckSaysWhyFiltersRefuse(t *testing.T) {
	dir := t.TempDir()
	yaml := `hostname: mx.example.org
listeners: [{name: mx, address: "127.0.0.1:0", chain: c}]
routes: [{domains: [example.org], backend: b}]
backends: {b: {addresses: ["smtp://127.0.0.1:9"]}}
filters:
  chains:
    c:
      - {module: "builtin:rcptguard", config: {blok: [x]}}
      - {module: "builtin:headertag", config: {rules: [{}]}}
      - {module: "builtin:nope"}
`
	if err := os.WriteFile(filepath.Join(dir, "penstock.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	_, errs, code := gatewayRun(t, dir, nil, "check")
	for _, want := range []string{
		"penstock.yaml:8: filters.chains.c[0]: wasmhost: filter rcptguard: start: it refuses to start, code -1: filter: configuration: blok: unknown key",
		"penstock.yaml:9: filters.chains.c[1]:", "rules[0].add: a rule has one of",
		"penstock.yaml:10: filters.chains.c[2]: there is no builtin:nope; there are attachments, bodymatch",
		"3 to mend",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("not said: %s\n%s", want, errs)
		}
	}
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("check left something behind: %v %v", left, err)
	}
}

// TestStuckFilter: a guest that would call itself for hours, without a loop, is stopped. It
// costs its own session an answer; others go on, and the process ends when it is told to.
func TestStuckFilter(t *testing.T) {
	dir := t.TempDir()
	local, less := wasmtest.Op(0x20, 0), wasmtest.Op(0x7d) // local.get 0, i64.sub
	branch := wasmtest.Seq(local, wasmtest.I64(1), less, wasmtest.Call("tree"))
	guest := wasmtest.Guest{
		Hooks: 1 << abi.HookMail,
		On:    map[abi.Hook]wasmtest.Code{abi.HookMail: wasmtest.Seq(wasmtest.Call("tree", wasmtest.I64(60)), wasmtest.Say(abi.ActContinue))},
		Edit: func(m *wasmtest.Module) {
			// if n == 0 return; tree(n-1); tree(n-1)
			m.Func("tree", "l>", "", wasmtest.Seq(local, wasmtest.Op(0x50, 0x04, 0x40, 0x0f, 0x0b), branch, branch))
		},
	}
	if err := os.WriteFile(filepath.Join(dir, "tree.wasm"), guest.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	yaml := strings.NewReplacer("BACKEND", "127.0.0.1:9", "$DIR", "$DIR", "DIR", dir, "NAME", "tree, limits: {wall: 100ms}").Replace(authorConfig)
	g := startGateway(t, yaml)
	stuck := dialSMTP(t, g.addr["mx"])
	err := stuck.Mail(t.Context(), smtp.Sender{})
	if reply, ok := errors.AsType[*smtp.Reply](err); !ok || reply.Code != 451 {
		t.Fatalf("the guest is stuck: %v", err)
	}
	g.await("why it was stopped", func(l map[string]any) bool {
		return l["msg"] == "filter failed" && l["cause"] == "cpu" && strings.Contains(fmt.Sprint(l["err"]), "it exceeded its CPU time of 2ms")
	})
	if err := dialSMTP(t, g.addr["mx"]).Noop(t.Context()); err != nil {
		t.Errorf("another session: %v", err)
	}
	g.signal(syscall.SIGTERM)
	select {
	case <-g.done:
	case <-time.After(patience):
		t.Fatalf("it does not end\n%s", g.log())
	}
	if code := g.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d\n%s", code, g.log())
	}
}

// TestCheckNamesWhatIsNotGranted: check warns of what a manifest asks for and the
// configuration does not grant, and says what to write; inspect shows it too.
func TestCheckNamesWhatIsNotGranted(t *testing.T) {
	dir := t.TempDir()
	wasm, err := manifest.Append(wasmtest.Guest{Hooks: 1 << abi.HookMail}.Bytes(), []byte(`{"capabilities": ["kv", "http", "secret", "discard", "body_edit"], "optional": ["dns"]}`))
	if err != nil {
		t.Fatal(err)
	}
	yaml := `hostname: mx.example.org
listeners: [{name: mx, address: "127.0.0.1:0", chain: c}]
routes: [{domains: [example.org], backend: b}]
backends: {b: {addresses: ["smtp://127.0.0.1:9"]}}
filters:
  chains:
    c:
      - {module: a.wasm, name: first}
      - {module: a.wasm, name: second, grant: {kv: {}, http: {hosts: [a.test]}, secret: [s], discard: true, body_edit: true}}
  secrets: {s: "file:a.wasm"}
store: {driver: embedded}
`
	for name, b := range map[string][]byte{"penstock.yaml": []byte(yaml), "a.wasm": wasm} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, errs, code := gatewayRun(t, dir, nil, "check")
	for _, want := range []string{
		"penstock.yaml:8: warning: filters.chains.c[0]: filter first asks for kv: add grant: {kv: {}}, or it gets EPERM",
		"filter first asks for http: add grant: {http: {hosts: [HOST]}}, or it gets EPERM",
		"filter first asks for secret: add grant: {secret: [NAME]}, or it gets EPERM",
		"filter first asks for discard: add grant: {discard: true}, or it gets EPERM",
		"filter first asks for body_edit: add grant: {body_edit: true}, or it gets EPERM",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("not said: %s\n%s", want, errs)
		}
	}
	if code != 0 || strings.Contains(errs, "second") || strings.Contains(errs, "dns") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	out, _, code := gatewayRun(t, dir, nil, "filter", "inspect", "a.wasm")
	if code != 0 || !strings.Contains(out, "asks for body_edit discard http kv secret\nmay use  dns\n") {
		t.Errorf("inspect: exit code %d, %s", code, out)
	}
}
