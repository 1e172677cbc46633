package relay

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// adopter takes over the part of one loop, on its thread.
type adopter struct {
	*adoption
	loop   *loop
	shards []*shard // of the pools; nil where there is none
}

func (a *adopter) shard(i int) *shard {
	if i < 0 || i >= len(a.shards) {
		return nil
	}
	return a.shards[i]
}

// waiting takes over a PublicConn that waits for a ProxyConn.
func (a *adopter) waiting(r *WaitingState) {
	l, t := a.loop, a.tunnel(r.Tunnel)
	if t == nil {
		r.Socket.discard()
		l.tell(Refused{Source: r.Source, Reason: UnknownTunnel})
		return
	}
	c := &rawConn{socket: socket{fd: int(r.Socket), canWrite: true}, state: rawWaiting, public: true, tunnel: t, source: newOrigin(r.Source)}
	l.visitors.Add(1)
	if !c.register(l) {
		l.refuse(c, NoDescriptors)
		return
	}
	sh := a.shard(r.Pool)
	if sh == nil || sh.closed || sh.pool.side != ServerSide {
		l.refuse(c, Cut)
		return
	}
	c.wait = &place{shard: sh, ticket: sh.waiting.push(c), wire: r.Wire}
	l.timers.set(&c.timer, c, l.after(max(r.Left, 0)))
	sh.publish(l)
}

// conn takes over a ProxyConn without a stream.
func (a *adopter) conn(r *ConnState) {
	l := a.loop
	p, why := a.proxy(r)
	if p == nil {
		a.loseConn(r, why)
		return
	}
	if !r.Idle {
		if r.Left > 0 {
			l.timers.set(&p.timer, p, l.after(r.Left))
		}
		if r.Opening == nil {
			l.settle(p)
		} // else READY comes, or its deadline
		return
	}
	l.release(p)
	if p.state == proxyIdle {
		p.missed = r.Missed
	}
}

// stream takes over a stream with all its sockets, or ends it.
func (a *adopter) stream(r *StreamState) {
	s, why := a.join(r)
	if s == nil {
		a.loseStream(r, why)
		return
	}
	l := a.loop
	if s.front.public {
		l.visitors.Add(1)
	}
	for _, c := range []*rawConn{s.front, s.back} {
		if c == nil {
			continue
		}
		c.stream = s
		l.keepLoad(&c.socket)
		if c.finSent {
			orderlyClose(c.fd)
		}
	}
	if s.proxy != nil {
		s.proxy.stream = s
	}
	s.began, s.active = l.ago(r.Age), l.ago(r.Quiet)
	l.armStream(s)
	l.queue(s)
	if r.Front.Dial != nil {
		l.dialOn(s.front, r.Front.Dial)
	} else if r.Back != nil && r.Back.Dial != nil {
		l.dialOn(s.back, r.Back.Dial)
	}
}

// join makes a stream of its record and registers its sockets: all, or none and
// says why.
func (a *adopter) join(r *StreamState) (s *stream, why Reason) {
	s = &stream{tunnel: a.tunnel(r.Tunnel), up: r.Up, down: r.Down}
	if s.tunnel == nil {
		return nil, UnknownTunnel
	}
	public := true
	if r.Conn != nil {
		side := a.side(r.Conn.Pool)
		if side == 0 {
			return nil, Cut
		}
		public = side == ServerSide
	}
	if (r.Back == nil) == (r.Conn == nil) || public && r.Front.Dial != nil || r.Conn != nil && r.Conn.Opening != nil {
		return nil, Stopped
	}
	if s.front, why = a.raw(s, r, &r.Front, public); s.front == nil {
		return nil, why
	}
	if r.Back != nil {
		s.back, why = a.raw(s, r, r.Back, false)
	} else {
		s.proxy, why = a.proxy(r.Conn)
	}
	if s.back == nil && s.proxy == nil {
		if s.front.fd >= 0 {
			a.loop.poll.forget(s.front.fd, s.front.slot)
		}
		return nil, why
	}
	return s, 0
}

// raw makes a bare socket of its record and registers it.
func (a *adopter) raw(s *stream, of *StreamState, r *RawState, public bool) (*rawConn, Reason) {
	c := &rawConn{state: rawJoined, public: public, eof: r.EndRead, finSent: r.FinSent, source: newOrigin(of.Source), tunnel: s.tunnel}
	if !a.loop.refill(&c.socket, &c.out, &r.SocketState) {
		return nil, Stopped
	}
	if d := r.Dial; d != nil {
		if c.pending() {
			return nil, Stopped
		}
		if d.Next < 0 || d.Next >= len(d.Target.Addresses) || !d.Target.valid() {
			return nil, DialError
		}
		c.state = rawConnecting
		c.canWrite = false // the event that says so tells that it is connected
		if c.fd < 0 {
			return c, 0
		}
	}
	if !c.register(a.loop) {
		return nil, NoDescriptors
	}
	return c, 0
}

