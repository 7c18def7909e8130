package main

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/penstock/penstock/internal/metrics"
	"github.com/penstock/penstock/policy/account"
)

// figures.go counts the metrics that filters name themselves. The names come from modules,
// which a long life has many of; so how many are told apart has a limit.

// maxFigures is how many metrics of filters there are; the rest is counted as one.
const maxFigures = 1000

// figure is a metric of a filter.
type figure struct{ filter, name string }

var otherFigures = figure{account.Others, account.Others}

// filterFigures counts the metrics of all filters. It implements guest.Metrics. The zero
// value is ready, and safe for concurrent use: an addition is one look into a map that is
// never changed, and an atomic.
type filterFigures struct {
	byName atomic.Pointer[map[figure]*atomic.Uint64]
	mu     sync.Mutex // held to replace the map
}

// Add implements guest.Metrics.
func (s *filterFigures) Add(filter, name string, n int64) {
	key := figure{filter, name}
	if all := s.byName.Load(); all != nil {
		if c, ok := (*all)[key]; ok {
			c.Add(uint64(n))
			return
		}
	}
	s.counter(key).Add(uint64(n))
}

// counter makes room for a metric that was not seen before.
func (s *filterFigures) counter(key figure) *atomic.Uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[figure]*atomic.Uint64)
	if all := s.byName.Load(); all != nil {
		if c, ok := (*all)[key]; ok {
			return c
		}
		if len(*all) >= maxFigures {
			if key = otherFigures; (*all)[key] != nil {
				return (*all)[key]
			}
		}
		next = maps.Clone(*all)
	}
	c := new(atomic.Uint64)
	next[key] = c
	s.byName.Store(&next)
	return c
}

func (s *filterFigures) families() []metrics.Family {
	return []metrics.Family{{
		Name: "penstock_filter_metric_total", Labels: []string{"filter", "name"},
		Help: "What filters count themselves, under the names that they chose.",
		Collect: func(o *metrics.Out) {
			all := s.byName.Load()
			if all == nil {
				return
			}
			for key, c := range *all {
				o.Value(float64(c.Load()), key.filter, key.name)
			}
		},
	}}
}
