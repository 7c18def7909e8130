package peers

// daemon.go runs a server in the foreground: it starts it, waits until it greets,
// and stops it together with all its children.

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	startLimit = 20 * time.Second // from start to the greeting; a loaded machine needs seconds
	stopLimit  = 5 * time.Second  // from SIGTERM to SIGKILL
	reapLimit  = 200 * time.Millisecond
	pollEvery  = 5 * time.Millisecond
	logLimit   = 16 << 20 // bytes of a log that we read
	logTail    = 4 << 10  // bytes of a log shown for a failed test
)

// daemon is a running server. Its process leads a process group of its own, so
// that its children can be signalled with it.
type daemon struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // why it ended; valid after done
}

// A probe asks a server that is starting whether it serves. It returns nil if it does,
// and keeps to the deadline.
type probe func(deadline time.Time) error

// launch starts a server and waits until it serves. Before each try configure takes
// ports, writes the configuration for them and returns the probe to wait with; there is
// another try when someone was quicker to take a port. launch returns the running server
// and the time from its start until it served.
func launch(t testing.TB, name, dir string, configure func() probe, path string, args ...string) (*daemon, time.Duration) {
	t.Helper()
	const tries = 3
	for try := 1; ; try++ {
		ready := configure()
		began := time.Now()
		d, err := startDaemon(name, filepath.Join(dir, "output"), path, args...)
		if err != nil {
			t.Fatal(err)
		}
		if err = d.await(ready); err == nil {
			return d, time.Since(began)
		}
		d.stop()
		if log := serverLog(dir); try == tries || !strings.Contains(log, "Address already in use") {
			t.Fatalf("%v; log:\n%s", err, tail(log))
		}
	}
}

// serverLog returns what a server that was launched in dir has logged there and printed.
func serverLog(dir string) string {
	return string(readLimited(filepath.Join(dir, "log"), logLimit)) +
		string(readLimited(filepath.Join(dir, "output"), logLimit))
}

// startDaemon starts the program. What it prints goes to the file out.
func startDaemon(name, out, path string, args ...string) (*daemon, error) {
	return startDaemonAs(account{os.Getuid(), os.Getgid()}, name, out, path, args...)
}

// startDaemonAs is startDaemon under another account.
func startDaemonAs(who account, name, out, path string, args ...string) (*daemon, error) {
	f, err := os.OpenFile(out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("peers: open output of %s: %w", name, err)
	}
	defer f.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = f, f // a file, as children outlive a pipe's reader
	cmd.SysProcAttr = who.process()
	cmd.Env = plainEnv()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("peers: start %s: %w", name, err)
	}
	d := &daemon{name: name, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process, which stop waits for
		defer close(d.done)
		d.err = cmd.Wait()
	}()
	return d, nil
}

// plainEnv is the environment of servers: the caller's MAIL_CONFIG and such must not lead
// them elsewhere.
func plainEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", "TZ=UTC"}
}

// await waits until the probe succeeds, the time limit passes or the process ends.
func (d *daemon) await(ready probe) error {
	deadline := time.Now().Add(startLimit)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := ready(deadline)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("peers: %s is not ready after %v: %w", d.name, startLimit, err)
		}
		select {
		case <-d.done:
			return fmt.Errorf("peers: %s ended early: %w", d.name, errors.Join(d.err, err))
		case <-tick.C:
		}
	}
}

// greeting returns a probe that wants a line of the address that begins with "220 " and
// the host name. The name tells our server from a stranger's that was quicker to take
// the port.
func greeting(addr, host string) probe {
	return func(deadline time.Time) error { return greets(addr, host, deadline) }
}

// greets connects and reads one line.
func greets(addr, host string, deadline time.Time) error {
	conn, err := net.DialTimeout("tcp", addr, time.Until(deadline))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("read greeting of %s: %w", addr, err)
	}
	if !strings.HasPrefix(line, "220 "+host) {
		return fmt.Errorf("greeting of %s is %q, want 220 %s", addr, line, host)
	}
	// A polite end keeps "lost connection" lines out of the log a test may read.
	_, err = io.WriteString(conn, "QUIT\r\n")
	return err
}

// stop ends the process and its children, and returns when the process is gone.
// It may be called more than once.
func (d *daemon) stop() {
	// Errors of kill mean that nobody is left, which is what we want.
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-d.done:
	case <-limit.C:
	}
	d.kill()
}

// kill ends the process and its children without a word, and returns when all
// are gone, so that none of them still writes to a directory that is removed
// next. It may be called more than once.
func (d *daemon) kill() {
	group := -d.cmd.Process.Pid
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-d.done
	// Children that init has yet to reap are still in the group. Where no one
	// reaps, as in some containers, they stay; hence the short limit.
	limit := time.NewTimer(reapLimit)
	defer limit.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for syscall.Kill(group, 0) == nil {
		select {
		case <-tick.C:
		case <-limit.C:
			return
		}
	}
}

// highPort finds a free TCP port of 127.0.0.1 below the range from which Linux
// takes ports for outgoing connections: between this and the server's own bind,
// only another server could take it. Callers try again in that case.
func highPort(t testing.TB) string {
	t.Helper()
	const first, last, tries = 20000, 32767, 200
	for range tries {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.IntN(last-first)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		return addr
	}
	t.Fatalf("peers: found no free port of 127.0.0.1 between %d and %d in %d tries", first, last, tries)
	return ""
}

// openDir makes a directory that other accounts can enter, which t.TempDir does
// not: a server's children run under accounts of their own.
func openDir(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "penstock-"+name+"-")
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("peers: remove directory of %s: %v", name, err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { // MkdirTemp gives 0700
		t.Fatalf("peers: %v", err)
	}
	return dir
}

// makeDir makes a directory with owner and mode, whatever the umask is.
func makeDir(t testing.TB, dir string, mode os.FileMode, owner account) {
	t.Helper()
	err := os.MkdirAll(dir, mode)
	if err == nil {
		err = os.Chown(dir, owner.uid, owner.gid)
	}
	if err == nil {
		err = os.Chmod(dir, mode)
	}
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
}

// writeFile writes a file that every account can read. The file's time is a
// minute ago: Postfix reads a file that is younger than two seconds again and
// again, in case someone is still writing it, and would start that much later.
func writeFile(t testing.TB, path, text string) {
	t.Helper()
	err := os.WriteFile(path, []byte(text), 0o644)
	if err == nil {
		minuteAgo := time.Now().Add(-time.Minute)
		err = os.Chtimes(path, minuteAgo, minuteAgo)
	}
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
}

// readLimited reads at most limit bytes of a file; a missing file is empty.
func readLimited(path string, limit int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, limit)) // half a log is better than none
	return b
}

// waitLog waits until the log has the text and returns the log. It ends the test
// at the time limit.
func waitLog(t testing.TB, log func() string, text string) string {
	t.Helper()
	return waitLogUntil(t, log, strconv.Quote(text), func(logged string) bool { return strings.Contains(logged, text) })
}

// waitLogUntil waits until look accepts the log and returns the log. It ends the test
// at the time limit, and says what it waited for.
func waitLogUntil(t testing.TB, log func() string, what string, look func(logged string) bool) string {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	for {
		logged := log()
		if look(logged) {
			return logged
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("peers: waited %v for %s in the log:\n%s", waitLimit, what, tail(logged))
		}
	}
}

// tail returns the end of a log.
func tail(log string) string {
	if len(log) > logTail {
		log = "..." + log[len(log)-logTail:]
	}
	return log
}
