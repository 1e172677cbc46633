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
)

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

// An address that does not answer is given up when it would have been.
func TestAdoptDialTimeout(t *testing.T) {
	f := startEngine(t, 1, DefaultSettings(), nil)
	at := f.listen(linkTunnel, ToTarget{Target: Target{Addresses: []Address{silentTCP(t)}}})
	visitor := dialTCP(t, at)
	f.awaitDialing()
	s := f.freeze()
	s.Streams[0].Back.Dial.Left = 1
	f = f.heir(1)
	f.Submit(Adopt{s})
	if ev := await[StreamEnded](f); ev.Reason != DialError || !errors.Is(ev.Err, unix.ETIMEDOUT) {
		t.Errorf("ended with %+v", ev)
	}
	wantReset(t, visitor)
}
