package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// Streams of a pool that was closed can be cut by the heir, also when the
// pool's id is in use again.
func TestAdoptClosedPool(t *testing.T) {
	for name, reopened := range map[string]bool{"gone": false, "reopened": true} {
		t.Run(name, func(t *testing.T) {
			eachHandOver(t, linkOptions{conns: 2}, nil, func(t *testing.T, k *link, s *local, hand func()) {
				t.Helper()
				visitor := dialTCP(t, k.public)
				service := s.take(t)
				k.server.Submit(ClosePool{Pool: linkPool})
				await[ConnClosed](k.server.fixture)
				if reopened {
					k.server.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: -1})
				}
				hand()
				say(t, visitor, "still here")
				hear(t, service, "still here")
				if reopened {
					k.open(1)
					roundTripTo(t, k, s)
					k.server.Submit(ClosePool{Pool: linkPool})
					say(t, service, "and here")
					hear(t, visitor, "and here")
					closeWrite(t, visitor)
					closeWrite(t, service)
					k.ended(Done, Done)
					return
				}
				k.server.Submit(ClosePool{Pool: linkPool, Cut: true})
				wantReset(t, visitor)
				wantReset(t, service)
				k.ended(Cut, Cut)
				k.server.wantNoShards()
			})
		})
	}
}

// roundTripTo serves one more visitor.
func roundTripTo(t *testing.T, k *link, s *local) {
	t.Helper()
	visitor := dialTCP(t, k.public)
	service := s.take(t)
	roundTripHalf(t, visitor, service)
	roundTripHalf(t, service, visitor)
	k.ended(Done, Done)
}

func roundTripHalf(t *testing.T, from, to *net.TCPConn) {
	t.Helper()
	say(t, from, "hello")
	closeWrite(t, from)
	wantRest(t, to, "hello")
}

// Visitors that come while nobody accepts wait in the queue.
func TestAdoptListenerQueue(t *testing.T) {
	s := localServer(t, echo)
	k := startLink(t, linkOptions{loops: 2, conns: 2, target: s.target})
	state := k.server.freeze()
	visitors := []*net.TCPConn{dialTCP(t, k.public), dialTCP(t, k.public)}
	k.server.fixture = k.server.heir(3)
	k.server.Submit(Adopt{state})
	for _, c := range visitors {
		roundTrip(t, c, "waited in the queue")
		k.ended(Done, Done)
	}
	k.open(1) // the proxy port works as well
	k.server.Submit(Unlisten{Tunnel: linkTunnel})
	await[Unlistened](k.server.fixture)
	if c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(k.public)); err == nil {
		drop(c)
		t.Error("still listens after Unlisten")
	}
}

// A listener that was not let in yet stays so.
func TestAdoptListenerWithoutRoute(t *testing.T) {
	f := startEngine(t, 2, DefaultSettings(), nil)
	at := f.listen(linkTunnel, nil)
	handOver(&f, 1)
	visitor := dialTCP(t, at)
	f.passed()
	f.Submit(Reroute{Tunnel: linkTunnel, Route: ToTarget{Target: localServer(t, echo).target}})
	roundTrip(t, visitor, "at last")
}

// A LocalConn that is being dialled is dialled on; what was sent meanwhile is not
// lost.
func TestAdoptDialing(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) (Target, func() net.Conn){"tcp": fullTCP, "unix": fullUnix} {
		t.Run(name+" of a client", func(t *testing.T) {
			target, take := make(t)
			k := startLink(t, linkOptions{loops: 2, conns: 1, target: target})
			visitor := dialTCP(t, k.public)
			say(t, visitor, "hello")
			closeWrite(t, visitor)
			k.client.awaitDialing()
			served(t, visitor, take, &k.client.fixture)
			k.ended(Done, Done)
		})
		t.Run(name+" of a forwarder", func(t *testing.T) {
			target, take := make(t)
			f := startEngine(t, 2, DefaultSettings(), nil)
			visitor := dialTCP(t, f.listen(linkTunnel, ToTarget{Target: target}))
			say(t, visitor, "hello")
			closeWrite(t, visitor)
			f.awaitDialing()
			served(t, visitor, take, &f)
			if ev := await[StreamEnded](f); ev.Reason != Done || ev.Up != 5 || ev.Down != 7 {
				t.Errorf("ended with %+v", ev)
			}
		})
	}
}

