package peers

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"
)

// runLimit bounds a client program from start to end.
const runLimit = 30 * time.Second

// Swaks runs swaks with the arguments and returns the transcript of its session
// and its exit code: 0 when the mail was accepted; other numbers say in which
// phase it was not (the section "exit codes" of its manual). Marks at the line
// heads tell the directions: " -> " and " ~> " what it sent, "<-  ", "<** " and
// "<~  " what came back. It takes no input and no configuration file. It ends the
// test if swaks runs longer than 30 s.
func Swaks(t testing.TB, args ...string) (transcript string, exitCode int) {
	t.Helper()
	path := program(t, "swaks", "swaks")
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	// An empty --config keeps $HOME/.swaksrc out.
	cmd := command(ctx, path, append([]string{"--config", ""}, args...)...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("peers: swaks %q ran longer than %v:\n%s", args, runLimit, out)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("peers: swaks %q: %v\n%s", args, err, out)
	}
	if exit != nil {
		exitCode = exit.ExitCode()
	}
	return string(out), exitCode
}

// command prepares a program that is killed when the context ends.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second // for a grandchild that holds the output open
	return cmd
}
