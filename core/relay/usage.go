package relay

import "slices"

// PoolUse is what became of a server's pool since PoolUses told of it last.
type PoolUse struct {
	Pool   PoolID
	Idle   int // ProxyConns that are idle now
	Claims int // PublicConns that asked for one
	Missed int // those of them that found none idle
	// Drawn is how far visitors drew the idle ones down, from the most to the
	// least that there were. With several loops it is the sum of theirs, which may
	// have had their turn at different moments: then it is too large.
	Drawn int
}

// PoolUses appends the uses of the server's pools that have idle ProxyConns or
// were ever asked for one, in no order, and begins a new period. It does not wait for the loops. Only one caller gets whole periods.
func (e *Engine) PoolUses(uses []PoolUse) []PoolUse {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.pools {
		if p.side == ServerSide {
			if u := p.use(); u.Idle > 0 || p.claims > 0 {
				uses = append(uses, u)
			}
		}
	}
	return uses
}

// use ends a period; Engine.mu is held.
func (p *pool) use() PoolUse {
	u := PoolUse{Pool: p.id}
	var claims, missed uint64
	look := p.look.Load()
	for i := range p.cells {
		c := &p.cells[i]
		u.Idle += int(c.idle.Load())
		claims += c.claims.Load()
		missed += c.missed.Load()
		if d := c.drawn.Load(); uint32(d>>32) == look { // else nothing has changed since
			u.Drawn += int(uint32(d))
		}
	}
	p.look.Add(1) // what a loop publishes from now on is of the next period
	u.Claims, u.Missed = int(claims-p.claims), int(missed-p.missed)
	p.claims, p.missed = claims, missed
	return u
}

// usage is how a shard's idle conns were used in a period.
type usage struct {
	look  uint32 // names the period
	idle  int    // now
	top   int    // most of the period
	drawn int    // most that were missing from the top
}

// note takes the number of idle conns after a change.
func (u *usage) note(look uint32, idle int) {
	if look != u.look {
		u.look, u.top, u.drawn = look, u.idle, 0
	}
	u.idle = idle
	u.top = max(u.top, idle)
	u.drawn = max(u.drawn, u.top-idle)
}

// packed is what PoolUses reads: drawn, and of which period.
func (u *usage) packed() uint64 { return uint64(u.look)<<32 | uint64(uint32(u.drawn)) }

func (c Trim) submit(e *Engine) {
	e.broadcast(func() message { return trim(c) })
}

type trim Trim

func (m trim) apply(l *loop) {
	sh := l.shard(m.Pool)
	if sh == nil || sh.pool.side != ServerSide {
		return
	}
	share := m.Idle / len(l.engine.loops) // the other loops trim theirs meanwhile
	if len(sh.idle) <= share {
		return
	}
	order := slices.Clone(sh.idle) // the ones claimed last stand last
	closed := 0
	for _, p := range order[:len(order)-share] {
		if sh.pool.idle() <= m.Idle {
			break
		}
		l.sayClose(p)
		closed++
	}
	// Closing one moved another into its place.
	for i, p := range order[closed:] {
		sh.idle[i], p.idleAt = p, int32(i)
	}
}