func served(t *testing.T, visitor *net.TCPConn, take func() net.Conn, f **fixture) {
	t.Helper()
	s := (*f).freeze()
	r := s.Streams[0]
	d := r.Front.Dial
	if d == nil {
		d = r.Back.Dial
	}
	if left := (*f).settings.Load().Connect; d.Left <= 0 || d.Left > left || len(d.Target.Addresses) != 1 {
		t.Errorf("frozen as %+v", d)
	}
	service := make(chan net.Conn, 1)
	go func() { service <- take() }()
	*f = (*f).heir(1)
	(*f).Submit(Adopt{s})
	select {
	case c := <-service:
		defer drop(c)
		wantRest(t, c, "") // after the greeting, which take has read
		say(t, c, "welcome")
		drop(c)
	case <-time.After(patience):
		t.Fatal("was not dialled")
	}
	wantRest(t, visitor, "welcome")
}

// awaitDialing returns when a LocalConn is being dialled.
func (f *fixture) awaitDialing() {
	f.tb.Helper()
	eventually(f.tb, "a LocalConn is being dialled", func() bool {
		found := false
		for i := range f.loops {
			f.inLoop(i, func(l *loop) {
				for _, e := range l.timers.heap {
					c, is := e.owner.(*rawConn)
					found = found || is && c.state == rawConnecting
				}
			})
		}
		return found
	})
}

// fullTCP is a LocalServer whose queue is full until take empties it.
func fullTCP(t *testing.T) (Target, func() net.Conn) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if errno := bindInet(fd, netip.AddrPortFrom(loopback, 0)); errno != 0 {
		t.Fatal(errno)
	}
	at, errno := localAddress(fd)
	if errno != 0 {
		t.Fatal(errno)
	}
	sa := &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	return Target{Addresses: []Address{{TCP: at}}}, full(t, fd, sa, unix.AF_INET)
}

func fullUnix(t *testing.T) (Target, func() net.Conn) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/s"
	at := &unix.SockaddrUnix{Name: path}
	if err := unix.Bind(fd, at); err != nil {
		t.Fatal(err)
	}
	return Target{Addresses: []Address{{Unix: path}}}, full(t, fd, at, unix.AF_UNIX)
}

// full makes a bound socket listen with a full queue. What it gives empties the
// queue and takes the first connection that brings something.
func full(t *testing.T, fd int, at unix.Sockaddr, family int) func() net.Conn {
	t.Helper()
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	var fillers []int
	for range 4 {
		c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Connect(c, at) // the last ones find no room
		fillers = append(fillers, c)
	}
	file := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	t.Cleanup(func() { ln.Close() })
	empty := sync.OnceFunc(func() {
		for _, c := range fillers {
			closefd(c)
		}
	})
	t.Cleanup(empty)
	return func() net.Conn {
		empty()
		for {
			c, err := ln.Accept()
			if err != nil {
				return nil
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			if b := make([]byte, 5); readFull(c, b) == "hello" {
				return c
			}
			drop(c)
		}
	}
}

func readFull(c net.Conn, b []byte) string {
	n, _ := io.ReadFull(c, b)
	return string(b[:n])
}

// A conn that its client wants to have closed is closed when its stream has
// ended.
func TestAdoptRetire(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	p.send(bare(frame.Retire, 0))
	n.passed()
	handOver(&n.fixture, 2)
	p.send(bare(frame.Fin, 1))
	closeWrite(t, visitor)
	p.want(frame.Fin, 1)
	p.want(frame.Close, 0)
	if ev := await[ConnClosed](n.fixture); ev.Reason != Closed || ev.Pool != linkPool {
		t.Errorf("told %+v", ev)
	}
}

// PublicConns that were adopted count against the limits.
func TestAdoptCounts(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{conns: 2, maxConns: 1, target: s.target})
	visitor := dialTCP(t, k.public)
	service := s.take(t)
	k.handOver(2, 0)
	wantRefused(t, k.public)
	if ev := await[Refused](k.server.fixture); ev.Reason != ConnLimit {
		t.Errorf("refused with %+v", ev)
	}
	reset(t, visitor)
	wantReset(t, service)
	await[StreamEnded](k.server.fixture)
	visitor = dialTCP(t, k.public)
	say(t, visitor, "there is room again")
	hear(t, s.take(t), "there is room again")
	if n := k.server.conns.Load(); n != 1 {
		t.Errorf("%d counted", n)
	}
}

