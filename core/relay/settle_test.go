package relay

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fillSocket writes until the socket takes no more.
func fillSocket(tb testing.TB, fd int) {
	tb.Helper()
	b := make([]byte, 4<<10)
	for {
		if _, err := unix.Write(fd, b); errors.Is(err, unix.EAGAIN) {
			return
		} else if err != nil {
			tb.Fatal(err)
		}
	}
}

// lastFrames is a conn whose stream is over, and whose last frame waits behind
// all that its socket takes.
func lastFrames(tb testing.TB, l *loop) (p *proxyConn, theirs int) {
	tb.Helper()
	p, theirs = l.member(tb, l.openPool(ServerSide), proxyStream)
	fillSocket(tb, p.fd)
	p.out = l.mem.hold([]byte("the last bytes"))
	p.canWrite = false
	return p, theirs
}

// closedAs gives the reasons of the conns that the loop has closed.
func (l *loop) closedAs() (all []Reason) {
	for _, ev := range slices.Concat(l.engine.outbox.list, l.work.events) {
		if c, ok := ev.(ConnClosed); ok {
			all = append(all, c.Reason)
		}
	}
	return all
}

// Last frames may take as long as they like, as long as something of what the
// kernel holds leaves within HalfClose.
func TestLastFramesLeaveSlowly(t *testing.T) {
	const limit = time.Minute
	l := stillLoop(t)
	l.configure(func(set *Settings) { set.HalfClose, set.Dead = limit, 0 })
	p, theirs := lastFrames(t, l)
	l.settle(p)
	b := make([]byte, 10<<10)
	for range 5 {
		l.now += int64(limit)
		if _, err := unix.Read(theirs, b); err != nil {
			t.Fatal(err)
		}
		l.timers.stop(&p.timer)
		p.expired(l)
		if p.state == proxyClosed || p.timer.when != l.after(limit) {
			t.Fatalf("state %d, next look %v from now", p.state, time.Duration(p.timer.when-l.now))
		}
	}
	l.now += int64(limit)
	l.timers.stop(&p.timer)
	p.expired(l)
	if got := l.closedAs(); p.state != proxyClosed || len(got) != 1 || got[0] != Closed {
		t.Fatalf("state %d, closed as %v; want it given up", p.state, got)
	}
}

// Looks for a dead peer are no reason to give up early, nor to wait longer.
func TestLastFramesBetweenLooks(t *testing.T) {
	const limit = time.Minute
	l := stillLoop(t)
	l.configure(func(set *Settings) { set.HalfClose, set.Dead = limit, limit })
	p, _ := lastFrames(t, l)
	l.settle(p)
	for look := range deadLooks {
		if p.state == proxyClosed || p.timer.when != l.after(limit/deadLooks) {
			t.Fatalf("look %d: state %d, due %v from now", look, p.state, time.Duration(p.timer.when-l.now))
		}
		l.now += int64(limit / deadLooks)
		l.timers.stop(&p.timer)
		p.expired(l)
	}
	if got := l.closedAs(); p.state != proxyClosed || len(got) != 1 || got[0] != Closed {
		t.Fatalf("state %d, closed as %v", p.state, got)
	}
}

// The wait for the other side's end is short, whatever leaves meanwhile; once
// that end has come the last frames have their time.
func TestSettleWaitsForEnd(t *testing.T) {
	l := stillLoop(t)
	for name, comes := range map[string]bool{"it comes": true, "it does not": false} {
		p, _ := lastFrames(t, l)
		p.rxEnd = false
		l.settle(p)
		if want := l.after(l.settings().Connect); p.timer.when != want {
			t.Fatalf("given up after %v", time.Duration(p.timer.when-l.now))
		}
		if comes {
			p.rxEnd = true
			l.settle(p)
		}
		l.now = p.timer.when
		l.timers.stop(&p.timer)
		p.expired(l)
		if (p.state != proxyClosed) != comes {
			t.Errorf("%s: state %d", name, p.state)
		}
	}
}

// A peer that has vanished does not take them at all.
func TestLastFramesToDeadPeer(t *testing.T) {
	l := stillLoop(t)
	l.configure(func(set *Settings) { set.Dead = testDead })
	sh := l.openPool(ServerSide)
	s := localServer(t, nil)
	fd, errno := connect(s.target.Addresses[0])
	if errno != 0 && errno != unix.EINPROGRESS {
		t.Fatal(errno)
	}
	deafenConn(t, s.take(t))
	fillSocket(t, fd)
	p := newProxyConn(fd, proxyStream)
	if !p.register(l) {
		t.Fatal("not registered")
	}
	p.shard = sh
	sh.members[p] = struct{}{}
	p.out = l.mem.hold([]byte("the last bytes"))
	l.settle(p)
	eventually(t, "the conn is closed", func() bool { l.once(); return p.state == proxyClosed })
	if got := l.closedAs(); len(got) != 1 || got[0] != PeerDead {
		t.Fatalf("closed as %v", got)
	}
}
