package relay

import (
	"github.com/cproxy/cproxy/core/frame"
)

// maxDropped is how many bytes of a stream that the server has reset it reads
// and drops so that the conn can be used again; beyond it a new conn is
// cheaper. The client drops all: the server, once it has the RESET, sends no
// more of the stream, but may give the conn to the next visitor at once.
const maxDropped = 64 << 10

// maxHeldDialing bounds what one read takes from a conn that is idle or whose
// LocalServer is being dialled, and so what is held meanwhile.
const maxHeldDialing = 16 << 10

// begin gives the conn to a stream.
func (p *proxyConn) begin(s *stream, seq uint16) {
	p.state = proxyStream
	p.carried = true
	p.stream = s
	p.exchange = exchange{seq: seq}
	p.in.dropped = 0
	p.in.bulk = false
}

// writeProxy sends frames, behind those that wait already. It tells whether
// the conn still lives.
func (l *loop) writeProxy(p *proxyConn, b []byte) bool {
	if p.out == nil && p.canWrite {
		n, failed := p.write(b)
		if failed {
			l.closeProxy(p, ProxyLost)
			return false
		}
		b = b[n:]
	}
	if len(b) > 0 {
		p.out = l.mem.add(p.out, b)
	}
	return true
}

// flushProxy tells whether p can take more frames now.
func (l *loop) flushProxy(p *proxyConn) bool {
	if !p.canWrite || p.state == proxyClosed {
		return false
	}
	done, failed := l.flush(&p.socket, &p.out)
	if failed {
		l.closeProxy(p, ProxyLost)
	}
	return done
}

// pending tells whether the conn still has to take frames that were begun.
func (p *proxyConn) pending() bool { return p.out != nil || p.load != nil }

// resetProxy tells the other side that the stream ended here for why. RESET
// behind bytes that the socket does not take would come too late: the conn
// is closed then.
func (l *loop) resetProxy(p *proxyConn, why Reason) {
	if p.state == proxyClosed {
		return
	}
	if p.pending() {
		l.abortProxy(p, why)
		return
	}
	if !p.txEnd || !p.rxEnd {
		code := why.resetCode()
		if p.rxReset {
			code = frame.ResetAcknowledge
		}
		var b [frame.HeaderSize + frame.ResetSize]byte
		frame.PutReset(b[:], p.seq, code)
		p.txEnd = true
		if !l.writeProxy(p, b[:]) {
			return
		}
	}
	l.settle(p)
}

// settle makes a conn available again once its stream has ended both ways on
// the wire. Until then it only drops what is still under way.
func (l *loop) settle(p *proxyConn) {
	if p.stream != nil || p.state != proxyStream {
		return
	}
	ended := p.txEnd && p.rxEnd
	if ended && !p.pending() {
		l.timers.stop(&p.timer)
		p.last, p.waiting = nil, 0
		l.release(p)
		return
	}
	if p.in.blocked || p.canRead {
		l.queueConn(p) // to drop what is held, or has come and raises no event
	}
	if ended {
		l.awaitLast(p)
	} else if p.timer.pos == 0 {
		l.timers.set(&p.timer, p, l.after(l.settings().Connect))
	}
}

// readProxy consumes what p holds and then what its socket has, until the
// destination blocks, the socket is dry, or the slice is used.
func (l *loop) readProxy(p *proxyConn, slice int) (more bool) {
	for slice > 0 && p.state != proxyClosed {
		if p.in.held != nil && p.in.blocked {
			n := len(p.in.held.bytes())
			if !l.feedHeld(p) {
				return false
			}
			slice -= n
			continue
		}
		if !p.canRead {
			return false
		}
		most := unlimited
		if p.stream != nil && !p.rxEnd { // what is dropped is not limited
			if most = l.allowed(p.stream, !p.stream.front.public); most == 0 {
				return false
			}
		}
		if p.in.bulk && p.in.need > 0 && p.in.held == nil && p.stream != nil && p.stream.front.state == rawJoined {
			n, ok := l.readBulk(p, min(slice, most))
			if slice -= n; !ok {
				return false
			}
			continue
		}
		off := 0
		if h := p.in.held; h != nil {
			off = copy(l.mem.rx, h.bytes())
			l.free(h)
			p.in.held = nil
		}
		limit := loopBuffer
		if p.state != proxyStream || p.stream != nil && p.stream.front.state == rawConnecting {
			limit = maxHeldDialing
		} else if p.in.bulk && p.in.need == 0 && off == 0 {
			limit = frame.HeaderSize // what follows is likely to be spliced too
		}
		if most < limit-off {
			limit = off + most
		}
		n, ok := l.readInto(p, l.mem.rx[:limit], off)
		if slice -= n; !ok {
			return false
		}
	}
	return p.state != proxyClosed
}

