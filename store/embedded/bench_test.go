package embedded

import (
	"context"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/store"
)

// bench_test.go: what a message costs. "cpu-µs/op" is the time of the whole process, the
// database's own goroutines too; "msgs/sync" is how many share a sync. The directory is
// BENCH_DIR, or the test's own.

// cpu is the time that the process used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// parallel runs f for 100 clients, and reports what it cost.
func parallel(b *testing.B, size int, f func(q store.Queue, m *store.Message, content []byte) error) {
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s := open(b, dir, Options{})
	defer closeStore(b, s)
	content := []byte(strings.Repeat("0123456789abcd\r\n", size/16))
	b.SetParallelism(max(1, 100/runtime.GOMAXPROCS(0)))
	b.ReportAllocs()
	before, syncs := cpu(b), s.Stats().Syncs
	var slowest atomic.Int64
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		m := mail(b, "somebody")
		m.Origin.Session, m.Origin.Listener = "0123456789abcdef", "mx"
		for p.Next() {
			start := time.Now()
			if err := f(s.Queue(), m, content); err != nil {
				b.Error(err)
				return
			}
			if took := int64(time.Since(start)); took > slowest.Load() {
				slowest.Store(took)
			}
		}
	})
	b.StopTimer()
	st := s.Stats()
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/float64(max(1, st.Syncs-syncs)), "msgs/sync")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	b.ReportMetric(float64(slowest.Load())/1e6, "slowest-ms")
	b.ReportMetric(float64(st.Log+st.Flushed+st.Compacted)/float64(b.N)/float64(size), "write-amp")
}

func BenchmarkCommit(b *testing.B) {
	parallel(b, 4096, func(q store.Queue, m *store.Message, content []byte) error {
		_, err := commitBytes(q, m, content)
		return err
	})
}

func BenchmarkCommitLeaseFinish(b *testing.B) {
	for _, bb := range []struct {
		name string
		size int
	}{{"size=4K", 4 << 10}, {"size=100K", 100 << 10}, {"size=1M", 1 << 20}} {
		b.Run(bb.name, func(b *testing.B) {
			parallel(b, bb.size, func(q store.Queue, m *store.Message, content []byte) error {
				ctx := context.Background()
				in, err := q.Begin(ctx, m)
				if err != nil {
					return err
				}
				if _, err := in.Write(content); err != nil {
					return err
				}
				l, err := in.CommitLeased(ctx, here, time.Hour)
				if err != nil {
					return err
				}
				c, err := q.Content(ctx, l.Message.ID)
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := c.WriteTo(nothing{}); err != nil {
					return err
				}
				return q.Finish(ctx, l, []store.Outcome{{State: store.Delivered, Tried: true}}, nil)
			})
		})
	}
}

// BenchmarkCommitThenLease is the way of mail that is accepted by one and delivered by
// another.
func BenchmarkCommitThenLease(b *testing.B) {
	parallel(b, 4096, func(q store.Queue, m *store.Message, content []byte) error {
		ctx := context.Background()
		if _, err := commitBytes(q, m, content); err != nil {
			return err
		}
		list, err := q.Lease(ctx, here, time.Now(), 1, time.Hour)
		if err != nil {
			return err
		}
		for _, l := range list {
			if err := q.Finish(ctx, l, []store.Outcome{{State: store.Delivered, Tried: true}}, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func commitBytes(q store.Queue, m *store.Message, content []byte) (store.ID, error) {
	in, err := q.Begin(context.Background(), m)
	if err != nil {
		return "", err
	}
	if _, err := in.Write(content); err != nil {
		in.Abort()
		return "", err
	}
	return in.Commit(context.Background())
}

// nothing takes all and keeps nothing.
type nothing struct{}

func (nothing) Write(p []byte) (int, error) { return len(p), nil }
