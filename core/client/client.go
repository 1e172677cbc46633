package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// timing is how long things take. Tests shorten some.
type timing struct {
	attempt    time.Duration // connecting, until Welcome, at least
	answer     time.Duration // of that for TLS and Welcome, at least
	write      time.Duration // one message to the server
	farewell   time.Duration // Goodbye at the end
	resolve    time.Duration // between two look-ups of a LocalServer's name
	register   time.Duration // least wait after a tunnel was refused for now
	superseded time.Duration // least wait after another instance took over
	refused    time.Duration // least wait after a login was refused for good
	draw       func(n int64) int64
}

func defaultTiming() timing {
	return timing{
		attempt:    15 * time.Second,
		answer:     5 * time.Second,
		write:      10 * time.Second,
		farewell:   2 * time.Second,
		resolve:    30 * time.Second,
		register:   time.Second,
		superseded: time.Minute,
		refused:    time.Minute,
	}
}

// whole bounds an attempt whose TCP connection may take connect.
func (t timing) whole(connect time.Duration) time.Duration {
	return max(t.attempt, connect+t.answer)
}

// Client keeps the tunnels of one host open. Its methods may be called from any
// goroutine.
type Client struct {
	options  Options
	instance [wire.InstanceSize]byte
	engine   *relay.Engine
	timing   timing
	resolver *net.Resolver // of the servers' names; nil: that of the system
	lookup   func(ctx context.Context, network, host string) ([]netip.Addr, error)

	mu      sync.Mutex
	reloads chan Reloadable // the newest one that was not taken yet
}

// New checks o, reporting everything that is wrong with it, and makes a client.
// It opens and starts nothing.
func New(o Options) (*Client, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("configure client: %w", err)
	}
	if o.Ready == nil {
		o.Ready = func(string, string) {}
	}
	c := &Client{
		options: o,
		engine:  relay.New(relay.Options{Loops: o.Loops, Settings: o.Reloadable.Settings}),
		timing:  defaultTiming(),
		lookup:  net.DefaultResolver.LookupNetIP,
		reloads: make(chan Reloadable, 1),
	}
	_, _ = rand.Read(c.instance[:]) // documented never to fail
	return c, nil
}

// Run keeps the tunnels open until ctx is done; it then takes leave of the
// server, resets the streams that still run, and returns nil when everything
// that it started has ended. Call it once.
//
// It returns early, with an error for which [IsRefused] is true, if before the
// first connection was made every server refuses this client for good or presents
// another key than the pinned ones, or refuses every tunnel for good on the first
// connection. Once connected it only waits longer and longer between attempts,
// and errors of the network never end it. Any other error is one of this host:
// the event loops could not be started, or the CA file not be read at first.
func (c *Client) Run(ctx context.Context) error {
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	var engine sync.WaitGroup
	engine.Go(func() { ended <- c.engine.Run(engineCtx) })
	err := newOwner(c).run(ctx, ended)
	stopEngine()
	engine.Wait()
	return err
}

// Reconfigure applies r while the client runs, or when Run begins: new tunnels
// are registered, removed ones closed, changed ones replaced; streams that run
// are left alone. It does not wait for that; of several calls in a row the last
// one counts. It fails, changing nothing, if r is not valid.
func (c *Client) Reconfigure(r Reloadable) error {
	if err := r.validate(); err != nil {
		return fmt.Errorf("reconfigure client: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.reloads:
	default:
	}
	c.reloads <- r // mu keeps others from filling the room made
	return nil
}

// done is the Goodbye of a client that was told to stop.
func done() *wire.Goodbye {
	return wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, "the client was stopped"), 0)
}

// IsRefused reports whether err, from Run or Check, says that a server refuses
// this client for good: it should not try again before somebody has changed
// something.
func IsRefused(err error) bool {
	switch e := err.(type) { //nolint:errorlint // the whole tree is walked
	case *wire.RefusedError:
		return e.Permanent()
	case *identity.PinError:
		return true
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), IsRefused)
	case interface{ Unwrap() error }:
		return IsRefused(e.Unwrap())
	default:
		return false
	}
}
