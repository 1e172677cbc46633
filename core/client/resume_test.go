package client

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/retry"
	"github.com/cproxy/cproxy/core/wire"
)

// A client that loses every connection soon comes back before the server gives
// its ports up. Longer delays begin when nothing is left to come back to.
func TestFlappingConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &owner{log: discard(), session: &session{resumable: true}}
		o.link.backoff = retry.Backoff{Int64N: func(n int64) int64 { return n - 1 }}
		delay := func() time.Duration {
			o.lost("lost", "server", errSilent, 0)
			return time.Until(o.link.retryAt)
		}
		for range 50 {
			o.link.since = time.Now()
			if got := delay(); got > resumeCeiling {
				t.Fatalf("delay %v although the session may be resumed", got)
			}
			time.Sleep(time.Minute) // connected in between
		}
		if got := delay(); got != 8*time.Second {
			t.Errorf("first delay after the grace is %v", got)
		}
		o.link.since = time.Now()
		o.session.forget()
		if got := delay(); got != 16*time.Second {
			t.Errorf("delay without a session is %v", got)
		}
	})
}

// What changed while the client was away is told to the server when it is back.
func TestReconfiguredWhileAway(t *testing.T) {
	s := newFakeServer(t)
	o := s.options(local("keep"), local("move"), local("drop"))
	r := start(t, o, nil)
	k := s.login().welcome(nil)
	var open []*wire.TunnelRegistered
	for i, name := range []string{"keep", "move", "drop"} {
		k.registers(name)
		at := "127.0.0.1:" + []string{"2001", "2002", "2003"}[i]
		k.accept(name, uint32(i+1), at)
		r.shows(name + " " + at)
		open = append(open, &wire.TunnelRegistered{Name: name, Id: uint32(i + 1), PublicAddresses: []string{at}})
	}
	k.drop()
	k = s.login()
	moved := local("move")
	moved.First, moved.Last = 3000, 3000
	o.Reloadable.Tunnels = []Tunnel{local("keep"), moved, local("new")}
	if err := r.Reconfigure(o.Reloadable); err != nil {
		t.Fatal(err)
	}
	r.logs.Await(t, `msg="configuration applied"`)
	k.welcome(func(w *wire.Welcome) { w.Resumed, w.Tunnels = true, open })
	k.closes("drop")
	if spec := k.registers("move"); spec.GetPortFirst() != 3000 {
		t.Errorf("move is registered as %v", spec)
	}
	k.registers("new")
	k.quiet()
}

// A tunnel that a Welcome has no room for goes on serving visitors, on
// ProxyConns that were there before.
func TestTunnelBeyondTheWelcome(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(Tunnel{Name: "web", Network: "tcp", Address: echo(t, "one")}), nil)
	k, conn := connected(t, s, r)
	k.drop()
	k = s.login().welcome(func(w *wire.Welcome) { w.Resumed = true })
	k.registers("web")
	if got, code := converse(t, conn, 1, 5); got != "one: hello\n" || code != 0 {
		t.Errorf("before the tunnel is told of: %q and %v", got, code)
	}
	k.accept("web", 6, "127.0.0.1:2001") // it had been lost, and is another now
	k.quiet()
	if got, code := converse(t, conn, 2, 6); got != "one: hello\n" || code != 0 {
		t.Errorf("afterwards: %q and %v", got, code)
	}
	if _, code := converse(t, conn, 3, 5); code != frame.ResetTunnel {
		t.Errorf("under the former id: %v", code)
	}
}
