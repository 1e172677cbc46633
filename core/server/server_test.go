package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/wire"
)

func TestOptionsAreChecked(t *testing.T) {
	_, err := New(Options{})
	for _, problem := range []string{"TLS", "authenticator", "logger", "event loops", "public bind", "public ports", "heartbeat"} {
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("error %v does not name %s", err, problem)
		}
	}
	o := testOptions(&guard{}, new(logtest.Output))
	o.Policy.HandshakeTimeout = 0
	s, err := New(o)
	if err != nil || s.options.Policy.HandshakeTimeout != defaultHandshakeTimeout {
		t.Errorf("server %v, %v", s, err)
	}
}

func TestStream(t *testing.T) {
	r := startServer(t, nil)
	p := r.dial().login()
	if _, port, err := net.SplitHostPort(p.welcome.GetProxyAddress()); err != nil || port != fmt.Sprint(r.proxy.Port()) {
		t.Errorf("the proxy port is said to be %q, and is %v", p.welcome.GetProxyAddress(), r.proxy)
	}
	registered := p.register(spec("web", 0))
	at := public(t, registered)
	var c *proxyConn
	visit(t, at, []byte("hello"), func() {
		if n := hear(p, (*wire.ServerMessage).GetNeedProxyConn).GetN(); n != 1 {
			t.Errorf("asked for %d ProxyConns", n)
		}
		c = r.open(p, 1)
		s, seq := c.started()
		if s.Tunnel != registered.GetId() || s.Destination != at || s.Source.Addr() != loopback {
			t.Errorf("stream %v", s)
		}
		if n := c.echo(seq); n != 5 {
			t.Errorf("visitor sent %d bytes", n)
		}
	})
	// The same ProxyConn carries the next one.
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	visit(t, at, big, func() {
		_, seq := c.started()
		c.echo(seq)
	})
}

func TestNoReuseWithoutAPool(t *testing.T) {
	r := startServer(t, func(o *Options) { o.Policy.PoolMax = 0 })
	p := r.dial().login()
	at := public(t, p.register(spec("web", 0)))
	for id := range uint64(3) {
		visit(t, at, []byte("hello"), func() {
			hear(p, (*wire.ServerMessage).GetNeedProxyConn)
			c := r.open(p, id+1)
			_, seq := c.started()
			c.echo(seq)
			if h, _ := c.frame(); h.Type != frame.Close {
				t.Errorf("after its stream the ProxyConn says %v", h.Type)
			}
		})
	}
}

