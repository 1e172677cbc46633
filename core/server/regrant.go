package server

import (
	"slices"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// maxDenied bounds the refused tunnels of a client that are remembered.
const maxDenied = 256

// denials are the tunnels that clients asked for and may not have, by Control and
// name: they open by themselves once they may.
type denials map[uint64]map[string]*wire.TunnelSpec

// note remembers a tunnel that was refused for a reason that grants or limits can
// take away.
func (d denials) note(c *Control, spec *wire.TunnelSpec, why *wire.Refusal) {
	switch why.GetCode() {
	case wire.CodePortNotGranted, wire.CodePortOutOfRange, wire.CodeBindNotGranted, wire.CodeTunnelLimit:
	default:
		d.drop(c, spec.GetName())
		return
	}
	if d[c.id] == nil {
		d[c.id] = make(map[string]*wire.TunnelSpec)
	}
	if _, known := d[c.id][spec.GetName()]; known || len(d[c.id]) < maxDenied {
		d[c.id][spec.GetName()] = spec
	}
}

// drop forgets a tunnel: it was allowed, or is not wanted any more.
func (d denials) drop(c *Control, name string) {
	delete(d[c.id], name)
	if len(d[c.id]) == 0 {
		delete(d, c.id)
	}
}

// regrant takes changed grants of tokens: they hold for what is registered from
// now on, and rates at once. Tunnels that are open stay.
func (h *hub) regrant(changed map[string]identity.Grants) {
	n := h.revocations.Add(1) // a login that is under way may have the old ones
	for name, grants := range changed {
		h.maps.revoked[name] = n
		for key, c := range h.maps.controls {
			if key.subject != name {
				continue
			}
			c.identity.Grants = grants
			for _, t := range c.tunnels {
				h.limit(t)
			}
			h.log.Info("grants of a connected client have changed; its open tunnels stay", "client", key.name, "subject", name, "control", c.id)
			h.retryDenied(c)
		}
	}
}

// retryDenied asks again for the tunnels that a client was refused, in its place.
func (h *hub) retryDenied(c *Control) {
	if c.link == nil {
		return // it registers everything when it is back
	}
	specs := h.maps.denied[c.id]
	delete(h.maps.denied, c.id)
	names := make([]string, 0, len(specs))
	for name := range specs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		h.register(c, specs[name])
	}
}

// forgetDenied drops what clients asked for that are gone.
func (h *hub) forgetDenied() {
	for id := range h.maps.denied {
		if h.maps.byID[id] == nil {
			delete(h.maps.denied, id)
		}
	}
}
