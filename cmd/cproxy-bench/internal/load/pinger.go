//go:build linux

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/epoll"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/hist"
)

// pingRun is what the pingers of one load share.
type pingRun struct {
	target    netip.AddrPort
	size      int
	once      bool // rest after one exchange, and report it
	recording atomic.Bool
	stopping  atomic.Bool

	// One report of each pinger: that it is connected or cannot be, that its
	// first reply came (once), and how it ended. There is room for all.
	opened, answered, ended chan error
}

// pingTally counts for one worker, the only one who writes.
type pingTally struct {
	trips     atomic.Uint64
	latencies hist.Histogram // read after the worker has ended
}

// pinger sends a message, waits for its echo, and begins again.
type pinger struct {
	worker  *worker
	fd      int
	id      uint32
	watched uint32
	stage   stage
	run     *pingRun
	tally   *pingTally

	message  []byte
	unsent   []byte
	sequence uint32
	got      int
	sentAt   time.Duration
}

// sealed is how many bytes of a message say whose and which it is.
const sealed = 8

func (c *pinger) dial() {
	fd, err := epoll.Connect(c.run.target)
	if err == nil {
		c.fd, c.watched = fd, unix.EPOLLOUT
		if err = c.worker.Add(fd, c, c.watched); err != nil {
			epoll.Close(fd)
		}
	}
	if err != nil {
		c.stage = ended
		c.run.opened <- err
	}
}

// Ready is called by the loop.
func (c *pinger) Ready(events uint32) {
	switch c.stage {
	case connecting:
		if err := c.connected(); err != nil {
			c.end()
			c.run.opened <- fmt.Errorf("connect to %s: %w", c.run.target, err)
			return
		}
		c.run.opened <- nil
	case ended:
	case waiting, running, finishing:
		if err := c.move(events); err != nil {
			c.end()
			c.run.ended <- err
			if c.run.once && c.sequence == 0 {
				c.run.answered <- err
			}
			return
		}
	}
	c.watch()
}

func (c *pinger) connected() error {
	if err := epoll.Connected(c.fd); err != nil {
		return err
	}
	c.stage = waiting
	return nil
}

// start sends the request with the first message; called in the loop.
func (c *pinger) start() {
	if c.stage != waiting {
		return
	}
	c.stage = running
	c.message = make([]byte, c.run.size)
	c.seal()
	request := Request{Op: Echo}.Encode()
	c.sentAt = c.worker.clock.Now()
	c.post(append(request[:], c.message...))
	c.watch()
}

// stop ends a pinger that rests; called in the loop.
func (c *pinger) stop() {
	if c.stage == running || c.stage == waiting {
		c.finish()
		c.watch()
	}
}

func (c *pinger) finish() {
	c.stage = finishing
	c.unsent = nil
	epoll.ShutdownWrite(c.fd)
}

func (c *pinger) end() {
	if c.stage != ended {
		c.stage = ended
		c.worker.Drop(c.fd)
	}
}

func (c *pinger) watch() {
	if c.stage == ended {
		return
	}
	want := uint32(unix.EPOLLIN)
	if len(c.unsent) > 0 {
		want |= unix.EPOLLOUT
	}
	if want != c.watched {
		c.watched = want
		c.worker.Watch(c.fd, want)
	}
}

// post sends b; a failure shows when the reply is awaited.
func (c *pinger) post(b []byte) {
	n, _ := epoll.Send(c.fd, b)
	c.unsent = b[n:]
}

func (c *pinger) move(events uint32) error {
	if len(c.unsent) > 0 && events&unix.EPOLLOUT != 0 {
		c.post(c.unsent)
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return nil
	}
	n, errno := epoll.Receive(c.fd, c.worker.buf)
	switch {
	case errno != 0 && epoll.Again(errno):
		return nil
	case errno != 0:
		return fmt.Errorf("receive: %w", errno)
	case n == 0 && c.stage == finishing:
		c.end()
		c.run.ended <- nil
		return nil
	case n == 0:
		return fmt.Errorf("the far side ended the connection after %d round trips", c.sequence)
	case c.stage != running:
		return errors.New("received bytes that were not asked for")
	}
	return c.reply(c.worker.buf[:n])
}

// reply takes a part of the reply.
func (c *pinger) reply(b []byte) error {
	if c.got+len(b) > len(c.message) {
		return fmt.Errorf("received %d bytes in answer to %d", c.got+len(b), len(c.message))
	}
	if c.got == 0 && len(b) >= sealed && len(c.message) >= sealed && [sealed]byte(b) != [sealed]byte(c.message) {
		return fmt.Errorf("the reply %x is not the echo of %x", b[:sealed], c.message[:sealed])
	}
	c.got += len(b)
	if c.got == len(c.message) {
		c.trip()
	}
	return nil
}

// trip ends a round trip and begins the next.
func (c *pinger) trip() {
	now := c.worker.clock.Now()
	c.got = 0
	c.sequence++
	if c.run.recording.Load() {
		c.tally.trips.Store(c.tally.trips.Load() + 1)
		c.tally.latencies.Add(now - c.sentAt)
	}
	if c.run.once {
		if c.sequence == 1 {
			c.run.answered <- nil
		}
		return
	}
	if c.run.stopping.Load() {
		c.finish()
		return
	}
	c.seal()
	c.sentAt = now
	c.post(c.message)
}

func (c *pinger) seal() {
	if len(c.message) >= sealed {
		binary.BigEndian.PutUint32(c.message[:4], c.id)
		binary.BigEndian.PutUint32(c.message[4:sealed], c.sequence)
	}
}
