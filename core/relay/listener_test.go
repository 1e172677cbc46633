package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// tryListen gives the answer to a Listen.
func (f *fixture) tryListen(c Listen) Listening {
	f.tb.Helper()
	f.Submit(c)
	return awaitThat(f, func(ev Listening) bool { return ev.Tunnel == c.Tunnel })
}

func TestListenErrors(t *testing.T) {
	f := startEngine(t, 2, DefaultSettings(), nil)
	taken := f.listen(1, ToPreface{})
	for name, c := range map[string]struct {
		listen Listen
		want   error
	}{
		"port in use":         {Listen{Binds: []netip.Addr{loopback}, Ports: []uint16{taken.Port()}}, unix.EADDRINUSE},
		"all ports in use":    {Listen{Binds: []netip.Addr{loopback}, Ports: []uint16{taken.Port(), taken.Port()}}, unix.EADDRINUSE},
		"foreign address":     {Listen{Binds: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Ports: []uint16{0}}, unix.EADDRNOTAVAIL},
		"second bind foreign": {Listen{Binds: []netip.Addr{loopback, netip.MustParseAddr("192.0.2.1")}, Ports: []uint16{0}}, unix.EADDRNOTAVAIL},
		"no address":          {Listen{Ports: []uint16{0}}, nil},
		"no port":             {Listen{Binds: []netip.Addr{loopback}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			c.listen.Tunnel, c.listen.Route = 2, ToPreface{}
			ev := f.tryListen(c.listen)
			if ev.Err == nil || c.want != nil && !errors.Is(ev.Err, c.want) || len(ev.Addresses) != 0 {
				t.Fatalf("got %+v, want %v", ev, c.want)
			}
			if after := descriptors(t); after != before {
				t.Fatalf("%d descriptors, %d before", after, before)
			}
		})
	}
}

func TestListenTakesTheFirstFreePort(t *testing.T) {
	f := startEngine(t, 1, DefaultSettings(), nil)
	taken := f.listen(1, ToPreface{})
	free := f.listen(2, ToPreface{})
	f.Submit(Unlisten{Tunnel: 2})
	await[Unlistened](f)
	ev := f.tryListen(Listen{Tunnel: 3, Binds: []netip.Addr{loopback}, Ports: []uint16{taken.Port(), free.Port()}, Route: ToPreface{}})
	if ev.Err != nil || ev.Addresses[0] != free {
		t.Fatalf("got %+v, want %v", ev, free)
	}
}

func TestListenOnBothFamilies(t *testing.T) {
	v6 := netip.IPv6Unspecified()
	v4 := netip.IPv4Unspecified()
	for name, binds := range map[string][]netip.Addr{
		"dual stack socket":   {v6},
		"one socket a family": {v6, v4},
		"the other order":     {v4, v6},
	} {
		t.Run(name, func(t *testing.T) {
			f := startEngine(t, 2, DefaultSettings(), nil)
			ev := f.tryListen(Listen{Tunnel: 1, Binds: binds, Ports: []uint16{0}, Route: ToTarget{Target: localServer(t, echo).target}})
			if ev.Err != nil || len(ev.Addresses) != len(binds) {
				t.Fatalf("got %+v", ev)
			}
			for _, host := range []string{"127.0.0.1", "::1"} {
				c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(ev.Addresses[0].Port())))
				if err != nil {
					if host == "::1" && ev.Addresses[0].Addr().Is4() {
						t.Skip("this machine has no IPv6")
					}
					t.Fatal(err)
				}
				defer c.Close()
				roundTrip(t, c.(*net.TCPConn), "hello "+host)
				if got := await[StreamEnded](f).Source; got.String() != c.LocalAddr().String() {
					t.Errorf("source %v, want %v", got, c.LocalAddr())
				}
			}
		})
	}
}

