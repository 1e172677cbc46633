package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cproxy/cproxy/core/retry"
	"github.com/cproxy/cproxy/core/wire"
)

// settled is how long a connection has to last before its loss counts as a
// first failure. Else a server that accepts and drops would be asked all the
// time.
const settled = 10 * time.Second

// longestWait bounds the jitter of a delay: who mends a network or a server does
// not want to wait much longer for its clients.
const longestWait = time.Minute

// For resumeLife after a loss the server is taken to keep the session: its
// default grace. So long the delays stay below resumeCeiling, however often the
// connection was lost before, or the tunnels of a flapping network would close.
const (
	resumeLife    = 30 * time.Second
	resumeCeiling = 5 * time.Second
)

// link is the way to the server: an attempt under way, a connection, or a time
// to try again.
type link struct {
	epoch    uint64 // of the last attempt
	conn     *ctlConn
	since    time.Time          // when conn was opened, or the last one lost
	cancel   context.CancelFunc // ends the attempt under way; nil when there is none
	again    bool               // its outcome does not count: try again at once
	retryAt  time.Time          // zero when nothing is waited for
	welcomed bool               // there was a connection once
	first    bool               // conn is the first, and no tunnel was ever accepted on it
	round    round
	backoff  retry.Backoff
	attempts chan attempt
	messages chan received
}

func newLink(t timing) link {
	return link{
		backoff:  retry.Backoff{Max: longestWait, Int64N: t.draw},
		attempts: make(chan attempt, 1),
		messages: make(chan received),
	}
}

// connect starts a round of attempts, at the server that may still know the
// session.
func (o *owner) connect(ctx context.Context) {
	o.link.retryAt = time.Time{}
	first := ""
	if o.session != nil {
		first = o.session.server
	}
	o.link.round.begin(o.config.Servers, first, time.Now())
	o.try(ctx)
}

// try starts an attempt. The session is proved to nobody but the server that
// gave it.
func (o *owner) try(ctx context.Context) {
	o.link.epoch++
	l := login{server: o.link.round.server, access: o.config, epoch: o.link.epoch}
	if o.session != nil && o.session.resumable && o.session.server == l.server {
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
	if ctx.Err() != nil {
		return nil // the client ends, and the attempt by it
	}
	refused, isRefused := errors.AsType[*wire.RefusedError](a.err)
	unknown := a.proved && isRefused && refused.Code() == wire.CodeNotResumable
	if a.proved && (unknown || isRefused && refused.Permanent()) {
		o.session.forget()
	}
	switch {
	case again:
		o.log.Debug("connecting again at once", "address", a.server, "error", a.err)
		o.connect(ctx)
	case unknown:
		o.log.Debug("connecting again at once", "address", a.server, "error", a.err)
		o.try(ctx)
	default:
		return o.failed(ctx, a.err)
	}
	return nil
}

// failed goes on to the next server of the round, or waits for the next round.
// Its error ends the client: before the first connection, when this host is at
// fault or no server is left that may accept it some day.
func (o *owner) failed(ctx context.Context, err error) error {
	if _, setup := errors.AsType[*setupError](err); setup && !o.link.welcomed {
		return err
	}
	r, now := &o.link.round, time.Now()
	server := r.server
	r.failed(err, now)
	if r.next() {
		o.warn(err, "cannot connect to the server; trying the next one", "address", server, "next", r.server, "error", err)
		o.try(ctx)
		return nil
	}
	floor := r.wait(o.config.Servers, now)
	if end := r.verdict(); end != nil {
		if !o.link.welcomed {
			return end
		}
		floor = max(floor, o.client.timing.refused)
	}
	if isSuperseded(err) {
		floor = reconnectFloor(err, o.client.timing)
	}
	o.lost("cannot connect to the server", server, err, floor)
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
	o.log.Info("connected", "address", a.server, "control", o.session.control, "resumed", resumed,
		"server_version", a.welcome.GetServerVersion())
	o.reconcile(a.welcome, resumed)
}

// received takes a message of the server. Its error ends the client.
func (o *owner) received(ctx context.Context, m received) error {
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
		if err := o.rejected(kind.TunnelRejected); err != nil {
			return o.leave(ctx, err)
		}
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
	o.link.since = time.Now()
	what := "lost the connection to the server; streams go on"
	if _, told := errors.AsType[*wire.RefusedError](err); told {
		what = "the server ended the connection" // and perhaps streams with it
	}
	now := time.Now()
	o.link.round.note(err, now)
	floor := reconnectFloor(err, o.client.timing)
	if !isSuperseded(err) && !IsRefused(err) { // another server need not be waited for
		floor = min(floor, o.link.round.wait(o.config.Servers, now))
	}
	o.lost(what, o.session.server, err, floor)
}

// leave gives up the first connection, on which every tunnel was refused for
// good. Its error ends the client unless another server may open them.
func (o *owner) leave(ctx context.Context, err error) error {
	if len(o.config.Servers) == 1 {
		return err
	}
	conn := o.link.conn
	o.tasks.Go(func() { o.client.takeLeave(conn) })
	o.link.conn = nil
	o.link.first, o.link.welcomed = false, false
	o.pool.wanted = 0
	clear(o.tunnels.waiting)
	o.session.forget()
	return o.failed(ctx, fmt.Errorf("use %s: %w", o.session.server, err))
}

// lost waits for the next round, at least for floor.
func (o *owner) lost(what, server string, err error, floor time.Duration) {
	delay := o.reconnectDelay(floor)
	o.link.retryAt = time.Now().Add(delay)
	o.warn(err, what, "address", server, "retry_in", delay.Round(time.Millisecond), "error", err)
}

// reconnectDelay is how long to wait for the next round.
func (o *owner) reconnectDelay(floor time.Duration) time.Duration {
	if o.session != nil && o.session.resumable && time.Since(o.link.since) < resumeLife {
		return o.link.backoff.NextWithin(resumeCeiling, floor)
	}
	return o.link.backoff.NextAfter(floor)
}

// warn logs a failed connection, louder if only somebody's help will mend it.
func (o *owner) warn(err error, what string, args ...any) {
	level := slog.LevelWarn
	if IsRefused(err) {
		level = slog.LevelError
	}
	o.log.Log(context.Background(), level, what, args...)
}

// reconnectFloor is the least time to wait after err, the end of a connection.
func reconnectFloor(err error, t timing) time.Duration {
	refused, ok := errors.AsType[*wire.RefusedError](err)
	switch {
	case !ok:
		return 0
	case refused.Code() == wire.CodeSuperseded:
		return max(refused.RetryAfter, t.superseded)
	default:
		return refused.RetryAfter
	}
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
