package relay

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// besides runs so many hostile peers at a time, each anew when its conn has
// ended, until the function it gives is called.
func (m *crowd) besides(t *testing.T, peers int, play func(context.Context, *rand.Rand)) (stop func() (conns int64)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var conns atomic.Int64
	for i := range peers {
		rng := m.rng(uint64(i))
		running.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				play(ctx, rng)
				conns.Add(1)
			}
		})
	}
	return func() int64 { cancel(); running.Wait(); return conns.Load() }
}

// wantOdd reports what a script found odd.
func (s *script) wantOdd(ctx context.Context, t *testing.T) {
	t.Helper()
	if s.odd != nil && ctx.Err() == nil {
		t.Errorf("a hostile peer in stream %d: %v", s.now.seq, s.odd)
	}
}

// A client that does with its conns what it likes, in the pool of honest ones:
// visitors that it serves may be cut, but get nothing that is not theirs and no
// end that is none; the others notice nothing.
func TestHostileClientBesideHonest(t *testing.T) {
	talks := 1500
	if soaking() {
		talks = 50_000
	}
	m := newCrowd(t)
	m.hostile = ClientSide
	k := startFew(t, m, 4)
	var ids atomic.Uint64
	stop := m.besides(t, 3, func(ctx context.Context, rng *rand.Rand) {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(k.server.proxy))
		if err != nil {
			t.Error(err)
			return
		}
		defer context.AfterFunc(ctx, func() { drop(c) })()
		preface := prefaceOf(1<<32+ids.Add(1)).Seal(frame.NewKey(linkKey), frame.Exporter{})
		_, _ = c.Write(preface[:])
		s := newScript(m, c, ClientSide, rng)
		s.serve()
		s.wantOdd(ctx, t)
	})
	m.visits(talks, 24, k.public)
	conns := stop()
	m.finish(t, k, conns)
}

// A server that does with its conns what it likes, beside an honest one: a
// LocalServer gets nothing on a stream of the one that the other sent.
func TestHostileServerBesideHonest(t *testing.T) {
	talks := 700
	if soaking() {
		talks = 50_000
	}
	m := newCrowd(t)
	m.hostile = ServerSide
	k := startFew(t, m, 3)
	var last atomic.Uint64
	next := func() *talk {
		n := last.Add(1)
		source := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 32), byte(n >> 24), byte(n >> 16)}), uint16(n))
		talk := m.begin(1<<40|n, source)
		return m.find(talk.source, hostileOne)
	}
	var dialling sync.Mutex // so that a conn that comes is the one dialled
	stop := m.besides(t, 3, func(ctx context.Context, rng *rand.Rand) {
		dialling.Lock()
		ref := k.client.dial(k.client.door.Addr().(*net.TCPAddr).AddrPort())
		c, err := k.client.door.Accept()
		dialling.Unlock()
		if err != nil {
			t.Error(err)
			return
		}
		defer context.AfterFunc(ctx, func() { drop(c) })()
		s := newScript(m, c.(*net.TCPConn), ServerSide, rng)
		var preface [frame.PrefaceSize]byte
		_, _ = c.Read(preface[:])
		s.put(readyFrame(ref))
		s.drive(20, next)
		s.wantOdd(ctx, t)
	})
	m.visits(talks, 12, k.public)
	conns := stop()
	m.finish(t, k, conns)
	if last.Load() < 100 {
		t.Errorf("only %d hostile streams", last.Load())
	}
}

// finish waits for the ends of all talks and checks them.
func (m *crowd) finish(t *testing.T, k *few, conns int64) {
	t.Helper()
	began := time.Now()
	m.settled(m.engines...)
	m.close()
	for _, f := range m.engines {
		f.passed()
	}
	m.wantTalks(t, k.left.Load())
	var honest, hostile, whole int
	for _, talk := range m.talks {
		switch talk.served {
		case hostileOne:
			hostile++
			if talk.visitor.err == nil && !talk.visitor.broken && talk.service.err == nil && !talk.service.broken {
				whole++
			}
		case honestOne:
			honest++
		case nobodyYet:
		}
	}
	t.Logf("%d talks served honestly, %d not, %d of those to the end, over %d hostile conns; settled in %v", honest, hostile, whole, conns, time.Since(began))
	if honest < len(m.talks)/10 || hostile < len(m.talks)/20 {
		t.Error("too few of a kind to show anything")
	}
}
