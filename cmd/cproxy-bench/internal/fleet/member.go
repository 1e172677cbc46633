//go:build linux

package fleet

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/cproxy/cproxy/core/retry"
	"github.com/cproxy/cproxy/core/wire"
)

const (
	attemptLimit = 15 * time.Second // from dialling to Welcome
	writeLimit   = 10 * time.Second
	farewell     = time.Second // for the server to read Goodbye
	registerWait = time.Second // after a tunnel was refused for now
	settled      = 10 * time.Second
)

// member is one client. The goroutine of run owns it.
type member struct {
	fleet    *fleet
	name     string
	instance [wire.InstanceSize]byte
	epoch    uint64
	backoff  retry.Backoff
	session  *session // nil: log in with the credential
	opened   map[string]bool
}

// session is what the last Welcome gave.
type session struct {
	control   uint64
	epoch     uint64
	key       []byte
	proxy     string
	proxyID   uint64 // of the last ProxyConn
	heartbeat time.Duration
}

// run keeps the client connected until ctx is done.
func (m *member) run(ctx context.Context) {
	m.opened = make(map[string]bool)
	for ctx.Err() == nil {
		begun := time.Now()
		welcomed, err := m.attend(ctx)
		if ctx.Err() != nil {
			return
		}
		var floor time.Duration
		if refusal, ok := isRefusal(err); ok {
			floor = refusal.RetryAfter
			m.session = nil // whatever the reason, the credential is as good
			m.fleet.tally.refused("client "+m.name, refusal)
		} else {
			m.fleet.tally.broken(welcomed, err)
		}
		if time.Since(begun) > settled {
			m.backoff.Reset()
		}
		if !wait(ctx, m.backoff.NextAfter(floor)) {
			return
		}
	}
}

// attend makes one connection and serves it until it ends.
func (m *member) attend(ctx context.Context) (welcomed bool, err error) {
	c, err := m.login(ctx)
	if err != nil {
		return false, err
	}
	defer c.end()
	stop := context.AfterFunc(ctx, c.interrupt)
	defer stop()
	for i := range m.fleet.options.Tunnels {
		if err := c.register(tunnelName(i)); err != nil {
			return true, err
		}
	}
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(m.session.heartbeat * 5 / 2)) // reading tells
		if ctx.Err() != nil {
			break
		}
		message, err := c.reader.ReadServerMessage()
		if err == nil {
			err = message.Validate()
		}
		if err == nil {
			err = m.answer(ctx, c, message)
		}
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return true, err
		}
	}
	c.leave()
	return true, ctx.Err()
}

func tunnelName(i int) string { return fmt.Sprintf("t%d", i+1) }

// answer does what a message of the server asks for.
func (m *member) answer(ctx context.Context, c *connection, message *wire.ServerMessage) error {
	switch kind := message.GetKind().(type) {
	case *wire.ServerMessage_Ping:
		return c.say((&wire.Pong{Nonce: kind.Ping.GetNonce()}).ClientMessage())
	case *wire.ServerMessage_TunnelRegistered:
		if name := kind.TunnelRegistered.GetName(); !m.opened[name] {
			m.opened[name] = true
			m.fleet.tally.registered()
		}
	case *wire.ServerMessage_TunnelRejected:
		m.rejected(ctx, c, kind.TunnelRejected)
	case *wire.ServerMessage_NeedProxyConn:
		for range kind.NeedProxyConn.GetN() {
			m.openProxy(ctx)
		}
	case *wire.ServerMessage_Goodbye:
		return kind.Goodbye.Err()
	default:
		return fmt.Errorf("the server sent %s where it has no place", message.KindName())
	}
	return nil
}

// rejected asks for a tunnel again that was refused for now.
func (m *member) rejected(ctx context.Context, c *connection, r *wire.TunnelRejected) {
	refusal, ok := isRefusal(r.Err())
	if !ok {
		return
	}
	m.fleet.tally.refused("tunnel "+r.GetName()+" of "+m.name, refusal)
	if refusal.Permanent() {
		return
	}
	m.fleet.tasks.Go(func() {
		if wait(ctx, registerWait) {
			_ = c.register(r.GetName()) // the reader sees what is wrong with the connection
		}
	})
}

// proxyAddress completes the ProxyPort of a Welcome, which may lack its host.
func proxyAddress(address string, peer net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("read proxy address %q: %w", address, err)
	}
	if host != "" {
		return address, nil
	}
	if host, _, err = net.SplitHostPort(peer.String()); err != nil {
		return "", fmt.Errorf("read address of the server: %w", err)
	}
	return net.JoinHostPort(host, port), nil
}

// wait tells whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
