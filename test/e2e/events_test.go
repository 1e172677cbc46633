package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

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
