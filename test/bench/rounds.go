//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// runLimit is what a load may take beyond the time that it measures.
const runLimit = 60 * time.Second

// group is a set of contestants with their loads. The prefix keeps its results
// apart from those of equal loads.
type group struct {
	prefix string
	suffix string // tells its loads from equal ones in titles
	kinds  []kind
	loads  []load
	alone  bool // its loads run once, each contestant by itself and fresh
	busy   bool // idle connections say nothing new about its contestants
}

func groups() []group {
	return []group{
		{prefix: "", kinds: joins(), loads: joinLoads()},
		{prefix: "tunnel-", suffix: " (tunnel)", kinds: tunnels(), loads: tunnelLoads()},
		{prefix: "reuse-", suffix: " (tunnel, with and without reuse)", kinds: reuses(), loads: reuseLoads(), busy: true},
		{prefix: "control-", kinds: controls(), loads: []load{clientsLoad(settings{})}, alone: true},
	}
}

// freshPhase measures idle connections and clients, each contestant by itself and
// fresh: a process that has been busy hides what they take.
func (w *world) freshPhase(ctx context.Context, all *results) error {
	for _, g := range groups() {
		l := idleLoad(w.settings)
		switch {
		case g.busy:
			continue
		case g.alone:
			l = clientsLoad(w.settings)
		}
		for _, k := range g.kinds {
			if k.name == "direct" || k.missing != nil && k.missing(w) != "" {
				continue
			}
			w.say("%s: %s", l.title, k.title)
			c, err := w.begin(ctx, k, all)
			if err == nil && c != nil {
				err = w.run(ctx, g, c, l, 0, all)
				c.stop()
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// begin starts a contestant. One that does not start is noted, and nil; only
// an interruption is an error.
func (w *world) begin(ctx context.Context, k kind, all *results) (*contestant, error) {
	c, err := k.start(ctx, w)
	c.kind = k
	if err == nil {
		return c, nil
	}
	c.stop()
	if ctx.Err() != nil {
		return nil, errInterrupted
	}
	w.fail(all, fmt.Sprintf("start %s: %v", k.title, err))
	return nil, nil // noted, and the others go on
}

func (w *world) fail(all *results, text string) {
	w.say("failed: %s", text)
	all.failures = append(all.failures, text)
}

// field is a group that runs.
type field struct {
	group
	contestants []*contestant
}

// roundsPhase runs the rounds, and tells how many were done.
func (w *world) roundsPhase(ctx context.Context, all *results, started time.Time) (int, error) {
	var fields []*field
	defer func() {
		for _, f := range fields {
			for _, c := range f.contestants {
				c.stop()
			}
		}
	}()
	for _, g := range groups() {
		if g.alone {
			continue
		}
		f := &field{group: g}
		fields = append(fields, f)
		for _, k := range g.kinds {
			if k.missing != nil && k.missing(w) != "" {
				continue
			}
			c, err := w.begin(ctx, k, all)
			if err != nil {
				return 0, err
			}
			if c != nil {
				f.contestants = append(f.contestants, c)
			}
		}
	}
	longest := time.Duration(0)
	for round := range w.settings.rounds {
		if round > 0 && time.Since(started)+longest > w.settings.limit {
			w.say("stopping after %d rounds: another would end later than BENCH_LIMIT=%v", round, w.settings.limit)
			return round, nil
		}
		begun := time.Now()
		w.say("round %d of %d", round+1, w.settings.rounds)
		for _, f := range fields {
			if err := w.round(ctx, f, round, all); err != nil {
				return round, err
			}
		}
		longest = max(longest, time.Since(begun))
	}
	return w.settings.rounds, nil
}

// round runs each load against all contestants, in reverse order every other
// time, so that what changes over time favours nobody.
func (w *world) round(ctx context.Context, f *field, round int, all *results) error {
	order := slices.Clone(f.contestants)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	for _, l := range f.loads {
		if l.extra && (round >= extraRounds || w.settings.quick) {
			continue
		}
		l.args = append(slices.Clone(l.args), "--duration", w.settings.time.String())
		for _, c := range order {
			if err := w.run(ctx, f.group, c, l, round, all); err != nil {
				return err
			}
		}
	}
	return nil
}

// run measures one load against one contestant. A load that fails is noted;
// only an interruption is an error.
func (w *world) run(ctx context.Context, g group, c *contestant, l load, round int, all *results) error {
	limited, cancel := context.WithTimeout(ctx, w.settings.time+runLimit+l.takes)
	defer cancel()
	flags := c.flags
	if flags == nil {
		flags = []string{"--target", c.address}
	}
	args := slices.Concat(l.args, []string{"--json"}, flags, []string{"--pid", serveName + "=" + strconv.Itoa(w.serving.pid())})
	for _, pid := range c.pids {
		args = append(args, "--pid", pid)
	}
	cmd := command(limited, w.binary("cproxy-bench"), args...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return errInterrupted
	}
	var m metrics
	if err == nil {
		m, err = parseMeasurement(out)
	}
	if err != nil {
		w.fail(all, fmt.Sprintf("round %d, %s, %s: %v: %s", round+1, l.title, c.title, err, lastLine(complaint.String())))
		return nil
	}
	if l.waits && c.proxyPort != "" {
		w.timeWaits(c, m)
	}
	all.add(key{g.prefix + l.name, c.name}, round, m)
	return nil
}
