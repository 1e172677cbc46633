package server

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/rate"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// Of the rates of the server and of the token the smaller one counts, and the
// engine knows it before visitors are let in.
func TestRates(t *testing.T) {
	tests := []struct {
		policy, granted rate.Bytes
		want            int64
	}{
		{0, 0, 0},
		{1000, 0, 1000},
		{0, 2000, 2000},
		{1000, 2000, 1000},
		{3000, 2000, 2000},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%v and %v", test.policy, test.granted), func(t *testing.T) {
			policy := testPolicy()
			policy.RateUp, policy.RateDown = test.policy, test.policy+1
			inWorld(t, policy, func(w *world) {
				t := w.t
				w.guard.grants["alice"] = identity.Grants{RateUp: test.granted, RateDown: test.granted + 1}
				p := w.dial().login()
				r := p.register(spec("web", 8080))
				synctest.Wait()
				w.engine.mu.Lock()
				all := slices.Clone(w.engine.commands)
				w.engine.mu.Unlock()
				want := relay.Command(relay.Limit{Tunnel: relay.TunnelID(r.GetId()), Up: test.want, Down: min(int64(test.policy), int64(test.granted)) + 1})
				limited := slices.Index(all, want)
				open := slices.IndexFunc(all, func(c relay.Command) bool { _, is := c.(relay.Reroute); return is })
				if limited < 0 || open < limited {
					t.Errorf("commands %v, want %v before the route", all, want)
				}
			})
		})
	}
	t.Run("none", func(t *testing.T) {
		inWorld(t, testPolicy(), func(w *world) {
			w.dial().login().register(spec("web", 8080))
			if got := commands[relay.Limit](w); len(got) > 0 {
				w.t.Errorf("limited by %v", got)
			}
		})
	})
}

// A tunnel that cannot listen is not limited: the engine would remember it.
func TestRefusedTunnelIsNotLimited(t *testing.T) {
	policy := testPolicy()
	policy.RateUp = 1000
	inWorld(t, policy, func(w *world) {
		w.occupy(8080)
		p := w.dial().login()
		p.rejected(spec("web", 8080), wire.CodePortTaken)
		w.apply(policy)
		if got := commands[relay.Limit](w); len(got) > 0 {
			w.t.Errorf("limited by %v", got)
		}
	})
}

// Nor is one whose port is not free yet, until it listens.
func TestWaitingTunnelIsLimitedLater(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial().login()
		p.register(spec("web", 8080))
		synctest.Wait()
		w.engine.slow = true
		changed := spec("web", 8080)
		changed.Bind = []string{"127.0.0.1"}
		p.ask(changed)
		synctest.Wait()
		policy := testPolicy()
		policy.RateUp = 1000
		w.apply(policy)
		if got := commands[relay.Limit](w); len(got) > 0 {
			w.t.Errorf("limited by %v", got)
		}
		w.engine.release()
		r := hear(p, (*wire.ServerMessage).GetTunnelRegistered)
		if got, want := commands[relay.Limit](w), (relay.Limit{Tunnel: relay.TunnelID(r.GetId()), Up: 1000}); !slices.Equal(got, []relay.Limit{want}) {
			w.t.Errorf("limited by %v, want %v", got, want)
		}
	})
}

// apply gives the hub a new policy.
func (w *world) apply(p Policy) {
	w.t.Helper()
	if err := (&Server{hub: w.hub}).Reconfigure(w.t.Context(), p); err != nil {
		w.t.Fatal(err)
	}
}

// A reload changes the rates of the tunnels that are open, and says so once.
func TestRatesAreReloaded(t *testing.T) {
	policy := testPolicy()
	policy.RateUp = 5000
	inWorld(t, policy, func(w *world) {
		t := w.t
		w.guard.grants["alice"] = identity.Grants{RateUp: 3000}
		id := relay.TunnelID(w.dial().login().register(spec("web", 8080)).GetId())
		if got := commands[relay.Limit](w); !slices.Equal(got, []relay.Limit{{Tunnel: id, Up: 3000}}) {
			t.Errorf("limited by %v", got)
		}
		for _, step := range []struct {
			up, down rate.Bytes
			want     []relay.Limit
		}{
			{4000, 0, nil}, // the grant is lower all the same
			{2000, 0, []relay.Limit{{Tunnel: id, Up: 2000}}},
			{2000, 9, []relay.Limit{{Tunnel: id, Up: 2000, Down: 9}}},
			{2000, 9, nil},
			{0, 0, []relay.Limit{{Tunnel: id, Up: 3000}}},
		} {
			policy.RateUp, policy.RateDown = step.up, step.down
			w.apply(policy)
			if got := commands[relay.Limit](w); !slices.Equal(got, step.want) {
				t.Errorf("%v up and %v down: limited by %v, want %v", step.up, step.down, got, step.want)
			}
		}
	})
}

// A resume and a takeover leave the rates of a tunnel as they are; a login with
// other grants changes them.
func TestRatesStayWithTheTunnel(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		w.guard.grants["alice"] = identity.Grants{RateDown: 3000}
		p := w.dial().login()
		id := relay.TunnelID(p.register(spec("web", 8080)).GetId())
		wants := func(when string, want ...relay.Limit) {
			t.Helper()
			if got := commands[relay.Limit](w); !slices.Equal(got, want) {
				t.Errorf("%s: limited by %v, want %v", when, got, want)
			}
		}
		wants("registered", relay.Limit{Tunnel: id, Down: 3000})

		w.guard.grants["alice"] = identity.Grants{RateDown: 4000}
		w.apply(testPolicy())
		wants("reload: grants count from the next login")
		p.leave()
		q := w.dial()
		q.enter(q.proof(p, 2))
		wants("resume")

		again := w.dial()
		again.instance, again.epoch = q.instance, 3
		again.login()
		wants("login of the same instance", relay.Limit{Tunnel: id, Down: 4000})

		w.dial().login()
		wants("takeover")
		w.guard.grants["alice"] = identity.Grants{}
		w.dial().login()
		wants("takeover with other grants", relay.Limit{Tunnel: id})
	})
}

// From the tokens file to the bytes that pass.
func TestRateOfATokenHolds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.toml")
	secret, err := identity.AddToken(path, "alice", identity.Grants{RateUp: 1})
	if err != nil {
		t.Fatal(err)
	}
	provider := identity.NewProvider(path, new(logtest.Output).Logger())
	if err := provider.Load(); err != nil {
		t.Fatal(err)
	}
	r := startServer(t, func(o *Options) { o.Authenticator = Tokens(provider) })
	p := r.dial()
	hello := p.hello()
	hello.GetCredential().Secret = secret[:]
	p.enter(hello)
	registered := p.register(spec("web", 0))
	c := r.open(p, 1)
	visitor := tcp(t, loopback, public(t, registered))
	if _, err := visitor.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	_, seq := c.started()
	var stats relay.TunnelStats
	eventually(t, "the visitor is held up", func() bool {
		for _, s := range r.engine.Stats() {
			if s.Tunnel == relay.TunnelID(registered.GetId()) {
				stats = s
			}
		}
		return stats.Throttled > 0
	})
	const burst, quantum = 4 << 10, 4 << 10 // the least
	if stats.Up == 0 || stats.Up > burst+quantum {
		t.Errorf("%d bytes passed at 1 byte a second", stats.Up)
	}
	c.send(frame.Header{Type: frame.Data, Seq: seq}, []byte("the other direction is free"))
	got := make([]byte, 27)
	if _, err := visitor.Read(got); err != nil || string(got) != "the other direction is free" {
		t.Errorf("visitor got %q, %v", got, err)
	}
}
