package relay

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	for _, test := range []struct {
		rate    int64
		burst   time.Duration
		quantum int
		price   time.Duration // of 1000 bytes
	}{
		{1, 4096 * time.Second, 4096, 1000 * time.Second},
		{1000, 4096 * time.Millisecond, 4096, time.Second},
		{40_959, 100_002_442, 4096, 24_414_659},
		{40_960, 100 * time.Millisecond, 4096, 24_414_063},
		{100_000, 100 * time.Millisecond, 10_000, 10 * time.Millisecond},
		{1_000_000, 100 * time.Millisecond, 64 << 10, time.Millisecond},
		{10_000_000, 100 * time.Millisecond, 250_000, 100 * time.Microsecond},
		{3_000_000_000, 100 * time.Millisecond, 1 << 20, 334 * time.Nanosecond},
		{1 << 62, 100 * time.Millisecond, 1 << 20, 1},
	} {
		b := newBucket(test.rate)
		if b.burst != int64(test.burst) || b.quantum != test.quantum || b.cost(1000) != int64(test.price) {
			t.Errorf("%d: burst %v, quantum %d, 1000 bytes for %v", test.rate, time.Duration(b.burst), b.quantum, time.Duration(b.cost(1000)))
		}
		if b.cost(1<<20) <= 0 || b.cost(0) != 0 {
			t.Errorf("%d: the largest frame costs %d, nothing %d", test.rate, b.cost(1<<20), b.cost(0))
		}
	}
	for _, rate := range []int64{0, -1} {
		if b := newBucket(rate); b != nil || b.ready(5) != unlimited {
			t.Errorf("%d is a limit", rate)
		}
	}
}

func TestBucketSpends(t *testing.T) {
	const now = int64(time.Hour)
	b := newBucket(1_000_000) // 1000 bytes a millisecond, a burst of 100 ms
	for _, step := range []struct {
		at    time.Duration
		spend int
		ready bool // before it
	}{
		{0, 64 << 10, true},
		{0, 34_464, true}, // the burst is spent to the last byte
		{0, 1, true},      // which is not yet too much
		{0, 0, false},
		{0, 1 << 20, false}, // debt
		{time.Second, 0, false},
		{1_048_577 * time.Microsecond, 0, true},
		{time.Hour, 64 << 10, true}, // quiet earns no more than the burst
		{time.Hour, 34_465, true},
		{time.Hour, 0, false},
	} {
		at := now + int64(step.at)
		if ready := b.ready(at) > 0; ready != step.ready {
			t.Fatalf("at %v: ready %v, want %v", step.at, ready, step.ready)
		}
		if step.spend > 0 {
			b.spend(step.spend, at)
		}
	}
}

// Loops that spend at once lose nothing of each other's.
func TestBucketSpentByManyLoops(t *testing.T) {
	b := newBucket(1000)
	const loops, times = 4, 500_000
	var spending sync.WaitGroup
	for range loops {
		spending.Go(func() {
			for range times {
				b.spend(3, 7)
			}
		})
	}
	spending.Wait()
	if got, want := b.arrival.Load(), 7+loops*times*b.cost(3); got != want {
		t.Fatalf("arrival at %d, want %d", got, want)
	}
}

func TestLimitIsKeptWhenSentAgain(t *testing.T) {
	e := New(Options{Loops: 1})
	e.Submit(Limit{Tunnel: 5, Up: 1000, Down: 2000})
	r := &e.tunnel(5).rates
	up, down := r.of(true), r.of(false)
	if up.rate != 1000 || down.rate != 2000 {
		t.Fatalf("up %d, down %d", up.rate, down.rate)
	}
	e.Submit(Limit{Tunnel: 5, Up: 1000, Down: 3000})
	if r.of(true) != up || r.of(false) == down || r.of(false).rate != 3000 {
		t.Fatal("a limit that did not change was replaced, or one that did was not")
	}
	e.Submit(Limit{Tunnel: 5})
	if r.of(true) != nil || r.of(false) != nil {
		t.Fatal("a limit is left")
	}
}

// takers are streams of one tunnel that have no sockets, on loops whose clock
// the test moves.
type takers struct {
	engine  *Engine
	streams []*stream
	taken   []int
}

const takerTunnel TunnelID = 5

