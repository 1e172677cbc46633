//go:build linux

// Package load makes load for a TCP tunnel and serves the other end of it: a
// [Server] stands behind the tunnel, and [Bulk], [PingPong], [Churn], [Idle]
// and [Mix] connect to its public side.
//
// Every connection begins with a [Request] that says what the server does.
// The generator checks what comes back: replies by their first bytes, amounts
// by a [Trailer]. Each load calls a [Window] where measuring begins and ends.
package load

import "time"

// Window is told when measuring begins and ends. The calls come from the
// goroutine that runs the load, at most once each and in this order.
type Window interface {
	Begin() error
	End() error
}

// Sizes of what one visit of a connection moves, in bytes. A budget bounds
// the visit, so that the connections of a loop take turns.
const (
	echoBuffer = 64 << 10
	sendChunk  = 256 << 10
	discardMax = 1 << 20
)

// Limits on waiting for the target.
const (
	connectLimit = 20 * time.Second // until all connections have been opened
	finishLimit  = 10 * time.Second // until all have ended in an orderly way
)
