//go:build linux

package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadSettings(t *testing.T) {
	read := func(env map[string]string) (settings, error) {
		return readSettings(func(name string) string { return env[name] })
	}
	s, err := read(nil)
	if err != nil || s.rounds != 5 || s.time != 1500*time.Millisecond || s.out != "docs" || !s.install || s.quick {
		t.Errorf("defaults %+v, %v", s, err)
	}
	s, err = read(map[string]string{"BENCH_QUICK": "1", "BENCH_TIME": "80ms", "BENCH_OUT": "x", "BENCH_INSTALL": "0", "BENCH_FRP": "y", "BENCH_LIMIT": "1m"})
	if err != nil || !s.quick || s.rounds != 2 || s.time != 80*time.Millisecond || s.out != "x" || s.install || s.frp != "y" || s.limit != time.Minute {
		t.Errorf("all set %+v, %v", s, err)
	}
	if s, err = read(map[string]string{"BENCH_QUICK": "0", "BENCH_ROUNDS": "9"}); err != nil || s.quick || s.rounds != 9 {
		t.Errorf("not quick %+v, %v", s, err)
	}
	for name, value := range map[string]string{"BENCH_ROUNDS": "0", "BENCH_TIME": "fast", "BENCH_LIMIT": "5"} {
		if _, err := read(map[string]string{name: value}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

// newWorld makes a world whose programs are shell scripts.
func newWorld(t *testing.T) *world {
	t.Helper()
	progress, err := os.Create(filepath.Join(t.TempDir(), "progress"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = progress.Close() })
	return &world{dir: t.TempDir(), progress: progress, settings: settings{time: 10 * time.Millisecond}}
}

func (w *world) sh(t *testing.T, name, script string) *process {
	t.Helper()
	p, err := w.start(t.Context(), name, nil, "/bin/sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fakeBench makes a script of the world's cproxy-bench, and starts what stands for
// its serving side.
func (w *world) fakeBench(t *testing.T, script string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(w.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.binary("cproxy-bench"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	w.serving = w.sh(t, "serve", "exec sleep 1000")
	t.Cleanup(w.serving.stop)
}

func TestProcess(t *testing.T) {
	w := newWorld(t)
	p := w.sh(t, "good", "echo noise; echo ready at 127.0.0.1:5; exec sleep 1000")
	if got, err := p.awaitLine(t.Context(), "ready at "); err != nil || got != "127.0.0.1:5" {
		t.Errorf("got %q, %v", got, err)
	}
	p.stop()
	if err := syscall.Kill(p.pid(), 0); err == nil {
		t.Error("the process lives on")
	}
	broken := w.sh(t, "broken", "echo no such luck >&2; exit 3")
	if _, err := broken.awaitLine(t.Context(), "ready"); err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("got %v", err)
	}
	broken.stop()
	deaf := w.sh(t, "deaf", "exit 0")
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	if err := deaf.awaitPort(t.Context(), "127.0.0.1:"+port); err == nil {
		t.Error("something listens")
	}
	deaf.stop()
	if _, err := w.start(t.Context(), "absent", nil, filepath.Join(w.dir, "absent")); err == nil {
		t.Error("nothing was started")
	}
}

func TestProcessInterrupted(t *testing.T) {
	w := newWorld(t)
	p := w.sh(t, "slow", "exec sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.awaitLine(ctx, "never"); err == nil {
		t.Error("the line came")
	}
	if err := p.awaitPort(ctx, "127.0.0.1:1"); err == nil {
		t.Error("the port opened")
	}
	p.stop()
	if _, err := w.start(ctx, "late", nil, "/bin/sh"); err == nil {
		t.Error("a process was started after the interruption")
	}
}

func TestChildren(t *testing.T) {
	w := newWorld(t)
	p := w.sh(t, "parent", "sleep 1000 & echo child $!; trap 'kill $!' TERM; wait")
	defer p.stop()
	child, err := p.awaitLine(t.Context(), "child ")
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.children()
	if err != nil || len(got) != 1 || got[0] != child {
		t.Errorf("children %q, %v, want %s", got, err, child)
	}
}

// A load that fails is noted; one that works is kept.
func TestRun(t *testing.T) {
	w := newWorld(t)
	script := "#!/bin/sh\ncase $1 in bad) echo error: no luck >&2; exit 1;; esac\n" +
		`echo '{"bulk":{"gb_per_s":2},"cpu":[{"name":"hop0","per_unit":3}]}'; echo "$@" > ` + w.dir + "/args\n"
	w.fakeBench(t, script)
	all := newResults()
	c := &contestant{kind: kind{name: "engine", title: "the engine"}, address: "127.0.0.1:7", pids: []string{"hop0=12"}}
	g := group{prefix: "tunnel-"}
	for _, name := range []string{"good", "bad"} {
		if err := w.run(t.Context(), g, c, load{name: name, title: name, args: []string{name}}, 4, all); err != nil {
			t.Fatal(err)
		}
	}
	if m := all.runs[key{"tunnel-good", "engine"}][4]; m["cpu"] != 3 || m["gb_per_s"] != 2 {
		t.Errorf("measured %v", m)
	}
	if len(all.failures) != 1 || !strings.Contains(all.failures[0], "no luck") {
		t.Errorf("failures %q", all.failures)
	}
	args, err := os.ReadFile(filepath.Join(w.dir, "args"))
	want := "good --json --target 127.0.0.1:7 --pid serve=" + strconv.Itoa(w.serving.pid()) + " --pid hop0=12\n"
	if err != nil || string(args) != want {
		t.Errorf("called with %q, %v, want %q", args, err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.run(ctx, g, c, load{args: []string{"good"}}, 0, all); err == nil {
		t.Error("an interruption was no error")
	}
}

// Orders of loads and contestants: reversed in every other round, extra loads
// only in the first.
func TestRoundOrder(t *testing.T) {
	w := newWorld(t)
	script := "#!/bin/sh\necho $1 $6 >> " + w.dir + "/order\necho '{}'\n"
	w.fakeBench(t, script)
	f := &field{
		group:       group{loads: []load{{name: "x", args: []string{"x"}}, {name: "y", args: []string{"y"}, extra: true}}},
		contestants: []*contestant{{kind: kind{name: "a"}, address: "a"}, {kind: kind{name: "b"}, address: "b"}},
	}
	for round := range extraRounds + 1 {
		if err := w.round(t.Context(), f, round, newResults()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(filepath.Join(w.dir, "order"))
	if want := "x a x b y a y b x b x a y b y a x a x b"; err != nil || strings.Join(strings.Fields(string(got)), " ") != want {
		t.Errorf("order %q, %v, want %q", strings.Join(strings.Fields(string(got)), " "), err, want)
	}
}

// A contestant that does not start is noted, and what it started is stopped.
func TestBeginFailure(t *testing.T) {
	w, all := newWorld(t), newResults()
	var p *process
	k := kind{title: "half", start: func(_ context.Context, w *world) (*contestant, error) {
		c := &contestant{}
		p = w.sh(t, "half", "exec sleep 1000")
		c.charge("half", p)
		return c, os.ErrDeadlineExceeded
	}}
	c, err := w.begin(t.Context(), k, all)
	if c != nil || err != nil || len(all.failures) != 1 {
		t.Errorf("got %v, %v, failures %q", c, err, all.failures)
	}
	if err := syscall.Kill(p.pid(), 0); err == nil {
		t.Error("the process lives on")
	}
}

func TestFacts(t *testing.T) {
	names := make(map[string]bool)
	for _, f := range readFacts(t.Context(), newWorld(t)) {
		if f.value == "" {
			t.Errorf("%s is empty", f.name)
		}
		names[f.name] = true
	}
	for _, want := range []string{"CPU", "kernel", "Go", "date"} {
		if !names[want] {
			t.Errorf("no fact %q", want)
		}
	}
}

func TestValueOf(t *testing.T) {
	const text = "model\t\t: 167\nmodel name\t: Fast CPU @ 1: GHz\nNAME=x\nempty:\n"
	for name, want := range map[string]string{"model name": "Fast CPU @ 1: GHz", "model": "167", "NAME": "x", "empty": "", "none": ""} {
		if got := valueOf(text, name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestParentOf(t *testing.T) {
	for stat, want := range map[string]string{"7 (a b) S 5 1": "5", "7 (a) S 9) R 6 1": "6", "7 (a)": "", "": ""} {
		if got := parentOf(stat); got != want {
			t.Errorf("%q: got %q, want %q", stat, got, want)
		}
	}
}

func TestMissing(t *testing.T) {
	w := newWorld(t)
	for _, k := range append(joins(), tunnels()...) {
		want := k.name == "haproxy" || k.name == "nginx" || k.name == "haproxy2" || k.name == "frp"
		if got := k.missing != nil && k.missing(w) != ""; got != want {
			t.Errorf("%s: missing is %v", k.name, got)
		}
	}
}

func TestLastLine(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "a", "a\nb\n": "b", "\n": ""} {
		if got := lastLine(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
