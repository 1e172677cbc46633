package config

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	// maxDepth bounds nesting and dotted keys. No setting comes near it; without
	// it the paths of an absurd file would grow with its square.
	maxDepth = 16
	tooDeep  = "nested too deeply for any known key; remove it"
)

// scanner is the second pass over a TOML file: it finds the line of every key,
// which the decoding pass does not keep, and all keys that are defined twice.
// What is defined twice is blanked in data, so that the rest of the file can
// still be decoded and checked.
type scanner struct {
	file      string
	data      []byte // blanked in place
	newlines  []int  // offsets of '\n'
	lines     map[string]int
	elements  map[string]int // array of tables -> elements so far
	explicit  map[string]int // [table] headers -> line
	dropping  bool           // inside a table that is not to be read
	prefix    string         // path of the current table
	duplicate []Problem
}

// scan walks data, which must be valid TOML syntax up to the returned error.
func scan(file string, data []byte) (*scanner, error) {
	s := &scanner{
		file:     file,
		data:     data,
		lines:    make(map[string]int),
		elements: make(map[string]int),
		explicit: make(map[string]int),
	}
	for i, c := range data {
		if c == '\n' {
			s.newlines = append(s.newlines, i)
		}
	}
	var p unstable.Parser
	// The parser reads a copy: blanking must not change what it has yet to read.
	p.Reset(bytes.Clone(data))
	for p.NextExpression() {
		node := p.Expression()
		switch deep := keyParts(node) > maxDepth; {
		case node.Kind == unstable.KeyValue:
			s.keyValue(node, deep || depth(node.Value(), maxDepth) > maxDepth)
		case deep:
			s.skipTable(node)
		case node.Kind == unstable.Table:
			s.table(node)
		case node.Kind == unstable.ArrayTable:
			s.arrayTable(node)
		}
	}
	return s, p.Error()
}

// line gives the line of a byte, from 1.
func (s *scanner) line(offset uint32) int {
	return sort.SearchInts(s.newlines, int(offset)) + 1
}

func (s *scanner) table(node *unstable.Node) {
	path, at := s.header(node)
	first, again := s.explicit[path]
	s.dropping = again
	if again {
		s.report(at, path, fmt.Sprintf("already defined at line %d; put the keys of this table there", first))
		s.blankLine(at)
		return
	}
	s.explicit[path] = at
	s.lines[path] = at
	s.prefix = path
}

func (s *scanner) arrayTable(node *unstable.Node) {
	path, at := s.header(node)
	index := s.elements[path]
	s.elements[path] = index + 1
	if index == 0 {
		s.lines[path] = at
	}
	s.dropping = false
	s.prefix = path + "[" + strconv.Itoa(index) + "]"
	s.lines[s.prefix] = at
}

// header gives the path that a [table] or [[table]] names and its line. A part
// that is an array of tables means its latest element, as in TOML.
func (s *scanner) header(node *unstable.Node) (path string, line int) {
	parts := node.Key()
	for parts.Next() {
		if n := s.elements[path]; n > 0 {
			path += "[" + strconv.Itoa(n-1) + "]"
		}
		part := parts.Node()
		path = join(path, string(part.Data))
		line = s.line(part.Raw.Offset)
		s.opened(path, line)
	}
	return path, line
}

// opened notes the line of a table that a longer name opens on its way, unless
// the table has a line already.
func (s *scanner) opened(path string, line int) {
	if _, known := s.lines[path]; !known {
		s.lines[path] = line
	}
}

// skipTable leaves out a table whose name is too long to follow.
func (s *scanner) skipTable(node *unstable.Node) {
	name := node.Key()
	name.Next()
	at := s.line(name.Node().Raw.Offset)
	s.report(at, "", tooDeep)
	s.blankLine(at)
	s.dropping = true
}

func (s *scanner) keyValue(node *unstable.Node, deep bool) {
	if deep {
		s.report(s.line(node.Raw.Offset), "", tooDeep)
	}
	if s.dropping || deep {
		s.blank(node.Raw)
		return
	}
	path, at := s.record(s.prefix, node)
	if _, again := s.explicit[path]; !again {
		// Leaves share the map with headers: the paths of both must be unique.
		s.explicit[path] = at
		s.lines[path] = at
		s.value(path, node.Value())
		return
	}
	s.report(at, path, fmt.Sprintf("already defined at line %d; remove one of the two", s.explicit[path]))
	s.blank(node.Raw)
}

