package account

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/policy"
)

func TestMain(m *testing.M) { leak.Main(m) }

// names of the versions of a filter, with their calls; those that ended in brackets.
func versions(f Filter) (list []string) {
	for _, v := range f.Versions {
		calls := uint64(0)
		for _, s := range v.Stages {
			calls += s.Calls
		}
		text := fmt.Sprintf("%s:%d", v.Version, calls)
		if !v.Ended.IsZero() {
			text = "(" + text + ")"
		}
		list = append(list, text)
	}
	return list
}

func session(n uint64) *policy.Session { return &policy.Session{Number: n} }

// TestWhatIsCounted: each kind of answer, at its place.
func TestWhatIsCounted(t *testing.T) {
	b := New()
	s := b.Open("f", "v1", func() Host {
		return Host{CPU: map[policy.Stage]time.Duration{policy.StageRcpt: 7}, Memory: 100, Ticks: 2, Live: 1}
	})
	note := func(step policy.Step) {
		for n := range uint64(10) {
			s.Note(session(n), &step)
		}
	}
	note(policy.Step{Stage: policy.StageRcpt, Duration: 10 * time.Microsecond})
	note(policy.Step{Stage: policy.StageRcpt, Duration: 10 * time.Microsecond, Verdict: policy.Verdict{Action: policy.Reject}, Edits: make([]policy.Edit, 3)})
	note(policy.Step{Stage: policy.StageRcpt, Duration: 10 * time.Microsecond, Verdict: policy.Verdict{Action: policy.Tempfail}, Err: fmt.Errorf("x: %w", policy.ErrVerdict)})
	note(policy.Step{Stage: policy.StageRcpt, Verdict: policy.Verdict{Action: policy.Tempfail}, Err: errors.New("late"), Late: true})
	note(policy.Step{Stage: policy.StageRcpt, Verdict: policy.Verdict{Action: policy.Reject}, Err: policy.ErrBroken})
	note(policy.Step{Stage: policy.StageClose})
	s.Broke(policy.StageRcpt)
	s.Note(session(1), &policy.Step{Stage: 99, Verdict: policy.Verdict{Action: 99}}) // must not panic

	f := b.Filters()[0]
	if f.Name != "f" || len(f.Versions) != 1 || f.Versions[0].Version != "v1" || len(f.Total.Stages) != 2 {
		t.Fatalf("%+v", f)
	}
	for _, v := range []Version{f.Total, f.Versions[0]} {
		r := v.Stages[0]
		if r.Stage != policy.StageRcpt || r.Calls != 30 || r.Edits != 30 || r.NotAsked != 10 || r.Broke != 1 || r.CPU != 7 || r.Failed() != 20 ||
			!maps.Equal(r.Verdicts, map[policy.Action]uint64{policy.Continue: 10, policy.Reject: 10, policy.Tempfail: 10}) ||
			!maps.Equal(r.Failures, map[string]uint64{policy.CauseVerdict: 10, policy.CauseOther: 10}) {
			t.Errorf("%+v", r)
		}
		if p := r.Took.Quantile(0.99); p < 9*time.Microsecond || p > 11*time.Microsecond || r.Took.Count() != r.Calls {
			t.Errorf("p99 %v of %d", p, r.Took.Count())
		}
		if v.CPU() != 7 || v.Host.Memory != 100 || v.Host.Ticks != 2 || v.Host.Live != 1 {
			t.Errorf("host %+v", v.Host)
		}
	}
}

// TestVersionsComeAndGo: through a hundred versions nothing that was counted is lost, and
// only the newest are told apart.
func TestVersionsComeAndGo(t *testing.T) {
	b := New()
	b.now = func() func() time.Time {
		at := time.Unix(0, 0)
		return func() time.Time { at = at.Add(time.Second); return at }
	}()
	step := &policy.Step{Stage: policy.StageMessage}
	old := b.Open("f", "old", nil)
	old.Note(session(1), step)
	host := func() Host { return Host{Memory: 9, Waits: 1, Live: 1} }
	for i := range 100 {
		s := b.Open("f", fmt.Sprint(i), host)
		twin := b.Open("f", fmt.Sprint(i), host) // in another chain
		s.Note(session(1), step)
		twin.Note(session(2), step)
		s.Close()
		s.Close()
		if f := b.Filters()[0]; len(f.Versions) > 2+MaxEnded || f.Total.Stages[0].Calls != uint64(2*i+3) || f.Total.Host.Waits != int64(2*i+2) || f.Total.Host.Live != 1 {
			t.Fatalf("after %d: %v, %+v", i, versions(f), f.Total)
		}
		twin.Close()
	}
	again := b.Open("f", "98", nil)
	again.Note(session(1), step)
	f := b.Filters()[0]
	if got, want := versions(f), []string{"98:3", "old:1", "(99:2)", "(97:2)"}; !slices.Equal(got, want) {
		t.Errorf("versions %v, want %v", got, want)
	}
	if f.Total.Stages[0].Calls != 202 || f.Total.Host.Waits != 200 || f.Total.Host.Live != 0 || f.Total.Host.Memory != 9 {
		t.Errorf("%+v", f.Total)
	}
}

// TestNamesAreBounded: names beyond the most that are told apart are one.
func TestNamesAreBounded(t *testing.T) {
	b := New()
	for i := range MaxFilters + 50 {
		s := b.Open(fmt.Sprint(i), "v", nil)
		s.Note(session(1), &policy.Step{Stage: policy.StageMail})
		s.Close()
	}
	all := b.Filters()
	if len(all) != MaxFilters+1 {
		t.Errorf("%d names", len(all))
	}
	if f := all[0]; f.Name != Others || f.Total.Stages[0].Calls != 50 || len(f.Versions) > 1 {
		t.Errorf("%s has %d calls in %d versions", f.Name, f.Total.Stages[0].Calls, len(f.Versions))
	}
}

// TestHammer: sessions count while versions come and go and somebody reads.
func TestHammer(t *testing.T) {
	b := New()
	var wg sync.WaitGroup
	for n := range uint64(4) {
		wg.Go(func() {
			for i := range 15 {
				s := b.Open("f", fmt.Sprint(i%10), func() Host { return Host{Waits: 1} })
				for stage := policy.StageConnect; stage <= policy.StageClose; stage++ {
					s.Note(session(n), &policy.Step{Stage: stage})
				}
				b.Filters()
				s.Close()
			}
		})
	}
	wg.Wait()
	f := b.Filters()[0]
	if f.Total.Host.Waits != 60 || len(f.Total.Stages) != int(policy.StageClose) {
		t.Errorf("%+v", f.Total.Host)
	}
	for _, s := range f.Total.Stages {
		if s.Calls != 60 {
			t.Errorf("%s: %d calls, want 60", s.Stage, s.Calls)
		}
	}
}

// BenchmarkNote is what the books add to each answer of a filter.
func BenchmarkNote(b *testing.B) {
	a := New().Open("f", "v", nil)
	step := &policy.Step{Filter: "rcptguard", Stage: policy.StageRcpt, Duration: 3 * time.Microsecond}
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		s := session(1)
		for b.Loop() {
			a.Note(s, step)
		}
	})
	b.Run("all cores", func(b *testing.B) {
		b.ReportAllocs()
		var mu sync.Mutex
		n := uint64(0)
		b.RunParallel(func(pb *testing.PB) {
			mu.Lock()
			n++
			s := session(n)
			mu.Unlock()
			for pb.Next() {
				a.Note(s, step)
			}
		})
	})
}
