package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/logging"
	"github.com/cproxy/cproxy/core/relay"
)

// Lines that a broken network or LocalServer could produce without end are
// written once in limitEvery for each tunnel and cause.
const (
	limitEvery = 30 * time.Second
	limitKeys  = 1024
)

// errEngineEnded says that the engine ended although nobody asked it to.
var errEngineEnded = errors.New("the relay engine ended unexpectedly: this is a bug, please report it")

// owner holds the state of a running Client. Only the goroutine of run touches
// it.
type owner struct {
	client  *Client
	config  Reloadable
	log     *slog.Logger
	limited *logging.RateLimited
	link    link
	session *session // nil until the first Welcome
	pool    pool
	tunnels tunnelMap
	names   names
	tasks   sync.WaitGroup // every goroutine that the owner started
}

func newOwner(c *Client) *owner {
	return &owner{
		client:  c,
		config:  c.options.Reloadable,
		log:     c.options.Log,
		limited: logging.NewRateLimited(c.options.Log, limitEvery, limitKeys),
		link:    newLink(c.timing),
		tunnels: newTunnelMap(),
		names:   newNames(),
	}
}

// run owns the client until ctx is done, the engine ends, or the client is
// refused for good.
func (o *owner) run(ctx context.Context, engine <-chan error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer o.stop(cancel)
	for _, t := range o.config.Tunnels {
		o.addTunnel(t)
	}
	o.resolve(ctx)
	o.connect(ctx)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(o.patience())
		var err error
		select {
		case <-ctx.Done():
			return nil
		case err = <-engine:
			if err == nil {
				err = errEngineEnded
			}
		case events := <-o.client.engine.Events(): // closed, it gives none until engine does
			o.handleEvents(events)
		case a := <-o.link.attempts:
			err = o.attempted(ctx, a)
		case m := <-o.link.messages:
			err = o.received(ctx, m)
		case r := <-o.client.reloads:
			o.reconfigure(ctx, r)
		case r := <-o.names.results:
			o.resolved(ctx, r)
		case now := <-timer.C:
			o.expired(ctx, now)
		}
		if err != nil {
			return err
		}
	}
}

// stop takes leave of the server and waits for what the owner started.
func (o *owner) stop(cancel context.CancelFunc) {
	cancel()
	if o.link.conn != nil {
		o.client.takeLeave(o.link.conn)
	}
	o.tasks.Wait()
	select {
	case a := <-o.link.attempts:
		if a.conn != nil {
			a.conn.close()
		}
	default:
	}
	if o.session != nil {
		o.session.forget()
	}
	o.limited.Flush()
}

// takeLeave says Goodbye and closes. The server closes when it has read that;
// closing first could make a reset overtake it.
func (c *Client) takeLeave(conn *ctlConn) {
	conn.send(done().ClientMessage())
	farewell := time.NewTimer(c.timing.farewell)
	defer farewell.Stop()
	select {
	case <-conn.ended:
	case <-farewell.C:
	}
	conn.close()
}

// patience is how long until something is due.
func (o *owner) patience() time.Duration {
	next := o.names.next
	if at := o.link.retryAt; !at.IsZero() && at.Before(next) {
		next = at
	}
	for _, at := range o.tunnels.waiting {
		if at.Before(next) {
			next = at
		}
	}
	return max(0, time.Until(next))
}

// expired does what is due.
func (o *owner) expired(ctx context.Context, now time.Time) {
	if at := o.link.retryAt; !at.IsZero() && !at.After(now) {
		o.connect(ctx)
	}
	for name, at := range o.tunnels.waiting {
		if !at.After(now) {
			delete(o.tunnels.waiting, name)
			o.register(o.tunnels.byName[name])
		}
	}
	if !o.names.next.After(now) {
		o.resolve(ctx)
	}
}

// handleEvents takes a batch of the engine's events.
func (o *owner) handleEvents(events []relay.Event) {
	for _, event := range events {
		switch ev := event.(type) {
		case relay.ConnOpened:
			o.pool.opened(ev.Pool)
		case relay.ConnClosed:
			o.pool.closed(ev.Pool)
			o.log.Debug("proxy connection closed", "open", o.pool.open, "reason", ev.Reason.String())
		case relay.DialFailed:
			if o.pool.failed(ev.Pool) {
				o.limited.Log(slog.LevelWarn, "dial "+dialAdvice(ev.Err), "cannot open a proxy connection", "control", o.session.control,
					"address", o.session.proxy.String(), "error", fmt.Errorf("%w: %s", ev.Err, dialAdvice(ev.Err)))
			}
		case relay.StreamEnded:
			o.streamEnded(ev)
		}
	}
	o.dial()
}
