package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 8)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen; nothing is ever
// expected to take that long.
const patience = 20 * time.Second

// fakeServer is a server whose every answer is written in the test.
type fakeServer struct {
	t      *testing.T
	id     *identity.ServerIdentity
	ctl    net.Listener
	proxy  net.Listener
	logins chan *fakeControl
}

// fakeControl is the server's end of a CtlConn after Hello.
type fakeControl struct {
	t        *testing.T
	server   *fakeServer
	conn     *tls.Conn
	reader   *wire.Reader
	writer   *wire.Writer
	hello    *wire.Hello
	exporter []byte
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	id, err := identity.LoadOrCreateServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &fakeServer{t: t, id: id, ctl: listen(t), proxy: listen(t), logins: make(chan *fakeControl)}
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := s.ctl.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() { s.admit(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = s.ctl.Close()
		tasks.Wait()
	})
	return s
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// admit reads the Hello of a connection; one that brings none is closed.
func (s *fakeServer) admit(ctx context.Context, socket net.Conn) {
	conn := tls.Server(socket, identity.ServerTLS(s.id, wire.ALPN))
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	k := &fakeControl{t: s.t, server: s, conn: conn, reader: wire.NewReader(conn), writer: wire.NewWriter(conn)}
	m, err := k.reader.ReadClientMessage()
	if err != nil || m.Validate() != nil || m.GetHello() == nil {
		_ = socket.Close()
		return
	}
	k.hello = m.GetHello()
	state := conn.ConnectionState()
	k.exporter, _ = state.ExportKeyingMaterial(wire.ResumeExporterLabel, nil, wire.ResumeExporterSize)
	select {
	case s.logins <- k:
	case <-ctx.Done():
		_ = socket.Close()
	}
}

// login waits for the next Hello.
func (s *fakeServer) login() *fakeControl {
	s.t.Helper()
	select {
	case k := <-s.logins:
		s.t.Cleanup(func() { _ = k.conn.NetConn().Close() })
		return k
	case <-time.After(patience):
		s.t.Fatal("the client did not log in")
		return nil
	}
}

// sessionKey differs by epoch, as that of a real server.
func sessionKey(epoch uint64) []byte {
	return bytes.Repeat([]byte{byte(epoch)}, wire.SessionKeySize)
}

// welcome admits the client; change may alter the Welcome.
func (k *fakeControl) welcome(change func(*wire.Welcome)) *fakeControl {
	k.t.Helper()
	_, port, _ := net.SplitHostPort(k.server.proxy.Addr().String())
	w := &wire.Welcome{
		Version: wire.Version, ControlId: 77, Epoch: k.hello.GetEpoch(), SessionKey: sessionKey(k.hello.GetEpoch()),
		HeartbeatMs: 60_000, ProxyAddress: ":" + port, Mode: wire.ModePlain, PoolMax: 256,
	}
	if change != nil {
		change(w)
	}
	k.send(w.ServerMessage())
	return k
}

func (k *fakeControl) send(m *wire.ServerMessage) {
	k.t.Helper()
	if err := k.writer.WriteServerMessage(m); err != nil {
		k.t.Fatalf("server: %v", err)
	}
}

// next gives the client's next message.
func (k *fakeControl) next() *wire.ClientMessage {
	k.t.Helper()
	_ = k.conn.SetReadDeadline(time.Now().Add(patience))
	m, err := k.reader.ReadClientMessage()
	if err != nil {
		k.t.Fatalf("server: %v", err)
	}
	if err := m.Validate(); err != nil {
		k.t.Fatalf("the client sent an invalid message: %v", err)
	}
	return m
}

// registers expects a RegisterTunnel for name.
func (k *fakeControl) registers(name string) *wire.TunnelSpec {
	k.t.Helper()
	m := k.next()
	if m.GetRegisterTunnel() == nil || m.GetRegisterTunnel().GetSpec().GetName() != name {
		k.t.Fatalf("got %v, want RegisterTunnel of %s", m, name)
	}
	return m.GetRegisterTunnel().GetSpec()
}

// closes expects a CloseTunnel for name.
func (k *fakeControl) closes(name string) {
	k.t.Helper()
	if m := k.next(); m.GetCloseTunnel() == nil || m.GetCloseTunnel().GetName() != name {
		k.t.Fatalf("got %v, want CloseTunnel of %s", m, name)
	}
}

// accept confirms a tunnel.
func (k *fakeControl) accept(name string, id uint32, addresses ...string) {
	k.t.Helper()
	k.send((&wire.TunnelRegistered{Name: name, Id: id, PublicAddresses: addresses}).ServerMessage())
}

func (k *fakeControl) reject(name string, code wire.Code) {
	k.t.Helper()
	k.send((&wire.TunnelRejected{Name: name, Refusal: wire.NewRefusal(code, "")}).ServerMessage())
}

func (k *fakeControl) goodbye(code wire.Code) {
	k.t.Helper()
	k.send(wire.NewGoodbye(wire.NewRefusal(code, ""), 0).ServerMessage())
	k.drop()
}

// drop ends the connection without a word.
func (k *fakeControl) drop() { _ = k.conn.NetConn().Close() }

// quiet proves that the client sent nothing: the answer to a Ping comes next.
func (k *fakeControl) quiet() {
	k.t.Helper()
	k.send((&wire.Ping{Nonce: 4711}).ServerMessage())
	if m := k.next(); m.GetPong().GetNonce() != 4711 {
		k.t.Fatalf("got %v, want only the answer to a Ping", m)
	}
}

// proxyConn accepts a ProxyConn and reads its preface.
func (s *fakeServer) proxyConn() (net.Conn, frame.Preface, [frame.PrefaceSize]byte) {
	s.t.Helper()
	_ = s.proxy.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := s.proxy.Accept()
	if err != nil {
		s.t.Fatalf("no proxy connection came: %v", err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	var sealed [frame.PrefaceSize]byte
	if _, err := io.ReadFull(conn, sealed[:]); err != nil {
		s.t.Fatalf("read preface: %v", err)
	}
	p, err := frame.ParsePreface(sealed)
	if err != nil {
		s.t.Fatal(err)
	}
	return conn, p, sealed
}

// ready answers a preface with READY under key.
func ready(t *testing.T, conn net.Conn, p frame.Preface, key []byte) {
	t.Helper()
	b := make([]byte, frame.HeaderSize, frame.HeaderSize+frame.ReadySize)
	frame.Header{Type: frame.Ready, Length: frame.ReadySize}.Put(b)
	mac := p.Ready(frame.NewKey(key), frame.Exporter{})
	if _, err := conn.Write(append(b, mac[:]...)); err != nil {
		t.Fatal(err)
	}
}

// running is a client under test.
type running struct {
	*Client
	t     *testing.T
	ready chan string // "NAME ADDRESS"
	logs  *logtest.Output
	ended chan error
	stop  context.CancelFunc
}

// options are those of a client of s, with two tunnels that nobody uses unless
// the test names others.
func (s *fakeServer) options(tunnels ...Tunnel) Options {
	pin := s.id.Pin()
	return Options{
		Name: "office", Version: "test", Loops: 1,
		Reloadable: Reloadable{
			Servers: []string{s.ctl.Addr().String()},
			Trust:   identity.Trust{Pins: []identity.Pin{pin}}, TokenName: "token", Secret: identity.TokenSecret{1, 2, 3},
			PoolMax: 16, Settings: relay.DefaultSettings(), Tunnels: tunnels,
		},
	}
}

// start runs a client until the test ends. Back-off draws nothing, so that it
// tries again at once; change may alter the client before it runs.
func start(t *testing.T, o Options, change func(*Client)) *running {
	t.Helper()
	r := &running{t: t, ready: make(chan string, 64), logs: new(logtest.Output), ended: make(chan error, 1)}
	o.Log = r.logs.Logger()
	o.Ready = func(tunnel, address string) { r.ready <- tunnel + " " + address }
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Client = c
	c.timing.draw = func(int64) int64 { return 0 }
	c.timing.register = time.Millisecond
	c.timing.superseded = time.Millisecond
	c.timing.refused = time.Millisecond
	c.timing.farewell = 50 * time.Millisecond
	if change != nil {
		change(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		_ = r.result()
		if t.Failed() {
			t.Logf("log of the client:\n%s", r.logs)
		}
	})
	return r
}

// result waits for the end of Run. It can be called again.
func (r *running) result() error {
	r.t.Helper()
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		r.t.Errorf("the client does not end:\n%s", buf[:runtime.Stack(buf, true)])
		return os.ErrDeadlineExceeded
	}
}

// shows expects the next ready line.
func (r *running) shows(want string) {
	r.t.Helper()
	select {
	case got := <-r.ready:
		if got != want {
			r.t.Fatalf("ready: %q, want %q", got, want)
		}
	case <-time.After(patience):
		r.t.Fatalf("nothing is ready, want %q", want)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// readFrame reads a frame and its payload.
func readFrame(t *testing.T, conn net.Conn) (frame.Header, []byte) {
	t.Helper()
	var b [frame.HeaderSize]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		t.Fatalf("read frame: %v", err)
	}
	h, err := frame.ParseHeader(b[:])
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(conn, payload); err != nil {
		t.Fatalf("read frame: %v", err)
	}
	return h, payload
}
