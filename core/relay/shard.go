package relay

import (
	"slices"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// maxWaiting bounds the PublicConns of one pool that wait in one loop; more
// are refused.
const maxWaiting = 4096

// seekEvery is how often a shard with waiting PublicConns asks again.
const seekEvery = time.Second

// missedLimit is how many heartbeats in a row may go unanswered; the client
// allows one more, since it cannot know when the server begins to count.
const missedLimit = 2

// shard is one loop's part of a pool: the idle conns (the last one used is
// the first claimed), and who waits for one.
type shard struct {
	pool    *pool
	idle    []*proxyConn
	members map[*proxyConn]struct{}
	waiting fifo[rawConn]
	targets map[uint32]target // of the client, by the id in START
	asked   int               // conns asked of other loops
	beats   int64             // when the next heartbeat is due
	usage   usage
	told    bool // on the list of short shards of this turn
	closed  bool
	timer   timer
}

// place is a PublicConn's place in the queue of a shard.
type place struct {
	shard  *shard
	ticket uint64
	wire   uint32
}

// target is a Target of the client with its tunnel.
type target struct {
	Target
	tunnel *tunnel
}

// openShard and closeShard reach every loop.
type openShard struct{ pool *pool }

type closeShard ClosePool

func (m openShard) apply(l *loop) {
	if sh := l.shards[m.pool.id]; sh == nil || sh.pool != m.pool { // else Adopt was quicker
		l.shards[m.pool.id] = newShard(m.pool)
	}
}

func newShard(p *pool) *shard {
	return &shard{pool: p, members: make(map[*proxyConn]struct{}), targets: make(map[uint32]target)}
}

func (m closeShard) apply(l *loop) {
	sh := l.shards[m.Pool]
	if sh == nil {
		return
	}
	sh.closed = true
	l.timers.stop(&sh.timer)
	for c := sh.waiting.pop(); c != nil; c = sh.waiting.pop() {
		c.wait = nil
		l.refuse(c, Cut)
	}
	for p := range sh.members {
		switch {
		case p.state == proxyIdle:
			l.sayClose(p)
		case m.Cut:
			if p.stream != nil {
				l.endStream(p.stream, Cut)
			}
			l.abortProxy(p, Cut)
		}
	}
	sh.publish(l)
	sh.forget(l)
}

// forget takes a closed shard out of the loop once its last conn has left: a
// second ClosePool may still cut the streams of that one. Its place may have
// been taken by a pool that was opened again meanwhile.
func (sh *shard) forget(l *loop) {
	if sh.closed && len(sh.members) == 0 && l.shards[sh.pool.id] == sh {
		delete(l.shards, sh.pool.id)
	}
}

// shard gives the loop's part of a pool, nil when that is closed or unknown.
func (l *loop) shard(id PoolID) *shard {
	if sh := l.shards[id]; sh != nil && !sh.closed {
		return sh
	}
	return nil
}

// setTarget and dropTarget reach every loop.
type setTarget struct {
	command SetTarget
	tunnel  *tunnel
}

type dropTarget DropTarget

func (m setTarget) apply(l *loop) {
	if sh := l.shard(m.command.Pool); sh != nil {
		sh.targets[m.command.Wire] = target{m.command.Target, m.tunnel}
	}
}

func (m dropTarget) apply(l *loop) {
	if sh := l.shard(m.Pool); sh != nil {
		delete(sh.targets, m.Wire)
	}
}

// publish shows the other loops, and PoolUses, how this shard stands.
func (sh *shard) publish(l *loop) {
	cell := &sh.pool.cells[l.id]
	cell.idle.Store(int32(len(sh.idle)))
	cell.waiting.Store(int32(sh.waiting.len()))
	sh.usage.note(sh.pool.look.Load(), len(sh.idle))
	cell.drawn.Store(sh.usage.packed())
}

// claim takes the idle conn that was used last, but none that has missed a
// heartbeat or does not take what it is sent: it may be dead, and the next
// heartbeat will tell. No lock, no message.
func (sh *shard) claim(l *loop) *proxyConn {
	for _, p := range slices.Backward(sh.idle) {
		if p.missed <= 1 && !p.pending() { // one PING may be under way
			sh.unidle(l, p)
			return p
		}
	}
	return nil
}

// unidle takes one conn out of the idle ones, wherever it stands.
func (sh *shard) unidle(l *loop, p *proxyConn) {
	if p.idleAt < 0 {
		return
	}
	last := len(sh.idle) - 1
	moved := sh.idle[last]
	sh.idle[p.idleAt], moved.idleAt = moved, p.idleAt
	sh.idle[last] = nil
	sh.idle = sh.idle[:last]
	p.idleAt = -1
	sh.publish(l)
}

// leave takes a PublicConn out of the queue.
func (sh *shard) leave(l *loop, c *rawConn) {
	sh.waiting.remove(c.wait.ticket)
	c.wait = nil
	sh.publish(l)
}

// release makes a conn available: to the PublicConn that waits longest, or as
// an idle one.
func (l *loop) release(p *proxyConn) {
	sh := p.shard
	if sh.closed || l.work.stopping || p.retire && sh.pool.side == ServerSide {
		l.sayClose(p)
		return
	}
	p.state = proxyIdle
	p.missed = 0
	if p.canRead {
		l.queueConn(p) // something came that no event will tell again
	}
	if c := sh.waiting.pop(); c != nil {
		wire := c.wait.wire
		c.wait = nil
		sh.publish(l)
		l.start(p, c, wire)
		return
	}
	if full := sh.pool.full(); full && sh.pool.side == ServerSide {
		l.sayClose(p)
		return
	} else if full && p.carried && !l.sayRetire(p) {
		return
	}
	p.idleAt = int32(len(sh.idle))
	sh.idle = append(sh.idle, p)
	sh.publish(l)
	sh.arm(l)
	if to := sh.pool.hungriest(l.id); to >= 0 {
		// As a message: frames of this conn may be being fed right now.
		l.inbox.post(wanted{sh.pool.id, to})
	}
}

// start begins a stream on a claimed conn: START, and what the visitor has
// sent already, leave in one send.
func (l *loop) start(p *proxyConn, c *rawConn, wire uint32) {
	l.timers.stop(&c.timer)
	local, errno := localAddress(c.fd)
	if errno != 0 || !c.source.valid() {
		l.refuse(c, VisitorLeft)
		l.release(p)
		return
	}
	s := &stream{front: c, proxy: p, tunnel: c.tunnel}
	c.state = rawJoined
	p.begin(s, p.seq+1)
	l.beginStream(s)
	n := frame.HeaderSize + frame.StartSize
	frame.PutStart(l.mem.tx, p.seq, frame.Stream{Tunnel: wire, Source: c.source.addrPort(), Destination: local})
	var got int
	var eof, failed bool
	// Over its limit nothing is read, nor the stream paused: the visitor may
	// have nothing to send.
	if most := min(s.tunnel.rates.of(c.public).ready(l.now), loopBuffer-n-frame.HeaderSize); most > 0 {
		got, eof, failed = c.read(l.mem.tx[n+frame.HeaderSize:][:most])
	}
	if got > 0 {
		frame.Header{Type: frame.Data, Seq: p.seq, Length: uint32(got)}.Put(l.mem.tx[n:])
		s.count(l, c.public, got)
		n += frame.HeaderSize + got
	}
	if !l.writeProxy(p, l.mem.tx[:n]) {
		return
	}
	switch {
	case failed:
		l.endStream(s, PeerReset)
	case eof:
		c.eof = true
		l.sendEnd(s)
	default:
		l.queue(s)
	}
}

// arm sets the shard's timer to what is due first.
func (sh *shard) arm(l *loop) {
	if sh.closed {
		return
	}
	var when int64
	if sh.pool.heartbeat > 0 && len(sh.idle) > 0 {
		if sh.timer.pos == 0 && sh.beats <= l.now {
			sh.beats = l.after(sh.pool.heartbeat)
		}
		when = sh.beats
	}
	if sh.waiting.len() > 0 {
		if again := l.after(seekEvery); when == 0 || again < when {
			when = again
		}
	}
	if when > 0 && sh.timer.pos == 0 || when > 0 && when < sh.timer.when {
		l.timers.set(&sh.timer, sh, when)
	}
}

func (sh *shard) expired(l *loop) {
	if sh.beats > 0 && sh.beats <= l.now {
		sh.beats = l.after(sh.pool.heartbeat)
		sh.beat(l)
	}
	if sh.waiting.len() > 0 {
		sh.seek(l)
	}
	sh.arm(l)
}

// beat counts a heartbeat: the server pings its idle conns, the client looks
// for pings that did not come.
func (sh *shard) beat(l *loop) {
	limit := uint8(missedLimit)
	if sh.pool.side == ClientSide {
		limit++
	}
	var ping [frame.HeaderSize]byte
	for _, p := range slices.Backward(sh.idle) { // closing one moves the last into its place
		if p.missed++; p.missed > limit {
			l.closeProxy(p, Missed)
			continue
		}
		if sh.pool.side == ServerSide {
			frame.Header{Type: frame.Ping, Seq: p.seq}.Put(ping[:])
			l.writeProxy(p, ping[:])
		}
	}
}
