package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// anyPort is a tunnel that takes one of a few ports, so that draws of several
// clients meet.
func anyPort(local string) []tunnel {
	return []tunnel{{name: "web", local: local, more: `remote_port = "21000-21004"`}}
}

// guest starts another client with a token and a tunnel of its own, and gives
// the tunnel's address.
func (w *world) guest(name, local string) (*process, string) {
	w.t.Helper()
	config := name + ".toml"
	if _, err := os.Stat(w.path(config)); errors.Is(err, os.ErrNotExist) {
		join := w.token(name, fmt.Sprintf("%s:%d", w.ip, w.doors.ctl[0]))
		w.writeClient(config, join, "", anyPort(local))
	}
	p := w.startClient(name, config)
	return p, w.address(p, "web")
}

// remembers waits until the server has saved the port of each address.
func (w *world) remembers(addresses ...string) {
	w.t.Helper()
	eventually(w.t, "the ports are saved", func() error {
		text, err := os.ReadFile(filepath.Join(w.dir, "state", "ports.json"))
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if port := fmt.Sprintf(`"port":%d,`, portIn(a)); !strings.Contains(string(text), port) {
				return fmt.Errorf("%s is missing in %s", port, text)
			}
		}
		return nil
	})
}

// Every client has the port that it had before: a server that was killed, or
// stopped, starts again, and they come back in another order, after one that was
// never there.
func TestPortsSurviveTheServer(t *testing.T) {
	t.Parallel()
	service := serve(t, "tcp", "127.0.0.1:0", echo).address
	w := newWorld(t, setup{tunnels: anyPort(service)})
	names := []string{"north", "east", "west"}
	had := make(map[string]string)
	clients := make(map[string]*process)
	for _, name := range names {
		clients[name], had[name] = w.guest(name, service)
	}
	at := w.web()
	for i, end := range []func(){
		func() { w.server.kill() },
		func() { w.signal(w.server, syscall.SIGTERM); w.wantExit(w.server, 0) },
	} {
		w.remembers(at, had["north"], had["east"], had["west"])
		end()
		for _, p := range clients {
			p.kill()
		}
		w.startServer()
		// The client that went on running comes some time.
		stranger, other := w.guest(fmt.Sprint("stranger", i), service)
		slices.Reverse(names[i:]) // west east north, then west north east
		for _, name := range names {
			if clients[name], _ = w.guest(name, service); w.address(clients[name], "web") != had[name] {
				t.Errorf("%s has %s, want %s; a stranger has %s", name, w.address(clients[name], "web"), had[name], other)
			}
			wantRoundTrip(t, had[name], name)
		}
		eventually(t, "the client that went on running is served where it was", func() error { return roundTrip(at, "hello") })
		w.signal(stranger, syscall.SIGTERM)
		w.wantExit(stranger, 0)
		w.log(w.server, 0, `msg="client left" client=stranger`)
	}
}

// A file that cannot be read is told of and kept, and the server starts.
func TestDamagedPortsFile(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	at := w.web()
	w.remembers(at)
	w.server.kill()
	file := filepath.Join(w.dir, "state", "ports.json")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	mark := w.client.stderr.mark()
	w.startServer()
	w.log(w.server, 0, `level=ERROR msg="the file of remembered public ports cannot be read.*stop the server.*kept_as=\S+ports.json.damaged`)
	if text, err := os.ReadFile(file + ".damaged"); err != nil || string(text) != "{" {
		t.Errorf("kept is %q, %v", text, err)
	}
	w.log(w.client, mark, `msg=connected `)
	w.remembers(w.web())
}
