package server

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cproxy/cproxy/core/wire"
)

// The operator reads who has a port, the client that asks for it does not.
func TestHolderOfAPort(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		bob := w.dial()
		bob.token, bob.name = "bob", "bobs-host"
		bob.login().register(spec("bobs-web", 8080))
		alice := w.dial().login()
		w.occupy(8080, 8081)
		refusal := alice.rejected(spec("web", 8080), wire.CodePortTaken)
		if strings.Contains(refusal.GetReason(), "bob") {
			w.t.Errorf("the client is told of another: %s", refusal.GetReason())
		}
		alice.rejected(spec("web", 8081), wire.CodePortTaken)
		synctest.Wait()
		log := w.log.String()
		if want := "held_by=bobs-web held_by_client=bobs-host held_by_subject=bob"; strings.Count(log, want) != 1 || strings.Count(log, "held_by=") != 1 {
			w.t.Errorf("the log should say once %s:\n%s", want, log)
		}
	})
}
