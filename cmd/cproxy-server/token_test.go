//go:build linux

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/identity"
)

// tokenAdd runs `token add` in a folder.
func tokenAdd(t *testing.T, dir, advertise string) (code int, stdout, stderr string) {
	t.Helper()
	config := filepath.Join(dir, "server.toml")
	if err := os.WriteFile(config, []byte("state_dir = \""+filepath.Join(dir, "state")+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, log bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&log)
	code = cli.Main(root, []string{"token", "add", "site", "--config", config, "--advertise", advertise}, &log)
	return code, out.String(), log.String()
}

// A token whose join string nobody could use is not made.
func TestAdvertiseIsCheckedBeforeTheTokenIsMade(t *testing.T) {
	for name, advertise := range map[string]string{
		"a blank":             "tunnel example:7000",
		"a user":              "me@tunnel.example:7000",
		"a path":              "tunnel.example/a:7000",
		"no such address":     "300.1.2.3:7000",
		"an interface":        "[fe80::1%eth0]:7000",
		"a hyphen at an edge": "-tunnel.example:7000",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			code, stdout, stderr := tokenAdd(t, dir, advertise)
			if code != cli.ExitUsage || stdout != "" || !strings.Contains(stderr, "advertise") {
				t.Errorf("exit %d, printed %q, said %q", code, stdout, stderr)
			}
			if _, err := os.Stat(filepath.Join(dir, "state", "tokens.toml")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a token was made all the same: %v", err)
			}
		})
	}
	dir := t.TempDir()
	code, stdout, stderr := tokenAdd(t, dir, "tunnel.example:7000")
	if join, err := identity.ParseJoin(strings.TrimSpace(stdout)); code != cli.ExitOK || err != nil || join.Address != "tunnel.example:7000" {
		t.Errorf("exit %d, %v, said %q", code, err, stderr)
	}
}

// serverCommand runs a command of the server in a folder with a configuration.
func serverCommand(t *testing.T, dir, text string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	config := filepath.Join(dir, "server.toml")
	if err := os.WriteFile(config, []byte("state_dir = \""+filepath.Join(dir, "state")+"\"\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, log bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&log)
	code = cli.Main(root, append(args, "--config", config), &log)
	return code, out.String(), log.String()
}

func TestGrantsOutsideTheLimitsAreToldAtOnce(t *testing.T) {
	const text = "advertise = \"a.example:7000\"\npublic_bind = \"127.0.0.1\"\nlimits.ports = \"2000-2100\"\n"
	for name, test := range map[string]struct {
		flags []string
		warns string
	}{
		"inside":          {[]string{"--ports", "2000-2050", "--bind", "127.0.0.1"}, ""},
		"outside":         {[]string{"--ports", "443"}, "no port of --ports 443 is within limits.ports of the server (2000-2100)"},
		"half":            {[]string{"--ports", "2050-2200"}, "not every port of --ports 2050-2200"},
		"another address": {[]string{"--bind", "127.0.0.2"}, "--bind 127.0.0.2 is not among public_bind"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := serverCommand(t, t.TempDir(), text, append([]string{"token", "add", "site"}, test.flags...)...)
			if code != cli.ExitOK || strings.Contains(stderr, "warning: ") != (test.warns != "") || !strings.Contains(stderr, test.warns) {
				t.Errorf("exit %d: %s", code, stderr)
			}
		})
	}
}

// A revocation that failed must not look like one.
func TestFailedRevocationSaysThatTheTokenIsValid(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := serverCommand(t, dir, "advertise = \"a.example:7000\"\n", "token", "add", "site"); code != cli.ExitOK {
		t.Fatal(stderr)
	}
	if code, _, stderr := serverCommand(t, dir, "", "token", "revoke", "other"); code != cli.ExitFailure || strings.Contains(stderr, "STILL VALID") {
		t.Errorf("a token that is not there: exit %d: %s", code, stderr)
	}
	tokens := filepath.Join(dir, "state", "tokens.toml")
	if err := os.WriteFile(tokens, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := serverCommand(t, dir, "", "token", "revoke", "site"); code != cli.ExitFailure || !strings.Contains(stderr, "the token site is STILL VALID") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if code, _, stderr := serverCommand(t, dir, "", "token", "revoke"); code != cli.ExitUsage || !strings.Contains(stderr, "error: NAME is missing") {
		t.Errorf("no name: exit %d: %s", code, stderr)
	}
}
