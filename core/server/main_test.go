package server

import (
	"crypto/tls"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 8)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

var loopback = netip.MustParseAddr("127.0.0.1")

// serverTLS is one identity for all tests.
var serverTLS = sync.OnceValue(func() *tls.Config {
	dir, err := os.MkdirTemp("", "identity")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	id, err := identity.LoadOrCreateServer(dir)
	if err != nil {
		panic(err)
	}
	return identity.ServerTLS(id, wire.ALPN)
})

func clientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{wire.ALPN}, MinVersion: tls.VersionTLS13}
}

func testPolicy() Policy {
	return Policy{
		PublicBind: []netip.Addr{loopback}, Ports: []identity.PortRange{{First: 1024, Last: 65535}},
		MaxConns: 100, PoolMax: 8, Grace: 30 * time.Second, Heartbeat: 10 * time.Second,
		Relay: relay.DefaultSettings(), HandshakeTimeout: defaultHandshakeTimeout,
	}
}

func code(t *testing.T, r *wire.Refusal, want wire.Code) {
	t.Helper()
	if r.GetCode() != want {
		t.Fatalf("refused with %v, want %v", r, want)
	}
	if r.GetReason() == "" {
		t.Errorf("refusal %v has no reason", r.GetCode())
	}
}
