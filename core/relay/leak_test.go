package relay

import (
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// After whatever end, the descriptors are those that there were before, and no
// stream, conn or waiting visitor is left in any loop.
func TestNothingIsLeft(t *testing.T) {
	set := DefaultSettings()
	set.Wait, set.Preface, set.Connect = 50*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond
	s := localServer(t, nil)
	k := startLink(t, linkOptions{loops: 2, settings: set, target: s.target})
	r := route{public: k.public, local: s, engines: []*fixture{k.server.fixture, k.client.fixture}}
	for name, run := range map[string]func(t *testing.T){
		"done": func(t *testing.T) {
			t.Helper()
			k.open(1)
			visitor, service := r.connect(t)
			closeWrite(t, visitor)
			closeWrite(t, service)
			wantRest(t, visitor, "")
			wantRest(t, service, "")
			drop(visitor, service)
			r.ended(t, 0, 0)
		},
		"visitor resets": func(t *testing.T) {
			t.Helper()
			k.open(1)
			visitor, service := r.connect(t)
			reset(t, visitor)
			wantReset(t, service)
			drop(service)
			r.wantCut(t)
		},
		"LocalServer resets what is full": func(t *testing.T) {
			t.Helper()
			k.open(1)
			visitor, service := r.connect(t)
			fill(t, visitor, content(1))
			reset(t, service)
			wantBroken(t, visitor)
			drop(visitor)
			r.wantCut(t)
		},
		"visitor resets what is full": func(t *testing.T) {
			t.Helper()
			k.open(1)
			visitor, service := r.connect(t)
			fill(t, visitor, content(1))
			reset(t, visitor)
			r.wantCut(t)
			drop(service)
		},
		"no conn": func(t *testing.T) {
			t.Helper()
			wantRefused(t, k.public)
		},
		"unknown tunnel": func(t *testing.T) {
			t.Helper()
			k.client.Submit(DropTarget{Pool: linkPool, Wire: linkWire})
			k.open(1)
			wantRefused(t, k.public)
			k.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: s.target})
		},
		"nobody there": func(t *testing.T) {
			t.Helper()
			k.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: nobody(t)})
			k.open(1)
			wantRefused(t, k.public)
			k.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: s.target})
		},
		"no preface": func(t *testing.T) {
			t.Helper()
			c := k.server.stranger(t)
			readAll(t, c)
			drop(c)
		},
		"bad preface": func(t *testing.T) {
			t.Helper()
			c := k.server.stranger(t)
			say(t, c, "GET /")
			readAll(t, c)
			drop(c)
		},
		"protocol error": func(t *testing.T) {
			t.Helper()
			p := k.server.peer(t)
			p.send(bare(frame.Close, 0))
			p.rest()
			drop(p)
		},
		"conn lost in a stream": func(t *testing.T) {
			t.Helper()
			p := k.server.peer(t)
			visitor := dialTCP(t, k.public)
			p.want(frame.Start, 1)
			drop(p)
			readAll(t, visitor)
			drop(visitor)
		},
		"proxy port does not answer": func(t *testing.T) {
			t.Helper()
			p := k.client.dialledPeer(t)
			await[DialFailed](k.client.fixture)
			drop(p)
		},
		"READY forged": func(t *testing.T) {
			t.Helper()
			p := k.client.dialledPeer(t)
			p.send(readyFrame(0))
			await[DialFailed](k.client.fixture)
			drop(p)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range r.engines {
				f.reuse(t)
			}
			before := descriptors(t)
			run(t)
			for _, f := range r.engines { // the conns that live on
				f.Submit(ClosePool{Pool: linkPool})
				f.Submit(OpenPool{Pool: linkPool, Side: sideOf(f, k), MaxIdle: -1})
			}
			k.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: s.target})
			eventually(t, "descriptors are back", func() bool { return descriptors(t) <= before })
			for _, f := range r.engines {
				f.wantEmpty(t)
			}
		})
	}
}

func sideOf(f *fixture, k *link) Side {
	if f == k.server.fixture {
		return ServerSide
	}
	return ClientSide
}

// wantEmpty wants the loops to hold nothing but listeners.
func (f *fixture) wantEmpty(t *testing.T) {
	t.Helper()
	for i := range f.loops {
		f.inLoop(i, func(l *loop) {
			for h := range l.poll.handlers() {
				switch h := h.(type) {
				case *rawConn, *proxyConn:
					t.Errorf("loop %d still has %T", i, h)
				}
			}
			n := len(l.timers.heap)
			if l.pipes.timer.pos != 0 {
				n-- // it closes the spare pipes
			}
			if n != 0 {
				t.Errorf("loop %d still has %d timers", i, n)
			}
			if len(l.pipes.spare) != l.pipes.open {
				t.Errorf("loop %d has lent %d pipes to nobody", i, l.pipes.open-len(l.pipes.spare))
			}
			if n := l.lobby.len(); n != 0 {
				t.Errorf("loop %d still has %d in the lobby", i, n)
			}
		})
	}
	if n := f.conns.Load(); n != 0 {
		t.Errorf("%d PublicConns still counted", n)
	}
}
