package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Each layer overrides the one before; tables merge key by key, lists do not.
func TestLayers(t *testing.T) {
	dir := write(t, map[string]string{
		"s.toml":       "grace = \"1s\"\nloops = 1\nadvertise = \"a:1\"\n[limits]\nports = [\"1-2\", \"5\"]\nmax_conns = 1\n[pool]\nmax = 1\n[log]\nlevel = \"debug\"\n",
		"s.d/a.toml":   "loops = 2\n[limits]\nports = [\"3\"]\n",
		"s.d/b.toml":   "loops = 3\n[pool]\nmax = 2\n",
		"t.d/not.toml": "nonsense",
	})
	s, _, err := LoadServer(Source{
		Path:    filepath.Join(dir, "s.toml"),
		Environ: []string{"CPROXY_SERVER_POOL__MAX=3", "CPROXY_SERVER_LIMITS__MAX_CONNS=9", "CPROXY_SERVER_LIMITS__RATE_UP=2KiB", "CPROXY_SERVER_PUBLIC_BIND=127.0.0.1, ::1", "CPROXY_SERVER_ADVERTISE=", "CPROXY_CLIENT_NAME=x", "MALFORMED"},
		Flags:   map[string]string{"pool.max": "4", "timeouts.idle": "1m"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := defaultServer()
	want.Grace, want.Loops, want.Pool.Max, want.Log.Level = time.Second, 3, 4, -4
	want.Limits.Ports, want.Limits.MaxConns = []PortRange{{3, 3}}, 9
	want.Limits.RateUp = 2048
	want.PublicBind, want.Timeouts.Idle = addrs("127.0.0.1", "::1"), time.Minute
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
}

func TestUnreadable(t *testing.T) {
	dir := write(t, map[string]string{
		"huge.toml":         strings.Repeat("#\n", maxFileBytes/2) + "#",
		"folder.toml/x":     "",
		"client.d/bad.toml": "nonsense\nserver = 5\n[[tunnel]]\n",
		"file.d":            "",
		"file.toml":         "",
	})
	for _, name := range []string{"dangling.toml", "client.d/link.toml"} {
		if err := os.Symlink("/nonexistent", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		file string
		want []string
	}{
		{"absent.toml", []string{`absent.toml: configuration file does not exist; create it or correct the path`}},
		{"dangling.toml", []string{`dangling.toml: configuration file does not exist`}},
		{"huge.toml", []string{`huge.toml: configuration file cannot be read: it is larger than 1024 KiB`}},
		{"folder.toml", []string{`folder.toml: configuration file cannot be read: is a directory; correct the path`}},
		{"file.toml", []string{`file.d: folder cannot be read: not a directory`}},
		// No "server is missing": the broken files may well hold it.
		{"client.toml", []string{
			`client.toml: configuration file does not exist`,
			`client.d/bad.toml:1: not valid TOML at column 9`,
			`client.d/bad.toml:2: server: must be a server in quotes`,
			`client.d/link.toml: configuration file does not exist`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			_, _, err := LoadClient(Source{Path: filepath.Join(dir, tt.file)})
			wantLines(t, lines(t, err, dir), tt.want)
		})
	}
	t.Run("permission", func(t *testing.T) {
		got := unreadable("configuration file", &os.PathError{Err: os.ErrPermission})
		if !strings.Contains(got, "permission denied; let the user") {
			t.Error(got)
		}
	})
}

// A pipe, as the shell's <(...) gives it, is as good as a file.
func TestPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("loops = 7\n"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s, _, err := LoadServer(Source{Path: fmt.Sprintf("/proc/self/fd/%d", r.Fd())})
	if err != nil || s.Loops != 7 {
		t.Error(s, err)
	}
}

func TestUnknownVariables(t *testing.T) {
	tests := []struct{ variable, want string }{
		{"CPROXY_CLIENT_SERVR=a:1", `environment variable CPROXY_CLIENT_SERVR: servr: unknown variable; did you mean CPROXY_CLIENT_SERVER?`},
		{"CPROXY_CLIENT_server=a:1", `environment variable CPROXY_CLIENT_server: server: unknown variable; did you mean CPROXY_CLIENT_SERVER?`},
		{"CPROXY_CLIENT_LOG=x", `environment variable CPROXY_CLIENT_LOG: log: unknown variable; remove it`},
		{"CPROXY_CLIENT_=x", `environment variable CPROXY_CLIENT_: unknown variable; remove it`},
		{"CPROXY_CLIENT_TUNNEL__NAME=x", `environment variable CPROXY_CLIENT_TUNNEL__NAME: tunnel.name: tunnels cannot be set by variables`},
	}
	for _, tt := range tests {
		t.Run(tt.variable, func(t *testing.T) {
			dir := write(t, map[string]string{"client.toml": minimal})
			_, _, err := LoadClient(Source{Path: filepath.Join(dir, "client.toml"), Environ: []string{tt.variable}})
			wantLines(t, lines(t, err, dir), []string{tt.want})
		})
	}
}

// Several broken lines of one file show together with what is wrong beside them.
func TestSyntaxErrorsDoNotHideTheRest(t *testing.T) {
	dir := write(t, map[string]string{"server.toml": `grace = 30s
loops = "two"
[limits
max_conns = "belongs to the broken header"
[pool]
max = ten
[[log]]
level = "info"
[timeouts]
idle = "forever"
`})
	_, _, err := LoadServer(Source{Path: filepath.Join(dir, "server.toml")})
	wantLines(t, lines(t, err, dir), []string{
		`server.toml:1: not valid TOML at column 11`,
		`server.toml:2: loops: must be a whole number`,
		`server.toml:3: not valid TOML at column 8`,
		`server.toml:6: not valid TOML at column`,
		`server.toml:7: log: must be a table; write [log] above its keys`,
		`server.toml:10: timeouts.idle: must be a duration`,
	})
}

// The lines of keys in every notation that TOML has.
func TestPositions(t *testing.T) {
	const doc = `a = 1
b.c = 2 # comment
"d e" = """
two lines"""
f = [ 1,
  [ 2,
    { g = 3, h.i = 4 } ] ]

[j.k]
l = 5
[[m]]
n = 6
[[m]]
n = 7
[m.o]
p = 8
[[m.q]]
r = 9
`
	s, err := scan("f", []byte(doc))
	if err != nil || len(s.duplicate) > 0 {
		t.Fatal(err, s.duplicate)
	}
	want := map[string]int{
		"a": 1, "b": 2, "b.c": 2, `"d e"`: 3, "f": 5, "f[0]": 5, "f[1][0]": 6, "f[1][1]": 7, "f[1][1].g": 7, "f[1][1].h": 7, "f[1][1].h.i": 7,
		"j.k": 9, "j.k.l": 10, "m": 11, "m[0]": 11, "m[0].n": 12, "m[1]": 13, "m[1].n": 14,
		"m[1].o": 15, "m[1].o.p": 16, "m[1].q": 17, "m[1].q[0]": 17, "m[1].q[0].r": 18,
	}
	for path, line := range want {
		if s.lines[path] != line {
			t.Errorf("%s is at line %d, want %d", path, s.lines[path], line)
		}
	}
}

func TestEverySettingByVariable(t *testing.T) {
	texts := map[string]string{
		"server": "h:1", "pin": testPin, "token": testToken, "name": "n", "loops": "1", "pool.max": "2",
		"timeouts.connect": "1s", "timeouts.half_close": "2s", "timeouts.idle": "3s",
		"log.level": "warn", "log.format": "json",
	}
	var environ []string
	for path, value := range texts {
		environ = append(environ, clientSchema().envName(path)+"="+value)
	}
	c, _, err := LoadClient(Source{Environ: environ})
	if err != nil {
		t.Fatal(err)
	}
	want := &Client{
		Servers: []string{"h:1"}, Pins: []string{testPin}, Token: NewSecret(testToken), Name: "n", Loops: 1, Pool: Pool{2},
		Timeouts: Timeouts{Connect: time.Second, HalfClose: 2 * time.Second, Idle: 3 * time.Second},
		Log:      Log{4, LogJSON}, Tunnels: []Tunnel{},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

// Files that make no sense at all must not cost more than they weigh.
func TestAbsurdFiles(t *testing.T) {
	tests := []struct{ name, toml, want string }{
		{"dotted key", "\n" + strings.Repeat("a.", 400_000) + "a = 1", "server.toml:2: nested too deeply"},
		{"header", "[" + strings.Repeat("a.", 400_000) + "a]\nb = 1", "server.toml:1: nested too deeply"},
		{"array header", "[[" + strings.Repeat("a.", 400_000) + "a]]\nb = 1", "server.toml:1: nested too deeply"},
		{"lists", "a = " + strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000), "server.toml:1: nested too deeply"},
		{"tables", "a = " + strings.Repeat("{b.c=", 9_000) + "1" + strings.Repeat("}", 9_000), "server.toml:1: nested too deeply"},
		{"unclosed lists", "a = " + strings.Repeat("[", 400_000), "server.toml:1: not valid TOML"},
		{"no text", strings.Repeat("\x00", maxFileBytes), "server.toml:1: not valid TOML"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := write(t, map[string]string{"server.toml": tt.toml})
			_, _, err := LoadServer(Source{Path: filepath.Join(dir, "server.toml")})
			wantLines(t, lines(t, err, dir), []string{tt.want})
		})
	}
	t.Run("many of one", func(t *testing.T) {
		const n = 20_000
		dir := write(t, map[string]string{"server.toml": strings.Repeat("[pool]\nmax = 1\n", n)})
		_, _, err := LoadServer(Source{Path: filepath.Join(dir, "server.toml")})
		if got := lines(t, err, dir); len(got) != n-1 {
			t.Errorf("%d problems", len(got))
		}
	})
}
