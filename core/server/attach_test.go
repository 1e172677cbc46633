package server

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func TestResumeByProof(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		web := p.register(spec("web", 8080))
		p.register(spec("api", 8081))
		p.leave()
		if c := w.control(p); c == nil || c.link != nil {
			t.Fatal("the lost client's Control is gone")
		}
		w.sequence()

		q := w.dial()
		q.enter(q.proof(p, 2))
		wel := q.welcome
		if !wel.GetResumed() || wel.GetControlId() != p.welcome.GetControlId() || wel.GetEpoch() != 2 {
			t.Errorf("welcome %v", wel)
		}
		if bytes.Equal(wel.GetSessionKey(), p.welcome.GetSessionKey()) {
			t.Error("the session key is the same in another epoch")
		}
		names := make([]string, 0, 2)
		for _, r := range wel.GetTunnels() {
			names = append(names, r.GetName())
		}
		if !slices.Equal(names, []string{"api", "web"}) || wel.GetTunnels()[1].GetId() != web.GetId() {
			t.Errorf("tunnels %v", wel.GetTunnels())
		}
		if got := w.sequence(); len(got) > 0 {
			t.Errorf("a resume told the engine %v", got)
		}
		q.register(spec("ssh", 8082))
	})
}

func TestResumeWhileTheOldConnectionSeemsAlive(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		q := w.dial()
		q.enter(q.proof(p, 2))
		p.ended() // without a Goodbye: nobody is there who would read it
		if c := w.control(q); c == nil || c.link == nil {
			t.Fatal("the end of the old connection took the new one's place")
		}
		q.register(spec("web", 8080))
	})
}

func TestNotResumable(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(w *world, p *peer, h *wire.Hello)
	}{
		{"forged proof", func(_ *world, _ *peer, h *wire.Hello) {
			h.Auth = &wire.Hello_Proof{Proof: make([]byte, wire.ProofSize)}
		}},
		{"proof of another epoch", func(_ *world, _ *peer, h *wire.Hello) { h.Epoch++ }},
		{"unknown instance", func(_ *world, _ *peer, h *wire.Hello) { h.Instance = bytes.Repeat([]byte{9}, wire.InstanceSize) }},
		{"client that said Goodbye", func(w *world, p *peer, _ *wire.Hello) {
			p.say(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage())
			p.refused(wire.CodeDone)
			w.empty()
		}},
		{"after the grace", func(w *world, p *peer, _ *wire.Hello) {
			p.leave()
			time.Sleep(testPolicy().Grace + time.Second)
			w.empty()
		}},
		{"revoked", func(w *world, _ *peer, _ *wire.Hello) { w.revoked <- []string{"alice"} }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				p := w.dial().login()
				before := *p
				test.spoil(w, p, &wire.Hello{})
				q := w.dial()
				h := q.proof(&before, 2)
				if w.control(p) != nil {
					test.spoil(w, p, h)
				}
				q.say(h.ClientMessage())
				if g := q.refused(wire.CodeNotResumable); g.GetRefusal().GetPermanent() {
					t.Error("a client that could log in is refused for good")
				}
				q = w.dial()
				q.instance, q.epoch = before.instance, 3
				q.login()
			})
		})
	}
}

func TestProofOfAnotherConnection(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial().login()
		one, two := w.dial(), w.dial()
		two.say(one.proof(p, 2).ClientMessage())
		two.refused(wire.CodeNotResumable)
	})
}

func TestSameInstanceWithCredential(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		r := p.register(spec("web", 8080))
		w.guard.grants["alice"] = identity.Grants{MaxTunnels: 1}
		q := w.dial()
		q.instance, q.epoch = p.instance, 2
		q.login()
		if !q.welcome.GetResumed() || len(q.welcome.GetTunnels()) != 1 || q.welcome.GetTunnels()[0].GetId() != r.GetId() {
			t.Errorf("welcome %v", q.welcome)
		}
		q.rejected(spec("api", 8081), wire.CodeTunnelLimit) // what is granted is looked up again
	})
}

func TestStaleEpoch(t *testing.T) {
	for _, epoch := range []uint64{4, 5} {
		t.Run(fmt.Sprint(epoch), func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				p := w.dial()
				p.epoch = 5
				p.login()
				q := w.dial()
				q.instance, q.epoch = p.instance, epoch
				q.say(q.hello().ClientMessage())
				q.refused(wire.CodeStaleEpoch)
				q = w.dial()
				q.say(q.proof(p, epoch).ClientMessage())
				q.refused(wire.CodeStaleEpoch)
				p.register(spec("web", 8080)) // the newer connection is not disturbed
			})
		})
	}
}

