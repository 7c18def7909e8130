package admin_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/admin/client"
)

// server_test.go talks to a server as clients do, over real sockets.

// fake is a gateway with filters. Its fields are set before the server starts.
type fake struct {
	ready atomic.Bool
	err   error                                  // of every change
	block func(ctx context.Context, name string) // called in Push
	got   atomic.Pointer[pushed]                 // the last Push
}

type pushed struct {
	name, to string
	module   []byte
	cond     api.Condition
}

func (f *fake) Status() api.Status { return api.Status{Hostname: "mx.example.org", Ready: f.Ready()} }
func (f *fake) Accounts() api.Accounts {
	return api.Accounts{Filters: []api.FilterAccount{{Name: "greet"}}}
}
func (f *fake) Ready() bool { return f.ready.Load() }

func (f *fake) List(context.Context) ([]api.Filter, error) { return nil, f.err }

func (f *fake) Push(ctx context.Context, name string, module []byte, c api.Condition) (api.Change, error) {
	if f.block != nil {
		f.block(ctx, name)
	}
	f.got.Store(&pushed{name: name, module: module, cond: c})
	return api.Change{Name: name, Size: int64(len(module)), Chains: []string{}}, f.err
}

func (f *fake) Rollback(_ context.Context, name, to string, c api.Condition) (api.Change, error) {
	if name == "panic" {
		panic("a fault of ours")
	}
	f.got.Store(&pushed{name: name, to: to, cond: c})
	return api.Change{Name: name}, f.err
}

// logbook is a log that may be read while it is written.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// rig is a server that runs.
type rig struct {
	*fake
	t      *testing.T
	srv    *admin.Server
	addr   string
	log    logbook
	tokens map[api.Role]string
}

