package hist

import (
	"math"
	"math/rand"
	"slices"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	values := []uint64{0, 1, 127, 128, 255, 256, 257, 511, 512, 1 << 20, 1<<20 + 1, 1<<40 - 1, math.MaxInt64}
	for _, v := range values {
		i := index(v)
		if i < 0 || i >= buckets {
			t.Fatalf("index(%d) = %d, out of range", v, i)
		}
		if u := upper(i); u < v || float64(u-v) > 0.01*float64(v) {
			t.Errorf("upper(index(%d)) = %d", v, u)
		}
		if i > 0 && upper(i-1) >= v {
			t.Errorf("%d lies in bucket %d, but the one before ends at %d", v, i, upper(i-1))
		}
	}
}

func TestQuantilesAgainstSorted(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for _, n := range []int{1, 2, 10, 999, 20000} {
		var h Histogram
		all := make([]time.Duration, n)
		for i := range all {
			all[i] = time.Duration(math.Exp(random.Float64() * 20))
			h.Add(all[i])
		}
		slices.Sort(all)
		for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
			want := all[min(max(int(q*float64(n)+0.5), 1), n)-1]
			got := h.Quantile(q)
			if got < want || float64(got-want) > 0.01*float64(want) {
				t.Errorf("n %d: quantile %v is %d, want %d", n, q, got, want)
			}
		}
		if h.Count() != uint64(n) || h.Max() != all[n-1] {
			t.Errorf("n %d: count %d, max %d, want %d", n, h.Count(), h.Max(), all[n-1])
		}
	}
}

func TestMerge(t *testing.T) {
	var a, b, both Histogram
	for i := range 1000 {
		d := time.Duration(i * i)
		both.Add(d)
		if i%3 == 0 {
			a.Add(d)
		} else {
			b.Add(d)
		}
	}
	a.Merge(&b)
	if a != both {
		t.Error("merged halves differ from the whole")
	}
}

func TestEmptyAndNegative(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 || h.Count() != 0 {
		t.Error("an empty histogram is not empty")
	}
	h.Add(-time.Second)
	if h.Quantile(1) != 0 || h.Count() != 1 {
		t.Errorf("negative: quantile %v, count %d", h.Quantile(1), h.Count())
	}
}
