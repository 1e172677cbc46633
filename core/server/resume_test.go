package server

import (
	"crypto/tls"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// A proof is checked by the server alone: thousands of clients that come back
// at once are no load for whoever decides about credentials, who may be away.
func TestResumeAsksNobody(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		asked := 0
		w.guard.then = func() { asked++ }
		p := w.dial().login()
		synctest.Wait()
		w.guard.mu.Lock()
		w.guard.fails = errors.New("the directory is down")
		w.guard.mu.Unlock()
		var keys []string
		for epoch := uint64(2); epoch < 10; epoch += 3 { // a client may have failed in between
			keys = append(keys, string(p.welcome.GetSessionKey()))
			p.leave()
			q := w.dial()
			q.enter(q.proof(p, epoch))
			if wel := q.welcome; !wel.GetResumed() || wel.GetEpoch() != epoch || slices.Contains(keys, string(wel.GetSessionKey())) {
				t.Errorf("welcome %v", wel)
			}
			p = q
		}
		synctest.Wait()
		if asked != 1 {
			t.Errorf("the authenticator was asked %d times, want once", asked)
		}
	})
}

// What was said to a client that was gone already is in its next Welcome, or is
// said again when it asks again.
func TestAnswersLostWithTheConnection(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		w.occupy(9000)
		p := w.dial().login()
		p.register(spec("gone", 8081))
		w.engine.mu.Lock()
		w.engine.slow = true
		w.engine.mu.Unlock()
		p.ask(spec("gone", 8082)) // opens when its former listener is closed
		p.ask(spec("web", 8080))
		p.ask(spec("taken", 9000))
		p.say((&wire.CloseTunnel{Name: "nothing"}).ClientMessage())
		synctest.Wait()
		p.leave()
		synctest.Wait()
		w.engine.release()

		q := w.dial()
		q.enter(q.proof(p, 2))
		if names := namesOf(q.welcome); !slices.Equal(names, []string{"gone", "web"}) {
			t.Errorf("tunnels in the Welcome: %v", names)
		}
		if at := q.welcome.GetTunnels()[0].GetPublicAddresses(); len(at) == 0 || public(t, q.welcome.GetTunnels()[0]).Port() != 8082 {
			t.Errorf("the changed tunnel is at %v", at)
		}
		q.rejected(spec("taken", 9000), wire.CodePortTaken)

		// A CloseTunnel that never arrived is sent again by the client; one that
		// did is what the next Welcome says.
		q.say((&wire.CloseTunnel{Name: "web"}).ClientMessage())
		synctest.Wait()
		q.leave()
		r := w.dial()
		r.enter(r.proof(q, 3))
		if names := namesOf(r.welcome); !slices.Equal(names, []string{"gone"}) {
			t.Errorf("tunnels in the Welcome: %v", names)
		}
		if again := r.register(spec("web", 8080)); public(t, again).Port() != 8080 {
			t.Errorf("registered again at %v", again)
		}
	})
}

func namesOf(w *wire.Welcome) []string {
	var names []string
	for _, r := range w.GetTunnels() {
		names = append(names, r.GetName())
	}
	return names
}

// Visitors are let in only by the client's word that it knows the tunnel; it is
// asked for that again if the connection was lost in between.
func TestPongLostWithTheConnection(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := &peer{t: t, conn: tls.Client(w.connect(), clientTLS()), name: "host", token: "alice", epoch: 1, instance: instance{1}}
		p.writer = wire.NewWriter(p.conn)
		reader := wire.NewReader(p.conn)
		next := func() *wire.ServerMessage {
			m, err := reader.ReadServerMessage()
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		p.say(p.hello().ClientMessage())
		if p.welcome = next().GetWelcome(); p.welcome == nil {
			t.Fatal("no Welcome")
		}
		p.ask(spec("web", 8080))
		r := next().GetTunnelRegistered()
		if nonce := next().GetPing().GetNonce(); r == nil || nonce != uint64(r.GetId()) {
			t.Fatalf("%v is followed by a Ping of %d", r, nonce)
		}
		p.leave()
		if got := commands[relay.Reroute](w); len(got) > 0 {
			t.Fatalf("visitors are let in: %v", got)
		}
		q := w.dial()
		q.enter(q.proof(p, 2))
		if got := commands[relay.Reroute](w); len(got) != 1 || got[0].Tunnel != relay.TunnelID(r.GetId()) {
			t.Errorf("after the resume: %v", got)
		}
	})
}

// A visitor for whom a ProxyConn was asked in vain, because the connection was
// lost with the request, is served by the one that is asked for after the resume.
func TestVisitorWaitsThroughAResume(t *testing.T) {
	r := startServer(t, nil)
	p := r.dial().login()
	at := public(t, p.register(spec("web", 0)))
	visit(t, at, []byte("patience"), func() {
		hear(p, (*wire.ServerMessage).GetNeedProxyConn)
		p.leave() // and opens none
		q := r.dial()
		q.enter(q.proof(p, 2))
		if n := hear(q, (*wire.ServerMessage).GetNeedProxyConn).GetN(); n < 1 {
			t.Errorf("asked for %d", n)
		}
		c := r.open(q, 1)
		s, seq := c.started()
		if s.Tunnel != q.welcome.GetTunnels()[0].GetId() {
			t.Errorf("START of tunnel %d", s.Tunnel)
		}
		c.echo(seq)
	})
}
