// Package retry decides how long to wait before trying again.
//
// Delays follow "full jitter": each is drawn uniformly between zero and a
// ceiling that doubles with every attempt. Many clients that lose the same
// server at the same instant then come back spread over the whole interval
// instead of in waves.
package retry

import (
	"math"
	"math/rand/v2"
	"time"
)

// Defaults of a zero [Backoff].
const (
	DefaultBase = 500 * time.Millisecond
	DefaultMax  = 5 * time.Minute
)

// Backoff yields growing random delays. The zero value works. It belongs to one
// goroutine; it is not safe for concurrent use.
type Backoff struct {
	// Base is the ceiling of the first delay. Zero or negative: DefaultBase.
	Base time.Duration
	// Max is the ceiling no delay passes. Zero or negative: DefaultMax.
	Max time.Duration
	// Int64N returns a number in [0, n) for n > 0. Nil: math/rand/v2. Tests
	// set it to make delays predictable.
	Int64N func(n int64) int64

	attempt int
}

// Next returns the next delay, uniform in [0, min(Max, Base*2^n)] where n counts
// the calls since the last Reset.
func (b *Backoff) Next() time.Duration {
	ceiling := b.ceiling()
	if b.attempt < math.MaxInt {
		b.attempt++
	}
	if ceiling == math.MaxInt64 {
		ceiling-- // the draw below excludes its bound
	}
	return time.Duration(b.draw(int64(ceiling) + 1))
}

// NextAfter returns a delay of at least floor, the time a peer asked to be left
// alone, plus the jitter Next would have given: peers told the same floor still
// come back spread out. Max bounds the jitter only; a floor from a peer that is
// not trusted is the caller's to cap. A negative floor counts as zero.
func (b *Backoff) NextAfter(floor time.Duration) time.Duration {
	floor = max(floor, 0)
	jitter := b.Next()
	if jitter > math.MaxInt64-floor {
		return math.MaxInt64
	}
	return floor + jitter
}

// NextWithin is NextAfter with a jitter of limit at most. A delay that limit
// shortens does not count as an attempt, so that the ceiling is still low when the
// reason for the limit is gone. Limit must be positive.
func (b *Backoff) NextWithin(limit, floor time.Duration) time.Duration {
	if b.ceiling() <= limit {
		return b.NextAfter(floor)
	}
	short := Backoff{Base: limit, Max: limit, Int64N: b.Int64N}
	return short.NextAfter(floor)
}

// Reset makes the next delay a first one again. Call it once an attempt has
// proved good, not merely begun.
func (b *Backoff) Reset() { b.attempt = 0 }

func (b *Backoff) ceiling() time.Duration {
	base, limit := b.Base, b.Max
	if base <= 0 {
		base = DefaultBase
	}
	if limit <= 0 {
		limit = DefaultMax
	}
	// Comparing against the shifted limit instead of shifting base keeps the
	// product from ever being computed when it would overflow.
	if b.attempt >= 63 || base > limit>>b.attempt {
		return limit
	}
	return base << b.attempt
}

func (b *Backoff) draw(n int64) int64 {
	if b.Int64N != nil {
		return b.Int64N(n)
	}
	return rand.Int64N(n)
}
