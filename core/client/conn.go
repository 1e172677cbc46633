package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// maxUnsent bounds the messages that wait for the server to read them: more
// than all tunnels of a large client registered at once.
const maxUnsent = 1 << 17

var (
	errUnread    = errors.New("the server does not read: too many messages wait")
	errSilent    = errors.New("the server was silent for too long")
	errServerEnd = errors.New("the server closed the connection")
)

// ctlConn is an open CtlConn. send, close and goodbye may be called from any
// goroutine; the reader delivers to the owner.
type ctlConn struct {
	conn     *tls.Conn
	reader   *wire.Reader
	writer   *wire.Writer  // of connect, then of the writing goroutine
	patience time.Duration // the longest silence of the server
	ended    chan struct{} // closed when the reader has ended
	wake     chan struct{} // something is unsent
	closed   chan struct{}

	mu     sync.Mutex
	unsent []*wire.ClientMessage
	cause  error // why it was closed from within
	shut   bool
}

func newCtlConn(conn *tls.Conn) *ctlConn {
	return &ctlConn{
		conn:   conn,
		reader: wire.NewReader(conn),
		writer: wire.NewWriter(conn),
		ended:  make(chan struct{}),
		wake:   make(chan struct{}, 1),
		closed: make(chan struct{}),
	}
}

// received is what the reader has for the owner: a valid message, or why there
// will be no more.
type received struct {
	conn    *ctlConn
	message *wire.ServerMessage
	err     error
}

// read delivers messages until the connection ends.
func (c *ctlConn) read(ctx context.Context, to chan<- received) {
	defer close(c.ended)
	for {
		message, err := c.next()
		select {
		case to <- received{c, message, err}:
		case <-ctx.Done():
			// Nobody listens any more, but the server may still have something
			// to send before it closes; unread, it would turn our Goodbye into
			// a reset.
		}
		if err != nil {
			return
		}
	}
}

func (c *ctlConn) next() (*wire.ServerMessage, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
		return nil, c.reason(err)
	}
	message, err := c.reader.ReadServerMessage()
	if err != nil {
		return nil, c.reason(err)
	}
	if err := message.Validate(); err != nil {
		return nil, fmt.Errorf("check message of the server: %w", err)
	}
	return message, nil
}

// reason words why reading ended.
func (c *ctlConn) reason(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cause != nil:
		return c.cause
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSilent
	case errors.Is(err, io.EOF):
		return errServerEnd
	default:
		return err
	}
}

// send queues a message. It never blocks; a server that does not read loses its
// connection.
func (c *ctlConn) send(m *wire.ClientMessage) {
	c.mu.Lock()
	full := len(c.unsent) >= maxUnsent
	if !full && !c.shut {
		c.unsent = append(c.unsent, m)
	}
	c.mu.Unlock()
	if full {
		c.fail(errUnread)
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write sends what is queued until the connection is closed.
func (c *ctlConn) write(timeout time.Duration) {
	for {
		select {
		case <-c.closed:
			return
		case <-c.wake:
		}
		for _, m := range c.take() {
			c.setWriteDeadline(timeout)
			if err := c.writer.WriteClientMessage(m); err != nil {
				c.fail(err)
				return
			}
		}
	}
}

func (c *ctlConn) take() []*wire.ClientMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	unsent := c.unsent
	c.unsent = nil
	return unsent
}

func (c *ctlConn) setWriteDeadline(timeout time.Duration) {
	_ = c.conn.SetWriteDeadline(time.Now().Add(timeout)) // the write reports a dead conn
}

// fail closes the connection; the reader reports err.
func (c *ctlConn) fail(err error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = err
	}
	c.mu.Unlock()
	c.close()
}

// close ends the connection at once; both goroutines then end. It closes the
// socket beneath TLS: a close_notify could block, and neither end depends on
// one, since a Goodbye says what there is to say.
func (c *ctlConn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		return
	}
	c.shut = true
	c.unsent = nil
	close(c.closed)
	_ = c.conn.NetConn().Close() // nothing is left to lose
}
