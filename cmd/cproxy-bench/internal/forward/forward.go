//go:build linux

// Package forward holds two plain TCP forwarders to compare with: CProxy's own
// engine without its frames, and the usual goroutines with io.Copy.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"

	"github.com/cproxy/cproxy/core/relay"
)

// Options describe a forwarder.
type Options struct {
	Listen, Target netip.AddrPort
	Loops          int                  // of the engine; at least 1
	Ready          func(netip.AddrPort) // called once, with the address it listens on
}

// tunnelID is the one tunnel of the engine.
const tunnelID = 1

// Engine forwards with core/relay until ctx is done. It raises GOMAXPROCS to
// what the loops want.
func Engine(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), o.Loops+2))
	e := relay.New(relay.Options{Loops: o.Loops, Settings: relay.DefaultSettings()})
	var running sync.WaitGroup
	var failed, refused error
	running.Go(func() { failed = e.Run(ctx) })
	e.Submit(relay.Listen{
		Tunnel: tunnelID, Binds: []netip.Addr{o.Listen.Addr()}, Ports: []uint16{o.Listen.Port()},
		Route: relay.ToTarget{Target: relay.Target{Addresses: []relay.Address{{TCP: o.Target}}}},
	})
	for batch := range e.Events() {
		for _, ev := range batch {
			listening, ok := ev.(relay.Listening)
			switch {
			case !ok:
			case listening.Err != nil:
				refused = fmt.Errorf("open forwarder (choose another address, or port 0): %w", listening.Err)
				cancel()
			default:
				o.Ready(listening.Addresses[0])
			}
		}
	}
	running.Wait()
	return errors.Join(failed, refused)
}

// Copy forwards with a goroutine for each direction until ctx is done; io.Copy
// splices between TCP connections by itself.
func Copy(ctx context.Context, o Options) error {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(o.Listen))
	if err != nil {
		return fmt.Errorf("open forwarder (choose another address, or port 0): %w", err)
	}
	var pairs sync.WaitGroup
	defer pairs.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Of the same ctx that the loop below looks at: it is done when this runs.
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	o.Ready(ln.Addr().(*net.TCPAddr).AddrPort())
	for {
		public, err := ln.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = public.Close()
			}
			return nil
		case err != nil:
			_ = ln.Close()
			return fmt.Errorf("accept: %w", err)
		}
		pairs.Go(func() { join(ctx, public, o.Target) })
	}
}

// join dials the target and copies until both directions have ended.
func join(ctx context.Context, public *net.TCPConn, target netip.AddrPort) {
	defer func() { _ = public.Close() }()
	local, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(target))
	if err != nil {
		_ = public.SetLinger(0) // the visitor sees a reset, not an empty reply
		return
	}
	defer func() { _ = local.Close() }()
	stop := context.AfterFunc(ctx, func() { _, _ = public.Close(), local.Close() })
	defer stop()
	var up sync.WaitGroup
	up.Go(func() { oneWay(local, public) })
	oneWay(public, local)
	up.Wait()
}

// oneWay copies to the source's FIN and passes it on. A failed copy ends both
// directions with a reset.
func oneWay(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.SetLinger(0)
		_ = from.SetLinger(0)
		_, _ = to.Close(), from.Close()
		return
	}
	_ = to.CloseWrite()
}
