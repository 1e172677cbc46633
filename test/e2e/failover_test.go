package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// twin starts another server with the tokens, but not the key, of the first,
// and gives a world around it that knows no client.
func twin(t *testing.T, w *world) *world {
	t.Helper()
	other := &world{t: t, setup: setup{poolMax: 256}, ip: nextAddress(), dir: t.TempDir()}
	t.Cleanup(other.end)
	other.write("server.toml", fmt.Sprintf("ctl_listen = %q\nproxy_listen = %q\npublic_bind = %q\nstate_dir = %q\ntokens_file = %q\n%s\n",
		other.ip+":0", other.ip+":0", other.ip, other.path("state"), w.path("state/tokens.toml"), w.setup.server))
	other.startServer()
	return other
}

func ctlOf(w *world) string { return net.JoinHostPort(w.ip, portText(w.doors.ctl[0])) }

func pinOf(w *world) string {
	w.t.Helper()
	return w.log(w.server, 0, `msg=ready .*pin=(sha256:\S+)`)[1]
}

// A client of two servers moves to the second when the first is away, with
// streams that run on where they can, and comes back when that one is lost.
func TestFailover(t *testing.T) {
	t.Parallel()
	local := serve(t, "tcp", "127.0.0.1:0", echo)
	web := tunnel{name: "web", local: local.address}
	w := newWorld(t, setup{tunnels: []tunnel{web}})
	other := twin(t, w)

	// A reload makes it know both; the connection stays as it is.
	lines, found := strings.CutPrefix(w.join, "cproxy://")
	token, _, _ := strings.Cut(lines, "@")
	if !found {
		t.Fatalf("join string without its scheme")
	}
	w.write("client.toml", fmt.Sprintf("server = [%q, %q]\npin = [%q, %q]\ntoken = %q\n%s",
		ctlOf(w), ctlOf(other), pinOf(w), pinOf(other), token, web))
	w.signal(w.client, syscall.SIGHUP)
	w.log(w.client, 0, `msg="configuration read again" keys="server pin"`)
	if n := w.client.stderr.count(`msg=connected`); n != 1 {
		t.Errorf("a reload of the servers made %d connections of one", n)
	}
	first := w.web()

	mark := w.client.stderr.mark()
	w.server.kill()
	w.log(w.client, mark, `msg="cannot connect to the server; trying the next one" address=`+ctlOf(w)+` next=`+ctlOf(other))
	w.log(w.client, mark, `msg=connected address=`+ctlOf(other)+` .*resumed=false`)
	var second string
	eventually(t, "the tunnel is open at the second server", func() error {
		if second = w.web(); !strings.HasPrefix(second, other.ip+":") {
			return fmt.Errorf("it is at %s", second)
		}
		return nil
	})
	running := visit(t, second)
	say(t, running, "by the second server")

	// The first one is back, but nothing is wrong with the second.
	w.startServer()
	say(t, running, "still by the second server")

	mark = w.client.stderr.mark()
	other.signal(other.server, syscall.SIGTERM)
	other.wantExit(other.server, 0)
	wantReset(t, "a visitor of the second server", running)
	w.log(w.client, mark, `msg="the server ended the connection" `)
	w.log(w.client, mark, `msg=connected address=`+ctlOf(w)+` .*resumed=false`)
	eventually(t, "the tunnel is at the first server again", func() error {
		if at := w.web(); at != first {
			return fmt.Errorf("it is at %s, was at %s", at, first)
		}
		return roundTrip(first, "back")
	})
}

// Two hosts with the same file: the one that was started last has the tunnels,
// and the other stays away until it has ended.
func TestClones(t *testing.T) {
	t.Parallel()
	first := serve(t, "tcp", "127.0.0.1:0", named("first"))
	second := serve(t, "tcp", "127.0.0.1:0", named("second"))
	w := newWorld(t, setup{tunnels: []tunnel{{name: "web", local: first.address}}})
	address := w.web()
	w.writeClient("clone.toml", w.join, "", []tunnel{{name: "web", local: second.address}})
	clone := w.startClient("clone", "clone.toml")
	w.ready(clone, tunnel{name: "web"})
	w.log(w.client, 0, "refused \\(superseded\\).*give each its own `name`")
	w.log(w.server, 0, `level=WARN msg="a new instance takes over .*give each its own name`)

	// A reload hurries the next attempt on, which else is a minute away.
	if err := os.Mkdir(w.path("client.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		mark, serverMark := w.client.stderr.mark(), w.server.stderr.mark()
		w.write("client.d/servers.toml", fmt.Sprintf("server = [%q, \"%s:%d\"]\n", ctlOf(w), w.ip, 1+i))
		w.signal(w.client, syscall.SIGHUP)
		w.log(w.client, mark, `level=WARN msg="cannot connect to the server" .*retry_in=1m.*refused \(superseded\)`)
		if i == 0 { // such lines are rare
			w.log(w.server, serverMark, "level=WARN msg=\"client refused\" client=site .*give each its own `name`")
		}
		if err := wantGreeting(address, "second"); err != nil {
			t.Error(err)
		}
	}
	if n := clone.stderr.count(`msg=connected`); n != 1 {
		t.Errorf("the clone connected %d times, want once", n)
	}
	w.signal(clone, syscall.SIGTERM)
	w.wantExit(clone, 0)
	mark := w.client.stderr.mark()
	w.write("client.d/servers.toml", "")
	w.signal(w.client, syscall.SIGHUP)
	w.log(w.client, mark, `msg=connected`)
	eventually(t, "the first client serves again", func() error { return wantGreeting(address, "first") })
}
