package relay

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestIdleTimeout(t *testing.T) {
	set := DefaultSettings()
	set.Idle = 50 * time.Millisecond
	eachRoute(t, set, func(t *testing.T, r route) {
		t.Helper()
		visitor, service := r.connect(t)
		wantReset(t, visitor)
		wantReset(t, service)
		if ev := awaitThat(r.engines[0], func(StreamEnded) bool { return true }); ev.Reason != IdleTimeout && ev.Reason != RemoteReset {
			t.Fatalf("ended with %+v", ev)
		}
	})
}

// The deadline moves with the bytes: a stream that always says something lives
// through many of them.
func TestIdleTimeoutMoves(t *testing.T) {
	s := localServer(t, echo)
	f := startEngine(t, 1, DefaultSettings(), nil)
	at := f.listen(1, ToTarget{Target: s.target})
	dialTCP(t, at)
	f.inLoop(0, func(l *loop) {
		for h := range l.poll.handlers() {
			c, ok := h.(*rawConn)
			if !ok || !c.public {
				continue
			}
			st := c.stream
			set := *l.settings()
			set.Idle = time.Hour
			l.engine.settings.Store(&set)
			st.active = l.now - int64(2*time.Hour)
			if when, why := l.streamDeadline(st); when > l.now || why != IdleTimeout {
				t.Errorf("deadline %d of %d, %v", when, l.now, why)
			}
			st.active = l.now - int64(time.Minute)
			l.checkStream(st)
			if st.over || c.timer.when != st.active+int64(time.Hour) {
				t.Errorf("over %v, next deadline %v from now", st.over, time.Duration(c.timer.when-l.now))
			}
		}
	})
}

func TestHalfCloseTimeout(t *testing.T) {
	set := DefaultSettings()
	set.HalfClose = 50 * time.Millisecond
	eachRoute(t, set, func(t *testing.T, r route) {
		t.Helper()
		t.Run("not before the first FIN", func(t *testing.T) {
			r.connect(t)
			for _, f := range r.engines {
				f.passed()
				for i := range f.loops {
					f.inLoop(i, func(l *loop) {
						for _, e := range l.timers.heap {
							if _, ok := e.owner.(*rawConn); ok {
								t.Error("a stream that nobody ended has a deadline")
							}
						}
					})
				}
			}
		})
		for _, upward := range []bool{true, false} {
			t.Run(fmt.Sprintf("visitor first %v", upward), func(t *testing.T) {
				first, second := r.connect(t)
				if !upward {
					first, second = second, first
				}
				closeWrite(t, first)
				wantRest(t, second, "")
				wantReset(t, first)
				wantBroken(t, second)
				seen := false
				for _, f := range r.engines {
					ev := await[StreamEnded](f)
					seen = seen || ev.Reason == HalfCloseTimeout
				}
				if !seen {
					t.Error("no engine told the half-close timeout")
				}
			})
		}
	})
}

// A LocalServer that does not answer at all costs the connect deadline, one
// that is next is tried then.
func TestConnectTimeout(t *testing.T) {
	set := DefaultSettings()
	set.Connect = 50 * time.Millisecond
	for name, silent := range map[string]Address{"unix": backlogFull(t), "tcp": silentTCP(t)} {
		t.Run(name, func(t *testing.T) { testConnectTimeout(t, set, silent) })
	}
}

func testConnectTimeout(t *testing.T, set Settings, silent Address) {
	t.Helper()
	t.Run("no other address", func(t *testing.T) {
		k := startLink(t, linkOptions{settings: set, target: Target{Addresses: []Address{silent}}})
		k.server.Submit(Configure{Settings: DefaultSettings()}) // it has no part in this
		k.open(1)
		wantRefused(t, k.public)
		k.ended(DialError, DialError)
	})
	t.Run("another address", func(t *testing.T) {
		target := Target{Addresses: []Address{silent, localServer(t, echo).target.Addresses[0]}}
		k := startLink(t, linkOptions{settings: set, conns: 1, target: target})
		roundTrip(t, dialTCP(t, k.public), "the second one")
	})
	t.Run("visitor resets meanwhile", func(t *testing.T) {
		k := startLink(t, linkOptions{conns: 1, target: Target{Addresses: []Address{silent}}})
		visitor := dialTCP(t, k.public)
		say(t, visitor, "hello?")
		k.client.passed()
		reset(t, visitor)
		if ev := await[StreamEnded](k.server.fixture); ev.Reason != PeerReset {
			t.Fatalf("ended with %+v", ev)
		}
	})
}

