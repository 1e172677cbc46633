package relay

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
)

func TestLighter(t *testing.T) {
	for _, c := range []struct {
		visitors []int64 // by loop; the first is the one that asks
		want     int     // 0: it keeps the conn
	}{
		{[]int64{0}, 0},
		{[]int64{1000}, 0},
		{[]int64{0, 0}, 0},
		{[]int64{1, 0}, 0},
		{[]int64{2, 0}, 1},
		{[]int64{0, 2}, 0},
		{[]int64{33, 31}, 0},
		{[]int64{36, 31}, 1},
		{[]int64{1100, 1000}, 0},
		{[]int64{1127, 1000}, 1},
		{[]int64{9, 5, 3, 4}, 2},
		{[]int64{9, 5, 0, 0}, 2},
	} {
		t.Run(fmt.Sprint(c.visitors), func(t *testing.T) {
			e := New(Options{Loops: len(c.visitors)})
			for i, n := range c.visitors {
				e.loops[i].visitors.Store(n)
			}
			got := 0
			if to := e.loops[0].lighter(); to != nil {
				got = to.id
			}
			if got != c.want {
				t.Errorf("loop %d, want %d", got, c.want)
			}
		})
	}
}

// When one loop alone accepts, the others get their share of the streams, and
// every stream works.
func TestVisitorsSpread(t *testing.T) {
	s := localServer(t, echo)
	k := startLink(t, linkOptions{loops: 3, supply: true, target: s.target})
	for name, at := range map[string]netip.AddrPort{
		"tunnel":    k.public,
		"forwarder": k.server.listen(takerTunnel, ToTarget{Target: s.target}),
	} {
		t.Run(name, func(t *testing.T) { testSpread(t, k.server.fixture, at) })
	}
}

func testSpread(t *testing.T, f *fixture, at netip.AddrPort) {
	t.Helper()
	for _, deaf := range []int{1, 2} {
		f.inLoop(deaf, func(l *loop) {
			for _, doors := range l.doors {
				for _, a := range doors {
					if !a.resting {
						l.poll.forget(a.socket.fd, a.slot)
						a.resting = true
					}
				}
			}
		})
	}
	var visitors []*net.TCPConn
	for range 30 {
		visitors = append(visitors, dialTCP(t, at))
	}
	for i, c := range visitors {
		say(t, c, fmt.Sprint("visitor ", i))
		hear(t, c, fmt.Sprint("visitor ", i))
	}
	least, most := int64(len(visitors)), int64(0)
	for _, l := range f.loops {
		n := l.visitors.Load()
		least, most = min(least, n), max(most, n)
	}
	if most-least > passSlack+1 {
		t.Errorf("between %d and %d streams in a loop", least, most)
	}
	for _, c := range visitors {
		drop(c)
	}
	eventually(t, "all have ended", func() bool { return f.conns.Load() == 0 })
}

// A PublicConn that is passed on when the engine ends is reset, and counted no
// more.
func TestPassedToLoopThatEnds(t *testing.T) {
	e := idleEngine(t, 2)
	e.loops[0].visitors.Store(9)
	ours, visitor := tcpPair(t)
	if errno := resetOnClose(ours); errno != 0 { // as a listener hands down
		t.Fatal(errno)
	}
	e.loops[0].arrive(ToTarget{}, e.tunnel(linkTunnel), ours, visitor.LocalAddr().(*net.TCPAddr).AddrPort())
	if n := e.loops[1].visitors.Load(); n != 1 {
		t.Fatalf("%d counted on the way", n)
	}
	e.loops[1].discardAll()
	if n, m := e.loops[1].visitors.Load(), e.tunnel(linkTunnel).conns.Load(); n != 0 || m != 0 {
		t.Errorf("%d and %d still counted", n, m)
	}
	if told := e.loops[1].work.events; len(told) != 1 || told[0].(Refused).Reason != Stopped {
		t.Errorf("told %v", told)
	}
	if _, err := io.ReadAll(visitor); err == nil {
		t.Error("the visitor read a clean end")
	}
}

// What a loop passes on before Freeze is carried.
func TestFreezeDeliversPassed(t *testing.T) {
	e := idleEngine(t, 2)
	e.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: -1})
	e.deliverAll()
	e.loops[0].visitors.Store(9)
	ours, visitor := tcpPair(t)
	e.loops[0].arrive(ToPool{Pool: linkPool, Wire: linkWire}, e.tunnel(linkTunnel), ours, visitor.LocalAddr().(*net.TCPAddr).AddrPort())
	s := e.surrender()
	t.Cleanup(s.Close)
	if len(s.Waiting) != 1 || s.Waiting[0].Source != visitor.LocalAddr().(*net.TCPAddr).AddrPort() {
		t.Errorf("waiting: %+v", s.Waiting)
	}
}

// A conn on its way goes where its tunnel leads when it arrives: its pool may have
// closed meanwhile, when another client took over.
func TestPassedAfterReroute(t *testing.T) {
	e := idleEngine(t, 2)
	const later = linkPool + 1
	for _, id := range []PoolID{linkPool, later} {
		e.Submit(OpenPool{Pool: id, Side: ServerSide, MaxIdle: -1})
	}
	e.deliverAll()
	l := e.loops[1]
	a := &acceptor{socket: new(listenSocket), tunnel: e.tunnel(linkTunnel), route: ToPool{Pool: linkPool, Wire: linkWire}, resting: true}
	l.doors[a.tunnel.id] = []*acceptor{a}
	t.Cleanup(func() { clear(l.doors) })
	e.loops[0].visitors.Store(9)
	ours, visitor := tcpPair(t)
	e.Submit(Reroute{Tunnel: a.tunnel.id, Route: ToPool{Pool: later, Wire: linkWire}})
	e.Submit(ClosePool{Pool: linkPool})
	e.loops[0].arrive(ToPool{Pool: linkPool, Wire: linkWire}, a.tunnel, ours, visitor.LocalAddr().(*net.TCPAddr).AddrPort())
	if n := a.tunnel.conns.Load(); n != 1 {
		t.Errorf("%d counted on the way", n)
	}
	e.deliverAll()
	if n := l.shards[later].waiting.len(); n != 1 {
		t.Errorf("%d wait at the new pool; told %v", n, l.work.events)
	}
}
