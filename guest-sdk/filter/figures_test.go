package filter_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy/guest"
)

func TestScores(t *testing.T) {
	f := filter.New("f")
	f.OnHelo(func(_ filter.Reply, e *filter.HeloEvent) { _ = e.Score("spam", 500) })
	f.OnMailFrom(func(w filter.Reply, e *filter.MailEvent) {
		if err := errors.Join(e.Score("spam", 1250), e.Score("ham", -1)); err != nil {
			t.Error(err)
		}
		if err := e.Score("", 1); !errors.Is(err, abi.EINVAL) {
			t.Errorf("a score without a key: %v", err)
		}
		if got, want := e.Scores(), []filter.Score{{Key: "spam", Milli: 1750}, {Key: "ham", Milli: -1}}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	s := filtertest.New(t, filtertest.Options{Filter: f})
	s.Helo("x")
	if got, want := s.MailFrom("a@example.com").Scores, []string{"spam=+1.25", "ham=-0.001"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// sums is a guest.Metrics.
type sums map[string]int64

func (s sums) Add(filter, metric string, n int64) { s[filter+" "+metric] += n }

func TestMetric(t *testing.T) {
	f := filter.New("f")
	f.Metric("first")
	hits := f.Metric("hits")
	f.OnMailFrom(func(w filter.Reply, e *filter.MailEvent) {
		if err := errors.Join(e.Count(hits, 1), e.Count(hits, 2)); err != nil {
			t.Error(err)
		}
		if err := e.Count(hits, -1); !errors.Is(err, abi.EINVAL) {
			t.Errorf("a counter went back: %v", err)
		}
	})
	got := sums{}
	p, err := filtertest.Load(f, guest.Options{Metrics: got})
	if err != nil {
		t.Fatal(err)
	}
	filtertest.New(t, filtertest.Options{Policy: p}).MailFrom("a@example.com")
	if len(got) != 1 || got["f hits"] != 3 {
		t.Errorf("got %v", got)
	}
	bad := filter.New("bad")
	bad.Metric("Hits!")
	if _, err := filtertest.Load(bad, guest.Options{}); err == nil || !strings.Contains(err.Error(), `metric "Hits!"`) {
		t.Errorf("a bad name: got %v", err)
	}
}
