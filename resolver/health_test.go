package resolver

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// script answers the questions of a Health one after the other, the last one for ever.
type script struct {
	answers []any // a bool or an error
	asked   int
	trusted bool
}

func (s *script) Trusted() bool { return s.trusted }

func (s *script) authenticates(context.Context, string) (bool, error) {
	a := s.answers[min(s.asked, len(s.answers)-1)]
	s.asked++
	if err, ok := a.(error); ok {
		return false, err
	}
	return a.(bool), nil
}

// TestHealth: what is known minute by minute, and that each change is said once.
func TestHealth(t *testing.T) {
	away := &Error{Kind: ErrTemporary, Cause: errors.New("away")}
	bogus := &Error{Kind: ErrBogus}
	for _, tt := range []struct {
		why     string
		answers []any
		want    string // v validates, n does not
		lines   []string
	}{
		{"validates", []any{true, true, true}, "vvv", []string{"INFO the resolver validates"}},
		{"never did", []any{false, false}, "nn", []string{"WARN does not validate"}},
		{"stops, and begins again", []any{true, false, false, true}, "vnnv",
			[]string{"INFO the resolver validates", "WARN does not validate", "INFO the resolver validates"}},
		{"away: nothing is known, nothing changes", []any{true, away, away, true}, "vvvv",
			[]string{"INFO the resolver validates", "WARN not known", "INFO the resolver validates"}},
		{"away while it does not validate", []any{false, away, false}, "nnn",
			[]string{"WARN does not validate", "WARN not known", "WARN does not validate"}},
		{"away from the start: answers say it themselves", []any{away, away, false}, "vvn",
			[]string{"WARN not known", "WARN does not validate"}},
		{"a wrong trust anchor", []any{bogus, true}, "nv", []string{"WARN does not validate", "INFO the resolver validates"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var log strings.Builder
			s := &script{answers: tt.answers, trusted: true}
			h := newHealth(s, HealthOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
			if !h.Validating() || !h.State().Checked.IsZero() {
				t.Errorf("%s: before the first question: %+v", tt.why, h.State())
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { h.Run(ctx); close(done) }()
			got := ""
			for range tt.answers {
				synctest.Wait()
				if h.Validating() {
					got += "v"
				} else {
					got += "n"
				}
				time.Sleep(time.Minute)
			}
			cancel()
			<-done
			if got != tt.want {
				t.Errorf("%s: got %s, want %s", tt.why, got, tt.want)
			}
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			if len(lines) != len(tt.lines) {
				t.Fatalf("%s: got\n%s\nwant %q", tt.why, log.String(), tt.lines)
			}
			for i, want := range tt.lines {
				level, text, _ := strings.Cut(want, " ")
				if !strings.Contains(lines[i], "level="+level) || !strings.Contains(lines[i], text) {
					t.Errorf("%s: got %s, want %s", tt.why, lines[i], want)
				}
			}
		})
	}
}

// TestHealthUntrusted: where no answer counts, nobody is asked.
func TestHealthUntrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{answers: []any{true}}
		h := newHealth(s, HealthOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		h.Run(ctx)
		if st := h.Check(t.Context()); st.Validating || s.asked > 0 {
			t.Errorf("got %+v after %d questions", st, s.asked)
		}
	})
}

// TestHealthAsks asks a server: past the cache, for the name that it was given.
func TestHealthAsks(t *testing.T) {
	f := newFake(t, "lab.example. NS ns.lab.example.")
	f.ad.Store(true)
	r := start(t, Options{}, f)
	h := NewHealth(r, HealthOptions{Name: "lab.example"})
	for i, tt := range []struct {
		ad    bool
		react reaction
		want  bool
	}{
		{true, nil, true}, {false, nil, false}, {true, nil, true},
		{true, code(dns.RcodeServerFailure, 0), true}, // not known
		{true, code(dns.RcodeServerFailure, dns.ExtendedErrorCodeDNSBogus), false},
	} {
		f.ad.Store(tt.ad)
		f.set(tt.react)
		if st := h.Check(t.Context()); st.Validating != tt.want || st.Checks != uint64(i+1) {
			t.Errorf("%d: got %+v, want %v", i, st, tt.want)
		}
	}
	for _, q := range f.queries() {
		if q.name != "lab.example" || q.typ != TypeNS {
			t.Errorf("asked for %s %s", q.name, q.typ)
		}
	}
	if st := NewHealth(r, HealthOptions{Name: "a..b"}).Check(t.Context()); st.Err == nil || !st.Validating {
		t.Errorf("not a name: got %+v", st)
	}
	r.Close()
	if st := h.Check(t.Context()); st.Validating || st.Err == nil || st.Failures != 2 {
		t.Errorf("after Close: got %+v", st)
	}
}
