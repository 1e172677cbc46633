package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging"
	"github.com/cproxy/cproxy/core/rate"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// engine is what the hub needs of relay.Engine.
type engine interface {
	Submit(relay.Command)
	Events() <-chan []relay.Event
	PoolUses(uses []relay.PoolUse) []relay.PoolUse
}

// proxyDoor is the relay's name for the listener of the proxy port; tunnels
// are numbered from the next on.
const proxyDoor relay.TunnelID = 1

// sweepEvery is how often the hub looks at what time has done, while there are
// Controls.
const sweepEvery = 250 * time.Millisecond

// hub owns the ControlMap and everything in it: run is the only goroutine that
// touches its fields, but for those that are channels or shared.
type hub struct {
	options  *Options
	engine   engine
	in       chan request
	policies chan Policy
	shared
	start    start
	log      *slog.Logger
	refusals *logging.RateLimited

	policy Policy
	site   site
	maps   maps
	sweep  sweep
}

// shared is what the goroutines of connections use as well.
type shared struct {
	revocations atomic.Uint64 // how many there have been
	herd        spread
}

// sweep ticks while there are Controls, and not at all without.
type sweep struct {
	*time.Ticker
	running bool
	uses    []relay.PoolUse
}

func (s *sweep) begin(every time.Duration) {
	if !s.running {
		s.running = true
		s.Reset(every)
	}
}

func (s *sweep) end() {
	s.running = false
	s.Stop()
}

// start is what becomes of the proxy port, without which there is no server.
type start struct {
	serving func(netip.AddrPort) // called when it is open
	failed  error                // or why it is not
}

// site is what the hub knows of the machine.
type site struct {
	ephemeral    identity.PortRange
	ctl          netip.AddrPort
	proxy        netip.AddrPort // of the proxy port
	proxyAddress string         // the same as the Welcome gives it
	room         room
}

// maps are the hub's indexes.
type maps struct {
	controls  map[controlKey]*Control // the ControlMap
	byID      map[uint64]*Control
	instances map[instance]*Control
	pools     map[relay.PoolID]*Control
	tunnels   map[relay.TunnelID]*Tunnel
	closing   map[relay.TunnelID]*departure
	former    map[relay.PoolID]*former // closed pools with streams that run on
	revoked   map[string]uint64        // subjects, by the revocation that named them
	ports     *portMemory
	denied    denials
	next      uint64 // last pool or tunnel number given
}

// former is a pool whose Control is gone. A revocation still cuts its streams.
type former struct {
	subject string
	proxies int
}

// request is what a connection's goroutine asks of the hub.
type request interface {
	handle(h *hub)
}

func newHub(o *Options, e engine) *hub {
	return &hub{
		options: o, engine: e, log: o.Log,
		in: make(chan request), policies: make(chan Policy),
		refusals: logging.NewRateLimited(o.Log, 10*time.Second, 256),
		policy:   o.Policy, site: site{ephemeral: ephemeralPorts(), room: o.room()},
		maps: maps{
			controls: make(map[controlKey]*Control), byID: make(map[uint64]*Control), instances: make(map[instance]*Control),
			pools: make(map[relay.PoolID]*Control), tunnels: make(map[relay.TunnelID]*Tunnel), closing: make(map[relay.TunnelID]*departure),
			former: make(map[relay.PoolID]*former), revoked: make(map[string]uint64),
			ports: newPortMemory(), denied: make(denials), next: uint64(proxyDoor),
		},
	}
}

// errEngineEnded says that the engine ended although nobody asked it to.
var errEngineEnded = errors.New("the relay engine ended")

