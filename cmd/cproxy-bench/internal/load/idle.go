//go:build linux

package load

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// IdleOptions describe connections that exchange one message and then rest.
type IdleOptions struct {
	Target  netip.AddrPort
	Threads int
	Conns   int
	Size    int           // of the message, in bytes
	Settle  time.Duration // from the last exchange to the first look
	Rest    time.Duration // between the two looks
}

// Probe looks at the machine while connections rest. Its calls come from the
// goroutine that runs the load, in the order of the methods.
type Probe interface {
	Before() error // one connection has been used, none of the counted ones
	Begin() error  // all have been used and rest
	End() error    // they still rest
}

// openAtOnce bounds how many connections are being opened at a time.
const openAtOnce = 64

// Idle opens connections, uses each once, and lets the probe look at them.
func Idle(ctx context.Context, o IdleOptions, probe Probe) error {
	ping := PingPongOptions{Target: o.Target, Conns: o.Conns + 1, Size: o.Size}
	err := onField(ctx, min(o.Threads, o.Conns), func(ctx context.Context, f *field) error {
		p := newPings(f.workers, ping, true)
		// The first connection brings up what is needed whatever their number.
		if err := p.use(ctx, f.workers, 1); err != nil {
			return err
		}
		if err := pause(ctx, o.Settle); err != nil {
			return err
		}
		if err := probe.Before(); err != nil {
			return err
		}
		for opened := 0; opened < o.Conns; opened += openAtOnce {
			if err := p.use(ctx, f.workers, min(openAtOnce, o.Conns-opened)); err != nil {
				return err
			}
		}
		if err := pause(ctx, o.Settle); err != nil {
			return err
		}
		if err := probe.Begin(); err != nil {
			return err
		}
		if err := pause(ctx, o.Rest); err != nil {
			return err
		}
		if err := probe.End(); err != nil {
			return err
		}
		return p.finish(ctx)
	})
	if err != nil {
		return fmt.Errorf("idle connections: %w", err)
	}
	return nil
}

// use opens n connections and exchanges one message over each.
func (p *pings) use(ctx context.Context, workers []*worker, n int) error {
	first := len(p.pingers)
	if err := p.open(ctx, workers, n); err != nil {
		return err
	}
	p.startFrom(first)
	return collect(ctx, p.answered, n, connectLimit, "exchange the first message")
}
