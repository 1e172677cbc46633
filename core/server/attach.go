package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// maxRevoked bounds the memory of revocations; it only has to outlast logins
// that are under way.
const maxRevoked = 4096

// attachment asks the hub to admit a client.
type attachment struct {
	*arrival
	reply chan<- admitted
}

// admitted is the Control that a client got, zero when it was refused, and how
// long it may be silent.
type admitted struct {
	control  uint64
	patience time.Duration
}

// attach admits a client or refuses it; either has been told to the client.
func (h *hub) attach(ctx context.Context, a *arrival) (control uint64, patience time.Duration) {
	reply := make(chan admitted, 1)
	if !h.tell(ctx, attachment{a, reply}) {
		a.link.finish(wire.NewGoodbye(wire.NewRefusal(wire.CodeShutdown, ""), h.herd.next()).ServerMessage())
		return 0, 0
	}
	got := <-reply
	return got.control, got.patience
}

func (a attachment) handle(h *hub) {
	c, refusal, retry := h.admit(a.arrival)
	if refusal != nil {
		level := slog.LevelInfo
		if refusal.GetCode() == wire.CodeSuperseded {
			level = slog.LevelWarn // only the operator can end this
		}
		h.refusals.Log(level, "attach "+a.link.peer.Addr().String(), "client refused",
			refusedLogin(a.hello, a.link.peer, refusal)...)
		a.link.finish(wire.NewGoodbye(refusal, retry).ServerMessage())
		a.reply <- admitted{}
		return
	}
	a.reply <- admitted{control: c.id, patience: c.heartbeat*5/2 + time.Second}
}

// admit finds out whether the client is new, comes back, or takes over.
func (h *hub) admit(a *arrival) (*Control, *wire.Refusal, time.Duration) {
	inst := instance(a.hello.GetInstance())
	if a.identity == nil {
		c := h.maps.instances[inst]
		if c == nil || !wire.CheckResumeProof(a.hello.GetProof(), c.secret, a.hello.GetEpoch(), a.exporter) {
			return nil, wire.NewRefusal(wire.CodeNotResumable, ""), 0
		}
		return h.comeBack(c, a)
	}
	if h.maps.revoked[a.identity.Subject] > a.revocations {
		// The token changed while it was checked; which of the two secrets is
		// valid now shows when it is checked again.
		return nil, wire.NewRefusal(wire.CodeUnavailable, "the token was changed during the login: try again"), 0
	}
	key := controlKey{subject: a.identity.Subject, name: a.hello.GetName()}
	old := h.maps.controls[key]
	if old != nil && old.supersedes(inst) {
		return nil, old.superseded(old.address()), supersededRetry
	}
	if old != nil && old.instance == inst {
		old.identity = *a.identity
		for _, t := range old.tunnels {
			h.limit(t)
		}
		return h.comeBack(old, a)
	}
	c := h.newControl(key, inst, a)
	if old != nil {
		c.place = old.successor(a.hello.GetHostname(), old.instance)
		h.takeOver(c, old, a)
	}
	h.maps.controls[key] = c
	h.welcome(c, a, false)
	return c, nil, 0
}

// comeBack gives a Control a new connection.
func (h *hub) comeBack(c *Control, a *arrival) (*Control, *wire.Refusal, time.Duration) {
	if a.hello.GetEpoch() <= c.epoch {
		return nil, wire.NewRefusal(wire.CodeStaleEpoch, ""), 0
	}
	if c.link != nil {
		c.link.close() // its reader has not noticed yet that it is dead
	}
	c.session = h.session(c.id, c.instance, a.hello.GetEpoch())
	c.heartbeat = h.policy.Heartbeat
	c.proxyIDs = window{}
	c.supply.demand = demand{}
	c.supply.keeps = keeps(a.hello)
	h.welcome(c, a, true)
	return c, nil, 0
}

// newControl makes a Control with a pool and a session of its own.
func (h *hub) newControl(key controlKey, inst instance, a *arrival) *Control {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	c := &Control{
		session:  h.session(binary.BigEndian.Uint64(b[:])|1, inst, a.hello.GetEpoch()),
		place:    place{key: key, host: a.hello.GetHostname()},
		identity: *a.identity,
		pool:     relay.PoolID(h.number()),
		tunnels:  make(map[string]*Tunnel),
	}
	c.heartbeat = h.policy.Heartbeat
	c.supply.keeps = keeps(a.hello)
	h.maps.byID[c.id] = c
	h.maps.instances[inst] = c
	h.maps.pools[c.pool] = c
	h.openPool(c)
	return c
}

func (h *hub) session(id uint64, inst instance, epoch uint64) session {
	secret := sessionKey(h.options.Secret, id, epoch)
	return session{id: id, epoch: epoch, instance: inst, secret: secret}
}

