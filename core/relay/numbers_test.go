package relay

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// door is a listener of a loop that the test turns by hand.
func (l *loop) door(tb testing.TB, r Route) *acceptor {
	tb.Helper()
	s, err := bindOne(netip.AddrPortFrom(loopback, 0), false)
	if err != nil {
		tb.Fatal(err)
	}
	s.refs.Store(1)
	a := &acceptor{socket: s, tunnel: l.engine.tunnel(linkTunnel), route: r}
	if errno := a.resume(l); errno != 0 {
		tb.Fatal(errno)
	}
	tb.Cleanup(func() { a.close(l) })
	return a
}

// raws gives the bare sockets of a loop.
func (l *loop) raws() (all []*rawConn) {
	for h := range l.poll.handlers() {
		if c, ok := h.(*rawConn); ok {
			all = append(all, c)
		}
	}
	return all
}

// until turns a loop until something holds.
func (l *loop) until(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	eventually(tb, what, func() bool { l.once(); return holds() })
}

// stale tells whether the last batch of events had one for a place in the table
// that has been given away since, and that meant an end.
func (l *loop) stale(slot, gen uint32) bool {
	return slices.ContainsFunc(l.poll.events[:8], func(ev unix.EpollEvent) bool {
		return uint32(ev.Fd) == slot && uint32(ev.Pad) == gen && ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
	})
}

// A stream of a forwarder ends, the next visitor gets the numbers and the places
// of both of its descriptors, and then comes the reset of the former LocalServer:
// all in one batch.
func TestNumbersOfForwarderUsedAgain(t *testing.T) {
	l := stillLoop(t)
	s := localServer(t, nil)
	at := l.door(t, ToTarget{Target: s.target}).socket.address
	visitor := dialTCP(t, at)
	l.until(t, "joined", func() bool { return len(l.raws()) == 2 && l.raws()[0].stream.back.state == rawJoined })
	service := s.take(t)
	former := *l.raws()[0].stream
	l.once() // nothing is left to be told

	front, back := *former.front, *former.back
	gen := l.poll.slot(back.slot).gen
	reset(t, visitor)
	next := dialTCP(t, at)
	reset(t, service)
	l.once()
	if !former.front.stream.over {
		t.Fatal("the former stream has not ended")
	}
	now := l.raws()
	if len(now) != 2 || now[0].fd+now[1].fd != front.fd+back.fd || now[0].slot+now[1].slot != front.slot+back.slot {
		t.Fatalf("the numbers were not used again: %v for %v and %v", now, front, back)
	}
	if !l.stale(back.slot, gen) {
		t.Fatal("no event of the former LocalServer came in that batch")
	}
	served := s.take(t)
	say(t, next, "hello")
	l.until(t, "passed on", func() bool { return now[0].stream.up == 5 || now[0].stream.over })
	hear(t, served, "hello")
	if l.raws()[0].stream.over {
		t.Fatal("the next stream ended with the former")
	}
}

// The same where a ProxyConn is lost, and its visitor resets behind the next
// visitor's connect.
func TestNumbersOfStreamUsedAgain(t *testing.T) {
	l := stillLoop(t)
	sh := l.openPool(ServerSide)
	p, theirs := l.member(t, sh, proxyStream)
	l.release(p)
	at := l.door(t, ToPool{Pool: linkPool, Wire: linkWire}).socket.address
	visitor := dialTCP(t, at)
	l.until(t, "started", func() bool { return p.stream != nil })
	front := *p.stream.front
	gen := l.poll.slot(front.slot).gen
	l.once()

	if err := unix.Shutdown(theirs, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	dialTCP(t, at)
	reset(t, visitor)
	l.once()
	now := l.raws()
	if p.state != proxyClosed || len(now) != 1 || now[0].slot != front.slot || now[0].fd != front.fd && now[0].fd != p.fd {
		t.Fatalf("conn in state %d; the numbers were not used again: %v for %v and %d", p.state, now, front, p.fd)
	}
	if !l.stale(front.slot, gen) {
		t.Fatal("no event of the former visitor came in that batch")
	}
	l.once()
	if len(l.raws()) != 1 || sh.waiting.len() != 1 {
		t.Fatal("the next visitor was refused for what the former did")
	}
}

// Conns that end and come by the dozen in one turn, so that every number is
// used again at once: each visitor hears its own.
func TestNumbersUsedAgainInCrowds(t *testing.T) {
	const beside, rounds = 24, 20
	s := localServer(t, echo)
	f := startEngine(t, 1, DefaultSettings(), nil)
	at := f.listen(linkTunnel, ToTarget{Target: s.target})
	var now []*net.TCPConn
	for round := range rounds {
		words := func(i int) string { return fmt.Sprintf("visitor %d of round %d", i, round) }
		former := now
		now = nil
		f.inLoop(0, func(*loop) { // which sees none of this before all of it is there
			for _, c := range former {
				reset(t, c)
			}
			for i := range beside {
				c := dialTCP(t, at)
				say(t, c, words(i))
				now = append(now, c)
			}
		})
		for i, c := range now {
			hear(t, c, words(i))
		}
	}
	for range (rounds - 1) * beside {
		if ev := await[StreamEnded](f); ev.Reason != PeerReset {
			t.Fatalf("ended with %+v", ev)
		}
	}
}
