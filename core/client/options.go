package client

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// tunnelType is the only type of tunnel in version 1 of the protocol.
const tunnelType = "tcp"

// Options configure a Client.
type Options struct {
	// Name is the client's name: 1 to 64 of A-Z a-z 0-9 . _ -
	Name string
	// Version is the program's version, for the server's log.
	Version string
	// Loops is the number of relay loops, at least 1. The process wants
	// GOMAXPROCS of at least Loops + 2.
	Loops int
	// Reloadable is what Reconfigure may change later.
	Reloadable Reloadable
	Log        *slog.Logger
	// Ready, if not nil, is called when a tunnel gets a public address
	// ("host:port") that it did not have before. It is called by the goroutine
	// that owns the client's state and must not block.
	Ready func(tunnel, address string)
}

// Reloadable is the part of Options that can be changed while a Client runs.
type Reloadable struct {
	// Servers are the "host:port" of the CtlPort of one server or several, none
	// twice; they are tried in turn. A host name is resolved at every attempt to
	// connect. A change leaves a connection alone; without one, it is tried at
	// once.
	Servers []string
	// Trust says how the server is verified, and TokenName and Secret prove who
	// the client is. A change counts from the next connection on; one that is
	// lost is then tried at once.
	Trust     identity.Trust
	TokenName string
	Secret    identity.TokenSecret
	// PoolMax bounds the idle ProxyConns; 0 keeps none.
	PoolMax  int
	Settings relay.Settings
	// Tunnels have unique names. The slice is not modified and must not be.
	Tunnels []Tunnel
}

// Tunnel is one LocalServer to expose.
type Tunnel struct {
	Name string
	// Network is "tcp" or "unix"; Address is "host:port" or a path.
	Network, Address string
	// First and Last are the public ports to choose from, both included; 0 and
	// 0 leave the choice to the server.
	First, Last uint16
	// Bind are the server's addresses to listen on; nil leaves them to the
	// server.
	Bind          []netip.Addr
	ProxyProtocol relay.ProxyVersion
}

// spec is what the server is told of t; its address is not.
func (t Tunnel) spec() *wire.TunnelSpec {
	spec := &wire.TunnelSpec{Name: t.Name, Type: tunnelType, PortFirst: uint32(t.First), PortLast: uint32(t.Last)}
	for _, bind := range t.Bind {
		spec.Bind = append(spec.Bind, bind.String())
	}
	return spec
}

// destination splits the address of the LocalServer: literal addresses are
// ready to dial, a name has to be resolved first.
func (t Tunnel) destination() (literal []relay.Address, name string, port uint16, err error) {
	switch t.Network {
	case "unix":
		if t.Address == "" {
			return nil, "", 0, errors.New("path of the unix socket is missing")
		}
		return []relay.Address{{Unix: t.Address}}, "", 0, nil
	case "tcp":
	default:
		return nil, "", 0, fmt.Errorf("network %q is unknown: use tcp or unix", t.Network)
	}
	host, digits, err := net.SplitHostPort(t.Address)
	if err != nil || host == "" {
		return nil, "", 0, fmt.Errorf("address %q: want host:port", t.Address)
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 {
		return nil, "", 0, fmt.Errorf("address %q: want a port of 1 to 65535", t.Address)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []relay.Address{{TCP: netip.AddrPortFrom(ip.Unmap(), uint16(n))}}, "", 0, nil
	}
	return nil, host, uint16(n), nil
}

// validate reports everything that is wrong with o.
func (o *Options) validate() error {
	var problems []error
	if err := wire.ValidateName(o.Name); err != nil {
		problems = append(problems, fmt.Errorf("client: %w", err))
	}
	if o.Loops < 1 {
		problems = append(problems, fmt.Errorf("%d loops: want at least 1", o.Loops))
	}
	if o.Log == nil {
		problems = append(problems, errors.New("logger is missing"))
	}
	problems = append(problems, o.Reloadable.validate())
	return errors.Join(problems...)
}

func (r *Reloadable) validate() error {
	problems := r.validateServers()
	if err := wire.ValidateName(r.TokenName); err != nil {
		problems = append(problems, fmt.Errorf("token: %w", err))
	}
	if r.PoolMax < 0 {
		problems = append(problems, fmt.Errorf("pool of %d: want 0 or more", r.PoolMax))
	}
	if s := r.Settings; s.Connect <= 0 || s.Preface <= 0 || s.Wait <= 0 {
		problems = append(problems, errors.New("settings: connect, preface and wait must be positive"))
	}
	seen := make(map[string]bool, len(r.Tunnels))
	for _, t := range r.Tunnels {
		if err := t.spec().Validate(); err != nil {
			problems = append(problems, fmt.Errorf("tunnel: %w", err))
			continue
		}
		if seen[t.Name] {
			problems = append(problems, fmt.Errorf("tunnel %s: the name is used twice", t.Name))
		}
		seen[t.Name] = true
		if _, _, _, err := t.destination(); err != nil {
			problems = append(problems, fmt.Errorf("tunnel %s: %w", t.Name, err))
		}
	}
	return errors.Join(problems...)
}

func (r *Reloadable) validateServers() []error {
	var problems []error
	if len(r.Servers) == 0 {
		problems = append(problems, errors.New("server is missing"))
	}
	for i, server := range r.Servers {
		if host, port, err := net.SplitHostPort(server); err != nil || host == "" || port == "" {
			problems = append(problems, fmt.Errorf("server %q: want host:port", server))
		} else if slices.Contains(r.Servers[:i], server) {
			problems = append(problems, fmt.Errorf("server %s: it is named twice", server))
		}
	}
	return problems
}

// sameAccess tells whether two configurations log in the same way.
func sameAccess(a, b *Reloadable) bool {
	return a.Trust.Equal(b.Trust) && a.TokenName == b.TokenName && a.Secret == b.Secret
}

// hostOf is the host of a "host:port" that was validated.
func hostOf(server string) string {
	host, _, _ := net.SplitHostPort(server)
	return host
}
