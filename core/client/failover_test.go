package client

import (
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// severalFakes starts servers, and gives the options of a client of them all.
func severalFakes(t *testing.T, n int, tunnels ...Tunnel) (fleet []*fakeServer, o Options) {
	t.Helper()
	var addresses []string
	var pins []identity.Pin
	for range n {
		s := newFakeServer(t)
		fleet = append(fleet, s)
		addresses = append(addresses, s.ctl.Addr().String())
		pins = append(pins, s.id.Pin())
	}
	o = fleet[0].options(tunnels...)
	o.Reloadable.Servers, o.Reloadable.Trust.Pins = addresses, pins
	return fleet, o
}

// nextOf waits for the next Hello at any of the servers, which has to come at
// the one with the index want.
func nextOf(t *testing.T, fleet []*fakeServer, want int) *fakeControl {
	t.Helper()
	cases := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(time.After(patience))}}
	for _, s := range fleet {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(s.logins)})
	}
	_, got, _ := reflect.Select(cases)
	k, ok := reflect.TypeAssert[*fakeControl](got)
	if !ok {
		t.Fatal("the client did not log in")
	}
	t.Cleanup(func() { _ = k.conn.NetConn().Close() })
	if k.server != fleet[want] {
		t.Fatalf("the client came to %s, want %s", k.server.ctl.Addr(), fleet[want].ctl.Addr())
	}
	return k
}

// draws counts the delays that a client draws, each of them zero.
type draws struct{ n atomic.Int64 }

func (d *draws) use(c *Client) {
	c.timing.draw = func(int64) int64 { d.n.Add(1); return 0 }
}

func TestServersAreTriedInTurn(t *testing.T) {
	fleet, o := severalFakes(t, 3, local("web"))
	var d draws
	r := start(t, o, d.use)
	nextOf(t, fleet, 0).goodbye(wire.CodeUnavailable)
	nextOf(t, fleet, 1).drop()
	k := nextOf(t, fleet, 2)
	if n := d.n.Load(); n != 0 {
		t.Errorf("%d delays lie between the servers of a round", n)
	}
	if k.hello.GetEpoch() != 3 || k.hello.GetCredential().GetName() != "token" {
		t.Errorf("third Hello: %v, want epoch 3 with the same token", k.hello)
	}
	k.welcome(nil).registers("web")
	k.accept("web", 1, "[::]:2001")
	r.shows("web 127.0.0.1:2001")
	k.drop()

	// A lost connection is tried at the same server first, then around the list.
	k = nextOf(t, fleet, 2)
	if !wire.CheckResumeProof(k.hello.GetProof(), sessionKey(3), 4, k.exporter) {
		t.Errorf("Hello: %v, want a proof", k.hello)
	}
	k.drop()
	for _, at := range []int{0, 1} {
		if k = nextOf(t, fleet, at); k.hello.GetProof() != nil {
			t.Errorf("the session of another server was proved: %v", k.hello)
		}
		if n := d.n.Load(); n != 1 {
			t.Errorf("%d delays since the connection was lost, want 1", n)
		}
		k.goodbye(wire.CodeUnavailable)
	}
	// The next round begins there too: the session may still be known.
	if k = nextOf(t, fleet, 2); k.hello.GetProof() == nil {
		t.Errorf("Hello: %v, want a proof", k.hello)
	}
	if n := d.n.Load(); n != 2 {
		t.Errorf("%d delays after a round, want 2", n)
	}
	k.welcome(func(w *wire.Welcome) {
		w.Resumed = true
		w.Tunnels = []*wire.TunnelRegistered{{Name: "web", Id: 1, PublicAddresses: []string{"[::]:2001"}}}
	}).quiet()
}

// Another server knows nothing of the session, whatever it says, and its own is
// proved to it alone.
func TestSessionOfAnotherServer(t *testing.T) {
	fleet, o := severalFakes(t, 2, local("web"))
	r := start(t, o, nil)
	k := nextOf(t, fleet, 0).welcome(nil)
	k.registers("web")
	k.accept("web", 1, "127.0.0.1:2001")
	r.shows("web 127.0.0.1:2001")
	k.drop()
	nextOf(t, fleet, 0).drop()

	k = nextOf(t, fleet, 1)
	if k.hello.GetCredential() == nil {
		t.Errorf("Hello: %v, want the credential", k.hello)
	}
	k.welcome(func(w *wire.Welcome) {
		w.Resumed = true // and the same control id
		w.Tunnels = []*wire.TunnelRegistered{{Name: "web", Id: 1, PublicAddresses: []string{"127.0.0.1:2001"}}}
	}).registers("web")
	k.accept("web", 5, "127.0.0.1:2002")
	r.shows("web 127.0.0.1:2002")
	r.logs.Await(t, "resumed=false")
	key := sessionKey(k.hello.GetEpoch())
	k.drop()
	k = nextOf(t, fleet, 1)
	if !wire.CheckResumeProof(k.hello.GetProof(), key, k.hello.GetEpoch(), k.exporter) {
		t.Errorf("Hello: %v, want a proof for the second server's session", k.hello)
	}
}

