package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// The process that takes over is this test binary once more; the variable says
// whether it adopts what it is sent.
const (
	heirEnv    = "RELAY_TEST_HEIR"
	heirAdopts = "adopts"
	heirLeaves = "leaves"
)

// otherPool is a pool whose visitors wait; otherTunnel is theirs.
const (
	otherPool   PoolID   = 8
	otherTunnel TunnelID = 4
)

// TestHeirProcess is what that process runs: an engine that goes on with what
// comes over descriptor 3, until its standard input ends. It says what happens.
func TestHeirProcess(t *testing.T) {
	what := os.Getenv(heirEnv)
	if what == "" {
		t.Skip("runs in a process of its own, see TestHandOverToProcess")
	}
	s, err := receiveState(3)
	if err != nil {
		t.Fatal(err)
	}
	if what == heirLeaves {
		fmt.Println("received")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	var f *fixture
	f = startEngine(t, 3, DefaultSettings(), func(ev Event) {
		switch ev := ev.(type) {
		case PrefaceReceived:
			f.admitTo(ev)
		case Needed:
			fmt.Println("needed", ev.Pool)
		case StreamEnded:
			fmt.Println("ended", ev.Reason)
		case ConnClosed:
			if ev.Reason != Stopped {
				fmt.Printf("unexpected %+v\n", ev)
			}
		case Refused, DialFailed, Exhausted:
			fmt.Printf("unexpected %T%+v\n", ev, ev)
		}
	})
	f.Submit(Adopt{s})
	f.passed()
	fmt.Println("adopted")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// admitTo parks a conn in the pool that its Control has here.
func (f *fixture) admitTo(ev PrefaceReceived) {
	p, err := frame.ParsePreface(ev.Preface)
	if err != nil || p.Verify(ev.Preface, frame.NewKey(linkKey), frame.Exporter{}) != nil {
		f.Submit(Close{Conn: ev.Conn})
		return
	}
	pool := linkPool
	if p.ControlID == uint64(otherPool) {
		pool = otherPool
	}
	f.Submit(Park{Conn: ev.Conn, Pool: pool, Ready: p.Ready(frame.NewKey(linkKey), frame.Exporter{})})
}

// startHeir starts it and hands a State over; nothing of it stays here.
func startHeir(t *testing.T, what string, s *State) *child {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := pair[0], os.NewFile(uintptr(pair[1]), "parcel")
	defer closefd(ours)
	h := startChild(t, "TestHeirProcess", heirEnv+"="+what, theirs)
	theirs.Close()
	if err := sendState(ours, s); err != nil {
		t.Fatal(err)
	}
	s.Close()
	return h
}

// A live engine goes on in another process, in the middle of everything.
func TestHandOverToProcess(t *testing.T) {
	for _, side := range []string{"server", "client"} {
		t.Run(side, func(t *testing.T) {
			local := localServer(t, nil)
			s := &handover{t: t, local: local, handing: make(chan struct{}), stop: make(chan struct{}), rounds: make([]atomic.Int64, 16)}
			s.link = startLink(t, linkOptions{loops: 2, supply: true, conns: 20 + 2 + 16 + 4 + 5, target: local.target})
			s.client.Submit(OpenPool{Pool: otherPool, Side: ClientSide, MaxIdle: -1})
			s.client.Submit(SetTarget{Pool: otherPool, Wire: linkWire, Tunnel: otherTunnel, Target: local.target})
			s.server.Submit(OpenPool{Pool: otherPool, Side: ServerSide, MaxIdle: -1})
			other := s.server.listen(otherTunnel, ToPool{Pool: otherPool, Wire: linkWire})
			handed, stays := s.server.fixture, s.client.fixture
			if side == "client" {
				handed, stays = stays, handed
			}
			s.begin(handed)
			waiting := dialTCP(t, other)
			say(t, waiting, "waiting")
			awaitThat(s.server.fixture, func(ev Needed) bool { return ev.Pool == otherPool })
			state := s.frozen(handed)
			queued := dialTCP(t, s.public)
			say(t, queued, "queued")
			h := startHeir(t, heirAdopts, state)
			h.await("adopted")
			hear(t, local.take(t), "queued")
			if side == "server" {
				if h.await("needed ") != "8" {
					t.Error("needed for another pool")
				}
				p := frame.Preface{Mode: frame.Plain, ControlID: uint64(otherPool), Epoch: 1, ProxyID: 1}
				s.client.Submit(Dial{
					Pool: otherPool, Ref: 1, Address: s.server.proxy,
					Preface: p.Seal(frame.NewKey(linkKey), frame.Exporter{}), Ready: p.Ready(frame.NewKey(linkKey), frame.Exporter{}),
				})
				hear(t, local.take(t), "waiting")
			}
			s.finish()
			for range s.streams {
				if ev := await[StreamEnded](stays); ev.Reason != Done {
					t.Errorf("ended with %+v", ev)
				}
				if why := h.await("ended "); why != "done" {
					t.Errorf("ended in the heir: %s", why)
				}
			}
			drop(queued, waiting)
			h.leave()
			if len(h.odd) > 0 {
				t.Errorf("the heir told: %v", h.odd)
			}
		})
	}
}

// A State that nobody adopts ends its streams by a reset, whoever had it last:
// a process that leaves, or the kernel with a message that nobody reads.
func TestHandOverToNobody(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, s *State){
		"the heir leaves": func(t *testing.T, s *State) {
			t.Helper()
			h := startHeir(t, heirLeaves, s)
			h.await("received")
			h.leave()
		},
		"nobody reads": func(t *testing.T, s *State) {
			t.Helper()
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := sendState(pair[0], s); err != nil {
				t.Fatal(err)
			}
			s.Close()
			closefd(pair[0])
			closefd(pair[1])
		},
		"closed": func(_ *testing.T, s *State) { s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			local := localServer(t, nil)
			k := startLink(t, linkOptions{loops: 2, conns: 3, target: local.target})
			k.server.Submit(OpenPool{Pool: otherPool, Side: ServerSide, MaxIdle: -1})
			var all []*net.TCPConn
			for range 3 {
				visitor := dialTCP(t, k.public)
				all = append(all, visitor, local.take(t))
			}
			say(t, all[0], "the first half")
			hear(t, all[1], "the first half")
			closeWrite(t, all[3]) // a LocalServer that had said all
			wantRest(t, all[2], "")
			waiting := dialTCP(t, k.server.listen(otherTunnel, ToPool{Pool: otherPool}))
			awaitThat(k.server.fixture, func(ev Needed) bool { return ev.Pool == otherPool })
			lose(t, k.server.freeze())
			for i, c := range []*net.TCPConn{all[0], all[1], all[3], all[4], all[5], waiting} {
				if got := wantReset(t, c); got != "" {
					t.Errorf("conn %d was sent %q", i, got)
				}
			}
			wantBroken(t, all[2])
			if c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(k.public)); !errors.Is(err, syscall.ECONNREFUSED) {
				drop(c)
				t.Errorf("the listener is still there: %v", err)
			}
			for range 3 {
				if ev := await[StreamEnded](k.client.fixture); ev.Reason != ProxyLost {
					t.Errorf("ended with %+v", ev)
				}
			}
		})
	}
}
