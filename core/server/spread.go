package server

import (
	"sync/atomic"
	"time"
)

// How the clients of a server that stops come back: the first after
// shutdownRetry, then shutdownRate in a second, for at most shutdownSpread. A
// herd that is too large for that shares it.
const (
	shutdownRetry  = time.Second
	shutdownRate   = 500
	shutdownSpread = time.Minute
)

// spread hands out the times after which the clients of a server that stops may
// come back. It may be used from any goroutine.
type spread struct{ given atomic.Uint64 }

// next gives the time for one more client.
func (s *spread) next() time.Duration {
	n := (s.given.Add(1) - 1) % uint64(shutdownSpread/time.Second*shutdownRate)
	return shutdownRetry + time.Duration(n)*(time.Second/shutdownRate)
}
