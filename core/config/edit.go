package config

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Edit is a change of one key that stands outside all tables. Its value is a
// string of characters that mean the same in Go and in TOML; with Remove the key
// is commented out.
type Edit struct {
	Key    string
	Value  string
	Remove bool
}

// Edited is what ApplyEdits made of a text.
type Edited struct {
	Text    []byte
	Removed []string            // keys that were there to be commented out
	Lists   map[string][]string // of a key whose list a value replaced: what else was in it
}

// ApplyEdits changes keys in the text of a TOML file and keeps every other byte.
// A key that is not there is written below the comment that suggests it, or else
// behind the other keys. An error means that the text has mistakes, or cannot be
// edited; file names it there.
func ApplyEdits(file string, data []byte, edits []Edit) (Edited, error) {
	found, end, err := topKeys(file, data)
	if err != nil {
		return Edited{}, err
	}
	var done Edited
	var patches []patch
	for _, e := range edits {
		at, known := found[e.Key]
		switch {
		case e.Remove && known:
			done.Removed = append(done.Removed, e.Key)
			patches = append(patches, commented(data, at.whole)...)
		case e.Remove:
		case known:
			patches = append(patches, patch{offset: at.value.Offset, length: at.value.Length, text: strconv.Quote(e.Value)})
		default:
			patches = append(patches, added(data, end, e))
		}
	}
	done.Text = patched(data, patches)
	if err := checkEdited(done.Text, edits); err != nil {
		return Edited{}, fmt.Errorf("%s cannot be edited without harm: %w", file, err)
	}
	done.Lists = replacedLists(data, edits)
	return done, nil
}

// patched applies patches. A line that is added where another one is commented
// out goes before its #, which otherwise would hide the wrong one of the two.
func patched(data []byte, patches []patch) []byte {
	slices.SortStableFunc(patches, func(a, b patch) int {
		switch {
		case a.offset != b.offset:
			return cmp.Compare(a.offset, b.offset)
		case a.line && !b.line:
			return -1
		case b.line && !a.line:
			return 1
		}
		return 0
	})
	var out bytes.Buffer
	done := uint32(0)
	for _, p := range patches {
		out.Write(data[done:p.offset])
		out.WriteString(p.text)
		done = p.offset + p.length
	}
	out.Write(data[done:])
	return out.Bytes()
}

// checkEdited makes sure that a text says what it was edited to say.
func checkEdited(text []byte, edits []Edit) error {
	var after map[string]any
	if err := toml.Unmarshal(text, &after); err != nil {
		return err
	}
	for _, e := range edits {
		value, there := after[e.Key]
		if e.Remove && there || !e.Remove && value != any(e.Value) {
			return fmt.Errorf("%s would not be what it should: write it by hand", e.Key)
		}
	}
	return nil
}

// replacedLists gives what was lost with each list that an edit replaced.
func replacedLists(data []byte, edits []Edit) map[string][]string {
	var before map[string]any
	if err := toml.Unmarshal(data, &before); err != nil {
		return nil
	}
	lists := make(map[string][]string)
	for _, e := range edits {
		list, ok := before[e.Key].([]any)
		if !ok || e.Remove {
			continue
		}
		for _, v := range list {
			if v != any(e.Value) {
				lists[e.Key] = append(lists[e.Key], fmt.Sprint(v))
			}
		}
	}
	return lists
}

// TunnelNames gives the names of the [[tunnel]] tables of a client's file; what
// cannot be read has none, and a tunnel without a name is "?".
func TunnelNames(data []byte) []string {
	var file struct {
		Tunnel []struct {
			Name any `toml:"name"`
		} `toml:"tunnel"`
	}
	if err := toml.Unmarshal(data, &file); err != nil {
		return nil
	}
	var names []string
	for _, t := range file.Tunnel {
		name, ok := t.Name.(string)
		if !ok {
			name = "?"
		}
		names = append(names, name)
	}
	return names
}

// patch replaces a range of bytes.
type patch struct {
	offset, length uint32
	text           string
	line           bool // a line that is added
}

// keyPlace is where a key and its value stand.
type keyPlace struct {
	whole, value unstable.Range
}

// topBounds are where keys outside tables may be added: behind the last of them,
// and before the first table.
type topBounds struct {
	keys, table uint32
}

// topKeys finds the keys outside all tables.
func topKeys(file string, data []byte) (map[string]keyPlace, topBounds, error) {
	found := make(map[string]keyPlace)
	bounds := topBounds{table: uint32(len(data))}
	inTable := false
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		node := p.Expression()
		key := node.Key()
		switch {
		case inTable:
		case node.Kind == unstable.Table, node.Kind == unstable.ArrayTable:
			key.Next()
			bounds.table = lineStart(data, key.Node().Raw.Offset)
			inTable = true
		case node.Kind == unstable.KeyValue:
			key.Next()
			name := string(key.Node().Data)
			start := key.Node().Raw.Offset
			bounds.keys = lineEnd(data, node.Raw.Offset+node.Raw.Length)
			if !key.IsLast() {
				continue
			}
			line := 1 + bytes.Count(data[:start], []byte("\n"))
			if _, again := found[name]; again {
				return nil, bounds, fmt.Errorf("%s:%d: %s stands there twice: remove one of the two", file, line, name)
			}
			found[name] = place(data, start, key.Node().Raw, node.Raw)
		}
	}
	if err := p.Error(); err != nil {
		return nil, bounds, fmt.Errorf("%s is not valid TOML (`cproxy-client check --config %s` tells where): %w", file, file, err)
	}
	return found, bounds, nil
}

// place finds the value in a key's expression.
func place(data []byte, start uint32, key, whole unstable.Range) keyPlace {
	end := whole.Offset + whole.Length
	value := key.Offset + key.Length
	value += uint32(bytes.IndexByte(data[value:end], '=')) + 1
	value += uint32(len(data[value:end]) - len(bytes.TrimLeft(data[value:end], " \t")))
	return keyPlace{whole: unstable.Range{Offset: start, Length: end - start}, value: unstable.Range{Offset: value, Length: end - value}}
}

// commented puts a # before every line of a range.
func commented(data []byte, r unstable.Range) []patch {
	at := lineStart(data, r.Offset)
	patches := []patch{{offset: at, text: "#"}}
	for i := at; i < r.Offset+r.Length; i++ {
		if data[i] == '\n' {
			patches = append(patches, patch{offset: i + 1, text: "#"})
		}
	}
	return patches
}

// added writes a key that is not there yet.
func added(data []byte, bounds topBounds, e Edit) patch {
	newline := "\n"
	if bytes.Contains(data, []byte("\r\n")) {
		newline = "\r\n"
	}
	line := e.Key + " = " + strconv.Quote(e.Value) + newline
	suggested := regexp.MustCompile(`(?m)^#[ \t]*` + regexp.QuoteMeta(e.Key) + `[ \t]*=.*$`)
	at := bounds.keys
	if m := suggested.FindIndex(data[:bounds.table]); m != nil {
		at = lineEnd(data, uint32(m[1]))
	}
	if at > 0 && data[at-1] != '\n' {
		line = newline + line
	}
	return patch{offset: at, text: line, line: true}
}

func lineStart(data []byte, at uint32) uint32 {
	return uint32(bytes.LastIndexByte(data[:at], '\n') + 1)
}

// lineEnd is behind the line break that ends a line.
func lineEnd(data []byte, at uint32) uint32 {
	if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
		return at + uint32(i) + 1
	}
	return uint32(len(data))
}
