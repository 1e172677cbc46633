package relay

import (
	"maps"
	"slices"
	"time"
)

// Freeze ends the engine as the end of Run's context does, but closes nothing
// that another engine can go on with: all of it comes as a State in Frozen, the
// last event. Commands before it still count; those behind it are dropped, and
// what they own is closed. Before Run it takes effect as soon as Run is called;
// a second one does nothing, nor does one on an engine that has ended. When the
// context ends first, or the loops cannot be opened, there is no Frozen. Somebody
// must read Events: nobody else owns the descriptors.
//
// Commands submitted by another goroutine at the same time may reach some loops
// only, so Freeze belongs to the goroutine that submits the others.
//
// Not handed over are conns of the proxy port that were not parked, and those of
// the client whose preface was not sent (they are closed and the client dials
// again), and events that were told.
type Freeze struct{}

func (Freeze) submit(e *Engine) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.ended {
		e.ended = true
		close(e.freezing)
	}
}

// surrender takes all that can live on out of the loops, whose threads have
// ended.
func (e *Engine) surrender() *State {
	now := int64(time.Since(epoch))
	for _, l := range e.loops {
		l.now = now
		l.inbox.setWake(nil)
	}
	e.deliverAll()
	e.mu.Lock()
	defer e.mu.Unlock()
	f := &freezer{
		engine: e, state: new(State), pools: make(map[*pool]int), tunnels: make(map[*tunnel]int), sockets: make(map[*listenSocket]bool),
	}
	for _, id := range slices.Sorted(maps.Keys(e.tunnels)) {
		f.tunnel(e.tunnels[id])
	}
	for _, l := range e.loops {
		f.loop(l)
	}
	for _, lists := range f.idle {
		f.state.Conns = append(f.state.Conns, byRank(lists)...)
	}
	for _, queues := range f.waiting {
		f.state.Waiting = append(f.state.Waiting, byPatience(queues)...)
	}
	return f.state
}

// deliverAll applies what waits in the inboxes, until no loop has more to say
// to another: conns on their way arrive, and every loop has heard of the same
// commands. It comes to an end: a PublicConn is passed on once, and a loop
// answers a conn or a refusal by asking only after it has lost a conn.
func (e *Engine) deliverAll() {
	for more := true; more; {
		more = false
		for _, l := range e.loops {
			more = l.applyMessages() || more
		}
	}
}

// freezer collects a State.
type freezer struct {
	engine  *Engine
	state   *State
	pools   map[*pool]int
	tunnels map[*tunnel]int
	sockets map[*listenSocket]bool
	idle    [][][]ConnState    // of each pool, by loop
	waiting [][][]WaitingState // the same
}

// tunnel gives a tunnel's place in the State.
func (f *freezer) tunnel(t *tunnel) int {
	i, known := f.tunnels[t]
	if !known {
		i = len(f.state.Tunnels)
		f.tunnels[t] = i
		f.state.Tunnels = append(f.state.Tunnels, TunnelState{
			Totals: t.stats(), Former: f.engine.tunnels[t.id] != t, Limited: t.uses.limited,
			RateUp: t.rates.up.Load().perSecond(), RateDown: t.rates.down.Load().perSecond(),
		})
	}
	return i
}

// pool gives the place of a shard's pool in the State.
func (f *freezer) pool(sh *shard) int {
	i, known := f.pools[sh.pool]
	if known {
		return i
	}
	i = len(f.state.Pools)
	f.pools[sh.pool] = i
	p := PoolState{Pool: sh.pool.id, Side: sh.pool.side, MaxIdle: int(sh.pool.maxIdle.Load()), Heartbeat: sh.pool.heartbeat, Closed: sh.closed}
	for _, wire := range slices.Sorted(maps.Keys(sh.targets)) {
		t := sh.targets[wire]
		p.Targets = append(p.Targets, TargetState{Wire: wire, Tunnel: f.tunnel(t.tunnel), Target: t.Target})
	}
	f.state.Pools = append(f.state.Pools, p)
	f.idle = append(f.idle, nil)
	f.waiting = append(f.waiting, nil)
	return i
}

