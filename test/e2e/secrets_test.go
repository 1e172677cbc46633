package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
)

// spellings are the ways in which a secret could be written.
func spellings(join string) ([]string, error) {
	j, err := identity.ParseJoin(join)
	if err != nil {
		return nil, err
	}
	return []string{
		j.Secret.Reveal(),
		j.Secret.Reveal()[:20], // a part is too much as well
		j.Secret.Reveal()[20:],
		base64.StdEncoding.EncodeToString(j.Secret[:])[:42],
		hex.EncodeToString(j.Secret[:]),
		strings.ToUpper(hex.EncodeToString(j.Secret[:])),
		fmt.Sprintf("%d", j.Secret[:]),
		fmt.Sprintf("%q", j.Secret[:]),
	}, nil
}

// betrays tells whether a text holds the secret of a join string.
func betrays(join, text string) (bool, error) {
	all, err := spellings(join)
	if err != nil {
		return false, err
	}
	for _, s := range all {
		if strings.Contains(text, s) {
			return true, nil
		}
	}
	return false, nil
}

// keepsSecrets checks what a process of the world has written. All of them log
// at level debug.
func (w *world) keepsSecrets(p *process) {
	if w.join == "" {
		return
	}
	told, err := betrays(w.join, p.stdout.String()+p.stderr.String())
	if err != nil {
		w.t.Error(err)
	}
	if told {
		w.t.Errorf("%s has written the secret of the token", p.name)
	}
}

// seen is what every user of the host, or every child, can see of a process.
func seen(t *testing.T, p *process) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid(), name))
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range children {
		if text, err := os.ReadFile(name); err == nil && len(bytes.TrimSpace(text)) > 0 {
			t.Errorf("%s has child processes %s", p.name, text)
		}
	}
	return b.String()
}

func TestSecretsOfProcesses(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	w.write("join.txt", w.join+"\n")
	fromFile := w.start("tcp from a file", 0, "cproxy-client", "tcp", "8080", "--name", "one", "--join", "@"+w.path("join.txt"), "--log-level", "debug")
	w.address(fromFile, "one")
	fromFile.files = w.rested(fromFile)
	for _, p := range []*process{w.server, w.client, fromFile} {
		told, err := betrays(w.join, seen(t, p))
		if err != nil {
			t.Fatal(err)
		}
		if told {
			t.Errorf("%s shows the secret in its command line or environment", p.name)
		}
	}
	// Every kind of line that may name a credential; end looks for it.
	ctl := w.ctl()
	wrong := strings.Replace(w.join, "site:", "nobody:", 1)
	w.writeClient("wrong.toml", wrong, "", nil)
	refused := w.start("refused", 0, "cproxy-client", "run", "--config", w.path("wrong.toml"), "--log-level", "debug")
	w.wantExit(refused, 3)
	w.token("second", ctl)
	w.run("", "cproxy-server", "token", "revoke", "site", "--config", w.path("server.toml"))
	w.log(w.client, 0, `refused \(bad credential\)`)
	w.signal(w.client, syscall.SIGHUP)
	if tokens := w.run("", "cproxy-server", "token", "list", "--config", w.path("server.toml")); !strings.Contains(tokens, "second") {
		t.Errorf("the list lacks a token:\n%s", tokens)
	}
}

// Mistakes around a secret are reported without it.
func TestSecretsOfMistakes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	join := "cproxy://site:" + identity.NewTokenSecret().Reveal() + "@127.0.0.1:7000"
	j, err := identity.ParseJoin(join)
	if err != nil {
		t.Fatal(err)
	}
	credential := identity.FormatCredential(j.Name, j.Secret)
	files := map[string]string{
		"never closed":      "server = \"a:1\"\ntoken = \"" + credential + "\n",
		"no quotes":         "server = \"a:1\"\ntoken = " + credential + "\n",
		"list":              "server = \"a:1\"\ntoken = [\"" + credential + "\"]\n",
		"table":             "server = \"a:1\"\n[token]\nvalue = \"" + credential + "\"\n",
		"twice":             "server = \"a:1\"\ntoken = \"" + credential + "\"\ntoken = \"" + credential + "\"\n",
		"as a key":          "server = \"a:1\"\n\"" + credential + "\" = 1\n",
		"no name":           "server = \"a:1\"\ntoken = \"" + j.Secret.Reveal() + "\"\n",
		"join string":       "server = \"a:1\"\ntoken = \"" + join + "\"\n",
		"too long":          "server = \"a:1\"\ntoken = \"" + credential + "x\"\n",
		"control character": "server = \"a:1\"\ntoken = \"" + credential + "\x01\"\n",
		"in the server":     "server = \"" + join + "\"\ntoken = \"" + credential + "\"\n",
		"as the token file": "server = \"a:1\"\ntoken_file = \"" + credential + "\"\n",
		"as the pin":        "server = \"a:1\"\ntoken = \"a:b\"\npin = \"" + join + "\"\n",
		"as a tunnel":       "server = \"a:1\"\ntoken = \"a:b\"\n[[tunnel]]\nname = \"" + join + "\"\nlocal = \"" + join + "\"\n",
		"beside a file":     "server = \"a:1\"\ntoken_file = \"/nonexistent\"\ntoken = \"" + credential + "\"\n",
	}
	for name, text := range files {
		t.Run("file: "+name, func(t *testing.T) {
			path := filepath.Join(dir, "client.toml")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			wantSecretive(t, join, "", "check", "--config", path)
		})
	}
	joins := map[string]string{
		"other scheme":    strings.Replace(join, "cproxy://", "http://", 1),
		"no port":         strings.TrimSuffix(join, ":7000"),
		"secret too long": strings.Replace(join, "@", "x@", 1),
		"second at sign":  strings.Replace(join, "@", "@"+j.Secret.Reveal()+"@", 1),
		"no name":         strings.Replace(join, "site", "", 1),
		"in the query":    join + "?" + j.Secret.Reveal(),
		"in the pin":      join + "?pin=sha256:" + j.Secret.Reveal() + "x",
		"in the port":     "cproxy://site:short@127.0.0.1:" + j.Secret.Reveal(),
		"two lines":       join + "\n" + join,
	}
	for name, text := range joins {
		t.Run("join string: "+name, func(t *testing.T) {
			wantSecretive(t, join, text, "join", "-", "--config", filepath.Join(dir, "new.toml"))
			wantSecretive(t, join, text, "tcp", "8080", "--join", "-")
		})
	}
}

// wantSecretive runs a client command that has to fail as a mistake of its user,
// without a word of the secret.
func wantSecretive(t *testing.T, join, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command("cproxy-client", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 2 {
		t.Errorf("exit code %d (%v), want 2:\n%s", code, err, out)
	}
	told, err := betrays(join, string(out))
	if err != nil {
		t.Fatal(err)
	}
	if told {
		t.Errorf("the message holds the secret:\n%s", out)
	}
}
