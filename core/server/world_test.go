package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// fakeEngine notes commands and answers as the real one does, but never opens
// a socket.
type fakeEngine struct {
	events chan []relay.Event

	mu       sync.Mutex
	commands []relay.Command
	taken    map[uint16]error // what binding a port fails with
	slow     bool             // answers to Unlisten wait for release
	uses     []relay.PoolUse  // what PoolUses tells once
	unsaid   []relay.Event
}

func (e *fakeEngine) Events() <-chan []relay.Event { return e.events }

func (e *fakeEngine) PoolUses(uses []relay.PoolUse) []relay.PoolUse {
	e.mu.Lock()
	defer e.mu.Unlock()
	uses = append(uses, e.uses...)
	e.uses = nil
	return uses
}

func (e *fakeEngine) Submit(c relay.Command) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.commands = append(e.commands, c)
	switch c := c.(type) {
	case relay.Listen:
		e.events <- []relay.Event{e.listen(c)}
	case relay.Unlisten:
		if e.slow {
			e.unsaid = append(e.unsaid, relay.Unlistened(c))
			return
		}
		e.events <- []relay.Event{relay.Unlistened(c)}
	}
}

func (e *fakeEngine) listen(c relay.Listen) relay.Listening {
	ev := relay.Listening{Tunnel: c.Tunnel}
	for _, port := range c.Ports {
		if ev.Err = e.taken[port]; ev.Err == nil {
			for _, bind := range c.Binds {
				ev.Addresses = append(ev.Addresses, netip.AddrPortFrom(bind, port))
			}
			return ev
		}
	}
	return ev
}

// release says what was held back.
func (e *fakeEngine) release() {
	e.mu.Lock()
	unsaid := e.unsaid
	e.unsaid, e.slow = nil, false
	e.mu.Unlock()
	e.events <- unsaid
}

// guard is an Authenticator: every token is good if its secret is.
type guard struct {
	mu     sync.Mutex
	grants map[string]identity.Grants
	fails  error         // nobody can decide
	gate   chan struct{} // nil, or what an answer waits for
	then   func()        // nil, or what happens just before a yes
}

func (g *guard) Authenticate(ctx context.Context, l Login) (Identity, error) {
	g.mu.Lock()
	grants, fails, gate := g.grants[l.Token], g.fails, g.gate
	g.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return Identity{}, ctx.Err()
		}
	}
	switch {
	case fails != nil:
		return Identity{}, fails
	case !bytes.Equal(l.Secret[:], secretOf(l.Token)):
		return Identity{}, fmt.Errorf("look up token: %w", identity.ErrBadCredential)
	case l.Client == "" || l.Version == "" || l.Hostname == "":
		return Identity{}, errors.New("a fact about the client is missing")
	}
	if g.then != nil {
		g.then()
	}
	return Identity{Subject: l.Token, Grants: grants}, nil
}

// world is a hub with its door, without sockets and in a time of its own.
type world struct {
	t       *testing.T
	hub     *hub
	door    *door
	engine  *fakeEngine
	guard   *guard
	revoked chan []string
	granted chan map[string]identity.Grants
	log     *logtest.Output
	ctx     context.Context
	end     context.CancelFunc
	tasks   sync.WaitGroup
}

// inWorld runs a test against a hub. All clocks stand still unless everyone
// sleeps, so a time.Sleep of the test is how time passes, and takes none.
func inWorld(t *testing.T, p Policy, test func(w *world)) {
	t.Helper()
	serverTLS()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, engine: &fakeEngine{events: make(chan []relay.Event, 4096), taken: make(map[uint16]error)},
			guard: &guard{grants: make(map[string]identity.Grants)}, revoked: make(chan []string), log: new(logtest.Output),
			granted: make(chan map[string]identity.Grants),
		}
		w.ctx, w.end = context.WithCancel(context.Background())
		s := &Server{options: Options{
			TLS: serverTLS(), Policy: p, Authenticator: w.guard, Revoked: w.revoked, Regranted: w.granted, Version: "test", Log: w.log.Logger(), Secret: [32]byte{7},
		}}
		s.hub = newHub(&s.options, w.engine)
		s.hub.site.proxy = netip.AddrPortFrom(netip.IPv6Unspecified(), 7001)
		s.hub.site.proxyAddress = ":7001"
		s.hub.site.ephemeral = identity.PortRange{First: 32768, Last: 60999}
		w.hub, w.door = s.hub, s.door(&w.tasks)
		w.tasks.Go(func() {
			if err := w.hub.run(w.ctx); err != nil {
				t.Errorf("hub ended with %v", err)
			}
		})
		defer func() {
			w.end()
			w.tasks.Wait()
		}()
		test(w)
	})
}

// connect gives the far end of a connection that the door has accepted.
func (w *world) connect() net.Conn {
	a, b := net.Pipe()
	place, ousted := w.door.room.enter(b)
	if ousted != nil {
		_ = ousted.Close()
	}
	w.tasks.Go(func() { w.door.admit(w.ctx, b, func() { w.door.room.leave(place) }) })
	w.t.Cleanup(func() { _ = a.Close() })
	return a
}

func (w *world) dial() *peer {
	w.t.Helper()
	return newPeer(w.t, w.connect(), synctest.Wait)
}

// commands takes the commands of one kind that came since it was last asked;
// those of other kinds are forgotten.
func commands[C relay.Command](w *world) []C {
	synctest.Wait()
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	var all []C
	for _, c := range w.engine.commands {
		if c, ok := c.(C); ok {
			all = append(all, c)
		}
	}
	w.engine.commands = nil
	return all
}

// sequence takes all commands, by the names of their types.
func (w *world) sequence() []string {
	var names []string
	for _, c := range commands[relay.Command](w) {
		names = append(names, fmt.Sprintf("%T", c)[len("relay."):])
	}
	return names
}

func (w *world) feed(events ...relay.Event) {
	w.engine.events <- events
	synctest.Wait()
}

func (w *world) occupy(ports ...uint16) {
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	for _, port := range ports {
		w.engine.taken[port] = fmt.Errorf("listen on port %d: %w", port, syscall.EADDRINUSE)
	}
}

// control is the hub's Control of a client; only while nothing moves.
func (w *world) control(p *peer) *Control {
	synctest.Wait()
	return w.hub.maps.byID[p.welcome.GetControlId()]
}

// empty expects that nothing is left of anyone.
func (w *world) empty() {
	w.t.Helper()
	synctest.Wait()
	m := w.hub.maps
	if n := len(m.controls) + len(m.byID) + len(m.instances) + len(m.pools) + len(m.tunnels) + len(m.closing); n > 0 {
		w.t.Errorf("the hub's maps still have %d entries", n)
	}
}

// prefaceOf is what a client opens a ProxyConn with.
func prefaceOf(welcome *wire.Welcome, proxyID uint64) frame.Preface {
	return frame.Preface{Mode: frame.Plain, ControlID: welcome.GetControlId(), Epoch: welcome.GetEpoch(), ProxyID: proxyID}
}

// clientHello is the first record of a TLS client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(a, clientTLS()).Handshake()
	}()
	record := make([]byte, 16<<10)
	_ = b.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := b.Read(record)
	if err != nil {
		t.Fatal(err)
	}
	_ = errors.Join(a.Close(), b.Close())
	<-done
	return slices.Clip(record[:n])
}
