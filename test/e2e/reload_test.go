package e2e

import (
	"os"
	"syscall"
	"testing"
)

func TestClientReload(t *testing.T) {
	t.Parallel()
	kept := tunnel{name: "kept", local: serve(t, "tcp", "127.0.0.1:0", named("kept")).address}
	gone := tunnel{name: "gone", local: serve(t, "tcp", "127.0.0.1:0", echo).address}
	w := newWorld(t, setup{tunnels: []tunnel{kept, gone}})
	address := w.address(w.client, "gone")
	running := visit(t, address)
	say(t, running, "before")

	added := tunnel{name: "added", local: serve(t, "tcp", "127.0.0.1:0", echo).address}
	moved := tunnel{name: "kept", local: serve(t, "tcp", "127.0.0.1:0", named("moved")).address}
	keptAt := w.address(w.client, "kept")
	mark := w.client.stderr.mark()
	w.reload(w.client, "", []tunnel{moved, added})
	w.log(w.client, mark, `msg="configuration read again" .*added=added removed=gone changed=kept`)
	wantRoundTrip(t, w.address(w.client, "added"), "a new tunnel")
	eventually(t, "the removed tunnel's port closes", func() error { return wantClosed(address) })
	say(t, running, "the stream of a removed tunnel goes on")
	eventually(t, "the changed tunnel leads to its new service", func() error { return wantGreeting(keptAt, "moved") })
	if err := running.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the running stream", running)
}

// A file with mistakes changes nothing, and every mistake is reported.
func TestClientReloadRefused(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	running := visit(t, w.web())
	say(t, running, "before")
	good, err := os.ReadFile(w.path("client.toml"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]string{
		"\n[[tunnel]]\nname = \"web\"\nlocal = 1\nremote_prot = 4\n": {
			`client\.toml:\d+: tunnel\.name: tunnel \\"web\\" is already defined at \S+client\.toml:\d+`,
			`client\.toml:\d+: tunnel\.remote_prot: unknown key; did you mean tunnel\.remote_port\?`,
		},
		"\n[[tunnel]\n":               {`client\.toml:\d+: not valid TOML at column`},
		"\n[timeouts]\nconnect = 5\n": {`client\.toml:\d+: timeouts\.connect: `},
	}
	for text, problems := range tests {
		mark := w.client.stderr.mark()
		w.write("client.toml", string(good)+text)
		w.signal(w.client, syscall.SIGHUP)
		for _, p := range problems {
			w.log(w.client, mark, `level=ERROR msg="mistake in the configuration" problem=".*`+p)
		}
		w.log(w.client, mark, `msg="the configuration was not applied, nothing has changed`)
	}
	say(t, running, "after")
	wantRoundTrip(t, w.web(), "nothing has changed")
	mark := w.client.stderr.mark()
	w.write("client.toml", string(good))
	w.signal(w.client, syscall.SIGHUP)
	w.log(w.client, mark, `msg="configuration read again"`)
	if err := os.Remove(w.path("client.toml")); err != nil {
		t.Fatal(err)
	}
	w.signal(w.client, syscall.SIGHUP)
	w.log(w.client, mark, `problem=.*client\.toml: configuration file does not exist`)
	wantRoundTrip(t, w.web(), "nothing has changed")
}

// Keys that need a restart keep their values, which is said.
func TestReloadNeedsRestart(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	w.reload(w.client, `name = "another"`, w.setup.tunnels)
	w.log(w.client, 0, `level=WARN msg="these keys changed but keep their old values.*" keys=name`)
	text, err := os.ReadFile(w.path("server.toml"))
	if err != nil {
		t.Fatal(err)
	}
	w.write("server.toml", "loops = 3\n"+string(text))
	w.signal(w.server, syscall.SIGHUP)
	w.log(w.server, 0, `level=WARN msg="some changes need a restart" keys=loops`)
	wantRoundTrip(t, w.web(), "as before")
}

func TestServerReload(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	text, err := os.ReadFile(w.path("server.toml"))
	if err != nil {
		t.Fatal(err)
	}
	base := string(text)
	first := visit(t, w.web())
	say(t, first, "before")
	second := visit(t, w.web())
	say(t, second, "before")

	w.reloadServer(base + "\n[limits]\nmax_conns_per_tunnel = 2\n")
	eventually(t, "the limit holds", func() error { return wantRefused(w.web()) })
	say(t, first, "lower limits cut nothing")
	say(t, second, "lower limits cut nothing")
	w.log(w.server, 0, `msg="visitor refused" tunnel=web .*reason="connection limit" advice="raise limits\.max_conns`)

	w.reloadServer(base + "\n[limits]\nmax_conns = 2\n")
	eventually(t, "the limit of the server holds", func() error { return wantRefused(w.web()) })

	w.reloadServer(base + "\n[limits]\nmax_conns = 3\n")
	eventually(t, "there is room for one more", func() error { return roundTrip(w.web(), "third") })
	first.Close()

	mark := w.server.stderr.mark()
	w.write("server.toml", base+"\n[limits]\nmax_conns = \"many\"\nprots = 4\n")
	w.signal(w.server, syscall.SIGHUP)
	w.log(w.server, mark, `level=ERROR msg="mistake in the configuration" problem=".*server\.toml:\d+: limits\.max_conns: `)
	w.log(w.server, mark, `level=ERROR msg="mistake in the configuration" problem=".*server\.toml:\d+: limits\.prots: unknown key`)
	w.log(w.server, mark, `level=ERROR msg="the configuration was not applied, nothing has changed`)
	say(t, second, "still here")

	// A narrower range of ports is for tunnels to come.
	w.reloadServer(base + "\n[limits]\nports = 443\n")
	wantRoundTrip(t, w.web(), "an open tunnel stays")
	second.Close()
}

func (w *world) reloadServer(text string) {
	w.t.Helper()
	mark := w.server.stderr.mark()
	w.write("server.toml", text)
	w.signal(w.server, syscall.SIGHUP)
	w.log(w.server, mark, `msg=reloaded`)
}
