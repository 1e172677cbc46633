package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seeds are files of every sort of mistake.
func seeds(f *testing.F) {
	f.Helper()
	for _, text := range []string{
		"", "\n\n", "a", "a =", "a = 1\na = 2", "[a]\n[a]\nb = 1", "[[a]]\n[a]", "[limits]\nports = [1, \"2-3\",\n{a=1}]",
		"limits = 5\n[limits]\nmax_conns = 1", "tunnel = 5", "tunnel = [[[]]]", "tunnel = [{name='a',local=1},\n{name='a'}]",
		"[[tunnel]]\n[tunnel.bind]\n[[tunnel]]\nname = 1", "\"limits.ports\" = 1\n\"\" = 2\n'\\u0000' = 3",
		"grace = 1979-05-27T07:32:00Z", "grace = \"\"\"\n1s\"\"\"\n[x", "loops = 9223372036854775808", "loops = 1e99999", "\r", "\xff\xfe", "a.b.c.d = {e.f = [{}]}",
		"[limits\nports = 1\n[pool]\nmax = x\n", minimal, minimal + "server = ['a:1', 2, 'a:1']\npin = [[]]", minimal + "[[tunnel]]\nname = 'x'\nlocal = 'unix:/x'\nbind = '::'\n",
	} {
		f.Add([]byte(text))
	}
}

// FuzzLoad feeds any bytes as main file and as drop-in of both daemons.
func FuzzLoad(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "c.toml")
		if err := os.Mkdir(filepath.Join(dir, "c.d"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{path, filepath.Join(dir, "c.d", "1.toml")} {
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, warnings, err := LoadServer(Source{Path: path})
		checkFuzzed(t, dir, s != nil, warnings, err)
		if s != nil && !DiffServer(s, s).Empty() {
			t.Error("a configuration differs from itself")
		}
		c, warnings, err := LoadClient(Source{Path: path})
		checkFuzzed(t, dir, c != nil, warnings, err)
		if c != nil && !DiffClient(c, c).Empty() {
			t.Error("a configuration differs from itself")
		}
	})
}

func checkFuzzed(t *testing.T, dir string, loaded bool, warnings []Problem, err error) {
	t.Helper()
	if loaded == (err != nil) {
		t.Errorf("loaded is %v with error %v", loaded, err)
	}
	var all *Error
	if err != nil {
		all = err.(*Error) //nolint:errorlint // that is the promise under test
		if len(all.Problems) == 0 {
			t.Error("an error without problems")
		}
		warnings = append(warnings, all.Problems...)
	}
	for _, p := range warnings {
		// Only what is missing altogether has no line.
		missing := strings.HasPrefix(p.Message, "is missing") || strings.HasPrefix(p.Message, "there is none")
		if !strings.HasPrefix(p.File, dir) || (p.Line < 1 && !missing) {
			t.Errorf("no place: %+v", p)
		}
		if p.Message == "" || strings.ContainsAny(p.Message, "\n\r") {
			t.Errorf("bad message: %q", p.Message)
		}
	}
}

// FuzzVariable feeds any text as the value of each variable.
func FuzzVariable(f *testing.F) {
	for _, text := range []string{"", ",", "1-2,3", "::,0.0.0.0", "5s", "-1", "host:1", "/abs", "debug", "json"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, value string) {
		for _, k := range serverKeys() {
			_, _, err := LoadServer(Source{Environ: []string{serverSchema().envName(k.path) + "=" + value}})
			if err == nil {
				continue
			}
			for _, p := range err.(*Error).Problems { //nolint:errorlint // that is the promise under test
				if !strings.HasPrefix(p.File, "environment variable CPROXY_SERVER_") || p.Key != k.path {
					t.Errorf("%s=%q: %v", k.path, value, p)
				}
			}
		}
	})
}
