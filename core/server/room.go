package server

import (
	"fmt"

	"github.com/cproxy/cproxy/core/relay"
)

// What of the process's descriptors is no visitor's. The rest is shared out
// equally: a visitor takes one for itself and one for its ProxyConn.
const (
	// reservedFiles is for standard streams, log, tokens, both ports and those
	// who knock there.
	reservedFiles = 20
	// reservedPerLoop is for an event loop's own.
	reservedPerLoop = 3
	// reservedShare is the part that stays for pipes, handshakes, and visitors
	// that are being turned away.
	reservedShare = 8
	maxReserved   = 4096
)

// room is how many visitors the descriptors of the process allow.
type room struct {
	descriptors int // of the process; 0: not known, and no bound
	loops       int
	visitors    int // the bound of the moment; 0: none
}

// fit finds out how many visitors there is room for beside so many control
// connections and listeners. It tells whether that is another number than before.
func (r *room) fit(controls, listeners int) bool {
	if r.descriptors <= 0 {
		return false
	}
	before := r.visitors
	reserved := reservedFiles + reservedPerLoop*r.loops + min(r.descriptors/reservedShare, maxReserved) + controls + listeners
	r.visitors = max(1, (r.descriptors-reserved)/2)
	return r.visitors != before
}

// proxies is how many ProxyConns there may be, idle ones included, before
// visitors have to do without spare ones. Negative: no bound.
func (r *room) proxies() int {
	if r.visitors == 0 {
		return -1
	}
	return r.visitors
}

// settings are those of the policy as far as there is room.
func (r *room) settings(s relay.Settings) relay.Settings {
	if r.bounds(s) {
		s.MaxConns = r.visitors
	}
	return s
}

// bounds tells whether the descriptors are a narrower bound than the policy.
func (r *room) bounds(s relay.Settings) bool {
	return r.visitors > 0 && (s.MaxConns == 0 || r.visitors < s.MaxConns)
}

// fit makes the engine admit as many visitors as there is room for now.
func (h *hub) fit() {
	listeners := len(h.maps.tunnels) * max(1, len(h.policy.PublicBind))
	if h.site.room.fit(len(h.maps.controls), listeners) {
		h.engine.Submit(relay.Configure{Settings: h.site.room.settings(h.policy.Relay)})
	}
}

// spareRoom is how many more ProxyConns may be opened that nobody waits for, or,
// if negative, how many there are too many. Without a bound any number may.
func (h *hub) spareRoom() (n int, bounded bool) {
	most := h.site.room.proxies()
	if most < 0 {
		return 0, false
	}
	for _, c := range h.maps.controls {
		most -= c.proxies + c.supply.asked
	}
	for _, f := range h.maps.former {
		most -= f.proxies
	}
	return most, true
}

// limitAdvice says what to change for more visitors at a time, of the whole server
// or of one tunnel.
func (h *hub) limitAdvice(whole bool) string {
	switch {
	case !whole && h.policy.MaxConns == 0: // too many wait
		return "the client is away or overloaded, or cannot reach the proxy port (proxy_listen)"
	case !whole:
		return "raise limits.max_conns_per_tunnel if this is not an attack"
	case !h.site.room.bounds(h.policy.Relay):
		return "raise limits.max_conns if this is not an attack"
	default:
		return fmt.Sprintf("the limit on open files allows %d visitors at a time: raise it (LimitNOFILE), by two for each visitor more, if this is not an attack",
			h.site.room.visitors)
	}
}
