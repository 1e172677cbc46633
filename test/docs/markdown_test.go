// Package docs tests that the documentation says what the code does: the
// protocol page against the messages, frames and constants it describes, the
// snippets of the README against the loaders, and links against what they lead
// to.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// root is the top of the checkout.
var root = filepath.Join("..", "..")

func readFile(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{root}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// section gives the text between a heading, "### Hello", and the next of the
// same or a higher level.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	level := strings.Index(heading, " ")
	var inside, found bool
	var lines []string
	for line := range strings.SplitSeq(outsideFences(text), "\n") {
		if hashes := headingLevel(line); hashes > 0 && hashes <= level {
			inside = line == heading
			found = found || inside
			continue
		}
		if inside {
			lines = append(lines, line)
		}
	}
	if !found {
		t.Fatalf("there is no heading %q", heading)
	}
	return strings.Join(lines, "\n")
}

// rows gives the cells of all tables in a text, header and ruler left out.
func rows(text string) [][]string {
	var all [][]string
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		header := i+1 < len(lines) && strings.HasPrefix(lines[i+1], "|--")
		if !strings.HasPrefix(line, "| ") || header {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		all = append(all, cells)
	}
	return all
}

// fences gives the blocks of code of a language.
func fences(text, language string) []string {
	var blocks []string
	for _, block := range regexp.MustCompile("(?s)(?:^|\n)```([a-z]*)\n(.*?)\n```").FindAllStringSubmatch(text, -1) {
		if block[1] == language {
			blocks = append(blocks, block[2])
		}
	}
	return blocks
}

// outsideFences empties the lines of blocks of code.
func outsideFences(text string) string {
	lines := strings.Split(text, "\n")
	inside := false
	for i, line := range lines {
		fence := strings.HasPrefix(line, "```")
		if inside || fence {
			lines[i] = ""
		}
		if fence {
			inside = !inside
		}
	}
	return strings.Join(lines, "\n")
}

func headingLevel(line string) int {
	hashes := len(line) - len(strings.TrimLeft(line, "#"))
	if hashes == 0 || !strings.HasPrefix(line[hashes:], " ") {
		return 0
	}
	return hashes
}

// anchors gives the names by which the headings of a page can be linked to.
func anchors(text string) []string {
	var names []string
	for line := range strings.SplitSeq(outsideFences(text), "\n") {
		if n := headingLevel(line); n > 0 {
			names = append(names, anchor(line[n+1:]))
		}
	}
	return names
}

// anchor follows what code hosts make of a heading: lower case, hyphens for
// spaces, nothing else but letters, digits and hyphens.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

var linkPattern = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// brokenLinks gives the relative links of a page that lead nowhere.
func brokenLinks(t *testing.T, path string) []string {
	t.Helper()
	text := readFile(t, path)
	var broken []string
	for _, match := range linkPattern.FindAllStringSubmatch(outsideFences(text), -1) {
		link := match[1]
		if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
			continue
		}
		file, name, _ := strings.Cut(link, "#")
		target := path
		if file != "" {
			target = filepath.Join(filepath.Dir(path), file)
		}
		if _, err := os.Stat(filepath.Join(root, target)); err != nil {
			broken = append(broken, link)
			continue
		}
		if name != "" && !slices.Contains(anchors(readFile(t, target)), name) {
			broken = append(broken, link)
		}
	}
	return broken
}

func TestLinks(t *testing.T) {
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no page matches %s: %v", pattern, err)
		}
		for _, path := range paths {
			path, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			t.Run(path, func(t *testing.T) {
				for _, link := range brokenLinks(t, path) {
					t.Errorf("link %q leads nowhere", link)
				}
			})
		}
	}
}

// A check that finds nothing to check would pass too.
func TestMarkdownIsUnderstood(t *testing.T) {
	const page = "# Top\n\n## 3 The `x`-part, and *more*\n\n| # | name |\n|---|---|\n| 1 | `a` |\n\n```toml\n# no heading\nk = 1\n```\n\n## Next\n\n[up](#top)\n"
	if got := rows(section(t, page, "## 3 The `x`-part, and *more*")); len(got) != 1 || !slices.Equal(got[0], []string{"1", "`a`"}) {
		t.Errorf("rows are %q", got)
	}
	if got := anchors(page); !slices.Equal(got, []string{"top", "3-the-x-part-and-more", "next"}) {
		t.Errorf("anchors are %q", got)
	}
	if got := fences(page, "toml"); len(got) != 1 || got[0] != "# no heading\nk = 1" {
		t.Errorf("fences are %q", got)
	}
	if len(linkPattern.FindAllString(page, -1)) != 1 {
		t.Error("the link is not seen")
	}
}
