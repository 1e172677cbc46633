package relay

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// Adopt lets the engine go on with what another one held when it was frozen,
// with however many loops. It may be submitted before Run or while it runs. All
// descriptors of State are the engine's at once, also when it has ended and
// closes them; State is empty afterwards, so that it cannot be adopted twice.
// They must be non-blocking and close-on-exec.
//
// Pools and tunnels that the engine knows already by their ids are joined;
// others become known as if by OpenPool, Listen, Limit and SetTarget, without an
// answer: the caller has counted in State what there is. A Limit that the engine
// was given before stays. Totals go on at once; what was overdrawn of a limit is
// forgotten.
//
// What cannot be taken over, because the epoll set refuses it or State
// contradicts itself, is closed with RST and ends with its ordinary event:
// StreamEnded, Refused, ConnClosed or DialFailed, and for a listener Listening
// with Err.
// An Adopt that Run did not come to is closed without events.
// The reasons are UnknownTunnel and Cut for a tunnel or pool that State lacks,
// NoDescriptors for a descriptor that does not work, DialError for a target
// without an address, Stopped for the rest.
type Adopt struct{ State *State }

func (c Adopt) submit(e *Engine) {
	if c.State == nil {
		return
	}
	s := c.State.take()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		s.Close()
		return
	}
	a := adoption{tunnels: make([]*tunnel, len(s.Tunnels)), pools: make([]adoptedPool, len(s.Pools))}
	for i := range s.Tunnels {
		a.tunnels[i] = e.adoptTunnel(&s.Tunnels[i])
	}
	for i := range s.Pools {
		a.pools[i] = e.adoptPool(&s.Pools[i], &a)
	}
	// Counted here and not in the loops: whichever accepts first knows of all.
	for i := range s.Streams {
		a.count(e, &s.Streams[i], 1)
	}
	for i := range s.Waiting {
		a.countPublic(e, s.Waiting[i].Tunnel, 1)
	}
	for i, part := range s.deal(len(e.loops)) {
		mine := a
		mine.part = part
		e.loops[i].inbox.post(&mine)
	}
	for i := range s.Listeners {
		r := &s.Listeners[i]
		t := a.tunnel(r.Tunnel)
		socket, err := r.adopt(t, len(e.loops))
		if err != nil {
			e.outbox.add([]Event{Listening{Tunnel: a.tunnelID(r.Tunnel), Err: err}})
			continue
		}
		t.uses.listens = true
		e.broadcast(func() message { return watch{[]*listenSocket{socket}, t, r.Route} })
	}
	for i, t := range a.tunnels {
		if !s.Tunnels[i].Former {
			e.unname(t) // it may be known for its streams only
		}
	}
}

// discard closes what comes too late.
func (c Adopt) discard() {
	if c.State != nil {
		c.State.Close()
	}
}

// adoptTunnel makes a tunnel known, with its totals; Engine.mu is held. That of
// a Former one stays unlisted: its id may mean another by now.
func (e *Engine) adoptTunnel(r *TunnelState) *tunnel {
	t := &tunnel{id: r.Totals.Tunnel, cells: make([]tunnelCell, len(e.loops))}
	if !r.Former {
		t = e.tunnel(t.id)
	}
	if !t.uses.limited { // else by this engine's own caller, who knows better
		setRate(&t.rates.up, r.RateUp)
		setRate(&t.rates.down, r.RateDown)
		t.uses.limited = r.Limited
	}
	t.before.Opened += r.Totals.Opened
	t.before.Ended += r.Totals.Ended
	t.before.Refused += r.Totals.Refused
	t.before.Up += r.Totals.Up
	t.before.Down += r.Totals.Down
	t.before.Throttled += r.Totals.Throttled
	return t
}

// adoptPool makes a pool known; Engine.mu is held.
func (e *Engine) adoptPool(r *PoolState, a *adoption) adoptedPool {
	none := adoptedPool{id: r.Pool}
	if r.Side != ServerSide && r.Side != ClientSide {
		return none
	}
	var p *pool
	if !r.Closed {
		p = e.pools[r.Pool]
	}
	if p == nil {
		p = newPool(r.Pool, r.Side, max(r.Heartbeat, 0), len(e.loops))
		p.maxIdle.Store(int32(r.MaxIdle))
		if !r.Closed {
			e.pools[r.Pool] = p
		}
	}
	if p.side != r.Side {
		return none
	}
	targets := make(map[uint32]target, len(r.Targets))
	for _, t := range r.Targets {
		if shared := a.tunnel(t.Tunnel); shared != nil && t.Target.valid() {
			targets[t.Wire] = target{t.Target, shared}
			if !r.Closed {
				e.target(p, t.Wire, shared)
			}
		}
	}
	return adoptedPool{id: r.Pool, pool: p, closed: r.Closed, beat: r.Beat, targets: targets}
}

// deal divides what belongs to one loop only: evenly, each pool for itself, and
// in its order.
func (s *State) deal(loops int) []State {
	parts := make([]State, loops)
	next := func() func(pool int) *State {
		turns := make(map[int]int)
		return func(pool int) *State {
			turn := turns[pool]
			turns[pool]++
			return &parts[(uint(pool)+uint(turn))%uint(loops)]
		}
	}
	conns, waiting := next(), next()
	for _, r := range s.Conns {
		to := conns(r.Pool)
		to.Conns = append(to.Conns, r)
	}
	for i, r := range s.Streams {
		to := &parts[i%loops]
		to.Streams = append(to.Streams, r)
	}
	for _, r := range s.Waiting {
		to := waiting(r.Pool)
		to.Waiting = append(to.Waiting, r)
	}
	return parts
}

