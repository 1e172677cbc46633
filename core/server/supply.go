package server

import (
	"time"

	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

const (
	// peakLife is how long the deepest use of a pool is remembered at least, and
	// twice that at most.
	peakLife = 30 * time.Second
	// trimEvery is how often a pool that is too large gives up half of what it
	// has too much.
	trimEvery = 10 * time.Second
	// trimAll is an excess that is given up at once.
	trimAll = 4
	// restAfter is how long after its last visitor a pool keeps one ProxyConn
	// ready for the next.
	restAfter = time.Hour
	// fewSpare is how many ProxyConns that nobody waits for are asked for at a
	// time at least; a large pool grows by half its size.
	fewSpare = 32
)

// supply decides how many ProxyConns a client is asked for, and how many are
// kept idle.
type supply struct {
	demand
	appetite
	keeps int // most idle ones that the client keeps
}

// appetite is how many idle ProxyConns visitors use. There are none for a client
// that nobody has visited; then enough for what visitors took at most in one
// period, or in the time that new conns need to arrive, and a quarter more.
type appetite struct {
	visited      time.Time // last
	window       time.Time // since when peak counts
	peak, before int       // deepest use since then, and in the window before
	trimmed      time.Time
}

// note takes the use of one period of sweepEvery.
func (a *appetite) note(u relay.PoolUse, refill time.Duration, now time.Time) {
	if u.Claims > 0 {
		a.visited = now
	}
	switch age := now.Sub(a.window); {
	case age >= 2*peakLife:
		a.before, a.peak, a.window = 0, 0, now
	case age >= peakLife:
		a.before, a.peak, a.window = a.peak, 0, now
	}
	periods := 1 + int(min(refill, time.Minute)/sweepEvery)
	a.peak = max(a.peak, (u.Drawn+u.Missed)*periods)
}

// want is how many idle ProxyConns there should be.
func (a *appetite) want(most int, now time.Time) int {
	if a.visited.IsZero() || now.Sub(a.visited) >= restAfter {
		return 0
	}
	peak := max(a.peak, a.before)
	return min(peak+peak/4+1, most)
}

// spare is how many of want may be asked for now, nobody waiting for them: the
// client should not have to dial them all at once.
func spare(want, idle int) int { return max(0, min(want-idle, max(fewSpare, want/2))) }

// excess gives how many idle ProxyConns to leave when there are too many; not ok
// when there are not, or some were closed a moment ago.
func (a *appetite) excess(want, idle int, now time.Time) (leave int, ok bool) {
	if idle <= want || now.Sub(a.trimmed) < trimEvery {
		return 0, false
	}
	a.trimmed = now
	if idle-want <= trimAll {
		return want, true
	}
	return want + (idle-want)/2, true
}

// keeps is how many idle ProxyConns a client keeps.
func keeps(hello *wire.Hello) int {
	if hello.PoolMax == nil {
		return wire.MaxPool
	}
	return int(hello.GetPoolMax())
}

// stock fills and trims the pools according to their use.
func (h *hub) stock(now time.Time) {
	h.sweep.uses = h.engine.PoolUses(h.sweep.uses[:0])
	room, bounded := h.spareRoom()
	for _, u := range h.sweep.uses {
		c := h.maps.pools[u.Pool]
		if c == nil {
			continue
		}
		s := &c.supply
		s.note(u, s.refill, now)
		want := s.want(min(s.keeps, h.policy.PoolMax), now)
		if bounded { // idle conns must not take the descriptors of visitors
			want, room = confine(want, room, u)
		}
		if n := spare(want, u.Idle); n > 0 {
			c.ask(n, now)
		}
		if leave, ok := s.excess(want, u.Idle, now); ok {
			h.engine.Submit(relay.Trim{Pool: c.pool, Idle: leave})
		}
	}
}

// confine fits what a pool wants into the room that is left, and gives what is left
// then. A pool grows into free room only. When there are too many ProxyConns, those
// that nobody uses give up as many as are too many, and no more: what is given up
// needlessly would be asked for again.
func confine(want, room int, u relay.PoolUse) (wanted, left int) {
	want = min(want, u.Idle+max(0, room))
	if room < 0 && u.Claims == 0 {
		want = min(want, max(0, u.Idle+room))
		return want, min(0, room+u.Idle-want)
	}
	return want, room - max(0, want-u.Idle)
}

// ask asks the client for the ProxyConns that visitors wait for, and for so many
// spare ones. A client that is away is asked when it is back, if visitors still
// wait then.
func (c *Control) ask(spare int, now time.Time) {
	if c.link == nil {
		return
	}
	if n := c.supply.ask(spare, now); n > 0 {
		c.send((&wire.NeedProxyConn{N: uint32(n)}).ServerMessage())
	}
}
