package server

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// received is a message of an admitted client.
type received struct {
	control uint64
	link    *link
	message *wire.ClientMessage
}

func (m received) handle(h *hub) {
	c := h.maps.byID[m.control]
	if c == nil || c.link != m.link {
		return
	}
	switch k := m.message.GetKind().(type) {
	case *wire.ClientMessage_RegisterTunnel:
		h.register(c, k.RegisterTunnel.GetSpec())
	case *wire.ClientMessage_CloseTunnel:
		h.closeTunnel(c, k.CloseTunnel.GetName())
	case *wire.ClientMessage_Pong:
		h.known(c, relay.TunnelID(k.Pong.GetNonce()))
	case *wire.ClientMessage_Goodbye:
		h.log.Info("client left", "client", c.key.name, "control", c.id)
		h.end(c, false)
	default:
		c.bye(wire.NewRefusal(wire.CodeProtocol, "Hello was sent twice"), 0)
		h.end(c, false)
	}
}

// closeTunnel closes a tunnel at its client's wish, or else forgets that it was
// refused. What was refused while a tunnel was open under that name is newer than
// it, and stays wanted: its client closes what it has no use for any more.
func (h *hub) closeTunnel(c *Control, name string) {
	t := c.tunnels[name]
	if t == nil {
		h.maps.denied.drop(c, name)
		return
	}
	h.log.Info("tunnel closed by its client", "tunnel", name, "client", c.key.name, "control", c.id)
	delete(c.tunnels, name)
	h.unlisten(t)
}

// register opens a tunnel, or confirms one that is open already.
func (h *hub) register(c *Control, spec *wire.TunnelSpec) {
	old := c.tunnels[spec.GetName()]
	refusal := h.mayRegister(c, spec, old)
	var listen relay.Listen
	if refusal == nil {
		listen, refusal = h.place(c, spec)
	}
	if refusal != nil {
		h.log.Warn("tunnel refused", "tunnel", spec.GetName(), "client", c.key.name, "control", c.id, "reason", refusal.GetReason())
		h.maps.denied.note(c, spec, refusal)
		c.send((&wire.TunnelRejected{Name: spec.GetName(), Refusal: refusal}).ServerMessage())
		return
	}
	h.maps.denied.drop(c, spec.GetName())
	if old != nil && same(old.spec, spec) {
		if len(old.addresses) > 0 {
			c.send(old.registered().ServerMessage())
		} // else the answer is under way
		return
	}
	t := &Tunnel{id: relay.TunnelID(h.number()), control: c, spec: spec}
	c.tunnels[t.name()] = t
	h.maps.tunnels[t.id] = t
	listen.Tunnel = t.id
	t.listen = listen
	if old != nil {
		h.unlisten(old)
	}
	h.listen(t)
}

// mayRegister checks what does not depend on ports.
func (h *hub) mayRegister(c *Control, spec *wire.TunnelSpec, old *Tunnel) *wire.Refusal {
	if spec.GetType() != "tcp" {
		return wire.NewRefusal(wire.CodeBadRequest, fmt.Sprintf("tunnel type %q is not known to this server: use tcp, or upgrade the server", spec.GetType()))
	}
	if old != nil {
		return nil
	}
	if most := h.policy.MaxTunnels; most > 0 && len(c.tunnels) >= most {
		return wire.NewRefusal(wire.CodeTunnelLimit, fmt.Sprintf("this client has %d tunnels, as many as it may: remove one, or ask for a higher limit", most))
	}
	if most := c.identity.Grants.MaxTunnels; most > 0 && h.tunnelsOf(c.key.subject) >= most {
		return wire.NewRefusal(wire.CodeTunnelLimit, fmt.Sprintf("the clients of this token have %d tunnels, as many as it grants: remove one, or ask for a higher grant", most))
	}
	return nil
}

// tunnelsOf counts the tunnels of all clients that share a token.
func (h *hub) tunnelsOf(subject string) int {
	n := 0
	for key, c := range h.maps.controls {
		if key.subject == subject {
			n += len(c.tunnels)
		}
	}
	return n
}

