package client

import (
	"strings"
	"testing"

	"github.com/cproxy/cproxy/core/wire"
)

// A connection that resumes a session is watched like the first one, by the
// heartbeat that its own Welcome names.
func TestHeartbeatAfterResume(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(), nil)
	k := s.login().welcome(nil) // a minute between heartbeats
	k.quiet()
	k.drop()
	for range 2 {
		k = s.login()
		if k.hello.GetProof() == nil {
			t.Fatalf("Hello: %v, want a proof", k.hello)
		}
		k.welcome(func(w *wire.Welcome) { w.Resumed, w.HeartbeatMs = true, 200 })
		for range 20 {
			k.quiet()
		}
		// From here on the server is silent.
	}
	k = s.login().welcome(func(w *wire.Welcome) { w.Resumed = true })
	k.quiet()
	if n := strings.Count(r.logs.String(), errSilent.Error()); n != 2 {
		t.Errorf("the server was given up for silence %d times, want 2", n)
	}
}
