package guest

import (
	"bytes"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// figures.go: the scores that filters add up together, and the metrics that one counts.

// Metrics is where the metrics of filters are counted. It is safe for concurrent use.
type Metrics interface {
	// Add adds n, which is not negative, to a filter's metric. A filter has at most
	// abi.MaxMetrics of them, whose names are short words of a-z, 0-9 and _.
	Add(filter, metric string, n int64)
}

// Score implements Host.
func (g *Env) Score(key []byte, milli int64) int32 {
	switch {
	case !g.at(abi.Deciding):
		return int32(abi.EPHASE)
	// As for a tag: it is read by others as KEY=MILLI.
	case len(key) == 0 || len(key) > abi.MaxScoreKey || bytes.IndexByte(key, '=') >= 0 || !plain(key, ""):
		return int32(abi.EINVAL)
	case milli < -abi.MaxScore || milli > abi.MaxScore:
		return int32(abi.EINVAL)
	}
	return errnoOf(g.event.Edits.AddScore(string(key), milli))
}

// Metric implements Host.
func (g *Env) Metric(name []byte, kind int32) int32 {
	switch {
	case !g.at(abi.DuringInit):
		return int32(abi.EPHASE)
	case kind != int32(abi.MetricCounter) || !metricName(name):
		return int32(abi.EINVAL)
	}
	for i, have := range g.setup.metrics {
		if have == string(name) {
			return int32(i)
		}
	}
	if len(g.setup.metrics) >= abi.MaxMetrics {
		return int32(abi.ELIMIT)
	}
	g.setup.metrics = append(g.setup.metrics, string(name))
	return int32(len(g.setup.metrics) - 1)
}

// metricName tells whether name is a word that may be a label's value: few, short, and
// chosen by the filter's author.
func metricName(name []byte) bool {
	if len(name) == 0 || len(name) > abi.MaxMetricName || name[0] < 'a' || name[0] > 'z' {
		return false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

// MetricAdd implements Host.
func (g *Env) MetricAdd(id int32, v int64) int32 {
	switch {
	case !g.at(abi.InSession):
		return int32(abi.EPHASE)
	case id < 0 || int(id) >= len(g.setup.metrics):
		return int32(abi.ENOENT)
	case v < 0:
		return int32(abi.EINVAL)
	}
	if g.opts.Metrics != nil && v > 0 {
		g.opts.Metrics.Add(g.opts.Name, g.setup.metrics[id], v)
	}
	return 0
}
