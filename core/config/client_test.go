package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestClientDefaults(t *testing.T) {
	got, warnings, err := clientFrom(t, minimal+"[[tunnel]]\nname = \"a\"\nlocal = 8080\n")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := &Client{
		Servers:  []string{"example.net:7000"},
		Pins:     []string{testPin},
		Token:    NewSecret(testToken),
		Name:     "web",
		Pool:     Pool{Max: 256},
		Timeouts: Timeouts{Connect: 10 * time.Second, HalfClose: 5 * time.Minute},
		Log:      Log{Level: slog.LevelInfo, Format: LogText},
		Tunnels:  []Tunnel{{Name: "a", Local: Local{"tcp", "127.0.0.1:8080"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestClientTunnelForms(t *testing.T) {
	tests := []struct {
		name, toml string
		want       Tunnel
	}{
		{"port as text", `local = "81"`, Tunnel{Local: Local{"tcp", "127.0.0.1:81"}}},
		{"host and port", `local = "db.lan:5432"`, Tunnel{Local: Local{"tcp", "db.lan:5432"}}},
		{"IPv6", `local = "[::1]:80"`, Tunnel{Local: Local{"tcp", "[::1]:80"}}},
		{"unix", `local = "unix:/run//app.sock"`, Tunnel{Local: Local{"unix", "/run/app.sock"}}},
		{"fixed port", "local = 1\nremote_port = 443", Tunnel{Local: Local{"tcp", "127.0.0.1:1"}, RemotePorts: PortRange{443, 443}}},
		{"random port", "local = 1\nremote_port = 0", Tunnel{Local: Local{"tcp", "127.0.0.1:1"}}},
		{"range", "local = 1\nremote_port = \"20000-20100\"", Tunnel{Local: Local{"tcp", "127.0.0.1:1"}, RemotePorts: PortRange{20000, 20100}}},
		{"one bind", "local = 1\nbind = \"127.0.0.1\"", Tunnel{Local: Local{"tcp", "127.0.0.1:1"}, Bind: addrs("127.0.0.1")}},
		{"mapped bind", "local = 1\nbind = [\"::ffff:10.0.0.1\", \"::1\"]", Tunnel{Local: Local{"tcp", "127.0.0.1:1"}, Bind: addrs("10.0.0.1", "::1")}},
		{"type and header", "local = 1\ntype = \"tcp\"\nproxy_protocol = \"v2\"", Tunnel{Local: Local{"tcp", "127.0.0.1:1"}, ProxyProtocol: ProxyV2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _, err := clientFrom(t, minimal+"[[tunnel]]\nname = \"x\"\n"+tt.toml)
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Name = "x"
			if got := c.Tunnels[0]; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestClientOneProblem(t *testing.T) {
	const tunnel = "[[tunnel]]\nname = \"x\"\nlocal = 1\n"
	tests := []struct{ name, toml, want string }{
		{"no server", "token = \"" + testToken + "\"\n" + tunnel, `client.toml: server: is missing; set the server's "host:7000", or let "cproxy-client join"`},
		{"no token", "server = \"a:1\"\n" + tunnel, `client.toml: token: is missing, and token_file as well; run "cproxy-client join`},
		{"bad token", "server = \"a:1\"\ntoken = \"web:short\"\n" + tunnel, `client.toml:2: token: must be NAME:SECRET as`},
		{"token of bad type", "server = \"a:1\"\ntoken = 77777\n" + tunnel, `client.toml:2: token: must be a text in quotes`},
		{"two tokens", minimal + "token_file = \"x\"\n" + tunnel, `client.toml:3: token: is set beside token_file at DIR/client.toml:4; keep one of the two`},
		{"absent token file", "server = \"a:1\"\ntoken_file = \"nope\"\n" + tunnel, `client.toml:2: token_file: DIR/nope does not exist; create it`},
		{"token file is a folder", "server = \"a:1\"\ntoken_file = \".\"\n" + tunnel, `client.toml:2: token_file: DIR cannot be read: is a directory`},
		{"server without port", "server = \"example.net\"\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:1: server: must be an address such as "host:7000"`},
		{"server of bad type", "server = 7000\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:1: server: must be a server in quotes such as "host:7000", or a list`},
		{"servers of bad type", "server = [\"a:1\",\n7000]\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:2: server: must be a server in quotes such as "host:7000", or a list`},
		{"no servers", "server = []\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:1: server: is missing; set the server's`},
		{"empty server", "server = \"\"\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:1: server: must be an address such as "host:7000"`},
		{"one of several servers", "server = [\"a:1\",\n\"b\",\n\"c:1\"]\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:2: server: must be an address such as "host:7000"`},
		{"server twice", "server = [\"a:1\",\n\"b:1\",\n\"a:1\"]\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:3: server: names a:1 twice; remove one of the two`},
		{"too many servers", "server = [" + strings.Repeat("\"a:1\",", 17) + "]\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:1: server: has 17 elements; remove all but 16`},
		{"pin twice", "pin = [\n\"" + testPin + "\",\n\"" + testPin + "\"]\nserver = \"a:1\"\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:3: pin: names ` + testPin + ` twice`},
		{"one of several pins", "pin = [\n\"" + testPin + "\",\n\"sha256:x\"]\nserver = \"a:1\"\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:3: pin: must be "sha256:" and 43 characters`},
		{"pin of bad type", "pin = 1\nserver = \"a:1\"\ntoken = \"" + testToken + "\"\n" + tunnel, `client.toml:1: pin: must be a fingerprint in quotes`},
		{"pin and CA", "ca_file = \"client.toml\"\n" + minimal + tunnel, `client.toml:1: ca_file: is set beside pin at DIR/client.toml:3`},
		{"absent CA", "server = \"a:1\"\ntoken = \"" + testToken + "\"\nca_file = \"/no/ca.pem\"\n" + tunnel, `client.toml:3: ca_file: /no/ca.pem does not exist`},
		{"padded pin", "server = \"a:1\"\ntoken = \"" + testToken + "\"\npin = \"" + testPin + "=\"\n" + tunnel, `client.toml:3: pin: must be "sha256:" and 43 characters`},
		{"client name", "name = \"a b\"\n" + minimal + tunnel, `client.toml:1: name: must be 1 to 64 of the characters`},
		{"server key", "grace = \"1s\"\n" + minimal + tunnel, `client.toml:1: grace: unknown key`},
		{"heartbeat is the server's", minimal + "timeouts.heartbeat = \"1s\"\n" + tunnel, `client.toml:4: timeouts.heartbeat: unknown key`},
		{"tunnel without name", minimal + "[[tunnel]]\nlocal = 1\n", `client.toml:4: tunnel.name: is missing`},
		{"tunnel without local", minimal + "[[tunnel]]\nname = \"x\"\n", `client.toml:4: tunnel.local: is missing`},
		{"tunnel name", minimal + "[[tunnel]]\nname = \"\"\nlocal = 1\n", `client.toml:5: tunnel.name: must be 1 to 64`},
		{"tunnel name type", minimal + "[[tunnel]]\nname = 5\nlocal = 1\n", `client.toml:5: tunnel.name: must be a text in quotes`},
		{"tunnel type", minimal + tunnel + "type = \"udp\"\n", `client.toml:7: tunnel.type: must be "tcp", the only type; remove the key or correct it; got "udp"`},
		{"another program's tunnels", minimal + "[[proxies]]\nname = \"web\"\n", `client.toml:4: proxies: unknown key; write a [[tunnel]] table`},
		{"another program's server", "serverAddr = \"x\"\n" + minimal, `client.toml:1: serverAddr: unknown key; write server =`},
		{"rate", minimal + tunnel + "rate_down = \"1MB\"\n", `client.toml:7: tunnel.rate_down: unknown key; the server sets rates: for a token with ` + "`cproxy-server token add --rate-down`"},
		{"tunnel key", minimal + tunnel + "remote-port = 5\n", `client.toml:7: tunnel.remote-port: unknown key; did you mean tunnel.remote_port?`},
		{"tunnel empty bind", minimal + tunnel + "bind = []\n", `client.toml:7: tunnel.bind: is empty`},
		{"tunnel bad bind", minimal + tunnel + "bind = [\n\"::\",\n\"x\"]\n", `client.toml:9: tunnel.bind: must be an IP address`},
		{"tunnel bad bind among several", minimal + tunnel + "bind = [\n\"x\",\n\"::\",\n\"::\"]\n", `client.toml:8: tunnel.bind: must be an IP address`},
		{"tunnel proxy protocol", minimal + tunnel + "proxy_protocol = \"\"\n", `client.toml:7: tunnel.proxy_protocol: must be "v1" or "v2"`},
		{"tunnel remote port", minimal + tunnel + "remote_port = 65536\n", `client.toml:7: tunnel.remote_port: must be a port from 1 to 65535 or a range such as "20000-20100"; got 65536`},
		{"tunnel remote port table", minimal + tunnel + "remote_port = {First = 1}\n", `client.toml:7: tunnel.remote_port: must be a port`},
		{"tunnel as one table", minimal + "[tunnel]\nname = \"x\"\n", `client.toml:4: tunnel: must be tables; write [[tunnel]]`},
		{"tunnel as list of texts", minimal + "tunnel = [\"x\"]\n", `client.toml:4: tunnel: must be tables; write [[tunnel]]`},
		{"local without host", minimal + "[[tunnel]]\nname = \"x\"\nlocal = \":80\"\n", `client.toml:6: tunnel.local: must be a port such as 8080, "host:port" or "unix:/path/to/socket"; got ":80"`},
		{"local zero", minimal + "[[tunnel]]\nname = \"x\"\nlocal = 0\n", `client.toml:6: tunnel.local: must be a port`},
		{"local type", minimal + "[[tunnel]]\nname = \"x\"\nlocal = true\n", `client.toml:6: tunnel.local: must be a port`},
		{"local relative socket", minimal + "[[tunnel]]\nname = \"x\"\nlocal = \"unix:run/x\"\n", `client.toml:6: tunnel.local: must be an absolute path after unix:`},
		{"local long socket", minimal + "[[tunnel]]\nname = \"x\"\nlocal = \"unix:/" + strings.Repeat("x", 107) + "\"\n", `client.toml:6: tunnel.local: socket path is 108 bytes long; move the socket`},
		{"duplicate in one file", minimal + tunnel + tunnel, `client.toml:8: tunnel.name: tunnel "x" is already defined at DIR/client.toml:5; rename one of the two`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := write(t, map[string]string{"client.toml": tt.toml})
			c, _, err := LoadClient(Source{Path: filepath.Join(dir, "client.toml")})
			if c != nil {
				t.Error("a configuration came with the error")
			}
			got := lines(t, err, dir)
			for i := range got {
				got[i] = strings.ReplaceAll(got[i], dir, "DIR")
			}
			want := strings.ReplaceAll(tt.want, "DIR/client.toml", "client.toml")
			want = strings.ReplaceAll(want, "DIR/nope", "nope")
			wantLines(t, got, []string{want})
		})
	}
}

// A server and a pin may be one text or a list, wherever they come from.
func TestSeveralServers(t *testing.T) {
	const otherPin = "sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"
	token := "token = \"" + testToken + "\"\n[[tunnel]]\nname = \"x\"\nlocal = 1\n"
	one, two := []string{"a:1"}, []string{"a:1", "[::1]:2"}
	tests := []struct {
		name, toml string
		environ    []string
		flag       string
		servers    []string
		pins       []string
	}{
		{"text", `server = "a:1"`, nil, "", one, nil},
		{"list of one", `server = ["a:1"]`, nil, "", one, nil},
		{"list", `server = ["a:1", "[::1]:2"]`, nil, "", two, nil},
		{"variable", ``, []string{"CPROXY_CLIENT_SERVER=a:1"}, "", one, nil},
		{"variable with a list", `server = "b:1"`, []string{"CPROXY_CLIENT_SERVER=a:1, [::1]:2"}, "", two, nil},
		{"flag", `server = ["b:1", "c:1"]`, []string{"CPROXY_CLIENT_SERVER=d:1"}, "a:1", one, nil},
		{"flag with a list", `server = "b:1"`, nil, "a:1,[::1]:2", two, nil},
		{"pin", "server = \"a:1\"\npin = \"" + testPin + "\"", nil, "", one, []string{testPin}},
		{"pins", "server = \"a:1\"\npin = [\"" + testPin + "\", \"" + otherPin + "\"]", nil, "", one, []string{testPin, otherPin}},
		{"pins in a variable", `server = "a:1"`, []string{"CPROXY_CLIENT_PIN=" + testPin + "," + otherPin}, "", one, []string{testPin, otherPin}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := write(t, map[string]string{"client.toml": tt.toml + "\n" + token})
			src := Source{Path: filepath.Join(dir, "client.toml"), Environ: tt.environ}
			if tt.flag != "" {
				src.Flags = map[string]string{"server": tt.flag}
			}
			c, _, err := LoadClient(src)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(c.Servers, tt.servers) || !reflect.DeepEqual(c.Pins, tt.pins) {
				t.Errorf("got %q and %q, want %q and %q", c.Servers, c.Pins, tt.servers, tt.pins)
			}
		})
	}
}

func TestTunnelsAppendOverFiles(t *testing.T) {
	tunnel := func(name string) string { return fmt.Sprintf("[[tunnel]]\nname = %q\nlocal = 1\n", name) }
	files := map[string]string{
		"client.toml":             minimal + tunnel("main"),
		"client.d/20-more.toml":   tunnel("c") + tunnel("d"),
		"client.d/10-first.toml":  "name = \"override\"\n" + tunnel("b"),
		"client.d/.hidden.toml":   "nonsense",
		"client.d/readme.txt":     "nonsense",
		"client.d/x.toml/in.toml": "nonsense",
	}
	dir := write(t, files)
	src := Source{
		Path:  filepath.Join(dir, "client.toml"),
		Flags: map[string]string{"tunnel.name": "flag", "tunnel.local": "unix:/x", "tunnel.remote_port": "99", "tunnel.bind": "::1,127.0.0.1"},
	}
	c, _, err := LoadClient(src)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tunnel := range c.Tunnels {
		names = append(names, tunnel.Name)
	}
	if want := []string{"main", "b", "c", "d", "flag"}; !reflect.DeepEqual(names, want) {
		t.Errorf("tunnels %v, want %v", names, want)
	}
	last := Tunnel{Name: "flag", Local: Local{"unix", "/x"}, RemotePorts: PortRange{99, 99}, Bind: addrs("::1", "127.0.0.1")}
	if !reflect.DeepEqual(c.Tunnels[4], last) {
		t.Errorf("got %+v, want %+v", c.Tunnels[4], last)
	}
	if c.Name != "override" {
		t.Errorf("name %q is not that of the drop-in", c.Name)
	}

	src.Flags["tunnel.name"] = "c"
	if err := os.WriteFile(filepath.Join(dir, "client.d/30.toml"), []byte("\n"+tunnel("b")), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = LoadClient(src)
	wantLines(t, lines(t, err, dir), []string{
		`client.d/30.toml:3: tunnel.name: tunnel "b" is already defined at client.d/10-first.toml:3`,
		`command line: tunnel.name: tunnel "c" is already defined at client.d/20-more.toml:2`,
	})
}

func TestClientWithoutFiles(t *testing.T) {
	c, warnings, err := LoadClient(Source{Flags: map[string]string{
		"server": "h:7000", "pin": testPin, "token": testToken,
		"tunnel.name": "x", "tunnel.local": "8080",
	}})
	if err != nil || len(warnings) > 0 || len(c.Tunnels) != 1 || c.Name != "web" {
		t.Errorf("%+v, %v, %v", c, warnings, err)
	}
	_, _, err = LoadClient(Source{Flags: map[string]string{"tunnel.local": "x", "tunnels": ""}})
	wantLines(t, lines(t, err, ""), []string{
		`command line: tunnels: unknown key`,
		`command line: tunnel.local: must be a port such as 8080`,
		`command line: server: is missing`,
		`command line: token: is missing`,
		`command line: tunnel.name: is missing`,
	})
}

func TestTokenFile(t *testing.T) {
	const toml = "server = \"a:1\"\ntoken_file = \"secret\"\n[[tunnel]]\nname=\"x\"\nlocal=1\n"
	dir := write(t, map[string]string{"client.toml": toml, "secret": testToken + "\n", "client.d/.keep": ""})
	path := filepath.Join(dir, "client.toml")
	c, warnings, err := LoadClient(Source{Path: path})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if c.Token.Reveal() != testToken || c.TokenFile != filepath.Join(dir, "secret") || c.Name != "web" {
		t.Errorf("%q %q %q", c.Token.Reveal(), c.TokenFile, c.Name)
	}

	if err := os.Chmod(filepath.Join(dir, "secret"), 0o640); err != nil {
		t.Fatal(err)
	}
	_, warnings, err = LoadClient(Source{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, text(warnings, dir), []string{`client.toml:2: token_file: other users may read secret; run chmod 600`})

	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(testToken+"\nmore\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = LoadClient(Source{Path: path})
	wantLines(t, lines(t, err, dir), []string{`client.toml:2: token_file: secret must be NAME:SECRET`})
	if strings.Contains(err.Error(), testSecret) {
		t.Error("the error holds the secret")
	}
}

func TestClientWarnings(t *testing.T) {
	dir := write(t, map[string]string{"client.toml": minimal})
	path := filepath.Join(dir, "client.toml")
	if err := os.Chmod(path, 0o646); err != nil {
		t.Fatal(err)
	}
	_, warnings, err := LoadClient(Source{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, text(warnings, dir), []string{
		`client.toml: every user may write this file; run chmod o-w on it`,
		`client.toml: tunnel: there is none, so nothing is exposed`,
		`client.toml:3: token: every user may read this file; run chmod 600`,
	})
}
