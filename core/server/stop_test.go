package server

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

func TestAuthenticatorFails(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		w.guard.fails = errors.New("database is away")
		for range 2 * failureBurst { // nobody's fault, so nobody is held up for it
			p := w.dial()
			p.say(p.hello().ClientMessage())
			if g := p.refused(wire.CodeUnavailable); g.GetRefusal().GetPermanent() {
				t.Fatal("refused for good")
			}
		}
		if !strings.Contains(w.log.String(), "database is away") {
			t.Error("the cause is not logged")
		}
		w.guard.fails, w.guard.gate = nil, make(chan struct{}) // it hangs
		p := w.dial()
		p.say(p.hello().ClientMessage())
		time.Sleep(defaultHandshakeTimeout)
		p.refused(wire.CodeUnavailable)
	})
}

func TestShutdownIsSaidToAll(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		var all []*peer
		for i := range 20 {
			p := w.dial()
			p.name = fmt.Sprint("host", i)
			all = append(all, p.login())
		}
		silent := w.connect()
		synctest.Wait()
		w.end()
		var retries []uint64
		for _, p := range all {
			retries = append(retries, p.refused(wire.CodeShutdown).GetRetryAfterMs())
		}
		slices.Sort(retries)
		for i, retry := range retries {
			if want := uint64((shutdownRetry + time.Duration(i)*time.Second/shutdownRate).Milliseconds()); retry != want {
				t.Errorf("client %d of %d is asked back after %d ms, want %d", i, len(retries), retry, want)
			}
		}
		w.tasks.Wait()
		if _, err := silent.Read(make([]byte, 1)); err == nil {
			t.Error("a silent peer was kept")
		}
		for range 20 { // accepted at the last moment
			if took := endOf(t, w.connect()); took > 0 {
				t.Errorf("a late peer was kept for %v", took)
			}
		}
	})
}

// Whoever is logging in when the server stops is told so.
func TestShutdownWhileLoggingIn(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(w *world)
	}{
		{"being asked about", func(w *world) { w.guard.gate = make(chan struct{}) }},
		{"just let in", func(w *world) { w.guard.then = w.end }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for range 20 {
				inWorld(t, testPolicy(), func(w *world) {
					test.prepare(w)
					p := w.dial()
					p.say(p.hello().ClientMessage())
					synctest.Wait()
					w.end()
					m := p.next()
					if m.GetWelcome() != nil { // the hub may have come first
						m = p.next()
					}
					code(w.t, m.GetGoodbye().GetRefusal(), wire.CodeShutdown)
					if retry := m.GetGoodbye().GetRetryAfterMs(); retry < uint64(shutdownRetry.Milliseconds()) {
						w.t.Errorf("asked back after %d ms", retry)
					}
					p.ended()
				})
			}
		})
	}
}
