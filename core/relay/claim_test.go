package relay

import (
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// idleLoop is a still loop with so many idle conns of a pool.
func idleLoop(tb testing.TB, conns int) (*loop, *shard) {
	tb.Helper()
	l := stillLoop(tb)
	sh := l.openPool(ServerSide)
	for range conns {
		p, _ := l.member(tb, sh, proxyStream)
		l.release(p)
	}
	if len(sh.idle) != conns {
		tb.Fatalf("%d idle conns", len(sh.idle))
	}
	return l, sh
}

// cycle claims a conn and gives it back; false when there is none.
func (l *loop) cycle(sh *shard) bool {
	p := sh.claim(l)
	if p != nil {
		l.release(p)
	}
	return p != nil
}

// Claiming a conn and giving it back takes no memory and sends no message.
func TestClaimAllocatesNothing(t *testing.T) {
	l, sh := idleLoop(t, 8)
	claimed := true
	if n := testing.AllocsPerRun(1000, func() { claimed = l.cycle(sh) && claimed }); n != 0 || !claimed {
		t.Errorf("%v allocations, claimed each time: %v", n, claimed)
	}
	for _, to := range l.engine.loops {
		if m := to.inbox.take(nil); len(m) > 1 || to == l && len(m) > 0 {
			t.Errorf("messages %v for loop %d", m, to.id)
		}
	}
}

// From accept to START, and from the end of a stream to the next, nothing waits
// for a lock: all there are are held by somebody else.
func TestClaimTakesNoLock(t *testing.T) {
	l, sh := idleLoop(t, 2)
	a := l.door(t, ToPool{Pool: linkPool, Wire: linkWire})
	var visitors []*net.TCPConn
	for range 2 {
		visitors = append(visitors, dialTCP(t, a.socket.address))
	}
	done := make(chan struct{})
	e := l.engine
	e.mu.Lock()
	e.outbox.mu.Lock()
	for _, other := range e.loops {
		other.inbox.mu.Lock()
	}
	unlock := sync.OnceFunc(func() {
		for _, other := range e.loops {
			other.inbox.mu.Unlock()
		}
		e.outbox.mu.Unlock()
		e.mu.Unlock()
	})
	defer unlock()
	go func() {
		defer close(done)
		a.ready(l, 0) // accepts, claims and starts both
		for _, c := range l.raws() {
			p := c.stream.proxy
			p.txEnd, p.rxEnd = true, true
			l.endStream(c.stream, Done) // and gives the conns back
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		unlock() // so that all ends
		<-done
		t.Fatal("waits for a lock")
	}
	if s := a.tunnel.cells[l.id].opened.Load(); s != 2 || len(sh.idle) != 2 {
		t.Errorf("%d streams, %d idle conns; want 2, 2", s, len(sh.idle))
	}
	drop(visitors[0], visitors[1])
}

func BenchmarkClaim(b *testing.B) {
	l, sh := idleLoop(b, 64)
	b.ReportAllocs()
	for b.Loop() {
		l.cycle(sh)
	}
}

// engineGoroutines counts the goroutines that run code of this package which is
// no test.
func engineGoroutines() (n int) {
	b := make([]byte, 16<<20)
	for g := range strings.SplitSeq(string(b[:runtime.Stack(b, true)]), "\n\n") {
		for line := range strings.SplitSeq(g, "\n") {
			if strings.Contains(line, "/core/relay/") && !strings.Contains(line, "_test.go:") {
				n++
				break
			}
		}
	}
	return n
}

// A thousand streams that move bytes all at once need no goroutine more than
// none do: each engine has its loops, one that delivers events, and Run.
func TestGoroutinesDoNotDependOnStreams(t *testing.T) {
	const streams = 1000
	s := localServer(t, echo)
	k := startLink(t, linkOptions{loops: 2, supply: true, target: s.target})
	before := engineGoroutines()
	if want := 2 * (2 + 2); before != want {
		t.Fatalf("%d goroutines of two engines, want %d", before, want)
	}
	k.open(streams)
	var visitors []*net.TCPConn
	for range streams {
		visitors = append(visitors, dialTCP(t, k.public))
	}
	for round := range 3 {
		for _, c := range visitors {
			say(t, c, "and back")
		}
		if n := engineGoroutines(); n != before {
			t.Errorf("%d goroutines in round %d, %d before", n, round, before)
		}
		for _, c := range visitors {
			hear(t, c, "and back")
		}
		if n := engineGoroutines(); n != before {
			t.Errorf("%d goroutines after round %d, %d before", n, round, before)
		}
	}
	if n := k.server.stats(linkTunnel); n.Opened != streams || n.Ended != 0 {
		t.Errorf("%+v, want %d streams", n, streams)
	}
}
