//go:build linux

package fleet

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// Options describe a fleet.
type Options struct {
	Join    identity.Join // credential of all, and the server's address and pin
	Clients int
	Tunnels int           // of each client, on any port
	AtOnce  int           // logins under way at a time; 0: all
	Limit   time.Duration // for all tunnels to be open
	Settle  time.Duration // from then to the first look
	Rest    time.Duration // between the two looks
}

// Probe looks at the server. Its calls come from the goroutine of Run, in the
// order of the methods.
type Probe interface {
	Before() error // one client is connected that does not count
	Begin() error  // all tunnels are open, and the fleet rests
	End() error    // it still rests
}

// Result is what became of a fleet.
type Result struct {
	Cold time.Duration // from the first dial until all tunnels were open
	Counts
}

// fleet is what its members share.
type fleet struct {
	options Options
	tls     *tls.Config
	dialer  net.Dialer
	slots   chan struct{} // nil: no bound
	tally   tally
	tasks   sync.WaitGroup
}

// Run connects all clients, lets the probe look at the server while they rest,
// and takes leave. It blocks meanwhile. It fails when the server refuses a client
// or a tunnel for good, when not all tunnels are open in time, or when the probe
// fails; a refusal for now and a lost connection are counted and tried again.
func Run(ctx context.Context, o Options, probe Probe) (Result, error) {
	f, err := newFleet(o)
	if err != nil {
		return Result{}, fmt.Errorf("prepare clients: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	f.tally.giveUp = cancel
	defer f.tasks.Wait()
	defer cancel(nil)
	cold, err := f.run(ctx, probe)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err != nil {
		return Result{}, fmt.Errorf("run clients: %w", err)
	}
	return Result{Cold: cold, Counts: f.tally.counts()}, nil
}

func newFleet(o Options) (*fleet, error) {
	host, _, err := net.SplitHostPort(o.Join.Address)
	if err != nil {
		return nil, fmt.Errorf("%q is no address: use HOST:PORT", o.Join.Address)
	}
	var trust identity.Trust
	if o.Join.Pin != nil {
		trust.Pins = []identity.Pin{*o.Join.Pin}
	}
	config, err := identity.ClientTLS(trust, host, wire.ALPN)
	if err != nil {
		return nil, err
	}
	f := &fleet{options: o, tls: config, dialer: net.Dialer{Timeout: attemptLimit}}
	if o.AtOnce > 0 {
		f.slots = make(chan struct{}, o.AtOnce)
	}
	return f, nil
}

func (f *fleet) run(ctx context.Context, probe Probe) (cold time.Duration, err error) {
	// The first client brings up what is needed whatever their number.
	if _, err = f.launch(ctx, 0, 1); err != nil {
		return 0, err
	}
	if err := pause(ctx, f.options.Settle); err != nil {
		return 0, err
	}
	if err := probe.Before(); err != nil {
		return 0, err
	}
	if cold, err = f.launch(ctx, 1, f.options.Clients); err != nil {
		return 0, err
	}
	if err := pause(ctx, f.options.Settle); err != nil {
		return 0, err
	}
	if err := probe.Begin(); err != nil {
		return 0, err
	}
	if err := pause(ctx, f.options.Rest); err != nil {
		return 0, err
	}
	return cold, probe.End()
}

// launch starts n clients and waits until all their tunnels are open.
func (f *fleet) launch(ctx context.Context, first, n int) (time.Duration, error) {
	open := f.tally.expect(n * f.options.Tunnels)
	begun := time.Now()
	for i := range n {
		m := &member{fleet: f, name: fmt.Sprintf("bench-%d", first+i)}
		_, _ = rand.Read(m.instance[:]) // documented never to fail
		f.tasks.Go(func() { m.run(ctx) })
	}
	late := time.NewTimer(f.options.Limit)
	defer late.Stop()
	select {
	case <-open:
		return time.Since(begun), nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-late.C:
		return 0, fmt.Errorf("not all tunnels were open after %v (%s): check the server's log, or raise --limit",
			f.options.Limit, f.tally.progress())
	}
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// isRefusal gives the refusal inside err.
func isRefusal(err error) (*wire.RefusedError, bool) { return errors.AsType[*wire.RefusedError](err) }
