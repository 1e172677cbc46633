package e2e

import (
	"errors"
	"os"
	"syscall"
	"testing"
)

// abandoned is the writing end of a pipe that nobody reads any more.
func abandoned(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	t.Cleanup(func() { w.Close() })
	return w
}

// restart ends a process in an orderly way and starts another in its place.
func (w *world) restart(p *process, o launchOptions) *process {
	w.t.Helper()
	w.signal(p, syscall.SIGTERM)
	w.wantExit(p, 0)
	o.name, o.dir = p.name, w.dir
	again, err := launch(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.all = append(w.all, again)
	return again
}

// runClient and runServer are the commands that the world runs.
func (w *world) runClient() []string {
	return []string{"cproxy-client", "run", "--config", w.path("client.toml")}
}

func (w *world) runServer() []string {
	return []string{
		"cproxy-server", "run", "--config", w.path("server.toml"),
		"--ctl-listen", w.ip + ":" + portText(w.doors.ctl[0]), "--proxy-listen", w.ip + ":" + w.proxyPort,
	}
}

// Whoever reads what a daemon prints may leave: it is not killed by that.
func TestClosedOutput(t *testing.T) {
	t.Parallel()
	t.Run("client, standard output", func(t *testing.T) {
		t.Parallel()
		w := echoWorld(t, setup{})
		w.client = w.restart(w.client, launchOptions{argv: w.runClient(), stdout: abandoned(t)})
		at := w.log(w.client, 0, `msg="cannot print that a tunnel is ready" tunnel=web address=(\S+)`)[1]
		w.client.files = w.rested(w.client)
		wantRoundTrip(t, at, "the tunnel is open all the same")
	})
	t.Run("client, log", func(t *testing.T) {
		t.Parallel()
		w := echoWorld(t, setup{})
		w.client = w.restart(w.client, launchOptions{argv: w.runClient(), stderr: abandoned(t)})
		w.client.files = w.rested(w.client)
		wantRoundTrip(t, w.web(), "the tunnel is open all the same")
	})
	t.Run("server, log", func(t *testing.T) {
		t.Parallel()
		w := echoWorld(t, setup{})
		mark := w.client.stderr.mark()
		w.server = w.restart(w.server, launchOptions{argv: w.runServer(), stderr: abandoned(t)})
		w.log(w.client, mark, `msg=connected `)
		w.server.files = w.rested(w.server)
		eventually(t, "the tunnel is open again", func() error { return roundTrip(w.web(), "served") })
	})
}

// A SIGHUP that comes while a daemon still reads its configuration does not kill
// it: it reads the configuration again when it has started.
func TestReloadDuringStart(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		config string
		daemon func(w *world) **process
		argv   func(w *world) []string
		logs   string
	}{
		"client": {"client.toml", func(w *world) **process { return &w.client }, (*world).runClient, `msg="configuration read again"`},
		"server": {"server.toml", func(w *world) **process { return &w.server }, (*world).runServer, `msg=reloaded`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := echoWorld(t, setup{})
			text, err := os.ReadFile(w.path(test.config))
			if err != nil {
				t.Fatal(err)
			}
			// The daemon waits for a pipe in place of its configuration.
			if err := errors.Join(os.Rename(w.path(test.config), w.path("kept")), syscall.Mkfifo(w.path(test.config), 0o600)); err != nil {
				t.Fatal(err)
			}
			p := test.daemon(w)
			*p = w.restart(*p, launchOptions{argv: test.argv(w)})
			var pipe *os.File
			eventually(t, "the daemon reads its configuration", func() (err error) {
				pipe, err = os.OpenFile(w.path(test.config), os.O_WRONLY|syscall.O_NONBLOCK, 0) // fails without a reader
				return err
			})
			defer pipe.Close()
			if err := os.Rename(w.path("kept"), w.path(test.config)); err != nil {
				t.Fatal(err)
			}
			w.signal(*p, syscall.SIGHUP)
			if _, err := pipe.Write(text); err != nil {
				t.Fatal(err)
			}
			pipe.Close()
			w.log(*p, 0, test.logs)
			(*p).files = w.rested(*p)
			eventually(t, "the tunnel is open", func() error { return roundTrip(w.web(), "served") })
		})
	}
}
