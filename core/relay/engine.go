package relay

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure an Engine. They may not be changed after New.
type Options struct {
	// Loops is the number of event loops, at least 1.
	Loops    int
	Settings Settings
}

// Engine runs the loops. Its methods may be called from any goroutine.
type Engine struct {
	loops    []*loop
	settings atomic.Pointer[Settings]
	conns    atomic.Int64 // PublicConns of all tunnels
	turn     atomic.Uint32
	outbox   *outbox
	freezing chan struct{} // closed by Freeze

	mu      sync.Mutex // guards what follows, and tunnel.before; never held over a call that may block
	pools   map[PoolID]*pool
	tunnels map[TunnelID]*tunnel
	leaving leaving
	ended   bool // takes no more commands
}

// New makes an engine; it opens and starts nothing.
func New(o Options) *Engine {
	e := &Engine{pools: make(map[PoolID]*pool), tunnels: make(map[TunnelID]*tunnel), outbox: newOutbox(), freezing: make(chan struct{})}
	e.settings.Store(&o.Settings)
	for i := range max(o.Loops, 1) {
		e.loops = append(e.loops, newLoop(e, i))
	}
	return e
}

// Loops gives the number of loops.
func (e *Engine) Loops() int { return len(e.loops) }

// Submit passes a command to the loops. It never waits for them; only Listen
// and Adopt do system calls on the caller's thread. Until Run is called
// commands are kept; after a Freeze, and once Run has returned, they are dropped
// without effect, and what they own is closed.
func (e *Engine) Submit(c Command) {
	e.mu.Lock()
	ended := e.ended
	e.mu.Unlock()
	if !ended {
		c.submit(e)
	} else if d, ok := c.(discarder); ok {
		d.discard()
	}
}

// Events delivers what happened, in batches; it is closed when Run returns,
// behind a last batch with what ended with the engine, or with Frozen at its
// end. The batch belongs to the receiver. When nobody reads, reports of what is
// over (StreamEnded, Refused, PrefaceFailed), Needed and Exhausted are dropped
// beyond 65,536 events and counted (see EventsDropped).
func (e *Engine) Events() <-chan []Event { return e.outbox.ch }

// EventsDropped is how many events were dropped because nobody read them.
func (e *Engine) EventsDropped() uint64 { return e.outbox.dropped.Load() }

// Run runs the loops until ctx is done or Freeze comes. It then closes every
// descriptor, ends streams with RST, or hands all of it over by Frozen, and
// returns when all goroutines it started have ended.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.open(); err != nil {
		e.outbox.finish()
		return err
	}
	var loops sync.WaitGroup
	for _, l := range e.loops {
		loops.Go(l.run)
	}
	delivering, stopDelivering := context.WithCancel(context.WithoutCancel(ctx))
	var delivery sync.WaitGroup
	delivery.Go(func() { e.outbox.deliver(delivering) })

	select {
	case <-ctx.Done():
	case <-e.freezing:
	}
	frozen := ctx.Err() == nil
	e.broadcast(func() message { return stop{} })
	loops.Wait()
	e.end()
	var last []Event
	if frozen {
		last = append(last, Frozen{State: e.surrender()})
	}
	for _, l := range e.loops {
		l.closeAll()
	}
	stopDelivering()
	delivery.Wait()
	e.outbox.finish(last...)
	return nil
}

// open opens all loops or none.
func (e *Engine) open() error {
	for i, l := range e.loops {
		if err := l.open(); err != nil {
			e.end()
			for _, opened := range e.loops[:i] {
				opened.closeAll()
			}
			for _, closed := range e.loops[i:] {
				closed.discardAll()
			}
			return fmt.Errorf("start event loop %d: %w", i, err)
		}
	}
	return nil
}

// end makes Listen and Adopt keep nothing any more: no loop would close it.
func (e *Engine) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = true
}

// broadcast posts a message of its own to every loop.
func (e *Engine) broadcast(each func() message) {
	for _, l := range e.loops {
		l.inbox.post(each())
	}
}

// pick takes loops in turn.
func (e *Engine) pick() *loop {
	return e.loops[int(e.turn.Add(1)-1)%len(e.loops)]
}

// pool is what all loops share of a pool: its constants, and counts that each
// loop writes in its own cell.
type pool struct {
	id        PoolID
	side      Side
	maxIdle   atomic.Int32  // negative: no limit
	look      atomic.Uint32 // counts calls of PoolUses
	heartbeat time.Duration
	cells     []poolCell
	targets   map[uint32]*tunnel // of the client, by the id in START; under Engine.mu
	claims    uint64             // that PoolUses told of, and misses; under Engine.mu
	missed    uint64
}

func newPool(id PoolID, side Side, heartbeat time.Duration, loops int) *pool {
	return &pool{id: id, side: side, heartbeat: heartbeat, cells: make([]poolCell, loops), targets: make(map[uint32]*tunnel)}
}

// poolCell is written by one loop and read by all; padded to a cache line.
type poolCell struct {
	idle    atomic.Int32
	waiting atomic.Int32
	claims  atomic.Uint64 // PublicConns that asked for a conn
	missed  atomic.Uint64 // and found none that was idle
	drawn   atomic.Uint64 // see usage
	_       [32]byte
}

// idle is the number of idle conns over all loops.
func (p *pool) idle() int {
	n := 0
	for i := range p.cells {
		n += int(p.cells[i].idle.Load())
	}
	return n
}

// full tells whether one more idle conn would be too many.
func (p *pool) full() bool {
	most := int(p.maxIdle.Load())
	return most >= 0 && p.idle() >= most
}