// A server that does not know the session any more is asked again with the
// credential, before any other.
func TestNotResumableAmongSeveral(t *testing.T) {
	fleet, o := severalFakes(t, 2)
	start(t, o, nil)
	nextOf(t, fleet, 0).welcome(nil).drop()
	nextOf(t, fleet, 0).goodbye(wire.CodeNotResumable)
	if k := nextOf(t, fleet, 0); k.hello.GetCredential() == nil {
		t.Errorf("Hello: %v, want the credential", k.hello)
	}
}

func TestRefusedForGoodByOneOfSeveral(t *testing.T) {
	fleet, o := severalFakes(t, 2)
	o.Reloadable.Trust.Pins = o.Reloadable.Trust.Pins[:1] // the second one's key is unknown
	third := newFakeServer(t)
	fleet = append(fleet, third)
	o.Reloadable.Servers = append(o.Reloadable.Servers, third.ctl.Addr().String())
	o.Reloadable.Trust.Pins = append(o.Reloadable.Trust.Pins, third.id.Pin())
	r := start(t, o, nil)
	nextOf(t, fleet, 0).goodbye(wire.CodeBadCredential)
	nextOf(t, fleet, 2).goodbye(wire.CodeUnavailable) // so there is hope
	nextOf(t, fleet, 0).goodbye(wire.CodeForbidden)
	nextOf(t, fleet, 2).welcome(nil).quiet()
	for _, want := range []string{
		`level=ERROR msg="cannot connect to the server; trying the next one" address=` + o.Reloadable.Servers[0],
		`level=ERROR msg="cannot connect to the server; trying the next one" address=` + o.Reloadable.Servers[1],
		"next=" + o.Reloadable.Servers[2], "retry_in=0s",
	} {
		r.logs.Await(t, want)
	}
}

