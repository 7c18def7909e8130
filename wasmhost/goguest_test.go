package wasmhost_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// TestGoGuest runs a filter that the Go compiler made, one configuration after the other
// of one compiled module.
func TestGoGuest(t *testing.T) {
	cache := t.TempDir() // compiling it takes the longest
	bothWays(t, func(t *testing.T) { testGoGuest(t, cache) })
}

func testGoGuest(t *testing.T, cache string) {
	m, err := newCachedRuntime(t, cache).Load(t.Context(), "goguest", goGuest(t))
	if err != nil {
		t.Fatal(err)
	}
	filter := func(t *testing.T, mode string, o wasmhost.FilterOptions) *wasmhost.Filter {
		t.Helper()
		o.Grants = guest.Everything()
		o.Config = fmt.Appendf(nil, `{"mode": %q}`, mode)
		f, err := m.Filter(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Close)
		return f
	}
	t.Run("a global is the session's", func(t *testing.T) {
		f := filter(t, "count", wasmhost.FilterOptions{Ready: 2})
		for range 3 {
			d := talk(t, f)
			for _, want := range []string{"450 call 1", "450 call 2"} {
				if got := d.at(policy.StageMail); got.Err != nil || reply(got) != want {
					t.Errorf("got %s, %v; want %s", reply(got), got.Err, want)
				}
			}
			d.close()
		}
	})
	for _, tt := range []struct{ mode, want string }{
		{"nothing", "continue"},
		{"goroutines", "450 sum 45"},
		{"file", "450 Operation not permitted"},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			d := talk(t, filter(t, tt.mode, wasmhost.FilterOptions{Ready: -1}))
			defer d.close()
			if got := d.at(policy.StageMail); got.Err != nil || reply(got) != tt.want {
				t.Errorf("got %s, %v; want %s", reply(got), got.Err, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		mode  string
		cpu   time.Duration
		cause string
		want  []string
	}{
		{"panic", 0, wasmhost.CauseGuest, []string{"it says that it failed, code 2"}},
		{"exit", 0, wasmhost.CauseGuest, []string{"it ended itself with exit code 3", "stderr: a last word"}},
		{"die", 100 * time.Millisecond, wasmhost.CauseTrap, []string{"unreachable", "stderr: panic: in a goroutine, where nobody recovers", "main.newFilter"}},
		{"loop", 0, wasmhost.CauseCPU, []string{"it exceeded its CPU time of 2ms", "wasm stack trace:"}},
		{"sleep", 0, wasmhost.CauseCPU, []string{"it exceeded its CPU time of 2ms"}},
		{"deadlock", 0, wasmhost.CauseTrap, []string{"wasmhost: filter goguest at mail: "}},
		{"recurse", 100 * time.Millisecond, wasmhost.CauseStack, []string{"its calls are nested too deeply"}},
		{"memory", 500 * time.Millisecond, wasmhost.CauseMemory, []string{"unreachable", "stderr: runtime: out of memory"}},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			f := filter(t, tt.mode, wasmhost.FilterOptions{Ready: -1, Limits: wasmhost.Limits{CPU: tt.cpu, Memory: 8 << 20}})
			d := talk(t, f)
			defer d.close()
			got := d.at(policy.StageMail)
			if got.Err == nil || got.Verdict.Reply.Code != 451 {
				t.Fatalf("got %s, %v; want a failure", reply(got), got.Err)
			}
			for _, want := range tt.want {
				if !strings.Contains(got.Err.Error(), want) {
					t.Errorf("got error %q, want it to contain %q", got.Err, want)
				}
			}
			if cause := wasmhost.Cause(got.Err); cause != tt.cause {
				t.Errorf("cause %q, want %q", cause, tt.cause)
			}
			if got := d.at(policy.StageMessage); got.Err != nil {
				t.Errorf("the stage after the failure: %v", got.Err)
			}
		})
	}
	t.Run("random octets differ", func(t *testing.T) {
		f := filter(t, "random", wasmhost.FilterOptions{Ready: 2})
		seen := make(map[string]bool)
		for range 4 {
			d := talk(t, f)
			got := reply(d.at(policy.StageMail))
			if seen[got] || !strings.HasPrefix(got, "450 16 ") {
				t.Errorf("got %s, which was seen before or is an error", got)
			}
			seen[got] = true
			d.close()
		}
	})
	t.Run("edits a message", func(t *testing.T) {
		d := talk(t, filter(t, "edit", wasmhost.FilterOptions{Ready: -1}))
		defer d.close()
		body := strings.Repeat("hello, world\r\n", 20_000)
		d.tx.Message = message("Received: by us\r\nSubject: x\r\n\r\n" + body)
		if got := d.at(policy.StageMessage); got.Err != nil || got.Verdict.Action != policy.Continue {
			t.Fatalf("got %s, %v", reply(got), got.Err)
		}
		var out bytes.Buffer
		if _, err := d.tx.Message.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("Received: by us\r\nSubject: x\r\nX-Size: %d\r\n\r\n%s", len(body), strings.ToUpper(body))
		if got := out.String(); got != want {
			t.Errorf("got %.200q…, want %.200q…", got, want)
		}
	})
}
