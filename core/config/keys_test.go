package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const docPath = "../../docs/configuration.md"

// The table of keys, the raw structs and the flattened settings must agree.
func TestKeysMatchStructs(t *testing.T) {
	tests := []struct {
		name   string
		keys   []key
		raw    any
		values map[string]any
		extra  string // in the shared struct, but not a key
	}{
		{"server", serverKeys(), rawServer{}, new(Server).values(), ""},
		{"client", clientKeys(), rawClient{}, new(Client).values(), "timeouts.heartbeat"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fields := make(map[string]bool)
			collect(reflect.TypeOf(tt.raw), "", fields)
			delete(fields, tt.extra)
			for _, k := range tt.keys {
				if !fields[k.path] {
					t.Errorf("%s has no field", k.path)
				}
				delete(fields, k.path)
				if _, ok := tt.values[k.path]; !ok && !strings.HasPrefix(k.path, "tunnel.") {
					t.Errorf("%s has no value", k.path)
				}
				delete(tt.values, k.path)
			}
			if len(fields)+len(tt.values) > 0 {
				t.Errorf("not in the table of keys: %v %v", fields, tt.values)
			}
		})
	}
}

// collect gives the paths of the koanf tags of a struct.
func collect(typ reflect.Type, prefix string, into map[string]bool) {
	for field := range typ.Fields() {
		path := prefix + field.Tag.Get("koanf")
		inner := field.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && inner.NumField() > 0 && inner.Field(0).Tag.Get("koanf") != "" {
			collect(inner, path+".", into)
			continue
		}
		into[path] = true
	}
}

// Bounds must parse, and defaults keep them, or they would silently not count.
func TestKeysAreSound(t *testing.T) {
	for _, k := range append(serverKeys(), clientKeys()...) {
		for _, bound := range []string{k.min, k.max} {
			if _, err := parseDuration(bound); k.kind == kindDuration && err != nil {
				t.Errorf("%s: bound: %v", k.path, err)
			}
			if _, err := parseRate(k.initial); k.kind == kindRate && err != nil {
				t.Errorf("%s: default: %v", k.path, err)
			}
			if _, ok := k.kind.fromText(bound).(int64); k.kind == kindInt && !ok {
				t.Errorf("%s: bound %q", k.path, bound)
			}
		}
		if k.help == "" || !strings.HasSuffix(k.help, ".") || k.kind.label() == "unknown" || k.kind.want() == "a known type" {
			t.Errorf("%s is not described", k.path)
		}
	}
}

func TestSuggest(t *testing.T) {
	tests := []struct{ typed, want string }{
		{"ctl_listn", "ctl_listen"},
		{"proxy-listen", "proxy_listen"},
		{"max_conns", "limits.max_conns"},
		{"limits.level", "log.level"},
		{"limits.max_tunnels", "limits.max_tunnels_per_client"},
		{"timeout.idle", "timeouts.idle"},
		{"zzz", ""},
		{"", ""},
		{strings.Repeat("grace", 1000), ""},
	}
	for _, tt := range tests {
		t.Run(tt.typed, func(t *testing.T) {
			if got := serverSchema().suggest(tt.typed); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func docTable(keys []key) string {
	var b strings.Builder
	b.WriteString("| key | type | default | from, to | a change applies at | meaning |\n|---|---|---|---|---|---|\n")
	for _, k := range keys {
		initial := k.computed
		if k.initial != "" {
			initial = "`" + k.initial + "`"
		}
		bounds := ""
		if k.min != "" {
			bounds = k.min + ", " + k.max
		}
		applies := "reload"
		if k.restart {
			applies = "restart"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", k.path, k.kind.label(), initial, bounds, applies, k.help)
	}
	return b.String()
}

// The tables in the documentation are those of the code. Run the test with
// UPDATE_DOCS=1 in the environment to write them.
func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	text := string(doc)
	for name, keys := range map[string][]key{"server": serverKeys(), "client": clientKeys()} {
		begin, end := "<!-- begin "+name+" keys -->\n", "<!-- end "+name+" keys -->"
		before, rest, ok := strings.Cut(text, begin)
		table, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no place for the %s keys", docPath, name)
		}
		want := docTable(keys)
		if table != want && !updating() {
			t.Errorf("the table of %s keys in %s is stale; run UPDATE_DOCS=1 go test ./core/config. It should be:\n%s", name, docPath, want)
		}
		text = before + begin + want + end + after
	}
	if updating() {
		if err := os.WriteFile(docPath, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func updating() bool { return os.Getenv("UPDATE_DOCS") != "" }

// The packaged configurations load, and what they show as comments are the
// defaults and known keys.
func TestPackagedConfigurations(t *testing.T) {
	const dir = "../../packaging/config"
	server, err := os.ReadFile(filepath.Join(dir, "server.toml"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := os.ReadFile(filepath.Join(dir, "client.toml"))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("server as shipped", func(t *testing.T) {
		s, warnings, err := serverFrom(t, string(server))
		if err != nil || len(warnings) > 0 || !DiffServer(s, defaultServer()).Empty() {
			t.Errorf("%+v, %v, %v", s, warnings, err)
		}
	})
	t.Run("server uncommented", func(t *testing.T) {
		text := uncomment(string(server))
		mentions(t, text, serverKeys())
		s, _, err := serverFrom(t, text)
		if err != nil {
			t.Fatal(err)
		}
		want := defaultServer()
		want.Advertise = "tunnel.example.net:7000"
		want.ProxyAdvertise = "tunnel.example.net:9001"
		if diff := DiffServer(want, s); !diff.Empty() {
			t.Errorf("the comments show no defaults for %+v", diff)
		}
	})
	// The client as shipped is a form to fill in: it says what is missing.
	t.Run("client as shipped", func(t *testing.T) {
		_, _, err := clientFrom(t, string(client))
		if got := lines(t, err, ""); len(got) != 2 || !strings.Contains(err.Error(), "cproxy-client join") {
			t.Error(got)
		}
	})
	t.Run("client uncommented", func(t *testing.T) {
		text := uncomment(string(client))
		mentions(t, text, clientKeys())
		text = strings.ReplaceAll(text, "\ntoken =", "\n#token =")
		text = strings.ReplaceAll(text, "\nca_file =", "\n#ca_file =")
		dir := write(t, map[string]string{"client.toml": text, "token": testToken + "\n"})
		c, warnings, err := LoadClient(Source{
			Path:    filepath.Join(dir, "client.toml"),
			Environ: []string{"CPROXY_CLIENT_TOKEN_FILE=" + filepath.Join(dir, "token")},
		})
		if err != nil || len(warnings) > 0 || len(c.Tunnels) != 3 {
			t.Errorf("%+v, %v, %v", c, warnings, err)
		}
	})
}

// uncomment turns the commented settings ("#key = value", "#[table]"; prose has
// a space after the #) into settings.
func uncomment(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if after, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(after, " ") {
			line = after
		}
		out.WriteString(line)
	}
	return out.String()
}

func mentions(t *testing.T, text string, keys []key) {
	t.Helper()
	for _, k := range keys {
		if !strings.Contains("\n"+text, "\n"+lastPart(k.path)+" = ") {
			t.Errorf("%s is not mentioned", k.path)
		}
	}
}
