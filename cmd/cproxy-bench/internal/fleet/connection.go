//go:build linux

package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// connection is an open CtlConn. Its reader belongs to the goroutine of its
// member; say may be called from any.
type connection struct {
	conn   *tls.Conn
	reader *wire.Reader

	mu     sync.Mutex // held over a write, which has a deadline
	writer *wire.Writer
}

// login makes a connection and gets its Welcome.
func (m *member) login(ctx context.Context) (*connection, error) {
	if m.fleet.slots != nil {
		select {
		case m.fleet.slots <- struct{}{}:
			defer func() { <-m.fleet.slots }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	socket, err := m.fleet.dialer.DialContext(ctx, "tcp", m.fleet.options.Join.Address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c := &connection{conn: tls.Client(socket, m.fleet.tls)}
	if err := c.conn.HandshakeContext(ctx); err != nil {
		c.end()
		return nil, fmt.Errorf("establish TLS: %w", err)
	}
	stop := context.AfterFunc(ctx, c.end)
	defer stop()
	c.reader, c.writer = wire.NewReader(c.conn), wire.NewWriter(c.conn)
	if err := m.greet(c); err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

// greet sends Hello and takes the Welcome.
func (m *member) greet(c *connection) error {
	hello, err := m.hello(c.conn)
	if err != nil {
		return err
	}
	if err := c.say(hello.ClientMessage()); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	message, err := c.reader.ReadServerMessage()
	if err == nil {
		err = message.Validate()
	}
	if err != nil {
		return fmt.Errorf("read welcome: %w", err)
	}
	if bye := message.GetGoodbye(); bye != nil {
		return bye.Err()
	}
	w := message.GetWelcome()
	switch {
	case w == nil:
		return fmt.Errorf("the server answered Hello with %s", message.KindName())
	case w.GetMode() != wire.ModePlain:
		return errors.New("the server wants encrypted ProxyConns, which this command cannot open")
	}
	proxy, err := proxyAddress(w.GetProxyAddress(), c.conn.RemoteAddr())
	if err != nil {
		return err
	}
	m.session = &session{control: w.GetControlId(), epoch: w.GetEpoch(), key: w.GetSessionKey(), proxy: proxy, heartbeat: w.Heartbeat()}
	m.fleet.tally.note(func(n *Counts) {
		n.Logins++
		if w.GetResumed() {
			n.Resumed++
		}
	})
	return nil
}

func (m *member) hello(conn *tls.Conn) (*wire.Hello, error) {
	m.epoch++
	hello := &wire.Hello{Version: wire.Version, Name: m.name, Instance: m.instance[:], Epoch: m.epoch, ClientVersion: "cproxy-bench"}
	if m.session == nil {
		secret := m.fleet.options.Join.Secret
		hello.Auth = &wire.Hello_Credential{Credential: &wire.Credential{Name: m.fleet.options.Join.Name, Secret: secret[:]}}
		return hello, nil
	}
	state := conn.ConnectionState()
	exporter, err := state.ExportKeyingMaterial(wire.ResumeExporterLabel, nil, wire.ResumeExporterSize)
	if err != nil {
		return nil, fmt.Errorf("export keying material: %w", err)
	}
	hello.Auth = &wire.Hello_Proof{Proof: wire.ResumeProof(m.session.key, m.epoch, exporter)}
	return hello, nil
}

// say writes a message.
func (c *connection) say(message *wire.ClientMessage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeLimit)) // the write tells
	return c.writer.WriteClientMessage(message)
}

func (c *connection) register(name string) error {
	return c.say((&wire.RegisterTunnel{Spec: &wire.TunnelSpec{Name: name, Type: "tcp"}}).ClientMessage())
}

// interrupt ends a read that is under way.
func (c *connection) interrupt() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) }

// leave says Goodbye and waits for the server to close, or for a moment:
// closing first could make a reset overtake it.
func (c *connection) leave() {
	bye := wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, "the measurement is over"), 0)
	if c.say(bye.ClientMessage()) != nil {
		return // it is gone anyway
	}
	socket := c.conn.NetConn()
	_ = socket.SetReadDeadline(time.Now().Add(farewell))
	_, _ = io.Copy(io.Discard, socket)
}

// end closes the socket beneath TLS: nobody waits for a close_notify.
func (c *connection) end() { _ = c.conn.NetConn().Close() }
