//go:build linux

package load

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/hist"
)

// PingPongOptions describe connections that each have one message under way.
type PingPongOptions struct {
	Target   netip.AddrPort
	Threads  int
	Conns    int
	Size     int // of a message, in bytes, at least 1
	Duration time.Duration
}

// PingPongResult is what was measured.
type PingPongResult struct {
	Elapsed   time.Duration
	Trips     uint64
	Latencies *hist.Histogram
}

// PingPong exchanges messages. It returns an error when a connection fails or
// an echo is not what was sent.
func PingPong(ctx context.Context, o PingPongOptions, w Window) (PingPongResult, error) {
	var p *pings
	var took time.Duration
	err := onField(ctx, min(o.Threads, o.Conns), func(ctx context.Context, f *field) (err error) {
		if p, err = openPings(ctx, f.workers, o, false); err != nil {
			return err
		}
		p.start()
		if err := pause(ctx, warmUp(o.Duration)); err != nil {
			return err
		}
		if took, err = measure(ctx, w, o.Duration, p.record, p.rest); err != nil {
			return err
		}
		return p.finish(ctx)
	})
	if err != nil {
		return PingPongResult{}, err
	}
	return p.result(took), nil
}

// pings are the pingers of one load.
type pings struct {
	*pingRun
	pingers []*pinger
	tallies []*pingTally
}

// openPings connects all pingers, and lets none start.
func openPings(ctx context.Context, workers []*worker, o PingPongOptions, once bool) (*pings, error) {
	p := newPings(workers, o, once)
	if err := p.open(ctx, workers, o.Conns); err != nil {
		return nil, err
	}
	return p, nil
}

func newPings(workers []*worker, o PingPongOptions, once bool) *pings {
	p := &pings{pingRun: &pingRun{
		target: o.Target, size: o.Size, once: once,
		opened: make(chan error, o.Conns), answered: make(chan error, o.Conns), ended: make(chan error, o.Conns),
	}}
	for range workers {
		p.tallies = append(p.tallies, &pingTally{})
	}
	return p
}

// open connects n more pingers.
func (p *pings) open(ctx context.Context, workers []*worker, n int) error {
	for range n {
		i := len(p.pingers)
		c := &pinger{worker: pick(workers, i), id: uint32(i), run: p.pingRun, tally: p.tallies[i%len(workers)]}
		p.pingers = append(p.pingers, c)
		c.worker.Post(c.dial)
	}
	return collect(ctx, p.opened, n, connectLimit, "open connections")
}

func (p *pings) start() { p.startFrom(0) }

// startFrom starts the pingers from the given one on.
func (p *pings) startFrom(first int) {
	for _, c := range p.pingers[first:] {
		c.worker.Post(c.start)
	}
}

func (p *pings) record() { p.recording.Store(true) }
func (p *pings) rest()   { p.recording.Store(false) }

// finish ends all pingers in an orderly way: those that run after their next
// reply.
func (p *pings) finish(ctx context.Context) error {
	p.stopping.Store(true)
	if p.once {
		for _, c := range p.pingers {
			c.worker.Post(c.stop)
		}
	}
	if err := collect(ctx, p.ended, len(p.pingers), finishLimit, "end connections"); err != nil {
		return fmt.Errorf("ping-pong: %w", err)
	}
	return nil
}

// result sums up; the workers have ended.
func (p *pings) result(took time.Duration) PingPongResult {
	r := PingPongResult{Elapsed: took, Latencies: &hist.Histogram{}}
	for _, t := range p.tallies {
		r.Trips += t.trips.Load()
		r.Latencies.Merge(&t.latencies)
	}
	return r
}
