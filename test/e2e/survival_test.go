package e2e

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// scene is a world in which everything runs that an event can end: streams in
// every state, idle ProxyConns, and the listeners of two tunnels. "web" leads
// to a service of the test, "echo" to an echo.
type scene struct {
	*world
	way      *cutter
	tunnels  []tunnel
	address  map[string]string // of the tunnels, before the event
	convoy   *convoy           // streams that are busy both ways
	quiet    [2]stream         // visitor and service of one that waits
	half     [2]stream         // of one whose visitor has ended
	sent     []int64           // by the convoy, before the event
	mark     int               // in the client's log, before the event
	server0  int               // in the server's log
	running  int               // streams
	original *process          // the client
}

func newScene(t *testing.T, server string) *scene {
	t.Helper()
	web, conns := manual(t, "127.0.0.1:0")
	s := &scene{address: make(map[string]string)}
	s.tunnels = []tunnel{{name: "web", local: web.address}, {name: "echo", local: serve(t, "tcp", "127.0.0.1:0", echo).address}}
	s.world = newWorld(t, setup{server: server, tunnels: s.tunnels, way: through(t, &s.way)})
	s.original = s.client
	for _, tn := range s.tunnels {
		s.address[tn.name] = s.world.address(s.client, tn.name)
	}
	s.quiet[0], s.quiet[1] = quiet(t, s.world, conns)
	s.half[0], s.half[1] = quiet(t, s.world, conns)
	if err := s.half[0].CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the local service", s.half[1])
	var hauls []*haul
	for id := range uint64(4) {
		h, err := openHaul(id, s.address["web"], conns)
		if err != nil {
			t.Fatal(err)
		}
		hauls = append(hauls, h)
	}
	s.running = len(hauls) + 2
	s.fill(t)
	s.convoy = newConvoy(hauls, time.Millisecond)
	if err := s.convoy.beyond(s.convoy.sent()); err != nil {
		t.Fatal(err)
	}
	s.mark, s.server0 = s.client.stderr.mark(), s.server.stderr.mark()
	s.sent = s.convoy.sent()
	return s
}

// fill leaves idle ProxyConns behind.
func (s *scene) fill(t *testing.T) {
	t.Helper()
	const together = 6
	var visitors []stream
	for range together {
		visitors = append(visitors, visit(t, s.address["echo"]))
	}
	for _, v := range visitors {
		say(t, v, "hello")
	}
	for _, v := range visitors {
		if err := v.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, "the visitor", v)
	}
	eventually(t, "there are idle ProxyConns", func() error {
		if n := s.take(s.client).proxy - s.running; n < together {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// cell checks what an event leaves of one kind of thing.
type cell func(t *testing.T, s *scene)

// streamsLive wants every stream to move on, and in the end to have lost
// nothing.
func streamsLive(t *testing.T, s *scene) {
	t.Helper()
	if err := s.convoy.beyond(s.sent); err != nil {
		t.Error(err)
	}
	for i := range s.quiet {
		if _, err := io.WriteString(s.quiet[i], "still here"); err != nil {
			t.Fatal(err)
		}
		hear(t, s.quiet[1-i], "still here")
	}
	if _, err := io.WriteString(s.half[1], "answer"); err != nil {
		t.Fatal(err)
	}
	hear(t, s.half[0], "answer")
	if err := s.half[1].CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the visitor of a half-closed stream", s.half[0])
	for i := range s.quiet {
		if err := s.quiet[i].CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, "the other end of a quiet stream", s.quiet[1-i])
	}
	if lost, err := s.convoy.end(); err != nil {
		t.Errorf("%d busy streams are lost: %v", lost, err)
	}
}

// streamsReset wants every stream to have ended with an error at both ends.
func streamsReset(t *testing.T, s *scene) {
	t.Helper()
	wantReset(t, "the visitor of a quiet stream", s.quiet[0])
	wantReset(t, "the local service of a quiet stream", s.quiet[1])
	wantReset(t, "the visitor of a half-closed stream", s.half[0])
	wantBroken(t, "the local service of a half-closed stream", s.half[1])
	s.convoy.wantReset(t)
}

// poolServes wants new visitors to be served by the ProxyConns that were idle.
func poolServes(t *testing.T, s *scene) {
	t.Helper()
	for range 10 { // one after the other
		wantRoundTrip(t, s.address["echo"], "from the pool")
	}
	var together []stream
	for range 3 {
		together = append(together, visit(t, s.address["echo"]))
	}
	for _, c := range together {
		say(t, c, "from the pool")
		c.Close()
	}
	if text := s.client.stderr.String()[s.mark:]; strings.Contains(text, "proxy connection closed") {
		t.Error("ProxyConns were closed")
	}
}

// poolCloses wants no ProxyConn to be left but those of n streams, at those
// processes that run.
func poolCloses(n func(s *scene) int) cell {
	return func(t *testing.T, s *scene) {
		t.Helper()
		eventually(t, "the idle ProxyConns close", func() error {
			ends := []*process{s.original}
			if s.client == s.original { // else the server has those of a successor too
				ends = append(ends, s.server)
			}
			for _, p := range ends {
				if !p.running() {
					continue
				}
				if c := s.take(p); c.proxy != n(s) {
					return fmt.Errorf("%s: %v; %d streams run", p.name, c, n(s))
				}
			}
			return nil
		})
	}
}

func running(s *scene) int { return s.running }
func none(*scene) int      { return 0 }

// listenersStay wants both tunnels to be open.
func listenersStay(t *testing.T, s *scene) {
	t.Helper()
	for _, address := range s.address {
		probe(t, address)
	}
}

// probe wants somebody to listen, and leaves no stream behind.
func probe(t *testing.T, address string) {
	t.Helper()
	c, err := dial(address)
	if err != nil {
		t.Errorf("nobody listens: %v", err)
		return
	}
	if err := reset(c); err != nil {
		t.Error(err)
	}
}

// listenersClose wants these tunnels to be closed, or all.
func listenersClose(names ...string) cell {
	if names == nil {
		names = []string{"web", "echo"}
	}
	return func(t *testing.T, s *scene) {
		t.Helper()
		for _, name := range names {
			eventually(t, "the listener of "+name+" closes", func() error { return wantClosed(s.address[name]) })
		}
	}
}

// listenersMove wants visitors of the same addresses to reach the second client
// and no other.
func listenersMove(t *testing.T, s *scene) {
	t.Helper()
	for name, address := range s.address {
		if again := s.world.address(s.client, name); again != address {
			t.Errorf("tunnel %s moved from %s to %s", name, address, again)
		}
	}
	for range 20 {
		if err := wantGreeting(s.address["web"], "second"); err != nil {
			t.Fatal(err)
		}
	}
	wantRoundTrip(t, s.address["echo"], "after the takeover")
}
