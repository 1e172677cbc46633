package server

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/wire"
)

// caller is an admitted client as the goroutine sees it that reads from it.
type caller struct {
	link     *link
	reader   *wire.Reader
	control  uint64
	patience time.Duration
	raw      syscall.RawConn // nil: the connection is no socket
}

// rawOf gives access to the socket of a connection, if it is one.
func rawOf(conn net.Conn) syscall.RawConn {
	if socket, ok := conn.(syscall.Conn); ok {
		if raw, err := socket.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// read passes on what an admitted client sends until its connection ends. A
// client that is silent for longer than patience is gone.
func (d *door) read(ctx context.Context, c *caller) {
	for ctx.Err() == nil {
		c.rest(ctx)
		if ctx.Err() == nil && !d.pass(ctx, c) {
			return
		}
	}
	drain(c.link) // while the hub says Goodbye to all
}

// past is a deadline that has passed.
func past() time.Time { return time.Unix(1, 0) }

// rest waits until there is something to read, or a reason to read no more,
// which reading then tells. Clients rest nearly all the time and by the thousand:
// here they do with half of the stack that waiting inside of TLS takes, so that
// the garbage collector can take the other half back.
func (c *caller) rest(ctx context.Context) {
	conn := c.link.conn
	if c.raw == nil {
		_ = conn.SetReadDeadline(time.Now().Add(c.patience))
		return
	}
	_ = conn.SetReadDeadline(past()) // for what TLS has read already, without waiting
	err := c.reader.Await()
	_ = conn.SetReadDeadline(time.Now().Add(c.patience))
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		_ = c.raw.Read(readable)
	}
}

// readable tells whether reading from a socket would not block.
func readable(fd uintptr) bool {
	var b [1]byte
	_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return !errors.Is(err, unix.EAGAIN)
}

// pass takes one message to the hub; false when there will be no more.
func (d *door) pass(ctx context.Context, c *caller) bool {
	k := c.link
	m, err := c.reader.ReadClientMessage()
	refusal := badMessage(err)
	if err == nil {
		if err = m.Validate(); err != nil {
			refusal = wire.NewRefusal(wire.CodeProtocol, err.Error())
		}
	}
	if refusal != nil {
		k.finish(wire.NewGoodbye(refusal, 0).ServerMessage())
		drain(k)
	}
	if err == nil && d.hub.tell(ctx, received{c.control, k, m}) {
		return true
	}
	if err == nil || !d.hub.tell(ctx, lost{c.control, k, k.why(err)}) {
		drain(k)
	}
	return false
}
