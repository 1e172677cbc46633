package server

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func TestAppetite(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type step struct {
		at     time.Duration
		use    relay.PoolUse
		refill time.Duration
		want   int
	}
	visit := relay.PoolUse{Claims: 1, Missed: 1}
	tests := map[string][]step{
		"nobody came":       {{want: 0}, {use: relay.PoolUse{Idle: 5, Drawn: 3}, want: 0}},
		"the first visitor": {{use: visit, want: 2}},
		"many at once":      {{use: relay.PoolUse{Claims: 40, Missed: 40}, want: 51}},
		"bounded":           {{use: relay.PoolUse{Claims: 400, Missed: 400}, want: 100}},
		"served from the pool": {
			{use: relay.PoolUse{Claims: 8, Drawn: 8}, want: 11},
			{at: time.Second, use: relay.PoolUse{Claims: 900, Drawn: 2}, want: 11}, // many, but few at a time
		},
		"a slow client":    {{use: relay.PoolUse{Claims: 8, Drawn: 8}, refill: 2*sweepEvery + 1, want: 24 + 6 + 1}},
		"a client asleep":  {{use: visit, refill: time.Hour, want: 100}},
		"the peak is kept": {{use: relay.PoolUse{Claims: 8, Drawn: 8}, want: 11}, {at: peakLife - 1, want: 11}},
		"for one window more": {
			{use: relay.PoolUse{Claims: 8, Drawn: 8}, want: 11},
			{at: peakLife, use: relay.PoolUse{Claims: 3, Drawn: 3}, want: 11},
			{at: 2 * peakLife, want: 4},
			{at: 3 * peakLife, want: 1},
		},
		"a pause forgets both windows": {{use: relay.PoolUse{Claims: 8, Drawn: 8}, want: 11}, {at: 2 * peakLife, want: 1}},
		"one is kept for long":         {{use: visit, want: 2}, {at: restAfter - 1, want: 1}, {at: restAfter, want: 0}},
		"a visitor after a rest":       {{use: visit, want: 2}, {at: 2 * restAfter, want: 0}, {at: 2*restAfter + 1, use: visit, want: 2}},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			a := appetite{window: start}
			for i, s := range steps {
				now := start.Add(s.at)
				a.note(s.use, s.refill, now)
				if got := a.want(100, now); got != s.want {
					t.Fatalf("step %d: wants %d, want %d", i, got, s.want)
				}
			}
		})
	}
}

// A pool that is too large shrinks to what is wanted, little by little, and no
// further.
func TestExcessProperty(t *testing.T) {
	for seed := range uint64(100) {
		draw := rand.New(rand.NewPCG(seed, 9))
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var a appetite
		idle, want := draw.IntN(2000), draw.IntN(50)
		least, trims := min(idle, want), 0
		for range 300 {
			leave, ok := a.excess(want, idle, now)
			if ok {
				if leave < want || idle-leave > max(trimAll, (idle-want+1)/2) {
					t.Fatalf("seed %d: leaves %d of %d, wants %d", seed, leave, idle, want)
				}
				idle = leave
				trims++
			}
			now = now.Add(sweepEvery)
		}
		if most := int(300 * sweepEvery / trimEvery); idle < least || trims > most+1 || idle > want+2000>>most {
			t.Errorf("seed %d: %d idle conns after %d trims, want %d", seed, idle, trims, want)
		}
	}
}

func TestSpare(t *testing.T) {
	for _, c := range []struct{ want, idle, spare int }{
		{0, 0, 0}, {5, 5, 0}, {5, 9, 0}, {5, 2, 3}, {40, 0, fewSpare}, {200, 0, 100}, {200, 150, 50},
	} {
		if got := spare(c.want, c.idle); got != c.spare {
			t.Errorf("%d of %d: %d spare, want %d", c.idle, c.want, got, c.spare)
		}
	}
}

