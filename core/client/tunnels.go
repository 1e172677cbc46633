package client

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/retry"
	"github.com/cproxy/cproxy/core/wire"
)

// registerMax bounds the wait after a tunnel was refused for now.
const registerMax = time.Minute

// tunnelMap is the client's TunnelMap.
type tunnelMap struct {
	byName  map[string]*tunnel
	waiting map[string]time.Time // refused for now, and when to ask again
	// ids names tunnels to the engine. A name keeps its id for good, so that
	// streams which outlive their tunnel still have one in the log.
	ids       map[string]relay.TunnelID
	names     map[relay.TunnelID]string
	reopening reopening
}

// tunnel is a configured tunnel.
type tunnel struct {
	config    Tunnel
	id        relay.TunnelID
	spec      *wire.TunnelSpec
	confirmed *wire.TunnelSpec // what the server accepted last; nil: nothing, or not known
	held      bool             // the server has something open under this name
	wireID    uint32           // what START calls it; 0: not registered
	shown     []string         // its public addresses, as Ready was told
	refused   bool             // for good
	backoff   retry.Backoff
	target    target
}

func newTunnelMap() tunnelMap {
	return tunnelMap{
		byName:  make(map[string]*tunnel),
		waiting: make(map[string]time.Time),
		ids:     make(map[string]relay.TunnelID),
		names:   make(map[relay.TunnelID]string),
	}
}

// id gives the engine's id of a name.
func (m *tunnelMap) id(name string) relay.TunnelID {
	id, known := m.ids[name]
	if !known {
		id = relay.TunnelID(len(m.ids) + 1)
		m.ids[name] = id
		m.names[id] = name
	}
	return id
}

func (m *tunnelMap) name(id relay.TunnelID) string { return m.names[id] }

// addTunnel takes a tunnel that was not there before.
func (o *owner) addTunnel(config Tunnel) *tunnel {
	t := &tunnel{
		config: config, id: o.tunnels.id(config.Name), spec: config.spec(),
		backoff: retry.Backoff{Base: o.client.timing.register, Max: registerMax - o.client.timing.register, Int64N: o.client.timing.draw},
	}
	o.tunnels.byName[config.Name] = t
	t.target = o.target(config)
	return t
}

// removeTunnel closes a tunnel. Its streams go on.
func (o *owner) removeTunnel(t *tunnel) {
	delete(o.tunnels.byName, t.config.Name)
	delete(o.tunnels.waiting, t.config.Name)
	o.closeTunnel(t.config.Name)
	o.dropTarget(t)
	o.answered(t.config.Name)
	o.log.Info("tunnel removed", "tunnel", t.config.Name)
}

// replaceTunnel gives a tunnel another configuration. Only a change that the
// server has to know of touches its listener.
func (o *owner) replaceTunnel(t *tunnel, config Tunnel) {
	t.config = config
	t.target = o.target(config)
	spec := config.spec()
	if proto.Equal(t.spec, spec) {
		o.setTarget(t)
		return
	}
	t.spec = spec
	o.dropTarget(t)
	o.renew(t)
}

// renew makes a tunnel start over with being refused.
func (o *owner) renew(t *tunnel) {
	t.refused = false
	t.backoff.Reset()
	delete(o.tunnels.waiting, t.config.Name)
	o.register(t)
}

// reconcile compares what the server says it has with what is configured, and
// asks for the difference.
func (o *owner) reconcile(w *wire.Welcome, resumed bool) {
	if !resumed && !o.link.first {
		o.reopen()
	}
	listed := make(map[string]*wire.TunnelRegistered, len(w.GetTunnels()))
	for _, r := range w.GetTunnels() {
		listed[r.GetName()] = r
		if o.tunnels.byName[r.GetName()] == nil {
			o.closeTunnel(r.GetName())
			o.client.engine.Submit(relay.DropTarget{Pool: o.pool.id, Wire: r.GetId()})
		}
	}
	for _, config := range o.config.Tunnels {
		t, r := o.tunnels.byName[config.Name], listed[config.Name]
		t.refused = false
		t.held = r != nil
		if !resumed {
			t.confirmed, t.wireID = nil, 0 // the new pool knows no targets
		}
		switch {
		case r == nil:
			// Its target stays: of very many tunnels a Welcome has no room for
			// all, and those that are told later have visitors already.
			t.confirmed = nil
			o.register(t)
		case t.confirmed != nil && proto.Equal(t.confirmed, t.spec):
			o.open(t, r)
		default:
			// Whatever it is that the server has open, its visitors are to be
			// served until the answer comes.
			o.renumber(t, r.GetId())
			o.register(t)
		}
	}
}

