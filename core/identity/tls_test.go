package identity_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/identity"
)

const alpn = "cproxy-ctl/1"

// outcome is what both sides of a handshake, and a byte each way, ended in.
type outcome struct {
	client, server error
	state          tls.ConnectionState
}

// connected returns the two ends of a TCP connection. A pipe would not do: it has
// no buffer, so an alert would wait for a peer that is writing too.
func connected(t *testing.T) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = listener.Close() }()
	client, err = net.Dial("tcp", listener.Addr().String())
	must(t, err)
	server, err = listener.Accept()
	must(t, err)
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	deadline := time.Now().Add(30 * time.Second) // ends a test that hangs
	must(t, client.SetDeadline(deadline))
	must(t, server.SetDeadline(deadline))
	return client, server
}

// handshake joins the two over TCP. The first reads count too, since a TLS
// 1.3 client learns only there that the server has refused it.
func handshake(t *testing.T, clientConfig, serverConfig *tls.Config) outcome {
	t.Helper()
	a, b := connected(t)
	client, server := tls.Client(a, clientConfig), tls.Server(b, serverConfig)
	done := make(chan error, 1)
	go func() {
		defer func() { _ = b.Close() }()
		buffer := make([]byte, 1)
		_, err := io.ReadFull(server, buffer)
		if err == nil {
			_, err = server.Write(buffer)
		}
		done <- err
	}()
	buffer := make([]byte, 1)
	_, err := client.Write([]byte{1})
	if err == nil {
		_, err = io.ReadFull(client, buffer)
	}
	_ = a.Close()
	return outcome{client: err, server: <-done, state: client.ConnectionState()}
}

func clientTLS(t *testing.T, trust identity.Trust, serverName string) *tls.Config {
	t.Helper()
	config, err := identity.ClientTLS(trust, serverName, alpn)
	if err != nil {
		t.Fatalf("ClientTLS: %v", err)
	}
	return config
}

func TestHandshakeIsTLS13WithoutResumption(t *testing.T) {
	id, _ := newServer(t)
	pin := id.Pin()
	client, server := clientTLS(t, identity.Trust{Pins: []identity.Pin{pin}}, ""), identity.ServerTLS(id, alpn)
	for range 2 {
		got := handshake(t, client, server)
		if got.client != nil || got.server != nil {
			t.Fatalf("handshake: client %v, server %v", got.client, got.server)
		}
		if got.state.Version != tls.VersionTLS13 || got.state.DidResume || got.state.NegotiatedProtocol != alpn {
			t.Errorf("version %x, resumed %v, protocol %q", got.state.Version, got.state.DidResume, got.state.NegotiatedProtocol)
		}
	}
	for name, config := range map[string]*tls.Config{"client": client, "server": server} {
		if config.KeyLogWriter != nil || !config.SessionTicketsDisabled || config.MinVersion != tls.VersionTLS13 {
			t.Errorf("%s: keys are logged, tickets are on or old versions allowed", name)
		}
	}
}

func TestOldVersionsAreRefused(t *testing.T) {
	id, _ := newServer(t)
	old := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, MaxVersion: tls.VersionTLS12}
	if got := handshake(t, old, identity.ServerTLS(id, alpn)); got.client == nil || got.server == nil {
		t.Errorf("TLS 1.2: client %v, server %v, want errors", got.client, got.server)
	}
}

func TestTrust(t *testing.T) {
	id, dir := newServer(t)
	other, otherDir := newServer(t)
	right, wrong := id.Pin(), other.Pin()
	ca, otherCA := filepath.Join(dir, "identity.crt"), filepath.Join(otherDir, "identity.crt")
	tests := []struct {
		name  string
		trust identity.Trust
		host  string
		ok    bool
	}{
		{"right pin", identity.Trust{Pins: []identity.Pin{right}}, "", true},
		{"right pin, any name", identity.Trust{Pins: []identity.Pin{right}}, "example.org", true},
		{"right pin after another", identity.Trust{Pins: []identity.Pin{wrong, right}}, "", true},
		{"right pin before another", identity.Trust{Pins: []identity.Pin{right, wrong}}, "", true},
		{"wrong pins", identity.Trust{Pins: []identity.Pin{wrong, {1}}}, "", false},
		{"wrong pin", identity.Trust{Pins: []identity.Pin{wrong}}, "", false},
		{"CA file", identity.Trust{CAFile: ca}, identity.ServerName, true},
		{"CA file, wrong name", identity.Trust{CAFile: ca}, "example.org", false},
		{"wrong CA file", identity.Trust{CAFile: otherCA}, identity.ServerName, false},
		{"both right", identity.Trust{Pins: []identity.Pin{right}, CAFile: ca}, identity.ServerName, true},
		{"right CA file, wrong pin", identity.Trust{Pins: []identity.Pin{wrong}, CAFile: ca}, identity.ServerName, false},
		{"right pin, wrong CA file", identity.Trust{Pins: []identity.Pin{right}, CAFile: otherCA}, identity.ServerName, false},
		{"system roots", identity.Trust{}, identity.ServerName, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := handshake(t, clientTLS(t, tt.trust, tt.host), identity.ServerTLS(id, alpn))
			if ok := got.client == nil && got.server == nil; ok != tt.ok {
				t.Errorf("client %v, server %v; want success: %v", got.client, got.server, tt.ok)
			}
		})
	}
}

