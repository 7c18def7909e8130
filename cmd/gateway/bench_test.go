package main

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkStart is how long it takes from the start of the program to the first greeting:
// without filters, and with four written in Go, all compiled before.
func BenchmarkStart(b *testing.B) {
	for _, bm := range []struct {
		name    string
		filters []string
	}{{"filters=0", nil}, {"filters=4", []string{"helocheck", "rcptguard", "headertag", "bodymatch"}}} {
		b.Run(bm.name, func(b *testing.B) {
			dir := b.TempDir()
			socket := filepath.Join(dir, "mx.sock")
			var chain strings.Builder
			for _, name := range bm.filters {
				chain.WriteString("      - {module: \"builtin:" + name + "\"}\n")
			}
			yaml := strings.NewReplacer("$DIR", dir, "$CHAIN", chain.String()).Replace(startConfig)
			if err := os.WriteFile(filepath.Join(dir, "penstock.yaml"), []byte(yaml), 0o600); err != nil {
				b.Fatal(err)
			}
			greetingOf(b, dir, socket) // what is compiled, and the certificate that is made, stay
			var cpu time.Duration
			for b.Loop() {
				cpu += greetingOf(b, dir, socket)
			}
			b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}

const startConfig = `
hostname: mx.example.org
listeners: [{name: mx, address: "unix:$DIR/mx.sock", chain: inbound}]
routes: [{domains: [example.org], backend: store}]
backends: {store: {addresses: ["smtp://127.0.0.1:1"]}}
certificates: {dir: $DIR/certificates}
log: {level: error}
filters:
  cache: $DIR/compiled
  chains:
    inbound:
$CHAIN`

// greetingOf starts the program, reads its greeting, and ends it. It returns the CPU time of
// all that.
func greetingOf(b *testing.B, dir, socket string) (cpu time.Duration) {
	b.Helper()
	cmd := exec.Command(binary, "serve", "-c", filepath.Join(dir, "penstock.yaml"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		b.StopTimer()
		defer b.StartTimer()
		_ = cmd.Process.Signal(syscall.SIGTERM) // if it has ended, Wait says how
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
		cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		nc, err := net.Dial("unix", socket)
		if err != nil {
			continue
		}
		defer nc.Close()
		line, err := bufio.NewReader(nc).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "220 ") {
			b.Fatalf("%q %v", line, err)
		}
		return 0
	}
	b.Fatal("it does not greet")
	return 0
}
