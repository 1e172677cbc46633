package relay

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// stillLoop is the first of two loops that the test turns by hand.
func stillLoop(tb testing.TB) *loop {
	tb.Helper()
	l := New(Options{Loops: 2, Settings: DefaultSettings()}).loops[0]
	if err := l.open(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(l.closeAll)
	return l
}

// once makes one turn that does not wait.
func (l *loop) once() {
	l.poll.wake()
	l.turn()
}

func socketPair(tb testing.TB) (ours, theirs int) {
	tb.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closefd(p[1]) })
	return p[0], p[1]
}

// openPool makes a pool known to a still loop.
func (l *loop) openPool(side Side) *shard {
	l.engine.Submit(OpenPool{Pool: linkPool, Side: side, MaxIdle: -1})
	l.once()
	return l.shards[linkPool]
}

// member is a conn of a pool in a state of the test's choice.
func (l *loop) member(tb testing.TB, sh *shard, state proxyState) (p *proxyConn, theirs int) {
	tb.Helper()
	fd, theirs := socketPair(tb)
	p = newProxyConn(fd, state)
	if !p.register(l) {
		tb.Fatal("not registered")
	}
	p.shard = sh
	p.canWrite = true
	sh.members[p] = struct{}{}
	return p, theirs
}

// configure changes settings of the loop's engine.
func (l *loop) configure(change func(set *Settings)) {
	set := *l.settings()
	change(&set)
	l.engine.settings.Store(&set)
}

type handlerFunc func(events uint32)

func (h handlerFunc) ready(_ *loop, events uint32) { h(events) }

