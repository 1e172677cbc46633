package server

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// maxCandidates is how many ports of a range are tried for one tunnel.
const maxCandidates = 64

// ephemeralPorts is the range from which the kernel takes the ports of
// outgoing connections: a listener there would now and then find its port in
// use. It reads ip_local_port_range (ip(7)), or gives its default where /proc
// hides it.
func ephemeralPorts() identity.PortRange {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	var r identity.PortRange
	if err == nil {
		_, err = fmt.Sscan(string(b), &r.First, &r.Last)
	}
	if err != nil {
		return identity.PortRange{First: 32768, Last: 60999}
	}
	return r
}

// placement decides where a tunnel may listen.
type placement struct {
	policy    Policy
	grants    identity.Grants
	ephemeral identity.PortRange
	owner     portOwner // what the choice of a random port sticks to
	memory    *portMemory
	now       time.Time
}

// ports gives the candidates for a tunnel, best first.
func (p placement) ports(spec *wire.TunnelSpec) ([]uint16, *wire.Refusal) {
	first, last := uint16(spec.GetPortFirst()), uint16(spec.GetPortLast())
	if first == 0 {
		free := p.candidates(1, 65535, p.ephemeral)
		if len(free) == 0 { // everything that is allowed lies in the ephemeral range
			free = p.candidates(1, 65535, identity.PortRange{})
		}
		if len(free) == 0 {
			return nil, wire.NewRefusal(wire.CodePortNotGranted, "the token's port ranges and the server's limits.ports have no port in common: ask the operator of the server")
		}
		return free, nil
	}
	if free := p.candidates(first, last, identity.PortRange{}); len(free) > 0 {
		return free, nil
	}
	asked := identity.PortRange{First: first, Last: last}
	if !slices.ContainsFunc(p.policy.Ports, func(r identity.PortRange) bool { return r.First <= last && first <= r.Last }) {
		return nil, wire.NewRefusal(wire.CodePortOutOfRange, fmt.Sprintf("port %s is outside the server's limits.ports %v: choose one inside, or leave remote_port out", asked, p.policy.Ports))
	}
	return nil, wire.NewRefusal(wire.CodePortNotGranted, fmt.Sprintf("port %s is not granted to this token (%v): choose a granted one, or ask for a grant", asked, p.grants.Ports))
}

// candidates gives ports between first and last that are allowed: the one that
// the owner had, then ports that nobody has had of late, in an order that is
// always the same for an owner, and then those of others, the one unused for
// the longest time first and those in use last (they may be at other addresses).
func (p placement) candidates(first, last uint16, without identity.PortRange) []uint16 {
	granted := intersect([]identity.PortRange{{First: first, Last: last}}, p.policy.Ports)
	if len(p.grants.Ports) > 0 {
		granted = intersect(granted, p.grants.Ports)
	}
	allowed := granted
	if without.First > 0 {
		allowed = subtract(granted, without)
	}
	total := 0
	for _, r := range allowed {
		total += int(r.Last-r.First) + 1
	}
	if total == 0 {
		return nil
	}
	var ports []uint16
	own := p.memory.port(p.owner, p.now)
	if slices.ContainsFunc(granted, func(r identity.PortRange) bool { return r.Contains(own) }) {
		ports = append(ports, own)
	}
	draw := rand.New(rand.NewPCG(p.owner.seed(), 0)) // a stable order is wanted, not a secret one
	if total > maxCandidates {
		for range 16 * maxCandidates {
			port := nth(allowed, draw.IntN(total))
			if _, held := p.memory.held(port, p.owner, p.now); held || slices.Contains(ports, port) {
				continue
			}
			if ports = append(ports, port); len(ports) == maxCandidates {
				return ports
			}
		}
	}
	return p.fill(ports, allowed, draw.Perm(total))
}

