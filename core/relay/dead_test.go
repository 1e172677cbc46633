package relay

import (
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testDead is as short as the kernel can be made to try.
const testDead = time.Second

func deadSettings() Settings {
	set := DefaultSettings()
	set.Dead = testDead
	return set
}

// deafen makes the kernel drop whatever comes for a socket, acknowledgements
// included: to its peer it is a host that has vanished.
func deafen(tb testing.TB, fd int) {
	tb.Helper()
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}); err != nil {
		tb.Errorf("attach filter: %v", err)
	}
}

func deafenConn(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { deafen(tb, int(fd)) }); err != nil {
		tb.Fatal(err)
	}
}

// eachSocket calls run, on their loops' threads, with the sockets of all conns
// of an engine.
func (f *fixture) eachSocket(run func(l *loop, k *socket, proxy bool)) {
	f.tb.Helper()
	for i := range f.loops {
		f.inLoop(i, func(l *loop) {
			for h := range l.poll.handlers() {
				switch h := h.(type) {
				case *rawConn:
					run(l, &h.socket, false)
				case *proxyConn:
					run(l, &h.socket, true)
				}
			}
		})
	}
}

// flood writes until the connection breaks.
func flood(c net.Conn) {
	b := make([]byte, 64<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// deadCase is a route with one stream, one of whose hops is cut silently.
type deadCase struct {
	route
	visitor, service *net.TCPConn
}

func startDeadCase(t *testing.T, framed bool) *deadCase {
	t.Helper()
	d := &deadCase{}
	d.local = localServer(t, nil)
	if framed {
		k := startLink(t, linkOptions{settings: deadSettings(), conns: 1, target: d.local.target})
		d.public, d.engines = k.public, []*fixture{k.server.fixture, k.client.fixture}
	} else {
		f := startEngine(t, 1, deadSettings(), nil)
		d.public, d.engines = f.listen(linkTunnel, ToTarget{Target: d.local.target}), []*fixture{f}
	}
	d.visitor, d.service = d.connect(t)
	say(t, d.visitor, "hello")
	hear(t, d.service, "hello")
	return d
}

// cutProxy deafens both ends of the ProxyConn.
func (d *deadCase) cutProxy(t *testing.T) {
	t.Helper()
	for _, f := range d.engines {
		f.eachSocket(func(_ *loop, k *socket, proxy bool) {
			if proxy {
				deafen(t, k.fd)
			}
		})
	}
}

// A peer that has vanished while bytes wait for it ends the stream, whichever of
// the sockets it is.
func TestDeadPeer(t *testing.T) {
	const told = 0 // by the other engine: by RESET, or by the end of the conn when much was under way
	for name, c := range map[string]struct {
		framed  bool
		copied  bool // as bulk is without pipes: bytes wait in other places
		cut     func(t *testing.T, d *deadCase)
		flood   func(d *deadCase) []net.Conn
		reasons []Reason
		conns   []Reason
	}{
		"PublicConn": {
			framed: true, reasons: []Reason{PeerDead, told},
			cut:   func(t *testing.T, d *deadCase) { t.Helper(); deafenConn(t, d.visitor) },
			flood: func(d *deadCase) []net.Conn { return []net.Conn{d.service} },
		},
		"LocalConn": {
			framed: true, reasons: []Reason{told, PeerDead},
			cut:   func(t *testing.T, d *deadCase) { t.Helper(); deafenConn(t, d.service) },
			flood: func(d *deadCase) []net.Conn { return []net.Conn{d.visitor} },
		},
		"LocalConn, copied": {
			framed: true, copied: true, reasons: []Reason{told, PeerDead},
			cut:   func(t *testing.T, d *deadCase) { t.Helper(); deafenConn(t, d.service) },
			flood: func(d *deadCase) []net.Conn { return []net.Conn{d.visitor} },
		},
		"ProxyConn, copied": {
			framed: true, copied: true, reasons: []Reason{PeerDead, PeerDead}, conns: []Reason{PeerDead, PeerDead},
			cut:   func(t *testing.T, d *deadCase) { t.Helper(); d.cutProxy(t) },
			flood: func(d *deadCase) []net.Conn { return []net.Conn{d.visitor, d.service} },
		},
		"back of a forwarder, copied": {
			copied: true, reasons: []Reason{PeerDead},
			cut:   func(t *testing.T, d *deadCase) { t.Helper(); deafenConn(t, d.service) },
			flood: func(d *deadCase) []net.Conn { return []net.Conn{d.visitor} },
		},
		"ProxyConn": {
			framed: true, reasons: []Reason{PeerDead, PeerDead}, conns: []Reason{PeerDead, PeerDead},
			cut:   func(t *testing.T, d *deadCase) { t.Helper(); d.cutProxy(t) },
			flood: func(d *deadCase) []net.Conn { return []net.Conn{d.visitor, d.service} },
		},
		"front of a forwarder": {
			reasons: []Reason{PeerDead},
			cut:     func(t *testing.T, d *deadCase) { t.Helper(); deafenConn(t, d.visitor) },
			flood:   func(d *deadCase) []net.Conn { return []net.Conn{d.service} },
		},
		"back of a forwarder": {
			reasons: []Reason{PeerDead},
			cut:     func(t *testing.T, d *deadCase) { t.Helper(); deafenConn(t, d.service) },
			flood:   func(d *deadCase) []net.Conn { return []net.Conn{d.visitor} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDeadCase(t, c.framed)
			if c.copied {
				d.withoutPipes()
			}
			c.cut(t, d)
			var all []func() error
			for _, from := range c.flood(d) {
				all = append(all, func() error { flood(from); return nil })
			}
			parallel(t, all...)
			for i, f := range d.engines {
				ev := await[StreamEnded](f)
				if ev.Reason != c.reasons[i] && (c.reasons[i] != told || ev.Reason != RemoteReset && ev.Reason != ProxyLost) {
					t.Errorf("engine %d: ended as %q", i, ev.Reason)
				}
			}
			for i, why := range c.conns {
				if ev := await[ConnClosed](d.engines[i]); ev.Reason != why {
					t.Errorf("engine %d: conn closed as %q", i, ev.Reason)
				}
			}
		})
	}
}

// waited gives how long bytes have waited for the sockets of all engines that
// are watched, in the clock of their loops.
func (r route) waited() (all []time.Duration) {
	for _, f := range r.engines {
		f.eachSocket(func(l *loop, k *socket, _ bool) {
			if k.waiting != 0 {
				all = append(all, time.Duration(l.now-k.waiting))
			}
		})
	}
	return all
}

// A receiver that stalls, however long, is not dead: it gets every byte in the
// end. Both directions stall, so that every socket of the way blocks.
func TestStalledReceiverIsNotDead(t *testing.T) {
	for name, framed := range map[string]bool{"link": true, "forwarder": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 64 << 20
			d := startDeadCase(t, framed)
			stalled := make(chan struct{})
			after := func(c *net.TCPConn, number uint64) func() error {
				return func() error { <-stalled; return wantContent(c, number, size) }
			}
			parallel(t,
				func() error { return sendContent(d.visitor, 1, size) },
				func() error { return sendContent(d.service, 2, size) },
				after(d.service, 1), after(d.visitor, 2),
				func() error {
					defer close(stalled)
					eventually(t, "all sockets block for four times as long", func() bool {
						all := d.waited()
						return len(all) == 2*len(d.engines) && slices.Min(all) >= 4*testDead
					})
					d.wantProbed(t)
					return nil
				},
			)
			for i, f := range d.engines {
				if ev := await[StreamEnded](f); ev.Reason != Done || ev.Up != size+5 || ev.Down != size {
					t.Errorf("engine %d: %+v", i, ev)
				}
			}
			eventually(t, "nothing is watched any more", func() bool { return len(d.waited()) == 0 })
		})
	}
}

