//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/client"
	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// started is a command that runs until the test stops it.
type started struct {
	t              *testing.T
	stdout, stderr logtest.Output
	hup            chan os.Signal
	stop           context.CancelFunc
	ended          chan error
}

func startCommand(t *testing.T, run func(ctx context.Context, c *started) error) *started {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &started{t: t, hup: make(chan os.Signal), stop: cancel, ended: make(chan error, 1)}
	go func() { c.ended <- run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-c.ended; err != nil {
			t.Errorf("the command ended with %v", err)
		}
		if t.Failed() {
			t.Logf("stderr:\n%s", &c.stderr)
		}
	})
	return c
}

// startRun runs "run" with the file at path.
func startRun(t *testing.T, path string) *started {
	t.Helper()
	return startCommand(t, func(ctx context.Context, c *started) error {
		s := &settings{path: path}
		return s.run(ctx, &c.stdout, &c.stderr, c.hup)
	})
}

func TestRunAndReload(t *testing.T) {
	s := startServer(t, 0)
	path := write(t, "client.toml", s.config(tunnel("web", 8001)))
	c := startRun(t, path)
	c.stdout.Await(t, "\n")
	if got := c.stdout.String(); got != "tunnel web ready at 127.0.0.1:8001\n" {
		t.Fatalf("stdout %q", got)
	}
	reload := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.hup <- syscall.SIGHUP
	}

	reload(s.config("lops = 3\n" + tunnel("web", 70000)))
	c.stderr.Await(t, "nothing has changed")
	for _, want := range []string{path, "lops", "remote_port"} {
		if !strings.Contains(c.stderr.String(), want) {
			t.Errorf("stderr does not name %s:\n%s", want, &c.stderr)
		}
	}

	reload(s.config("loops = 3\nname = \"elsewhere\"\n[log]\nlevel = \"debug\"\n" + tunnel("web", 8001) + tunnel("ssh", 8022)))
	c.stdout.Await(t, "tunnel ssh ready at 127.0.0.1:8022\n")
	c.stderr.Await(t, "keys=\"name loops\"")
	c.stderr.Await(t, "added=ssh")

	// The keys that need a restart are named as long as they differ.
	reload(s.config("loops = 3\n[log]\nlevel = \"error\"\n" + tunnel("ssh", 8023)))
	c.stdout.Await(t, "tunnel ssh ready at 127.0.0.1:8023\n")
	c.stderr.Await(t, "keys=loops")
	if n := strings.Count(c.stdout.String(), "\n"); n != 3 {
		t.Errorf("%d lines on stdout:\n%s", n, &c.stdout)
	}
	before := c.stderr.String()
	reload(s.config("loops = 3\n[log]\nlevel = \"error\"\n" + tunnel("ssh", 8024)))
	c.stdout.Await(t, "tunnel ssh ready at 127.0.0.1:8024\n")
	if now := c.stderr.String(); now != before {
		t.Errorf("logged although the level is error: %s", now[len(before):])
	}
	if name := s.client(t); name != "token" {
		t.Errorf("client name %q", name)
	}
}

