package relay

import (
	"net/netip"
)

// The kernel gives a new connection to any loop that waits, so that one of them
// can end up with most streams while another rests (seen: 64 of 64). A loop that
// has passSlack PublicConns more than another, and an eighth more, passes what
// it accepts on to that one.
const (
	passSlack = 2
	passShare = 8
)

// lighter gives the loop with the fewest PublicConns, nil when this one may keep
// a new one.
func (l *loop) lighter() *loop {
	best, least := l, l.visitors.Load()
	mine := least
	for _, other := range l.engine.loops {
		if n := other.visitors.Load(); n < least {
			best, least = other, n
		}
	}
	if mine-least < passSlack+least/passShare {
		return nil
	}
	return best
}

// publicRoute is a Route of PublicConns.
type publicRoute interface {
	Route
	admit(l *loop, c *rawConn)
}

// passed brings an accepted PublicConn, not counted yet, from another loop.
type passed struct {
	route publicRoute
	conn  *rawConn
}

func (m passed) apply(l *loop) {
	m.uncount(l)
	route := m.route // unless a Reroute was quicker
	for _, a := range l.doors[m.conn.tunnel.id] {
		if r, public := a.route.(publicRoute); public && a.tunnel == m.conn.tunnel {
			route = r
		}
	}
	route.admit(l, m.conn)
}

// uncount takes back what counted the conn on its way: enter counts it anew.
func (m passed) uncount(l *loop) {
	l.visitors.Add(-1)
	m.conn.tunnel.conns.Add(-1)
}

// lost closes a PublicConn that comes to a loop that has ended.
func (m passed) lost(l *loop) {
	m.uncount(l)
	bump(&m.conn.tunnel.cells[l.id].refused, 1)
	l.tell(Refused{Tunnel: m.conn.tunnel.id, Source: m.conn.source.addrPort(), Reason: Stopped})
	closefd(m.conn.fd)
}

// arrive admits a PublicConn in this loop or in one with less to do.
func (l *loop) arrive(r publicRoute, t *tunnel, fd int, peer netip.AddrPort) {
	c := &rawConn{socket: socket{fd: fd, canWrite: true}, state: rawWaiting, public: true, tunnel: t, source: newOrigin(peer)}
	to := l.lighter()
	if to == nil {
		r.admit(l, c)
		return
	}
	to.visitors.Add(1)
	t.conns.Add(1) // or a tunnel that listens no more would be forgotten
	to.inbox.post(passed{r, c})
}

// admit claims a ProxyConn for a PublicConn, or lets it wait for one.
func (r ToPool) admit(l *loop, c *rawConn) {
	if !l.enter(c) {
		return
	}
	if r.MaxConns > 0 && c.tunnel.conns.Load() > int64(r.MaxConns) {
		l.refuse(c, ConnLimit)
		return
	}
	sh := l.shard(r.Pool)
	if sh == nil {
		l.refuse(c, Cut)
		return
	}
	cell := &sh.pool.cells[l.id]
	bump(&cell.claims, 1)
	if p := sh.claim(l); p != nil {
		l.start(p, c, r.Wire)
		return
	}
	bump(&cell.missed, 1)
	if sh.waiting.len() >= maxWaiting {
		l.refuse(c, ConnLimit)
		return
	}
	c.wait = &place{shard: sh, ticket: sh.waiting.push(c), wire: r.Wire}
	l.timers.set(&c.timer, c, l.after(l.settings().Wait))
	sh.publish(l)
	sh.seek(l)
}

// admit dials the target of a plain forwarder at once.
func (r ToTarget) admit(l *loop, c *rawConn) {
	if !l.enter(c) {
		return
	}
	if !c.source.valid() {
		l.refuse(c, VisitorLeft)
		return
	}
	c.state = rawJoined
	f := &forwarding{stream: stream{front: c, tunnel: c.tunnel}}
	s := &f.stream
	f.back = rawConn{socket: socket{fd: -1}, state: rawConnecting, tunnel: c.tunnel, stream: s, source: c.source}
	s.back = &f.back
	l.beginStream(s)
	local := netip.AddrPort{}
	if r.Target.ProxyProtocol != NoProxyHeader {
		local, _ = localAddress(c.fd)
	}
	l.dialTarget(s.back, r.Target, local)
}

// enter counts and registers a PublicConn. False when it was refused.
func (l *loop) enter(c *rawConn) bool {
	c.tunnel.conns.Add(1)
	l.visitors.Add(1)
	total := l.engine.conns.Add(1)
	if !c.register(l) {
		l.refuse(c, NoDescriptors)
		return false
	}
	if most := l.settings().MaxConns; most > 0 && total > int64(most) {
		l.refuseAs(c, Refused{Reason: ConnLimit, Whole: true})
		return false
	}
	return true
}
