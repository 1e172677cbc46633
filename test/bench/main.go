//go:build linux

// Command bench compares CProxy with other forwarders on this machine, and
// writes docs/benchmarks.md. `make bench` runs it from the top of the source
// tree; the settings are variables of the environment, listed in settings.go.
//
// All programs run on loopback. A round runs every load against every
// contestant, one after the other, and the next round in reverse order; what
// is compared are numbers of the same round.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

func main() {
	// Children die with the thread that started them: this one.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	s, err := readSettings(os.Getenv)
	if err != nil {
		return err
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return errors.New("run this from the top of the source tree: make bench")
	}
	dir, err := os.MkdirTemp("", "cproxy-bench-")
	if err != nil {
		return fmt.Errorf("make a folder for the run: %w", err)
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintln(os.Stderr, "logs of the programs are in", dir)
		}
	}()
	w := &world{dir: dir, settings: s, progress: os.Stderr}
	w.say("building")
	if err := w.build(ctx); err != nil {
		return err
	}
	w.findPrograms(ctx)
	return w.measureAndWrite(ctx)
}

// world is what a run needs: where things are and who tells the user.
type world struct {
	dir      string
	settings settings
	progress *os.File
	haproxy  string // path, or empty
	nginx    string
	module   string // nginx's stream module; empty when it is built in
	skipped  []string
	served   string // address of the serving side
	serving  *process
}

func (w *world) say(format string, a ...any) {
	_, _ = fmt.Fprintf(w.progress, "bench: "+format+"\n", a...)
}

// binary is the path of one of our programs.
func (w *world) binary(name string) string { return filepath.Join(w.dir, "bin", name) }

func (w *world) build(ctx context.Context) error {
	cmd := command(ctx, "go", "build", "-trimpath", "-o", filepath.Join(w.dir, "bin")+"/", "./cmd/...")
	cmd.Env = append(environment(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// measureAndWrite does all of a run but the preparations.
func (w *world) measureAndWrite(ctx context.Context) error {
	facts := readFacts(ctx, w)
	started := time.Now()
	serving, err := w.serve(ctx)
	if err != nil {
		return err
	}
	defer serving.stop()
	all := newResults()
	if err := w.freshPhase(ctx, all); err != nil {
		return err
	}
	done, err := w.roundsPhase(ctx, all, started)
	if err != nil {
		return err
	}
	r := report{facts: facts, results: all, settings: w.settings, skipped: w.skipped, rounds: done, took: time.Since(started)}
	if err := r.write(w.settings.out); err != nil {
		return err
	}
	r.summary(os.Stdout)
	w.say("wrote %s", filepath.Join(w.settings.out, "benchmarks.md"))
	return nil
}

// serve starts the service behind all contestants.
func (w *world) serve(ctx context.Context) (*process, error) {
	p, err := w.start(ctx, "serve", nil, w.binary("cproxy-bench"), "serve")
	if err != nil {
		return nil, err
	}
	if w.served, err = p.awaitLine(ctx, "listening on "); err != nil {
		p.stop()
		return nil, err
	}
	w.serving = p
	return p, nil
}
