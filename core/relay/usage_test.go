package relay

import (
	"math/rand/v2"
	"net"
	"slices"
	"testing"
)

func TestUsage(t *testing.T) {
	type change struct {
		look uint32
		idle int
	}
	for name, c := range map[string]struct {
		changes []change
		drawn   int
	}{
		"nothing":                    {nil, 0},
		"filled":                     {[]change{{1, 1}, {1, 2}, {1, 5}}, 0},
		"drawn":                      {[]change{{1, 5}, {1, 4}, {1, 3}}, 2},
		"drawn and filled again":     {[]change{{1, 5}, {1, 1}, {1, 5}, {1, 3}}, 4},
		"from the highest":           {[]change{{1, 3}, {1, 2}, {1, 6}, {1, 4}}, 2},
		"a new period begins anew":   {[]change{{1, 5}, {1, 1}, {2, 2}}, 0},
		"with what there was":        {[]change{{1, 5}, {2, 3}}, 2},
		"after periods of no change": {[]change{{1, 5}, {1, 0}, {7, 1}, {7, 0}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var u usage
			for _, c := range c.changes {
				u.note(c.look, c.idle)
			}
			if u.drawn != c.drawn {
				t.Errorf("drawn %d, want %d", u.drawn, c.drawn)
			}
		})
	}
}

// use is what PoolUses tells of the pool of the tests.
func (e *Engine) use(tb testing.TB) PoolUse {
	tb.Helper()
	uses := e.PoolUses(nil)
	i := slices.IndexFunc(uses, func(u PoolUse) bool { return u.Pool == linkPool })
	if i < 0 || len(uses) != 1 {
		tb.Fatalf("uses: %+v", uses)
	}
	return uses[i]
}

func TestPoolUses(t *testing.T) {
	s := localServer(t, echo)
	k := startLink(t, linkOptions{loops: 1, conns: 4, target: s.target})
	if uses := k.client.PoolUses(nil); len(uses) != 0 {
		t.Errorf("the client's pool: %+v", uses)
	}
	want := func(when string, want PoolUse) {
		t.Helper()
		want.Pool = linkPool
		if got := k.server.use(t); got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	idle := func(n int) {
		t.Helper()
		eventually(t, "the conns are idle again", func() bool { return k.server.idleIn(linkPool) == n })
	}
	idle(4)
	want("before the first visitor", PoolUse{Idle: 4})
	var visitors []*net.TCPConn
	for range 3 {
		c := dialTCP(t, k.public)
		say(t, c, "hello")
		hear(t, c, "hello")
		visitors = append(visitors, c)
	}
	want("three streams", PoolUse{Idle: 1, Claims: 3, Drawn: 3})
	want("nothing new", PoolUse{Idle: 1})
	for range 2 {
		visitors = append(visitors, dialTCP(t, k.public))
	}
	eventually(t, "one waits", func() bool { return k.server.waitingIn(linkPool) == 1 })
	want("one found none", PoolUse{Claims: 2, Missed: 1, Drawn: 1})
	for _, c := range visitors {
		closeWrite(t, c)
		wantRest(t, c, "")
	}
	idle(4)
	want("the end of all", PoolUse{Idle: 4})
}

// idleIn and waitingIn count over all loops.
func (e *Engine) idleIn(id PoolID) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pools[id].idle()
}

func (e *Engine) waitingIn(id PoolID) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.pools[id].cells {
		n += int(e.pools[id].cells[i].waiting.Load())
	}
	return n
}

// Trim leaves as many idle conns as it was told, however the loops share them.
func TestTrim(t *testing.T) {
	s := localServer(t, echo)
	for seed := range uint64(20) {
		draw := rand.New(rand.NewPCG(seed, 8))
		k := startLink(t, linkOptions{loops: 1 + draw.IntN(3), conns: draw.IntN(20), target: s.target})
		had := k.server.idleIn(linkPool)
		leave := draw.IntN(22)
		k.server.Submit(Trim{Pool: linkPool, Idle: leave})
		k.server.passed()
		n := k.server.idleIn(linkPool)
		if most := min(had, leave); n > most || n < most-k.server.Loops()+1 {
			t.Errorf("seed %d: %d loops, %d of %d conns left, want %d", seed, k.server.Loops(), n, had, most)
		}
		k.server.stop()
		k.client.stop()
	}
}

// The conns that were claimed last are the ones that stay.
func TestTrimClosesTheOldest(t *testing.T) {
	l, sh := idleLoop(t, 6)
	kept := slices.Clone(sh.idle[4:])
	trim{Pool: linkPool, Idle: 2}.apply(l)
	if len(sh.idle) != 2 || !slices.Contains(sh.idle, kept[0]) || !slices.Contains(sh.idle, kept[1]) {
		t.Errorf("%d left, not the two newest", len(sh.idle))
	}
}

// Those that stay keep their order, so the next trim closes the oldest again.
func TestTrimKeepsTheOrder(t *testing.T) {
	l, sh := idleLoop(t, 7)
	order := slices.Clone(sh.idle)
	for _, leave := range []int{5, 4, 1} {
		trim{Pool: linkPool, Idle: leave}.apply(l)
		if !slices.Equal(sh.idle, order[len(order)-leave:]) {
			t.Fatalf("not the %d newest in their order", leave)
		}
		for i, p := range sh.idle {
			if int(p.idleAt) != i {
				t.Fatalf("conn %d is noted at %d", i, p.idleAt)
			}
		}
	}
}

// A trim of a pool that is unknown, or of a client, does nothing.
func TestTrimOfAnother(t *testing.T) {
	l, sh := idleLoop(t, 2)
	trim{Pool: linkPool + 1}.apply(l)
	sh.pool.side = ClientSide
	trim{Pool: linkPool}.apply(l)
	if len(sh.idle) != 2 {
		t.Errorf("%d idle conns left", len(sh.idle))
	}
}