// Without a route connections wait in the kernel's queue, and the port is taken.
func TestListenWithoutRoute(t *testing.T) {
	s := localServer(t, nil)
	f := startEngine(t, 2, DefaultSettings(), nil)
	at := f.listen(1, nil)
	visitor := dialTCP(t, at)
	say(t, visitor, "let me in")
	f.passed()
	if n := f.conns.Load(); n != 0 {
		t.Fatalf("%d accepted without a route", n)
	}
	if ev := f.tryListen(Listen{Tunnel: 2, Binds: []netip.Addr{loopback}, Ports: []uint16{at.Port()}}); !errors.Is(ev.Err, unix.EADDRINUSE) {
		t.Fatalf("got %+v", ev)
	}
	f.Submit(Reroute{Tunnel: 1, Route: ToTarget{Target: s.target}})
	hear(t, s.take(t), "let me in")

	f.Submit(Listen{Tunnel: 3, Binds: []netip.Addr{loopback}, Ports: []uint16{0}})
	never := awaitThat(f, func(ev Listening) bool { return ev.Tunnel == 3 }).Addresses[0]
	left := dialTCP(t, never)
	f.Submit(Unlisten{Tunnel: 3})
	await[Unlistened](f)
	wantReset(t, left)
}

// Unlisten closes the port only: it can be bound again, and streams finish.
func TestUnlisten(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{loops: 2, conns: 2, target: s.target})
	visitor := dialTCP(t, k.public)
	service := s.take(t)
	k.server.Submit(Unlisten{Tunnel: linkTunnel})
	if ev := await[Unlistened](k.server.fixture); ev.Tunnel != linkTunnel {
		t.Fatalf("got %+v", ev)
	}
	if c, err := net.Dial("tcp", k.public.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial gave %v, %v", c, err)
	}
	say(t, visitor, "still")
	hear(t, service, "still")

	ev := k.server.tryListen(Listen{Tunnel: 99, Binds: []netip.Addr{loopback}, Ports: []uint16{k.public.Port()}, Route: ToPool{Pool: linkPool, Wire: linkWire}})
	if ev.Err != nil {
		t.Fatal(ev.Err)
	}
	again := dialTCP(t, k.public)
	say(t, again, "on the same port")
	hear(t, s.take(t), "on the same port")
	reset(t, again)
	awaitThat(k.server.fixture, func(ev StreamEnded) bool { return ev.Tunnel == 99 })

	closeWrite(t, visitor)
	wantRest(t, service, "")
	closeWrite(t, service)
	wantRest(t, visitor, "")
	awaitThat(k.server.fixture, func(ev StreamEnded) bool { return ev.Tunnel == linkTunnel && ev.Reason == Done })
}

func TestUnlistenUnknown(t *testing.T) {
	f := startEngine(t, 2, DefaultSettings(), nil)
	f.Submit(Unlisten{Tunnel: 5})
	await[Unlistened](f)
	f.passed()
	if n := total[Unlistened](f); n != 1 {
		t.Fatalf("answered %d times", n)
	}
}

func TestReroute(t *testing.T) {
	serveText := func(text string) Target {
		return localServer(t, func(c net.Conn) {
			_, _ = c.Write([]byte(text))
			c.Close()
		}).target
	}
	f := startEngine(t, 2, DefaultSettings(), nil)
	at := f.listen(1, ToTarget{Target: serveText("old")})
	wantRest(t, dialTCP(t, at), "old")
	f.Submit(Reroute{Tunnel: 1, Route: ToTarget{Target: serveText("new")}})
	f.passed()
	for range 10 {
		wantRest(t, dialTCP(t, at), "new")
	}
}

func TestSubmitAfterRun(t *testing.T) {
	before := descriptors(t)
	f := startEngine(t, 2, DefaultSettings(), nil)
	f.stop()
	for _, c := range []Command{
		Listen{Tunnel: 1, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: ToPreface{}},
		Unlisten{Tunnel: 1},
		Reroute{},
		OpenPool{Pool: 1},
		ClosePool{Pool: 1},
		Park{},
		Close{},
		Close{Conn: ^ConnID(0)},
		Dial{},
		SetTarget{},
		DropTarget{},
		Configure{},
	} {
		f.Submit(c)
	}
	eventually(t, "descriptors are back", func() bool { return descriptors(t) <= before })
}
