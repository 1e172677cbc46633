package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/wire"
)

// running is a whole Server on loopback.
type running struct {
	*Server
	t          *testing.T
	ctl, proxy netip.AddrPort
	guard      *guard
	revoked    chan []string
	log        *logtest.Output
	stop       func() error // ends Run and gives what it returned
}

type addresses struct{ ctl, proxy netip.AddrPort }

// ownAddress is this process's own: ports are chosen by the names of tunnels,
// so another process that runs the same tests chooses the same.
func ownAddress() netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(1 + pid>>16), byte(pid >> 8), byte(pid)})
}

func testOptions(g *guard, log *logtest.Output) Options {
	o := Options{
		CtlListen: "127.0.0.1:0", ProxyListen: "127.0.0.1:0", TLS: serverTLS(), Loops: 2, Policy: testPolicy(),
		Secret: sha256.Sum256([]byte("secret")), Authenticator: g, Version: "test", Log: log.Logger(),
	}
	o.Policy.PublicBind = []netip.Addr{ownAddress()}
	return o
}

func startServer(t *testing.T, edit func(o *Options)) *running {
	t.Helper()
	r := &running{t: t, guard: &guard{grants: make(map[string]identity.Grants)}, revoked: make(chan []string), log: new(logtest.Output)}
	o := testOptions(r.guard, r.log)
	o.Revoked = r.revoked
	ready := make(chan addresses, 1)
	o.Ready = func(ctl, proxy netip.AddrPort) { ready <- addresses{ctl, proxy} }
	if edit != nil {
		edit(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	select {
	case at := <-ready:
		r.ctl, r.proxy = at.ctl, at.proxy
	case err := <-ended:
		t.Fatalf("Run returned %v before it was ready", err)
	}
	return r
}

// tcp dials from any loopback address.
func tcp(t *testing.T, from netip.Addr, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	var local *net.TCPAddr // binding to a port of its own would use them up
	if from != loopback {
		local = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	c, err := net.DialTCP("tcp", local, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

func (r *running) dial() *peer {
	r.t.Helper()
	return newPeer(r.t, tcp(r.t, loopback, r.ctl), nil)
}

// proxyConn is a ProxyConn of a client written by hand.
type proxyConn struct {
	*net.TCPConn
	t *testing.T
}

// open sends a preface and expects READY.
func (r *running) open(p *peer, proxyID uint64) *proxyConn {
	r.t.Helper()
	c := &proxyConn{tcp(r.t, loopback, r.proxy), r.t}
	key, preface := p.welcome.GetSessionKey(), prefaceOf(p.welcome, proxyID)
	sealed := preface.Seal(frame.NewKey(key), frame.Exporter{})
	c.put(sealed[:])
	h, payload := c.frame()
	if want := preface.Ready(frame.NewKey(key), frame.Exporter{}); h.Type != frame.Ready || [frame.ReadySize]byte(payload) != want {
		r.t.Fatalf("answer to the preface is %v", h)
	}
	return c
}

func (c *proxyConn) put(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// frame reads one frame.
func (c *proxyConn) frame() (frame.Header, []byte) {
	c.t.Helper()
	var b [frame.HeaderSize]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		c.t.Fatalf("read frame: %v", err)
	}
	h, err := frame.ParseHeader(b[:])
	if err != nil {
		c.t.Fatal(err)
	}
	payload := make([]byte, h.Length)
	if _, err := io.ReadFull(c, payload); err != nil {
		c.t.Fatalf("read payload of %v: %v", h.Type, err)
	}
	return h, payload
}

func (c *proxyConn) send(h frame.Header, payload []byte) {
	c.t.Helper()
	b := make([]byte, frame.HeaderSize, frame.HeaderSize+len(payload))
	h.Length = uint32(len(payload))
	h.Put(b)
	c.put(append(b, payload...))
}

// started expects START.
func (c *proxyConn) started() (frame.Stream, uint16) {
	c.t.Helper()
	h, payload := c.frame()
	if h.Type != frame.Start {
		c.t.Fatalf("read %v, want START", h.Type)
	}
	s, err := frame.ParseStart(payload)
	if err != nil {
		c.t.Fatal(err)
	}
	return s, h.Seq
}

// echo is a LocalServer that answers with what it got, and ends when its
// visitor does. It gives the number of bytes.
func (c *proxyConn) echo(seq uint16) int {
	c.t.Helper()
	n := 0
	for {
		h, payload := c.frame()
		switch h.Type {
		case frame.Data:
			n += len(payload)
			c.send(frame.Header{Type: frame.Data, Seq: seq}, payload)
		case frame.Fin:
			c.send(frame.Header{Type: frame.Fin, Seq: seq}, nil)
			return n
		default:
			c.t.Fatalf("read %v in a stream", h.Type)
		}
	}
}

// visit sends b through a tunnel and expects it back.
func visit(t *testing.T, to netip.AddrPort, b []byte, serve func()) {
	t.Helper()
	c := tcp(t, loopback, to)
	defer func() { _ = c.Close() }()
	var sending sync.WaitGroup
	sending.Go(func() {
		_, err := c.Write(b)
		if err := errors.Join(err, c.CloseWrite()); err != nil {
			t.Errorf("visitor: %v", err)
		}
	})
	defer sending.Wait()
	serve()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(b) {
		t.Fatalf("visitor got %d bytes of %d, %v", len(got), len(b), err)
	}
}

// public is where a tunnel listens.
func public(t *testing.T, r *wire.TunnelRegistered) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(r.GetPublicAddresses()[0])
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// descriptors counts the open descriptors of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// eventually waits for a condition that nobody reports.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s: not in time", what)
		}
	}
}

// tokensFile is a provider with one token, and its secret.
func tokensFile(t *testing.T, name string) (*identity.Provider, string, identity.TokenSecret) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.toml")
	secret, err := identity.AddToken(path, name, identity.Grants{})
	if err != nil {
		t.Fatal(err)
	}
	p := identity.NewProvider(path, new(logtest.Output).Logger())
	if err := p.Load(); err != nil {
		t.Fatal(err)
	}
	return p, path, secret
}
