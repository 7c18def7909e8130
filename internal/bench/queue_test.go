//go:build linux

package bench

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// queue_test.go: what does it cost to answer once a message is safe on the disk, and to hand
// it on then? The store is in a folder of BENCH_DIR, or of the system's for temporary files,
// and its syncs are real ones; -syncs has strace count them.

var syncs = flag.String("syncs", "", "have strace count the sync calls of gateways with a queue, into this `directory`")

// keeper is relay with a queue, as in the program.
type keeper struct {
	relay
	engine *delivery.Engine
}

// Keep implements gateway.Keeper.
func (k keeper) Keep(ctx context.Context, m gateway.Kept) (string, error) {
	dk := delivery.Keeping{Sender: m.Sender, Held: m.Held, Content: m.Content,
		Origin: store.Origin{Listener: m.Listener, Session: m.Session, Client: m.Client}}
	for _, r := range m.Recipients {
		dk.Recipients = append(dk.Recipients, delivery.KeptRecipient{Recipient: r.Recipient, Destination: delivery.BackendDestination(r.Backend), Reply: r.Reply})
	}
	id, err := k.engine.Keep(ctx, dk)
	return string(id), err
}

// keeperOf opens a store, and begins to deliver from it. Both end with the process.
func keeperOf(s setup, t *delivery.Transport, log *slog.Logger) (gateway.Relay, error) {
	kept, err := embedded.Open(filepath.Join(s.Dir, "store"), embedded.Options{Log: log})
	if err != nil {
		return nil, err
	}
	e, err := delivery.NewEngine(delivery.EngineOptions{Queue: kept.Queue(), Transport: t, Hostname: hostname, Log: log,
		Route: func(smtp.Path) store.Destination { return delivery.BackendDestination("sink") }})
	if err != nil {
		return nil, err
	}
	go e.Run(context.Background())
	return keeper{relay{t}, e}, nil
}

// startQueue starts a gateway with a queue in front of sink.
func startQueue(b testing.TB, sink *system) *system {
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "penstock-bench-*")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	s := setup{Role: roleGateway, Sink: sink.addr, Dir: dir, Queue: true}
	if *syncs != "" {
		s.Trace = filepath.Join(*syncs, strings.NewReplacer("/", "_", "=", "-").Replace(b.Name())+".syncs")
	}
	return startChild(b, s)
}

// BenchmarkQueue: mail that is synced, answered, and relayed. The figures are per message that
// has come to the sink, all of which must: the time in which the queue empties is in them.
func BenchmarkQueue(b *testing.B) {
	for _, s := range []scenario{
		usual,
		{"100K", 100 << 10, 10, 50},
	} {
		for _, chunking := range []bool{false, true} {
			b.Run(fmt.Sprintf("%v/bdat=%v", s, chunking), func(b *testing.B) {
				sink := startChild(b, setup{Role: roleSink, Chunking: chunking})
				queueLoad(b, startQueue(b, sink), sink, newLoad(s, "", nil), true)
			})
		}
	}
}

// BenchmarkQueueSlow: how long do clients wait while the backend takes half a second for each
// message? What is in the queue in the end is left there.
func BenchmarkQueueSlow(b *testing.B) {
	for _, clients := range []int{10, 100} {
		s := usual
		s.clients = clients
		b.Run(s.String(), func(b *testing.B) {
			sink := startChild(b, setup{Role: roleSink, Delay: 500 * time.Millisecond})
			queueLoad(b, startQueue(b, sink), sink, newLoad(s, "", nil), false)
		})
	}
}

// queueLoad is measureLoad for a system that answers before it relays. all waits until the
// queue is empty.
func queueLoad(b *testing.B, sys, sink *system, l load, all bool) {
	l.addr = sys.addr
	warm := l.start()
	<-warm.ended
	first, _, err := warm.stop()
	if err != nil {
		b.Fatal(err)
	}
	if all {
		awaitMessages(b, sink, first)
	}
	if *profiles != "" {
		name := strings.NewReplacer("/", "_", "=", "-").Replace(b.Name())
		sys.profile(b, filepath.Join(*profiles, name+".prof"))
		defer sys.profile(b, "")
	}
	l.took = &times{}
	before, began := sys.usage(b), time.Now()
	running := l.start()
	for b.Loop() {
		if err := <-running.ended; err != nil {
			b.Fatal(err)
		}
	}
	sent, _, err := running.stop()
	if err != nil {
		b.Fatal(err)
	}
	accepted := time.Since(began)
	if all {
		awaitMessages(b, sink, sent)
	}
	took, used := time.Since(began), sys.usage(b).since(before)
	n := float64(sent)
	b.ReportMetric(n+float64(first), "msgs") // that the syncs are of
	b.ReportMetric(n/accepted.Seconds(), "accepted/s")
	if all {
		b.ReportMetric(n/took.Seconds(), "msgs/s")
		b.ReportMetric((used.User+used.Kernel).Seconds()/n*1000, "cpu-s/1000")
		b.ReportMetric(100*used.Kernel.Seconds()/(used.User+used.Kernel).Seconds(), "%kernel")
		b.ReportMetric(float64(used.Mallocs)/n, "allocs/msg")
		b.ReportMetric(float64(used.Bytes)/n, "B/msg")
	}
	slices.Sort(l.took.list)
	at := func(share float64) float64 {
		return l.took.list[int(share*float64(len(l.took.list)-1))].Seconds() * 1000
	}
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}

// awaitMessages waits until so many have come to the sink since it was asked last.
func awaitMessages(b testing.TB, sink *system, want int64) {
	b.Helper()
	late := time.After(patience)
	for got := int64(0); ; {
		if got += sink.usage(b).Messages; got == want {
			return
		}
		if got > want {
			b.Fatal(fmt.Errorf("the sink has %d messages, want %d", got, want))
		}
		select {
		case <-late:
			b.Fatalf("the sink has %d messages, want %d", got, want)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
