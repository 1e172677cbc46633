package client

import (
	"strings"
	"testing"

	"github.com/cproxy/cproxy/core/wire"
)

// After a reconnect that is not a resume the client says how many tunnels are open
// again, and which have moved.
func TestTunnelsOpenAgain(t *testing.T) {
	s := newFakeServer(t)
	tunnel := func(name string) Tunnel { return Tunnel{Name: name, Network: "tcp", Address: "127.0.0.1:1"} }
	r := start(t, s.options(tunnel("a"), tunnel("b"), tunnel("c")), nil)
	k := s.login().welcome(nil)
	for i, name := range []string{"a", "b", "c"} {
		k.registers(name)
		k.accept(name, uint32(2+i), "127.0.0.1:200"+string(rune('1'+i)))
		r.shows(name + " 127.0.0.1:200" + string(rune('1'+i)))
	}
	k.goodbye(wire.CodeShutdown)

	k = s.login()
	if k.hello.GetProof() != nil {
		k.goodbye(wire.CodeNotResumable)
		k = s.login()
	}
	k.welcome(func(w *wire.Welcome) { w.ControlId++ })
	for _, name := range []string{"a", "b", "c"} {
		k.registers(name)
	}
	k.accept("a", 12, "127.0.0.1:2001")
	k.reject("c", wire.CodePortNotGranted)
	k.quiet()
	if log := r.logs.String(); strings.Contains(log, "open again") || strings.Contains(log, "another public address") {
		t.Errorf("told too early:\n%s", log)
	}
	k.accept("b", 13, "127.0.0.1:2009")
	r.shows("b 127.0.0.1:2009")
	r.logs.Await(t, `msg="tunnels are open again" control=78 open=2 refused=1 moved=1`)
	r.logs.Await(t, `tunnel=b address=127.0.0.1:2009 former=127.0.0.1:2002`)
	k.accept("a", 12, "127.0.0.1:2001")
	k.quiet()
	if n := strings.Count(r.logs.String(), "open again"); n != 1 {
		t.Errorf("told %d times", n)
	}
}
