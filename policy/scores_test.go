package policy

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// Filters add to the same scores; those of one that failed do not count, and who copied the
// transaction keeps what it had.
func TestScoresAddUp(t *testing.T) {
	var seen []string
	add := func(name string, err error, scores ...Score) Link {
		return Link{OnError: OnErrorAccept, Filter: Func(name, AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			for _, s := range scores {
				if err := e.Edits.AddScore(s.Key, s.Milli); err != nil {
					t.Error(err)
				}
			}
			seen = append(seen, fmt.Sprint(name, e.Edits.Scores()))
			return Verdict{}, err
		})}
	}
	run := NewChain(
		add("a", nil, Score{"spam", 1500}, Score{"bulk", 1}),
		add("b", errors.New("it failed"), Score{"spam", 100_000}),
		add("c", nil, Score{"spam", -2000}),
	).Open(new(Session), nil)
	run.Decide(t.Context(), StageConnect, nil)
	tx := newTx(t)
	run.Decide(t.Context(), StageMail, tx)
	copied := *tx
	run.Decide(t.Context(), StageMessage, tx)
	want := []string{
		"a[spam=+1.5 bulk=+0.001]", "b[spam=+101.5 bulk=+0.001]", "c[spam=-0.5 bulk=+0.001]",
		"a[spam=+1 bulk=+0.002]", "b[spam=+101 bulk=+0.002]", "c[spam=-1 bulk=+0.002]",
		"a[spam=+0.5 bulk=+0.003]", "b[spam=+100.5 bulk=+0.003]", "c[spam=-1.5 bulk=+0.003]",
	}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", seen, want)
	}
	if got := fmt.Sprint(run.session.Scores, copied.Scores, tx.Scores); got != "[spam=-0.5 bulk=+0.001] [spam=-0.5 bulk=+0.001] [spam=-1 bulk=+0.002]" {
		t.Errorf("session, copy and transaction have %s", got)
	}
}
