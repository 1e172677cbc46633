package server

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"syscall"
)

// holder names, for the log, the tunnel of this server that has the port which
// another asked for. The other's client is not told: it may belong to somebody
// else.
func (h *hub) holder(t *Tunnel, err error) []any {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil
	}
	var found []*Tunnel
	for _, other := range h.maps.tunnels {
		if len(other.addresses) > 0 && t.wants(other.addresses) {
			found = append(found, other)
		}
	}
	if len(found) > 0 {
		one := slices.MinFunc(found, func(a, b *Tunnel) int { return cmp.Compare(a.id, b.id) })
		return []any{"held_by", one.name(), "held_by_client", one.control.key.name, "held_by_subject", one.control.key.subject}
	}
	if slices.Contains(t.listen.Ports, h.site.ctl.Port()) {
		return []any{"held_by", "the server's control port"}
	}
	return nil
}

// wants tells whether one of the ports that t may have is taken by addresses.
func (t *Tunnel) wants(taken []netip.AddrPort) bool {
	return slices.ContainsFunc(taken, func(a netip.AddrPort) bool {
		return slices.Contains(t.listen.Ports, a.Port()) && slices.ContainsFunc(t.listen.Binds, func(b netip.Addr) bool {
			return a.Addr().Unmap() == b || a.Addr().IsUnspecified() || b.IsUnspecified()
		})
	})
}
