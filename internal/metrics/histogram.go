package metrics

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram.go counts durations in fixed buckets. It is the one thing here that stands on
// the way of a message, so a call is two atomic additions and allocates nothing.

// The bounds double from 1 µs on: a filter's call takes from less than a microsecond to
// its limit of seconds, and what a bucket answers is only how many times longer.
const (
	finest  = time.Microsecond
	buckets = 24 // the last bound is 2^23 µs, 8.4 s
)

// Histogram counts durations. The zero Histogram is empty. It is safe for concurrent use
// and must not be copied.
type Histogram struct {
	counts [buckets + 1]atomic.Uint64 // by bucket, not summed up; the last is all above
	sum    atomic.Int64               // nanoseconds
}

// Observe counts one duration; a negative one counts as zero.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(d)].Add(1)
	h.sum.Add(int64(d))
}

// bucketOf returns the first bucket whose bound is not below d.
func bucketOf(d time.Duration) int {
	if d <= finest {
		return 0
	}
	// For d in (2^(n-1), 2^n] µs, rounded up to whole microseconds, it is n.
	us := uint64((d + finest - 1) / finest)
	return min(bits.Len64(us-1), buckets)
}

// bound is the upper bound of a bucket in seconds.
func bound(i int) float64 { return (finest << i).Seconds() }

// snapshot returns the count, the sum in seconds and the counts up to each bound. What is
// observed meanwhile may be in the one and not yet in the other.
func (h *Histogram) snapshot() (count uint64, sum float64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, buckets)
	for i := range buckets {
		count += h.counts[i].Load()
		upTo[bound(i)] = count
	}
	count += h.counts[buckets].Load()
	return count, time.Duration(h.sum.Load()).Seconds(), upTo
}

// Empty tells whether nothing was observed yet.
func (h *Histogram) Empty() bool {
	for i := range h.counts {
		if h.counts[i].Load() > 0 {
			return false
		}
	}
	return true
}
