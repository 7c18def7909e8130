package embedded

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/store"
)

// restart_test.go: how long a start takes, and what memory, with a long queue. The short form
// has 20,000 messages; PENSTOCK_TORTURE=1 asks for a million.

// restartDir tells the process that is started with which directory to start.
const restartDir = "PENSTOCK_TEST_RESTART"

func TestRestart(t *testing.T) {
	if dir := os.Getenv(restartDir); dir != "" {
		restarted(t, dir)
		return
	}
	messages, within, most := 20_000, 5*time.Second, 500
	if os.Getenv("PENSTOCK_TORTURE") != "" {
		messages = 1_000_000
	}
	dir := t.TempDir()
	fill(t, dir, messages)

	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestRestart$", "-test.v")
	cmd.Env = append(os.Environ(), restartDir+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := regexp.MustCompile(`RESTART messages=(\d+) ms=(\d+) peak=(\d+)`).FindSubmatch(out)
	if found == nil {
		t.Fatalf("no figures in:\n%s", out)
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(string(found[i+1]))
	}
	// The time that counts is the process's own: what else runs on the machine is no concern of
	// a test. It takes in the end of the process, too.
	own := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	t.Logf("%d messages: %d ms to the first lease, %v of CPU, %d MB at most", n[0], n[1], own.Round(time.Millisecond), n[2]/1024)
	if n[0] != messages || own > within && !raceEnabled || n[2]/1024 > most && !raceEnabled {
		t.Errorf("want %d messages, within %v, in %d MB", messages, within, most)
	}
}

// fill puts messages into a queue, each for one of a thousand places.
func fill(t *testing.T, dir string, messages int) {
	s := open(t, dir, Options{})
	defer closeStore(t, s)
	const hands = 400
	var wg sync.WaitGroup
	for w := range hands {
		wg.Go(func() {
			m := mail(t, fmt.Sprint("user", w))
			m.Origin.Session, m.Origin.Listener = "0123456789abcdef", "mx"
			for i := w; i < messages; i += hands {
				m.Recipients[0].Destination = store.Destination(fmt.Sprintf("mx:%d.example.com", i%1000))
				if _, err := commitBytes(s.Queue(), m, make([]byte, 1024)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// restarted opens the store, and prints what it took until something was leased.
func restarted(t *testing.T, dir string) {
	start := time.Now()
	s := open(t, dir, Options{})
	defer closeStore(t, s)
	list, err := s.Queue().Lease(context.Background(), "mx:7.example.com", time.Now(), 10, time.Hour)
	if err != nil || len(list) != 10 {
		t.Fatalf("lease: got %d, %v", len(list), err)
	}
	took := time.Since(start)
	c, err := s.Queue().Count(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("RESTART messages=%d ms=%d peak=%d\n", c.Messages, took.Milliseconds(), peak(t))
}

// peak is the most memory that the process had, in KiB.
func peak(t *testing.T) int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		peers.Missing(t, "the size of a process", "run the test where there is /proc/self/status")
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		peers.Missing(t, "the size of a process", "run the test where there is /proc/self/status")
	}
	n, _ := strconv.Atoi(string(found[1]))
	return n
}
