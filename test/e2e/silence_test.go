package e2e

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
)

// A cut without FIN or RST that both sides notice by their heartbeats, and that
// ends before TCP would give up, costs the idle ProxyConns and nothing else.
func TestSilentCut(t *testing.T) {
	t.Parallel()
	f := newHostWorld(t, setup{server: "[timeouts]\nheartbeat = \"500ms\"\nconnect = \"1m\"", client: quick}, "")
	visitor, local := f.open(t)
	f.wantVisit(t)
	f.awaitConns(t, 2, true) // one is idle

	for range 2 {
		mark, serverMark := f.world.client.stderr.mark(), f.world.server.stderr.mark()
		f.lan.cut(f.server, f.client)
		f.log(f.world.server, serverMark, `msg="client lost; its streams and listeners stay"`)
		f.log(f.world.client, mark, `msg="lost the connection to the server; streams go on"`)
		f.awaitConns(t, 1, false) // all that were idle, and not the one with the stream
		f.log(f.world.client, mark, `msg="proxy connection closed" .*reason="heartbeats missed"`)
		if n := f.lan.dropped(); n == 0 {
			t.Error("both noticed although no packet was dropped")
		}
		// Nothing is left that could be given out: these wait for the client.
		early := []stream{f.visitor.visit(t, f.publicAddress), f.visitor.visit(t, f.publicAddress)}
		for i, c := range early {
			if _, err := fmt.Fprintf(c, "early %d", i); err != nil {
				t.Fatal(err)
			}
		}

		f.lan.heal()
		f.log(f.world.client, mark, `msg=connected .*resumed=true`)
		f.log(f.world.server, serverMark, `msg="client connected" .*resumed=true tunnels=1`)
		wantEarly(t, f.conns, early)
		wantTalk(t, visitor, local)
		f.wantVisit(t)
		f.awaitConns(t, 2, true)
	}
	if n := f.world.server.stderr.count(`msg="tunnel open"`); n != 1 {
		t.Errorf("the tunnel was opened %d times, want once", n)
	}
	f.wantNoConflict(t)
	local.Close()
	wantEnd(t, "the visitor", visitor)
}

// wantEarly has visitors served who came while nobody could be reached, in any
// order.
func wantEarly(t *testing.T, conns <-chan stream, early []stream) {
	t.Helper()
	for range early {
		local := next(t, conns)
		message := make([]byte, len("early 0"))
		if _, err := io.ReadFull(local, message); err != nil {
			t.Fatal(err)
		}
		if _, err := local.Write(message); err != nil {
			t.Fatal(err)
		}
		local.Close()
	}
	for i, c := range early {
		hear(t, c, fmt.Sprintf("early %d", i))
		wantEnd(t, "an early visitor", c)
		c.Close()
	}
}

// A path that takes no new connections, but carries those that are there, keeps
// everything that does not need one.
func TestNoNewConnections(t *testing.T) {
	t.Parallel()
	f := newHostWorld(t, setup{server: "[timeouts]\nheartbeat = \"500ms\"", client: quick}, "")
	visitor, local := f.open(t)
	f.wantVisit(t)
	f.awaitConns(t, 2, true)
	f.lan.cutNew(f.client, f.server)
	for range 20 { // one after the other, on what is idle
		f.wantVisit(t)
	}
	waiting := []stream{f.visitor.visit(t, f.publicAddress)}
	for len(waiting) < 8 { // more than there are idle ones
		waiting = append(waiting, f.visitor.visit(t, f.publicAddress))
	}
	for i, c := range waiting {
		if _, err := fmt.Fprintf(c, "early %d", i); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a new connection is dropped", func() error {
		if f.lan.dropped() == 0 {
			return errors.New("none was tried")
		}
		return nil
	})
	wantTalk(t, visitor, local)
	f.lan.heal()
	wantEarly(t, f.conns, waiting)
	wantTalk(t, visitor, local)
	if f.world.client.stderr.count(`msg="lost the connection`) > 0 {
		t.Error("the control connection was lost")
	}
	local.Close()
	wantEnd(t, "the visitor", visitor)
}

