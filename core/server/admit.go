package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging"
	"github.com/cproxy/cproxy/core/wire"
)

const (
	// maxUnadmitted bounds the connections that have not said Hello.
	maxUnadmitted = 4096
	// handshakeSlots bounds the TLS handshakes at one time. A slot is taken
	// when the whole ClientHello is there, so silent peers hold none.
	handshakeSlots = 16
	// lingering is how long a connection stays for its last message.
	lingering = time.Second
	// acceptPause is how long accepting rests after it failed, for want of
	// descriptors mostly.
	acceptPause = 100 * time.Millisecond
)

// defaultHandshakeTimeout is from accept to Hello.
const defaultHandshakeTimeout = 5 * time.Second

// door accepts control connections and brings each as far as its Hello.
type door struct {
	tls           *tls.Config
	authenticator Authenticator
	timeout       time.Duration
	hub           *hub
	log           *slog.Logger
	refusals      *logging.RateLimited
	logins        *logging.RateLimited // refused ones
	failures      *failures
	slots         chan struct{}
	room          *waitingRoom
	tasks         *sync.WaitGroup
	tidy          tidy
}

// serve accepts until the listener is closed.
func (d *door) serve(ctx context.Context, ln net.Listener) {
	defer d.logins.Flush()
	defer d.refusals.Flush()
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			d.refusals.Log(slog.LevelError, "accept", "accepting control connections failed; raise the limit on open files if this goes on", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
				return
			}
			continue
		}
		place, ousted := d.room.enter(conn)
		if ousted != nil {
			_ = ousted.Close()
			d.refusals.Log(slog.LevelWarn, "unadmitted", "control connection closed: too many have not identified themselves", "source", ousted.RemoteAddr().String())
		}
		d.tasks.Go(func() { d.admit(ctx, conn, func() { d.room.leave(place) }) })
	}
}

// admit runs on the goroutine of a connection: handshake, Hello, which it tells
// by greeted, and a Control. All that follows is read on another goroutine, whose
// stack has not grown with those.
func (d *door) admit(ctx context.Context, conn net.Conn, greeted func()) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	end := func() {
		stop()
		_ = conn.Close()
	}
	c := d.bring(ctx, conn, greeted)
	if c == nil {
		end()
		return
	}
	d.tidy.arrived()
	d.tasks.Go(func() {
		defer end()
		d.read(ctx, c)
	})
}

// bring gets a connection its Control; nil when it was refused, which the client
// has been told.
func (d *door) bring(ctx context.Context, conn net.Conn, greeted func()) *caller {
	peer := peerOf(conn)
	g, err := d.greet(ctx, conn, peer)
	greeted()
	if err != nil {
		d.refusals.Log(slog.LevelInfo, "greet "+peer.Addr().String(), "control connection refused", "source", peer.String(), "reason", err.Error())
		return nil
	}
	if refusal := d.identify(ctx, g); refusal != nil {
		d.logRefused(g.hello, peer, refusal)
		var retry time.Duration
		if refusal.GetCode() == wire.CodeShutdown {
			retry = d.hub.herd.next()
		}
		g.link.finish(wire.NewGoodbye(refusal, retry).ServerMessage())
		drain(g.link)
		return nil
	}
	control, patience := d.hub.attach(ctx, g)
	if control == 0 {
		drain(g.link)
		return nil
	}
	return &caller{link: g.link, reader: g.reader, control: control, patience: patience, raw: rawOf(conn)}
}

// arrival is a client that said Hello.
type arrival struct {
	link        *link
	reader      *wire.Reader
	hello       *wire.Hello
	exporter    []byte    // of its TLS connection
	identity    *Identity // nil: it wants to resume
	revocations uint64    // how many there had been when it was identified
}

// greet brings a connection to its Hello.
func (d *door) greet(ctx context.Context, conn net.Conn, peer netip.AddrPort) (*arrival, error) {
	deadline := time.Now().Add(d.timeout)
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	if ctx.Err() != nil { // the end of ctx may have come before that deadline
		return nil, ctx.Err()
	}
	replay, err := identity.AwaitClientHello(conn)
	if err != nil {
		return nil, fmt.Errorf("await handshake: %w", err)
	}
	secured, err := d.handshake(ctx, replay, deadline)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	g := &arrival{link: newLink(secured, peer, d.tasks), reader: wire.NewReader(secured)}
	m, err := g.reader.ReadClientMessage()
	refusal := badMessage(err)
	if err != nil && refusal == nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	if refusal == nil {
		g.hello = m.GetHello()
		refusal = helloRefusal(m, g.hello)
	}
	if refusal != nil {
		g.link.finish(wire.NewGoodbye(refusal, 0).ServerMessage())
		drain(g.link)
		return nil, refusal.Err()
	}
	state := secured.ConnectionState()
	g.exporter, err = state.ExportKeyingMaterial(wire.ResumeExporterLabel, nil, wire.ResumeExporterSize)
	if err != nil {
		return nil, fmt.Errorf("export keying material: %w", err)
	}
	return g, nil
}

