package relay

import (
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// stream joins the bare socket of this side (front: the PublicConn on the
// server, the LocalConn on the client) to a ProxyConn, or to a second bare
// socket (back) in a plain forwarder. Up is the direction that the visitor
// sends.
type stream struct {
	front    *rawConn
	proxy    *proxyConn // nil in a forwarder
	back     *rawConn   // nil but in a forwarder
	tunnel   *tunnel
	pauses   *pauses // nil until a limit first pauses the stream
	up, down uint64  // payload bytes that left
	began    int64
	active   int64  // when bytes moved last
	unsent   uint32 // bytes in kernel buffers when a deadline last looked
	bulkUp   bulk   // of what the front sends
	bulkDown bulk   // of what the back of a forwarder sends
	queued   bool
	over     bool
}

// forwarding is a stream of a plain forwarder and its second socket: one
// allocation.
type forwarding struct {
	stream stream
	back   rawConn
}

// queue lets a stream run again after the events of this turn.
func (l *loop) queue(s *stream) {
	if !s.queued && !s.over {
		s.queued = true
		l.work.queue = append(l.work.queue, s)
	}
}

func (s *stream) run(l *loop) {
	s.queued = false
	if !s.over {
		l.pump(s, l.slice())
	}
}

// visitStream moves what can be moved after an event. Bulk waits for its turn
// in the queue, so that the messages of this turn go first.
func (l *loop) visitStream(s *stream) {
	if s.bulkUp > 0 || s.bulkDown > 0 || s.proxy != nil && s.proxy.in.bulk {
		l.queue(s)
		return
	}
	l.work.message = l.now
	l.pump(s, visitSlice)
}

// pump moves bytes both ways until nothing more can move or each direction
// had its slice; a stream with more to move is queued.
func (l *loop) pump(s *stream, slice int) {
	before := s.up + s.down
	var more bool
	if s.proxy != nil {
		if s.front.pending() {
			l.flushRaw(s.front)
		}
		if !s.over {
			more = l.sendFramed(s, slice)
		}
		if !s.over {
			more = l.readProxy(s.proxy, slice) || more
		}
	} else {
		more = l.copyBare(s, s.front, s.back, slice)
		if !s.over {
			more = l.copyBare(s, s.back, s.front, slice) || more
		}
	}
	if s.over {
		return
	}
	if s.up+s.down != before {
		s.active = l.now
	}
	l.watchBlocked(s)
	if more {
		l.queue(s)
		return
	}
	l.endBroken(s)
}

// endBroken ends a stream whose socket failed and is not read, so that no call
// tells: its bytes wait for a destination that is blocked or for their turn, or
// its FIN was read.
func (l *loop) endBroken(s *stream) {
	switch {
	case s.front.broken || s.back != nil && s.back.broken:
		l.endStream(s, PeerReset)
	case s.proxy != nil && s.proxy.broken && (s.proxy.in.blocked || s.front.pending() || s.paused(!s.front.public, l.now)):
		l.closeProxy(s.proxy, ProxyLost)
	}
}

// sendFramed carries what the front sends into DATA frames. The header goes
// in front of the bytes, so both leave in one send.
func (l *loop) sendFramed(s *stream, slice int) (more bool) {
	c, p := s.front, s.proxy
	if p.pending() && !l.flushProxy(p) {
		return false
	}
	for slice > 0 {
		if c.state != rawJoined || c.eof || !c.canRead || !l.flushProxy(p) {
			return false
		}
		most := l.allowed(s, c.public)
		if most == 0 {
			return false
		}
		if s.bulkUp > 0 {
			n, ok := l.spliceOut(s, min(slice, most))
			if !ok {
				return false
			}
			slice -= n
			if n > 0 || !c.canRead {
				continue
			}
		}
		tx := l.sending(s.bulkUp)
		b := tx[frame.HeaderSize:]
		n, eof, failed := c.read(b[:min(most, len(b))])
		switch {
		case failed:
			l.endStream(s, PeerReset)
			return false
		case eof:
			l.bareEnd(s, c)
			return false
		case n > 0:
			frame.Header{Type: frame.Data, Seq: p.seq, Length: uint32(n)}.Put(tx)
			slice -= n
			s.bulkUp.moved(n, len(b))
			s.count(l, c.public, n)
			if !l.writeProxy(p, tx[:frame.HeaderSize+n]) {
				return false
			}
		}
	}
	return true
}

// copyBare carries bytes between the two sockets of a forwarder.
func (l *loop) copyBare(s *stream, from, to *rawConn, slice int) (more bool) {
	if to.pending() && !l.flushRaw(to) {
		return false
	}
	bulk := &s.bulkUp
	if from == s.back {
		bulk = &s.bulkDown
	}
	for slice > 0 {
		if from.state != rawJoined || from.eof || !from.canRead || !l.flushRaw(to) {
			return false
		}
		most := l.allowed(s, from.public)
		if most == 0 {
			return false
		}
		if *bulk > 0 {
			n, ok := l.spliceBare(s, from, to, bulk, min(slice, most))
			if !ok {
				return false
			}
			slice -= n
			if n > 0 || !from.canRead {
				continue
			}
		}
		b := l.sending(*bulk)[frame.HeaderSize:]
		n, eof, failed := from.read(b[:min(most, len(b))])
		switch {
		case failed:
			l.endStream(s, PeerReset)
			return false
		case eof:
			l.bareEnd(s, from)
			return false
		case n > 0:
			slice -= n
			bulk.moved(n, len(b))
			s.count(l, from.public, n)
			sent, failed := to.write(b[:n])
			if failed {
				l.endStream(s, PeerReset)
				return false
			}
			if sent < n {
				to.out = l.mem.hold(b[sent:n])
			}
		}
	}
	return true
}

// count adds n bytes to the totals of their direction, and pays for them where
// it is limited.
func (s *stream) count(l *loop, up bool, n int) {
	cell := &s.tunnel.cells[l.id]
	if up {
		s.up += uint64(n)
		bump(&cell.up, uint64(n))
	} else {
		s.down += uint64(n)
		bump(&cell.down, uint64(n))
	}
	l.spend(s, up, n)
}

// bareEnd passes the FIN of a bare socket on.
func (l *loop) bareEnd(s *stream, c *rawConn) {
	c.eof = true
	if s.proxy != nil {
		l.sendEnd(s)
		return
	}
	to := s.back
	if c == s.back {
		to = s.front
	}
	to.sendFin()
	if to.eof && c.finSent {
		l.endStream(s, Done)
		return
	}
	s.active = l.now
	l.armStream(s)
}

// sendEnd passes the front's FIN on.
func (l *loop) sendEnd(s *stream) {
	var fin [frame.HeaderSize]byte
	frame.Header{Type: frame.Fin, Seq: s.proxy.seq}.Put(fin[:])
	s.proxy.txEnd = true
	if !l.writeProxy(s.proxy, fin[:]) {
		return
	}
	l.checkEnds(s)
}

// receiveEnd passes a FIN frame on to the front.
func (l *loop) receiveEnd(s *stream) {
	s.proxy.rxEnd = true
	s.front.sendFin()
	l.checkEnds(s)
}

// checkEnds finishes a stream whose directions have both ended.
func (l *loop) checkEnds(s *stream) {
	if s.proxy.txEnd && s.proxy.rxEnd {
		l.endStream(s, Done)
		return
	}
	s.active = l.now // the half-close deadline counts from the FIN
	l.armStream(s)
}

// halfClosed tells whether a FIN was sent into a bare socket whose own is still
// awaited. So of the two engines of a stream the one that holds the socket in
// question watches it: the other sees nothing of the bytes that are still on
// their way into it.
func (s *stream) halfClosed() bool {
	return s.front.finSent && !s.front.eof || s.back != nil && s.back.finSent && !s.back.eof
}

// draining tells whether the kernel has handed on bytes of the stream since it
// was last asked: a slow receiver empties megabytes of buffers while no call of
// the loop moves anything.
func (s *stream) draining() bool {
	unsent := uint32(outqueue(s.front.fd)) // which is an int of C: two of them fit
	if s.back != nil {
		unsent += uint32(outqueue(s.back.fd))
	}
	if s.proxy != nil {
		unsent += uint32(outqueue(s.proxy.fd))
	}
	moved := unsent > 0 && unsent != s.unsent
	s.unsent = unsent
	return moved
}

// armStream sets the timer of a stream that needs one: it is idle or half
// closed, or one of its sockets blocks.
func (l *loop) armStream(s *stream) {
	when, _ := l.streamDeadline(s)
	if look := l.nextLook(s); look > 0 && (when == 0 || look < when) {
		when = look
	}
	if when > 0 {
		l.timers.set(&s.front.timer, s.front, when)
	}
}

func (l *loop) streamDeadline(s *stream) (int64, Reason) {
	set := l.settings()
	var when int64
	var why Reason
	if set.Idle > 0 {
		when, why = s.active+int64(set.Idle), IdleTimeout
	}
	if set.HalfClose > 0 && s.halfClosed() {
		if w := s.active + int64(set.HalfClose); when == 0 || w < when {
			when, why = w, HalfCloseTimeout
		}
	}
	return when, why
}

// checkStream ends a stream whose deadline has passed or whose peer is dead,
// and arms the next look at one that lives.
func (l *loop) checkStream(s *stream) {
	if l.endDead(s) {
		return
	}
	when, why := l.streamDeadline(s)
	if when > 0 && when <= l.now {
		held := s.paused(true, l.now) || s.paused(false, l.now)
		if !held && !s.draining() {
			l.endStream(s, why)
			return
		}
		s.active = l.now
	}
	l.armStream(s)
}

// beginStream joins front and counts the stream.
func (l *loop) beginStream(s *stream) {
	s.began, s.active = l.now, l.now
	s.front.stream = s
	bump(&s.tunnel.cells[l.id].opened, 1)
	l.armStream(s)
}

// endStream ends a stream for one reason. Anything but Done resets the bare
// sockets and tells the other side by RESET.
func (l *loop) endStream(s *stream, why Reason) {
	if s.over {
		return
	}
	s.over = true
	l.endPauses(s)
	bump(&s.tunnel.cells[l.id].ended, 1)
	ev := StreamEnded{
		Tunnel: s.tunnel.id, Source: s.front.source.addrPort(), Up: s.up, Down: s.down,
		Duration: time.Duration(l.now - s.began), Reason: why,
	}
	if why == DialError {
		ev.Err = s.dialError()
	}
	l.closeRaw(s.front, why == Done)
	if s.back != nil {
		l.closeRaw(s.back, why == Done)
	}
	if p := s.proxy; p != nil {
		ev.Pool = p.shard.pool.id
		p.stream = nil
		if why == Done {
			l.settle(p)
		} else {
			l.resetProxy(p, why)
		}
	}
	l.tell(ev)
}

// dialError is why the LocalServer could not be reached; nil when the other side
// has tried.
func (s *stream) dialError() error {
	c := s.front
	if s.back != nil {
		c = s.back
	}
	if c.dial == nil {
		return nil
	}
	return c.dial.err()
}
