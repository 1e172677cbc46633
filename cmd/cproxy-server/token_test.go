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
