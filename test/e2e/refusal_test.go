package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// Each reason for which a tunnel is refused is told to the client in words of
// its own, and the other tunnels go on.
func TestTunnelRefusals(t *testing.T) {
	t.Parallel()
	// Where the taken port is, only the world knows: the client gets it later.
	local := serve(t, "tcp", "127.0.0.1:0", echo).address
	w := newWorld(t, setup{
		server:  `limits.ports = ["20000-29999"]`,
		grants:  []string{"--ports", "20000-25000"},
		tunnels: []tunnel{{name: "web", local: local}},
	})
	blocker, port := block(t, w.ip, 24000)
	taken := tunnel{name: "taken", local: local, more: fmt.Sprintf("remote_port = %d", port)}
	mark := w.client.stderr.mark()
	w.reload(w.client, "", []tunnel{
		{name: "web", local: local},
		taken,
		{name: "outside", local: local, more: "remote_port = 19999"},
		{name: "not-granted", local: local, more: "remote_port = 26000"},
		{name: "bind", local: local, more: `bind = "127.255.255.254"`},
		{name: "range", local: local, more: fmt.Sprintf("remote_port = \"%d-%d\"", port, port+1)},
	})
	refusals := map[string]string{
		"taken":       `level=WARN msg="tunnel refused for now" tunnel=taken .*refused \(port taken\): port ` + portText(port) + ` is in use`,
		"outside":     `level=ERROR msg="tunnel refused; .*tunnel=outside .*refused \(port out of range\): port 19999 is outside.*limits\.ports`,
		"not-granted": `level=ERROR msg="tunnel refused; .*tunnel=not-granted .*refused \(port not granted\): port 26000 is not granted`,
		"bind":        `level=ERROR msg="tunnel refused; .*tunnel=bind .*refused \(bind address not granted\)`,
	}
	for name, line := range refusals {
		t.Run(name, func(t *testing.T) {
			if _, err := w.client.awaitLog(mark, line); err != nil {
				t.Error(err)
			}
		})
	}
	wantRoundTrip(t, w.web(), "untouched by its neighbours")
	if address := w.address(w.client, "range"); portIn(address) != port+1 {
		t.Errorf("a range of which the first port is taken opens %s, want port %d", address, port+1)
	}
	// A refusal for now is tried again.
	blocker.Close()
	wantRoundTrip(t, w.address(w.client, "taken"), "the port is free")
}

// block takes a port of an address, with the next one left free.
func block(t *testing.T, ip string, from uint16) (net.Listener, uint16) {
	t.Helper()
	for port := from; port < from+100; port++ {
		if ln, err := net.Listen("tcp", net.JoinHostPort(ip, portText(port))); err == nil {
			t.Cleanup(func() { ln.Close() })
			return ln, port
		}
	}
	t.Fatal("no port can be taken")
	return nil, 0
}

// On the first connection a client whose tunnels are all refused for good has
// nothing to wait for.
func TestAllTunnelsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, setup{server: `limits.ports = ["20000-29999"]`})
	w.writeClient("refused.toml", w.join, `name = "refused"`, []tunnel{
		{name: "a", local: "8080", more: "remote_port = 80"},
		{name: "b", local: "8080", more: "remote_port = 30000"},
	})
	p := w.start("refused client", 0, "cproxy-client", "run", "--config", w.path("refused.toml"))
	w.wantExit(p, 3)
	if text := p.stderr.String(); !strings.Contains(text, "error: register tunnel") || !strings.Contains(text, "port out of range") {
		t.Errorf("it does not say why:\n%s", text)
	}
}

func TestTunnelLimit(t *testing.T) {
	t.Parallel()
	local := serve(t, "tcp", "127.0.0.1:0", echo).address
	w := newWorld(t, setup{
		grants:  []string{"--max-tunnels", "2"},
		tunnels: []tunnel{{name: "web", local: local}, {name: "two", local: local}},
	})
	mark := w.client.stderr.mark()
	w.reload(w.client, "", append(w.setup.tunnels, tunnel{name: "three", local: local}))
	w.log(w.client, mark, `tunnel=three .*refused \(too many tunnels\): .* 2 tunnels`)
	// A grant is one of the token, however many clients share it.
	w.writeClient("other.toml", w.join, `name = "other"`, []tunnel{{name: "more", local: local}})
	other := w.start("other client", 0, "cproxy-client", "run", "--config", w.path("other.toml"))
	w.wantExit(other, 3)
	wantRoundTrip(t, w.web(), "untouched")
}
