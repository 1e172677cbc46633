package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

func ranges(t *testing.T, list ...string) []identity.PortRange {
	t.Helper()
	var all []identity.PortRange
	for _, s := range list {
		r, err := identity.ParsePortRange(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func TestPorts(t *testing.T) {
	tests := []struct {
		name            string
		policy, granted []string
		first, last     uint32
		want            []uint16 // in any order; nil: only the other fields count
		inside          string
		count           int
		refusal         wire.Code
	}{
		{name: "fixed", policy: []string{"1000-2000"}, first: 1500, last: 1500, want: []uint16{1500}},
		{name: "fixed and granted", policy: []string{"1000-2000"}, granted: []string{"1500"}, first: 1500, last: 1500, want: []uint16{1500}},
		{name: "fixed in the ephemeral range", policy: []string{"1-65535"}, first: 40000, last: 40000, want: []uint16{40000}},
		{name: "outside the server's", policy: []string{"1000-2000"}, first: 2001, last: 2001, refusal: wire.CodePortOutOfRange},
		{name: "not granted", policy: []string{"1000-2000"}, granted: []string{"1500-1600"}, first: 1601, last: 1601, refusal: wire.CodePortNotGranted},
		{name: "granted but outside the server's", policy: []string{"1000-2000"}, granted: []string{"3000"}, first: 3000, last: 3000, refusal: wire.CodePortOutOfRange},
		{name: "range", policy: []string{"1000-2000"}, first: 1990, last: 1995, want: []uint16{1990, 1991, 1992, 1993, 1994, 1995}},
		{name: "range cut by the server's", policy: []string{"1000-2000"}, first: 1998, last: 2500, want: []uint16{1998, 1999, 2000}},
		{name: "range cut by both", policy: []string{"1000-1010", "1020-1030"}, granted: []string{"1009-1021"}, first: 1000, last: 1100, want: []uint16{1009, 1010, 1020, 1021}},
		{name: "range outside", policy: []string{"1000-2000"}, first: 2001, last: 2002, refusal: wire.CodePortOutOfRange},
		{name: "range not granted", policy: []string{"1000-2000"}, granted: []string{"1000-1010"}, first: 1500, last: 1502, refusal: wire.CodePortNotGranted},
		{name: "range of as many as are tried", policy: []string{"1000-2000"}, first: 1000, last: 1063, inside: "1000-1063", count: 64},
		{name: "large range", policy: []string{"1000-2000"}, first: 1000, last: 2000, inside: "1000-2000", count: maxCandidates},
		{name: "random", policy: []string{"30000-40000"}, inside: "30000-32767", count: maxCandidates},
		{name: "random above the ephemeral range", policy: []string{"50000-61010"}, inside: "61000-61010", count: 11},
		{name: "random, all ephemeral", policy: []string{"40000-40003"}, want: []uint16{40000, 40001, 40002, 40003}},
		{name: "random, granted one", policy: []string{"1000-2000"}, granted: []string{"1234"}, want: []uint16{1234}},
		{name: "random, nothing in common", policy: []string{"1000-2000"}, granted: []string{"3000-4000"}, refusal: wire.CodePortNotGranted},
		{name: "ranges that overlap", policy: []string{"1000-1002", "1001-1003"}, want: []uint16{1000, 1001, 1002, 1003}},
		{name: "the last port", policy: []string{"65535"}, first: 65535, last: 65535, want: []uint16{65535}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := placement{
				policy: Policy{Ports: ranges(t, test.policy...)}, grants: identity.Grants{Ports: ranges(t, test.granted...)},
				ephemeral: identity.PortRange{First: 32768, Last: 60999}, owner: portOwner{tunnel: test.name}, memory: newPortMemory(),
			}
			got, refusal := p.ports(&wire.TunnelSpec{PortFirst: test.first, PortLast: test.last})
			if test.refusal != 0 {
				code(t, refusal, test.refusal)
				return
			}
			if refusal != nil {
				t.Fatal(refusal)
			}
			if test.inside != "" {
				allowed := ranges(t, test.inside)[0]
				if len(got) != test.count || slices.ContainsFunc(got, func(port uint16) bool { return !allowed.Contains(port) }) {
					t.Errorf("%d ports %v, want %d of %s", len(got), got, test.count, test.inside)
				}
				return
			}
			slices.Sort(got)
			if !slices.Equal(got, test.want) {
				t.Errorf("ports %v, want %v", got, test.want)
			}
		})
	}
}

func TestCandidatesStickToTheirOwner(t *testing.T) {
	p := placement{policy: Policy{Ports: ranges(t, "10000-20000")}, owner: portOwner{"alice", "host", "web"}, memory: newPortMemory()}
	first := p.candidates(1, 65535, identity.PortRange{})
	if !slices.Equal(first, p.candidates(1, 65535, identity.PortRange{})) {
		t.Error("the same owner got other ports")
	}
	p.owner.tunnel = "ssh"
	if slices.Equal(first[:4], p.candidates(1, 65535, identity.PortRange{})[:4]) {
		t.Error("another owner got the same ports")
	}
}

// drawRanges gives a few ranges among the low ports, so that a model can look
// at every port.
func drawRanges(draw *rand.Rand, most int) []identity.PortRange {
	list := make([]identity.PortRange, draw.IntN(most+1))
	for i := range list {
		a, b := uint16(1+draw.IntN(400)), uint16(1+draw.IntN(400))
		if draw.IntN(3) == 0 {
			b = a
		}
		list[i] = identity.PortRange{First: min(a, b), Last: max(a, b)}
	}
	return list
}

func contains(list []identity.PortRange, port uint16) bool {
	return slices.ContainsFunc(list, func(r identity.PortRange) bool { return r.Contains(port) })
}

func TestCandidatesAreAllowed(t *testing.T) {
	for seed := range uint64(500) {
		draw := rand.New(rand.NewPCG(seed, 2))
		p := placement{
			policy: Policy{Ports: drawRanges(draw, 3)}, grants: identity.Grants{Ports: drawRanges(draw, 3)}, owner: portOwner{tunnel: fmt.Sprint(seed)}, memory: newPortMemory(),
		}
		without := identity.PortRange{}
		if draw.IntN(2) == 0 {
			without = identity.PortRange{First: uint16(1 + draw.IntN(200)), Last: uint16(200 + draw.IntN(200))}
		}
		first := uint16(1 + draw.IntN(300))
		last := first + uint16(draw.IntN(200))
		allowed := func(port uint16) bool {
			return port >= first && port <= last && contains(p.policy.Ports, port) &&
				(len(p.grants.Ports) == 0 || p.grants.AllowsPort(port)) && (without.First == 0 || !without.Contains(port))
		}
		got := p.candidates(first, last, without)
		all := 0
		for port := uint16(1); port <= 600; port++ {
			if allowed(port) {
				all++
			}
		}
		if len(got) > maxCandidates || (len(got) == 0) != (all == 0) {
			t.Fatalf("seed %d: %d candidates of %d ports", seed, len(got), all)
		}
		for i, port := range got {
			if !allowed(port) || slices.Contains(got[:i], port) {
				t.Fatalf("seed %d: candidate %d is not allowed or named twice: %v", seed, port, got)
			}
		}
	}
}

func TestRangesLikeModel(t *testing.T) {
	for seed := range uint64(500) {
		draw := rand.New(rand.NewPCG(seed, 3))
		a, b := drawRanges(draw, 4), drawRanges(draw, 4)
		cut := identity.PortRange{First: uint16(draw.IntN(300)), Last: uint16(300 + draw.IntN(200))}
		both, left := intersect(a, b), subtract(a, cut)
		for port := range uint16(600) {
			if got, want := contains(both, port), contains(a, port) && contains(b, port); got != want {
				t.Fatalf("seed %d: intersect(%v, %v) has %d: %v", seed, a, b, port, got)
			}
			if got, want := contains(left, port), contains(a, port) && !cut.Contains(port); got != want {
				t.Fatalf("seed %d: subtract(%v, %v) has %d: %v", seed, a, cut, port, got)
			}
		}
		var flat []uint16
		for _, r := range a {
			for port := r.First; port <= r.Last; port++ {
				flat = append(flat, port)
			}
		}
		for i, port := range flat {
			if got := nth(a, i); got != port {
				t.Fatalf("seed %d: port %d of %v is %d, want %d", seed, i, a, got, port)
			}
		}
		if got := nth(a, len(flat)); got != 0 {
			t.Fatalf("seed %d: there is a port %d beyond the last", seed, got)
		}
	}
	if left := subtract(ranges(t, "1-65535"), identity.PortRange{First: 1, Last: 65535}); len(left) != 0 {
		t.Errorf("%v is left of nothing", left)
	}
}

func TestBinds(t *testing.T) {
	tests := []struct {
		name                   string
		public, granted, asked []string
		want                   []string
		refusal                wire.Code
	}{
		{name: "the server's choice", public: []string{"::"}, want: []string{"::"}},
		{name: "the grant's choice", public: []string{"::"}, granted: []string{"10.0.0.1", "10.0.0.2"}, want: []string{"10.0.0.1", "10.0.0.2"}},
		{name: "one of the server's", public: []string{"10.0.0.1", "10.0.0.2"}, asked: []string{"10.0.0.2"}, want: []string{"10.0.0.2"}},
		{name: "none of the server's", public: []string{"10.0.0.1"}, asked: []string{"10.0.0.2"}, refusal: wire.CodeBindNotGranted},
		{name: ":: includes IPv4", public: []string{"::"}, asked: []string{"127.0.0.1", "::1"}, want: []string{"127.0.0.1", "::1"}},
		{name: "0.0.0.0 includes IPv4", public: []string{"0.0.0.0"}, asked: []string{"127.0.0.1"}, want: []string{"127.0.0.1"}},
		{name: "0.0.0.0 includes no IPv6", public: []string{"0.0.0.0"}, asked: []string{"::1"}, refusal: wire.CodeBindNotGranted},
		{name: "0.0.0.0 does not include ::", public: []string{"0.0.0.0"}, asked: []string{"::"}, refusal: wire.CodeBindNotGranted},
		{name: "an address does not include all", public: []string{"127.0.0.1"}, asked: []string{"0.0.0.0"}, refusal: wire.CodeBindNotGranted},
		{name: "granted, whatever the server's", public: []string{"10.0.0.1"}, granted: []string{"10.0.0.9"}, asked: []string{"10.0.0.9"}, want: []string{"10.0.0.9"}},
		{name: "not granted, although the server's", public: []string{"::"}, granted: []string{"10.0.0.9"}, asked: []string{"10.0.0.1"}, refusal: wire.CodeBindNotGranted},
		{name: "one of two not granted", public: []string{"10.0.0.1"}, asked: []string{"10.0.0.1", "10.0.0.2"}, refusal: wire.CodeBindNotGranted},
		{name: "mapped and twice", public: []string{"0.0.0.0"}, asked: []string{"::ffff:127.0.0.1", "127.0.0.1"}, want: []string{"127.0.0.1"}},
		{name: "no address", public: []string{"::"}, asked: []string{"example.com"}, refusal: wire.CodeBadRequest},
	}
	parse := func(list []string) (all []netip.Addr) {
		for _, s := range list {
			all = append(all, netip.MustParseAddr(s))
		}
		return all
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := placement{policy: Policy{PublicBind: parse(test.public)}, grants: identity.Grants{Bind: parse(test.granted)}}
			got, refusal := p.binds(&wire.TunnelSpec{Bind: test.asked})
			if test.refusal != 0 {
				code(t, refusal, test.refusal)
				return
			}
			if refusal != nil || !slices.Equal(got, parse(test.want)) {
				t.Errorf("binds %v, %v, want %v", got, refusal, test.want)
			}
		})
	}
}