// proxy makes a ProxyConn of its record and a member of its pool.
func (a *adopter) proxy(r *ConnState) (*proxyConn, Reason) {
	l, sh := a.loop, a.shard(r.Pool)
	if sh == nil {
		return nil, Cut
	}
	p := newProxyConn(-1, proxyStream)
	p.exchange = exchange{seq: r.Exchange.Seq, txEnd: r.Exchange.EndSent, rxEnd: r.Exchange.EndRead, rxReset: r.Exchange.GotReset}
	p.shard, p.carried, p.retire = sh, r.Carried, r.Retire
	if o := r.Opening; o != nil {
		if sh.pool.side != ClientSide || r.Idle || r.Left <= 0 {
			return nil, Stopped
		}
		p.state = proxyReady
		p.opening = &opening{ref: o.Ref, ready: o.Ready}
	}
	if !r.In.valid() || !l.refill(&p.socket, &p.out, &r.SocketState) {
		return nil, Stopped
	}
	p.in = inflow{blocked: r.In.Blocked, bulk: r.In.Bulk, need: r.In.Need, dropped: r.In.Dropped}
	if len(r.In.Held) > 0 {
		p.in.held = l.mem.hold(r.In.Held)
	}
	if !p.register(l) {
		return nil, NoDescriptors
	}
	l.keepLoad(&p.socket)
	orderlyClose(p.fd)
	if p.opening == nil {
		sh.members[p] = struct{}{}
	}
	return p, 0
}

// loseConn ends a ProxyConn that cannot be taken over.
func (a *adopter) loseConn(r *ConnState, why Reason) {
	r.each(Descriptor.discard)
	if o := r.Opening; o != nil {
		a.loop.tell(DialFailed{Pool: a.poolID(r.Pool), Ref: o.Ref, Err: fmt.Errorf("adopt proxy connection: %s", why)})
		return
	}
	a.loop.tell(ConnClosed{Pool: a.poolID(r.Pool), Reason: why})
}

// loseStream ends a stream that cannot be taken over.
func (a *adopter) loseStream(r *StreamState, why Reason) {
	ev := StreamEnded{Tunnel: a.tunnelID(r.Tunnel), Source: r.Source, Up: r.Up, Down: r.Down, Duration: r.Age, Reason: why}
	a.count(a.loop.engine, r, -1)
	if t := a.tunnel(r.Tunnel); t != nil {
		bump(&t.cells[a.loop.id].ended, 1)
	}
	if r.Conn != nil {
		ev.Pool = a.poolID(r.Conn.Pool)
		a.loop.tell(ConnClosed{Pool: ev.Pool, Reason: why})
	}
	r.each(Descriptor.discard)
	a.loop.tell(ev)
}

// refill gives a socket what it still has to take. False when its pipe does not
// hold what the record says: the loop would wait for the rest for ever.
func (l *loop) refill(s *socket, out **buffer, r *SocketState) bool {
	s.fd, s.canWrite = int(r.Socket), true
	if len(r.Held) > 0 {
		*out = l.mem.hold(r.Held)
	}
	if r.Pipe == nil {
		return true
	}
	s.load = &pipe{r: int(r.Pipe.Read), w: int(r.Pipe.Write), held: r.Pipe.Bytes}
	if r.Pipe.Bytes <= 0 {
		return false
	}
	size, err := unix.FcntlInt(uintptr(s.load.w), unix.F_GETPIPE_SZ, 0)
	s.load.size = size
	if err != nil {
		return false
	}
	held, err := unix.IoctlGetInt(s.load.r, unix.TIOCINQ)
	return err == nil && held == r.Pipe.Bytes
}

// keepLoad counts the pipe that came with a socket as the loop's.
func (l *loop) keepLoad(s *socket) {
	if s.load != nil {
		l.pipes.open++
	}
}

// dialOn goes on with dialling a LocalConn. The address that is being tried has
// the time that was left.
func (l *loop) dialOn(c *rawConn, r *DialState) {
	c.dial = &dialing{target: r.Target, next: r.Next, destination: r.Destination, deadline: l.after(max(r.Left, 1))}
	if c.fd < 0 {
		l.dialNext(c)
		return
	}
	l.timers.set(&c.timer, c, c.dial.deadline)
}

// ago is when something was so long ago.
func (l *loop) ago(d time.Duration) int64 { return l.now - int64(min(max(d, 0), longAgo)) }
