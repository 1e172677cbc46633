package relay

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// A LocalServer that is down costs a visitor its connection, and no ProxyConn.
func TestLocalServerDown(t *testing.T) {
	k := startLink(t, linkOptions{conns: 1, target: nobody(t)})
	for range 20 {
		wantRefused(t, k.public)
		k.ended(DialError, DialError)
	}
	s := localServer(t, echo)
	k.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: s.target})
	k.client.passed()
	roundTrip(t, dialTCP(t, k.public), "up again")
	k.ended(Done, Done)
	if opened, closed := total[ConnOpened](k.server.fixture), total[ConnClosed](k.server.fixture); opened != 1 || closed != 0 {
		t.Fatalf("%d conns opened, %d closed; want the first to serve all", opened, closed)
	}
}

func TestUnknownTunnel(t *testing.T) {
	k := startLink(t, linkOptions{conns: 1, target: localServer(t, echo).target})
	k.client.Submit(DropTarget{Pool: linkPool, Wire: linkWire})
	k.client.passed()
	for range 3 {
		wantRefused(t, k.public)
		if ev := await[StreamEnded](k.server.fixture); ev.Reason != UnknownTunnel {
			t.Fatalf("ended with %+v", ev)
		}
	}
	if n := total[ConnOpened](k.server.fixture); n != 1 {
		t.Fatalf("%d conns opened, want 1", n)
	}
}

func TestDropTargetLeavesStreams(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{conns: 1, target: s.target})
	visitor := dialTCP(t, k.public)
	service := s.take(t)
	k.client.Submit(DropTarget{Pool: linkPool, Wire: linkWire})
	k.client.passed()
	say(t, visitor, "goes on")
	closeWrite(t, visitor)
	wantRest(t, service, "goes on")
	drop(service)
	wantRest(t, visitor, "")
	k.ended(Done, Done)
}

func TestVisitorWaitsForConn(t *testing.T) {
	s := localServer(t, echo)
	k := startLink(t, linkOptions{loops: 2, target: s.target})
	visitor := dialTCP(t, k.public)
	say(t, visitor, "said before ")
	if ev := await[Needed](k.server.fixture); ev.Pool != linkPool || ev.Waiting != 1 {
		t.Fatalf("got %+v", ev)
	}
	k.open(1)
	roundTripRest(t, visitor, "said before ", "and after")
	k.ended(Done, Done)
}

// roundTripRest ends an exchange whose first part was sent already.
func roundTripRest(tb testing.TB, c *net.TCPConn, before, after string) {
	tb.Helper()
	say(tb, c, after)
	closeWrite(tb, c)
	wantRest(tb, c, before+after)
}

func TestNoConnInTime(t *testing.T) {
	set := DefaultSettings()
	set.Wait = 50 * time.Millisecond
	n := startNear(t, linkOptions{settings: set}, nil)
	visitor := dialTCP(t, n.public)
	wantReset(t, visitor)
	ev := await[Refused](n.fixture)
	if ev.Reason != WaitTimeout || ev.Tunnel != linkTunnel || ev.Source.String() != visitor.LocalAddr().String() {
		t.Fatalf("refused with %+v", ev)
	}
	if s := n.stats(linkTunnel); s.Refused != 1 || s.Opened != 0 {
		t.Fatalf("totals %+v", s)
	}
}

func TestNeededIsRepeated(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	dialTCP(t, n.public)
	for range 2 {
		if ev := await[Needed](n.fixture); ev.Waiting != 1 {
			t.Fatalf("got %+v", ev)
		}
	}
}

func TestVisitorLeavesWhileWaiting(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{target: s.target})
	gone := dialTCP(t, k.public)
	await[Needed](k.server.fixture)
	patient := dialTCP(t, k.public)
	awaitThat(k.server.fixture, func(ev Needed) bool { return ev.Waiting == 2 })
	reset(t, gone)
	if ev := await[Refused](k.server.fixture); ev.Reason != VisitorLeft {
		t.Fatalf("refused with %+v", ev)
	}
	k.open(1)
	service := s.take(t)
	say(t, service, "for the patient one")
	hear(t, patient, "for the patient one")
}

