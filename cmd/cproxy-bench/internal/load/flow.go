//go:build linux

package load

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/epoll"
)

// stage is how far a connection of the generator has come.
type stage uint8

const (
	connecting stage = iota
	waiting          // connected, to be started
	running
	finishing // FIN was sent
	ended
)

// flow is one bulk connection of the generator. Its loop owns it, but for the
// two counters.
type flow struct {
	worker  *worker
	fd      int
	watched uint32
	stage   stage
	run     *flows

	sent, received atomic.Uint64 // written by the loop only
	tail           []byte        // the end of what came after FIN
	confirmed      bool
}

// dial begins to connect. Failures are reported like later ones.
func (c *flow) dial(target netip.AddrPort) {
	fd, err := epoll.Connect(target)
	if err != nil {
		c.stage = ended
		c.run.opened <- err
		return
	}
	c.fd, c.watched = fd, unix.EPOLLOUT
	if err := c.worker.Add(fd, c, c.watched); err != nil {
		epoll.Close(fd)
		c.stage = ended
		c.run.opened <- err
	}
}

// Ready is called by the loop.
func (c *flow) Ready(events uint32) {
	var err error
	switch c.stage {
	case connecting:
		if err = c.connected(); err != nil {
			c.end()
			c.run.opened <- fmt.Errorf("connect to %s: %w", c.run.target, err)
			return
		}
		c.run.opened <- nil
	case waiting, running, finishing:
		err = c.move(events)
	case ended:
		return
	}
	switch {
	case err != nil:
		c.end()
		c.run.ended <- err
	case c.stage == ended:
		c.end()
		c.run.ended <- nil
	default:
		c.watch()
	}
}

// connected sends the request.
func (c *flow) connected() error {
	if err := epoll.Connected(c.fd); err != nil {
		return err
	}
	request := c.run.request.Encode()
	// A new socket takes the few bytes at once.
	if n, errno := epoll.Send(c.fd, request[:]); errno != 0 || n < len(request) {
		return fmt.Errorf("send request: %w", errno)
	}
	c.stage = waiting
	return nil
}

// start lets bytes flow; called in the loop.
func (c *flow) start() {
	if c.stage == waiting {
		c.stage = running
		c.watch()
	}
}

// stop ends the sending direction, and asks the far side for its numbers;
// called in the loop.
func (c *flow) stop() {
	if c.stage == running {
		c.stage = finishing
		epoll.ShutdownWrite(c.fd)
		c.watch()
	}
}

func (c *flow) end() {
	c.stage = ended
	c.worker.Drop(c.fd)
}

func (c *flow) watch() {
	want := uint32(0)
	if c.stage != waiting {
		want |= unix.EPOLLIN
	}
	if c.stage == running && c.sending() {
		want |= unix.EPOLLOUT
	}
	if want != c.watched {
		c.watched = want
		c.worker.Watch(c.fd, want)
	}
}

// sending tells whether there is more to send.
func (c *flow) sending() bool {
	return c.run.up && (c.run.limit == 0 || c.sent.Load() < c.run.limit)
}

func (c *flow) move(events uint32) error {
	if c.stage == waiting { // only errors and hang-ups are reported unasked
		return fmt.Errorf("connection to %s ended before it was used: %w", c.run.target, epoll.Connected(c.fd))
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		if err := c.receive(); err != nil || c.stage == ended {
			return err
		}
	}
	if events&unix.EPOLLOUT != 0 && c.stage == running && c.sending() {
		if err := c.send(); err != nil {
			return err
		}
	}
	if c.run.limit > 0 && c.complete() {
		c.stop()
	}
	return nil
}

// complete tells whether a flow with a limit has moved all its bytes.
func (c *flow) complete() bool {
	return !c.sending() && (!c.run.down || c.received.Load() >= c.run.limit)
}

func (c *flow) send() error {
	size := uint64(len(c.worker.zeros))
	if c.run.limit > 0 {
		size = min(size, c.run.limit-c.sent.Load())
	}
	n, errno := epoll.Send(c.fd, c.worker.zeros[:size])
	if errno != 0 && !epoll.Again(errno) {
		return fmt.Errorf("send: %w", errno)
	}
	c.sent.Store(c.sent.Load() + uint64(n))
	return nil
}

func (c *flow) receive() error {
	if c.stage == finishing {
		return c.receiveTail()
	}
	n, errno := epoll.Discard(c.fd, discardMax)
	switch {
	case errno != 0 && epoll.Again(errno):
		return nil
	case errno != 0:
		return fmt.Errorf("receive: %w", errno)
	case n == 0:
		return fmt.Errorf("the far side ended the connection after %d bytes", c.received.Load())
	}
	c.received.Store(c.received.Load() + uint64(n))
	return nil
}

// receiveTail reads on to the far side's FIN and keeps the last bytes, which
// are the trailer: it is sent only after this side's FIN.
func (c *flow) receiveTail() error {
	n, errno := epoll.Receive(c.fd, c.worker.buf)
	switch {
	case errno != 0 && epoll.Again(errno):
		return nil
	case errno != 0 || n == 0:
		// A tunnel that does not carry half-close ends like this as well; the
		// numbers are then unconfirmed.
		c.stage = ended
		return c.check()
	}
	c.received.Store(c.received.Load() + uint64(n))
	c.tail = append(c.tail, c.worker.buf[max(0, n-TrailerSize):n]...)
	c.tail = c.tail[max(0, len(c.tail)-TrailerSize):]
	return nil
}

// check compares both sides' numbers if the trailer came.
func (c *flow) check() error {
	if len(c.tail) < TrailerSize {
		return nil
	}
	t, ok := ParseTrailer([TrailerSize]byte(c.tail))
	if !ok {
		return nil
	}
	c.confirmed = true
	sent, received := c.sent.Load(), c.received.Load()-TrailerSize
	if t.Received != sent || t.Sent != received {
		return fmt.Errorf("bytes were lost or added: sent %d of which %d arrived, received %d of %d", sent, t.Received, received, t.Sent)
	}
	return nil
}
