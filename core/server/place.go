package server

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// supersededRetry is when a superseded client may ask again.
const supersededRetry = time.Minute

// maxOusted bounds the instances that a Control remembers to have taken the
// place of. Of more clones than that the one that was ousted first may try
// again; one that restarts all the time leaves only dead instances behind.
const maxOusted = 64

// place is what a client holds in the ControlMap, and from whom it took it.
// Those stay away as long as the place is held: two clients that share a name
// would else take it from each other for ever.
type place struct {
	key    controlKey
	host   string     // what the client calls its host
	ousted []instance // oldest first, at most maxOusted
}

// successor is the place of a new instance that takes that of old.
func (p *place) successor(host string, old instance) place {
	ousted := append(slices.Clone(p.ousted), old)
	return place{key: p.key, host: host, ousted: ousted[max(0, len(ousted)-maxOusted):]}
}

// supersedes tells whether the place was taken from inst.
func (p *place) supersedes(inst instance) bool { return slices.Contains(p.ousted, inst) }

// superseded is what an instance is told whose name c has. The address of c may
// be unknown.
func (c *Control) superseded(at netip.Addr) *wire.Refusal {
	whereabouts := fmt.Sprintf("host %q", c.host)
	if at.IsValid() {
		whereabouts += " at " + at.String()
	}
	return wire.NewRefusal(wire.CodeSuperseded, fmt.Sprintf(
		"another client runs under the name %s: stop one of the two, or give each its own `name`; the other is on %s",
		c.key.name, whereabouts))
}
