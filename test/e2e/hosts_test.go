package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// quick are settings with which a client tries often to come back.
const quick = "[timeouts]\nconnect = \"2s\""

// hostWorld is a world whose server, client, service and visitors are on hosts of
// their own, with one tunnel, "web".
type hostWorld struct {
	*world
	lan                      *lan
	server, client           *lanHost
	service, visitor         *lanHost
	conns                    <-chan stream // of the service; the test has them
	publicAddress, localAddr string
}

// newHostWorld makes the hosts and starts what s describes on them.
func newHostWorld(t *testing.T, s setup, tunnelLines string) *hostWorld {
	t.Helper()
	l := newLAN(t)
	f := &hostWorld{lan: l, server: l.host("server"), client: l.host("client"), service: l.host("service"), visitor: l.host("visitor")}
	local, conns := f.service.manual(t)
	f.conns, f.localAddr = conns, local.address
	s.at = places{server: f.server, client: f.client}
	s.tunnels = []tunnel{{name: "web", local: local.address, more: tunnelLines}}
	f.world = newWorld(t, s)
	f.publicAddress = f.web()
	return f
}

// open makes a stream that has said something.
func (f *hostWorld) open(t *testing.T) (visitor, local stream) {
	t.Helper()
	visitor = f.visitor.visit(t, f.publicAddress)
	if _, err := io.WriteString(visitor, "x"); err != nil {
		t.Fatal(err)
	}
	local = next(t, f.conns)
	hear(t, local, "x")
	return visitor, local
}

// wantVisit has a visitor served and gone.
func (f *hostWorld) wantVisit(t *testing.T) {
	t.Helper()
	visitor, local := f.open(t)
	wantTalk(t, visitor, local)
	local.Close()
	wantEnd(t, "the visitor", visitor)
	visitor.Close()
}

// wantTalk wants bytes to pass both ways.
func wantTalk(t *testing.T, visitor, local stream) {
	t.Helper()
	if _, err := io.WriteString(visitor, "question"); err != nil {
		t.Fatal(err)
	}
	hear(t, local, "question")
	if _, err := io.WriteString(local, "answer"); err != nil {
		t.Fatal(err)
	}
	hear(t, visitor, "answer")
}

// awaitConns waits until server and client have so many ProxyConns or more, if
// more is set, or just so many.
func (f *hostWorld) awaitConns(t *testing.T, n int, more bool) {
	t.Helper()
	for _, p := range []*process{f.world.server, f.world.client} {
		eventually(t, fmt.Sprintf("%s has %d ProxyConns (or more: %t)", p.name, n, more), func() error {
			if c := f.take(p); c.proxy < n || c.proxy > n && !more {
				return errors.New(c.String())
			}
			return nil
		})
	}
}

// wantNoConflict wants that no port was ever in the way.
func (f *hostWorld) wantNoConflict(t *testing.T) {
	t.Helper()
	for _, p := range f.all {
		if n := p.stderr.count(`in use|port taken|msg="tunnel refused`); n > 0 {
			t.Errorf("%s complains %d times that a tunnel cannot have its port", p.name, n)
		}
	}
}

// Each of the four parties is a host: the whole way, with the visitor's address
// told to the service.
func TestHosts(t *testing.T) {
	t.Parallel()
	f := newHostWorld(t, setup{}, `proxy_protocol = "v1"`)
	visitor := f.visitor.visit(t, f.publicAddress)
	local := next(t, f.conns)
	hear(t, local, headerV1(addressOf(visitor.LocalAddr()), addressOf(visitor.RemoteAddr())))
	if from := addressOf(visitor.LocalAddr()).Addr().String(); from != f.visitor.ip {
		t.Errorf("the visitor comes from %s, not from its host %s", from, f.visitor.ip)
	}
	if from := addressOf(local.RemoteAddr()).Addr().String(); from != f.client.ip {
		t.Errorf("the service is visited from %s, want the client's host %s", from, f.client.ip)
	}
	wantTalk(t, visitor, local)
	bothWays(t, visitor, local, 32<<20)
}

// A path that loses packets costs time, not bytes.
func TestLoss(t *testing.T) {
	t.Parallel()
	f := newHostWorld(t, setup{}, "")
	f.lan.lose(2)
	var tasks sync.WaitGroup
	for range 3 {
		visitor, local := f.open(t)
		tasks.Go(func() { bothWays(t, visitor, local, 4<<20) })
	}
	tasks.Wait()
	f.lan.heal()
	f.wantVisit(t)
}

