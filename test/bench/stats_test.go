//go:build linux

package main

import (
	"math"
	"testing"
)

func TestSpreadOf(t *testing.T) {
	tests := []struct {
		name             string
		in               []float64
		median, min, max float64
	}{
		{"one", []float64{3}, 3, 3, 3},
		{"odd", []float64{5, 1, 3}, 3, 1, 5},
		{"even", []float64{4, 1, 3, 2}, 2.5, 1, 4},
		{"equal", []float64{2, 2, 2}, 2, 2, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := spreadOf(test.in)
			if s.median != test.median || s.min != test.min || s.max != test.max || s.n != len(test.in) {
				t.Errorf("got %+v", s)
			}
		})
	}
	if s := spreadOf(nil); s.n != 0 || !math.IsNaN(s.median) {
		t.Errorf("of nothing: %+v", s)
	}
}

func TestPaired(t *testing.T) {
	r := newResults()
	a, b := key{"l", "a"}, key{"l", "b"}
	r.add(a, 0, metrics{"cpu": 1})
	r.add(b, 0, metrics{"cpu": 2})
	r.add(a, 1, metrics{"cpu": 9})
	r.add(b, 1, metrics{"cpu": 3})
	r.add(a, 2, metrics{"cpu": 5}) // without a partner
	r.add(a, 3, metrics{"cpu": 5})
	r.add(b, 3, metrics{"cpu": 0}) // nothing to divide by
	r.add(b, 4, metrics{"p50": 1})
	r.add(a, 4, metrics{"cpu": 5})

	if s := r.paired("l", "cpu", "a", "b"); s.n != 2 || s.min != 0.5 || s.max != 3 || s.median != 1.75 {
		t.Errorf("paired %+v: the ratios are of equal rounds, not of medians", s)
	}
	if s := r.paired("l", "cpu", "a", "nobody"); s.n != 0 {
		t.Errorf("paired with nobody: %+v", s)
	}
	if s := r.values(a, "cpu"); s.n != 5 || s.median != 5 {
		t.Errorf("values %+v", s)
	}
	if s := r.values(a, "nothing"); s.n != 0 {
		t.Errorf("values of nothing %+v", s)
	}
}

func TestVerdict(t *testing.T) {
	ratio := goal{reference: "copy", target: 0.8}
	rate := goal{reference: "copy", target: 1.25, atLeast: true}
	absolute := goal{target: 512}
	zero := goal{}
	tests := []struct {
		name  string
		goal  goal
		value float64
		want  string
	}{
		{"below", ratio, 0.5, "reached"},
		{"at", ratio, 0.8, "reached"},
		{"near", ratio, 0.87, "missed by less than 10 %"},
		{"above", ratio, 0.9, "**not reached**"},
		{"rate above", rate, 1.3, "reached"},
		{"rate near", rate, 1.2, "missed by less than 10 %"},
		{"rate below", rate, 1.1, "**not reached**"},
		{"absolute below", absolute, 100, "reached"},
		{"absolute near", absolute, 513, "**not reached**"},
		{"zero", zero, 0, "reached"},
		{"not zero", zero, 1, "**not reached**"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.goal.verdict(spreadOf([]float64{test.value})); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if got := ratio.verdict(spreadOf(nil)); got != "not measured" {
		t.Errorf("of nothing: %q", got)
	}
}

// Every goal and panel names loads and contestants that exist.
func TestGoalsCanBeMeasured(t *testing.T) {
	known := make(map[key]bool)
	for _, g := range groups() {
		for _, l := range append(g.loads, idleLoad(settings{})) {
			for _, k := range g.kinds {
				known[key{g.prefix + l.name, k.name}] = true
			}
		}
	}
	check := func(what, load string, contestants ...string) {
		for _, c := range contestants {
			if c != "" && !known[key{load, c}] {
				t.Errorf("%s: no load %q of %q", what, load, c)
			}
		}
	}
	for _, g := range goals() {
		check(g.what, g.load, g.subject, g.reference)
		if titleOf(g.load) == g.load {
			t.Errorf("load %q has no title", g.load)
		}
	}
	for _, p := range panels() {
		check(p.title, p.load, append(p.names, p.reference)...)
	}
	extra := make(map[string]bool)
	for _, g := range groups() {
		for _, l := range g.loads {
			extra[g.prefix+l.name] = l.extra
		}
	}
	for _, g := range goals() {
		if extra[g.load] {
			t.Errorf("goal %q depends on the extra load %q", g.what, g.load)
		}
	}
}
