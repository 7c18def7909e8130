package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/policy"
)

// TestFailuresAreLoggedOnceInAWhile: what fails in the same way is one line in ten seconds,
// with the number of those that were left out; what is new is a line at once; and what is
// remembered is bounded.
func TestFailuresAreLoggedOnceInAWhile(t *testing.T) {
	now := time.Now()
	f := newFailures(func() time.Time { return now })
	note := func(filter string, want bool, wantLeft int) {
		t.Helper()
		if ok, left := f.note(failureKind{filter, policy.StageMessage, policy.CauseTrap}); ok != want || left != wantLeft {
			t.Errorf("%s: %t with %d left out, want %t with %d", filter, ok, left, want, wantLeft)
		}
	}
	note("a", true, 0)
	for i := range 1000 {
		note("a", false, i+1)
	}
	note("b", true, 0)
	now = now.Add(failureEvery)
	note("a", true, 1000)
	note("a", false, 1)
	now = now.Add(failureEvery)
	note("a", true, 1)
	for i := range 2 * maxFailures {
		f.note(failureKind{fmt.Sprint(i), policy.StageMessage, policy.CauseTrap})
	}
	if len(f.last) > maxFailures+1 {
		t.Errorf("%d kinds are remembered", len(f.last))
	}
	if ok, left := f.note(failureKind{filter: "new"}); ok || left < maxFailures {
		t.Errorf("one of too many kinds: %t with %d left out", ok, left)
	}
	now = now.Add(failureEvery)
	note("new", true, 0) // there is room again
}

// TestFailureInTheLog: the parts of a failure are there to be read, each bounded, and the log
// does not grow with the failures.
func TestFailureInTheLog(t *testing.T) {
	long := strings.Repeat("x", 10*maxFailureText)
	fails := errors.New("it trapped: unreachable\nwasm stack trace:\n\tmain.b(i32)\n\tmain.a()\nstderr: panic: no \"rule\"\n\ngoroutine 1\n" + long)
	r := (&rig{links: []policy.Link{{OnError: policy.OnErrorAccept, Filter: policy.Func("faulty", policy.StagesOf(policy.StageMail),
		func(context.Context, *policy.Event) (policy.Verdict, error) { return policy.Verdict{}, fails })}}}).start(t)
	p := r.hello(t)
	for range 20 {
		p.talk("MAIL FROM:<a@example.com> => 250", "RSET => 250")
	}
	var lines []string
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, `level=ERROR msg="filter failed"`) {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		t.Fatalf("%d lines, want 1:\n%s", len(lines), strings.Join(lines, ""))
	}
	for _, want := range []string{"stage=mail filter=faulty", "verdict=continue cause=other", `err="it trapped: unreachable"`,
		`stack="wasm stack trace: | main.b(i32) | main.a()"`, `stderr="panic: no \"rule\" | goroutine 1 | xxx`} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("the line lacks %s:\n%.1000s", want, lines[0])
		}
	}
	if len(lines[0]) > 2*maxFailureText {
		t.Errorf("the line has %d octets", len(lines[0]))
	}
}
