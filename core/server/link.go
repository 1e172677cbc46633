package server

import (
	"crypto/tls"
	"net/netip"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// maxUnsent bounds the messages that wait for one client to read them; a
// client that is further behind is dropped.
const maxUnsent = 4096

// writeTimeout bounds one write to a client.
const writeTimeout = 10 * time.Second

// link is the server's end of a CtlConn. send never blocks: the messages are
// written by a goroutine that lives only while there are some.
type link struct {
	conn   *tls.Conn
	peer   netip.AddrPort
	writer *wire.Writer
	tasks  *sync.WaitGroup // what the server waits for at its end

	mu      sync.Mutex
	unsent  []*wire.ServerMessage
	writing bool
	closing bool // close when all is written
	closed  bool
	failure error
	done    chan struct{} // closed when it is
}

func newLink(conn *tls.Conn, peer netip.AddrPort, tasks *sync.WaitGroup) *link {
	return &link{conn: conn, peer: peer, writer: wire.NewWriter(conn), tasks: tasks, done: make(chan struct{})}
}

// send queues m; what is sent after finish or close is dropped.
func (k *link) send(m *wire.ServerMessage) { k.queue(m, false) }

// finish sends m and closes the connection behind it.
func (k *link) finish(m *wire.ServerMessage) { k.queue(m, true) }

func (k *link) queue(m *wire.ServerMessage, last bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || k.closing {
		return
	}
	if len(k.unsent) >= maxUnsent {
		k.shut()
		return
	}
	k.unsent = append(k.unsent, m)
	k.closing = last
	if !k.writing {
		k.writing = true
		k.tasks.Go(k.write)
	}
}

// write empties the queue.
func (k *link) write() {
	for {
		k.mu.Lock()
		if len(k.unsent) == 0 || k.closed {
			k.writing = false
			if k.closing {
				k.shut()
			}
			k.mu.Unlock()
			return
		}
		m := k.unsent[0]
		k.unsent = k.unsent[1:]
		k.mu.Unlock()
		_ = k.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err := k.writer.WriteServerMessage(m); err != nil {
			k.fail(err)
		}
	}
}

// fail closes the connection; its reader, which sees only that it is closed,
// reports why.
func (k *link) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.closed {
		k.failure = err
		k.shut()
	}
}

// why is what ended the connection: what fail was told, or else err.
func (k *link) why(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return k.failure
	}
	return err
}

// close ends the connection at once.
func (k *link) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shut()
}

// shut closes the socket beneath TLS: a close_notify could block, and neither
// end depends on one, since a Goodbye says what there is to say.
func (k *link) shut() {
	if !k.closed {
		k.closed = true
		close(k.done)
		k.unsent = nil
		_ = k.conn.NetConn().Close()
	}
}