// A visitor that has said all and shut down its direction is still served.
func TestVisitorWaitsHalfClosed(t *testing.T) {
	k := startLink(t, linkOptions{target: localServer(t, echo).target})
	visitor := dialTCP(t, k.public)
	await[Needed](k.server.fixture)
	say(t, visitor, "all of it")
	closeWrite(t, visitor)
	k.open(1)
	wantRest(t, visitor, "all of it")
	k.ended(Done, Done)
}

func TestConnLimits(t *testing.T) {
	total := DefaultSettings()
	total.MaxConns = 2
	for name, o := range map[string]linkOptions{
		"of a tunnel":    {loops: 2, conns: 4, maxConns: 2},
		"of all tunnels": {loops: 2, conns: 4, settings: total},
	} {
		t.Run(name, func(t *testing.T) {
			s := localServer(t, nil)
			o.target = s.target
			k := startLink(t, o)
			first, second := dialTCP(t, k.public), dialTCP(t, k.public)
			s.take(t)
			s.take(t)
			wantRefused(t, k.public)
			if ev := await[Refused](k.server.fixture); ev.Reason != ConnLimit {
				t.Fatalf("refused with %+v", ev)
			}
			reset(t, first) // makes room
			await[StreamEnded](k.server.fixture)
			third := dialTCP(t, k.public)
			say(t, s.take(t), "there is room again")
			hear(t, third, "there is room again")
			_ = second
		})
	}
}

func TestMaxIdle(t *testing.T) {
	const most = 3
	k := startLink(t, linkOptions{loops: 2, conns: 5, maxIdle: most, target: localServer(t, echo).target})
	for range 2 {
		if at, from := await[ConnClosed](k.server.fixture), await[ConnClosed](k.client.fixture); at.Reason != Closed || from.Reason != Closed {
			t.Fatalf("closed with %+v and %+v", at, from)
		}
	}
	var visitors []*net.TCPConn
	for range most {
		visitors = append(visitors, dialTCP(t, k.public))
	}
	for _, c := range visitors {
		roundTrip(t, c, "from the pool")
		k.ended(Done, Done)
	}
	if n := total[Needed](k.server.fixture); n != 0 {
		t.Fatalf("asked %d times for conns that were there", n)
	}
}

// A pool that keeps none uses no conn twice.
func TestNoReuse(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	n.Submit(OpenPool{Pool: linkPool, MaxIdle: 0})
	s := localServer(t, echo)
	f := startFar(t, linkOptions{target: s.target})
	for range 3 {
		visitor := dialTCP(t, n.public)
		await[Needed](n.fixture)
		f.dial(n.proxy)
		roundTrip(t, visitor, "on a conn of its own")
		if ev := await[ConnClosed](n.fixture); ev.Reason != Closed {
			t.Fatalf("closed with %+v", ev)
		}
		await[ConnClosed](f.fixture)
	}
}

// The client asks the server to close what it does not want to keep.
func TestClientRetires(t *testing.T) {
	k := startLink(t, linkOptions{target: localServer(t, echo).target})
	k.client.Submit(OpenPool{Pool: linkPool, MaxIdle: 0})
	k.open(1)
	roundTrip(t, dialTCP(t, k.public), "once")
	k.ended(Done, Done)
	if at, from := await[ConnClosed](k.server.fixture), await[ConnClosed](k.client.fixture); at.Reason != Closed || from.Reason != Closed {
		t.Fatalf("closed with %+v and %+v", at, from)
	}
}

