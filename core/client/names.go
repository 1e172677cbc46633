package client

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/relay"
)

const (
	// lookupTimeout bounds one look-up.
	lookupTimeout = 10 * time.Second
	// maxLookups is how many run at a time.
	maxLookups = 8
)

// target is where a LocalServer is: literal addresses, or a name with a port.
type target struct {
	literal []relay.Address
	name    *name // nil for literal addresses
	port    uint16
}

// unknown tells whether the first look-up of the name has not ended yet.
func (t target) unknown() bool { return t.name != nil && !t.name.tried }

// names resolves the host names of LocalServers, which may move.
type names struct {
	byHost  map[string]*name
	results chan resolution
	running bool      // a round of look-ups
	stale   bool      // the round began before a name was added
	next    time.Time // when the next round begins
}

// name is the host name of a LocalServer.
type name struct {
	addresses []netip.Addr // the last good answer
	tried     bool
	failing   bool
}

// resolution is the answer about one host, or the end of a round.
type resolution struct {
	host      string
	addresses []netip.Addr
	err       error
	over      bool
}

func newNames() names {
	return names{byHost: make(map[string]*name), results: make(chan resolution)}
}

// target finds out where a tunnel leads.
func (o *owner) target(config Tunnel) target {
	literal, host, port, _ := config.destination() // validate has called it
	if host == "" {
		return target{literal: literal}
	}
	n := o.names.byHost[host]
	if n == nil {
		n = new(name)
		o.names.byHost[host] = n
		o.names.next = time.Time{}
		o.names.stale = o.names.running
	}
	return target{name: n, port: port}
}

func (o *owner) addresses(t target) []relay.Address {
	if t.name == nil {
		return t.literal
	}
	addresses := make([]relay.Address, 0, len(t.name.addresses))
	for _, ip := range t.name.addresses {
		addresses = append(addresses, relay.Address{TCP: netip.AddrPortFrom(ip, t.port)})
	}
	return addresses
}

// resolve begins a round of look-ups, unless one is under way.
func (o *owner) resolve(ctx context.Context) {
	o.names.next = time.Now().Add(o.client.timing.resolve)
	if o.names.running {
		return // its end begins the next one if need be
	}
	o.forgetNames()
	if len(o.names.byHost) == 0 {
		return
	}
	hosts := make([]string, 0, len(o.names.byHost))
	for host := range o.names.byHost {
		hosts = append(hosts, host)
	}
	o.names.running, o.names.stale = true, false
	o.tasks.Go(func() { o.client.lookUp(ctx, hosts, o.names.results) })
}

// forgetNames drops the names that no tunnel uses any more.
func (o *owner) forgetNames() {
	used := make(map[*name]bool, len(o.names.byHost))
	for _, t := range o.tunnels.byName {
		used[t.target.name] = true
	}
	for host, n := range o.names.byHost {
		if !used[n] {
			delete(o.names.byHost, host)
		}
	}
}

// lookUp resolves hosts, a few at a time, and reports each as it comes.
func (c *Client) lookUp(ctx context.Context, hosts []string, results chan<- resolution) {
	report := func(r resolution) {
		select {
		case results <- r:
		case <-ctx.Done():
		}
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, maxLookups)
	for _, host := range hosts {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			addresses, err := c.lookup(ctx, "ip", host)
			if err == nil && len(addresses) == 0 {
				err = fmt.Errorf("look up %s: it has no address", host)
			}
			report(resolution{host: host, addresses: addresses, err: err})
		})
	}
	group.Wait()
	report(resolution{over: true})
}

// resolved takes an answer.
func (o *owner) resolved(ctx context.Context, r resolution) {
	if r.over {
		o.names.running = false
		o.names.next = time.Now().Add(o.client.timing.resolve)
		if o.names.stale {
			o.resolve(ctx)
		}
		return
	}
	n := o.names.byHost[r.host]
	if n == nil {
		return
	}
	first, moved := !n.tried, false
	n.tried = true
	if r.err != nil {
		if !n.failing {
			o.log.Warn("cannot resolve the address of a local service; check its host name and this host's DNS",
				"address", r.host, "error", r.err)
		}
		n.failing = true
	} else {
		n.failing = false
		for i, ip := range r.addresses {
			r.addresses[i] = ip.Unmap()
		}
		moved = !slices.Equal(n.addresses, r.addresses)
		n.addresses = r.addresses
	}
	for _, t := range o.tunnels.byName {
		if t.target.name != n {
			continue
		}
		if moved {
			o.setTarget(t)
		}
		if first {
			o.register(t)
		}
	}
}
