//go:build linux

// Package bench measures the whole gateway: messages per second, and CPU seconds of the
// server per 1,000 messages. docs/bench.md has the figures and what they mean.
//
// Three processes take part, so that the CPU of the one in the middle can be told from
// that of the others:
//
//	load client ──▶ system under test ──▶ sink
//	(the test)      (a child, or Postfix)  (a child)
//
// The system is the gateway with or without filters, Postfix, or a program that copies
// bytes and knows nothing of mail: the floor that no relay can be below. The children are
// the test binary itself, started with a role (child_test.go). Load client and sink are
// made by hand and do as little as they can (load_test.go, sink_test.go), so that on
// a machine with few cores most of the time is left for the system.
//
// Everything is on 127.0.0.1. After each run the sink must have as many messages as were
// sent, or the run has failed. An operation, of which package testing tells the time, is
// a connection with all its messages; the other figures are per message.
//
//	go run ./filters/build
//	go test -run '^$' -bench . -benchtime 2s ./internal/bench
//	go test -run '^$' -bench Relay/size=4K/clients=100/per=50/via=gateway ./internal/bench -profiles /tmp
//
// What connections cost that carry no mail is in capacity_test.go.
package bench

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/internal/peers"
)

var profiles = flag.String("profiles", "", "write a CPU profile of each gateway to this `directory`")

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		os.Exit(child())
	}
	flag.Parse()
	if *profiles != "" { // the children run elsewhere
		*profiles, _ = filepath.Abs(*profiles)
	}
	leak.Main(m)
}

// scenario is one kind of mail.
type scenario struct {
	name    string // of the size
	size    int    // of a message
	clients int
	per     int // messages per connection
}

func (s scenario) String() string {
	return fmt.Sprintf("size=%s/clients=%d/per=%d", s.name, s.clients, s.per)
}

// usual is the scenario that others differ from in one point.
var usual = scenario{"4K", 4 << 10, 100, 50}

// BenchmarkRelay: what does it cost to hand mail on, the backend's answer included?
func BenchmarkRelay(b *testing.B) {
	for _, s := range []scenario{
		usual,
		{"4K", 4 << 10, 100, 1},
		{"100K", 100 << 10, 10, 50},
		{"5M", 5 << 20, 10, 5},
	} {
		for _, k := range kinds {
			b.Run(s.String()+"/via="+k.name, func(b *testing.B) {
				sink := startChild(b, setup{Role: roleSink})
				measure(b, k.start(b, sink.addr, nil), sink, s, nil)
			})
		}
		b.Run(s.String()+"/via=gateway-bdat", func(b *testing.B) {
			sink := startChild(b, setup{Role: roleSink, Chunking: true})
			measure(b, gatewayWith()(b, sink.addr, nil), sink, s, nil)
		})
	}
}

// BenchmarkDiscard: what does receiving alone cost? A filter, or the session of a bare
// server, throws everything away. The floor is the sink itself.
func BenchmarkDiscard(b *testing.B) {
	many := usual
	many.clients = 1000
	for _, s := range []scenario{usual, many} {
		b.Run(s.String()+"/via=floor", func(b *testing.B) {
			sink := startChild(b, setup{Role: roleSink})
			measure(b, sink, sink, s, nil)
		})
		b.Run(s.String()+"/via=server", func(b *testing.B) {
			measure(b, startChild(b, setup{Role: roleServer}), nil, s, nil)
		})
		for _, k := range discarding {
			b.Run(s.String()+"/via="+k.name, func(b *testing.B) {
				measure(b, k.start(b, "127.0.0.1:9", nil), nil, s, nil)
			})
		}
	}
}

// BenchmarkStartTLS: and with a full handshake for each message? The floor is the sink
// itself: no relay, but the handshakes.
func BenchmarkStartTLS(b *testing.B) {
	s := usual
	s.per = 1
	ca := peers.NewCA(b)
	cert := ca.Issue(b, hostname)
	b.Run(s.String()+"/via=floor", func(b *testing.B) {
		sink := startChild(b, setup{Role: roleSink}.with(&cert))
		measure(b, sink, sink, s, ca)
	})
	for _, k := range kinds[1:] { // a relay of bytes cannot speak TLS
		b.Run(s.String()+"/via="+k.name, func(b *testing.B) {
			sink := startChild(b, setup{Role: roleSink})
			measure(b, k.start(b, sink.addr, &cert), sink, s, ca)
		})
	}
}

