package relay

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 8)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

var loopback = netip.MustParseAddr("127.0.0.1")

// fixture is a running engine whose events go to handlers and are kept.
type fixture struct {
	*Engine
	t      testing.TB
	events chan Event
}

// startEngine runs an engine until the test ends, and checks then that Run
// returned and left no descriptor.
func startEngine(t testing.TB, loops int, set Settings) *fixture {
	t.Helper()
	f := &fixture{Engine: New(Options{Loops: loops, Settings: set}), t: t, events: make(chan Event, 1<<14)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	go func() {
		for batch := range f.Events() {
			for _, ev := range batch {
				select {
				case f.events <- ev:
				default:
				}
			}
		}
		close(f.events)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("engine ended with %v", err)
		}
	})
	return f
}

// await gives the next event of type E, dropping others.
func await[E Event](f *fixture) E {
	f.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case ev, ok := <-f.events:
			if !ok {
				f.t.Fatal("engine ended")
			}
			if e, ok := ev.(E); ok {
				return e
			}
		case <-limit:
			var e E
			f.t.Fatalf("no event %T in time", e)
		}
	}
}

func (f *fixture) listen(tunnel TunnelID, r Route) netip.AddrPort {
	f.t.Helper()
	f.Submit(Listen{Tunnel: tunnel, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: r})
	ev := await[Listening](f)
	if ev.Err != nil {
		f.t.Fatal(ev.Err)
	}
	return ev.Addresses[0]
}

// link is a server engine and a client engine with one tunnel between them.
type link struct {
	server, client *fixture
	public         netip.AddrPort
	proxy          netip.AddrPort
	key            []byte
	dialled        uint64
}

const (
	linkPool   PoolID   = 7
	linkTunnel TunnelID = 3
	proxyPort  TunnelID = 1
)

type linkOptions struct {
	loops     int
	settings  Settings
	conns     int // ProxyConns opened before the test goes on
	maxIdle   int
	heartbeat time.Duration
	target    Target
}

func startLink(t testing.TB, o linkOptions) *link {
	t.Helper()
	if o.settings == (Settings{}) {
		o.settings = DefaultSettings()
	}
	k := &link{server: startEngine(t, o.loops, o.settings), client: startEngine(t, o.loops, o.settings), key: bytes.Repeat([]byte{9}, 32)}
	if o.maxIdle == 0 {
		o.maxIdle = -1
	}
	k.server.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: o.maxIdle, Heartbeat: o.heartbeat})
	k.client.Submit(OpenPool{Pool: linkPool, Side: ClientSide, MaxIdle: -1, Heartbeat: o.heartbeat})
	k.client.Submit(SetTarget{Pool: linkPool, Wire: 5, Tunnel: linkTunnel, Target: o.target})
	k.proxy = k.server.listen(proxyPort, ToPreface{})
	k.public = k.server.listen(linkTunnel, ToPool{Pool: linkPool, Wire: 5})
	for range o.conns {
		k.open(t)
	}
	return k
}

// open brings one ProxyConn up.
func (k *link) open(t testing.TB) {
	t.Helper()
	k.dialled++
	p := frame.Preface{Mode: frame.Plain, ControlID: 1, Epoch: 1, ProxyID: k.dialled}
	k.client.Submit(Dial{Pool: linkPool, Ref: k.dialled, Address: k.proxy, Preface: p.Seal(k.key, frame.Exporter{}), Ready: p.Ready(k.key, frame.Exporter{})})
	ev := await[PrefaceReceived](k.server)
	got, err := frame.ParsePreface(ev.Preface)
	if err != nil || got.Verify(ev.Preface, k.key, frame.Exporter{}) != nil {
		t.Fatalf("preface %v, %v", got, err)
	}
	k.server.Submit(Park{Conn: ev.Conn, Pool: linkPool, Ready: got.Ready(k.key, frame.Exporter{})})
	await[ConnOpened](k.server)
	if up := await[ConnOpened](k.client); up.Ref != k.dialled {
		t.Fatalf("opened %d, want %d", up.Ref, k.dialled)
	}
}

// serve answers every connection of a fresh loopback listener.
func serve(t testing.TB, handle func(net.Conn)) Target {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return Target{Addresses: []Address{{TCP: ln.Addr().(*net.TCPAddr).AddrPort()}}}
}

func dialTCP(t testing.TB, a netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(a))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// descriptors counts the open descriptors of this process.
func descriptors(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
