//go:build linux

package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/identity"
)

func someJoin() identity.Join {
	return identity.Join{Name: "office", Secret: identity.TokenSecret{1, 2, 3}, Address: "tunnel.example:7000", Pin: &identity.Pin{4, 5}}
}

func TestReadJoin(t *testing.T) {
	text := someJoin().Reveal()
	file := write(t, "join.txt", text+"\n")
	tests := []struct {
		name, argument, stdin, variable string
		warn                            bool
		problem                         string
	}{
		{name: "standard input", argument: "-", stdin: text + "\n"},
		{name: "file", argument: "@" + file},
		{name: "variable", variable: text},
		{name: "argument before variable", argument: "-", stdin: text, variable: "cproxy://nonsense"},
		{name: "bare", argument: text, warn: true},
		{name: "nothing", problem: "CPROXY_JOIN"},
		{name: "missing file", argument: "@" + file + ".not", problem: "no such file"},
		{name: "empty input", argument: "-", problem: "copied whole"},
		{name: "long input", argument: "-", stdin: strings.Repeat("x", maxJoin+1), problem: "too long"},
		{name: "damaged", argument: "-", stdin: strings.Replace(text, "sha256", "sha1", 1), problem: "pin is damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stderr strings.Builder
			j, err := readJoin(tt.argument, environment{strings.NewReader(tt.stdin), tt.variable, &stderr})
			if tt.problem != "" {
				exit, ok := errors.AsType[*cli.ExitError](err)
				if !ok || exit.Code != cli.ExitUsage || !strings.Contains(err.Error(), tt.problem) {
					t.Fatalf("got %v, want %q as an error of usage", err, tt.problem)
				}
				if strings.Contains(err.Error(), someJoin().Secret.Reveal()) {
					t.Errorf("the error shows the secret: %v", err)
				}
				return
			}
			if err != nil || j.Reveal() != text {
				t.Errorf("got %v, %v", j, err)
			}
			if warned := strings.HasPrefix(stderr.String(), "warning: "); warned != tt.warn || strings.Contains(stderr.String(), "cproxy://") {
				t.Errorf("stderr %q", &stderr)
			}
		})
	}
}

func TestReadJoinFails(t *testing.T) {
	broken := iotest.ErrReader(errors.New("broken pipe"))
	if _, err := readJoin("-", environment{stdin: broken}); err == nil || !strings.Contains(err.Error(), "standard input: broken pipe") {
		t.Errorf("got %v", err)
	}
}

func TestJoinCommand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "client.toml")
	code, out, stderr := execute(someJoin().Reveal(), "join", "-", "--config", path)
	if code != cli.ExitOK || !strings.Contains(out, "cproxy-client run --config "+path) {
		t.Fatalf("exit code %d: %s%s", code, out, stderr)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	cfg, _, err := config.LoadClient(config.Source{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if want := someJoin(); !slices.Equal(cfg.Servers, []string{want.Address}) || !slices.Equal(cfg.Pins, []string{want.Pin.String()}) || cfg.Name != want.Name ||
		cfg.Token.Reveal() != identity.FormatCredential(want.Name, want.Secret) {
		t.Errorf("the file says %+v", cfg)
	}

	other := someJoin()
	other.Name, other.Pin = "other", nil
	t.Setenv(joinVariable, other.Reveal())
	if code, _, stderr = execute("", "join", "--config", path); code != cli.ExitUsage || !strings.Contains(stderr, "--force") {
		t.Errorf("an existing file: exit code %d: %s", code, stderr)
	}
	if code, _, stderr = execute("", "join", "--config", path, "--force"); code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if cfg, _, err = config.LoadClient(config.Source{Path: path}); err != nil || cfg.Name != "other" || len(cfg.Pins) > 0 {
		t.Errorf("the new file says %+v, %v", cfg, err)
	}
	if code, _, stderr = execute("", "join", "--config", path+"/none/c.toml"); code != cli.ExitFailure || strings.Contains(stderr, other.Secret.Reveal()) {
		t.Errorf("no folder: exit code %d: %s", code, stderr)
	}
}

// What the configuration suggests in comments must work.
func TestWrittenExampleIsValid(t *testing.T) {
	text := strings.NewReplacer("#[[", "[[", "#name", "name", "#local", "local", "#remote", "remote").Replace(configuration(someJoin()))
	cfg, warnings, err := config.LoadClient(config.Source{Path: write(t, "client.toml", text)})
	if err != nil || len(warnings) > 0 || len(cfg.Tunnels) != 1 || cfg.Tunnels[0].RemotePorts.First != 20080 {
		t.Errorf("%+v, %v, %v", cfg, warnings, err)
	}
}
