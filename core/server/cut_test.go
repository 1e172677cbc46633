package server

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// fewPorts is a policy with so few ports that draws of several tunnels meet.
func fewPorts(ports ...string) Policy {
	p := testPolicy()
	p.Ports = nil
	for _, s := range ports {
		r, err := identity.ParsePortRange(s)
		if err != nil {
			panic(err)
		}
		p.Ports = append(p.Ports, r)
	}
	return p
}

// enterAs logs in as another client of another token.
func (w *world) enterAs(token string) *peer {
	w.t.Helper()
	p := w.dial()
	p.token, p.name = token, token
	return p.login()
}

// closeSlowly holds answers to Unlisten back until release.
func (w *world) closeSlowly(slow bool) {
	w.engine.mu.Lock()
	defer w.engine.mu.Unlock()
	w.engine.slow = slow
}

func bye(p *peer) {
	p.t.Helper()
	p.say(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage())
	p.refused(wire.CodeDone)
}

// A client whose network was cut, without a FIN, has its random port again as
// soon as it is back, whoever asked for one meanwhile.
func TestPortAfterACut(t *testing.T) {
	noticed := 3*testPolicy().Heartbeat + time.Second
	gone := noticed + testPolicy().Grace
	anew := func(w *world, _ *peer) *peer { return w.dial().login() }
	tests := []struct {
		name     string
		away     time.Duration
		comeBack func(w *world, before *peer) *peer
		slow     bool // its listener is still being closed when it comes back
		changed  bool // it asks for another bind address
		commands []string
	}{
		{name: "new instance at once", comeBack: anew},
		{name: "new instance at once, changed", comeBack: anew, changed: true, commands: []string{"Unlisten", "Listen"}},
		{name: "new instance at once, changed, slow", comeBack: anew, changed: true, slow: true, commands: []string{"Unlisten", "Listen"}},
		{name: "new instance within the grace", away: noticed, comeBack: anew},
		{name: "new instance after the grace", away: gone, comeBack: anew, commands: []string{"Unlisten", "Listen"}},
		{name: "new instance while its listener is closed", away: gone, slow: true, comeBack: anew, commands: []string{"Unlisten", "Listen"}},
		{name: "new instance almost a day after the grace", away: noticed + keepPort, comeBack: anew, commands: []string{"Unlisten", "Listen"}},
		{name: "same instance, proof", comeBack: func(w *world, before *peer) *peer {
			p := w.dial()
			return p.enter(p.proof(before, 2))
		}},
		{name: "same instance, credential", comeBack: func(w *world, before *peer) *peer {
			p := w.dial()
			p.instance, p.epoch = before.instance, 2
			return p.login()
		}},
		{name: "same instance after the grace", away: gone, comeBack: func(w *world, before *peer) *peer {
			p := w.dial()
			p.say(p.proof(before, 2).ClientMessage())
			p.refused(wire.CodeNotResumable)
			p = w.dial()
			p.instance, p.epoch = before.instance, 3
			return p.login()
		}, commands: []string{"Unlisten", "Listen"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, fewPorts("5000-5003"), func(w *world) {
				t := w.t
				p := w.dial().login()
				port := p.register(spec("web", 0)).GetPublicAddresses()[0]
				w.sequence()
				w.closeSlowly(test.slow)
				time.Sleep(test.away)
				if got := w.sequence(); slices.Contains(got, "Unlisten") != (test.away >= gone) {
					t.Fatalf("while it was away: %v", got)
				}

				q := w.enterAs("bob")
				for i := range 3 {
					if got := q.register(spec(fmt.Sprint("t", i), 0)).GetPublicAddresses()[0]; got == port {
						t.Errorf("another client got its port")
					}
				}
				commands[relay.Listen](w)

				p = test.comeBack(w, p)
				s := spec("web", 0)
				if test.changed {
					s.Bind = []string{"127.0.0.1"}
				}
				p.ask(s)
				if test.slow {
					p.silent()
					if n := len(commands[relay.Listen](w)); n > 0 {
						t.Fatal("it listens while its port is in use")
					}
					w.engine.release()
				}
				if got := hear(p, (*wire.ServerMessage).GetTunnelRegistered).GetPublicAddresses(); !slices.Equal(got, []string{port}) {
					t.Errorf("it has %v, want %s", got, port)
				}
				opened := len(commands[relay.Listen](w))
				if want := len(test.commands) / 2; opened != want {
					t.Errorf("%d listeners were opened, want %d", opened, want)
				}
				w.hub.maps.ports.sound(t)
			})
		})
	}
}

