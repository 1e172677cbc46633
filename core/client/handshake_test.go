package client

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// A client that was given the wrong port says which one it may be.
func TestWrongPort(t *testing.T) {
	id, err := identity.LoadOrCreateServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	other, err := identity.LoadOrCreateServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const foreign = "speaks TLS but is not the control port of a cproxy-server"
	web := identity.ServerTLS(id, "h2")
	web.VerifyConnection = nil
	plain := web.Clone()
	plain.NextProtos = nil
	old := plain.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	tests := map[string]struct {
		serve func(conn net.Conn)
		says  string
		not   string
	}{
		"data port":                    {func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) }, "is this the data port? `server` wants the address of ctl_listen", foreign},
		"web server with protocols":    {handshaken(web), foreign, ""},
		"web server without protocols": {handshaken(plain), foreign, ""},
		"old web server":               {handshaken(old), foreign, ""},
		"another cproxy-server":        {handshaken(identity.ServerTLS(other, wire.ALPN)), "is pinned", foreign},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			var serving sync.WaitGroup
			serving.Go(func() {
				conn, err := l.Accept()
				if err == nil {
					test.serve(conn)
					_ = conn.Close()
				}
			})
			defer serving.Wait()
			s := newFakeServer(t)
			o := s.options()
			o.Log, o.Reloadable.Servers = discard(), []string{l.Addr().String()}
			c, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Check(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.says) || test.not != "" && strings.Contains(err.Error(), test.not) {
				t.Errorf("Check = %v, want %q", err, test.says)
			}
			if _, pinned := errors.AsType[*identity.PinError](err); pinned != IsRefused(err) {
				t.Errorf("refused for good: %v", IsRefused(err))
			}
		})
	}
}

func handshaken(config *tls.Config) func(net.Conn) {
	return func(conn net.Conn) { _ = tls.Server(conn, config).Handshake() }
}
