package relay

import (
	"bytes"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

const (
	linkPool   PoolID   = 7
	linkTunnel TunnelID = 3
	proxyPort  TunnelID = 1
	linkWire            = 5 // the tunnel's id in START
)

// linkKey is the session key of all tests.
var linkKey = bytes.Repeat([]byte{9}, 32)

type linkOptions struct {
	loops     int
	settings  Settings
	conns     int           // ProxyConns opened before the test goes on
	supply    bool          // open what the server says it needs
	maxIdle   int           // 0: no bound
	maxConns  int           // of the tunnel
	heartbeat time.Duration // 0: none
	target    Target
}

func (o linkOptions) defaults() linkOptions {
	o.loops = max(o.loops, 1)
	if o.settings == (Settings{}) {
		o.settings = DefaultSettings()
	}
	if o.maxIdle == 0 {
		o.maxIdle = -1
	}
	return o
}

// near is a server engine with a proxy port and one tunnel. It parks every conn
// that proves the key.
type near struct {
	*fixture
	public netip.AddrPort
	proxy  netip.AddrPort
}

func startNear(tb testing.TB, o linkOptions, react func(Event)) *near {
	tb.Helper()
	o = o.defaults()
	n := &near{}
	n.fixture = startEngine(tb, o.loops, o.settings, func(ev Event) {
		if p, ok := ev.(PrefaceReceived); ok {
			n.admit(p)
		}
		if react != nil {
			react(ev)
		}
	})
	n.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: o.maxIdle, Heartbeat: o.heartbeat})
	n.proxy = n.listen(proxyPort, ToPreface{})
	n.public = n.listen(linkTunnel, ToPool{Pool: linkPool, Wire: linkWire, MaxConns: o.maxConns})
	return n
}

// admit does what the control plane of a server does with a preface.
func (n *near) admit(ev PrefaceReceived) {
	p, err := frame.ParsePreface(ev.Preface)
	if err != nil || p.Verify(ev.Preface, frame.NewKey(linkKey), frame.Exporter{}) != nil {
		n.Submit(Close{Conn: ev.Conn})
		return
	}
	n.Submit(Park{Conn: ev.Conn, Pool: linkPool, Ready: p.Ready(frame.NewKey(linkKey), frame.Exporter{})})
}

// prefaceOf is the preface of the n-th conn of the test's client.
func prefaceOf(n uint64) frame.Preface {
	return frame.Preface{Mode: frame.Plain, ControlID: 1, Epoch: 1, ProxyID: n}
}

// far is a client engine with one target.
type far struct {
	*fixture
	dialled atomic.Uint64
	door    net.Listener // where it finds servers that a test plays by hand
}

func startFar(tb testing.TB, o linkOptions) *far {
	tb.Helper()
	return startFarThat(tb, o, nil)
}

func startFarThat(tb testing.TB, o linkOptions, react func(Event)) *far {
	tb.Helper()
	o = o.defaults()
	f := &far{fixture: startEngine(tb, o.loops, o.settings, react)}
	f.Submit(OpenPool{Pool: linkPool, Side: ClientSide, MaxIdle: -1, Heartbeat: o.heartbeat})
	f.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: o.target})
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	f.door = door
	tb.Cleanup(func() { door.Close() })
	return f
}

func (f *far) dial(to netip.AddrPort) (ref uint64) {
	ref = f.dialled.Add(1)
	p := prefaceOf(ref)
	f.Submit(Dial{Pool: linkPool, Ref: ref, Address: to, Preface: p.Seal(frame.NewKey(linkKey), frame.Exporter{}), Ready: p.Ready(frame.NewKey(linkKey), frame.Exporter{})})
	return ref
}

// link is a server engine and a client engine with one tunnel between them.
type link struct {
	server *near
	client *far
	public netip.AddrPort
}

func startLink(tb testing.TB, o linkOptions) *link {
	tb.Helper()
	k := &link{client: startFar(tb, o)}
	supply := func(ev Event) {
		if need, ok := ev.(Needed); ok && o.supply {
			for range need.Waiting {
				k.client.dial(k.server.proxy)
			}
		}
	}
	k.server = startNear(tb, o, supply)
	k.public = k.server.public
	k.server.passed() // supply, on the reader's goroutine, sees k.server from here on
	k.open(o.conns)
	return k
}

// open brings up so many ProxyConns more.
func (k *link) open(conns int) {
	k.server.tb.Helper()
	for range conns {
		k.client.dial(k.server.proxy)
	}
	for range conns {
		await[ConnOpened](k.client.fixture)
		await[ConnOpened](k.server.fixture)
	}
}

// ended wants the next stream to end on both sides, for these reasons.
func (k *link) ended(server, client Reason) (at, from StreamEnded) {
	k.server.tb.Helper()
	at, from = await[StreamEnded](k.server.fixture), await[StreamEnded](k.client.fixture)
	if at.Reason != server || from.Reason != client {
		k.server.tb.Fatalf("ended with %q and %q, want %q and %q", at.Reason, from.Reason, server, client)
	}
	return at, from
}

// route is a way from a PublicClient to a LocalServer.
type route struct {
	public  netip.AddrPort
	local   *local
	engines []*fixture
}

// eachRoute runs a test over a plain forwarder and over framed links.
func eachRoute(t *testing.T, set Settings, run func(t *testing.T, r route)) {
	t.Helper()
	eachRouteTo(t, set, localServer, run)
}

func eachRouteTo(t *testing.T, set Settings, server func(testing.TB, func(net.Conn)) *local, run func(t *testing.T, r route)) {
	t.Helper()
	if set == (Settings{}) {
		set = DefaultSettings()
	}
	t.Run("forwarder", func(t *testing.T) {
		s := server(t, nil)
		f := startEngine(t, 2, set, nil)
		run(t, route{public: f.listen(linkTunnel, ToTarget{Target: s.target}), local: s, engines: []*fixture{f}})
	})
	for name, loops := range map[string]int{"link of one loop": 1, "link of two loops": 2} {
		t.Run(name, func(t *testing.T) {
			s := server(t, nil)
			k := startLink(t, linkOptions{loops: loops, settings: set, conns: loops, supply: true, target: s.target})
			run(t, route{public: k.public, local: s, engines: []*fixture{k.server.fixture, k.client.fixture}})
		})
	}
}

// connect gives both ends of a new stream.
func (r route) connect(tb testing.TB) (visitor, service *net.TCPConn) {
	tb.Helper()
	visitor = dialTCP(tb, r.public)
	return visitor, r.local.take(tb)
}

// ended wants a stream to end on every engine with these bytes.
func (r route) ended(tb testing.TB, up, down int) {
	tb.Helper()
	for i, f := range r.engines {
		ev := await[StreamEnded](f)
		if ev.Reason != Done || ev.Up != uint64(up) || ev.Down != uint64(down) {
			tb.Errorf("engine %d: %+v, want done, %d up, %d down", i, ev, up, down)
		}
	}
}
