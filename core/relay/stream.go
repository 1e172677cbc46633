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
	up, down uint64 // payload bytes that left
	began    int64
	active   int64 // when bytes moved last
	queued   bool
	over     bool
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
		l.pump(s, turnSlice)
	}
}

// pump moves bytes both ways until nothing more can move or each direction
// had its slice; a stream with more to move is queued.
func (l *loop) pump(s *stream, slice int) {
	before := s.up + s.down
	var more bool
	if s.proxy != nil {
		if s.front.out != nil {
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
	if more {
		l.queue(s)
		return
	}
	l.endBroken(s)
}

// endBroken ends a stream whose socket failed and is not read, so that no call
// tells: its bytes wait for a destination that is blocked, or its FIN was read.
func (l *loop) endBroken(s *stream) {
	switch {
	case s.front.broken || s.back != nil && s.back.broken:
		l.endStream(s, PeerReset)
	case s.proxy != nil && s.proxy.broken && s.proxy.in.blocked:
		l.closeProxy(s.proxy, ProxyLost)
	}
}

// sendFramed carries what the front sends into DATA frames. The header goes
// in front of the bytes, so both leave in one send.
func (l *loop) sendFramed(s *stream, slice int) (more bool) {
	c, p := s.front, s.proxy
	if p.out != nil && !l.flushProxy(p) {
		return false
	}
	for slice > 0 {
		if c.state != rawJoined || c.eof || !c.canRead || !l.flushProxy(p) {
			return false
		}
		b := l.mem.tx[frame.HeaderSize : frame.HeaderSize+loopBuffer]
		n, eof, failed := c.read(b)
		switch {
		case failed:
			l.endStream(s, PeerReset)
			return false
		case eof:
			c.eof = true
			l.sendEnd(s)
			return false
		case n > 0:
			frame.Header{Type: frame.Data, Seq: p.seq, Length: uint32(n)}.Put(l.mem.tx)
			slice -= n
			s.count(l, c.public, n)
			if !l.writeProxy(p, l.mem.tx[:frame.HeaderSize+n]) {
				return false
			}
		}
	}
	return true
}

// copyBare carries bytes between the two sockets of a forwarder.
func (l *loop) copyBare(s *stream, from, to *rawConn, slice int) (more bool) {
	if to.out != nil && !l.flushRaw(to) {
		return false
	}
	for slice > 0 {
		if from.state != rawJoined || from.eof || !from.canRead || !l.flushRaw(to) {
			return false
		}
		n, eof, failed := from.read(l.mem.tx[:loopBuffer])
		switch {
		case failed:
			l.endStream(s, PeerReset)
			return false
		case eof:
			from.eof = true
			to.sendFin()
			if to.eof && from.finSent {
				l.endStream(s, Done)
			} else {
				l.armStream(s)
			}
			return false
		case n > 0:
			slice -= n
			s.count(l, from.public, n)
			sent, failed := to.write(l.mem.tx[:n])
			if failed {
				l.endStream(s, PeerReset)
				return false
			}
			if sent < n {
				to.out = l.mem.hold(l.mem.tx[sent:n])
			}
		}
	}
	return true
}

// count adds n bytes to the totals of their direction.
func (s *stream) count(l *loop, up bool, n int) {
	cell := &s.tunnel.cells[l.id]
	if up {
		s.up += uint64(n)
		bump(&cell.up, uint64(n))
	} else {
		s.down += uint64(n)
		bump(&cell.down, uint64(n))
	}
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
	l.armStream(s)
}

// halfClosed tells whether exactly one direction has ended.
func (s *stream) halfClosed() bool {
	if s.proxy != nil {
		return s.proxy.txEnd != s.proxy.rxEnd
	}
	return s.front.finSent != s.back.finSent
}

// armStream sets the deadline of a stream that has one: idle, or half closed.
func (l *loop) armStream(s *stream) {
	if when, _ := l.streamDeadline(s); when > 0 {
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

// checkStream ends a stream whose deadline has passed and arms the next one
// for a stream that moved meanwhile.
func (l *loop) checkStream(s *stream) {
	when, why := l.streamDeadline(s)
	if when > 0 && when <= l.now {
		l.endStream(s, why)
		return
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
	bump(&s.tunnel.cells[l.id].ended, 1)
	ev := StreamEnded{
		Tunnel: s.tunnel.id, Source: s.front.source, Up: s.up, Down: s.down,
		Duration: time.Duration(l.now - s.began), Reason: why,
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
