package identity_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
)

var someHash = strings.Repeat("0a", 32)

func tokensPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "tokens.toml")
}

func TestLoadTokens(t *testing.T) {
	path := tokensPath(t)
	must(t, os.WriteFile(path, []byte(`
# comments are fine
[[token]]
name = "web"
sha256 = "`+someHash+`"
created = 2026-11-03T10:00:00Z
ports = ["20000-20100", "8080"]
bind = ["127.0.0.1", "::1", "::ffff:192.0.2.1"]
max_tunnels = 3
rate_up = "10MB"
rate_down = 4096

[[token]]
name = "plain"
sha256 = "`+strings.ToUpper(someHash)+`"
`), 0o600))
	tokens, err := identity.LoadTokens(path)
	if err != nil {
		t.Fatalf("LoadTokens: %v", err)
	}
	web, ok := tokens.Find("web")
	if !ok || len(tokens) != 2 || web.Hash[0] != 0x0a || web.Created.Year() != 2026 {
		t.Fatalf("tokens = %+v", tokens)
	}
	want := identity.Grants{
		Ports:      []identity.PortRange{{First: 20000, Last: 20100}, {First: 8080, Last: 8080}},
		Bind:       []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("192.0.2.1")},
		MaxTunnels: 3,
		RateUp:     10_000_000,
		RateDown:   4096,
	}
	if !reflect.DeepEqual(web.Grants, want) {
		t.Errorf("grants = %+v, want %+v", web.Grants, want)
	}
	plain, ok := tokens.Find("plain")
	if !ok || !reflect.DeepEqual(plain.Grants, identity.Grants{}) || plain.Hash != web.Hash {
		t.Errorf("plain = %+v", plain)
	}
	if _, ok := tokens.Find("other"); ok {
		t.Error("found a token that is not there")
	}
}

func TestLoadTokensMissingFile(t *testing.T) {
	if tokens, err := identity.LoadTokens(tokensPath(t)); err != nil || len(tokens) != 0 {
		t.Errorf("LoadTokens = %v, %v, want none", tokens, err)
	}
}

func TestLoadTokensRefuses(t *testing.T) {
	good := "[[token]]\nname = \"web\"\nsha256 = \"" + someHash + "\"\n"
	tests := []struct {
		name, text string
		says       []string
	}{
		{"no TOML", good + "= 1\n", []string{":4: "}},
		{"unknown keys", good + "port = []\n[server]\n", []string{":4: unknown key \"token.port\"", ":5: unknown key \"server\""}},
		{"wrong type", good + "ports = 8080\n", []string{":4: "}},
		{"duplicate name", good + "\n" + good, []string{":6: token \"web\" is there twice"}},
		{"short hash", strings.Replace(good, "0a", "0", 1), []string{":3: sha256"}},
		{"long hash", strings.Replace(good, "0a", "0a0a", 1), []string{":3: sha256"}},
		{"no hexadecimal", strings.Replace(good, "0a", "0g", 1), []string{":3: sha256"}},
		{"no hash", "[[token]]\nname = \"web\"\n", []string{":1: sha256"}},
		{"no name", "\n[[token]]\nsha256 = \"" + someHash + "\"\n", []string{":2: token name"}},
		{"bad name", strings.Replace(good, "web", "w b", 1), []string{":2: token name"}},
		{"bad port", good + "ports = [\"8080\", \"x\"]\n", []string{":4: port range \"x\""}},
		{"port zero", good + "ports = [\"0-10\"]\n", []string{":4: port range \"0-10\""}},
		{"reversed range", good + "ports = [\"9-8\"]\n", []string{":4: ", "write 8-9"}},
		{"bad address", good + "bind = [\"localhost\"]\n", []string{":4: \"localhost\""}},
		{"zone", good + "bind = [\"fe80::1%eth0\"]\n", []string{":4: \"fe80::1%eth0\""}},
		{"negative count", good + "max_tunnels = -1\n", []string{":4: max_tunnels"}},
		{"rate in bits", good + "rate_up = \"10Mb\"\n", []string{":4: rate_up: rate \"10Mb\"", "such as 10MB"}},
		{"negative rate", good + "\nrate_down = -1\n", []string{":5: rate_down: rate \"-1\""}},
		{"rate of another type", good + "rate_down = [1]\nrate_up = 0.5\n", []string{":4: rate_down: ", ":5: rate_up: "}},
		{
			"all at once", good + "bind = [\"x\"]\nports = [\"y\"]\n\n" + good + "max_tunnels = -1\n",
			[]string{":4: \"x\"", ":5: port range \"y\"", ":8: token", ":10: max_tunnels"},
		},
		{"inline", "token = [{name = \"web\"}]\n", []string{"token 1: sha256"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := tokensPath(t)
			must(t, os.WriteFile(path, []byte(tt.text), 0o600))
			tokens, err := identity.LoadTokens(path)
			if err == nil {
				t.Fatalf("accepted: %+v", tokens)
			}
			for _, want := range append(tt.says, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			// What cannot be read must not be written over either.
			if _, err := identity.AddToken(path, "other", identity.Grants{}); err == nil {
				t.Error("AddToken changed a damaged file")
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != tt.text {
				t.Errorf("the file is now %q, %v", got, err)
			}
		})
	}
}

func TestLoadTokensRefusesFilesEverybodyMayWrite(t *testing.T) {
	path := tokensPath(t)
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Chmod(path, 0o602))
	if _, err := identity.LoadTokens(path); err == nil || !strings.Contains(err.Error(), "chmod o-w") {
		t.Errorf("LoadTokens = %v, want advice", err)
	}
}

func TestAddAndRevoke(t *testing.T) {
	path := tokensPath(t)
	grants := identity.Grants{
		Ports:      []identity.PortRange{{First: 20000, Last: 20100}, {First: 7, Last: 7}},
		Bind:       []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::1")},
		MaxTunnels: 2,
		RateUp:     1_500_000,
		RateDown:   1 << 30,
	}
	secret, err := identity.AddToken(path, "web", grants)
	if err != nil {
		t.Fatalf("AddToken: %v", err)
	}
	if _, err := identity.AddToken(path, "db", identity.Grants{}); err != nil {
		t.Fatalf("AddToken: %v", err)
	}
	if _, err := identity.AddToken(path, "web", identity.Grants{}); err == nil || !strings.Contains(err.Error(), "revoke") {
		t.Errorf("adding a name twice: %v, want advice to revoke", err)
	}
	tokens, err := identity.LoadTokens(path)
	must(t, err)
	web, _ := tokens.Find("web")
	if len(tokens) != 2 || !secret.Matches(web.Hash) || web.Created.IsZero() || !reflect.DeepEqual(web.Grants, grants) {
		t.Errorf("tokens = %+v", tokens)
	}
	text, err := os.ReadFile(path)
	must(t, err)
	if strings.Contains(string(text), secret.Reveal()) {
		t.Error("the file holds the secret itself")
	}
	wantModes(t, filepath.Dir(path), map[string]os.FileMode{"tokens.toml": 0o600})

	must(t, identity.RevokeToken(path, "web"))
	if err := identity.RevokeToken(path, "web"); !errors.Is(err, identity.ErrNoSuchToken) {
		t.Errorf("revoking twice: %v, want ErrNoSuchToken", err)
	}
	tokens, err = identity.LoadTokens(path)
	if err != nil || len(tokens) != 1 || tokens[0].Name != "db" {
		t.Errorf("after revoke: %+v, %v", tokens, err)
	}
}

func TestAddTokenRefuses(t *testing.T) {
	path := tokensPath(t)
	tests := map[string]struct {
		name   string
		grants identity.Grants
	}{
		"name":          {name: "a b"},
		"empty range":   {name: "a", grants: identity.Grants{Ports: []identity.PortRange{{First: 9, Last: 8}}}},
		"port zero":     {name: "a", grants: identity.Grants{Ports: []identity.PortRange{{First: 0, Last: 8}}}},
		"no address":    {name: "a", grants: identity.Grants{Bind: make([]netip.Addr, 1)}},
		"zone":          {name: "a", grants: identity.Grants{Bind: []netip.Addr{netip.MustParseAddr(`fe80::1%a"b`)}}},
		"tunnel number": {name: "a", grants: identity.Grants{MaxTunnels: -1}},
		"rate":          {name: "a", grants: identity.Grants{RateDown: -1}},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			if _, err := identity.AddToken(path, tt.name, tt.grants); err == nil {
				t.Error("accepted")
			}
			if _, err := os.Stat(path); err == nil {
				t.Error("a file was written")
			}
		})
	}
	if _, err := identity.AddToken(filepath.Join(path, "missing", "tokens.toml"), "a", identity.Grants{}); err == nil {
		t.Error("added to a directory that does not exist")
	}
}

