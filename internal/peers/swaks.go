package peers

// swaks.go runs clients that end by themselves.

import (
	"context"
	"errors"
	"os/exec"
	"strings"
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
// test if swaks runs longer than 30 s. Arguments of use here, next to --server:
//
//	--protocol LMTP
//	--auth PLAIN,LOGIN,CRAM-MD5 --auth-user NAME --auth-password SECRET
//	--xclient-addr 192.0.2.1 --xclient-name client.test --xclient-optional
//	--proxy-version 2 --proxy-family AF_INET --proxy-source 192.0.2.1 --proxy-source-port 1025
//	--proxy-dest 192.0.2.2 --proxy-dest-port 25    // the family of version 1 is TCP4
func Swaks(t testing.TB, args ...string) (transcript string, exitCode int) {
	t.Helper()
	path := program(t, "swaks", "swaks")
	// An empty --config keeps $HOME/.swaksrc out.
	return run(t, "", path, append([]string{"--config", ""}, args...)...)
}

// run runs a client program to its end and returns what it printed and its exit code. It
// ends the test if the program cannot be run, or runs longer than runLimit.
func run(t testing.TB, input, path string, args ...string) (output string, exitCode int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := command(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("peers: %s %q ran longer than %v:\n%s", path, args, runLimit, out)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("peers: %s %q: %v\n%s", path, args, err, out)
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
