//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Limits on programs that hang.
const (
	startLimit = 15 * time.Second
	stopLimit  = 5 * time.Second
)

var errInterrupted = errors.New("interrupted")

// environment is ours without what would configure the programs.
func environment() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "CPROXY_") {
			env = append(env, v)
		}
	}
	return env
}

// command is a program that is killed when ctx ends.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the programs that are to be measured
	cmd.Env = environment()
	cmd.WaitDelay = stopLimit
	return cmd
}

// process is a program that runs until it is stopped.
type process struct {
	name  string
	cmd   *exec.Cmd
	lines chan string   // of standard output; closed at its end
	ended chan struct{} // closed when it has ended
	log   string
}

// start starts a program whose standard error goes to a log. The caller stops
// it. ctx ending does not: the order of stopping is the caller's.
func (w *world) start(ctx context.Context, name string, stdin io.Reader, path string, args ...string) (*process, error) {
	if ctx.Err() != nil {
		return nil, errInterrupted
	}
	p := &process{name: name, lines: make(chan string, 64), ended: make(chan struct{}), log: filepath.Join(w.dir, name+".log")}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer log.Close()
	p.cmd = command(context.WithoutCancel(ctx), path, args...)
	p.cmd.Stdin, p.cmd.Stderr = stdin, log
	// A group of its own: Ctrl-C reaches this program first. The main
	// goroutine keeps the thread on which Pdeathsig depends.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			select {
			case p.lines <- scanner.Text():
			default: // nobody waits for so many
			}
		}
		close(p.lines)
		_ = p.cmd.Wait() // whether it ended well shows in what was measured
		close(p.ended)
	}()
	return p, nil
}

// pid is the process's number.
func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the program, and waits for its end.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	timer := time.NewTimer(stopLimit)
	defer timer.Stop()
	select {
	case <-p.ended:
	case <-timer.C:
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// awaitLine waits for a line with the prefix and gives the rest of it.
func (p *process) awaitLine(ctx context.Context, prefix string) (string, error) {
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return "", fmt.Errorf("%s ended before it was ready: %s", p.name, p.lastWords())
			}
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest, nil
			}
		case <-timer.C:
			return "", fmt.Errorf("%s was not ready after %v: %s", p.name, startLimit, p.lastWords())
		case <-ctx.Done():
			return "", errInterrupted
		}
	}
}

// awaitPort waits until something accepts at the address.
func (p *process) awaitPort(ctx context.Context, address string) error {
	deadline := time.Now().Add(startLimit)
	dialer := net.Dialer{Timeout: time.Second}
	for time.Now().Before(deadline) {
		c, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = c.Close()
			return nil
		}
		if ctx.Err() != nil {
			return errInterrupted
		}
		select {
		case _, ok := <-p.lines:
			if !ok {
				return fmt.Errorf("%s ended before it was ready: %s", p.name, p.lastWords())
			}
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s did not listen on %s after %v: %s", p.name, address, startLimit, p.lastWords())
}

// lastWords is the end of the log.
func (p *process) lastWords() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-500):]))
}

// children gives the processes that p has started.
func (p *process) children() ([]string, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var pids []string
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if parentOf(string(b)) == fmt.Sprint(p.pid()) {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids, nil
}

// parentOf gives the parent in the text of /proc/PID/stat.
func parentOf(stat string) string {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return ""
	}
	return fields[1]
}

// freePort gives a loopback port that was free a moment ago.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	return port, err
}
