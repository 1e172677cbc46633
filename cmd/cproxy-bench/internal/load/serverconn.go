//go:build linux

package load

import (
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/epoll"
)

// serverConn is one connection of a Server.
type serverConn struct {
	fd      int
	loop    *worker
	watched uint32

	head    [RequestSize]byte
	have    int // bytes of head
	request Request

	source  source
	trailer Trailer
	pending []byte // to be sent before anything else

	eof       bool // the peer sent FIN
	confirmed bool // the trailer was sent, or is pending
	finished  bool // FIN was sent
}

// source is what is left to send.
type source struct {
	active  bool
	endless bool
	left    uint64
	until   time.Duration // on the loop's clock; 0: left counts
}

// Ready moves what can be moved, and closes the connection when it has ended.
func (c *serverConn) Ready(events uint32) {
	if !c.step(events) {
		c.loop.Drop(c.fd)
		return
	}
	want := uint32(0)
	if !c.eof && (c.request.Op != Echo || len(c.pending) == 0) {
		want |= unix.EPOLLIN
	}
	if c.source.active || len(c.pending) > 0 {
		want |= unix.EPOLLOUT
	}
	if want != c.watched {
		c.watched = want
		c.loop.Watch(c.fd, want)
	}
}

// step tells whether the connection goes on.
func (c *serverConn) step(events uint32) bool {
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 && !c.eof && !c.read() {
		return false
	}
	if !c.write() {
		return false
	}
	return !c.finished || !c.eof
}

func (c *serverConn) read() bool {
	if c.have < RequestSize {
		n, errno := epoll.Receive(c.fd, c.head[c.have:])
		if errno != 0 || n == 0 {
			return epoll.Again(errno)
		}
		c.have += n
		return c.have < RequestSize || c.begin()
	}
	if c.request.Op == Echo {
		return c.echo()
	}
	for range 4 {
		n, errno := epoll.Discard(c.fd, discardMax)
		if errno != 0 {
			return epoll.Again(errno)
		}
		if n == 0 {
			c.eof = true
			return true
		}
		c.trailer.Received += uint64(n)
	}
	return true
}

// begin acts on the request.
func (c *serverConn) begin() bool {
	r, err := ParseRequest(c.head)
	if err != nil {
		return false
	}
	c.request = r
	if r.Op == Source {
		c.source = source{active: true, endless: r.Bytes == 0 && r.For == 0, left: r.Bytes}
		if r.For > 0 {
			c.source.until = c.loop.clock.Now() + r.For
		}
	}
	// More may have come with the request.
	return c.read()
}

func (c *serverConn) echo() bool {
	if len(c.pending) > 0 {
		return true
	}
	n, errno := epoll.Receive(c.fd, c.loop.buf)
	if errno != 0 {
		return epoll.Again(errno)
	}
	if n == 0 {
		c.eof = true
		return true
	}
	c.trailer.Received += uint64(n)
	return c.send(c.loop.buf[:n])
}

// send sends b; what the socket does not take becomes pending.
func (c *serverConn) send(b []byte) bool {
	n, errno := epoll.Send(c.fd, b)
	if errno != 0 && !epoll.Again(errno) {
		return false
	}
	c.pending = slices.Clone(b[n:]) // allocates nothing when all was sent
	return true
}

func (c *serverConn) write() bool {
	if len(c.pending) > 0 && !c.send(c.pending) {
		return false
	}
	if len(c.pending) > 0 || c.finished {
		return true
	}
	if c.source.active {
		if errno := c.pour(); errno != 0 {
			return epoll.Again(errno)
		}
	}
	if c.have < RequestSize || c.source.active {
		return true
	}
	if early := c.request.Op == Source && !c.request.Confirm; !c.eof && !early {
		return true
	}
	return c.finish()
}

// pour sends one chunk of a source, and notices its end.
func (c *serverConn) pour() syscall.Errno {
	s := &c.source
	size := uint64(len(c.loop.zeros))
	switch {
	case s.endless:
		s.active = !c.eof
	case s.until > 0:
		s.active = c.loop.clock.Now() < s.until
	default:
		size = min(size, s.left)
	}
	if !s.active {
		return 0
	}
	n, errno := epoll.Send(c.fd, c.loop.zeros[:size])
	if errno != 0 {
		return errno
	}
	c.trailer.Sent += uint64(n)
	if !s.endless && s.until == 0 {
		s.left -= uint64(n)
		s.active = s.left > 0
	}
	return 0
}

// finish sends the trailer, if one is wanted, and FIN.
func (c *serverConn) finish() bool {
	if c.request.Confirm && !c.confirmed {
		c.confirmed = true
		trailer := c.trailer.Encode()
		if !c.send(trailer[:]) {
			return false
		}
		if len(c.pending) > 0 {
			return true
		}
	}
	c.finished = true
	epoll.ShutdownWrite(c.fd)
	return true
}
