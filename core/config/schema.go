package config

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// tunnelKey is the array of tables that appends over layers.
const tunnelKey = "tunnel"

// schema is the set of keys one daemon knows.
type schema struct {
	envPrefix string // with the closing underscore
	keys      []key
	byPath    map[string]key
	tables    map[string]bool // "limits", "pool", ...
}

func newSchema(envPrefix string, keys []key) schema {
	s := schema{
		envPrefix: envPrefix,
		keys:      keys,
		byPath:    make(map[string]key, len(keys)),
		tables:    make(map[string]bool),
	}
	for _, k := range keys {
		s.byPath[k.path] = k
		if table, _, nested := strings.Cut(k.path, "."); nested {
			s.tables[table] = true
		}
	}
	return s
}

func serverSchema() schema { return newSchema("CPROXY_SERVER_", serverKeys()) }
func clientSchema() schema { return newSchema("CPROXY_CLIENT_", clientKeys()) }

// defaults gives the first layer, flat.
func (s schema) defaults() map[string]any {
	values := make(map[string]any)
	for _, k := range s.keys {
		if k.initial != "" {
			values[k.path] = k.kind.fromText(k.initial)
		}
	}
	return values
}

// suggest gives the known key a mistyped path most likely means, or "". A key
// written in the wrong table and one written short count as near.
func (s schema) suggest(path string) string {
	if len(path) > maxQuoted {
		return ""
	}
	best, bestCost := "", 1+max(1, len(path)/3)
	for _, k := range s.keys {
		cost := distance(path, k.path)
		if lastPart(path) == lastPart(k.path) {
			cost = min(cost, 1)
		}
		if strings.HasPrefix(k.path, path+"_") {
			cost = min(cost, 1)
		}
		if cost < bestCost {
			best, bestCost = k.path, cost
		}
	}
	return best
}

// envName gives the variable that sets path.
func (s schema) envName(path string) string {
	return s.envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "__"))
}

// outOfBounds says how value breaks the bounds of k, or "" if it keeps them.
func (k key) outOfBounds(value any) string {
	ok := true
	switch v := value.(type) {
	case int:
		ok = within(v, k, strconv.Atoi)
	case time.Duration:
		ok = within(v, k, time.ParseDuration)
	}
	if ok {
		return ""
	}
	return fmt.Sprintf("must be from %s to %s; got %v", k.min, k.max, value)
}

// within compares v with the bounds of k; a bound that is empty does not parse
// and so does not count.
func within[T cmp.Ordered](v T, k key, parse func(string) (T, error)) bool {
	if low, err := parse(k.min); err == nil && v < low {
		return false
	}
	if high, err := parse(k.max); err == nil && v > high {
		return false
	}
	return true
}

func lastPart(path string) string { return path[strings.LastIndex(path, ".")+1:] }

// distance is the number of single-character insertions, removals and changes
// between a and b (Levenshtein), by rows.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