// record gives the path and line of a key below prefix.
func (s *scanner) record(prefix string, node *unstable.Node) (path string, line int) {
	path = prefix
	parts := node.Key()
	for parts.Next() {
		part := parts.Node()
		path = join(path, string(part.Data))
		line = s.line(part.Raw.Offset)
		s.opened(path, line)
	}
	return path, line
}

// value notes the lines of what lies inside arrays and inline tables. Two equal
// keys in one inline table are left to the decoding pass.
func (s *scanner) value(path string, node *unstable.Node) {
	switch node.Kind {
	case unstable.Array:
		items := node.Children()
		for i := 0; items.Next(); i++ {
			item := items.Node()
			inner := path + "[" + strconv.Itoa(i) + "]"
			if at, ok := s.start(item); ok {
				s.lines[inner] = at
			}
			s.value(inner, item)
		}
	case unstable.InlineTable:
		items := node.Children()
		for items.Next() {
			inner, at := s.record(path, items.Node())
			s.lines[inner] = at
			s.value(inner, items.Node().Value())
		}
	default: // nothing lies inside
	}
}

// start gives the line of a value. Inline tables have no place of their own, so
// that of their first key stands for it; empty ones and arrays have none.
func (s *scanner) start(value *unstable.Node) (line int, ok bool) {
	if value.Kind == unstable.InlineTable && value.Child().Valid() {
		key := value.Child().Key()
		key.Next()
		value = key.Node()
	}
	return s.line(value.Raw.Offset), value.Raw.Length > 0
}

func (s *scanner) report(line int, path, message string) {
	s.duplicate = append(s.duplicate, Problem{File: s.file, Line: line, Key: plain(path), Message: message})
}

// blank overwrites a range with spaces and keeps its line breaks.
func (s *scanner) blank(r unstable.Range) {
	blank(s.data[r.Offset : r.Offset+r.Length])
}

func (s *scanner) blankLine(line int) {
	start, end := 0, len(s.data)
	if line > 1 {
		start = s.newlines[line-2]
	}
	if line <= len(s.newlines) {
		end = s.newlines[line-1]
	}
	blank(s.data[start:end])
}

// keyParts counts the parts of a dotted key or table name.
func keyParts(node *unstable.Node) int {
	n := 0
	for parts := node.Key(); parts.Next(); {
		n++
	}
	return n
}

// depth gives how deep a value nests, or more than limit as soon as it does.
func depth(value *unstable.Node, limit int) int {
	deepest := 0
	for items := value.Children(); limit >= 0 && items.Next(); {
		item, below := items.Node(), 1
		if item.Kind == unstable.KeyValue {
			below = keyParts(item)
			item = item.Value()
		}
		deepest = max(deepest, below+depth(item, limit-below))
	}
	return deepest
}

func blank(b []byte) {
	for i, c := range b {
		if c != '\n' {
			b[i] = ' '
		}
	}
}

// lineOf gives a line of data, counted from 1, without its line break.
func lineOf(data []byte, line int) []byte {
	for ; line > 1; line-- {
		_, after, found := bytes.Cut(data, []byte("\n"))
		if !found {
			return nil
		}
		data = after
	}
	before, _, _ := bytes.Cut(data, []byte("\n"))
	return before
}

// join appends a key to a path. Keys that are not bare are quoted, so that
// "a.b" in quotes is never taken for b in table a.
func join(path, part string) string {
	bare := part != "" && !strings.ContainsFunc(part, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", r)
	})
	if !bare {
		part = strconv.Quote(part)
	}
	if path == "" {
		return part
	}
	return path + "." + part
}

// withoutIndex takes an index off the end of a path.
func withoutIndex(path string) string {
	if strings.HasSuffix(path, "]") {
		return path[:strings.LastIndexByte(path, '[')]
	}
	return path
}

// plain takes the indexes out of a path: "tunnel[2].bind[0]" is "tunnel.bind".
func plain(path string) string {
	var b strings.Builder
	for path != "" {
		open := strings.IndexByte(path, '[')
		if open < 0 {
			break
		}
		b.WriteString(path[:open])
		_, path, _ = strings.Cut(path[open:], "]")
	}
	return b.String() + path
}
