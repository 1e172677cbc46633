package relay

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// visitSlice is how many bytes an event moves at once in a direction. Streams
// with more to move wait in a queue, and turnSlice is what they move before the
// loop looks at its events again: little while there are messages beside them,
// which so stay quick, else as much as a pipe holds. Every slice wakes the
// receiver; with large ones bulk costs a third less (measured).
const (
	visitSlice    = loopBuffer
	turnSlice     = 256 << 10
	turnSliceBulk = pipeSize
)

// messagesLast is how long after a message the loop expects another.
const messagesLast = 5 * time.Millisecond

// reportPause is how long reports that nobody acts upon (see canWait) may
// wait for company: waking their reader for each of them costs a tenth of the
// CPU time of short connections.
const reportPause = 10 * time.Millisecond

// longAgo is more than the age of any stream, so that one that was adopted
// began after the epoch: the loop clock is positive throughout.
const longAgo = 10 * 365 * 24 * time.Hour

// epoch is what the loop clock counts from; only differences matter.
//
//nolint:gochecknoglobals // a constant in all but syntax
var epoch = time.Now().Add(-longAgo)

// loop is one event loop. Only its own thread touches it, but for inbox and
// visitors.
type loop struct {
	id       int
	engine   *Engine
	inbox    inbox
	visitors atomic.Int64 // PublicConns, with those on their way here; all loops read it
	poll     poller
	timers   timers
	mem      memory
	pipes    pipes
	work     work
	shards   map[PoolID]*shard
	doors    map[TunnelID][]*acceptor
	lobby    fifo[proxyConn] // conns that have not sent a preface, oldest first
	spare    int             // descriptor kept for the day there is none left, or -1
	now      int64           // clock of this turn, nanoseconds
}

// work is what a turn of the loop leaves to be done or told.
type work struct {
	queue    []queued // with bytes to move, oldest first
	short    []*shard // where PublicConns wait
	events   []Event
	due      int64     // when the events are to be told; 0 without any
	messages []message // spare list for the inbox
	message  int64     // when a stream without bulk moved last
	halted   bool      // makes no more turns
	stopping bool      // ends all that it holds
}

func newLoop(e *Engine, id int) *loop {
	return &loop{id: id, engine: e, shards: make(map[PoolID]*shard), doors: make(map[TunnelID][]*acceptor), spare: -1}
}

// open gets what the loop needs to run; closeAll gives it back.
func (l *loop) open() error {
	if err := l.poll.open(); err != nil {
		return err
	}
	l.mem.rx = make([]byte, loopBuffer+frame.MaxControl)
	l.mem.tx = make([]byte, loopBuffer+frame.MaxControl+frame.HeaderSize)
	l.keepSpare()
	l.inbox.setWake(l.poll.wake)
	return nil
}

func (l *loop) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for !l.work.halted {
		l.turn()
	}
}

// turn is one round: wait, take messages, handle what is ready, then deadlines
// and one slice of what is queued.
func (l *loop) turn() {
	n := l.poll.wait(l.patience())
	l.now = int64(time.Since(epoch))
	// Messages first: a target that was set before a START was sent for it is
	// known when that START is read.
	l.applyMessages()
	for i := range n {
		ev := &l.poll.events[i]
		id, gen := uint32(ev.Fd), uint32(ev.Pad)
		if s := l.poll.slot(id); s.h != nil && s.gen == gen {
			s.h.ready(l, ev.Events)
		}
	}
	for t := l.timers.pop(l.now); t != nil; t = l.timers.pop(l.now) {
		t.expired(l)
	}
	l.runQueued()
	l.report()
}

// patience is how long the loop may wait: not at all when work is queued.
func (l *loop) patience() time.Duration {
	if len(l.work.queue) > 0 {
		return 0
	}
	when, ok := l.timers.next()
	if due := l.work.due; due > 0 && (!ok || due < when) {
		when, ok = due, true
	}
	if !ok {
		return -1
	}
	return max(0, time.Duration(when-int64(time.Since(epoch))))
}

// applyMessages tells whether there were any.
func (l *loop) applyMessages() bool {
	list := l.inbox.take(l.work.messages)
	for i, m := range list {
		m.apply(l)
		list[i] = nil
	}
	l.work.messages = list[:0]
	return len(list) > 0
}

// queued is what can wait for a slice of the loop's time: a stream, or a conn
// without one that has frames to read.
type queued interface {
	run(l *loop)
}

// runQueued gives the one that waits longest its slice.
func (l *loop) runQueued() {
	if len(l.work.queue) == 0 {
		return
	}
	q := l.work.queue[0]
	l.work.queue[0] = nil
	l.work.queue = l.work.queue[1:]
	if len(l.work.queue) == 0 {
		l.work.queue = nil
	}
	q.run(l)
}

// slice is what a queued stream may move now in each direction.
func (l *loop) slice() int {
	if l.now-l.work.message < int64(messagesLast) {
		return turnSlice
	}
	return turnSliceBulk
}

// tell notes an event for the end of this turn, or of a later one when it is a
// mere report.
func (l *loop) tell(ev Event) {
	l.work.events = append(l.work.events, ev)
	if !canWait(ev) {
		l.work.due = l.now
	} else if l.work.due == 0 {
		l.work.due = l.after(reportPause)
	}
}

func (l *loop) report() {
	for _, sh := range l.work.short {
		sh.told = false
		if n := sh.waiting.len(); n > 0 {
			l.tell(Needed{Pool: sh.pool.id, Loop: l.id, Waiting: n})
		}
	}
	l.work.short = l.work.short[:0]
	if len(l.work.events) > 0 && (l.work.due <= l.now || l.work.stopping) {
		l.engine.outbox.add(l.work.events)
		clear(l.work.events)
		l.work.events = l.work.events[:0]
		l.work.due = 0
	}
}

// after gives the loop time d from now.
func (l *loop) after(d time.Duration) int64 { return l.now + int64(d) }

func (l *loop) settings() *Settings { return l.engine.settings.Load() }

// stop makes this turn of a loop its last. What it holds stays, for closeAll or
// for Freeze.
type stop struct{}

func (stop) apply(l *loop) { l.work.halted = true }

// closeAll ends everything that a stopped loop holds, messages included.
func (l *loop) closeAll() {
	l.work.stopping = true
	l.discardAll()
	for h := range l.poll.handlers() {
		switch h := h.(type) {
		case *rawConn:
			l.stopRaw(h)
		case *proxyConn:
			l.closeProxy(h, Stopped)
		}
	}
	for _, doors := range l.doors { // not the slots: one that rests has none
		for _, a := range doors {
			a.close(l)
		}
	}
	l.report()
	l.pipes.trim()
	if l.spare >= 0 {
		closefd(l.spare)
		l.spare = -1
	}
	l.poll.close()
}

// discardAll closes what messages bring that nobody will read.
func (l *loop) discardAll() {
	l.inbox.setWake(nil)
	for _, m := range l.inbox.take(nil) {
		switch m := m.(type) {
		case moved:
			m.lost(l, Stopped)
		case passed:
			m.lost(l)
		case discarder:
			m.discard()
		}
	}
}

// discarder is a message, or a command, that owns a descriptor.
type discarder interface {
	discard()
}