// A cut that lasts ends what it has cut: streams that wait for an acknowledgement
// and streams that wait for nothing, with an error at either end. A minute later
// nobody holds them, and the port is free for the client when the cut heals.
func TestLongCut(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for more than a minute, until dead peers are given up")
	}
	t.Parallel()
	f := newHostWorld(t, setup{server: "[timeouts]\nheartbeat = \"500ms\"", client: quick}, "")
	type pair struct {
		what           string
		visitor, local stream
	}
	quietOne := pair{what: "quiet"}
	quietOne.visitor, quietOne.local = f.open(t)
	up, down := pair{what: "from the visitor"}, pair{what: "to the visitor"}
	up.visitor, up.local = f.open(t)
	down.visitor, down.local = f.open(t)
	f.lan.cut(f.server, f.client)
	ends := make(chan error, 2)
	for _, c := range []stream{up.visitor, down.local} {
		go func() {
			_, err := io.Copy(c, noise(1))
			ends <- err
		}()
	}
	for _, p := range []pair{quietOne, up, down} {
		wantBroken(t, "the visitor of the stream "+p.what, p.visitor)
		wantBroken(t, "the local service of the stream "+p.what, p.local)
	}
	for range 2 {
		if err := <-ends; err == nil {
			t.Error("a sender whose receiver vanished has seen no error")
		}
	}
	f.log(f.world.server, 0, `msg="stream ended" .*reason="peer dead"`)
	f.log(f.world.client, 0, `msg="stream ended" .*reason="peer dead"`)
	f.awaitConns(t, 0, false)

	// It has backed off to more than a minute by now, so another process of it
	// asks for the port.
	f.lan.heal()
	f.stop(f.world.client)
	f.world.client = f.startClient("client again", "client.toml")
	if again := f.web(); again != f.publicAddress {
		t.Errorf("the tunnel moved from %s to %s", f.publicAddress, again)
	}
	f.wantVisit(t)
	f.wantNoConflict(t)
}

// A visitor who vanishes in the middle of a download does not hold the service
// up for ever. One who merely reads nothing, on the same path and as long, keeps
// the stream and loses no byte.
func TestVanishedVisitor(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for more than a minute, until a dead peer is given up")
	}
	t.Parallel()
	f := newHostWorld(t, setup{}, "")
	gone, toGone := f.open(t)
	stalled, toStalled := f.open(t)
	const size = 64 << 20
	var sent atomic.Int64
	toldGone, toldStalled := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(toStalled, io.TeeReader(io.LimitReader(noise(7), size), counter{&sent}))
		toldStalled <- errors.Join(err, toStalled.CloseWrite())
	}()
	blocked(t, &sent)
	if n := sent.Load(); n >= size {
		t.Fatalf("all %d bytes were taken although nobody reads", n)
	}
	f.lan.cutConn(gone)
	go func() {
		_, err := io.Copy(toGone, noise(8))
		toldGone <- err
	}()
	wantBroken(t, "the local service of the visitor who is gone", toGone)
	if err := <-toldGone; err == nil {
		t.Error("the sender to a visitor who is gone has seen no error")
	}
	f.log(f.world.server, 0, `msg="stream ended" tunnel=web .*reason="peer dead"`)
	select {
	case err := <-toldStalled:
		t.Fatalf("the sender to a visitor who stalls has seen %v", err)
	default:
	}
	want, err := digest(noise(7), size)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := digest(stalled, size); err != nil || got != want {
		t.Fatalf("the visitor who stalled got other bytes than were sent, or %v", err)
	}
	wantEnd(t, "the visitor who stalled", stalled)
	if err := <-toldStalled; err != nil {
		t.Error(err)
	}
	f.lan.heal()
}
