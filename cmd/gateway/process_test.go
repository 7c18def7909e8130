package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/internal/leak"
)

// process_test.go: the program as a process of its own, as a user starts it.

// binary is the program, built once; see TestMain.
var binary string

// builtBinary is the environment variable that names it.
const builtBinary = "GATEWAY_TEST_BINARY"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == compileCommand { // for a gateway inside of the tests
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "penstock-test-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if _, ok := filters.Builtin("rcptguard"); !ok {
		fmt.Fprintln(os.Stderr, "the filters are not built into the tests: run make filters first")
		return 1
	}
	// A test that runs again in a namespace finds the program that is built already.
	if binary = os.Getenv(builtBinary); binary == "" {
		binary = filepath.Join(dir, "gateway")
		build := exec.Command("go", "build", "-o", binary, ".")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		os.Setenv(builtBinary, binary)
	}
	// The child processes share one cache of compiled filters, and Go's own cache.
	goCache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "go env GOCACHE:", err)
		return 1
	}
	os.Setenv("GOCACHE", strings.TrimSpace(string(goCache)))
	// What the peers keep is big; it stays where it is.
	if kept, err := os.UserCacheDir(); err == nil {
		os.MkdirAll(filepath.Join(kept, "penstock-test"), 0o755)
		os.MkdirAll(filepath.Join(dir, "cache"), 0o755)
		os.Symlink(filepath.Join(kept, "penstock-test"), filepath.Join(dir, "cache", "penstock-test"))
	}
	os.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	return leak.Run(m)
}

// gatewayProcess is a running gateway.
type gatewayProcess struct {
	t    *testing.T
	cmd  *exec.Cmd
	dir  string // of its configuration
	addr map[string]string
	done chan struct{} // closed when it has ended
	err  error         // of its end; valid after done

	mu    sync.Mutex
	lines []map[string]any
	raw   bytes.Buffer
	news  chan struct{} // closed and renewed with each line
}

// patience is how long a test waits for the process to do something.
const patience = 60 * time.Second

// startGateway runs serve on a configuration, which is written into a folder of its own;
// $DIR in it stands for that folder, $CACHE for one that all share. It returns when all listeners listen.
func startGateway(t *testing.T, yaml string) *gatewayProcess {
	t.Helper()
	return startGatewayWith(t, yaml, func(string) {}, func(*exec.Cmd) {})
}

// startGatewayIn is startGateway for one that finds something in its folder: seed puts it
// there.
func startGatewayIn(t *testing.T, yaml string, seed func(dir string)) *gatewayProcess {
	t.Helper()
	return startGatewayWith(t, yaml, seed, func(*exec.Cmd) {})
}

// startGatewayAs is startGateway with a command that prepare has changed.
func startGatewayAs(t *testing.T, yaml string, prepare func(*exec.Cmd)) *gatewayProcess {
	t.Helper()
	return startGatewayWith(t, yaml, func(string) {}, prepare)
}

func startGatewayWith(t *testing.T, yaml string, seed func(dir string), prepare func(*exec.Cmd)) *gatewayProcess {
	t.Helper()
	g := &gatewayProcess{t: t, dir: t.TempDir(), addr: map[string]string{}, done: make(chan struct{}), news: make(chan struct{})}
	seed(g.dir)
	g.write(yaml)
	g.cmd = exec.Command(binary, "serve", "-c", filepath.Join(g.dir, "penstock.yaml"), "--set", "log.format=json")
	if !strings.Contains(yaml, "resolver:") { // reports to senders must not leave this machine
		g.cmd.Args = append(g.cmd.Args, "--set", "delivery.resolver.address=127.0.0.1:1")
	}
	prepare(g.cmd)
	stderr, err := g.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go g.read(stderr)
	t.Cleanup(func() { g.stop() })
	g.await("started", func(l map[string]any) bool { return l["msg"] == "started" })
	for range strings.Count(yaml, " address:") {
		g.await("listening", func(l map[string]any) bool {
			name, _ := l["listener"].(string)
			if l["msg"] != "listening" || g.addr[name] != "" {
				return false
			}
			g.addr[name] = l["addr"].(string)
			return true
		})
	}
	return g
}

func (g *gatewayProcess) write(yaml string) {
	g.t.Helper()
	yaml = strings.NewReplacer("$DIR", g.dir, "$CACHE", filepath.Join(filepath.Dir(binary), "compiled")).Replace(yaml)
	if err := os.WriteFile(filepath.Join(g.dir, "penstock.yaml"), []byte(yaml), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gatewayProcess) read(r io.Reader) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var l map[string]any
		if json.Unmarshal(sc.Bytes(), &l) != nil {
			l = map[string]any{"msg": sc.Text()}
		}
		g.mu.Lock()
		g.lines = append(g.lines, l)
		g.raw.Write(append(sc.Bytes(), '\n'))
		close(g.news)
		g.news = make(chan struct{})
		g.mu.Unlock()
	}
	g.err = g.cmd.Wait()
	close(g.done)
}

// await waits for a line of the log, old or new, that ok takes.
func (g *gatewayProcess) await(what string, ok func(map[string]any) bool) map[string]any {
	g.t.Helper()
	late := time.After(patience)
	for seen := 0; ; {
		g.mu.Lock()
		lines, news := g.lines, g.news
		g.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if ok(lines[seen]) {
				return lines[seen]
			}
		}
		select {
		case <-news:
		case <-g.done:
			g.mu.Lock()
			more := len(g.lines) > seen
			g.mu.Unlock()
			if !more {
				g.t.Fatalf("the gateway ended (%v) before: %s\n%s", g.err, what, g.log())
			}
		case <-late:
			g.t.Fatalf("no log line: %s\n%s", what, g.log())
		}
	}
}

func (g *gatewayProcess) log() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.raw.String()
}

func (g *gatewayProcess) signal(s syscall.Signal) {
	g.t.Helper()
	if err := g.cmd.Process.Signal(s); err != nil {
		g.t.Fatal(err)
	}
}

// stop ends the process as an operator does and checks that it ended well.
func (g *gatewayProcess) stop() {
	select {
	case <-g.done:
		return
	default:
	}
	_ = g.cmd.Process.Signal(syscall.SIGTERM) // it may be gone by now
	select {
	case <-g.done:
		if g.err != nil {
			g.t.Errorf("the gateway ended with %v\n%s", g.err, g.log())
		}
	case <-time.After(patience):
		_ = g.cmd.Process.Kill()
		g.t.Errorf("the gateway did not end\n%s", g.log())
	}
}

// gatewayRun runs a command to its end.
func gatewayRun(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}
