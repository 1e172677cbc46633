//go:build linux

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseMeasurement(t *testing.T) {
	const in = `{"load":"x","target":"y","seconds":1,
		"bulk":{"gb_per_s":2,"flows":4,"confirmed":3},
		"pingpong":{"per_s":7,"p50_us":1,"p99_us":2,"p999_us":3},
		"idle":{"connections":10,"slab_bytes_per_connection":5,"processes":[
			{"name":"serve","rss_bytes_per_connection":900,"descriptors":10,"pipes":9},
			{"name":"a","rss_bytes_per_connection":100,"anon_bytes_per_connection":90,"descriptors":20,"pipes":2},
			{"name":"b","rss_bytes_per_connection":11,"anon_bytes_per_connection":1,"descriptors":20,"pipes":0}]},
		"cpu":[{"name":"serve","seconds":9,"per_unit":90},{"name":"a","seconds":1,"per_unit":10},{"name":"b","seconds":2,"per_unit":20},
			{"name":"generator","seconds":5,"per_unit":50},{"name":"machine","seconds":20,"per_unit":200}]}`
	got, err := parseMeasurement([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	want := metrics{
		"cpu": 30, "cpu_s": 3, "total": 200, "gb_per_s": 2, "unconfirmed": 1, "per_s": 7, "p50": 1, "p99": 2, "p999": 3,
		"slab": 5, "rss": 111, "anon": 91, "fds": 4, "pipes": 2,
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	if m, err := parseMeasurement([]byte("{")); err == nil {
		t.Errorf("half an object became %v", m)
	}
}

// sample fills every number with something plausible.
func sample() *results {
	r := newResults()
	for _, g := range groups() {
		for i, k := range g.kinds {
			if k.name == "frp" {
				continue
			}
			for _, l := range append(g.loads, idleLoad(settings{})) {
				for round := range 3 {
					v := 1 + float64(i)/3 + float64(round)/10
					m := metrics{"cpu": v, "cpu_s": v, "total": 3 * v, "failed": 0, "unconfirmed": 0}
					for _, c := range columns() {
						if _, set := m[c.metric]; !set {
							m[c.metric] = v * 10
						}
					}
					r.add(key{g.prefix + l.name, k.name}, round, m)
				}
			}
		}
	}
	r.failures = []string{"round 1: it\nbroke"}
	return r
}

func TestReport(t *testing.T) {
	t.Chdir("../..") // notes are found from the top of the tree
	dir := filepath.Join(t.TempDir(), "new")
	r := report{
		facts: []fact{{"CPU", "2 x fast"}}, results: sample(), settings: settings{quick: true, time: time.Second},
		skipped: []string{"frp: absent"}, rounds: 3, took: 90 * time.Second,
	}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"quick run", "3 rounds", "2 x fast", "- frp: absent", "- round 1: it broke", joinTable, tunnelTable, framingTable,
		"| not measured |", "| reached |", "**not reached**", "forwarder CPU s/GB", "forwarder CPU us/round trip", "## Remarks",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	for _, unwanted := range []string{"NaN", "Inf", "%!", "unconfirmed flows"} {
		if strings.Contains(string(page), unwanted) {
			t.Errorf("the page has %q", unwanted)
		}
	}
	checkTables(t, string(page))
	var summary strings.Builder
	r.summary(&summary)
	if got := strings.Count(summary.String(), "\n"); got != len(goals()) {
		t.Errorf("the summary has %d lines, want %d", got, len(goals()))
	}
}

// checkTables verifies that all rows of a table have as many cells.
func checkTables(t *testing.T, page string) {
	t.Helper()
	bars := 0
	for line := range strings.Lines(page) {
		n := strings.Count(line, "|")
		if n > 0 && bars > 0 && n != bars {
			t.Errorf("%d bars instead of %d in %q", n, bars, line)
		}
		bars = n
	}
}

func TestPlot(t *testing.T) {
	for name, r := range map[string]*results{"full": sample(), "empty": newResults()} {
		t.Run(name, func(t *testing.T) {
			svg := plot(r)
			decoder := xml.NewDecoder(strings.NewReader(svg))
			bars := 0
			for {
				token, err := decoder.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
					bars++
				}
			}
			if name == "full" && bars < 2*len(panels()) || name == "empty" && bars != 1 {
				t.Errorf("%d rectangles", bars)
			}
			if strings.Contains(svg, "NaN") {
				t.Error("a coordinate is no number")
			}
		})
	}
}

func TestAcross(t *testing.T) {
	left, middle, right := across(1.0/8), across(1), across(8)
	if left != plotLeft || right != plotWidth-plotRight || math.Abs(middle-(left+right)/2) > 1e-9 {
		t.Errorf("1/8, 1, 8 are at %v, %v, %v", left, middle, right)
	}
	if across(1000) != right || across(0) != left {
		t.Error("a ratio beyond the axis lies outside")
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0123: "0.0123", 0.456: "0.46", 1.2345: "1.23", 12.345: "12.3", 123.45: "123", 2e6: "2000000"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}

func TestSpreadString(t *testing.T) {
	for want, in := range map[string][]float64{"-": nil, "2.00": {2}, "2.00 (1.00 to 3.00)": {1, 2, 3}} {
		if got := spreadOf(in).String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
