package lab

// enter.go runs a test again, as a process in a network namespace of its own. A namespace
// belongs to threads, and goroutines wander over threads; so it cannot be entered by a
// process that has run for a while, and is given to a new one.

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
)

// inside is the environment variable by which the process in the namespace knows that it is
// there: the value is the name of the test that it runs. With the value "none" no namespace
// is made, as if they were not permitted.
const inside = "LAB_NAMESPACE"

// errNoNamespace tells that namespaces are not to be had here.
var errNoNamespace = errors.New("lab: network namespaces are not permitted here")

// Enter returns true where the test is to do its work. The first call runs the test again in
// a private network namespace, passes on how that went, and returns false: the test is over
// then. Where namespaces are not permitted it returns true at once, and the test works on
// high ports. It must be the first thing that a top-level test does but for t.Parallel, since what
// is before it happens twice.
func Enter(t *testing.T) bool {
	t.Helper()
	if strings.Contains(t.Name(), "/") {
		t.Fatal("lab: Enter is for top-level tests")
	}
	switch os.Getenv(inside) {
	case t.Name():
		if err := furnish(); err != nil {
			t.Fatalf("lab: furnish the namespace: %v", err)
		}
		return true
	case "none":
		return true
	}
	err := again(t)
	if errors.Is(err, errNoNamespace) {
		t.Logf("%v; the test uses high ports", err)
		return true
	}
	if err != nil {
		t.Errorf("lab: in the namespace: %v", err)
	}
	return false
}

// again runs this test in a namespace. It skips the test if that was skipped there.
func again(t *testing.T) error {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if end, ok := t.Deadline(); ok {
		ctx, cancel = context.WithDeadline(t.Context(), end)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, os.Args[0], arguments(t)...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	if err := isolate(ctx, cmd); err != nil {
		return err
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || testing.Verbose() {
		t.Logf("output of the test in the namespace:\n%s", indent(out))
	}
	skipped := regexp.MustCompile(`(?m)^--- SKIP: ` + regexp.QuoteMeta(t.Name()) + ` `)
	if err == nil && skipped.Match(out) {
		peers.Missing(t, "what the test needs in its namespace", "it said:\n"+string(indent(out)))
	}
	return err
}

// arguments are those for a process that runs this test alone, with the subtests that were
// asked for.
func arguments(t *testing.T) []string {
	only := "^" + regexp.QuoteMeta(t.Name()) + "$"
	if f := flag.Lookup("test.run"); f != nil {
		if _, sub, ok := strings.Cut(f.Value.String(), "/"); ok {
			only += "/" + sub
		}
	}
	args := []string{"-test.v=true", "-test.run=" + only}
	if testing.Short() {
		args = append(args, "-test.short=true")
	}
	if end, ok := t.Deadline(); ok {
		// A little less than we have, so that the stacks it prints come through.
		args = append(args, "-test.timeout="+max(time.Until(end)-2*time.Second, time.Second).String())
	}
	// Files named on the command line, such as one for the golden answers.
	for _, name := range []string{"update", "test.parallel"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != f.DefValue {
			args = append(args, "-"+name+"="+f.Value.String())
		}
	}
	return args
}

// indent keeps the test's lines from being taken for ours by whoever reads go test's output.
func indent(out []byte) []byte {
	return append([]byte("    | "), bytes.ReplaceAll(bytes.TrimSpace(out), []byte("\n"), []byte("\n    | "))...)
}