// loop takes what one loop holds out of it. What it leaves is for closeAll.
func (f *freezer) loop(l *loop) {
	for _, id := range slices.Sorted(maps.Keys(l.shards)) {
		f.shard(l, l.shards[id])
	}
	for h := range l.poll.handlers() {
		switch h := h.(type) {
		case *proxyConn:
			switch {
			case h.stream != nil:
				f.stream(l, h.stream)
			case h.state == proxyStream || h.state == proxyReady:
				f.state.Conns = append(f.state.Conns, f.conn(l, h))
			}
		case *rawConn:
			if s := h.stream; s != nil && s.proxy == nil {
				f.stream(l, s)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.doors)) {
		for _, a := range l.doors[id] {
			f.listener(a)
		}
	}
	clear(l.doors)
}

// shard takes the idle conns and the PublicConns that wait.
func (f *freezer) shard(l *loop, sh *shard) {
	i := f.pool(sh)
	if p := &f.state.Pools[i]; len(sh.idle) > 0 && sh.beats > 0 {
		if due := max(time.Duration(sh.beats-l.now), 1); p.Beat == 0 || due < p.Beat {
			p.Beat = due
		}
	}
	var idle []ConnState
	for _, p := range sh.idle {
		idle = append(idle, f.conn(l, p))
	}
	f.idle[i] = append(f.idle[i], idle)
	var queue []WaitingState
	for _, c := range sh.waiting.items {
		if c == nil {
			continue
		}
		queue = append(queue, WaitingState{
			Socket: f.give(l, &c.socket), Pool: i, Tunnel: f.tunnel(c.tunnel), Wire: c.wait.wire, Source: c.source.addrPort(),
			Left: time.Duration(c.timer.when - l.now),
		})
	}
	f.waiting[i] = append(f.waiting[i], queue)
}

// stream takes a stream with all its sockets.
func (f *freezer) stream(l *loop, s *stream) {
	r := StreamState{
		Tunnel: f.tunnel(s.tunnel), Source: s.front.source.addrPort(), Front: f.raw(l, s.front), Up: s.up, Down: s.down,
		Age: time.Duration(l.now - s.began), Quiet: time.Duration(l.now - s.active),
	}
	if s.back != nil {
		back := f.raw(l, s.back)
		r.Back = &back
	}
	if s.proxy != nil {
		conn := f.conn(l, s.proxy)
		r.Conn = &conn
	}
	f.state.Streams = append(f.state.Streams, r)
}

// raw takes a bare socket.
func (f *freezer) raw(l *loop, c *rawConn) RawState {
	if c.finSent {
		_ = resetOnClose(c.fd)
	}
	r := RawState{SocketState: f.socket(l, &c.socket, c.out), EndRead: c.eof, FinSent: c.finSent}
	if d := c.dial; d != nil {
		r.Dial = &DialState{Target: d.target, Next: d.next, Destination: d.destination, Left: time.Duration(d.deadline - l.now)}
	}
	return r
}

// conn takes a ProxyConn.
func (f *freezer) conn(l *loop, p *proxyConn) ConnState {
	_ = resetOnClose(p.fd)
	r := ConnState{
		SocketState: f.socket(l, &p.socket, p.out), Pool: f.pool(p.shard), Idle: p.state == proxyIdle,
		Exchange: ExchangeState{Seq: p.seq, EndSent: p.txEnd, EndRead: p.rxEnd, GotReset: p.rxReset},
		In:       InflowState{Held: copied(p.in.held), Blocked: p.in.blocked, Bulk: p.in.bulk, Need: p.in.need, Dropped: p.in.dropped},
		Carried:  p.carried, Retire: p.retire, Missed: p.missed,
	}
	if o := p.opening; o != nil {
		r.Opening = &OpeningState{Ref: o.ref, Ready: o.ready}
	}
	if p.timer.pos > 0 {
		r.Left = max(time.Duration(p.timer.when-l.now), 1)
	}
	return r
}

// socket takes a socket with what waits for it.
func (f *freezer) socket(l *loop, s *socket, out *buffer) SocketState {
	r := SocketState{Socket: f.give(l, s), Held: copied(out)}
	if b := s.load; b != nil {
		r.Pipe = &PipeState{Read: Descriptor(b.r), Write: Descriptor(b.w), Bytes: b.held}
		s.load = nil
	}
	return r
}

// give takes a descriptor out of the loop's table. Closing the epoll set is
// what ends its events.
func (f *freezer) give(l *loop, s *socket) Descriptor {
	if s.fd >= 0 { // else the slot was given back, and is another's perhaps
		l.poll.slot(s.slot).h = nil
	}
	return Descriptor(s.fd)
}

// listener takes a listening socket from the first loop that has it.
func (f *freezer) listener(a *acceptor) {
	if f.sockets[a.socket] {
		return
	}
	f.sockets[a.socket] = true
	f.state.Listeners = append(f.state.Listeners, ListenerState{
		Socket: Descriptor(a.socket.fd), Address: a.socket.address, Tunnel: f.tunnel(a.tunnel), Route: a.route,
	})
}

func copied(h *buffer) []byte {
	if h == nil {
		return nil
	}
	return slices.Clone(h.bytes())
}

// byRank joins the idle conns of several loops so that the ones used last
// stand last.
func byRank(lists [][]ConnState) (all []ConnState) {
	most := 0
	for _, list := range lists {
		most = max(most, len(list))
	}
	for rank := most; rank > 0; rank-- {
		for _, list := range lists {
			if rank <= len(list) {
				all = append(all, list[len(list)-rank])
			}
		}
	}
	return all
}

// byPatience joins the queues of several loops: each keeps its order, and
// between two the one with less time left goes first.
func byPatience(queues [][]WaitingState) (all []WaitingState) {
	for {
		var first *[]WaitingState
		for i := range queues {
			if q := &queues[i]; len(*q) > 0 && (first == nil || (*q)[0].Left < (*first)[0].Left) {
				first = q
			}
		}
		if first == nil {
			return all
		}
		all = append(all, (*first)[0])
		*first = (*first)[1:]
	}
}
