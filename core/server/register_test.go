package server

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func TestRegister(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		if wel := p.welcome; wel.GetResumed() || len(wel.GetTunnels()) > 0 || wel.GetMode() != wire.ModePlain ||
			wel.GetProxyAddress() != ":7001" || wel.Heartbeat() != testPolicy().Heartbeat || wel.GetPoolMax() != 8 {
			t.Errorf("welcome %v", wel)
		}
		pools := commands[relay.OpenPool](w)
		if len(pools) != 1 || pools[0].Side != relay.ServerSide || pools[0].MaxIdle != 8 || pools[0].Heartbeat != testPolicy().Heartbeat {
			t.Fatalf("pools %v", pools)
		}

		r := p.register(spec("web", 8080))
		if !slices.Equal(r.GetPublicAddresses(), []string{"127.0.0.1:8080"}) {
			t.Errorf("registered %v", r)
		}
		synctest.Wait()
		w.engine.mu.Lock()
		all := slices.Clone(w.engine.commands)
		w.engine.mu.Unlock()
		listens := commands[relay.Listen](w)
		if len(listens) != 1 {
			t.Fatalf("listens %v", listens)
		}
		l := listens[0]
		want := relay.ToPool{Pool: pools[0].Pool, Wire: r.GetId(), MaxConns: 100}
		if l.Route != nil || !slices.Equal(l.Ports, []uint16{8080}) || !slices.Equal(l.Binds, []netip.Addr{loopback}) {
			t.Errorf("listen %v, want no route yet", l)
		}

		// Visitors are let in when the client has said that it knows the tunnel.
		if got := all[len(all)-1]; got != relay.Command(relay.Reroute{Tunnel: l.Tunnel, Route: want}) {
			t.Errorf("the last command is %v, want the route %v", got, want)
		}

		again := p.register(spec("web", 8080))
		if again.GetId() != r.GetId() || len(w.sequence()) > 0 {
			t.Errorf("registering again gave %v and told the engine", again)
		}
	})
}

func TestRegisterRandomPort(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		r := p.register(spec("web", 0))
		l := commands[relay.Listen](w)[0]
		for _, port := range l.Ports {
			if w.hub.site.ephemeral.Contains(port) {
				t.Errorf("candidate %d is ephemeral", port)
			}
		}
		// The port stays with the tunnel: also when another client has been
		// there, and one that is taken is passed over.
		p.say((&wire.CloseTunnel{Name: "web"}).ClientMessage())
		if again := p.register(spec("web", 0)); !slices.Equal(again.GetPublicAddresses(), r.GetPublicAddresses()) {
			t.Errorf("first %v, then %v", r, again)
		}
		p.say((&wire.CloseTunnel{Name: "web"}).ClientMessage())
		w.occupy(l.Ports[0])
		want := netip.AddrPortFrom(loopback, l.Ports[1]).String()
		if next := p.register(spec("web", 0)); next.GetPublicAddresses()[0] != want {
			t.Errorf("got %v, want %s", next, want)
		}
	})
}

func TestChangedSpecWaitsForItsPort(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		first := p.register(spec("web", 8080))
		w.sequence()
		w.engine.slow = true

		changed := spec("web", 8080)
		changed.Bind = []string{"127.0.0.1"}
		p.ask(changed)
		p.silent()
		if got := w.sequence(); !slices.Equal(got, []string{"Unlisten"}) {
			t.Fatalf("commands %v", got)
		}
		p.ask(changed) // the answer is under way
		p.silent()
		w.engine.release()
		r := hear(p, (*wire.ServerMessage).GetTunnelRegistered)
		if r.GetId() == first.GetId() {
			t.Error("the new tunnel has the old one's id")
		}
		if got := w.sequence(); !slices.Equal(got, []string{"Listen", "Reroute"}) {
			t.Errorf("commands %v", got)
		}
		p.silent()
	})
}

func TestChangedAgainBeforeItOpened(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		p.register(spec("web", 8080))
		w.engine.slow = true
		p.ask(spec("web", 8081))
		p.ask(spec("web", 8082))
		p.ask(spec("web", 8080))
		p.silent()
		w.sequence()
		w.engine.release()
		r := hear(p, (*wire.ServerMessage).GetTunnelRegistered)
		if r.GetPublicAddresses()[0] != "127.0.0.1:8080" {
			t.Errorf("registered %v", r)
		}
		if listens := commands[relay.Listen](w); len(listens) != 1 {
			t.Errorf("%d tunnels were opened", len(listens))
		}
		p.silent()
	})
}

func TestClosedBeforeItOpened(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		p.register(spec("web", 8080))
		w.engine.slow = true
		p.ask(spec("web", 8081))
		p.say((&wire.CloseTunnel{Name: "web"}).ClientMessage())
		p.silent()
		w.sequence()
		w.engine.release()
		if got := w.sequence(); len(got) > 0 {
			t.Errorf("commands %v", got)
		}
		p.silent()
		p.say((&wire.CloseTunnel{Name: "never-there"}).ClientMessage())
		p.register(spec("web", 8080))
	})
}

