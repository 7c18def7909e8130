package metrics

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogram.go counts durations in fixed buckets. It is the one thing here that stands on
// the way of a message, so a call is two atomic additions and allocates nothing.

// A call of a filter takes from less than a microsecond to its limit of seconds. Up to 1 µs
// the buckets have the same width; from there on each doubling has four, so that a quantile
// is known to about an eighth. Prometheus gets the doublings alone: a series has a value for
// each.
const (
	finest  = time.Microsecond // the first bound that is given out
	unit    = finest / linear
	linear  = 8
	parts   = 4
	doubled = 23 // the last bound is 2^23 µs, 8.4 s
	buckets = linear + doubled*parts
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
	units := uint64(d+unit-1) / uint64(unit)
	if units <= linear {
		return int(max(units, 1)) - 1
	}
	// For 2^(n-1) < units <= 2^n, in the part of that doubling where it lies.
	n := bits.Len64(units - 1)
	part := (units - 1 - 1<<(n-1)) >> (n - 3)
	return min(linear+(n-4)*parts+int(part), buckets)
}

// bound is the upper bound of a bucket.
func bound(i int) time.Duration {
	if i < linear {
		return time.Duration(i+1) * unit
	}
	doubling, part := (i-linear)/parts, (i-linear)%parts
	return finest<<doubling + time.Duration(part+1)*(finest<<doubling/parts)
}

// Snapshot returns the count, the sum in seconds and the counts up to each bound that is
// given out. What is observed meanwhile may be in the one and not yet in the other.
func (h *Histogram) Snapshot() (count uint64, sum float64, upTo map[float64]uint64) {
	upTo = make(map[float64]uint64, doubled+1)
	for i := range buckets {
		count += h.counts[i].Load()
		if i >= linear-1 && (i-linear+1)%parts == 0 {
			upTo[bound(i).Seconds()] = count
		}
	}
	count += h.counts[buckets].Load()
	return count, h.Sum().Seconds(), upTo
}

// Count returns how many durations were observed.
func (h *Histogram) Count() (n uint64) {
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// Sum returns the sum of all durations.
func (h *Histogram) Sum() time.Duration { return time.Duration(h.sum.Load()) }

// Empty tells whether nothing was observed yet.
func (h *Histogram) Empty() bool { return h.Count() == 0 }

// Merge adds what other has.
func (h *Histogram) Merge(other *Histogram) {
	for i := range h.counts {
		if n := other.counts[i].Load(); n > 0 {
			h.counts[i].Add(n)
		}
	}
	h.sum.Add(other.sum.Load())
}

// Quantile returns the duration that the share q of all, from 0 to 1, does not exceed, to
// about an eighth. It is 0 for an empty Histogram, and the last bound for what lies above it.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := q * float64(h.Count())
	below := 0.0
	for i := range buckets {
		n := float64(h.counts[i].Load())
		if n > 0 && below+n >= rank {
			from := time.Duration(0)
			if i > 0 {
				from = bound(i - 1)
			}
			// Within a bucket the durations are taken as evenly spread.
			return from + time.Duration(float64(bound(i)-from)*max(rank-below, 0)/n)
		}
		below += n
	}
	if below == rank {
		return 0
	}
	return bound(buckets - 1)
}
