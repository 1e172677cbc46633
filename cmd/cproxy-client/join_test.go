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
	if code, _, stderr = execute("", "join", "--config", path, "--force"); code != cli.ExitOK || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if cfg, _, err = config.LoadClient(config.Source{Path: path}); err != nil || cfg.Name != "other" || len(cfg.Pins) > 0 {
		t.Errorf("the new file says %+v, %v", cfg, err)
	}
	if code, _, stderr = execute("", "join", "--config", path+"/none/c.toml"); code != cli.ExitFailure || strings.Contains(stderr, other.Secret.Reveal()) {
		t.Errorf("no folder: exit code %d: %s", code, stderr)
	}
}

// Servers and pins that a join string does not have are not lost in silence.
func TestJoinWarnsOfReplacedLists(t *testing.T) {
	path := write(t, "client.toml", "server = [\"a:7000\", \""+someJoin().Address+"\", \"b:7000\"]\npin = [\"sha256:x\", \"sha256:y\"]\ntoken = \"a:b\"\n")
	code, _, stderr := execute(someJoin().Reveal(), "join", "-", "--config", path)
	if code != cli.ExitOK || !strings.Contains(stderr, "list of server") || !strings.Contains(stderr, "used: a:7000, b:7000\n") ||
		!strings.Contains(stderr, "list of pin") || !strings.Contains(stderr, "used: sha256:x, sha256:y\n") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// A new token replaces the old one and nothing else.
func TestJoinReplacesToken(t *testing.T) {
	old := "# mine\nname = \"office\" # kept\nserver = \"old:1\"\ntoken_file = \"/x\"\n\n[[tunnel]]\n# web\nname = \"web\"\nlocal = 8080\n"
	path := write(t, "client.toml", old)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link.toml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := execute(someJoin().Reveal(), "join", "-", "--config", link)
	if code != cli.ExitOK || !strings.Contains(out, "check --config "+link) || !strings.Contains(stderr, "commented out: token_file") {
		t.Fatalf("exit code %d: %s%s", code, out, stderr)
	}
	j := someJoin()
	want := "# mine\nname = \"office\" # kept\nserver = \"" + j.Address + "\"\n#token_file = \"/x\"\npin = \"" + j.Pin.String() + "\"\ntoken = \"" +
		identity.FormatCredential(j.Name, j.Secret) + "\"\n\n[[tunnel]]\n# web\nname = \"web\"\nlocal = 8080\n"
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Error("the link was replaced")
	}
	if cfg, _, err := config.LoadClient(config.Source{Path: path}); err != nil || len(cfg.Tunnels) != 1 || cfg.Token.Reveal() != identity.FormatCredential(j.Name, j.Secret) {
		t.Errorf("%+v, %v", cfg, err)
	}
	if code, _, stderr = execute(j.Reveal(), "join", "-", "--config", path, "--force"); code != cli.ExitOK || !strings.Contains(stderr, "tunnels are lost: web") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	bad := write(t, "bad.toml", "server = [")
	if code, _, stderr = execute(j.Reveal(), "join", "-", "--config", bad); code != cli.ExitUsage || !strings.Contains(stderr, "--force") {
		t.Errorf("a damaged file: exit code %d: %s", code, stderr)
	}
	if got, _ := os.ReadFile(bad); string(got) != "server = [" {
		t.Errorf("a damaged file became %q", got)
	}
}

// The packaged configuration can be joined as it is.
func TestJoinPackagedConfiguration(t *testing.T) {
	text, err := os.ReadFile("../../packaging/config/client.toml")
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, "client.toml", string(text))
	if code, _, stderr := execute(someJoin().Reveal(), "join", "-", "--config", path); code != cli.ExitOK || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	got, _ := os.ReadFile(path)
	if n := strings.Count(string(got), "\n") - strings.Count(string(text), "\n"); n != 3 {
		t.Errorf("%d lines more, want 3:\n%s", n, got)
	}
	if _, _, err := config.LoadClient(config.Source{Path: path}); err != nil {
		t.Error(err)
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
