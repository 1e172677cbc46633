//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// notesFile holds what people know about the numbers; it closes the report.
const notesFile = "test/bench/notes.md"

// report writes down what was measured.
type report struct {
	facts    []fact
	results  *results
	settings settings
	skipped  []string
	rounds   int
	took     time.Duration
}

// write makes benchmarks.md and benchmarks.svg.
func (r *report) write(dir string) error {
	notes, err := os.ReadFile(notesFile)
	if err != nil {
		return fmt.Errorf("read notes: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // documentation is for everyone
		return fmt.Errorf("make the folder of the report: %w", err)
	}
	var page strings.Builder
	r.page(&page, string(notes))
	for name, text := range map[string]string{"benchmarks.md": page.String(), "benchmarks.svg": plot(r.results)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // documentation is for everyone
			return fmt.Errorf("write report: %w", err)
		}
	}
	return nil
}

func (r *report) page(b *strings.Builder, notes string) {
	b.WriteString("# Benchmarks\n\nWritten by `make bench`; do not edit. Remarks are in `" + notesFile + "`.\n\n")
	if r.settings.quick {
		b.WriteString("**This was a quick run (BENCH_QUICK): it shows that everything works. Its numbers mean nothing.**\n\n")
	}
	fmt.Fprintf(b, "%d rounds, each load measured for %v, all programs on one machine over loopback; %v in all.\n", r.rounds, r.settings.time, r.took.Round(time.Second))
	b.WriteString("A round runs every load against every contestant, the next one in reverse order. Ratios are\n" +
		"of the same round: median (least to largest). Less is better for CPU time, latency and\nmemory, more for rates. " +
		"Forwarder CPU is user and system time of its processes.\n\n")
	b.WriteString("![Ratios to the io.Copy forwarder and to two haproxy hops](benchmarks.svg)\n\n## Goals\n\n" +
		"A ratio that misses its goal by no more than 10 % is told apart from one that misses it by more;\n" +
		"a number that is compared with no other contestant has no such tolerance.\n")
	for _, table := range []string{joinTable, tunnelTable, framingTable, reuseTable, controlTable} {
		r.goals(b, table)
	}
	b.WriteString("\n## Medians\n")
	for _, g := range groups() {
		for _, l := range append(slices.Clone(g.loads), idleLoad(r.settings)) {
			r.medians(b, g, l)
		}
	}
	b.WriteString("\n## Machine\n\n| | |\n|---|---|\n")
	for _, f := range r.facts {
		fmt.Fprintf(b, "| %s | %s |\n", f.name, f.value)
	}
	list(b, "Not measured", r.skipped)
	list(b, "Failed runs", r.results.failures)
	b.WriteString("\n## Remarks\n\n" + notes)
}

func list(b *strings.Builder, title string, items []string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\n", title)
	for _, item := range items {
		fmt.Fprintf(b, "- %s\n", strings.ReplaceAll(item, "\n", " "))
	}
}

func (r *report) goals(b *strings.Builder, table string) {
	fmt.Fprintf(b, "\n### %s\n\n| load | number | against | measured | goal | |\n|---|---|---|---|---|---|\n", table)
	for _, g := range goals() {
		if g.table == table {
			s := g.measured(r.results)
			fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s |\n", titleOf(g.load), g.what, contestantTitle(g.reference), s, g.bound(), g.verdict(s))
		}
	}
}

// bound is the goal in words.
func (g goal) bound() string {
	if g.atLeast {
		return "at least " + number(g.target)
	}
	return "at most " + number(g.target)
}

// String gives the median with its range.
func (s spread) String() string {
	switch s.n {
	case 0:
		return "-"
	case 1:
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s to %s)", number(s.median), number(s.min), number(s.max))
}

// number prints three significant digits, and no exponent.
func number(v float64) string {
	switch a := math.Abs(v); {
	case v == 0:
		return "0"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.4f", v)
	}
}

// columns are the metrics of a load's table, in their order.
func columns() []struct{ metric, title string } {
	return []struct{ metric, title string }{
		{"gb_per_s", "GB/s"},
		{"per_s", "per second"},
		{"p50", "p50 us"},
		{"p99", "p99 us"},
		{"p999", "p99.9 us"},
		{"cpu", "forwarder CPU"},
		{"total", "machine CPU"},
		{"cpu_s", "forwarder CPU s"},
		{"rss", "RSS B"},
		{"anon", "of which anonymous B"},
		{"slab", "slab B"},
		{"fds", "descriptors each"},
		{"pipes", "pipes in all"},
		{"unconfirmed", "unconfirmed flows"},
		{"failed", "failed"},
		{"tw_proxy", "TIME_WAIT at ProxyPort"},
		{"tw_local", "TIME_WAIT at LocalServer"},
		{"cold", "cold start s"},
		{"refusals", "refusals"},
		{"failures", "failed attempts"},
		{"percent", "CPU at rest %"},
		{"kib", "KiB per client"},
	}
}

// medians writes one load's table; columns that say nothing are left out.
func (r *report) medians(b *strings.Builder, g group, l load) {
	name := g.prefix + l.name
	var shown []struct{ metric, title string }
	for _, c := range columns() {
		if c.metric == "cpu" || c.metric == "total" {
			c.title += " " + l.unit
		}
		if r.says(g, l, c.metric) {
			shown = append(shown, c)
		}
	}
	if len(shown) == 0 {
		return
	}
	fmt.Fprintf(b, "\n### %s\n\n| |", titleOf(name))
	for _, c := range shown {
		fmt.Fprintf(b, " %s |", c.title)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(shown)) + "\n")
	for _, k := range g.kinds {
		if len(r.results.runs[key{name, k.name}]) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s |", k.title)
		for _, c := range shown {
			cell := r.results.values(key{name, k.name}, c.metric)
			cell.n = min(cell.n, 1) // the median alone
			fmt.Fprintf(b, " %s |", cell)
		}
		b.WriteString("\n")
	}
}

// says tells whether a column has something to tell: failures if there are
// some, and CPU time in the load's unit or, without one, in seconds.
func (r *report) says(g group, l load, metric string) bool {
	switch metric {
	case "cpu", "total":
		if l.unit == "" {
			return false
		}
	case "cpu_s":
		if l.unit != "" {
			return false
		}
	}
	for _, k := range g.kinds {
		s := r.results.values(key{g.prefix + l.name, k.name}, metric)
		if s.n > 0 && (s.max > 0 || metric != "unconfirmed" && metric != "failed") {
			return true
		}
	}
	return false
}

// titleOf names a load with its group.
func titleOf(name string) string {
	for _, g := range slices.Backward(groups()) {
		if rest, ok := strings.CutPrefix(name, g.prefix); ok {
			for _, l := range append(slices.Clone(g.loads), idleLoad(settings{})) {
				if l.name == rest {
					return l.title + g.suffix
				}
			}
		}
	}
	return name
}

func contestantTitle(name string) string {
	for _, k := range slices.Concat(joins(), tunnels(), reuses(), controls()) {
		if k.name == name {
			return k.title
		}
	}
	return "-"
}

// summary prints the goals for the terminal.
func (r *report) summary(w io.Writer) {
	for _, g := range goals() {
		s := g.measured(r.results)
		_, _ = fmt.Fprintf(w, "%-36s %-36s %-40s %-26s %-16s %s\n", titleOf(g.load), g.what, contestantTitle(g.reference), s, g.bound(), strings.Trim(g.verdict(s), "*"))
	}
}
