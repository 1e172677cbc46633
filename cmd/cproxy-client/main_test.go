//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 8)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// server admits every client with the right secret, or refuses all with code,
// and opens every tunnel.
type server struct {
	join  identity.Join
	code  wire.Code // 0 admits
	names chan string
	proxy net.Listener
}

func startServer(t *testing.T, code wire.Code) *server {
	t.Helper()
	id, err := identity.LoadOrCreateServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pin := id.Pin()
	s := &server{
		join: identity.Join{Name: "token", Secret: identity.NewTokenSecret(), Address: l.Addr().String(), Pin: &pin},
		code: code, names: make(chan string, 16),
	}
	if s.proxy, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	tasks.Go(s.park)
	tasks.Go(func() {
		for {
			socket, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
				defer stop()
				defer socket.Close()
				s.serve(tls.Server(socket, identity.ServerTLS(id, wire.ALPN)))
			})
		}
	})
	t.Cleanup(func() { cancel(); _ = l.Close(); _ = s.proxy.Close(); tasks.Wait() })
	return s
}

// park answers each preface with READY, and closes the conn.
func (s *server) park() {
	key := frame.NewKey(make([]byte, wire.SessionKeySize))
	for {
		conn, err := s.proxy.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		var sealed [frame.PrefaceSize]byte
		_, _ = io.ReadFull(conn, sealed[:])
		if p, err := frame.ParsePreface(sealed); err == nil {
			mac := p.Ready(key, frame.Exporter{})
			b := make([]byte, frame.HeaderSize, frame.HeaderSize+frame.ReadySize)
			frame.Header{Type: frame.Ready, Length: frame.ReadySize}.Put(b)
			_, _ = conn.Write(append(b, mac[:]...))
		}
		_ = conn.Close()
	}
}

func (s *server) serve(conn net.Conn) {
	r, w := wire.NewReader(conn), wire.NewWriter(conn)
	m, err := r.ReadClientMessage()
	if err != nil {
		return
	}
	hello := m.GetHello()
	s.names <- hello.GetName()
	if code := s.code; code != 0 || !bytes.Equal(hello.GetCredential().GetSecret(), s.join.Secret[:]) {
		if code == 0 {
			code = wire.CodeBadCredential
		}
		_ = w.WriteServerMessage(wire.NewGoodbye(wire.NewRefusal(code, ""), 0).ServerMessage())
		return
	}
	_ = w.WriteServerMessage((&wire.Welcome{
		Version: wire.Version, ControlId: 1, Epoch: hello.GetEpoch(), SessionKey: make([]byte, wire.SessionKeySize),
		HeartbeatMs: 60_000, ProxyAddress: s.proxy.Addr().String(), Mode: wire.ModePlain,
	}).ServerMessage())
	for id := uint32(1); ; id++ {
		m, err := r.ReadClientMessage()
		if err != nil || m.GetGoodbye() != nil {
			return
		}
		if spec := m.GetRegisterTunnel().GetSpec(); spec != nil {
			port := spec.GetPortFirst()
			if port == 0 {
				port = 2000 + id
			}
			_ = w.WriteServerMessage((&wire.TunnelRegistered{
				Name: spec.GetName(), Id: id, PublicAddresses: []string{fmt.Sprintf("[::]:%d", port)},
			}).ServerMessage())
		}
	}
}

// client gives the name of the next client that logged in.
func (s *server) client(t *testing.T) string {
	t.Helper()
	select {
	case name := <-s.names:
		return name
	case <-time.After(patience):
		t.Fatal("no client logged in")
		return ""
	}
}

// execute runs a command that ends by itself.
func execute(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, problems bytes.Buffer
	root := newRoot()
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	code = cli.Main(root, args, &problems)
	return code, out.String(), problems.String()
}

// write makes a file in a folder of its own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// config is a configuration that logs in to s.
func (s *server) config(more string) string {
	return configuration(s.join) + more
}

func tunnel(name string, port int) string {
	return fmt.Sprintf("[[tunnel]]\nname = %q\nlocal = 8080\nremote_port = %d\n", name, port)
}

func TestVersionCommand(t *testing.T) {
	code, out, _ := execute("", "version")
	if code != cli.ExitOK || !strings.HasPrefix(out, "cproxy-client ") || !strings.Contains(out, "protocol 1") {
		t.Errorf("exit code %d: %q", code, out)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{{}, {"ruin"}, {"tcp"}, {"tcp", "1", "2"}, {"run", "--nope"}, {"run", "x"}, {"join", "a", "b"}} {
		if code, _, stderr := execute("", args...); code != cli.ExitUsage || !strings.HasPrefix(stderr, "error: ") {
			t.Errorf("%q: exit code %d: %s", args, code, stderr)
		}
	}
}
