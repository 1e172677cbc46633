package config

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
)

// Source names where a configuration comes from.
type Source struct {
	// Path is the main file; files in the folder X.d beside X.toml are merged
	// over it. Empty: no files, as for a client that is described by flags.
	Path string
	// Environ holds "NAME=value" as os.Environ gives it.
	Environ []string
	// Flags maps key paths ("log.level") to the text of flags that were given.
	// Lists are separated by commas. All "tunnel.X" together describe one tunnel,
	// added to those of the files.
	Flags map[string]string
}

// loader collects layers and problems of one load.
type loader struct {
	schema   schema
	main     origin // for keys that are missing
	layers   []*layer
	problems []Problem
	warnings []Problem
	// partial says that some file could not be read in full, so that a missing
	// key proves nothing.
	partial bool
	// bad holds file and path, that of list elements without their index, of what
	// was reported.
	bad   map[string]bool
	files []string // in the order of reading, for sorting problems
}

func newLoader(s schema, src Source) *loader {
	l := &loader{schema: s, main: origin{file: src.Path}, bad: make(map[string]bool)}
	if src.Path == "" {
		l.main.file = commandLine
	}
	return l
}

func (l *loader) report(at origin, path, message string) {
	l.bad[at.file+" "+withoutIndex(path)] = true
	l.problems = append(l.problems, Problem{File: at.file, Line: at.line, Key: plain(path), Message: message})
}

func (l *loader) warn(at origin, path, message string) {
	l.warnings = append(l.warnings, Problem{File: at.file, Line: at.line, Key: plain(path), Message: message})
}

// missing reports a required key that no layer sets.
func (l *loader) missing(at origin, path, message string) {
	if !l.partial {
		l.report(at, path, message)
	}
}

// faulty reports whether a problem with this key or its table is known already;
// its value is then not worth a second message.
func (l *loader) faulty(path string) bool {
	return slices.ContainsFunc(l.problems, func(p Problem) bool {
		return p.Key == path || (p.Key != "" && strings.HasPrefix(path, p.Key+"."))
	})
}

// find gives the layer that decides a key, nil if it has its default, and the
// place of the key there.
func (l *loader) find(path string) (*layer, origin) {
	for _, y := range slices.Backward(l.layers) {
		if o, ok := y.origins[path]; ok {
			return y, o
		}
	}
	return nil, l.main
}

// origin gives the place that decides a key.
func (l *loader) origin(path string) origin {
	_, at := l.find(path)
	return at
}

// load reads all layers and fills raw, a pointer to a raw struct. Each layer is
// also decoded by itself, into a new scratch struct of the same type, so that
// mistakes in values that a later layer overrides are reported too.
func (l *loader) load(src Source, raw any, scratch func() any) {
	l.readFiles(src.Path)
	env, problems, err := envLayer(l.schema, src.Environ)
	l.addLayer(env, problems, err)
	flags, problems, err := flagLayer(l.schema, src.Flags)
	l.addLayer(flags, problems, err)

	merged, tunnels := koanf.New("."), []any{}
	l.merge(merged, confmap.Provider(l.schema.defaults(), "."))
	for _, y := range l.layers {
		l.problems = append(l.problems, y.prune(l.schema)...)
		alone := koanf.New(".")
		l.merge(alone, confmap.Provider(y.values, ""))
		decodeInto(alone, l.schema, scratch(), func(path, message string) {
			l.report(y.at(path), path, message)
		})
		l.merge(merged, confmap.Provider(y.values, ""))
		tunnels = append(tunnels, y.tunnels()...)
	}
	if len(tunnels) > 0 {
		// Merging replaces lists; tunnels of all layers count.
		l.merge(merged, confmap.Provider(map[string]any{tunnelKey: tunnels}, ""))
	}
	decodeInto(merged, l.schema, raw, func(path, message string) {
		if len(l.problems) == 0 { // else it was reported in its layer
			l.report(l.origin(path), path, message)
		}
	})
}

func (l *loader) merge(k *koanf.Koanf, p koanf.Provider) {
	if err := k.Load(p, nil); err != nil {
		l.report(l.main, "", "cannot be merged: "+err.Error())
	}
}

func (l *loader) addLayer(y *layer, problems []Problem, err error) {
	l.problems = append(l.problems, problems...)
	if err != nil {
		l.report(l.main, "", err.Error())
		return
	}
	l.layers = append(l.layers, y)
}

// readFiles adds a layer for the main file and for each drop-in.
func (l *loader) readFiles(path string) {
	if path == "" {
		return
	}
	paths := []string{path}
	dir := dropInDir(path)
	more, err := dropIns(dir)
	if err != nil {
		l.partial = true
		l.report(origin{file: dir}, "", unreadable("folder", err))
	}
	l.files = append(paths, more...)
	for _, path := range l.files {
		file, err := readFile(path, maxFileBytes)
		if err != nil {
			l.partial = true
			l.report(origin{file: path}, "", unreadable("configuration file", err))
			continue
		}
		p := parseFile(file)
		l.problems = append(l.problems, p.problems...)
		y := newFileLayer(file, p)
		l.partial = l.partial || y.partial
		l.layers = append(l.layers, y)
		if file.mode.IsRegular() && y.mode&0o002 != 0 {
			l.warn(y.whole, "", "every user may write this file; run chmod o-w on it")
		}
	}
}

// check reports the error of a value unless its key has a problem already.
func (l *loader) check(path string, err error) {
	if err != nil && !l.faulty(path) {
		l.report(l.origin(path), path, err.Error())
	}
}

// resolve makes a path relative to the folder of the file that sets it; those
// of variables and flags stay relative to the working directory.
func (l *loader) resolve(path, name string) string {
	y, _ := l.find(path)
	if name == "" || filepath.IsAbs(name) || y == nil {
		return name
	}
	return filepath.Join(y.dir, name)
}

// bounds reports values outside the bounds of the table of keys.
func (l *loader) bounds(values map[string]any) {
	for _, k := range l.schema.keys {
		if text := k.outOfBounds(values[k.path]); text != "" && !l.faulty(k.path) {
			l.report(l.origin(k.path), k.path, text)
		}
	}
}

// finish gives the warnings and, if there are problems, the error.
func (l *loader) finish() ([]Problem, error) {
	rank := func(file string) int {
		if i := slices.Index(l.files, file); i >= 0 {
			return i
		}
		if file == commandLine {
			return len(l.files) + 1
		}
		return len(l.files) // a variable
	}
	warnings := inOrder(l.warnings, rank)
	if len(l.problems) == 0 {
		return warnings, nil
	}
	return warnings, &Error{Problems: inOrder(l.problems, rank)}
}
