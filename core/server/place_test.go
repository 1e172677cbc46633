package server

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// cloneAgain is another connection of the instance of p, with its credential.
func cloneAgain(w *world, p *peer) *peer {
	w.t.Helper()
	p.epoch++
	q := w.dial()
	q.name, q.instance, q.epoch = p.name, p.instance, p.epoch
	return q
}

// A superseded instance stays away as long as its successor has the name.
func TestSupersededInstance(t *testing.T) {
	tests := []struct {
		name    string
		happens func(w *world, successor *peer)
		refused bool
	}{
		{"the successor is connected", func(*world, *peer) {}, true},
		{"and stays for two hours", func(*world, *peer) { time.Sleep(2 * time.Hour) }, true},
		{"it is away for less than the grace", func(_ *world, q *peer) {
			q.leave()
			time.Sleep(testPolicy().Grace - time.Second)
		}, true},
		{"it came back by proof", func(w *world, q *peer) {
			q.leave()
			r := w.dial()
			r.enter(r.proof(q, 2))
			time.Sleep(2 * testPolicy().Grace)
		}, true},
		{"it was superseded itself", func(w *world, q *peer) {
			w.dial().login()
			q.refused(wire.CodeSuperseded)
		}, true},
		{"it was superseded itself, and that one as well", func(w *world, _ *peer) {
			w.dial().login()
			w.dial().login()
		}, true},
		{"it said Goodbye", func(_ *world, q *peer) {
			q.say(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage())
			q.refused(wire.CodeDone)
		}, false},
		{"it was away for longer than the grace", func(_ *world, q *peer) {
			q.leave()
			time.Sleep(testPolicy().Grace + time.Second)
		}, false},
		{"it was revoked", func(w *world, q *peer) {
			w.revoked <- []string{"alice"}
			q.refused(wire.CodeRevoked)
		}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			policy := testPolicy()
			policy.Heartbeat = time.Hour // peers written by hand answer no pings
			inWorld(t, policy, func(w *world) {
				first := w.dial().login()
				successor := w.dial().login()
				first.refused(wire.CodeSuperseded)
				test.happens(w, successor)
				synctest.Wait()
				again := cloneAgain(w, first)
				if !test.refused {
					again.login()
					return
				}
				again.say(again.hello().ClientMessage())
				g := again.refused(wire.CodeSuperseded)
				if g.GetRefusal().GetPermanent() || g.GetRetryAfterMs() != uint64(supersededRetry.Milliseconds()) {
					w.t.Errorf("goodbye %v", g)
				}
			})
		})
	}
}

// Whatever two clones do, the one that started last keeps the name, and both
// sides are told what to do.
func TestClonesDoNotTakeTurns(t *testing.T) {
	policy := testPolicy()
	policy.Heartbeat = time.Hour // peers written by hand answer no pings
	inWorld(t, policy, func(w *world) {
		first := w.dial().login()
		second := w.dial().login()
		g := first.refused(wire.CodeSuperseded)
		for range 20 {
			time.Sleep(supersededRetry)
			again := cloneAgain(w, first)
			again.say(again.hello().ClientMessage())
			g = again.refused(wire.CodeSuperseded)
		}
		second.register(spec("web", 8080))
		for _, want := range []string{"give each its own `name`", "under the name host", `host "host.example"`} {
			if !strings.Contains(g.GetRefusal().GetReason(), want) {
				w.t.Errorf("the reason %q lacks %q", g.GetRefusal().GetReason(), want)
			}
		}
		log := w.log.String()
		if n := strings.Count(log, "a new instance takes over"); n != 1 {
			w.t.Errorf("%d takeovers were logged, want 1", n)
		}
		if !strings.Contains(log, `level=WARN msg="client refused" client=host`) {
			w.t.Errorf("the operator is not warned of the refused clone:\n%s", log)
		}
	})
}

// An instance that was ousted may come back under another name at once.
func TestSupersededInstanceUnderAnotherName(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		first := w.dial().login()
		w.dial().login()
		first.refused(wire.CodeSuperseded)
		again := cloneAgain(w, first)
		again.name = "renamed"
		again.login()
	})
}

func TestOustedIsBounded(t *testing.T) {
	numbered := func(n int) (inst instance) {
		binary.BigEndian.PutUint32(inst[:], uint32(n))
		return inst
	}
	p := place{key: controlKey{"alice", "host"}}
	for n := range 3 * maxOusted {
		before := p
		p = p.successor(fmt.Sprint(n), numbered(n))
		if len(before.ousted) > 0 && len(p.ousted) > 0 && &before.ousted[0] == &p.ousted[0] {
			t.Fatal("two places share their memory")
		}
		for back := range 2 * maxOusted {
			if got, want := p.supersedes(numbered(n-back)), back < maxOusted && n-back >= 0; got != want {
				t.Fatalf("after %d takeovers the one %d before counts as superseded: %v, want %v", n+1, back, got, want)
			}
		}
	}
	if len(p.ousted) != maxOusted || p.host != fmt.Sprint(3*maxOusted-1) {
		t.Errorf("%d instances are remembered for %s", len(p.ousted), p.host)
	}
}
