package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// swap_test.go: filters change while mail flows. Everything is in this process, so that what
// is left of it all can be counted.

const swapConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", chain: inbound}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://127.0.0.1:1"]}
filters:
  cache: $DIR/compiled
  dir: $DIR/filters
  chains:
    inbound:
      - {module: "builtin:helocheck"}
      - {module: gate, config: {n: 0}}
certificates: {dir: $DIR/certificates}
`

// gateOf is a module that says its number to every recipient.
func gateOf(n int) []byte {
	return rcptFilter(wasmtest.Verdict(abi.NewVerdict(abi.ActReject, 550, 5, 7, n, false)), "")
}

// swapping is a gateway in this process.
type swapping struct {
	t    *testing.T
	dir  string
	node *node
	hup  chan os.Signal
	sum  atomic.Int64 // of sessions
}

func startSwapping(t *testing.T) *swapping {
	t.Helper()
	s := &swapping{t: t, dir: t.TempDir(), hup: make(chan os.Signal, 1)}
	if err := os.Mkdir(filepath.Join(s.dir, "filters"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.write("filters/gate.wasm", gateOf(0))
	s.write("penstock.yaml", []byte(strings.ReplaceAll(swapConfig, "$DIR", s.dir)))
	load := func() (*config.Config, config.Problems) {
		return config.Load(filepath.Join(s.dir, "penstock.yaml"), nil, nil)
	}
	cfg, problems := load()
	if cfg == nil {
		t.Fatal(problems)
	}
	ctx, stop := context.WithCancel(context.Background())
	n, problems := newNode(ctx, cfg, slog.New(slog.DiscardHandler))
	if n == nil {
		stop()
		t.Fatal(problems)
	}
	s.node = n
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx, s.hup, load) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *swapping) write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// visit is one session with the gateway.
type visit struct {
	nc net.Conn
	r  *bufio.Reader
}

func (s *swapping) visit() (*visit, error) {
	nc, err := net.Dial("tcp", s.node.gw.Addr("mx").String())
	if err != nil {
		return nil, err
	}
	v := &visit{nc, bufio.NewReader(nc)}
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if err := v.reads("220"); err != nil {
		return nil, err
	}
	return v, v.says("EHLO client.example.net", "250")
}

// reads reads a reply, which has to begin so.
func (v *visit) reads(want string) error {
	for {
		line, err := v.r.ReadString('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, want) {
			return fmt.Errorf("got %q, want %q", line, want)
		}
		if line[len("250")] != '-' {
			return nil
		}
	}
}

func (v *visit) says(line, want string) error {
	if err := v.nc.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(v.nc, line+"\r\n"); err != nil {
		return err
	}
	return v.reads(want)
}

// number returns the number of the filter that decides in this session.
func (v *visit) number() (int, error) {
	if err := v.says("MAIL FROM:<a@example.net>", "250"); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(v.nc, "RCPT TO:<b@example.org>\r\n"); err != nil {
		return 0, err
	}
	line, err := v.r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	text, ok := strings.CutPrefix(line, "550 5.7.")
	text, _, _ = strings.Cut(text, " ")
	n, err := strconv.Atoi(text)
	if !ok || err != nil {
		return 0, fmt.Errorf("to the recipient it says %q", line)
	}
	return n, v.says("RSET", "250")
}

func (v *visit) quit() error {
	defer v.nc.Close()
	if err := v.says("QUIT", "221"); err != nil {
		return err
	}
	_, err := v.r.ReadByte() // the other end has seen the session off
	if err == io.EOF {
		return nil
	}
	return fmt.Errorf("after QUIT: %v", err)
}

// session is a whole one, in which the same filter must decide from its beginning to its end.
func (s *swapping) session() (int, error) {
	v, err := s.visit()
	if err != nil {
		return 0, err
	}
	first, err := v.number()
	for range 2 {
		if err != nil {
			return 0, err
		}
		var n int
		if n, err = v.number(); err == nil && n != first {
			err = fmt.Errorf("the filter changed in a session, from %d to %d", first, n)
		}
	}
	if err != nil {
		return 0, err
	}
	s.sum.Add(1)
	return first, v.quit()
}

// load has clients come and go until stop is called, which waits for them.
func (s *swapping) load(clients int) (stop func()) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if _, err := s.session(); err != nil {
					s.t.Errorf("a session failed: %v", err)
					return
				}
			}
		})
	}
	return func() {
		close(over)
		wg.Wait()
	}
}

// expect is a session that begins now.
func (s *swapping) expect(when string, want ...int) {
	s.t.Helper()
	got, err := s.session()
	for _, w := range want {
		if got == w && err == nil {
			return
		}
	}
	s.t.Errorf("%s: got %d (%v), want %d", when, got, err, want)
}

func (s *swapping) push(wasm []byte) error {
	_, err := filterStore{s.node}.Push(context.Background(), "gate", wasm, api.Condition{})
	return err
}

// reload changes the filter's configuration and nothing else.
func (s *swapping) reload(n int) {
	s.t.Helper()
	before := s.node.live.Load()
	text := strings.Replace(strings.ReplaceAll(swapConfig, "$DIR", s.dir), "{n: 0}", fmt.Sprintf("{n: %d}", n), 1)
	if err := writeFile(filepath.Join(s.dir, "penstock.yaml"), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.hup <- syscall.SIGHUP
	s.until("a reload", func() bool { return s.node.live.Load() != before })
}

// until waits for something.
func (s *swapping) until(what string, done func() bool) {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience / 2); !done(); <-tick.C {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: it did not come", what)
		}
	}
}

// swap changes the filter, from number n-1 to n, in one of the ways there are.
func (s *swapping) swap(n int) {
	s.t.Helper()
	switch {
	case n%10 == 3: // a bad module changes nothing
		if err := s.push(wasmtest.Guest{Init: wasmtest.Trap()}.Bytes()); err == nil {
			s.t.Error("a module that traps was taken")
		}
		s.expect("after a bad module", (n-1)%swapNumbers)
		s.must(n)
	case n%10 == 5: // the configuration alone, with the old module
		s.reload(n)
		s.expect("after a reload", (n-1)%swapNumbers)
		s.must(n)
	case n%10 == 7: // several at once: one of them is the last
		var pushes sync.WaitGroup
		for _, k := range []int{(n + 1) % swapNumbers, (n + 2) % swapNumbers, n % swapNumbers} {
			pushes.Go(func() { s.must(k) })
		}
		pushes.Wait()
		s.expect("after three pushes at once", n%swapNumbers, (n+1)%swapNumbers, (n+2)%swapNumbers)
		s.must(n)
	default:
		s.must(n)
	}
	s.expect("after a push", n%swapNumbers)
}

// swapNumbers is how many modules there are; after that they come again, out of the cache.
const swapNumbers = 200

func (s *swapping) must(n int) {
	if err := s.push(gateOf(n % swapNumbers)); err != nil {
		s.t.Errorf("push %d: %v", n, err)
	}
}

// holdings is what a process has of the system.
type holdings struct {
	goroutines, files, memfds int
	code                      int   // maps of machine code that is in no file; the engine keeps a few, as many as lived at once
	memory                    int   // maps of memfds; a filter keeps a few, as many as there were clients at once
	maps                      int   // all, without those of threads, which Go keeps for ever
	heap, resident            int64 // MiB
}

func (s *swapping) holdings() (h holdings) {
	s.t.Helper()
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line) // addresses, rights, offset, device, inode, name
		h.maps++
		switch {
		case len(f) == 5 && strings.Contains(f[1], "x"):
			h.code++
		case len(f) > 5 && strings.HasPrefix(f[5], "/memfd:"):
			h.memory++
		}
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		s.t.Fatal(err)
	}
	h.maps -= 2 * len(threads) // a stack, and a guard below it
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		if strings.HasPrefix(to, "/memfd:") {
			h.memfds++
		}
		h.files++
	}
	h.goroutines = runtime.NumGoroutine()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	h.heap = int64(mem.HeapAlloc >> 20)
	status, _ := os.ReadFile("/proc/self/status")
	if _, rest, ok := strings.Cut(string(status), "VmRSS:"); ok {
		fmt.Sscan(rest, &h.resident)
		h.resident >>= 10
	}
	return h
}

// TestSwap changes a filter again and again while sessions come and go. None of them fails,
// each has one filter from its beginning to its end, and what the old filters had is given
// back with their last session: maps, files, goroutines, memory.
func TestSwap(t *testing.T) {
	const warmUp, clients = 10, 4
	const atOnce = 4 // versions that live at once: three pushes and what they replace
	swaps := 60
	switch {
	case os.Getenv("PENSTOCK_TORTURE") != "":
		swaps = 1000
	case raceEnabled: // each swap starts a compiler, for which the race detector takes a second
		swaps = 10
	}
	s := startSwapping(t)
	stop := s.load(clients)
	for n := 1; n <= warmUp; n++ { // what is made but once is there after these
		s.swap(n)
	}
	stop()
	s.must(warmUp)
	before := s.holdings()
	old, err := s.visit()
	if err != nil {
		t.Fatal(err)
	}
	stop = s.load(clients)
	began := s.sum.Load()
	for n := warmUp + 1; n <= warmUp+swaps; n++ {
		s.swap(n)
		if n%max(10, swaps/20) != 0 { // what it hears counts as errors, of which a session may have few
			continue
		}
		if got, err := old.number(); got != warmUp || err != nil {
			t.Fatalf("the session from before: got %d, %v", got, err)
		}
	}
	sessions := s.sum.Load() - began
	stop()
	if err := old.quit(); err != nil {
		t.Error(err)
	}
	if sessions < int64(swaps) {
		t.Errorf("%d sessions beside %d swaps", sessions, swaps)
	}
	s.must(warmUp)
	var after holdings
	defer func() {
		t.Logf("%d swaps beside %d sessions: %+v before, %+v after", swaps, sessions, before, after)
	}()
	s.until("the end of what the old filters had", func() bool {
		after = s.holdings()
		return after.goroutines <= before.goroutines && after.files <= before.files && after.memfds <= before.memfds &&
			after.code <= before.code+atOnce && after.memory <= before.memory+clients && after.maps <= before.maps+8+2*clients && after.heap <= before.heap+4 && after.resident <= before.resident+16
	})
}
