package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eachHandOver runs a test with a link to a LocalServer whose engines are
// replaced when it calls hand: either or both, by ones with more loops or fewer.
// No descriptor may be left when all has ended.
func eachHandOver(t *testing.T, o linkOptions, handle func(net.Conn), run func(t *testing.T, k *link, s *local, hand func())) {
	t.Helper()
	o.loops = 2
	localServer(t, nil) // the runtime opens descriptors of its own with the first one
	for name, to := range map[string][][2]int{
		"server": {{1, 0}}, "client": {{0, 3}}, "both": {{3, 1}}, "often": {{1, 0}, {0, 1}, {3, 2}, {2, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			t.Run("hand over", func(t *testing.T) {
				s := localServer(t, handle)
				o.target = s.target
				k := startLink(t, o)
				run(t, k, s, func() {
					t.Helper()
					for _, loops := range to {
						k.handOver(loops[0], loops[1])
					}
				})
			})
			eventually(t, "descriptors are back", func() bool { return descriptors(t) <= before })
		})
	}
}

// echoByCopy is echo without the pipes that the runtime would keep for splice.
func echoByCopy(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
}

func TestAdoptIdleConns(t *testing.T) {
	eachHandOver(t, linkOptions{conns: 4, heartbeat: time.Hour}, echoByCopy, func(t *testing.T, k *link, _ *local, hand func()) {
		t.Helper()
		roundTrip(t, dialTCP(t, k.public), "before")
		k.ended(Done, Done)
		hand()
		var visitors []*net.TCPConn
		for range 4 {
			visitors = append(visitors, dialTCP(t, k.public))
		}
		for _, c := range visitors {
			roundTrip(t, c, "after")
			k.ended(Done, Done)
		}
		if opened, closed := total[ConnOpened](k.server.fixture), total[ConnClosed](k.server.fixture); opened != 4 || closed != 0 {
			t.Errorf("%d conns opened, %d closed; want the four to serve all", opened, closed)
		}
		for _, f := range []*fixture{k.server.fixture, k.client.fixture} {
			if s := f.stats(linkTunnel); s.Opened != 5 || s.Ended != 5 || s.Up != 6+4*5 || s.Down != s.Up {
				t.Errorf("totals %+v", s)
			}
		}
	})
}

// Visitors that wait are served in their order, and wait no longer than if
// nothing had happened.
func TestAdoptWaitingVisitors(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{loops: 2, target: s.target})
	var visitors []*net.TCPConn
	for i := range 5 {
		c := dialTCP(t, k.public)
		say(t, c, fmt.Sprint("visitor ", i))
		eventually(t, "the visitor is accepted", func() bool { return k.server.conns.Load() == int64(i+1) })
		visitors = append(visitors, c)
	}
	place := func(of netip.AddrPort) int {
		return slices.IndexFunc(visitors, func(c *net.TCPConn) bool { return c.LocalAddr().String() == of.String() })
	}
	var left [5]time.Duration
	state := k.server.freeze()
	for i, w := range state.Waiting {
		if left[i] = w.Left; place(w.Source) != i {
			t.Errorf("visitor %d waits at place %d", place(w.Source), i)
		}
	}
	if !slices.IsSorted(left[:]) || left[0] <= 0 || left[4] > k.server.settings.Load().Wait {
		t.Errorf("they have %v left", left)
	}
	k.server.reuse(t) // what was told is forgotten
	k.server.fixture = k.server.heir(1)
	k.server.Submit(Adopt{state})
	k.server.inLoop(0, func(l *loop) {
		for _, e := range l.timers.heap {
			if c, is := e.owner.(*rawConn); is && time.Duration(e.t.when-l.now) > left[place(c.source.addrPort())] {
				t.Errorf("visitor %d may wait longer than before", place(c.source.addrPort()))
			}
		}
	})
	if ev := awaitThat(k.server.fixture, func(ev Needed) bool { return ev.Waiting == 5 }); ev.Pool != linkPool {
		t.Errorf("told %+v", ev)
	}
	k.client.dial(k.server.proxy)
	for i, c := range visitors {
		service := s.take(t)
		hear(t, service, fmt.Sprint("visitor ", i))
		reset(t, c) // and the conn serves the next
		drop(service)
	}
}

