package filter

import (
	"strconv"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// figures.go: scores, which filters add up together, and metrics, which the gateway counts.

// Score is the sum of what filters gave under one key, in thousandths.
type Score struct {
	Key   string
	Milli int64
}

// Score adds thousandths to the score called key: of the transaction, or outside of one of
// the session. All filters add to the same scores; the last of a chain may decide by them.
// The key is short UTF-8 text without an equals sign.
func (e Event) Score(key string, milli int64) error {
	return check("add to score", e.call.host.Score([]byte(key), milli))
}

// Scores returns the scores so far, what this filter just added included.
func (e Event) Scores() []Score {
	var out []Score
	for _, s := range e.list(abi.FieldScores) {
		key, n := cut(s, '=')
		if milli, err := strconv.ParseInt(n, 10, 64); err == nil {
			out = append(out, Score{key, milli})
		}
	}
	return out
}

// Metric is a number that only grows and that the gateway shows as
// penstock_filter_metric_total with the labels filter and name.
type Metric struct {
	name string
	id   int32
}

// Metric makes a metric. It is called before [Filter.Serve], once for each name: the letters
// a-z, digits and _, a letter first, 48 at most. A filter may have 32. A name that will not
// do keeps the filter from being loaded.
func (f *Filter) Metric(name string) *Metric {
	m := &Metric{name: name}
	f.metrics = append(f.metrics, m)
	return m
}

// Count adds n to a metric, n not negative. It counts at once, whatever becomes of the
// handler.
func (e Event) Count(m *Metric, n int64) error {
	return check("count "+m.name, e.call.host.MetricAdd(m.id, n))
}

// nameMetrics makes the metrics known to the gateway.
func (f *Filter) nameMetrics(h host) error {
	for _, m := range f.metrics {
		m.id = h.Metric([]byte(m.name), int32(abi.MetricCounter))
		if err := check("name metric "+strconv.Quote(m.name), m.id); err != nil {
			return err
		}
	}
	return nil
}
