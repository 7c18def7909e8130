package gateway

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/policy"
)

// failures.go: how the failures of filters are logged. A filter that is broken fails in
// every session, and who can make it fail can do so as often as he likes; the log must stay
// readable, and the disk must not fill. So what fails in the same way is an error in the log
// once in a while, with the number of those that were left out since the last. At level debug
// all of them are there.

const (
	failureEvery = 10 * time.Second // a line for failures of one kind
	maxFailures  = 256              // kinds that are told apart
)

// failureKind is what failures have in common of which one is enough.
type failureKind struct {
	filter string
	stage  policy.Stage
	cause  string
}

// failures decides which failures are logged as errors. It is safe for concurrent use.
type failures struct {
	now func() time.Time

	mu   sync.Mutex // guards what follows
	last map[failureKind]logged
}

// logged is when a failure was logged, and how many since were not.
type logged struct {
	at   time.Time
	left int
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, last: make(map[failureKind]logged)}
}

// note tells whether a failure is to be logged, and how many before it were not.
func (f *failures) note(k failureKind) (ok bool, left int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	l, known := f.last[k]
	if !known && len(f.last) >= maxFailures {
		f.forget(now)
		if len(f.last) >= maxFailures {
			k = failureKind{} // stands for all others
			l, known = f.last[k]
		}
	}
	if known && now.Sub(l.at) < failureEvery {
		l.left++
		f.last[k] = l
		return false, l.left
	}
	f.last[k] = logged{at: now}
	return true, l.left
}

// forget drops the kinds that have nothing to tell.
func (f *failures) forget(now time.Time) {
	for k, l := range f.last {
		if l.left == 0 && now.Sub(l.at) >= failureEvery {
			delete(f.last, k)
		}
	}
}

// logFailure logs that a filter failed.
func (s *session) logFailure(step policy.Step) {
	cause := policy.CauseOf(step.Err)
	level := slog.LevelError
	ok, left := s.l.gw.failures.note(failureKind{step.Filter, step.Stage, cause})
	if !ok {
		level, left = slog.LevelDebug, 0
	}
	line, stack, printed := failureText(step.Err)
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs, slog.String("conn", s.facts.ID), slog.String("stage", step.Stage.String()), slog.String("filter", step.Filter),
		slog.String("remote", s.remote()), slog.String("verdict", step.Verdict.Action.String()), slog.String("cause", cause),
		slog.Duration("dur", step.Duration), slog.String("err", line))
	if stack != "" {
		attrs = append(attrs, slog.String("stack", stack))
	}
	if printed != "" {
		attrs = append(attrs, slog.String("stderr", printed))
	}
	if left > 0 {
		attrs = append(attrs, slog.Int("left_out", left))
	}
	s.log.LogAttrs(context.Background(), level, "filter failed", attrs...)
}

// maxFailureText bounds each part of a failure in the log.
const maxFailureText = 2 << 10

// failureText takes the error of a filter apart: what happened, in one line; the stack, of the
// guest or of a Go filter; and what the guest printed last, which comes behind "stderr: ". The
// lines of the latter two are put into one, so that they can be read in a log of lines.
func failureText(err error) (line, stack, printed string) {
	text, printed, _ := strings.Cut(err.Error(), "\nstderr: ")
	line, stack, _ = strings.Cut(text, "\n")
	return cutText(line), oneLine(stack), oneLine(printed)
}

func oneLine(text string) string {
	var lines []string
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	return cutText(strings.Join(lines, " | "))
}

func cutText(s string) string {
	if len(s) <= maxFailureText {
		return s
	}
	return strings.ToValidUTF8(s[:maxFailureText], "") + " …"
}