// handshake runs the TLS handshake in a slot, which it gives back when the
// server's part is done: a peer that stops half-way holds none. The time for
// which the peer waits for a slot is the server's, and put off its deadline: when
// all clients come at once, none is refused for being late.
func (d *door) handshake(ctx context.Context, conn net.Conn, deadline time.Time) (*tls.Conn, error) {
	begun := time.Now()
	select {
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	release := sync.OnceFunc(func() { <-d.slots })
	defer release()
	if err := conn.SetDeadline(deadline.Add(time.Since(begun))); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	if ctx.Err() != nil { // as after accept
		return nil, ctx.Err()
	}
	secured := tls.Server(&answering{Conn: conn, answered: release}, d.tls)
	return secured, secured.HandshakeContext(ctx)
}

// answering calls answered when something has been written.
type answering struct {
	net.Conn
	answered func()
}

func (c *answering) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.answered()
	return n, err
}

// badMessage words what is wrong with the bytes that a client sent; nil when
// the connection failed instead.
func badMessage(err error) *wire.Refusal {
	if errors.Is(err, wire.ErrTooLarge) || errors.Is(err, wire.ErrMalformed) {
		return wire.NewRefusal(wire.CodeProtocol, err.Error()+": check that both ends are CProxy")
	}
	return nil
}

// helloRefusal checks the first message of a client.
func helloRefusal(m *wire.ClientMessage, hello *wire.Hello) *wire.Refusal {
	if hello == nil {
		return wire.NewRefusal(wire.CodeProtocol, "the first message is not Hello")
	}
	if _, refusal := wire.Negotiate(hello.GetVersion()); refusal != nil {
		return refusal
	}
	if err := m.Validate(); err != nil {
		return wire.NewRefusal(wire.CodeBadRequest, err.Error())
	}
	return nil
}

// identify asks who the client is. One that wants to resume proves it to the
// hub instead.
func (d *door) identify(ctx context.Context, g *arrival) *wire.Refusal {
	c := g.hello.GetCredential()
	if c == nil {
		return nil
	}
	peer := g.link.peer
	if !d.failures.allow(peer.Addr(), time.Now()) {
		return wire.NewRefusal(wire.CodeRate, "too many failed logins from this address: wait a minute")
	}
	g.revocations = d.hub.revocations.Load()
	asking, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	// A login in doubt counts as failed from then on, so that no number of them
	// gets in doubt at one time.
	doubted := false
	id, err := d.authenticator.Authenticate(asking, Login{
		Token: c.GetName(), Secret: identity.TokenSecret(c.GetSecret()), Client: g.hello.GetName(),
		Hostname: g.hello.GetHostname(), Version: g.hello.GetClientVersion(), Peer: peer,
		doubt: func() { doubted = true; d.failures.note(peer.Addr(), time.Now()) },
	})
	clear(c.GetSecret())
	switch bad := errors.Is(err, identity.ErrBadCredential); {
	case bad && !doubted:
		d.failures.note(peer.Addr(), time.Now())
	case !bad && doubted:
		d.failures.forgive(peer.Addr())
	}
	switch {
	case err == nil:
		g.identity = &id
		return nil
	case errors.Is(err, identity.ErrBadCredential):
		return wire.NewRefusal(wire.CodeBadCredential, "")
	case ctx.Err() != nil:
		return wire.NewRefusal(wire.CodeShutdown, "")
	default:
		d.log.Error("authenticating a client failed", "client", g.hello.GetName(), "source", peer.String(), "error", err)
		return wire.NewRefusal(wire.CodeUnavailable, "")
	}
}

// drain waits until the link has said its last and closed the connection, or
// for a moment. It reads meanwhile: closing with unread bytes would reset it.
func drain(k *link) {
	_ = k.conn.SetReadDeadline(time.Now().Add(lingering))
	_, _ = io.Copy(io.Discard, k.conn)
	select {
	case <-k.done:
	case <-time.After(lingering): // the end of the server may have ended the reading
	}
}

func peerOf(conn net.Conn) netip.AddrPort {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
