package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// ctlClient is a client of the control port that says what the test likes.
type ctlClient struct {
	*tls.Conn
	reader *wire.Reader
	writer *wire.Writer
}

func (w *world) connect(t *testing.T) *ctlClient {
	t.Helper()
	join, err := identity.ParseJoin(w.join)
	if err != nil {
		t.Fatal(err)
	}
	config, err := identity.ClientTLS(identity.Trust{Pins: []identity.Pin{*join.Pin}}, w.ip, wire.ALPN)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", w.ctl(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.NetConn().Close() })
	bound(t, c)
	return &ctlClient{Conn: c, reader: wire.NewReader(c), writer: wire.NewWriter(c)}
}

// hello is what a good client would say, under the name of another one.
func (w *world) hello(t *testing.T) *wire.Hello {
	t.Helper()
	join, err := identity.ParseJoin(w.join)
	if err != nil {
		t.Fatal(err)
	}
	instance := make([]byte, wire.InstanceSize)
	_, _ = rand.Read(instance) // never fails
	return &wire.Hello{
		Version: wire.Version, Name: "another", Instance: instance, Epoch: 1,
		Auth: &wire.Hello_Credential{Credential: &wire.Credential{Name: join.Name, Secret: join.Secret[:]}},
	}
}

// wantGoodbye reads until the server says why it will not go on.
func (c *ctlClient) wantGoodbye(t *testing.T, code wire.Code) {
	t.Helper()
	for {
		m, err := c.reader.ReadServerMessage()
		if err != nil {
			t.Fatalf("the connection ended without a Goodbye: %v", err)
		}
		bye := m.GetGoodbye()
		if bye == nil {
			continue
		}
		if got := bye.GetRefusal().GetCode(); got != code || bye.GetRefusal().GetReason() == "" {
			t.Fatalf("the server says %v, want %v with a reason", bye, code)
		}
		if m, err := c.reader.ReadServerMessage(); err == nil {
			t.Fatalf("the server says %v after Goodbye", m)
		}
		return
	}
}

func TestBadHello(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	running := visit(t, w.web())
	say(t, running, "before")
	proof := make([]byte, wire.ProofSize)
	tests := []struct {
		name string
		make func(*wire.Hello) *wire.ClientMessage
		code wire.Code
	}{
		{"no protocol version", func(h *wire.Hello) *wire.ClientMessage { h.Version = 0; return h.ClientMessage() }, wire.CodeVersion},
		{"no name", func(h *wire.Hello) *wire.ClientMessage { h.Name = ""; return h.ClientMessage() }, wire.CodeBadRequest},
		{"a name of control characters", func(h *wire.Hello) *wire.ClientMessage { h.Name = "a\x1b[31mb"; return h.ClientMessage() }, wire.CodeBadRequest},
		{"no instance", func(h *wire.Hello) *wire.ClientMessage { h.Instance = nil; return h.ClientMessage() }, wire.CodeBadRequest},
		{"nothing to prove itself", func(h *wire.Hello) *wire.ClientMessage { h.Auth = nil; return h.ClientMessage() }, wire.CodeBadRequest},
		{"a short secret", func(h *wire.Hello) *wire.ClientMessage {
			h.GetCredential().Secret = []byte("short")
			return h.ClientMessage()
		}, wire.CodeBadRequest},
		{"a wrong secret", func(h *wire.Hello) *wire.ClientMessage {
			h.GetCredential().Secret[0] ^= 1
			return h.ClientMessage()
		}, wire.CodeBadCredential},
		{"an unknown token", func(h *wire.Hello) *wire.ClientMessage {
			h.GetCredential().Name = "nobody"
			return h.ClientMessage()
		}, wire.CodeBadCredential},
		{"a forged proof", func(h *wire.Hello) *wire.ClientMessage {
			h.Auth = &wire.Hello_Proof{Proof: proof}
			return h.ClientMessage()
		}, wire.CodeNotResumable},
		{"another message first", func(*wire.Hello) *wire.ClientMessage { return (&wire.Pong{}).ClientMessage() }, wire.CodeProtocol},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := w.connect(t)
			if err := c.writer.WriteClientMessage(tt.make(w.hello(t))); err != nil {
				t.Fatal(err)
			}
			c.wantGoodbye(t, tt.code)
			say(t, running, tt.name)
		})
	}
	t.Run("a newer protocol version is talked down", func(t *testing.T) {
		c := w.connect(t)
		hello := w.hello(t)
		hello.Version = 99
		if err := c.writer.WriteClientMessage(hello.ClientMessage()); err != nil {
			t.Fatal(err)
		}
		m, err := c.reader.ReadServerMessage()
		if err != nil || m.GetWelcome().GetVersion() != wire.Version {
			t.Fatalf("got %v and %v, want a Welcome of version %d", m, err, wire.Version)
		}
	})
}