func newTakers(loops, streams int, rate int64) *takers {
	e := New(Options{Loops: loops})
	e.Submit(Limit{Tunnel: takerTunnel, Up: rate})
	k := &takers{engine: e, taken: make([]int, streams)}
	for range streams {
		k.streams = append(k.streams, &stream{tunnel: e.tunnel(takerTunnel)})
	}
	return k
}

func (k *takers) loop(i int) *loop { return k.engine.loops[i%len(k.engine.loops)] }

func (k *takers) set(now int64) {
	for _, l := range k.engine.loops {
		l.now = now
	}
}

// take lets a stream read up to so many bytes, if it may.
func (k *takers) take(i, most int) int {
	l, s := k.loop(i), k.streams[i]
	n := min(l.allowed(s, true), most)
	if n > 0 {
		s.count(l, true, n)
		k.taken[i] += n
	}
	return n
}

// exhaust lets a stream take what there is, until it is paused.
func (k *takers) exhaust(t *testing.T, i int) {
	t.Helper()
	for range 1000 {
		if k.take(i, loopBuffer) == 0 {
			return
		}
	}
	t.Fatal("nothing pauses the stream")
}

// Whatever streams of whatever loops take, and when, no span of time sees more
// than its share, one burst, and one quantum for each stream.
func TestLimitHoldsInEveryWindow(t *testing.T) {
	for _, rate := range []int64{1000, 300_000, 10_000_000, 4_000_000_000} {
		for k := 1; k <= 6; k++ {
			rng := rand.New(rand.NewPCG(uint64(rate), uint64(k)))
			all := newTakers(2, k, rate)
			b := all.engine.tunnel(takerTunnel).rates.of(true)
			most := float64(b.burst)*float64(rate)/1e9 + float64(k*b.quantum)
			pace := b.cost(b.quantum)
			now := int64(time.Hour)
			var when []int64
			var sum []float64
			for total, step := 0.0, 0; len(when) < 1200; step++ {
				if step > 100_000 {
					t.Fatalf("%d takers at %d: only %.0f bytes were let through", k, rate, total)
				}
				switch rng.IntN(10) {
				case 0:
					now += rng.Int64N(20 * pace)
				case 1, 2, 3:
					now += rng.Int64N(pace)
				}
				all.set(now)
				want := 1 + rng.IntN(loopBuffer)
				if rng.IntN(2) == 0 {
					want = loopBuffer
				}
				if n := all.take(rng.IntN(k), want); n > 0 {
					total += float64(n)
					when, sum = append(when, now), append(sum, total)
				}
			}
			for i := range when {
				before := 0.0
				if i > 0 {
					before = sum[i-1]
				}
				for j := i; j < len(when); j++ {
					if passed, share := sum[j]-before, float64(when[j]-when[i])*float64(rate)/1e9; passed > share+most {
						t.Fatalf("%d takers at %d: %.0f bytes in %v, %.0f more than their share; %.0f are allowed",
							k, rate, passed, time.Duration(when[j]-when[i]), passed-share, most)
					}
				}
			}
		}
	}
}

// run moves the clock from one deadline to the next, as a loop does, with
// streams that always have more to give, until so much was taken.
func (k *takers) run(t *testing.T, total int) (now int64) {
	t.Helper()
	now = int64(time.Hour)
	k.set(now)
	for i, s := range k.streams {
		k.loop(i).queue(s)
	}
	sum := 0
	for turn := 0; sum < total; turn++ {
		if turn > 1_000_000 {
			t.Fatalf("no end: %v were taken", k.taken)
		}
		idle := true
		for _, l := range k.engine.loops {
			for p := l.timers.pop(now); p != nil; p = l.timers.pop(now) {
				p.expired(l)
			}
			if len(l.work.queue) == 0 {
				continue
			}
			idle = false
			s := l.work.queue[0].(*stream)
			l.work.queue = l.work.queue[1:]
			s.queued = false
			i := slices.Index(k.streams, s)
			for slice := turnSlice; ; {
				n := k.take(i, loopBuffer)
				slice -= n
				sum += n
				if slice <= 0 {
					l.queue(s)
				}
				if n == 0 || slice <= 0 {
					break
				}
			}
		}
		if idle {
			next := int64(0)
			for _, l := range k.engine.loops {
				if when, ok := l.timers.next(); ok && (next == 0 || when < next) {
					next = when
				}
			}
			if next <= now {
				t.Fatalf("all streams wait, and nothing wakes them; %v were taken", k.taken)
			}
			now = next
			k.set(now)
		}
	}
	return now
}

