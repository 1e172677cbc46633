package relay

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// freeze ends the engine and gives what it held.
func (f *fixture) freeze() *State {
	f.tb.Helper()
	f.Submit(Freeze{})
	s := await[Frozen](f).State
	f.stop() // it has ended: there is nothing to stop
	f.tb.Cleanup(s.Close)
	return s
}

// heir is a running engine that stands for f from now on: it reacts like f, and
// what f told and nobody awaited can be awaited there.
func (f *fixture) heir(loops int) *fixture {
	f.tb.Helper()
	g := startEngine(f.tb, loops, *f.settings.Load(), f.react)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = append(g.told, f.told...)
	maps.Copy(g.totals, f.totals)
	return g
}

// handOver replaces the engine of a fixture by one with so many loops, which
// adopts all. It gives a copy of what was handed over, to look at.
func handOver(f **fixture, loops int) State {
	(*f).tb.Helper()
	s := (*f).freeze()
	was := *s
	*f = (*f).heir(loops) // known before anything can be told
	(*f).Submit(Adopt{s})
	return was
}

// handOver replaces the engines that get a number of loops, and gives what they
// handed over.
func (k *link) handOver(server, client int) (all []State) {
	if server > 0 {
		all = append(all, handOver(&k.server.fixture, server))
	}
	if client > 0 {
		all = append(all, handOver(&k.client.fixture, client))
	}
	return all
}

// idleEngine is an engine that does not run, with its loops open.
func idleEngine(tb testing.TB, loops int) *Engine {
	tb.Helper()
	e := New(Options{Loops: loops, Settings: DefaultSettings()})
	if err := e.open(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		e.end()
		for _, l := range e.loops {
			l.closeAll()
		}
	})
	return e
}

// What was submitted before Freeze counts, also when it was before Run; what
// comes later does not, and leaves nothing open.
func TestFreezeBeforeRun(t *testing.T) {
	before := descriptors(t)
	e := New(Options{Loops: 2, Settings: DefaultSettings()})
	listen := Listen{Tunnel: 3, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: ToPool{Pool: 7, Wire: 5}}
	e.Submit(OpenPool{Pool: 7, Side: ServerSide, MaxIdle: 4, Heartbeat: time.Minute})
	e.Submit(listen)
	e.Submit(Freeze{})
	e.Submit(Freeze{})
	e.Submit(Listen{Tunnel: 4, Binds: []netip.Addr{loopback}, Ports: []uint16{0}})
	e.Submit(OpenPool{Pool: 8, Side: ServerSide})
	e.Submit(Unlisten{Tunnel: 3})
	if err := e.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	batch := <-e.Events()
	if len(batch) != 2 {
		t.Fatalf("told %v", batch)
	}
	bound := batch[0].(Listening)
	s := batch[1].(Frozen).State
	if _, open := <-e.Events(); open {
		t.Fatal("the events go on")
	}
	if len(s.Listeners) != 1 || s.Listeners[0].Route != listen.Route || s.Listeners[0].Address != bound.Addresses[0] {
		t.Fatalf("listeners %+v", s.Listeners)
	}
	if want := (PoolState{Pool: 7, Side: ServerSide, MaxIdle: 4, Heartbeat: time.Minute}); len(s.Pools) != 1 || s.Pools[0].Targets != nil || s.Pools[0].Pool != want.Pool || s.Pools[0].MaxIdle != want.MaxIdle || s.Pools[0].Heartbeat != want.Heartbeat {
		t.Fatalf("pools %+v", s.Pools)
	}
	if len(s.Tunnels) != 1 || s.Tunnels[0] != (TunnelState{Totals: TunnelStats{Tunnel: 3}}) {
		t.Fatalf("tunnels %+v", s.Tunnels)
	}
	if n := descriptors(t); n > before+1 {
		t.Fatalf("%d descriptors besides the listener, %d before", n-1, before)
	}
	s.Close()
	s.Close()
	if n := descriptors(t); n > before {
		t.Fatalf("%d descriptors, %d before", n, before)
	}
}

