package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one run of a binary. Its methods may be used from any goroutine.
type process struct {
	name    string
	cmd     *exec.Cmd
	stdout  transcript
	stderr  transcript
	gone    chan struct{} // closed when it has ended and all it wrote is here
	killed  bool          // by the test, so that its exit code means nothing
	retired bool          // the test has looked at its exit code
	files   int           // descriptors that are not sockets, when it was ready
}

// launchOptions say how to start a process.
type launchOptions struct {
	name  string
	argv  []string
	dir   string
	env   []string // beside the environment of the test
	files int      // RLIMIT_NOFILE; 0: that of the test
	alone bool     // in a PID namespace: whatever it starts ends with it
	// stdout and stderr, when set, get what would else be in the transcripts.
	stdout, stderr *os.File
}

// launch starts a process. It is killed with the test, whatever becomes of that.
func launch(o launchOptions) (*process, error) {
	argv := o.argv
	if o.files > 0 {
		// Both limits: the Go runtime raises the soft one to the hard one.
		argv = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, o.files), "sh"}, argv...)
	}
	p := &process{name: o.name, gone: make(chan struct{})}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir = o.dir
	p.cmd.Env = append(os.Environ(), o.env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if o.stdout != nil {
		p.cmd.Stdout = o.stdout
	}
	if o.stderr != nil {
		p.cmd.Stderr = o.stderr
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if o.alone {
		p.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", o.name, err)
	}
	go func() {
		defer close(p.gone)
		_ = p.cmd.Wait() // ProcessState has what matters of it
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// running tells whether the process has not ended.
func (p *process) running() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// awaitOut and awaitLog wait for a line of standard output, or standard error.
func (p *process) awaitOut(pattern string) ([]string, error) {
	return p.wrap(p.stdout.await(0, pattern, p.gone))
}

func (p *process) awaitLog(mark int, pattern string) ([]string, error) {
	return p.wrap(p.stderr.await(mark, pattern, p.gone))
}

func (p *process) wrap(found []string, err error) ([]string, error) {
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	return found, nil
}

// signal sends a signal; a process that has ended gets none.
func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// kill ends the process as a crash would, and waits until it is gone.
func (p *process) kill() {
	p.killed = true
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.gone
}

// exit waits for the end of the process and gives its exit code, -1 after a
// signal.
func (p *process) exit() (int, error) {
	select {
	case <-p.gone:
		p.retired = true
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(patience):
		return 0, fmt.Errorf("%s does not end", p.name)
	}
}

// raced tells whether the race detector has found something.
func (p *process) raced() bool { return strings.Contains(p.stderr.String(), "DATA RACE") }

// ticks is the processor time that the process has used, in clock ticks of
// 10 ms (utime and stime of proc_pid_stat(5)).
func (p *process) ticks() (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	// The name in parentheses may hold anything; field 3 follows it.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("read processor time: %q is too short", data)
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	system, err := strconv.Atoi(fields[12])
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	return user + system, nil
}
