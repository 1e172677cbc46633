//go:build linux

package fleet

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/server"
	"github.com/cproxy/cproxy/core/wire"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 16)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

// harbour is a real server for a fleet.
type harbour struct {
	options Options
	server  *server.Server
	policy  server.Policy
	public  netip.Addr
	revoked chan []string
}

func openHarbour(t *testing.T, grants identity.Grants) *harbour {
	t.Helper()
	dir, pid := t.TempDir(), os.Getpid()
	id, err := identity.LoadOrCreateServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tokens.toml")
	secret, err := identity.AddToken(path, "bench", grants)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	h := &harbour{
		// An address of this process's own: ports go by the names of tunnels.
		public:  netip.AddrFrom4([4]byte{127, byte(1 + pid>>16), byte(pid >> 8), byte(pid)}),
		revoked: make(chan []string),
	}
	h.policy = server.Policy{
		PublicBind: []netip.Addr{h.public}, Ports: []identity.PortRange{{First: 1024, Last: 65535}},
		PoolMax: 8, Grace: 30 * time.Second, Heartbeat: 20 * time.Millisecond, Relay: relay.DefaultSettings(),
	}
	ready := make(chan netip.AddrPort, 1)
	h.server, err = server.New(server.Options{
		CtlListen: "127.0.0.1:0", ProxyListen: "127.0.0.1:0", TLS: identity.ServerTLS(id, wire.ALPN), Loops: 2, Policy: h.policy,
		Secret: [32]byte{3}, Authenticator: server.Tokens(identity.NewProvider(path, log)), Revoked: h.revoked, Version: "test", Log: log,
		Ready: func(ctl, _ netip.AddrPort) { ready <- ctl },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	pin := id.Pin()
	h.options = Options{
		Join:    identity.Join{Name: "bench", Secret: secret, Address: (<-ready).String(), Pin: &pin},
		Clients: 20, Tunnels: 3, AtOnce: 4, Limit: 30 * time.Second, Settle: time.Millisecond, Rest: time.Millisecond,
	}
	return h
}

// watcher is a Probe that does something while the fleet rests.
type watcher struct {
	resting func() error
	order   []string
}

func (w *watcher) Before() error { w.order = append(w.order, "before"); return nil }

func (w *watcher) Begin() error {
	w.order = append(w.order, "begin")
	if w.resting != nil {
		return w.resting()
	}
	return nil
}

func (w *watcher) End() error { w.order = append(w.order, "end"); return nil }

func TestFleet(t *testing.T) {
	h := openHarbour(t, identity.Grants{})
	h.options.Rest = 200 * time.Millisecond // of heartbeats
	w := &watcher{}
	got, err := Run(t.Context(), h.options, w)
	if err != nil {
		t.Fatal(err)
	}
	if got.Logins != 20 || got.Registered != 60 || len(got.Refusals) != 0 || got.Failures+got.Lost+got.Resumed != 0 || got.Cold <= 0 {
		t.Errorf("%+v", got)
	}
	if order := strings.Join(w.order, " "); order != "before begin end" {
		t.Errorf("the probe was asked for %s", order)
	}
}

// relayed stands between the fleet and the server, and cuts what it relays.
type relayed struct {
	address string
	mu      sync.Mutex
	conns   []net.Conn
}

func newRelayed(t *testing.T, to string) *relayed {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relayed{address: ln.Addr().String()}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				_ = a.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, a, b)
			r.mu.Unlock()
			for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
				tasks.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					_ = way[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() { _ = ln.Close(); r.cut(); tasks.Wait() })
	return r
}

func (r *relayed) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

func TestFleetThatIsCutResumes(t *testing.T) {
	h := openHarbour(t, identity.Grants{})
	between := newRelayed(t, h.options.Join.Address)
	h.options.Join.Address = between.address
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f, err := newFleet(h.options)
	if err != nil {
		t.Fatal(err)
	}
	f.tally.giveUp = func(err error) { t.Errorf("gave up: %v", err) }
	if _, err := f.launch(ctx, 0, h.options.Clients); err != nil {
		t.Fatal(err)
	}
	between.cut()
	for deadline := time.Now().Add(30 * time.Second); f.tally.counts().Resumed < h.options.Clients; {
		if time.Now().After(deadline) {
			t.Fatalf("not all came back: %s", f.tally.progress())
		}
		time.Sleep(time.Millisecond)
	}
	if n := f.tally.counts(); n.Registered != 60 || len(n.Refusals) != 0 || n.Lost < h.options.Clients {
		t.Errorf("%+v", n)
	}
	cancel()
	f.tasks.Wait()
}

// Behind each tunnel is an echo, and its ProxyConns are used again.
func TestFleetCarriesStreams(t *testing.T) {
	h := openHarbour(t, identity.Grants{Ports: []identity.PortRange{{First: 20000, Last: 20000}}})
	h.options.Clients, h.options.Tunnels = 1, 1
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f, err := newFleet(h.options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.launch(ctx, 0, 1); err != nil {
		t.Fatal(err)
	}
	sent := strings.Repeat("all that is sent comes back; ", 3*chunk/29)
	for range 5 {
		visit(t, netip.AddrPortFrom(h.public, 20000), sent)
	}
	if n := f.tally.counts(); n.Streams != 5 || n.ProxyConns == 0 {
		t.Errorf("%+v", n)
	}
	cancel()
	f.tasks.Wait()
}

func visit(t *testing.T, to netip.AddrPort, sent string) {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	go func() {
		_, _ = io.WriteString(conn, sent)
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != sent {
		t.Fatalf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
}

func TestFleetRefused(t *testing.T) {
	for name, test := range map[string]struct {
		grants identity.Grants
		change func(o *Options)
		want   string
	}{
		"secret": {change: func(o *Options) { o.Join.Secret[0] ^= 1 }, want: "bad credential"},
		"tunnel": {grants: identity.Grants{MaxTunnels: 2}, want: "too many tunnels"},
		"pin":    {change: func(o *Options) { o.Join.Pin = &identity.Pin{}; o.Limit = 50 * time.Millisecond }, want: "pinned"},
		"nobody": {change: func(o *Options) { o.Join.Address = "127.0.0.1:1"; o.Limit = 50 * time.Millisecond }, want: "refused"},
		"format": {change: func(o *Options) { o.Join.Address = "nonsense" }, want: "use HOST:PORT"},
	} {
		t.Run(name, func(t *testing.T) {
			h := openHarbour(t, test.grants)
			if test.change != nil {
				test.change(&h.options)
			}
			if _, err := Run(t.Context(), h.options, &watcher{}); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestFleetEndsEarly(t *testing.T) {
	h := openHarbour(t, identity.Grants{})
	h.options.Rest = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Run(ctx, h.options, &watcher{resting: func() error { cancel(); return nil }}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	broken := errors.New("broken probe")
	if _, err := Run(t.Context(), h.options, &watcher{resting: func() error { return broken }}); !errors.Is(err, broken) {
		t.Errorf("broken probe: %v", err)
	}
}
