package wasmhost_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// newRuntime returns a Runtime that ends with the test.
func newRuntime(t testing.TB) *wasmhost.Runtime { return newCachedRuntime(t, "") }

// newCachedRuntime is newRuntime with a folder for compiled code.
func newCachedRuntime(t testing.TB, cache string) *wasmhost.Runtime {
	t.Helper()
	rt, err := wasmhost.New(t.Context(), wasmhost.Options{BootEach: bootsEach(t), CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return rt
}

// load returns a filter that ends with the test.
func load(t testing.TB, wasm []byte, o wasmhost.FilterOptions) *wasmhost.Filter {
	t.Helper()
	o.Grants = guest.Everything()
	m, err := newRuntime(t).Load(t.Context(), "test", wasm)
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.Filter(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// open returns an instance that ends with the test.
func open(t testing.TB, f *wasmhost.Filter) policy.Instance {
	t.Helper()
	in, err := f.Open(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	return in
}

// session returns a session in which every fact is known.
func session() *policy.Session {
	return &policy.Session{
		ID: "c1", Number: 7, Listener: "mx", RDNS: "client.example.net", Helo: "client.example.net", User: "u",
		Remote: netip.MustParseAddrPort("192.0.2.1:2525"), Local: netip.MustParseAddrPort("198.51.100.2:25"),
		TLS: &policy.TLS{Version: 0x304, Cipher: 0x1301, ServerName: "mx.example.com", ALPN: "smtp"},
	}
}

func path(s string) smtp.Path {
	p, err := smtp.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return p
}

// transaction returns a transaction from a@example.net to b@example.com.
func transaction(msg *policy.Message) *policy.Transaction {
	return &policy.Transaction{
		Seq: 3, Sender: smtp.Sender{Path: path("a@example.net"), Size: 100, Body: "8BITMIME"},
		Rcpts:   []policy.Recipient{{Recipient: smtp.Recipient{Path: path("b@example.com")}}},
		Message: msg,
	}
}

func message(text string) *policy.Message { return policy.NewMessage([]byte(text)) }

// dialogue is a chain of one filter in one session, as a listener runs it.
type dialogue struct {
	t     testing.TB
	run   *policy.Run
	steps []policy.Step
	tx    *policy.Transaction
}

func talk(t testing.TB, f policy.Filter) *dialogue {
	d := &dialogue{t: t, tx: transaction(message("Received: by us\r\nSubject: x\r\n\r\nhello\r\n"))}
	d.run = policy.NewChain(policy.Link{Filter: f}).Open(session(), func(s policy.Step) { d.steps = append(d.steps, s) })
	return d
}

// at asks about a stage and returns the filter's answer.
func (d *dialogue) at(stage policy.Stage) policy.Step {
	d.t.Helper()
	return d.with(d.t.Context(), stage)
}

func (d *dialogue) with(ctx context.Context, stage policy.Stage) policy.Step {
	d.t.Helper()
	tx := d.tx
	if stage < policy.StageMail || stage == policy.StageClose {
		tx = nil
	}
	n := len(d.steps)
	d.run.Decide(ctx, stage, tx)
	if len(d.steps) != n+1 {
		d.t.Fatalf("the filter was not asked at %s", stage)
	}
	return d.steps[n]
}

func (d *dialogue) close() { d.run.Close(context.Background()) }

func size(n int64) string { return fmt.Sprintf("%dK", n>>10) }

// goGuest is the guest in testdata/goguest, built once for all tests.
var buildGoGuest = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "penstock-goguest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "guest.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, "./testdata/goguest")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the Go guest: %w\n%s", err, text)
	}
	return os.ReadFile(out)
})

func goGuest(t testing.TB) []byte {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: the Go guest is not built")
	}
	wasm, err := buildGoGuest()
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}