func TestListenRefusal(t *testing.T) {
	tests := []struct {
		err  error
		code wire.Code
		says string
	}{
		{syscall.EADDRINUSE, wire.CodePortTaken, "port 80 is in use"},
		{syscall.EACCES, wire.CodePortOutOfRange, "CAP_NET_BIND_SERVICE"},
		{syscall.EADDRNOTAVAIL, wire.CodeBindNotGranted, "bind address"},
		{syscall.EMFILE, wire.CodeUnavailable, "too many open files"},
		{errors.New("odd"), wire.CodeUnavailable, "odd"},
	}
	for _, test := range tests {
		t.Run(test.err.Error(), func(t *testing.T) {
			r := listenRefusal(fmt.Errorf("listen on 1.2.3.4:80: %w", test.err), "port 80")
			code(t, r, test.code)
			if !strings.Contains(r.GetReason(), test.says) {
				t.Errorf("reason %q does not say %q", r.GetReason(), test.says)
			}
		})
	}
}

func TestEphemeralPorts(t *testing.T) {
	r := ephemeralPorts()
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if want := strings.Fields(string(b)); fmt.Sprint(r.First) != want[0] || fmt.Sprint(r.Last) != want[1] {
			t.Errorf("range %v, want %v", r, want)
		}
	} else if r.First != 32768 {
		t.Errorf("range %v without /proc", r)
	}
}
