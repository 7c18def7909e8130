package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/store"
)

// BenchmarkCommit has clients commit messages of 4 KB, each waiting for its own, on one or two
// nodes, with or without a delay on the way to the database. With deliver each message is
// leased with its commit and finished: what the gateway does with mail that goes out at once.
// cpu-ms/op is the CPU time of our side, server-ms/op that of the database.
func BenchmarkCommit(b *testing.B) {
	server := peers.Postgres(b)
	for _, deliver := range []bool{false, true} {
		for _, delay := range []time.Duration{0, 5 * time.Millisecond} {
			for _, load := range []struct{ nodes, clients int }{{1, 100}, {2, 100}, {2, 200}} {
				b.Run(fmt.Sprintf("deliver=%v/delay=%v/nodes=%d/clients=%d", deliver, delay, load.nodes, load.clients), func(b *testing.B) {
					url := server.URL(server.Database(b))
					if delay > 0 {
						p := delayed(b, server.Addr, delay)
						url = p.url(b, url)
					}
					var stores []*Store
					for range load.nodes {
						stores = append(stores, open(b, options(b, url)))
					}
					benchmarkCommit(b, server, stores, load.clients, deliver)
				})
			}
		}
	}
}

func benchmarkCommit(b *testing.B, server *peers.PostgresServer, stores []*Store, clients int, deliver bool) {
	body := bytes.Repeat([]byte("0123456789abcde\n"), 256)
	m := mail(b, 1)
	ours, theirs := ownCPU(b), treeCPU(b, server.Pid())
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range clients {
		q := stores[i%len(stores)].Queue()
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := deliverOne(q, m, body, deliver); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	perOp := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(perOp(ownCPU(b)-ours), "cpu-ms/op")
	b.ReportMetric(perOp(treeCPU(b, server.Pid())-theirs), "server-ms/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	var batches, changes uint64
	for _, s := range stores {
		batches, changes = batches+s.Stats().Batches, changes+s.Stats().Changes
	}
	b.ReportMetric(float64(changes)/float64(max(batches, 1)), "changes/batch")
}

func deliverOne(q store.Queue, m *store.Message, body []byte, deliver bool) error {
	ctx := context.Background()
	in, err := q.Begin(ctx, m)
	if err != nil {
		return err
	}
	if _, err := in.Write(body); err != nil {
		return err
	}
	if !deliver {
		_, err := in.Commit(ctx)
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
	c.Close()
	return q.Finish(ctx, l, []store.Outcome{{State: store.Delivered}}, nil)
}

func ownCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// treeCPU is the CPU time of a process and its children, running or not. The unit of
// /proc/*/stat is 10 ms on every Linux that Go runs on.
func treeCPU(b *testing.B, pid int) time.Duration {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	var ticks int64
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		// Behind the name in parentheses: state, parent, ..., utime, stime, cutime, cstime.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		own := filepath.Base(filepath.Dir(f)) == strconv.Itoa(pid)
		if !own && fields[1] != strconv.Itoa(pid) {
			continue
		}
		last := 13
		if own {
			last = 15
		}
		for _, n := range fields[11:last] {
			t, err := strconv.ParseInt(n, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			ticks += t
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// BenchmarkLease leases ten messages at a destination and gives them back, with many more
// waiting there of which a half is due, or none.
func BenchmarkLease(b *testing.B) {
	server := peers.Postgres(b)
	s := open(b, options(b, server.URL(server.Database(b))))
	mustSend(b, s, mail(b, 1), "x")
	const waiting = 200_000
	for _, sql := range []string{
		`INSERT INTO message SELECT gen_random_uuid(), arrived, expires, size, priority, sender, sender_domain, envelope, blob, sum, body
			FROM message, generate_series(2, ` + strconv.Itoa(waiting) + `)`,
		`INSERT INTO recipient (` + recipientColumns + `) SELECT m.id, 0, destination, domain, 0, 9*64 + abs(hashtext(m.id::text)) % 8,
			CASE WHEN abs(hashtext(m.id::text)) / 8 % 2 = 0 THEN due ELSE due + interval '1 hour' END, 0, false, r.envelope, NULL, NULL, NULL
			FROM message m, recipient r WHERE m.id <> r.message`,
	} {
		if _, err := s.exec(b.Context(), "fill", once, sql); err != nil {
			b.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		now  time.Time
		want int
	}{{"half", past, 10}, {"none", past.Add(-time.Hour), 0}} {
		b.Run("due="+tt.name, func(b *testing.B) {
			var took time.Duration
			defer func() { b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "lease-ms/op") }()
			for b.Loop() {
				began := time.Now()
				list, err := s.Queue().Lease(b.Context(), here, tt.now, 10, time.Hour)
				took += time.Since(began)
				if err != nil || len(list) != tt.want {
					b.Fatalf("got %d, %v", len(list), err)
				}
				for _, l := range list {
					if err := s.Queue().Return(b.Context(), l); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("destinations", func(b *testing.B) {
		for b.Loop() {
			if err := s.Queue().Destinations(b.Context(), func(store.Waits) bool { return true }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