// measure sends mail to sys and reports what a message costs it. All of it must come to
// sink, which may be sys, or nil. An operation is a whole connection.
func measure(b *testing.B, sys, sink *system, s scenario, ca *peers.CA) {
	measureLoad(b, sys, sink, newLoad(s, sys.addr, ca))
}

// measureLoad is measure with a load of the caller's. Where there are no messages in it, the
// figures are per connection.
func measureLoad(b *testing.B, sys, sink *system, l load) {
	warm := l.start() // pools are filled, code is paged in
	for range l.clients {
		if err := <-warm.ended; err != nil {
			b.Fatal(err)
		}
	}
	if _, _, err := warm.stop(); err != nil {
		b.Fatal(err)
	}
	if sink != nil {
		sink.usage(b) // it counts anew
	}
	if sys.profile != nil && *profiles != "" {
		name := strings.NewReplacer("/", "_", "=", "-").Replace(b.Name())
		sys.profile(b, filepath.Join(*profiles, name+".prof"))
		defer sys.profile(b, "")
	}
	before, began := sys.usage(b), time.Now()
	running := l.start()
	for b.Loop() {
		if err := <-running.ended; err != nil {
			b.Fatal(err)
		}
	}
	sent, connections, err := running.stop()
	if err != nil {
		b.Fatal(err)
	}
	took, used := time.Since(began), sys.usage(b).since(before)
	switch sink {
	case nil:
	case sys:
		wantMessages(b, used.Messages, sent)
	default:
		wantMessages(b, sink.usage(b).Messages, sent)
	}
	n, unit := float64(sent), "msg"
	if l.per == 0 {
		n, unit = float64(connections), "conn"
	}
	cpu := (used.User + used.Kernel).Seconds()
	b.ReportMetric(n/took.Seconds(), unit+"s/s")
	b.ReportMetric(cpu/n*1000, "cpu-s/1000")
	if cpu > 0 {
		b.ReportMetric(100*used.Kernel.Seconds()/cpu, "%kernel")
	}
	if used.Mallocs > 0 {
		b.ReportMetric(float64(used.Mallocs)/n, "allocs/"+unit)
		b.ReportMetric(float64(used.Bytes)/n, "B/"+unit)
	}
}

func wantMessages(tb testing.TB, got, want int64) {
	tb.Helper()
	if got != want {
		tb.Fatalf("the sink has %d messages, want %d", got, want)
	}
}

// TestSystems sends a few messages through each system that is measured, and sees that
// they arrive.
func TestSystems(t *testing.T) {
	ca := peers.NewCA(t)
	cert := ca.Issue(t, hostname)
	s := scenario{"4K", 4 << 10, 1, 5}
	send := func(t *testing.T, addr string, ca *peers.CA) {
		t.Helper()
		if err := newLoad(s, addr, ca).connection(); err != nil {
			t.Fatalf("TLS %v: %v", ca != nil, err)
		}
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			if k.name == "gateway-3go" && raceEnabled { // make test runs it without, too
				t.Skip("compiling large modules takes half a minute with -race; these filters have tests of their own")
			}
			sink := startChild(t, setup{Role: roleSink})
			sys := k.start(t, sink.addr, &cert)
			send(t, sys.addr, nil)
			wantMessages(t, sink.usage(t).Messages, 5)
			if k.name != "floor" {
				send(t, sys.addr, ca)
				wantMessages(t, sink.usage(t).Messages, 5)
			}
		})
	}
	for _, k := range discarding {
		t.Run(k.name, func(t *testing.T) {
			sink := startChild(t, setup{Role: roleSink})
			send(t, k.start(t, sink.addr, nil).addr, nil)
			wantMessages(t, sink.usage(t).Messages, 0)
		})
	}
	t.Run("gateway with BDAT", func(t *testing.T) {
		sink := startChild(t, setup{Role: roleSink, Chunking: true})
		send(t, gatewayWith()(t, sink.addr, nil).addr, nil)
		wantMessages(t, sink.usage(t).Messages, 5)
	})
	t.Run("gateway with a queue", func(t *testing.T) {
		sink := startChild(t, setup{Role: roleSink, Chunking: true})
		send(t, startQueue(t, sink).addr, nil)
		awaitMessages(t, sink, 5)
	})
	t.Run("server", func(t *testing.T) {
		sys := startReceiver(t, roleServer, &cert, false)
		send(t, sys.addr, nil)
		send(t, sys.addr, ca)
	})
	t.Run("sink", func(t *testing.T) {
		sink := startChild(t, setup{Role: roleSink}.with(&cert))
		send(t, sink.addr, ca)
		wantMessages(t, sink.usage(t).Messages, 5)
	})
}
