package relay

import (
	"net"
	"testing"
	"time"
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
				when, armed := l.timers.next()
				if left := time.Duration(when - l.now); !armed || left > time.Hour || left < time.Hour-patience {
					t.Errorf("ends in %v", left)
				}
			})
		})
	}
}

// A tunnel that listens no more is known while its streams run, and goes on
// counting if it listens again meanwhile.
func TestAdoptFormerTunnel(t *testing.T) {
	s := localServer(t, nil)
	for name, again := range map[string]bool{"gone": false, "again": true} {
		t.Run(name, func(t *testing.T) {
			f := startEngine(t, 2, DefaultSettings(), nil)
			visitor := dialTCP(t, f.listen(linkTunnel, ToTarget{Target: s.target}))
			service := s.take(t)
			f.Submit(Limit{Tunnel: linkTunnel, Up: 1 << 30}) // which the stream keeps, and the tunnel does not
			f.Submit(Unlisten{Tunnel: linkTunnel})
			await[Unlistened](f)
			listed := 0
			if again {
				listed = 1
				f.listen(linkTunnel, ToTarget{Target: s.target})
			}
			for range 2 {
				handOver(&f, 1)
			}
			say(t, visitor, "still here")
			hear(t, service, "still here")
			reset(t, visitor)
			await[StreamEnded](f)
			f.passed()
			if all := f.Stats(); len(all) != listed || again && all[0] != (TunnelStats{Tunnel: linkTunnel, Opened: 1, Ended: 1, Up: 10}) {
				t.Errorf("totals %+v", all)
			}
			if n := f.conns.Load(); n != 0 {
				t.Errorf("%d counted", n)
			}
		})
	}
}