// use lets the hub look at its pools, and find that one was used so.
func (w *world) use(u relay.PoolUse) {
	w.engine.mu.Lock()
	w.engine.uses = append(w.engine.uses, u)
	w.engine.mu.Unlock()
	time.Sleep(sweepEvery)
	synctest.Wait()
}

// After its first visitor a client is asked for spare ProxyConns, and for no
// more once they are there.
func TestSpareProxyConns(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial().login()
		pool := w.control(p).pool
		need := func(want uint32) {
			w.t.Helper()
			if n := hear(p, (*wire.ServerMessage).GetNeedProxyConn).GetN(); n != want {
				w.t.Errorf("asked for %d, want %d", n, want)
			}
			for range want {
				w.feed(relay.ConnOpened{Pool: pool})
			}
		}
		w.use(relay.PoolUse{Pool: pool})
		p.silent()
		w.feed(relay.Needed{Pool: pool, Waiting: 1})
		need(1)
		w.use(relay.PoolUse{Pool: pool, Claims: 1, Missed: 1})
		need(2)
		w.use(relay.PoolUse{Pool: pool, Idle: 2})
		p.silent()
		w.use(relay.PoolUse{Pool: pool, Idle: 1, Claims: 1, Drawn: 1})
		need(1)
		w.use(relay.PoolUse{Pool: 9999, Claims: 1, Missed: 1}) // closed meanwhile
		p.silent()
	})
}

// A client that is away is not asked; one that keeps few is asked for few.
func TestSpareBounds(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial()
		hello := p.hello()
		hello.PoolMax = proto.Uint32(3)
		p.enter(hello)
		pool := w.control(p).pool
		w.use(relay.PoolUse{Pool: pool, Claims: 50, Drawn: 50})
		if n := hear(p, (*wire.ServerMessage).GetNeedProxyConn).GetN(); n != 3 {
			w.t.Errorf("asked for %d of 3", n)
		}
		p.leave()
		w.use(relay.PoolUse{Pool: pool, Claims: 50, Drawn: 50})
		q := w.dial()
		hello = q.proof(p, 2)
		hello.PoolMax = proto.Uint32(2)
		q.enter(hello)
		q.silent()
		w.use(relay.PoolUse{Pool: pool})
		if n := hear(q, (*wire.ServerMessage).GetNeedProxyConn).GetN(); n != 2 {
			w.t.Errorf("asked for %d of 2 after the resume", n)
		}
	})
}

// An instance that takes over is asked for what its predecessor's visitors need.
func TestAppetiteIsInherited(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial().login()
		w.use(relay.PoolUse{Pool: w.control(p).pool, Claims: 4, Drawn: 4})
		q := w.dial()
		q.instance[0]++
		q.login()
		w.use(relay.PoolUse{Pool: w.control(q).pool})
		if n := hear(q, (*wire.ServerMessage).GetNeedProxyConn).GetN(); n != 6 {
			w.t.Errorf("asked for %d", n)
		}
	})
}

// A pool that visitors have left is trimmed.
func TestPoolIsTrimmed(t *testing.T) {
	policy := testPolicy()
	policy.Heartbeat = 5 * time.Minute // the client of the test answers none
	inWorld(t, policy, func(w *world) {
		p := w.dial().login()
		pool := w.control(p).pool
		trims := func() []relay.Trim { return commands[relay.Trim](w) }
		w.use(relay.PoolUse{Pool: pool, Idle: 7, Claims: 40, Drawn: 5})
		if got := trims(); len(got) > 0 {
			w.t.Fatalf("trimmed in use: %v", got)
		}
		for range 9 {
			w.use(relay.PoolUse{Pool: pool, Idle: 7})
			time.Sleep(trimEvery)
		}
		got := trims()
		if len(got) == 0 || got[len(got)-1] != (relay.Trim{Pool: pool, Idle: 1 + (7-1)/2}) {
			w.t.Errorf("trims: %v", got)
		}
	})
}
