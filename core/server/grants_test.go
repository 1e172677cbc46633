package server

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// A token's tunnel grant counts over all clients that use the token.
func TestTunnelGrantOfAToken(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		w.guard.grants["alice"] = identity.Grants{MaxTunnels: 1}
		w.dial().login().register(spec("web", 8080))
		q := w.dial()
		q.name = "other"
		q.login().rejected(spec("api", 8081), wire.CodeTunnelLimit)
	})
}

// A revocation also cuts the streams of clients that have left or were taken
// over.
func TestRevocationCutsFormerPools(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial().login()
		pool := w.control(p).pool
		w.feed(relay.ConnOpened{Pool: pool}, relay.ConnOpened{Pool: pool})
		w.dial().login() // takes over
		w.feed(relay.ConnClosed{Pool: pool})
		w.sequence()
		w.revoked <- []string{"alice"}
		cut := commands[relay.ClosePool](w)
		if !slices.Contains(cut, relay.ClosePool{Pool: pool, Cut: true}) {
			w.t.Errorf("pools closed: %v, want %d cut too", cut, pool)
		}
		w.empty()
	})
}

// More tunnels than a Welcome has room for are told of one by one.
func TestWelcomeWithManyTunnels(t *testing.T) {
	policy := testPolicy()
	policy.MaxTunnels = 0
	inWorld(t, policy, func(w *world) {
		const many = 900
		p := w.dial().login()
		for i := range many {
			p.register(spec(fmt.Sprintf("%060d", i), 10000+i))
		}
		q := w.dial().login()
		told := len(q.welcome.GetTunnels())
		if told == 0 || told == many {
			w.t.Fatalf("%d of %d tunnels in the Welcome", told, many)
		}
		for range many - told {
			hear(q, (*wire.ServerMessage).GetTunnelRegistered)
		}
		q.silent()
	})
}