// fill adds candidates to those that were found, looking at every port that is
// allowed in the order of their positions.
func (p placement) fill(ports []uint16, allowed []identity.PortRange, order []int) []uint16 {
	type loan struct {
		port   uint16
		unused time.Duration
	}
	var others []loan
	listed := make(map[uint16]bool, maxCandidates)
	for _, port := range ports {
		listed[port] = true
	}
	for _, n := range order {
		if len(ports) == maxCandidates {
			return ports
		}
		port := nth(allowed, n)
		if listed[port] {
			continue // also of ranges that overlap
		}
		listed[port] = true
		if unused, held := p.memory.held(port, p.owner, p.now); held {
			others = append(others, loan{port, unused})
			continue
		}
		ports = append(ports, port)
	}
	slices.SortStableFunc(others, func(a, b loan) int { return cmp.Compare(b.unused, a.unused) })
	for _, l := range others[:min(len(others), maxCandidates-len(ports))] {
		ports = append(ports, l.port)
	}
	return ports
}

// nth gives the port at a position of all ports of the ranges.
func nth(ranges []identity.PortRange, n int) uint16 {
	for _, r := range ranges {
		if size := int(r.Last-r.First) + 1; n >= size {
			n -= size
			continue
		}
		return r.First + uint16(n)
	}
	return 0
}

func intersect(a, b []identity.PortRange) []identity.PortRange {
	var both []identity.PortRange
	for _, x := range a {
		for _, y := range b {
			if r := (identity.PortRange{First: max(x.First, y.First), Last: min(x.Last, y.Last)}); r.First <= r.Last {
				both = append(both, r)
			}
		}
	}
	return both
}

func subtract(a []identity.PortRange, b identity.PortRange) []identity.PortRange {
	var left []identity.PortRange
	for _, x := range a {
		if b.First > 0 && x.First < b.First {
			left = append(left, identity.PortRange{First: x.First, Last: min(x.Last, b.First-1)})
		}
		if b.Last < 65535 && x.Last > b.Last {
			left = append(left, identity.PortRange{First: max(x.First, b.Last+1), Last: x.Last})
		}
	}
	return left
}

// binds gives the addresses a tunnel listens on.
func (p placement) binds(spec *wire.TunnelSpec) ([]netip.Addr, *wire.Refusal) {
	if len(spec.GetBind()) == 0 {
		if len(p.grants.Bind) > 0 {
			return p.grants.Bind, nil
		}
		return p.policy.PublicBind, nil
	}
	var binds []netip.Addr
	for _, s := range spec.GetBind() {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, wire.NewRefusal(wire.CodeBadRequest, fmt.Sprintf("bind %q is not an address", s))
		}
		a = a.Unmap()
		if !p.allowsBind(a) {
			return nil, wire.NewRefusal(wire.CodeBindNotGranted, fmt.Sprintf("bind address %s is not allowed for this token: leave bind out, or ask the operator of the server to grant it", a))
		}
		if !slices.Contains(binds, a) {
			binds = append(binds, a)
		}
	}
	return binds, nil
}

// allowsBind follows the token's grant or, without one, the server's own
// addresses: a wildcard among them includes each address of its kind, and ::
// those of IPv4 too.
func (p placement) allowsBind(a netip.Addr) bool {
	if len(p.grants.Bind) > 0 {
		return p.grants.AllowsBind(a)
	}
	return slices.ContainsFunc(p.policy.PublicBind, func(b netip.Addr) bool {
		return b == a || b == netip.IPv6Unspecified() || b == netip.IPv4Unspecified() && a.Is4()
	})
}

// listenRefusal words what the kernel said to a listen.
func listenRefusal(err error, asked string) *wire.Refusal {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return wire.NewRefusal(wire.CodePortTaken, fmt.Sprintf("%s is in use on the server: choose another remote_port, or free it", asked))
	case errors.Is(err, syscall.EACCES):
		return wire.NewRefusal(wire.CodePortOutOfRange, asked+" needs a privilege that the server does not have (ports below 1024: CAP_NET_BIND_SERVICE)")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return wire.NewRefusal(wire.CodeBindNotGranted, "the server's host does not have the bind address that was asked for")
	default:
		return wire.NewRefusal(wire.CodeUnavailable, fmt.Sprintf("the server cannot listen on %s: %v", asked, err))
	}
}
