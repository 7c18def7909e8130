package wasmhost_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/account"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// BenchmarkDecide is the cost of one hook of the smallest guest there is: frame, call,
// verdict.
func BenchmarkDecide(b *testing.B) {
	for _, stage := range []policy.Stage{policy.StageConnect, policy.StageRcpt, policy.StageMessage} {
		b.Run("stage="+stage.String(), func(b *testing.B) {
			in := open(b, load(b, wasmtest.Guest{}.Bytes(), wasmhost.FilterOptions{}))
			decideN(b, in, stage)
		})
	}
}

// BenchmarkHook is what the gateway pays for one hook of three filters that do nothing, as in
// the gateway: with an observer, a breaker and an account of each, and the chain's looks at
// the clock. "bare" is what of it the guest's own code takes, with wazero's way in and out.
func BenchmarkHook(b *testing.B) {
	f := load(b, wasmtest.Guest{}.Bytes(), wasmhost.FilterOptions{})
	for _, stage := range []policy.Stage{policy.StageConnect, policy.StageRcpt} {
		tx := transaction(policy.NewMessage([]byte("Subject: x\r\n\r\nhello\r\n")))
		if stage == policy.StageConnect {
			tx = nil
		}
		b.Run("stage="+stage.String(), func(b *testing.B) {
			book := account.New()
			var links []policy.Link
			for _, name := range []string{"a", "b", "c"} {
				links = append(links, policy.Link{Filter: f, Breaker: policy.NewBreaker(nil), Account: book.Open(name, "v", nil)})
			}
			run := policy.NewChain(links...).Open(session(), func(policy.Step) {})
			defer run.Close(context.Background())
			b.ReportAllocs()
			before := cpuTime(b)
			for b.Loop() {
				run.Decide(b.Context(), stage, tx)
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N)/float64(len(links)), "cpu-ns/filter")
		})
	}
	b.Run("bare", func(b *testing.B) {
		l, err := wasmhost.NewLife(f, nil)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			l.Bare(abi.HookRcpt)
		}
	})
}

// BenchmarkImport is the cost of imports: of n calls within one hook.
func BenchmarkImport(b *testing.B) {
	for _, call := range []struct {
		name string
		code wasmtest.Code
	}{
		{"none", nil},
		{"features", wasmtest.Imports("features")},
		{"get", wasmtest.Imports("get", int64(abi.FieldHelo), 0, wasmtest.FreeAt, 256)},
		{"now", wasmtest.Imports("now")},
	} {
		b.Run(call.name, func(b *testing.B) {
			var body wasmtest.Code
			if call.code != nil {
				for range 100 {
					body = wasmtest.Seq(body, call.code, wasmtest.Drop())
				}
			}
			wasm := wasmtest.Guest{Else: wasmtest.Seq(body, wasmtest.Say(abi.ActContinue))}.Bytes()
			decideN(b, open(b, load(b, wasm, wasmhost.FilterOptions{})), policy.StageMail)
		})
	}
}

// BenchmarkBodyRead is the cost of reading a body of one MiB through a window.
func BenchmarkBodyRead(b *testing.B) {
	for _, window := range []int64{4 << 10, 64 << 10} {
		b.Run("window="+size(window), func(b *testing.B) {
			const body = 1 << 20
			var code wasmtest.Code
			for off := int64(0); off < body; off += window {
				code = wasmtest.Seq(code, wasmtest.Imports("body_read", off, 64<<10, window), wasmtest.Drop())
			}
			wasm := wasmtest.Guest{Memory: wasmtest.Limits{Min: 3}, Else: wasmtest.Seq(code, wasmtest.Say(abi.ActContinue))}.Bytes()
			in := open(b, load(b, wasm, wasmhost.FilterOptions{}))
			msg := policy.NewMessage(append([]byte("Subject: x\r\n\r\n"), bytes.Repeat([]byte("x"), body)...))
			b.SetBytes(body)
			runWith(b, in, policy.StageMessage, msg)
		})
	}
}

// BenchmarkOpen is the cost of an instance: made when it is asked for, and thrown away.
func BenchmarkOpen(b *testing.B) {
	b.Run("guest=tiny", func(b *testing.B) {
		openClose(b, load(b, wasmtest.Guest{}.Bytes(), wasmhost.FilterOptions{Ready: -1}))
	})
	b.Run("guest=go", func(b *testing.B) {
		openClose(b, load(b, goGuest(b), wasmhost.FilterOptions{Ready: -1}))
	})
}

// BenchmarkDecideGo is the cost of one hook of a Go guest.
func BenchmarkDecideGo(b *testing.B) {
	in := open(b, load(b, goGuest(b), wasmhost.FilterOptions{Config: []byte(`{"mode": "nothing"}`)}))
	decideN(b, in, policy.StageMail)
}

func openClose(b *testing.B, f *wasmhost.Filter) {
	b.ReportAllocs()
	for b.Loop() {
		in, err := f.Open(b.Context(), nil)
		if err != nil {
			b.Fatal(err)
		}
		in.Close()
	}
}

func decideN(b *testing.B, in policy.Instance, stage policy.Stage) {
	runWith(b, in, stage, policy.NewMessage([]byte("Subject: x\r\n\r\nhello\r\n")))
}

// runWith calls Decide in a loop, within one call of a chain, which is the way to an
// Event with Edits.
func runWith(b *testing.B, in policy.Instance, stage policy.Stage, msg *policy.Message) {
	f := policy.Func("bench", policy.StagesOf(stage), func(ctx context.Context, e *policy.Event) (policy.Verdict, error) {
		b.ReportAllocs()
		before := cpuTime(b)
		for b.Loop() {
			e.Tx.Seq++ // each with a budget of its own
			if _, err := in.Decide(ctx, e); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
		return policy.Verdict{}, nil
	})
	run := policy.NewChain(policy.Link{Filter: f}).Open(session(), nil)
	run.Decide(b.Context(), stage, transaction(msg))
	run.Close(context.Background())
}