// place decides where a tunnel may listen.
func (h *hub) place(c *Control, spec *wire.TunnelSpec) (relay.Listen, *wire.Refusal) {
	p := placement{
		policy: h.policy, grants: c.identity.Grants, ephemeral: h.site.ephemeral,
		owner: portOwner{subject: c.key.subject, client: c.key.name, tunnel: spec.GetName()}, memory: h.maps.ports, now: time.Now(),
	}
	binds, refusal := p.binds(spec)
	if refusal != nil {
		return relay.Listen{}, refusal
	}
	ports, refusal := p.ports(spec)
	return relay.Listen{Binds: binds, Ports: ports}, refusal
}

// tunnelListening is the engine's answer to a Listen.
func (h *hub) tunnelListening(ev relay.Listening) {
	t := h.maps.tunnels[ev.Tunnel]
	if t == nil {
		return // closed meanwhile; its Unlisten is on the way
	}
	c := t.control
	if ev.Err != nil {
		delete(h.maps.tunnels, t.id)
		if c.tunnels[t.name()] == t {
			delete(c.tunnels, t.name())
		}
		refusal := listenRefusal(ev.Err, t.asked())
		h.log.Warn("tunnel refused", append([]any{"tunnel", t.name(), "client", c.key.name, "control", c.id, "error", ev.Err}, h.holder(t, ev.Err)...)...)
		c.send((&wire.TunnelRejected{Name: t.name(), Refusal: refusal}).ServerMessage())
		return
	}
	t.addresses = ev.Addresses
	t.listen.Ports = nil // dozens, which nobody asks for any more
	h.maps.ports.opened(t.owner(), t.addresses[0].Port())
	h.limit(t) // before visitors are let in
	m := t.registered()
	h.log.Info("tunnel open", "tunnel", t.name(), "client", c.key.name, "control", c.id, "address", strings.Join(m.GetPublicAddresses(), " "))
	c.send(m.ServerMessage())
	c.announce(t)
}

// known lets visitors in: the client has answered the Ping that followed the
// news of the tunnel, so no START for it comes too early.
func (h *hub) known(c *Control, id relay.TunnelID) {
	if t := h.maps.tunnels[id]; t != nil && t.control == c && len(t.addresses) > 0 && !t.known {
		t.known = true
		h.reroute(t)
	}
}

// departure is a tunnel whose listeners are being closed, and those that wait
// for its port.
type departure struct {
	*Tunnel
	next []*Tunnel
}

// blocks tells whether t has to wait: it replaces the tunnel, or its first
// choice is the port that the tunnel still has.
func (d *departure) blocks(t *Tunnel) bool {
	if d.control.key == t.control.key && d.name() == t.name() {
		return true
	}
	if len(d.addresses) > 0 {
		return d.addresses[0].Port() == t.listen.Ports[0]
	}
	return slices.Contains(d.listen.Ports, t.listen.Ports[0])
}

// listen opens the listeners of a tunnel when those before it are closed.
func (h *hub) listen(t *Tunnel) {
	for _, d := range h.maps.closing {
		if d.blocks(t) {
			d.next = append(d.next, t)
			return
		}
	}
	h.engine.Submit(t.listen)
}

// unlisten closes the listeners of a tunnel; its streams go on.
func (h *hub) unlisten(t *Tunnel) {
	delete(h.maps.tunnels, t.id)
	h.maps.closing[t.id] = &departure{Tunnel: t}
	if len(t.addresses) > 0 {
		h.maps.ports.closed(t.owner(), time.Now())
	}
	h.engine.Submit(relay.Unlisten{Tunnel: t.id})
}

// tunnelClosed opens the tunnels that waited for a closed one.
func (h *hub) tunnelClosed(id relay.TunnelID) {
	d := h.maps.closing[id]
	if d == nil {
		return
	}
	delete(h.maps.closing, id)
	for _, t := range d.next {
		if h.maps.tunnels[t.id] == t { // else it was closed before it opened
			h.listen(t)
		}
	}
}
