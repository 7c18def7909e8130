//go:build linux

package bench

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
)

// child_test.go: processes of our own. A child is this binary with a role. It is told on
// its standard input what to do and answers on its standard output, a JSON value each. It
// ends when its input does, which it does with us, whatever happens to us.

// roleEnv marks a child.
const roleEnv = "PENSTOCK_BENCH_CHILD"

// The roles.
const (
	roleSink    = "sink"
	roleFloor   = "floor"
	roleGateway = "gateway"
	roleServer  = "server"  // mail/smtp alone, whose sessions take everything
	roleLibrary = "library" // a goroutine that waits, with crypto/tls or without
)

// setup is the first thing that a child is told.
type setup struct {
	Role              string
	Sink              string   // address; of the floor and the gateway
	Filters           []string // of the gateway
	CertFile, KeyFile string   // empty: no TLS
	Implicit          bool     // TLS from the first byte
	Chunking          bool     // the sink offers BDAT
	Dir               string   // for the gateway's log, spool, store and cache of code
	// Queue has the gateway answer once a message is in its store.
	Queue bool
	// Delay is how long the sink takes for each message of a connection.
	Delay time.Duration
	// Trace, if not empty, is a file that gets the number of sync calls; from strace.
	Trace string
}

func (s setup) with(c *peers.Certificate) setup {
	if c != nil {
		s.CertFile, s.KeyFile = c.CertFile, c.KeyFile
	}
	return s
}

// config returns the TLS settings of s, nil without a certificate.
func (s setup) config() (*tls.Config, error) {
	if s.CertFile == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
	return &tls.Config{Certificates: []tls.Certificate{cert}}, err
}

// order is what a child is told after that.
type order struct {
	// Profile writes a CPU profile to this file, from now until the next order with
	// Profile. "-" ends it.
	Profile string
	// Memory asks how much memory is in use once all garbage is gone.
	Memory bool
}

// report is a child's answer to each.
type report struct {
	Addr  string
	Error string
	Usage usage
}

// usage is what a process has used since its start.
type usage struct {
	User, Kernel   time.Duration
	Mallocs, Bytes uint64
	Messages       int64  // that came since the last report; of a sink
	Memory         memory // if it was asked for
}

func (u usage) since(v usage) usage {
	return usage{User: u.User - v.User, Kernel: u.Kernel - v.Kernel, Mallocs: u.Mallocs - v.Mallocs, Bytes: u.Bytes - v.Bytes, Messages: u.Messages}
}

// system is what mail can be sent to.
type system struct {
	addr    string
	usage   func(testing.TB) usage
	memory  func(testing.TB) memory          // nil if it cannot tell
	profile func(tb testing.TB, file string) // nil if it cannot; an empty file ends it
}

// startChild starts a child for the time of the test.
func startChild(tb testing.TB, s setup) *system {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	args := []string{exe, "-test.run=^$"}
	if s.Trace != "" {
		args = append([]string{"strace", "-f", "--seccomp-bpf", "-c", "-o", s.Trace, "-e", "trace=fdatasync,fsync"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), roleEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("%s: %v", s.Role, err)
		}
	})
	to, from := json.NewEncoder(in), json.NewDecoder(out)
	ask := func(tb testing.TB, v any) report {
		tb.Helper()
		// A child that hangs would hang us. It answers within a second but for the start
		// of the gateway, which compiles filters.
		kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer kill.Stop()
		var r report
		if err := errors.Join(to.Encode(v), from.Decode(&r)); err != nil {
			tb.Fatalf("%s does not answer: %v", s.Role, err)
		}
		if r.Error != "" {
			tb.Fatalf("%s: %s", s.Role, r.Error)
		}
		return r
	}
	return &system{
		addr:   ask(tb, s).Addr,
		usage:  func(tb testing.TB) usage { return ask(tb, order{}).Usage },
		memory: func(tb testing.TB) memory { return ask(tb, order{Memory: true}).Usage.Memory },
		profile: func(tb testing.TB, file string) {
			if file == "" {
				file = "-"
			}
			ask(tb, order{Profile: file})
		},
	}
}

// child is the whole life of a child.
func child() (code int) {
	from, to := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var s setup
	if err := from.Decode(&s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var messages atomic.Int64
	addr, err := play(s, &messages)
	r := report{Addr: addr}
	var o order
	for {
		r.Usage = ownUsage()
		r.Usage.Messages = messages.Swap(0)
		if o.Memory && err == nil {
			r.Usage.Memory, err = ownMemory()
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := to.Encode(r); err != nil {
			return 1
		}
		o = order{}
		switch err := from.Decode(&o); {
		case err == io.EOF:
			return 0
		case err != nil:
			return 1
		}
		r, err = report{}, profile(o.Profile)
	}
}

// play begins what the role asks for. It goes on until the process ends.
func play(s setup, messages *atomic.Int64) (addr string, err error) {
	switch s.Role {
	case roleGateway:
		return playGateway(s)
	case roleServer:
		return playServer(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	config, err := s.config()
	if err != nil {
		return "", err
	}
	serve := func(nc net.Conn) { relayBytes(nc, s.Sink) }
	switch s.Role {
	case roleSink:
		serve = (&sink{tls: config, messages: messages, chunking: s.Chunking, delay: s.Delay}).serve
	case roleLibrary:
		serve = func(nc net.Conn) { sayNothing(nc, config) }
	}
	go accept(l, serve)
	return l.Addr().String(), nil
}

// profile begins or ends a profile.
func profile(file string) error {
	if file == "" {
		return nil
	}
	pprof.StopCPUProfile()
	if file == "-" {
		return nil
	}
	f, err := os.Create(file) // closed by the end of the process
	if err != nil {
		return err
	}
	return pprof.StartCPUProfile(f)
}

// ownUsage is what this process has used.
func ownUsage() usage {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		panic("bench: getrusage: " + err.Error())
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{User: time.Duration(ru.Utime.Nano()), Kernel: time.Duration(ru.Stime.Nano()), Mallocs: m.Mallocs, Bytes: m.TotalAlloc}
}
