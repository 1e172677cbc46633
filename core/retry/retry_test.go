package retry_test

import (
	"math"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/retry"
)

// highest makes every draw the largest allowed one, which shows the ceiling.
func highest(n int64) int64 { return n - 1 }

// lowest makes every draw zero.
func lowest(int64) int64 { return 0 }

func TestNextCeiling(t *testing.T) {
	tests := []struct {
		name string
		b    retry.Backoff
		want []time.Duration
	}{
		{
			name: "doubles up to the maximum",
			b:    retry.Backoff{Base: time.Second, Max: 5 * time.Second},
			want: []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second},
		},
		{
			name: "maximum is a power of two of the base",
			b:    retry.Backoff{Base: time.Second, Max: 4 * time.Second},
			want: []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 4 * time.Second},
		},
		{
			name: "zero value",
			b:    retry.Backoff{},
			want: []time.Duration{retry.DefaultBase, 2 * retry.DefaultBase, 4 * retry.DefaultBase},
		},
		{
			name: "negative values are defaults",
			b:    retry.Backoff{Base: -1, Max: -1},
			want: []time.Duration{retry.DefaultBase},
		},
		{
			name: "maximum below base",
			b:    retry.Backoff{Base: time.Minute, Max: time.Second},
			want: []time.Duration{time.Second, time.Second},
		},
		{
			name: "largest durations",
			b:    retry.Backoff{Base: math.MaxInt64, Max: math.MaxInt64},
			want: []time.Duration{math.MaxInt64 - 1, math.MaxInt64 - 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.b.Int64N = highest
			for i, want := range tt.want {
				if got := tt.b.Next(); got != want {
					t.Errorf("delay %d = %v, want %v", i, got, want)
				}
			}
		})
	}
}

// However long a peer stays away, it is asked every five minutes at least.
func TestDefaultMaximum(t *testing.T) {
	b := retry.Backoff{Int64N: highest}
	var longest time.Duration
	for range 100 {
		longest = max(longest, b.Next())
	}
	if longest != 5*time.Minute {
		t.Errorf("the longest delay is %v, want 5m", longest)
	}
}

func TestNextNeverOverflows(t *testing.T) {
	for _, base := range []time.Duration{1, time.Millisecond, time.Hour, math.MaxInt64 / 2} {
		b := retry.Backoff{Base: base, Max: math.MaxInt64, Int64N: highest}
		previous := time.Duration(0)
		for i := range 200 {
			got := b.Next()
			if got < previous {
				t.Fatalf("base %v: delay %d = %v, below the one before it, %v", base, i, got, previous)
			}
			previous = got
		}
	}
}

func TestNextIsSpreadOverTheInterval(t *testing.T) {
	const ceiling = 8 * time.Second
	var low, high int
	for range 1000 {
		b := retry.Backoff{Base: ceiling, Max: ceiling}
		switch d := b.Next(); {
		case d < 0 || d > ceiling:
			t.Fatalf("delay %v outside [0, %v]", d, ceiling)
		case d < ceiling/2:
			low++
		default:
			high++
		}
	}
	// 1,000 fair draws leave [300, 700] with a probability below 1e-30.
	if low < 300 || high < 300 {
		t.Errorf("%d delays in the lower half, %d in the upper: not uniform", low, high)
	}
}

func TestReset(t *testing.T) {
	b := retry.Backoff{Base: time.Second, Max: time.Hour, Int64N: highest}
	b.Next()
	b.Next()
	b.Reset()
	if got := b.Next(); got != time.Second {
		t.Errorf("delay after Reset = %v, want %v", got, time.Second)
	}
}

// A limit bounds delays without making the later ones longer.
func TestNextWithin(t *testing.T) {
	b := retry.Backoff{Base: time.Second, Max: time.Hour, Int64N: highest}
	const limit, floor = 5 * time.Second, time.Minute
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, limit, limit, limit} {
		if got := b.NextWithin(limit, floor); got != floor+want {
			t.Errorf("delay %d = %v, want %v and %v", i, got, floor, want)
		}
	}
	for _, want := range []time.Duration{8 * time.Second, 16 * time.Second} {
		if got := b.Next(); got != want {
			t.Errorf("delay without the limit = %v, want %v", got, want)
		}
	}
	if got := b.NextWithin(limit, -time.Hour); got != limit {
		t.Errorf("delay after a negative floor = %v, want %v", got, limit)
	}
}

func TestNextAfter(t *testing.T) {
	tests := []struct {
		name  string
		floor time.Duration
		draw  func(int64) int64
		want  time.Duration
	}{
		{"lowest draw is the floor", time.Minute, lowest, time.Minute},
		{"highest draw adds the ceiling", time.Minute, highest, time.Minute + time.Second},
		{"no floor", 0, highest, time.Second},
		{"negative floor", -time.Hour, highest, time.Second},
		{"floor above the maximum is kept", time.Hour, lowest, time.Hour},
		{"sum does not overflow", math.MaxInt64, highest, math.MaxInt64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := retry.Backoff{Base: time.Second, Max: time.Minute, Int64N: tt.draw}
			if got := b.NextAfter(tt.floor); got != tt.want {
				t.Errorf("NextAfter(%v) = %v, want %v", tt.floor, got, tt.want)
			}
		})
	}
}
