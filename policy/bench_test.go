package policy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
)

// BenchmarkChain: what do filters cost that have nothing to say?
func BenchmarkChain(b *testing.B) {
	for _, observed := range []bool{false, true} {
		for _, n := range []int{0, 1, 3} {
			b.Run(fmt.Sprintf("observed=%t/filters=%d", observed, n), func(b *testing.B) {
				var links []Link
				for i := range n {
					links = append(links, Link{Filter: Func(fmt.Sprint(i), AllStages, answers(Verdict{}))})
				}
				var observe func(Step)
				if observed {
					observe = func(Step) {}
				}
				r, tx, ctx := NewChain(links...).Open(new(Session), observe), newTx(b), context.Background()
				b.ReportAllocs()
				for b.Loop() {
					r.Decide(ctx, StageRcpt, tx)
				}
			})
		}
	}
}

// BenchmarkGuarded: what do a breaker and an account add to one filter? All sessions of the
// second kind use them at once.
func BenchmarkGuarded(b *testing.B) {
	none := noteFunc(func(*Session, *Step) {})
	for _, guarded := range []bool{false, true} {
		link := Link{Filter: Func("f", AllStages, answers(Verdict{})), Account: none}
		if guarded {
			link.Breaker = NewBreaker(nil)
		}
		chain, tx, ctx := NewChain(link), newTx(b), context.Background()
		b.Run(fmt.Sprintf("breaker=%t/one session", guarded), func(b *testing.B) {
			r := chain.Open(new(Session), nil)
			b.ReportAllocs()
			for b.Loop() {
				r.Decide(ctx, StageRcpt, tx)
			}
		})
		b.Run(fmt.Sprintf("breaker=%t/all cores", guarded), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				r, tx := chain.Open(new(Session), nil), *tx
				for pb.Next() {
					r.Decide(ctx, StageRcpt, &tx)
				}
			})
		})
	}
}

// BenchmarkChainEdits: and one that tags, adds a field and splices a footer?
func BenchmarkChainEdits(b *testing.B) {
	footer := []byte("-- \r\nchecked\r\n")
	r := NewChain(Link{Filter: Func("f", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		_ = e.Edits.Tag("k", "v")
		_ = e.Edits.AddHeader(0, "X-Checked", "yes")
		return Verdict{}, e.Edits.SpliceBody(e.Edits.Message().Body.Size(), 0, footer)
	})}).Open(new(Session), nil)
	base, ctx := newTx(b), context.Background()
	b.ReportAllocs()
	for b.Loop() {
		tx := *base
		r.Decide(ctx, StageMessage, &tx)
	}
}

// BenchmarkOpen: what does a session cost before anything is asked?
func BenchmarkOpen(b *testing.B) {
	c, s, ctx := NewChain(Link{Filter: Func("f", StagesOf(StageRcpt), answers(Verdict{}))}), new(Session), context.Background()
	b.ReportAllocs()
	for b.Loop() {
		c.Open(s, nil).Close(ctx)
	}
}

// BenchmarkBodyWriteTo: memory, file, and a file in 1,000 pieces.
func BenchmarkBodyWriteTo(b *testing.B) {
	content := bytes.Repeat([]byte("0123456789abcde\n"), 64<<10)
	file := spool(b, content)
	pieces := file
	for i := range 500 {
		pieces = pieces.splice(int64(i*1000), 1, []byte("x"))
	}
	for name, body := range map[string]Body{"memory": BytesBody(content), "file": file, "pieces": pieces} {
		b.Run("body="+name+"/size=1M", func(b *testing.B) {
			b.SetBytes(body.Size())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := body.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
