package relay

import "golang.org/x/sys/unix"

// socket is one registered descriptor and what the loop knows of it.
type socket struct {
	fd       int
	slot     uint32
	canRead  bool
	canWrite bool
	// hungUp is set once the peer has ended its direction, or worse, or has
	// sent urgent data, at whose mark a read ends: a short read then no longer
	// means that the socket is dry.
	hungUp bool
	broken bool  // failed; reads may still give what came before
	load   *pipe // bulk bytes on their way into this socket, behind its buffer
	timer  timer
	// waiting is since when it was seen to block, until a look finds it free;
	// 0: it is not watched.
	waiting int64
}

// note takes over what an epoll event says.
func (s *socket) note(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.canRead = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.canWrite = true
	}
	if events&(unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hungUp = true
	}
	if events&unix.EPOLLERR != 0 {
		s.broken = true
	}
}

// read receives into b: n bytes, or the end of the stream (eof), or nothing
// for now (n 0), or an error that ended the socket.
func (s *socket) read(b []byte) (n int, eof, failed bool) {
	n, errno := recv(s.fd, b)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		s.canRead = errno == unix.EINTR
		return 0, false, false
	case errno != 0:
		return 0, false, true
	case n == 0:
		s.canRead = false
		return 0, true, false
	}
	if n < len(b) && !s.hungUp {
		s.canRead = false // drained: data that comes later is a new edge
	}
	return n, false, false
}

// write sends b: what the socket took, which is less than all when it is full.
func (s *socket) write(b []byte) (n int, failed bool) {
	n, errno := send(s.fd, b)
	if errno == unix.EAGAIN {
		n, errno = 0, 0
	}
	if n < len(b) {
		s.canWrite = false
	}
	return n, errno != 0
}

type rawState uint8

const (
	rawWaiting    rawState = iota + 1 // a PublicConn without a ProxyConn
	rawConnecting                     // being dialled
	rawJoined                         // part of a stream
	rawClosed
)

// rawConn is a socket that carries bare bytes: a PublicConn, or a LocalConn.
// It is closed with RST unless a FIN was sent (see sendFin).
type rawConn struct {
	socket
	state   rawState
	public  bool // counts against the connection limits
	eof     bool // the peer's FIN was read
	finSent bool
	source  origin
	tunnel  *tunnel
	stream  *stream // nil while waiting
	out     *buffer // accepted and not yet taken by the socket
	dial    *dialing
	wait    *place // in a shard's queue
}

// register puts the socket into the loop's epoll set.
func (c *rawConn) register(l *loop) bool {
	slot, errno := l.poll.add(c.fd, c, connEvents)
	c.slot = slot
	return errno == 0
}

func (c *rawConn) ready(l *loop, events uint32) {
	c.note(events)
	switch c.state {
	case rawWaiting:
		if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			l.refuse(c, VisitorLeft)
		}
	case rawConnecting:
		l.connectDone(c)
	case rawJoined:
		l.visitStream(c.stream)
	case rawClosed:
	}
}

func (c *rawConn) expired(l *loop) {
	switch c.state {
	case rawWaiting:
		l.refuse(c, WaitTimeout)
	case rawConnecting:
		l.connectExpired(c)
	case rawJoined:
		l.checkStream(c.stream)
	case rawClosed:
	}
}

// flushRaw tells whether c can take more bytes now, after it took what it
// still had to. False with c closed when the socket failed.
func (l *loop) flushRaw(c *rawConn) bool {
	if c.state != rawJoined || !c.canWrite {
		return false
	}
	done, failed := l.flush(&c.socket, &c.out)
	if failed {
		l.endStream(c.stream, PeerReset)
	}
	return done
}

// pending tells whether the socket still has to take bytes that were read.
func (c *rawConn) pending() bool { return c.out != nil || c.load != nil }

// flush writes what waits for a socket: first its buffer, then its pipe.
func (l *loop) flush(s *socket, out **buffer) (done, failed bool) {
	if b := *out; b != nil {
		n, failed := s.write(b.bytes())
		b.off += n
		if failed || len(b.bytes()) > 0 {
			return false, failed
		}
		l.free(b)
		*out = nil
	}
	if s.load != nil {
		return l.unload(s)
	}
	return true, false
}

// sendFin ends the direction towards c. Only from here on may the socket end
// in order: before, a close of any kind is a reset.
func (c *rawConn) sendFin() {
	orderlyClose(c.fd)
	shutdownWrite(c.fd)
	c.finSent = true
}

// closeRaw closes the socket: in order when its FIN was sent and orderly is
// set, else with RST.
func (l *loop) closeRaw(c *rawConn, orderly bool) {
	if c.state == rawClosed {
		return
	}
	l.timers.stop(&c.timer)
	if c.fd >= 0 {
		if c.finSent && !orderly {
			_ = resetOnClose(c.fd)
		}
		l.poll.remove(c.slot)
		closefd(c.fd)
		c.fd = -1
	}
	l.free(c.out)
	c.out = nil
	l.dropLoad(&c.socket)
	l.mem.dials.put(c.dial)
	c.dial = nil
	c.state = rawClosed
	if c.public {
		c.tunnel.conns.Add(-1)
		l.engine.conns.Add(-1)
		l.visitors.Add(-1)
	}
}

// refuse ends a PublicConn that never became a stream.
func (l *loop) refuse(c *rawConn, why Reason) { l.refuseAs(c, Refused{Reason: why}) }

func (l *loop) refuseAs(c *rawConn, ev Refused) {
	if c.wait != nil {
		c.wait.shard.leave(l, c)
	}
	bump(&c.tunnel.cells[l.id].refused, 1)
	ev.Tunnel, ev.Source = c.tunnel.id, c.source.addrPort()
	l.tell(ev)
	l.closeRaw(c, false)
}

// stopRaw ends a conn because the loop does.
func (l *loop) stopRaw(c *rawConn) {
	if c.stream != nil {
		l.endStream(c.stream, Stopped)
		return
	}
	l.refuse(c, Stopped)
}
