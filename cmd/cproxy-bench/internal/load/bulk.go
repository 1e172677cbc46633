//go:build linux

package load

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// BulkOptions describe bulk flows.
type BulkOptions struct {
	Target   netip.AddrPort
	Threads  int
	Flows    int
	Down, Up bool // from the server to the generator, and the other way; at least one
	// Duration is how long is measured, after a short warm-up; Bytes instead
	// measures until each flow has moved so many in each direction.
	Duration time.Duration
	Bytes    uint64
}

// BulkResult is what bulk flows moved while they were measured.
type BulkResult struct {
	Elapsed  time.Duration
	Down, Up uint64 // bytes of all flows
	// Confirmed counts the flows whose numbers the server confirmed; the
	// others went through something that does not carry half-close.
	Confirmed, Flows int
}

// Bulk moves bytes as fast as it can. It returns an error when a flow fails or
// its bytes do not arrive.
func Bulk(ctx context.Context, o BulkOptions, w Window) (result BulkResult, err error) {
	err = onField(ctx, min(o.Threads, o.Flows), func(ctx context.Context, f *field) error {
		s, err := openFlows(ctx, f.workers, o)
		if err != nil {
			return err
		}
		if o.Bytes > 0 {
			result, err = s.all(ctx, w)
		} else {
			result, err = s.during(ctx, w, o.Duration)
		}
		return err
	})
	return result, err
}

// flows are the bulk flows of one load.
type flows struct {
	target   netip.AddrPort
	request  Request
	up, down bool
	limit    uint64 // bytes of each flow and direction; 0 is no limit
	flows    []*flow

	// One report of each flow: that it is connected or cannot be, and after
	// that how it ended. There is room for all.
	opened, ended chan error
}

// openFlows connects all flows, and lets none start.
func openFlows(ctx context.Context, workers []*worker, o BulkOptions) (*flows, error) {
	s := &flows{
		target: o.Target, up: o.Up, down: o.Down, limit: o.Bytes,
		request: Request{Op: Sink, Confirm: true},
		opened:  make(chan error, o.Flows), ended: make(chan error, o.Flows),
	}
	if o.Down {
		s.request = Request{Op: Source, Confirm: true, Bytes: o.Bytes}
	}
	for i := range o.Flows {
		c := &flow{worker: pick(workers, i), run: s}
		s.flows = append(s.flows, c)
		c.worker.Post(func() { c.dial(o.Target) })
	}
	if err := collect(ctx, s.opened, o.Flows, connectLimit, "open bulk flows"); err != nil {
		return nil, err
	}
	return s, nil
}

// each has do run for every flow in its loop.
func (s *flows) each(do func(*flow)) {
	for _, c := range s.flows {
		c.worker.Post(func() { do(c) })
	}
}

// during measures for d while the flows run.
func (s *flows) during(ctx context.Context, w Window, d time.Duration) (BulkResult, error) {
	s.each((*flow).start)
	if err := pause(ctx, warmUp(d)); err != nil {
		return BulkResult{}, err
	}
	var before, after BulkResult
	took, err := measure(ctx, w, d, func() { before = s.totals() }, func() { after = s.totals() })
	if err != nil {
		return BulkResult{}, err
	}
	r := BulkResult{Elapsed: took, Down: after.Down - before.Down, Up: after.Up - before.Up}
	return s.finish(ctx, r)
}

// all measures until every flow has moved its bytes.
func (s *flows) all(ctx context.Context, w Window) (BulkResult, error) {
	if err := w.Begin(); err != nil {
		return BulkResult{}, err
	}
	start := time.Now()
	s.each((*flow).start)
	for range s.flows {
		select {
		case err := <-s.ended:
			if err != nil {
				return BulkResult{}, err
			}
		case <-ctx.Done():
			return BulkResult{}, errInterrupted
		}
	}
	r := s.totals()
	r.Elapsed = time.Since(start)
	s.confirm(&r)
	r.Down -= min(r.Down, uint64(r.Confirmed)*TrailerSize)
	return r, w.End()
}

// finish ends the flows in an orderly way and adds what the server confirms.
func (s *flows) finish(ctx context.Context, r BulkResult) (BulkResult, error) {
	s.each((*flow).stop)
	if err := s.await(ctx, finishLimit); err != nil {
		return BulkResult{}, fmt.Errorf("bulk flow: %w", err)
	}
	s.confirm(&r)
	return r, nil
}

// await waits until all flows have ended, for as long as no more than patience
// passes without a byte: a tunnel with a rate limit takes its time over what is
// in the buffers on the way.
func (s *flows) await(ctx context.Context, patience time.Duration) error {
	tick := time.NewTicker(patience)
	defer tick.Stop()
	moved := s.totals()
	for got := 0; got < len(s.flows); {
		select {
		case err := <-s.ended:
			if err != nil {
				return err
			}
			got++
		case <-tick.C:
			now := s.totals()
			if now == moved {
				return fmt.Errorf("end bulk flows: %d of %d, and no byte came for %v; is the tunnel up, and cproxy-bench serve behind it? "+
					"On a tunnel with a rate limit (rate_up, rate_down) what is in buffers on the way can take long: use --bytes", got, len(s.flows), patience)
			}
			moved = now
		case <-ctx.Done():
			return errInterrupted
		}
	}
	return nil
}

// confirm counts the confirmed flows. All have ended: their last report makes
// what the loops wrote visible here.
func (s *flows) confirm(r *BulkResult) {
	r.Flows = len(s.flows)
	for _, c := range s.flows {
		if c.confirmed {
			r.Confirmed++
		}
	}
}

func (s *flows) totals() BulkResult {
	var r BulkResult
	for _, c := range s.flows {
		r.Up += c.sent.Load()
		r.Down += c.received.Load()
	}
	return r
}
