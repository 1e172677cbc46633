package e2e

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
)

// passage says what a cutter does with connections.
type passage int

const (
	passing passage = iota
	// severed connections are reset, and so is every new one.
	severed
	// muted ones stay open, but not a byte passes, nor the end of one side to
	// the other: a network that drops packets. A connection that was muted stays
	// so when others pass again.
	muted
)

// cutter carries connections to an address as long as it is told to.
type cutter struct {
	address string
	to      string
	heard   atomic.Int64 // how often the far side said something

	mu     sync.Mutex
	way    passage
	turned int // connections that came while it was not passing
	open   map[*carried]struct{}
}

// carried is a connection and its continuation.
type carried struct {
	down, up stream
	dead     chan struct{} // closed when it is muted
	mute     func()
}

func newCutter(t *testing.T, ip, to string) *cutter {
	t.Helper()
	k := &cutter{to: to, open: make(map[*carried]struct{})}
	s := serve(t, "tcp", ip+":0", k.carry)
	k.address = s.address
	t.Cleanup(func() { k.set(severed) })
	return k
}

// carry serves one connection until both its ends have ended.
func (k *cutter) carry(c stream) {
	up, err := dial(k.to)
	if err != nil {
		return
	}
	defer up.Close()
	both := &carried{down: c, up: up, dead: make(chan struct{})}
	both.mute = sync.OnceFunc(func() { close(both.dead) })
	if !k.enter(both) {
		_ = reset(c) // it may have left already
		return
	}
	var tasks sync.WaitGroup
	tasks.Go(func() { both.pass(up, c, nil) })
	tasks.Go(func() { both.pass(c, up, &k.heard) })
	tasks.Wait()
	k.mu.Lock()
	delete(k.open, both)
	k.mu.Unlock()
}

// enter tells whether a new connection may stay.
func (k *cutter) enter(c *carried) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.way != passing {
		k.turned++
	}
	if k.way == severed {
		return false
	}
	if k.way == muted {
		c.mute()
	}
	k.open[c] = struct{}{}
	return true
}

// pass carries one direction.
func (c *carried) pass(to, from stream, heard *atomic.Int64) {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		select {
		case <-c.dead:
			_, _ = io.Copy(io.Discard, from) // until its own end leaves
			return
		default:
		}
		if heard != nil && n > 0 {
			heard.Add(1)
		}
		_, writeErr := to.Write(b[:n])
		if errors.Join(err, writeErr) != nil {
			_ = from.Close() // either may be gone already
			_ = to.Close()
			return
		}
	}
}

// set changes what happens to connections, also to those that are open.
func (k *cutter) set(way passage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.way = way
	for c := range k.open {
		switch way {
		case severed:
			_ = reset(c.down) // either may be gone already
			_ = reset(c.up)
		case muted:
			c.mute()
		case passing:
		}
	}
}

// refusals is how many connections came while none could pass.
func (k *cutter) refusals() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.turned
}

// through makes a way for setup.way that leads through a cutter, stored in k.
func through(t *testing.T, k **cutter) func(w *world, ctl string) string {
	t.Helper()
	return func(w *world, ctl string) string {
		*k = newCutter(t, w.ip, ctl)
		return (*k).address
	}
}