// backlogFull is a unix socket whose queue is full: connecting to it neither
// fails nor succeeds.
func backlogFull(t *testing.T) Address {
	t.Helper()
	path := t.TempDir() + "/full"
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closefd(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for {
		c, errno := connect(Address{Unix: path})
		if errno == syscall.EAGAIN {
			return Address{Unix: path}
		}
		if errno != 0 {
			t.Fatal(errno)
		}
		t.Cleanup(func() { closefd(c) })
	}
}

func TestProxyPortSilent(t *testing.T) {
	set := DefaultSettings()
	set.Connect = 50 * time.Millisecond
	f := startFar(t, linkOptions{settings: set})
	s := localServer(t, nil) // accepts and says nothing
	f.dial(s.target.Addresses[0].TCP)
	if ev := await[DialFailed](f.fixture); ev.Err == nil || ev.Ref != 1 || ev.Pool != linkPool {
		t.Fatalf("got %+v", ev)
	}
	wantEOF(t, s.take(t), 64)
}

// wantEOF reads to the end of a connection that had so many bytes.
func wantEOF(tb testing.TB, c net.Conn, n int) {
	tb.Helper()
	if got := len(readAll(tb, c)); got != n {
		tb.Fatalf("%d bytes, want %d", got, n)
	}
}

func TestProxyPortRefuses(t *testing.T) {
	f := startFar(t, linkOptions{})
	f.dial(nobody(t).Addresses[0].TCP)
	if ev := await[DialFailed](f.fixture); ev.Err == nil || ev.Ref != 1 {
		t.Fatalf("got %+v", ev)
	}
	f.dial(netip.MustParseAddrPort("255.255.255.255:9"))
	if ev := await[DialFailed](f.fixture); ev.Err == nil || ev.Ref != 2 {
		t.Fatalf("got %+v", ev)
	}
	f.Submit(ClosePool{Pool: linkPool})
	f.dial(nobody(t).Addresses[0].TCP)
	if ev := await[DialFailed](f.fixture); ev.Err != errPoolClosed || ev.Ref != 3 { //nolint:errorlint // bare on purpose
		t.Fatalf("got %+v", ev)
	}
}

func TestHeartbeats(t *testing.T) {
	const beat = 5 * time.Millisecond
	t.Run("answered, conns live", func(t *testing.T) {
		k := startLink(t, linkOptions{loops: 2, conns: 3, heartbeat: time.Hour, target: localServer(t, echo).target})
		for range 10 {
			k.server.beatAll()
			for _, f := range []*fixture{k.client.fixture, k.server.fixture} {
				eventually(t, "nothing is missed", func() bool { return f.missed() == 0 })
			}
			k.client.beatAll()
		}
		roundTrip(t, dialTCP(t, k.public), "alive")
		if n := total[ConnClosed](k.server.fixture) + total[ConnClosed](k.client.fixture); n != 0 {
			t.Fatalf("%d conns closed", n)
		}
	})
	t.Run("missed by the server", func(t *testing.T) {
		n := startNear(t, linkOptions{heartbeat: beat}, nil)
		w := n.peer(t)
		if ev := await[ConnClosed](n.fixture); ev.Reason != Missed {
			t.Fatalf("closed with %+v", ev)
		}
		if pings := len(w.rest()); pings != missedLimit {
			t.Fatalf("%d pings went unanswered, want %d", pings, missedLimit)
		}
	})
	t.Run("missed by the client", func(t *testing.T) {
		f := startFar(t, linkOptions{heartbeat: beat})
		f.peer(t)
		if ev := await[ConnClosed](f.fixture); ev.Reason != Missed {
			t.Fatalf("closed with %+v", ev)
		}
	})
}

// beatAll has a heartbeat in every shard.
func (f *fixture) beatAll() {
	f.tb.Helper()
	f.eachShard(func(l *loop, sh *shard) { sh.beat(l) })
}

// missed counts the heartbeats that idle conns have not answered.
func (f *fixture) missed() (n int) {
	f.tb.Helper()
	f.eachShard(func(_ *loop, sh *shard) {
		for _, p := range sh.idle {
			n += int(p.missed)
		}
	})
	return n
}

func (f *fixture) eachShard(run func(l *loop, sh *shard)) {
	f.tb.Helper()
	for i := range f.loops {
		f.inLoop(i, func(l *loop) {
			for _, sh := range l.shards {
				run(l, sh)
			}
		})
	}
}