func TestPinError(t *testing.T) {
	id, _ := newServer(t)
	pinned := identity.Pin{1, 2, 3}
	got := handshake(t, clientTLS(t, identity.Trust{Pins: []identity.Pin{pinned, {4}}}, ""), identity.ServerTLS(id, alpn))
	var pinError *identity.PinError
	if !errors.As(got.client, &pinError) {
		t.Fatalf("client error = %v, want a *PinError", got.client)
	}
	if !slices.Equal(pinError.Want, []identity.Pin{pinned, {4}}) || pinError.Got != id.Pin() {
		t.Errorf("PinError = %+v", pinError)
	}
	for _, part := range []string{pinned.String(), identity.Pin{4}.String(), id.Pin().String(), "cproxy-server run", "cproxy-server token add"} {
		if !strings.Contains(pinError.Error(), part) {
			t.Errorf("message %q lacks %q", pinError, part)
		}
	}
}

func TestPinIsCopied(t *testing.T) {
	id, _ := newServer(t)
	pin := id.Pin()
	trust := identity.Trust{Pins: []identity.Pin{pin}}
	config := clientTLS(t, trust, "")
	trust.Pins[0] = identity.Pin{}
	if got := handshake(t, config, identity.ServerTLS(id, alpn)); got.client != nil {
		t.Errorf("client = %v after the caller reused its pin", got.client)
	}
}

func TestALPNMismatchFails(t *testing.T) {
	id, _ := newServer(t)
	pin := id.Pin()
	good := clientTLS(t, identity.Trust{Pins: []identity.Pin{pin}}, "")
	foreign, silent := good.Clone(), good.Clone()
	foreign.NextProtos, silent.NextProtos = []string{"h2"}, nil
	deaf := identity.ServerTLS(id, alpn)
	deaf.NextProtos, deaf.VerifyConnection = nil, nil
	tests := []struct {
		name           string
		client, server *tls.Config
		clientTyped    bool
		serverTyped    bool
	}{
		{"client with another protocol", foreign, identity.ServerTLS(id, alpn), false, false},
		{"client without any", silent, identity.ServerTLS(id, alpn), true, true},
		{"server without any", good, deaf, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := handshake(t, tt.client, tt.server)
			if got.client == nil || got.server == nil {
				t.Fatalf("client %v, server %v, want errors", got.client, got.server)
			}
			var typed *identity.ALPNError
			if errors.As(got.client, &typed) != tt.clientTyped {
				t.Errorf("client error = %v, want an ALPNError: %v", got.client, tt.clientTyped)
			}
			if tt.clientTyped && !strings.Contains(typed.Error(), alpn) {
				t.Errorf("message %q does not name the protocol", typed)
			}
			if tt.serverTyped && !errors.As(got.server, &typed) {
				t.Errorf("server error = %v, want an ALPNError", got.server)
			}
		})
	}
}

func TestClientTLSRefuses(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	must(t, os.WriteFile(empty, []byte("nothing here"), 0o600))
	for name, trust := range map[string]identity.Trust{
		"no CA file":                 {CAFile: filepath.Join(dir, "missing.pem")},
		"CA file without any":        {CAFile: empty},
		"CA file is a directory":     {CAFile: dir},
		"system roots without names": {},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := identity.ClientTLS(trust, "", alpn); err == nil {
				t.Error("accepted")
			}
		})
	}
}
