package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	testSecret = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	testToken  = "web:" + testSecret
	testPin    = "sha256:" + testSecret
	minimal    = "server = \"example.net:7000\"\npin = \"" + testPin + "\"\ntoken = \"" + testToken + "\"\n"
)

// write puts files into a new folder, 0600, and gives the folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func serverFrom(t *testing.T, text string) (*Server, []Problem, error) {
	t.Helper()
	dir := write(t, map[string]string{"server.toml": text})
	return LoadServer(Source{Path: filepath.Join(dir, "server.toml")})
}

func clientFrom(t *testing.T, text string) (*Client, []Problem, error) {
	t.Helper()
	dir := write(t, map[string]string{"client.toml": text})
	return LoadClient(Source{Path: filepath.Join(dir, "client.toml")})
}

// lines gives the problems of err as text, with dir taken out.
func lines(t *testing.T, err error, dir string) []string {
	t.Helper()
	var all *Error
	if !errors.As(err, &all) {
		t.Fatalf("error is %T (%v), not *Error", err, err)
	}
	return text(all.Problems, dir)
}

func text(problems []Problem, dir string) []string {
	var out []string
	for _, p := range problems {
		out = append(out, strings.ReplaceAll(p.String(), dir+"/", ""))
	}
	return out
}

// wantLines compares by prefix: a want may stop before the advice.
func wantLines(t *testing.T, got, want []string) {
	t.Helper()
	same := len(got) == len(want)
	for i := 0; same && i < len(want); i++ {
		same = strings.HasPrefix(got[i], want[i])
	}
	if !same {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
