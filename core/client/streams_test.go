package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/wire"
)

// echo is a LocalServer that answers each line with its own name before it.
func echo(t *testing.T, name string) string {
	t.Helper()
	l := listen(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			_, _ = fmt.Fprintf(conn, "%s: %s", name, line)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return l.Addr().String()
}

// converse starts a stream of a tunnel on an open ProxyConn, sends a line, and
// gives what came back until FIN, or the code of RESET.
func converse(t *testing.T, conn net.Conn, seq uint16, tunnel uint32) (string, frame.ResetCode) {
	t.Helper()
	const line = "hello\n"
	b := make([]byte, frame.HeaderSize+frame.StartSize+frame.HeaderSize, 256)
	frame.PutStart(b, seq, frame.Stream{
		Tunnel: tunnel, Source: netip.MustParseAddrPort("192.0.2.9:999"), Destination: netip.MustParseAddrPort("192.0.2.1:80"),
	})
	frame.Header{Type: frame.Data, Seq: seq, Length: uint32(len(line))}.Put(b[frame.HeaderSize+frame.StartSize:])
	b = append(b, line...)
	fin := make([]byte, frame.HeaderSize)
	frame.Header{Type: frame.Fin, Seq: seq}.Put(fin)
	if _, err := conn.Write(append(b, fin...)); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for {
		h, payload := readFrame(t, conn)
		switch h.Type {
		case frame.Data:
			got.Write(payload)
		case frame.Fin:
			return got.String(), 0
		case frame.Reset:
			code, err := frame.ParseReset(payload)
			if err != nil {
				t.Fatal(err)
			}
			frame.PutReset(b[:frame.HeaderSize+frame.ResetSize], seq, frame.ResetAcknowledge)
			if _, err := conn.Write(b[:frame.HeaderSize+frame.ResetSize]); err != nil {
				t.Fatal(err)
			}
			return "", code
		default:
			t.Fatalf("the client sent %v", h.Type)
		}
	}
}

// connected brings a client so far that it serves the tunnel "web" with id 5
// on one ProxyConn.
func connected(t *testing.T, s *fakeServer, r *running) (*fakeControl, net.Conn) {
	t.Helper()
	k := s.login().welcome(nil)
	k.registers("web")
	k.accept("web", 5, "127.0.0.1:2001")
	k.send((&wire.NeedProxyConn{N: 1}).ServerMessage())
	conn, p, sealed := s.proxyConn()
	if want := (frame.Preface{Mode: frame.Plain, ControlID: 77, Epoch: 1, ProxyID: 1}); p != want {
		t.Fatalf("preface %+v, want %+v", p, want)
	}
	if err := p.Verify(sealed, frame.NewKey(sessionKey(1)), frame.Exporter{}); err != nil {
		t.Fatal(err)
	}
	ready(t, conn, p, sessionKey(1))
	r.shows("web 127.0.0.1:2001")
	return k, conn
}

func TestStreams(t *testing.T) {
	s := newFakeServer(t)
	o := s.options(Tunnel{Name: "web", Network: "tcp", Address: echo(t, "one")})
	r := start(t, o, nil)
	k, conn := connected(t, s, r)
	move := func(tunnels ...Tunnel) {
		t.Helper()
		o.Reloadable.Tunnels = tunnels
		if err := r.Reconfigure(o.Reloadable); err != nil {
			t.Fatal(err)
		}
	}
	seq := uint16(0)
	// A change takes a moment to reach the loops; until then what was before
	// is served.
	expect := func(tunnel uint32, want string, code frame.ResetCode, before string) {
		t.Helper()
		for {
			seq++
			got, gotCode := converse(t, conn, seq, tunnel)
			if got == want && gotCode == code {
				return
			}
			if got != before || gotCode != 0 {
				t.Fatalf("stream %d gave %q and %v, want %q and %v", seq, got, gotCode, want, code)
			}
		}
	}
	expect(5, "one: hello\n", 0, "never")
	expect(6, "", frame.ResetTunnel, "never")

	// The LocalServer moves: the listener stays, new streams go to the new one.
	move(Tunnel{Name: "web", Network: "tcp", Address: echo(t, "two")})
	expect(5, "two: hello\n", 0, "one: hello\n")

	// It goes down: each visitor hears of it, the conn stays.
	down := listen(t)
	_ = down.Close()
	move(Tunnel{Name: "web", Network: "tcp", Address: down.Addr().String()})
	expect(5, "", frame.ResetDial, "two: hello\n")
	r.logs.Await(t, "check that the service runs and listens there")
	r.logs.Await(t, "address="+down.Addr().String())

	// Without a control connection visitors are served, and changes made.
	k.drop()
	k = s.login()
	expect(5, "", frame.ResetDial, "never")
	third := Tunnel{Name: "web", Network: "tcp", Address: echo(t, "three")}
	move(third)
	k.welcome(func(w *wire.Welcome) {
		w.Resumed = true
		w.Tunnels = []*wire.TunnelRegistered{{Name: "web", Id: 5, PublicAddresses: []string{"127.0.0.1:2001"}}}
	})
	k.quiet()
	for got := ""; got != "three: hello\n"; seq++ {
		got, _ = converse(t, conn, seq+1, 5)
	}

	move()
	k.closes("web")
	k.quiet()
	expect(5, "", frame.ResetTunnel, "three: hello\n")
}

// With a new session the old pool closes.
func TestNewSessionClosesPool(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(local("web")), nil)
	k, conn := connected(t, s, r)
	k.drop()
	k = s.login().welcome(func(w *wire.Welcome) { w.ControlId = 78 })
	k.registers("web")
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("an idle conn of the old pool is still used")
	}
	k.send((&wire.NeedProxyConn{N: 2}).ServerMessage())
	for id := range uint64(2) {
		if _, p, _ := s.proxyConn(); p.ControlID != 78 || p.Epoch != 2 {
			t.Errorf("preface %d: %+v, want one of the new session", id, p)
		}
	}
}