// The time that a stream has been quiet counts on, however long the adopting
// process has lived.
func TestAdoptDeadlines(t *testing.T) {
	s := localServer(t, nil)
	set := DefaultSettings()
	set.Idle = time.Hour
	for name, c := range map[string]struct {
		quiet, age time.Duration
		ends       bool
	}{
		"quiet for long":      {2 * time.Hour, 3 * time.Hour, true},
		"quiet for very long": {20 * 365 * 24 * time.Hour, 200 * 365 * 24 * time.Hour, true},
		"just moved":          {0, 3 * time.Hour, false},
		"of the future":       {-time.Hour, -time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := startEngine(t, 1, set, nil)
			visitor := dialTCP(t, f.listen(linkTunnel, ToTarget{Target: s.target}))
			s.take(t)
			eventually(t, "the stream has begun", func() bool { return f.stats(linkTunnel).Opened == 1 })
			state := f.freeze()
			state.Streams[0].Quiet, state.Streams[0].Age = c.quiet, c.age
			f = f.heir(1)
			f.Submit(Adopt{state})
			if c.ends {
				if ev := await[StreamEnded](f); ev.Reason != IdleTimeout || ev.Duration < min(c.age, longAgo) {
					t.Errorf("ended with %+v", ev)
				}
				wantReset(t, visitor)
				return
			}
			f.passed()
			f.inLoop(0, func(l *loop) {
				when, any := l.timers.next()
				if left := time.Duration(when - l.now); !any || left > time.Hour || left < time.Hour-patience {
					t.Errorf("ends in %v", left)
				}
			})
		})
	}
}

// Heartbeats go on: however often a pool is handed over, they are not put off.
func TestAdoptHeartbeat(t *testing.T) {
	const beat = time.Hour
	n := startNear(t, linkOptions{loops: 2, heartbeat: beat}, nil)
	p := n.peer(t)
	n.passed()
	s := n.freeze()
	if due := s.Pools[0].Beat; due <= 0 || due > beat {
		t.Fatalf("the next heartbeat is in %v", due)
	}
	s.Conns[0].Missed = 1
	s.Pools[0].Beat = 1 // as if it were due
	n.fixture = n.heir(2)
	n.Submit(Adopt{s})
	p.want(frame.Ping, 0)
	n.passed()
	s = n.freeze()
	if c := s.Conns[0]; c.Missed != 2 || s.Pools[0].Beat < beat-patience {
		t.Errorf("missed %d, the next heartbeat in %v", c.Missed, s.Pools[0].Beat)
	}
}

// A conn of the client for which READY is awaited is handed over: the server may
// have sent START behind it. It opens, or fails, in time.
func TestAdoptAwaitingReady(t *testing.T) {
	s := localServer(t, nil)
	for name, c := range map[string]struct {
		ready []byte
		fails bool
	}{"READY": {readyFrame(1), false}, "forged": {readyFrame(2), true}, "nothing": {nil, true}} {
		t.Run(name, func(t *testing.T) {
			f := startFar(t, linkOptions{target: s.target})
			p := f.dialledPeer(t)
			p.send(readyFrame(1)[:3])
			if c.ready == nil {
				drop(p)
			}
			f.passed()
			handOver(&f.fixture, 2)
			if c.ready != nil {
				p.send(c.ready[3:], startFrame(1, linkWire), dataFrame(1, "hello"))
			}
			if c.fails {
				if ev := await[DialFailed](f.fixture); ev.Ref != 1 || ev.Pool != linkPool {
					t.Errorf("told %+v", ev)
				}
				return
			}
			if ev := await[ConnOpened](f.fixture); ev.Ref != 1 || ev.Pool != linkPool {
				t.Errorf("told %+v", ev)
			}
			hear(t, s.take(t), "hello")
		})
	}
}

// The server that never answers is given up when it would have been.
func TestAdoptAwaitingReadyTimeout(t *testing.T) {
	f := startFar(t, linkOptions{})
	p := f.dialledPeer(t)
	f.passed()
	s := f.freeze()
	if left := s.Conns[0].Left; left <= 0 || left > f.settings.Load().Connect {
		t.Errorf("%v left", left)
	}
	s.Conns[0].Left = 1
	f.fixture = f.heir(1)
	f.Submit(Adopt{s})
	if ev := await[DialFailed](f.fixture); ev.Ref != 1 || !errors.Is(ev.Err, errReadyTimeout) {
		t.Errorf("told %+v", ev)
	}
	p.rest()
}