// readBulk moves payload of a large DATA frame on to the front of the stream:
// through a pipe, or without one through a large buffer. Not ok when nothing
// more can be read for now.
func (l *loop) readBulk(p *proxyConn, limit int) (n int, ok bool) {
	if !l.flushRaw(p.stream.front) {
		return 0, p.stream == nil // the flush may have found the socket dead
	}
	if n = l.spliceIn(p, limit); n > 0 || !p.canRead || p.state == proxyClosed {
		return n, n > 0
	}
	b := l.sending(bulkBegins)
	return l.readInto(p, b[:min(len(b), limit, int(p.in.need))], 0)
}

// readInto receives into b, behind the off bytes that it holds already, and
// feeds all of it. Not ok when the conn has ended or its stream is blocked.
func (l *loop) readInto(p *proxyConn, b []byte, off int) (n int, ok bool) {
	n, eof, failed := p.read(b[off:])
	if eof || failed {
		l.closeProxy(p, ProxyLost)
		return 0, false
	}
	l.keep(p, b[:off+n])
	return n, !p.in.blocked
}

// keep feeds b and holds what is left of it.
func (l *loop) keep(p *proxyConn, b []byte) {
	rest, blocked := l.feed(p, b)
	if p.state == proxyClosed {
		return
	}
	p.in.blocked = blocked
	if len(rest) > 0 {
		p.in.held = l.mem.hold(rest)
	}
}

// feedHeld feeds what was held back; false while it stays blocked.
func (l *loop) feedHeld(p *proxyConn) bool {
	h := p.in.held
	rest, blocked := l.feed(p, h.bytes())
	if p.state == proxyClosed {
		return false
	}
	p.in.blocked = blocked
	h.off = len(h.b) - len(rest)
	if len(rest) == 0 {
		l.free(h)
		p.in.held = nil
	}
	return !blocked
}

// feed consumes b as far as it goes. What is left is the beginning of a frame
// or, when blocked, waits for the destination.
func (l *loop) feed(p *proxyConn, b []byte) (rest []byte, blocked bool) {
	for len(b) > 0 && p.state != proxyClosed {
		if s := p.stream; s != nil && (s.front.state == rawConnecting || s.front.pending() && !l.flushRaw(s.front)) {
			if p.stream != nil {
				return b, true
			}
			continue // the flush found the socket dead
		}
		if p.in.need > 0 {
			n, blocked := l.deliver(p, b[:min(len(b), int(p.in.need))])
			p.in.need -= uint32(n)
			b = b[n:]
			if blocked {
				return b, true
			}
			continue
		}
		if len(b) < frame.HeaderSize {
			return b, false
		}
		h, err := frame.ParseHeader(b)
		if err != nil {
			l.closeProxy(p, ProtocolError)
			return nil, false
		}
		size := frame.HeaderSize
		if h.Type != frame.Data {
			size += int(h.Length)
		}
		if len(b) < size {
			return b, false
		}
		if !l.handle(p, h, b[frame.HeaderSize:size]) {
			l.closeProxy(p, ProtocolError)
			return nil, false
		}
		b = b[size:]
	}
	return nil, false
}

// deliver passes payload on to the front of the stream, or drops it when the
// stream has ended here.
func (l *loop) deliver(p *proxyConn, b []byte) (n int, blocked bool) {
	s := p.stream
	if s == nil {
		p.in.dropped += uint32(len(b))
		if p.in.dropped > maxDropped && p.shard.pool.side == ServerSide {
			l.closeProxy(p, Closed)
		}
		return len(b), false
	}
	if !l.flushRaw(s.front) {
		return 0, p.stream != nil
	}
	n, failed := s.front.write(b)
	if failed {
		l.endStream(s, PeerReset)
		return 0, false
	}
	s.count(l, !s.front.public, n)
	s.active = l.now
	return n, n < len(b)
}