// register asks for a tunnel, once its target is known and there is a
// connection. A tunnel of that name with another specification is replaced by
// the server.
func (o *owner) register(t *tunnel) {
	if t.target.unknown() {
		return // resolved does it
	}
	o.send((&wire.RegisterTunnel{Spec: t.spec}).ClientMessage())
}

func (o *owner) closeTunnel(name string) {
	o.send((&wire.CloseTunnel{Name: name}).ClientMessage())
}

// registered takes the server's consent.
func (o *owner) registered(r *wire.TunnelRegistered) {
	t := o.tunnels.byName[r.GetName()]
	if t == nil {
		o.closeTunnel(r.GetName()) // removed while it was being registered
		return
	}
	o.link.first = false
	t.confirmed, t.held = t.spec, true
	t.refused = false
	t.backoff.Reset()
	delete(o.tunnels.waiting, r.GetName())
	o.open(t, r)
}

// rejected takes the server's refusal. Its error ends the client: on the first
// connection nothing is left when all tunnels are refused for good.
func (o *owner) rejected(r *wire.TunnelRejected) error {
	t := o.tunnels.byName[r.GetName()]
	if t == nil {
		return nil // removed while it was being registered
	}
	if t.held {
		// The server may have kept what was open before, which is not what is
		// configured now.
		o.closeTunnel(r.GetName())
	}
	o.dropTarget(t)
	t.confirmed, t.held, t.shown = nil, false, nil
	o.reopenRefused(r.GetName())
	if !r.GetRefusal().GetPermanent() {
		delay := t.backoff.NextAfter(o.client.timing.register)
		o.tunnels.waiting[r.GetName()] = time.Now().Add(delay)
		o.log.Warn("tunnel refused for now", "tunnel", r.GetName(), "control", o.session.control,
			"retry_in", delay.Round(time.Millisecond), "error", r.Err())
		return nil
	}
	t.refused = true
	o.log.Error("tunnel refused; it opens by itself once the server allows it, and is asked for again after a reload or a new connection",
		"tunnel", r.GetName(), "control", o.session.control, "error", r.Err())
	if o.link.first && !slices.ContainsFunc(o.tunnels.all(), func(t *tunnel) bool { return !t.refused }) {
		return fmt.Errorf("register tunnel %s (no other was accepted): %w", r.GetName(), r.Err())
	}
	return nil
}

func (m *tunnelMap) all() []*tunnel {
	all := make([]*tunnel, 0, len(m.byName))
	for _, t := range m.byName {
		all = append(all, t)
	}
	return all
}

// open begins to serve a registered tunnel and tells its addresses.
func (o *owner) open(t *tunnel, r *wire.TunnelRegistered) {
	o.renumber(t, r.GetId())
	var addresses []string
	for _, address := range r.GetPublicAddresses() {
		address = o.session.reachable(address)
		if slices.Contains(addresses, address) {
			continue
		}
		addresses = append(addresses, address)
		if !slices.Contains(t.shown, address) {
			o.log.Info("tunnel ready", "tunnel", t.config.Name, "control", o.session.control, "address", address)
			o.client.options.Ready(t.config.Name, address)
		}
	}
	o.reopened(t.config.Name, t.shown, addresses)
	t.shown = addresses
}

// reachable gives the address under which a public address can be dialled: the
// server's own host where it listens on all addresses.
func (s *session) reachable(address string) string {
	bound, err := netip.ParseAddrPort(address)
	if err != nil || !bound.Addr().Unmap().IsUnspecified() {
		return address
	}
	_, port, _ := net.SplitHostPort(address) // it has been parsed above
	return net.JoinHostPort(hostOf(s.server), port)
}

// renumber follows a tunnel to the id that START gives it.
func (o *owner) renumber(t *tunnel, id uint32) {
	if t.wireID != id {
		o.dropTarget(t)
	}
	t.wireID = id
	o.setTarget(t)
}

// setTarget tells the engine where the LocalServer is; new streams go there.
// One that is being looked up for the first time leaves the former in place.
func (o *owner) setTarget(t *tunnel) {
	if t.wireID == 0 || t.target.unknown() {
		return
	}
	o.client.engine.Submit(relay.SetTarget{
		Pool: o.pool.id, Wire: t.wireID, Tunnel: t.id,
		Target: relay.Target{Addresses: o.addresses(t.target), ProxyProtocol: t.config.ProxyProtocol},
	})
}

func (o *owner) dropTarget(t *tunnel) {
	if t.wireID != 0 {
		o.client.engine.Submit(relay.DropTarget{Pool: o.pool.id, Wire: t.wireID})
		t.wireID = 0
	}
}