// Streams of one tunnel take turns over all loops, and the tunnel gets what its
// limit says, no less.
func TestLimitIsShared(t *testing.T) {
	for _, rate := range []int64{2000, 1_000_000, 250_000_000} {
		for _, loops := range []int{1, 2} {
			const streams = 8
			k := newTakers(loops, streams, rate)
			b := k.engine.tunnel(takerTunnel).rates.of(true)
			burst := int(b.burst * rate / int64(time.Second))
			total := 20*burst + 20*streams*b.quantum
			began := int64(time.Hour)
			took := k.run(t, total) - began
			if low, high := slices.Min(k.taken), slices.Max(k.taken); high-low > turnSlice+2*b.quantum || high > 2*low {
				t.Errorf("%d bytes a second, %d loops: streams got %v", rate, loops, k.taken)
			}
			if earned := float64(took) * float64(rate) / 1e9; earned > float64(total+turnSlice) {
				t.Errorf("%d bytes a second, %d loops: %d bytes took %v", rate, loops, total, time.Duration(took))
			}
			if n := k.engine.Stats()[0].Throttled; n < uint64(streams) {
				t.Errorf("throttled %d times", n)
			}
		}
	}
}

// A promise holds whatever the others spend meanwhile, and for one quantum.
func TestPromiseIsKept(t *testing.T) {
	const rate = 1_000_000
	k := newTakers(2, 2, rate)
	now := int64(time.Hour)
	k.set(now)
	k.exhaust(t, 0)
	if n := k.take(1, loopBuffer); n != 0 {
		t.Fatalf("took %d over the limit", n)
	}
	p := k.streams[1].pause(true)
	if p.until != k.engine.tunnel(takerTunnel).rates.of(true).free() || p.timer.when != p.until {
		t.Fatalf("paused until %d, woken at %d", p.until, p.timer.when)
	}
	if !k.streams[1].paused(true, now) || k.streams[1].paused(false, now) {
		t.Fatal("the wrong direction is paused")
	}
	b := k.engine.tunnel(takerTunnel).rates.of(true)
	b.spend(1<<20, now) // somebody else
	k.set(p.until - 1)
	if n := k.take(1, loopBuffer); n != 0 {
		t.Fatalf("took %d too early", n)
	}
	k.set(p.until)
	for _, part := range []struct{ most, want int }{{1000, 1000}, {loopBuffer, b.quantum - 1000}, {loopBuffer, 0}} {
		if n := k.take(1, part.most); n != part.want {
			t.Fatalf("took %d, want %d", n, part.want)
		}
	}
	if p.until <= int64(time.Hour)+int64(time.Second) {
		t.Fatalf("paused until %d only, before the debt is repaid", p.until)
	}
}

// A limit that is changed or taken back ends the promises made under it, and a
// paused stream looks at that within a second.
func TestPromiseEndsWithItsLimit(t *testing.T) {
	for name, after := range map[string]int64{"removed": 0, "raised": 1 << 30, "lowered": 10} {
		t.Run(name, func(t *testing.T) {
			k := newTakers(1, 1, 100)
			now := int64(time.Hour)
			k.set(now)
			k.exhaust(t, 0)
			p := k.streams[0].pause(true)
			if wait := time.Duration(p.until - now); wait < 30*time.Second {
				t.Fatalf("paused for %v", wait)
			}
			if wait := time.Duration(p.timer.when - now); wait > lookAgain {
				t.Fatalf("looks again in %v", wait)
			}
			k.engine.Submit(Limit{Tunnel: takerTunnel, Up: after})
			if k.streams[0].paused(true, now) {
				t.Fatal("paused by a limit that is gone")
			}
			want := loopBuffer
			if b := k.engine.tunnel(takerTunnel).rates.of(true); b != nil {
				want = min(want, b.quantum)
			}
			if n := k.take(0, loopBuffer); n != want {
				t.Fatalf("took %d, want %d", n, want)
			}
		})
	}
}