// bothWays moves so many bytes in each direction, to the ends of both.
func bothWays(t *testing.T, visitor, local stream, size int64) {
	t.Helper()
	var tasks sync.WaitGroup
	for i, c := range []stream{visitor, local} {
		tasks.Go(func() {
			_, err := io.Copy(c, io.LimitReader(noise(uint64(i)), size))
			if err := errors.Join(err, c.CloseWrite()); err != nil {
				t.Error(err)
			}
		})
		tasks.Go(func() {
			want, err := digest(noise(uint64(1-i)), size)
			if err != nil {
				t.Error(err)
			}
			if got, err := digest(c, size); err != nil || got != want {
				t.Errorf("the bytes that came are not those that were sent, or %v", err)
			}
			if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%d bytes and %v behind the last byte, want the end", n, err)
			}
		})
	}
	tasks.Wait()
}

// The host of the server loses its power and comes back, as another one to all
// that TCP knows.
func TestServerReboots(t *testing.T) {
	t.Parallel()
	f := newHostWorld(t, setup{server: "[timeouts]\nheartbeat = \"500ms\"", client: quick}, "")
	visitor, local := f.open(t)
	f.wantVisit(t)
	mark := f.world.client.stderr.mark()
	f.lan.unplug(f.server)
	f.world.server.kill()
	f.log(f.world.client, mark, `msg="lost the connection to the server; streams go on"`)
	f.lan.reboot(f.server)
	f.startServer()
	f.log(f.world.client, mark, `msg=connected .*resumed=false`)
	f.log(f.world.server, 0, `msg="tunnel open" tunnel=web`)
	if again := f.web(); again != f.publicAddress {
		t.Errorf("the tunnel moved from %s to %s", f.publicAddress, again)
	}
	for who, c := range map[string]stream{"the visitor": visitor, "the local service": local} {
		if _, err := io.WriteString(c, "who are you"); err != nil {
			t.Errorf("%s: %v", who, err)
		}
		wantReset(t, who, c)
	}
	f.wantVisit(t)
	f.wantNoConflict(t)
}

// A client whose host was cut off is replaced by one on another host at once:
// nobody has to find out first that it is gone. Back on the net it does not fight.
func TestTakeoverFromAnotherHost(t *testing.T) {
	t.Parallel()
	f := newHostWorld(t, setup{client: quick}, "")
	second := f.lan.host("second")
	replacement := f.lan.host("second service").serve(t, named("second"))
	visitor, local := f.open(t)
	f.wantVisit(t)
	old := f.world.client
	f.lan.cut(f.server, f.client)

	f.setup.at.client = second
	f.writeClient("second.toml", f.join, quick, []tunnel{{name: "web", local: replacement.address}})
	f.world.client = f.startClient("second client", "second.toml")
	if again := f.web(); again != f.publicAddress {
		t.Errorf("the tunnel moved from %s to %s", f.publicAddress, again)
	}
	f.log(f.world.server, 0, `msg="a new instance takes over`)
	for range 10 {
		c := f.visitor.visit(t, f.publicAddress)
		if greeting, err := bufio.NewReader(c).ReadString('\n'); err != nil || greeting != "second\n" {
			t.Fatalf("a visitor after the takeover got %q and %v, want the second service", greeting, err)
		}
		c.Close()
	}

	mark := old.stderr.mark()
	f.lan.heal()
	wantTalk(t, visitor, local) // it was only interrupted
	f.log(old, mark, `refused \(superseded\)`)
	if n := old.stderr.count(`msg=connected `); n != 1 {
		t.Errorf("the superseded client connected %d times, want once", n)
	}
	if n := f.world.client.stderr.count(`lost the connection|ended the connection`); n > 0 {
		t.Error("the client that took over was disturbed")
	}
	local.Close()
	wantEnd(t, "the visitor", visitor)
	f.wantNoConflict(t)
}

// A client host that loses its power comes back as a new instance, while the
// server takes the former one for alive, unless the new host has told it better.
func TestClientReboots(t *testing.T) {
	t.Parallel()
	f := newHostWorld(t, setup{client: quick}, "")
	visitor, local := f.open(t)
	f.wantVisit(t)
	f.lan.unplug(f.client)
	f.world.client.kill()
	f.lan.reboot(f.client)
	f.world.client = f.startClient("client again", "client.toml")
	if again := f.web(); again != f.publicAddress {
		t.Errorf("the tunnel moved from %s to %s", f.publicAddress, again)
	}
	// Whoever sends learns that nobody is there.
	if _, err := io.WriteString(visitor, strings.Repeat("x", 100)); err != nil {
		t.Fatal(err)
	}
	wantReset(t, "the visitor", visitor)
	if _, err := io.WriteString(local, "x"); err == nil {
		if _, err = local.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the local service saw %v, want a connection reset", err)
		}
	}
	f.wantVisit(t)
	f.wantNoConflict(t)
}
