// Package arrows tests the shape of the source tree: which package may import
// which, that every package says what it is for, and that files and functions
// stay short enough to read.
package arrows

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	maxFileLines = 600
	maxFuncLines = 70
)

// pkg is the part of `go list -json` that the tests need.
type pkg struct {
	ImportPath     string
	Dir            string
	Name           string
	Imports        []string
	Deps           []string
	GoFiles        []string
	CgoFiles       []string
	IgnoredGoFiles []string
	TestGoFiles    []string
	XTestGoFiles   []string
}

// files returns the paths of all Go files of the package, those for other
// platforms included.
func (p pkg) files() []string {
	var paths []string
	for _, names := range [][]string{p.GoFiles, p.CgoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles} {
		for _, name := range names {
			paths = append(paths, filepath.Join(p.Dir, name))
		}
	}
	return paths
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e",
		"-json=ImportPath,Dir,Name,Imports,Deps,GoFiles,CgoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var packages []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("decode the output of go list: %v", err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatal("go list found no package")
	}
	return packages
}

func TestArrows(t *testing.T) {
	packages := listPackages(t)
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			for _, p := range packages {
				for _, path := range r.violations(p) {
					t.Errorf("%s must not import %s: %s", p.ImportPath, path, r.reason)
				}
			}
		})
	}
}

// The rules themselves need a test: one with a typo would allow everything.
func TestRulesBite(t *testing.T) {
	tests := []struct {
		from, to string
		rule     string // the rule that forbids it; empty: allowed
	}{
		{"core/wire", "core/frame", "leaves stand alone"},
		{"core/identity", "core/config", "leaves stand alone"},
		{"core/wire", "google.golang.org/protobuf/proto", ""},
		{"core/relay", "core/frame", ""},
		{"core/relay", "core/record", ""},
		{"core/relay", "core/wire", "relay knows only bytes"},
		{"core/server", "core/relay", ""},
		{"core/server", "core/client", "the server does not know the client"},
		{"core/client", "core/server", "the client does not know the server"},
		{"core/client", "core/config", "configuration ends at the commands"},
		{"core/server", "cmd/internal/cli", "the core does not know its commands"},
		{"core/pluginhost", "github.com/hashicorp/go-plugin", ""},
		{"core/server", "github.com/hashicorp/go-plugin", "one package starts plugins"},
		{"cmd/cproxy-server", "github.com/hashicorp/go-plugin", "one package starts plugins"},
		{"plugins/sdk/serve", "github.com/hashicorp/go-plugin", ""},
		{"plugins/sdk/serve", "plugins/sdk", ""},
		{"plugins/sdk", "google.golang.org/grpc", "the SDK contract is plain values"},
		{"plugins/sdk", "plugins/proto", "the SDK contract is plain values"},
		{"plugins/auth-file", "core/wire", "plugins are outsiders"},
		{"plugins/auth-file", "plugins/sdk/serve", ""},
		{"core/config", "github.com/knadh/koanf/v2", ""},
		{"cmd/cproxy-server", "github.com/knadh/koanf/v2", "one package loads configuration"},
		{"cmd/cproxy-server", "github.com/spf13/cobra", ""},
		{"cmd/cproxy-server", "core/config", ""},
		{"core/server", "github.com/spf13/cobra", "one place parses command lines"},
		{"core/serverless", "core/client", ""},
	}
	for _, test := range tests {
		t.Run(test.from+" to "+test.to, func(t *testing.T) {
			p := pkg{ImportPath: module + test.from, Imports: []string{test.to}}
			if first, _, _ := strings.Cut(test.to, "/"); !strings.Contains(first, ".") {
				// Only indirectly, the harder case.
				p.Imports, p.Deps = nil, []string{module + test.to}
			}
			var got []string
			for _, r := range rules() {
				if len(r.violations(p)) > 0 {
					got = append(got, r.name)
				}
			}
			if test.rule == "" && len(got) > 0 {
				t.Errorf("forbidden by %q", got)
			}
			if test.rule != "" && !slices.Contains(got, test.rule) {
				t.Errorf("forbidden by %q, want %q among them", got, test.rule)
			}
		})
	}
}

func TestEveryRuleHasAReason(t *testing.T) {
	for _, r := range rules() {
		if r.name == "" || r.reason == "" || len(r.from) == 0 || len(r.deny) == 0 {
			t.Errorf("rule %q is incomplete", r.name)
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		paths := p.files()
		if len(p.GoFiles) > 0 {
			paths = nil
			for _, name := range p.GoFiles {
				paths = append(paths, filepath.Join(p.Dir, name))
			}
		}
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command "
		}
		documented := false
		for _, path := range paths {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Errorf("parse: %v", err)
				continue
			}
			documented = documented || strings.HasPrefix(file.Doc.Text(), want)
		}
		if !documented {
			t.Errorf("%s has no package comment that starts with %q", p.ImportPath, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, path := range p.files() {
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, problem := range sizeProblems(t, path, source) {
				t.Error(problem)
			}
		}
	}
}

// sizeProblems returns what is too long in a file. Test functions may be of
// any length, for most of a long one is a table.
func sizeProblems(t *testing.T, path string, source []byte) []string {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return []string{fmt.Sprintf("parse: %v", err)}
	}
	if ast.IsGenerated(file) {
		return nil
	}
	var problems []string
	if lines := bytes.Count(source, []byte("\n")); lines > maxFileLines {
		problems = append(problems, fmt.Sprintf("%s has %d lines, more than %d: split it by what it is about", path, lines, maxFileLines))
	}
	if strings.HasSuffix(path, "_test.go") {
		return problems
	}
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok {
			continue
		}
		lines := fset.Position(function.End()).Line - fset.Position(function.Pos()).Line + 1
		if lines > maxFuncLines {
			problems = append(problems, fmt.Sprintf("%s: %s has %d lines, more than %d: split it",
				fset.Position(function.Pos()), function.Name.Name, lines, maxFuncLines))
		}
	}
	return problems
}

func TestSizeProblems(t *testing.T) {
	function := func(lines int) string { return "func f() {" + strings.Repeat("\n", lines-1) + "}\n" }
	tests := []struct {
		name, path, source string
		want               int
	}{
		{"fits", "a.go", "package a\n" + function(maxFuncLines), 0},
		{"long function", "a.go", "package a\n" + function(maxFuncLines+1), 1},
		{"long test function", "a_test.go", "package a\n" + function(maxFuncLines+1), 0},
		{"long file", "a.go", "package a\n" + strings.Repeat("\n", maxFileLines), 1},
		{"long test file", "a_test.go", "package a\n" + strings.Repeat("\n", maxFileLines), 1},
		{"generated", "a.go", "// Code generated by x. DO NOT EDIT.\n\npackage a\n" + function(maxFileLines), 0},
		{"broken", "a.go", "package", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := sizeProblems(t, test.path, []byte(test.source)); len(got) != test.want {
				t.Errorf("%d problems, want %d: %q", len(got), test.want, got)
			}
		})
	}
}
