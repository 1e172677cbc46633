//go:build linux

package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sh starts a child that runs a shell script.
func sh(t *testing.T, script string) *child {
	t.Helper()
	c, err := start("sh", exec.Command("sh", "-c", script))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it may have ended
		<-c.done
	})
	return c
}

func is(want string) func(string) bool { return func(line string) bool { return line == want } }

func TestChildAwait(t *testing.T) {
	tests := []struct {
		name, script string
		want         string // the line; empty: an error that holds the second text
		wantErr      string
	}{
		{name: "first line", script: "echo ready; exec sleep 60", want: "ready"},
		{name: "later line of the other output", script: "echo one; echo ready >&2; exec sleep 60", want: "ready"},
		{name: "line of a child that has ended", script: "echo ready", want: "ready"},
		{name: "no such line", script: "echo one; exit 3", wantErr: "sh ended: exit status 3"},
		{name: "clean end", script: "true", wantErr: "sh ended: exit status 0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := sh(t, test.script).await(t.Context(), is("ready"))
			switch {
			case test.wantErr == "" && (err != nil || got != test.want):
				t.Errorf("got %q, %v; want %q", got, err, test.want)
			case test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)):
				t.Errorf("got %q, %v; want an error with %q", got, err, test.wantErr)
			}
		})
	}
}

func TestChildAwaitEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sh(t, "exec sleep 60").await(ctx, is("ready")); err == nil {
		t.Error("await went on although its context had ended")
	}
}

func TestChildStop(t *testing.T) {
	tests := []struct {
		name, script string
		clean        bool
	}{
		{"ends when asked", `trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done`, true},
		{"ends with an error", `trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done`, false},
		{"killed by the signal", "echo ready; exec sleep 60", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := sh(t, test.script)
			if _, err := c.await(t.Context(), is("ready")); err != nil {
				t.Fatal(err)
			}
			if err := c.stop(); (err == nil) != test.clean {
				t.Errorf("stop: %v", err)
			}
			if err := c.stop(); err != nil {
				t.Errorf("stop of a child that has ended: %v", err)
			}
		})
	}
}

