package relay

import (
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// crawl lets the least burst pass and then as good as nothing: 1 byte a second.
const crawl = 1

// crawled is what passes in one direction before a stream is paused by crawl.
const crawled = 2 * minBurst

// limiting is the engine of a route that limits: the one with the visitors.
func (r route) limiting() *fixture { return r.engines[0] }

func (r route) limit(up, down int64) {
	r.limiting().Submit(Limit{Tunnel: linkTunnel, Up: up, Down: down})
}

// throttled waits until directions of streams have been paused so many times.
func (r route) throttled(tb testing.TB, times uint64) {
	tb.Helper()
	eventually(tb, "the limit holds a stream up", func() bool { return r.limiting().stats(linkTunnel).Throttled >= times })
}

// What passes a limit is what was sent, and no more of it at any time than the
// clock allows; through pipes and without.
func TestLimitedContent(t *testing.T) {
	const rate, size = 8 << 20, 4 << 20
	for name, piped := range map[string]bool{"pipes": true, "no quota": false} {
		t.Run(name, func(t *testing.T) {
			eachRoute(t, Settings{}, func(t *testing.T, r route) {
				t.Helper()
				if !piped {
					for _, f := range r.engines {
						f.broadcast(func() message { return noPipes{} })
						f.passed()
					}
				}
				began := time.Since(epoch)
				r.limit(rate, rate)
				visitor, service := r.connect(t)
				var done sync.WaitGroup
				stop := make(chan struct{})
				done.Go(func() {
					for {
						s := r.limiting().stats(linkTunnel)
						passed := time.Since(epoch) - began
						most := passed.Seconds()*rate + rate/10 + loopBuffer
						if float64(s.Up) > most || float64(s.Down) > most {
							t.Errorf("%d up and %d down after %v", s.Up, s.Down, passed)
							return
						}
						select {
						case <-stop:
							return
						case <-time.After(5 * time.Millisecond):
						}
					}
				})
				parallel(t,
					func() error { return sendContent(visitor, 1, size) },
					func() error { return sendContent(service, 2, size) },
					func() error { return wantContent(service, 1, size) },
					func() error { return wantContent(visitor, 2, size) },
				)
				close(stop)
				done.Wait()
				r.ended(t, size, size)
				if n := r.limiting().stats(linkTunnel).Throttled; n == 0 {
					t.Error("the limit held nothing up")
				}
				if n := r.pipes(); piped != (n > 0) {
					t.Errorf("%d pipes right after bulk", n)
				}
				for _, up := range []bool{true, false} {
					b := r.limiting().tunnel(linkTunnel).rates.of(up)
					if paid := b.arrival.Load() - int64(began); paid < b.cost(1<<20)*(size>>20)-int64(burstTime) {
						t.Errorf("up %v: %v were paid for", up, time.Duration(paid))
					}
				}
			})
		})
	}
}

// Eight streams send as much as they can; each gets its share.
func TestLimitIsFair(t *testing.T) {
	const rate, total, streams = 16 << 20, 8 << 20, 8
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		r.limit(rate, 0)
		var got [streams]atomic.Int64
		var sum atomic.Int64
		var shares [streams]int64
		var visitors, services [streams]*net.TCPConn
		reached := make(chan struct{})
		enough := sync.OnceFunc(func() {
			for i := range got {
				shares[i] = got[i].Load()
			}
			close(reached)
		})
		var busy sync.WaitGroup
		for i := range streams {
			visitors[i], services[i] = r.connect(t)
		}
		// The burst belongs to whoever comes first; here it is spent.
		r.limiting().tunnel(linkTunnel).rates.of(true).spend(rate/2, int64(time.Since(epoch)))
		for i := range streams {
			busy.Go(func() { _, _ = io.Copy(visitors[i], content(uint64(i))) })
			busy.Go(func() {
				b := make([]byte, loopBuffer)
				for {
					n, err := services[i].Read(b)
					got[i].Add(int64(n))
					if sum.Add(int64(n)) >= total {
						enough()
					}
					if err != nil {
						return
					}
				}
			})
		}
		select {
		case <-reached:
		case <-time.After(patience):
			t.Error("the limit lets too little pass")
		}
		for i := range streams {
			drop(visitors[i], services[i])
		}
		busy.Wait()
		enough()
		if low, high := slices.Min(shares[:]), slices.Max(shares[:]); high > 2*low {
			t.Errorf("shares of the streams: %v", shares)
		}
	})
}

// One direction is held up; the other, and other tunnels, are not.
func TestLimitedDirectionsAreIndependent(t *testing.T) {
	const size = 16 << 20
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		for name, up := range map[string]bool{"up": true, "down": false} {
			t.Run(name, func(t *testing.T) {
				visitor, service := r.connect(t)
				slow, fast := visitor, service
				if up {
					r.limit(crawl, 0)
				} else {
					r.limit(0, crawl)
					slow, fast = service, visitor
				}
				before := r.limiting().stats(linkTunnel)
				parallel(t, func() error { return sendContent(slow, 1, 256<<10) })
				r.throttled(t, before.Throttled+1)
				parallel(t,
					func() error { return sendContent(fast, 2, size) },
					func() error { return wantContent(slow, 2, size) },
				)
				after := r.limiting().stats(linkTunnel)
				passed := after.Up - before.Up
				if !up {
					passed = after.Down - before.Down
				}
				if passed > crawled {
					t.Errorf("%d bytes passed, want at most %d", passed, crawled)
				}
				r.limit(0, 0) // and what was held up goes on
				parallel(t, func() error { return wantContent(fast, 1, 256<<10) })
				wantDone(t, r.engines)
			})
		}
	})
}

// A limit counts at once for streams that run, in either sense.
func TestLimitChangedLive(t *testing.T) {
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		visitor, service := r.connect(t)
		say(t, visitor, "free")
		hear(t, service, "free")
		r.limit(crawl, crawl)
		parallel(t, func() error { return sendContent(visitor, 1, 512<<10) })
		r.throttled(t, 1)
		r.limit(64<<20, crawl)
		parallel(t, func() error { return wantContent(service, 1, 512<<10) })
		parallel(t, func() error { return sendContent(service, 2, 512<<10) })
		r.throttled(t, 2)
		r.limit(0, 0)
		parallel(t, func() error { return wantContent(visitor, 2, 512<<10) })
		r.ended(t, 512<<10+4, 512<<10)
	})
}

// Nothing is read of a new visitor while the tunnel is over its limit.
func TestLimitCountsFirstBytes(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	n.Submit(Limit{Tunnel: linkTunnel, Up: crawl})
	b := n.tunnel(linkTunnel).rates.of(true)
	b.spend(1<<20, int64(time.Since(epoch)))
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	if got := n.stats(linkTunnel).Throttled; got != 0 {
		t.Errorf("paused %d times with nothing to read", got)
	}
	say(t, visitor, "hello")
	eventually(t, "paused", func() bool { return n.stats(linkTunnel).Throttled > 0 })
	if got := n.stats(linkTunnel).Up; got != 0 {
		t.Errorf("%d bytes were read", got)
	}
	n.Submit(Limit{Tunnel: linkTunnel})
	p.wantData(1, "hello")
}

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
				for _, slot := range l.poll.slots {
					if c, ok := slot.h.(*rawConn); ok && c.public && c.state == rawJoined {
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