func start(t *testing.T, f *fake, edit func(*admin.Options)) *rig {
	t.Helper()
	r := &rig{fake: f, t: t, tokens: map[api.Role]string{}}
	f.ready.Store(true)
	var file strings.Builder
	for _, role := range api.Roles() {
		secret, token, err := admin.NewToken("the-"+string(role), role)
		if err != nil {
			t.Fatal(err)
		}
		r.tokens[role] = secret
		fmt.Fprintln(&file, token)
	}
	path := filepath.Join(t.TempDir(), "tokens.txt")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	o := admin.Options{Network: "tcp", Address: "127.0.0.1:0", Tokens: path, Gateway: f, Filters: f,
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "figures 1\n") }),
		Log:     slog.New(slog.NewTextHandler(&r.log, nil))}
	if edit != nil {
		edit(&o)
	}
	var err error
	if r.srv, err = admin.New(o); err != nil {
		t.Fatal(err)
	}
	if err := r.srv.Listen(); err != nil {
		t.Fatal(err)
	}
	r.addr = r.srv.Addr().String()
	served := make(chan error, 1)
	go func() { served <- r.srv.Serve() }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := errors.Join(r.srv.Shutdown(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
	return r
}

// ask sends one request; header lines are "Name: value".
func (r *rig) ask(method, path string, role api.Role, body io.Reader, header ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.addr+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if role != "" {
		req.Header.Set("Authorization", "Bearer "+r.tokens[role])
	}
	for _, line := range header {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(text)
}

const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// TestRequests: each question that a request passes, in its order; and what every answer has.
func TestRequests(t *testing.T) {
	r := start(t, &fake{}, nil)
	for _, tt := range []struct {
		method, path string
		role         api.Role
		header       string
		status       int
		code         api.Code
	}{
		{"GET", "/livez", "", "", 200, ""},
		{"GET", "/readyz", "", "", 200, ""},
		{"HEAD", "/livez", "", "", 200, ""},
		{"POST", "/livez", "", "", 401, api.CodeNoToken},
		{"GET", "/livez/x", "", "", 401, api.CodeNoToken},
		{"GET", "/livez", "", "Host: evil.example", 421, api.CodeWrongHost},
		{"GET", "/v1/status", api.RoleAdmin, "Host: evil.example", 421, api.CodeWrongHost},
		{"GET", "/v1/status", "", "", 401, api.CodeNoToken},
		{"GET", "/v1/status", "", "Authorization: Basic YTpi", 401, api.CodeNoToken},
		{"GET", "/v1/status", "", "Authorization: Bearer penstock_wrong", 401, api.CodeNoToken},
		{"GET", "/v1/status", "", "Cookie: token=x", 401, api.CodeNoToken},
		{"GET", "/v1/status", api.RoleRead, "", 200, ""},
		{"HEAD", "/v1/status", api.RoleRead, "", 200, ""},
		{"POST", "/v1/status", api.RoleRead, "", 405, api.CodeMethod},
		{"GET", "/v1/none", api.RoleRead, "", 404, api.CodeNotFound},
		{"GET", "/", api.RoleRead, "", 404, api.CodeNotFound},
		{"GET", "/metrics", api.RoleRead, "", 200, ""},
		{"GET", "/v1/accounts", api.RoleRead, "", 200, ""},
		{"GET", "/v1/filters", api.RoleOperate, "", 200, ""},
		{"GET", "/v1/filters", api.RoleUpload, "", 200, ""},
		{"GET", "/v1/filters/a", api.RoleUpload, "", 405, api.CodeMethod},
		{"POST", "/v1/filters/a", api.RoleRead, "", 403, api.CodeForbidden},
		{"POST", "/v1/filters/a", api.RoleOperate, "", 403, api.CodeForbidden},
		{"POST", "/v1/filters/a", api.RoleUpload, "", 400, api.CodeBadRequest}, // no body
		{"POST", "/v1/filters/a/rollback", api.RoleRead, "", 403, api.CodeForbidden},
		{"POST", "/v1/filters/a/rollback", api.RoleUpload, "", 200, ""},
		{"POST", "/v1/filters/a/rollback", api.RoleAdmin, "", 200, ""},
		{"POST", "/v1/filters/.a/rollback", api.RoleUpload, "", 400, api.CodeBadRequest},
		{"POST", "/v1/filters/a%2fb/rollback", api.RoleUpload, "", 400, api.CodeBadRequest},
		{"POST", "/v1/filters/..%2f..%2fetc/rollback", api.RoleUpload, "", 400, api.CodeBadRequest},
		{"POST", "/v1/filters/a%00/rollback", api.RoleUpload, "", 400, api.CodeBadRequest},
		{"POST", "/v1/filters/a/rollback", api.RoleUpload, "If-Match: " + sum, 400, api.CodeBadRequest}, // no quotes
		{"POST", "/v1/filters/a/rollback", api.RoleUpload, `If-Match: "sha256:00"`, 400, api.CodeBadRequest},
		{"POST", "/v1/filters/a/rollback", api.RoleUpload, `If-None-Match: "x"`, 400, api.CodeBadRequest},
	} {
		var header []string
		if tt.header != "" {
			header = []string{tt.header}
		}
		name := strings.Join([]string{tt.method, tt.path, string(tt.role), tt.header}, " ")
		resp, body := r.ask(tt.method, tt.path, tt.role, nil, header...)
		if resp.StatusCode != tt.status {
			t.Errorf("%s: %d, want %d\n%s", name, resp.StatusCode, tt.status, body)
		}
		h := resp.Header
		if h.Get("Content-Security-Policy") != "default-src 'none'; frame-ancestors 'none'" || h.Get("X-Content-Type-Options") != "nosniff" ||
			h.Get("Cache-Control") != "no-store" || h.Get("Set-Cookie") != "" || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: the header is %v", name, h)
		}
		if tt.code == "" || tt.method == "HEAD" {
			continue
		}
		var f api.Failure
		if err := json.Unmarshal([]byte(body), &f); err != nil || f.Error == nil || f.Error.Code != tt.code || f.Error.Message == "" || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s (%v), want the code %s", name, body, err, tt.code)
		}
		if tt.status == 401 && !strings.HasPrefix(h.Get("WWW-Authenticate"), "Bearer") || tt.status == 405 && h.Get("Allow") == "" {
			t.Errorf("%s: the header is %v", name, h)
		}
	}
	r.ready.Store(false)
	if resp, body := r.ask("GET", "/readyz", "", nil); resp.StatusCode != 503 || body != "no\n" {
		t.Errorf("not ready: %d %q", resp.StatusCode, body)
	}
	if resp, _ := r.ask("GET", "/livez", "", nil); resp.StatusCode != 200 {
		t.Errorf("not ready, but alive: %d", resp.StatusCode)
	}
}

// TestWithoutMetrics: what is off is not there.
func TestWithoutMetrics(t *testing.T) {
	r := start(t, &fake{}, func(o *admin.Options) { o.Metrics = nil })
	if resp, _ := r.ask("GET", "/metrics", api.RoleAdmin, nil); resp.StatusCode != 404 {
		t.Errorf("/metrics: %d, want 404", resp.StatusCode)
	}
}

