//go:build linux

package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/server"
	"github.com/cproxy/cproxy/core/wire"
)

// startHerdServer runs a server, and gives the file with its join string.
func startHerdServer(t *testing.T) (joinFile, address string) {
	t.Helper()
	dir, pid := t.TempDir(), os.Getpid()
	id, err := identity.LoadOrCreateServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	tokens := filepath.Join(dir, "tokens.toml")
	secret, err := identity.AddToken(tokens, "bench", identity.Grants{})
	if err != nil {
		t.Fatal(err)
	}
	log, ready := slog.New(slog.DiscardHandler), make(chan string, 1)
	s, err := server.New(server.Options{
		CtlListen: "127.0.0.1:0", ProxyListen: "127.0.0.1:0", TLS: identity.ServerTLS(id, wire.ALPN), Loops: 1, Log: log,
		Policy: server.Policy{
			// An address of this process's own: ports go by the names of tunnels.
			PublicBind: []netip.Addr{netip.AddrFrom4([4]byte{127, byte(1 + pid>>16), byte(pid >> 8), byte(pid)})},
			Ports:      []identity.PortRange{{First: 1024, Last: 65535}},
			Grace:      time.Second, Heartbeat: 30 * time.Second, Relay: relay.DefaultSettings(),
		},
		Authenticator: server.Tokens(identity.NewProvider(tokens, log)),
		Ready:         func(ctl, _ netip.AddrPort) { ready <- ctl.String() },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	address = <-ready
	pin := id.Pin()
	join := identity.Join{Name: "bench", Secret: secret, Address: address, Pin: &pin}
	joinFile = filepath.Join(dir, "join")
	if err := os.WriteFile(joinFile, []byte(join.Reveal()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return joinFile, address
}

func TestClients(t *testing.T) {
	join, address := startHerdServer(t)
	args := []string{
		"clients", "--join", "@" + join, "--clients", "12", "--tunnels", "2", "--duration", "20ms", "--settle", "1ms",
		"--pid", "server=" + strconv.Itoa(os.Getpid()),
	}
	code, stdout, stderr := invoke(append(args, "--json")...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var r result
	decoder := json.NewDecoder(strings.NewReader(stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	c := r.Clients
	if r.Load != "clients" || r.Target != address || r.Seconds != 0.02 || c == nil {
		t.Fatalf("result %s", stdout)
	}
	if c.Clients != 12 || c.Tunnels != 24 || c.Logins != 12 || c.Registered != 24 || c.Cold <= 0 || c.LoginRate <= 0 ||
		len(c.Refusals) != 0 || c.Failures != 0 || c.Reconnects != 0 {
		t.Errorf("clients %+v", *c)
	}
	if p := c.Processes; len(p) != 1 || p[0].Name != "server" || p[0].Before == 0 || p[0].After == 0 || p[0].CPU < p[0].Machine {
		t.Errorf("processes %+v", p)
	}
	t.Setenv(joinVariable, strings.TrimSpace(readAll(t, join)))
	code, stdout, stderr = invoke("clients", "--clients", "1", "--tunnels", "1", "--duration", "1ms", "--settle", "1ms", "--server", address)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{"cold start", "1 clients, 1 tunnels", "refusals"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

func readAll(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestClientsMistakes(t *testing.T) {
	t.Setenv(joinVariable, "")
	for args, want := range map[string]string{
		"":                              "give - to read",
		"--join cproxy://a":             "give - to read",
		"--join @/nowhere/at/all":       "no such file",
		"--join @/dev/null":             "cproxy://NAME:SECRET@HOST:PORT",
		"--join - --clients 0":          "--clients must be at least 1",
		"--join - --tunnels 0":          "--tunnels must be at least 1",
		"--join - --duration 0s":        "--duration must be at least",
		"--join - --pid nonsense":       "is no process",
		"--join - --at-once -1":         "--at-once must be at least 0",
		"--join - --limit 0s extra=arg": "unknown command",
	} {
		code, _, stderr := invoke(append([]string{"clients"}, strings.Fields(args)...)...)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
	}
}