// With fewer conns than loops, the loop that accepts is lent one by the other:
// nobody outside is asked.
func TestDonationBetweenLoops(t *testing.T) {
	k := startLink(t, linkOptions{loops: 2, conns: 1, target: localServer(t, echo).target})
	for range 100 {
		roundTrip(t, dialTCP(t, k.public), "from whichever loop")
		k.ended(Done, Done)
	}
	if needed, closed := total[Needed](k.server.fixture), total[ConnClosed](k.server.fixture); needed != 0 || closed != 0 {
		t.Fatalf("needed %d times, %d conns closed", needed, closed)
	}
}

// Visitors of both loops share one conn: a loop passes it on as soon as it is
// idle, without waiting to be asked.
func TestIdleConnIsOffered(t *testing.T) {
	k := startLink(t, linkOptions{loops: 2, conns: 1, target: localServer(t, echo).target})
	var all sync.WaitGroup
	for i := range 60 {
		visitor := dialTCP(t, k.public)
		all.Go(func() {
			message := fmt.Sprint("visitor ", i)
			if _, err := visitor.Write([]byte(message)); err != nil {
				t.Error(err)
			}
			if err := visitor.CloseWrite(); err != nil {
				t.Error(err)
			}
			wantRest(t, visitor, message)
		})
	}
	all.Wait()
	if n := total[ConnOpened](k.server.fixture); n != 1 {
		t.Fatalf("%d conns opened", n)
	}
}

func TestClosePool(t *testing.T) {
	for _, side := range []string{"server", "client"} {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, cut %v", side, cut), func(t *testing.T) {
				s := localServer(t, nil)
				k := startLink(t, linkOptions{loops: 2, conns: 3, target: s.target})
				f := map[string]*fixture{"server": k.server.fixture, "client": k.client.fixture}[side]
				visitor := dialTCP(t, k.public)
				service := s.take(t)
				f.Submit(ClosePool{Pool: linkPool, Cut: cut})
				for range 2 { // the idle ones
					await[ConnClosed](k.server.fixture)
					await[ConnClosed](k.client.fixture)
				}
				if cut {
					wantReset(t, visitor)
					wantReset(t, service)
				} else {
					say(t, visitor, "still here")
					hear(t, service, "still here")
					closeWrite(t, visitor)
					closeWrite(t, service)
					k.ended(Done, Done)
				}
				await[ConnClosed](k.server.fixture) // and that of the stream
				await[ConnClosed](k.client.fixture)
				f.wantNoShards()
			})
		}
	}
}

// Who was first let finish can still be cut.
func TestClosePoolAgainWithCut(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{loops: 2, conns: 2, target: s.target})
	visitor := dialTCP(t, k.public)
	service := s.take(t)
	say(t, service, "!") // while it dials, the client does not read that it was cut
	hear(t, visitor, "!")
	k.server.Submit(ClosePool{Pool: linkPool})
	await[ConnClosed](k.server.fixture)
	k.server.Submit(ClosePool{Pool: linkPool, Cut: true})
	wantReset(t, visitor)
	wantReset(t, service)
	k.ended(Cut, Cut)
	k.server.wantNoShards()
}

func (f *fixture) wantNoShards() {
	f.tb.Helper()
	for i := range f.loops {
		f.inLoop(i, func(l *loop) {
			if len(l.shards) != 0 {
				f.tb.Errorf("loop %d remembers a closed pool", i)
			}
		})
	}
}

func TestClosePoolRefusesWhoWaits(t *testing.T) {
	n := startNear(t, linkOptions{loops: 2}, nil)
	visitor := dialTCP(t, n.public)
	await[Needed](n.fixture)
	n.Submit(ClosePool{Pool: linkPool})
	wantReset(t, visitor)
	if ev := await[Refused](n.fixture); ev.Reason != Cut {
		t.Fatalf("refused with %+v", ev)
	}
	wantRefused(t, n.public) // the listener has no pool any more
	if ev := await[Refused](n.fixture); ev.Reason != Cut {
		t.Fatalf("refused with %+v", ev)
	}
}