// TestFailedAttempts: after ten the answer is 429 and the log is quiet; a good token passes
// all the same; no token is in the log.
func TestFailedAttempts(t *testing.T) {
	r := start(t, &fake{}, nil)
	statuses := map[int]int{}
	for range 40 {
		resp, _ := r.ask("GET", "/v1/status", "", nil, "Authorization: Bearer penstock_guess")
		statuses[resp.StatusCode]++
		if resp.StatusCode == 429 && resp.Header.Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
	}
	if statuses[401] < 10 || statuses[401] > 15 || statuses[401]+statuses[429] != 40 {
		t.Errorf("answers %v", statuses)
	}
	if resp, _ := r.ask("GET", "/v1/status", api.RoleRead, nil); resp.StatusCode != 200 {
		t.Errorf("a good token meanwhile: %d", resp.StatusCode)
	}
	text := r.log.String()
	if n := strings.Count(text, "not let in"); n != statuses[401] || !strings.Contains(text, "too many failed attempts") || !strings.Contains(text, "ip=127.0.0.1") {
		t.Errorf("%d lines in the log:\n%s", n, text)
	}
	if strings.Contains(text, "guess") || strings.Contains(text, r.tokens[api.RoleRead]) {
		t.Errorf("the log has a token:\n%s", text)
	}
}

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestBodies(t *testing.T) {
	r := start(t, &fake{}, nil)
	for _, tt := range []struct {
		path   string
		body   io.Reader
		status int
	}{
		{"/v1/filters/a", io.LimitReader(zeros{}, api.MaxUpload), 200},
		{"/v1/filters/a", io.LimitReader(zeros{}, api.MaxUpload+1), 413},
		{"/v1/filters/a/rollback", io.LimitReader(zeros{}, 100<<10), 413},
		{"/v1/filters/a/rollback", strings.NewReader("x"), 400},
		{"/v1/filters/a/rollback", strings.NewReader(`{"to": "` + sum + `"}`), 200},
	} {
		if resp, body := r.ask("POST", tt.path, api.RoleUpload, tt.body); resp.StatusCode != tt.status {
			t.Errorf("%s: %d, want %d\n%s", tt.path, resp.StatusCode, tt.status, body)
		}
	}
	if got := r.got.Load(); got.to != sum {
		t.Errorf("rollback to %q", got.to)
	}
}

// TestErrors: an error that is for the client is answered as it is; any other stays inside;
// a panic costs its own request.
func TestErrors(t *testing.T) {
	f := &fake{err: errors.New("open /etc/secret: no")}
	r := start(t, f, nil)
	resp, body := r.ask("POST", "/v1/filters/a/rollback", api.RoleUpload, nil)
	if resp.StatusCode != 500 || strings.Contains(body, "secret") || !strings.Contains(r.log.String(), "secret") {
		t.Errorf("%d %s\n%s", resp.StatusCode, body, r.log.String())
	}
	for code, status := range map[api.Code]int{
		api.CodeBadRequest: 400, api.CodeNotFound: 404, api.CodeConflict: 409, api.CodeChanged: 412, api.CodeTooLarge: 413,
		api.CodeInvalidModule: 422, api.CodeUnavailable: 503, "new": 500,
	} {
		f.err = fmt.Errorf("wrapped: %w", &api.Error{Code: code, Message: "m", Next: "n"})
		resp, body := r.ask("POST", "/v1/filters/a/rollback", api.RoleUpload, nil)
		if want := fmt.Sprintf(`{"error":{"code":%q,"message":"m","next":"n"}}`, code) + "\n"; resp.StatusCode != status || body != want {
			t.Errorf("%s: %d %s, want %d %s", code, resp.StatusCode, body, status, want)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.addr+"/v1/filters/panic/rollback", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.tokens[api.RoleAdmin])
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("a panic is answered %d", resp.StatusCode)
	}
	if !strings.Contains(r.log.String(), "a fault of ours") {
		t.Error("the panic is not in the log")
	}
	if resp, _ := r.ask("GET", "/livez", "", nil); resp.StatusCode != 200 {
		t.Error("the panic took the server along")
	}
}

