package relay

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// A paused stream waits for its turn; that is not idleness.
func TestPausedIsNotIdle(t *testing.T) {
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		for _, up := range []bool{true, false} {
			visitor, service := r.connect(t)
			from := service
			if up {
				r.limit(crawl, 0)
				from = visitor
			} else {
				r.limit(0, crawl)
			}
			before := r.limiting().stats(linkTunnel).Throttled
			parallel(t, func() error { return sendContent(from, 1, 32<<10) })
			r.throttled(t, before+1)
			set := DefaultSettings()
			set.Idle = time.Hour
			r.limiting().Submit(Configure{Settings: set})
			check := func(l *loop) (s *stream) {
				for h := range l.poll.handlers() {
					if c, ok := h.(*rawConn); ok && c.public && c.state == rawJoined {
						s = c.stream
						s.active = l.now - int64(2*time.Hour)
						s.draining() // so that nothing has moved since
						l.checkStream(s)
					}
				}
				return s
			}
			r.eachLoop(func(l *loop) {
				if s := check(l); s != nil && s.over {
					t.Errorf("up %v: a paused stream was ended as idle", up)
				}
			})
			r.limit(0, 0)
			r.limiting().Submit(Configure{Settings: DefaultSettings()})
			reset(t, visitor)
			for _, f := range r.engines {
				await[StreamEnded](f)
			}
			drop(service)
		}
	})
}

func (r route) eachLoop(run func(l *loop)) {
	for i := range r.limiting().loops {
		r.limiting().inLoop(i, run)
	}
}

// What is still to come of a stream that ended here is dropped, not limited: its
// ProxyConn serves the next visitor.
func TestLimitDoesNotHoldUpSettling(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{conns: 1, target: s.target})
	r := route{public: k.public, local: s, engines: []*fixture{k.server.fixture, k.client.fixture}}
	for range 5 {
		before := k.server.stats(linkTunnel).Throttled
		r.limit(0, crawl)
		visitor, service := r.connect(t)
		parallel(t, func() error { return sendContent(service, 1, 48<<10) })
		r.throttled(t, before+1)
		k.client.passed()
		reset(t, visitor)
		if ev := await[StreamEnded](k.server.fixture); ev.Reason != PeerReset {
			t.Fatalf("ended with %+v", ev)
		}
		await[StreamEnded](k.client.fixture)
		r.limit(0, 0)
		next, answering := r.connect(t)
		say(t, next, "next")
		hear(t, answering, "next")
		drop(next)
		readAll(t, answering)
		drop(answering, service)
		await[StreamEnded](k.server.fixture)
		await[StreamEnded](k.client.fixture)
	}
	if opened, closed := total[ConnOpened](k.server.fixture), total[ConnClosed](k.server.fixture); opened != 1 || closed != 0 {
		t.Errorf("%d conns opened, %d closed; want the first to serve all", opened, closed)
	}
}

// A paused stream whose ProxyConn breaks does not wait for its turn to end.
func TestPausedProxyConnBreaks(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	n.Submit(Limit{Tunnel: linkTunnel, Down: crawl})
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	p.send(dataFrame(1, string(make([]byte, 32<<10))))
	eventually(t, "paused", func() bool { return n.stats(linkTunnel).Throttled > 0 })
	reset(t, p.TCPConn)
	wantReset(t, visitor)
	if ev := await[StreamEnded](n.fixture); ev.Reason != ProxyLost {
		t.Fatalf("ended with %+v", ev)
	}
	n.wantEmpty(t)
}

// However a paused stream ends, nothing of it is left.
func TestPausedStreamsEnd(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, r route, visitor, service *net.TCPConn){
		"visitor resets": func(t *testing.T, _ route, visitor, _ *net.TCPConn) { t.Helper(); reset(t, visitor) },
		"both reset": func(t *testing.T, _ route, visitor, service *net.TCPConn) {
			t.Helper()
			reset(t, service)
			reset(t, visitor)
		},
		"half-closed, then reset": func(t *testing.T, r route, visitor, service *net.TCPConn) {
			t.Helper()
			closeWrite(t, visitor)
			closeWrite(t, service)
			for _, f := range r.engines {
				f.passed()
			}
			reset(t, visitor)
		},
		"half-closed, then let go": func(t *testing.T, r route, visitor, service *net.TCPConn) {
			t.Helper()
			closeWrite(t, visitor)
			closeWrite(t, service)
			r.limit(0, 0)
			parallel(t,
				func() error { return wantContent(service, 1, 64<<10) },
				func() error { return wantContent(visitor, 2, 64<<10) },
			)
		},
		"LocalServer resets, then let go": func(t *testing.T, r route, _, service *net.TCPConn) {
			t.Helper()
			reset(t, service)
			r.limit(0, 0)
		},
		"tunnel closed": func(t *testing.T, r route, visitor, _ *net.TCPConn) {
			t.Helper()
			r.limiting().Submit(Unlisten{Tunnel: linkTunnel})
			await[Unlistened](r.limiting())
			reset(t, visitor)
		},
		"pool cut": func(t *testing.T, r route, visitor, _ *net.TCPConn) {
			t.Helper()
			r.limiting().Submit(ClosePool{Pool: linkPool, Cut: true})
			if len(r.engines) == 1 { // a forwarder has none
				reset(t, visitor)
			}
		},
		"engine stopped": func(t *testing.T, r route, _, _ *net.TCPConn) { t.Helper(); r.limiting().stop() },
	} {
		t.Run(name, func(t *testing.T) {
			eachRoute(t, Settings{}, func(t *testing.T, r route) {
				t.Helper()
				r.limit(crawl, crawl)
				visitor, service := r.connect(t)
				for i, c := range []*net.TCPConn{visitor, service} {
					if _, err := io.CopyN(c, content(uint64(i+1)), 64<<10); err != nil {
						t.Fatal(err)
					}
				}
				r.throttled(t, 2)
				before := descriptors(t)
				end(t, r, visitor, service)
				for _, f := range r.engines {
					await[StreamEnded](f)
				}
				drop(visitor, service)
				for _, f := range r.engines {
					if name != "engine stopped" || f != r.limiting() {
						f.Submit(ClosePool{Pool: linkPool})
						eventually(t, "all conns are closed", func() bool { return f.conns.Load() == 0 && f.members() == 0 })
						f.wantEmpty(t)
					}
				}
				if n := descriptors(t); n >= before {
					t.Errorf("%d descriptors, %d before the end", n, before)
				}
			})
		})
	}
}

// members counts the conns of all pools.
func (f *fixture) members() (n int) {
	f.tb.Helper()
	f.eachShard(func(_ *loop, sh *shard) { n += len(sh.members) })
	return n
}
