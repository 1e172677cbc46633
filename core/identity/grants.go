package identity

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cproxy/cproxy/core/rate"
)

// PortRange is a range of ports, both ends included.
type PortRange struct {
	First, Last uint16
}

// ParsePortRange reads "20000-20100" or a single port, "8080".
func ParsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, err := parsePort(first)
	if err != nil {
		return PortRange{}, fmt.Errorf("port range %q: %w", s, err)
	}
	to, err := parsePort(last)
	if err != nil {
		return PortRange{}, fmt.Errorf("port range %q: %w", s, err)
	}
	if from > to {
		return PortRange{}, fmt.Errorf("port range %q ends before it begins: write %d-%d", s, to, from)
	}
	return PortRange{First: from, Last: to}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%q is no port: use a number from 1 to 65535, or two joined by a hyphen", s)
	}
	return uint16(n), nil
}

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// String returns the text ParsePortRange reads.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Grants is what one token allows within the server's own limits. An empty
// field adds no restriction. Slices are shared by all copies: do not modify them.
type Grants struct {
	Ports      []PortRange  // public ports that tunnels may use
	Bind       []netip.Addr // public addresses that tunnels may bind, compared exactly
	MaxTunnels int          // tunnels open at a time; 0: the server's limit
	// What the visitors of one tunnel may send (up) and be sent (down) together;
	// 0: the server's limit.
	RateUp, RateDown rate.Bytes
}

// AllowsPort reports whether a tunnel may use the public port.
func (g Grants) AllowsPort(port uint16) bool {
	return len(g.Ports) == 0 || slices.ContainsFunc(g.Ports, func(r PortRange) bool { return r.Contains(port) })
}

// AllowsBind reports whether a tunnel may bind the public address. The wildcard
// addresses stand for themselves only: a grant of 0.0.0.0 does not include
// 127.0.0.1, nor the other way round.
func (g Grants) AllowsBind(addr netip.Addr) bool {
	return len(g.Bind) == 0 || slices.Contains(g.Bind, addr.Unmap())
}
