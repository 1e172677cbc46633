package e2e

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestRevoke(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	visitor, local := quiet(t, w, conns)
	busy := startFlow(t, w, conns)
	address := w.web()
	if out := w.run("", "cproxy-server", "token", "revoke", "site", "--config", w.path("server.toml")); out != "revoked site\n" {
		t.Errorf("revoke printed %q", out)
	}
	wantReset(t, "the visitor", visitor)
	wantReset(t, "the local service", local)
	busy.wantReset(t)
	w.log(w.server, 0, `msg="client cut off: its token was revoked"`)
	w.log(w.client, 0, `level=ERROR msg="the server ended the connection" .*refused \(credential revoked\).*token add`)
	eventually(t, "the public port closes", func() error { return wantClosed(address) })
	// It was connected once, so it stays and waits for a better token.
	w.log(w.client, 0, `level=ERROR msg="cannot connect to the server".*refused \(bad credential\)`)
	if !w.client.running() {
		t.Error("a client that was connected once must not exit when it is revoked")
	}
}

func wantClosed(address string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil
	}
	c.Close()
	return errors.New("somebody listens")
}

// Revoking one token leaves the client of another alone.
func TestRevokeAnother(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	ctl := net.JoinHostPort(w.ip, portText(w.doors.ctl[0]))
	w.writeClient("other.toml", w.token("other", ctl), "", nil)
	other := w.startClient("other client", "other.toml")
	visitor, local := quiet(t, w, conns)
	w.run("", "cproxy-server", "token", "revoke", "other", "--config", w.path("server.toml"))
	w.log(other, 0, `refused \(credential revoked\)`)
	if _, err := io.WriteString(visitor, "still here"); err != nil {
		t.Fatal(err)
	}
	hear(t, local, "still here")
	visitor.Close()
	local.Close()
	wantRoundTripHeld(t, w, conns)
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	first := serve(t, "tcp", "127.0.0.1:0", named("first"))
	second := serve(t, "tcp", "127.0.0.1:0", named("second"))
	w := newWorld(t, setup{tunnels: []tunnel{{name: "web", local: first.address}}})
	address := w.web()
	running := visit(t, address)
	hear(t, running, "first\n")
	say(t, running, "before")

	w.writeClient("second.toml", w.join, "", []tunnel{{name: "web", local: second.address}})
	old := w.client
	w.client = w.startClient("second client", "second.toml")
	if again := w.web(); again != address {
		t.Errorf("the tunnel moved from %s to %s", address, again)
	}
	w.log(old, 0, `refused \(superseded\)`)
	w.log(w.server, 0, `msg="a new instance takes over`)
	for range 20 {
		c := visit(t, address)
		greeting, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || greeting != "second\n" {
			t.Fatalf("a visitor after the takeover got %q and %v, want the second service", greeting, err)
		}
		c.Close()
	}
	say(t, running, strings.Repeat("after", 10000))
	if err := running.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the running stream", running)
	if n := old.stderr.count(`msg=connected`); n != 1 {
		t.Errorf("the superseded client connected %d times, want once", n)
	}
}

// cutter carries connections to an address until it is told not to.
type cutter struct {
	address string
	heard   atomic.Int64 // how often the server said something

	mu      sync.Mutex
	cut     bool
	refused int
	conns   map[net.Conn]struct{}
}

func newCutter(t *testing.T, ip, to string) *cutter {
	t.Helper()
	k := &cutter{conns: make(map[net.Conn]struct{})}
	s := serve(t, "tcp", ip+":0", func(c stream) { k.carry(c, to) })
	k.address = s.address
	t.Cleanup(func() { k.setCut(true) })
	return k
}

func (k *cutter) carry(c net.Conn, to string) {
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	k.mu.Lock()
	if k.cut {
		k.refused++
		k.mu.Unlock()
		return
	}
	k.conns[c], k.conns[up] = struct{}{}, struct{}{}
	k.mu.Unlock()
	var tasks sync.WaitGroup
	pass := func(to net.Conn, from io.Reader) {
		_, _ = io.Copy(to, from) // either end may break
		c.Close()
		up.Close()
	}
	tasks.Go(func() { pass(up, c) })
	tasks.Go(func() { pass(c, io.TeeReader(up, chunks{&k.heard})) })
	tasks.Wait()
	k.mu.Lock()
	delete(k.conns, c)
	delete(k.conns, up)
	k.mu.Unlock()
}

