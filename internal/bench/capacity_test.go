//go:build linux

package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// capacity_test.go: what connections cost that carry no mail: to begin them, to encrypt
// them, and to keep them open.

// receivers are those that connections are made to: the server of mail/smtp with sessions
// that do nothing, and the gateway.
var receivers = []struct{ name, role string }{{"server", roleServer}, {"gateway", roleGateway}}

// startReceiver starts a child that receives. The gateway of it has no filters and no
// backend.
func startReceiver(tb testing.TB, role string, cert *peers.Certificate, implicit bool) *system {
	s := setup{Role: role, Sink: "127.0.0.1:9", Dir: tb.TempDir(), Implicit: implicit}
	return startChild(tb, s.with(cert))
}

// playServer runs a server of mail/smtp that takes everything and throws it away.
func playServer(s setup) (addr string, err error) {
	config, err := s.config()
	if err != nil {
		return "", err
	}
	take := smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return smtp.Accept{}, nil })
	srv, err := smtp.NewServer(take, smtp.ServerOptions{Hostname: hostname, TLS: config, Implicit: s.Implicit})
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go srv.Serve(l)
	return l.Addr().String(), nil
}

// sayNothing is a server without a protocol: it says one octet, after the handshake if there
// is one, and waits for the client's end.
func sayNothing(nc net.Conn, config *tls.Config) {
	if config != nil {
		nc = tls.Server(nc, config)
	}
	defer nc.Close()
	var b [1]byte
	if _, err := nc.Write(b[:]); err == nil {
		nc.Read(b[:])
	}
}

// BenchmarkConnect: what does a connection cost on which a client says EHLO and QUIT? The
// floor is the sink.
func BenchmarkConnect(b *testing.B) {
	s := scenario{clients: 100}
	b.Run("via=floor", func(b *testing.B) {
		measure(b, startChild(b, setup{Role: roleSink}), nil, s, nil)
	})
	for _, r := range receivers {
		b.Run("via="+r.name, func(b *testing.B) {
			measure(b, startReceiver(b, r.role, nil, false), nil, s, nil)
		})
	}
}

// BenchmarkHandshake: what does a full TLS handshake cost? The floor is crypto/tls without
// SMTP, which is not there between the handshake and the end.
func BenchmarkHandshake(b *testing.B) {
	s := scenario{clients: 100}
	ca := peers.NewCA(b)
	cert := ca.Issue(b, hostname)
	b.Run("via=floor", func(b *testing.B) {
		sys := startChild(b, setup{Role: roleLibrary}.with(&cert))
		l := newLoad(s, sys.addr, ca)
		l.bare = true
		measureLoad(b, sys, nil, l)
	})
	for _, implicit := range []bool{true, false} {
		for _, r := range receivers {
			b.Run(fmt.Sprintf("implicit=%v/via=%s", implicit, r.name), func(b *testing.B) {
				sys := startReceiver(b, r.role, &cert, implicit)
				l := newLoad(s, sys.addr, ca)
				l.implicit = implicit
				measureLoad(b, sys, nil, l)
			})
		}
	}
}

// idleConnections is how many BenchmarkIdle keeps open. There must be room for them among
// the open files of both processes.
const idleConnections = 10_000

// idleTime is how long they are idle before their memory is measured: longer than mail/smtp
// calls it busy.
const idleTime = 8 * time.Second

// BenchmarkIdle: what does a connection cost in memory that waits for the client's next
// command? The memory of the kernel for sockets is not in the figures. The floor is what the
// libraries need by themselves: a goroutine that waits for a connection.
func BenchmarkIdle(b *testing.B) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Cur < idleConnections+100 {
		b.Skipf("the limit of open files is %d", files.Cur)
	}
	ca := peers.NewCA(b)
	cert := ca.Issue(b, hostname)
	for _, after := range []string{"EHLO", "STARTTLS"} {
		floor, trust := setup{Role: roleLibrary}, ca
		if after == "EHLO" {
			trust = nil
		} else {
			floor = floor.with(&cert)
		}
		b.Run("after="+after+"/via=floor", func(b *testing.B) {
			sys := startChild(b, floor)
			l := newLoad(scenario{clients: 1}, sys.addr, trust)
			l.bare = true
			idle(b, sys, l)
		})
		for _, r := range receivers {
			b.Run("after="+after+"/via="+r.name, func(b *testing.B) {
				sys := startReceiver(b, r.role, &cert, false)
				idle(b, sys, newLoad(scenario{clients: 1}, sys.addr, trust))
			})
		}
	}
}

// idle measures what the connections of l cost sys that are held open.
func idle(b *testing.B, sys *system, l load) {
	if err := l.connection(); err != nil { // what all share is there
		b.Fatal(err)
	}
	before := sys.memory(b)
	var m memory
	for range b.N { // not Loop: there is nothing to learn from doing it more often
		open, err := l.hold(idleConnections)
		if err != nil {
			b.Fatal(err)
		}
		<-time.After(idleTime)
		m = sys.memory(b)
		for _, nc := range open {
			nc.Close()
		}
	}
	per := func(after, before int64) float64 { return float64(after-before) / idleConnections / 1024 }
	b.ReportMetric(per(m.RSS, before.RSS), "KiB-rss/conn")
	b.ReportMetric(per(m.PSS, before.PSS), "KiB-pss/conn")
	b.ReportMetric(per(m.Heap, before.Heap), "KiB-heap/conn")
	b.ReportMetric(per(m.Stacks, before.Stacks), "KiB-stack/conn")
}

// hold opens n connections and brings them as far as to the answer to EHLO.
func (l load) hold(n int) (open []net.Conn, err error) {
	var mu sync.Mutex // guards open and err
	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			for range n / 50 {
				nc, e := l.greet()
				mu.Lock()
				if e != nil {
					err = e
				} else {
					open = append(open, nc)
				}
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	return open, err
}

// greet opens one connection.
func (l load) greet() (net.Conn, error) {
	nc, err := net.DialTimeout("tcp", l.addr, patience)
	if err != nil {
		return nil, err
	}
	c := &client{nc: nc}
	return nc, c.open(l)
}

// memory is what a process uses, in octets.
type memory struct {
	RSS, PSS     int64 // as the kernel counts
	Heap, Stacks int64 // as the runtime counts: live objects, and stacks with what they leave unused
}

// ownMemory collects all garbage and measures what is left of this process. A stack that was
// used becomes smaller by half with each collection.
func ownMemory() (memory, error) {
	for range 4 {
		runtime.GC()
	}
	debug.FreeOSMemory()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m := memory{Heap: int64(s.HeapAlloc), Stacks: int64(s.StackInuse)}
	f, err := os.Open("/proc/self/smaps_rollup")
	if err != nil {
		return m, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) != 3 {
			continue
		}
		n, _ := strconv.ParseInt(words[1], 10, 64)
		switch words[0] {
		case "Rss:":
			m.RSS = n << 10
		case "Pss:":
			m.PSS = n << 10
		}
	}
	return m, lines.Err()
}
