package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// controlKey is what makes two connections those of one client.
type controlKey struct {
	subject string
	name    string
}

// instance names one run of a client process.
type instance [wire.InstanceSize]byte

// session is what a client proves to know.
type session struct {
	id       uint64 // of the Control
	epoch    uint64
	instance instance
	secret   []byte     // the session key
	prefaces *frame.Key // made of it when the first ProxyConn comes
}

// prefaceKey gives what signs the prefaces of the session.
func (s *session) prefaceKey() *frame.Key {
	if s.prefaces == nil {
		s.prefaces = frame.NewKey(s.secret)
	}
	return s.prefaces
}

// Control is the server's state for one connected client. The hub's goroutine
// owns it.
type Control struct {
	session
	place
	identity  Identity
	pool      relay.PoolID
	link      *link // nil while the client is away
	away      time.Time
	heartbeat time.Duration
	nextPing  time.Time
	tunnels   map[string]*Tunnel
	proxyIDs  window
	supply    supply
	proxies   int // open ProxyConns
}

// Tunnel is one exposed LocalServer. The hub's goroutine owns it.
type Tunnel struct {
	id        relay.TunnelID
	control   *Control
	spec      *wire.TunnelSpec
	listen    relay.Listen
	limit     relay.Limit      // what the engine was told last, zero before
	addresses []netip.AddrPort // empty until the engine listens
	known     bool             // by the client: visitors are let in
}

// wireID is what START calls the tunnel.
func (t *Tunnel) wireID() uint32 { return uint32(t.id) }

func (t *Tunnel) name() string { return t.spec.GetName() }

func (t *Tunnel) owner() portOwner {
	return portOwner{subject: t.control.key.subject, client: t.control.key.name, tunnel: t.name()}
}

func (t *Tunnel) registered() *wire.TunnelRegistered {
	m := &wire.TunnelRegistered{Name: t.name(), Id: t.wireID()}
	for _, a := range t.addresses {
		m.PublicAddresses = append(m.PublicAddresses, a.String())
	}
	return m
}

// asked words the port that a tunnel asked for.
func (t *Tunnel) asked() string {
	first, last := t.spec.GetPortFirst(), t.spec.GetPortLast()
	switch first {
	case 0:
		return "every port that was tried for it"
	case last:
		return "port " + strconv.FormatUint(uint64(first), 10)
	default:
		return fmt.Sprintf("every port that was tried of %d-%d", first, last)
	}
}

// send passes a message to the client, if it is there.
func (c *Control) send(m *wire.ServerMessage) {
	if c.link != nil {
		c.link.send(m)
	}
}

// address is where the client is, the zero one while it is away.
func (c *Control) address() netip.Addr {
	if c.link == nil {
		return netip.Addr{}
	}
	return c.link.peer.Addr()
}

// announce asks the client to say that it knows a tunnel, since START may
// overtake what the CtlConn brings.
func (c *Control) announce(t *Tunnel) {
	c.send((&wire.Ping{Nonce: uint64(t.id)}).ServerMessage())
}

// firstPing is how long after its Welcome a connection is pinged first: between
// half a heartbeat and a whole one, so that clients who came together are not
// pinged together for ever.
func (c *Control) firstPing() time.Duration {
	return c.heartbeat - time.Duration(c.id%uint64(max(c.heartbeat/2, 1)))
}

// bye takes leave of the client and closes its connection.
func (c *Control) bye(r *wire.Refusal, retryAfter time.Duration) {
	if c.link != nil {
		c.link.finish(wire.NewGoodbye(r, retryAfter).ServerMessage())
		c.link = nil
	}
}

// route is where the PublicConns of the Control's tunnels go.
func (c *Control) route(t *Tunnel, maxConns int) relay.Route {
	return relay.ToPool{Pool: c.pool, Wire: t.wireID(), MaxConns: maxConns}
}

// open gives the tunnels that listen, in the order of their names.
func (c *Control) open() []*wire.TunnelRegistered {
	var open []*wire.TunnelRegistered
	for _, t := range c.tunnels {
		if len(t.addresses) > 0 {
			open = append(open, t.registered())
		}
	}
	slices.SortFunc(open, func(a, b *wire.TunnelRegistered) int {
		if a.GetName() < b.GetName() {
			return -1
		}
		return 1
	})
	return open
}

// same tells whether two specs ask for the same.
func same(a, b *wire.TunnelSpec) bool { return proto.Equal(a, b) }
