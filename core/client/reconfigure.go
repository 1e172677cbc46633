package client

import (
	"context"
	"reflect"
	"slices"

	"github.com/cproxy/cproxy/core/relay"
)

// reconfigure applies what differs between the current configuration and r.
func (o *owner) reconfigure(ctx context.Context, r Reloadable) {
	old := o.config
	o.config = r
	if r.Settings != old.Settings {
		o.client.engine.Submit(relay.Configure{Settings: r.Settings})
	}
	o.pool.most = max(r.PoolMax, minDials)
	if o.session != nil && r.PoolMax != old.PoolMax {
		o.openPool(o.session.heartbeat)
	}
	o.link.first = false
	kept := make(map[string]bool, len(r.Tunnels))
	for _, config := range r.Tunnels {
		kept[config.Name] = true
	}
	for name, t := range o.tunnels.byName {
		if !kept[name] {
			o.removeTunnel(t)
		}
	}
	for _, config := range r.Tunnels {
		t := o.tunnels.byName[config.Name]
		switch {
		case t == nil:
			o.register(o.addTunnel(config))
		case !reflect.DeepEqual(t.config, config):
			o.replaceTunnel(t, config)
		case t.refused:
			o.renew(t) // the operator may have changed its grants
		}
	}
	switch {
	case !sameAccess(&old, &r):
		if o.session != nil {
			o.session.resumable = false // its key still opens ProxyConns
		}
		o.hurry(ctx)
	case !slices.Equal(old.Servers, r.Servers) || o.link.cancel == nil:
		o.hurry(ctx) // whoever reloads a client that waits wants it to try now
	}
	o.log.Debug("configuration applied", "tunnels", len(r.Tunnels))
}

// hurry begins a new round at once, with what was changed, unless there is a
// connection.
func (o *owner) hurry(ctx context.Context) {
	if o.link.conn != nil {
		return
	}
	o.link.backoff.Reset()
	if o.link.cancel != nil {
		o.link.again = true
		o.link.cancel()
		return
	}
	o.connect(ctx)
}