// chunks counts writes to it.
type chunks struct{ n *atomic.Int64 }

func (c chunks) Write(p []byte) (int, error) {
	c.n.Add(1)
	return len(p), nil
}

// setCut ends every connection and lets none through, or lets them again.
func (k *cutter) setCut(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = cut
	for c := range k.conns {
		c.Close()
	}
	clear(k.conns)
}

func (k *cutter) refusals() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refused
}

func TestControlLost(t *testing.T) {
	t.Parallel()
	var k *cutter
	local := serve(t, "tcp", "127.0.0.1:0", echo)
	w := newWorld(t, setup{
		tunnels: []tunnel{{name: "web", local: local.address}},
		way: func(w *world, ctl string) string {
			k = newCutter(t, w.ip, ctl)
			return k.address
		},
	})
	address := w.web()
	running := visit(t, address)
	say(t, running, "before")
	wantRoundTrip(t, address, "leaves an idle ProxyConn")

	for range 2 {
		mark, serverMark := w.client.stderr.mark(), w.server.stderr.mark()
		seen := k.refusals()
		k.setCut(true)
		w.log(w.client, mark, `msg="lost the connection to the server; streams go on"`)
		w.log(w.server, serverMark, `msg="client lost; its streams and listeners stay"`)
		say(t, running, "while the control connection is away")
		for range 20 { // from the pool, one after the other
			wantRoundTrip(t, address, "a new visitor meanwhile")
		}
		eventually(t, "the client tries to come back", func() error {
			if k.refusals() == seen {
				return errors.New("it has not yet")
			}
			return nil
		})
		k.setCut(false)
		w.log(w.client, mark, `msg=connected .*resumed=true`)
		w.log(w.server, serverMark, `msg="client connected" .*resumed=true tunnels=1`)
		say(t, running, "after")
		wantRoundTrip(t, address, "a new visitor afterwards")
	}
	if n := w.server.stderr.count(`msg="tunnel open"`); n != 1 {
		t.Errorf("the tunnel was opened %d times, want once", n)
	}
	if n := w.client.stdout.count(`^tunnel web ready`); n != 1 {
		t.Errorf("the tunnel was announced %d times, want once", n)
	}
}

// A client that does not come back in time loses its listeners; its streams go
// on all the same.
func TestGraceEnds(t *testing.T) {
	t.Parallel()
	var k *cutter
	local := serve(t, "tcp", "127.0.0.1:0", echo)
	w := newWorld(t, setup{
		server:  `grace = "1s"`,
		tunnels: []tunnel{{name: "web", local: local.address}},
		way: func(w *world, ctl string) string {
			k = newCutter(t, w.ip, ctl)
			return k.address
		},
	})
	running := visit(t, w.web())
	say(t, running, "before")
	mark := w.client.stderr.mark()
	k.setCut(true)
	w.log(w.server, 0, `msg="client did not come back"`)
	eventually(t, "the public port closes", func() error { return wantClosed(w.web()) })
	say(t, running, "streams live on")
	k.setCut(false)
	w.log(w.client, mark, `msg=connected .*resumed=false`)
	eventually(t, "the tunnel is open again", func() error { return roundTrip(w.web(), "hello again") })
	say(t, running, "and on")
}

// A login by a second process under another name changes nothing.
func TestCheckBesideARunningClient(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	running := visit(t, w.web())
	say(t, running, "before")
	out := w.run("", "cproxy-client", "check", "--connect", "--config", w.path("client.toml"))
	if want := w.path("client.toml") + ": ok\n"; out != want {
		t.Errorf("check printed %q, want %q", out, want)
	}
	say(t, running, "after")
	if n := w.client.stderr.count(`superseded|lost the connection|ended the connection`); n > 0 {
		t.Error("a check disturbed the running client")
	}
	w.signal(w.client, syscall.SIGTERM)
	w.wantExit(w.client, 0)
}