// When there is nothing to hand over, or nobody could, Events just ends.
func TestNoFrozen(t *testing.T) {
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, run := range map[string]func(e *Engine) error{
		"context first":     func(e *Engine) error { e.Submit(Freeze{}); return e.Run(cancelled) },
		"after the end":     func(e *Engine) error { err := e.Run(cancelled); e.Submit(Freeze{}); return err },
		"loops do not open": func(e *Engine) error { e.Submit(Freeze{}); return runWithoutDescriptors(t, e) },
		"after a failure":   func(e *Engine) error { err := runWithoutDescriptors(t, e); e.Submit(Freeze{}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			e := New(Options{Loops: 2, Settings: DefaultSettings()})
			r := newRecord(t)
			e.Submit(Adopt{&r.State})
			if err := run(e); err != nil && !errors.Is(err, unix.EMFILE) {
				t.Fatal(err)
			}
			for batch := range e.Events() {
				for _, ev := range batch {
					if _, is := ev.(Frozen); is {
						t.Fatal("frozen")
					}
				}
			}
			if n := descriptors(t) - len(r.theirs); n > before {
				t.Fatalf("%d descriptors, %d before", n, before)
			}
		})
	}
}

func runWithoutDescriptors(t *testing.T, e *Engine) (err error) {
	t.Helper()
	withoutDescriptors(t, func() { err = e.Run(t.Context()) })
	return err
}

// Messages between loops that wait when the threads end are acted upon, also
// those that come of them.
func TestFreezeDeliversMessages(t *testing.T) {
	e := idleEngine(t, 3)
	e.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: -1})
	at := e.loops[0]
	e.deliverAll()
	sh := at.shards[linkPool]
	conn, _ := at.member(t, sh, proxyIdle)
	at.release(conn)
	lent, _ := at.member(t, sh, proxyIdle)
	at.detach(lent)
	e.loops[2].inbox.post(moved{conn: lent, pool: linkPool, donated: true})
	a := &acceptor{tunnel: e.tunnel(linkTunnel)}
	ours, visitor := tcpPair(t)
	e.loops[1].arrive(ToPool{Pool: linkPool, Wire: linkWire}, a.tunnel, ours, visitor.LocalAddr().(*net.TCPAddr).AddrPort()) // asks loop 0
	s := e.surrender()
	t.Cleanup(s.Close)
	if len(s.Streams) != 1 || len(s.Conns) != 1 || len(s.Waiting) != 0 {
		t.Fatalf("%d streams, %d conns, %d waiting", len(s.Streams), len(s.Conns), len(s.Waiting))
	}
	if got := s.Streams[0].Source.String(); got != visitor.LocalAddr().String() || !s.Conns[0].Idle {
		t.Fatalf("stream of %s, conn %+v", got, s.Conns[0])
	}
}

