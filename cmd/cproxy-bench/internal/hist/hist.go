// Package hist keeps latencies in a fixed amount of memory: buckets that grow
// with the value, 128 for every power of two, so that a quantile is off by
// less than 1 %.
package hist

import (
	"math/bits"
	"time"
)

const (
	subBits = 7
	sub     = 1 << subBits // buckets of a power of two
	buckets = (64 - subBits) * sub
)

// Histogram counts durations. The zero value is empty and ready. It is not
// safe for concurrent use: each thread keeps its own, and Merge joins them.
type Histogram struct {
	counts [buckets]uint64
	total  uint64
	max    time.Duration
}

// Add counts one duration; a negative one counts as 0.
func (h *Histogram) Add(d time.Duration) {
	d = max(d, 0)
	h.counts[index(uint64(d))]++
	h.total++
	h.max = max(h.max, d)
}

// Merge adds everything that o counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.max = max(h.max, o.max)
}

// Count is how many durations were added.
func (h *Histogram) Count() uint64 { return h.total }

// Max is the largest duration, exactly.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile is a duration that the fraction q (0 to 1) of all does not exceed:
// the upper end of its bucket, and never above Max. Without any it is 0.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q*float64(h.total) + 0.5)
	rank = min(max(rank, 1), h.total)
	var seen uint64
	for i, n := range h.counts {
		seen += n
		if seen >= rank {
			return min(time.Duration(upper(i)), h.max)
		}
	}
	return h.max
}

// index is the bucket of v: values below 2*sub have their own, above that the
// leading subBits+1 bits count.
func index(v uint64) int {
	if v < sub {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return shift<<subBits + int(v>>shift)
}

// upper is the largest value of bucket i.
func upper(i int) uint64 {
	if i < 2*sub {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return (uint64(i&(sub-1)|sub)+1)<<shift - 1
}
