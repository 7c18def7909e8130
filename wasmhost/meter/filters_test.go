package meter_test

import (
	"testing"

	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/wasmhost/meter"
)

func builtin(t testing.TB, name string) []byte {
	wasm, ok := filters.Builtin(name)
	if !ok {
		t.Fatalf("filter %s is not built: go run ./filters/build", name)
	}
	return wasm
}

// The filters that ship pass, can be set back, and are checked at every cycle. That they do
// what they did is tested where they run.
func TestFilters(t *testing.T) {
	names := filters.Names()
	if raceEnabled {
		names = names[:1]
	}
	for _, name := range names {
		r := rewrite(t, builtin(t, name))
		if !r.Resettable || len(r.Globals) == 0 || len(r.Data) == 0 || r.MemoryMin == 0 {
			t.Errorf("%s: resettable %v, %d globals, %d segments, %d pages", name, r.Resettable, len(r.Globals), len(r.Data), r.MemoryMin)
		}
	}
}

// How long does an upload wait for the rewriter? A filter that ships is 2 MB of Go.
func BenchmarkRewrite(b *testing.B) {
	wasm := builtin(b, "bodymatch")
	b.ReportAllocs()
	b.SetBytes(int64(len(wasm)))
	for b.Loop() {
		m, err := meter.Read(wasm)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := m.Rewrite(); err != nil {
			b.Fatal(err)
		}
	}
}
