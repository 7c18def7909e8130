// Package leak fails the tests of a package that leave goroutines behind. A server
// that stops must have stopped all it started; a goroutine that outlives the tests
// is one that would outlive a shutdown.
//
// A package uses it in one line:
//
//	func TestMain(m *testing.M) { leak.Main(m) }
//
// What counts is the difference between the goroutines before the first test and
// those after the last. A goroutine that is about to end gets a few seconds for it.
package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines may take to end after the last test.
const patience = 5 * time.Second

// Main runs the tests of m and exits the process with their status, or with 1 if
// they passed and goroutines are left; the stacks of these are printed then. It does
// not look for goroutines while fuzzing, since the fuzzing engine has its own. It
// does not return.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has more to do: it returns the status.
func Run(m *testing.M) int { return run(m.Run, fuzzing(os.Args), patience) }

// run is Main without the exit.
func run(tests func() int, skip bool, wait time.Duration) int {
	before := goroutines()
	code := tests()
	if code != 0 || skip {
		return code
	}
	left := leaked(before, wait)
	if len(left) == 0 {
		return 0
	}
	fmt.Fprintf(os.Stderr, "leak: %d goroutines are left after the tests:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
	return 1
}

// fuzzing tells whether the arguments ask for fuzzing, as coordinator or as worker.
func fuzzing(args []string) bool {
	for _, a := range args {
		if strings.HasPrefix(strings.TrimLeft(a, "-"), "test.fuzz=") || strings.HasSuffix(a, "test.fuzzworker") {
			return true
		}
	}
	return false
}

// leaked returns the stacks of goroutines that are not in before, once wait is over
// or none is left.
func leaked(before map[string]string, wait time.Duration) []string {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		left := difference(before, goroutines())
		if len(left) == 0 {
			return nil
		}
		select {
		case <-deadline.C:
			return left
		case <-look.C:
		}
	}
}

func difference(before, after map[string]string) []string {
	var left []string
	for id, stack := range after {
		if _, ok := before[id]; !ok && !harmless(stack) {
			left = append(left, stack)
		}
	}
	return left
}

// harmless tells whether a goroutine is one that the standard library starts once
// for the whole process and never ends.
func harmless(stack string) bool {
	return strings.Contains(stack, "os/signal.loop") || strings.Contains(stack, "os/signal.signal_recv")
}

// goroutines returns the stacks of all goroutines but the caller's, by their number.
func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	found := make(map[string]string)
	for i, stack := range strings.Split(strings.TrimSpace(string(buf)), "\n\n") {
		// The first is the one that asks. The head is "goroutine 7 [chan receive]:".
		if id, _, ok := strings.Cut(stack, " ["); ok && i > 0 {
			found[id] = stack
		}
	}
	return found
}