// A second configuration that does not match the first in any key keeps what
// only a restart changes, whatever keys there are.
func TestKeepFixed(t *testing.T) {
	load := func(path string) *config.Client {
		t.Helper()
		cfg, _, err := config.LoadClient(config.Source{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	before := load(write(t, "client.toml", configuration(someJoin())))
	other := identity.Join{Name: "other", Secret: identity.TokenSecret{9}, Address: "other.example:1"}
	after := load(write(t, "client.toml", configuration(other)+"loops = 9\npool.max = 9\ntimeouts.idle = \"9s\"\n"+
		"log.level = \"warn\"\nlog.format = \"json\"\n"+tunnel("web", 9)))
	all := config.DiffClient(before, after)
	if len(all.Restart) < 3 || len(all.Reload) < 4 {
		t.Fatalf("the two differ only in %+v", all)
	}
	kept := keepFixed(before, after)
	if c := config.DiffClient(before, kept); len(c.Restart) > 0 || !reflect.DeepEqual(c.Reload, all.Reload) || len(c.Added) != 1 {
		t.Errorf("in effect would be %+v", c)
	}
}

func TestRunEnds(t *testing.T) {
	s := startServer(t, wire.CodeForbidden)
	path := write(t, "client.toml", s.config(""))
	wrongPin := s.join
	wrongPin.Pin = &identity.Pin{1}
	tests := []struct {
		name, path string
		code       int
		want       string
	}{
		{"refused", path, cli.ExitRefused, "forbidden"},
		{"wrong pin", write(t, "pin.toml", configuration(wrongPin)), cli.ExitRefused, "is pinned"},
		{"no configuration", path + ".not", cli.ExitUsage, "client.toml.not"},
		{"mistakes", write(t, "bad.toml", "a = 1\nb = 2\n"), cli.ExitUsage, "bad.toml:2: b: unknown key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, stderr := execute("", "run", "--config", tt.path)
			if code != tt.code || !strings.Contains(stderr, tt.want) || out != "" {
				t.Errorf("exit code %d: %s%s", code, out, stderr)
			}
		})
	}
}

func TestRunServerFlag(t *testing.T) {
	s := startServer(t, wire.CodeForbidden)
	elsewhere := s.join
	elsewhere.Address = "127.0.0.1:1"
	path := write(t, "client.toml", configuration(elsewhere))
	if code, _, stderr := execute("", "run", "--config", path, "--server", s.join.Address); code != cli.ExitRefused {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// Of several servers one may refuse; all together end the command.
func TestRunSeveralServers(t *testing.T) {
	good, forbids, refuses := startServer(t, 0), startServer(t, wire.CodeForbidden), startServer(t, wire.CodeBadCredential)
	config := func(servers ...*server) string {
		var addresses, pins []string
		for _, s := range servers {
			addresses, pins = append(addresses, s.join.Address), append(pins, s.join.Pin.String())
		}
		return fmt.Sprintf("server = [\"%s\"]\npin = [\"%s\"]\ntoken = %q\n%s", strings.Join(addresses, `", "`), strings.Join(pins, `", "`),
			identity.FormatCredential(good.join.Name, good.join.Secret), tunnel("web", 8001))
	}
	c := startRun(t, write(t, "client.toml", config(forbids, good)))
	c.stdout.Await(t, "tunnel web ready at 127.0.0.1:8001\n")
	c.stderr.Await(t, "trying the next one")

	code, _, stderr := execute("", "run", "--config", write(t, "refused.toml", config(forbids, refuses)))
	if code != cli.ExitRefused || !strings.Contains(stderr, "every server refuses this client") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	code, out, stderr := execute("", "check", "--connect", "--config", write(t, "check.toml", config(good, refuses)))
	if code != cli.ExitRefused || out != "" || !strings.Contains(stderr, refuses.join.Address) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestTCPRefused(t *testing.T) {
	s := startServer(t, wire.CodeForbidden)
	code, _, stderr := execute(s.join.Reveal(), "tcp", "8080", "--join", "-")
	if code != cli.ExitRefused || !strings.Contains(stderr, "forbidden") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestTCP(t *testing.T) {
	s := startServer(t, 0)
	join := write(t, "join.txt", s.join.Reveal())
	c := startCommand(t, func(ctx context.Context, c *started) error {
		root := newRoot()
		root.SetOut(&c.stdout)
		root.SetErr(&c.stderr)
		root.SetArgs([]string{"tcp", "8080", "--name", "web", "--remote-port", "8001", "--join", "@" + join})
		return root.ExecuteContext(ctx)
	})
	c.stdout.Await(t, "\n")
	if got := c.stdout.String(); got != "tunnel web ready at 127.0.0.1:8001\n" {
		t.Errorf("stdout %q", got)
	}
	if name := s.client(t); !strings.HasSuffix(name, "web") || name == "token" {
		t.Errorf("client name %q", name)
	}
}

func TestTCPMistakes(t *testing.T) {
	join := someJoin().Reveal()
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"local", []string{"tcp", "80:80:80"}, "tunnel.local"},
		{"port", []string{"tcp", "80", "--remote-port", "x"}, "tunnel.remote_port"},
		{"name", []string{"tcp", "80", "--name", "a b"}, "tunnel.name"},
		{"level", []string{"tcp", "80", "--log-level", "loud"}, "log.level"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := execute(join, append(tt.args, "--join", "-")...)
			if code != cli.ExitUsage || !strings.Contains(stderr, tt.want) || strings.Contains(stderr, someJoin().Secret.Reveal()) {
				t.Errorf("exit code %d: %s", code, stderr)
			}
		})
	}
}

func TestNameOf(t *testing.T) {
	tests := []struct{ in, want string }{
		{"tcp-8080", "tcp-8080"},
		{"tcp-db.lan:5432", "tcp-db.lan-5432"},
		{"tcp-unix:/run/app.sock", "tcp-unix--run-app.sock"},
		{"tcp-[::1]:80", "tcp----1--80"},
		{".web", "web"},
		{"höst.web", "h-st.web"},
		{strings.Repeat("x", 100) + ".web", strings.Repeat("x", 60) + ".web"},
	}
	for _, tt := range tests {
		got := nameOf(tt.in)
		if got != tt.want {
			t.Errorf("nameOf(%q) = %q, want %q", tt.in, got, tt.want)
		}
		if err := wire.ValidateName(got); err != nil {
			t.Errorf("nameOf(%q): %v", tt.in, err)
		}
	}
}

func TestCheckCommand(t *testing.T) {
	good, refusing, half := startServer(t, 0), startServer(t, wire.CodeBadCredential), startServer(t, 0)
	_ = half.proxy.Close()
	path := write(t, "client.toml", good.config(tunnel("web", 1)))
	down, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = down.Close()
	tests := []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"valid", []string{"--config", path}, cli.ExitOK, path + ": ok\n", ""},
		{"warning", []string{"--config", write(t, "empty.toml", good.config(""))}, cli.ExitOK, "empty.toml: ok\n", "warning: "},
		{"mistakes", []string{"--config", write(t, "bad.toml", "x = 1\n[pool]\nmax = -1\n")}, cli.ExitUsage, "", "pool.max"},
		{"missing", []string{"--config", filepath.Join(t.TempDir(), "none.toml")}, cli.ExitUsage, "", "none.toml"},
		{"connected", []string{"--config", path, "--connect"}, cli.ExitOK, path + ": ok\n", ""},
		{"refused", []string{"--config", write(t, "r.toml", refusing.config("")), "--connect"}, cli.ExitRefused, "", "token add"},
		{"unreachable", []string{"--config", path, "--connect", "--server", down.Addr().String()}, cli.ExitFailure, "", "check the control port"},
		{"proxy port closed", []string{"--config", write(t, "h.toml", half.config("")), "--connect"}, cli.ExitFailure, "", "check the proxy port of 127.0.0.1:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, stderr := execute("", append([]string{"check"}, tt.args...)...)
			if code != tt.code || !strings.HasSuffix(out, tt.stdout) || tt.stdout == "" && out != "" || !strings.Contains(stderr, tt.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, out, stderr)
			}
		})
	}
	if name := good.client(t); !strings.HasPrefix(name, "check-") {
		t.Errorf("logged in as %q, which would replace a running client", name)
	}
}

