package server

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// drops sends every byte by itself while it is on.
type drops struct {
	net.Conn
	on atomic.Bool
}

func (c *drops) Write(p []byte) (int, error) {
	if !c.on.Load() {
		return c.Conn.Write(p)
	}
	for i := range p {
		if n, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i + n, err
		}
	}
	return len(p), nil
}

// However the messages of a client are cut into TLS records, and these into
// segments, a server that waits for the socket and not for a message misses none.
func TestMessagesInAnyPieces(t *testing.T) {
	r := startServer(t, nil)
	conn := &drops{Conn: tcp(t, loopback, r.ctl)}
	p := newPeer(t, conn, nil)
	p.login()
	var messages bytes.Buffer
	w := wire.NewWriter(&messages)
	expect := func(what string) {
		t.Helper()
		seen := make(map[string]bool)
		for range 3 {
			g := hear(p, (*wire.ServerMessage).GetTunnelRegistered)
			seen[g.GetName()] = true
		}
		if len(seen) != 3 {
			t.Errorf("%s: registered %v", what, seen)
		}
	}
	three := func(prefix string) []byte {
		messages.Reset()
		for i := range 3 {
			m := (&wire.RegisterTunnel{Spec: spec(fmt.Sprint(prefix, i), 0)}).ClientMessage()
			if err := w.WriteClientMessage(m); err != nil {
				t.Fatal(err)
			}
		}
		return messages.Bytes()
	}
	put := func(b []byte) {
		t.Helper()
		if _, err := p.conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	// A tunnel is announced, and that is answered. So first what is not: nothing
	// but these messages is on the way.
	messages.Reset()
	for _, m := range []*wire.ClientMessage{
		(&wire.Pong{Nonce: 1}).ClientMessage(), (&wire.Pong{Nonce: 2}).ClientMessage(),
		(&wire.RegisterTunnel{Spec: spec("alone", 0)}).ClientMessage(),
	} {
		if err := w.WriteClientMessage(m); err != nil {
			t.Fatal(err)
		}
	}
	put(messages.Bytes())
	if g := hear(p, (*wire.ServerMessage).GetTunnelRegistered); g.GetName() != "alone" {
		t.Errorf("registered %v", g)
	}
	put(three("together"))
	expect("three messages in a record")
	for _, b := range three("apart") {
		put([]byte{b})
	}
	expect("a record for every byte")
	conn.on.Store(true)
	put(three("drops"))
	expect("a segment for every byte")
}

// A client that waits for its turn is not late.
func TestWaitingForASlotTakesNoTime(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		for range handshakeSlots {
			w.door.slots <- struct{}{}
		}
		const late = 3 * defaultHandshakeTimeout
		w.tasks.Go(func() {
			time.Sleep(late)
			<-w.door.slots
		})
		start := time.Now()
		p := w.dial()
		if waited := time.Since(start); waited != late {
			t.Errorf("the handshake took %v", waited)
		}
		time.Sleep(defaultHandshakeTimeout - time.Nanosecond)
		p.silent()
		time.Sleep(time.Nanosecond)
		p.ended() // its own time counts
	})
}

// A herd that came at once is pinged at different times, each within a heartbeat.
func TestPingsAreSpread(t *testing.T) {
	const beat = 30 * time.Second
	first := make(map[time.Duration]bool)
	for id := range uint64(1000) {
		c := &Control{session: session{id: id * 0x9e3779b97f4a7c15}, heartbeat: beat}
		d := c.firstPing()
		if d <= beat/2 || d > beat {
			t.Fatalf("control %d is pinged after %v", id, d)
		}
		first[d.Truncate(time.Second)] = true
	}
	if len(first) < 15 {
		t.Errorf("all pings come in %d of 15 seconds", len(first))
	}
	if d := (&Control{heartbeat: 1}).firstPing(); d != 1 {
		t.Errorf("of the shortest heartbeat: %v", d)
	}
}

func TestTidyAfterARush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var released atomic.Int64
		d := newTidy()
		go d.run(ctx, func() { released.Add(1) })
		logins := func(n int, each time.Duration) {
			for range n {
				d.arrived()
				time.Sleep(each)
			}
		}
		check := func(what string, want int64) {
			t.Helper()
			synctest.Wait()
			if got := released.Load(); got != want {
				t.Errorf("%s: released %d times, want %d", what, got, want)
			}
		}
		logins(rush-1, 0)
		time.Sleep(time.Minute)
		check("a few logins", 0)
		logins(1, calm-time.Millisecond)
		check("the last of a rush", 0)
		time.Sleep(calm)
		check("after a rush", 1)
		logins(rush/2, 0)
		time.Sleep(time.Minute)
		check("a few more", 1)
		logins(10*rush, time.Millisecond)
		check("during a rush", 1)
		time.Sleep(time.Hour)
		check("after another", 2)
		tidy{}.arrived() // counts nothing
	})
}
