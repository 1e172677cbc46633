package relay

import (
	"context"
	"sync"
	"sync/atomic"
)

// message is what a loop can be told, applied on its own thread.
type message interface {
	apply(l *loop)
}

// inbox takes messages from other threads: commands, and what loops ask and send
// each other. It is drained at every turn of its loop and has no bound of its
// own: a command is one message, and the rest are answers, or carry a connection
// and are bounded as those are.
type inbox struct {
	mu   sync.Mutex
	list []message
	wake func() // called when the list stops being empty; nil until the loop is open
}

func (b *inbox) post(m message) {
	b.mu.Lock()
	first := len(b.list) == 0
	b.list = append(b.list, m)
	if first && b.wake != nil {
		b.wake() // under the lock: after setWake(nil) nobody writes to the eventfd
	}
	b.mu.Unlock()
}

// take swaps the list for the empty one given.
func (b *inbox) take(empty []message) []message {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	b.list = empty
	return list
}

func (b *inbox) setWake(wake func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wake = wake
	if wake != nil && len(b.list) > 0 {
		wake() // for what was posted before
	}
}

// maxEvents bounds what waits for a reader of Events; beyond it the reports
// that nobody's state depends on (see droppable) are dropped.
const maxEvents = 1 << 16

// outbox collects the events of all loops for one reader. Loops never wait.
type outbox struct {
	notify  chan struct{}
	ch      chan []Event
	dropped atomic.Uint64

	mu   sync.Mutex
	list []Event
}

func newOutbox() *outbox {
	return &outbox{notify: make(chan struct{}, 1), ch: make(chan []Event, 1)}
}

func (o *outbox) add(events []Event) {
	o.mu.Lock()
	for _, ev := range events {
		if len(o.list) >= maxEvents && droppable(ev) {
			o.dropped.Add(1)
			continue
		}
		o.list = append(o.list, ev)
	}
	o.mu.Unlock()
	select {
	case o.notify <- struct{}{}:
	default:
	}
}

// droppable tells the reports that nobody's state depends on.
func droppable(ev Event) bool {
	switch ev.(type) {
	case StreamEnded, Refused, PrefaceFailed, Needed, Exhausted:
		return true
	default:
		return false
	}
}

// canWait tells the reports that nobody acts upon at once.
func canWait(ev Event) bool {
	switch ev.(type) {
	case StreamEnded, Refused, PrefaceFailed:
		return true
	default:
		return false
	}
}

// deliver hands batches to the reader until ctx is done.
func (o *outbox) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.notify:
		}
		o.mu.Lock()
		batch := o.list
		o.list = nil
		o.mu.Unlock()
		if len(batch) == 0 {
			continue
		}
		select {
		case o.ch <- batch:
		case <-ctx.Done():
			o.mu.Lock()
			o.list = append(batch, o.list...)
			o.mu.Unlock()
			return
		}
	}
}

// finish leaves what was not delivered, and events behind it, to a reader that
// still reads, and waits for none. deliver has returned, so this is the only
// sender: there is room for one batch.
func (o *outbox) finish(events ...Event) {
	o.mu.Lock()
	last := append(o.list, events...)
	o.list = nil
	o.mu.Unlock()
	select {
	case earlier := <-o.ch:
		last = append(earlier, last...)
	default:
	}
	if len(last) > 0 {
		o.ch <- last
	}
	close(o.ch)
}
