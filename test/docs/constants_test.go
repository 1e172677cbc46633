package docs

import (
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/relay"
)

// source is what a package declares, as far as it can be computed without the
// packages that it imports.
type source struct {
	constants map[string]*types.Const
}

// onlyTime resolves the import of package time, of which constants are made,
// and refuses all others: what depends on those is left out.
type onlyTime struct{}

func (onlyTime) Import(path string) (*types.Package, error) {
	if path != "time" {
		return nil, errors.New("not needed")
	}
	pkg := types.NewPackage("time", "time")
	name := types.NewTypeName(token.NoPos, pkg, "Duration", nil)
	duration := types.NewNamed(name, types.Typ[types.Int64], nil)
	pkg.Scope().Insert(name)
	for unit, value := range map[string]time.Duration{
		"Nanosecond": time.Nanosecond, "Microsecond": time.Microsecond, "Millisecond": time.Millisecond,
		"Second": time.Second, "Minute": time.Minute, "Hour": time.Hour,
	} {
		pkg.Scope().Insert(types.NewConst(token.NoPos, pkg, unit, duration, constant.MakeInt64(int64(value))))
	}
	pkg.MarkComplete()
	return pkg, nil
}

// load computes the constants of a package below core.
func load(t *testing.T, name string) source {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "core", name, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("there is no package core/%s: %v", name, err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	check := types.Config{Importer: onlyTime{}, Error: func(error) {}, IgnoreFuncBodies: true}
	pkg, _ := check.Check(name, fset, files, nil) // errors are expected, see source
	s := source{constants: make(map[string]*types.Const)}
	for _, name := range pkg.Scope().Names() {
		if c, ok := pkg.Scope().Lookup(name).(*types.Const); ok && c.Val().Kind() != constant.Unknown {
			s.constants[name] = c
		}
	}
	return s
}

// value gives a constant, or a default of relay.Settings, in the words of quantity.
func value(t *testing.T, sources map[string]source, name string) (int64, string) {
	t.Helper()
	if field, ok := strings.CutPrefix(name, "relay.Settings."); ok {
		v := reflect.ValueOf(relay.DefaultSettings()).FieldByName(field)
		if d, ok := reflect.TypeAssert[time.Duration](v); v.IsValid() && ok {
			return int64(d), "duration"
		}
		t.Errorf("%s is no setting", name)
		return 0, ""
	}
	pkg, short, _ := strings.Cut(name, ".")
	c := sources[pkg].constants[short]
	if c == nil {
		t.Errorf("the page names %s, which is no constant that can be computed", name)
		return 0, ""
	}
	n, exact := constant.Int64Val(constant.ToInt(c.Val()))
	if !exact {
		t.Errorf("%s is no whole number", name)
	}
	if c.Type().String() == "time.Duration" {
		return n, "duration"
	}
	return n, "number"
}

// quantity reads a value of the page, such as "64 KiB", "10 s" or "16".
func quantity(text string) (n int64, kind string, err error) {
	if text == "off" {
		return 0, "duration", nil
	}
	digits, unit, _ := strings.Cut(text, " ")
	n, err = strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, "", fmt.Errorf("read quantity: %w", err)
	}
	units := map[string]struct {
		factor int64
		kind   string
	}{
		"": {1, "number"}, "bytes": {1, "number"}, "KiB": {1 << 10, "number"}, "MiB": {1 << 20, "number"},
		"ms": {int64(time.Millisecond), "duration"}, "s": {int64(time.Second), "duration"},
		"min": {int64(time.Minute), "duration"}, "h": {int64(time.Hour), "duration"},
	}
	u, ok := units[unit]
	if !ok {
		return 0, "", fmt.Errorf("read quantity: unit %q is unknown", unit)
	}
	return n * u.factor, u.kind, nil
}

var constantName = regexp.MustCompile("`([a-z]+\\.[A-Za-z.]+)`")

// TestConstants compares every value in the tables of timers and limits that
// names a constant with that constant.
func TestConstants(t *testing.T) {
	sources := make(map[string]source)
	for _, name := range []string{"wire", "frame", "relay", "server"} {
		sources[name] = load(t, name)
	}
	page := protocol(t)
	named := make(map[string]bool)
	table := append(rows(section(t, page, "## 14 Timers")), rows(section(t, page, "## 15 Limits"))...)
	for _, row := range table {
		for _, match := range constantName.FindAllStringSubmatch(row[len(row)-1], -1) {
			name := match[1]
			named[name] = true
			got, gotKind, err := quantity(row[1])
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if want, wantKind := value(t, sources, name); got != want || gotKind != wantKind {
				t.Errorf("%s is %q on the page, and the %s %d in the code", name, row[1], wantKind, want)
			}
		}
	}
	// What the two packages of the protocol export is part of it.
	for _, pkg := range []string{"wire", "frame"} {
		for short, c := range sources[pkg].constants {
			if c.Exported() && isSize(c) && !named[pkg+"."+short] {
				t.Errorf("%s.%s is missing in the tables of the page", pkg, short)
			}
		}
	}
}

// isSize tells sizes and durations from the values of enumerations and texts.
func isSize(c *types.Const) bool {
	if c.Val().Kind() != constant.Int {
		return false
	}
	named, ok := c.Type().(*types.Named)
	return !ok || named.Obj().Name() == "Duration"
}

// TestLabels checks that the texts of the protocol are on the page.
func TestLabels(t *testing.T) {
	page := protocol(t)
	for _, label := range []struct{ pkg, name string }{
		{"wire", "ALPN"},
		{"wire", "ResumeExporterLabel"},
		{"wire", "resumeLabel"},
		{"frame", "prefaceLabel"},
		{"frame", "readyLabel"},
	} {
		c := load(t, label.pkg).constants[label.name]
		if c == nil {
			t.Errorf("%s.%s is no constant", label.pkg, label.name)
			continue
		}
		text := constant.StringVal(c.Val())
		if !strings.Contains(page, "`"+text+"`") && !strings.Contains(page, `"`+text+`"`) {
			t.Errorf("%s.%s, %q, is not on the page", label.pkg, label.name, text)
		}
	}
}

func TestQuantity(t *testing.T) {
	tests := []struct {
		text string
		n    int64
		kind string
	}{
		{"16", 16, "number"},
		{"64 bytes", 64, "number"},
		{"64 KiB", 65536, "number"},
		{"1 MiB", 1 << 20, "number"},
		{"10 ms", int64(10 * time.Millisecond), "duration"},
		{"5 min", int64(5 * time.Minute), "duration"},
		{"24 h", int64(24 * time.Hour), "duration"},
		{"off", 0, "duration"},
		{"5 weeks", 0, ""},
		{"many", 0, ""},
	}
	for _, test := range tests {
		t.Run(test.text, func(t *testing.T) {
			n, kind, err := quantity(test.text)
			if n != test.n || kind != test.kind || (err == nil) != (test.kind != "") {
				t.Errorf("got %d %q, %v", n, kind, err)
			}
		})
	}
}