// wantProbed wants the kernel to have found the window of every socket closed,
// and to probe it as often as it was told to, where it can be told.
func (r route) wantProbed(tb testing.TB) {
	tb.Helper()
	for _, f := range r.engines {
		f.eachSocket(func(_ *loop, k *socket, _ bool) {
			info, err := unix.GetsockoptTCPInfo(k.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil || info.Backoff == 0 || info.Unacked != 0 {
				tb.Errorf("not a closed window: %+v, %v", info, err)
			}
			if most, err := unix.GetsockoptInt(k.fd, unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS); err == nil && most != int(shortestCap.Milliseconds()) {
				tb.Errorf("probed every %d ms at last", most)
			}
		})
	}
}

// What happened before bytes began to wait does not count: an idle conn may have
// been silent for long.
func TestDeadCountsFromTheWait(t *testing.T) {
	l := stillLoop(t)
	l.configure(func(set *Settings) { set.Dead = testDead })
	l.once()
	s := localServer(t, nil)
	c := dialTCP(t, s.target.Addresses[0].TCP)
	deafenConn(t, s.take(t))
	say(t, c, "hello?")
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		k := &socket{fd: int(fd)}
		eventually(t, "the peer is silent", func() bool { return silenceOf(k.fd).reaches(testDead) })
		for since, want := range []bool{false, false, true} {
			if got := l.dead(k, true); got != want {
				t.Errorf("after %d halves of the limit: dead %v", since, got)
			}
			l.now += int64(testDead) / 2
		}
		if l.dead(k, false) || k.waiting != 0 {
			t.Error("dead, or watched, although nothing waits")
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// With 0 nothing is looked at.
func TestDeadNever(t *testing.T) {
	d := startDeadCase(t, false)
	d.engines[0].Submit(Configure{Settings: Settings{Connect: patience, Preface: patience, Wait: patience}})
	deafenConn(t, d.visitor)
	fill(t, d.service, content(1))
	d.engines[0].eachSocket(func(l *loop, k *socket, _ bool) {
		if k.waiting != 0 || k.timer.pos != 0 || len(l.timers.heap) > 1 {
			t.Errorf("watched: since %d, timer %d", k.waiting, k.timer.pos)
		}
	})
}

// The first look is due a quarter into the limit, comes again as often, and is
// the last one when the socket has taken what waited.
func TestLooks(t *testing.T) {
	l := stillLoop(t)
	l.once()
	const limit = time.Minute
	ours, _ := socketPair(t)
	front := &rawConn{socket: socket{fd: ours}, state: rawJoined, tunnel: l.engine.tunnel(1)}
	theirs, _ := socketPair(t)
	s := &stream{front: front, tunnel: front.tunnel, back: &rawConn{socket: socket{fd: theirs}, state: rawJoined, tunnel: front.tunnel}}
	front.stream, s.back.stream = s, s
	defer l.endStream(s, Stopped)
	l.watchBlocked(s)
	if front.timer.pos != 0 {
		t.Fatal("watched without a byte that waits")
	}
	front.out = l.mem.hold([]byte("waits"))
	l.watchBlocked(s)
	for look := range 6 {
		if want := l.after(limit / deadLooks); front.timer.when != want || front.waiting == 0 {
			t.Fatalf("look %d is due in %v", look, time.Duration(front.timer.when-l.now))
		}
		l.now += int64(limit / deadLooks)
		l.watchBlocked(s) // known already: the look stays due
		if front.timer.when != l.now {
			t.Fatalf("look %d was put off", look)
		}
		l.checkStream(s)
	}
	l.mem.free(front.out)
	front.out = nil
	l.timers.stop(&front.timer)
	l.checkStream(s)
	if front.timer.pos != 0 || front.waiting != 0 {
		t.Fatal("watched although nothing waits")
	}
}
