package e2e

import (
	"fmt"
	"io"
	"syscall"
	"testing"
)

// A stream that is silent for too long, or after its first end, is reset at
// both ends.
func TestStreamTimeouts(t *testing.T) {
	t.Parallel()
	const halfClose, idle = "half_close = \"500ms\"", "idle = \"500ms\""
	tests := []struct {
		name, server, client string
		watch                func(w *world) *process // which has to notice it
		reason               string
		begin                func(visitor, local stream) error
	}{
		{"idle at the server", idle, "", serverOf, "idle timeout", func(stream, stream) error { return nil }},
		{"idle at the client", "", idle, clientOf, "idle timeout", func(stream, stream) error { return nil }},
		// The side whose own socket was sent the FIN waits for the other one.
		{"half closed by the visitor", "", halfClose, clientOf, "half-close timeout", func(visitor, _ stream) error { return visitor.CloseWrite() }},
		{"half closed by the service", halfClose, "", serverOf, "half-close timeout", func(_, local stream) error { return local.CloseWrite() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, conns := heldWorld(t, setup{server: "[timeouts]\n" + tt.server, client: "[timeouts]\n" + tt.client})
			visitor, local := quiet(t, w, conns)
			if err := tt.begin(visitor, local); err != nil {
				t.Fatal(err)
			}
			w.log(tt.watch(w), 0, `msg="stream ended" tunnel=web .*reason="`+tt.reason+`"`)
			wantBroken(t, "the visitor", visitor)
			wantBroken(t, "the local service", local)
			wantRoundTripHeld(t, w, conns)
		})
	}
}

func serverOf(w *world) *process { return w.server }
func clientOf(w *world) *process { return w.client }

// A visitor of a client that does not answer is turned away in time; when the
// client goes on, so does everything.
func TestFrozenClient(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{server: "[timeouts]\nconnect = \"500ms\"\nheartbeat = \"500ms\""})
	running := visit(t, w.web())
	say(t, running, "before")
	mark, serverMark := w.client.stderr.mark(), w.server.stderr.mark()
	w.signal(w.client, syscall.SIGSTOP)
	w.log(w.server, serverMark, `msg="client lost; its streams and listeners stay"`)
	eventually(t, "idle ProxyConns that do not answer are given up", func() error {
		if c := w.take(w.server); c.proxy > 1 { // that of the stream
			return fmt.Errorf("%v", c)
		}
		return nil
	})
	if err := wantRefused(w.web()); err != nil {
		t.Errorf("a visitor of a client that does not answer: %v", err)
	}
	w.signal(w.client, syscall.SIGCONT)
	w.log(w.client, mark, `msg=connected .*resumed=true`)
	say(t, running, "after")
	wantRoundTrip(t, w.web(), "after")
}

// The other way round: the client notices, and comes back to the same session.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{server: "[timeouts]\nheartbeat = \"500ms\""})
	running := visit(t, w.web())
	say(t, running, "before")
	mark := w.client.stderr.mark()
	w.signal(w.server, syscall.SIGSTOP)
	w.log(w.client, mark, `msg="lost the connection to the server; streams go on" .*silent for too long`)
	waiting := visit(t, w.web()) // the kernel accepts it
	if _, err := io.WriteString(waiting, "early"); err != nil {
		t.Fatal(err)
	}
	w.signal(w.server, syscall.SIGCONT)
	w.log(w.client, mark, `msg=connected .*resumed=true`)
	say(t, running, "after")
	hear(t, waiting, "early")
	wantRoundTrip(t, w.web(), "after")
}

// Heartbeats keep what is idle on purpose.
func TestQuietStreamLives(t *testing.T) {
	t.Parallel()
	local, conns := manual(t, "127.0.0.1:0")
	var k *cutter
	w := newWorld(t, setup{
		server:  "[timeouts]\nheartbeat = \"2s\"",
		tunnels: []tunnel{{name: "web", local: local.address}},
		way: func(w *world, ctl string) string {
			k = newCutter(t, w.ip, ctl)
			return k.address
		},
	})
	visitor, service := quiet(t, w, conns)
	wantRoundTripHeld(t, w, conns) // leaves an idle ProxyConn
	before := w.take(w.client).proxy
	first := k.heard.Load()
	eventually(t, "several heartbeats pass", func() error {
		if n := k.heard.Load() - first; n < 4 {
			return fmt.Errorf("%d so far", n)
		}
		return nil
	})
	if after := w.take(w.client).proxy; after < before {
		t.Errorf("%d ProxyConns after some heartbeats, %d before", after, before)
	}
	if _, err := io.WriteString(visitor, "still here"); err != nil {
		t.Fatal(err)
	}
	hear(t, service, "still here")
	if n := w.client.stderr.count(`msg="lost the connection|msg="proxy connection closed"`); n > 0 {
		t.Errorf("%d connections were lost", n)
	}
	visitor.Close()
	service.Close()
}
