package wasmhost_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// BenchmarkLive is how long it takes from a module that nobody has seen to a filter that
// can be asked: checks, metering, the child, its code, the start of the guest.
func BenchmarkLive(b *testing.B) {
	for name, wasm := range map[string][]byte{"tiny": wasmtest.Guest{}.Bytes(), "Go": goGuest(b)} {
		b.Run("guest="+name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				rt, err := wasmhost.New(b.Context(), wasmhost.Options{CacheDir: filepath.Join(b.TempDir(), "cache"), Compiler: child(b, "compile")})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				m, err := rt.Load(b.Context(), "guest", wasm)
				if err != nil {
					b.Fatal(err)
				}
				if _, err = m.Filter(b.Context(), wasmhost.FilterOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := rt.Close(context.Background()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(len(wasm)), "octets")
		})
	}
}