// Bytes on an encrypted connection that are no messages.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	tests := map[string][]byte{
		"too large":        binary.AppendUvarint(nil, wire.MaxMessage+1),
		"enormous":         binary.AppendUvarint(nil, 1<<62),
		"endless length":   {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"cut":              append(binary.AppendUvarint(nil, 1000), 1, 2, 3),
		"no protobuf":      {3, 0xff, 0xff, 0xff},
		"empty":            {0},
		"of another world": []byte("HELO example.net\r\n"),
	}
	for name, text := range tests {
		for _, admitted := range []bool{false, true} {
			if admitted {
				name += ", after Hello"
			}
			t.Run(name, func(t *testing.T) {
				c := w.connect(t)
				if admitted {
					c.login(t, w)
				}
				if _, err := c.Write(text); err != nil {
					t.Fatal(err)
				}
				_ = c.CloseWrite() // the server may have closed already
				for {
					m, err := c.reader.ReadServerMessage()
					if err != nil {
						return
					}
					if m.GetWelcome() != nil {
						t.Fatal("it was let in")
					}
				}
			})
		}
	}
	wantRoundTrip(t, w.web(), "undisturbed")
}

// login says Hello and wants to be welcome.
func (c *ctlClient) login(t *testing.T, w *world) *wire.Welcome {
	t.Helper()
	if err := c.writer.WriteClientMessage(w.hello(t).ClientMessage()); err != nil {
		t.Fatal(err)
	}
	m, err := c.reader.ReadServerMessage()
	if err != nil || m.GetWelcome() == nil {
		t.Fatalf("got %v and %v, want a Welcome", m, err)
	}
	return m.GetWelcome()
}

func TestHelloTwice(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	c := w.connect(t)
	c.login(t, w)
	if err := c.writer.WriteClientMessage(w.hello(t).ClientMessage()); err != nil {
		t.Fatal(err)
	}
	c.wantGoodbye(t, wire.CodeProtocol)
	wantRoundTrip(t, w.web(), "undisturbed")
}

// An older Hello of the same instance, delayed on its way, must not win.
func TestStaleEpoch(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	hello := w.hello(t)
	hello.Epoch = 7
	first := w.connect(t)
	if err := first.writer.WriteClientMessage(hello.ClientMessage()); err != nil {
		t.Fatal(err)
	}
	if m, err := first.reader.ReadServerMessage(); err != nil || m.GetWelcome() == nil {
		t.Fatalf("got %v and %v, want a Welcome", m, err)
	}
	hello.Epoch = 6
	second := w.connect(t)
	if err := second.writer.WriteClientMessage(hello.ClientMessage()); err != nil {
		t.Fatal(err)
	}
	second.wantGoodbye(t, wire.CodeStaleEpoch)
	if err := first.writer.WriteClientMessage((&wire.Pong{}).ClientMessage()); err != nil {
		t.Errorf("the newer connection has suffered: %v", err)
	}
}

// A client that asks for tunnels without end meets the limit, not the memory
// of the server.
func TestTunnelFlood(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{server: "[limits]\nmax_tunnels_per_client = 5"})
	c := w.connect(t)
	c.login(t, w)
	const asked = 200
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range asked {
			spec := &wire.TunnelSpec{Name: "t" + portText(uint16(i)), Type: "tcp"}
			if c.writer.WriteClientMessage((&wire.RegisterTunnel{Spec: spec}).ClientMessage()) != nil {
				return // the count below tells
			}
		}
	}()
	open, refused := 0, 0
	for open+refused < asked {
		m, err := c.reader.ReadServerMessage()
		if err != nil {
			t.Fatalf("after %d answers: %v", open+refused, err)
		}
		switch k := m.GetKind().(type) {
		case *wire.ServerMessage_TunnelRegistered:
			open++
		case *wire.ServerMessage_TunnelRejected:
			if got := k.TunnelRejected.GetRefusal().GetCode(); got != wire.CodeTunnelLimit {
				t.Fatalf("refused with %v", got)
			}
			refused++
		}
	}
	<-written
	if open != 5 {
		t.Errorf("%d tunnels are open, want 5", open)
	}
	if err := c.writer.WriteClientMessage(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c.Conn); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Logf("after Goodbye: %v", err)
	}
	wantRoundTrip(t, w.web(), "undisturbed")
}
