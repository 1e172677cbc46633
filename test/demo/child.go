//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxTail is how many lines of a child's output are kept.
const maxTail = 200

// stopTime is how long a child may take to end when asked to.
const stopTime = 10 * time.Second

// child is a process whose output is read line by line. Its methods may be
// called from any goroutine.
type child struct {
	name  string
	cmd   *exec.Cmd
	lines chan string   // what await has not seen; the newest are dropped when full
	done  chan struct{} // closed when the process has ended and all output is read

	mu   sync.Mutex
	last []string
	err  error
}

// start starts cmd, in a process group of its own so that Ctrl-C reaches the
// demo alone, which ends its children in order. The kernel ends them if it
// cannot.
func start(name string, cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, cmd: cmd, lines: make(chan string, maxTail), done: make(chan struct{})}
	var readers sync.WaitGroup
	readers.Go(func() { c.read(stdout) })
	readers.Go(func() { c.read(stderr) })
	go func() {
		defer close(c.done)
		readers.Wait()
		err := cmd.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.err = err
	}()
	return c, nil
}

func (c *child) read(r io.Reader) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		line := scanner.Text()
		c.mu.Lock()
		if len(c.last) == maxTail {
			c.last = c.last[1:]
		}
		c.last = append(c.last, line)
		c.mu.Unlock()
		select {
		case c.lines <- line:
		default:
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line too long to keep must not block the child
}

// await gives the first line, of those not seen yet, that matches.
func (c *child) await(ctx context.Context, matches func(line string) bool) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("nothing came of it in %s", patience))
	defer cancel()
	for {
		select {
		case line := <-c.lines:
			if matches(line) {
				return line, nil
			}
		case <-c.done:
			if len(c.lines) == 0 {
				return "", fmt.Errorf("%s ended: %w", c.name, c.failure())
			}
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// failure is why a child ended that should not have.
func (c *child) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return errors.New("exit status 0")
	}
	return c.err
}

// tail gives the last lines of the output.
func (c *child) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.last) == 0 {
		return ""
	}
	return strings.Join(c.last, "\n") + "\n"
}

// stop asks the child to end, and makes it after stopTime. A child that had
// ended already is no error here; one that does not end cleanly is.
func (c *child) stop() error {
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.name, err)
	}
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
		_ = c.cmd.Process.Kill() // it fails only if the child has ended
		<-c.done
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("stop %s: %w", c.name, c.err)
	}
	return nil
}