// adopt makes the record of a listener one that so many loops can watch, or
// closes it.
func (r *ListenerState) adopt(t *tunnel, loops int) (*listenSocket, error) {
	s, err := r.check(t)
	if err != nil {
		r.Socket.discard()
		return nil, fmt.Errorf("adopt listener of %s, to be opened again: %w", r.Address, err)
	}
	s.refs.Store(int32(loops))
	return s, nil
}

func (r *ListenerState) check(t *tunnel) (*listenSocket, error) {
	if t == nil {
		return nil, errors.New("it belongs to no tunnel")
	}
	if to, ok := r.Route.(ToTarget); ok && !to.Target.valid() {
		return nil, errors.New("its target has no address")
	}
	listening, err := unix.GetsockoptInt(int(r.Socket), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, err
	}
	if listening == 0 {
		return nil, errors.New("the socket does not listen")
	}
	address, errno := localAddress(int(r.Socket))
	if errno != 0 {
		return nil, errno
	}
	return &listenSocket{fd: int(r.Socket), address: address}, nil
}

// discard closes a descriptor of a record that cannot be taken over, a
// connection with RST.
func (d Descriptor) discard() {
	if d >= 0 {
		_ = resetOnClose(int(d))
		closefd(int(d))
	}
}

// valid tells whether every address can be dialled.
func (t Target) valid() bool {
	for _, a := range t.Addresses {
		if a.Unix == "" && !a.TCP.IsValid() {
			return false
		}
	}
	return true
}

// adoption is what one loop adopts: its part of the sockets, and the tunnels and
// pools of all.
type adoption struct {
	tunnels []*tunnel
	pools   []adoptedPool
	part    State
}

// adoptedPool is a pool that a loop is to know; pool is nil when the record was
// of no use.
type adoptedPool struct {
	id      PoolID
	pool    *pool
	closed  bool
	beat    time.Duration
	targets map[uint32]target
}

func (m *adoption) discard() { m.part.Close() }

// tunnel gives the tunnel of a record, or nil.
func (m *adoption) tunnel(i int) *tunnel {
	if i < 0 || i >= len(m.tunnels) {
		return nil
	}
	return m.tunnels[i]
}

// count adds n for a stream that counts against the limits on connections.
func (m *adoption) count(e *Engine, r *StreamState, n int64) {
	if r.Conn == nil || m.side(r.Conn.Pool) == ServerSide {
		m.countPublic(e, r.Tunnel, n)
	}
}

func (m *adoption) countPublic(e *Engine, of int, n int64) {
	if t := m.tunnel(of); t != nil {
		t.conns.Add(n)
		e.conns.Add(n)
	}
}

// side tells which end of its ProxyConns a pool is; 0 when there is no such pool.
func (m *adoption) side(pool int) Side {
	if pool < 0 || pool >= len(m.pools) || m.pools[pool].pool == nil {
		return 0
	}
	return m.pools[pool].pool.side
}

// tunnelID and poolID are what an event says about a record; 0 when State does
// not know either.
func (m *adoption) tunnelID(i int) TunnelID {
	if t := m.tunnel(i); t != nil {
		return t.id
	}
	return 0
}

func (m *adoption) poolID(i int) PoolID {
	if i < 0 || i >= len(m.pools) {
		return 0
	}
	return m.pools[i].id
}

// apply takes over the loop's part. Who waits comes before the conns that can
// serve them.
func (m *adoption) apply(l *loop) {
	a := &adopter{adoption: m, loop: l, shards: make([]*shard, len(m.pools))}
	for i := range m.pools {
		a.shards[i] = m.pools[i].shard(l)
	}
	for i := range m.part.Waiting {
		a.waiting(&m.part.Waiting[i])
	}
	for i := range m.part.Streams {
		a.stream(&m.part.Streams[i])
	}
	for i := range m.part.Conns {
		a.conn(&m.part.Conns[i])
	}
	for _, sh := range a.shards {
		if sh != nil {
			sh.seek(l)
			sh.forget(l)
		}
	}
}

// shard makes a pool known to a loop.
func (r *adoptedPool) shard(l *loop) *shard {
	if r.pool == nil {
		return nil
	}
	sh := l.shards[r.id]
	if sh == nil || sh.pool != r.pool {
		sh = newShard(r.pool)
		sh.closed = r.closed
		if l.shards[r.id] == nil || !r.closed {
			l.shards[r.id] = sh
		}
	}
	if r.closed || sh.closed {
		return sh
	}
	maps.Copy(sh.targets, r.targets)
	if r.beat > 0 && sh.beats == 0 {
		sh.beats = l.after(r.beat)
	}
	return sh
}

// valid tells whether a conn's input makes sense: what is kept of a frame that
// is not whole is shorter than the longest that must be.
func (r *InflowState) valid() bool {
	return r.Need <= frame.MaxData && (r.Blocked || len(r.Held) < frame.MaxControl)
}