func TestConcurrentAddsLoseNothing(t *testing.T) {
	path := tokensPath(t)
	cmds := make([]*exec.Cmd, 4)
	for i := range cmds {
		cmds[i] = child(t, "add", path, fmt.Sprint("process", i))
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if _, err := identity.AddToken(path, fmt.Sprint("goroutine", i), identity.Grants{}); err != nil {
				t.Errorf("add: %v", err)
			}
		})
	}
	runTogether(t, cmds)
	wg.Wait()
	if tokens, err := identity.LoadTokens(path); err != nil || len(tokens) != 20 {
		t.Errorf("%d tokens, %v, want 20", len(tokens), err)
	}
}

func TestPortRange(t *testing.T) {
	for text, want := range map[string]identity.PortRange{
		"8080":        {First: 8080, Last: 8080},
		"1-65535":     {First: 1, Last: 65535},
		"20000-20100": {First: 20000, Last: 20100},
	} {
		got, err := identity.ParsePortRange(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParsePortRange(%q) = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-", "0", "1-", "-1", "65536", "2-1", "1-2-3", " 1", "+1", "1 - 2", "0x1", "http"} {
		if got, err := identity.ParsePortRange(text); err == nil {
			t.Errorf("ParsePortRange(%q) = %v, want an error", text, got)
		}
	}
}

func TestGrantsAllow(t *testing.T) {
	addr := netip.MustParseAddr
	var all identity.Grants
	some := identity.Grants{
		Ports: []identity.PortRange{{First: 10, Last: 20}, {First: 30, Last: 30}},
		Bind:  []netip.Addr{addr("127.0.0.1"), addr("::")},
	}
	for port, want := range map[uint16]bool{9: false, 10: true, 20: true, 21: false, 30: true, 0: false} {
		if got := some.AllowsPort(port); got != want {
			t.Errorf("AllowsPort(%d) = %v, want %v", port, got, want)
		}
		if !all.AllowsPort(port) {
			t.Errorf("no grant refuses port %d", port)
		}
	}
	for text, want := range map[string]bool{
		"127.0.0.1": true, "::ffff:127.0.0.1": true, "127.0.0.2": false, "::": true, "::1": false, "0.0.0.0": false,
	} {
		if got := some.AllowsBind(addr(text)); got != want {
			t.Errorf("AllowsBind(%s) = %v, want %v", text, got, want)
		}
		if !all.AllowsBind(addr(text)) {
			t.Errorf("no grant refuses %s", text)
		}
	}
}
