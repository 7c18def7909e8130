package penstock

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const author = `package main

import "github.com/penstock/penstock/guest-sdk/filter"

func main() {}

func init() { newFilter().Serve() }

func newFilter() *filter.Filter {
	f := filter.New("hello")
	blocked := map[string]bool{}
	f.Configure(func(c filter.Config) error {
		for _, d := range c.Strings("blocked") {
			blocked[d] = true
		}
		return c.Err()
	})
	f.OnRcptTo(func(w filter.Reply, r *filter.RcptEvent) {
		if blocked[r.Rcpt().Domain()] {
			w.Reject(550, "5.7.1", "no such place")
		}
	})
	return f
}
`

const authorsTest = `package main

import (
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
)

func TestBlocked(t *testing.T) {
	s := filtertest.New(t, filtertest.Options{Filter: newFilter(), Config: map[string]any{"blocked": []string{"spam.example"}}})
	s.Connect()
	s.Helo("client.example")
	s.MailFrom("a@example.org")
	if r := s.RcptTo("b@spam.example"); r.Reply != "550 5.7.1 no such place" {
		t.Errorf("reply %q", r.Reply)
	}
	if r := s.RcptTo("b@example.com"); r.Reply != "" {
		t.Errorf("reply %q", r.Reply)
	}
}
`

// maxHello is the largest that a small filter may be: a guest's size is paid for at every
// load. The compiler's runtime is most of it; 230,000 octets are math/rand, which the SDK seeds.
const maxHello = 2_300_000

// TestAuthorsProject builds a filter outside of this repository, without network and
// without a module cache, and runs its native test.
func TestAuthorsProject(t *testing.T) {
	dir := t.TempDir()
	if err := WriteModule(filepath.Join(dir, ".penstock")); err != nil {
		t.Fatal(err)
	}
	mod, sum, err := ProjectFiles("hello", "./.penstock")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"main.go": author, "main_test.go": authorsTest, "go.mod": string(mod), "go.sum": string(sum)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(env []string, args ...string) {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GOWORK=off"), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	wasm := filepath.Join(dir, "hello.wasm")
	run([]string{"GOOS=wasip1", "GOARCH=wasm", "GOMODCACHE=" + t.TempDir()},
		"build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o", wasm, ".")
	run(nil, "vet", ".")
	run(nil, "test", ".")
	info, err := os.Stat(wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d octets", info.Size())
	if info.Size() > maxHello {
		t.Errorf("a small filter has %d octets, want at most %d", info.Size(), maxHello)
	}
}

// TestNoTestsTravel keeps our own tests out of authors' projects.
func TestNoTestsTravel(t *testing.T) {
	dir := t.TempDir()
	if err := WriteModule(dir); err != nil {
		t.Fatal(err)
	}
	tests, err := filepath.Glob(filepath.Join(dir, "*", "*", "*_test.go"))
	if err != nil || len(tests) > 0 {
		t.Errorf("%q, %v", tests, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "policy", "guest", "guest.go")); err != nil {
		t.Error(err)
	}
}