func TestChildTailIsBounded(t *testing.T) {
	c := sh(t, "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done")
	<-c.done
	lines := strings.Split(strings.TrimSpace(c.tail()), "\n")
	if len(lines) != maxTail || lines[maxTail-1] != "line 499" {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
}

func TestLogLines(t *testing.T) {
	const line = `{"time":"x","level":"INFO","msg":"ready","ctl":"127.0.0.1:1","n":2}`
	if !logged("ready")(line) || logged("ready")("ready") || logged("other")(line) {
		t.Error("logged does not go by the message")
	}
	for name, want := range map[string]string{"ctl": "127.0.0.1:1", "n": "", "none": ""} {
		if got := field(line, name); got != want {
			t.Errorf("field %s is %q, want %q", name, got, want)
		}
	}
	const ready = "tunnel demo ready at 127.0.0.1:20000"
	if !readyTunnel(ready) || readyTunnel("tunnel web ready at 127.0.0.1:20000") {
		t.Error("readyTunnel does not go by the tunnel's name")
	}
	if got := tunnelAddress(ready); got != "127.0.0.1:20000" {
		t.Errorf("address %q", got)
	}
}

func TestIsOurs(t *testing.T) {
	for dir, want := range map[string]bool{"/tmp/cproxy-demo.Ab12": true, "/tmp": false, "/": false, "": false, "/home/cproxy-demo": false} {
		if isOurs(dir) != want {
			t.Errorf("%q: want %v", dir, want)
		}
	}
}

func TestEnvironmentDropsSettings(t *testing.T) {
	t.Setenv("CPROXY_SERVER_GRACE", "wrong")
	t.Setenv("CPROXY_JOIN", "wrong")
	for _, variable := range environment() {
		if strings.HasPrefix(variable, "CPROXY_") {
			t.Errorf("%s reaches the daemons", variable)
		}
	}
	if len(environment()) == 0 {
		t.Error("nothing is left of the environment")
	}
}

func TestPageCompare(t *testing.T) {
	p, err := servePage()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := p.compare(t.Context(), p.address); err != nil {
		t.Errorf("the page differs from itself: %v", err)
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
	}{
		{"another page", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<h1>It works</h1>")) }},
		{"cut short", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(p.body[:len(p.body)-1])) }},
		{"other status", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = w.Write([]byte(p.body))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			other := httptest.NewServer(test.handler)
			defer other.Close()
			if err := p.compare(t.Context(), strings.TrimPrefix(other.URL, "http://")); err == nil {
				t.Error("taken for the page")
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := ln.Addr().String()
		_ = ln.Close()
		if err := p.compare(t.Context(), address); err == nil {
			t.Error("taken for the page")
		}
	})
}

// fakeServer stands for cproxy-server: run logs that it is ready and waits,
// token add prints a join string.
const fakeServer = `#!/bin/sh
here=$(dirname "$0")
if [ "$1" = token ]; then
  echo "cproxy://demo:secret@$7"
  exit 0
fi
echo '{"msg":"ready","ctl":"127.0.0.1:1","proxy":"127.0.0.1:2"}' >&2
trap 'echo server stopped >>"$here/order"; exit 0' TERM
while :; do sleep 0.02; done
`

// fakeClient stands for cproxy-client: it claims that the local service is the
// tunnel's public address.
const fakeClient = `#!/bin/sh
here=$(dirname "$0")
read -r join
[ "$join" = cproxy://demo:secret@127.0.0.1:1 ] || exit 3
trap 'echo client stopped >>"$here/order"; exit 0' TERM
echo "tunnel demo ready at $2"
while :; do sleep 0.02; done
`

func newDemo(t *testing.T, server, client string) (*demo, *strings.Builder) {
	t.Helper()
	d := &demo{dir: t.TempDir()}
	for name, script := range map[string]string{"cproxy-server": server, "cproxy-client": client} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	out := new(strings.Builder)
	d.out = out
	return d, out
}

func TestDemoOnce(t *testing.T) {
	d, out := newDemo(t, fakeServer, fakeClient)
	if err := d.run(t.Context(), true); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out.String(), "proved") {
		t.Errorf("no proof is told:\n%s", out)
	}
	order, err := os.ReadFile(filepath.Join(d.dir, "order"))
	if err != nil || string(order) != "client stopped\nserver stopped\n" {
		t.Errorf("order of the ends: %q, %v", order, err)
	}
}

func TestDemoStaysUntilContext(t *testing.T) {
	d, _ := newDemo(t, fakeServer, fakeClient)
	lines := make(chan string, 100)
	d.out = writer(func(b []byte) { lines <- string(b) })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx, false) }()
	for line := ""; !strings.Contains(line, "Ctrl-C"); {
		select {
		case line = <-lines:
		case err := <-ended:
			t.Fatalf("ended too early: %v", err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, c := range d.children {
		if err := c.cmd.Process.Signal(syscall.Signal(0)); err == nil {
			t.Errorf("%s is still there", c.name)
		}
	}
}

// writer makes an io.Writer of a function.
type writer func(b []byte)

func (w writer) Write(b []byte) (int, error) {
	w(b)
	return len(b), nil
}

func TestDemoFailures(t *testing.T) {
	tests := []struct {
		name, server, client string
		once                 bool
		want                 string
	}{
		{"server does not start", "#!/bin/sh\necho broken >&2\nexit 1\n", fakeClient, true, "start the server"},
		{"no token", "#!/bin/sh\n[ $1 = token ] && { echo refused >&2; exit 2; }\n" + strings.TrimPrefix(fakeServer, "#!/bin/sh\n"), fakeClient, true, "refused"},
		{"client is refused", fakeServer, "#!/bin/sh\nexit 3\n", true, "open the tunnel: cproxy-client ended: exit status 3"},
		{"wrong address", fakeServer, strings.Replace(fakeClient, "at $2", "at 127.0.0.1:1", 1), true, "fetch the page"},
		{"client ends later", fakeServer, strings.Replace(fakeClient, "while :", "exit 5; while :", 1), false, "ended by itself: exit status 5"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, out := newDemo(t, test.server, test.client)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := d.run(ctx, test.once)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q\n%s", err, test.want, out)
			}
			var logs strings.Builder
			d.logs(&logs)
			if !strings.Contains(logs.String(), "--- cproxy-server") {
				t.Errorf("logs are missing: %s", logs.String())
			}
		})
	}
}
