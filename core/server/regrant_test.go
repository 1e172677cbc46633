package server

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// grant changes the grants of alice's token while she is connected.
func (w *world) grant(g identity.Grants) {
	w.guard.mu.Lock()
	w.guard.grants["alice"] = g
	w.guard.mu.Unlock()
	w.granted <- map[string]identity.Grants{"alice": g, "nobody": {}}
	synctest.Wait()
}

func portGrant(first, last uint16) identity.Grants {
	return identity.Grants{Ports: []identity.PortRange{{First: first, Last: last}}}
}

// Changed grants hold at once for a client that is connected.
func TestRegrant(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		w.guard.grants["alice"] = portGrant(5000, 5001)
		p := w.dial().login()
		p.register(spec("open", 5001))
		p.rejected(spec("b", 5003), wire.CodePortNotGranted)
		p.rejected(spec("a", 5002), wire.CodePortNotGranted)
		p.rejected(spec("changed", 5002), wire.CodePortNotGranted)
		p.rejected(spec("far", 5009), wire.CodePortNotGranted)
		p.rejected(spec("gone", 5003), wire.CodePortNotGranted)
		p.say((&wire.CloseTunnel{Name: "gone"}).ClientMessage())
		p.register(spec("changed", 5000))
		p.silent()
		w.sequence()

		g := portGrant(5002, 5003)
		g.RateUp = 1000
		w.grant(g)
		if got := hear(p, (*wire.ServerMessage).GetTunnelRejected); got.GetName() != "far" {
			t.Errorf("rejected %v", got)
		}
		for _, name := range []string{"a", "b"} {
			if got := hear(p, (*wire.ServerMessage).GetTunnelRegistered); got.GetName() != name {
				t.Errorf("registered %v, want %s", got, name)
			}
		}
		limited := make(map[relay.TunnelID]bool)
		for _, c := range commands[relay.Limit](w) {
			limited[c.Tunnel] = c.Up == 1000
		}
		if n := len(w.control(p).tunnels); n != 4 || len(limited) != 4 {
			t.Errorf("%d tunnels, %v have the new rate", n, limited)
		}
		p.rejected(spec("new", 5001), wire.CodePortNotGranted)
		if log := w.log.String(); strings.Count(log, "grants of a connected client have changed") != 1 {
			t.Errorf("the log does not tell once:\n%s", log)
		}
	})
}

// A client whose changed tunnel is refused closes what it had open before, and
// still gets the changed one when grants allow it; a second CloseTunnel takes the
// wish back.
func TestRegrantAfterChange(t *testing.T) {
	for name, closes := range map[string]int{"wanted": 1, "removed": 2} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				w.guard.grants["alice"] = portGrant(5000, 5001)
				p := w.dial().login()
				p.register(spec("web", 5000))
				p.rejected(spec("web", 5002), wire.CodePortNotGranted)
				for range closes {
					p.say((&wire.CloseTunnel{Name: "web"}).ClientMessage())
				}
				p.silent()
				if n := len(w.control(p).tunnels); n != 0 {
					w.t.Fatalf("%d tunnels are open after CloseTunnel", n)
				}
				w.grant(portGrant(5000, 5002))
				if closes > 1 {
					p.silent()
					return
				}
				got := hear(p, (*wire.ServerMessage).GetTunnelRegistered)
				if got.GetName() != "web" || len(got.GetPublicAddresses()) == 0 || !strings.HasSuffix(got.GetPublicAddresses()[0], ":5002") {
					w.t.Errorf("registered %v, want web at port 5002", got)
				}
			})
		})
	}
}

// Wider limits open what they kept closed, and nothing is remembered of clients
// that are gone.
func TestReloadOpensWhatWasDenied(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		narrow, wide := testPolicy(), testPolicy()
		narrow.Ports = []identity.PortRange{{First: 5000, Last: 5000}}
		s := &Server{hub: w.hub}
		if err := s.Reconfigure(w.t.Context(), narrow); err != nil {
			w.t.Fatal(err)
		}
		p := w.dial().login()
		p.rejected(spec("web", 5001), wire.CodePortOutOfRange)
		if err := s.Reconfigure(w.t.Context(), wide); err != nil {
			w.t.Fatal(err)
		}
		if got := hear(p, (*wire.ServerMessage).GetTunnelRegistered); got.GetName() != "web" {
			w.t.Errorf("registered %v", got)
		}
		if err := s.Reconfigure(w.t.Context(), narrow); err != nil {
			w.t.Fatal(err)
		}
		p.rejected(spec("api", 5002), wire.CodePortOutOfRange)
		p.say(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage())
		p.refused(wire.CodeDone)
		other := w.dial()
		other.name = "other"
		other.login()
		w.use(relay.PoolUse{})
		if len(w.hub.maps.denied) != 0 {
			w.t.Errorf("remembered: %v", w.hub.maps.denied)
		}
	})
}

// A login that is under way while grants change is asked for again: it may have
// the old ones.
func TestRegrantDuringLogin(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		w.guard.then = func() {
			w.guard.then = nil
			w.granted <- map[string]identity.Grants{"alice": {MaxTunnels: 1}}
		}
		p := w.dial()
		p.say(p.hello().ClientMessage())
		p.refused(wire.CodeUnavailable)
		w.dial().login()
	})
}