// neediest is the loop that a new conn helps most: the longest wait, else the
// fewest idle conns.
func (p *pool) neediest() int {
	best, most := 0, int32(-1<<31)
	for i := range p.cells {
		if want := p.cells[i].waiting.Load() - p.cells[i].idle.Load(); want > most {
			best, most = i, want
		}
	}
	return best
}

// hungriest is the loop other than self where most PublicConns wait, or -1.
func (p *pool) hungriest(self int) int {
	best, most := -1, int32(0)
	for i := range p.cells {
		if n := p.cells[i].waiting.Load(); i != self && n > most {
			best, most = i, n
		}
	}
	return best
}

// richest is the loop other than self with most idle conns, or -1.
func (p *pool) richest(self int) int {
	best, most := -1, int32(0)
	for i := range p.cells {
		if n := p.cells[i].idle.Load(); i != self && n > most {
			best, most = i, n
		}
	}
	return best
}

// tunnel is what all loops share of a tunnel.
type tunnel struct {
	id    TunnelID
	conns atomic.Int64 // PublicConns, for the limit
	rates rates
	cells []tunnelCell
	uses  uses
	// before is what was counted before an Adopt. Engine.mu guards it.
	before TunnelStats
}

// tunnelCell counts for one tunnel in one loop, its only writer.
type tunnelCell struct {
	opened, ended, refused atomic.Uint64
	up, down               atomic.Uint64
	throttled              atomic.Uint64
	_                      [16]byte
}

// bump adds without a locked instruction: the caller is the only writer.
func bump(c *atomic.Uint64, n uint64) { c.Store(c.Load() + n) }

// TunnelStats are the live totals of a tunnel, for as long as Stats knows it.
// Bytes are payload, counted as they are read or leave.
type TunnelStats struct {
	Tunnel    TunnelID
	Opened    uint64 // streams
	Ended     uint64 // streams
	Refused   uint64 // PublicConns that never became one
	Up, Down  uint64 // bytes from and to the visitors
	Throttled uint64 // times that a direction of a stream was paused by a Limit
}

// Stats sums the counters of every tunnel that listens, has a target or a
// Limit, or has streams that still run. After that a tunnel is forgotten: its
// totals are those of the StreamEnded that were told, and one set anew counts
// from zero.
func (e *Engine) Stats() []TunnelStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forgetLeft()
	all := make([]TunnelStats, 0, len(e.tunnels))
	for _, t := range e.tunnels {
		all = append(all, t.stats())
	}
	return all
}

// stats sums the counters; Engine.mu is held.
func (t *tunnel) stats() TunnelStats {
	s := t.before
	s.Tunnel = t.id
	for i := range t.cells {
		c := &t.cells[i]
		s.Opened += c.opened.Load()
		s.Ended += c.ended.Load()
		s.Refused += c.refused.Load()
		s.Up += c.up.Load()
		s.Down += c.down.Load()
		s.Throttled += c.throttled.Load()
	}
	return s
}

func (c OpenPool) submit(e *Engine) {
	e.mu.Lock()
	p := e.pools[c.Pool]
	known := p != nil
	if !known {
		p = newPool(c.Pool, c.Side, c.Heartbeat, len(e.loops))
		e.pools[c.Pool] = p
	}
	e.mu.Unlock()
	p.maxIdle.Store(int32(c.MaxIdle))
	if known {
		return
	}
	e.broadcast(func() message { return openShard{p} })
}

func (c ClosePool) submit(e *Engine) {
	e.dropPool(c.Pool)
	e.broadcast(func() message { return closeShard(c) })
}

func (c Park) submit(e *Engine) {
	if l := e.loopOf(c.Conn); l != nil {
		l.inbox.post(park{c})
	}
}

func (c Close) submit(e *Engine) {
	if l := e.loopOf(c.Conn); l != nil {
		l.inbox.post(closeConn{c.Conn})
	}
}

func (c Dial) submit(e *Engine) { e.pick().inbox.post(dialProxy{c}) }

func (c SetTarget) submit(e *Engine) {
	if t := e.targeted(c.Pool, c.Wire, c.Tunnel); t != nil {
		e.broadcast(func() message { return setTarget{c, t} })
	}
}

func (c DropTarget) submit(e *Engine) {
	e.untargeted(c.Pool, c.Wire)
	e.broadcast(func() message { return dropTarget(c) })
}

func (c Configure) submit(e *Engine) { e.settings.Store(&c.Settings) }

func (c Reroute) submit(e *Engine) {
	e.broadcast(func() message { return reroute(c) })
}

func (c Unlisten) submit(e *Engine) {
	e.unlistened(c.Tunnel)
	e.broadcast(func() message { return unlisten(c) })
}

func (c Listen) submit(e *Engine) {
	sockets, err := c.open(len(e.loops))
	ev := Listening{Tunnel: c.Tunnel, Err: err}
	if err == nil {
		t := e.listened(c.Tunnel)
		for _, s := range sockets {
			ev.Addresses = append(ev.Addresses, s.address)
		}
		e.mu.Lock()
		if e.ended {
			for _, s := range sockets {
				closefd(s.fd)
			}
		} else {
			e.broadcast(func() message { return watch{sockets, t, c.Route} })
		}
		e.mu.Unlock()
	}
	e.outbox.add([]Event{ev})
}

// connID packs loop, slot and generation.
func connID(l *loop, slot uint32) ConnID {
	return ConnID(uint64(l.id)<<56 | uint64(slot)<<32 | uint64(l.poll.slot(slot).gen))
}

func (e *Engine) loopOf(id ConnID) *loop {
	if i := int(id >> 56); i < len(e.loops) {
		return e.loops[i]
	}
	return nil
}
