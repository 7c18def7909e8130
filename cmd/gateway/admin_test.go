package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/admin/client"
	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// admin_test.go: a running gateway under the hands of its operator, with the program's own
// commands.

const adminName = "admin API" // of its listener in the log

const adminConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", chain: inbound}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"]}
filters:
  cache: $CACHE
  dir: $DIR/filters
  chains:
    inbound:
      - {module: "builtin:helocheck"}
      - {module: gate}
certificates: {dir: $DIR/certificates}
admin: {tokens: "file:$DIR/tokens.txt", address: "127.0.0.1:0"}
`

// rcptFilter is a module that says the same to every recipient. Extra tells modules apart
// that do the same.
func rcptFilter(code wasmtest.Code, extra string) []byte {
	return wasmtest.Guest{Hooks: 1 << abi.HookRcpt, Else: code, Data: map[uint32]string{wasmtest.FreeAt: extra}}.Bytes()
}

func rejects(code int) []byte {
	return rcptFilter(wasmtest.Verdict(abi.NewVerdict(abi.ActReject, code, 5, 7, 1, false)), "")
}

// sinkServer is a backend that takes everything.
func sinkServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return smtp.Accept{}, nil }),
		smtp.ServerOptions{Hostname: "back.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx) // cut off or not, Serve returns
		<-served
	})
	return l.Addr().String()
}

// administered is a running gateway with tokens for it.
type administered struct {
	*gatewayProcess
	t      *testing.T
	files  string            // folder for modules to push
	tokens map[string]string // by role
}

func startAdministered(t *testing.T) *administered {
	t.Helper()
	a := &administered{t: t, files: t.TempDir(), tokens: map[string]string{}}
	for _, role := range api.Roles() {
		out, errs, code := gatewayRun(t, a.files, nil, "token", "new", "--role", string(role), "the-"+string(role))
		if code != 0 || !strings.HasPrefix(out, "penstock_") {
			t.Fatalf("token new: %d %q %q", code, out, errs)
		}
		a.tokens[string(role)] = strings.TrimSpace(out)
	}
	a.module("gate.wasm", rejects(550))
	seed := func(dir string) {
		if err := os.Mkdir(filepath.Join(dir, "filters"), 0o755); err != nil {
			t.Fatal(err)
		}
		for from, to := range map[string]string{"gate.wasm": "filters/gate.wasm", "tokens.txt": "tokens.txt"} {
			if err := os.Rename(filepath.Join(a.files, from), filepath.Join(dir, to)); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.gatewayProcess = startGatewayIn(t, strings.Replace(adminConfig, "BACKEND", sinkServer(t), 1), seed)
	return a
}

func (a *administered) module(name string, wasm []byte) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.files, name), wasm, 0o644); err != nil {
		a.t.Fatal(err)
	}
}

// gateway runs a command of the program against the running gateway.
func (a *administered) gateway(role string, args ...string) (stdout, stderr string, code int) {
	a.t.Helper()
	return gatewayRun(a.t, a.files, []string{tokenVariable + "=" + a.tokens[role]}, append(args, "--admin", a.addr[adminName])...)
}

// must is gateway for a command that has to work.
func (a *administered) must(role string, args ...string) string {
	a.t.Helper()
	out, errs, code := a.gateway(role, args...)
	if code != 0 {
		a.t.Fatalf("gateway %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// refused is gateway for a command that must not.
func (a *administered) refused(want string, code int, role string, args ...string) {
	a.t.Helper()
	out, errs, got := a.gateway(role, args...)
	if got != code || !strings.Contains(errs, want) || out != "" {
		a.t.Errorf("gateway %s as %s: exit code %d, want %d with %q\n%s%s", strings.Join(args, " "), role, got, code, want, out, errs)
	}
}

// rcpt says RCPT in a transaction and gives it up.
func rcpt(t *testing.T, c *smtp.Client) int {
	t.Helper()
	r := &smtp.Reply{Code: 250}
	rcpts, err := c.Envelope(t.Context(), smtp.Sender{Path: path(t, "alice@example.net")}, []smtp.Recipient{{Path: path(t, "bob@example.org")}})
	if err == nil && len(rcpts) == 1 {
		err = rcpts[0]
	}
	if err != nil {
		r = smtp.ReplyOf(err)
	}
	if err := c.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r.Code
}

func (a *administered) expect(step string, c *smtp.Client, want int) {
	a.t.Helper()
	if got := rcpt(a.t, c); got != want {
		a.t.Errorf("%s: RCPT is answered %d, want %d", step, got, want)
	}
}

func (a *administered) fresh() *smtp.Client { return dialSMTP(a.t, a.addr["mx"]) }

// TestPush: a filter is replaced under sessions that run, checked before, and brought back.
func TestPush(t *testing.T) {
	a := startAdministered(t)
	old := a.fresh()
	a.expect("at first", old, 550)

	a.module("gate.wasm", rcptFilter(wasmtest.Say(abi.ActContinue), ""))
	if out := a.must("upload", "filter", "push", "gate.wasm"); !strings.Contains(out, "the next session runs it, in inbound") {
		t.Errorf("push says %q", out)
	}
	second := a.fresh()
	a.expect("after the push", second, 250)
	a.expect("after the push, in the old session", old, 550)

	a.module("gate.wasm", []byte("package main\n"))
	a.refused("not a WebAssembly module", exitProblem, "upload", "filter", "push", "gate.wasm")
	a.module("gate.wasm", wasmtest.Guest{Init: wasmtest.Trap()}.Bytes())
	a.refused("chain inbound: ", exitProblem, "upload", "filter", "push", "gate.wasm")
	a.module("unused.wasm", []byte("\x00asm\x01\x00\x00\x00"))
	a.refused("lacks the export mg1_init", exitProblem, "upload", "filter", "push", "unused.wasm")
	a.expect("after bad modules", a.fresh(), 250)

	a.module("gate.wasm", rejects(551))
	a.refused("is sha256:", exitProblem, "upload", "filter", "push", "gate.wasm", "--expect", "sha256:"+strings.Repeat("0", 64))
	a.refused("there is a gate already", exitProblem, "upload", "filter", "push", "gate.wasm", "--new")
	var pushed api.Change
	if err := json.Unmarshal([]byte(a.must("upload", "filter", "push", "gate.wasm", "--json")), &pushed); err != nil || pushed.OldDigest == "" {
		t.Fatalf("%+v %v", pushed, err)
	}
	a.expect("after the second push", a.fresh(), 551)
	a.must("upload", "filter", "rollback", "gate", "--expect", pushed.Digest)
	a.expect("after a rollback", a.fresh(), 250)
	a.must("admin", "filter", "rollback", "gate")
	a.expect("after two", a.fresh(), 550)
	a.refused("no earlier version", exitProblem, "upload", "filter", "rollback", "gate")
	a.must("upload", "filter", "rollback", "gate", "--to", pushed.Digest)
	a.expect("after a rollback to a withdrawn one", a.fresh(), 551)
	a.refused("there is no filter none", exitProblem, "upload", "filter", "rollback", "none")
	a.expect("in the second session, after all", second, 250)

	if out := a.must("upload", "filter", "push", "gate.wasm", "--name", "spare"); !strings.Contains(out, "no chain names it") {
		t.Errorf("push of a spare one says %q", out)
	}
	list := a.must("read", "filter", "list")
	for _, want := range []string{"gate", "spare", "helocheck", "builtin", shortDigest(pushed.Digest)} {
		if !strings.Contains(list, want) {
			t.Errorf("the list has no %s:\n%s", want, list)
		}
	}
	// What was pushed is what a reload finds.
	a.signal(syscall.SIGHUP)
	a.await("reloaded", func(l map[string]any) bool { return strings.HasPrefix(fmt.Sprint(l["msg"]), "reloaded") })
	a.expect("after HUP", a.fresh(), 551)
	for role, token := range a.tokens {
		if strings.Contains(a.log(), token) {
			t.Errorf("the token of %s is in the log", role)
		}
	}
	left, err := filepath.Glob(filepath.Join(a.dir, "filters", ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestPushUnderTraffic: while sessions come and go each gets one whole filter, before, during
// and after changes, and none fails.
func TestPushUnderTraffic(t *testing.T) {
	a := startAdministered(t)
	c, err := client.New(a.addr[adminName], a.tokens["upload"], client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := make(chan struct{})
	var traffic sync.WaitGroup
	var mu sync.Mutex
	seen := map[int]int{}
	for range 4 {
		traffic.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				code, err := oneSession(t.Context(), a.addr["mx"])
				mu.Lock()
				seen[code]++
				if err != nil || code != 550 && code != 250 {
					t.Errorf("a session got %d %v", code, err)
				}
				mu.Unlock()
			}
		})
	}
	for i := range 10 {
		module := rejects(550)
		if i%2 == 0 {
			module = rcptFilter(wasmtest.Say(abi.ActContinue), fmt.Sprint(i))
		}
		if _, err := c.Push(t.Context(), "gate", module, api.Condition{}); err != nil {
			t.Error(err)
		}
		before := func() int { mu.Lock(); defer mu.Unlock(); return seen[250] + seen[550] }()
		for late := time.Now().Add(patience); time.Now().Before(late); { // some sessions with this one
			if n := func() int { mu.Lock(); defer mu.Unlock(); return seen[250] + seen[550] }(); n > before+8 {
				break
			}
			if _, err := c.Status(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	traffic.Wait()
	if seen[250] == 0 || seen[550] == 0 {
		t.Errorf("replies %v: the filters were not both there", seen)
	}
	list, err := c.Filters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if n := len(f.Versions); f.Name == "gate" && (n == 0 || n > maxVersions) {
			t.Errorf("%d versions are kept", n)
		}
	}
}

// oneSession asks about a recipient in a session of its own.
func oneSession(ctx context.Context, addr string) (int, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	return askOn(ctx, nc)
}

// TestRolesAndStrangers: who may do what, and what others are told.
func TestRolesAndStrangers(t *testing.T) {
	a := startAdministered(t)
	a.module("gate.wasm", rejects(552))
	a.refused("lacks the role upload", exitAdmin, "read", "filter", "push", "gate.wasm")
	a.refused("lacks the role upload", exitAdmin, "operate", "filter", "rollback", "gate")
	a.expect("after those", a.fresh(), 550)
	for _, role := range []string{"read", "operate", "upload", "admin"} {
		if out := a.must(role, "status"); !strings.Contains(out, "takes mail") || !strings.Contains(out, "gate") {
			t.Errorf("status as %s:\n%s", role, out)
		}
	}
	a.tokens["stranger"] = "penstock_unknown"
	a.refused("the token is not known", exitAdmin, "stranger", "status")

	if out := gatewayFile(t, a, "token", "remove", "the-read"); out != "" {
		t.Errorf("token remove says %q", out)
	}
	a.signal(syscall.SIGHUP)
	a.await("reloaded", func(l map[string]any) bool { return strings.HasPrefix(fmt.Sprint(l["msg"]), "reloaded") })
	a.refused("the token is not known", exitAdmin, "read", "status")

	get := func(host, path, token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.addr[adminName]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, tt := range []struct {
		host, path, token string
		code              int
	}{
		{"", "/livez", "", 200},
		{"", "/readyz", "", 200},
		{"", "/v1/status", "", 401},
		{"", "/metrics", "", 401},
		{"", "/nothing", "", 401},
		{"", "/nothing", a.tokens["admin"], 404},
		{"localhost", "/v1/status", a.tokens["admin"], 200},
		{"evil.example", "/v1/status", a.tokens["admin"], 421},
		{"evil.example", "/livez", "", 421},
	} {
		if code, body := get(tt.host, tt.path, tt.token); code != tt.code {
			t.Errorf("%s of %q: %d, want %d\n%s", tt.path, tt.host, code, tt.code, body)
		}
	}
}

// gatewayFile runs a command on the gateway's own token file.
func gatewayFile(t *testing.T, a *administered, args ...string) string {
	t.Helper()
	out, errs, code := gatewayRun(t, a.dir, nil, args...)
	if code != 0 {
		t.Fatalf("gateway %v: %d %s", args, code, errs)
	}
	return out
}

// TestMetrics: what Prometheus would read after some mail.
func TestMetrics(t *testing.T) {
	a := startAdministered(t)
	c := a.fresh()
	a.expect("refused", c, 550)
	a.expect("refused again", c, 550)
	cl, err := client.New(a.addr[adminName], a.tokens["read"], client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	text, err := cl.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, labels string
		want         float64
	}{
		{"penstock_gateway_sessions_total", "", 1},
		{"penstock_gateway_open_connections", "listener=mx", 1},
		{"penstock_gateway_listener_up", "listener=mx", 1},
		{"penstock_gateway_messages_total", "result=relayed", 0},
		{"penstock_gateway_logins_total", "result=ok", 0},
		{"penstock_gateway_load_level", "", 0},
		{"penstock_gateway_load_used", "resource=sessions", 1},
		{"penstock_gateway_load_limit", "resource=sessions", 10000},
		{"penstock_policy_calls_total", "filter=gate stage=rcpt verdict=reject", 2},
		{"penstock_policy_call_seconds", "filter=gate stage=rcpt", 2},
		{"penstock_policy_broken_stages", "filter=gate", 0},
		{"penstock_policy_version_info", "filter=gate version=" + shortDigest(digestOf(rejects(550))), 1},
		{"penstock_delivery_backend_up", "backend=store", 1},
		{"penstock_gateway_bad_proxy_total", "", 0},
		{"penstock_gateway_turned_away_total", "listener=mx", 0},
		{"penstock_gateway_untracked_total", "listener=mx", 0},
		{"penstock_gateway_load_changes_total", "level=stressed", 0},
		{"penstock_certs_names", "", 0},
		{"penstock_certs_failing", "", 0},
	} {
		if got, ok := value(families[tt.name], tt.labels); !ok || got != tt.want {
			t.Errorf("%s{%s} = %v %v, want %v", tt.name, tt.labels, got, ok, tt.want)
		}
	}
	if until, ok := value(families["penstock_certs_first_expiry_timestamp_seconds"], ""); !ok || until < float64(time.Now().Unix()) {
		t.Errorf("certificates end at %v", until)
	}
	if families["go_goroutines"] == nil || families["penstock_policy_failures_total"] != nil {
		t.Error("the runtime's figures are missing, or a filter failed")
	}
}

// value finds one series; of a histogram it is the count.
func value(f *dto.MetricFamily, labels string) (float64, bool) {
	for _, m := range f.GetMetric() {
		var words []string
		for _, l := range m.GetLabel() {
			words = append(words, l.GetName()+"="+l.GetValue())
		}
		if strings.Join(words, " ") == labels {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount()), true
		}
	}
	return 0, false
}

// TestNotReadyWhileShuttingDown: a message is under way, the gateway is told to end: it says
// that it is not ready, still answers who looks, and takes no change.
func TestNotReadyWhileShuttingDown(t *testing.T) {
	a := startAdministered(t)
	c, err := client.New(a.addr[adminName], a.tokens["admin"], client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Push(t.Context(), "gate", rcptFilter(wasmtest.Say(abi.ActContinue), ""), api.Condition{}); err != nil {
		t.Fatal(err)
	}
	busy := a.fresh()
	if _, err := busy.Envelope(t.Context(), smtp.Sender{Path: path(t, "alice@example.net")}, []smtp.Recipient{{Path: path(t, "bob@example.org")}}); err != nil {
		t.Fatal(err)
	}
	replies, err := busy.Data(t.Context(), interrupted{func() {
		a.signal(syscall.SIGTERM)
		a.await("shutting down", func(l map[string]any) bool { return l["msg"] == "shutting down" })
		resp, err := http.Get("http://" + a.addr[adminName] + "/readyz")
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("/readyz while shutting down: %d", resp.StatusCode)
		}
		if s, err := c.Status(t.Context()); err != nil || s.Ready {
			t.Errorf("status while shutting down: %v %v", s.Ready, err)
		}
		_, err = c.Push(t.Context(), "gate", rejects(550), api.Condition{})
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeUnavailable {
			t.Errorf("push while shutting down: %v", err)
		}
	}})
	if err != nil || replies[0].Code != 250 {
		t.Errorf("the message under way: %v %v", replies, err)
	}
	<-a.done
	if a.err != nil {
		t.Errorf("exit: %v\n%s", a.err, a.log())
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("after the end: %v", err)
	}
}

// TestCheckAdmin: what check says of the token file.
func TestCheckAdmin(t *testing.T) {
	for _, tt := range []struct {
		name, tokens string
		mode         os.FileMode
		want         string
		code         int
	}{
		{"none", "", 0, "is not there: nobody is let in", 0},
		{"empty", "# nobody\n", 0o600, "has no token", 0},
		{"open to all", "a:read:" + strings.Repeat("0", 64) + "\n", 0o644, "can be read by others", 0},
		{"broken", "a:read\n", 0o600, "line 1: is not name:role:hash", 1},
	} {
		dir := t.TempDir()
		yaml := strings.NewReplacer("BACKEND", "127.0.0.1:9", "$CACHE", dir+"/cache", "$DIR", dir, "      - {module: gate}\n", "").Replace(adminConfig)
		if err := os.WriteFile(filepath.Join(dir, "penstock.yaml"), []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		if tt.tokens != "" {
			if err := os.WriteFile(filepath.Join(dir, "tokens.txt"), []byte(tt.tokens), tt.mode); err != nil {
				t.Fatal(err)
			}
		}
		_, errs, code := gatewayRun(t, dir, []string{tokenVariable + "=x"}, "check")
		if code != tt.code || !strings.Contains(errs, "admin.tokens: ") || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit code %d, want %d with %q\n%s", tt.name, code, tt.code, tt.want, errs)
		}
	}
}

// TestNoPush: what check says of filters.dir where filters are pushed.
func TestNoPush(t *testing.T) {
	dir := t.TempDir()
	file, closed := filepath.Join(dir, "file"), filepath.Join(dir, "closed")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(closed, 0o500)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:                       "",
		filepath.Join(dir, "new"): "is not there; the first push makes it",
		file:                      "is not a folder",
		filepath.Join(file, "x"):  "not a directory",
		closed:                    "cannot write to",
	} {
		if path == closed && os.Getuid() == 0 {
			want = "" // who may do everything
		}
		if got := noPush(path); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	yaml := strings.Replace(checkConfig, "CASE", "", 1) + "admin: {tokens: 'file:t'}\n"
	yaml = strings.Replace(yaml, "filters: {", "filters: {dir: none, ", 1)
	if got := checkText(t, dir, yaml); !strings.Contains(got, "penstock.yaml:10: warning: filters.dir: none is not there") {
		t.Errorf("check says\n%s", got)
	}
}

// TestTokenFile: the file keeps its comments, its mode and its link.
func TestTokenFile(t *testing.T) {
	dir := t.TempDir()
	run := func(code int, args ...string) string {
		t.Helper()
		out, errs, got := gatewayRun(t, dir, nil, args...)
		if got != code {
			t.Fatalf("gateway %v: exit code %d, want %d\n%s", args, got, code, errs)
		}
		return out + errs
	}
	run(0, "token", "new", "--role", "read", "a")
	if info, err := os.Stat(filepath.Join(dir, "tokens.txt")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	file := filepath.Join(dir, "real.txt")
	if err := errors.Join(os.WriteFile(file, []byte("# who\n"), 0o644), os.Symlink("real.txt", filepath.Join(dir, "link.txt"))); err != nil {
		t.Fatal(err)
	}
	run(0, "token", "new", "-f", "link.txt", "--role", "read,upload", "b")
	run(0, "token", "new", "-f", "link.txt", "--role", "admin", "bb")
	text, err := os.ReadFile(file)
	if info, err2 := os.Lstat(filepath.Join(dir, "link.txt")); err != nil || err2 != nil || info.Mode().Type() != os.ModeSymlink || !bytes.HasPrefix(text, []byte("# who\nb:read,upload:")) {
		t.Errorf("%q %v %v", text, err, err2)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if out := run(0, "token", "list", "-f", "link.txt"); !strings.Contains(out, "b     read upload") {
		t.Errorf("list:\n%s", out)
	}
	run(0, "token", "remove", "-f", "link.txt", "b")
	if text, _ := os.ReadFile(file); !bytes.HasPrefix(text, []byte("# who\nbb:admin:")) {
		t.Errorf("after remove: %q", text)
	}
	run(1, "token", "remove", "-f", "link.txt", "b")
	run(1, "token", "new", "-f", "link.txt", "--role", "read", "bb")
	run(2, "token", "new", "c")
	run(2, "token", "new", "--role", "root", "c")
	run(2, "token", "new", "--role", "read", "a:b")
}

// TestVersionsAreBounded: the oldest go, and a file that was changed on disk is refused.
func TestVersionsAreBounded(t *testing.T) {
	v := versionsOf(t.TempDir(), "f")
	for i := range maxVersions + 3 {
		if err := v.keep([]byte{byte(i)}, false); err != nil {
			t.Fatal(err)
		}
	}
	list, err := v.list()
	files, _ := filepath.Glob(filepath.Join(v.dir, "*.wasm"))
	if err != nil || len(list) != maxVersions || len(files) != maxVersions {
		t.Fatalf("%d versions, %d files, %v", len(list), len(files), err)
	}
	if wasm, err := v.read(list[0].digest); err != nil || wasm[0] != 3 {
		t.Errorf("the oldest is %v %v, want 3", wasm, err)
	}
	if err := os.WriteFile(v.file(list[0].digest), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := v.read(list[0].digest); err == nil {
		t.Error("a version that was changed on disk is read")
	}
	if err := v.forget(list[1].digest); err != nil {
		t.Fatal(err)
	}
	if after, err := v.list(); err != nil || len(after) != maxVersions-1 {
		t.Errorf("%d after forget, %v", len(after), err)
	}
}
