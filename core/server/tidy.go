package server

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// rush is how many logins leave enough behind to be worth tidying up.
	rush = 256
	// calm is how long after the last login a rush is over.
	calm = time.Second
)

// tidy gives memory back that a rush of logins leaves behind: the stacks and
// buffers of handshakes, as much again as what the clients keep. A server whose
// clients then rest makes so little garbage that it would be minutes before the
// collector looked. The zero tidy counts nothing.
type tidy struct {
	logins *atomic.Int64
	wake   chan struct{}
}

func newTidy() tidy { return tidy{logins: new(atomic.Int64), wake: make(chan struct{}, 1)} }

// arrived notes a login. It may be called from any goroutine.
func (t tidy) arrived() {
	if t.logins == nil {
		return
	}
	t.logins.Add(1)
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run calls release after each rush until ctx is done.
func (t tidy) run(ctx context.Context, release func()) {
	quiet := time.NewTimer(calm)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
			quiet.Reset(calm)
		case <-quiet.C:
			if t.logins.Load() >= rush {
				t.logins.Store(0)
				release()
			}
		}
	}
}
