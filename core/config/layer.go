package config

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"
)

const commandLine = "command line"

// layer is one source of settings: a file, the environment or the flags.
type layer struct {
	values  map[string]any
	origins map[string]origin // path, with indexes -> place
	whole   origin            // for what has no place of its own
	dir     string            // relative paths start here; empty: working directory
	mode    fs.FileMode       // permission bits of a file
	partial bool              // some lines of the file had to be left out
}

// at gives the place of a path, or of the nearest table around it.
func (y *layer) at(path string) origin {
	for path != "" {
		if o, ok := y.origins[path]; ok {
			return o
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return y.whole
}

// tunnels are the elements of [[tunnel]], which never merge.
func (y *layer) tunnels() []any {
	list, _ := y.values[tunnelKey].([]any)
	return list
}

func newFileLayer(file sourceFile, p parsed) *layer {
	origins := make(map[string]origin, len(p.lines))
	for path, line := range p.lines {
		origins[path] = origin{file.path, line}
	}
	return &layer{
		values:  p.values,
		origins: origins,
		whole:   origin{file.path, 0},
		dir:     filepath.Dir(file.path),
		mode:    file.mode.Perm(),
		partial: !p.whole,
	}
}

// envLayer takes the variables that start with the prefix of the schema. A
// variable that names no key is a problem: a typing error would else pass
// unseen.
func envLayer(s schema, environ []string) (*layer, []Problem, error) {
	y := &layer{origins: make(map[string]origin), whole: origin{file: "environment"}}
	var problems []Problem
	provider := env.Provider(".", env.Opt{
		Prefix:      s.envPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, text string) (string, any) {
			at := origin{file: "environment variable " + name}
			path := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, s.envPrefix), "__", "."))
			k, known := s.byPath[path]
			if !known || s.envName(path) != name || strings.HasPrefix(path, tunnelKey+".") {
				problems = append(problems, Problem{File: at.file, Key: path, Message: s.unknownVariable(path)})
				return "", nil
			}
			y.origins[path] = at
			return path, k.kind.fromText(text)
		},
	})
	merged := koanf.New(".")
	if err := merged.Load(provider, nil); err != nil {
		return nil, nil, fmt.Errorf("read environment: %w", err)
	}
	y.values = merged.Raw()
	return y, problems, nil
}

func (s schema) unknownVariable(path string) string {
	if strings.HasPrefix(path, tunnelKey) && s.tables[tunnelKey] {
		return "tunnels cannot be set by variables; write a [[tunnel]] table into a file"
	}
	if near := s.suggest(path); near != "" && !strings.HasPrefix(near, tunnelKey+".") {
		return "unknown variable; did you mean " + s.envName(near) + "?"
	}
	return "unknown variable; remove it"
}

// flagLayer takes key path -> text. All keys of "tunnel.X" together make one
// tunnel.
func flagLayer(s schema, flags map[string]string) (*layer, []Problem, error) {
	y := &layer{origins: make(map[string]origin), whole: origin{file: commandLine}}
	var problems []Problem
	merged, tunnel := koanf.New("."), map[string]any{}
	for _, path := range slices.Sorted(maps.Keys(flags)) {
		k, known := s.byPath[path]
		if !known {
			problems = append(problems, Problem{File: commandLine, Key: path, Message: s.unknownKey(path)})
			continue
		}
		value := k.kind.fromText(flags[path])
		if name, ok := strings.CutPrefix(path, tunnelKey+"."); ok {
			tunnel[name] = value
			y.origins[tunnelKey+"[0]."+name] = y.whole
			continue
		}
		if err := merged.Set(path, value); err != nil {
			return nil, nil, fmt.Errorf("read flags: %w", err)
		}
		y.origins[path] = y.whole
	}
	y.values = merged.Raw()
	if len(tunnel) > 0 {
		y.values[tunnelKey] = []any{tunnel}
	}
	return y, problems, nil
}

func (s schema) unknownKey(path string) string {
	if s.tables[tunnelKey] { // the client
		switch path {
		case "proxies", "visitors", "services", "client.services":
			return "unknown key; write a [[tunnel]] table for each service instead: name, local, remote_port"
		case "serverAddr", "server_addr", "serverPort", "server_port", "remote_addr":
			return "unknown key; write server = \"HOST:PORT\" instead"
		}
		if last := lastPart(path); last == "rate_up" || last == "rate_down" {
			return "unknown key; the server sets rates: for a token with `cproxy-server token add --" + strings.ReplaceAll(last, "_", "-") + "`, for all with limits." + last
		}
	}
	if near := s.suggest(path); near != "" {
		return "unknown key; did you mean " + near + "?"
	}
	return "unknown key; remove it"
}

// prune takes the keys that the schema does not know out of the layer and
// reports each.
func (y *layer) prune(s schema) []Problem {
	var problems []Problem
	y.pruneTable(s, y.values, "", &problems)
	return problems
}

func (y *layer) pruneTable(s schema, table map[string]any, prefix string, problems *[]Problem) {
	for _, name := range slices.Sorted(maps.Keys(table)) {
		path := join(prefix, name)
		known := plain(path)
		if _, leaf := s.byPath[known]; leaf {
			continue
		}
		if !s.tables[known] {
			at := y.at(path)
			*problems = append(*problems, Problem{File: at.file, Line: at.line, Key: known, Message: s.unknownKey(known)})
			delete(table, name)
			continue
		}
		switch inner := table[name].(type) {
		case map[string]any:
			y.pruneTable(s, inner, path, problems)
		case []any:
			for i, item := range inner {
				if element, ok := item.(map[string]any); ok {
					y.pruneTable(s, element, fmt.Sprintf("%s[%d]", path, i), problems)
				}
			}
		}
	}
}