// run serves until ctx is done; it then takes leave of every client.
func (h *hub) run(ctx context.Context) error {
	h.sweep.Ticker = time.NewTicker(time.Hour)
	h.sweep.Stop()
	defer h.sweep.Stop()
	defer h.refusals.Flush()
	for {
		select {
		case <-ctx.Done():
			for _, c := range h.maps.controls {
				c.bye(wire.NewRefusal(wire.CodeShutdown, ""), h.herd.next())
			}
			return nil
		case r := <-h.in:
			r.handle(h)
		case batch, ok := <-h.engine.Events():
			if !ok {
				return errEngineEnded
			}
			for _, ev := range batch {
				h.event(ev)
			}
		case names := <-h.options.Revoked:
			h.revoke(names)
		case changed := <-h.options.Regranted:
			h.regrant(changed)
		case p := <-h.policies:
			h.apply(p)
		case now := <-h.sweep.C:
			h.tick(now)
		}
		if h.start.failed != nil {
			return h.start.failed
		}
	}
}

// tell passes r to the hub; false when ctx ended first.
func (h *hub) tell(ctx context.Context, r request) bool {
	select {
	case h.in <- r:
		return true
	case <-ctx.Done():
		return false
	}
}

// number gives a number that was not used before.
func (h *hub) number() uint64 {
	h.maps.next++
	return h.maps.next
}

func (h *hub) event(ev relay.Event) {
	switch ev := ev.(type) {
	case relay.Listening:
		if ev.Tunnel == proxyDoor {
			h.proxyListening(ev)
			return
		}
		h.tunnelListening(ev)
	case relay.Unlistened:
		h.tunnelClosed(ev.Tunnel)
	case relay.PrefaceReceived:
		h.preface(ev)
	case relay.ConnOpened:
		if c := h.maps.pools[ev.Pool]; c != nil {
			c.proxies++
			c.supply.arrived(time.Now())
		}
	case relay.ConnClosed:
		if c := h.maps.pools[ev.Pool]; c != nil {
			c.proxies--
		} else if f := h.maps.former[ev.Pool]; f != nil {
			if f.proxies--; f.proxies <= 0 {
				delete(h.maps.former, ev.Pool)
			}
		}
	case relay.Needed:
		h.needed(ev)
	case relay.StreamEnded:
		h.log.Debug("stream ended", "tunnel", h.tunnelName(ev.Tunnel), "source", ev.Source.String(),
			"up", ev.Up, "down", ev.Down, "duration", ev.Duration, "reason", ev.Reason.String())
	case relay.PrefaceFailed:
		h.prefaceFailed(ev)
	case relay.Refused:
		h.refused(ev)
	case relay.Exhausted:
		h.refusals.Log(slog.LevelError, "exhausted", "connections are refused: raise the limit on open files (LimitNOFILE)", "error", ev.Err)
	}
}

// refused logs a visitor that was turned away.
func (h *hub) refused(ev relay.Refused) {
	if ev.Reason == relay.VisitorLeft || ev.Reason == relay.Stopped {
		h.log.Debug("visitor left before its stream began", "tunnel", h.tunnelName(ev.Tunnel), "source", ev.Source.String())
		return
	}
	advice := "the client may be away or overloaded, or cannot reach the proxy port (proxy_listen)"
	if ev.Reason == relay.ConnLimit {
		advice = h.limitAdvice(ev.Whole)
	}
	h.refusals.Log(slog.LevelWarn, fmt.Sprintf("refused %d %d %v", ev.Tunnel, ev.Reason, ev.Whole), "visitor refused",
		"tunnel", h.tunnelName(ev.Tunnel), "source", ev.Source.String(), "reason", ev.Reason.String(), "advice", advice)
}

func (h *hub) tunnelName(id relay.TunnelID) string {
	if t := h.maps.tunnels[id]; t != nil {
		return t.name()
	}
	return fmt.Sprintf("closed tunnel %d", id)
}

