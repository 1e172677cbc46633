//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/epoll"
)

// field is a set of workers that run together.
type field struct {
	workers []*worker
}

// worker is a loop with the buffers that its connections share.
type worker struct {
	*epoll.Loop
	clock epoll.Clock
	buf   []byte
	zeros []byte
}

// openField opens so many workers, at least one. It gives the process the
// scheduler slots that their loops hold.
func openField(workers int) (*field, error) {
	f := &field{}
	for range max(workers, 1) {
		l, err := epoll.Open()
		if err != nil {
			f.close()
			return nil, err
		}
		f.workers = append(f.workers, &worker{Loop: l, clock: epoll.NewClock(), buf: make([]byte, echoBuffer), zeros: make([]byte, sendChunk)})
	}
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), len(f.workers)+2))
	return f, nil
}

func (f *field) close() {
	for _, w := range f.workers {
		w.Close()
	}
	f.workers = nil
}

// run runs the workers until ctx is done or one fails, which ends all.
func (f *field) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(f.workers))
	var running sync.WaitGroup
	for i, w := range f.workers {
		running.Go(func() {
			defer cancel()
			errs[i] = w.Run(ctx)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// onField runs body beside the workers of a new field, and ends and closes
// them when body has returned.
func onField(ctx context.Context, workers int, body func(context.Context, *field) error) error {
	f, err := openField(workers)
	if err != nil {
		return err
	}
	defer f.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	var failed error
	running.Go(func() {
		defer cancel()
		failed = f.run(ctx)
	})
	err = body(ctx, f)
	cancel()
	running.Wait()
	return errors.Join(failed, err)
}

// pick deals connections out to workers in turn.
func pick(workers []*worker, i int) *worker { return workers[i%len(workers)] }

// errInterrupted ends a load whose context is done.
var errInterrupted = errors.New("interrupted before the load had ended")

// pause waits for d.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return errInterrupted
	}
}

// collect waits for n reports and joins nothing: the first error ends it.
func collect(ctx context.Context, reports <-chan error, n int, limit time.Duration, what string) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for got := range n {
		select {
		case err := <-reports:
			if err != nil {
				return err
			}
		case <-timer.C:
			return fmt.Errorf("%s: %d of %d after %v; is the tunnel up, and cproxy-bench serve behind it?", what, got, n, limit)
		case <-ctx.Done():
			return errInterrupted
		}
	}
	return nil
}

// warmUp is how long a load of that duration runs before it is measured.
func warmUp(d time.Duration) time.Duration { return min(d/5, 500*time.Millisecond) }

// measure lets the window enclose the time d, and tells how long it was.
func measure(ctx context.Context, w Window, d time.Duration, begin, end func()) (time.Duration, error) {
	if err := w.Begin(); err != nil {
		return 0, err
	}
	begin()
	start := time.Now()
	if err := pause(ctx, d); err != nil {
		return 0, err
	}
	end()
	took := time.Since(start)
	return took, w.End()
}