// An event of a slot that was freed and given away earlier in the same batch
// does not reach the new owner.
func TestEventOfFreedSlot(t *testing.T) {
	l := stillLoop(t)
	var slots [2]uint32
	var fds, theirs [2]int
	calls := 0
	for i := range fds {
		fds[i], theirs[i] = socketPair(t)
		if err := unix.Send(theirs[i], []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for i := range fds {
		slot, errno := l.poll.add(fds[i], handlerFunc(func(uint32) {
			calls++
			other := 1 - i
			l.poll.forget(fds[other], slots[other])
			quiet, _ := socketPair(t)
			t.Cleanup(func() { closefd(quiet) })
			reused, _ := l.poll.add(quiet, handlerFunc(func(uint32) { t.Error("got the event of another") }), unix.EPOLLIN)
			if reused != slots[other] {
				t.Errorf("slot %d, want the freed one, %d", reused, slots[other])
			}
		}), unix.EPOLLIN|unix.EPOLLET)
		if errno != 0 {
			t.Fatal(errno)
		}
		slots[i] = slot
		t.Cleanup(func() { closefd(fds[i]) })
	}
	l.once()
	if calls != 1 {
		t.Fatalf("%d handlers called, want the first only", calls)
	}
}

// What the epoll set refuses leaves it as it was: the eventfd's slot too.
func TestRegisterRefused(t *testing.T) {
	l := stillLoop(t)
	file, err := os.Open("/dev/null") // not for epoll
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	a := &acceptor{tunnel: l.engine.tunnel(linkTunnel)}
	if c := (&rawConn{socket: socket{fd: fd}, public: true, tunnel: a.tunnel}); l.enter(c) {
		t.Fatal("registered a file")
	}
	if a.tunnel.conns.Load() != 0 || l.engine.conns.Load() != 0 {
		t.Fatal("still counted")
	}
	ours, theirs := socketPair(t)
	t.Cleanup(func() { closefd(ours) })
	called := false
	if _, errno := l.poll.add(ours, handlerFunc(func(uint32) { called = true }), unix.EPOLLIN); errno != 0 {
		t.Fatal(errno)
	}
	if err := unix.Send(theirs, []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	l.once()
	if !called {
		t.Fatal("the next descriptor got the eventfd's slot")
	}
}

// A conn that leaves for another loop leaves the queue of this one too.
func TestDetachLeavesQueue(t *testing.T) {
	l := stillLoop(t)
	sh := l.openPool(ServerSide)
	p, _ := l.member(t, sh, proxyIdle)
	other, _ := l.member(t, sh, proxyIdle)
	l.queueConn(p)
	l.queueConn(other)
	l.detach(p)
	t.Cleanup(func() { closefd(p.fd) })
	if p.queued || len(l.work.queue) != 1 || l.work.queue[0] != queued(other) {
		t.Fatalf("queue %v after the conn left", l.work.queue)
	}
	if _, in := sh.members[p]; in {
		t.Fatal("still a member")
	}
}

// The last bytes of a stream that ended well wait as long for a reader that
// stalls as those of one that is half closed.
func TestSettleWaitsForStalledReader(t *testing.T) {
	l := stillLoop(t)
	sh := l.openPool(ServerSide)
	p, theirs := l.member(t, sh, proxyStream)
	p.seq = 1
	p.out = l.mem.hold([]byte("the last bytes"))
	p.canWrite = false
	l.configure(func(set *Settings) { set.Dead = 0 })
	l.settle(p)
	if want := l.after(l.settings().HalfClose); p.timer.when != want {
		t.Fatalf("given up after %v", time.Duration(p.timer.when-l.now))
	}
	p.canWrite = true
	l.visit(p, visitSlice)
	b := make([]byte, 64)
	if n, err := unix.Read(theirs, b); err != nil || string(b[:n]) != "the last bytes" {
		t.Fatalf("read %q, %v", b[:max(n, 0)], err)
	}
	if p.state != proxyIdle || p.timer.pos != 0 || p.idleAt != 0 {
		t.Fatalf("state %d, timer %d, idle at %d", p.state, p.timer.pos, p.idleAt)
	}
}

// What had come before a stream was cut raises no event any more: the conn is
// read all the same.
func TestSettleReadsOn(t *testing.T) {
	l := stillLoop(t)
	sh := l.openPool(ServerSide)
	p, theirs := l.member(t, sh, proxyIdle)
	p.begin(nil, 1)
	if _, err := unix.Write(theirs, append(dataFrame(1, "too late"), resetFrame(1, 1)...)); err != nil {
		t.Fatal(err)
	}
	l.poll.wait(0) // its edge is gone
	p.canRead = true
	l.resetProxy(p, PeerReset)
	if p.state != proxyStream {
		t.Fatal("settled before the other side said so")
	}
	l.once()
	if p.state != proxyIdle || p.idleAt != 0 {
		t.Fatalf("state %d: not read", p.state)
	}
}

// So are bytes that were held because their destination was blocked.
func TestSettleDropsHeldBytes(t *testing.T) {
	l := stillLoop(t)
	sh := l.openPool(ServerSide)
	p, _ := l.member(t, sh, proxyIdle)
	p.begin(nil, 1)
	p.txEnd = true
	p.in.held, p.in.blocked = l.mem.hold(append(dataFrame(1, "for nobody"), bare(frame.Fin, 1)...)), true
	l.poll.wait(0) // no event is left that would have it read
	l.settle(p)
	l.once()
	if p.state != proxyIdle || p.in.held != nil {
		t.Fatalf("state %d, held %v", p.state, p.in.held)
	}
}

// Closing the pool does not take the last bytes of a stream that ended well.
func TestClosePoolLeavesLastBytes(t *testing.T) {
	l := stillLoop(t)
	sh := l.openPool(ServerSide)
	p, theirs := l.member(t, sh, proxyStream)
	p.out = l.mem.hold([]byte("the last bytes"))
	p.canWrite = false
	l.settle(p)
	closeShard{Pool: linkPool}.apply(l)
	if p.state == proxyClosed {
		t.Fatal("closed at once")
	}
	p.canWrite = true
	l.visit(p, visitSlice)
	b := make([]byte, 64)
	n, err := unix.Read(theirs, b)
	if want := "the last bytes" + string(bare(frame.Close, 0)); err != nil || string(b[:n]) != want || p.state != proxyClosed {
		t.Fatalf("read %q, %v, state %d", b[:max(n, 0)], err, p.state)
	}
}

// A conn that gets idle is offered to a loop where PublicConns wait.
func TestReleaseOffers(t *testing.T) {
	l := stillLoop(t)
	sh := l.openPool(ServerSide)
	p, _ := l.member(t, sh, proxyIdle)
	other := l.engine.loops[1]
	other.inbox.take(nil)
	sh.pool.cells[1].waiting.Store(1)
	l.release(p)
	l.once()
	list := other.inbox.take(nil)
	if len(list) != 1 {
		t.Fatalf("%d messages for the other loop", len(list))
	}
	m, ok := list[0].(moved)
	if !ok || m.conn != p || !m.donated {
		t.Fatalf("got %+v", list[0])
	}
	m.discard()

	sh.pool.cells[1].waiting.Store(0) // who waited has left
	q, _ := l.member(t, sh, proxyIdle)
	l.release(q)
	wanted{linkPool, 1}.apply(l)
	if list := other.inbox.take(nil); len(list) != 1 || list[0] != message(none{linkPool}) || q.idleAt != 0 {
		t.Fatalf("got %v", list)
	}
}

// A listener for which there are no descriptors rests: it is in no epoll set,
// so that nothing spins, until its timer puts it back. Who waited is refused
// with the spare descriptor.
func TestExhaustedListenerRests(t *testing.T) {
	localServer(t, nil) // opens what the runtime keeps open for all sockets
	l := stillLoop(t)
	before := descriptors(t)
	l.engine.Submit(Listen{Tunnel: 1, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: ToPreface{}})
	l.once()
	a := l.doors[1][0]
	l.engine.loops[1].discardAll()
	visitor := dialTCP(t, a.socket.address)
	l.exhausted(a, unix.EMFILE)
	wantReset(t, visitor)
	if s := a.tunnel.cells[0].refused.Load(); s != 1 || l.spare < 0 || !a.resting {
		t.Fatalf("%d refused, spare %d, resting %v", s, l.spare, a.resting)
	}
	next := dialTCP(t, a.socket.address)
	if n := l.poll.wait(0); n != 0 {
		t.Fatalf("%d events for a listener that rests", n)
	}
	if a.timer.when != l.after(exhaustedPause) {
		t.Fatal("no timer to end the rest")
	}
	a.expired(l)
	l.once()
	if l.lobby.len() != 1 {
		t.Fatal("did not accept after the rest")
	}
	drop(next)
	drop(visitor)

	l.exhausted(a, unix.EMFILE)
	unlisten{Tunnel: 1}.apply(l)
	l.closeProxy(l.lobby.items[0], Stopped)
	if after := descriptors(t); after > before { // those of earlier tests may go meanwhile
		t.Fatalf("%d descriptors, %d before: a resting listener was not closed", after, before)
	}
}

// The end of a loop closes listeners that rest.
func TestStopClosesRestingListener(t *testing.T) {
	before := descriptors(t)
	e := New(Options{Loops: 1, Settings: DefaultSettings()})
	l := e.loops[0]
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	e.Submit(Listen{Tunnel: 1, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: ToPreface{}})
	l.once()
	l.exhausted(l.doors[1][0], unix.EMFILE)
	l.closeAll()
	if after := descriptors(t); after > before { // those of earlier tests may go meanwhile
		t.Fatalf("%d descriptors, %d before", after, before)
	}
}

// A visitor that left before it was accepted has no address to announce.
func TestForwarderRefusesVisitorThatLeft(t *testing.T) {
	l := stillLoop(t)
	ours, _ := socketPair(t) // stands for a socket without a peer address
	a := &acceptor{tunnel: l.engine.tunnel(linkTunnel)}
	l.arrive(ToTarget{Target: Target{ProxyProtocol: ProxyV1}}, a.tunnel, ours, netip.AddrPort{})
	if len(l.work.events) != 1 || l.work.events[0].(Refused).Reason != VisitorLeft {
		t.Fatalf("told %v", l.work.events)
	}
}