// tcpPair is an accepted socket and its other end.
func tcpPair(t *testing.T) (ours int, theirs *net.TCPConn) {
	t.Helper()
	s, err := bindOne(netip.AddrPortFrom(loopback, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	defer closefd(s.fd)
	theirs = dialTCP(t, s.address)
	eventually(t, "a connection is accepted", func() bool {
		fd, _, errno := accept(s.fd)
		ours = fd
		return errno == 0
	})
	return ours, theirs
}

// lingers tells whether closing a socket resets it.
func lingers(t *testing.T, fd int) bool {
	t.Helper()
	l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	if err != nil {
		t.Fatal(err)
	}
	return l.Onoff != 0 && l.Linger == 0
}

// Every socket in a State is reset by whoever loses it; adopted, it is again as
// it was.
func TestLinger(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{conns: 2, target: s.target})
	visitor := dialTCP(t, k.public)
	service := s.take(t)
	closeWrite(t, service)
	wantRest(t, visitor, "") // its socket has had the FIN

	check := func(f **fixture, fin bool) {
		t.Helper()
		state := (*f).freeze()
		if len(state.Streams) != 1 || len(state.Conns) != 1 || state.Streams[0].Front.FinSent != fin {
			t.Fatalf("frozen: %+v", state)
		}
		state.each(func(d Descriptor) {
			if !lingers(t, int(d)) {
				t.Errorf("descriptor %d ends in order", d)
			}
		})
		*f = (*f).heir(2)
		(*f).Submit(Adopt{state})
		(*f).passed()
		for i := range (*f).loops {
			(*f).inLoop(i, func(l *loop) {
				for h := range l.poll.handlers() {
					switch h := h.(type) {
					case *rawConn:
						if lingers(t, h.fd) == fin {
							t.Errorf("the bare socket resets: %v", !fin)
						}
					case *proxyConn:
						if lingers(t, h.fd) {
							t.Error("a ProxyConn resets")
						}
					}
				}
			})
		}
	}
	check(&k.server.fixture, true)
	check(&k.client.fixture, false)
	closeWrite(t, visitor)
	wantRest(t, service, "")
	k.ended(Done, Done)
}

// What has not been let in is closed and told; peers dial again.
func TestFreezeClosesHandshakes(t *testing.T) {
	n := startNear(t, linkOptions{loops: 2}, nil)
	silent := n.stranger(t)
	f := startFar(t, linkOptions{})
	ref := f.dial(silentTCP(t).TCP)
	n.passed()
	f.passed()
	at, from := n.freeze(), f.freeze()
	if ev := await[PrefaceFailed](n.fixture); ev.Reason != Stopped {
		t.Errorf("told %+v", ev)
	}
	if ev := await[DialFailed](f.fixture); ev.Ref != ref || ev.Err == nil {
		t.Errorf("told %+v", ev)
	}
	if len(at.Conns)+len(from.Conns) != 0 {
		t.Errorf("handed over %+v and %+v", at.Conns, from.Conns)
	}
	readAll(t, silent)
}

// A preface that waits for its verdict is closed too; the verdict finds nobody.
func TestFreezeClosesWhoWaitsForPark(t *testing.T) {
	f := startEngine(t, 1, DefaultSettings(), nil)
	at := f.listen(1, ToPreface{})
	c := dialTCP(t, at)
	sealed := prefaceOf(1).Seal(frame.NewKey(linkKey), frame.Exporter{})
	if _, err := c.Write(sealed[:]); err != nil {
		t.Fatal(err)
	}
	asked := await[PrefaceReceived](f)
	handOver(&f, 1)
	f.Submit(Park{Conn: asked.Conn, Pool: linkPool})
	readAll(t, c)
	if ev := await[PrefaceFailed](f); ev.Reason != Stopped {
		t.Fatalf("told %+v", ev)
	}
}

// Idle conns of several loops keep who was used last at the end, and visitors
// that wait keep the order of their queues.
func TestOrders(t *testing.T) {
	conn := func(seq uint16) ConnState { return ConnState{Exchange: ExchangeState{Seq: seq}} }
	var ranks []uint16
	for _, c := range byRank([][]ConnState{{conn(1), conn(4), conn(6)}, nil, {conn(3), conn(5), conn(7)}, {conn(8)}}) {
		ranks = append(ranks, c.Exchange.Seq)
	}
	if !slices.Equal(ranks, []uint16{1, 3, 4, 5, 6, 7, 8}) || byRank(nil) != nil {
		t.Errorf("idle conns in the order %v", ranks)
	}
	wait := func(wire uint32, left time.Duration) WaitingState { return WaitingState{Wire: wire, Left: left} }
	var wires []uint32
	for _, w := range byPatience([][]WaitingState{{wait(1, 2), wait(4, 9), wait(5, 1)}, nil, {wait(2, 3), wait(3, 4)}}) {
		wires = append(wires, w.Wire)
	}
	if !slices.Equal(wires, []uint32{1, 2, 3, 4, 5}) || byPatience(nil) != nil {
		t.Errorf("waiting in the order %v", wires)
	}
}

// A LocalConn between two attempts has no place in the epoll set; the one that it
// had may be another's.
func TestFreezeBetweenAttempts(t *testing.T) {
	e := idleEngine(t, 1)
	l := e.loops[0]
	sh := l.openPool(ClientSide)
	dialling, _ := l.member(t, sh, proxyIdle)
	other, _ := l.member(t, sh, proxyStream) // settles
	full, _ := fullUnix(t)
	sh.targets[linkWire] = target{full, e.tunnel(linkTunnel)}
	dialling.idleAt = -1
	if !l.receiveStart(dialling, 1, startFrame(1, linkWire)[frame.HeaderSize:]) {
		t.Fatal("START was refused")
	}
	c := dialling.stream.front
	if c.fd >= 0 || c.timer.pos == 0 {
		t.Fatalf("connected at once: %+v", c)
	}
	c.slot = other.slot
	s := e.surrender()
	defer s.Close()
	if len(s.Conns) != 1 || s.Conns[0].Socket != Descriptor(other.fd) || len(s.Streams) != 1 || s.Streams[0].Front.Dial == nil || s.Streams[0].Front.Socket != -1 {
		t.Fatalf("frozen %+v", s)
	}
}
