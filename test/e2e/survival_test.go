package e2e

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
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

// The table "who survives what": each event meets a scene of its own, in which
// each column is looked at.
func TestWhoSurvivesWhat(t *testing.T) {
	t.Parallel()
	for _, tt := range events() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, tt.server)
			tt.happen(t, s)
			t.Run("listeners", func(t *testing.T) { tt.listeners(t, s) })
			t.Run("pool", func(t *testing.T) { tt.pool(t, s) })
			t.Run("streams", func(t *testing.T) { tt.streams(t, s) })
			if tt.after != nil && !t.Failed() {
				tt.after(t, s)
			}
		})
	}
}

// event is a row of the table.
type event struct {
	name   string
	server string // lines of server.toml
	happen cell
	// the columns
	listeners, pool, streams cell
	after                    cell // nil, or what is to be seen in the end
}

func events() []event {
	return []event{
		{
			name: "control connection reset", happen: controlReset,
			streams: streamsLive, pool: poolServes, listeners: listenersStay, after: resumed,
		},
		{
			name: "control connection silent", server: "[timeouts]\nheartbeat = \"1s\"", happen: controlSilent,
			streams: streamsLive, pool: poolServes, listeners: listenersStay, after: resumed,
		},
		{
			name: "grace period over", server: `grace = "1s"`, happen: graceOver,
			streams: streamsLive, pool: poolCloses(running), listeners: listenersClose(), after: startedOver,
		},
		{
			name: "takeover", happen: takeover,
			streams: streamsLive, pool: poolCloses(running), listeners: listenersMove, after: superseded,
		},
		{
			name: "tunnel removed by reload", happen: tunnelRemoved,
			streams: streamsLive, pool: poolServes, listeners: listenersClose("web"),
		},
		{
			name: "tunnel changed by reload", happen: tunnelChanged,
			streams: streamsLive, pool: poolServes, listeners: listenersClose("web"), after: changed,
		},
		{
			name: "token revoked", happen: revoke,
			streams: streamsReset, pool: poolCloses(none), listeners: listenersClose(), after: revoked,
		},
		{
			name: "token revoked after a takeover", happen: func(t *testing.T, s *scene) { t.Helper(); takeover(t, s); revoke(t, s) },
			streams: streamsReset, pool: poolCloses(none), listeners: listenersClose(),
		},
		{
			name: "server stops", happen: func(_ *testing.T, s *scene) { s.signal(s.server, syscall.SIGTERM); s.wantExit(s.server, 0) },
			streams: streamsReset, pool: poolCloses(none), listeners: listenersClose(),
			after: func(_ *testing.T, s *scene) {
				s.log(s.server, s.server0, `msg=stopped`)
				s.log(s.client, s.mark, `msg="the server ended the connection" .*refused \(server stops\)`)
			},
		},
		{
			name: "server crashes", happen: func(_ *testing.T, s *scene) { s.server.kill() },
			streams: streamsReset, pool: poolCloses(none), listeners: listenersClose(), after: serverBack,
		},
		{
			name: "client stops", happen: func(_ *testing.T, s *scene) { s.signal(s.client, syscall.SIGTERM); s.wantExit(s.client, 0) },
			streams: streamsReset, pool: poolCloses(none), listeners: listenersClose(),
			after: func(_ *testing.T, s *scene) {
				s.log(s.client, s.mark, `msg=stopped`)
				s.log(s.server, s.server0, `msg="client left"`)
			},
		},
		{
			name: "client crashes", happen: func(_ *testing.T, s *scene) {
				s.client.kill()
				s.log(s.server, s.server0, `msg="client lost; its streams and listeners stay"`)
			},
			streams: streamsReset, pool: poolCloses(none), listeners: listenersStay,
		},
	}
}

func controlReset(t *testing.T, s *scene) {
	t.Helper()
	s.way.set(severed)
	lost(t, s, "")
}

func controlSilent(t *testing.T, s *scene) {
	t.Helper()
	s.way.set(muted)
	lost(t, s, ".*silent for too long")
}

// lost waits until both sides know, and the client tries to come back in vain.
func lost(t *testing.T, s *scene, why string) {
	t.Helper()
	s.log(s.client, s.mark, `msg="lost the connection to the server; streams go on"`+why)
	s.log(s.server, s.server0, `msg="client lost; its streams and listeners stay"`)
	eventually(t, "the client tries to come back", func() error {
		if s.way.refusals() == 0 {
			return errors.New("it has not yet")
		}
		return nil
	})
}

