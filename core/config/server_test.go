package config

import (
	"log/slog"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func defaultServer() *Server {
	return &Server{
		CtlListen:   ":7000",
		ProxyListen: ":7001",
		PublicBind:  addrs("::"),
		StateDir:    "/var/lib/cproxy",
		TokensFile:  "/var/lib/cproxy/tokens.toml",
		Grace:       30 * time.Second,
		Limits:      Limits{Ports: []PortRange{{1024, 65535}}, MaxTunnelsPerClient: 100},
		Pool:        Pool{Max: 256},
		Timeouts:    Timeouts{Connect: 10 * time.Second, HalfClose: 5 * time.Minute, Heartbeat: 30 * time.Second},
		Log:         Log{Level: slog.LevelInfo, Format: LogText},
	}
}

func TestServerDefaults(t *testing.T) {
	got, warnings, err := serverFrom(t, "")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if want := defaultServer(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestServerAllKeys(t *testing.T) {
	dir := write(t, map[string]string{"server.toml": `
ctl_listen = "127.0.0.1:0"
proxy_listen = "[::1]:7101"
advertise = "tunnel.example.net:7000"
proxy_advertise = "data.example.net:9001"
public_bind = "192.0.2.1"
state_dir = "/srv/cproxy"
tokens_file = "tokens/all.toml"
grace = "0s"
loops = 4
limits = { ports = [443, "20000-20100"], max_tunnels_per_client = 5, max_conns_per_tunnel = 6, max_conns = 7, rate_up = "10MB", rate_down = 4096 }
pool.max = 0
[timeouts]
connect = "1s"
half_close = "2s"
idle = "3s"
heartbeat = "4s"
[log]
level = "debug"
format = "json"
`})
	got, _, err := LoadServer(Source{Path: filepath.Join(dir, "server.toml")})
	if err != nil {
		t.Fatal(err)
	}
	want := &Server{
		CtlListen: "127.0.0.1:0", ProxyListen: "[::1]:7101", Advertise: "tunnel.example.net:7000", ProxyAdvertise: "data.example.net:9001",
		PublicBind: addrs("192.0.2.1"), StateDir: "/srv/cproxy", TokensFile: filepath.Join(dir, "tokens/all.toml"), Loops: 4,
		Limits:   Limits{Ports: []PortRange{{443, 443}, {20000, 20100}}, MaxTunnelsPerClient: 5, MaxConnsPerTunnel: 6, MaxConns: 7, RateUp: 10_000_000, RateDown: 4096},
		Timeouts: Timeouts{time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second},
		Log:      Log{slog.LevelDebug, LogJSON},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Every kind of mistake in one file and its drop-in, all reported at once.
func TestServerAllProblemsAtOnce(t *testing.T) {
	dir := write(t, map[string]string{
		"server.toml": `ctl_listen = "7000"
grase = "30s"
grace = 30
loops = 65
state_dir = "var"
public_bind = ["::", "example.net"]
grace = "5s"

[limits]
ports = [
  "1-2",
  "9-1",
  "70000",
]
max_conns = -1
max_tunnels = 3

[pool]
max = "10"

[limits]
ignored = true

[log]
level = "loud"
format = 'xml'
`,
		"server.d/10-a.toml": "heartbeat = \"1s\"\n[timeouts]\nconnect = 5s\nidle = \"never\"\n",
		"server.d/20-b.toml": "limits = 3\nloops = 1.5\n",
	})
	_, _, err := LoadServer(Source{
		Path:    filepath.Join(dir, "server.toml"),
		Environ: []string{"CPROXY_SERVER_LIMITS__PROTS=1", "CPROXY_SERVER_POOL__MAX=many", "PATH=/bin", "CPROXY_JOIN=x"},
		Flags:   map[string]string{"log.levle": "info", "timeouts.half_close": "-1s"},
	})
	wantLines(t, lines(t, err, dir), []string{
		`server.toml:1: ctl_listen: must be an address such as "host:7000"`,
		`server.toml:2: grase: unknown key; did you mean grace?`,
		`server.toml:3: grace: must be a duration in quotes such as "500ms", "30s" or "5m"; got 30`,
		`server.toml:5: state_dir: must be an absolute path`,
		`server.toml:6: public_bind: must be an IP address in quotes such as "127.0.0.1" or "::"; got "example.net"`,
		`server.toml:7: grace: already defined at line 3; remove one of the two`,
		`server.toml:12: limits.ports: range "9-1" ends before it starts; write "1-9"`,
		`server.toml:13: limits.ports: must be a port from 1 to 65535 or a range such as "20000-20100"; got "70000"`,
		`server.toml:16: limits.max_tunnels: unknown key; did you mean limits.max_tunnels_per_client?`,
		`server.toml:19: pool.max: must be a whole number without quotes, such as 100; got "10"`,
		`server.toml:21: limits: already defined at line 9; put the keys of this table there`,
		`server.toml:25: log.level: must be "debug", "info", "warn" or "error"; got "loud"`,
		`server.toml:26: log.format: must be "text" or "json"; got "xml"`,
		`server.d/10-a.toml:1: heartbeat: unknown key; did you mean timeouts.heartbeat?`,
		`server.d/10-a.toml:3: not valid TOML at column`,
		`server.d/10-a.toml:4: timeouts.idle: must be a duration in quotes`,
		`server.d/20-b.toml:1: limits: must be a table; write [limits] above its keys`,
		`server.d/20-b.toml:2: loops: must be a whole number without quotes`,
		`environment variable CPROXY_SERVER_LIMITS__PROTS: limits.prots: unknown variable; did you mean CPROXY_SERVER_LIMITS__PORTS?`,
		`environment variable CPROXY_SERVER_POOL__MAX: pool.max: must be a whole number without quotes, such as 100; got "many"`,
		`command line: log.levle: unknown key; did you mean log.level?`,
		`command line: timeouts.half_close: must be from 1ms to 168h; got -1s`,
	})
}

func TestServerOneProblem(t *testing.T) {
	tests := []struct{ name, toml, want string }{
		{"port zero in range", `limits.ports = ["0-5"]`, `server.toml:1: limits.ports: must be a port from 1`},
		{"rate in bits", `limits.rate_up = "10Mbit"`, `server.toml:1: limits.rate_up: must be bytes per second: a whole number, or one in quotes with kB, MB, GB, KiB, MiB or GiB such as "10MB" (0 is no limit); got "10Mbit"`},
		{"negative rate", `limits.rate_down = -5`, `server.toml:1: limits.rate_down: must be bytes per second`},
		{"fraction of a rate", `limits.rate_down = 1.5`, `server.toml:1: limits.rate_down: must be bytes per second`},
		{"port zero", `limits.ports = [0]`, `server.toml:1: limits.ports: must be ports from 1 to 65535; got 0`},
		{"no ports", `limits.ports = []`, `server.toml:1: limits.ports: is empty`},
		{"negative port", `limits.ports = [-1]`, `server.toml:1: limits.ports: must be a port`},
		{"leading zero", `limits.ports = ["080"]`, `server.toml:1: limits.ports: must be a port`},
		{"inline table for a range", `limits.ports = [{First = 1, Last = 2}]`, `server.toml:1: limits.ports: must be a port`},
		{"no bind", `public_bind = []`, `server.toml:1: public_bind: is empty`},
		{"bind twice", `public_bind = ["::1", "::1"]`, `server.toml:1: public_bind: names ::1 twice`},
		{"bind number", `public_bind = 5`, `server.toml:1: public_bind: must be an IP address`},
		{"bind flag", `public_bind = true`, `server.toml:1: public_bind: must be a list of IP addresses`},
		{"same listen", `proxy_listen = ":7000"`, `server.toml:1: proxy_listen: is the same address as ctl_listen`},
		{"listen text port", `ctl_listen = ":https"`, `server.toml:1: ctl_listen: must be an address that ends in a port`},
		{"listen type", `ctl_listen = 7000`, `server.toml:1: ctl_listen: must be a text in quotes`},
		{"advertise without host", `advertise = ":7000"`, `server.toml:1: advertise: must be an address with a host`},
		{"proxy_advertise without host", `proxy_advertise = ":9001"`, `server.toml:1: proxy_advertise: must be an address with a host`},
		{"advertise port zero", `advertise = "a:0"`, `server.toml:1: advertise: must be an address that ends`},
		{"negative loops", `loops = -1`, `server.toml:1: loops: must be from 0 to 64; got -1`},
		{"long grace", `grace = "25h"`, `server.toml:1: grace: must be from 0s to 24h; got 25h0m0s`},
		{"no connect time", `timeouts.connect = "0s"`, `server.toml:1: timeouts.connect: must be from 1ms to 10m; got 0s`},
		{"letter case", `Grace = "1s"`, `server.toml:1: Grace: unknown key; did you mean grace?`},
		{"quoted dot", `"limits.ports" = ["1"]`, `server.toml:1: "limits.ports": unknown key; did you mean limits.ports?`},
		{"empty key", `"" = 1`, `server.toml:1: "": unknown key; remove it`},
		{"unknown table", "[plugins]\na = 1", `server.toml:1: plugins: unknown key; remove it`},
		{"client key", `[[tunnel]]`, `server.toml:1: tunnel: unknown key; remove it`},
		{"date", `grace = 2026-01-01`, `server.toml:1: grace: must be a duration`},
		{"table for value", "[grace]\na = 1", `server.toml:1: grace: must be a duration`},
		{"duplicate in inline table", "pool = {max = 1, max = 2}", `server.toml:1: not valid TOML at column`},
		{"table reopened", "pool.max = 1\n[pool]\n", `server.toml:2: not valid TOML at column`},
		{"too large a number", "loops = 99999999999999999999", `server.toml:1: not valid TOML at column`},
		{"unclosed list", "grace = 5\npublic_bind = [\n\nloops = 1\n", `server.toml:4: not valid TOML at column`},
		{"long value is cut", `log.level = "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffTAIL"`, `server.toml:1: log.level: must be "debug", "info", "warn" or "error"; got "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := write(t, map[string]string{"server.toml": tt.toml})
			s, _, err := LoadServer(Source{Path: filepath.Join(dir, "server.toml")})
			if s != nil {
				t.Error("a configuration came with the error")
			}
			wantLines(t, lines(t, err, dir), []string{tt.want})
		})
	}
}