func TestForgedReady(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(local("web")), nil)
	k := s.login().welcome(nil)
	k.send((&wire.NeedProxyConn{N: 1}).ServerMessage())
	conn, p, _ := s.proxyConn()
	ready(t, conn, p, sessionKey(3))
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes on a conn with a forged READY", n)
	}
	r.logs.Await(t, "does not know the session key")
	k.send((&wire.NeedProxyConn{N: 1}).ServerMessage())
	if _, p, _ := s.proxyConn(); p.ProxyID != 2 {
		t.Errorf("proxy id %d, want one that was not used", p.ProxyID)
	}
}

func TestProxyPortClosed(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(local("web")), nil)
	k := s.login().welcome(nil)
	_ = s.proxy.Close()
	k.send((&wire.NeedProxyConn{N: 3}).ServerMessage())
	r.logs.Await(t, "connection refused: "+dialAdvice(syscall.ECONNREFUSED))
	k.registers("web")
	k.quiet()
}

// moving is a resolver whose answer the test changes.
type moving struct{ answer atomic.Pointer[[]netip.Addr] }

func (m *moving) lookup(context.Context, string, string) ([]netip.Addr, error) {
	if a := m.answer.Load(); a != nil {
		return slices.Clone(*a), nil
	}
	return nil, errors.New("no such host")
}

func TestNamesOfLocalServers(t *testing.T) {
	s := newFakeServer(t)
	_, port, _ := net.SplitHostPort(echo(t, "named"))
	var dns moving
	r := start(t, s.options(Tunnel{Name: "web", Network: "tcp", Address: net.JoinHostPort("app.lan", port)}), func(c *Client) {
		c.lookup = dns.lookup
		c.timing.resolve = time.Millisecond
	})
	_, conn := connected(t, s, r) // registered although the name is not known
	if _, code := converse(t, conn, 1, 5); code != frame.ResetDial {
		t.Errorf("reset %v, want %v", code, frame.ResetDial)
	}
	dns.answer.Store(&[]netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")})
	seq := uint16(2)
	for got := ""; got != "named: hello\n"; seq++ {
		got, _ = converse(t, conn, seq, 5)
	}
	dns.answer.Store(nil) // the last good answer stays
	r.logs.Await(t, "app.lan")
	if got, _ := converse(t, conn, seq, 5); got != "named: hello\n" {
		t.Errorf("got %q after the name was lost", got)
	}
}

// A tunnel is registered only when its name has been looked up, and holds up no
// other.
func TestRegisterWaitsForName(t *testing.T) {
	s := newFakeServer(t)
	release := make(chan struct{})
	start(t, s.options(Tunnel{Name: "named", Network: "tcp", Address: "app.lan:80"}, local("literal")), func(c *Client) {
		c.lookup = func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		}
	})
	k := s.login().welcome(nil)
	k.registers("literal")
	k.quiet()
	close(release)
	k.registers("named")
}
