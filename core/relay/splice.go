package relay

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// keepPipes is how long a loop keeps pipes that nobody needs: bulk that has
// ended often goes on in a moment, and an idle engine holds none.
const keepPipes = time.Second

// bulk tells whether a direction moves much at a time, so that its bytes are
// spliced: it is above zero then. Bulk that arrives in pieces stays bulk; only
// two small ones in a row, or an end, make it messages again.
type bulk uint8

const (
	bulkBegins = 2
	smallPiece = 16 << 10
)

// moved notes that n bytes were moved where most were possible.
func (b *bulk) moved(n, most int) {
	switch {
	case n >= min(most, loopBuffer):
		*b = bulkBegins
	case n < smallPiece && *b > 0:
		*b--
	}
}

// spliceOut moves up to limit bytes from the front of a stream into one DATA
// frame without copying them. The header is sent for bytes that are in the
// pipe already, so that it can always be completed. n is 0 when the front has
// nothing for now, or no pipe is to be had; not ok when the stream has ended
// or its ProxyConn takes no more.
func (l *loop) spliceOut(s *stream, limit int) (n int, ok bool) {
	c, p := s.front, s.proxy
	b := l.pipes.borrow()
	if b == nil {
		return 0, true
	}
	limit = min(limit, frame.MaxData)
	n, end := l.fill(b, &c.socket, limit)
	if end != filled {
		l.endFill(s, c, end)
		return 0, end == nothing && !s.over
	}
	s.bulkUp.moved(n, limit)
	s.count(l, c.public, n)
	header := l.mem.tx[:frame.HeaderSize]
	frame.Header{Type: frame.Data, Seq: p.seq, Length: uint32(n)}.Put(header)
	sent, errno := sendMore(p.fd, header)
	if errno != 0 && errno != unix.EAGAIN {
		l.giveBack(b)
		l.closeProxy(p, ProxyLost)
		return n, false
	}
	if sent < len(header) {
		p.canWrite = false
		p.out = l.mem.hold(header[sent:])
	}
	p.load = b
	return n, l.flushProxy(p)
}

// spliceIn moves up to limit payload bytes of the current DATA frame to the
// front of the stream, which can take some. It gives 0 when it moved none.
func (l *loop) spliceIn(p *proxyConn, limit int) int {
	s := p.stream
	b := l.pipes.borrow()
	if b == nil {
		return 0
	}
	n, end := l.fill(b, &p.socket, min(limit, int(p.in.need)))
	switch end {
	case filled:
	case nothing:
		return 0
	case ended, failed:
		l.closeProxy(p, ProxyLost)
		return 0
	}
	p.in.need -= uint32(n)
	s.count(l, !s.front.public, n)
	s.active = l.now
	s.front.load = b
	l.flushRaw(s.front)
	return n
}

// spliceBare moves bytes between the two sockets of a forwarder; the results
// are those of spliceOut.
func (l *loop) spliceBare(s *stream, from, to *rawConn, bulk *bulk, limit int) (n int, ok bool) {
	b := l.pipes.borrow()
	if b == nil {
		return 0, true
	}
	n, end := l.fill(b, &from.socket, limit)
	if end != filled {
		l.endFill(s, from, end)
		return 0, end == nothing && !s.over
	}
	bulk.moved(n, limit)
	s.count(l, from.public, n)
	to.load = b
	return n, l.flushRaw(to)
}

// filling is how an attempt to fill a pipe ended.
type filling uint8

const (
	filled  filling = iota + 1
	nothing         // the socket has nothing for now
	ended           // the peer's FIN
	failed          // the socket is broken
)

// fill moves up to n bytes from a socket into an empty pipe, where EAGAIN can
// only mean that the socket is dry. The pipe is kept only when it got some.
func (l *loop) fill(b *pipe, from *socket, n int) (int, filling) {
	got, errno := b.fill(from.fd, n)
	if got > 0 {
		return got, filled
	}
	l.giveBack(b)
	switch errno {
	case 0:
		from.canRead = false
		return 0, ended
	case unix.EAGAIN:
		from.canRead = false
		return 0, nothing
	case unix.EINTR:
		return 0, nothing
	default:
		return 0, failed
	}
}

// endFill acts on a bare socket that gave no bytes.
func (l *loop) endFill(s *stream, c *rawConn, end filling) {
	switch end {
	case ended:
		l.bareEnd(s, c)
	case failed:
		l.endStream(s, PeerReset)
	case filled, nothing:
	}
}

// unload moves what a socket's pipe holds into the socket.
func (l *loop) unload(s *socket) (done, failed bool) {
	for s.load.held > 0 {
		_, errno := s.load.drain(s.fd)
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			s.canWrite = false
			pushNow(s.fd)
			return false, false
		default:
			return false, true
		}
	}
	l.giveBack(s.load)
	s.load = nil
	return true, false
}

// dropLoad destroys what was on its way into a socket that is closed.
func (l *loop) dropLoad(s *socket) {
	if s.load != nil {
		l.giveBack(s.load)
		s.load = nil
	}
}

// giveBack returns a pipe.
func (l *loop) giveBack(b *pipe) {
	l.pipes.giveBack(b)
	l.usedBulk()
}

// free gives a buffer back; the caller forgets it.
func (l *loop) free(h *buffer) {
	if l.mem.free(h) {
		l.usedBulk()
	}
}

// sending gives what a direction is read into in copy mode, with room for a
// header in front.
func (l *loop) sending(b bulk) []byte {
	if b == 0 || l.mem.heldBulk >= maxHeldBulk {
		return l.mem.tx[:frame.HeaderSize+loopBuffer]
	}
	l.usedBulk()
	return l.mem.bulkBuffer()
}

// usedBulk has spare pipes and buffers given back to the system when bulk has
// ended.
func (l *loop) usedBulk() {
	l.pipes.used = l.now
	if l.pipes.timer.pos == 0 {
		l.timers.set(&l.pipes.timer, &l.pipes, l.after(keepPipes))
	}
}

// expired ends what has not been used for a while.
func (p *pipes) expired(l *loop) {
	if due := p.used + int64(keepPipes); due > l.now {
		l.timers.set(&p.timer, p, due)
		return
	}
	p.trim()
	l.mem.trim()
}
