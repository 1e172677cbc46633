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
					r.withoutPipes()
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
						most := passed.Seconds()*rate + rate/10 + float64(newBucket(rate).quantum)
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
				parallel(t, bothWays(visitor, service, size)...)
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

// Nothing is read of a new visitor while the tunnel is over its limit, whether
// it has sent something before its stream begins or not.
func TestLimitCountsFirstBytes(t *testing.T) {
	for name, early := range map[string]bool{"before START": true, "behind START": false} {
		t.Run(name, func(t *testing.T) {
			n := startNear(t, linkOptions{}, nil)
			n.Submit(Limit{Tunnel: linkTunnel, Up: crawl})
			n.tunnel(linkTunnel).rates.of(true).spend(1<<20, int64(time.Since(epoch)))
			visitor := dialTCP(t, n.public)
			if early {
				say(t, visitor, "hello")
				await[Needed](n.fixture)
			}
			p := n.peer(t)
			p.want(frame.Start, 1)
			if !early {
				n.passed()
				if got := n.stats(linkTunnel).Throttled; got != 0 {
					t.Errorf("paused %d times with nothing to read", got)
				}
				say(t, visitor, "hello")
			}
			eventually(t, "paused", func() bool { return n.stats(linkTunnel).Throttled > 0 })
			if got := n.stats(linkTunnel).Up; got != 0 {
				t.Errorf("%d bytes were read", got)
			}
			n.Submit(Limit{Tunnel: linkTunnel})
			p.wantData(1, "hello")
		})
	}
}

// Once a direction has ended, what its limit would say does not keep RESET.
func TestLimitOfAnEndedDirection(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	n.Submit(Limit{Tunnel: linkTunnel, Down: crawl})
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	p.send(bare(frame.Fin, 1))
	wantRest(t, visitor, "")
	n.tunnel(linkTunnel).rates.of(false).spend(1<<20, int64(time.Since(epoch))) // other streams
	p.send(resetFrame(1, frame.ResetPeer))
	wantBroken(t, visitor)
	if ev := await[StreamEnded](n.fixture); ev.Reason != RemoteReset {
		t.Fatalf("ended with %+v", ev)
	}
}
