package relay

import (
	"errors"
	"fmt"
	"iter"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// handler is what a slot of the poller belongs to.
type handler interface {
	ready(l *loop, events uint32)
}

// Edge-triggered interest of every connection, registered once.
const connEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET

// holdWait is how long a loop waits with its scheduler slot held before it
// waits the ordinary way. Blocking at once makes the runtime retake and hand
// back the slot at every message: 20-45 % more CPU measured.
const holdWait = 5 // milliseconds

// poller is the epoll set of a loop and the table of what is in it. Events
// carry slot and generation, so that one for a slot that was freed earlier in
// the same batch is recognised.
type poller struct {
	epfd   int
	wakefd int
	events []unix.EpollEvent
	pages  []*[pageSlots]slot
	used   uint32 // slots that were ever in use
	free   []uint32
}

type slot struct {
	h   handler
	gen uint32
}

// pageSlots is how many slots are allocated at once: one long slice would leave
// as much garbage behind as it has entries whenever it grows.
const pageSlots = 256

func (p *poller) slot(id uint32) *slot { return &p.pages[id/pageSlots][id%pageSlots] }

// newSlot gives a slot that is not in use.
func (p *poller) newSlot() uint32 {
	if n := len(p.free); n > 0 {
		id := p.free[n-1]
		p.free = p.free[:n-1]
		return id
	}
	if p.used%pageSlots == 0 {
		p.pages = append(p.pages, new([pageSlots]slot))
	}
	p.used++
	return p.used - 1
}

// handlers are the owners of all slots.
func (p *poller) handlers() iter.Seq[handler] {
	return func(yield func(handler) bool) {
		for id := range p.used {
			if h := p.slot(id).h; h != nil && !yield(h) {
				return
			}
		}
	}
}

// wakeSlot is the slot of the eventfd.
const wakeSlot = 0

func (p *poller) open() error {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("create epoll set: %w", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		closefd(epfd)
		return fmt.Errorf("create eventfd: %w", err)
	}
	p.epfd, p.wakefd = epfd, wakefd
	p.events = make([]unix.EpollEvent, 256)
	p.newSlot()
	if errno := epollCtl(epfd, unix.EPOLL_CTL_ADD, wakefd, unix.EPOLLIN|unix.EPOLLET, wakeSlot, 0); errno != 0 {
		p.close()
		return fmt.Errorf("watch eventfd: %w", errno)
	}
	return nil
}

func (p *poller) close() {
	closefd(p.epfd)
	closefd(p.wakefd)
}

// add registers fd for h. The kernel reports the readiness of the moment, so
// nothing that arrived before is lost.
func (p *poller) add(fd int, h handler, events uint32) (uint32, syscall.Errno) {
	id := p.newSlot()
	s := p.slot(id)
	s.h = h
	if errno := epollCtl(p.epfd, unix.EPOLL_CTL_ADD, fd, events, id, s.gen); errno != 0 {
		p.remove(id)
		return 0, errno
	}
	return id, 0
}

// remove frees a slot. The descriptor leaves the set when the caller closes
// it, or by forget when it lives on. A descriptor that add refused has no slot:
// zero, the eventfd's, is left alone.
func (p *poller) remove(id uint32) {
	if id == wakeSlot {
		return
	}
	s := p.slot(id)
	*s = slot{gen: s.gen + 1}
	p.free = append(p.free, id)
}

// forget takes a descriptor that stays open out of the set.
func (p *poller) forget(fd int, id uint32) {
	_ = epollCtl(p.epfd, unix.EPOLL_CTL_DEL, fd, 0, 0, 0)
	p.remove(id)
}

// wait fills p.events. limit bounds the wait; negative means no bound.
func (p *poller) wait(limit time.Duration) int {
	ms := -1
	if limit >= 0 {
		ms = int((limit + time.Millisecond - 1) / time.Millisecond)
	}
	hold := holdWait
	if ms >= 0 && ms < hold {
		hold = ms
	}
	// EINTR, the runtime's preemption signal mostly, counts as no events:
	// the caller comes back.
	if n, _ := epollWaitHolding(p.epfd, p.events, hold); n > 0 || hold == ms {
		return n
	}
	if ms > 0 {
		ms -= hold
	}
	n, err := unix.EpollWait(p.epfd, p.events, ms)
	if err != nil && !errors.Is(err, unix.EINTR) {
		// Only a broken epoll set fails here, which is a bug of this package.
		panic(fmt.Sprintf("relay: epoll_wait: %v", err))
	}
	return max(n, 0)
}

// wake ends a wait. The eventfd is never read: edge-triggered, every write is an
// event of its own.
func (p *poller) wake() {
	one := [8]byte{0: 1}
	_, _ = unix.Write(p.wakefd, one[:])
}
