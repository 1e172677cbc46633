package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cproxy/cproxy/core/retry"
	"github.com/cproxy/cproxy/core/wire"
)

// settled is how long a connection has to last before its loss counts as a
// first failure. Else a server that accepts and drops would be asked all the
// time.
const settled = 10 * time.Second

// link is the way to the server: an attempt under way, a connection, or a time
// to try again.
type link struct {
	epoch    uint64 // of the last attempt
	conn     *ctlConn
	since    time.Time          // when conn was opened
	cancel   context.CancelFunc // ends the attempt under way; nil when there is none
	again    bool               // its outcome does not count: try again at once
	retryAt  time.Time          // zero when nothing is waited for
	welcomed bool               // there was a connection once
	first    bool               // conn is the first, and no tunnel was ever accepted on it
	backoff  retry.Backoff
	attempts chan attempt
	messages chan received
}

func newLink(t timing) link {
	return link{
		backoff:  retry.Backoff{Int64N: t.draw},
		attempts: make(chan attempt, 1),
		messages: make(chan received),
	}
}

// connect starts an attempt.
func (o *owner) connect(ctx context.Context) {
	o.link.retryAt = time.Time{}
	o.link.epoch++
	l := login{access: o.config, epoch: o.link.epoch}
	if o.session != nil && o.session.resumable {
		l.key = append([]byte(nil), o.session.key...)
	}
	ctx, o.link.cancel = context.WithCancel(ctx)
	o.tasks.Go(func() {
		a := o.client.connect(ctx, l)
		clear(l.key)
		o.link.attempts <- a // there is one attempt at a time, and room for it
	})
}

// attempted takes the outcome of an attempt. Its error ends the client.
func (o *owner) attempted(ctx context.Context, a attempt) error {
	o.link.cancel()
	o.link.cancel = nil
	again := o.link.again
	o.link.again = false
	if a.err == nil {
		o.opened(ctx, a)
		return nil
	}
	refused, isRefused := errors.AsType[*wire.RefusedError](a.err)
	if a.proved && isRefused && (refused.Permanent() || refused.Code() == wire.CodeNotResumable) {
		o.session.forget()
		again = again || refused.Code() == wire.CodeNotResumable
	}
	if again {
		o.log.Debug("connecting again at once", "address", o.client.options.Server, "error", a.err)
		o.connect(ctx)
		return nil
	}
	_, setup := errors.AsType[*setupError](a.err)
	if !o.link.welcomed && (setup || IsRefused(a.err)) {
		return a.err
	}
	o.lost("cannot connect to the server", a.err)
	return nil
}

// opened begins to use a new connection.
func (o *owner) opened(ctx context.Context, a attempt) {
	o.link.conn = a.conn
	o.link.since = time.Now()
	o.link.first = !o.link.welcomed
	o.link.welcomed = true
	o.tasks.Go(func() { a.conn.write(o.client.timing.write) })
	o.tasks.Go(func() { a.conn.read(ctx, o.link.messages) })
	resumed := o.welcome(a)
	o.log.Info("connected", "address", o.client.options.Server, "control", o.session.control, "resumed", resumed,
		"server_version", a.welcome.GetServerVersion())
	o.reconcile(a.welcome, resumed)
}

// received takes a message of the server. Its error ends the client.
func (o *owner) received(m received) error {
	if m.conn != o.link.conn {
		return nil // of a connection that was given up
	}
	if m.err != nil {
		o.disconnected(m.err)
		return nil
	}
	switch kind := m.message.GetKind().(type) {
	case *wire.ServerMessage_TunnelRegistered:
		o.registered(kind.TunnelRegistered)
	case *wire.ServerMessage_TunnelRejected:
		return o.rejected(kind.TunnelRejected)
	case *wire.ServerMessage_NeedProxyConn:
		o.pool.need(int(kind.NeedProxyConn.GetN()))
		o.dial()
	case *wire.ServerMessage_Ping:
		m.conn.send((&wire.Pong{Nonce: kind.Ping.GetNonce()}).ClientMessage())
	case *wire.ServerMessage_Goodbye:
		o.disconnected(kind.Goodbye.Err())
	default:
		o.disconnected(fmt.Errorf("the server sent %s where it has no place: check that both ends are CProxy", m.message.KindName()))
	}
	return nil
}

// disconnected gives up the connection. Pool, targets and streams stay.
func (o *owner) disconnected(err error) {
	o.link.conn.close()
	o.link.conn = nil
	o.link.first = false
	o.pool.wanted = 0
	clear(o.tunnels.waiting) // a new connection registers everything
	if refused, ok := errors.AsType[*wire.RefusedError](err); ok && endsSession(refused) {
		o.session.forget()
	}
	if time.Since(o.link.since) >= settled {
		o.link.backoff.Reset()
	}
	what := "lost the connection to the server; streams go on"
	if _, told := errors.AsType[*wire.RefusedError](err); told {
		what = "the server ended the connection" // and perhaps streams with it
	}
	o.lost(what, err)
}

// lost waits for the next attempt.
func (o *owner) lost(what string, err error) {
	delay := o.reconnectDelay(err)
	o.link.retryAt = time.Now().Add(delay)
	args := []any{"address", o.client.options.Server, "retry_in", delay.Round(time.Millisecond), "error", err}
	if IsRefused(err) {
		o.log.Error(what, args...)
		return
	}
	o.log.Warn(what, args...)
}

// reconnectDelay is how long to wait after err.
func (o *owner) reconnectDelay(err error) time.Duration {
	var floor time.Duration
	if refused, ok := errors.AsType[*wire.RefusedError](err); ok {
		floor = refused.RetryAfter
		if refused.Code() == wire.CodeSuperseded {
			floor = max(floor, o.client.timing.superseded)
		}
	}
	return o.link.backoff.NextAfter(floor)
}

// endsSession tells after which words of the server no proof will be accepted.
func endsSession(refused *wire.RefusedError) bool {
	switch refused.Code() {
	case wire.CodeSuperseded, wire.CodeNotResumable, wire.CodeDone:
		return true
	default:
		return refused.Permanent()
	}
}