// Streams and the pool outlive the control connection, and a resume finds
// them; a revocation cuts all.
func TestStreamsOutliveTheControlConnection(t *testing.T) {
	r := startServer(t, nil)
	p := r.dial().login()
	at := public(t, p.register(spec("web", 0)))
	c := r.open(p, 1)
	visitor := tcp(t, loopback, at)
	_, seq := c.started()
	p.leave()
	r.log.Await(t, "client lost")

	c.send(frame.Header{Type: frame.Data, Seq: seq}, []byte("still here"))
	got := make([]byte, 10)
	if _, err := visitor.Read(got); err != nil || string(got) != "still here" {
		t.Fatalf("visitor got %q, %v", got, err)
	}
	q := r.dial()
	q.enter(q.proof(p, 2))
	if !q.welcome.GetResumed() || public(t, q.welcome.GetTunnels()[0]) != at {
		t.Errorf("welcome %v", q.welcome)
	}
	visit(t, at, []byte("new"), func() {
		hear(q, (*wire.ServerMessage).GetNeedProxyConn)
		d := r.open(q, 1)
		_, seq := d.started()
		d.echo(seq)
	})

	r.revoked <- []string{"alice"}
	q.refused(wire.CodeRevoked)
	if _, err := visitor.Read(got); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("visitor of a revoked client got %v", err)
	}
	eventually(t, "the port closes", func() bool {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(at))
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

func TestTakeoverLeavesStreams(t *testing.T) {
	r := startServer(t, nil)
	p := r.dial().login()
	at := public(t, p.register(spec("web", 0)))
	c := r.open(p, 1)
	idle := r.open(p, 2)
	visitor := tcp(t, loopback, at)
	started := make(chan *proxyConn, 2)
	go func() { // either may be claimed; the other is told to close
		for _, c := range []*proxyConn{c, idle} {
			var b [frame.HeaderSize + frame.StartSize]byte
			if _, err := c.Read(b[:]); err == nil && frame.Type(b[0]) == frame.Start {
				started <- c
			}
		}
		close(started)
	}()
	eventually(t, "the stream starts", func() bool { return opened(r) == 1 })
	q := r.dial().login()
	p.refused(wire.CodeSuperseded)
	if len(q.welcome.GetTunnels()) != 1 || public(t, q.welcome.GetTunnels()[0]) != at {
		t.Errorf("welcome %v", q.welcome)
	}
	carrier := <-started
	carrier.send(frame.Header{Type: frame.Data, Seq: 1}, []byte("on"))
	got := make([]byte, 2)
	if _, err := visitor.Read(got); err != nil || string(got) != "on" {
		t.Errorf("visitor got %q, %v", got, err)
	}
	for range started { // the other conn ended
	}
}

func opened(r *running) (n uint64) {
	for _, s := range r.engine.Stats() {
		n += s.Opened
	}
	return n
}

func TestPortTaken(t *testing.T) {
	r := startServer(t, nil)
	foreign, err := net.Listen("tcp", netip.AddrPortFrom(ownAddress(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	port := foreign.Addr().(*net.TCPAddr).Port
	p := r.dial().login()
	if refusal := p.rejected(spec("web", port), wire.CodePortTaken); !strings.Contains(refusal.GetReason(), fmt.Sprint("port ", port)) {
		t.Errorf("refused with %v", refusal)
	}
	_ = foreign.Close()
	p.register(spec("web", port))
	other := r.dial()
	other.token = "bob"
	other.login()
	other.rejected(spec("web", port), wire.CodePortTaken)
}

// A port is free again at once: for another tunnel of the same client, for the
// same one with another specification, and for a client that starts again.
func TestPortIsFreeAtOnce(t *testing.T) {
	r := startServer(t, nil)
	p := r.dial().login()
	port := int(public(t, p.register(spec("t0", 0))).Port())
	for i := range 50 {
		p.say((&wire.CloseTunnel{Name: fmt.Sprint("t", i)}).ClientMessage())
		p.register(spec(fmt.Sprint("t", i+1), port))
	}
	p.say((&wire.CloseTunnel{Name: "t50"}).ClientMessage())
	own := ownAddress().String()
	for i := range 20 {
		changed := spec("changed", port)
		for _, changed.Bind = range [][]string{{own}, {own, own}, nil} {
			p.ask(changed)
		}
		p.say((&wire.CloseTunnel{Name: "changed"}).ClientMessage())
		last := fmt.Sprint("last", i)
		p.ask(spec(last, port))
		for hear(p, (*wire.ServerMessage).GetTunnelRegistered).GetName() != last {
		}
		p.say((&wire.CloseTunnel{Name: last}).ClientMessage())
	}
	for range 20 {
		p.say(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage())
		hear(p, (*wire.ServerMessage).GetGoodbye)
		p = r.dial().login()
		p.register(spec("web", port))
	}
}

func TestRunTellsWhyItCannot(t *testing.T) {
	foreign, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	taken := foreign.Addr().String()
	tests := []struct {
		name string
		edit func(o *Options)
		says string
		is   error
	}{
		{"control port in use", func(o *Options) { o.CtlListen = taken }, "open the control port: ", syscall.EADDRINUSE},
		{"proxy port in use", func(o *Options) { o.ProxyListen = taken }, "open the proxy port: ", syscall.EADDRINUSE},
		{"no such address", func(o *Options) { o.ProxyListen = "192.0.2.1:0" }, "192.0.2.1", syscall.EADDRNOTAVAIL},
		{"no address", func(o *Options) { o.ProxyListen = "127.0.0.1" }, "resolve the address of the proxy port: ", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := descriptors(t)
			o := testOptions(&guard{}, new(logtest.Output))
			o.Ready = func(netip.AddrPort, netip.AddrPort) { t.Error("it was ready") }
			test.edit(&o)
			s, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.says) || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("Run returned %v", err)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
	t.Run("ended before it began", func(t *testing.T) {
		s, err := New(testOptions(&guard{}, new(logtest.Output)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestStop(t *testing.T) {
	run := func() {
		r := startServer(t, nil)
		var peers []*peer
		var conns []net.Conn
		for i := range 10 {
			p := r.dial()
			p.name = fmt.Sprint("host", i)
			peers = append(peers, p.login())
			at := public(t, p.register(spec("web", 0)))
			conns = append(conns, r.open(p, 1), r.open(p, 2)) // idle, or carrying a stream
			conns = append(conns, tcp(t, loopback, at), tcp(t, loopback, r.ctl), tcp(t, loopback, r.proxy))
		}
		if err := r.stop(); err != nil {
			t.Fatalf("Run returned %v", err)
		}
		for _, p := range peers {
			if g := p.refused(wire.CodeShutdown); g.GetRetryAfterMs() == 0 {
				t.Error("clients are asked back at once")
			}
			p.leave()
		}
		for _, c := range conns {
			_ = c.Close()
		}
	}
	run() // the runtime opens what it keeps
	before := descriptors(t)
	for range 4 {
		run()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestTokens(t *testing.T) {
	provider, path, secret := tokensFile(t, "alice")
	following, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = provider.Run(following) })
	defer func() { cancel(); tasks.Wait() }()
	r := startServer(t, func(o *Options) { o.Authenticator, o.Revoked = Tokens(provider), provider.Revoked() })
	hello := func(p *peer, secret identity.TokenSecret) *wire.Hello {
		h := p.hello()
		h.GetCredential().Secret = secret[:]
		return h
	}
	p := r.dial()
	p.enter(hello(p, secret))
	bad := r.dial()
	bad.say(hello(bad, identity.NewTokenSecret()).ClientMessage())
	if g := bad.refused(wire.CodeBadCredential); !g.GetRefusal().GetPermanent() {
		t.Error("a wrong secret is refused for now")
	}
	if err := identity.RevokeToken(path, "alice"); err != nil {
		t.Fatal(err)
	}
	p.refused(wire.CodeRevoked)
	p = r.dial()
	p.say(hello(p, secret).ClientMessage())
	p.refused(wire.CodeBadCredential)
	if strings.Contains(r.log.String(), secret.Reveal()) {
		t.Error("the log has the secret")
	}
}