// A port that is just being closed is free for the next, whoever asks.
func TestPortPassesOn(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		p.register(spec("web", 8080))
		q := w.dial()
		q.token = "bob"
		q.login()
		w.engine.slow = true
		p.say((&wire.CloseTunnel{Name: "web"}).ClientMessage())
		p.ask(spec("site", 8080))
		p.silent()
		q.register(spec("other", 8081)) // nobody else waits
		q.ask(spec("web", 8080))
		q.silent()
		w.sequence()
		w.engine.release()
		if r := hear(p, (*wire.ServerMessage).GetTunnelRegistered); r.GetName() != "site" {
			t.Errorf("registered %v", r)
		}
		hear(q, (*wire.ServerMessage).GetTunnelRegistered)
		listens := commands[relay.Listen](w)
		if len(listens) != 2 || listens[0].Tunnel > listens[1].Tunnel {
			t.Errorf("listens %v", listens)
		}
	})
}

func TestRegisterRefusals(t *testing.T) {
	policy := testPolicy()
	policy.MaxTunnels = 3
	policy.Ports = []identity.PortRange{{First: 5000, Last: 6000}}
	udp, elsewhere := spec("a", 5000), spec("a", 5000)
	udp.Type = "udp"
	elsewhere.Bind = []string{"192.0.2.1"}
	ranged := spec("a", 5001)
	ranged.PortLast = 5002
	tests := []struct {
		name      string
		spec      *wire.TunnelSpec
		taken     error
		code      wire.Code
		permanent bool
		says      string
	}{
		{"taken", spec("a", 5001), syscall.EADDRINUSE, wire.CodePortTaken, false, "port 5001 is in use"},
		{"range taken", ranged, syscall.EADDRINUSE, wire.CodePortTaken, false, "5001-5002"},
		{"privileged", spec("a", 5001), syscall.EACCES, wire.CodePortOutOfRange, true, "CAP_NET_BIND_SERVICE"},
		{"no such address", spec("a", 5001), syscall.EADDRNOTAVAIL, wire.CodeBindNotGranted, true, "bind address"},
		{"out of range", spec("a", 4999), nil, wire.CodePortOutOfRange, true, "limits.ports [5000-6000]"},
		{"not granted", spec("a", 5600), nil, wire.CodePortNotGranted, true, "not granted to this token ([5000-5500])"},
		{"bind", elsewhere, nil, wire.CodeBindNotGranted, true, "192.0.2.1"},
		{"type", udp, nil, wire.CodeBadRequest, true, "udp"},
	}
	inWorld(t, policy, func(w *world) {
		t := w.t
		w.guard.grants["alice"] = identity.Grants{Ports: []identity.PortRange{{First: 5000, Last: 5500}}}
		p := w.dial().login()
		for _, test := range tests {
			for _, port := range []uint16{5001, 5002} {
				w.engine.taken[port] = nil
				if test.taken != nil {
					w.engine.taken[port] = errors.Join(errors.New("listen"), test.taken)
				}
			}
			r := p.rejected(test.spec, test.code)
			if r.GetPermanent() != test.permanent || !strings.Contains(r.GetReason(), test.says) {
				t.Errorf("%s: %v", test.name, r)
			}
			if n := len(w.control(p).tunnels) + len(w.hub.maps.tunnels); n > 0 {
				t.Errorf("%s: %d entries are left", test.name, n)
			}
		}
		clear(w.engine.taken)
		p.register(spec("a", 5001)) // a refusal costs nothing later
	})
}

func TestTunnelLimit(t *testing.T) {
	tests := []struct {
		name            string
		policy, granted int
		want            int
	}{
		{"the server's", 2, 0, 2},
		{"the grant's", 5, 2, 2},
		{"the server's is lower", 2, 5, 2},
		{"the grant's alone", 0, 2, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			policy := testPolicy()
			policy.MaxTunnels = test.policy
			inWorld(t, policy, func(w *world) {
				t := w.t
				w.guard.grants["alice"] = identity.Grants{MaxTunnels: test.granted}
				p := w.dial().login()
				names := []string{"a", "b", "c", "d", "e", "f"}
				for i, name := range names[:test.want] {
					p.register(spec(name, 5000+i))
				}
				if r := p.rejected(spec(names[test.want], 6000), wire.CodeTunnelLimit); !r.GetPermanent() {
					t.Error("the limit is temporary")
				}
				p.register(spec("a", 6000)) // another spec for one that is there
				p.say((&wire.CloseTunnel{Name: "b"}).ClientMessage())
				p.register(spec("f", 6001))
			})
		})
	}
}

func TestNonsenseEndsTheConnection(t *testing.T) {
	backwards := spec("a", 10)
	backwards.PortLast = 5
	notAddress := spec("a", 0)
	notAddress.Bind = []string{"example.com"}
	tests := []struct {
		name    string
		message *wire.ClientMessage
	}{
		{"no kind", &wire.ClientMessage{}},
		{"no name", (&wire.RegisterTunnel{Spec: spec("", 0)}).ClientMessage()},
		{"no spec", (&wire.RegisterTunnel{}).ClientMessage()},
		{"backwards", (&wire.RegisterTunnel{Spec: backwards}).ClientMessage()},
		{"bind is a name", (&wire.RegisterTunnel{Spec: notAddress}).ClientMessage()},
		{"close of nothing", (&wire.CloseTunnel{}).ClientMessage()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				t := w.t
				p := w.dial().login()
				p.register(spec("web", 8080))
				p.say(test.message)
				p.refused(wire.CodeProtocol)
				if c := w.control(p); c == nil || c.link != nil || len(c.tunnels) != 1 {
					t.Errorf("control %v is not waiting for its client", c)
				}
			})
		})
	}
	t.Run("hello twice", func(t *testing.T) {
		inWorld(t, testPolicy(), func(w *world) {
			p := w.dial().login()
			p.say(p.hello().ClientMessage())
			p.refused(wire.CodeProtocol)
			w.empty()
		})
	})
}
