//go:build linux

package fleet

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/cproxy/cproxy/core/wire"
)

// Counts are what happened to the clients that count, from their first dial on.
type Counts struct {
	Logins     int            // that led to a Welcome, resumed ones included
	Resumed    int            // of them
	Registered int            // tunnels
	Refusals   map[string]int // of clients and tunnels, by code
	Lost       int            // connections that ended after their Welcome
	Failures   int            // attempts that ended without an answer
	Reason     string         // of the first failure or loss
	ProxyConns int            // opened
	Streams    int            // begun
}

// tally counts for all members. Its methods may be called from any goroutine.
type tally struct {
	giveUp context.CancelCauseFunc // ends the run with an error

	mu      sync.Mutex
	n       Counts
	pending int           // tunnels that are not open yet
	open    chan struct{} // closed when there are none
}

// expect begins to count anew and gives a channel that is closed when so many
// more tunnels are open.
func (t *tally) expect(tunnels int) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n = Counts{Refusals: make(map[string]int)}
	t.pending, t.open = tunnels, make(chan struct{})
	return t.open
}

// note changes the counts.
func (t *tally) note(change func(n *Counts)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.n)
}

// registered counts a tunnel that was not open before.
func (t *tally) registered() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n.Registered++
	if t.pending--; t.pending == 0 {
		close(t.open)
	}
}

// refused counts a refusal; one for good ends the run.
func (t *tally) refused(what string, r *wire.RefusedError) {
	t.note(func(n *Counts) { n.Refusals[r.Code().String()]++ })
	if r.Permanent() {
		t.giveUp(fmt.Errorf("%s: %w", what, r))
	}
}

// broken counts a connection that ended, or was never made, for want of a peer.
func (t *tally) broken(welcomed bool, err error) {
	t.note(func(n *Counts) {
		if welcomed {
			n.Lost++
		} else {
			n.Failures++
		}
		if n.Reason == "" {
			n.Reason = err.Error()
		}
	})
}

func (t *tally) counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.n
	n.Refusals = maps.Clone(n.Refusals)
	return n
}

func (t *tally) progress() string {
	n := t.counts()
	return fmt.Sprintf("%d logins, %d tunnels, refusals %v, %d failures, %d lost connections; the first: %q",
		n.Logins, n.Registered, n.Refusals, n.Failures, n.Lost, n.Reason)
}
