//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/epoll"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/hist"
)

// ChurnOptions describe short connections: each asks for one byte, receives
// it and the server's FIN, and closes.
type ChurnOptions struct {
	Target   netip.AddrPort
	Threads  int
	InFlight int // connections at any time
	Duration time.Duration
}

// ChurnResult is what was measured.
type ChurnResult struct {
	Elapsed   time.Duration
	Conns     uint64          // that ended well
	Failed    uint64          // in all of the run
	FirstByte *hist.Histogram // from connect to the byte
	Reason    error           // of the first failure
}

// maxFailures in a row show that it is not the odd connection that fails.
const maxFailures = 200

// Churn opens connections one after the other. Single failures are counted;
// an error means that none succeeded, or none for a while.
func Churn(ctx context.Context, o ChurnOptions, w Window) (ChurnResult, error) {
	run := &churnRun{target: o.Target, ended: make(chan error, o.InFlight)}
	var took time.Duration
	err := onField(ctx, min(o.Threads, o.InFlight), func(ctx context.Context, f *field) (err error) {
		for range f.workers {
			run.tallies = append(run.tallies, &churnTally{})
		}
		for i := range o.InFlight {
			v := &visitor{worker: pick(f.workers, i), run: run, tally: run.tallies[i%len(f.workers)]}
			v.worker.Post(v.begin)
		}
		if err := run.pause(ctx, warmUp(o.Duration)); err != nil {
			return err
		}
		took, err = measure(ctx, w, o.Duration, func() { run.recording.Store(true) }, func() { run.recording.Store(false) })
		if err != nil {
			return err
		}
		run.stopping.Store(true)
		return collect(ctx, run.ended, o.InFlight, finishLimit, "end connections")
	})
	if err == nil {
		err = run.useless()
	}
	if err != nil {
		return ChurnResult{}, fmt.Errorf("churn: %w", err)
	}
	return run.result(took), nil
}

// churnRun is what all visitors share.
type churnRun struct {
	target    netip.AddrPort
	recording atomic.Bool
	stopping  atomic.Bool
	tallies   []*churnTally
	ended     chan error // one report of each visitor, when it stops
}

// churnTally counts for one worker. Others read it after the worker has ended.
type churnTally struct {
	conns, failed uint64
	firstByte     hist.Histogram
	succeeded     bool
	inRow         int // failures
	reason        error
}

// pause is the warm-up, which a target that never answers cuts short.
func (r *churnRun) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case err := <-r.ended:
		return err
	case <-ctx.Done():
		return errInterrupted
	}
}

// useless is an error if connections failed and none succeeded. The workers
// have ended.
func (r *churnRun) useless() error {
	var failed uint64
	var reason error
	for _, t := range r.tallies {
		if t.succeeded {
			return nil
		}
		failed += t.failed
		reason = errors.Join(reason, t.reason)
	}
	if reason == nil {
		return nil
	}
	return fmt.Errorf("all of %d connections failed; is the tunnel up, and cproxy-bench serve behind it? %w", failed, reason)
}

func (r *churnRun) result(took time.Duration) ChurnResult {
	result := ChurnResult{Elapsed: took, FirstByte: &hist.Histogram{}}
	for _, t := range r.tallies {
		result.Conns += t.conns
		result.Failed += t.failed
		result.FirstByte.Merge(&t.firstByte)
		if result.Reason == nil {
			result.Reason = t.reason
		}
	}
	return result
}

// visitor makes one connection after the other.
type visitor struct {
	worker *worker
	run    *churnRun
	tally  *churnTally

	fd      int
	stage   stage
	started time.Duration
	got     int
}

// begin opens the next connection.
func (v *visitor) begin() {
	if v.run.stopping.Load() {
		v.stage = ended
		v.run.ended <- nil
		return
	}
	v.stage, v.got = connecting, 0
	v.started = v.worker.clock.Now()
	fd, err := epoll.Connect(v.run.target)
	if err == nil {
		v.fd = fd
		if err = v.worker.Add(fd, v, unix.EPOLLOUT); err != nil {
			epoll.Close(fd)
		}
	}
	if err != nil {
		v.fail(err)
	}
}

// fail counts a failure and goes on, unless nothing succeeds any more.
func (v *visitor) fail(err error) {
	t := v.tally
	t.failed++
	t.inRow++
	if t.reason == nil {
		t.reason = err
	}
	if t.inRow >= maxFailures {
		v.stage = ended
		v.run.ended <- fmt.Errorf("%d connections in a row failed; is the tunnel up, and cproxy-bench serve behind it? The first: %w", t.inRow, t.reason)
		return
	}
	v.worker.Post(v.begin) // not at once, which would nest
}

// Ready is called by the loop.
func (v *visitor) Ready(uint32) {
	done, err := v.move()
	if !done && err == nil {
		return
	}
	v.worker.Drop(v.fd)
	if err != nil {
		v.fail(err)
		return
	}
	v.tally.inRow, v.tally.succeeded = 0, true
	if v.run.recording.Load() {
		v.tally.conns++
	}
	v.begin()
}

// move tells whether the connection has ended well.
func (v *visitor) move() (done bool, err error) {
	if v.stage == connecting {
		return false, v.connected()
	}
	n, errno := epoll.Receive(v.fd, v.worker.buf)
	switch {
	case errno != 0 && epoll.Again(errno):
		return false, nil
	case errno != 0:
		return false, fmt.Errorf("receive: %w", errno)
	case n == 0 && v.got == 0:
		return false, errors.New("the connection ended without the byte")
	case n == 0:
		return true, nil
	case v.got+n > 1:
		return false, fmt.Errorf("received %d bytes instead of one", v.got+n)
	}
	v.got += n
	if v.run.recording.Load() {
		v.tally.firstByte.Add(v.worker.clock.Now() - v.started)
	}
	return false, nil
}

func (v *visitor) connected() error {
	if err := epoll.Connected(v.fd); err != nil {
		return fmt.Errorf("connect to %s: %w", v.run.target, err)
	}
	request := Request{Op: Source, Bytes: 1}.Encode()
	if n, errno := epoll.Send(v.fd, request[:]); errno != 0 || n < len(request) {
		return fmt.Errorf("send request: %w", errno)
	}
	v.stage = running
	v.worker.Watch(v.fd, unix.EPOLLIN)
	return nil
}
