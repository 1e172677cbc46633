//go:build linux

package main

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// A whole run with real programs, too short to measure anything: every load
// against every contestant that is installed, and the report. Nothing is
// installed, and no number is looked at.
func TestWholeRun(t *testing.T) {
	if testing.Short() {
		t.Skip("starts all programs")
	}
	runtime.LockOSThread() // children die with the thread that started them
	defer runtime.UnlockOSThread()
	t.Chdir("../..")
	w := newWorld(t)
	w.settings = settings{
		rounds: 1, time: 10 * time.Millisecond, limit: time.Hour, out: filepath.Join(w.dir, "out"),
		idleConns: 20, settle: time.Millisecond, rest: time.Millisecond, quick: true,
		clients: 5, clientsRest: 10 * time.Millisecond,
	}
	if err := w.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.findPrograms(t.Context())
	if err := w.measureAndWrite(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(w.settings.out, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	if _, failures, ok := strings.Cut(page, "## Failed runs"); ok {
		t.Errorf("runs failed:%s", failures)
	}
	for _, k := range append(joins(), tunnels()...) {
		// A load each, and idle but for direct; those that are missing are
		// named once, under what was not measured.
		rows := strings.Count(page, "\n| "+k.title+" |")
		if absent := k.missing != nil && k.missing(w) != ""; absent != (rows == 0) {
			t.Errorf("%s has %d rows; missing: %v", k.title, rows, absent)
		}
	}
	for _, k := range slices.Concat(reuses(), controls()) {
		if n := strings.Count(page, "\n| "+k.title+" |"); n != 1 {
			t.Errorf("%s has %d rows", k.title, n)
		}
	}
	for _, l := range slices.Concat(joinLoads(), tunnelLoads(), reuseLoads(), []load{clientsLoad(settings{})}) {
		if !l.extra && !strings.Contains(page, "### "+l.title) {
			t.Errorf("no table of %s", l.title)
		}
	}
	w.checkNoProcess(t)
}

// checkNoProcess looks for programs whose path or configuration is in the
// run's folder.
func (w *world) checkNoProcess(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(b), w.dir) {
			t.Errorf("a program was left behind: %q", b)
		}
	}
}
