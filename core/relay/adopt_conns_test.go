package relay

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// A frame of which a part has come is whole when the rest comes to the heir.
func TestAdoptPartialFrames(t *testing.T) {
	s := localServer(t, nil)
	t.Run("header of DATA at the server", func(t *testing.T) {
		n := startNear(t, linkOptions{}, nil)
		p := n.peer(t)
		visitor := dialTCP(t, n.public)
		p.want(frame.Start, 1)
		b := dataFrame(1, "hello")
		for i := range b { // cut anywhere
			p.send(b[i : i+1])
			n.passed()
			handOver(&n.fixture, 1+i%2)
		}
		hear(t, visitor, "hello")
	})
	t.Run("START at the client", func(t *testing.T) {
		f := startFar(t, linkOptions{target: s.target})
		p := f.peer(t)
		b := append(startFrame(1, linkWire), dataFrame(1, "hello")...)
		for i := 0; i < len(b); i += 5 {
			p.send(b[i:min(i+5, len(b))])
			f.passed()
			handOver(&f.fixture, 1+i%2)
		}
		hear(t, s.take(t), "hello")
	})
}

// A stream that ended here, and not yet there, is waited for by the heir, no
// longer than before.
func TestAdoptSettling(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	reset(t, visitor)
	await[StreamEnded](n.fixture)
	p.wantReset(1, frame.ResetPeer)
	p.send(dataFrame(1, "too late"))
	n.passed()
	s := handOver(&n.fixture, 2)
	if c := s.Conns[0]; len(s.Conns) != 1 || c.Idle || c.In.Dropped != 8 || c.Left <= 0 || c.Left > n.settings.Load().Connect {
		t.Fatalf("conns %+v", s.Conns)
	}
	n.passed()
	armed := 0
	for i := range n.loops {
		n.inLoop(i, func(l *loop) {
			for _, e := range l.timers.heap {
				if _, is := e.owner.(*proxyConn); is && time.Duration(e.t.when-l.now) <= s.Conns[0].Left {
					armed++
				}
			}
		})
	}
	if armed != 1 {
		t.Errorf("%d deadlines for one conn", armed)
	}
	p.send(dataFrame(1, "much too late"))
	n.passed()
	if s := handOver(&n.fixture, 1); s.Conns[0].In.Dropped != 8+13 {
		t.Errorf("dropped %d bytes", s.Conns[0].In.Dropped)
	}
	p.send(resetFrame(1, frame.ResetAcknowledge))
	next := dialTCP(t, n.public)
	p.want(frame.Start, 2)
	p.send(dataFrame(2, "hello"))
	hear(t, next, "hello")
}

// The last bytes of a stream that has ended are still delivered, although their
// reader stalls.
func TestAdoptSettlingWithLastBytes(t *testing.T) {
	e := idleEngine(t, 1)
	l := e.loops[0]
	p, theirs := l.member(t, l.openPool(ServerSide), proxyStream)
	p.out, p.canWrite = l.mem.hold([]byte("the last bytes")), false
	l.settle(p)
	state := e.surrender()
	f := startEngine(t, 1, DefaultSettings(), nil)
	f.Submit(Adopt{state})
	f.passed()
	b := make([]byte, 64)
	if n, err := unix.Read(theirs, b); err != nil || string(b[:n]) != "the last bytes" {
		t.Fatalf("read %q, %v", b[:max(n, 0)], err)
	}
	f.inLoop(0, func(l *loop) {
		if sh := l.shards[linkPool]; len(sh.idle) != 1 || sh.idle[0].timer.pos != 0 {
			t.Errorf("idle %v", sh.idle)
		}
	})
}

// A conn that its client wants to have closed is closed when its stream has
// ended.
func TestAdoptRetire(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	p.send(bare(frame.Retire, 0))
	n.passed()
	handOver(&n.fixture, 2)
	p.send(bare(frame.Fin, 1))
	closeWrite(t, visitor)
	p.want(frame.Fin, 1)
	p.want(frame.Close, 0)
	if ev := await[ConnClosed](n.fixture); ev.Reason != Closed || ev.Pool != linkPool {
		t.Errorf("told %+v", ev)
	}
}

// Heartbeats go on: however often a pool is handed over, they are not put off.
func TestAdoptHeartbeat(t *testing.T) {
	const beat = time.Hour
	n := startNear(t, linkOptions{loops: 2, heartbeat: beat}, nil)
	p := n.peer(t)
	n.passed()
	s := n.freeze()
	if due := s.Pools[0].Beat; due <= 0 || due > beat {
		t.Fatalf("the next heartbeat is in %v", due)
	}
	s.Conns[0].Missed = 1
	s.Pools[0].Beat = 1 // as if it were due
	n.fixture = n.heir(2)
	n.Submit(Adopt{s})
	p.want(frame.Ping, 0)
	n.passed()
	s = n.freeze()
	if c := s.Conns[0]; c.Missed != 2 || s.Pools[0].Beat < beat-patience {
		t.Errorf("missed %d, the next heartbeat in %v", c.Missed, s.Pools[0].Beat)
	}
}
