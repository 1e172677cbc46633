package relay

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// wire lies between a client and the proxy port of a server, and can be cut.
type wire struct {
	address netip.AddrPort
	to      netip.AddrPort
	door    net.Listener
	running sync.WaitGroup

	mu     sync.Mutex
	cables map[*cable]struct{}
	ended  bool
}

// cable carries one ProxyConn.
type cable struct {
	client, server *net.TCPConn
	dead           atomic.Bool // carries nothing any more, and tells nobody
}

func startWire(tb testing.TB, to netip.AddrPort) *wire {
	tb.Helper()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	w := &wire{address: door.Addr().(*net.TCPAddr).AddrPort(), to: to, door: door, cables: make(map[*cable]struct{})}
	w.running.Go(w.accept)
	tb.Cleanup(func() {
		door.Close()
		w.mu.Lock()
		w.ended = true
		w.mu.Unlock()
		w.each(func(c *cable) bool { c.reset(); return true })
		w.running.Wait()
	})
	return w
}

func (w *wire) accept() {
	for {
		client, err := w.door.Accept()
		if err != nil {
			return
		}
		server, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(w.to))
		if err != nil {
			drop(client)
			continue
		}
		c := &cable{client: client.(*net.TCPConn), server: server}
		w.mu.Lock()
		if w.ended {
			c.reset()
		}
		w.cables[c] = struct{}{}
		w.mu.Unlock()
		w.running.Go(func() {
			var carrying sync.WaitGroup
			carrying.Go(func() { c.carry(c.client, c.server) })
			c.carry(c.server, c.client)
			carrying.Wait()
			drop(c.client, c.server)
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.cables, c)
		})
	}
}

// carry passes bytes on, and how they end: TCP FIN, or RST.
func (c *cable) carry(from, to *net.TCPConn) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		if !c.dead.Load() {
			if _, e := to.Write(b[:n]); err == nil {
				err = e
			}
		}
		if err == nil {
			continue
		}
		if c.dead.Load() {
			return
		}
		if errors.Is(err, io.EOF) {
			_ = to.CloseWrite()
		} else {
			_ = to.SetLinger(0)
			drop(to)
		}
		return
	}
}

func (c *cable) reset() {
	_ = c.client.SetLinger(0)
	_ = c.server.SetLinger(0)
	drop(c.client, c.server)
}

// each calls for cables, in no order, until one is refused.
func (w *wire) each(use func(*cable) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.cables {
		if !use(c) {
			return
		}
	}
}

// kill ends one cable in one of the ways in which networks do.
func (w *wire) kill(rng *rand.Rand) {
	way, patience := rng.IntN(4), time.Duration(rng.IntN(200))*time.Millisecond
	w.each(func(c *cable) bool {
		switch way {
		case 0:
			c.reset()
		case 1:
			_ = c.client.CloseWrite()
			_ = c.server.CloseWrite()
		case 2:
			_ = c.server.CloseRead()
			_ = c.client.CloseRead()
		default: // it vanishes, and in the end keepalive finds out
			if !c.dead.Swap(true) {
				w.running.Go(func() {
					<-time.After(patience)
					c.reset()
				})
			}
		}
		return false
	})
}
