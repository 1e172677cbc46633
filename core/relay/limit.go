package relay

import (
	"math"
	"sync/atomic"
	"time"
)

// minBurst is the least burst of a limit in bytes: a system call for less is
// not worth its price.
const minBurst = 4 << 10

// burstTime is how long a limit may be exceeded by a tunnel that was quiet.
const burstTime = 100 * time.Millisecond

// lookAgain is how often a paused direction looks whether its limit was changed.
const lookAgain = time.Second

// bucket limits one direction of a tunnel in all loops together, by the generic
// cell rate algorithm (ITU-T I.371): its only state is the moment at which all
// that was spent has been earned, as long as nothing more is spent. Loops spend
// without asking each other, so together they may spend more than there is; that
// is debt, and delays whoever comes next.
type bucket struct {
	rate    int64        // bytes per second, positive
	burst   int64        // nanoseconds that arrival may be ahead of the clock
	quantum int          // bytes that a direction may read at once
	arrival atomic.Int64 // loop time
}

// perSecond is the rate in bytes; 0 for a nil bucket.
func (b *bucket) perSecond() int64 {
	if b == nil {
		return 0
	}
	return b.rate
}

// newBucket gives a full bucket, or nil for no limit.
func newBucket(rate int64) *bucket {
	if rate <= 0 {
		return nil
	}
	b := &bucket{rate: rate, burst: int64(burstTime)}
	burst := rate / int64(time.Second/burstTime)
	if burst < minBurst {
		b.burst, burst = b.cost(minBurst), minBurst
	}
	// A quarter of a large burst, so that a fast tunnel moves its bulk as
	// cheaply as without a limit and its streams still take turns.
	b.quantum = int(min(max(burst/4, min(burst, loopBuffer)), pipeSize))
	return b
}

// cost is the time in which n bytes are earned, rounded up so that no number of
// small ones is free. n is at most frame.MaxData, so nothing overflows.
func (b *bucket) cost(n int) int64 {
	price := int64(n) * int64(time.Second)
	if price%b.rate > 0 {
		return price/b.rate + 1
	}
	return price / b.rate
}

// spend takes n bytes that have passed at the time now. Any loop may call it.
func (b *bucket) spend(n int, now int64) {
	cost := b.cost(n)
	for {
		was := b.arrival.Load()
		if b.arrival.CompareAndSwap(was, max(was, now)+cost) {
			return
		}
	}
}

// free is the loop time from which on bytes may pass. It never goes back.
func (b *bucket) free() int64 { return b.arrival.Load() - b.burst }

// unlimited is more than anything reads at once.
const unlimited = math.MaxInt

// ready is how many bytes may be read now without waiting. It is unlimited for a
// nil bucket.
func (b *bucket) ready(now int64) int {
	switch {
	case b == nil:
		return unlimited
	case b.free() > now:
		return 0
	default:
		return b.quantum
	}
}

// rates are the limits of a tunnel; nil is none.
type rates struct {
	up, down atomic.Pointer[bucket]
}

func (r *rates) of(up bool) *bucket {
	if up {
		return r.up.Load()
	}
	return r.down.Load()
}

// setRate replaces a limit, but leaves one of the same rate with its debt: sending
// a command again earns nothing.
func setRate(p *atomic.Pointer[bucket], rate int64) {
	if b := p.Load(); b == nil || b.rate != rate {
		p.Store(newBucket(rate))
	}
}

func (c Limit) submit(e *Engine) {
	e.limited(c.Tunnel, func(r *rates) {
		setRate(&r.up, c.Up)
		setRate(&r.down, c.Down)
	})
}

// pauses are the two directions of a stream that a limit has paused before.
type pauses struct {
	up, down pause
}

// pause is a promise to one direction: it is not read until a moment, and may
// then read a quantum, whatever the other streams have spent by then. Paying for
// that puts it behind all of them, so streams take turns although nobody keeps
// a queue over the loops.
type pause struct {
	stream *stream
	bucket *bucket // whose promise it is
	until  int64   // loop time; 0: no promise
	left   int     // bytes that may still be read then
	timer  timer
}

// expired has the stream look at the moment and at the limit.
func (p *pause) expired(l *loop) { l.queue(p.stream) }

// pause is nil for a direction of a stream that was never paused.
func (s *stream) pause(up bool) *pause {
	switch {
	case s.pauses == nil:
		return nil
	case up:
		return &s.pauses.up
	default:
		return &s.pauses.down
	}
}

// allowed is how many bytes a direction may read now. With 0 it is paused, and
// the stream is queued when it may read again.
func (l *loop) allowed(s *stream, up bool) int {
	b := s.tunnel.rates.of(up)
	p := s.pause(up)
	if p != nil && p.until > 0 && p.bucket == b {
		if p.until > l.now {
			l.wake(p)
			return 0
		}
		return p.left
	}
	if n := b.ready(l.now); n > 0 {
		return n
	}
	if s.pauses == nil {
		s.pauses = &pauses{up: pause{stream: s}, down: pause{stream: s}}
	}
	p = s.pause(up)
	p.bucket, p.until, p.left = b, b.free(), b.quantum
	bump(&s.tunnel.cells[l.id].throttled, 1)
	l.wake(p)
	return 0
}

// wake sets the timer of a paused direction.
func (l *loop) wake(p *pause) {
	l.timers.set(&p.timer, p, min(p.until, l.after(lookAgain)))
}

// spend pays for n bytes of one direction.
func (l *loop) spend(s *stream, up bool, n int) {
	b := s.tunnel.rates.of(up)
	if b == nil {
		return
	}
	b.spend(n, l.now)
	if p := s.pause(up); p != nil && p.until > 0 && p.until <= l.now {
		if p.left -= n; p.left <= 0 {
			p.until = 0 // the promise was kept
		}
	}
}

// paused tells whether a limit holds a direction of the stream up.
func (s *stream) paused(up bool, now int64) bool {
	p := s.pause(up)
	return p != nil && p.until > now && p.bucket == s.tunnel.rates.of(up)
}

// endPauses stops the timers of a stream that ends.
func (l *loop) endPauses(s *stream) {
	if s.pauses != nil {
		l.timers.stop(&s.pauses.up.timer)
		l.timers.stop(&s.pauses.down.timer)
	}
}
