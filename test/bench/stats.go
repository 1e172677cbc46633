//go:build linux

package main

import (
	"math"
	"slices"
)

// spread is a median with the least and the largest value.
type spread struct {
	median, min, max float64
	n                int
}

// spreadOf sums values up; without any, n is 0 and the rest NaN.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{median: math.NaN(), min: math.NaN(), max: math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{median: (sorted[(n-1)/2] + sorted[n/2]) / 2, min: sorted[0], max: sorted[n-1], n: n}
}

// key names the runs that are compared with each other.
type key struct {
	load, contestant string
}

// metrics are the numbers of one run by name.
type metrics map[string]float64

// results hold what was measured, by round.
type results struct {
	runs     map[key]map[int]metrics
	failures []string
}

func newResults() *results { return &results{runs: make(map[key]map[int]metrics)} }

func (r *results) add(k key, round int, m metrics) {
	if r.runs[k] == nil {
		r.runs[k] = make(map[int]metrics)
	}
	r.runs[k][round] = m
}

// values gives a metric of all rounds in which it was measured.
func (r *results) values(k key, metric string) spread {
	var values []float64
	for _, m := range r.runs[k] {
		if v, ok := m[metric]; ok {
			values = append(values, v)
		}
	}
	return spreadOf(values)
}

// paired divides the subject's number by the reference's of the same round.
// Rounds in which one is missing, or the reference is 0, do not count.
func (r *results) paired(load, metric, subject, reference string) spread {
	var ratios []float64
	for round, m := range r.runs[key{load, subject}] {
		a, okA := m[metric]
		b, okB := r.runs[key{load, reference}][round][metric]
		if okA && okB && b > 0 {
			ratios = append(ratios, a/b)
		}
	}
	return spreadOf(ratios)
}
