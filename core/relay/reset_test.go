package relay

import (
	"net"
	"testing"
	"time"
)

// wantEnds wants a stream to end on every engine for something else than Done.
func (r route) wantCut(tb testing.TB) {
	tb.Helper()
	for i, f := range r.engines {
		if ev := await[StreamEnded](f); ev.Reason == Done {
			tb.Errorf("engine %d: stream ended as done", i)
		}
	}
}

// Whoever resets, and after whatever half-close, the other end learns of it and
// never takes it for an orderly end.
func TestResetReachesTheOtherEnd(t *testing.T) {
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		type ends struct{ one, other *net.TCPConn }
		for name, run := range map[string]func(t *testing.T, e ends){
			"at once": func(t *testing.T, e ends) {
				t.Helper()
				reset(t, e.one)
				wantReset(t, e.other)
			},
			"in mid-stream": func(t *testing.T, e ends) {
				t.Helper()
				say(t, e.one, "half a mess")
				hear(t, e.other, "half a mess")
				reset(t, e.one)
				wantReset(t, e.other)
			},
			"after its own FIN": func(t *testing.T, e ends) {
				t.Helper()
				say(t, e.one, "request")
				closeWrite(t, e.one)
				wantRest(t, e.other, "request")
				reset(t, e.one)
				wantBroken(t, e.other)
			},
			"after the other's FIN": func(t *testing.T, e ends) {
				t.Helper()
				say(t, e.other, "banner")
				closeWrite(t, e.other)
				wantRest(t, e.one, "banner")
				reset(t, e.one)
				wantReset(t, e.other)
			},
		} {
			t.Run("visitor "+name, func(t *testing.T) {
				visitor, service := r.connect(t)
				run(t, ends{visitor, service})
				r.wantCut(t)
			})
			t.Run("LocalServer "+name, func(t *testing.T) {
				visitor, service := r.connect(t)
				run(t, ends{service, visitor})
				r.wantCut(t)
			})
		}
		for _, f := range r.engines {
			if n := total[ConnClosed](f); n != 0 {
				t.Errorf("%d conns were closed instead of used again", n)
			}
		}
	})
}

// A RESET would wait for ever behind bytes that nobody takes.
func TestResetOvertakesBlockedBytes(t *testing.T) {
	set := DefaultSettings()
	set.Connect = 200 * time.Millisecond // how long a stream may take to settle
	eachRoute(t, set, func(t *testing.T, r route) {
		t.Helper()
		t.Run("LocalServer stalls, visitor resets", func(t *testing.T) {
			visitor, _ := r.connect(t)
			fill(t, visitor, content(1))
			reset(t, visitor)
			r.wantCut(t)
		})
		t.Run("visitor stalls, LocalServer resets", func(t *testing.T) {
			_, service := r.connect(t)
			fill(t, service, content(1))
			reset(t, service)
			r.wantCut(t)
		})
		t.Run("stalled end resets", func(t *testing.T) {
			visitor, service := r.connect(t)
			fill(t, visitor, content(1))
			reset(t, service)
			wantBroken(t, visitor)
			r.wantCut(t)
		})
		t.Run("the next is served", func(t *testing.T) {
			visitor, service := r.connect(t)
			say(t, visitor, "and now?")
			hear(t, service, "and now?")
			drop(visitor)
			drop(service)
			wantDone(t, r.engines)
		})
	})
}

// Most of what is under way when a stream is reset is dropped by reading it; a
// conn with more than that is closed.
func TestResetWithMuchUnderWay(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{conns: 1, supply: true, target: s.target})
	for range 20 {
		visitor := dialTCP(t, k.public)
		service := s.take(t)
		done := make(chan struct{})
		go func() {
			defer close(done)
			b := make([]byte, 256<<10)
			for {
				if _, err := service.Write(b); err != nil {
					return
				}
			}
		}()
		hear(t, visitor, string(make([]byte, 1<<20)))
		reset(t, visitor)
		<-done
		for _, f := range []*fixture{k.server.fixture, k.client.fixture} {
			if ev := await[StreamEnded](f); ev.Reason == Done {
				t.Fatalf("ended with %+v", ev)
			}
		}
	}
}

// Streams that the end of an engine cuts end with RST at both ends.
func TestEngineStopIsAReset(t *testing.T) {
	for _, which := range []string{"forwarder", "server", "client"} {
		t.Run(which, func(t *testing.T) {
			s := localServer(t, nil)
			var f *fixture
			r := route{local: s}
			if which == "forwarder" {
				f = startEngine(t, 1, DefaultSettings(), nil)
				r.public = f.listen(linkTunnel, ToTarget{Target: s.target})
			} else {
				k := startLink(t, linkOptions{loops: 2, conns: 4, target: s.target})
				r.public = k.public
				f = map[string]*fixture{"server": k.server.fixture, "client": k.client.fixture}[which]
			}
			visitor, service := r.connect(t)
			say(t, visitor, "something")
			hear(t, service, "something")
			halfVisitor, halfService := r.connect(t)
			closeWrite(t, halfService)
			wantRest(t, halfVisitor, "")

			f.stop()
			wantReset(t, visitor)
			wantReset(t, service)
			wantReset(t, halfService)
			wantBroken(t, halfVisitor)
			for range 2 {
				if ev := await[StreamEnded](f); ev.Reason != Stopped {
					t.Errorf("ended with %+v", ev)
				}
			}
		})
	}
}