// takeOver moves name, ports and tunnels to a new instance of a client. The
// old pool closes; its streams are left to end by themselves.
func (h *hub) takeOver(c, old *Control, a *arrival) {
	if old.link != nil {
		h.log.Warn("a new instance takes over from one that is connected; if both are meant to run, give each its own name",
			"client", c.key.name, "control", c.id, "host", c.host, "source", a.link.peer.String(),
			"former", old.id, "former_host", old.host, "former_source", old.link.peer.String())
	}
	c.tunnels, old.tunnels = old.tunnels, nil
	c.supply.appetite = old.supply.appetite // the same visitors come
	for _, t := range c.tunnels {
		t.control = c
		h.limit(t)
		h.reroute(t)
	}
	old.bye(c.superseded(a.link.peer.Addr()), supersededRetry)
	h.forget(old, false)
}

// welcome tells a client what it got.
func (h *hub) welcome(c *Control, a *arrival, resumed bool) {
	c.link = a.link
	c.nextPing = time.Now().Add(c.firstPing())
	h.sweep.begin(min(sweepEvery, h.policy.Heartbeat))
	open := c.open()
	fit := fitting(open)
	c.send((&wire.Welcome{
		Version: wire.Version, ControlId: c.id, Epoch: c.epoch, SessionKey: slices.Clone(c.secret),
		HeartbeatMs: uint64(c.heartbeat.Milliseconds()), ProxyAddress: h.site.proxyAddress, Mode: wire.ModePlain,
		Resumed: resumed, Tunnels: open[:fit], ServerVersion: h.options.Version, PoolMax: uint32(h.policy.PoolMax),
	}).ServerMessage())
	for _, r := range open[fit:] {
		c.send(r.ServerMessage())
	}
	for _, t := range c.tunnels {
		if len(t.addresses) > 0 && !t.known {
			c.announce(t)
		}
	}
	h.log.Info("client connected", "client", c.key.name, "subject", c.key.subject, "control", c.id, "epoch", c.epoch,
		"resumed", resumed, "tunnels", len(open), "source", a.link.peer.String(), "version", a.hello.GetClientVersion())
}

// fitting is how many tunnels a Welcome has room for; half of a message is
// left to everything else. The client is told of the others one by one.
func fitting(open []*wire.TunnelRegistered) int {
	size := 0
	for i, r := range open {
		if size += proto.Size(r) + 4; size > wire.MaxMessage/2 {
			return i
		}
	}
	return len(open)
}

// lost says that a client's connection ended.
type lost struct {
	control uint64
	link    *link
	err     error
}

func (m lost) handle(h *hub) {
	c := h.maps.byID[m.control]
	if c == nil || c.link != m.link {
		return // it has another connection by now, or was taken over
	}
	h.log.Info("client lost; its streams and listeners stay", "client", c.key.name, "control", c.id, "grace", h.policy.Grace, "error", m.err)
	c.link.close()
	c.link = nil
	c.away = time.Now()
}

// revoke ends the Controls of subjects that may not be here any more.
func (h *hub) revoke(names []string) {
	n := h.revocations.Add(1)
	if len(h.maps.revoked) > maxRevoked {
		clear(h.maps.revoked)
	}
	for _, name := range names {
		h.maps.revoked[name] = n
		for key, c := range h.maps.controls {
			if key.subject == name {
				h.log.Warn("client cut off: its token was revoked", "client", key.name, "control", c.id)
				c.bye(wire.NewRefusal(wire.CodeRevoked, ""), 0)
				h.end(c, true)
			}
		}
		for pool, f := range h.maps.former {
			if f.subject == name {
				h.engine.Submit(relay.ClosePool{Pool: pool, Cut: true})
				delete(h.maps.former, pool)
			}
		}
	}
}

// end closes all that belongs to a Control; with cut its streams too.
func (h *hub) end(c *Control, cut bool) {
	for _, t := range c.tunnels {
		h.unlisten(t)
	}
	c.tunnels = nil
	c.bye(wire.NewRefusal(wire.CodeDone, ""), 0)
	delete(h.maps.controls, c.key)
	h.forget(c, cut)
}

// forget closes the pool of a Control and takes it out of the indexes but the
// ControlMap, where another may have its place.
func (h *hub) forget(c *Control, cut bool) {
	h.engine.Submit(relay.ClosePool{Pool: c.pool, Cut: cut})
	if !cut && c.proxies > 0 {
		h.maps.former[c.pool] = &former{subject: c.key.subject, proxies: c.proxies}
	}
	delete(h.maps.byID, c.id)
	delete(h.maps.pools, c.pool)
	if h.maps.instances[c.instance] == c {
		delete(h.maps.instances, c.instance)
	}
	clear(c.secret)
	c.prefaces = nil
}