// resumed wants the client to come back to what it had.
func resumed(t *testing.T, s *scene) {
	t.Helper()
	s.way.set(passing)
	s.log(s.client, s.mark, `msg=connected .*resumed=true`)
	s.log(s.server, s.server0, `msg="client connected" .*epoch=[2-9]\d* resumed=true tunnels=2`)
	wantRoundTrip(t, s.address["echo"], "afterwards")
	if n := s.server.stderr.count(`msg="tunnel open"`); n != 2 {
		t.Errorf("tunnels were opened %d times, want twice", n)
	}
	if n := s.client.stdout.count(`^tunnel web ready`); n != 1 {
		t.Errorf("the tunnel was announced %d times, want once", n)
	}
}

func graceOver(_ *testing.T, s *scene) {
	s.way.set(severed)
	s.log(s.server, s.server0, `msg="client did not come back"`)
}

// startedOver wants the client to have a new session.
func startedOver(t *testing.T, s *scene) {
	t.Helper()
	s.way.set(passing)
	s.log(s.client, s.mark, `msg=connected .*resumed=false`)
	eventually(t, "the tunnel is open again", func() error { return roundTrip(s.world.address(s.client, "echo"), "hello again") })
}

func takeover(t *testing.T, s *scene) {
	t.Helper()
	again := serve(t, "tcp", "127.0.0.1:0", named("second"))
	s.writeClient("second.toml", s.join, "", []tunnel{{name: "web", local: again.address}, s.tunnels[1]})
	s.client = s.startClient("second client", "second.toml")
	s.ready(s.client, s.tunnels...)
}

// superseded wants the first client to keep away, with nothing left.
func superseded(t *testing.T, s *scene) {
	t.Helper()
	s.log(s.original, s.mark, `refused \(superseded\)`)
	s.log(s.server, s.server0, `msg="a new instance takes over`)
	eventually(t, "the first client's ProxyConns close with their streams", func() error {
		if c := s.take(s.original); c.proxy > 0 {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
	if n := s.original.stderr.count(`msg=connected`); n != 1 {
		t.Errorf("the superseded client connected %d times, want once", n)
	}
}

func tunnelRemoved(t *testing.T, s *scene) {
	t.Helper()
	s.reload(s.client, "", s.tunnels[1:])
	s.log(s.client, s.mark, `msg="tunnel removed" tunnel=web`)
	s.log(s.server, s.server0, `msg="tunnel closed by its client" tunnel=web`)
}

func tunnelChanged(t *testing.T, s *scene) {
	t.Helper()
	moved := s.tunnels[0]
	moved.more = `remote_port = "20000-20999"`
	s.reload(s.client, "", []tunnel{moved, s.tunnels[1]})
	s.log(s.client, s.mark, `msg="tunnel ready" tunnel=web`)
}

// changed wants the tunnel to be open at another port.
func changed(t *testing.T, s *scene) {
	t.Helper()
	if again := s.web(); !strings.Contains(again, ":20") {
		t.Errorf("the changed tunnel is at %s", again)
	}
	probe(t, s.web())
}

func revoke(t *testing.T, s *scene) {
	t.Helper()
	if out := s.run("", "cproxy-server", "token", "revoke", "site", "--config", s.path("server.toml")); out != "revoked site\n" {
		t.Errorf("revoke printed %q", out)
	}
}

// revoked wants the client to say so, and to wait for a better token.
func revoked(t *testing.T, s *scene) {
	t.Helper()
	s.log(s.server, s.server0, `msg="client cut off: its token was revoked"`)
	s.log(s.client, s.mark, `level=ERROR msg="the server ended the connection" .*refused \(credential revoked\).*token add`)
	s.log(s.client, s.mark, `level=ERROR msg="cannot connect to the server".*refused \(bad credential\)`)
	if !s.client.running() {
		t.Error("a client that was connected once must not exit when it is revoked")
	}
}

// serverBack wants the client to find the next server.
func serverBack(t *testing.T, s *scene) {
	t.Helper()
	s.startServer()
	s.log(s.client, s.mark, `msg=connected .*resumed=false`)
	eventually(t, "the tunnel is open again", func() error { return roundTrip(s.world.address(s.client, "echo"), "hello again") })
}