func TestTakeover(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		web := p.register(spec("web", 8080))
		oldPool := w.control(p).pool
		w.sequence()

		q := w.dial().login()
		g := p.refused(wire.CodeSuperseded)
		if g.GetRetryAfterMs() != uint64(supersededRetry.Milliseconds()) || g.GetRefusal().GetPermanent() {
			t.Errorf("goodbye %v", g)
		}
		if q.welcome.GetResumed() || q.welcome.GetControlId() == p.welcome.GetControlId() ||
			len(q.welcome.GetTunnels()) != 1 || q.welcome.GetTunnels()[0].GetId() != web.GetId() {
			t.Errorf("welcome %v", q.welcome)
		}
		newPool := w.control(q).pool
		w.engine.mu.Lock()
		got := slices.Clone(w.engine.commands)
		w.engine.mu.Unlock()
		want := []relay.Command{
			relay.OpenPool{Pool: newPool, Side: relay.ServerSide, MaxIdle: 8, Heartbeat: testPolicy().Heartbeat},
			relay.Reroute{Tunnel: relay.TunnelID(web.GetId()), Route: relay.ToPool{Pool: newPool, Wire: web.GetId(), MaxConns: 100}},
			relay.ClosePool{Pool: oldPool}, // its streams live on
		}
		if !slices.Equal(got, want) || newPool == oldPool {
			t.Errorf("commands %v, want %v", got, want)
		}
		// The old session is void.
		r := w.dial()
		r.say(r.proof(p, 2).ClientMessage())
		r.refused(wire.CodeNotResumable)
	})
}

func TestClientsAreToldApart(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial().login()
		sameNameOtherToken := w.dial()
		sameNameOtherToken.token = "bob"
		sameNameOtherToken.login()
		otherNameSameToken := w.dial()
		otherNameSameToken.name = "laptop"
		otherNameSameToken.login()
		p.register(spec("web", 8080)) // not taken over by either
	})
}

func TestGrace(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		r := p.register(spec("web", 8080))
		pool := w.control(p).pool
		p.leave()
		time.Sleep(testPolicy().Grace - time.Second)
		if w.control(p) == nil {
			t.Fatal("the Control ended within the grace")
		}
		w.sequence()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		w.engine.mu.Lock()
		got := slices.Clone(w.engine.commands)
		w.engine.mu.Unlock()
		want := []relay.Command{relay.Unlisten{Tunnel: relay.TunnelID(r.GetId())}, relay.ClosePool{Pool: pool}}
		if !slices.Equal(got, want) {
			t.Errorf("commands %v, want %v", got, want)
		}
		w.empty()
		if w.hub.sweep.running {
			t.Error("the hub looks at the time although nobody is there")
		}
	})
}

func TestGoodbyeOfAClient(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		p.register(spec("web", 8080))
		w.sequence()
		p.say(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage())
		p.refused(wire.CodeDone)
		if got := w.sequence(); !slices.Equal(got, []string{"Unlisten", "ClosePool"}) {
			t.Errorf("commands %v", got)
		}
		w.empty()
	})
}

func TestRevocation(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		p.register(spec("web", 8080))
		away := w.dial()
		away.name = "away"
		away.login().leave()
		q := w.dial()
		q.token = "bob"
		q.login()
		cut := []relay.PoolID{w.control(p).pool, w.control(away).pool}
		commands[relay.ClosePool](w)

		w.revoked <- []string{"alice", "nobody"}
		closed := commands[relay.ClosePool](w)
		for _, c := range closed {
			if !c.Cut || !slices.Contains(cut, c.Pool) {
				t.Errorf("closed %v", c)
			}
		}
		if len(closed) != 2 {
			t.Errorf("%d pools were cut, want 2", len(closed))
		}
		if g := p.refused(wire.CodeRevoked); !g.GetRefusal().GetPermanent() {
			t.Error("a revoked client is asked to come back")
		}
		q.register(spec("api", 8081))
		again := w.dial() // the guard still accepts it, as one that has a new secret
		again.login()
	})
}

func TestRevokedWhileLoggingIn(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		w.guard.gate = make(chan struct{})
		p, q := w.dial(), w.dial()
		q.token = "bob"
		p.say(p.hello().ClientMessage())
		q.say(q.hello().ClientMessage())
		synctest.Wait()
		w.revoked <- []string{"alice"}
		close(w.guard.gate)
		p.refused(wire.CodeUnavailable)
		hear(q, (*wire.ServerMessage).GetWelcome)
	})
}

// What a client said on a connection that it has replaced is not heard.
func TestMessageOfAFormerConnection(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial().login()
		p.register(spec("web", 8080))
		former := w.control(p).link
		q := w.dial()
		q.enter(q.proof(p, 2))
		w.sequence()
		m := (&wire.CloseTunnel{Name: "web"}).ClientMessage()
		w.hub.tell(w.ctx, received{control: p.welcome.GetControlId(), link: former, message: m})
		w.hub.tell(w.ctx, lost{control: p.welcome.GetControlId(), link: former})
		if got := w.sequence(); len(got) > 0 || w.control(q).link == nil {
			w.t.Errorf("commands %v", got)
		}
		q.silent()
	})
}