// Visitors that waited in one loop while conns were idle in another meet.
func TestAdoptMatches(t *testing.T) {
	s := localServer(t, echo)
	for name, loops := range map[string]int{"one loop": 1, "many loops": 4} {
		t.Run(name, func(t *testing.T) {
			k := startLink(t, linkOptions{conns: 2, target: s.target})
			other := startNear(t, linkOptions{}, nil)
			var visitors []*net.TCPConn
			for range 6 {
				visitors = append(visitors, dialTCP(t, other.public))
			}
			eventually(t, "they wait", func() bool { return other.conns.Load() == 6 })
			state, waiting := k.server.freeze(), other.freeze()
			state.Waiting, waiting.Waiting = waiting.Waiting, nil // pools and tunnels are the same in both
			k.server.fixture = k.server.heir(loops)
			k.server.Submit(Adopt{state})
			var all []func() error
			for _, c := range visitors { // at once: who is served first is not theirs to say
				all = append(all, func() error { return errors.Join(sendContent(c, 1, 99), wantContent(c, 1, 99)) })
			}
			parallel(t, all...)
		})
	}
}

// A visitor whose time is over when it is adopted is refused.
func TestAdoptWaitTimeout(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	visitor := dialTCP(t, n.public)
	await[Needed](n.fixture)
	s := n.freeze()
	s.Waiting[0].Left = -time.Second
	n.fixture = n.heir(1)
	n.Submit(Adopt{s})
	wantReset(t, visitor)
	if ev := await[Refused](n.fixture); ev.Reason != WaitTimeout || ev.Tunnel != linkTunnel || n.conns.Load() != 0 {
		t.Fatalf("told %+v, %d counted", ev, n.conns.Load())
	}
}

func TestAdoptHalfClosed(t *testing.T) {
	for name, visitorFirst := range map[string]bool{"visitor first": true, "LocalServer first": false} {
		t.Run(name, func(t *testing.T) {
			eachHandOver(t, linkOptions{conns: 1}, nil, func(t *testing.T, k *link, s *local, hand func()) {
				t.Helper()
				visitor := dialTCP(t, k.public)
				service := s.take(t)
				first, second := service, visitor
				if visitorFirst {
					first, second = visitor, service
				}
				say(t, first, "all of it")
				closeWrite(t, first)
				wantRest(t, second, "all of it")
				hand()
				say(t, second, "an answer")
				hear(t, first, "an answer")
				hand()
				closeWrite(t, second)
				wantRest(t, first, "")
				k.ended(Done, Done)

				again := dialTCP(t, k.public)
				say(t, again, "over the same conn")
				hear(t, s.take(t), "over the same conn")
				if n := total[ConnOpened](k.server.fixture); n != 1 {
					t.Errorf("%d conns opened", n)
				}
			})
		})
	}
}

// Bytes that wait everywhere on the way to a receiver that stalls, in buffers
// and pipes, arrive in their order.
func TestAdoptBlockedStreams(t *testing.T) {
	s := localServer(t, nil)
	pipes := 0
	blocked := func(t *testing.T, public netip.AddrPort, f **fixture, upward bool) {
		t.Helper()
		visitor := dialTCP(t, public)
		service := s.take(t)
		from, to := service, visitor
		if upward {
			from, to = visitor, service
		}
		sent := int64(fill(t, from, content(5)))
		for _, loops := range []int{2, 1} {
			for _, d := range withPipes(handOver(f, loops)) {
				pipes += d
			}
		}
		parallel(t,
			func() error { return from.CloseWrite() },
			func() error { return wantContent(to, 5, sent) },
			func() error { return to.CloseWrite() },
		)
		if ev := await[StreamEnded](*f); ev.Reason != Done || ev.Up+ev.Down != uint64(sent) {
			t.Errorf("ended with %+v, want %d bytes", ev, sent)
		}
	}
	for name, upward := range map[string]bool{"up": true, "down": false} {
		t.Run("forwarder "+name, func(t *testing.T) {
			f := startEngine(t, 1, DefaultSettings(), nil)
			blocked(t, f.listen(linkTunnel, ToTarget{Target: s.target}), &f, upward)
		})
		t.Run("server "+name, func(t *testing.T) {
			k := startLink(t, linkOptions{conns: 1, target: s.target})
			blocked(t, k.public, &k.server.fixture, upward)
		})
		t.Run("client "+name, func(t *testing.T) {
			k := startLink(t, linkOptions{conns: 1, target: s.target})
			blocked(t, k.public, &k.client.fixture, upward)
		})
	}
	if pipes == 0 {
		t.Error("no pipe was handed over: the test tests less than it says")
	}
}

