//go:build linux

package load

import (
	"context"
	"fmt"
	"time"
)

// MixOptions describe ping-pongs beside bulk flows.
type MixOptions struct {
	Ping PingPongOptions // its duration and target count for both
	Bulk BulkOptions     // what to move; always until the end
}

// MixResult is what was measured of both in the same time.
type MixResult struct {
	Ping PingPongResult
	Bulk BulkResult
}

// Mix runs both loads at once, on workers of their own, so that the generator
// itself adds little to the latencies.
func Mix(ctx context.Context, o MixOptions, w Window) (MixResult, error) {
	var p *pings
	var bulk BulkResult
	var took time.Duration
	o.Bulk.Target, o.Bulk.Bytes = o.Ping.Target, 0
	err := onField(ctx, 2, func(ctx context.Context, f *field) error {
		s, err := openFlows(ctx, f.workers[:1], o.Bulk)
		if err != nil {
			return err
		}
		if p, err = openPings(ctx, f.workers[1:], o.Ping, false); err != nil {
			return err
		}
		p.start()
		s.each((*flow).start)
		if err := pause(ctx, warmUp(o.Ping.Duration)); err != nil {
			return err
		}
		var before, after BulkResult
		took, err = measure(ctx, w, o.Ping.Duration,
			func() { before = s.totals(); p.record() },
			func() { after = s.totals(); p.rest() })
		if err != nil {
			return err
		}
		bulk = BulkResult{Elapsed: took, Down: after.Down - before.Down, Up: after.Up - before.Up}
		if bulk, err = s.finish(ctx, bulk); err != nil {
			return err
		}
		return p.finish(ctx)
	})
	if err != nil {
		return MixResult{}, fmt.Errorf("mixed load: %w", err)
	}
	return MixResult{Ping: p.result(took), Bulk: bulk}, nil
}