func TestReloadable(t *testing.T) {
	pin := identity.Pin{7}
	cfg := &config.Client{
		Token:    config.NewSecret(identity.FormatCredential("token", identity.TokenSecret{1})),
		Servers:  []string{"s:1", "t:2"},
		Pins:     []string{pin.String(), identity.Pin{8}.String()},
		Pool:     config.Pool{Max: 5},
		Timeouts: config.Timeouts{Connect: 1, HalfClose: 2, Idle: 3},
		Tunnels: []config.Tunnel{
			{Name: "a", Local: config.Local{Network: "tcp", Address: "x:1"}, RemotePorts: config.PortRange{First: 2, Last: 3}, ProxyProtocol: config.ProxyV1},
			{Name: "b", Local: config.Local{Network: "unix", Address: "/y"}, Bind: []netip.Addr{netip.IPv6Loopback()}, ProxyProtocol: config.ProxyV2},
			{Name: "c", Local: config.Local{Network: "tcp", Address: "z:1"}},
		},
	}
	settings := relay.DefaultSettings()
	settings.Connect, settings.HalfClose, settings.Idle = 1, 2, 3
	want := client.Reloadable{
		Servers: []string{"s:1", "t:2"},
		Trust:   identity.Trust{Pins: []identity.Pin{pin, {8}}}, TokenName: "token", Secret: identity.TokenSecret{1}, PoolMax: 5, Settings: settings,
		Tunnels: []client.Tunnel{
			{Name: "a", Network: "tcp", Address: "x:1", First: 2, Last: 3, ProxyProtocol: relay.ProxyV1},
			{Name: "b", Network: "unix", Address: "/y", Bind: []netip.Addr{netip.IPv6Loopback()}, ProxyProtocol: relay.ProxyV2},
			{Name: "c", Network: "tcp", Address: "z:1"},
		},
	}
	got, err := reloadable(cfg)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	cfg.Pins[1] = "sha256:short"
	if _, err := reloadable(cfg); err == nil {
		t.Error("a damaged pin is taken")
	}
	cfg.Token = config.NewSecret("no colon")
	if _, err := reloadable(cfg); err == nil {
		t.Error("a damaged token is taken")
	}
}

func TestSchedulerSlots(t *testing.T) {
	cfg, _, err := config.LoadClient(config.Source{Path: write(t, "client.toml", configuration(someJoin()))})
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	if got := loopsOf(cfg); got != min(before, maxLoops) {
		t.Errorf("%d loops by default with GOMAXPROCS %d", got, before)
	}
	cfg.Loops = before + 3
	if _, err := newClient(cfg, nil, nil); err == nil {
		t.Error("a client without a logger was made")
	} else if exit, ok := errors.AsType[*cli.ExitError](err); !ok || exit.Code != cli.ExitUsage {
		t.Errorf("got %v, want an error of usage", err)
	}
	var stderr logtest.Output
	if err := tryLogin(t.Context(), unreachable(cfg), &stderr); err == nil {
		t.Error("logged in to a server that does not exist")
	}
	if got := runtime.GOMAXPROCS(0); got != cfg.Loops+2 {
		t.Errorf("GOMAXPROCS %d for %d loops", got, cfg.Loops)
	}
}

// unreachable gives a configuration whose server refuses connections.
func unreachable(cfg *config.Client) *config.Client {
	next := *cfg
	next.Servers = []string{"127.0.0.1:1"}
	return &next
}
