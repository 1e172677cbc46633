package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// peer is a client written by hand.
type peer struct {
	t      *testing.T
	conn   *tls.Conn
	writer *wire.Writer
	heard  chan *wire.ServerMessage // closed when the connection has ended
	settle func()                   // waits until nothing moves any more; nil where only time can tell

	name, token string
	instance    instance
	epoch       uint64
	welcome     *wire.Welcome
}

// newPeer secures conn as a client does, and hears what comes until its end.
func newPeer(t *testing.T, conn net.Conn, settle func()) *peer {
	t.Helper()
	p := &peer{
		t: t, conn: tls.Client(conn, clientTLS()), heard: make(chan *wire.ServerMessage, 2*maxUnsent), settle: settle,
		name: "host", token: "alice", epoch: 1,
	}
	_, _ = rand.Read(p.instance[:])
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.conn.HandshakeContext(ctx); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	p.writer = wire.NewWriter(p.conn)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(p.heard)
		r := wire.NewReader(p.conn)
		own := wire.NewWriter(p.conn)
		for {
			m, err := r.ReadServerMessage()
			if err != nil {
				return
			}
			if err := m.Validate(); err != nil {
				t.Errorf("heard what no client accepts: %v", err)
			}
			if n := m.GetPing().GetNonce(); n > 0 { // a tunnel is announced
				if err := own.WriteClientMessage((&wire.Pong{Nonce: n}).ClientMessage()); err != nil {
					return
				}
				continue
			}
			p.heard <- m
		}
	}()
	t.Cleanup(func() { p.leave(); <-ended })
	return p
}

// leave ends the connection without a word.
func (p *peer) leave() { _ = p.conn.NetConn().Close() }

func (p *peer) say(m *wire.ClientMessage) {
	p.t.Helper()
	if err := p.writer.WriteClientMessage(m); err != nil {
		p.t.Fatalf("say %s: %v", m.KindName(), err)
	}
}

// next is the next message, or nil at the end of the connection.
func (p *peer) next() *wire.ServerMessage {
	p.t.Helper()
	if p.settle == nil {
		select {
		case m := <-p.heard:
			return m
		case <-time.After(20 * time.Second):
			p.t.Fatal("nothing was heard in time")
		}
	}
	p.settle()
	select {
	case m := <-p.heard:
		return m
	default:
		p.t.Fatal("nothing was heard")
	}
	return nil
}

// anytime tells the messages that may come at any moment: pings and, of a
// server with a real engine, requests for spare ProxyConns.
func (p *peer) anytime(m *wire.ServerMessage) bool {
	return m.GetPing() != nil || p.settle == nil && m.GetNeedProxyConn() != nil
}

// hear expects a message of one kind, such as (*wire.ServerMessage).GetPing.
// What may come at any moment is passed over.
func hear[M comparable](p *peer, kind func(*wire.ServerMessage) M) M {
	p.t.Helper()
	var none M
	for {
		m := p.next()
		if got := kind(m); got != none {
			return got
		}
		if !p.anytime(m) {
			p.t.Fatalf("heard %v, want %T", m, none)
		}
	}
}

// ended expects the end of the connection.
func (p *peer) ended() {
	p.t.Helper()
	for m := p.next(); m != nil; m = p.next() {
		if !p.anytime(m) {
			p.t.Fatalf("heard %v, want the end", m)
		}
	}
}

// silent expects that nothing was said.
func (p *peer) silent() {
	p.t.Helper()
	p.settle()
	select {
	case m, ok := <-p.heard:
		p.t.Fatalf("heard %v, %v, want nothing", m, ok)
	default:
	}
}

// refused expects a Goodbye for a reason, and then the end. The server may have
// asked for spare ProxyConns just before.
func (p *peer) refused(want wire.Code) *wire.Goodbye {
	p.t.Helper()
	m := p.next()
	for m.GetPing() != nil || m.GetNeedProxyConn() != nil {
		m = p.next()
	}
	g := m.GetGoodbye()
	if g == nil {
		p.t.Fatalf("heard %v, want a Goodbye", m)
	}
	code(p.t, g.GetRefusal(), want)
	p.ended()
	return g
}

// secretOf is the secret of a token in these tests.
func secretOf(token string) []byte {
	secret := make([]byte, wire.SecretSize)
	copy(secret, "secret of "+token)
	return secret
}

// hello logs in with the credential.
func (p *peer) hello() *wire.Hello {
	return &wire.Hello{
		Version: wire.Version, Name: p.name, Instance: p.instance[:], Epoch: p.epoch, Hostname: "host.example", ClientVersion: "test",
		Auth: &wire.Hello_Credential{Credential: &wire.Credential{Name: p.token, Secret: secretOf(p.token)}},
	}
}

// proof resumes the session of before.
func (p *peer) proof(before *peer, epoch uint64) *wire.Hello {
	p.t.Helper()
	state := p.conn.ConnectionState()
	exporter, err := state.ExportKeyingMaterial(wire.ResumeExporterLabel, nil, wire.ResumeExporterSize)
	if err != nil {
		p.t.Fatal(err)
	}
	p.name, p.token, p.instance, p.epoch = before.name, before.token, before.instance, epoch
	h := p.hello()
	h.Auth = &wire.Hello_Proof{Proof: wire.ResumeProof(before.welcome.GetSessionKey(), epoch, exporter)}
	return h
}

// enter says hello and expects a welcome.
func (p *peer) enter(h *wire.Hello) *peer {
	p.t.Helper()
	p.say(h.ClientMessage())
	p.welcome = hear(p, (*wire.ServerMessage).GetWelcome)
	if p.welcome.GetEpoch() != h.GetEpoch() || p.welcome.GetVersion() != wire.Version {
		p.t.Fatalf("welcome %v", p.welcome)
	}
	return p
}

func (p *peer) login() *peer {
	p.t.Helper()
	return p.enter(p.hello())
}

// spec asks for a tunnel on one port, or on any when it is 0.
func spec(name string, port int) *wire.TunnelSpec {
	return &wire.TunnelSpec{Name: name, Type: "tcp", PortFirst: uint32(port), PortLast: uint32(port)}
}

func (p *peer) ask(s *wire.TunnelSpec) {
	p.t.Helper()
	p.say((&wire.RegisterTunnel{Spec: s}).ClientMessage())
}

// register asks for a tunnel and expects it to open.
func (p *peer) register(s *wire.TunnelSpec) *wire.TunnelRegistered {
	p.t.Helper()
	p.ask(s)
	r := hear(p, (*wire.ServerMessage).GetTunnelRegistered)
	if r.GetName() != s.GetName() {
		p.t.Fatalf("registered %v, want %s", r, s.GetName())
	}
	return r
}

// rejected asks for a tunnel and expects a refusal.
func (p *peer) rejected(s *wire.TunnelSpec, want wire.Code) *wire.Refusal {
	p.t.Helper()
	p.ask(s)
	r := hear(p, (*wire.ServerMessage).GetTunnelRejected)
	if r.GetName() != s.GetName() {
		p.t.Fatalf("rejected %v, want %s", r, s.GetName())
	}
	code(p.t, r.GetRefusal(), want)
	return r.GetRefusal()
}