// A fixed port may be one that stays with somebody who does not use it; a random
// one may only when nothing else is left, the one unused for the longest first.
func TestRememberedPortsOfOthers(t *testing.T) {
	inWorld(t, fewPorts("5000-5003"), func(w *world) {
		t := w.t
		var had []int
		for _, token := range []string{"a", "b", "c"} {
			p := w.enterAs(token)
			var port int
			if _, err := fmt.Sscanf(p.register(spec("web", 0)).GetPublicAddresses()[0], "127.0.0.1:%d", &port); err != nil {
				t.Fatal(err)
			}
			bye(p)
			if n := w.hub.maps.ports.open; n != 0 {
				t.Fatalf("%d ports count as in use after their client has left", n)
			}
			time.Sleep(time.Minute)
			if had = append(had, port); slices.Contains(had[:len(had)-1], port) {
				t.Fatalf("ports %v", had)
			}
		}
		q := w.enterAs("bob")
		fixed := q.register(spec("fixed", had[1]))
		w.occupy(uint16(had[1]))
		commands[relay.Listen](w)
		q.register(spec("random", 0))
		l := commands[relay.Listen](w)[0].Ports
		free := 5000 + 5001 + 5002 + 5003 - had[0] - had[1] - had[2]
		if want := []uint16{uint16(free), uint16(had[0]), uint16(had[2]), uint16(had[1])}; !slices.Equal(l, want) {
			t.Errorf("candidates %v, want %v", l, want)
		}

		// Whose port was taken gets another, and its own again when it is free.
		back := w.enterAs("b")
		if got := back.register(spec("web", 0)).GetPublicAddresses(); slices.Equal(got, fixed.GetPublicAddresses()) {
			t.Errorf("two tunnels have %v", got)
		}
		if l := commands[relay.Listen](w)[0].Ports; l[0] != uint16(had[1]) {
			t.Errorf("candidates %v, want %d first", l, had[1])
		}
	})
}

// A tunnel does not lose its port to a listener that is just being closed.
func TestPortOfALeavingGuest(t *testing.T) {
	inWorld(t, fewPorts("5000-5003"), func(w *world) {
		t := w.t
		p := w.enterAs("a")
		at := p.register(spec("web", 0)).GetPublicAddresses()[0]
		bye(p)
		var port int
		if _, err := fmt.Sscanf(at, "127.0.0.1:%d", &port); err != nil {
			t.Fatal(err)
		}
		guest := w.enterAs("bob")
		guest.register(spec("fixed", port))
		w.closeSlowly(true)
		bye(guest)
		p = w.enterAs("a")
		p.ask(spec("web", 0))
		p.silent()
		w.engine.release()
		if got := hear(p, (*wire.ServerMessage).GetTunnelRegistered).GetPublicAddresses()[0]; got != at {
			t.Errorf("it has %s, want %s", got, at)
		}
	})
}

// On the real sockets: the port is there again although a stream of before the
// cut still runs on it.
func TestPortAfterACutWithStreams(t *testing.T) {
	r := startServer(t, func(o *Options) { o.Policy.Grace = time.Millisecond })
	p := r.dial().login()
	at := public(t, p.register(spec("web", 0)))
	c := r.open(p, 1)
	visitor := tcp(t, loopback, at)
	_, seq := c.started()
	p.leave() // its ProxyConn stays
	eventually(t, "the grace ends", func() bool { return strings.Contains(r.log.String(), "client did not come back") })
	q := r.dial().login()
	if got := public(t, q.register(spec("web", 0))); got != at {
		t.Errorf("the tunnel came back at %v, want %v", got, at)
	}
	c.send(frame.Header{Type: frame.Data, Seq: seq}, []byte("on"))
	got := make([]byte, 2)
	if _, err := visitor.Read(got); err != nil || string(got) != "on" {
		t.Errorf("visitor got %q, %v", got, err)
	}
}

// A server that starts again gives every client the port it had, in whatever
// order they come.
func TestPortsSurviveARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ports.json")
	start := func() *running {
		return startServer(t, func(o *Options) {
			o.PortsFile = file
			o.Policy.Ports = fewPorts("22000-22003").Ports
		})
	}
	enter := func(r *running, name string) string {
		p := r.dial()
		p.name = name
		return public(t, p.login().register(spec("web", 0))).String()
	}
	r := start()
	names := []string{"a", "b", "c"}
	had := make(map[string]string)
	for _, name := range names {
		had[name] = enter(r, name)
	}
	for range 2 {
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		r = start()
		slices.Reverse(names)
		guest := enter(r, "guest")
		for _, name := range names {
			if got := enter(r, name); got != had[name] || got == guest {
				t.Errorf("%s has %s, want %s; the guest has %s", name, got, had[name], guest)
			}
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file %v, %v", info, err)
	}

	// A second server, started by mistake, leaves the file alone.
	ctl := r.ctl.String()
	if err := os.WriteFile(file, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := testOptions(&guard{}, new(logtest.Output))
	o.CtlListen, o.PortsFile = ctl, file
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil {
		t.Error("two servers have one control port")
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "broken" {
		t.Errorf("the file is now %q, %v", text, err)
	}
}