// withPipes counts the pipes of every stream.
func withPipes(s State) (all []int) {
	for _, r := range s.Streams {
		n := 0
		r.each(func(Descriptor) { n++ })
		all = append(all, (n-2)/2)
	}
	return all
}

// What waits for a socket goes out in its order: the buffer, the pipe, what
// comes later. The pipe is the adopter's to close.
func TestAdoptOrderOfBytes(t *testing.T) {
	f := startEngine(t, 1, DefaultSettings(), nil)
	f.passed() // its loops have opened what they need
	before := descriptors(t)
	front, visitor := socketPair(t)
	behind, service := socketPair(t)
	p := newPipe()
	if p == nil {
		t.Skip("this user has no pipe quota left: run it as another, or close pipes")
	}
	if _, err := unix.Write(p.w, []byte("the pipe, ")); err != nil {
		t.Fatal(err)
	}
	say := func(fd int, message string) {
		t.Helper()
		if _, err := unix.Write(fd, []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	say(service, "what comes later")
	f.Submit(Adopt{&State{
		Tunnels: []TunnelState{{Totals: TunnelStats{Tunnel: 3, Opened: 9, Ended: 8, Up: 100}}},
		Streams: []StreamState{{
			Front: RawState{SocketState: SocketState{
				Socket: Descriptor(front), Held: []byte("the buffer, "),
				Pipe: &PipeState{Read: Descriptor(p.r), Write: Descriptor(p.w), Bytes: 10},
			}},
			Back: &RawState{SocketState: SocketState{Socket: Descriptor(behind)}}, Up: 7, Down: 22, Age: time.Hour,
		}},
	}})
	want, got := "the buffer, the pipe, what comes later", ""
	eventually(t, "all has arrived", func() bool {
		b := make([]byte, 100)
		n, _ := unix.Read(visitor, b)
		got += string(b[:max(n, 0)])
		return len(got) >= len(want)
	})
	if got != want {
		t.Errorf("got %q", got)
	}
	f.wantNothingLent(t)
	if n := f.conns.Load(); n != 1 {
		t.Errorf("%d PublicConns counted", n)
	}
	if s := f.stats(3); s != (TunnelStats{Tunnel: 3, Opened: 9, Ended: 8, Up: 100, Down: 16}) {
		t.Errorf("totals %+v", s)
	}
	shutdownWrite(visitor)
	shutdownWrite(service)
	ev := await[StreamEnded](f)
	if ev.Reason != Done || ev.Tunnel != 3 || ev.Up != 7 || ev.Down != 22+16 || ev.Duration < time.Hour || ev.Duration > time.Hour+patience {
		t.Errorf("ended with %+v", ev)
	}
	if all := f.Stats(); len(all) != 0 {
		t.Errorf("a tunnel known for its stream only is still listed: %+v", all)
	}
	f.inLoop(0, func(l *loop) { l.pipes.trim() })
	if n := descriptors(t); n > before+2 {
		t.Errorf("%d descriptors, %d before and the test's two", n, before)
	}
}

func (f *fixture) wantNothingLent(t *testing.T) {
	t.Helper()
	for i := range f.loops {
		f.inLoop(i, func(l *loop) {
			if len(l.pipes.spare) != l.pipes.open {
				t.Errorf("loop %d counts %d pipes, %d are spare", i, l.pipes.open, len(l.pipes.spare))
			}
		})
	}
}