// TestOneChangeAtATime: uploads wait for each other, and a shutdown ends those that run.
func TestOneChangeAtATime(t *testing.T) {
	var inside, most atomic.Int32
	entered := make(chan string, 8)
	f := &fake{block: func(ctx context.Context, name string) {
		if n := inside.Add(1); n > most.Load() {
			most.Store(n)
		}
		entered <- name
		<-ctx.Done()
		inside.Add(-1)
	}}
	r := start(t, f, nil)
	c := r.client(api.RoleUpload)
	ctx, cancel := context.WithCancel(t.Context())
	var pushes sync.WaitGroup
	for range 3 {
		pushes.Go(func() { _, _ = c.Push(ctx, "first", []byte("x"), api.Condition{}) })
	}
	<-entered
	cancel() // the clients go: whichever of them are waiting get in one after the other, and out
	pushes.Wait()
	pushes.Go(func() {
		if _, err := c.Push(t.Context(), "last", []byte("x"), api.Condition{}); err != nil {
			t.Errorf("a push that a shutdown found: %v", err)
		}
	})
	for <-entered != "last" {
	}
	if err := r.srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	pushes.Wait()
	if most.Load() != 1 {
		t.Errorf("%d changes at once", most.Load())
	}
}

func (r *rig) client(role api.Role) *client.Client {
	r.t.Helper()
	c, err := client.New(r.addr, r.tokens[role], client.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

// TestClient: server and client understand each other, over TCP and over a socket.
func TestClient(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "admin.sock")
	for _, unix := range []bool{false, true} {
		r := start(t, &fake{}, func(o *admin.Options) {
			if unix {
				o.Network, o.Address = "unix", sock
			}
		})
		if unix {
			r.addr = "unix:" + sock
			if info, err := os.Stat(sock); err != nil || info.Mode().Perm() != 0o660 {
				t.Errorf("%v %v", info.Mode(), err)
			}
		}
		c := r.client(api.RoleUpload)
		if s, err := c.Status(t.Context()); err != nil || s.Hostname != "mx.example.org" {
			t.Errorf("status: %+v %v", s, err)
		}
		if text, err := c.Metrics(t.Context()); err != nil || string(text) != "figures 1\n" {
			t.Errorf("metrics: %q %v", text, err)
		}
		if a, err := c.Accounts(t.Context()); err != nil || len(a.Filters) != 1 || a.Filters[0].Name != "greet" {
			t.Errorf("%+v %v", a, err)
		}
		if list, err := c.Filters(t.Context()); err != nil || list == nil {
			t.Errorf("filters: %v %v", list, err)
		}
		module := bytes.Repeat([]byte("x"), 1<<20)
		ch, err := c.Push(t.Context(), "a", module, api.Condition{Digest: sum, Absent: true})
		if got := r.got.Load(); err != nil || ch.Size != 1<<20 || got.cond != (api.Condition{Digest: sum, Absent: true}) || !bytes.Equal(got.module, module) {
			t.Errorf("push: %+v %v", ch, err)
		}
		if _, err := c.Rollback(t.Context(), "a", sum, api.Condition{}); err != nil || r.got.Load().to != sum {
			t.Errorf("rollback: %v", err)
		}
		_, err = r.client(api.RoleRead).Push(t.Context(), "a", module, api.Condition{})
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeForbidden || e.Status != 403 {
			t.Errorf("push without the role: %v", err)
		}
	}
}

// TestLargeHeader: a header above the limit is refused.
func TestLargeHeader(t *testing.T) {
	r := start(t, &fake{}, nil)
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	go func() { // the server may close before all of it is sent
		_, _ = io.WriteString(nc, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Large: "+strings.Repeat("x", 64<<10)+"\r\n\r\n")
	}()
	line, err := bufio.NewReader(nc).ReadString('\n')
	if err != nil || !strings.Contains(line, " 431 ") {
		t.Errorf("%q %v", line, err)
	}
}

func TestOptions(t *testing.T) {
	f := &fake{}
	good := admin.Options{Network: "tcp", Address: "127.0.0.1:0", Tokens: "t", Gateway: f, Filters: f, Hosts: []string{"a.example", "192.0.2.1", "2001:db8::1"}}
	for want, edit := range map[string]func(*admin.Options){
		"":                      func(*admin.Options) {},
		"neither tcp nor unix":  func(o *admin.Options) { o.Network = "udp" },
		"no address":            func(o *admin.Options) { o.Address = "" },
		"no token file":         func(o *admin.Options) { o.Tokens = "" },
		"nothing to show":       func(o *admin.Options) { o.Filters = nil },
		`host "localhost:8025"`: func(o *admin.Options) { o.Hosts = []string{"localhost:8025"} },
	} {
		o := good
		edit(&o)
		if err := o.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := (admin.Options{}).Validate(); err == nil || strings.Count(err.Error(), "\n") < 3 {
		t.Errorf("not all at once: %v", err)
	}
	broken := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(broken, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	good.Tokens = broken
	if _, err := admin.New(good); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a broken token file: %v", err)
	}
	if !slices.Contains(api.Roles(), api.RoleAdmin) {
		t.Error("no role for all")
	}
}