func TestRefusedForGoodByAll(t *testing.T) {
	fleet, o := severalFakes(t, 2)
	r := start(t, o, nil)
	nextOf(t, fleet, 0).goodbye(wire.CodeBadCredential)
	nextOf(t, fleet, 1).goodbye(wire.CodeForbidden)
	err := r.result()
	if !IsRefused(err) {
		t.Fatalf("Run = %v, want a refusal for good", err)
	}
	for _, want := range append([]string{"every server", "bad credential", "forbidden"}, o.Reloadable.Servers...) {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

// Whoever was superseded does not go and serve elsewhere.
func TestSupersededAmongSeveral(t *testing.T) {
	fleet, o := severalFakes(t, 2)
	r := start(t, o, nil)
	k := nextOf(t, fleet, 0).welcome(nil)
	for range 3 {
		k.goodbye(wire.CodeSuperseded)
		if k = nextOf(t, fleet, 0); k.hello.GetCredential() == nil {
			t.Errorf("Hello: %v, want the credential", k.hello)
		}
	}
	k.welcome(nil).quiet()
	if !strings.Contains(r.logs.String(), "give each its own `name`") {
		t.Errorf("the log does not say what to do:\n%s", r.logs)
	}
}

// A server that names a time is left alone until then, while another serves.
func TestRetryAfterIsOfOneServer(t *testing.T) {
	fleet, o := severalFakes(t, 2)
	start(t, o, nil)
	k := nextOf(t, fleet, 0)
	k.send(wire.NewGoodbye(wire.NewRefusal(wire.CodeShutdown, ""), time.Hour).ServerMessage())
	k.drop()
	for range 3 {
		nextOf(t, fleet, 1).goodbye(wire.CodeUnavailable)
	}
}

// A server that stops wants to be left alone for a while, and sends its clients to
// the others by that; one without others waits.
func TestStoppingServerSendsToTheNext(t *testing.T) {
	stop := func(k *fakeControl, retry time.Duration) {
		k.send(wire.NewGoodbye(wire.NewRefusal(wire.CodeShutdown, ""), retry).ServerMessage())
		k.drop()
	}
	t.Run("several", func(t *testing.T) {
		fleet, o := severalFakes(t, 2)
		r := start(t, o, nil)
		k := nextOf(t, fleet, 0).welcome(nil)
		stop(k, time.Hour)
		if k = nextOf(t, fleet, 1); k.hello.GetCredential() == nil {
			t.Errorf("Hello: %v, want the credential", k.hello)
		}
		k.welcome(nil)
		stop(k, 24*time.Hour)
		r.logs.Await(t, "address="+o.Reloadable.Servers[1]+" retry_in=")
		if log := r.logs.String(); strings.Contains(log, "retry_in=24h") {
			t.Errorf("it waits for the second although the first may be asked before:\n%s", log)
		}
	})
	t.Run("one", func(t *testing.T) {
		fleet, o := severalFakes(t, 1)
		r := start(t, o, nil)
		stop(nextOf(t, fleet, 0).welcome(nil), time.Hour)
		r.logs.Await(t, "retry_in=1h")
	})
}

func TestTunnelsRefusedByOneOfSeveral(t *testing.T) {
	for name, accepts := range map[string]bool{"the other opens them": true, "the other refuses as well": false} {
		t.Run(name, func(t *testing.T) {
			fleet, o := severalFakes(t, 2, local("web"))
			r := start(t, o, nil)
			k := nextOf(t, fleet, 0).welcome(nil)
			k.registers("web")
			k.reject("web", wire.CodePortNotGranted)
			if m := k.next(); m.GetGoodbye().GetRefusal().GetCode() != wire.CodeDone {
				t.Errorf("got %v, want Goodbye", m)
			}
			k.drop()
			k = nextOf(t, fleet, 1).welcome(nil)
			k.registers("web")
			if accepts {
				k.accept("web", 1, "127.0.0.1:2001")
				r.shows("web 127.0.0.1:2001")
				return
			}
			k.reject("web", wire.CodeTunnelLimit)
			err := r.result()
			refused, _ := errors.AsType[*wire.RefusedError](err)
			if !IsRefused(err) || refused.Code() != wire.CodePortNotGranted || !strings.Contains(err.Error(), "too many tunnels") {
				t.Errorf("Run = %v, want both refusals", err)
			}
		})
	}
}

// A reload of the list counts from the next attempt on.
func TestReloadOfServers(t *testing.T) {
	t.Run("connected", func(t *testing.T) {
		fleet, o := severalFakes(t, 2)
		r := start(t, o, nil)
		k := nextOf(t, fleet, 0).welcome(nil)
		k.quiet()
		next := o.Reloadable
		next.Servers = next.Servers[1:]
		if err := r.Reconfigure(next); err != nil {
			t.Fatal(err)
		}
		r.logs.Await(t, "configuration applied")
		k.quiet()
		k.drop()
		if k = nextOf(t, fleet, 1); k.hello.GetCredential() == nil {
			t.Errorf("Hello: %v, want the credential", k.hello)
		}
	})
	t.Run("waiting", func(t *testing.T) {
		fleet, o := severalFakes(t, 2)
		both := o.Reloadable
		o.Reloadable.Servers = o.Reloadable.Servers[:1]
		r := start(t, o, nil)
		k := nextOf(t, fleet, 0)
		k.send(wire.NewGoodbye(wire.NewRefusal(wire.CodeShutdown, ""), 24*time.Hour).ServerMessage())
		k.drop()
		r.logs.Await(t, "retry_in=24h")
		if err := r.Reconfigure(both); err != nil {
			t.Fatal(err)
		}
		nextOf(t, fleet, 1).welcome(nil).quiet()
	})
	t.Run("connecting", func(t *testing.T) {
		fleet, o := severalFakes(t, 2)
		r := start(t, o, nil)
		k := nextOf(t, fleet, 0) // has no answer
		next := o.Reloadable
		next.Servers = next.Servers[1:]
		if err := r.Reconfigure(next); err != nil {
			t.Fatal(err)
		}
		nextOf(t, fleet, 1).welcome(nil).quiet()
		k.drop()
	})
}

// checked accepts a check of both ports.
func (k *fakeControl) checked() {
	k.t.Helper()
	k.welcome(nil)
	conn, p, _ := k.server.proxyConn()
	ready(k.t, conn, p, sessionKey(p.Epoch))
	if m := k.next(); m.GetGoodbye() == nil {
		k.t.Errorf("got %v, want Goodbye", m)
	}
}

func TestCheckOfSeveral(t *testing.T) {
	tests := []struct {
		name    string
		second  func(k *fakeControl)
		ok      bool
		refused bool
	}{
		{"accepted", func(k *fakeControl) { k.checked() }, true, false},
		{"refused", func(k *fakeControl) { k.goodbye(wire.CodeBadCredential) }, false, true},
		{"refused for now", func(k *fakeControl) { k.goodbye(wire.CodeUnavailable) }, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fleet, o := severalFakes(t, 3)
			o.Log = discard()
			c, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			result := make(chan error, 1)
			go func() { result <- c.Check(t.Context()) }()
			nextOf(t, fleet, 0).checked()
			tt.second(nextOf(t, fleet, 1))
			nextOf(t, fleet, 2).checked()
			if err = <-result; (err == nil) != tt.ok || IsRefused(err) != tt.refused {
				t.Fatalf("Check = %v", err)
			}
			if !tt.ok && !strings.Contains(err.Error(), o.Reloadable.Servers[1]) {
				t.Errorf("%q does not name the server", err)
			}
		})
	}
}