// preface lets a ProxyConn join the pool of the Control that it names, if it
// is signed with that Control's key and was not seen before.
func (h *hub) preface(ev relay.PrefaceReceived) {
	p, err := frame.ParsePreface(ev.Preface)
	c := h.maps.byID[p.ControlID]
	switch {
	case err != nil:
	case p.Mode != frame.Plain:
		err = frame.ErrMode
	case c == nil || p.Epoch != c.epoch:
		err = errors.New("preface of an unknown or former session")
	default:
		if err = p.Verify(ev.Preface, c.prefaceKey(), frame.Exporter{}); err == nil && !c.proxyIDs.accept(p.ProxyID) {
			err = errors.New("preface was used before")
		}
	}
	if err != nil {
		h.refusals.Log(slog.LevelWarn, "preface "+ev.Peer.Addr().String(), "proxy connection refused", "source", ev.Peer.String(), "reason", err.Error())
		h.engine.Submit(relay.Close{Conn: ev.Conn})
		return
	}
	h.engine.Submit(relay.Park{Conn: ev.Conn, Pool: c.pool, Ready: p.Ready(c.prefaceKey(), frame.Exporter{})})
}

// prefaceFailed logs a conn on the proxy port that did not come to be verified.
func (h *hub) prefaceFailed(ev relay.PrefaceFailed) {
	args := []any{"source", ev.Peer.String(), "reason", ev.Reason.String()}
	if ev.Reason == relay.TLSPreface {
		args = append(args, "advice", "if this is a client of yours, its `server` wants the address of ctl_listen, not of proxy_listen")
	}
	h.refusals.Log(slog.LevelInfo, "preface "+ev.Peer.Addr().String(), "proxy connection refused", args...)
}

// needed asks the client for ProxyConns.
func (h *hub) needed(ev relay.Needed) {
	c := h.maps.pools[ev.Pool]
	if c == nil {
		return
	}
	now := time.Now()
	c.supply.noted(ev.Loop, ev.Waiting, now)
	c.ask(0, now)
}

// apply takes a new policy. Tunnels that are open keep their listeners; what
// the limits forbid from now on is refused from now on.
func (h *hub) apply(p Policy) {
	h.policy = p
	h.site.proxyAddress = h.reachable()
	h.engine.Submit(relay.Configure{Settings: h.site.room.settings(p.Relay)})
	for _, c := range h.maps.controls {
		h.openPool(c)
	}
	for _, t := range h.maps.tunnels {
		h.limit(t)
		h.reroute(t)
	}
	for _, c := range h.maps.controls {
		h.retryDenied(c)
	}
	h.log.Info("configuration applied")
}

// openPool makes the engine know a Control's pool, or the new bound of it.
func (h *hub) openPool(c *Control) {
	h.engine.Submit(relay.OpenPool{Pool: c.pool, Side: relay.ServerSide, MaxIdle: h.policy.PoolMax, Heartbeat: c.heartbeat})
}

// reroute makes the engine carry a tunnel's PublicConns by the policy and the
// Control of the moment.
func (h *hub) reroute(t *Tunnel) {
	if t.known {
		h.engine.Submit(relay.Reroute{Tunnel: t.id, Route: t.control.route(t, h.policy.MaxConns)})
	}
}

// limit makes the engine hold a tunnel to the rates of the policy and of its
// client's token, if it does not do so already. A tunnel that does not listen
// yet is limited once it does.
func (h *hub) limit(t *Tunnel) {
	g := t.control.identity.Grants
	limit := relay.Limit{
		Tunnel: t.id,
		Up:     int64(rate.Smaller(h.policy.RateUp, g.RateUp)),
		Down:   int64(rate.Smaller(h.policy.RateDown, g.RateDown)),
	}
	if len(t.addresses) == 0 || limit.Up == t.limit.Up && limit.Down == t.limit.Down {
		return
	}
	t.limit = limit
	h.engine.Submit(limit)
}

// tick looks at what time has done: pings that are due, clients that did not
// come back.
func (h *hub) tick(now time.Time) {
	for _, c := range h.maps.controls {
		switch {
		case c.link == nil && now.Sub(c.away) >= h.policy.Grace:
			h.log.Info("client did not come back", "client", c.key.name, "control", c.id)
			h.end(c, false)
		case c.link != nil && now.After(c.nextPing):
			c.nextPing = now.Add(c.heartbeat)
			c.send((&wire.Ping{}).ServerMessage())
		}
	}
	h.forgetDenied()
	h.fit()
	h.stock(now)
	if len(h.maps.controls) == 0 {
		h.sweep.end()
	}
}
