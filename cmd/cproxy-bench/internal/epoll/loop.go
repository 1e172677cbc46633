//go:build linux

// Package epoll is the event loop of the load generator: level-triggered, one
// loop per locked thread, so that many connections cost the generator little
// and leave the CPUs to what is measured.
//
// A [Loop] and everything registered in it belong to the goroutine that runs
// it; only [Loop.Post] may be called from others.
package epoll

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Handler is told what its descriptor is ready for, as EPOLL* bits.
type Handler interface {
	Ready(events uint32)
}

// holdWait is how long, in milliseconds, a loop waits with its scheduler slot
// held: giving the slot back for each short wait costs more than the wait.
const holdWait = 5

// Loop is an epoll set and its handlers.
type Loop struct {
	epfd    int
	wakefd  int
	entries []entry // by descriptor
	events  []unix.EpollEvent
	stopped atomic.Bool

	mu    sync.Mutex // guards tasks
	tasks []func()
}

// entry has a generation, so that an event for a descriptor that was closed
// and opened again in the same batch is recognised.
type entry struct {
	handler Handler
	gen     int32
}

// Open makes a loop. The caller closes it, after Run has returned.
func Open() (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll set: %w", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("create eventfd: %w", err)
	}
	l := &Loop{epfd: epfd, wakefd: wakefd, events: make([]unix.EpollEvent, 256)}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, wakefd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
		l.Close()
		return nil, fmt.Errorf("watch eventfd: %w", err)
	}
	return l, nil
}

// Close closes the loop and every descriptor that is still registered.
func (l *Loop) Close() {
	for fd, e := range l.entries {
		if e.handler != nil {
			Close(fd)
		}
	}
	l.entries = nil
	_ = unix.Close(l.wakefd)
	_ = unix.Close(l.epfd)
}

// Run calls handlers and tasks until ctx is done. It locks its thread, and
// wants GOMAXPROCS of two more than there are loops.
func (l *Loop) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop := context.AfterFunc(ctx, func() {
		l.stopped.Store(true)
		l.wake()
	})
	defer stop()
	for !l.stopped.Load() {
		n, err := l.wait()
		if err != nil {
			return fmt.Errorf("wait for events: %w", err)
		}
		for i := range n {
			l.dispatch(&l.events[i])
		}
	}
	return nil
}

func (l *Loop) dispatch(ev *unix.EpollEvent) {
	if ev.Fd < 0 {
		l.runTasks()
		return
	}
	e := &l.entries[ev.Fd]
	if e.handler != nil && e.gen == ev.Pad {
		e.handler.Ready(ev.Events)
	}
}

// wait fills l.events. EINTR, mostly from the runtime's preemption signal,
// counts as no events.
func (l *Loop) wait() (int, error) {
	if n := waitHolding(l.epfd, l.events, holdWait); n > 0 {
		return n, nil
	}
	n, err := unix.EpollWait(l.epfd, l.events, -1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, err
	}
	return max(n, 0), nil
}

// Post has task run by the loop. Any goroutine may call it; tasks of one
// goroutine run in their order. Tasks posted after Run has returned do not run.
func (l *Loop) Post(task func()) {
	l.mu.Lock()
	l.tasks = append(l.tasks, task)
	first := len(l.tasks) == 1
	l.mu.Unlock()
	if first {
		l.wake()
	}
}

func (l *Loop) wake() {
	one := [8]byte{0: 1}
	_, _ = unix.Write(l.wakefd, one[:]) // a full counter wakes as well
}

func (l *Loop) runTasks() {
	var b [8]byte
	_, _ = unix.Read(l.wakefd, b[:])
	l.mu.Lock()
	tasks := l.tasks
	l.tasks = nil
	l.mu.Unlock()
	for _, task := range tasks {
		task()
	}
}

// Add registers a descriptor, which stays the caller's until it calls Drop or
// the loop is closed.
func (l *Loop) Add(fd int, h Handler, events uint32) error {
	for fd >= len(l.entries) {
		l.entries = append(l.entries, entry{})
	}
	e := &l.entries[fd]
	e.gen++
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: e.gen}); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	e.handler = h
	return nil
}

// Watch changes what a registered descriptor waits for.
func (l *Loop) Watch(fd int, events uint32) {
	// Fails only for a descriptor that is not registered: a bug of the caller
	// that shows as a connection without events.
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: l.entries[fd].gen})
}

// Drop closes a registered descriptor.
func (l *Loop) Drop(fd int) {
	l.entries[fd].handler = nil
	Close(fd)
}

// Clock is monotonic time for latencies, cheaper than time.Now.
type Clock struct{ start time.Time }

// NewClock gives a clock that begins at zero.
func NewClock() Clock { return Clock{start: time.Now()} }

// Now is the time since the clock was made.
func (c Clock) Now() time.Duration { return time.Since(c.start) }
